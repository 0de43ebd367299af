"""``jobq queues drain|empty|clean|move``: all that waits in a queue, or its old jobs, at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from jobq.cli.bulk import carry_out, rate_option
from jobq.cli.common import State, check_queue, pass_state, refused_as_usage, yes_options
from jobq.cli.options import DURATION, Command
from jobq.cli.output import duration_text
from jobq.job import JobState
from jobq.units import plural

if TYPE_CHECKING:
    from jobq.client import Client
    from jobq.control import BulkReport

_CLEANABLE = tuple(state.value for state in JobState if state not in (JobState.QUEUED, JobState.RUNNING))


def _bulk(
    state: State,
    do: Callable[..., BulkReport],
    *args: object,
    ask: str,
    verb: str,
    rate: float | None,
    dry_run: bool,
    yes: bool,
    **more: object,
) -> int:
    """Count first, then ask and do it; ``ask`` has a place for how many."""
    with refused_as_usage():
        look = do(*args, dry_run=True, **more)
    return carry_out(
        state,
        ask.format(plural(look.matched)),
        look.matched,
        lambda progress: do(*args, rate=rate, progress=progress, **more),
        verb=verb,
        preview=lambda: state.client().preview("delete", look.first),
        dry_run=dry_run,
        yes=yes,
    )


def _client(state: State, *names: str) -> Client:
    client = state.client()
    for name in names:
        check_queue(client, name)
    return client


@click.command("drain", cls=Command)
@click.argument("name", metavar="Q")
@rate_option
@yes_options
@pass_state
def drain(state: State, name: str, rate: float | None, dry_run: bool, yes: bool) -> int:
    """Delete what waits in a queue now, for good.

    Delayed jobs and retries stay; what runs goes on.
    """
    return _bulk(
        state, _client(state, name).queues.drain, name,
        ask=f"Delete {{}} that wait in queue {name}, for good", verb="delete", rate=rate, dry_run=dry_run, yes=yes,
    )  # fmt: skip


@click.command("empty", cls=Command)
@click.argument("name", metavar="Q")
@rate_option
@yes_options
@pass_state
def empty(state: State, name: str, rate: float | None, dry_run: bool, yes: bool) -> int:
    """Delete all that waits in a queue, for good.

    Delayed jobs and retries too. What runs goes on.
    """
    return _bulk(
        state, _client(state, name).queues.empty, name,
        ask=f"Delete {{}} that wait or are delayed in queue {name}, for good", verb="delete", rate=rate,
        dry_run=dry_run, yes=yes,
    )  # fmt: skip


@click.command("clean", cls=Command)
@click.argument("name", metavar="Q")
@click.option(
    "--state", "states", type=click.Choice(_CLEANABLE), multiple=True, required=True,
    help="Only this state; repeatable.",
)  # fmt: skip
@click.option(
    "--older-than", type=DURATION, default="24h", show_default=True, metavar="D",
    help="Only those that ended, or if they have not, were created, longer ago.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most this many, newest first.")
@rate_option
@yes_options
@pass_state
def clean(
    state: State,
    name: str,
    states: tuple[str, ...],
    older_than: timedelta,
    limit: int | None,
    rate: float | None,
    dry_run: bool,
    yes: bool,
) -> int:
    """Delete a queue's old jobs, for good."""
    words = " or ".join(states)
    return _bulk(
        state, _client(state, name).queues.clean, name, states, older_than, limit=limit,
        ask=f"Delete {{}} of queue {name} that are {words} and older than {duration_text(older_than)}, for good",
        verb="delete", rate=rate, dry_run=dry_run, yes=yes,
    )  # fmt: skip


@click.command("move", cls=Command)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@rate_option
@yes_options
@pass_state
def move(state: State, source: str, target: str, rate: float | None, dry_run: bool, yes: bool) -> int:
    """Move what waits in a queue to another.

    It goes to the back, in its order. Delayed jobs and retries stay.
    """
    return _bulk(
        state, _client(state, source, target).queues.move, source, target,
        ask=f"Move {{}} from queue {source} to queue {target}", verb="move", rate=rate, dry_run=dry_run, yes=yes,
    )  # fmt: skip
