"""A primary is demoted behind its name: what holds connections to it lets go of them, and finds the new one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import redis

import jobq
from jobq import calls
from jobq.connection import connect, connect_async, detached
from jobq.errors import StoreUnavailableError
from jobq.job import JobState
from jobq.keys import Keys
from jobq.private_server import PrivateServer
from jobq.steps import Batch
from jobq.store import AsyncStore, Link, Store
from jobq.worker.waiter import Waiter
from tests.process import ledger_app
from tests.support.processes import until
from tests.support.proxy import Proxy

WRITE = Batch((("INCR", "n"),))


@pytest.fixture
def moved(redis_client: redis.Redis) -> Iterator[tuple[Proxy, PrivateServer, redis.Redis]]:
    """A name that leads to the test's server, and the replica that is to follow it."""
    port = redis_client.connection_pool.connection_kwargs["port"]
    with PrivateServer() as other, Proxy(port) as name:
        try:
            yield name, other, redis_client
        finally:
            redis_client.replicaof("NO", "ONE")


def demote(name: Proxy, other: PrivateServer, old: redis.Redis) -> None:
    """The old server becomes a replica of the other, to which the name leads from now on."""
    old.replicaof("127.0.0.1", str(other.port))
    name.server_port = other.port


def test_a_store_finds_the_new_primary(moved: tuple[Proxy, PrivateServer, redis.Redis]) -> None:
    name, *_ = moved
    with connect(jobq.Settings(redis_url=name.url), "worker") as client:
        store = Store(client)
        assert store.run(WRITE) == [1]
        demote(*moved)
        with pytest.raises(StoreUnavailableError) as refused:
            store.run(WRITE)
        assert not refused.value.ambiguous
        assert store.run(WRITE) == [1]


def test_enqueueing_finds_the_new_primary(moved: tuple[Proxy, PrivateServer, redis.Redis]) -> None:
    name, *_ = moved
    with jobq.Client(jobq.Settings(redis_url=name.url)) as client:
        note = ledger_app.note.options(client=client)
        note.enqueue(key="a")
        demote(*moved)
        with pytest.raises(StoreUnavailableError) as refused:
            note.enqueue(key="b")
        assert not refused.value.ambiguous
        assert client.get(note.enqueue(key="c").id).state is JobState.QUEUED


def test_an_async_store_finds_the_new_primary(moved: tuple[Proxy, PrivateServer, redis.Redis]) -> None:
    name, *_ = moved

    async def check() -> None:
        async with connect_async(jobq.Settings(redis_url=name.url), "command") as client:
            store = AsyncStore(client)
            assert await store.run(WRITE) == [1]
            await asyncio.to_thread(demote, *moved)
            with pytest.raises(StoreUnavailableError):
                await store.run(WRITE)
            assert await store.run(WRITE) == [1]

    asyncio.run(check())


def test_a_waiter_waits_at_the_new_primary(moved: tuple[Proxy, PrivateServer, redis.Redis]) -> None:
    name, other, old = moved
    with (
        connect(jobq.Settings(redis_url=name.url), "blocking") as client,
        redis.Redis.from_url(other.url) as new,
    ):
        waiter = Waiter(lambda: detached(client), "rq:queue:high")
        old.rpush("rq:queue:high", "job")
        assert waiter.arm(time.monotonic())
        assert waiter.fire()
        demote(*moved)
        assert waiter.arm(time.monotonic())
        assert waiter.fire()  # refused: whoever has it claims, and hears why
        assert waiter.arm(time.monotonic())
        until(lambda: new.info("clients")["blocked_clients"] == 1)
        new.rpush("rq:queue:high", "job")
        assert waiter.fire()
        waiter.drop()


def test_a_link_finds_the_new_primary(moved: tuple[Proxy, PrivateServer, redis.Redis]) -> None:
    name, *_ = moved
    step = calls.pause(Keys(), "high")
    with connect(jobq.Settings(redis_url=name.url), "worker") as client:
        link = Link(client)
        link.exchange([step])
        demote(*moved)
        with pytest.raises(StoreUnavailableError):
            link.exchange([step])
        link.exchange([step])
        link.close()
