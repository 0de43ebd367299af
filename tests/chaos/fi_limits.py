"""Limits under many workers, and under kills: never more than allowed, and never less for long."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from tests.chaos import limits_app
from tests.chaos.field import Field, cpu_s
from tests.chaos.frame import Report, Setup, experiment
from tests.chaos.ledger import Entry, percentile
from tests.support.processes import until

APP = "tests.chaos.limits_app"
WINDOWS = 3
KEYS = 5
EACH = 10
"""Jobs of a small tenant."""


@experiment(
    "FI-39",
    fault="8 workers, a task with a rate of 50 a minute, and more work than that",
    criterion="starts in any 60 s ≤ 50; utilisation ≥ 95 %; CPU of a worker and of Redis while all is blocked ≤ 5 %",
    minutes=4,
)
def rate_over_many_workers(setup: Setup) -> Report:
    """By the handlers' clocks. The short form has windows of 2 s."""
    report = Report()
    task, limit, per_s = limits_app.rated, limits_app.RATE, limits_app.PER_S
    if setup.short:
        task, limit, per_s = limits_app.rated_short, limits_app.SHORT_RATE, limits_app.SHORT_PER_S
    jobs = limit * WINDOWS
    with Field(setup, queues=("high",)) as field:
        field.start(3 if setup.short else 8, app=APP)
        for number in range(jobs):
            field.enqueue(task.options(client=field.client), f"t{number}", seconds=0.01)
        until(lambda: starts(field.runs()), 20)
        if not setup.short:
            until(lambda: len(starts(field.runs())) == limit, per_s / 2, 0.1)
            _judge_idling(field, report, per_s / 2)
        until(lambda: len(starts(field.runs())) == jobs, per_s * (WINDOWS + 1) + 20, 0.1)
        field.drain()
        times = starts(field.runs())
        field.judge(report)
    report.at_most(
        f"starts in any {per_s} s", max(sum(at <= o < at + per_s for o in times) for at in times), limit
    )
    in_time = sum(at < times[0] + WINDOWS * per_s for at in times)
    report.at_least("utilisation, %", 100 * in_time / jobs, 95)
    return report


@experiment(
    "FI-39b",
    fault="SIGKILL of executors and workers that run jobs of which one of a key may run",
    criterion="overlaps 0; keys stuck 0",
    minutes=5,
)
def one_of_a_key_under_kills(setup: Setup) -> Report:
    """A killed run has ended when it was killed; the next of its key starts by itself."""
    report, rand = Report(), setup.rand("kills")
    kills, jobs = setup.times(60, short=6), setup.times(2_000, short=250)
    with Field(setup) as field:
        field.start(2, app=APP)
        for number in range(jobs):
            queue = field.queues[number % len(field.queues)]
            task = limits_app.alone.options(client=field.client, queue=queue)
            field.enqueue(task, f"t{number}", key=f"k{number % KEYS}", seconds=rand.uniform(0.02, 0.3))
        for number in range(kills):
            until(field.running)
            time.sleep(rand.uniform(0.05, 0.6))
            if number % 3 == 2:
                field.kill(field.workers[0])
                field.start(1, app=APP)
            else:
                victims = [(worker, each) for worker in field.workers for each in worker.executors()]
                field.kill(*rand.choice(victims))
        until(lambda: _ended(field, jobs), 60 + jobs * 0.3, 0.1)
        field.drain()
        field.judge(report)
        overlaps = _overlaps(field.runs(), {f"t{number}": f"k{number % KEYS}" for number in range(jobs)},
                             sorted(kill.at for kill in field.kills))  # fmt: skip
        held = sum(1 for _ in field.raw.scan_iter("jobq:held:*"))
    report.figure("kills", kills)
    report.zero("overlaps", overlaps)
    report.zero("keys stuck", held)
    return report


@experiment(
    "FI-40",
    fault="one tenant enqueues 100,000 jobs, 99 others 10 each, in one queue with turns",
    criterion="the small ones' p95 wait ≤ 5 × alone; Jain index ≥ 0.9",
    minutes=2,
)
def one_tenant_floods(setup: Setup) -> Report:
    """The workers start when all is enqueued; who waits, waits since then."""
    report = Report()
    flood, tenants = setup.times(100_000, short=3_000), setup.times(99, short=19)
    alone = _turns(setup, "alone", 0, tenants)[1]
    shares, among = _turns(setup, "flood", flood, tenants)
    report.figure("p95 wait alone, s", alone)
    report.figure("p95 wait in the flood, s", among)
    report.at_most("times as long", among / alone, 5)
    index = sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))
    report.at_least("Jain index", index, 0.9)
    return report


def _turns(setup: Setup, part: str, flood: int, tenants: int) -> tuple[list[int], float]:
    """Starts of each tenant until 95 % of the small ones' jobs have begun, and the small ones' p95 wait."""
    with Field(setup, setup.part(part), queues=("high",)) as field:
        task = limits_app.of_tenant.options(client=field.client)
        task.enqueue_many([{"token": f"flood:{n}", "tenant": "flood"} for n in range(flood)])
        small = [(f"s{n % tenants}", n) for n in range(tenants * EACH)]
        task.enqueue_many([{"token": f"{tenant}:{n}", "tenant": tenant} for tenant, n in small])
        field.start(2, app=APP)
        until(lambda: len(_of_small(field)) == len(small), 120, 0.1)
        runs = [entry for entry in field.runs() if entry.word == "start"]
        # One that was claimed ahead and handed back is late by that, whoever else waits.
        last = percentile([entry.at for entry in _of_small(field)], 0.95)
        began = min(entry.at for entry in runs)
        shares = Counter(entry.token.partition(":")[0] for entry in runs if entry.at <= last)
        return list(shares.values()), percentile([e.at - began for e in _of_small(field)], 0.95)


def _of_small(field: Field) -> list[Entry]:
    return [e for e in field.runs() if e.word == "start" and not e.token.startswith("flood")]


def _judge_idling(field: Field, report: Report, seconds: float) -> None:
    """What waiting for a limit costs, in percent of a core."""
    assert field.server.pid is not None
    pids = [*(worker.pid for worker in field.workers), field.server.pid]
    before = [cpu_s(pid) for pid in pids]
    time.sleep(seconds)
    *workers, server = [
        100 * (cpu_s(pid) - so_far) / seconds for pid, so_far in zip(pids, before, strict=True)
    ]
    report.at_most("CPU of a worker while blocked, %", max(workers), 5)
    report.at_most("CPU of Redis while blocked, %", server, 5)


def starts(runs: list[Entry]) -> list[float]:
    """When runs began, in order."""
    return sorted(entry.at for entry in runs if entry.word == "start")


def _ended(field: Field, jobs: int) -> bool:
    ended: int = sum(field.raw.zcard(f"rq:finished:{queue}") for queue in field.queues)
    return ended >= jobs


def _overlaps(runs: list[Entry], keys: dict[str, str], kills: list[float]) -> int:
    """Starts while an earlier run of the key had neither ended nor been killed."""
    by_key: dict[str, list[Entry]] = defaultdict(list)
    for entry in sorted(runs, key=lambda each: each.at):
        by_key[keys[entry.token]].append(entry)
    found = 0
    for entries in by_key.values():
        open_run: Entry | None = None
        for entry in entries:
            if entry.word == "end":
                open_run = None
                continue
            if open_run is not None:
                found += not any(open_run.at <= kill <= entry.at for kill in kills)
            open_run = entry
    return found
