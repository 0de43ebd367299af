"""Running a job here and now, when the queue is switched off or cannot be reached."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from jobq.context import JobContext, running_job
from jobq.errors import Cancel, ConflictError, Discard, JobFailedError
from jobq.failures import describe_error, secret_texts
from jobq.job import AsyncJobActions, Job, JobActions, JobState, new_job_id
from jobq.tasks import EnqueueRequest


def run_inline(request: EnqueueRequest, job_id: str | None = None) -> Job:
    """Run one request in this thread, once, and return its job as it ended.

    Delays, retries, limits and deduplication do not apply. A failure is the job's, not the caller's: it shows
    in the job's state, and ``result()`` raises it.

    Raises:
        PayloadUnreadableError: The params do not fit the function.
    """
    task = request.task
    started = datetime.now(UTC)
    job = Job(
        id=job_id or new_job_id(task.name),
        task=task.name,
        queue=request.queue,
        state=JobState.SUCCEEDED,
        attempt=1,
        created_at=started,
        enqueued_at=started,
        started_at=started,
        tags=request.overrides.tags,
        correlation_id=request.overrides.correlation_id,
    )
    params = task.load(request.params, task.version)
    value: Any = None
    failure: Exception | None = None
    try:
        with running_job(
            JobContext(
                job_id=job.id, task=task.name, queue=job.queue, correlation_id=job.correlation_id or ""
            )
        ):
            value = task.invoke(params)
            if task.is_async:
                value = _finish(value)
    except (Cancel, Discard) as signal:
        failure, state = signal, JobState.CANCELLED
    except Exception as error:
        failure, state = error, JobState.DEAD
    else:
        state = JobState.SUCCEEDED
    ended = replace(
        job,
        state=state,
        ended_at=datetime.now(UTC),
        dead_reason="exhausted" if state is JobState.DEAD else None,
    )
    owner = _InlineOwner(ended, value, failure, secret_texts(task, request.params))
    return replace(ended, owner=owner)


def _finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, also where a loop runs already: then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(asyncio.run(coroutine))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, name="jobq-inline")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


@dataclass(slots=True)
class _InlineOwner:
    """Answers for a job that has run already, so that its methods work as for any other."""

    job: Job
    value: Any
    failure: Exception | None
    secrets: tuple[str, ...]

    def sync_actions(self) -> JobActions:
        return _Done(self)

    def async_actions(self) -> AsyncJobActions:
        return _AsyncDone(_Done(self))


@dataclass(slots=True)
class _Done:
    owner: _InlineOwner

    def get(self, job_id: str) -> Job:
        return replace(self.owner.job, owner=self.owner)

    def wait(self, job_id: str, timeout: float | timedelta | None = None) -> Job:
        return self.get(job_id)

    def result(self, job_id: str, timeout: float | timedelta | None = None) -> Any:
        failure, job = self.owner.failure, self.owner.job
        if failure is not None:
            details = describe_error(failure, self.owner.secrets)
            raise JobFailedError(
                f"job {job_id} is {job.state}: {details.type}: {details.message}",
                job_id=job_id,
                queue=job.queue,
                task=job.task,
                # A traceback shows the cause as it is, so beside secrets there is none.
            ) from (None if self.owner.secrets else failure)
        return self.owner.value

    def cancel(self, job_id: str) -> Literal["cancelled", "requested"]:
        raise ConflictError(f"job {job_id} has ended already: it ran inline", job_id=job_id)


@dataclass(slots=True)
class _AsyncDone:
    done: _Done

    async def get(self, job_id: str) -> Job:
        return self.done.get(job_id)

    async def wait(self, job_id: str, timeout: float | timedelta | None = None) -> Job:
        return self.done.wait(job_id)

    async def result(self, job_id: str, timeout: float | timedelta | None = None) -> Any:
        return self.done.result(job_id)

    async def cancel(self, job_id: str) -> Literal["cancelled", "requested"]:
        return self.done.cancel(job_id)
