"""A worker as its users meet it: it runs every kind of task, drains on signals, and outlives what happens to Redis."""

from __future__ import annotations

import json
import signal
import time

import pytest
import redis

import jobq
from jobq.job import JobState
from tests.process import ledger_app as app
from tests.process.conftest import WorkerFactory
from tests.support.processes import until
from tests.support.server import ServerFactory
from tests.support.workers import Ledger, alive

pytestmark = pytest.mark.process


def enqueue(client: jobq.Client, task: jobq.Task, **params: object) -> jobq.Job:
    return task.options(client=client).enqueue(**params)


@pytest.mark.covers("B-07", "Q-20")
def test_runs_sync_async_and_isolated_tasks(worker: WorkerFactory, client: jobq.Client) -> None:
    running = worker(queues=("high", "batch"))
    jobs = [
        enqueue(client, app.note, key="a"),
        enqueue(client, app.async_nap, key="b", seconds=0.01),
        enqueue(client, app.isolated, key="c"),
    ]
    assert jobs[0].result(timeout=10) == "noted a"
    assert jobs[1].wait(timeout=10).state is JobState.SUCCEEDED
    own_process = jobs[2].result(timeout=10)
    assert own_process not in {running.pid, *(process.pid for process in running.executors())}


@pytest.mark.covers("P-06")
def test_critical_work_does_not_wait_behind_batch_work(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    worker(queues=("critical", "batch"))
    heavy = [
        app.nap.options(client=client, priority="batch").enqueue(key=f"{n}", seconds=30) for n in range(50)
    ]
    ledger.wait("start")
    codes = [app.note.options(client=client, priority="critical").enqueue(key=f"otp{n}") for n in range(20)]
    assert [code.wait(timeout=15).state for code in codes] == [JobState.SUCCEEDED] * 20
    states = [job.refresh().state for job in heavy]
    assert (states.count(JobState.RUNNING), states.count(JobState.QUEUED)) == (1, 49)


def test_who_always_comes_too_late_listens_less_and_still_starts_the_next_job_in_time(
    worker: WorkerFactory, client: jobq.Client, redis_client: redis.Redis
) -> None:
    worker(queues=("high",))
    queue = client.keys.queue("high")

    def listened() -> int:
        return int(redis_client.info("commandstats").get("cmdstat_blmove", {}).get("calls", 0))

    until(listened)
    before, pushes = listened(), 100
    for _ in range(pushes):
        redis_client.rpush(queue, "nobody")
        redis_client.delete(queue)  # another executor was quicker
        time.sleep(0.02)
    assert listened() - before < pushes / 2
    job = enqueue(client, app.note, key="a")
    assert job.result(timeout=10) == "noted a"
    started = job.refresh()
    assert started.started_at is not None
    assert started.enqueued_at is not None
    assert (started.started_at - started.enqueued_at).total_seconds() < 1.0


@pytest.mark.covers("Y-01")
def test_a_worker_connects_first_then_serves_and_logs_both(worker: WorkerFactory) -> None:
    running = worker(queues=("high", "batch"))
    names = [json.loads(line).get("event") for line in running.output().splitlines() if line.startswith("{")]
    assert names.index("redis.connected") < names.index("worker.started")
    (started,) = running.events("worker.started")
    assert (started["level"], {*started["queues"]}) == ("info", {"high", "batch"})


def test_a_worker_says_what_starts_how_far_it_is_and_how_it_ended(
    worker: WorkerFactory, client: jobq.Client
) -> None:
    running = worker("-v", queues=("high", "batch"))
    moving, apart = enqueue(client, app.advance, key="a"), enqueue(client, app.isolated, key="c")
    far = running.wait_event("job.progressed", job_id=moving.id)
    assert (far["progress"], far["task"], far["level"]) == (0.4, "t.advance", "debug")
    for job in (moving, apart):
        started = running.wait_event("job.started", job_id=job.id)
        ended = running.wait_event("job.succeeded", job_id=job.id)
        assert started["attempt"] == ended["attempt"] == 1
        assert ended["level"] == "info"
        assert ended["run_ms"] > 0
    assert "as far as" not in running.output()


@pytest.mark.covers("B-07", "B-08")
def test_retries_then_succeeds_or_becomes_a_dead_letter(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    worker()
    flaky, failing = enqueue(client, app.flaky, key="f"), enqueue(client, app.fail, key="x")
    assert flaky.result(timeout=10) == "second time lucky"
    assert flaky.refresh().attempt == 2
    dead = failing.wait(timeout=10)
    assert (dead.state, dead.dead_reason, dead.attempt) == (JobState.DEAD, "exhausted", 2)
    assert [attempt.error for attempt in client.attempts(dead.id)] == ["cannot do x"] * 2
    assert (ledger.count("ran", "f"), ledger.count("ran", "x")) == (2, 2)


@pytest.mark.covers("Q-19")
def test_many_small_jobs_run_once_each(worker: WorkerFactory, client: jobq.Client, ledger: Ledger) -> None:
    worker("--burst", wait=False)
    keys = [str(number) for number in range(1_000)]
    jobs = app.note.options(client=client).enqueue_many([{"key": key} for key in keys])
    until(lambda: len(ledger.entries("ran")) >= 1_000, 30)
    assert jobs[-1].wait(timeout=10).state is JobState.SUCCEEDED
    assert sorted(entry.key for entry in ledger.entries("ran")) == sorted(keys)


# -- ending ---------------------------------------------------------------------------------------------------------


@pytest.mark.covers("Y-02")
def test_drain_finishes_short_jobs_and_requeues_long_ones(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger, redis_client: redis.Redis
) -> None:
    running = worker("--grace", "2s")
    short = [enqueue(client, app.nap, key=f"short{n}", seconds=0.8) for n in range(3)]
    long = enqueue(client, app.nap, key="long", seconds=30)
    ledger.wait("start", count=4)
    started = time.monotonic()
    running.send(signal.SIGTERM)
    ledger.wait("ran", "short0")
    late = enqueue(client, app.note, key="late")
    assert running.wait(10) == 0
    assert time.monotonic() - started < 2 + 2
    for n, job in enumerate(short):
        assert job.refresh().state is JobState.SUCCEEDED
        assert ledger.count("start", f"short{n}") == 1
    back = long.refresh()
    assert (back.state, back.attempt) == (JobState.QUEUED, 0)
    assert client.attempts(long.id) == []
    assert late.refresh().state is JobState.QUEUED
    assert redis_client.zcard("jobq:leases") == redis_client.zcard("rq:wip:high") == 0
    assert redis_client.smembers("rq:workers") == set()
    assert redis_client.lrange("rq:queue:high", 0, -1)[0] == long.id.encode()


def test_a_signal_to_every_process_drains_like_one_to_the_supervisor(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    """As service managers do it."""
    running = worker()
    job = enqueue(client, app.nap, key="n", seconds=1.5)
    ledger.wait("start", "n")
    for process in running.tree():
        process.send_signal(signal.SIGTERM)
    running.send(signal.SIGTERM)
    assert running.wait(15) == 0
    assert job.refresh().state is JobState.SUCCEEDED
    assert ledger.count("start", "n") == 1


def test_drain_is_heard_under_constant_load(worker: WorkerFactory, client: jobq.Client) -> None:
    running = worker()
    for _ in range(6):
        app.nothing.options(client=client).enqueue_many([{}] * 2_000)
    until(lambda: client.stats().queues["high"].succeeded > 0)
    started = time.monotonic()
    running.send(signal.SIGTERM)
    assert running.wait(10) == 0
    assert time.monotonic() - started < 5
    assert client.stats().queues["high"].queued > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_forces(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger, number: signal.Signals, code: int
) -> None:
    running = worker("--grace", "60s")
    long = enqueue(client, app.nap, key="long", seconds=50)
    ledger.wait("start", "long")
    tree = running.tree()
    running.send(number)
    running.wait_event("worker.draining")
    started = time.monotonic()
    running.send(number)
    assert running.wait(10) == code
    assert time.monotonic() - started < 5
    back = long.refresh()
    assert (back.state, back.attempt) == (JobState.QUEUED, 0)
    assert alive(tree) == []


def test_burst_ends_when_its_queues_are_empty(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    app.note.options(client=client).enqueue_many([{"key": str(n)} for n in range(50)])
    slow = enqueue(client, app.nap, key="slow", seconds=0.5)
    assert worker("--burst", queues=("high", "critical"), wait=False).wait() == 0
    assert len(ledger.entries("ran")) == 51
    assert slow.refresh().state is JobState.SUCCEEDED


def test_burst_runs_what_its_jobs_enqueue(worker: WorkerFactory, client: jobq.Client, ledger: Ledger) -> None:
    enqueue(client, app.chain, left=20)
    assert worker("--burst", "--concurrency", "4", wait=False).wait() == 0
    assert sorted(int(entry.key) for entry in ledger.entries("ran")) == list(range(21))


def test_max_jobs_ends_after_that_many(worker: WorkerFactory, client: jobq.Client, ledger: Ledger) -> None:
    app.note.options(client=client).enqueue_many([{"key": str(n)} for n in range(20)])
    assert worker("--max-jobs", "7", wait=False).wait() == 0
    assert len(ledger.entries("ran")) == 7
    assert client.stats().queues["high"].queued == 13


def test_an_application_that_cannot_be_imported(worker: WorkerFactory) -> None:
    running = worker(wait=False, app="tests.process.no_such_app")
    assert running.wait() == 78
    errors = [line for line in running.output().splitlines() if not line.startswith("{")]
    assert len(errors) == 1
    assert "tests.process.no_such_app" in errors[0]


def test_no_process_outlives_a_killed_supervisor(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker(queues=("high", "batch"))
    enqueue(client, app.nap, key="nap", seconds=30)
    app.nap.options(client=client, queue="batch").enqueue(key="isolated", seconds=30)
    ledger.wait("start", count=2)
    tree = running.tree()
    assert len(tree) >= 4  # spawner, two executors, job children
    running.kill()
    until(lambda: not alive(tree), 5)


# -- Redis ----------------------------------------------------------------------------------------------------------


def test_script_flush_under_load_goes_unnoticed(
    worker: WorkerFactory, client: jobq.Client, redis_client: redis.Redis, ledger: Ledger
) -> None:
    running = worker("--concurrency", "5")
    jobs = app.nap.options(client=client).enqueue_many(
        [{"key": f"n{number}", "seconds": 0.02} for number in range(200)]
    )
    flushes = 0
    while len(ledger.entries("ran")) < 200:
        redis_client.script_flush()
        flushes += 1
        assert flushes < 500
        time.sleep(0.05)  # the pace of the fault, not a wait
    for job in jobs[-5:]:
        assert job.wait(timeout=10).state is JobState.SUCCEEDED
    assert len(ledger.entries("start")) == 200
    assert running.events("redis.unavailable") == []
    assert "Traceback" not in running.output()


def test_a_worker_outlives_a_killed_redis(
    worker: WorkerFactory, server_factory: ServerFactory, ledger: Ledger
) -> None:
    with (
        server_factory(appendonly=True, appendfsync="always") as server,
        jobq.Client(jobq.Settings(redis_url=server.url)) as client,
    ):
        running = worker("--concurrency", "4", url=server.url, queues=("high", "batch"))
        jobs = [enqueue(client, app.nap, key=f"n{n}", seconds=0.4) for n in range(12)]
        isolated = [enqueue(client, app.isolated, key=f"i{n}") for n in range(4)]
        ledger.wait("start", count=4)
        server.kill()
        running.wait_event("redis.unavailable")
        started = [entry.key for entry in ledger.entries("start")]
        ledger.wait("ran", count=4)  # what runs goes on without Redis
        server.start()
        running.wait_event("redis.recovered")
        for job in jobs + isolated:
            assert job.wait(timeout=20).state is JobState.SUCCEEDED
        # What ended while Redis was away is settled by its token, not run again.
        assert all(ledger.count("start", key) == 1 for key in started)
        running.send(signal.SIGTERM)
        assert running.wait(15) == 0
        assert "Traceback" not in running.output()
