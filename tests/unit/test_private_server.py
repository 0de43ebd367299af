"""The private server starts, answers, comes back on its port, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import redis

from jobq import private_server
from jobq.errors import ConfigError
from jobq.private_server import PrivateServer, find_server


def test_starts_with_the_options_given_and_leaves_nothing() -> None:
    with PrivateServer({"maxmemory": "11mb"}) as server, redis.Redis.from_url(server.url) as client:
        pid, directory = server.pid, server.directory
        assert pid is not None
        assert directory is not None
        assert client.config_get("maxmemory") == {"maxmemory": str(11 * 1024**2)}
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("hash-max-listpack-value") == {"hash-max-listpack-value": "512"}
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_password_is_part_of_the_url() -> None:
    with (
        PrivateServer({"requirepass": "tea"}) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        assert client.ping()


def test_comes_back_on_its_port_after_a_kill_with_what_it_saved() -> None:
    with PrivateServer({"appendonly": "yes", "appendfsync": "always"}) as server:
        port = server.port
        with redis.Redis.from_url(server.url) as client:
            client.set("k", "v")
        server.kill()
        assert not server.running
        server.start()
        assert server.port == port
        with redis.Redis.from_url(server.url) as client:
            assert client.get("k") == b"v"


def test_a_port_taken_meanwhile_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], private_server.free_port()])
        monkeypatch.setattr(private_server, "free_port", lambda: next(ports))
        with PrivateServer() as server:
            assert server.port != taken.getsockname()[1]


def test_a_wrong_option_is_told_with_the_servers_words() -> None:
    server = PrivateServer({"no-such-option": "1"})
    with pytest.raises(ConfigError, match="no-such-option"):
        server.start()
    assert server.directory is None


def test_the_shipped_server_is_found_when_path_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    program = find_server()
    assert program.name == "valkey-server"
    assert os.access(program, os.X_OK)


def test_no_server_at_all_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(private_server, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="JOBQ_REDIS_URL"):
        find_server()


def test_both_flavours_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with PrivateServer() as server, redis.Redis.from_url(server.url) as client:
        info = client.info("server")
    assert info["server_name"] == "valkey"
