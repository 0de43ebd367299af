"""``jobq jobs``: look at jobs and wait for them; what changes them is in ``job_bulk``.

Params and results are not shown: they may hold what only the task should see.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from jobq.cli.bulk import filter_options
from jobq.cli.common import Exit, State, check_queue, pass_state, refused_as_usage
from jobq.cli.job_bulk import cancel, delete, promote, retry
from jobq.cli.job_logs import logs
from jobq.cli.job_records import attempt_fields, job_fields, show_attempts
from jobq.cli.job_why import why
from jobq.cli.options import DURATION, Group
from jobq.cli.output import Column, ago, duration_text

if TYPE_CHECKING:
    from jobq.job import Job


_LOOK_S = 1.0
"""How often a job's progress is looked at while somebody waits for it alone."""


@click.group(cls=Group)
def jobs() -> None:
    """Look at jobs, wait for them, retry, cancel, promote, delete."""


@jobs.command("list")
@filter_options()
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="At most.")
@click.option("--cursor", metavar="C", help="Go on where a listing ended.")
@pass_state
def list_jobs(
    state: State,
    states: tuple[str, ...],
    queue: str | None,
    task: str | None,
    tag: str | None,
    correlation_id: str | None,
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
            correlation_id=correlation_id,
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
    state.out.details(fields, document=document)
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
    """Wait until jobs have ended.

    Exit code 0 when all succeeded, 6 when one did not, 75 when time is up.
    """
    return wait_for(state, ids, timeout)


def wait_for(state: State, ids: Sequence[str], timeout: timedelta | None) -> int:
    """Wait for all of them, print how they stand, and choose the exit code."""
    client = state.client()
    wanted = list(dict.fromkeys(ids))
    alone = len(wanted) == 1
    over: set[str] = set()
    with state.out.progress("waiting", None if alone else len(wanted)) as bar:

        def seen(job: Job) -> None:
            if alone and job.progress is not None:
                bar.reach(job.progress, job.progress_text)
            elif job.finished and job.id not in over:
                over.add(job.id)
                bar.advance()

        ended = client.wait_all(wanted, timeout, look=_LOOK_S if alone else _LOOK_S * 5, seen=seen)
    late = not all(job.finished for job in ended)
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


for _command in (why, logs, retry, cancel, promote, delete):
    jobs.add_command(_command)
