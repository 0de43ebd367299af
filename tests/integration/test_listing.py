"""A listing costs what its state holds, however many jobs of other states share rq's registries with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

import jobq
from jobq.client import Client
from jobq.job import JobState
from jobq.listing import JobFilter, Page, jobs_plan
from jobq.tasks import Registry, task
from tests.support.hand import Hand

MANY = 25_000
registry = Registry()


@task("l.add", registry=registry)
def add(a: int) -> int:
    return a


@task("l.slow", registry=registry, rate=jobq.Rate(1, per=3600))
def slow(a: int) -> int:
    return a


def enqueue(client: Client, count: int, what: Any = add, **options: Any) -> list[str]:
    return [
        job.id
        for job in what.options(client=client, **options).enqueue_many([{"a": n} for n in range(count)])
    ]


def fill(server: redis.Redis, **keys: Callable[[int], float]) -> None:
    """Many others in these keys, all of them before the few of the test."""
    pipe = server.pipeline(transaction=False)
    for key, score in keys.items():
        pipe.zadd(key.replace("__", ":"), {f"other{n}": score(n) for n in range(MANY)})
    pipe.execute()


def scheduled(client: Client, hand: Hand, server: redis.Redis) -> list[str]:
    fill(server, rq__scheduled__medium=lambda n: n / 1000, jobq__retrying__medium=lambda n: n)
    return enqueue(client, 3, delay=3600)


def retrying(client: Client, hand: Hand, server: redis.Redis) -> list[str]:
    fill(server, rq__scheduled__medium=lambda n: n / 1000)
    ids = enqueue(client, 3)
    for job in hand.claim():
        hand.settle(job, "retry", spends=True, delay_ms=60_000)
    return ids


def deferred(client: Client, hand: Hand, server: redis.Redis) -> list[str]:
    ids = enqueue(client, 3)
    for place, job_id in enumerate(ids):
        server.hset(f"rq:job:{job_id}", "status", "deferred")
        server.zadd("rq:deferred:medium", {job_id: place})
    fill(server, rq__deferred__medium=lambda n: 10 + n, jobq__blocked__medium=lambda n: 10_000 + n)
    return ids


def parked(client: Client, hand: Hand, server: redis.Redis) -> list[str]:
    fill(server, rq__deferred__medium=lambda n: 2e9 + n)
    ids = enqueue(client, 2, slow) + enqueue(client, 2)
    held, *others = hand.claim()
    for job, bucket in zip(others, ("b", "c"), strict=True):
        hand.settle(job, "park", reason="no_key", bucket=bucket)
    return [job_id for job_id in ids if job_id != held.id]


def queued(client: Client, hand: Hand, server: redis.Redis) -> list[str]:
    fill(server, rq__scheduled__medium=lambda n: n / 1000)
    return enqueue(client, 3)


def running(client: Client, hand: Hand, server: redis.Redis) -> list[str]:
    fill(server, jobq__leases=lambda n: n)
    enqueue(client, 3)
    return [job.id for job in hand.claim()]


def succeeded(client: Client, hand: Hand, server: redis.Redis) -> list[str]:
    fill(server, rq__failed__medium=lambda n: n)
    enqueue(client, 3)
    return [hand.succeed().id for _ in range(3)]


def dead(client: Client, hand: Hand, server: redis.Redis) -> list[str]:
    fill(server, rq__finished__medium=lambda n: n)
    enqueue(client, 3)
    return [hand.kill().id for _ in range(3)]


def cancelled(client: Client, hand: Hand, server: redis.Redis) -> list[str]:
    fill(server, rq__finished__medium=lambda n: n)
    ids = enqueue(client, 3)
    for job_id in ids:
        client.cancel(job_id)
    return ids


MAKERS = (scheduled, retrying, deferred, parked, queued, running, succeeded, dead, cancelled)


def counted(client: Client, plan: Any) -> tuple[Any, int]:
    """What a plan returns, and the round trips that it costs."""
    trips = 0
    try:
        step = next(plan)
        while True:
            trips += 1
            step = plan.send(client.run(step))
    except StopIteration as done:
        return done.value, trips


@pytest.mark.covers("E-08")
@pytest.mark.parametrize("make", MAKERS)
def test_each_state_is_listed_past_many_others(
    client: Client, redis_client: redis.Redis, make: Callable[..., list[str]]
) -> None:
    state = make.__name__
    ids = make(client, Hand(client), redis_client)
    wanted = JobFilter(states=(JobState(state),), queues=("medium",))
    found: list[str] = []
    cursor, pages, trips = None, 0, 0
    while cursor or not pages:
        page: Page[jobq.Job]
        page, cost = counted(client, jobs_plan(client.keys, wanted, limit=2, cursor=cursor, owner=client))
        assert all(job.state == state for job in page.items)
        found += [job.id for job in page.items]
        cursor, pages, trips = page.cursor, pages + 1, trips + cost
    assert sorted(found) == sorted(ids)
    # Two for ids and hashes, and one for the names of buckets. What no index of ours lists is told apart by ids alone.
    sieved = 2 * MANY // 1_000 if state in ("scheduled", "deferred") else 0
    assert trips <= 4 * pages + sieved
    assert pages <= 3
    assert sorted(client.job_ids(state=state, queue="medium")) == sorted(ids)


def test_a_delayed_job_and_a_retry_say_when_they_are_due(client: Client) -> None:
    hand = Hand(client)
    enqueue(client, 1)
    hand.settle(hand.claim()[0], "retry", spends=True, delay_ms=60_000)
    (retry,) = client.jobs(state="retrying").items
    assert client.get(retry.id).due_at == retry.due_at is not None


def test_a_bucket_that_comes_between_two_pages_shifts_no_other(client: Client) -> None:
    hand = Hand(client)
    ids = enqueue(client, 4)
    for job, bucket in zip(hand.claim(), ("m", "m", "m", "n"), strict=True):
        hand.settle(job, "park", reason="no_key", bucket=bucket)
    first = client.jobs(state="parked", limit=2)
    enqueue(client, 1)
    hand.settle(hand.claim()[0], "park", reason="no_key", bucket="a")
    second = client.jobs(state="parked", cursor=first.cursor)
    seen = [job.id for page in (first, second) for job in page.items]
    assert len(seen) == len({*seen}) == 5
    assert {*ids} < {*seen}
    assert second.cursor is None
    assert {job.state for job in second.items} == {JobState.PARKED}
