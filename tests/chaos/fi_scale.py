"""Large numbers: what grows with a backlog, and what must not."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psutil  # type: ignore[import-untyped]

from jobq import calls
from jobq.archive import read_archive
from jobq.connection import connect
from jobq.job import Attempt, JobState
from jobq.queues import LANES
from jobq.records import encode_attempt
from jobq.rq_bridge import encode_exc, iso
from jobq.steps import Call, Outcome
from jobq.store import Link
from jobq.tasks import Task
from tests.chaos import app
from tests.chaos.field import Field
from tests.chaos.frame import Report, Setup, experiment
from tests.chaos.ledger import percentile
from tests.support.processes import until

_LANES = tuple(LANES)
_SLOWEST_MS = 50.0
_CHUNK = 10_000
_SERVER_DEFAULTS = {"hash-max-listpack-value": "64"}


@contextmanager
def _slowest(field: Field, report: Report) -> Iterator[None]:
    """Judge the longest command of Redis in between."""
    field.raw.config_set("slowlog-log-slower-than", 5_000)
    field.raw.config_set("slowlog-max-len", 1_000)
    field.raw.slowlog_reset()
    yield
    found = field.raw.slowlog_get(1_000)
    worst = max(found, key=lambda entry: entry["duration"], default=None)
    report.at_most("longest Redis command, ms", worst["duration"] / 1_000 if worst else 0.0, _SLOWEST_MS)
    if worst and worst["duration"] > _SLOWEST_MS * 1_000:
        report.problems.append(f"the longest was {bytes(worst['command'])[:60]!r}")


class _Probe(threading.Thread):
    """Enqueues a CRITICAL job every 50 ms; how long each waited is in the handlers' ledger."""

    def __init__(self, field: Field) -> None:
        super().__init__(daemon=True)
        self._field = field
        self._enqueued: dict[str, float] = {}
        self._over = threading.Event()

    def run(self) -> None:
        task = app.work.options(client=self._field.client, queue="critical")
        number = 0
        while not self._over.wait(0.05):
            token = f"probe{number}"
            self._enqueued[token] = time.time()
            job = task.enqueue(token=token, seconds=0.0)
            self._field.produced.note(token, job.id, "acked")
            number += 1

    def judge(self, report: Report) -> None:
        """Stop, wait for the last, and hold the waits against the lane's target."""
        self._over.set()
        self.join()

        def all_ran() -> bool:
            started = {entry.token for entry in self._field.runs() if entry.word == "start"}
            return self._enqueued.keys() <= started

        until(all_ran, 60, 0.2)
        waits = sorted(
            entry.at - self._enqueued[entry.token]
            for entry in self._field.runs()
            if entry.word == "start" and entry.token in self._enqueued
        )
        report.figure("CRITICAL jobs meanwhile", len(waits))
        report.figure("their wait p50, s", percentile(waits, 0.5))
        report.at_most("their wait p99, s", percentile(waits, 0.99), 1.0)


def _enqueue_many(
    field: Field, total: int, queue: str, task: Task[..., Any] = app.idle, **options: Any
) -> float:
    """Enqueue jobs that take a number in bulk; seconds it took."""
    bound = task.options(client=field.client, queue=queue, **options)
    began = time.monotonic()
    for start in range(0, total, _CHUNK):
        bound.enqueue_many([{"number": number} for number in range(start, min(total, start + _CHUNK))])
    return time.monotonic() - began


@experiment(
    "FI-35",
    fault="a backlog of 1,000,000 jobs over five lanes",
    criterion="enqueue_many ≥ 20,000/s; CRITICAL wait ≤ 1 s p99 meanwhile; stats ≤ 100 ms; Redis command ≤ 50 ms; "
    "≤ 1.0 kB a job",
    minutes=3,
)
def backlog(setup: Setup) -> Report:
    report, share = Report(), setup.times(250_000, short=1_250)
    lanes, total = ("high", "medium", "low", "batch"), 4 * share
    with Field(setup, queues=("critical",), slots=20, config=_SERVER_DEFAULTS) as field:
        field.start()
        before = field.raw.info("memory")["used_memory"]
        with _slowest(field, report):
            probe = _Probe(field)
            probe.start()
            took = sum(_enqueue_many(field, share, lane) for lane in lanes)
            report.figure("jobs waiting", total)
            report.at_least("enqueue_many, jobs/s", total / took, 20_000)
            grown = field.raw.info("memory")["used_memory"] - before
            report.at_most("bytes a job", grown / total, 1_000)
            durations = []
            for _ in range(20):
                began = time.monotonic()
                stats = field.client.stats()
                durations.append((time.monotonic() - began) * 1_000)
            field.queues = _LANES  # the verdict looks at all
            report.at_most("stats, ms (median of 20)", percentile(sorted(durations), 0.5), 100)
            queued = sum(stats.queues[lane].queued for lane in lanes)
            report.expect("stats counts them all", queued == total, queued)
            probe.judge(report)
        field.stop()
        field.judge(report)
    return report


