"""What jobq promises to reach, and what a run has reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.bench import Row

BUSY = 0.25
"""Cores used by anything else above which a measurement counts as disturbed."""

Results = Mapping[str, Mapping[str, Sequence[Row]]]
"""Rows by contender and workload, one per round; None where nothing was measured in that round."""


@dataclass(frozen=True)
class Target:
    """One promise.

    Attributes:
        what: For people.
        sign: ``>=`` or ``<=``.
        limit: The number that is promised.
        reached: The number that was measured.
        spread: Lowest and highest of the rounds.
        disturbed: No round was undisturbed.
    """

    what: str
    sign: str
    limit: float
    reached: float
    spread: tuple[float, float] | None = None
    disturbed: bool = False

    @property
    def why(self) -> str:
        """Where it is missed: what is in the way, and what is to be tried next; empty when it is kept, or not known."""
        return "" if self.met else GAPS.get(self.what, "")

    @property
    def met(self) -> bool:
        """Whether it is kept."""
        return self.reached >= self.limit if self.sign == ">=" else self.reached <= self.limit


# jobq over another, or over itself elsewhere: what, workload, key, the other's name and workload, least.
_RATIOS: tuple[tuple[str, str, str, str, float], ...] = (
    ("Enqueue one by one", "enqueue", "huey", "enqueue", 1.0),
    ("Enqueue one by one", "enqueue", "rq", "enqueue", 2.0),
    ("Enqueue in bulk", "bulk", "bull", "bulk", 1.25),
    ("Enqueue in bulk", "bulk", "rq", "bulk", 3.5),
    ("Drain, 1 process of 10 slots", "drain_a", "rq", "drain_a", 50.0),
    ("Drain, 1 process of 10 slots", "drain_a", "dramatiq", "drain_a", 2.0),
    ("Drain, 1 process of 10 slots", "drain_a", "bull", "drain_a", 1.1),
    ("Drain, 2 processes of 10 slots", "drain_b", "bull", "drain_b", 1.3),
    ("Fail once, then succeed", "retry", "bull", "retry", 1.5),
    ("Enqueue one by one, everysec", "enqueue@everysec", "jobq", "enqueue", 0.85),
    ("Enqueue in bulk, everysec", "bulk@everysec", "jobq", "bulk", 0.85),
    ("Drain, 1 process, everysec", "drain_a@everysec", "jobq", "drain_a", 0.85),
    ("Drain, 2 processes, everysec", "drain_b@everysec", "jobq", "drain_b", 0.85),
    ("Fail once, then succeed, everysec", "retry@everysec", "jobq", "retry", 0.85),
    ("10 ms sleeps, everysec", "io@everysec", "jobq", "io", 0.85),
    ("Retry-failed, everysec", "replay@everysec", "jobq", "replay", 0.85),
)
# jobq alone: what, workload, key, sign, limit.
_LIMITS: tuple[tuple[str, str, str, str, float], ...] = (
    ("Enqueue in bulk, jobs/s", "bulk", "per_s", ">=", 20_000),
    ("Bytes per waiting job, server defaults", "enqueue", "bytes_per_job", "<=", 950),
    ("Bytes per waiting job, `hash-max-listpack-value 512`", "enqueue@512", "bytes_per_job", "<=", 550),
    ("Socket reads of Redis per job, drain", "drain_a", "reads_per_job", "<=", 0.3),
    ("Worker, µs of CPU per job, drain", "drain_a", "worker_us_per_job", "<=", 100),
    ("Redis, µs of CPU per job, drain", "drain_a", "redis_us_per_job", "<=", 60),
    ("Start of a worker to its first job, s", "drain_a", "startup_s", "<=", 1.5),
    ("10 ms sleeps on 20 slots, time / ideal", "io", "ratio", "<=", 1.05),
    ("Wait on an idle worker, p50 ms", "latency", "p50_ms", "<=", 0.6),
    ("Wait on an idle worker, p99 ms", "latency", "p99_ms", "<=", 2.0),
    ("Idle worker of one lane, PSS MB", "latency", "idle_pss_mb", "<=", 45),
    ("Idle worker of five lanes, PSS MB", "five_lanes", "idle_pss_mb", "<=", 250),
    ("OTP wait p99 while `low` burns and `batch` holds 10,000, ms", "otp_isolation", "call_p99_ms", "<=", 25),
    ("Wait on an idle worker, everysec, p99 ms", "latency@everysec", "p99_ms", "<=", 2.0),
    ("OTP wait p99 beside exports, everysec, ms", "otp_isolation@everysec", "call_p99_ms", "<=", 25),
    ("Retry-failed of 100,000 dead letters, jobs/s", "replay", "per_s", ">=", 10_000),
)
GAPS: Mapping[str, str] = {
    "Enqueue one by one: jobq / huey": (
        "huey sends one RPUSH of a pickle and keeps nothing of the job beside it. A script that knows its "
        "job again after a lost reply, looks at a dedup key and writes the hash that rq reads takes Redis "
        "twice as long, and validation and encoding take the rest. Next: fewer fields of the hash for "
        "jobs that no rq tool has asked for."
    ),
    "Enqueue one by one: jobq / rq": ("The script is half of it. Next: as for huey."),
    "Drain, 1 process of 10 slots: jobq / bull": (
        "Worker and Redis are idle a fifth of the time: each job's own write(2) gives the interpreter's "
        "lock away, and getting it back wakes a thread on another core, 0.7 times a job. Tried without "
        "gain: a shorter switch interval, waking fewer threads, working off one exchange while Redis is "
        "at the next (+5 %). Next: a Python without that lock; two processes a lane, which have no such "
        "gap."
    ),
    "Enqueue in bulk, everysec: jobq / without": (
        "It varies: 0.98 and 0.81 on one day. Not profiled; the file is rewritten when it has doubled, by a fork "
        "beside the producer on two cores. Next: a run without rewrites, and several of them in each round."
    ),
    "Retry-failed, everysec: jobq / without": (
        "Redis is the bottleneck: 18 µs of its time a job, of which scripts' calls are most. To the file go five "
        "commands a job, one HDEL, one HSET and three PERSIST, for a quarter of that time. Leaving out what nearly "
        "no job has made both a sixth faster, and their ratio no better. Next: dead letters without an expiry of "
        "their own, swept by the worker that keeps retention, so that nothing is to be persisted."
    ),
    "Idle worker of one lane, PSS MB": (
        "Most of it is what an interpreter has loaded: of 47 MB, redis-py with its asyncio half and "
        "OpenTelemetry, where that is installed, takes 20, the client with the task model 9, structlog 6; "
        "each of the two forks then adds 6 of its own. Next: a supervisor without the task model."
    ),
}
"""By the title of a target: what is in the way where it is missed, and what is to be tried next."""
_COMMANDS = 16.0


def rivals(workload: str) -> frozenset[str]:
    """Who must be measured beside jobq in every round of a workload: those whom a target names."""
    both = [(ours, name, theirs) for _, ours, name, theirs, _ in _RATIOS]
    return frozenset({"jobq"} | {name for ours, name, theirs in both if workload in (ours, theirs)})


def rows(results: Results, name: str, workload: str) -> list[Row]:
    """What was measured, without what broke."""
    return [row for row in results.get(name, {}).get(workload, ()) if row and "error" not in row]


def quiet(row: Row) -> bool:
    """Whether hardly anything else ran."""
    return float(row.get("other_cpu", 0.0)) <= BUSY


def undisturbed(measured: Sequence[Row]) -> list[Row]:
    """The rows during which hardly anything else ran, or all when there are none."""
    return [row for row in measured if quiet(row)] or list(measured)


def median(results: Results, name: str, workload: str, key: str) -> float | None:
    """Of the undisturbed rounds, as long as there is one."""
    values = [row[key] for row in undisturbed(rows(results, name, workload)) if row.get(key) is not None]
    return statistics.median(values) if values else None


def pairs(results: Results, ours: str, name: str, theirs: str) -> list[tuple[Row, Row]]:
    """jobq's and another's rows of the same round: the undisturbed ones, or all when there are none."""
    both = [
        (a, b)
        for a, b in zip(
            results.get("jobq", {}).get(ours, ()), results.get(name, {}).get(theirs, ()), strict=False
        )
        if a and b and a.get("per_s") and b.get("per_s")
    ]
    return [pair for pair in both if quiet(pair[0]) and quiet(pair[1])] or both


def ratios(results: Results, ours: str, name: str, theirs: str) -> list[float]:
    """How many times another's rate jobq's was, in each round."""
    return [a["per_s"] / b["per_s"] for a, b in pairs(results, ours, name, theirs)]


def reached(results: Results) -> list[Target]:
    """Each target of what was measured."""
    return [*_compared(results), *_alone(results), *_commands(results)]


def _compared(results: Results) -> Iterator[Target]:
    for what, ours, name, theirs, least in _RATIOS:
        found = ratios(results, ours, name, theirs)
        if found:
            all_quiet = all(quiet(row) for pair in pairs(results, ours, name, theirs) for row in pair)
            title = f"{what}: jobq / {name if name != 'jobq' else 'without'}"
            yield Target(
                title, ">=", least, statistics.median(found), (min(found), max(found)), not all_quiet
            )


def _alone(results: Results) -> Iterator[Target]:
    for what, workload, key, sign, limit in _LIMITS:
        measured = [row for row in undisturbed(rows(results, "jobq", workload)) if row.get(key) is not None]
        if measured:
            yield _target(what, sign, limit, measured, lambda row, key=key: row[key])  # type: ignore[misc]


def _commands(results: Results) -> Iterator[Target]:
    enqueued = median(results, "jobq", "enqueue", "cmds_per_job")
    drained = rows(results, "jobq", "drain_a")
    if enqueued is not None and drained:
        extra = enqueued
        what = "Redis commands per job, enqueue included"
        yield _target(what, "<=", _COMMANDS, undisturbed(drained), lambda row: row["cmds_per_job"] + extra)


def _target(
    what: str, sign: str, limit: float, measured: Sequence[Row], value: Callable[[Row], float]
) -> Target:
    values = [value(row) for row in measured]
    spread = (min(values), max(values))
    return Target(what, sign, limit, statistics.median(values), spread, not all(map(quiet, measured)))
