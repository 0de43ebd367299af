"""The one module that knows rq's formats: statuses, dates, results, workers, and how a stock worker runs us.

Nothing here talks to Redis, except :func:`perform`, which runs inside a stock ``rq worker``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.metadata import version as package_version
from typing import Any

from jobq.codec import Codec
from jobq.config import Settings
from jobq.context import JobContext, running_job
from jobq.errors import ConfigError, ConflictError, JobFailedError, JobqError, RateLimited, Retry, Snooze
from jobq.job import RESULT_NOT_JSON, RESULT_TOO_LARGE, Job, JobOwner, JobState
from jobq.records import decode_extra, decode_overrides, decode_progress
from jobq.replies import clean_text
from jobq.tasks import load_app, registry
from jobq.units import LONGEST, clock_ms, moment

# --------------------------------------------------------------------------- dates

_LONGEST_S = int(LONGEST.total_seconds())
_second: tuple[int, str] = (-1, "")


def iso(now_ms: int | None = None) -> str:
    """A moment as rq writes it: UTC, six digits of microseconds, ``Z``.

    Args:
        now_ms: Milliseconds since 1970. None: the machine's clock.
    """
    global _second
    seconds, rest = divmod(clock_ms() if now_ms is None else now_ms, 1000)
    known, text = _second
    if known != seconds:
        # Most calls fall into the same second as the one before; strftime costs more than the rest.
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        _second = (seconds, text)
    return f"{text}.{rest:03d}000Z"


def parse_iso(value: bytes | str | None) -> datetime | None:
    """The moment that rq wrote, as aware UTC; None when absent or unreadable."""
    text = clean_text(value)
    if not text.endswith("Z"):
        return None
    try:
        return datetime.fromisoformat(text)  # strptime takes twenty times as long: half the time of a listing
    except ValueError:
        return None


# --------------------------------------------------------------------------- states

_STATES: Mapping[str, JobState] = {
    "queued": JobState.QUEUED,
    "started": JobState.RUNNING,
    "finished": JobState.SUCCEEDED,
    "failed": JobState.DEAD,
    "stopped": JobState.DEAD,
    "canceled": JobState.CANCELLED,
    "rate_limited": JobState.PARKED,
    "ready_to_enqueue": JobState.DEFERRED,
    "created": JobState.DEFERRED,
    "": JobState.DEFERRED,
}

STATUS_OF: Mapping[JobState, str] = {
    JobState.SCHEDULED: "scheduled",
    JobState.RETRYING: "scheduled",
    JobState.QUEUED: "queued",
    JobState.RUNNING: "started",
    JobState.DEFERRED: "deferred",
    JobState.PARKED: "deferred",
    JobState.SUCCEEDED: "finished",
    JobState.DEAD: "failed",
    JobState.CANCELLED: "canceled",
}
"""rq's status word for each of our states."""


def state_of(status: bytes | str | None, *, attempts: int = 0, parked: bool = False) -> JobState:
    """Our state for rq's status word.

    Args:
        status: As the hash has it; a word that rq does not know counts as parked, so that nobody runs it.
        attempts: Attempts spent: tells retrying from scheduled.
        parked: The hash has a ``park`` field: tells parked from deferred.
    """
    word = clean_text(status)
    if word == "scheduled":
        return JobState.RETRYING if attempts > 0 else JobState.SCHEDULED
    if word == "deferred":
        return JobState.PARKED if parked else JobState.DEFERRED
    return _STATES.get(word, JobState.PARKED)


# --------------------------------------------------------------------------- the job hash

JOB_FIELDS: tuple[str, ...] = (
    "status", "description", "origin", "created_at", "enqueued_at", "started_at", "ended_at", "worker_name",
    "timeout", "q", "attempts", "why", "fp", "park", "cx", "dk", "o", "jk", "pr",
)  # fmt: skip
"""The fields that :func:`job_from_fields` needs, in its order: all but the payload."""


def job_from_fields(
    job_id: str,
    values: Sequence[bytes | None],
    *,
    due_ms: float | None = None,
    owner: JobOwner | None = None,
) -> Job | None:
    """The job that an ``HMGET`` of :data:`JOB_FIELDS` describes.

    Unreadable single fields read as absent: a foreign or damaged hash must not break a list of jobs.

    Args:
        due_ms: The score of the job in the scheduled registry, in milliseconds.
    Returns:
        None when there is no such hash.
    """
    if not any(value is not None for value in values):
        return None
    (status, description, origin, created, enqueued, started, ended, worker, timeout, _q, attempts_raw, why,
     fp, park, cx, dk, o, jk, pr) = values  # fmt: skip
    attempts = _int(attempts_raw) or 0
    state = state_of(status, attempts=attempts, parked=bool(park))
    dead = state is JobState.DEAD
    fraction, progress_text = decode_progress(pr)
    seconds = min(_int(timeout) or 0, _LONGEST_S)
    overrides = decode_overrides(o)
    extra = decode_extra(jk)
    tags, correlation_id = extra.get("tags", ()), extra.get("correlation_id")
    return Job(
        id=job_id,
        task=task_of(description),
        queue=clean_text(origin),
        state=state,
        attempt=attempts + 1 if state is JobState.RUNNING else attempts,
        max_attempts=overrides.max_attempts,
        created_at=parse_iso(created),
        enqueued_at=parse_iso(enqueued),
        due_at=None if due_ms is None else moment(due_ms),
        started_at=parse_iso(started),
        ended_at=parse_iso(ended),
        worker=clean_text(worker) or None,
        timeout=overrides.timeout or (timedelta(seconds=seconds) if seconds > 0 else None),
        progress=fraction,
        progress_text=progress_text,
        dead_reason=dead_reason(status, why) if dead else None,
        result_dropped=_dropped(why) if state is JobState.SUCCEEDED else None,
        error_fingerprint=(clean_text(fp) or None) if dead or attempts else None,
        parked_reason=(clean_text(park) or clean_text(status)) if state is JobState.PARKED else None,
        cancel_requested=bool(cx) and state is JobState.RUNNING,
        dedup_key=clean_text(dk) or None,
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        correlation_id=correlation_id if isinstance(correlation_id, str) else None,
        owner=owner,
    )


