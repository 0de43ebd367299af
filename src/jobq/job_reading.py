"""Reading one job: as it stands, its outcome, its earlier attempts, as plans for either kind of store.

Everything is read raw and in pipelines: rq's own objects clean up while they read, and cost a round trip
each.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from jobq.errors import JobNotFoundError, PayloadUnreadableError
from jobq.job import ID_PATTERN, Attempt, Job, JobOwner, JobState
from jobq.keys import Keys
from jobq.records import decode_attempt
from jobq.rq_bridge import JOB_FIELDS, StreamResult, job_from_fields, read_result
from jobq.steps import Batch, Plan


def moment_of(job: Job) -> datetime | None:
    """When the job ended or, if it has not, was created."""
    return job.ended_at or job.created_at or job.enqueued_at


def valid_id(job_id: str) -> str:
    """The id, if it can be one.

    Raises:
        JobNotFoundError: No job can have this id.
    """
    if not isinstance(job_id, str) or not ID_PATTERN.fullmatch(job_id):
        raise JobNotFoundError(f"no job {job_id!r}: ids have letters, digits, - and _ only", job_id=job_id)
    return job_id


def not_found(job_id: str) -> JobNotFoundError:
    """The error for an id nobody has."""
    return JobNotFoundError(f"no job {job_id}: it never existed, or retention has deleted it", job_id=job_id)


def job_plan(keys: Keys, job_id: str, owner: JobOwner | None) -> Plan[Job]:
    """The job as it stands.

    Raises:
        JobNotFoundError: There is none.
        PayloadUnreadableError: Its key has the wrong type.
    """
    values = (yield Batch((hash_command(keys, valid_id(job_id)),)))[0]
    job = job_of(job_id, values, owner)
    if job.state in (JobState.SCHEDULED, JobState.RETRYING):
        score = (yield Batch((("ZSCORE", keys.scheduled(job.queue), job_id),)))[0]
        if isinstance(score, bytes | str | int | float):
            return job_of(job_id, values, owner, due_ms=float(score) * 1000)
    return job


def job_of(job_id: str, values: Any, owner: JobOwner | None, *, due_ms: float | None = None) -> Job:
    """The job that one reply to :func:`hash_command` describes.

    Raises:
        JobNotFoundError: There is none.
        PayloadUnreadableError: Its key has the wrong type.
    """
    if isinstance(values, Exception):
        raise PayloadUnreadableError(f"job {job_id} cannot be read: {values}", job_id=job_id) from values
    job = job_from_fields(job_id, values, due_ms=due_ms, owner=owner)
    if job is None:
        raise not_found(job_id)
    return job


def hash_command(keys: Keys, job_id: str) -> tuple[Any, ...]:
    """The command that reads what :func:`job_from_fields` needs."""
    return ("HMGET", keys.job(job_id), *JOB_FIELDS)


def outcome_plan(keys: Keys, job_id: str, owner: JobOwner | None) -> Plan[tuple[Job, StreamResult | None]]:
    """The job together with the newest entry of its results stream."""
    values, entries = yield Batch(
        (hash_command(keys, valid_id(job_id)), ("XREVRANGE", keys.results(job_id), "+", "-", "COUNT", 1))
    )
    return job_of(job_id, values, owner), newest_result(entries)


def newest_result(entries: Any) -> StreamResult | None:
    """The entry that ``XREVRANGE … COUNT 1`` answered; None when there is none."""
    if isinstance(entries, Exception) or not entries:
        return None
    fields = entries[0][1]
    if isinstance(fields, list | tuple):  # a raw reply is a flat list of names and values
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    return read_result(fields)


def attempts_plan(keys: Keys, job_id: str) -> Plan[list[Attempt]]:
    """The job's earlier attempts, oldest first; empty before the first failure.

    Raises:
        JobNotFoundError: There is no such job.
    """
    found, records = yield Batch(
        (("EXISTS", keys.job(valid_id(job_id))), ("LRANGE", keys.attempts(job_id), 0, -1))
    )
    if not found:
        raise not_found(job_id)
    if isinstance(records, Exception):
        return []
    return [decode_attempt(record, number) for number, record in enumerate(records, 1)]
