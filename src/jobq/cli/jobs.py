"""``jobq jobs``: look at jobs, wait for them, retry, cancel, delete.

Params and results are not shown: they may hold what only the task should see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import (
    Exit,
    State,
    bulk_exit,
    check_queue,
    confirm,
    each,
    pass_state,
    refused_as_usage,
    yes_options,
)
from jobq.cli.options import DURATION, Group
from jobq.cli.output import Column, ago, duration_text

if TYPE_CHECKING:
    from jobq.job import Attempt, Job

_STATES = (
    "scheduled", "queued", "running", "retrying", "deferred", "parked", "succeeded", "dead", "cancelled"
)  # fmt: skip


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
        "error_fingerprint": job.error_fingerprint,
        "parked_reason": job.parked_reason,
        "cancel_requested": job.cancel_requested,
        "dedup_key": job.dedup_key,
        "tags": job.tags,
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


@click.group(cls=Group)
def jobs() -> None:
    """Look at jobs, wait for them, retry, cancel, delete."""


@jobs.command("list")
@click.option(
    "--state", "states", type=click.Choice(_STATES), multiple=True, help="Only this state; repeatable."
)
@click.option("--queue", metavar="Q", help="Only this queue.")
@click.option("--task", metavar="T", help="Only this task.")
@click.option("--tag", metavar="T", help="Only jobs with this tag.")
@click.option("--error", metavar="F", help="Only this error fingerprint.")
@click.option(
    "--since", type=DURATION, metavar="D", help="Only jobs that ended or were created within this time."
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="At most.")
@click.option("--cursor", metavar="C", help="Go on where a listing ended.")
@pass_state
def list_jobs(
    state: State,
    states: tuple[str, ...],
    queue: str | None,
    task: str | None,
    tag: str | None,
    error: str | None,
    since: timedelta | None,
    limit: int,
    cursor: str | None,
) -> None:
    """Jobs, newest first."""
    client = state.client()
    check_queue(client, queue)
    with refused_as_usage():
        page = client.jobs(
            state=states or None,
            queue=queue,
            task=task,
            tag=tag,
            error=error,
            since=since,
            limit=limit,
            cursor=cursor,
        )
    people = state.out.style.stdout_terminal
    records = [job_fields(job) for job in page.items]
    state.out.table(
        page.items,
        [
            Column("id", lambda job: job.id),
            Column("queue", lambda job: job.queue),
            Column("task", lambda job: job.task),
            Column("state", lambda job: job.state),
            Column("attempt", lambda job: job.attempt, right=True),
            Column("created", lambda job: ago(job.created_at) if people else job.created_at),
            Column("due", lambda job: job.due_at, wide=True),
            Column("ended", lambda job: job.ended_at, wide=True),
            Column("worker", lambda job: job.worker, wide=True),
            Column("tags", lambda job: job.tags, wide=True),
        ],
        document={"jobs": records, "cursor": page.cursor},
        records=records,
        empty="no jobs",
    )
    if page.cursor:
        state.out.say(f"more: --cursor {page.cursor}")
    for name in page.unreadable:
        state.out.say(f"not readable: {name}; see jobq doctor")


@jobs.command("show")
@click.argument("job_id", metavar="ID")
@pass_state
def show(state: State, job_id: str) -> None:
    """One job: its state, and each of its attempts. Params and result stay hidden."""
    client = state.client()
    job = client.get(job_id)
    attempts = client.attempts(job_id)
    fields = job_fields(job)
    document = fields | {"attempts": [attempt_fields(attempt) for attempt in attempts]}
    state.out.record(
        {name: value for name, value in fields.items() if value not in (None, (), False)}, document=document
    )
    if not state.out.structured:
        show_attempts(state, attempts)
        last = next((attempt.traceback for attempt in reversed(attempts) if attempt.traceback), None)
        if last and state.verbose:
            state.out.text("")
            state.out.block(last)


@jobs.command("wait")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--timeout", type=DURATION, metavar="S", help="Give up after this; default: never.")
@pass_state
def wait(state: State, ids: tuple[str, ...], timeout: timedelta | None) -> int:
    """Wait until the jobs have ended: 0 when all succeeded, 6 when one did not, 75 when time is up."""
    return wait_for(state, ids, timeout)


def wait_for(state: State, ids: Sequence[str], timeout: timedelta | None) -> int:
    """Wait for all of them, print how they stand, and choose the exit code."""
    client = state.client()
    deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
    ended: list[Job] = []
    late = False
    for job_id in dict.fromkeys(ids):
        try:
            ended.append(
                client.wait(job_id, None if deadline is None else max(0.0, deadline - time.monotonic()))
            )
        except TimeoutError:
            late = True
            ended.append(client.get(job_id))
    records = [job_fields(job) for job in ended]
    state.out.table(
        ended,
        [
            Column("id", lambda job: job.id),
            Column("task", lambda job: job.task),
            Column("state", lambda job: job.state),
            Column("attempt", lambda job: job.attempt, right=True),
        ],
        document={"jobs": records},
        records=records,
    )
    failed = [job for job in ended if job.state in ("dead", "cancelled")]
    for job in failed:
        state.out.error(f"job {job.id} is {job.state}; see jobq jobs show {job.id}")
    if failed:
        return Exit.BAD
    if late:
        state.out.error(f"timed out after {duration_text(timeout)}; the jobs go on")
        return Exit.TIMEOUT
    return Exit.DONE


def _print_bulk(state: State, done: Sequence[tuple[str, Any]], failed: Sequence[Any]) -> int:
    rows = [{"id": job_id, "result": result} for job_id, result in done]
    columns = [Column("id", lambda row: row["id"]), Column("result", lambda row: row["result"])]
    document = {"done": rows, "failed": [failure.as_dict() for failure in failed]}
    if done or state.out.structured:
        state.out.table(rows, columns, document=document)
    return bulk_exit(state, len(done), failed)


def _bulk(
    state: State,
    ids: Sequence[str],
    do: Callable[[str], Any],
    *,
    verb: str,
    ask: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    client = state.client()
    if dry_run:
        done, failed = each(ids, lambda job_id: f"would {verb} ({client.get(job_id).state.value})")
        return _print_bulk(state, done, failed)
    count = len(dict.fromkeys(ids))
    if ask:
        confirm(state, f"{verb.capitalize()} {count:,} job{'' if count == 1 else 's'}?", yes=yes)
    done, failed = each(ids, do)
    return _print_bulk(state, done, failed)


@jobs.command("retry")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@yes_options
@pass_state
def retry(state: State, ids: tuple[str, ...], dry_run: bool, yes: bool) -> int:
    """Queue dead or cancelled jobs again, now."""
    client = state.client()

    def do(job_id: str) -> str:
        return client.retry(job_id).state.value

    return _bulk(state, ids, do, verb="retry", ask=True, dry_run=dry_run, yes=yes)


@jobs.command("cancel")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@yes_options
@pass_state
def cancel(state: State, ids: tuple[str, ...], dry_run: bool, yes: bool) -> int:
    """Cancel waiting jobs at once, and ask running ones to stop. A retry brings them back."""
    # Never asks, as a retry undoes it; --yes is taken so that scripts can treat all these commands alike.
    return _bulk(state, ids, state.client().cancel, verb="cancel", ask=False, dry_run=dry_run, yes=yes)


@jobs.command("delete")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@yes_options
@pass_state
def delete(state: State, ids: tuple[str, ...], dry_run: bool, yes: bool) -> int:
    """Delete jobs that do not run, with their history."""
    client = state.client()

    def do(job_id: str) -> str:
        client.delete(job_id)
        return "deleted"

    return _bulk(state, ids, do, verb="delete", ask=True, dry_run=dry_run, yes=yes)
