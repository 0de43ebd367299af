"""Fixtures for all tests: a real server, and a client on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import redis

import jobq
from jobq.private_server import PrivateServer
from jobq.queues import declared
from tests.support.server import ServerFactory, Servers, SharedServer, as_config, shared_server


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a timeout of their own take longest: they come first, so that all do not wait for one in the end."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.fixture(scope="session")
def _server() -> Iterator[SharedServer]:
    with shared_server() as server:
        yield server


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """A Redis and a Valkey of this test process, whatever ``JOBQ_REDIS_URL`` names."""
    made = Servers()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of whoever runs the tests reaches a test."""
    for name in list(os.environ):
        if name.startswith(("JOBQ_", "REDIS_", "RQ_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_default_client() -> Iterator[None]:
    """No default client of one test serves the next, nor what one declares."""
    yield
    declared.clear()
    module = sys.modules.get("jobq.client")
    if module is not None:
        left, module._default, module._flags, module._knows = module._default, None, {}, None
        if left is not None:
            left.close()


@pytest.fixture
def redis_url(_server: SharedServer) -> str:
    """URL of this test process's server, emptied before each test."""
    _server.flush()
    return _server.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client that answers in bytes."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def settings(redis_url: str) -> jobq.Settings:
    """Settings that name the test's server, everything else by default."""
    return jobq.Settings(redis_url=redis_url)


@pytest.fixture
def client(settings: jobq.Settings) -> Iterator[jobq.Client]:
    """A client on the test's server."""
    with jobq.Client(settings) as made:
        yield made


@pytest.fixture
def server_factory() -> Iterator[ServerFactory]:
    """Further servers: ``with server_factory(maxmemory="10mb") as server``; all end with the test."""
    made: list[PrivateServer] = []

    def factory(**config: str | int | bool) -> PrivateServer:
        server = PrivateServer(as_config(config))
        made.append(server)
        return server

    yield factory
    for server in made:
        server.stop()
