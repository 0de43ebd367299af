"""Jobs that crash their process or hold it, and applications that cannot start."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from jobq.job import JobState
from jobq.private_server import free_port
from jobq.tasks import Task
from tests.chaos import app, broken_app, crash_app
from tests.chaos.field import ISOLATED, TERMINAL, THREADS, Field, cpu_s, job_children, send
from tests.chaos.frame import Report, Setup, experiment
from tests.chaos.ledger import Entry, percentile
from tests.support.cgroup import small_cgroup
from tests.support.processes import until
from tests.support.workers import Worker, alive

# -- crashing jobs --------------------------------------------------------------------------------------------------

OTHER = "medium"
"""The lane whose waits are watched while others crash."""

_WORKER_MEMORY = 600 << 20
"""Of a worker's cgroup: several times what it needs, and soon eaten."""

_IN_MEMORY = Path("/dev/shm")

CRASH_EVERY_S = 0.5
REFILLED_WITHIN_S = 2.0
WAITS_LONGER = 1.2


@experiment(
    "FI-05",
    fault="a job that ends its process: os._exit, segfault, abort, MemoryError under RLIMIT_AS, oom_kill; its parent",
    criterion="executions ≤ 2 (6 of a parent's end), then dead; p95 wait of another lane +20 %; full again ≤ 2 s",
    minutes=6,
)
def crashing_jobs(setup: Setup) -> Report:
    """One crashing job after the other, in a lane of threads and in one of processes, beside a lane under load.

    The load is the same, job by job, with crashes and without; at two thirds of what the lane can do, so that its
    waits are of its own making and not of the scheduler's.
    """
    report, refills, runs = Report(), [0.0], [0]
    bad: list[str] = []
    with _crash_field(setup) as field:
        (worker,) = field.start(1, app="tests.chaos.crash_app,tests.chaos.app")
        with _steady_load(field, "crashing") as load:
            for number in range(setup.times(20, short=4)):
                for how in (*crash_app.CRASHES, crash_app.MEMORY_ERROR):
                    for queue in (THREADS, ISOLATED):
                        time.sleep(CRASH_EVERY_S)
                        token = f"{how.replace(' ', '_')}-{queue}-{number}"
                        task = crash_app.crash.options(client=field.client, queue=queue)
                        job_id = field.enqueue(task, token, how=how)
                        dies = how != crash_app.MEMORY_ERROR
                        if dies:
                            refills += [_refill_s(field, worker, queue, job_id, run) for run in (1, 2)]
                        runs.append(_expect_dead(field, report, job_id, "poison" if dies else "exhausted"))
                        bad.append(job_id)
            crowd = []
            for number in range(setup.times(20, short=2)):
                ids = _crowd(field, f"crowd-{number}")
                crowd += [_expect_dead(field, report, job_id, "poison") for job_id in ids]
                bad += ids
        with _steady_load(field, "quiet", jobs=load.jobs) as quiet:
            quiet.ended.wait()
        killers = []
        for number, queue in enumerate((THREADS, ISOLATED)):
            # Beside a job that it takes along at first, and that must not be taken for it.
            field.enqueue(
                app.work.options(client=field.client, queue=ISOLATED), f"beside-{number}", seconds=3.0
            )
            task = crash_app.crash.options(client=field.client, queue=queue)
            job_id = field.enqueue(task, f"parent-{number}", how=crash_app.PARENT_KILL)
            killers.append(_expect_dead(field, report, job_id, "poison", 120))
            bad.append(job_id)
        report.expect("all jobs ended", field.drain(60))
        waits, usual = (_wait_p95(field, prefix) for prefix in ("crashing", "quiet"))
        field.judge(report, dead=bad)
    report.figure("crashing jobs", len(bad))
    report.at_most("executions of one of them", max(runs), 2)
    report.at_most("executions, of several at once", max(crowd), 2)
    report.at_most("executions of one that kills its parent", max(killers), 6)
    report.at_most("pool full again, s", max(refills), REFILLED_WITHIN_S + setup.patience_s)
    report.figure("other lane's jobs", load.jobs)
    report.figure("other lane's p95 wait, usually, ms", usual * 1000)
    report.at_most("other lane's p95 wait, ms", waits * 1000, usual * 1000 * WAITS_LONGER)
    report.notes.append(
        "oom_kill is the kernel's, in a cgroup of little memory."
        if crash_app.CGROUP in field.env
        else "oom_kill is imitated, for want of a cgroup: SIGKILL, and one more in a file for memory.events."
    )
    return report