@experiment(
    "FI-36",
    fault="1,000,000 delayed jobs due in one second",
    criterion="≥ 5,000 promotions/s; CRITICAL wait ≤ 1 s p99; no Redis command over 50 ms",
    minutes=5,
)
def mass_promotion(setup: Setup) -> Report:
    report, total = Report(), setup.times(1_000_000, short=5_000)
    lead_s = 5 + total / 15_000
    with Field(setup, queues=("critical", "medium"), slots=20) as field:
        field.client.queues.pause("medium")  # promotion is what is measured, not the running
        due = time.time() + lead_s
        _enqueue_many(field, total, "medium", at=datetime.fromtimestamp(due, tz=UTC))
        field.start(2)
        with _slowest(field, report):
            probe = _Probe(field)
            probe.start()
            until(lambda: time.time() >= due, lead_s + 60, 0.005)
            began = time.monotonic()
            until(lambda: not field.raw.zcard("rq:scheduled:medium"), 600, 0.05)
            report.at_least("promotions/s", total / (time.monotonic() - began), 5_000)
            probe.judge(report)
        report.expect(
            "all are queued", field.raw.llen("rq:queue:medium") == total, field.raw.llen("rq:queue:medium")
        )
        field.stop()
        field.judge(report)
    return report


@experiment(
    "FI-36b",
    fault="2,000 jobs that become due within a minute, beside 1,000,000 that are not due for long",
    criterion="promoted at most 250 ms late (p99); early 0; no Redis command over 50 ms",
    minutes=3,
)
def late_promotion(setup: Setup) -> Report:
    report, total, due = Report(), setup.times(1_000_000, short=5_000), setup.times(2_000, short=50)
    rand, within_s = setup.rand("due"), 60.0 if not setup.short else 3.0
    with Field(setup, queues=("high", "medium"), slots=20) as field:
        far = datetime.fromtimestamp(time.time() + 7 * 86_400, tz=UTC)
        for lane in field.queues:
            _enqueue_many(field, total // 2, lane, at=far)
        field.start(2)
        begin, planned = time.time() + 5, dict[str, float]()
        with _slowest(field, report):
            for number in range(due):
                token, lane = f"due{number}", field.queues[number % 2]
                planned[token] = round(begin + rand.uniform(0, within_s), 3)
                at = datetime.fromtimestamp(planned[token], tz=UTC)
                field.enqueue(app.work.options(client=field.client, queue=lane, at=at), token, seconds=0.0)
            until(lambda: sum(e.word == "end" for e in field.runs()) >= due, within_s + 60, 0.2)
        late = sorted(entry.at - planned[entry.token] for entry in field.runs() if entry.word == "start")
        report.figure("jobs that became due", len(late))
        report.zero("early", sum(wait < 0 for wait in late))
        report.figure("start after the due time p50, ms", percentile(late, 0.5) * 1_000)
        report.at_most("start after the due time p99, ms", percentile(late, 0.99) * 1_000, 250)
        field.stop()
        field.judge(report)
    return report


@experiment(
    "FI-37",
    fault="200,000 dead letters",
    criterion="first page ≤ 100 ms; grouping ≤ 2 s; no Redis command over 50 ms; an archive run that is killed midway "
    "and run again, and a replay of all lose and double none",
    minutes=4,
)
def dead_letters(setup: Setup) -> Report:
    report, total = Report(), setup.times(200_000, short=2_000)
    with Field(setup, queues=("medium",)) as field:
        _make_dead(field, total, "medium")
        with _slowest(field, report):
            pages = []
            for _ in range(10):
                began = time.monotonic()
                page = field.client.jobs(state=JobState.DEAD, limit=50)
                pages.append((time.monotonic() - began) * 1_000)
            report.at_most("first page, ms (median of 10)", percentile(sorted(pages), 0.5), 100)
            report.expect("it is full", len(page.items) == 50, len(page.items))
            began = time.monotonic()
            groups = field.client.dead_letters.groups()
            report.at_most("grouping, s", time.monotonic() - began, 2.0)
            report.expect(
                "groups count all",
                sum(group.count for group in groups) == total,
                sum(group.count for group in groups),
            )
            _archive_and_restore(field, report, total)
            began = time.monotonic()
            field.client.dead_letters.replay()
            report.at_least("replay, jobs/s", total / (time.monotonic() - began), 10_000)
        waiting = field.raw.llen("rq:queue:medium")
        report.expect("each is queued once", waiting == total, waiting)
        ids = field.raw.lrange("rq:queue:medium", 0, -1)
        report.zero("doubled", len(ids) - len(set(ids)))
        field.audit(report)
    return report


def _archive_and_restore(field: Field, report: Report, total: int) -> None:
    """All dead letters to a file and back; the run that archives them is killed midway, and another goes on."""
    path, letters = field.folder / "dead.jsonl", field.client.dead_letters
    command = [
        sys.executable,
        "-m",
        "jobq.cli",
        "dead",
        "archive",
        "--out",
        str(path),
        "--yes",
        "-u",
        field.url,
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        until(lambda: field.raw.zcard("rq:failed:medium") < total * 0.75, 120, 0.001)
        killed.kill()
    left = letters.count()
    report.expect("it was killed midway", 0 < left < total, left)
    began = time.monotonic()
    letters.archive(path)
    report.figure("archive, jobs/s", round(left / (time.monotonic() - began)))
    lines = [line.id for line in read_archive(path)]
    report.zero("archived rows lost", total - len({*lines}) + letters.count())
    report.zero("archived rows doubled", len(lines) - len({*lines}))
    began = time.monotonic()
    report.expect("all are restored", letters.restore(path).done == total, letters.count())
    report.figure("restore, jobs/s", round(total / (time.monotonic() - began)))


_ERRORS = ("gateway.Timeout", "gateway.Refused", "ValueError")


def _make_dead(field: Field, total: int, queue: str) -> None:
    """Dead letters of three kinds of error, each with an attempt and its traceback, made by a worker's own scripts."""
    keys, link = field.client.keys, Link(connect(field.client.settings, "command"))
    ends = [(kind, *_one_failure(kind)) for kind in _ERRORS]
    _enqueue_many(field, total, queue)
    plan: list[Call[Any]] = []
    buried = number = 0
    while buried < total:
        number += 1
        claim = calls.claim(
            keys, queue, exec_id="gone", number=number, n=100, lease_ms=600_000, worker_name="gone",
            started_at_iso=iso(),
        )  # fmt: skip
        outcomes = []
        for job in link.exchange([*plan, claim])[-1].jobs:
            kind, record, exc = ends[buried % len(ends)]
            buried += 1
            outcomes.append(
                Outcome(
                    job_id=job.id, token=job.token, kind="dead", spends=True, reason="exhausted", fingerprint=kind,
                    record=record, exc=exc, worker="gone", keep_s=604_800, counters=("d:chaos.idle",),
                )
            )  # fmt: skip
        plan = [calls.settle(keys, queue, outcomes, iso())]
    link.exchange(plan)
    link.close()


def _one_failure(kind: str) -> tuple[str, bytes]:
    """The record of an attempt, and what rq shows of it."""
    trace = f'Traceback (most recent call last):\n  File "pay.py", line 42, in charge\n{kind}: no answer\n'
    attempt = Attempt(
        number=1, outcome="failed", worker="gone", error_type=kind, error="no answer", traceback=trace,
        fingerprint=kind,
    )  # fmt: skip
    return encode_attempt(attempt), encode_exc(trace)


@experiment(
    "FI-41",
    fault="soak: 1,000,000 jobs through one fleet, some with results, some that fail at first, some in processes",
    criterion="RSS +5 % at most; keys after the drain as before; connections constant",
    minutes=6,
)
def soak(setup: Setup) -> Report:
    report, total = Report(), setup.times(1_000_000, short=6_000)
    rounds = 10
    shares = {"high": 0.5, "medium": 0.49, "batch": 0.01}
    with Field(setup, queues=tuple(shares), slots=10) as field:
        (worker,) = field.start()
        memory: list[int] = []
        connections: list[int] = []
        keys = 0
        for number in range(rounds):
            for lane, share in shares.items():
                _enqueue_many(field, round(total * share / rounds), lane, app.mixed)
            until(lambda: not field.waiting(), 900, 0.1)
            memory.append(_rss(worker.process.pid))
            connections.append(len(field.raw.client_list()))
            if number in (1, rounds - 1):
                # What ended lives for a minute; then retention brings it down to the counts that are kept.
                until(lambda: _terminal_kept(field), 180, 0.25)
            if number == 1:  # pools, caches and retention are full from here on
                keys = field.raw.dbsize()
        report.figure("jobs", total)
        report.figure(
            "RSS after the second and the last tenth, MB", f"{memory[1] / 1e6:.1f}, {memory[-1] / 1e6:.1f}"
        )
        report.at_most("RSS growth, %", (memory[-1] / memory[1] - 1) * 100, 5.0)
        report.figure("keys after the second and the last tenth", f"{keys}, {field.raw.dbsize()}")
        # The counters of each minute are keys of their own, for 26 hours.
        counters = len(list(field.raw.scan_iter("jobq:n:*", count=1_000)))
        # Which of the last thousand have a result, or an attempt that failed, varies a little.
        report.at_most("keys more, beside counters", field.raw.dbsize() - keys - counters, 100)
        report.figure("connections", f"{min(connections[1:])} to {max(connections[1:])}")
        report.at_most("connections, spread", max(connections[1:]) - min(connections[1:]), 1)
        worker.send(signal.SIGTERM)
        report.expect("worker ends with 0", worker.wait(40) == 0)
        field.audit(report)
    return report


def _terminal_kept(field: Field) -> bool:
    """Whether prune has brought what ended down to the counts that are kept."""
    return all(field.raw.zcard(f"rq:finished:{lane}") <= 1_000 for lane in field.queues)


def _rss(pid: int) -> int:
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in processes)


@experiment(
    "FI-42",
    fault="38 default slots whose jobs enqueue and look all the time, on a server that allows 100 connections",
    criterion="at most 60 connections while all slots are busy; refused 0",
    minutes=1,
)
def connections(setup: Setup) -> Report:
    report = Report()
    with Field(setup, queues=_LANES, slots=0, config={"maxclients": "100"}) as field:
        field.start()
        most = 0
        for number in range(120):
            task = app.busy.options(client=field.client, queue=_LANES[number % len(_LANES)])
            field.enqueue(task, f"busy{number}", seconds=1.0)
        ends = time.monotonic() + 6
        while time.monotonic() < ends:
            most = max(most, field.raw.info("clients")["connected_clients"] - 2)
            time.sleep(0.02)
        report.at_most("connections of the fleet", most, 60)
        report.zero("refused", field.raw.info("stats")["rejected_connections"])
        report.expect("drained", field.drain(120), False)
        running = [entry.at for entry in field.runs() if entry.word == "start"]
        report.figure("jobs", len(running))
        field.judge(report)
    return report


@experiment(
    "FI-43",
    fault="10,000 leases that expire at once",
    criterion="all queued again within 10 s; no Redis command over 50 ms",
    minutes=1,
)
def mass_expiry(setup: Setup) -> Report:
    report, total = Report(), setup.times(10_000, short=1_000)
    with Field(setup, queues=("high", "medium"), slots=10) as field:
        _enqueue_many(field, total, "medium")
        seconds, micros = field.raw.time()
        expires_ms = seconds * 1_000 + micros // 1_000 + 3_000
        ids = [raw_id.decode() for raw_id in field.raw.lrange("rq:queue:medium", 0, -1)]
        field.raw.delete("rq:queue:medium")
        for start in range(0, total, 1_000):
            pipe = field.raw.pipeline()
            for job_id in ids[start : start + 1_000]:
                pipe.hset(f"rq:job:{job_id}", "status", "started")
                pipe.zadd("rq:wip:medium", {f"{job_id}:elsewhere.1": "inf"})
                pipe.zadd("jobq:leases", {f"{job_id}:elsewhere.1": expires_ms})
            pipe.execute()
        field.client.queues.pause("medium")
        field.start()
        with _slowest(field, report):
            until(lambda: _now_ms(field) >= expires_ms, 30, 0.01)
            began = time.monotonic()
            until(lambda: not field.raw.zcard("jobq:leases"), 60, 0.02)
            report.at_most("until all were queued again, s", time.monotonic() - began, 10 + setup.patience_s)
        report.expect("each is queued once", field.raw.llen("rq:queue:medium") == total)
        back = field.raw.lrange("rq:queue:medium", 0, -1)
        report.expect("all of them", {raw_id.decode() for raw_id in back} == set(ids))
        field.client.queues.resume("medium")
        report.expect("drained", field.drain(60), False)
        field.audit(report)
    return report


def _now_ms(field: Field) -> int:
    seconds, micros = field.raw.time()
    return int(seconds * 1_000 + micros // 1_000)
