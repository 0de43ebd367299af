"""The audit on a server that plain rq writes to: its ways are no damage, what it forgets or loses is."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from rq import Queue
from rq.job import Job as RqJob

import jobq
from jobq.audit import Finding, audit, repair
from jobq.codec import Serializer
from tests.interop import app
from tests.support.processes import BIN, environment, jobq_worker, program, rq_worker, until

pytestmark = pytest.mark.process

APP = "tests.interop.app"


@pytest.fixture
def queue(redis_client: redis.Redis, default_client: jobq.Client) -> Queue:
    """Plain rq's view of a lane."""
    return Queue("high", connection=redis_client, serializer=Serializer)


@pytest.fixture
def stock(redis_url: str, tmp_path: Path, ledger: Callable[[], list[str]]) -> Callable[[], str]:
    """Run a stock worker until the queue is empty."""
    return lambda: rq_worker(redis_url, tmp_path / "rq.log", app=APP, LEDGER=os.environ["LEDGER"])


def look(client: jobq.Client) -> list[Finding]:
    return audit(client, grace=timedelta(0))


def told(findings: list[Finding]) -> list[tuple[str, str]]:
    return sorted((finding.kind, finding.subject) for finding in findings)


def test_what_rq_does_well_is_no_finding(
    queue: Queue, default_client: jobq.Client, redis_client: redis.Redis, stock: Callable[[], str]
) -> None:
    queue.enqueue(app.add, 1)
    queue.enqueue(app.fail, "f")
    queue.enqueue(app.quiet, "kept", result_ttl=-1)
    app.add.enqueue(1)
    stock()
    parent = queue.enqueue(app.add, 1, ttl=500)
    queue.enqueue(app.add, 2, depends_on=parent)
    queue.enqueue_in(timedelta(hours=1), app.add, 3)
    RqJob.create(app.add, args=(4,), connection=redis_client, serializer=Serializer, origin="high").save()
    assert look(default_client) == []


def test_what_rq_tools_forget_is_set_right(
    queue: Queue, default_client: jobq.Client, redis_client: redis.Redis, stock: Callable[[], str]
) -> None:
    keyed = app.keyed.enqueue("a")
    cancelled = queue.enqueue(app.add, 1)
    requeued = queue.enqueue(app.fail, "f")
    cancelled.cancel()
    stock()
    requeued.refresh()
    requeued.requeue()
    (key,) = [key.decode() for key in redis_client.keys("jobq:dedup:*")]
    found = look(default_client)
    assert told(found) == [
        ("expiring", requeued.id),
        ("no_expiry", cancelled.id),
        ("orphan_dedup", key),
    ]
    assert told(repair(default_client, found)) == told(found)
    assert look(default_client) == []
    assert keyed.refresh().state == "succeeded"
    assert redis_client.ttl(f"rq:job:{requeued.id}") == -1


def test_a_job_that_a_stock_worker_popped_and_lost_runs_after_all(
    default_client: jobq.Client, redis_client: redis.Redis, redis_url: str, tmp_path: Path,
    ledger: Callable[[], list[str]],
) -> None:  # fmt: skip
    job = app.add.enqueue(20)
    assert redis_client.lpop("rq:queue:high") == job.id.encode()  # as BLPOP does, and then the host dies
    found = look(default_client)
    assert told(found) == [("not_in_list", job.id)]
    repair(default_client, found)
    with jobq_worker(redis_url, tmp_path / "jobq.log", app=APP, LEDGER=os.environ["LEDGER"]):
        assert job.result(timeout=20) == 21
    assert ledger() == ["add 20 1"]


def test_a_job_that_runs_on_a_stock_worker_is_left_alone(
    default_client: jobq.Client, redis_client: redis.Redis, redis_url: str, tmp_path: Path,
    ledger: Callable[[], list[str]],
) -> None:  # fmt: skip
    job = app.nap.enqueue("n", 1.0)
    command = [str(BIN / "rq"), "worker", "--burst", "--url", redis_url]
    command += ["--serializer", "jobq.codec.Serializer", "high"]
    env = environment(redis_url, APP, LEDGER=os.environ["LEDGER"])
    with program(command, tmp_path / "rq.log", env) as running:
        until(lambda: "start n" in ledger())
        assert look(default_client) == []
        assert running.wait() == 0
    assert job.refresh().state == "succeeded"
    assert look(default_client) == []
