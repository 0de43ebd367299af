"""How dead letters are chosen and printed, for every command that does either."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import check_queue, one_queue
from jobq.cli.job_records import job_fields
from jobq.cli.options import DURATION, PRIORITY

if TYPE_CHECKING:
    from jobq.client import Client
    from jobq.dead_letters import DeadLetter


def letter_fields(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter for the JSON forms: all but its params."""
    return job_fields(letter.job) | {
        "reason": letter.reason,
        "error_type": letter.error_type,
        "error": letter.error,
        "attempts": letter.attempts,
        "died_at": letter.died_at,
    }


def filter_options(command: Any) -> Any:
    """Decorator: the options that choose dead letters."""
    for option in (
        click.option("--since", type=DURATION, metavar="D", help="Only those that died within this time."),
        click.option(
            "--error", metavar="FINGERPRINT", help="Only this kind of error; see `jobq dead groups`."
        ),
        click.option("--task", metavar="T", help="Only this task."),
        click.option("--queue", metavar="Q", help="Only this queue."),
        click.option("--priority", "-p", type=PRIORITY, help="Only this lane."),
    ):
        command = option(command)
    return command


def wanted(
    client: Client,
    priority: str | None,
    queue: str | None,
    task: str | None,
    error: str | None,
    since: timedelta | None,
) -> dict[str, Any]:
    """The options as ``client.dead_letters`` takes them.

    Raises:
        CliError: There is no such queue (3).
    """
    chosen = check_queue(client, one_queue(priority and priority.lower(), queue))
    return {"queue": chosen, "task": task, "error": error, "since": since}
