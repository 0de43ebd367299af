"""The verdict on a snapshot: ok, warning or unhealthy, and what somebody should look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jobq.rq_bridge import iso
from jobq.stats import Stats
from jobq.units import plural


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When :func:`judge` warns, and when it calls the system unhealthy.

    Attributes:
        dead_warn: More dead letters than this, over all queues, deserve a look; ``dead_bad`` are an incident.
        queued_warn: More waiting jobs than this may need more workers; ``queued_bad`` are an incident.
        sla_warn: A smaller share of jobs within their target.
        memory_warn: A larger share of ``maxmemory`` in use.
    """

    dead_warn: int = 10
    dead_bad: int = 100
    queued_warn: int = 100
    queued_bad: int = 1_000
    sla_warn: float = 0.99
    memory_warn: float = 0.9


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict: ``ok``, ``warning`` or ``unhealthy``, and what is wrong, the worst first."""

    status: str
    issues: tuple[str, ...]
    checked_at: datetime

    @property
    def ok(self) -> bool:
        """Nothing that somebody must act on now; warnings pass."""
        return self.status != "unhealthy"

    def to_dict(self) -> dict[str, Any]:
        """The document of ``jobq health --json``."""
        return {
            "status": self.status,
            "issues": list(self.issues),
            "checked_at": iso(int(self.checked_at.timestamp() * 1000)),
        }


SILENT = timedelta(seconds=25)
"""A worker tells of itself every 10 s; after so long something is wrong, though it still counts as alive."""


def silent_workers(stats: Stats) -> list[tuple[str, float]]:
    """Live executors that have not been heard of, with for how many seconds; of each worker one."""
    found: dict[str, float] = {}
    for worker in stats.workers:
        if worker.kind == "jobq" and worker.last_heartbeat is not None:
            seconds = (stats.generated_at - worker.last_heartbeat).total_seconds()
            if seconds > SILENT.total_seconds():
                name = worker.worker or worker.name
                found[name] = max(seconds, found.get(name, 0.0))
    return list(found.items())


def judge(stats: Stats, limits: Thresholds | None = None) -> Health:
    """The health that a snapshot shows."""
    found = list(_issues(stats, limits or Thresholds()))
    bad = [text for severe, text in found if severe]
    warned = [text for severe, text in found if not severe]
    status = "unhealthy" if bad else "warning" if warned else "ok"
    return Health(status, (*bad, *warned), stats.generated_at)


def _issues(stats: Stats, limits: Thresholds) -> Iterator[tuple[bool, str]]:
    """Pairs of "is it severe" and what is wrong."""
    totals = stats.totals
    if totals.dead > limits.dead_warn:
        yield (
            totals.dead > limits.dead_bad,
            f"{plural(totals.dead, 'dead letter')} {_where(stats, 'dead')}: see jobq dead groups",
        )
    if totals.queued > limits.queued_warn:
        yield (
            totals.queued > limits.queued_bad,
            f"{plural(totals.queued)} waiting {_where(stats, 'queued')}: more workers may be needed",
        )
    if stats.stalled:
        words = (
            f"{plural(stats.stalled, 'running job', 'have')} no live worker, and nobody comes to the rescue"
        )
        yield True, f"{words}: start jobq worker"
    for name, seconds in silent_workers(stats):
        yield (
            False,
            f"worker {name} has not been heard of for {seconds:.0f} s: it hangs, is stopped, or cut off",
        )
    for name, queue in stats.queues.items():
        if queue.queued and not queue.workers:
            yield True, f"queue {name}: {plural(queue.queued)} waiting and no worker serves it"
        elif queue.running and not queue.workers:
            yield True, f"queue {name}: {plural(queue.running)} running and no live worker"
        if queue.shed:
            yield True, f"queue {name} refuses new jobs: Redis' memory is nearly full, see jobq memory"
        if queue.paused and queue.queued:
            yield False, f"queue {name} is paused with {plural(queue.queued)} waiting"
        elif queue.held and queue.queued:
            words = f"queue {name} is {queue.held}, with {plural(queue.queued)} waiting"
            yield False, f"{words}: see jobq queues show {name}"
        elif queue.target_s is not None and queue.oldest_queued_s > queue.target_s:
            late = f"{queue.oldest_queued_s:.1f} s, target {queue.target_s:g} s"
            limited = f"; it is limited to {queue.limits}" if queue.limits else ""
            yield False, f"queue {name}: the next job has waited {late}{limited}"
        if queue.sla_met is not None and queue.sla_met < limits.sla_warn:
            yield False, f"queue {name}: {queue.sla_met:.1%} of jobs started within {queue.target_s or 0:g} s"
        if queue.parked:
            yield False, f"queue {name}: {plural(queue.parked)} parked; see jobq jobs list --state parked"
        for key in queue.unreadable:
            yield True, f"queue {name}: key {key} has the wrong type"
    redis = stats.redis
    if redis.maxmemory and redis.used_memory > limits.memory_warn * redis.maxmemory:
        yield False, f"Redis uses {redis.used_memory / redis.maxmemory:.0%} of its maxmemory"


def _where(stats: Stats, name: str) -> str:
    parts = sorted(((getattr(queue, name), key) for key, queue in stats.queues.items()), reverse=True)
    return "(" + ", ".join(f"{key} {count:,}" for count, key in parts[:3] if count) + ")"
