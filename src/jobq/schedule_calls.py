"""One function per script of the schedules: what to send, and how to read the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobq.keys import Keys
from jobq.queues import KEEP_DEAD
from jobq.replies import exact_text, exact_texts
from jobq.schedule_spec import StoredSchedule
from jobq.steps import Arg, Batch, Call, script_head

MOST = 100
"""Schedules that one take answers, and slots that one fire takes."""

TAKEN_MS = 2_000
"""How long a due schedule is kept from other workers; whoever took it and died is followed by another then."""

AGAIN_MS = 60_000
"""After how long a broken schedule is looked at again."""

DECLARED_MS = 60_000
"""How long a set of declared schedules counts after a worker last declared it."""


class Taken(NamedTuple):
    """A due schedule.

    Attributes:
        error: Why its hash cannot be read; empty when it can, and then alone.
        rev: Rises with each change; a fire for another one is refused.
        slot: The first slot that has not been dealt with, as stored.
        job: Id of the job that it fired last; empty: none.
    """

    name: str
    error: str
    rev: str = ""
    slot: str = ""
    spec: bytes = b""
    data: bytes = b""
    job: str = ""


@dataclass(frozen=True, slots=True)
class Take:
    """The answer to a take: Redis' clock, when the next schedule after these is due (None: never), and these."""

    now_ms: int
    next_ms: int | None
    due: list[Taken]


def take(keys: Keys, limit: int = MOST, *, taken_ms: int = TAKEN_MS, now_ms: int | None = None) -> Call[Take]:
    """The schedules that are due, at most ``limit``, kept from other workers for ``taken_ms``."""

    def decode(reply: list[Any]) -> Take:
        now, after, *rows = reply
        due = []
        for name, (error, *values) in zip(rows[::2], rows[1::2], strict=True):
            known = Taken(exact_text(name), exact_text(error))
            if values:
                rev, slot, spec, data, job = values
                known = Taken(known.name, "", exact_text(rev), exact_text(slot), spec, data, exact_text(job))
            due.append(known)
        return Take(now, after if after >= 0 else None, due)

    args = (*script_head(keys, now_ms), min(limit, MOST), taken_ms)
    return Call("schedule_take", (keys.due, keys.schedules), args, decode)


class SlotJob(NamedTuple):
    """The job of one slot; ``fields`` is its hash without ``status`` and ``q``."""

    slot: int
    id: str
    fields: Mapping[str, bytes | str]


def fire(
    keys: Keys,
    taken: Taken,
    stored: StoredSchedule,
    jobs: Sequence[SlotJob],
    *,
    next_slot: int | None,
    missed: int,
    payload: bytes = b"",
    now_ms: int | None = None,
) -> Call[list[str]]:
    """Enqueue the jobs of slots, at most 100, and move the schedule on to ``next_slot``.

    Args:
        payload: Replaces the schedule's own; empty: it stays.
    Returns:
        ``stale`` (somebody else was first, or it was changed), or ``ok`` or ``full`` (not all fitted into the
        queue) and a word per slot dealt with: ``queued duplicate overlap mine``.
    """
    if len(jobs) > MOST:
        raise ValueError(f"at most {MOST} slots in one fire, got {len(jobs)}")
    args: list[Arg] = [
        *script_head(keys, now_ms),
        taken.name,
        taken.rev,
        taken.slot,
        "" if next_slot is None else next_slot,
        "" if next_slot is None else stored.timing.fires_at(next_slot),
        missed,
        stored.overlap,
        stored.dedup_key,
        stored.dedup_mode,
        stored.window_ms,
        payload,
        len(jobs),
    ]
    for job in jobs:
        args += (job.slot, job.id, 2 * len(job.fields))
        for item in job.fields.items():
            args += item
    queue = stored.queue
    names = (
        keys.schedule(taken.name), keys.due, keys.schedules, keys.queue(queue), keys.queue_state(queue), keys.queues,
    )  # fmt: skip
    return Call("schedule_fire", names, tuple(args), exact_texts)


def set_aside(keys: Keys, name: str, reason: str, *, now_ms: int | None = None) -> Call[bool]:
    """Set a schedule aside that cannot be fired, until it is looked at again; True when it was in order before."""
    args = (*script_head(keys, now_ms), name, reason, AGAIN_MS)
    return Call("schedule_break", (keys.schedules, keys.due), args, bool)


