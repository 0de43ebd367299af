"""One attempt of one job: decode, validate, run, classify. No Redis, no threads of its own.

An attempt is a pipeline over one :class:`Assignment`: ``open`` makes the call ready or says why it must not run,
``run`` (or ``run_async``) calls the function, and each ending is classified into exactly one settle outcome.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import random
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from jobq import histogram, rq_bridge
from jobq.codec import Codec, Envelope
from jobq.context import ContextSink, JobContext, running_job
from jobq.errors import (
    Cancel,
    CodecError,
    ConfigError,
    Discard,
    NewerPayloadError,
    NoHandlerError,
    NoKeyError,
    PayloadError,
    Retry,
    SignatureError,
    Snooze,
    SoftTimeout,
    UnknownTaskError,
)
from jobq.job import Attempt
from jobq.options import TaskOptions
from jobq.queues import QueueSpec
from jobq.records import encode_attempt
from jobq.retry import Dead, RetryPolicy, delays_from_dict
from jobq.rq_bridge import ForeignOptions
from jobq.steps import Claimed, Outcome, OutcomeKind
from jobq.tasks import Registry, Task

PARK_NO_KEY = "~key"
PARK_NEWER = "~newer"
PARK_UNSUPPORTED = "~unsupported"
"""Buckets of parked jobs that no task name describes; of the first there is one for each key."""

_SHOWN_FRAMES = 20
_FINGERPRINT_FRAMES = 5


@dataclass(slots=True, eq=False)
class Assignment:
    """One claimed job in an executor's hands.

    Attributes:
        slot: Index of its record in the slot table.
        job: The job as claimed.
        claimed_at: Seconds of the monotonic clock when the claim was answered.
        claimed_ms: The same moment by Redis' clock.
        started_at: Seconds of the monotonic clock when its run began; 0 before.
        expired: Its event loop has cancelled it because its time was up.
        ready: What it needs to run, once its payload is decoded.
        executor: Where it runs.
    """

    slot: int
    job: Claimed
    claimed_at: float
    claimed_ms: int
    started_at: float = 0.0
    expired: bool = False
    ready: _Ready | None = field(default=None, repr=False)
    executor: Any = None

    @property
    def attempt(self) -> int:
        """The attempt this run is, counted from 1."""
        return self.job.attempts + 1

    @property
    def timeout_s(self) -> float:
        """Seconds until the soft timeout; always finite."""
        return float(self.job.timeout) if self.job.timeout > 0 else 180.0


@dataclass(slots=True)
class Report:
    """How an attempt ended: what to settle, and what to tell once it is stored."""

    assignment: Assignment
    outcome: Outcome
    event: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Ready:
    task: Task[..., Any]
    params: dict[str, Any]
    secrets: tuple[str, ...]
    policy: RetryPolicy
    foreign: ForeignOptions
    context: JobContext


class Runner:
    """Runs attempts for one queue.

    Args:
        spec: The queue: its retention, target and defaults.
        worker: Name of the worker, for the history.
        sink: Where progress and log lines go.
        default_attempts: For tasks and queues that do not say.
        result_limit: Bytes of an encoded result; a larger one is not kept.
        rand: Source of jitter; a test passes a seeded one.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        registry: Registry,
        spec: QueueSpec,
        worker: str,
        sink: ContextSink,
        default_attempts: int = 3,
        result_limit: int = 262_144,
        rand: random.Random | None = None,
    ) -> None:
        self._codec = codec
        self._registry = registry
        self._spec = spec
        self._worker = worker
        self._sink = sink
        self._default_attempts = default_attempts
        self._result_limit = result_limit
        self._rand = rand or random.Random()
        self._target_ms = None if spec.target is None else spec.target.total_seconds() * 1000
        self._keep_succeeded = _seconds(spec.keep_succeeded.age)
        self._keep_dead = _seconds(spec.keep_dead.age)
        # Merging a task's options with its queue's costs a quarter of a small job's run, and never changes.
        self._policies: dict[str, tuple[TaskOptions | None, RetryPolicy]] = {}

    # -- the pipeline -------------------------------------------------------------------------------------------

    def run(self, work: Assignment) -> Report:
        """Run one attempt in this thread. Never raises, whatever the payload or the task does."""
        ready = self._open(work)
        if isinstance(ready, Report):
            return ready
        try:
            with running_job(ready.context):
                value = ready.task.invoke(ready.params)
                if inspect.iscoroutine(
                    value
                ):  # an async task in a thread or a child: a loop for this one run
                    value = asyncio.run(value)
        except BaseException as error:
            return self._failed(work, ready, error)
        return self._succeeded(work, ready, value)

    async def run_async(self, work: Assignment) -> Report:
        """Run one attempt in this event loop. Never raises, except when the loop itself is stopped."""
        ready = self._open(work)
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
                return self._failed(work, ready, _timeout(work, error))
            return self._failed(work, ready, error)
        return self._succeeded(work, ready, value)

    def timed_out(self, work: Assignment) -> Report:
        """The report of a run that was cut off at its timeout, from outside of its function."""
        ready = work.ready or self._open(work)
        return ready if isinstance(ready, Report) else self._failed(work, ready, _timeout(work, None))

    def handed_back(self, work: Assignment) -> Report:
        """The report of a job that goes back to the front of its queue without having started."""
        outcome = Outcome(job_id=work.job.id, token=work.job.token, kind="hand_back", worker=self._worker)
        return Report(work, outcome, "")

    def interrupted(self, work: Assignment, *, crash: bool, alone: bool, status: int) -> Report:
        """The report of a run whose process ended under it.

        Args:
            crash: It ended by its own doing, which counts against the job.
            alone: No other job ran in that process.
            status: Exit code of the process, or minus the signal that ended it.
        """
        words = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
        details = ErrorDetails(
            "ProcessCrash" if crash else "ProcessLost", f"the process that ran it ended: {words}", "", ""
        )
        report = self.report(
            work,
            "interrupted",
            "job.rescued",
            record=self._record(work, "crashed" if crash else "interrupted", details),
            exc=rq_bridge.encode_exc(details.message),
            mark="o",
            error_type=details.type,
        )
        report.outcome = replace(report.outcome, crash=crash, alone=alone)
        return report

    def _open(self, work: Assignment) -> _Ready | Report:
        """Verify, decode, resolve, validate; or the report of a job that must not run."""
        work.started_at = work.started_at or time.monotonic()
        job = work.job
        if self._sink.cancel_requested(job.id):
            return self.report(work, "cancelled", "job.cancelled", reason="cancelled before it started")
        foreign = rq_bridge.foreign_options(job.rq) if job.rq else _OURS
        if foreign.unsupported:
            return self.parked(work, PARK_UNSUPPORTED, foreign.unsupported)
        first = work.attempt == 1 and not job.lost and not job.crashes  # rq's ttl bounds the first wait alone
        if first and foreign.expires_at_ms is not None and work.claimed_ms > foreign.expires_at_ms:
            return self.dead(work, "expired", None)
        name = job.description
        secrets: tuple[str, ...] = ()
        try:
            envelope = self._codec.decode(job.data, job_id=job.id)
            name = envelope.task
            task = self._registry.resolve(name)
            secrets = _secret_texts(task, envelope)
            params = task.load(envelope.params, envelope.version)
        except UnknownTaskError:
            return self.parked(work, name, "unknown_task")
        except NoKeyError as error:
            return self.parked(work, no_key_bucket(error.key_id), "no_key")
        except NewerPayloadError as error:
            # Never under the task's name: this worker knows it, and would claim the job again at once.
            return self.parked(work, PARK_NEWER, f"newer_payload: {error}")
        except SignatureError as error:
            return self.dead(work, "rejected", error)
        except (CodecError, PayloadError) as error:
            return self.dead(work, "unreadable", error, secrets=secrets)
        except Exception as error:  # an upcaster or a validator of the application's own
            return self.dead(work, "unreadable", error, secrets=secrets)
        return self._ready(work, task, params, secrets, foreign)

    def _ready(
        self,
        work: Assignment,
        task: Task[..., Any],
        params: dict[str, Any],
        secrets: tuple[str, ...],
        foreign: ForeignOptions,
    ) -> _Ready:
        policy = self._policy(task, work.job.overrides, foreign)
        context = JobContext(
            job_id=work.job.id,
            task=task.name,
            queue=self._spec.name,
            attempt=work.attempt,
            max_attempts=policy.max_attempts,
            sink=self._sink,
        )
        work.ready = _Ready(task, params, secrets, policy, foreign, context)
        return work.ready

    def _policy(self, task: Task[..., Any], overrides: bytes, foreign: ForeignOptions) -> RetryPolicy:
        spec, policy = self._policies.get(task.name, _NO_POLICY)
        if spec is not task.spec:  # the first of this task, or another task goes by its name now
            policy = task.spec.policy(self._spec, default_attempts=self._default_attempts)
            self._policies[task.name] = task.spec, policy
        if overrides:
            policy = override_policy(policy, overrides)
        if foreign.max_attempts is not None:
            policy = replace(policy, max_attempts=foreign.max_attempts)
        return policy

    # -- classification -----------------------------------------------------------------------------------------

    def _succeeded(self, work: Assignment, ready: _Ready, value: Any) -> Report:
        result = b""
        note = ""
        if value is not None:
            try:
                result = rq_bridge.encode_result(self._codec.encode_result(value, limit=self._result_limit))
            except Exception as error:  # the effect has happened: losing the result must not repeat it
                note = f"result not kept: {_first_line(error, ready.secrets)}"
        keep = ready.foreign.keep_succeeded_s
        report = self.report(
            work,
            "succeeded",
            "job.succeeded",
            spends=True,
            result=result,
            keep_s=self._keep_succeeded if keep is None else keep,
            task=ready.task.name,
            mark="s",
        )
        if note:
            report.fields["note"] = note
        return report

    def _failed(self, work: Assignment, ready: _Ready, error: BaseException) -> Report:
        task = ready.task.name
        if isinstance(error, Snooze):
            return self.report(
                work,
                "snooze",
                "job.snoozed",
                delay_ms=_ms(error.for_),
                task=task,
                mark="o",
                retry_in_s=_seconds(error.for_),
            )
        if isinstance(error, Cancel):
            reason = _redact(error.reason, ready.secrets)
            return self.report(
                work, "cancelled", "job.cancelled", spends=True, reason=reason, task=task, mark="c"
            )
        if isinstance(error, Discard):
            reason = f"discarded: {_redact(error.reason, ready.secrets)}"
            return self.report(
                work, "cancelled", "job.cancelled", spends=True, reason=reason, task=task, mark="c"
            )
        if isinstance(error, NoHandlerError):
            return self.dead(work, "no_handler", error, task=task, secrets=ready.secrets)
        if isinstance(error, Retry):
            if work.attempt < ready.policy.max_attempts:
                delay = error.after
                if delay is None:
                    decision = ready.policy.decide(work.attempt, error, self._rand)
                    delay = timedelta(0) if isinstance(decision, Dead) else decision.delay
                return self._retry(work, ready, error, delay)
            return self._exhausted(work, ready, error, "exhausted")
        decision = ready.policy.decide(work.attempt, error, self._rand)
        if isinstance(decision, Dead):
            return self._exhausted(work, ready, error, decision.reason)
        return self._retry(work, ready, error, decision.delay)

    def _retry(self, work: Assignment, ready: _Ready, error: BaseException, delay: timedelta) -> Report:
        details = describe_error(error, ready.secrets)
        return self.report(
            work,
            "retry",
            "job.timed_out" if isinstance(error, SoftTimeout) else "job.retry_scheduled",
            spends=True,
            delay_ms=_ms(delay),
            fingerprint=details.fingerprint,
            record=self._record(work, "timed_out" if isinstance(error, SoftTimeout) else "failed", details),
            task=ready.task.name,
            mark="r",
            error_type=details.type,
            error_fingerprint=details.fingerprint,
            retry_in_s=round(delay.total_seconds(), 3),
        )

    def _exhausted(self, work: Assignment, ready: _Ready, error: BaseException, reason: str) -> Report:
        keep = ready.foreign.keep_dead_s
        return self.dead(
            work, reason, error, task=ready.task.name, secrets=ready.secrets, spends=True, keep_s=keep
        )

    def dead(
        self,
        work: Assignment,
        reason: str,
        error: BaseException | None,
        *,
        task: str = "",
        secrets: tuple[str, ...] = (),
        spends: bool = False,
        keep_s: int | None = None,
    ) -> Report:
        """The job becomes a dead letter."""
        details = describe_error(error, secrets) if error is not None else _NO_ERROR
        outcome = "timed_out" if isinstance(error, SoftTimeout) else ("failed" if spends else reason)
        return self.report(
            work,
            "dead",
            "job.dead",
            spends=spends,
            reason=reason,
            fingerprint=details.fingerprint,
            record=self._record(work, outcome, details),
            exc=rq_bridge.encode_exc(details.traceback or details.message or reason),
            keep_s=self._keep_dead if keep_s is None else keep_s,
            task=task,
            mark="d",
            error_type=details.type,
            error_fingerprint=details.fingerprint,
        )

    def parked(self, work: Assignment, bucket: str, reason: str) -> Report:
        """The job waits for a worker that can run it."""
        return self.report(work, "park", "job.parked", reason=reason, bucket=bucket, mark="o")

    def report(
        self,
        work: Assignment,
        kind: OutcomeKind,
        event: str,
        *,
        spends: bool = False,
        delay_ms: int = 0,
        reason: str = "",
        bucket: str = "",
        fingerprint: str = "",
        record: bytes = b"",
        result: bytes = b"",
        exc: bytes = b"",
        keep_s: int | None = None,
        task: str = "",
        mark: str = "c",
        **fields: Any,
    ) -> Report:
        """Build the outcome, its counters and its event."""
        job = work.job
        reason = reason.encode("utf-8", "replace").decode()  # a lone surrogate could not be sent
        now = time.monotonic()
        run_ms = (now - work.started_at) * 1000
        wait_ms = (
            work.claimed_ms - job.queued_ms + (work.started_at - work.claimed_at) * 1000
            if job.queued_ms
            else 0.0
        )
        label = task or rq_bridge.task_of(job.description)
        counters = [f"{mark}:{label}", f"w:{histogram.bucket(wait_ms)}"]
        if spends:
            counters.append(f"u:{histogram.bucket(run_ms)}")
        if self._target_ms is not None:
            counters.append("m" if wait_ms <= self._target_ms else "x")
        outcome = Outcome(
            job_id=job.id,
            token=job.token,
            kind=kind,
            spends=spends,
            delay_ms=delay_ms,
            reason=reason,
            bucket=bucket,
            fingerprint=fingerprint,
            record=record,
            result=result,
            exc=exc,
            worker=self._worker,
            keep_s=self._keep_dead if keep_s is None else keep_s,
            counters=tuple(counters),
        )
        fields |= {
            "task": label,
            "attempt": work.attempt,
            "wait_ms": round(wait_ms, 1),
            "run_ms": round(run_ms, 1),
        }
        if reason:
            fields["reason"] = reason
        return Report(work, outcome, event, fields)

    def _record(self, work: Assignment, outcome: str, details: ErrorDetails) -> bytes:
        now = datetime.now(UTC)
        return encode_attempt(
            Attempt(
                number=work.attempt,
                outcome=outcome,
                started_at=now - timedelta(seconds=time.monotonic() - work.started_at),
                ended_at=now,
                worker=self._worker,
                error_type=details.type or None,
                error=details.message or None,
                traceback=details.traceback or None,
                fingerprint=details.fingerprint or None,
            )
        )


