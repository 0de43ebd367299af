"""A snapshot of queues, workers and server: the measures that ``jobq stats`` shows, and its JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from jobq import histogram
from jobq.fleet import Worker
from jobq.replies import as_int
from jobq.rq_bridge import iso

WINDOW = timedelta(minutes=5)
"""What waits and throughput are taken over, unless the caller says otherwise; at most 24 h."""


@dataclass(slots=True)
class Counters:
    """Settled jobs of some minutes: how they ended, how long they waited and ran.

    Attributes:
        waits: Bucket of ``histogram`` to count; ``runs`` the same for run times.
        by_task: Per task, the same letters as in the counters: ``s r d c o``.
    """

    waits: dict[int, int] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)
    by_task: dict[str, dict[str, int]] = field(default_factory=dict)
    met: int = 0
    missed: int = 0

    def add(self, hash_fields: Mapping[str, str]) -> None:
        """Add the hash of one minute."""
        for name, value in hash_fields.items():
            count = as_int(value)
            kind, _, rest = name.partition(":")
            if kind == "m":
                self.met += count
            elif kind == "x":
                self.missed += count
            elif kind in ("w", "u") and rest.isdecimal():
                into = self.waits if kind == "w" else self.runs
                into[int(rest)] = into.get(int(rest), 0) + count
            elif kind in ("s", "r", "d", "c", "o") and rest:
                of_task = self.by_task.setdefault(rest, {})
                of_task[kind] = of_task.get(kind, 0) + count

    def merge(self, other: Counters) -> None:
        """Add another queue's counters."""
        for mine, theirs in ((self.waits, other.waits), (self.runs, other.runs)):
            for index, count in theirs.items():
                mine[index] = mine.get(index, 0) + count
        for task, letters in other.by_task.items():
            of_task = self.by_task.setdefault(task, {})
            for letter, count in letters.items():
                of_task[letter] = of_task.get(letter, 0) + count
        self.met += other.met
        self.missed += other.missed

    def total(self, letters: str) -> int:
        """Settled jobs of all tasks whose outcome has one of these letters."""
        return sum(of_task.get(letter, 0) for of_task in self.by_task.values() for letter in letters)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """One queue, or all of them together.

    ``succeeded``, ``dead`` and ``cancelled`` count the jobs that retention still keeps. Waits, ``sla_met``,
    ``throughput_per_s`` and ``failed_attempts`` are of the window.

    Attributes:
        shed: It refuses new jobs because memory is short.
        oldest_queued_s: Seconds that the next job has been due; 0 when none waits.
        wait_p50_s: Quantiles of the time from due to started; None when nothing was settled in the window.
        sla_met: Share, 0 to 1, of settled jobs that started within the target; None without either.
        throughput_per_s: Jobs that ended per second.
        failed_attempts: Attempts that failed, those that were retried and those that made a dead letter.
        unreadable: Keys of the queue that have the wrong type; what they hold counts as 0.
        held: What somebody has set at run time to hold its jobs back, in words; empty: nothing.
        limits: What it is limited to, by whomever, in words; empty: to nothing.
    """

    queued: int = 0
    scheduled: int = 0
    retrying: int = 0
    deferred: int = 0
    parked: int = 0
    running: int = 0
    succeeded: int = 0
    dead: int = 0
    cancelled: int = 0
    paused: bool = False
    shed: bool = False
    workers: int = 0
    slots: int = 0
    busy: int = 0
    oldest_queued_s: float = 0.0
    target_s: float | None = None
    window_s: float = WINDOW.total_seconds()
    counters: Counters = field(default_factory=Counters)
    elapsed_s: float = WINDOW.total_seconds()
    unreadable: tuple[str, ...] = ()
    held: str = ""
    limits: str = ""

    @property
    def wait_p50_s(self) -> float | None:
        return histogram.quantile(self.counters.waits, 0.5)

    @property
    def wait_p95_s(self) -> float | None:
        return histogram.quantile(self.counters.waits, 0.95)

    @property
    def wait_p99_s(self) -> float | None:
        return histogram.quantile(self.counters.waits, 0.99)

    @property
    def sla_met(self) -> float | None:
        judged = self.counters.met + self.counters.missed
        return self.counters.met / judged if judged else None

    @property
    def throughput_per_s(self) -> float:
        return self.counters.total("sdc") / max(self.elapsed_s, 1.0)

    @property
    def failed_attempts(self) -> int:
        return self.counters.total("rd")

    def to_dict(self) -> dict[str, Any]:
        """The queue's part of ``jobq stats --json``."""
        return {
            "queued": self.queued,
            "scheduled": self.scheduled,
            "retrying": self.retrying,
            "deferred": self.deferred,
            "parked": self.parked,
            "running": self.running,
            "succeeded": self.succeeded,
            "dead": self.dead,
            "cancelled": self.cancelled,
            "paused": self.paused,
            "shed": self.shed,
            "workers": self.workers,
            "slots": self.slots,
            "busy": self.busy,
            "oldest_queued_s": round(self.oldest_queued_s, 3),
            "wait_p50_s": _rounded(self.wait_p50_s),
            "wait_p95_s": _rounded(self.wait_p95_s),
            "wait_p99_s": _rounded(self.wait_p99_s),
            "target_s": self.target_s,
            "sla_met": _rounded(self.sla_met),
            "throughput_per_s": round(self.throughput_per_s, 3),
            "failed_attempts": self.failed_attempts,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisStats:
    """The server.

    Attributes:
        used_memory: Bytes; ``maxmemory`` too, 0 for no limit.
        durability: ``none``, ``snapshot``, ``aof-everysec``, ``aof-always``, or ``unknown``.
    """

    used_memory: int = 0
    maxmemory: int = 0
    durability: str = "unknown"

    def to_dict(self) -> dict[str, Any]:
        """The ``redis`` part of ``jobq stats --json``."""
        return {
            "used_memory": self.used_memory,
            "maxmemory": self.maxmemory,
            "durability": self.durability,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """A snapshot of everything.

    Attributes:
        stalled: Leases that ended more than 15 s ago and that nobody rescued.
        workers: The live workers, also those of queues that are not shown.
        others: Further Redis servers by their URLs, passwords left out, when queues have one of their own.
    """

    generated_at: datetime
    queues: dict[str, QueueStats]
    totals: QueueStats
    redis: RedisStats
    workers: tuple[Worker, ...] = ()
    stalled: int = 0
    others: Mapping[str, RedisStats] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The document of ``jobq stats --json``."""
        return {
            "generated_at": iso(int(self.generated_at.timestamp() * 1000)),
            "queues": {name: queue.to_dict() for name, queue in self.queues.items()},
            "totals": self.totals.to_dict(),
            "redis": self.redis.to_dict(),
            **(
                {"other_redis": {url: redis.to_dict() for url, redis in self.others.items()}}
                if self.others
                else {}
            ),
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
