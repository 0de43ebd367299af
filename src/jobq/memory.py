"""What holds Redis' memory: every key counted, a sample of each kind measured, the rest extrapolated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobq.brake import BrakeState, state_plan
from jobq.errors import StoreError
from jobq.job import JobState
from jobq.keys import Keys
from jobq.queues import QueueSpec
from jobq.replies import as_int, as_text
from jobq.rq_bridge import state_of
from jobq.steps import Batch, Plan

SAMPLE = 1_000
"""Keys of each kind that are measured, of jobs four times as many. Redis scans in the order of a hash: the first ones
are as good as any."""

_PAGE = 1_000
_MOST = 100
_ELEMENTS = 20  # of one container that MEMORY USAGE looks at

NOT_OURS = "not ours"
_ENDED = (JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Holding:
    """The keys of one kind, of one queue and state where they have one.

    Attributes:
        keys: How many there are; ``bytes``: what they take. Both estimated where ``measured`` is less.
        measured: How many were measured.
    """

    kind: str
    queue: str = ""
    state: str = ""
    keys: int = 0
    bytes: int = 0
    measured: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For the JSON forms."""
        return {
            "kind": self.kind,
            "queue": self.queue or None,
            "state": self.state or None,
            "keys": self.keys,
            "bytes": self.bytes,
            "bytes_each": round(self.bytes / self.keys) if self.keys else 0,
            "measured": self.measured,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """What holds the memory, an estimate.

    Attributes:
        holdings: By kind, queue and state, the largest first.
        keys: Keys counted; ``measured``: those whose size was asked for.
        complete: All keys were counted.
        used: Bytes that Redis has allocated; ``peak``: the most so far; ``overhead``: without any key.
        maxmemory: Bytes; 0: no limit.
        fragmentation: Resident memory over used memory; None when Redis does not say.
        brake: Which queues refuse jobs for it.
    """

    holdings: tuple[Holding, ...]
    keys: int
    measured: int
    complete: bool
    used: int
    peak: int
    overhead: int
    maxmemory: int
    fragmentation: float | None
    brake: BrakeState

    @property
    def queued_job_bytes(self) -> int | None:
        """Bytes of one queued job: its hash and its place in the list; None when there are none."""
        return self._each((JobState.QUEUED,))

    @property
    def ended_job_bytes(self) -> int | None:
        """Bytes of one job that has ended: hash, entry in its registry, result, attempts; None without any."""
        return self._each(_ENDED, "results", "attempts")

    def _each(self, states: Sequence[str], *kinds: str) -> int | None:
        jobs = sum(h.keys for h in self.holdings if h.kind == "jobs" and h.state in states)
        size = sum(h.bytes for h in self.holdings if h.state in states or h.kind in kinds)
        return round(size / jobs) if jobs else None

    def to_dict(self) -> dict[str, Any]:
        """The document of ``jobq memory --json``."""
        return {
            "used_memory": self.used,
            "used_memory_peak": self.peak,
            "used_memory_overhead": self.overhead,
            "maxmemory": self.maxmemory,
            "used": round(self.used / self.maxmemory, 4) if self.maxmemory else None,
            "fragmentation": self.fragmentation,
            "shed": list(self.brake.shed),
            "estimate": {"keys": self.keys, "measured": self.measured, "complete": self.complete},
            "queued_job_bytes": self.queued_job_bytes,
            "ended_job_bytes": self.ended_job_bytes,
            "holdings": [holding.to_dict() for holding in self.holdings],
        }


@dataclass(slots=True)
class _Tally:
    """One kind of key while keys are counted."""

    keys: int = 0
    measured: int = 0
    groups: defaultdict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))

    def holdings(self, kind: str) -> Iterator[Holding]:
        """The groups, each with its share of all the keys."""
        scale = self.keys / self.measured if self.measured else 0.0
        for (queue, state), sizes in self.groups.items():
            keys, size = round(len(sizes) * scale), round(sum(sizes) * scale)
            yield Holding(kind, queue, state, keys, size, len(sizes))


def memory_plan(
    keys: Keys,
    specs: Mapping[str, QueueSpec],
    *,
    sample: int = SAMPLE,
    limit: int | None = None,
    progress: Callable[[int], object] = lambda _count: None,
) -> Plan[MemoryReport]:
    """What holds the memory, in steps of at most 1,000 keys counted and 100 measured.

    Args:
        sample: Keys of each kind to measure; of jobs four times as many.
        limit: Count about so many keys only.
        progress: Called with the number of further keys counted.
    Raises:
        StoreError: The server does not tell the size of a key.
    """
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    namer = _Namer(keys)
    cursor, counted = 0, 0
    while True:
        (page,) = yield Batch((("SCAN", cursor, "COUNT", _PAGE),))
        if isinstance(page, Exception):
            raise page
        cursor, wanted = int(page[0]), []
        for raw in page[1]:
            kind, queue, state = namer.of(as_text(raw))
            tally = tallies[kind]
            tally.keys += 1
            most = 4 * sample if kind == "jobs" else sample
            # What is one per queue is measured however many there are.
            if queue or tally.keys <= most:
                wanted.append((raw, kind, queue, state))
        for start in range(0, len(wanted), _MOST):
            yield from _measure(wanted[start : start + _MOST], tallies)
        counted += len(page[1])
        progress(len(page[1]))
        if cursor == 0 or (limit is not None and counted >= limit):
            break
    (info,) = yield Batch((("INFO", "memory"),))
    brake = yield from state_plan(keys, list(specs))
    return _report(tallies, {} if isinstance(info, Exception) else info, brake, complete=cursor == 0)


