"""``jobq limits``: set, show and clear limits of tasks while they run, in place of what the tasks declare."""

from __future__ import annotations

from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import CliError, Exit, State, load_tasks, pass_state, suggest
from jobq.cli.options import DURATION, Group
from jobq.cli.output import Column
from jobq.cli.queues import LimitType, at_least
from jobq.errors import ConfigError
from jobq.limits import Keep, Rate
from jobq.overrides import Override, in_words

if TYPE_CHECKING:
    from jobq.client import Client


def _fields(override: Override) -> dict[str, Any]:
    return {
        "task": override.task,
        "key": override.key,
        "rate": in_words(override.rate),
        "concurrency": in_words(override.concurrency),
        "until": override.until,
        "by": override.by,
        "reason": override.reason or None,
        "set_at": override.since,
    }


def _show(state: State, override: Override, dry_run: bool) -> None:
    fields = _fields(override)
    state.out.record(fields, document=fields | {"dry_run": dry_run})


@click.group(cls=Group)
def limits() -> None:
    """Limit tasks while they run.

    In place of what they declare, for jobs that wait and those to come.
    """


@limits.command("list")
@pass_state
def list_limits(state: State) -> None:
    """All limits of tasks that were set while they run."""
    records = [_fields(override) for override in state.client(app=False).limits.list()]
    state.out.table(
        records,
        [
            *(
                Column(name, itemgetter(name))
                for name in ("task", "key", "rate", "concurrency", "until", "by")
            ),
            Column("reason", itemgetter("reason"), grow=True),
        ],
        document={"limits": records},
        records=records,
        empty="no limit is set: all are as the tasks declare",
    )


def _check_task(state: State, client: Client, name: str) -> None:
    """See that somebody knows the task: a limit of a mistyped name would hold nobody back.

    Raises:
        CliError: Nobody does (3); the message names near ones.
    """
    known = {override.task for override in client.limits.list()}
    known |= {task for worker in client.workers.list() for task in worker.tasks}
    try:
        known |= set(load_tasks(state.settings()).names())
    except ConfigError as error:
        state.out.say(f"tasks of the application are not known here: {error}")
    if name not in known:
        near = suggest(name, known) or "; name the modules that have it with -A, or say --unknown"
        raise CliError(Exit.NOT_FOUND, f"neither the application nor a live worker knows task {name!r}{near}")


_task = click.argument("task", metavar="TASK")
_key = click.option("--key", metavar="VALUE", help="Only for this value of the key of its limits.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


@limits.command("set")
@_task
@_key
@click.option(
    "--rate", type=LimitType("rate", lambda text: 0 if text == "0" else Rate.parse(text), "10/s, '50/m burst 10', 0"),
    default=Keep.KEEP, metavar="10/s", help="Starts per window, over all workers; 0: no start; none: any number.",
)  # fmt: skip
@click.option(
    "--concurrency", type=LimitType("concurrency", at_least(0), "2"), default=Keep.KEEP, metavar="N",
    help="Runs at once, over all workers; 0: no start; none: any number.",
)  # fmt: skip
@click.option(
    "--for", "for_", type=DURATION, metavar="1h", help="Until then; afterwards the declared limits hold."
)
@click.option("--reason", metavar="R", help="Shown with it.")
@click.option("--unknown", is_flag=True, help="Though nobody here knows the task.")
@_dry_run
@pass_state
def set_limit(
    state: State,
    task: str,
    key: str | None,
    rate: Any,
    concurrency: Any,
    for_: timedelta | None,
    reason: str | None,
    unknown: bool,
    dry_run: bool,
) -> None:
    """Limit a task, or one key of it.

    For jobs that wait and those to come; what runs goes on. Of a limit with a key it is the limit of each key. What is
    not given stays. `clear` undoes it.
    """
    if rate is Keep.KEEP and concurrency is Keep.KEEP:
        raise click.UsageError("Give --rate or --concurrency.")
    if for_ is not None and not for_:
        raise click.BadParameter("a limit must be longer than 0.", param_hint="'--for'")
    client = state.client()
    if not unknown:
        _check_task(state, client, task)
    try:
        made = client.limits.set(
            task, key=key, rate=rate, concurrency=concurrency, for_=for_, reason=reason, dry_run=dry_run
        )
    except ConfigError as error:  # of what was given here, not of the settings
        raise click.UsageError(str(error)) from error
    if dry_run:
        state.out.say(f"would limit {made.whose()}; nothing was changed")
    _show(state, made, dry_run)


@limits.command("clear")
@_task
@_key
@_dry_run
@pass_state
def clear(state: State, task: str, key: str | None, dry_run: bool) -> None:
    """Let the declared limits of a task, or of one key of it, hold again.

    Shows what was set.
    """
    was = state.client().limits.clear(task, key=key, dry_run=dry_run)
    if dry_run:
        state.out.say(f"would clear the limits of {was.whose()}; nothing was changed")
    _show(state, was, dry_run)
