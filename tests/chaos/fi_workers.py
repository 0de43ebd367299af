"""Workers that are killed, frozen and stopped while jobs run."""

from __future__ import annotations

import json
import signal
import threading
import time
import traceback
from base64 import b64decode

import psutil  # type: ignore[import-untyped]

from jobq.job import JobState
from tests.chaos import lease_app
from tests.chaos.field import QUEUES, THREADS, Field, lane, send
from tests.chaos.frame import KILL_EVERY_S, Report, Setup, experiment
from tests.chaos.ledger import Kill
from tests.chaos.points import POINTS
from tests.chaos.scenes import Stage
from tests.support.processes import until
from tests.support.workers import Worker, alive

GONE_WITHIN_S = 5.0
"""Of a killed worker no process is left after this long."""

SHORT_POINTS = 20
"""The short form strikes this many of the points, other ones with each seed."""

STAGES, SHORT_STAGES = 5, 2
"""Fields on which points are struck at once."""

ZOMBIE_LEASE_S = 1.0
STOPPED_WITHIN_S = 2.0
"""On top of the grace."""


@experiment(
    "FI-01",
    fault="SIGKILL of an executor, one of 8 every 250 ms",
    criterion="duplicates ≤ kills; rerun starts ≤ 15 s (p99), ≤ 30 s (max)",
    gate=True,
    minutes=3,
)
def killed_executors(setup: Setup) -> Report:
    """One slot each, so that a kill can interrupt one job at most. The jobs outlast the kills."""
    report, rand = Report(), setup.rand("kills")
    kills, jobs = setup.times(240, short=16), setup.times(10_000, short=200)
    with Field(setup, slots=1) as field:
        field.start(2 if setup.short else 4)
        producer = field.produce(jobs, pause_s=kills * KILL_EVERY_S / jobs)
        for _ in range(kills):
            time.sleep(KILL_EVERY_S)
            places = [(worker, process) for worker in field.workers for process in worker.executors()]
            field.kill(*rand.choice(places))
        producer.join()
        report.expect("all jobs ended", field.drain(60 + jobs / 20))
        field.judge(report)
    report.figure("executors killed", kills)
    field.judge_duplicates(report, most=kills)
    field.judge_reruns(report)
    return report


@experiment(
    "FI-02",
    fault="SIGKILL of a worker's supervisor, its executors with it",
    criterion="orphan processes 0 after 5 s; duplicates ≤ 8 per kill; rerun starts ≤ 15 s (p99), ≤ 30 s (max)",
    gate=True,
    minutes=3,
)
def killed_workers(setup: Setup) -> Report:
    """Another worker serves at any time: the promise is about a dead worker's jobs, not about a fleet that is down."""
    report, stop, gone = Report(), threading.Event(), []
    cycles = setup.times(50, short=2)
    with Field(setup, slots=4) as field:
        field.start(2)
        producer = field.produce(1_000_000, pause_s=0.01, stop=stop)
        for _ in range(cycles):
            victim = field.workers[0]
            tree = victim.tree()
            until(field.running)
            field.kill(victim)
            killed_at = time.monotonic()
            field.spawn()
            until(lambda tree=tree: not alive(tree), 2 * GONE_WITHIN_S)
            gone.append(time.monotonic() - killed_at)
            field.workers[-1].ready()
        stop.set()
        producer.join()
        report.expect("all jobs ended", field.drain(120))
        field.judge(report)
    report.figure("workers killed", cycles)
    report.at_most("the last of its processes gone after, s", max(gone), GONE_WITHIN_S)
    field.judge_duplicates(report, most=cycles * field.slots * len(QUEUES))
    field.judge_reruns(report)
    return report


@experiment(
    "FI-03",
    fault=f"a process of the worker kills itself at one of {len(POINTS)} named instructions",
    criterion="duplicates 0 before the effect, ≤ 1 after it",
    gate=True,
    minutes=20,
)
def killed_at_points(setup: Setup) -> Report:
    """Each point in turn, on several stages at once: most of the time is spent waiting for leases to end."""
    report = Report()
    chosen = setup.rand("points").sample(POINTS, SHORT_POINTS) if setup.short else POINTS
    todo = iter([(point, n) for point in chosen for n in range(setup.times(20))])
    lock = threading.Lock()

    def play(number: int) -> None:
        own = Report()
        try:
            with Stage(setup, setup.part(f"stage-{number}")) as stage:
                while True:
                    with lock:
                        turn = next(todo, None)
                    if turn is None:
                        break
                    point, n = turn
                    try:
                        stage.perform(point, f"{POINTS.index(point)}-{n}", own)
                    except AssertionError as error:
                        own.problems.append(f"{point.name}: {error}")
                stage.end(own)
        except Exception as error:
            traceback.print_exc()
            own.problems.append(f"did not end: {type(error).__name__}: {error}")
        with lock:
            report.add(own)

    report.figure("points", len(chosen))
    stages = [
        threading.Thread(target=play, args=(number,))
        for number in range(SHORT_STAGES if setup.short else STAGES)
    ]
    for each in stages:
        each.start()
    for each in stages:
        each.join()
    report.notes.append("There is no outbox relay yet, so no point in it.")
    return report


