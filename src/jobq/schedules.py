"""Recurring schedules in Redis: writing them, reading them, firing them, as plans for either kind of store.

A schedule keeps all that any worker needs to enqueue its next job, the params signed for the schedule and its
secrets encrypted; whoever fires a slot signs them again, for the slot's job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal

from jobq import calls, events, schedule_calls
from jobq.codec import Codec
from jobq.config import Settings
from jobq.enqueueing import Enqueuer
from jobq.errors import ConfigError, ConflictError, JobNotFoundError, QueueFullError
from jobq.job import Job, JobOwner, new_job_id, slot_job_id
from jobq.keys import Keys
from jobq.records import encode_extra
from jobq.recurrence import Overlap, Timing, moment, zone
from jobq.replies import as_int, as_text, clean_text
from jobq.rq_bridge import iso
from jobq.schedule_calls import MOST, SlotJob, Taken
from jobq.schedule_spec import Schedule, StoredSchedule
from jobq.steps import Batch, EnqueueAnswer, NewJob, Plan
from jobq.views import job_plan

ScheduleState = Literal["active", "paused", "ended", "broken"]

_PAGE = 500
_DIGITS = 15  # of a moment before the year 33,658, in ms
_CHANGING = ("data", "created_at", "enqueued_at", "jk")


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


# --------------------------------------------------------------------------- what is written


@dataclass(frozen=True, slots=True)
class Record:
    """A schedule as it is written.

    Attributes:
        data: The payload, signed for the schedule.
        digest: Equal for equal schedules, whatever their encryption drew at random.
    """

    stored: StoredSchedule
    data: bytes
    digest: str

    def to_dict(self) -> dict[str, str]:
        """As JSON values."""
        stored = self.stored
        return {
            "name": stored.name, "spec": stored.encode().decode(), "data": self.data.decode(), "digest": self.digest,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, kept: Mapping[str, str]) -> Record:
        """The record that :meth:`to_dict` wrote."""
        return cls(StoredSchedule.decode(kept["name"], kept["spec"]), kept["data"].encode(), kept["digest"])


def bound_id(name: str) -> str:
    """What a schedule's payload is signed for. With a colon it is never a job's id."""
    return f"schedule:{name}"


def record_of(schedule: Schedule, enqueuer: Enqueuer, codec: Codec) -> Record:
    """The record of a checked schedule.

    Raises:
        PayloadError, PayloadTooLargeError: The params cannot be written.
    """
    request = schedule.request
    bound = bound_id(schedule.name)
    new = enqueuer.template(request, bound)
    stored = StoredSchedule(
        name=schedule.name,
        task=request.task.name,
        queue=request.queue,
        timing=schedule.timing,
        overlap=schedule.overlap,
        fields={key: clean_text(value) for key, value in new.fields.items() if key not in _CHANGING},
        dedup_key=new.dedup_key,
        dedup_mode=new.dedup_mode,
        window_ms=new.window_ms,
        tags=request.overrides.tags,
    )
    # The key's signature makes guessing a secret from its digest as hard as guessing the key.
    plain = codec.encode(
        task=request.task.name, version=request.task.version, params=request.params, job_id=bound
    )
    digest = hashlib.sha256(stored.encode() + b"\0" + plain).hexdigest()
    return Record(stored, bytes(_bytes(new.fields["data"])), digest)


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def records_of(schedules: Iterable[Schedule], settings: Settings) -> list[Record]:
    """The records of schedules that code declares.

    Raises:
        PayloadError, PayloadTooLargeError: The params of one cannot be written.
    """
    codec = settings.codec()
    enqueuer = Enqueuer(keys=Keys(settings.key_prefix), codec=codec, settings=settings, owner=None)
    return [record_of(schedule, enqueuer, codec) for schedule in schedules]


def fingerprint_of(records: Iterable[Record]) -> str:
    """Equal for equal sets of schedules."""
    pairs = sorted((record.stored.name, record.digest) for record in records)
    return hashlib.sha256(repr(pairs).encode()).hexdigest()[:32]


# --------------------------------------------------------------------------- firing


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
    if not taken.slot.isdecimal() or len(taken.slot) > _DIGITS:
        raise ConfigError("its next slot is no moment")
    due = stored.timing.due(int(taken.slot), now_ms)
    slots, missed, after = due.slots, due.missed, due.next
    if stored.overlap == "cancel_previous" and slots:
        slots, missed = slots[-1:], missed + len(slots) - 1
        if taken.job:
            yield calls.cancel(keys, taken.job)
    if len(slots) > MOST:
        slots, after = slots[:MOST], slots[MOST]
    bound = bound_id(taken.name)
    jobs = []
    for slot in slots:
        job_id = slot_job_id(taken.name, slot)
        data = codec.rebind(taken.data, job_id=bound, to=job_id)
        jobs.append(SlotJob(slot, job_id, _job_fields(stored, data, slot, now_ms)))
    # A key that is about to go must not take the schedule with it.
    payload = b"" if codec.current(taken.data) else codec.rebind(taken.data, job_id=bound, to=bound)
    word, *words = yield schedule_calls.fire(
        keys, taken, stored, jobs, next_slot=after, missed=missed, payload=payload
    )
    if word == "stale":
        return None
    dealt = [(job.slot, job.id, word) for job, word in zip(jobs, words, strict=False)]
    return Fired(stored, dealt, missed, word == "full")


def _job_fields(
    stored: StoredSchedule, data: bytes, slot: int | None, now_ms: int | None
) -> dict[str, bytes | str]:
    now = iso(now_ms)
    extra: dict[str, str] = {} if slot is None else {"slot": iso(slot)}
    return {
        **stored.fields,
        "data": data,
        "created_at": now,
        "enqueued_at": now,
        "jk": encode_extra(tags=stored.tags, schedule=stored.name, **extra),
    }


# --------------------------------------------------------------------------- reading

_FIELDS = ("rev", "spec", "next", "last", "job", "fired", "missed", "skipped", "source", "paused", "by")


def clock_of(reply: Any) -> int:
    """The ms of a ``TIME`` reply."""
    seconds, micros = reply
    return int(seconds) * 1000 + int(micros) // 1000


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


def names_plan(keys: Keys) -> Plan[dict[str, bytes]]:
    """Every schedule's name, and why it is broken; empty: it is in order."""
    found: dict[str, bytes] = {}
    cursor: Any = 0
    while True:
        (reply,) = yield Batch((("HSCAN", keys.schedules, cursor, "COUNT", _PAGE),))
        if isinstance(reply, Exception):
            raise ConfigError(f"the key {keys.schedules} is not ours: {reply}")
        cursor, rows = reply
        found.update((as_text(name), reason) for name, reason in rows.items())
        if int(cursor) == 0:
            return found


