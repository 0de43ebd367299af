"""The errors jobq raises, and the signals a task may raise.

::

    JobqError                       job_id, queue, task where they are known
    ├── ConfigError                 settings, declarations or the server are wrong: fix them, then start again
    ├── EnqueueError                the job was not enqueued
    │   ├── PayloadError            params do not fit the task
    │   │   └── CostTooHighError    the job costs more than its limit ever lets in
    │   ├── PayloadTooLargeError    the encoded payload is over the limit
    │   └── QueueFullError          the queue refuses more jobs for now
    │       └── QuotaExceededError  the task's quota is used up; ``retry_after``: for how long
    ├── StoreError                  Redis answered with an error
    │   ├── StoreUnavailableError   Redis could not be reached in time; ``ambiguous``: the command may have run
    │   └── StorePermissionError    the Redis user may not run this command
    ├── TextError                   text that no UTF-8 can hold, such as a lone surrogate
    ├── CodecError                  a payload cannot be used
    │   ├── PayloadUnreadableError  not an envelope, or its params do not fit the task
    │   ├── SignatureError          unsigned, forged or altered
    │   ├── NoKeyError              signed or encrypted with a key that is not configured here
    │   └── NewerPayloadError       written by a newer version of jobq or of the task
    ├── UnknownTaskError            no task of that name is registered
    ├── NoHandlerError              a helper without a handler, and without a default
    ├── JobNotFoundError            no such job
    ├── ConflictError               the job is in a state, or its dedup key is held, that forbids the step
    ├── LeaseLostError              another worker owns the job now
    ├── JobFailedError              the job that was waited for is dead or cancelled
    └── ResultNotKeptError          the job succeeded, and what it returned could not be stored

    Signal                          raised by a task to say how the attempt ends
    ├── Retry  Snooze  Cancel  Discard  RateLimited

    SoftTimeout (BaseException)     raised inside a task whose time is up
"""

from __future__ import annotations

from datetime import timedelta


class JobqError(Exception):
    """Root of every error that jobq raises.

    Attributes:
        job_id: The job concerned, when there is one.
        queue: The queue concerned, when there is one.
        task: The task concerned, when there is one.
        acknowledged: Of an enqueue of many: for each, in their order, the id of its job, or None: not enqueued, or
            with ``ambiguous`` perhaps. So what is left to do is where None stands. Empty for anything else.
    """

    acknowledged: tuple[str | None, ...] = ()

    def __init__(
        self, message: str, *, job_id: str | None = None, queue: str | None = None, task: str | None = None
    ) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.queue = queue
        self.task = task


class ConfigError(JobqError):
    """Settings, a declaration or the server make it impossible to start. The command line exits with 78."""


class EnqueueError(JobqError):
    """The job was not enqueued, and nothing of it was written."""


class PayloadError(EnqueueError):
    """The params do not fit the task's signature."""


class CostTooHighError(PayloadError):
    """What the job costs is more than its rate or quota ever lets in: it could never start.

    Attributes:
        cost: What it costs.
        most: What it may cost at most.
    """

    def __init__(
        self,
        message: str,
        *,
        cost: int = 0,
        most: int = 0,
        job_id: str | None = None,
        queue: str | None = None,
        task: str | None = None,
    ) -> None:
        super().__init__(message, job_id=job_id, queue=queue, task=task)
        self.cost = cost
        self.most = most


class PayloadTooLargeError(EnqueueError):
    """The encoded payload is over ``JOBQ_PAYLOAD_LIMIT`` (default 256 kB)."""


class QueueFullError(EnqueueError):
    """The queue takes no more jobs: its ``max_waiting`` wait, or memory is short."""