@experiment(
    "FI-04",
    fault="SIGSTOP of a whole worker, or of its supervisor alone, beyond the lease; then SIGCONT; of an executor alone",
    criterion="stale completions accepted 0; the final result is written once in 100 %; an executor's jobs run again "
    "within 15 s (p99), 30 s (max)",
    gate=True,
    minutes=13,
)
def zombies(setup: Setup) -> Report:
    """At a lease of 1 s in both forms; executors alone apart. The two workers freeze in turn; every other time only the
    supervisor does, so that the executor, alive, comes to its end while another one runs the same job."""
    report = Report()
    freezes = setup.times(200, short=4)
    with Field(setup, slots=2, lease_s=ZOMBIE_LEASE_S) as field:
        field.start(2, app="tests.chaos.lease_app")
        stale: dict[str, str] = {}
        results: dict[str, list[str]] = {}
        made: list[str] = []
        for number in range(freezes):
            alone = number % 2 == 1
            victim = field.workers[number // 2 % 2]
            # Alone: longer than the lease, so that it still runs when the job is rescued. The short ones leave the
            # other worker room for it.
            seconds = (0.1, 2.2 * ZOMBIE_LEASE_S) if alone else (0.5, 0.5)
            held: dict[str, str] = {}
            while not held:
                ids = _leased_jobs(field, f"z{number}-{len(made)}", seconds)
                made += ids
                until(lambda ids=ids: {entry.job_id for entry in field.runs()}.issuperset(ids))
                held = _held_by(field, victim, ids)
            # By now each zombie has tried to settle; and before retention takes them.
            results |= {id_: _result(field, id_) for id_ in made[: -len(ids)] if id_ not in results}
            frozen = _freeze(victim, alone=alone)
            leases = [f"{id_}:{token}" for id_, token in held.items()]
            until(lambda leases=leases: not any(field.raw.zmscore("jobq:leases", leases)))
            stale |= {id_: token for id_, token in held.items() if field.raw.hget(f"rq:job:{id_}", "lost")}
            if not alone:
                until(lambda: not field.waiting())
            for process in frozen:
                send(process, signal.SIGCONT)
            until(lambda: not field.waiting())
        report.expect("all jobs ended", field.drain(60))
        field.judge(report)
        results |= {id_: _result(field, id_) for id_ in made if id_ not in results}
    report.figure("freezes", freezes)
    report.at_least("leases lost to another worker meanwhile", len(stale), freezes)
    report.zero("stale completions accepted", sum(token in results[id_] for id_, token in stale.items()))
    report.zero("results not written once", sum(len(written) != 1 for written in results.values()))
    report.add(_stopped_executors(setup))
    return report


def _stopped_executors(setup: Setup) -> Report:
    """Executors that stand still alone, while their supervisor would extend their leases for ever."""
    report, stops = Report(), setup.times(10, short=1)
    with Field(setup, setup.part("executors"), slots=2) as field:
        field.start(2)
        for number in range(stops):
            begun = len(field.runs())
            for n in range(4):
                field.offer(f"stopped{number}-{n}", 1.0, 0)
            until(lambda begun=begun: len(field.runs()) >= begun + 4)
            victim = next(p for p in field.workers[number % 2].executors() if lane(p) == THREADS)
            last = {entry.job_id: entry for entry in field.runs()}
            send(victim, signal.SIGSTOP)
            held = [id_ for id_, entry in last.items() if entry.word == "start" and entry.pid == victim.pid]
            field.kills.append(Kill(time.time(), frozenset(held)))
            until(lambda: not field.waiting(), 60)
        report.expect("all jobs of stopped executors ended", field.drain(60))
        field.judge_reruns(report)
        field.judge(report)
    report.figure("executors stopped", stops)
    return report


def _leased_jobs(field: Field, token: str, seconds: tuple[float, float]) -> list[str]:
    """As many as there are slots, alternately of the one length and of the other."""
    slots = field.slots * len(field.workers)
    return [
        field.enqueue(
            lease_app.leased.options(client=field.client, queue=queue),
            f"{token}-{queue}-{n}",
            seconds=seconds[n % 2],
        )
        for queue in field.queues
        for n in range(slots)
    ]


def _held_by(field: Field, worker: Worker, ids: list[str]) -> dict[str, str]:
    """Jobs that run in this worker, and the tokens of their leases."""
    pids = {process.pid for process in worker.tree()}
    begun = {entry.job_id for entry in field.runs() if entry.word == "start" and entry.pid in pids}
    leases = dict(member.decode().split(":") for member in field.raw.zrange("jobq:leases", 0, -1))
    return {id_: leases[id_] for id_ in ids if id_ in begun and id_ in leases}


def _freeze(worker: Worker, *, alone: bool) -> list[psutil.Process]:
    """SIGSTOP the supervisor, and all below it unless it is to freeze alone."""
    frozen = [psutil.Process(worker.pid), *([] if alone else worker.tree())]
    for process in frozen:
        send(process, signal.SIGSTOP)
    return frozen


def _result(field: Field, job_id: str) -> list[str]:
    """The lease tokens in all that was ever written as the job's result."""
    return [
        json.loads(b64decode(fields[b"return_value"]))
        for _, fields in field.raw.xrange(f"rq:results:{job_id}")
    ]


@experiment(
    "FI-07",
    fault="SIGTERM of a worker under load, its jobs shorter and longer than the grace",
    criterion="exit ≤ grace + 2 s; shorter jobs: duplicates 0; longer ones: queued again, attempts spent 0",
    gate=True,
    minutes=6,
)
def stopped_workers(setup: Setup) -> Report:
    """Half of the stops hit jobs that fit into the grace, half hit jobs that do not."""
    report, stops = Report(), setup.times(50, short=3)
    _stop_with_short_jobs(setup, report, stops - stops // 2)
    _stop_with_long_jobs(setup, report, stops // 2)
    report.figure("stops", stops)
    return report


def _stop_with_short_jobs(setup: Setup, report: Report, stops: int) -> None:
    stop, took, rand = threading.Event(), [], setup.rand("stops")
    with Field(setup, setup.part("shorter"), slots=4) as field:
        field.start(1 if setup.short else 2, "--grace", "10")
        producer = field.produce(1_000_000, pause_s=0.01, stop=stop)
        for _ in range(stops):
            victim = field.workers.pop(0)
            time.sleep(rand.uniform(0.05, 0.5))
            took.append(_stop(victim, report))
            field.start(1, "--grace", "10")
        stop.set()
        producer.join()
        own = Report()
        own.expect("all jobs ended", field.drain(60))
        field.judge(own)
        own.zero("duplicates", own.figures["duplicates"])
    report.add(own)
    report.at_most("exit with shorter jobs, s", max(took), 10 + STOPPED_WITHIN_S + setup.patience_s)


def _stop_with_long_jobs(setup: Setup, report: Report, stops: int) -> None:
    took, queued_again = [], 0
    grace_s = 0.5 if setup.short else 2.0
    with Field(setup, setup.part("longer"), slots=2) as field:
        jobs = field.slots * len(field.queues)
        for number in range(stops):
            (worker,) = field.start(1, "--grace", f"{grace_s:g}")
            ids = [field.offer(f"long{number}-{n}", grace_s + 1.0, n) for n in range(jobs)]
            until(lambda: field.running() == jobs)
            took.append(_stop(worker, report))
            field.workers.clear()
            for job_id in ids:
                job = field.client.get(job_id)
                queued_again += job.state is JobState.QUEUED and job.attempt == 0
            report.expect("longer jobs are queued again", queued_again == jobs * (number + 1), queued_again)
            # Let them end, or they would be the first of the next worker's.
            field.start()
            until(lambda: not field.waiting(), 60)
            field.workers.pop().kill()
        own = Report()
        field.judge(own)
        duplicates = own.figures.pop("duplicates")
        own.expect("every longer job ran twice", duplicates == queued_again, duplicates)
    report.add(own)
    report.figure("longer jobs queued again", queued_again)
    report.at_most(
        "exit with longer jobs beyond the grace, s", max(took) - grace_s, STOPPED_WITHIN_S + setup.patience_s
    )


def _stop(worker: Worker, report: Report) -> float:
    """SIGTERM; seconds until the worker has ended."""
    began, tree = time.monotonic(), worker.tree()
    worker.send(signal.SIGTERM)
    code = worker.wait(60)
    took = time.monotonic() - began
    report.expect("exit code 0", code == 0, code)
    report.expect("no process is left", not alive(tree), alive(tree))
    return took
