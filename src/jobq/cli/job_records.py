"""How one job and its attempts are printed, for every command that shows any.

Params and results are not shown: they may hold what only the task should see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobq.cli.common import State
from jobq.cli.output import Column, duration_text

if TYPE_CHECKING:
    from jobq.job import Attempt, Job


def job_fields(job: Job) -> dict[str, Any]:
    """A job for the JSON forms: all but params and result."""
    return {
        "id": job.id,
        "task": job.task,
        "queue": job.queue,
        "state": job.state,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "created_at": job.created_at,
        "enqueued_at": job.enqueued_at,
        "due_at": job.due_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "worker": job.worker,
        "timeout_s": job.timeout,
        "progress": job.progress,
        "progress_text": job.progress_text,
        "dead_reason": job.dead_reason,
        "result_dropped": job.result_dropped,
        "error_fingerprint": job.error_fingerprint,
        "parked_reason": job.parked_reason,
        "cancel_requested": job.cancel_requested,
        "dedup_key": job.dedup_key,
        "tags": job.tags,
        "correlation_id": job.correlation_id,
    }


def attempt_fields(attempt: Attempt) -> dict[str, Any]:
    """An attempt for the JSON forms."""
    return {
        "number": attempt.number,
        "outcome": attempt.outcome,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "worker": attempt.worker,
        "error_type": attempt.error_type,
        "error": attempt.error,
        "fingerprint": attempt.fingerprint,
        "traceback": attempt.traceback,
    }


def show_attempts(state: State, attempts: Sequence[Attempt]) -> None:
    """The timeline, as a table."""
    if not attempts:
        return
    state.out.text("")
    state.out.table(
        attempts,
        [
            Column("attempt", lambda attempt: attempt.number, right=True),
            Column("outcome", lambda attempt: attempt.outcome),
            Column("started", lambda attempt: attempt.started_at),
            Column("ran", _ran, right=True),
            Column("worker", lambda attempt: attempt.worker, wide=True),
            Column("fingerprint", lambda attempt: attempt.fingerprint, wide=True),
            Column("error", _attempt_error, grow=True),
        ],
    )


def _ran(attempt: Attempt) -> str:
    if attempt.started_at is None or attempt.ended_at is None:
        return "-"
    return duration_text(attempt.ended_at - attempt.started_at)


def _attempt_error(attempt: Attempt) -> str | None:
    return ": ".join(part for part in (attempt.error_type, attempt.error) if part) or None