class QuotaExceededError(QueueFullError):
    """As many jobs of the task, or of its key, were enqueued as its quota allows in a window.

    Attributes:
        retry_after: After so long one more is let in.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: timedelta = timedelta(0),
        job_id: str | None = None,
        queue: str | None = None,
        task: str | None = None,
    ) -> None:
        super().__init__(message, job_id=job_id, queue=queue, task=task)
        self.retry_after = retry_after


class StoreError(JobqError):
    """Redis answered with an error."""


class StoreUnavailableError(StoreError):
    """Redis could not be reached within the deadline.

    Attributes:
        ambiguous: The command may have run although no answer came. Sending the same job id again is safe.
    """

    def __init__(
        self,
        message: str,
        *,
        ambiguous: bool = False,
        job_id: str | None = None,
        queue: str | None = None,
        task: str | None = None,
    ) -> None:
        super().__init__(message, job_id=job_id, queue=queue, task=task)
        self.ambiguous = ambiguous


class StorePermissionError(StoreError):
    """The Redis user lacks a permission (NOPERM) or the login failed."""


class TextError(JobqError):
    """Text that no UTF-8 can hold, such as a lone surrogate: nothing was sent."""


class CodecError(JobqError):
    """A payload cannot be used."""


class PayloadUnreadableError(CodecError):
    """Not an envelope of ours, or its params do not fit the task."""


class SignatureError(CodecError):
    """The payload is unsigned where a signature is required, forged, or altered."""


class NoKeyError(CodecError):
    """The payload is signed or encrypted with a key that is not configured here.

    Attributes:
        key_id: The name of that key, as payloads carry it.
    """

    key_id: str = ""


class NewerPayloadError(CodecError):
    """A newer version of jobq, or of the task, wrote this payload."""


class UnknownTaskError(JobqError):
    """No task of that name is registered. Name its module in ``JOBQ_APP``."""


class NoHandlerError(JobqError):
    """The helper needs the application's handler, and none is registered."""


class JobNotFoundError(JobqError):
    """No job has this id: it never existed, or retention has deleted it."""


class ConflictError(JobqError):
    """The job's state, or a live holder of its dedup key, forbids the step."""


class LeaseLostError(JobqError):
    """Another worker owns the job now; what this run does no longer counts."""


class JobFailedError(JobqError):
    """The job that was waited for ended dead or cancelled."""


class ResultNotKeptError(JobqError):
    """The job succeeded, but what it returned is over ``JOBQ_RESULT_LIMIT`` (default 256 kB), or no JSON can hold it.

    Running it again would repeat its effect: let the task store the result and return a reference.
    """


class SoftTimeout(BaseException):
    """The task's time is up. Not an ``Exception``, so that ``except Exception`` does not swallow it."""


class Signal(Exception):
    """Base of what a task raises to say how its attempt ends. Not an error."""


def _as_delta(value: float | timedelta) -> timedelta:
    delta = value if isinstance(value, timedelta) else timedelta(seconds=value)
    if delta < timedelta(0):
        raise ValueError(f"a delay must not be negative, got {delta}")
    return delta


class Retry(Signal):
    """Fail this attempt and try again; spends an attempt.

    Args:
        after: Delay before the next attempt, in seconds or as a timedelta. None: the task's own backoff.
        reason: Kept in the attempt history.
    """

    def __init__(self, after: float | timedelta | None = None, reason: str = "retry requested") -> None:
        super().__init__(reason)
        self.after = None if after is None else _as_delta(after)


class Snooze(Signal):
    """Run the job again later without spending an attempt.

    Args:
        for_: How long to sleep, in seconds or as a timedelta.
    """

    def __init__(self, for_: float | timedelta) -> None:
        super().__init__("snoozed")
        self.for_ = _as_delta(for_)


class RateLimited(Signal):
    """What the task calls has had enough: run the job again later, and start none of its kind before.

    These are the jobs that share its rate; if the task has none, those of its key, if it limits the concurrency of one;
    else all of its queue. Spends no attempt. ``jobq queues resume`` ends it early.

    Args:
        retry_after: For how long, in seconds or as a timedelta, as a ``Retry-After`` header says; at most a year.
    """

    def __init__(self, retry_after: float | timedelta) -> None:
        super().__init__("rate limited")
        self.retry_after = min(_as_delta(retry_after), timedelta(days=365))


class Cancel(Signal):
    """End the job as cancelled.

    Args:
        reason: Kept with the job.
    """

    def __init__(self, reason: str = "cancelled by the task") -> None:
        super().__init__(reason)
        self.reason = reason


class Discard(Signal):
    """Drop the job without a dead letter: it ends as cancelled, marked as discarded.

    Args:
        reason: Kept with the job.
    """

    def __init__(self, reason: str = "discarded by the task") -> None:
        super().__init__(reason)
        self.reason = reason
