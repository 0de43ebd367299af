"""Workers and queues as they stand: who is alive, what is paused, as plans for either kind of store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jobq.keys import Keys
from jobq.limits import QueueLimits
from jobq.queues import QueueSpec
from jobq.replies import as_int, as_map, as_text
from jobq.rq_bridge import parse_iso
from jobq.steps import Batch, Plan
from jobq.units import moment, redis_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One live executor, or one plain rq worker.

    Attributes:
        kind: ``jobq`` or ``rq``.
        slots: Jobs that it runs at once; a plain rq worker has one.
        tasks: Names of the tasks that it knows; empty for a plain rq worker.
        state: ``idle``, ``busy``, ``draining``, ``quiet`` …
        worker: The worker that it belongs to, whose name orders take; None for a plain rq worker.
        signs: It has a key, and so rejects jobs that are not signed.
        parts: If its queues share the slots: of each queue those that it may use, and those that it does.
    """

    name: str
    kind: str
    queues: tuple[str, ...]
    slots: int
    busy: int
    state: str
    tasks: tuple[str, ...] = ()
    worker: str | None = None
    host: str | None = None
    pid: int | None = None
    version: str | None = None
    started_at: datetime | None = None
    last_heartbeat: datetime | None = None
    signs: bool = False
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def slots_of(self, queue: str) -> int:
        """The slots that one of its queues may use."""
        return self.parts[queue][0] if queue in self.parts else self.slots

    def busy_of(self, queue: str) -> int:
        """The slots that one of its queues uses."""
        return self.parts[queue][1] if queue in self.parts else self.busy

    def has_room_for(self, queue: str) -> bool:
        """Whether it could start a job of one of its queues."""
        return self.busy < self.slots and self.busy_of(queue) < self.slots_of(queue)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """One queue: its spec, if it has one here, and how it stands.

    Attributes:
        paused_until: When the pause ends by itself; None: by ``resume`` only.
        shed: The queue refuses new jobs because memory is short; see :mod:`jobq.brake`.
        limits: What the queue is limited to, over all workers.
        limits_set: An operator has set them, in place of what the settings say; ``limits_until``: until then.
        backed_off_until: A job raised ``RateLimited``, and none starts before; ``backed_off_by``: that job's id.
    """

    name: str
    spec: QueueSpec | None
    queued: int
    paused: bool
    paused_until: datetime | None = None
    paused_by: str | None = None
    paused_reason: str | None = None
    shed: bool = False
    limits: QueueLimits = field(default_factory=QueueLimits)
    limits_set: bool = False
    limits_until: datetime | None = None
    backed_off_until: datetime | None = None
    backed_off_by: str | None = None

    @property
    def limits_in_words(self) -> str:
        """What its jobs are limited to, such as ``50/m and 8 at once``; empty: to nothing."""
        rate, slots = self.limits.rate, self.limits.concurrency
        return " and ".join([*([str(rate)] if rate else []), *([f"{slots} at once"] if slots else [])])

    @property
    def held_in_words(self) -> str:
        """What was set at run time to hold its jobs back; empty: nothing."""
        if self.backed_off_until:
            until = self.backed_off_until.isoformat(timespec="seconds").replace("+00:00", "Z")
            return f"told to slow down by job {self.backed_off_by or '?'} until {until}"
        if self.limits_set and self.limits_in_words:
            return f"limited by hand to {self.limits_in_words}"
        return ""


def worker_commands(keys: Keys, name: str) -> tuple[tuple[Any, ...], ...]:
    """The two commands that :func:`worker_of` needs the replies of."""
    return (
        ("HGETALL", keys.live_worker(name)),
        (
            "HMGET",
            keys.worker(name),
            "queues",
            "state",
            "hostname",
            "pid",
            "version",
            "birth",
            "last_heartbeat",
        ),
    )


def worker_names(keys: Keys, reply: Any) -> list[str]:
    """Names from a ``SMEMBERS`` of the set of workers."""
    if isinstance(reply, Exception) or not reply:
        return []
    start = keys.worker("")
    return sorted(as_text(member).removeprefix(start) for member in reply)


