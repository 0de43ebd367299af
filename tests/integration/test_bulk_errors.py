"""What the error of an enqueue of many says: which are there, so that nobody sends those again."""

from __future__ import annotations

import pytest
import redis

import jobq
from jobq.client import Client
from jobq.errors import QueueFullError, QuotaExceededError, StoreUnavailableError
from jobq.limits import Quota
from jobq.tasks import Registry, task
from tests.support.both import Both
from tests.support.proxy import Fate, Proxy

registry = Registry()


@task("be.add", registry=registry)
def add(a: int) -> int:
    return a


@task("be.some", registry=registry, quota=Quota(120, per=3600))
def some(a: int) -> int:
    return a


@task("be.once", registry=registry, dedup="{a}")
def once(a: int) -> int:
    return a


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def do(request: pytest.FixtureRequest, settings: jobq.Settings) -> Both:
    return Both(settings, request.param, registry)


def requests(which: jobq.Task, count: int) -> list[object]:
    return [which.options().request(a=n) for n in range(count)]


def waiting(server: redis.Redis) -> list[str]:
    return [job_id.decode() for job_id in server.lrange("rq:queue:medium", 0, -1)]


def test_a_full_queue(do: Both, redis_client: redis.Redis) -> None:
    redis_client.hset("jobq:q:medium", "max", 250)
    with pytest.raises(QueueFullError, match="250 of 400") as caught:
        do("enqueue", requests(add, 400))
    acknowledged = caught.value.acknowledged
    assert [job_id for job_id in acknowledged if job_id] == waiting(redis_client)
    assert (len(acknowledged), acknowledged.count(None)) == (400, 150)


def test_a_quota(do: Both, redis_client: redis.Redis) -> None:
    with pytest.raises(QuotaExceededError, match="120 of 300") as caught:
        do("enqueue", requests(some, 300))
    assert list(caught.value.acknowledged) == waiting(redis_client) + [None] * 180


def test_equal_jobs_count_as_there(do: Both, client: Client, redis_client: redis.Redis) -> None:
    held = once.options(client=client).enqueue(a=0)
    redis_client.hset("jobq:q:medium", "max", 3)
    with pytest.raises(QueueFullError) as caught:
        do("enqueue", requests(once, 5))
    first, second, third, *rest = caught.value.acknowledged
    assert first == held.id
    assert [held.id, second, third] == waiting(redis_client)
    assert rest == [None, None]


def test_what_was_sent_ahead_of_a_refusal_is_told_of(
    redis_client: redis.Redis, settings: jobq.Settings
) -> None:
    """Chunks are on their way when an earlier one is refused: what they bring is there, or is not."""
    redis_client.hset("jobq:q:medium", "max", 150)
    jobs = [add.options().request(a=n) for n in range(1_000)]
    for n, request in enumerate(jobs):
        if n % 10 == 9:  # every tenth goes elsewhere, and is taken
            jobs[n] = add.options(queue="low").request(a=n)
        assert request is not None
    with Client(settings, registry=registry) as client, pytest.raises(QueueFullError) as caught:
        client.enqueue(jobs)
    there = {*waiting(redis_client), *(i.decode() for i in redis_client.lrange("rq:queue:low", 0, -1))}
    assert {job_id for job_id in caught.value.acknowledged if job_id} == there
    assert len(caught.value.acknowledged) == 1_000


@pytest.mark.parametrize("fate", ["swallow", "reset", "truncate"])
def test_a_connection_lost_with_several_calls_on_their_way_loses_and_doubles_nothing(
    settings: jobq.Settings, redis_client: redis.Redis, fate: Fate
) -> None:
    with Proxy(redis_client.connection_pool.connection_kwargs["port"]) as proxy:
        away = settings.model_copy(update={"redis_url": proxy.url})
        with Client(away, registry=registry) as client:
            client.enqueue([add.options().request(a=0)])
            for skip in (0, 1, 0, 1):  # later calls may arrive together, which the proxy takes for one
                proxy.on("enqueue", fate, skip=skip, after=3)
                made = client.enqueue([add.options().request(a=n) for n in range(500)])
                assert {job.id for job in made} <= set(waiting(redis_client))
    assert proxy.met[fate] == 4
    assert redis_client.llen("rq:queue:medium") == len(set(waiting(redis_client))) == 2_001


def test_nothing_is_there_when_nobody_answers(do: Both, settings: jobq.Settings) -> None:
    nowhere = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with Client(nowhere, registry=registry) as client, pytest.raises(StoreUnavailableError) as caught:
        client.enqueue([add.options().request(a=n) for n in range(250)])
    assert caught.value.acknowledged == (None,) * 250
    assert not caught.value.ambiguous
