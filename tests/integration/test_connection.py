from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial

import pytest
import redis
from redis import asyncio as aio
from redis.exceptions import ResponseError

import jobq
from jobq.config import Settings
from jobq.connection import (
    Deadline,
    check_client,
    connect,
    connect_async,
    detached,
    durability_of,
    inspect_server,
    inspect_server_async,
    require_usable,
)
from jobq.errors import ConfigError, StoreUnavailableError
from jobq.private_server import find_server, free_port
from jobq.stats import redis_stats
from jobq.worker.waiter import Waiter
from tests.process import ledger_app
from tests.support.processes import until
from tests.support.proxy import Proxy
from tests.support.timing import in_time


def settings_for(url: str, **more) -> Settings:
    return Settings.load(environ={}, redis_url=url, **more)


@contextmanager
def frozen(pid: int):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# --- roles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["command", "enqueue", "worker", "blocking", "pubsub"])
def test_each_role_is_named_and_answers_in_bytes(settings, role):
    with connect(settings, role) as client:
        client.set("k", "v")
        assert client.get("k") == b"v"
        assert client.client_info()["name"].startswith(f"jobq:{role}:")
        assert client.client_info()["name"].endswith(f":{os.getpid()}")


async def _async_role(settings, role):
    client = connect_async(settings, role)
    await client.set("k", "v")
    value, info = await client.get("k"), await client.client_info()
    await client.aclose()
    return value, info["name"]


@pytest.mark.parametrize("role", ["command", "enqueue", "blocking", "pubsub"])
def test_the_asyncio_twin_does_the_same(settings, role):
    value, name = asyncio.run(_async_role(settings, role))
    assert value == b"v"
    assert name.startswith(f"jobq:{role}:")


def test_timeouts_and_retries_are_those_of_the_role(settings):
    def policy(client):
        kwargs = client.connection_pool.connection_kwargs
        return kwargs["socket_timeout"], kwargs["socket_connect_timeout"], kwargs["retry"].get_retries()

    assert policy(connect(settings, "command")) == (5, 5, 3)
    assert policy(connect(settings, "enqueue")) == (1, 1, 0)
    assert policy(connect(settings, "worker")) == (5, 2, 0)
    assert policy(connect(settings, "blocking", block_s=7)) == (12, 5, 0)
    assert policy(connect(settings, "pubsub")) == (10, 5, 3)
    for role in ("command", "enqueue", "worker", "blocking", "pubsub"):
        assert "protocol" not in connect(settings, role).connection_pool.connection_kwargs


@pytest.mark.parametrize("role", ["enqueue", "command", "worker", "blocking"])
def test_connecting_takes_two_round_trips(redis_client, role):
    async def ping(url: str) -> None:
        async with connect_async(settings_for(url), role) as client:
            await client.ping()

    port = redis_client.connection_pool.connection_kwargs["port"]
    with Proxy(port) as proxy, connect(settings_for(proxy.url), role) as client:
        client.ping()
        assert len(proxy.requests) == 3, proxy.requests  # the third is the ping
        asyncio.run(ping(proxy.url))
        assert len(proxy.requests) <= 6, proxy.requests


def test_an_url_shared_with_others_cannot_undo_the_policy(redis_url):
    with connect(
        settings_for(f"{redis_url}?socket_timeout=60&protocol=3&client_name=x"), "blocking"
    ) as client:
        assert client.connection_pool.connection_kwargs["socket_timeout"] == 10
        assert client.client_info()["name"].startswith("jobq:blocking:")


def test_a_blocking_read_waits_its_time_and_no_longer(settings):
    with connect(settings, "blocking", block_s=0.3) as client:
        start = time.monotonic()
        assert client.blmove("none", "none", 0.3, "LEFT", "LEFT") is None
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_both_names_of_plain_urls_work(redis_url, scheme):
    with connect(settings_for(redis_url.replace("redis://", f"{scheme}://"))) as client:
        assert client.ping()


def test_a_unix_socket_works(server_factory, tmp_path):
    path = f"{tmp_path}/redis.sock"
    server_factory(unixsocket=path).start()
    for role in ("command", "enqueue"):
        with connect(settings_for(f"unix://{path}?db=1"), role) as client:
            client.set("k", "v")
            assert Deadline(1).run(lambda: client.get("k")) == b"v"


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_tls_is_verified(scheme, server_factory, tmp_path):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{tmp_path}/ca.pem")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(f"{tmp_path}/server.pem")
    if "tls" not in subprocess.run(
        ["ldd", str(find_server())], capture_output=True, text=True
    ).stdout.replace("libssl", "tls"):
        pytest.skip("this server was built without TLS")
    port = free_port()
    server_factory(
        tls_port=port,
        tls_cert_file=f"{tmp_path}/server.pem",
        tls_key_file=f"{tmp_path}/server.pem",
        tls_ca_cert_file=f"{tmp_path}/ca.pem",
        tls_auth_clients="no",
    ).start()
    good = settings_for(f"{scheme}://localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.pem")
    for role in ("command", "enqueue"):
        with connect(good, role) as client:
            assert Deadline(5).run(client.ping)
    client = connect(settings_for(f"{scheme}://localhost:{port}/0"), "blocking")
    with client, pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        client.ping()