def rows_plan(keys: Keys, names: Sequence[str], fields: Sequence[str]) -> Plan[list[Any]]:
    """These fields of many schedules; an exception in place of those that cannot be read."""
    rows: list[Any] = []
    for start in range(0, len(names), _PAGE):
        page = names[start : start + _PAGE]
        rows += yield Batch(tuple(("HMGET", keys.schedule(name), *fields) for name in page))
    return rows


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

    def upcoming(self, name: str, count: int) -> Plan[list[datetime]]:
        """The next slots, in the schedule's own time zone."""
        info = yield from self.get(name)
        if info.timing is None:
            raise ConflictError(f"schedule {name!r} is broken: {info.reason}")
        (clock,) = yield Batch((("TIME",),))
        where = zone(info.timing.tz)
        after = clock_of(clock)
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
            stored = StoredSchedule.decode(name, spec or b"")
            slot = stored.timing.after(max(clock_of(clock), as_int(last or 0)))
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
        stored = StoredSchedule.decode(name, spec or b"")
        job_id = new_job_id(stored.task)
        payload = self.codec.rebind(data or b"", job_id=bound_id(name), to=job_id)
        new = NewJob(
            id=job_id,
            fields=_job_fields(stored, payload, None, None),
            dedup_key=stored.dedup_key,
            dedup_mode=stored.dedup_mode,
            window_ms=stored.window_ms,
        )
        answer: EnqueueAnswer = (yield calls.enqueue(self.keys, stored.queue, [new], True))[0]
        if answer.status in ("full", "shed"):
            raise QueueFullError(f"queue {stored.queue!r} takes no more jobs for now", queue=stored.queue)
        if answer.status == "duplicate":
            raise ConflictError(f"job {answer.id} holds the dedup key of schedule {name!r}", job_id=answer.id)
        events.emit("job.enqueued", job_id=job_id, task=stored.task, queue=stored.queue, schedule=name)
        return (yield from job_plan(self.keys, job_id, self.owner))


def _missing(name: str) -> JobNotFoundError:
    return JobNotFoundError(f"no schedule {name!r}; jobq schedules list shows all")


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


# --------------------------------------------------------------------------- writing


def put_plan(
    keys: Keys,
    record: Record,
    *,
    source: str = "",
    fingerprint: str = "",
    replace: bool = False,
    must_fire: bool = False,
) -> Plan[str]:
    """Write one schedule, from its first slot after now; the word of ``schedule_calls.put``.

    Args:
        must_fire: Refuse one without a slot to come.
    Raises:
        ConfigError: It has none.
    """
    stored = record.stored
    clock, last = yield Batch((("TIME",), ("HGET", keys.schedule(stored.name), "last")))
    # Also after the last slot dealt with: the clock may have gone back since.
    after = max(clock_of(clock), as_int(last) if isinstance(last, bytes | str) else 0)
    slot = stored.timing.after(after)
    if slot is None and must_fire:
        raise ConfigError(f"schedule {stored.name!r} would never fire: its end has passed")
    word: str = yield schedule_calls.put(
        keys, stored, record.data, record.digest, next_slot=slot, source=source, fingerprint=fingerprint,
        replace=replace,
    )  # fmt: skip
    return word


def sync_plan(keys: Keys, source: str, records: Sequence[Record]) -> Plan[dict[str, str]]:
    """Bring the schedules of one application in line with what its code declares.

    Writes what differs and removes what is declared no longer; leaves alone what was added at run time and what
    another application declares. Stops as soon as another set of this application counts.

    Returns:
        What was done, by name: ``added changed removed``, and ``theirs`` for a name that is taken.
    """
    fingerprint = fingerprint_of(records)
    names = sorted((yield from names_plan(keys)))
    rows = yield from rows_plan(keys, names, ("digest", "source"))
    there = {
        name: (as_text(row[0]), as_text(row[1]))
        for name, row in zip(names, rows, strict=True)
        if not isinstance(row, Exception)
    }
    done: dict[str, str] = {}
    wanted = {record.stored.name: record for record in records}
    for name, record in wanted.items():
        if there.get(name) != (record.digest, source):
            word = yield from put_plan(keys, record, source=source, fingerprint=fingerprint, replace=True)
            if word == "older":
                return done
            if word != "same":
                done[name] = word
    for name, (_, owner) in there.items():
        if owner == source and name not in wanted:
            word = yield schedule_calls.remove(keys, name, source=source, fingerprint=fingerprint)
            if word == "older":
                return done
            if word == "removed":
                done[name] = word
    return done
