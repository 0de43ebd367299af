"""rq's own ``RateLimit``: our worker frees the slots of jobs that it ends, and rq's waiting jobs go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from rq import Queue
from rq.job import JobStatus
from rq.rate_limit import RateLimit

import jobq
from jobq import calls
from jobq.codec import Serializer
from tests.interop import app
from tests.support.hand import Hand
from tests.support.processes import jobq_worker


@pytest.fixture
def queue(default_client: jobq.Client, redis_client: redis.Redis) -> Queue:
    return Queue("high", connection=redis_client, serializer=Serializer)


@pytest.mark.process
def test_limited_jobs_of_plain_rq_run_one_after_another(
    queue: Queue, redis_url: str, tmp_path: Path, default_client: jobq.Client
) -> None:
    jobs = [queue.enqueue(app.add, n, b=1, rate_limit=RateLimit("k", 1)) for n in range(3)]
    assert jobs[2].get_status() is JobStatus.RATE_LIMITED
    assert default_client.get(jobs[2].id).state is jobq.JobState.PARKED
    with jobq_worker(redis_url, tmp_path / "worker.log", app="tests.interop.app"):
        assert [default_client.result(job.id, timeout=20) for job in jobs] == [1, 2, 3]


@pytest.mark.parametrize("end", ["succeeded", "dead", "retry", "cancel", "delete"])
def test_every_end_frees_the_slot(
    queue: Queue, default_client: jobq.Client, redis_client: redis.Redis, end: str
) -> None:
    one, two = (queue.enqueue(app.add, n, b=1, rate_limit=RateLimit("k", 1)) for n in range(2))
    hand, free = Hand(default_client), _free(default_client)
    if end in ("cancel", "delete"):
        assert free() == 0
        default_client.cancel(one.id)
        if end == "delete":
            default_client.delete(one.id)
    else:
        (job,) = hand.claim("high")
        assert free() == 0, "it runs"
        hand.settle(job, end, queue="high", spends=True, delay_ms=60_000)
    assert free() == 1
    assert [job.id for job in hand.claim("high")] == [two.id]


def test_a_limit_that_nobody_uses_leaves_nothing_behind(
    queue: Queue, default_client: jobq.Client, redis_client: redis.Redis
) -> None:
    queue.enqueue(app.add, 1, b=1, rate_limit=RateLimit("k", 1))
    Hand(default_client).succeed("high")
    _free(default_client)()
    assert not redis_client.keys("rq:rl*")


def _free(client: jobq.Client) -> Callable[[], int]:
    return lambda: client.run(calls.free_rq_slots(client.keys))