# --- the deadline --------------------------------------------------------------------------------------------------


def test_a_refused_connection_is_tried_until_the_deadline_and_nothing_was_sent():
    client = connect(settings_for(f"redis://127.0.0.1:{free_port()}", enqueue_timeout="300ms"), "enqueue")

    def wait() -> None:
        deadline, calls = Deadline(0.3), []

        def call():
            calls.append(1)
            return client.ping()

        with pytest.raises(redis.ConnectionError):
            deadline.run(call)
        assert len(calls) > 1
        assert not deadline.sent

    in_time(0.4, wait)


def test_a_frozen_server_costs_the_deadline_and_no_more(server_factory):
    server = server_factory().start()
    settings = settings_for(server.url, enqueue_timeout="300ms")
    warm = connect(settings, "enqueue")

    def wait(warmed: bool) -> None:
        client = warm if warmed else connect(settings, "enqueue")
        if warmed:
            client.ping()
        with frozen(server.pid):
            deadline, start = Deadline(settings.enqueue_timeout), time.monotonic()
            with pytest.raises(redis.TimeoutError):
                deadline.run(client.ping)
            assert time.monotonic() - start > 0.25
            assert deadline.sent is warmed

    for warmed in (True, False):
        in_time(0.4, partial(wait, warmed))
    assert warm.set("k", "after") is True  # no reply of before comes back as an answer
    assert warm.get("k") == b"after"


def test_a_slow_handshake_counts_against_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_slowly():
            conn, _ = listener.accept()
            with conn, suppress(OSError):
                while request := conn.recv(4096):  # every reply is in time for a socket timeout of its own
                    time.sleep(0.2)
                    conn.sendall(b"%1\r\n+proto\r\n:3\r\n" if b"HELLO" in request else b"+OK\r\n")

        def wait() -> None:
            thread = threading.Thread(target=answer_slowly, daemon=True)
            thread.start()
            client = connect(settings_for(f"redis://127.0.0.1:{listener.getsockname()[1]}"), "enqueue")
            with pytest.raises(redis.RedisError):
                Deadline(0.3).run(client.ping)
            client.close()

        in_time(0.45, wait)


def test_a_lost_connection_is_retried_only_where_that_is_safe(settings):
    client = connect(settings, "enqueue")
    client.ping()

    def runs(idempotent: bool) -> int:
        calls = []

        def call():
            calls.append(1)
            if len(calls) == 1:
                client.ping()
                raise redis.ConnectionError("the reply was lost")
            return client.ping()

        with suppress(redis.ConnectionError):
            Deadline(1).run(call, idempotent=idempotent)
        return len(calls)

    assert runs(idempotent=True) == 2
    assert runs(idempotent=False) == 1


def test_a_wrong_password_is_not_tried_again(server_factory):
    server = server_factory(requirepass="right").start()
    client = connect(settings_for(server.url.replace("right@", "wrong@")), "enqueue")
    start = time.monotonic()
    with pytest.raises(redis.AuthenticationError):
        Deadline(5).run(client.ping)
    assert time.monotonic() - start < 2


def test_the_asyncio_deadline(server_factory):
    server = server_factory().start()

    async def check() -> float:
        client = connect_async(settings_for(server.url, enqueue_timeout="300ms"), "enqueue")
        assert await Deadline(10).run_async(client.ping)
        with frozen(server.pid):
            deadline, start = Deadline(0.3), time.monotonic()
            with pytest.raises(redis.TimeoutError):
                await deadline.run_async(client.ping)
            took = time.monotonic() - start
            assert deadline.sent
        assert await client.set("k", "after") is True
        assert await client.get("k") == b"after"
        await client.aclose()
        return took

    assert min(asyncio.run(check()) for _ in range(3)) < 0.4


def test_a_refused_asyncio_connection_sent_nothing():
    async def check() -> bool:
        client = connect_async(settings_for(f"redis://127.0.0.1:{free_port()}"), "enqueue")
        deadline = Deadline(0.2)
        with pytest.raises(redis.ConnectionError):
            await deadline.run_async(client.ping)
        await client.aclose()
        return deadline.sent

    assert asyncio.run(check()) is False


# --- what is refused -----------------------------------------------------------------------------------------------


