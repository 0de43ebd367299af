"""What a whole worker takes of a machine and of Redis, and how its processes are replaced while it serves."""

from __future__ import annotations

import psutil
import pytest
import redis

import jobq
from jobq.job import JobState
from tests.process import ledger_app as app
from tests.process.conftest import WorkerFactory
from tests.support.processes import until
from tests.support.workers import Ledger, Worker

pytestmark = pytest.mark.process

LANES = ("critical", "high", "medium", "low", "batch")

MOST_CONNECTIONS = 25
"""An executor has two, the supervisor one; the promise of 60 leaves the rest to what tasks do."""

MOST_PSS_MB = 200
"""The promise is 250. Nothing is imported after the fork, so a process owns some 3 to 12 MB of its own: 155 in all."""


def pss_mb(worker: Worker) -> float:
    """Memory of the whole tree, each shared page counted once."""
    tree = [psutil.Process(worker.pid), *worker.tree()]
    return float(sum(process.memory_full_info().pss for process in tree)) / 1e6


def test_the_default_fleet_is_small_when_idle_and_after_work(
    worker: WorkerFactory, client: jobq.Client, redis_client: redis.Redis
) -> None:
    running = worker(queues=LANES)
    until(lambda: len(running.tree()) == 1 + 5 + 3)  # spawner, executors, children of low and batch
    idle = pss_mb(running)
    for queue in LANES:
        for task, params in ((app.note, {"key": "n"}), (app.async_nap, {"key": "a", "seconds": 0.001})):
            task.options(client=client, queue=queue).enqueue_many([params] * 150)
    until(lambda: all(q.queued + q.running == 0 for q in client.stats().queues.values()), 40)
    drained = pss_mb(running)
    client.close()
    workers = [c for c in redis_client.client_list() if c["name"].startswith("jobq:")]
    assert len(workers) <= MOST_CONNECTIONS
    assert (idle < MOST_PSS_MB, drained < MOST_PSS_MB) == (True, True), (idle, drained)


def test_an_executor_is_replaced_without_losing_or_delaying_a_job(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker("--concurrency", "2", JOBQ_RECYCLE_JOBS="20")
    jobs = app.nap.options(client=client).enqueue_many(
        [{"key": f"n{n}", "seconds": 0.05} for n in range(150)]
    )
    until(lambda: len(ledger.entries("ran")) == len(jobs), 30)
    assert all(job.wait(timeout=5).attempt == 1 for job in jobs[-5:])
    starts = ledger.entries("start")
    assert len(starts) == len(jobs)  # each once
    old, new = list(dict.fromkeys(entry.pid for entry in starts))[:2]
    first = min(entry.at for entry in starts if entry.pid == new)
    last = max(entry.at for entry in starts if entry.pid == old)
    assert first - last < 0.25  # the new one serves before the old one stops, or as good as
    until(lambda: len(running.executors()) == 1)
    assert running.events("worker.lost") == running.events("job.rescued") == []


def test_job_children_are_replaced_without_losing_a_job(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker(queues=("batch",), JOBQ_RECYCLE_JOBS="10")
    jobs = app.isolated.options(client=client).enqueue_many([{"key": f"i{n}"} for n in range(60)])
    until(lambda: len(ledger.entries("ran")) == len(jobs), 30)
    assert jobs[-1].wait(timeout=5).state is JobState.SUCCEEDED
    assert len({entry.pid for entry in ledger.entries("ran")}) >= 3
    assert running.events("worker.lost") == running.events("job.rescued") == []


def test_an_executor_that_grows_is_replaced(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker("--concurrency", "1", JOBQ_RECYCLE_GROWTH="32MB")
    first = running.executor()
    while first.is_running() and len({entry.pid for entry in ledger.entries("ran")}) < 2:
        job = app.leak.options(client=client).enqueue(key="l")
        assert job.wait(timeout=10).attempt == 1
        assert len(ledger.entries("ran")) < 400
    until(lambda: not first.is_running())
