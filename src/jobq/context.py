"""The job that is running here: its facts, its progress, its wish to be stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Protocol


class ContextSink(Protocol):
    """Where a running job's messages go; the worker supplies it. Methods must be quick and must not raise."""

    def progress(self, job_id: str, fraction: float, text: str) -> None:
        """Keep the newest report."""

    def log(self, job_id: str, text: str) -> None:
        """Add a line to the job's log."""

    def cancel_requested(self, job_id: str) -> bool:
        """Whether somebody asked this job to stop."""


class JobContext:
    """What a task may ask about its own job, and tell of it.

    Outside a job :func:`current_job` gives a context whose ``job_id`` is empty and whose messages go nowhere,
    so that a task which reports progress can also be called plainly and tested.

    Attributes:
        job_id: The job's id; empty outside a job.
        task: Name of the task; empty outside a job.
        queue: The queue that the job was claimed from; empty outside a job.
        attempt: The attempt that runs, counted from 1.
        max_attempts: Total runs allowed.
        correlation_id: The one it was enqueued with; empty: none.
    """

    __slots__ = ("_redact", "_sink", "attempt", "correlation_id", "job_id", "max_attempts", "queue", "task")

    def __init__(
        self,
        *,
        job_id: str = "",
        task: str = "",
        queue: str = "",
        attempt: int = 1,
        max_attempts: int = 1,
        correlation_id: str = "",
        sink: ContextSink | None = None,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self.job_id = job_id
        self.task = task
        self.queue = queue
        self.attempt = attempt
        self.max_attempts = max_attempts
        self.correlation_id = correlation_id
        self._sink = sink
        self._redact = redact

    def __repr__(self) -> str:
        return f"JobContext(job_id={self.job_id!r}, task={self.task!r}, attempt={self.attempt})"

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked this job to stop. A long task looks at times, and raises ``jobq.Cancel``."""
        return self._sink is not None and self._sink.cancel_requested(self.job_id)

    def progress(self, fraction: float, text: str = "") -> None:
        """Report how far the task is. Cheap: the worker sends only the newest report, a few times a second.

        Args:
            fraction: Part done, 0 to 1; what lies outside is clamped.
            text: A short line for people. Never put params into it: it is stored in the clear.

        Raises:
            ValueError: ``fraction`` is not a number.
        """
        if math.isnan(fraction):
            raise ValueError("progress must be a number between 0 and 1, got nan")
        if self._sink is not None:
            self._sink.progress(self.job_id, min(1.0, max(0.0, float(fraction))), self._clean(text))

    def log(self, text: str) -> None:
        """Add a line to the job's own log, which ``jobq jobs logs`` shows: its last 200, and 500 characters of each.

        Secret params are blotted out, other params are not: the log is stored in the clear.
        """
        if self._sink is not None:
            self._sink.log(self.job_id, self._clean(str(text)))

    def _clean(self, text: str) -> str:
        return text if self._redact is None else self._redact(text)


_current: ContextVar[JobContext | None] = ContextVar("jobq_current_job", default=None)
_OUTSIDE = JobContext()


def current_job() -> JobContext:
    """The job that runs in this thread or asyncio task; outside of one, an inert context without a job id."""
    return _current.get() or _OUTSIDE


class running_job:  # noqa: N801 - used like a function, a class because a generator costs twice as much per job
    """``with running_job(context):`` makes ``context`` what :func:`current_job` returns inside.

    Enter it in the thread or asyncio task that calls the function. It nests.
    """

    __slots__ = ("_context", "_token")

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._token: Token[JobContext | None] | None = None

    def __enter__(self) -> JobContext:
        self._token = _current.set(self._context)
        return self._context

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
