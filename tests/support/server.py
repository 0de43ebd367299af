"""Servers for tests: the shared one of this test process, and further ones of a test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import redis

from jobq.private_server import PrivateServer


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


@contextmanager
def shared_server() -> Iterator[SharedServer]:
    """The server of this test process, for the length of its session."""
    server = SharedServer(os.environ.get("JOBQ_REDIS_URL"), os.environ.get("PYTEST_XDIST_WORKER", "gw0"))
    server.start()
    try:
        yield server
    finally:
        server.stop()
