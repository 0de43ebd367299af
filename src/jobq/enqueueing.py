"""From a validated call to a job in Redis: fields, dedup key, payload; then the answers, as jobs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from jobq import brake, calls, dedup, events, limits, tags
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
from jobq.job_reading import hash_command
from jobq.keys import Keys
from jobq.options import NO_OVERRIDES
from jobq.parsing import format_duration
from jobq.records import encode_extra, encode_overrides
from jobq.rq_bridge import iso, job_from_fields
from jobq.steps import MOST_JOBS, Batch, Call, EnqueueAnswer, NewJob, Plan, Stream
from jobq.tasks import EnqueueRequest, Task
from jobq.units import clock_ms, plural

_REGISTER_EVERY_S = 60.0
_MS = timedelta(milliseconds=1)
_REBINDS = 3
_NEW = ("queued", "scheduled", "mine")
_HELD = ("duplicate", "replaced")
_NOBODY: Mapping[str, Job] = {}


@dataclass(slots=True)
class _Prepared:
    """One job on its way."""

    request: EnqueueRequest
    new: NewJob
    queue: str


class _Bulk:
    """Many jobs on their way, in chunks of one queue each; what is known of them by their places.

    Attributes:
        unfinished: Answered chunks about which something is left to ask.
        stopped: No more is to be sent.
    """

    def __init__(self, prepared: Sequence[_Prepared]) -> None:
        self.prepared = prepared
        by_queue: dict[str, list[int]] = {}
        for place, each in enumerate(prepared):
            by_queue.setdefault(each.queue, []).append(place)
        self.chunks = [
            places[start : start + MOST_JOBS]
            for places in by_queue.values()
            for start in range(0, len(places), MOST_JOBS)
        ]
        self.unfinished: list[tuple[list[int], list[EnqueueAnswer]]] = []
        self.stopped = False
        self._jobs: list[Job | None] = [None] * len(prepared)
        self._ids: list[str | None] = [None] * len(prepared)
        self._error: JobqError | None = None

    def of(self, chunk: Sequence[int]) -> list[_Prepared]:
        """The jobs of a chunk."""
        return [self.prepared[place] for place in chunk]

    def note(self, chunk: list[int], answers: list[EnqueueAnswer]) -> None:
        """Keep answers that need more; a refused job is the last chunk's."""
        self.unfinished.append((chunk, answers))
        for place, answer in zip(chunk, answers, strict=True):
            if answer.status in _NEW or answer.status in _HELD:
                self._ids[place] = answer.id
            elif answer.status != "rebind":
                self.stopped = True

    def settle(self, chunk: Sequence[int], made: Sequence[Job | JobqError]) -> None:
        """Keep the jobs of a chunk, or why there is none."""
        for place, job in zip(chunk, made, strict=True):
            if isinstance(job, JobqError):
                self.fail(job)
            else:
                self._jobs[place], self._ids[place] = job, job.id

    def fail(self, error: JobqError) -> None:
        """Stop. The first error is the caller's, unless only a later one says that jobs are in doubt."""
        self.stopped = True
        if self._error is None or (_in_doubt(error) and not _in_doubt(self._error)):
            self._error = error

    def result(self) -> list[Job]:
        """The jobs; raises the error when there is one."""
        if self._error is None:
            return [job for job in self._jobs if job is not None]
        self._error.acknowledged = tuple(self._ids)
        count = len(self._ids) - self._ids.count(None)
        if count:
            self._error.args = (
                f"{self._error} ({count:,} of {plural(len(self._ids), verb='were')} enqueued)",
            )
        raise self._error


