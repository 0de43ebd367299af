"""What each ending means: exactly one settle outcome, with its counters, its history entry and its event."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from jobq import histogram, rq_bridge
from jobq.codec import Codec
from jobq.errors import (
    Cancel,
    Discard,
    NoHandlerError,
    PayloadTooLargeError,
    RateLimited,
    Retry,
    Snooze,
    SoftTimeout,
)
from jobq.failures import ErrorDetails, describe_error, first_line, process_ended, redact
from jobq.job import RESULT_NOT_JSON, RESULT_TOO_LARGE, Attempt
from jobq.queues import QueueSpec
from jobq.records import encode_attempt
from jobq.retry import Dead, RetryPolicy
from jobq.steps import Outcome, OutcomeKind
from jobq.worker.attempt import Assignment, Ready, Report

SET_ASIDE_MS = 1_000
"""How long a job waits that this executor claimed and cannot start soon."""

_NO_ERROR = ErrorDetails()


class Reporter:
    """Turns the endings of one queue's attempts into reports.

    Args:
        codec: Encodes results.
        spec: The queue: its retention and target.
        worker: Name of the worker, for the history.
        result_limit: Bytes of an encoded result; a larger one is not kept.
        rand: Source of jitter.
    """

    def __init__(
        self, *, codec: Codec, spec: QueueSpec, worker: str, result_limit: int, rand: random.Random
    ) -> None:
        self._codec = codec
        self._worker = worker
        self._result_limit = result_limit
        self._rand = rand
        self._target_ms = None if spec.target is None else spec.target.total_seconds() * 1000
        self._keep_succeeded = _seconds(spec.keep_succeeded.age)
        self._keep_dead = _seconds(spec.keep_dead.age)

    # -- the function has run -----------------------------------------------------------------------------------

    def succeeded(self, work: Assignment, ready: Ready, value: Any) -> Report:
        """The function has returned ``value``."""
        result, note, dropped = b"", "", ""
        if value is not None and ready.task.spec.keep_result:
            try:
                result = rq_bridge.encode_result(self._codec.encode_result(value, limit=self._result_limit))
            except Exception as error:
                # The effect has happened: losing the result must not repeat it.
                note = f"result not kept: {first_line(error, ready.secrets)}"
                dropped = RESULT_TOO_LARGE if isinstance(error, PayloadTooLargeError) else RESULT_NOT_JSON
        keep = ready.foreign.keep_succeeded_s
        report = self.report(
            work,
            "succeeded",
            "job.succeeded",
            spends=True,
            reason=dropped,
            result=result,
            keep_s=self._keep_succeeded if keep is None else keep,
            task=ready.task.name,
            mark="s",
        )
        if note:
            report.fields["note"] = note
        return report

    def failed(self, work: Assignment, ready: Ready, error: BaseException) -> Report:
        """The function has raised: a signal that asks for something, or a failure."""
        task = ready.task.name
        if isinstance(error, Snooze | RateLimited):
            limited = isinstance(error, RateLimited)
            length = error.retry_after if isinstance(error, RateLimited) else error.for_
            return self.report(
                work,
                "limited" if limited else "snooze",
                "job.snoozed",
                delay_ms=_ms(length),
                task=task,
                mark="o",
                retry_in_s=_seconds(length),
            )
        if isinstance(error, Cancel | Discard):
            reason = redact(error.reason, ready.secrets)
            if isinstance(error, Discard):
                reason = f"discarded: {reason}"
            return self.report(
                work, "cancelled", "job.cancelled", spends=True, reason=reason, task=task, mark="c"
            )
        if isinstance(error, NoHandlerError):
            return self.dead(work, "no_handler", error, task=task, secrets=ready.secrets)
        if isinstance(error, Retry):
            if work.attempt < ready.policy.max_attempts:
                after = error.after
                if after is None:
                    decision = ready.policy.decide(work.attempt, error, self._rand)
                    after = timedelta(0) if isinstance(decision, Dead) else decision.delay
                return self._retry(work, ready, error, after)
            return self._exhausted(work, ready, error, "exhausted")
        decision = ready.policy.decide(work.attempt, error, self._rand)
        if isinstance(decision, Dead):
            return self._exhausted(work, ready, error, decision.reason)
        return self._retry(work, ready, error, decision.delay)

    def _retry(self, work: Assignment, ready: Ready, error: BaseException, delay: timedelta) -> Report:
        details = describe_error(error, ready.secrets)
        timed_out = isinstance(error, SoftTimeout)
        return self.report(
            work,
            "retry",
            "job.timed_out" if timed_out else "job.retry_scheduled",
            spends=True,
            delay_ms=_ms(delay),
            fingerprint=details.fingerprint,
            record=self._record(work, "timed_out" if timed_out else "failed", details),
            task=ready.task.name,
            mark="r",
            error_type=details.type,
            error_fingerprint=details.fingerprint,
            retry_in_s=round(delay.total_seconds(), 3),
        )

    def _exhausted(self, work: Assignment, ready: Ready, error: BaseException, reason: str) -> Report:
        keep = ready.foreign.keep_dead_s
        return self.dead(
            work, reason, error, task=ready.task.name, secrets=ready.secrets, spends=True, keep_s=keep
        )

    def unclassified(self, work: Assignment, error: BaseException) -> Report:
        """Something of ours, or a policy of the application's, broke around a run: a failed attempt.

        Nothing of the error but its type is kept, since what it says has not been searched for secrets. The policy
        may be what broke, so the number of attempts is all that is asked of it.
        """
        policy = RetryPolicy() if work.ready is None else work.ready.policy
        details = ErrorDetails(type(error).__qualname__, "the outcome could not be worked out")
        dead = work.attempt >= policy.max_attempts
        return self.report(
            work,
            "dead" if dead else "retry",
            "job.dead" if dead else "job.retry_scheduled",
            spends=True,
            delay_ms=0 if dead else _ms(RetryPolicy().delays.delay(work.attempt, self._rand)),
            reason="exhausted" if dead else "",
            record=self._record(work, "failed", details),
            exc=rq_bridge.encode_exc(f"{details.type}: {details.message}") if dead else b"",
            mark="d" if dead else "r",
            error_type=details.type,
        )

    # -- it has not, or not to its end --------------------------------------------------------------------------

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
            keep_s=keep_s,
            task=task,
            mark="d",
            error_type=details.type,
            error_fingerprint=details.fingerprint,
        )

    def parked(self, work: Assignment, bucket: str, reason: str) -> Report:
        """The job waits for a worker that can run it."""
        return self.report(work, "park", "job.parked", reason=reason, bucket=bucket, mark="o")

    def cancelled(self, work: Assignment, reason: str) -> Report:
        """The job was asked to stop before it started."""
        return self.report(work, "cancelled", "job.cancelled", reason=reason)

    def handed_back(self, work: Assignment) -> Report:
        """A job that goes back to the front of its queue without having started."""
        return self._unspent(work, "hand_back")

    def set_aside(self, work: Assignment) -> Report:
        """A job that cannot start here soon: at the front of its queue, this executor would claim it again at once."""
        return self._unspent(work, "snooze", delay_ms=SET_ASIDE_MS)

    def _unspent(self, work: Assignment, kind: OutcomeKind, delay_ms: int = 0) -> Report:
        outcome = Outcome(
            job_id=work.job.id, token=work.job.token, kind=kind, delay_ms=delay_ms, worker=self._worker
        )
        return Report(work, outcome, "")

    def interrupted(self, work: Assignment, *, crash: bool, alone: bool, status: int) -> Report:
        """A run whose process ended under it.

        Args:
            crash: It ended by its own doing, which counts against the job.
            alone: No other job ran in that process.
            status: Exit code of the process, or minus the signal that ended it.
        """
        details = process_ended(status, crash=crash)
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

    # -- building one -------------------------------------------------------------------------------------------

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
        wait_ms = work.wait_ms
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


def _seconds(value: timedelta) -> int:
    return max(1, int(value.total_seconds()))


def _ms(value: timedelta) -> int:
    return int(value.total_seconds() * 1000)
