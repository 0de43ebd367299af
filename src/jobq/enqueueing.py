"""From a validated call to a job in Redis: fields, dedup key, payload; then the answers, as jobs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from jobq import brake, calls, dedup, events, limits, tags
from jobq.calls import Batch, EnqueueAnswer, NewJob, Plan
from jobq.codec import Codec
from jobq.config import Settings, warn_secret_unprotected
from jobq.errors import (
    ConfigError,
    ConflictError,
    JobqError,
    QueueFullError,
    QuotaExceededError,
    StoreUnavailableError,
)
from jobq.job import Job, JobOwner, JobState, new_job_id
from jobq.keys import Keys
from jobq.options import NO_OVERRIDES
from jobq.parsing import format_duration
from jobq.records import encode_extra, encode_overrides
from jobq.rq_bridge import iso, job_from_fields
from jobq.tasks import EnqueueRequest, Task
from jobq.views import hash_command

CHUNK = 100
"""Jobs that one enqueue script takes."""

_REGISTER_EVERY_S = 60.0
_MS = timedelta(milliseconds=1)
_REBINDS = 3
_HELD = ("duplicate", "replaced")
_NOBODY: Mapping[str, Job] = {}


@dataclass(slots=True)
class _Prepared:
    """One job on its way."""

    request: EnqueueRequest
    new: NewJob
    queue: str


class Enqueuer:
    """Builds and sends jobs for one client; holds what is the same for every job of a task.

    Args:
        owner: What the methods of returned jobs use.
        clock: Seconds of a clock that never goes back; a test passes its own.
    """

    def __init__(
        self,
        *,
        keys: Keys,
        codec: Codec,
        settings: Settings,
        owner: JobOwner | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._codec = codec
        self._specs = settings.queue_specs()
        self._redis_url = settings.redis_url
        ages = [kept.age for spec in self._specs.values() for kept in (spec.keep_succeeded, spec.keep_dead)]
        self._found_by_tag = max(tags.KEEP, *(2 * age for age in ages))
        self._timeout = settings.timeout
        self._owner = owner
        self._clock = clock
        self._shared: dict[tuple[Task[Any, Any], str], dict[str, str]] = {}
        self._registered: dict[str, float] = {}

    def plan(self, requests: Sequence[EnqueueRequest]) -> Plan[list[Job]]:
        """Send the requests, each queue's in chunks of 100; their jobs, in the order of the requests.

        Raises:
            PayloadTooLargeError: A payload is over the limit; nothing was sent.
            QueueFullError: A queue refuses; what was sent before stays.
            StoreUnavailableError: Redis did not answer; ``job_id`` names the first job that is in doubt.
        """
        now = iso()
        prepared = [self._prepare(request, now) for request in requests]
        if len(prepared) == 1:
            return (yield from self._send(prepared))
        places: dict[str, list[int]] = {}
        for place, each in enumerate(prepared):
            places.setdefault(each.queue, []).append(place)
        jobs: list[Job | None] = [None] * len(prepared)
        sent = 0
        for indexes in places.values():
            for start in range(0, len(indexes), CHUNK):
                chunk = indexes[start : start + CHUNK]
                try:
                    made = yield from self._send([prepared[index] for index in chunk])
                except (StoreUnavailableError, QueueFullError) as error:
                    if sent:
                        if isinstance(error, StoreUnavailableError):
                            error.ambiguous = True  # of the whole call, a part has landed for sure
                        error.args = (f"{error} ({sent:,} of {len(prepared):,} jobs were enqueued before)",)
                    raise
                for index, job in zip(chunk, made, strict=True):
                    jobs[index] = job
                sent += len(chunk)
        return [job for job in jobs if job is not None]

    # ------------------------------------------------------------------ one job's fields

    def template(self, request: EnqueueRequest, bound_to: str) -> NewJob:
        """The job that a request makes, its payload bound to something that is no job, such as a schedule."""
        new = self._prepare(request, iso(), bound_to).new
        return new._replace(fields={**new.shared, **new.fields}, shared={})

    def _prepare(self, request: EnqueueRequest, now: str, bound_to: str = "") -> _Prepared:
        task, overrides = request.task, request.overrides
        queue = request.queue
        job_id = bound_to or new_job_id(task.name)
        shared = self._shared.get((task, queue))
        if shared is None or shared["created_at"] != now:
            shared = self._shared[task, queue] = self._shared_fields(task, queue, now)
        fields: dict[str, bytes | str] = {"data": self._encode(request, job_id)}
        name, mode, window_ms, on_duplicate = self._dedup(request)
        if name:
            fields["dk"] = f"{mode}:{name}"
        rate, concurrency = task.spec.rate, task.spec.concurrency
        if rate is not None or concurrency is not None:
            fields["lm"] = limits.task_gates(task.name, rate, concurrency, request.params)
        order = overrides.order or task.spec.order
        if order != 5:
            fields["or"] = str(order)
        fair, quota = task.spec.fair, task.spec.quota
        delay_ms = at_ms = 0
        if overrides is not NO_OVERRIDES:
            if overrides.delay is not None:
                delay_ms = overrides.delay // _MS
            elif overrides.at is not None:
                at_ms = max(1, (overrides.at - _EPOCH) // _MS)
            self._override(fields, request)
        new = NewJob(
            id=job_id,
            fields=fields,
            delay_ms=delay_ms,
            at_ms=at_ms,
            dedup_key=name,
            dedup_mode=mode,
            window_ms=window_ms,
            replace=on_duplicate == "replace",
            # An unsigned payload fits any job, so a holder can take it as it is.
            bound_id="" if self._codec.signs else "*",
            order=order,
            tenant="" if fair is None else limits.tenant(fair, request.params),
            quota="" if quota is None else quota.of_task(task.name, request.params),
            shared=shared,
        )
        return _Prepared(request, new, queue)

    def _encode(self, request: EnqueueRequest, job_id: str) -> bytes:
        task = request.task
        if task.secrets and not self._codec.signs:
            warn_secret_unprotected(task.name)
        return self._codec.encode(
            task=task.name,
            version=task.version,
            params=request.params,
            secrets=task.secrets,
            job_id=job_id,
        )

    def _shared_fields(self, task: Task[Any, Any], queue: str, now: str) -> dict[str, str]:
        """What is equal for all jobs of a task that one call puts into a queue."""
        spec = self._specs.get(queue)
        if spec is not None and spec.redis_url and spec.redis_url != self._redis_url:
            raise ConfigError(
                f"queue {queue!r} is in another Redis: use its own client, client.at({queue!r})",
                queue=queue,
                task=task.name,
            )
        timeout = task.spec.timeout or (spec.timeout if spec else None) or self._timeout
        return {
            "origin": queue,
            "created_at": now,
            "enqueued_at": now,
            "description": task.name,
            "timeout": _whole_seconds(timeout),
        }

    def _override(self, fields: dict[str, bytes | str], request: EnqueueRequest) -> None:
        overrides = request.overrides
        asked = encode_overrides(
            max_attempts=overrides.max_attempts, backoff=overrides.backoff, timeout=overrides.timeout
        )
        if asked:
            fields["o"] = asked
        if overrides.timeout is not None:
            fields["timeout"] = _whole_seconds(overrides.timeout)
        extra = encode_extra(tags=overrides.tags, correlation_id=overrides.correlation_id or "")
        if extra:
            fields["jk"] = extra

    def _dedup(self, request: EnqueueRequest) -> tuple[str, str, int, str]:
        """Name of the dedup key (empty: none), mode, window in ms, and what a duplicate does."""
        spec, overrides = request.task.spec.dedup, request.overrides
        if spec is None and overrides.dedup_key is None:
            return "", "", 0, "skip"
        if overrides.dedup_key is not None:
            key = overrides.dedup_key
        else:
            assert spec is not None
            key = dedup.render(spec.template, request.params)
        if not key:
            return "", "", 0, "skip"
        until = overrides.dedup_until or (spec.until if spec else "finished")
        on_duplicate = overrides.on_duplicate or (spec.on_duplicate if spec else "skip")
        name = f"{request.task.name}:{dedup.digest(request.task.name, key)}"
        return name, dedup.mode(until), dedup.window_ms(until), on_duplicate

    # ------------------------------------------------------------------ sending, and the answers

    def _send(self, chunk: Sequence[_Prepared]) -> Plan[list[Job]]:
        queue = chunk[0].queue
        named = [
            (each.new.id, self._names(each))
            for each in chunk
            if each.request.overrides.tags or each.request.overrides.correlation_id
        ]
        if named:
            yield self._index(chunk, named)
        register = self._clock() >= self._registered.get(queue, -math.inf)
        answers = yield from self._ask(queue, chunk, register)
        try:
            return (yield from self._answered(queue, chunk, answers, register))
        except StoreUnavailableError as error:
            error.ambiguous = True  # what was asked first has been answered: it is there
            raise

    def _answered(
        self,
        queue: str,
        chunk: Sequence[_Prepared],
        answers: list[EnqueueAnswer],
        register: bool,
    ) -> Plan[list[Job]]:
        """What follows the first answer: holders that are replaced, refusals, the jobs as they stand."""
        for _ in range(_REBINDS - 1):
            places = [place for place, answer in enumerate(answers) if answer.status == "rebind"]
            if not places:
                break
            # The holder may be replaced, but a payload is signed for its job: sign it for the holder.
            again = [self._rebound(chunk[place], answers[place].id) for place in places]
            for place, answer in zip(places, (yield from self._ask(queue, again, register)), strict=True):
                answers[place] = answer
        if register:
            self._registered[queue] = self._clock() + _REGISTER_EVERY_S
        for each, answer in zip(chunk, answers, strict=True):
            if answer.status == "shed":
                brake_state = yield from brake.state_plan(self._keys, list(self._specs))
                raise self._refused(brake_state.refusal(queue), each)
        found = yield from self._holders(answers)
        taken = [
            (answer.id, found_by)
            for each, answer in zip(chunk, answers, strict=True)
            if answer.status == "replaced" and (found_by := self._names(each))
        ]
        if taken:
            yield self._index(chunk, taken)
        return [self._job(each, answer, found) for each, answer in zip(chunk, answers, strict=True)]

    def _names(self, prepared: _Prepared) -> tuple[str, ...]:
        overrides = prepared.request.overrides
        return tags.names(self._keys, overrides.tags, overrides.correlation_id)

    def _index(self, chunk: Sequence[_Prepared], named: Sequence[tuple[str, Sequence[str]]]) -> Batch[None]:
        now_ms = time.time_ns() // 1_000_000
        due_ms = max(max(each.new.at_ms, now_ms + each.new.delay_ms) for each in chunk)
        return tags.index(named, due_ms, now_ms, self._found_by_tag)

    def _ask(self, queue: str, chunk: Sequence[_Prepared], register: bool) -> Plan[list[EnqueueAnswer]]:
        try:
            answers: list[EnqueueAnswer] = yield calls.enqueue(
                self._keys, queue, [each.new for each in chunk], register
            )
        except JobqError as error:
            self._explain(error, chunk[0])
            raise
        return answers

    def _rebound(self, prepared: _Prepared, holder: str) -> _Prepared:
        fields = {**prepared.new.fields, "data": self._encode(prepared.request, holder)}
        return replace(prepared, new=prepared.new._replace(fields=fields, bound_id=holder))

    def _holders(self, answers: Sequence[EnqueueAnswer]) -> Plan[Mapping[str, Job]]:
        """The jobs that other enqueues made, as they stand: one more round trip, only when there are any."""
        ids = list(dict.fromkeys([a.id for a in answers if a.status in _HELD]))
        if not ids:
            return _NOBODY
        replies = yield Batch(tuple(hash_command(self._keys, job_id) for job_id in ids))
        found: dict[str, Job] = {}
        for job_id, values in zip(ids, replies, strict=True):
            job = (
                None if isinstance(values, Exception) else job_from_fields(job_id, values, owner=self._owner)
            )
            if job is not None:
                found[job_id] = job
        return found

    def _job(self, prepared: _Prepared, answer: EnqueueAnswer, found: Mapping[str, Job]) -> Job:
        task, queue = prepared.request.task.name, prepared.queue
        status = answer.status
        if status == "full":
            raise self._refused(f"queue {queue!r} takes no more jobs for now", prepared)
        if status == "over_quota":
            retry_after = timedelta(milliseconds=int(answer.id))
            raise QuotaExceededError(
                f"the quota of task {task!r} is used up: try again in {format_duration(retry_after)}",
                retry_after=retry_after,
                job_id=prepared.new.id,
                queue=queue,
                task=task,
            )
        if status == "rebind":
            raise ConflictError(
                f"the holder of the dedup key changed {_REBINDS} times meanwhile: enqueue again",
                job_id=answer.id,
                queue=queue,
                task=task,
            )
        if status in _HELD:
            job = found.get(answer.id)
            # A window can outlive its job: then only the id is known.
            job = job or Job(
                id=answer.id, task=task, queue=queue, state=JobState.SUCCEEDED, owner=self._owner
            )
            if events.enabled("job.deduplicated"):
                events.emit("job.deduplicated", job_id=answer.id, task=task, queue=queue)
            return replace(job, deduplicated=True)
        new, overrides = prepared.new, prepared.request.overrides
        due = None
        if new.at_ms:
            due = datetime.fromtimestamp(new.at_ms / 1000, tz=UTC)
        now = datetime.now(UTC)
        if new.delay_ms:
            due = now + timedelta(milliseconds=new.delay_ms)
        if events.enabled("job.enqueued"):
            events.emit("job.enqueued", job_id=answer.id, task=task, queue=queue)
        waits = status == "scheduled" or (status == "mine" and due is not None and due > now)
        return Job(
            id=answer.id,
            task=task,
            queue=queue,
            state=JobState.SCHEDULED if waits else JobState.QUEUED,
            created_at=now,
            enqueued_at=now,
            due_at=due,
            max_attempts=overrides.max_attempts,
            timeout=overrides.timeout,
            tags=overrides.tags,
            correlation_id=overrides.correlation_id,
            owner=self._owner,
        )

    @staticmethod
    def _refused(message: str, first: _Prepared) -> QueueFullError:
        return QueueFullError(message, job_id=first.new.id, queue=first.queue, task=first.request.task.name)

    @staticmethod
    def _explain(error: JobqError, first: _Prepared) -> None:
        error.job_id = error.job_id or first.new.id
        error.queue = error.queue or first.queue
        error.task = error.task or first.request.task.name


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _whole_seconds(length: timedelta) -> str:
    return str(max(1, math.ceil(length.total_seconds())))
