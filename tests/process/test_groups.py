"""Several queues in one executor process: shares, crashes, closed neighbours, and every kind of task."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import redis
import rq

import jobq
from jobq.job import JobState
from tests.process import group_app as app
from tests.process.conftest import WorkerFactory
from tests.support.processes import until
from tests.support.workers import Ledger, Worker, alive

pytestmark = pytest.mark.process

QUEUES = ("email", "sms", "push")
APP = "tests.process.group_app"


@pytest.fixture
def grouped(worker: WorkerFactory) -> Callable[..., Worker]:
    """A worker of three queues in one group; options by queue as ``email={"slots": 2}``, of all as ``slots=2``."""

    def start(
        *args: str,
        queues: tuple[str, ...] = QUEUES,
        wait: bool = True,
        settings: dict[str, str] | None = None,
        **options: Any,
    ) -> Worker:
        env = {f"JOBQ_QUEUES__{queue.upper()}__GROUP": "mail" for queue in QUEUES}
        for queue in QUEUES:
            own = {name: value for name, value in options.items() if name not in QUEUES} | options.get(
                queue, {}
            )
            env |= {
                f"JOBQ_QUEUES__{queue.upper()}__{name.upper()}": str(value) for name, value in own.items()
            }
        return worker("--name", "w", *args, queues=queues, app=APP, wait=wait, **env, **(settings or {}))

    return start


def enqueue(client: jobq.Client, task: jobq.Task[..., Any], queue: str, **params: object) -> jobq.Job:
    return task.options(client=client, queue=queue).enqueue(**params)


def where(job: jobq.Job) -> tuple[str, int]:
    queue, pid = str(job.result(20)).split()
    return queue, int(pid)


def test_freed_slots_go_by_weight(
    grouped: Callable[..., Worker], client: jobq.Client, ledger: Ledger
) -> None:
    for n in range(120):
        for queue in QUEUES:
            enqueue(client, app.note, queue, key=f"{queue}-{n}")
    running = grouped(slots=2, email={"weight": 3}, sms={"weight": 2}, push={"weight": 1})
    ledger.wait("ran", count=180, timeout=60)
    assert len(running.executors()) == 1
    starts = Counter(entry.key.partition("-")[0] for entry in ledger.entries("ran")[:180])
    for queue, share in (("email", 90), ("sms", 60), ("push", 30)):
        assert 0.8 * share <= starts[queue] <= 1.2 * share, starts


def test_a_queue_never_has_more_slots_than_its_own(
    grouped: Callable[..., Worker], client: jobq.Client, ledger: Ledger
) -> None:
    for n in range(3):
        enqueue(client, app.nap, "email", key=f"email-{n}", seconds=1.0)
        enqueue(client, app.nap, "sms", key=f"sms-{n}", seconds=1.0)
    grouped(slots=1, sms={"slots": 3})
    ledger.wait("start", count=3)
    first = Counter(entry.key.partition("-")[0] for entry in ledger.entries("start")[:3])
    assert first == {"email": 1, "sms": 2}
    ledger.wait("ran", count=6)


def test_when_their_executor_dies_all_run_again_where_they_were(
    grouped: Callable[..., Worker], client: jobq.Client, ledger: Ledger
) -> None:
    running = grouped(slots=3)
    jobs = {queue: enqueue(client, app.nap, queue, key=queue, seconds=1.5) for queue in QUEUES}
    waiting = {queue: enqueue(client, app.note, queue, key=f"then-{queue}") for queue in QUEUES}
    for queue in QUEUES:
        ledger.wait("start", queue)
    before = running.executor()
    before.send_signal(signal.SIGKILL)
    pids = set()
    for queue in QUEUES:
        found, pid = where(jobs[queue])
        pids.add(pid)
        assert (found, jobs[queue].refresh().attempt, ledger.count("start", queue)) == (queue, 1, 2)
        assert where(waiting[queue])[0] == queue
        assert ledger.count("ran", f"then-{queue}") == 1
    assert len(pids) == 1
    assert before.pid not in pids
    assert len(running.events("worker.lost", queue="mail")) == 1


def test_executors_that_are_killed_again_and_again_lose_no_job_of_any_queue(
    grouped: Callable[..., Worker], client: jobq.Client, redis_client: redis.Redis, ledger: Ledger
) -> None:
    for n in range(200):
        for queue in QUEUES:
            enqueue(client, app.note, queue, key=f"{queue}-{n}")
    running = grouped(slots=3)
    for kill in range(1, 9):
        ledger.wait("ran", count=min(60 * kill, 500))
        for executor in running.executors():
            executor.send_signal(signal.SIGKILL)
    until(lambda: all(redis_client.zcard(f"rq:finished:{queue}") == 200 for queue in QUEUES), 40)
    assert {entry.key for entry in ledger.entries("ran")} == {
        f"{queue}-{n}" for queue in QUEUES for n in range(200)
    }
    assert len(ledger.entries("ran")) <= 600 + 8 * 3, "at most what ran when one was killed"
    assert not redis_client.exists("jobq:leases", *(f"rq:wip:{queue}" for queue in QUEUES))
    assert running.events("worker.lost")


def test_a_paused_and_a_limited_queue_hold_up_nobody_and_cost_little(
    grouped: Callable[..., Worker], client: jobq.Client, ledger: Ledger
) -> None:
    for queue in ("email", "sms"):
        for n in range(10):
            enqueue(client, app.note, queue, key=f"{queue}-{n}")
    client.queues.pause("sms")
    running = grouped(slots=2, email={"rate": "2/m"})
    ledger.wait("ran", count=2)
    many = [enqueue(client, app.note, "push", key=f"push-{n}") for n in range(100)]
    began = time.monotonic()
    for job in many:
        assert job.wait(timeout=20).state is JobState.SUCCEEDED
    assert time.monotonic() - began < 10
    executor = running.executor()
    used = _cpu_s(executor)
    time.sleep(3.0)  # nothing tells that nothing happens
    assert _cpu_s(executor) - used < 0.15
    ran = Counter(entry.key.partition("-")[0] for entry in ledger.entries("ran"))
    assert ran == {"email": 2, "push": 100}
    client.queues.resume("sms")
    ledger.wait("ran", count=112)


@pytest.mark.parametrize(
    "key",
    ["rq:queue:sms", "rq:wip:sms", "rq:finished:sms", "jobq:q:sms", "jobq:parked:sms", "rq:deferred:sms"],
)
def test_a_damaged_queue_holds_up_nobody(
    grouped: Callable[..., Worker], client: jobq.Client, redis_client: redis.Redis, ledger: Ledger, key: str
) -> None:
    for n in range(5):
        enqueue(client, app.note, "sms", key=f"sms-{n}")
    if redis_client.exists(key):
        redis_client.rename(key, "spare")
    redis_client.set(key, "of another type")
    running = grouped(slots=2)
    for queue in ("email", "push"):
        for n in range(30):
            enqueue(client, app.note, queue, key=f"{queue}-{n}")
    until(lambda: sum("sms" not in entry.key for entry in ledger.entries("ran")) == 60, 15)
    assert running.executor()
    redis_client.delete(key)
    if redis_client.exists("spare"):
        redis_client.rename("spare", key)
    assert where(enqueue(client, app.note, "sms", key="mended"))[0] == "sms"


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_every_kind_of_task_runs_in_a_group(
    grouped: Callable[..., Worker], client: jobq.Client, isolation: str
) -> None:
    running = grouped(slots=2, isolation=isolation)
    jobs = [
        (queue, task, enqueue(client, task, queue, **({"key": queue} if task is app.note else {})))
        for queue in QUEUES
        for task in (app.note, app.in_loop, app.in_child)
    ]
    ran = [(queue, task, *where(job)) for queue, task, job in jobs]
    assert all(queue == found for queue, _, found, _ in ran), "each knows its own queue"
    executor = running.executor().pid
    here = {task.name for _, task, _, pid in ran if pid == executor}
    assert here == (set() if isolation == "process" else {"g.note", "g.async"})
    children = {pid for _, _, _, pid in ran} - {executor}
    assert len(children) <= 2, "the queues share the children, too"


def test_a_suspect_of_one_queue_runs_apart_and_its_neighbours_go_on(
    grouped: Callable[..., Worker], client: jobq.Client, ledger: Ledger
) -> None:
    running = grouped(slots=3)
    executor = running.executor()
    neighbour = enqueue(client, app.nap, "sms", key="n", seconds=1.0)
    ledger.wait("start", "n")
    culprit = enqueue(client, app.crash, "email", key="c")
    until(lambda: not alive([executor]))
    assert where(enqueue(client, app.note, "push", key="p"))[0] == "push"
    found, pid = where(neighbour)
    assert (found, ledger.count("start", "n")) == ("sms", 2)
    dead = culprit.wait(timeout=20)
    assert (dead.state, dead.dead_reason, ledger.count("ran", "c")) == (JobState.DEAD, "poison", 2)
    assert neighbour.refresh().attempt == 1
    assert pid not in [process.pid for process in running.executors()], "it ran in a child of its own"
    assert len(running.executors()) == 1


def test_a_burst_ends_when_all_are_empty_and_jobs_are_counted_over_all(
    grouped: Callable[..., Worker], client: jobq.Client, ledger: Ledger
) -> None:
    enqueue(client, app.chain, "push", left=6)
    burst = grouped("--burst", wait=False)
    assert burst.wait(40) == 0
    assert sorted(entry.key for entry in ledger.entries("ran")) == [str(n) for n in range(7)]
    for queue in QUEUES:
        for n in range(3):
            enqueue(client, app.note, queue, key=f"{queue}-{n}")
    some = grouped("--max-jobs", "4", wait=False, slots=2)
    assert some.wait(40) == 0
    assert len(ledger.entries("ran")) == 7 + 4
    assert sum(client.stats().queues[queue].queued for queue in QUEUES) == 5


def test_it_is_one_worker_that_serves_all_and_part_of_a_group_can_be_served(
    grouped: Callable[..., Worker], client: jobq.Client, redis_client: redis.Redis, ledger: Ledger
) -> None:
    running = grouped(slots=1, sms={"slots": 3})
    (shown,) = until(client.workers.list)
    assert (shown.name, shown.worker, shown.queues, shown.slots) == ("w-mail", "w", QUEUES, 3)
    for queue in QUEUES:
        (theirs,) = rq.Worker.all(queue=rq.Queue(queue, connection=redis_client))
        assert (theirs.name, tuple(theirs.queue_names())) == ("w-mail", QUEUES)
    (started,) = running.events("worker.started")
    assert started["slots"] == 3
    enqueue(client, app.nap, "sms", key="a", seconds=15)
    ledger.wait("start", "a")
    busy = until(lambda: [each for each in client.workers.list() if each.busy], 20)
    assert (busy[0].busy, busy[0].parts) == (1, {"email": (1, 0), "sms": (3, 1), "push": (1, 0)})
    stats = client.stats().queues
    assert {name: (stats[name].workers, stats[name].slots, stats[name].busy) for name in QUEUES} == {
        "email": (1, 1, 0), "sms": (1, 3, 1), "push": (1, 1, 0),
    }  # fmt: skip
    running.send(signal.SIGTERM)
    running.send(signal.SIGTERM)
    running.wait(20)
    until(lambda: not client.workers.list())
    assert not redis_client.smembers("rq:workers:sms")
    part = grouped("--concurrency", "4", queues=("push",))
    (shown,) = until(client.workers.list)
    assert (shown.queues, shown.slots) == (("push",), 4)
    assert part.executor()
    waits = enqueue(client, app.note, "email", key="e")
    assert where(enqueue(client, app.note, "push", key="p"))[0] == "push"
    assert "no_worker" in [reason.code for reason in client.why(waits.id).reasons]


def test_a_tired_executor_serves_all_its_queues_until_its_successor_does(
    grouped: Callable[..., Worker], client: jobq.Client, ledger: Ledger
) -> None:
    running = grouped(slots=2, settings={"JOBQ_RECYCLE_JOBS": "20"})
    first = running.executor().pid
    jobs = []
    for n in range(60):
        jobs += [enqueue(client, app.note, queue, key=f"{queue}-{n}") for queue in QUEUES]
        if n % 20 == 19:
            ledger.wait("ran", count=3 * (n + 1))
            time.sleep(1.2)  # whether it is tired is looked at once a second
    until(lambda: first not in [process.pid for process in running.executors()])
    assert len(until(running.executors)) <= 2
    assert {where(job)[0] for job in jobs} == set(QUEUES)
    assert len(ledger.entries("ran")) == 180, "each once"
    assert not running.events("worker.lost")


def test_a_drained_group_finishes_what_runs_and_leaves_the_rest(
    grouped: Callable[..., Worker], client: jobq.Client, ledger: Ledger
) -> None:
    running = grouped(slots=3)
    jobs = {queue: enqueue(client, app.nap, queue, key=queue, seconds=1.0) for queue in QUEUES}
    for queue in QUEUES:
        ledger.wait("start", queue)
    rest = {queue: enqueue(client, app.note, queue, key=f"rest-{queue}") for queue in QUEUES}
    running.send(signal.SIGTERM)
    assert running.wait(20) == 0
    assert {job.refresh().state for job in jobs.values()} == {JobState.SUCCEEDED}
    assert {job.refresh().state for job in rest.values()} == {JobState.QUEUED}
    assert ledger.entries("ran", "rest-email") == []