def put(
    keys: Keys,
    stored: StoredSchedule,
    data: bytes,
    digest: str,
    *,
    next_slot: int | None,
    source: str = "",
    fingerprint: str = "",
    replace: bool = False,
    now_ms: int | None = None,
) -> Call[str]:
    """Write a schedule: ``added changed same``, or why not: ``exists declared theirs older``.

    Args:
        digest: Of all there is to it.
        source: The application whose code declares it; empty: added at run time.
        fingerprint: Of the set that the caller declares.
    """
    spec, times = stored.encode(), stored.times()
    args = (
        *script_head(keys, now_ms),
        stored.name,
        source,
        fingerprint,
        "1" if replace else "0",
        digest,
        times,
        spec,
        data,
        "" if next_slot is None else next_slot,
        "" if next_slot is None else stored.timing.fires_at(next_slot),
    )
    names = (keys.schedule(stored.name), keys.due, keys.schedules, keys.declared(source))
    return Call("schedule_put", names, args, exact_text)


def remove(
    keys: Keys, name: str, *, source: str = "", fingerprint: str = "", now_ms: int | None = None
) -> Call[str]:
    """Delete a schedule: ``removed``, or why not: ``gone declared theirs older``."""
    names = (keys.schedule(name), keys.due, keys.schedules, keys.declared(source))
    return Call("schedule_remove", names, (*script_head(keys, now_ms), name, source, fingerprint), exact_text)


def pause(keys: Keys, name: str, by: str, *, now_ms: int | None = None) -> Call[str]:
    """Fire no more slots: ``paused gone``."""
    return Call(
        "schedule_pause", (keys.schedule(name), keys.due), (*script_head(keys, now_ms), name, by), exact_text
    )


def resume(
    keys: Keys, name: str, rev: str, next_slot: int | None, look_at: int | None, *, now_ms: int | None = None
) -> Call[str]:
    """End a pause: ``resumed running gone``, or ``changed`` when ``rev`` is not its revision."""
    args = (*script_head(keys, now_ms), name, rev, *("" if ms is None else ms for ms in (next_slot, look_at)))
    return Call("schedule_resume", (keys.schedule(name), keys.due), args, exact_text)


def is_declared(keys: Keys, source: str, fingerprint: str) -> Batch[bool]:
    """Whether a live worker declares this set, as far as Redis has not lost that."""
    return Batch((("HGET", keys.declared(source), fingerprint),), lambda replies: replies[0] is not None)


def declare(keys: Keys, source: str, fingerprint: str, *, now_ms: int | None = None) -> Call[bool]:
    """Say that a live worker declares this set; whether it is the one that counts."""
    args = (*script_head(keys, now_ms), fingerprint, DECLARED_MS)
    return Call("schedule_declare", (keys.declared(source),), args, lambda reply: reply == b"current")


def move(keys: Keys, name: str, slot: int, *, now_ms: int | None = None) -> Call[bool]:
    """Let the next slot be another moment, without jitter; False for one that is gone, paused or ended."""
    args = (*script_head(keys, now_ms), name, slot)
    names = (keys.schedule(name), keys.due)
    return Call("schedule_move", names, args, lambda reply: reply == b"moved")


def reschedule(keys: Keys, job_id: str, queue: str, due_ms: int, *, now_ms: int | None = None) -> Call[bool]:
    """Let a scheduled job become due at another time; False when it is not scheduled any more."""
    args = (*script_head(keys, now_ms), job_id, due_ms)
    return Call(
        "reschedule", (keys.job(job_id), keys.scheduled(queue)), args, lambda reply: reply == b"moved"
    )


# --------------------------------------------------------------------------- what rq-scheduler left

RQ_SCHEDULED = "rq:scheduler:scheduled_jobs"
"""rq-scheduler's sorted set: job ids, scored with the second they are due; it knows no other prefix."""


def adopt_schedule(
    keys: Keys, rq_id: str, score: float, stored: StoredSchedule, data: bytes, digest: str, slot: int
) -> Call[str]:
    """A periodic job of rq-scheduler becomes a schedule: ``adopted changed exists``."""
    args = (
        *script_head(keys, None), rq_id, score, stored.name, digest, stored.times(), stored.encode(), data, slot,
        stored.timing.fires_at(slot), KEEP_DEAD.age_s,
    )  # fmt: skip
    names = (RQ_SCHEDULED, keys.schedule(stored.name), keys.due, keys.schedules, keys.job(rq_id))
    return Call("schedule_adopt", names, args, exact_text)


def adopt_job(
    keys: Keys, rq_id: str, score: float, job_id: str, queue: str, fields: Mapping[str, bytes | str]
) -> Call[str]:
    """A single job of rq-scheduler becomes a scheduled job: ``adopted changed``."""
    args: list[Arg] = [*script_head(keys, None), rq_id, score, job_id, 2 * len(fields)]
    for item in fields.items():
        args += item
    names = (RQ_SCHEDULED, keys.job(job_id), keys.scheduled(queue), keys.queues, keys.queue(queue))
    return Call("adopt", names, tuple(args), exact_text)
