"""The job: its record, its states, the moves between them, its id."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, Protocol

from jobq.units import clock_ms


class JobState(StrEnum):
    """Where a job stands. Each comment says who moves it on."""

    SCHEDULED = "scheduled"  # promote, when it is due; hasten; replace; cancel
    RETRYING = "retrying"  # promote, when the backoff has passed; hasten; replace; cancel
    QUEUED = (
        "queued"  # claim, which runs it, or parks it at a limit or as a suspect; replace with a delay; cancel
    )
    RUNNING = "running"  # settle by its worker; rescue when the lease has expired
    DEFERRED = "deferred"  # release, when all parents are finished; cancel
    PARKED = "parked"  # claim by a worker that can run it; open, when its limit lets it; unpark; cancel
    SUCCEEDED = "succeeded"  # prune
    DEAD = "dead"  # replay; prune
    CANCELLED = "cancelled"  # replay; prune


_S = JobState
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    _S.SCHEDULED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.RETRYING: frozenset({_S.QUEUED, _S.SCHEDULED, _S.CANCELLED}),
    _S.QUEUED: frozenset({_S.RUNNING, _S.PARKED, _S.SCHEDULED, _S.CANCELLED}),
    _S.RUNNING: frozenset(
        {_S.SUCCEEDED, _S.DEAD, _S.RETRYING, _S.SCHEDULED, _S.CANCELLED, _S.PARKED, _S.QUEUED}
    ),
    _S.DEFERRED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.PARKED: frozenset({_S.RUNNING, _S.QUEUED, _S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.DEAD: frozenset({_S.QUEUED}),
    _S.CANCELLED: frozenset({_S.QUEUED}),
}
"""The legal moves: no script makes another, and tests/model holds them to it. What rq's own tools do is theirs."""

TERMINAL = frozenset({_S.SUCCEEDED, _S.DEAD, _S.CANCELLED})

Verb = Literal["cancel", "delete", "promote", "retry"]
VERB_STATES: Mapping[Verb, tuple[JobState, ...]] = {
    "cancel": tuple(state for state in JobState if state not in TERMINAL),
    "delete": (_S.SUCCEEDED, _S.DEAD, _S.CANCELLED),
    "promote": (_S.SCHEDULED, _S.RETRYING),
    "retry": (_S.DEAD, _S.CANCELLED),
}
"""What each verb is for unless somebody says otherwise; all but ``delete`` apply to nothing else."""

DEAD_REASONS = ("exhausted", "poison", "unreadable", "no_handler", "expired", "rejected", "stopped")
"""Why a job is dead. ``stopped`` is rq's word for a job its own tools stopped."""

RESULT_TOO_LARGE, RESULT_NOT_JSON = "result_too_large", "result_not_json"
"""Why the result of a success is not kept."""

ID_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_DIGITS = (_ALPHABET * 8).encode()
"""A random byte, as ``bytes.translate`` takes it, to a digit: each is as likely."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")


@lru_cache(16)  # jobs of one bulk share their millisecond
def _base32(number: int, width: int) -> str:
    """The lowest ``width`` digits of a number."""
    text = ""
    for _ in range(0, width, 2):  # two digits at a time: an id is made for every job
        text = _PAIRS[number & 1023] + text
        number >>= 10
    return text[-width:]


@lru_cache(1024)
def _slug(task: str) -> str:
    return _UNSAFE.sub("_", task)[-24:].strip("_") or "job"


def new_job_id(task: str, *, now_ms: int | None = None) -> str:
    """A job id that a person can read: ``<task>-<time>-<random>``.

    The time part is the millisecond in base 32, so ids of one task sort by age; the random part has 60 bits.
    The id is also the token that makes an enqueue safe to send again.

    Args:
        task: Name of the task; at most 24 characters of it are used.
        now_ms: Milliseconds since 1970, for tests. None: the machine's clock.
    """
    stamp = clock_ms() if now_ms is None else now_ms
    return f"{_slug(task)}-{_base32(stamp, 9)}-{os.urandom(12).translate(_DIGITS).decode()}"


def slot_job_id(schedule: str, slot_ms: int) -> str:
    """The id of the one job of a schedule's slot: the same, whoever fires it."""
    digest = hashlib.sha256(f"{schedule}\0{slot_ms}".encode()).digest()
    return f"{_slug(schedule)}-{_base32(slot_ms, 9)}-{_base32(int.from_bytes(digest[:8]) >> 4, 12)}"


class JobActions(Protocol):
    """What a job can ask of the client it came from."""

    def get(self, job_id: str) -> Job: ...
    def wait(self, job_id: str, timeout: float | timedelta | None = None) -> Job: ...
    def result(self, job_id: str, timeout: float | timedelta | None = None) -> Any: ...
    def cancel(self, job_id: str) -> Literal["cancelled", "requested"]: ...