def test_clients_that_decode_or_speak_to_a_cluster_are_refused(redis_url):
    with pytest.raises(ConfigError, match="decode_responses must be off"):
        check_client(redis.Redis.from_url(redis_url, decode_responses=True))
    with pytest.raises(ConfigError, match="decode_responses must be off"):
        check_client(aio.Redis.from_url(redis_url, decode_responses=True))
    for kind in (redis.RedisCluster, aio.RedisCluster):
        with pytest.raises(
            ConfigError, match=r"Cluster client cannot be used.*JOBQ_QUEUES__BATCH__REDIS_URL"
        ):
            check_client(kind.__new__(kind))
    check_client(redis.Redis.from_url(redis_url))
    check_client(aio.Redis.from_url(redis_url))


def test_a_wrong_url_of_a_queue_is_a_config_error_without_its_password(settings):
    with pytest.raises(ConfigError) as caught:
        connect(settings, url="http://u:hunter2@h")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts_is_refused(server_factory, policy):
    with connect(settings_for(server_factory(maxmemory_policy=policy).start().url)) as client:
        info = inspect_server(client)
    assert info.maxmemory_policy == policy
    with pytest.raises(ConfigError, match=f"{policy}.*noeviction"):
        require_usable(info)


def test_a_replica_is_refused(redis_url, server_factory):
    port = redis_url.rpartition(":")[2].split("/")[0]
    with connect(settings_for(server_factory(replicaof=f"127.0.0.1 {port}").start().url)) as client:
        info = inspect_server(client)
    assert info.role == "replica"
    with pytest.raises(ConfigError, match=r"replica.*primary"):
        require_usable(info)


def test_a_node_of_a_cluster_is_refused(server_factory):
    with (
        connect(
            settings_for(server_factory(cluster_enabled=True, cluster_port=free_port()).start().url)
        ) as client,
        pytest.raises(ConfigError, match="cluster mode"),
    ):
        require_usable(inspect_server(client))


def test_old_versions_are_refused(client_info):
    from dataclasses import replace

    for flavour, version, usable in [
        ("redis", "6.0.20", False), ("redis", "6.2.0", True), ("redis", "10.1", True),
        ("valkey", "7.0.1", False), ("valkey", "9.1.2", True), ("unknown", "", True),
    ]:  # fmt: skip
        info = replace(client_info, flavour=flavour, version=version)
        if usable:
            require_usable(info)
        else:
            with pytest.raises(ConfigError, match="too old"):
                require_usable(info)


@pytest.fixture
def client_info(settings):
    with connect(settings) as client:
        return inspect_server(client)


def test_a_usable_server_says_what_it_is(client_info):
    require_usable(client_info)
    assert client_info.flavour in ("redis", "valkey")
    assert client_info.version[0].isdigit()
    assert (client_info.role, client_info.mode, client_info.maxmemory) == ("primary", "standalone", 0)


@pytest.mark.parametrize(
    ("config", "durability"),
    [
        ({"save": ""}, "none"),
        ({"save": "3600 1"}, "snapshot"),
        ({"appendonly": True, "appendfsync": "everysec"}, "aof-everysec"),
        ({"appendonly": True, "appendfsync": "always"}, "aof-always"),
        ({"appendonly": True, "appendfsync": "no"}, "snapshot"),
    ],
)
def test_the_durability_class_is_found(server_factory, config, durability):
    settings = settings_for(server_factory(**config).start().url)
    with connect(settings) as client:
        found = inspect_server(client)

    async def asked() -> object:
        twin = connect_async(settings)
        try:
            return await inspect_server_async(twin)
        finally:
            await twin.aclose()

    assert found.durability == durability
    assert asyncio.run(asked()) == found


@pytest.mark.parametrize(
    ("info", "config", "durability"),
    [
        ({}, {}, "unknown"),  # INFO is refused
        ({"aof_enabled": 1}, {}, "aof-everysec"),
        ({"aof_enabled": 1}, {"appendfsync": "everysec", "save": ""}, "aof-everysec"),
        ({"aof_enabled": 1}, {"appendfsync": "always"}, "aof-always"),
        ({"aof_enabled": 1}, {"appendfsync": "no"}, "snapshot"),
        ({"aof_enabled": 0}, {"appendfsync": "always", "save": ""}, "none"),
        ({"aof_enabled": 0}, {"save": "3600 1"}, "snapshot"),
        ({"aof_enabled": 0, "rdb_saves": 3}, {"save": ""}, "none"),
        ({"aof_enabled": 0, "rdb_saves": 3}, {}, "snapshot"),  # CONFIG is refused
        ({"aof_enabled": 0, "rdb_saves": 0}, {}, "unknown"),
    ],
)
def test_stats_and_start_up_agree_on_what_a_crash_costs(info, config, durability):
    lines = "".join(f"{name}:{value}\r\n" for name, value in info.items())
    fsync = ["appendfsync", config["appendfsync"]] if "appendfsync" in config else ResponseError("closed")
    save = ["save", config["save"]] if "save" in config else ResponseError("closed")
    assert durability_of(info, config) == durability
    assert redis_stats(lines.encode(), fsync, save).durability == durability


