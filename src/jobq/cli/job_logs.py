"""``jobq jobs logs``: what a task has said about one job."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import Exit, State, pass_state
from jobq.cli.options import Command
from jobq.cli.output import Column, clean, plain, to_json
from jobq.units import plural

if TYPE_CHECKING:
    from jobq.joblog import LogLine

_LOOK_S = 0.5


def line_fields(line: LogLine) -> dict[str, Any]:
    """A line for the JSON forms."""
    return {"number": line.number, "at": line.at, "attempt": line.attempt, "text": line.text}


@click.command("logs", cls=Command)
@click.argument("job_id", metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@pass_state
def logs(state: State, job_id: str, follow: bool) -> int:
    """What the task has said with ctx.log.

    The job's last 200 lines.
    """
    client, out = state.client(), state.out
    if follow and out.format not in ("table", "wide", "jsonl"):
        raise click.UsageError("--follow prints lines as they come: -o jsonl, or none of the forms.")
    if follow:
        return _follow(state, job_id)
    lines = client.logs(job_id)
    records = [line_fields(line) for line in lines]
    out.table(
        lines,
        [
            Column("at", lambda line: line.at),
            Column("attempt", lambda line: line.attempt, right=True),
            Column("text", lambda line: line.text, grow=True),
        ],
        document={"lines": records},
        records=records,
        empty="no lines: the task has said nothing, or its log has expired",
    )
    return Exit.DONE


def _follow(state: State, job_id: str) -> int:
    client, seen = state.client(), 0
    while True:
        # The state first: what is said between the two looks is still shown.
        ended = client.get(job_id).finished
        for line in client.logs(job_id, seen):
            if line.number > seen + 1 and seen:
                gone = plural(line.number - seen - 1, "line", "are")
                state.out.say(f"{gone} gone: the log keeps 200")
            seen = line.number
            if state.out.structured:
                click.echo(to_json(line_fields(line)))
            else:
                click.echo(f"{plain(line.at)}\t{line.attempt}\t{clean(line.text)}")
        if ended:
            return Exit.DONE
        time.sleep(_LOOK_S)
