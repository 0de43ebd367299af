"""Writing schedules: what is kept of one, and how Redis is brought in line with what code declares.

A schedule keeps all that any worker needs to enqueue its next job, the params signed for the schedule and its
secrets encrypted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobq import schedule_calls
from jobq.codec import Codec
from jobq.config import Settings
from jobq.enqueueing import Enqueuer
from jobq.errors import ConfigError, JobqError
from jobq.keys import Keys
from jobq.replies import as_int, as_text, clean_text
from jobq.schedule_spec import Schedule, StoredSchedule
from jobq.steps import Batch, Plan
from jobq.units import redis_ms

_PAGE = 500
_CHANGING = ("data", "created_at", "enqueued_at", "jk")


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
        correlation_id=request.overrides.correlation_id or "",
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
    """The records of schedules that code declares, each for its queue's Redis; a bad one must not cost the others."""
    codec = settings.codec()
    specs = settings.queue_specs()
    enqueuers: dict[str, Enqueuer] = {}
    records = []
    for schedule in schedules:
        spec = specs.get(schedule.request.queue)
        url = (spec and spec.redis_url) or settings.redis_url
        if url not in enqueuers:
            there = settings.seen_from(url)
            keys = Keys(settings.key_prefix)
            enqueuers[url] = Enqueuer(keys=keys, codec=codec, settings=there, owner=None)
        try:
            records.append(record_of(schedule, enqueuers[url], codec))
        except Exception as error:
            said = str(error) if isinstance(error, JobqError) else type(error).__name__
            records.append(_broken(schedule, f"no job can be made of it: {said}"))
    return records


def _broken(schedule: Schedule, why: str) -> Record:
    request = schedule.request
    stored = StoredSchedule(
        name=schedule.name, task=request.task.name, queue=request.queue, timing=schedule.timing,
        overlap=schedule.overlap, fields={}, tags=request.overrides.tags, error=clean_text(why),
    )  # fmt: skip
    return Record(stored, b"", hashlib.sha256(stored.encode()).hexdigest())


def fingerprint_of(records: Iterable[Record]) -> str:
    """Equal for equal sets of schedules."""
    pairs = sorted((record.stored.name, record.digest) for record in records)
    return hashlib.sha256(repr(pairs).encode()).hexdigest()[:32]


# --------------------------------------------------------------------------- what is there


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
    after = max(redis_ms(clock), as_int(last) if isinstance(last, bytes | str) else 0)
    slot = None if stored.error else stored.timing.after(after)
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