def worker_of(name: str, ours: Any, theirs: Any) -> Worker | None:
    """The worker of two replies; None when its keys have expired: it is gone."""
    live = as_map(ours)
    fields = [None] * 7 if isinstance(theirs, Exception) or not theirs else list(theirs)
    queues, state, host, pid, version, birth, beat = (
        None if value is None else as_text(value) for value in fields
    )
    if live:
        served = _names(live.get("queues"))
        return Worker(
            name=name,
            kind="jobq",
            queues=served,
            slots=as_int(live.get("slots")),
            busy=as_int(live.get("busy")),
            state=live.get("state", "?"),
            tasks=_names(live.get("tasks")),
            worker=live.get("worker") or name,
            host=live.get("host") or host,
            pid=as_int(live.get("pid")) or None,
            version=live.get("version"),
            started_at=parse_iso(birth),
            last_heartbeat=parse_iso(beat),
            signs=live.get("signs") == "1",
            parts=_parts(served, _names(live.get("parts"))),
        )
    if queues is None and state is None:
        return None
    return Worker(
        name=name,
        kind="rq",
        queues=_names(queues),
        slots=1,
        busy=1 if state == "busy" else 0,
        state=state or "?",
        host=host,
        pid=as_int(pid) or None,
        version=version,
        started_at=parse_iso(birth),
        last_heartbeat=parse_iso(beat),
    )


def _names(value: str | None) -> tuple[str, ...]:
    return tuple(name for name in (value or "").split(",") if name)


def _parts(queues: Sequence[str], texts: Sequence[str]) -> dict[str, tuple[int, int]]:
    if len(texts) != len(queues):
        return {}
    halves = (text.partition("/") for text in texts)
    return {
        queue: (as_int(most), as_int(used)) for queue, (most, _, used) in zip(queues, halves, strict=True)
    }


def workers_plan(keys: Keys) -> Plan[list[Worker]]:
    """All live workers, by name."""
    names = worker_names(keys, (yield Batch((("SMEMBERS", keys.workers),)))[0])
    if not names:
        return []
    replies = yield Batch(tuple(command for name in names for command in worker_commands(keys, name)))
    found = map(worker_of, names, replies[::2], replies[1::2])
    return [worker for worker in found if worker is not None]


def queue_names(keys: Keys, configured: Iterable[str], reply: Any) -> tuple[str, ...]:
    """The configured queues in order, then those that only a ``SMEMBERS`` of rq's set of queues has, by name."""
    start = keys.queue("")
    found = [] if isinstance(reply, Exception) else [as_text(member) for member in reply]
    known = dict.fromkeys(configured)
    more = sorted({name.removeprefix(start) for name in found if name.startswith(start)} - set(known))
    return (*known, *more)


def queue_names_plan(keys: Keys, configured: Iterable[str]) -> Plan[tuple[str, ...]]:
    """The queues with a spec, in its order, then those that only Redis knows, by name."""
    return queue_names(keys, configured, (yield Batch((("SMEMBERS", keys.queues),)))[0])


def queues_plan(keys: Keys, specs: Mapping[str, QueueSpec], only: str | None = None) -> Plan[list[QueueInfo]]:
    """All queues, those with a spec first; or one of them."""
    names: Sequence[str] = (only,) if only else (yield from queue_names_plan(keys, specs))
    clock, *replies = yield Batch(
        (
            ("TIME",),
            *(
                command
                for name in names
                for command in (("LLEN", keys.queue(name)), ("HGETALL", keys.queue_state(name)))
            ),
        )
    )
    return [
        queue_info(name, specs.get(name), as_int(length), as_map(state), redis_ms(clock))
        for name, length, state in zip(names, replies[::2], replies[1::2], strict=True)
    ]


def queue_info(
    name: str, spec: QueueSpec | None, queued: int, state: Mapping[str, str], now_ms: int
) -> QueueInfo:
    """What the hash ``jobq:q:<q>`` says of a queue."""
    until = as_int(state.get("until"))
    paused = state.get("paused") == "1" and (until == 0 or until > now_ms)
    limits_until, was_set, text = state.get("limit_set", "").partition("|")
    limits_end = as_int(limits_until)
    limits_set = bool(was_set) and (limits_end == 0 or limits_end > now_ms)
    closed = as_int(state.get("closed"))
    backed_off = closed > now_ms
    return QueueInfo(
        name=name,
        spec=spec,
        queued=queued,
        paused=paused,
        paused_until=moment(until) if paused and until else None,
        paused_by=(state.get("by") or None) if paused else None,
        paused_reason=(state.get("reason") or None) if paused else None,
        shed=as_int(state.get("shed")) > now_ms,
        limits=QueueLimits.of_gates(
            text if limits_set else state.get("limit", ""),
            state.get("max_set", "").partition("|")[2] if limits_set else state.get("max", ""),
        ),
        limits_set=limits_set,
        limits_until=moment(limits_end) if limits_set and limits_end else None,
        backed_off_until=moment(closed) if backed_off else None,
        backed_off_by=(state.get("closed_by") or None) if backed_off else None,
    )