def _crowd(field: Field, prefix: str) -> list[str]:
    """Crashing jobs for every slot of both lanes, and one more, all at once."""
    return [
        field.enqueue(
            crash_app.crash.options(client=field.client, queue=queue),
            f"{prefix}-{queue}-{number}",
            how="os._exit",
        )
        for number in range(field.slots + 1)
        for queue in (THREADS, ISOLATED)
    ]


@contextlib.contextmanager
def _crash_field(setup: Setup) -> Iterator[Field]:
    """Its ledgers and logs are in memory, which outlives any process.

    While a cgroup is full, the kernel lets whoever needs a page in it wait for what was written to files in it, 100 ms
    at a time. Ledgers on disk would thus slow down the lane that is watched, and measure the kernel.
    """
    with (
        small_cgroup(_WORKER_MEMORY) as cgroup,
        tempfile.TemporaryDirectory(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None) as folder,
    ):
        events = Path(folder) / "memory.events"
        events.write_text("oom_kill 0\n")
        env = {crash_app.OOM_EVENTS: str(events)}
        if cgroup is not None:
            env[crash_app.CGROUP] = str(cgroup)
        with Field(
            setup,
            Path(folder),
            queues=(THREADS, ISOLATED, OTHER),
            slots=2,
            program="tests.chaos.armed",
            env=env,
        ) as field:
            yield field


@dataclass
class _Load:
    """Jobs on the other lane, until it is told to stop or has made so many."""

    jobs: int = 0

    def __post_init__(self) -> None:
        self.stop = threading.Event()
        self.ended = threading.Event()


@contextlib.contextmanager
def _steady_load(field: Field, prefix: str, jobs: int = 1_000_000) -> Iterator[_Load]:
    """Jobs of 50 ms on average, every 37 ms on average, the same ones whatever the prefix."""
    load, rand = _Load(), field.setup.rand("load")

    def work() -> None:
        task = app.work.options(client=field.client, queue=OTHER)
        due = time.monotonic()
        while load.jobs < jobs and not load.stop.is_set():
            due += rand.expovariate(1 / 0.037)
            seconds = rand.uniform(0.0, 0.1)
            time.sleep(max(0.0, due - time.monotonic()))
            field.enqueue(task, f"{prefix}-{load.jobs}", seconds=round(seconds, 4))
            load.jobs += 1
        load.ended.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        thread.join()


def _wait_p95(field: Field, prefix: str) -> float:
    """Seconds from the acknowledgement to the start."""
    offered = {
        offer.token: offer.at for offer in field.produced.offers() if offer.token.startswith(f"{prefix}-")
    }
    return percentile(
        sorted(max(0.0, run.at - offered[run.token]) for run in field.runs()
               if run.word == "start" and run.token in offered),
        0.95,
    )  # fmt: skip


def _starts(field: Field, job_id: str) -> list[Entry]:
    return [entry for entry in field.runs_of(job_id) if entry.word == "start"]


def _refill_s(field: Field, worker: Worker, queue: str, job_id: str, run: int) -> float:
    """Seconds from the death of this run's process until its lane has all its processes, and a job has started."""
    pid = until(lambda: _starts(field, job_id)[run - 1 :])[0].pid
    until(lambda: not _lives(pid))
    died_at = time.time()
    slots, lanes = field.slots, len(field.queues)

    def full() -> bool:
        if queue == ISOLATED:
            return len(job_children(worker.tree())) >= slots
        return len(alive(worker.executors())) == lanes

    until(full, every=0.1)  # walking through all processes takes time of the cores that others wait for
    full_at = time.time()
    probe = field.enqueue(
        app.work.options(client=field.client, queue=queue), f"probe-{job_id}-{run}", seconds=0.0
    )
    return max(full_at, until(lambda: _starts(field, probe))[0].at) - died_at


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(alive([psutil.Process(pid)]))
    return False