def test_a_user_who_may_ask_nothing_is_not_refused_for_that(redis_client, redis_url):
    redis_client.execute_command("ACL", "SETUSER", "few", "on", ">pw", "~*", "+@all", "-info", "-config")
    try:
        url = redis_url.replace("://", "://few:pw@")
        with connect(settings_for(url)) as client:
            info = inspect_server(client)
        require_usable(info)
        assert info.flavour == "unknown"
    finally:
        redis_client.execute_command("ACL", "DELUSER", "few")


def test_an_unreachable_server_and_a_refused_login_are_told_apart(server_factory):
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        inspect_server(connect(settings_for(f"redis://127.0.0.1:{free_port()}"), "enqueue"))
    server = server_factory(requirepass="right").start()
    with pytest.raises(ConfigError, match="refuses the login"):
        inspect_server(connect(settings_for(server.url.replace("right@", "wrong@"))))


# --- Sentinel ------------------------------------------------------------------------------------------------------


def test_sentinel_finds_the_primary_and_follows_a_failover(server_factory, tmp_path):
    first = server_factory().start()
    first_port = int(first.url.rpartition(":")[2].split("/")[0])
    second = server_factory(replicaof=f"127.0.0.1 {first_port}", replica_priority=1).start()
    port = free_port()
    conf = tmp_path / "sentinel.conf"
    conf.write_text(
        f"bind 127.0.0.1\nport {port}\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {first_port} 1\n"
        "sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 1500\n"
    )
    sentinel = subprocess.Popen([find_server(), conf, "--sentinel"], stdout=subprocess.DEVNULL)
    settings = settings_for(
        f"redis+sentinel://127.0.0.1:{port},127.0.0.1:{free_port()}/main/0", enqueue_timeout="10s"
    )
    try:
        with redis.Redis(port=port, decode_responses=True) as watch:
            until(watch.ping, ignoring=redis.RedisError)
            until(lambda: watch.sentinel_slaves("main"), ignoring=redis.RedisError)
            with pytest.raises(ConfigError, match="redis\\+sentinel://"):
                require_usable(inspect_server(connect(settings_for(f"redis://127.0.0.1:{port}"))))
            with redis.Redis.from_url(second.url) as replica:
                until(
                    lambda: replica.info("replication")["master_link_status"] == "up",
                    ignoring=redis.RedisError,
                )
        client = connect(settings, "enqueue")
        require_usable(inspect_server(client))
        assert client.set("k", "before")

        async def twin() -> object:
            other = connect_async(settings, "enqueue")
            try:
                return await Deadline(5).run_async(lambda: other.get("k"))
            finally:
                await other.aclose()

        assert asyncio.run(twin()) == b"before"
        first.kill()
        assert Deadline(10).run(lambda: client.set("k", "after"))
        assert client.info("server")["tcp_port"] != first_port
        assert asyncio.run(twin()) == b"after"
    finally:
        sentinel.kill()
        sentinel.wait()


# --- outages --------------------------------------------------------------------------------------


def test_a_frozen_server_is_waited_for_once(server_factory, monkeypatch):
    monkeypatch.setattr("jobq.connection.COMMAND_TIMEOUT_S", 0.3)
    server = server_factory().start()

    async def ping(client):
        async with client:
            await client.ping()

    with connect(settings_for(server.url)) as client:
        client.ping()
        with frozen(server.pid):
            for attempt in (client.ping, lambda: asyncio.run(ping(connect_async(settings_for(server.url))))):

                def wait(attempt=attempt) -> None:
                    with pytest.raises(redis.TimeoutError):
                        attempt()

                in_time(0.6, wait)


def test_no_number_of_attempts_uses_a_client_up(server_factory):
    """redis-py's pools refuse after having made a hundred connections in their life."""
    server = server_factory().start()
    settings = settings_for(server.url, enqueue_timeout="20ms")
    with jobq.Client(settings) as client, connect(settings, "blocking") as waiting:
        note = ledger_app.note.options(client=client)
        waiter = Waiter(lambda: detached(waiting), "rq:queue:high")

        def enqueued() -> bool:
            with suppress(StoreUnavailableError):
                return bool(note.enqueue(key="a").id)
            return False

        server.kill()
        for _ in range(110):
            assert not enqueued()
            assert not waiter.arm(time.monotonic())
        server.start()
        until(enqueued)
        assert waiter.arm(time.monotonic())
        assert waiter.fire()
        waiter.drop()
