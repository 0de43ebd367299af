"""Tasks that hang, ignore their timeout, or take their process with them: only they pay."""

from __future__ import annotations

import time

import pytest

import jobq
from jobq.job import JobState
from tests.process import ledger_app as app
from tests.process.conftest import WorkerFactory
from tests.support.processes import until
from tests.support.workers import Ledger, alive

pytestmark = pytest.mark.process

KILLED_WITHIN_S = 1 + 5.0
"""The tasks' timeout, and what the promise allows on top of it."""


def enqueue(client: jobq.Client, task: jobq.Task, **params: object) -> jobq.Job:
    return task.options(client=client).enqueue(**params)


def test_soft_timeout_reaches_a_task_that_catches_every_exception(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker()
    executor = running.executor()
    dead = enqueue(client, app.slow, key="s").wait(timeout=10)
    assert (dead.state, dead.dead_reason, dead.attempt) == (JobState.DEAD, "exhausted", 1)
    (attempt,) = client.attempts(dead.id)
    assert attempt.outcome == "timed_out"
    assert [process.pid for process in running.executors()] == [executor.pid]


def test_a_stubborn_thread_is_killed_and_its_neighbours_finish(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker("--concurrency", "3")
    executor = running.executor()
    stubborn = enqueue(client, app.stubborn, key="s")
    neighbours = [enqueue(client, app.nap, key=f"n{n}", seconds=7) for n in range(2)]
    (start,) = ledger.wait("start", "s")
    until(lambda: ledger.count("start", "n0") and ledger.count("start", "n1"))
    # Retired already, so new jobs do not wait for the kill.
    ledger.wait("ignored", "s")
    bystander = enqueue(client, app.note, key="new")
    assert bystander.wait(timeout=4).state is JobState.SUCCEEDED
    until(lambda: not alive([executor]), 10)
    assert time.time() - start.at < KILLED_WITHIN_S + 0.2
    dead = stubborn.wait(timeout=5)
    assert (dead.state, dead.dead_reason, dead.attempt) == (JobState.DEAD, "exhausted", 1)
    assert client.attempts(dead.id)[0].outcome == "timed_out"
    for n in range(2):
        ledger.wait("start", f"n{n}", count=2)
    for job in neighbours:
        assert client.attempts(job.id) == []
        done = job.wait(timeout=15)
        assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
    assert ledger.count("start", "s") == 1


def test_an_isolated_task_that_blocks_signals_pays_alone(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker("--concurrency", "3")
    executor = running.executor()
    neighbour = enqueue(client, app.nap, key="n", seconds=7)
    stubborn = enqueue(client, app.isolated_stubborn, key="s")
    (start,) = ledger.wait("start", "s")
    (child,) = [process for process in running.tree() if process.pid == start.pid]
    until(lambda: not alive([child]), 10)
    assert time.time() - start.at < KILLED_WITHIN_S + 0.2
    dead = stubborn.wait(timeout=5)
    assert (dead.state, dead.dead_reason) == (JobState.DEAD, "exhausted")
    assert client.attempts(dead.id)[0].outcome == "timed_out"
    assert neighbour.wait(timeout=10).state is JobState.SUCCEEDED
    assert (ledger.count("start", "n"), ledger.count("start", "s")) == (1, 1)
    assert [process.pid for process in running.executors()] == [executor.pid]


def test_a_task_that_ends_its_process_runs_alone_and_is_condemned(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker("--concurrency", "4")
    executor = running.executor()
    neighbours = [enqueue(client, app.nap, key=f"n{n}", seconds=1) for n in range(3)]
    ledger.wait("start", count=3)
    crash = enqueue(client, app.crash, key="c")
    dead = crash.wait(timeout=15)
    assert (dead.state, dead.dead_reason, dead.attempt) == (JobState.DEAD, "poison", 0)
    runs = ledger.entries("ran", "c")
    assert len(runs) == 2
    assert runs[0].pid == executor.pid
    assert runs[1].pid not in {process.pid for process in running.executors()}  # a child of its own
    for n, job in enumerate(neighbours):
        done = job.wait(timeout=10)
        assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
        assert (ledger.count("start", f"n{n}"), ledger.count("ran", f"n{n}")) == (2, 1)
        assert [attempt.outcome for attempt in client.attempts(done.id)] == ["crashed"]
    assert len(running.events("worker.lost")) == 1
    assert client.dead_letters.count() == 1
    assert [attempt.outcome for attempt in client.attempts(dead.id)] == ["crashed", "crashed"]
    assert client.attempts(dead.id)[0].error == "the process that ran it ended: exit code 9"
    running.wait_event("job.dead", job_id=dead.id, reason="poison")


def test_an_isolated_crash_is_condemned_after_two_runs(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker("--concurrency", "2")
    neighbour = enqueue(client, app.nap, key="n", seconds=1)
    ledger.wait("start", "n")
    dead = enqueue(client, app.isolated_crash, key="c").wait(timeout=15)
    assert (dead.state, dead.dead_reason, dead.attempt) == (JobState.DEAD, "poison", 0)
    assert ledger.count("ran", "c") == 2
    assert [attempt.outcome for attempt in client.attempts(dead.id)] == ["crashed", "crashed"]
    assert neighbour.wait(timeout=10).state is JobState.SUCCEEDED
    assert ledger.count("start", "n") == 1
    assert running.events("worker.lost") == []
    running.wait_event("job.dead", job_id=dead.id, reason="poison")
    assert len(running.events("job.rescued", job_id=dead.id)) == 1


def test_crashing_jobs_do_not_stop_the_good_ones(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker("--concurrency", "4")
    bad, good = [], []
    for n in range(4):
        good += app.note.options(client=client).enqueue_many([{"key": f"g{n}.{m}"} for m in range(20)])
        bad.append(enqueue(client, app.crash, key=f"c{n}"))
    for job in bad:
        assert job.wait(timeout=30).dead_reason == "poison"
    for job in good:
        assert job.wait(timeout=30).state is JobState.SUCCEEDED
        assert job.refresh().attempt == 1
    for n in range(4):
        # One that a neighbour's crash took along ran alone the next time, whoever crashed meanwhile.
        assert ledger.count("ran", f"c{n}") <= 2
    until(lambda: len(running.executors()) == 1, 3)


@pytest.mark.parametrize("queue", ["high", "batch"])
def test_a_killed_executor_is_replaced_and_its_jobs_run_again(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger, queue: str
) -> None:
    running = worker("--concurrency", "3", queues=(queue,))
    tasks = app.nap.options(client=client, queue=queue)
    jobs = [tasks.enqueue(key=f"n{n}", seconds=1.0) for n in range(5)]
    ledger.wait("start", count=3)
    executor = running.executor()
    killed_at = time.time()
    executor.kill()
    again = ledger.wait("start", "n0", count=2)
    assert again[1].at - killed_at < 6.0  # noticed at once, not when the lease of 12 s ends
    for job in jobs:
        done = job.wait(timeout=15)
        assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
    assert len(ledger.entries("start")) == 5 + 3


def test_jobs_of_a_killed_spawner_run_again(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker("--concurrency", "3")
    jobs = [enqueue(client, app.nap, key=f"n{n}", seconds=0.5) for n in range(3)]
    ledger.wait("start", count=3)
    spawner = next(process for process in running.tree() if process.ppid() == running.pid)
    spawner.kill()
    for job in jobs:
        assert job.wait(timeout=20).state is JobState.SUCCEEDED
        assert job.refresh().attempt == 1
    assert "Traceback" not in running.output()


@pytest.mark.timeout(180)  # six spawners
@pytest.mark.parametrize("queue", ["high", "batch"])
def test_a_job_that_kills_its_parent_is_condemned_and_nobody_else(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger, queue: str
) -> None:
    running = worker("--concurrency", "3", queues=("high", "batch"))
    long = [
        app.nap.options(client=client, queue=each).enqueue(key=each, seconds=4.0)
        for each in ("high", "batch")
    ]
    ledger.wait("start", count=2)
    killer = app.kill_parent.options(client=client, queue=queue).enqueue(key="k")
    dead = killer.wait(timeout=60)
    assert (dead.state, dead.dead_reason, dead.attempt) == (JobState.DEAD, "poison", 0)
    assert [attempt.outcome for attempt in client.attempts(dead.id)] == ["interrupted"] * 6
    for job in long:
        done = job.wait(timeout=60)
        assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
    assert ledger.count("ran", "k") == 6
    assert "Traceback" not in running.output()


def test_a_dead_workers_jobs_are_rescued_by_another(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    second = worker(queues=("critical",), JOBQ_LEASE="1s")  # it rescues the jobs of any queue
    lost = worker("--concurrency", "3", JOBQ_LEASE="1s")
    jobs = [enqueue(client, app.nap, key=f"n{n}", seconds=2.0) for n in range(3)]
    ledger.wait("start", count=3)
    lost.kill()
    second.wait_event("job.rescued", outcome="queued", timeout=15)
    worker()
    for job in jobs:
        done = job.wait(timeout=15)
        assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
    assert len(ledger.entries("start")) == 6