class AsyncJobActions(Protocol):
    """The awaitable twin of :class:`JobActions`."""

    async def get(self, job_id: str) -> Job: ...
    async def wait(self, job_id: str, timeout: float | timedelta | None = None) -> Job: ...
    async def result(self, job_id: str, timeout: float | timedelta | None = None) -> Any: ...
    async def cancel(self, job_id: str) -> Literal["cancelled", "requested"]: ...


class JobOwner(Protocol):
    """Supplies the client for a job's methods; both kinds come from one set of settings."""

    def sync_actions(self) -> JobActions: ...
    def async_actions(self) -> AsyncJobActions: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One enqueued call of a task, as it stood when it was read.

    Attributes:
        id: The job's id.
        task: Name of the task.
        queue: Name of the queue, which for a lane is the priority.
        state: Where the job stands.
        attempt: The attempt that runs or ran last; 0 before the first.
        deduplicated: This enqueue found a live equal job and returned it.
        max_attempts: Total runs allowed, when this job overrides its task.
        progress: Fraction done, 0 to 1, and ``progress_text``, as last reported by the task.
        dead_reason: Why the job is dead: one of ``DEAD_REASONS``.
        result_dropped: Why what a success returned was not kept: ``too_large`` or ``not_json``; None: nothing was lost.
        error_fingerprint: Equal for errors of the same kind and place.
        parked_reason: Why the job is parked.
    """

    id: str
    task: str
    queue: str
    state: JobState
    attempt: int = 0
    deduplicated: bool = False
    max_attempts: int | None = None
    created_at: datetime | None = None
    enqueued_at: datetime | None = None
    due_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    worker: str | None = None
    timeout: timedelta | None = None
    progress: float | None = None
    progress_text: str | None = None
    dead_reason: str | None = None
    result_dropped: str | None = None
    error_fingerprint: str | None = None
    parked_reason: str | None = None
    cancel_requested: bool = False
    dedup_key: str | None = None
    tags: tuple[str, ...] = ()
    correlation_id: str | None = None
    owner: JobOwner | None = field(default=None, repr=False, compare=False)

    @property
    def finished(self) -> bool:
        """Whether the job has ended: succeeded, dead or cancelled."""
        return self.state in TERMINAL

    def _sync(self) -> JobActions:
        if self.owner is None:
            raise RuntimeError("this job was not made by a client; use jobq.Client().get(job.id)")
        return self.owner.sync_actions()

    def _async(self) -> AsyncJobActions:
        if self.owner is None:
            raise RuntimeError("this job was not made by a client; use jobq.AsyncClient().get(job.id)")
        return self.owner.async_actions()

    def refresh(self) -> Job:
        """The job as it stands now.

        Raises:
            JobNotFoundError: Retention has deleted it.
        """
        return replace(self._sync().get(self.id), deduplicated=self.deduplicated)

    def wait(self, timeout: float | timedelta | None = None) -> Job:
        """Block until the job has ended, and return it as it then stands.

        Args:
            timeout: Seconds or timedelta; None waits for as long as it takes.
        Raises:
            TimeoutError: The job had not ended by then. It goes on.
        """
        return self._sync().wait(self.id, timeout)

    def result(self, timeout: float | timedelta | None = None) -> Any:
        """What the task returned, waiting for it if need be.

        Args:
            timeout: Seconds or timedelta; None waits for as long as it takes.
        Raises:
            JobFailedError: The job is dead or cancelled.
            ResultNotKeptError: It succeeded, and what it returned could not be stored.
            TimeoutError: The job had not ended by then. It goes on.
        """
        return self._sync().result(self.id, timeout)

    def cancel(self) -> Literal["cancelled", "requested"]:
        """Stop the job: at once while it waits (``cancelled``), on request while it runs (``requested``).

        Raises:
            ConflictError: It has ended already.
        """
        return self._sync().cancel(self.id)

    async def refresh_async(self) -> Job:
        """Awaitable :meth:`refresh`."""
        return replace(await self._async().get(self.id), deduplicated=self.deduplicated)

    async def wait_async(self, timeout: float | timedelta | None = None) -> Job:
        """Awaitable :meth:`wait`."""
        return await self._async().wait(self.id, timeout)

    async def result_async(self, timeout: float | timedelta | None = None) -> Any:
        """Awaitable :meth:`result`."""
        return await self._async().result(self.id, timeout)

    async def cancel_async(self) -> Literal["cancelled", "requested"]:
        """Awaitable :meth:`cancel`."""
        return await self._async().cancel(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run of a job, as its history keeps it."""

    number: int
    outcome: str
    started_at: datetime | None = None
    ended_at: datetime | None = None
    worker: str | None = None
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    fingerprint: str | None = None