def no_key_bucket(key_id: str) -> str:
    """The bucket of jobs that wait for a worker with this key; one with other keys must not ask for it."""
    return f"{PARK_NO_KEY}:{key_id}"


def _timeout(work: Assignment, cause: BaseException | None) -> SoftTimeout:
    error = SoftTimeout(f"the task ran longer than its timeout of {work.timeout_s:g} s")
    if cause is not None:
        error.__traceback__ = cause.__traceback__
    return error


def override_policy(policy: RetryPolicy, overrides: bytes) -> RetryPolicy:
    """A task's policy with what one call asked for, from the job's ``o`` field. An unreadable field asks nothing."""
    try:
        asked = json.loads(overrides)
        if "max_attempts" in asked:
            policy = replace(policy, max_attempts=asked["max_attempts"])
        if "backoff" in asked:
            policy = replace(policy, delays=delays_from_dict(asked["backoff"]))
    except (ValueError, TypeError, ConfigError):
        pass
    return policy


# -- errors as text -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What is kept of an exception: nothing in it shows a secret param."""

    type: str = ""
    message: str = ""
    traceback: str = ""
    fingerprint: str = ""


_NO_ERROR = ErrorDetails()
_NO_POLICY: tuple[TaskOptions | None, RetryPolicy] = (None, RetryPolicy())
_OURS = ForeignOptions()