def _expect_dead(field: Field, report: Report, job_id: str, reason: str, timeout_s: float = 60) -> int:
    """How often it ran, once it has ended."""
    until(lambda: field.client.get(job_id).state in TERMINAL, timeout_s)
    job = field.client.get(job_id)
    report.expect(
        f"dead, {reason}", job.state is JobState.DEAD and job.dead_reason == reason, job.dead_reason
    )
    return len(_starts(field, job_id))


# -- unstoppable jobs -----------------------------------------------------------------------------------------------

KILLED_WITHIN_S = 5.0
"""On top of the timeout."""

THREAD_LANES = ("critical", THREADS, OTHER)


@experiment(
    "FI-06",
    fault="a job that ignores its timeout: busy loop, broad except, blocked signals, C-level sleep",
    criterion="stopped ≤ timeout + 5 s in 100 %, in threads, event loops and processes",
    minutes=9,
)
def unstoppable_jobs(setup: Setup) -> Report:
    """One at a time in each lane of threads, since neighbours would share its fate, and many in one of processes."""
    report, took = Report(), {}
    places: Sequence[tuple[str, Task[..., Any], Sequence[str]]] = (
        ("thread", crash_app.stay, tuple(crash_app.HOLDS)),
        ("loop", crash_app.stay_async, (*crash_app.HOLDS, crash_app.CATCHES_CANCEL)),
    )
    cases = [(place, task, how) for place, task, hows in places for how in hows] * setup.times(20)
    with Field(setup, queues=(*THREAD_LANES, ISOLATED), slots=4) as field:
        field.start(1, app="tests.chaos.crash_app")
        lanes = [(queue, cases[number :: len(THREAD_LANES)]) for number, queue in enumerate(THREAD_LANES)]
        lanes += [(ISOLATED, cases[number :: field.slots]) for number in range(field.slots)]

        def play(number: int, queue: str, mine: list[tuple[str, Task[..., Any], str]]) -> None:
            for turn, (place, task, how) in enumerate(mine):
                name = f"{'process, ' if queue == ISOLATED else ''}{place}, {how}"
                try:
                    seconds = _stay(field, task, f"s{number}-{turn}", queue, how, report)
                    took[name] = max(seconds, took.get(name, 0.0))
                except AssertionError as error:
                    report.problems.append(f"{name}: {error}")

        players = [threading.Thread(target=play, args=(n, *lane)) for n, lane in enumerate(lanes)]
        for player in players:
            player.start()
        for player in players:
            player.join()
        report.expect("all jobs ended", field.drain(60))
        field.judge(report, dead={offer.job_id for offer in field.produced.offers()})
    bound = KILLED_WITHIN_S + setup.patience_s
    report.figure("cases", len(took))
    report.figure("jobs", 2 * len(cases))
    report.at_most("stopped after its timeout, s, the latest", max(took.values(), default=0.0), bound)
    report.problems += [f"{name}: {late:.2f} s" for name, late in took.items() if late > bound]
    return report


def _stay(field: Field, task: Task[..., Any], token: str, queue: str, how: str, report: Report) -> float:
    """Run one; seconds beyond its timeout until it ran no more."""
    job_id = field.enqueue(task.options(client=field.client, queue=queue), token, how=how)
    (start,) = until(lambda: _starts(field, job_id), 40)
    until(lambda: not _lives(start.pid) or field.client.get(job_id).state in TERMINAL, 40)
    stopped_at = time.time()
    until(lambda: field.client.get(job_id).state in TERMINAL, 40)
    job, attempts = field.client.get(job_id), field.client.attempts(job_id)
    report.expect(f"{how}: dead, exhausted", job.dead_reason == "exhausted", job.dead_reason)
    outcomes = [attempt.outcome for attempt in attempts]
    report.expect(f"{how}: one attempt, timed out", outcomes == ["timed_out"], outcomes)
    report.expect(f"{how}: ran once", len(_starts(field, job_id)) == 1, len(_starts(field, job_id)))
    return stopped_at - start.at - crash_app.TIMEOUT_S


# -- broken deploys -------------------------------------------------------------------------------------------------

