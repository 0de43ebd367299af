"""Fixtures for tests that stand between a client and its server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

import jobq
from jobq import lua
from tests.support.proxy import Proxy


@pytest.fixture
def server(redis_client: redis.Redis) -> redis.Redis:
    """The server behind the proxy, its scripts loaded: a first call of one is no NOSCRIPT."""
    for name in lua.names():
        redis_client.script_load(lua.script(name).text)
    return redis_client


@pytest.fixture
def proxy(server: redis.Redis) -> Iterator[Proxy]:
    """Passes on, loses or delays what goes to the server and comes from it."""
    with Proxy(server.connection_pool.connection_kwargs["port"]) as made:
        yield made


@pytest.fixture
def through(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[jobq.Client]:
    """The default client, which reaches the server through the proxy."""
    monkeypatch.setattr("jobq.client._default", None)
    with jobq.configure(redis_url=proxy.url) as client:
        yield client
