"""Firing schedules: from a due schedule to the jobs of its slots.

Whoever fires a slot signs the params again, for the slot's job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobq import calls, schedule_calls, tags
from jobq.codec import Codec
from jobq.errors import ConfigError
from jobq.job import slot_job_id
from jobq.keys import Keys
from jobq.records import encode_extra
from jobq.rq_bridge import iso
from jobq.schedule_calls import MOST, SlotJob, Taken
from jobq.schedule_records import bound_id
from jobq.schedule_spec import StoredSchedule
from jobq.steps import Plan

_DIGITS = 15  # of a moment before the year 33,658, in ms


@dataclass(frozen=True, slots=True)
class Fired:
    """What became of a due schedule.

    Attributes:
        slots: (slot, job id, word) of each slot dealt with: ``queued overlap duplicate mine``.
        full: The queue had no room for the rest; they stay due.
    """

    stored: StoredSchedule
    slots: Sequence[tuple[int, str, str]] = ()
    missed: int = 0
    full: bool = False


def fire_plan(
    keys: Keys, codec: Codec, taken: Taken, stored: StoredSchedule, now_ms: int
) -> Plan[Fired | None]:
    """Deal with the due slots of one schedule, at most 100; None when another worker was first.

    Args:
        now_ms: Redis' clock.
    Raises:
        ConfigError: What is stored makes no sense.
        CodecError: Its payload cannot be used here.
    """
    if stored.error:
        raise ConfigError(stored.error)
    if not taken.slot.isdecimal() or len(taken.slot) > _DIGITS:
        raise ConfigError("its next slot is no moment")
    due = stored.timing.due(int(taken.slot), now_ms)
    slots, missed, after = due.slots, due.missed, due.next
    if stored.overlap == "cancel_previous" and slots:
        slots, missed = slots[-1:], missed + len(slots) - 1
    if len(slots) > MOST:
        slots, after = slots[:MOST], slots[MOST]
    bound = bound_id(taken.name)
    jobs = []
    for slot in slots:
        job_id = slot_job_id(taken.name, slot)
        data = codec.rebind(taken.data, job_id=bound, to=job_id)
        jobs.append(SlotJob(slot, job_id, job_fields(stored, data, slot, now_ms)))
    # A key that is about to go must not take the schedule with it.
    payload = b"" if codec.current(taken.data) else codec.rebind(taken.data, job_id=bound, to=bound)
    found_by = tags.names(keys, stored.tags, stored.correlation_id)
    if found_by and jobs:
        yield tags.index([(job.id, found_by) for job in jobs], now_ms, now_ms)
    word, *words = yield schedule_calls.fire(
        keys, taken, stored, jobs, next_slot=after, missed=missed, payload=payload
    )
    if word == "stale":
        return None
    if stored.overlap == "cancel_previous" and taken.job and "queued" in words:
        # Only now: were the queue full, neither of the two would be left.
        yield calls.cancel(keys, taken.job)
    dealt = [(job.slot, job.id, word) for job, word in zip(jobs, words, strict=False)]
    return Fired(stored, dealt, missed, word == "full")


def job_fields(
    stored: StoredSchedule, data: bytes, slot: int | None, now_ms: int | None
) -> dict[str, bytes | str]:
    """The hash of a schedule's job; without a slot, of one that somebody asked for."""
    now = iso(now_ms)
    extra: dict[str, str] = {} if slot is None else {"slot": iso(slot)}
    return {
        **stored.fields,
        "data": data,
        "created_at": now,
        "enqueued_at": now,
        "jk": encode_extra(
            tags=stored.tags, correlation_id=stored.correlation_id, schedule=stored.name, **extra
        ),
    }