NOT_READY_WITHIN_S = 5.0
RESPAWNS_PER_S = 1.0
FREE_CRASHES = 5
CPU_SHARE = 0.2


@experiment(
    "FI-09",
    fault="a deploy that cannot be imported, or whose executors die at birth, under a running worker",
    criterion="respawn ≤ 1 per s after 5 crashes; CPU ≤ 20 % of a core; not ready ≤ 5 s; serves again when mended",
    minutes=8,
)
def broken_deploys(setup: Setup) -> Report:
    """The worker runs; its application breaks, its processes die, and whatever it starts anew comes to grief."""
    report, ways = Report(), (broken_app.ON_IMPORT, broken_app.ON_EXIT, broken_app.AFTER_FORK)
    for number in range(setup.times(10)):
        with ThreadPoolExecutor(len(ways)) as pool:
            for found in pool.map(lambda how: _break(setup, setup.part(f"{how}-{number}"), how), ways):  # noqa: B023
                _add_worst(report, found)
    _refuse_to_start(setup, report)
    return report


def _add_worst(report: Report, found: Report) -> None:
    """Counts add up; of measured values the highest stays."""
    for label, value in list(found.figures.items()):
        if isinstance(value, float):
            del found.figures[label]
            report.figures[label] = max(value, report.figures.get(label, value))  # type: ignore[type-var]
    report.add(found)


def _break(setup: Setup, folder: Path, how: str) -> Report:
    own = Report()
    watch_s, counted_s = (6.0, 4.0) if setup.short else (15.0, 10.0)
    port = free_port()
    births = folder / broken_app.BIRTHS
    births.touch()
    with Field(setup, folder, slots=2, env={broken_app.FOLDER: str(folder)}) as field:
        (worker,) = field.start(1, "--health-port", str(port), app="tests.chaos.broken_app")
        until(lambda: _is_ready(port))
        (folder / broken_app.BROKEN).write_text(how)
        broken_at, victims = time.monotonic(), _to_kill(worker, how)
        for process in victims:
            send(process, signal.SIGKILL)
        until(lambda: not _is_ready(port), 30)
        own.at_most(
            f"{how}: not ready after, s", time.monotonic() - broken_at, NOT_READY_WITHIN_S + setup.patience_s
        )
        until(lambda: not alive(victims))
        watched_from, before = (
            time.monotonic(),
            cpu_s(worker.pid),
        )  # what the dead have used is no longer told
        field.offer(f"waits-{folder.name}", 0.0)
        time.sleep(watch_s)
        share = (cpu_s(worker.pid) - before) / (time.monotonic() - watched_from)
        moments = [float(line) for line in births.read_text().splitlines()]
        late = [at for at in moments[FREE_CRASHES:] if at > time.time() - counted_s]
        own.at_most(f"{how}: respawns a second after the first 5", len(late) / counted_s, RESPAWNS_PER_S)
        own.at_most(f"{how}: CPU, share of a core", share, CPU_SHARE)
        own.expect(f"{how}: the worker lives", worker.process.poll() is None, worker.process.returncode)
        (folder / broken_app.BROKEN).unlink()
        mended_at = time.monotonic()
        until(lambda: _is_ready(port), 40)
        own.figure(f"{how}: ready again after, s", time.monotonic() - mended_at)
        own.expect("all jobs ended", field.drain(60))
        field.judge(own)
    return own


def _refuse_to_start(setup: Setup, report: Report) -> None:
    """A worker that has never served ends at once, and says why: its service manager is to know."""
    folder = setup.part("start")
    (folder / broken_app.BROKEN).write_text(broken_app.ON_IMPORT)
    with Field(setup, folder, env={broken_app.FOLDER: str(folder)}) as field:
        worker = field.spawn(app="tests.chaos.broken_app")
        code = worker.wait(60)
        report.expect("exit code at start 78", code == os.EX_CONFIG, code)
        report.expect("it says why", "this deploy is broken" in worker.output(), worker.output()[-500:])


def _to_kill(worker: Worker, how: str) -> list[psutil.Process]:
    """The executors when what is forked is broken, else the spawner, which takes them with it."""
    if how == broken_app.AFTER_FORK:
        return worker.executors()
    return list(psutil.Process(worker.pid).children())


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