def task_of(description: bytes | str | None) -> str:
    """The task's name from rq's description: ours is the name, plain rq's is a call, ``name(params)``."""
    return clean_text(description).partition("(")[0].strip()


def _dropped(why: bytes | str | None) -> str | None:
    word = clean_text(why)
    return word.removeprefix("result_") if word in (RESULT_TOO_LARGE, RESULT_NOT_JSON) else None


def dead_reason(status: bytes | str | None, why: bytes | str | None) -> str:
    """Why a job is dead; what a plain rq worker failed has no reason of ours and reads as exhausted."""
    return clean_text(why) or ("stopped" if clean_text(status) == "stopped" else "exhausted")


def _int(value: bytes | str | None) -> int | None:
    try:
        return int(float(value)) if value else None
    except (ValueError, OverflowError):
        return None


# --------------------------------------------------------------------------- the results stream

RESULT_SUCCESSFUL, RESULT_FAILED, RESULT_STOPPED = "1", "2", "3"
_INFLATED_LIMIT = 4 * 1024 * 1024


def encode_result(serialized: bytes) -> bytes:
    """The stream's ``return_value`` for an encoded result (``Codec.encode_result``)."""
    return b64encode(serialized)


def encode_exc(text: str) -> bytes:
    """The stream's ``exc_string`` for a traceback."""
    return b64encode(zlib.compress(text.encode("utf-8", "replace"), 1))


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One entry of a results stream.

    Attributes:
        succeeded: The entry tells of a success.
        value: The encoded result, for ``Codec.decode_result``; None when the task returned None.
        error: The traceback of a failure.
        worker: Name of the worker that wrote the entry.
    """

    succeeded: bool
    value: bytes | None
    error: str | None
    worker: str | None


def read_result(entry: Mapping[Any, Any]) -> StreamResult:
    """A results stream entry, written by us or by rq; unreadable parts read as absent."""
    fields = {clean_text(key): value for key, value in entry.items()}
    raw_value, raw_error = fields.get("return_value"), fields.get("exc_string")
    try:
        value = b64decode(raw_value) if raw_value else None
    except ValueError:
        value = None
    error: str | None = None
    if raw_error:
        try:
            inflated = zlib.decompressobj().decompress(b64decode(raw_error), _INFLATED_LIMIT)
            error = inflated.decode("utf-8", "replace") or None
        except (ValueError, zlib.error):
            error = None
    kind = clean_text(fields.get("type"))
    return StreamResult(
        kind == RESULT_SUCCESSFUL, value, error, clean_text(fields.get("worker_name")) or None
    )


# --------------------------------------------------------------------------- workers


def worker_fields(
    *,
    queues: Sequence[str],
    pid: int,
    hostname: str,
    birth_ms: int,
    now_ms: int,
    state: str,
    succeeded: int = 0,
    failed: int = 0,
    working_s: float = 0.0,
) -> dict[str, str]:
    """The hash ``P:worker:<name>`` of one executor, as ``rq info`` reads it.

    Args:
        birth_ms: When the executor started, and ``now_ms``, this heartbeat: milliseconds since 1970.
        state: rq's word: ``idle``, ``busy`` or ``suspended``.
        working_s: Seconds spent in tasks so far.
    """
    return {
        "birth": iso(birth_ms),
        "last_heartbeat": iso(now_ms),
        "queues": ",".join(queues),
        "pid": str(pid),
        "hostname": hostname,
        "version": _rq_version(),
        "python_version": sys.version,
        "state": state,
        "successful_job_count": str(succeeded),
        "failed_job_count": str(failed),
        "total_working_time": f"{working_s:.3f}",
    }


@cache
def _rq_version() -> str:
    return package_version("rq")


# --------------------------------------------------------------------------- jobs that plain rq made

_UNSUPPORTED = {
    "success_callback_name": "an on_success callback",
    "failure_callback_name": "an on_failure callback",
    "stopped_callback_name": "an on_stopped callback",
    "webhooks": "webhooks",
    "repeats_left": "repeats",
}


@dataclass(frozen=True, slots=True)
class ForeignOptions:
    """What plain ``rq.Queue.enqueue`` asked for, as far as jobq honours it.

    Attributes:
        max_attempts: Total runs; None when rq was not asked for retries.
        keep_succeeded_s: Seconds to keep a success; None: the queue's own. -1 is for ever in rq, here None.
        keep_dead_s: Seconds to keep a dead letter; None: the queue's own.
        expires_at_ms: The job is worthless if it starts later (rq's ``ttl``); None: never.
        unsupported: Why jobq must not run this job, or None.
    """

    max_attempts: int | None = None
    keep_succeeded_s: int | None = None
    keep_dead_s: int | None = None
    expires_at_ms: int | None = None
    unsupported: str | None = None


def foreign_options(fields: Mapping[str, str]) -> ForeignOptions:
    """Read ``Claimed.rq``, the rq fields of a job that plain rq made."""
    retries = _int(fields.get("retries_left"))
    ttl = _int(fields.get("ttl"))
    enqueued = parse_iso(fields.get("enqueued_at"))
    asked = [words for name, words in _UNSUPPORTED.items() if fields.get(name) not in (None, "", "[]")]
    return ForeignOptions(
        max_attempts=None if retries is None else 1 + max(retries, 0),
        keep_succeeded_s=_seconds(fields.get("result_ttl")),
        keep_dead_s=_seconds(fields.get("failure_ttl")),
        expires_at_ms=int(enqueued.timestamp() * 1000) + ttl * 1000 if ttl and ttl > 0 and enqueued else None,
        unsupported=f"rq job with {', '.join(asked)}: jobq does not run these" if asked else None,
    )


def _seconds(value: str | None) -> int | None:
    number = _int(value)
    return None if number is None or number < 0 else min(number, _LONGEST_S)


# --------------------------------------------------------------------------- rq's own prefix


def bind_prefix(prefix: str) -> None:
    """Make rq use our key prefix, which it reads once, when it is imported.

    Raises:
        ConfigError: rq was imported before, with another prefix.
    """
    defaults = sys.modules.get("rq.defaults")
    if defaults is None:
        os.environ["RQ_KEY_PREFIX"] = prefix
        return
    theirs = getattr(defaults, "RQ_KEY_PREFIX", "rq")
    if theirs != prefix:
        raise ConfigError(
            f"JOBQ_KEY_PREFIX is {prefix!r}, but rq was imported before with RQ_KEY_PREFIX {theirs!r}: "
            "import jobq first, or set both variables to the same value"
        )


# --------------------------------------------------------------------------- inside a stock rq worker


@cache
def _setup() -> tuple[Settings, Codec]:
    settings = Settings.load()
    load_app(settings.app, registry)
    return settings, settings.codec()


def perform(envelope: str) -> Any:
    """Run one of our jobs inside a stock ``rq worker --serializer jobq.codec.Serializer``.

    Runs the task once: no retries, no limits, no soft timeout but rq's own.

    Args:
        envelope: The payload, as our serializer hands it to rq.
    Returns:
        The task's result as plain JSON values.
    Raises:
        CodecError: The payload was not made for this job, or cannot be verified or read.
        UnknownTaskError: ``JOBQ_APP`` names no module with this task.
        ConflictError: The job was cancelled while it waited.
        JobFailedError: The task asked for a retry or a snooze, which a stock worker cannot give; or a task with
            secret params failed.
    """
    from rq import get_current_job  # late: 0.3 s that only a stock worker, which has paid them, needs

    current = get_current_job()
    if current is None:
        raise JobqError(
            "jobq.rq_bridge.perform runs only inside an rq worker; use jobq worker, or task.run(...)"
        )
    job_id = str(current.id)
    settings, codec = _setup()
    bind_prefix(settings.key_prefix)
    decoded = codec.decode(envelope.encode(), job_id=job_id)
    if current.connection.hexists(current.key, "cx"):
        raise ConflictError("this job was cancelled while it waited", job_id=job_id, task=decoded.task)
    task = registry.resolve(decoded.task)
    params = task.load(decoded.params, decoded.version)
    context = JobContext(job_id=job_id, task=decoded.task, queue=str(current.origin))
    try:
        with running_job(context):
            result = task.invoke(params)
            if task.is_async:
                result = asyncio.run(result)
    except (Retry, Snooze, RateLimited) as signal:
        asked = "a retry" if isinstance(signal, Retry) else "a snooze"
        why = "" if task.secrets else f" ({signal})"
        raise JobFailedError(
            f"the task asked for {asked}{why}, which a stock rq worker cannot give: use jobq worker",
            job_id=job_id,
            task=decoded.task,
        ) from (None if task.secrets else signal)
    except Exception as error:
        if not task.secrets:
            raise
        # rq keeps and logs the traceback, whose last line may quote a secret.
        kind = type(error)
        raise JobFailedError(
            f"{kind.__module__}.{kind.__qualname__}, whose text is hidden: the task takes secret params",
            job_id=job_id,
            task=decoded.task,
        ) from None
    return None if result is None else json.loads(codec.encode_result(result))
