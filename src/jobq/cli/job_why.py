"""``jobq why``, also ``jobq jobs why``: why a job has not run, or what happened to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import State, pass_state
from jobq.cli.job_records import attempt_fields, job_fields
from jobq.cli.options import Command
from jobq.cli.output import Column, ago

if TYPE_CHECKING:
    from jobq.reasons import Reason


def reason_fields(reason: Reason) -> dict[str, Any]:
    """A reason for the JSON forms."""
    return {
        "code": reason.code,
        "text": reason.text,
        "since": reason.since,
        "until": reason.until,
        "remedy": reason.remedy,
        "blocks": reason.blocks,
    }


@click.command("why", cls=Command)
@click.argument("job_id", metavar="ID")
@pass_state
def why(state: State, job_id: str) -> None:
    """Why a job has not run, or what happened.

    What blocks it comes first.
    """
    found = state.client().why(job_id)
    records = [reason_fields(reason) for reason in found.reasons]
    out = state.out
    if not out.structured:
        job = found.job
        out.say(f"job {job.id} ({job.task}, queue {job.queue}) is {job.state.value}")
        if found.eta is not None:
            out.say(f"expected to start {ago(found.eta)}, at the queue's pace of the last five minutes")
    people = out.style.stdout_terminal
    out.table(
        found.reasons,
        [
            Column("code", lambda reason: reason.code),
            Column("blocks", lambda reason: reason.blocks),
            Column("since", lambda reason: ago(reason.since) if people else reason.since),
            Column("until", lambda reason: ago(reason.until) if people else reason.until),
            Column("why", lambda reason: reason.text, grow=True),
            Column("remedy", lambda reason: reason.remedy, grow=True),
        ],
        document={
            "job": job_fields(found.job),
            "ahead": found.ahead,
            "eta": found.eta,
            "reasons": records,
            "attempts": [attempt_fields(attempt) for attempt in found.attempts],
        },
        records=records,
    )
