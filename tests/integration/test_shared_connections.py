"""What tasks do with Redis in an executor process: one bounded set of connections for all of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis

import jobq
from jobq import events
from jobq.client import share_connections
from jobq.connection import limit_connections, task_connections
from jobq.errors import StoreUnavailableError
from jobq.job import JobState
from jobq.tasks import Registry, task
from jobq.wires import Wires
from tests.support.hand import Hand

MOST = 2

registry = Registry()


@task("t.one", registry=registry)
def one(n: int) -> int:
    return n


@pytest.fixture(autouse=True)
def limited(redis_client: redis.Redis) -> Iterator[None]:
    for each in redis_client.client_list():  # what an earlier test has left to the garbage collector
        if each["name"].startswith("jobq:"):
            redis_client.client_kill_filter(_id=each["id"])
    limit_connections(MOST)
    yield
    limit_connections(None)


@pytest.fixture
def client(redis_url: str) -> Iterator[jobq.Client]:
    settings = jobq.Settings(redis_url=redis_url, enqueue_timeout=timedelta(seconds=5))
    with jobq.Client(settings, registry=registry) as made:
        yield made


def ours(server: redis.Redis) -> list[str]:
    """The names of jobq's connections."""
    return [each["name"] for each in server.client_list() if each["name"].startswith("jobq:")]


def test_an_executor_shares_six_and_a_small_one_as_many_as_it_has_slots() -> None:
    assert [task_connections(slots) for slots in (1, 2, 6, 20)] == [1, 2, 6, 6]


def test_enqueues_and_looks_of_many_threads_share_the_connections(
    client: jobq.Client, redis_client: redis.Redis
) -> None:
    most, over = 0, threading.Event()

    def work(n: int) -> None:
        for _ in range(20):
            assert one.options(client=client).enqueue(n=n).refresh().state is JobState.QUEUED

    def count() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, len(ours(redis_client)))

    with ThreadPoolExecutor(13) as pool:
        counting = pool.submit(count)
        list(pool.map(work, range(12)))
        over.set()
        counting.result()
    assert 1 <= most <= MOST
    assert redis_client.llen("rq:queue:medium") == 240


def test_who_finds_none_free_until_its_deadline_is_told_and_nothing_was_sent(redis_url: str) -> None:
    settings = jobq.Settings(redis_url=redis_url, enqueue_timeout=timedelta(milliseconds=200))
    with (
        jobq.Client(settings, registry=registry) as client,
        ThreadPoolExecutor(MOST) as pool,
    ):
        wires, over, inside = client._links.wires(), threading.Event(), threading.Barrier(MOST + 1)

        def hold() -> None:
            with wires.lent():
                inside.wait(10)
                over.wait(10)

        held = [pool.submit(hold) for _ in range(MOST)]
        inside.wait(10)
        with pytest.raises(StoreUnavailableError, match="all 2 connections") as caught:
            one.options(client=client).enqueue(n=1)
        assert not caught.value.ambiguous
        over.set()
        for each in held:
            each.result()
        one.options(client=client).enqueue(n=1)


def test_who_holds_one_already_gets_another(client: jobq.Client, redis_client: redis.Redis) -> None:
    """A subscriber that enqueues while a bulk is on its way would else wait for itself."""
    limit_connections(1)

    def follow(event: events.Event) -> None:
        if event.name == "job.enqueued" and event.fields["queue"] == "medium":
            one.options(client=client, queue="low").enqueue(n=0)

    end = events.subscribe(follow)
    try:
        one.options(client=client).enqueue_many([{"n": n} for n in range(250)])
    finally:
        end()
    assert redis_client.llen("rq:queue:low") == 250
    assert len(ours(redis_client)) == 1, "what was beyond the bound is closed"


def test_a_turn_that_was_torn_down_is_not_lost(client: jobq.Client) -> None:
    """A soft timeout may strike before anything could give the turn back."""
    turns = client._links.wires()._turns
    assert turns is not None
    for _ in range(3 * MOST):
        turn = turns.take(None)
        del turn
    assert one.options(client=client).enqueue(n=1).refresh().state is JobState.QUEUED


def test_a_thread_that_waits_is_woken(client: jobq.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobq.wires._LOOK_AGAIN_S", 30.0)
    wires = Wires(client._links.wires().client, 1)
    began = time.monotonic()

    def use() -> None:
        with wires.lent():
            time.sleep(0.02)

    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(use) for _ in range(16)]:
            each.result()
    assert time.monotonic() - began < 20


def test_coroutines_share_them_too(redis_url: str, redis_client: redis.Redis) -> None:
    settings = jobq.Settings(redis_url=redis_url, enqueue_timeout=timedelta(seconds=5))

    async def work(client: jobq.AsyncClient, n: int) -> None:
        for _ in range(10):
            job = await one.options(client=client).enqueue_async(n=n)
            await job.refresh_async()

    async def run() -> int:
        async with jobq.AsyncClient(settings, registry=registry) as client:
            await asyncio.gather(*(work(client, n) for n in range(10)))
            return len(ours(redis_client))

    assert asyncio.run(run()) <= MOST
    assert redis_client.llen("rq:queue:medium") == 100


def test_more_waiters_than_connections_all_hear_of_the_end(client: jobq.Client) -> None:
    jobs = one.options(client=client).enqueue_many([{"n": n} for n in range(5)])
    with ThreadPoolExecutor(5) as pool:
        waits = [pool.submit(job.wait, 20) for job in jobs]
        hand = Hand(client)
        for _ in jobs:
            hand.succeed(value=1)
        assert all(wait.result().state is JobState.SUCCEEDED for wait in waits)


def test_a_default_client_of_before_the_fork_begins_anew(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobq.client._default", None)
    limit_connections(None)
    with jobq.configure(redis_url=redis_url) as client:
        client.get(jobq.send_otp.enqueue(email="ada@example.com", code="123456").id)
        assert len(ours(redis_client)) == 2
        share_connections(1)
        client.get(jobq.send_otp.enqueue(email="ada@example.com", code="123456").id)
        assert len(ours(redis_client)) == 1