def _in_doubt(error: JobqError) -> bool:
    return isinstance(error, StoreUnavailableError) and error.ambiguous


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
        ages = [
            kept.age
            for spec in self._specs.values()
            for kept in (spec.keep_succeeded, spec.keep_dead, spec.keep_cancelled)
        ]
        self._found_by_tag = max(tags.KEEP, *(2 * age for age in ages))
        self._timeout = settings.timeout
        self._owner = owner
        self._clock = clock
        self._shared: dict[tuple[Task[Any, Any], str], dict[str, str]] = {}
        self._registered: dict[str, float] = {}
        here = {n: s for n, s in self._specs.items() if not s.redis_url or s.redis_url == self._redis_url}
        self._brake = brake.ClientBrake(keys, settings.shed_at().by_queue(here), clock)

    def plan(self, requests: Sequence[EnqueueRequest]) -> Plan[list[Job]]:
        """Send the requests, each queue's in chunks of 100; their jobs, in the order of the requests.

        Raises:
            PayloadTooLargeError: A payload is over the limit; nothing was sent.
            QueueFullError: A queue refuses; what was sent before stays.
            StoreUnavailableError: Redis did not answer; ``job_id`` names the first job that is in doubt.
                As any error out of many, it carries ``acknowledged``.
        """
        now = iso()
        prepared = [self._prepare(request, now) for request in requests]
        if len(prepared) == 1:
            return [(yield from self._send(prepared[0]))]
        return (yield from self._send_many(prepared))

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
            fields["lm"] = limits.task_gates(task.name, queue, rate, concurrency, request.params)
        order = overrides.order or task.spec.order
        if order != 5:
            fields["or"] = str(order)
        fair, quota = task.spec.fair, task.spec.quota
        if fair is not None:
            fields["tn"] = limits.tenant(fair, request.params)
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
            quota="" if quota is None else quota.of_task(task.name, queue, request.params),
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

    def _send(self, prepared: _Prepared) -> Plan[Job]:
        chunk = (prepared,)
        if prepared.request.overrides is not NO_OVERRIDES:
            yield from self._index([(prepared.new.id, prepared)])
        answers = yield from self._ask(chunk)
        if answers[0].status in _NEW:  # as nearly always: nothing is left to ask
            return self._new_job(prepared, answers[0])
        try:
            (job,) = yield from self._answered(chunk, answers)
        except StoreUnavailableError as error:
            error.ambiguous = True  # what was asked first has been answered: it is there
            raise
        if isinstance(job, JobqError):
            raise job
        return job

    def _send_many(self, prepared: Sequence[_Prepared]) -> Plan[list[Job]]:
        bulk = _Bulk(prepared)
        for chunk in bulk.chunks:
            yield from self._index((each.new.id, each) for each in bulk.of(chunk))
        yield Stream(self._calls(bulk), partial(self._took, bulk, iter(bulk.chunks)))
        for chunk, answers in bulk.unfinished:
            try:
                bulk.settle(chunk, (yield from self._answered(bulk.of(chunk), answers)))
            except JobqError as error:
                bulk.fail(error)
        return bulk.result()

    def _calls(self, bulk: _Bulk) -> Iterator[Call[list[EnqueueAnswer]]]:
        for chunk in bulk.chunks:
            if bulk.stopped:
                return
            yield self._call(bulk.of(chunk))

    def _took(
        self, bulk: _Bulk, unanswered: Iterator[list[int]], answers: list[EnqueueAnswer] | JobqError
    ) -> None:
        """Note the answers to the next chunk; when all its jobs are new, nothing is left to ask."""
        chunk = next(unanswered)
        if isinstance(answers, JobqError):
            self._explain(answers, bulk.prepared[chunk[0]])
            bulk.fail(answers)
        elif all(answer.status in _NEW for answer in answers):
            made = zip(bulk.of(chunk), answers, strict=True)
            bulk.settle(chunk, [self._new_job(each, answer) for each, answer in made])
        else:
            bulk.note(chunk, answers)

    def _answered(
        self, chunk: Sequence[_Prepared], answers: list[EnqueueAnswer]
    ) -> Plan[list[Job | JobqError]]:
        """What follows the first answer: holders that are replaced, refusals, the jobs as they stand."""
        queue = chunk[0].queue
        for _ in range(_REBINDS - 1):
            places = [place for place, answer in enumerate(answers) if answer.status == "rebind"]
            if not places:
                break
            # The holder may be replaced, but a payload is signed for its job: sign it for the holder.
            again = [self._rebound(chunk[place], answers[place].id) for place in places]
            self._registered.pop(queue, None)  # an enqueue that wrote nothing has not made the queue known
            for place, answer in zip(places, (yield from self._ask(again)), strict=True):
                answers[place] = answer
        shed = ""
        if any(answer.status == "shed" for answer in answers):
            shed = (yield from brake.state_plan(self._keys, list(self._specs))).refusal(queue)
        found = yield from self._holders(answers)
        named = zip(chunk, answers, strict=True)
        yield from self._index([(a.id, each) for each, a in named if a.status == "replaced"])
        return [
            self._new_job(each, answer) if answer.status in _NEW else self._other(each, answer, found, shed)
            for each, answer in zip(chunk, answers, strict=True)
        ]

    def _index(self, named: Iterable[tuple[str, _Prepared]]) -> Plan[None]:
        """Note by what jobs are found, each under the id that it goes by."""
        found_by = [
            (
                job_id,
                tags.names(self._keys, each.request.overrides.tags, each.request.overrides.correlation_id),
                each,
            )
            for job_id, each in named
            if each.request.overrides.tags or each.request.overrides.correlation_id
        ]
        if found_by:
            now_ms = clock_ms()
            due_ms = max(max(each.new.at_ms, now_ms + each.new.delay_ms) for _, _, each in found_by)
            names = [(job_id, names) for job_id, names, _ in found_by]
            yield tags.index(names, due_ms, now_ms, self._found_by_tag)

    def _call(self, chunk: Sequence[_Prepared]) -> Call[list[EnqueueAnswer]]:
        queue, now = chunk[0].queue, self._clock()
        register = now >= self._registered.get(queue, -math.inf)
        if register:
            self._registered[queue] = now + _REGISTER_EVERY_S
        call = calls.enqueue(self._keys, queue, [each.new for each in chunk], register)
        rider = self._brake.rider(len(chunk), sum(len(each.new.fields["data"]) for each in chunk))
        return call if rider is None else replace(call, rider=rider)

    def _ask(self, chunk: Sequence[_Prepared]) -> Plan[list[EnqueueAnswer]]:
        try:
            answers: list[EnqueueAnswer] = yield self._call(chunk)
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

    def _new_job(self, prepared: _Prepared, answer: EnqueueAnswer) -> Job:
        request, new, queue = prepared.request, prepared.new, prepared.queue
        task, overrides = request.task.name, request.overrides
        due = None
        if new.at_ms:
            due = datetime.fromtimestamp(new.at_ms / 1000, tz=UTC)
        now = datetime.now(UTC)
        if new.delay_ms:
            due = now + timedelta(milliseconds=new.delay_ms)
        if events.enabled("job.enqueued"):
            events.emit("job.enqueued", job_id=answer.id, task=task, queue=queue)
        waits = answer.status == "scheduled" or (answer.status == "mine" and due is not None and due > now)
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

    def _other(
        self, prepared: _Prepared, answer: EnqueueAnswer, found: Mapping[str, Job], shed: str
    ) -> Job | JobqError:
        """The job that holds the dedup key, or why there is none."""
        task, queue = prepared.request.task.name, prepared.queue
        if answer.status in _HELD:
            job = found.get(answer.id)
            # A window can outlive its job: then only the id is known.
            job = job or Job(
                id=answer.id, task=task, queue=queue, state=JobState.SUCCEEDED, owner=self._owner
            )
            if events.enabled("job.deduplicated"):
                events.emit("job.deduplicated", job_id=answer.id, task=task, queue=queue)
            return replace(job, deduplicated=True)
        if answer.status == "rebind":
            return ConflictError(
                f"the holder of the dedup key changed {_REBINDS} times meanwhile: enqueue again",
                job_id=answer.id,
                queue=queue,
                task=task,
            )
        if answer.status == "over_quota":
            retry_after = timedelta(milliseconds=int(answer.id))
            return QuotaExceededError(
                f"the quota of task {task!r} is used up: try again in {format_duration(retry_after)}",
                retry_after=retry_after,
                job_id=prepared.new.id,
                queue=queue,
                task=task,
            )
        message = shed if answer.status == "shed" else full_text(queue)
        return QueueFullError(message, job_id=prepared.new.id, queue=queue, task=task)

    def _explain(self, error: JobqError, first: _Prepared) -> None:
        self._registered.pop(first.queue, None)
        error.job_id = error.job_id or first.new.id
        error.queue = error.queue or first.queue
        error.task = error.task or first.request.task.name


def full_text(queue: str) -> str:
    """What to say when a queue has reached its ``max_waiting``."""
    return (
        f"queue {queue!r} has as many jobs waiting as it may, its max_waiting: try again later, serve it with more"
        f" slots, or let more wait: jobq queues limit {queue} --max N"
    )


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _whole_seconds(length: timedelta) -> str:
    return str(max(1, math.ceil(length.total_seconds())))