def _measure(wanted: Sequence[tuple[bytes, str, str, str]], tallies: Mapping[str, _Tally]) -> Plan[None]:
    commands: list[tuple[Any, ...]] = []
    for raw, kind, _, _ in wanted:
        commands.append(("MEMORY", "USAGE", raw, "SAMPLES", _ELEMENTS))
        if kind == "jobs":
            commands.append(("HMGET", raw, "origin", "status", "attempts", "park"))
    replies = iter((yield Batch(tuple(commands))))
    for _, kind, queue, state in wanted:
        place = (queue, state)
        size = next(replies)
        if isinstance(size, Exception):
            raise StoreError(f"the server does not tell the size of a key (MEMORY USAGE): {size}") from size
        if kind == "jobs":
            row = next(replies)
            if not isinstance(row, Exception):
                origin, status, attempts, park = row
                job_state = state_of(status, attempts=as_int(attempts), parked=park is not None)
                place = (as_text(origin) if origin else "", str(job_state))
        if size is not None:  # None: deleted since
            tallies[kind].measured += 1
            tallies[kind].groups[place].append(int(size))


def _report(
    tallies: Mapping[str, _Tally], info: Mapping[str, Any], brake: BrakeState, *, complete: bool
) -> MemoryReport:
    found = [holding for kind, tally in tallies.items() for holding in tally.holdings(kind)]
    ratio = info.get("mem_fragmentation_ratio")
    return MemoryReport(
        holdings=tuple(sorted(found, key=lambda holding: -holding.bytes)),
        keys=sum(tally.keys for tally in tallies.values()),
        measured=sum(tally.measured for tally in tallies.values()),
        complete=complete,
        used=as_int(info.get("used_memory")),
        peak=as_int(info.get("used_memory_peak")),
        overhead=as_int(info.get("used_memory_startup")),
        maxmemory=as_int(info.get("maxmemory")),
        fragmentation=float(ratio) if ratio else None,
        brake=brake,
    )


class _Namer:
    """Tells a key's kind by its name; for one that a queue has, queue and state, too."""

    def __init__(self, keys: Keys) -> None:
        self._job = keys.job("")
        self._of_queue: tuple[tuple[str, str, str], ...] = (
            (keys.queue(""), "lists", JobState.QUEUED),
            (keys.wip(""), "registries", JobState.RUNNING),
            (keys.finished(""), "registries", JobState.SUCCEEDED),
            (keys.failed(""), "registries", JobState.DEAD),
            (keys.canceled(""), "registries", JobState.CANCELLED),
            (keys.scheduled(""), "registries", JobState.SCHEDULED),
            (keys.retrying(""), "registries", JobState.RETRYING),
            (keys.deferred(""), "registries", JobState.DEFERRED),
            (keys.parked(""), "registries", JobState.PARKED),
        )
        n, p = keys.n, keys.p
        by_kind: dict[str, tuple[str, ...]] = {
            "results": (keys.results(""),),
            "attempts": (keys.attempts(""),),
            "logs": (keys.log(""),),
            "dedup": (keys.dedup(""),),
            "tags": (keys.tag(""),),
            "correlation": (keys.correlation(""),),
            "dependencies": (keys.dependencies("").removesuffix(":dependencies"),),
            "counters": (f"{n}n:",),
            "events": (f"{n}events",),
            "workers": (keys.live_worker(""), keys.worker(""), keys.workers, keys.orders),
            "claims": (keys.claim(""),),
            "leases": (keys.leases, keys.cancels, keys.after, keys.quarantine, keys.pulse),
            "waiters": (keys.wait(""), keys.done("")),
            "queues": (keys.queue_state(""), keys.queues, keys.suspended),
            "order": (keys.order(""), *(f"{n}{word}:" for word in ("turns", "turn", "fair"))),
            "quotas": (f"{n}quota:",),
            "limits": (
                *(keys.gate(""), keys.gates, keys.blocked(""), keys.limits, keys.rate_limits, f"{p}rl:"),
                *(f"{n}{word}:" for word in ("held", "rate", "closed")),
            ),
            "schedules": (
                keys.schedules,
                keys.due,
                keys.schedule(""),
                keys.declared(""),
                f"{p}scheduler-lock:",
            ),
        }
        self._beside = (
            *((start, kind) for kind, starts in by_kind.items() for start in starts),
            (keys.n, "others of jobq"),
            (keys.p, "others of rq"),
        )

    def of(self, name: str) -> tuple[str, str, str]:
        """Kind, queue, state; the last two empty where they do not apply."""
        if name.startswith(self._job) and ":" not in name[len(self._job) :]:
            return "jobs", "", ""
        if name.startswith(self._job) and name.endswith(":dependents"):
            return "dependencies", "", ""
        for start, kind, state in self._of_queue:
            if name.startswith(start):
                return kind, name[len(start) :].partition(":")[0], str(state)
        return next((kind for start, kind in self._beside if name.startswith(start)), NOT_OURS), "", ""