def describe_error(error: BaseException, secrets: Iterable[str]) -> ErrorDetails:
    """Type, message, traceback and fingerprint of an error, with every secret value blotted out.

    The fingerprint is equal for errors of one type raised from the same place: SHA-256 of the type and of the last
    five frames' file names and functions, without line numbers, which change with every edit.
    """
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}" if kind.__module__ != "builtins" else kind.__qualname__
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.name}" for frame in frames[-_FINGERPRINT_FRAMES:]]
    fingerprint = hashlib.sha256("|".join([name, *places]).encode()).hexdigest()[:12]
    text = "".join(traceback.format_exception(kind, error, error.__traceback__, limit=-_SHOWN_FRAMES))
    return ErrorDetails(name, _redact(_text_of(error), secrets), _redact(text, secrets), fingerprint)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its message cannot be shown)"


def _secret_texts(task: Task[..., Any], envelope: Envelope) -> tuple[str, ...]:
    """Every text inside the secret params, to be blotted out of what errors say."""
    return tuple(text for name in task.secrets for text in _texts(envelope.params.get(name)) if text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from _texts(member)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _redact(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        for form in {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}:
            text = text.replace(form, "•••")
    return text


def _first_line(error: BaseException, secrets: Iterable[str]) -> str:
    return (_redact(_text_of(error), secrets).splitlines() or [""])[0][:200]


def _seconds(value: timedelta) -> int:
    return max(1, int(value.total_seconds()))


def _ms(value: timedelta) -> int:
    return int(value.total_seconds() * 1000)
