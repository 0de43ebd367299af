"""One attempt of one job: open its payload, run its function, report its ending. No Redis, no threads of its own."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Iterable

from jobq import events
from jobq.codec import Codec
from jobq.config import Settings
from jobq.context import ContextSink, running_job
from jobq.errors import Cancel, SoftTimeout
from jobq.queues import QueueSpec
from jobq.retry import RetryPolicy
from jobq.tasks import Registry
from jobq.worker.attempt import Assignment, Ready, Report
from jobq.worker.opening import Opener
from jobq.worker.reports import Reporter


class Runner:
    """Runs attempts for one queue.

    Args:
        spec: The queue: its retention, target and defaults.
        worker: Name of the worker, for the history.
        sink: Where progress and log lines go.
        default: The policy for tasks and queues that do not say.
        result_limit: Bytes of an encoded result; a larger one is not kept.
        rand: Source of jitter; a test passes a seeded one.
    Attributes:
        reporter: Reports endings that happen outside of a run: a hand-back, the end of a process.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        registry: Registry,
        spec: QueueSpec,
        worker: str,
        sink: ContextSink,
        default: RetryPolicy | None = None,
        result_limit: int = 262_144,
        rand: random.Random | None = None,
    ) -> None:
        self._queue, self._worker = spec.name, worker
        self.reporter = Reporter(
            codec=codec, spec=spec, worker=worker, result_limit=result_limit, rand=rand or random.Random()
        )
        self._opener = Opener(
            codec=codec,
            registry=registry,
            spec=spec,
            sink=sink,
            default=default or RetryPolicy(),
            reporter=self.reporter,
        )

    def run(self, work: Assignment) -> Report:
        """Run one attempt in this thread. Raises nothing but a ``SoftTimeout`` that strikes outside of the task."""
        try:
            return self._run(work)
        except SoftTimeout:
            raise
        except BaseException as error:
            return self.reporter.unclassified(work, error)

    async def run_async(self, work: Assignment) -> Report:
        """Run one attempt in this event loop. Raises nothing but a cancellation that strikes outside of the task."""
        try:
            return await self._run_async(work)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return self.reporter.unclassified(work, error)

    def timed_out(self, work: Assignment) -> Report:
        """The report of a run that was cut off, from outside of its function."""
        try:
            ready = work.ready or self._open(work)
            return ready if isinstance(ready, Report) else self._timed_out(work, ready, None)
        except Exception as error:
            return self.reporter.unclassified(work, error)

    def _run(self, work: Assignment) -> Report:
        ready = self._begin(work)
        if isinstance(ready, Report):
            return ready
        try:
            with running_job(ready.context):
                value = ready.task.invoke(ready.params)
                # An async task in a thread or a child: a loop for this one run.
                if inspect.iscoroutine(value):
                    value = asyncio.run(value)
        except BaseException as error:
            if isinstance(error, SoftTimeout) and ready.context.cancelled:
                return self._timed_out(work, ready, error)
            return self.reporter.failed(work, ready, error)
        return self.reporter.succeeded(work, ready, value)

    async def _run_async(self, work: Assignment) -> Report:
        ready = self._begin(work)
        if isinstance(ready, Report):
            return ready
        try:
            with running_job(ready.context):
                if ready.task.is_async:
                    value = await ready.task.invoke(ready.params)
                else:  # the payload names another task than its label: still one run, off the loop
                    value = await asyncio.to_thread(ready.task.invoke, ready.params)
        except BaseException as error:
            if work.expired and isinstance(error, asyncio.CancelledError):
                return self._timed_out(work, ready, error)
            return self.reporter.failed(work, ready, error)
        return self.reporter.succeeded(work, ready, value)

    def _begin(self, work: Assignment) -> Ready | Report:
        ready = self._open(work)
        if events.enabled("job.started") and isinstance(ready, Ready):
            events.emit(
                "job.started",
                job_id=work.job.id,
                task=ready.task.name,
                queue=self._queue,
                attempt=work.attempt,
                max_attempts=ready.policy.max_attempts,
                worker=self._worker,
                wait_ms=round(work.wait_ms, 1),
            )
        return ready

    def _open(self, work: Assignment) -> Ready | Report:
        work.started_at = work.started_at or time.monotonic()
        return self._opener.open(work)

    def _timed_out(self, work: Assignment, ready: Ready, cause: BaseException | None) -> Report:
        if ready.context.cancelled:
            return self.reporter.failed(work, ready, Cancel("cut off: it was asked to stop and did not"))
        error = SoftTimeout(f"the task ran longer than its timeout of {work.timeout_s:g} s")
        if cause is not None:
            error.__traceback__ = cause.__traceback__
        return self.reporter.failed(work, ready, error)


def make_runners(
    settings: Settings, registry: Registry, specs: Iterable[QueueSpec], *, worker: str, sink: ContextSink
) -> list[Runner]:
    """A runner for each of these queues."""
    codec, default = settings.codec(), settings.retry_policy()
    return [
        Runner(
            codec=codec,
            registry=registry,
            spec=spec,
            worker=worker,
            sink=sink,
            default=default,
            result_limit=settings.result_limit,
        )
        for spec in specs
    ]
