"""Taking over what rq-scheduler would run: ``jobq schedules import-rq-scheduler``.

Its jobs are pickles. What is read of them are plain values alone; a pickle that names a function or a class is left
where it is, so reading one runs nothing.
"""

from __future__ import annotations

import io
import json
import pickle
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal

from jobq import schedule_calls
from jobq.client import Client
from jobq.cron import moment
from jobq.errors import ConfigError, ConflictError, JobqError, PayloadUnreadableError
from jobq.job import ID_PATTERN, slot_job_id
from jobq.rq_scheduler import now_ms, schedule_name
from jobq.schedule_calls import RQ_SCHEDULED
from jobq.schedule_records import record_of
from jobq.schedule_spec import ScheduleOptions, make_schedule
from jobq.steps import Batch, Call
from jobq.tasks import Task

Kind = Literal["once", "interval", "cron", ""]

_REFUSALS = {
    "changed": "rq-scheduler changed it meanwhile: try again",
    "exists": "a schedule of its name is there already",
}


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What became of one entry of rq-scheduler.

    Attributes:
        kind: ``once``, ``interval``, ``cron``; empty when it cannot be read.
        at: When it is due next.
        name: The schedule's name, or the job's id.
        error: Why it was left where it is; None: it was, or would be, taken over.
    """

    id: str
    kind: Kind = ""
    at: datetime | None = None
    task: str = ""
    name: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """An entry, read."""

    id: str
    score: float
    kind: Kind
    task: Task[Any, Any]
    params: Mapping[str, Any]
    meta: Mapping[str, Any]
    options: dict[str, Any]


def take_over(client: Client, *, tz: str = "UTC", dry_run: bool = False) -> list[TakenOver]:
    """Take over everything that rq-scheduler would run; what cannot be read or is no task stays with it.

    Args:
        client: Whose registry knows the tasks.
        tz: The zone in which rq-scheduler read its cron expressions: that of its machine.
        dry_run: Only look.
    Raises:
        ConflictError: An rq-scheduler runs: it could run an entry while it is taken over.
    """
    _require_stopped(client)
    rows = _ask(client, "ZRANGE", RQ_SCHEDULED, 0, -1, "WITHSCORES")
    if isinstance(rows, Exception):
        raise ConflictError(f"the key {RQ_SCHEDULED} is not rq-scheduler's: {rows}")
    return [
        _take_one(client, rq_id.decode("utf-8", "surrogateescape"), float(score), tz, dry_run)
        for rq_id, score in rows
    ]


def _ask(client: Client, *command: Any) -> Any:
    read: Batch[list[Any]] = Batch((command,))
    return client.run(read)[0]


def _require_stopped(client: Client) -> None:
    cursor: Any = 0
    while True:
        cursor, names = _ask(client, "SCAN", cursor, "MATCH", "rq:scheduler_instance:*", "COUNT", 1000)
        for name in names:
            if not _ask(client, "HEXISTS", name, "death"):
                instance = name.decode("utf-8", "replace").rpartition(":")[2]
                raise ConflictError(
                    f"rq-scheduler {instance} runs, or was killed within its interval: stop it, wait until its "
                    "key has expired, then try again"
                )
        if int(cursor) == 0:
            return


def _take_one(client: Client, rq_id: str, score: float, tz: str, dry_run: bool) -> TakenOver:
    left = TakenOver(rq_id, at=datetime.fromtimestamp(score, tz=UTC))
    try:
        found = _read(client, rq_id, score, tz)
        left = replace(left, kind=found.kind, task=found.task.name)
        prepare = _as_job if found.kind == "once" else _as_schedule
        name, slot_ms, call = prepare(client, found)
        taken = replace(left, name=name, at=moment(slot_ms))
        return taken if dry_run else replace(taken, error=_REFUSALS.get(client.run(call())))
    except JobqError as error:
        return replace(left, error=str(error))
    except Exception as error:  # whatever foreign data makes its reader raise
        return replace(left, error=f"it cannot be read ({type(error).__name__})")


def _read(client: Client, rq_id: str, score: float, tz: str) -> _Found:
    row = _ask(client, "HMGET", client.keys.job(rq_id), "data", "origin", "timeout", "meta")
    if isinstance(row, Exception) or row[0] is None:
        raise PayloadUnreadableError("its job is gone")
    data, origin, timeout, raw_meta = row
    task, params = _call_of(client, rq_id, data)
    meta = _plain(raw_meta) if raw_meta else {}
    options: dict[str, Any] = {"queue": origin.decode()} if origin else {}
    if timeout and timeout.isdigit() and int(timeout) > 0:
        options["timeout"] = int(timeout)
    kind: Kind = "once"
    if meta.get("interval"):
        kind = "interval"
        options |= {"every": float(meta["interval"]), "start": datetime.fromtimestamp(score, tz=UTC)}
    elif meta.get("cron_string"):
        kind = "cron"
        options |= {"cron": meta["cron_string"], "tz": tz}
    return _Found(rq_id, score, kind, task, params, meta, options)


def _call_of(client: Client, rq_id: str, data: bytes) -> tuple[Task[Any, Any], dict[str, Any]]:
    """The task and the validated params of a job that rq-scheduler keeps."""
    plain = zlib.decompress(data) if data.startswith(b"\x78") else data
    if plain.startswith(b'{"v":'):  # it was scheduled with jobq's own serializer
        envelope = client.codec.decode(plain, job_id=rq_id)
        task = client.registry.resolve(envelope.task)
        return task, task.load(envelope.params, envelope.version)
    func, _instance, args, kwargs = _plain(plain)
    task = client.registry.resolve(func)
    return task, task.bind(tuple(args), kwargs)


class _NoGlobals(pickle.Unpickler):
    """Reads plain values alone."""

    def find_class(self, module: str, name: str) -> Any:
        raise PayloadUnreadableError(f"it holds a {module}.{name}, which is not read")


def _plain(data: bytes) -> Any:
    """The value of what rq wrote: JSON, or a pickle of plain values."""
    return _NoGlobals(io.BytesIO(data)).load() if data.startswith(b"\x80") else json.loads(data)


def _as_schedule(client: Client, found: _Found) -> tuple[str, int, Callable[[], Call[str]]]:
    """Its name, its first slot, and the step that makes it."""
    name, ms = schedule_name(found.id), int(found.score * 1000)
    options: ScheduleOptions = found.options  # type: ignore[assignment]
    timing = make_schedule(name, found.task, found.params, **options).timing
    # An overdue run is still to be made; the slots after it are the schedule's own.
    now = now_ms()
    slot = ms if found.kind == "interval" or ms <= now else timing.after(now)
    if slot is None:
        raise ConfigError("no time matches its cron expression")
    repeat = found.meta.get("repeat")
    if repeat is not None:
        *_, last = slot, *islice(timing.slots(slot), max(1, int(repeat)) - 1)
        options["end"] = moment(last + 1)
    record = record_of(
        make_schedule(name, found.task, found.params, **options), client.enqueuer, client.codec
    )
    return (
        name,
        slot,
        lambda: schedule_calls.adopt_schedule(
            client.keys, found.id, found.score, record.stored, record.data, record.digest, slot
        ),
    )


def _as_job(client: Client, found: _Found) -> tuple[str, int, Callable[[], Call[str]]]:
    """Its id, when it is due, and the step that makes it."""
    ms = int(found.score * 1000)
    job_id = found.id if ID_PATTERN.fullmatch(found.id) else slot_job_id(found.id, ms)
    request = found.task.options(**found.options).request(**found.params)
    new = client.enqueuer.template(request, job_id)
    return (
        job_id,
        ms,
        lambda: schedule_calls.adopt_job(
            client.keys, found.id, found.score, job_id, request.queue, new.fields
        ),
    )
