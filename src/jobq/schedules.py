"""Recurring schedules as they stand, and what a client can do with them, as plans for either kind of store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal

from jobq import calls, events, schedule_calls, tags
from jobq.codec import Codec
from jobq.cron import moment, zone
from jobq.enqueueing import Enqueuer, full_text
from jobq.errors import ConfigError, ConflictError, JobNotFoundError, QueueFullError
from jobq.job import Job, JobOwner, new_job_id
from jobq.job_reading import job_plan
from jobq.keys import Keys
from jobq.recurrence import Overlap, Timing
from jobq.replies import as_int, as_text, clean_text
from jobq.schedule_firing import job_fields
from jobq.schedule_records import bound_id, names_plan, put_plan, record_of, rows_plan
from jobq.schedule_spec import Schedule, StoredSchedule
from jobq.steps import Batch, EnqueueAnswer, NewJob, Plan
from jobq.units import clock_ms, redis_ms

ScheduleState = Literal["active", "paused", "ended", "broken"]

_FIELDS = ("rev", "spec", "next", "last", "job", "fired", "missed", "skipped", "source", "paused", "by")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleInfo:
    """One schedule as it stands.

    Attributes:
        state: ``active``; ``paused``; ``ended``: no slot is left; ``broken``: it cannot be fired, ``reason`` says
            why, and it is looked at again every minute.
        times: When it fires, in words.
        timing: None when it cannot be read.
        next_at: Its next slot; it is fired later than that by its jitter. ``last_at``: the slot dealt with last.
        job_id: The job that it fired last.
        fired: Slots that became jobs. ``missed``: dropped because nobody fired them in time. ``skipped``: dropped
            because of the job before, or of an equal one.
        declared_by: The application whose code declares it; empty: added at run time.
    """

    name: str
    state: ScheduleState
    task: str = ""
    queue: str = ""
    times: str = ""
    timing: Timing | None = None
    overlap: Overlap = "allow"
    tags: tuple[str, ...] = ()
    next_at: datetime | None = None
    last_at: datetime | None = None
    job_id: str | None = None
    fired: int = 0
    missed: int = 0
    skipped: int = 0
    declared_by: str = ""
    paused_at: datetime | None = None
    paused_by: str | None = None
    reason: str | None = None


def _at(value: Any) -> datetime | None:
    ms = as_int(value) if isinstance(value, bytes | str) else 0
    try:
        return moment(ms) if ms else None
    except OverflowError:
        return None


def _info(name: str, reason: Any, row: Any) -> ScheduleInfo:
    why = clean_text(reason) if isinstance(reason, bytes | str) else ""
    if isinstance(row, Exception):
        return ScheduleInfo(name=name, state="broken", reason=why or str(row))
    _rev, spec, upcoming, last, job, fired, missed, skipped, source, paused, by = row
    stored: StoredSchedule | None = None
    try:
        stored = StoredSchedule.decode(name, spec or b"")
    except ConfigError as error:
        why = why or str(error)
    why = why or (stored.error if stored else "")
    state: ScheduleState = "active" if upcoming else "ended"
    if paused:
        state = "paused"
    if why:
        state = "broken"
    return ScheduleInfo(
        name=name,
        state=state,
        task=stored.task if stored else "",
        queue=stored.queue if stored else "",
        times=stored.timing.words() if stored else "",
        timing=stored.timing if stored else None,
        overlap=stored.overlap if stored else "allow",
        tags=stored.tags if stored else (),
        next_at=None if paused else _at(upcoming),
        last_at=_at(last),
        job_id=clean_text(job) or None,
        fired=as_int(fired or 0),
        missed=as_int(missed or 0),
        skipped=as_int(skipped or 0),
        declared_by=clean_text(source),
        paused_at=_at(paused),
        paused_by=clean_text(by) or None,
        reason=why or None,
    )


@dataclass(frozen=True, slots=True)
class SchedulePlans:
    """What a client can do with schedules."""

    keys: Keys
    codec: Codec
    enqueuer: Enqueuer
    owner: JobOwner | None

    def all(self) -> Plan[list[ScheduleInfo]]:
        """Every schedule, by name."""
        reasons = yield from names_plan(self.keys)
        names = sorted(reasons)
        rows = yield from rows_plan(self.keys, names, _FIELDS)
        return [_info(name, reasons[name], row) for name, row in zip(names, rows, strict=True)]

    def get(self, name: str) -> Plan[ScheduleInfo]:
        reason, row = yield Batch(
            (("HGET", self.keys.schedules, name), ("HMGET", self.keys.schedule(name), *_FIELDS))
        )
        if reason is None and not isinstance(row, Exception) and row[0] is None:
            raise _missing(name)
        return _info(name, reason, row)

    def has(self, name: str) -> Plan[bool]:
        """Whether there is one of this name."""
        (found,) = yield Batch((("HEXISTS", self.keys.schedules, name),))
        return bool(found == 1)

    def upcoming(self, name: str, count: int) -> Plan[list[datetime]]:
        """The next slots, in the schedule's own time zone."""
        info = yield from self.get(name)
        if info.timing is None:
            raise ConflictError(f"schedule {name!r} is broken: {info.reason}")
        (clock,) = yield Batch((("TIME",),))
        where = zone(info.timing.tz)
        after = redis_ms(clock)
        first = info.next_at
        if first is not None and first > moment(after):
            after = int(first.timestamp() * 1000) - 1
        return [moment(slot).astimezone(where) for slot in islice(info.timing.slots(after), count)]

    def add(self, schedule: Schedule, *, replace: bool) -> Plan[ScheduleInfo]:
        record = record_of(schedule, self.enqueuer, self.codec)
        name = schedule.name
        word = yield from put_plan(self.keys, record, replace=replace, must_fire=True)
        if word == "exists":
            raise ConflictError(f"schedule {name!r} is there already: replace it, or choose another name")
        if word == "declared":
            raise ConflictError(
                f"schedule {name!r} is declared in code: change it there, or choose another name"
            )
        if word != "same":
            events.emit(f"schedule.{word}", schedule=name, task=record.stored.task)
        return (yield from self.get(name))

    def remove(self, name: str) -> Plan[None]:
        word: str = yield schedule_calls.remove(self.keys, name)
        if word == "gone":
            raise _missing(name)
        if word == "declared":
            raise ConflictError(
                f"schedule {name!r} is declared in code that a worker runs: pause it, or remove it from the code"
            )
        events.emit("schedule.removed", schedule=name)

    def pause(self, name: str, by: str) -> Plan[ScheduleInfo]:
        if (yield schedule_calls.pause(self.keys, name, by)) == "gone":
            raise _missing(name)
        events.emit("schedule.paused", schedule=name)
        return (yield from self.get(name))

    def resume(self, name: str) -> Plan[ScheduleInfo]:
        """End a pause; what was due meanwhile is not caught up."""
        while True:
            clock, (rev, spec, last) = yield Batch(
                (("TIME",), ("HMGET", self.keys.schedule(name), "rev", "spec", "last")), _readable(name)
            )
            stored = _decoded(name, spec)
            slot = stored.timing.after(max(redis_ms(clock), as_int(last or 0)))
            look_at = None if slot is None else stored.timing.fires_at(slot)
            word = yield schedule_calls.resume(self.keys, name, as_text(rev), slot, look_at)
            if word != "changed":
                break
        if word == "gone":
            raise _missing(name)
        if word == "resumed":
            events.emit("schedule.resumed", schedule=name)
        return (yield from self.get(name))

    def run(self, name: str) -> Plan[Job]:
        """Enqueue the schedule's job here and now, whatever its times, its pause and the job before."""
        ((_rev, spec, data),) = yield Batch(
            (("HMGET", self.keys.schedule(name), "rev", "spec", "data"),), _readable(name)
        )
        stored = _decoded(name, spec)
        job_id = new_job_id(stored.task)
        payload = self.codec.rebind(data or b"", job_id=bound_id(name), to=job_id)
        new = NewJob(
            id=job_id,
            fields=job_fields(stored, payload, None, None),
            dedup_key=stored.dedup_key,
            dedup_mode=stored.dedup_mode,
            window_ms=stored.window_ms,
        )
        found_by = tags.names(self.keys, stored.tags, stored.correlation_id)
        if found_by:
            now_ms = clock_ms()
            yield tags.index([(job_id, found_by)], now_ms, now_ms)
        answer: EnqueueAnswer = (yield calls.enqueue(self.keys, stored.queue, [new], True))[0]
        if answer.status in ("full", "shed"):
            short = f"queue {stored.queue!r} takes no more jobs while memory is short: see jobq memory"
            text = full_text(stored.queue) if answer.status == "full" else short
            raise QueueFullError(text, queue=stored.queue)
        if answer.status == "duplicate":
            raise ConflictError(f"job {answer.id} holds the dedup key of schedule {name!r}", job_id=answer.id)
        events.emit("job.enqueued", job_id=job_id, task=stored.task, queue=stored.queue, schedule=name)
        return (yield from job_plan(self.keys, job_id, self.owner))


def _missing(name: str) -> JobNotFoundError:
    return JobNotFoundError(f"no schedule {name!r}; jobq schedules list shows all")


def _decoded(name: str, spec: bytes | None) -> StoredSchedule:
    try:
        stored = StoredSchedule.decode(name, spec or b"")
    except ConfigError as error:
        raise ConflictError(f"schedule {name!r} is broken: {error}") from None
    if stored.error:
        raise ConflictError(f"schedule {name!r} is broken: {stored.error}")
    return stored


def _readable(name: str) -> Any:
    """Checks that the last reply is a schedule's row, whose first field is ``rev``."""

    def decode(replies: list[Any]) -> list[Any]:
        row = replies[-1]
        if isinstance(row, Exception):
            raise ConflictError(f"schedule {name!r} is broken: {row}")
        if row[0] is None:
            raise _missing(name)
        return replies

    return decode
