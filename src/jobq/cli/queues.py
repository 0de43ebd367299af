"""``jobq queues``: list queues, pause, resume and limit them; more in ``queue_bulk``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import State, check_queue, pass_state
from jobq.cli.options import DURATION, Group
from jobq.cli.output import Column, duration_text
from jobq.cli.queue_bulk import clean, drain, empty, move
from jobq.errors import ConfigError
from jobq.limits import Keep, Rate

if TYPE_CHECKING:
    from jobq.client import Client
    from jobq.fleet import QueueInfo


def _fields(info: QueueInfo) -> dict[str, Any]:
    spec = info.spec
    return {
        "name": info.name,
        "configured": spec is not None,
        "queued": info.queued,
        "paused": info.paused,
        "paused_until": info.paused_until,
        "paused_by": info.paused_by,
        "paused_reason": info.paused_reason,
        "shed": info.shed,
        "rate": None if info.limits.rate is None else str(info.limits.rate),
        "concurrency": info.limits.concurrency,
        "max_waiting": info.limits.max_waiting,
        "limits_set": info.limits_set,
        "limits_until": info.limits_until,
        "backed_off_until": info.backed_off_until,
        "backed_off_by": info.backed_off_by,
        "slots": spec.slots if spec else None,
        "target_s": spec.target if spec else None,
        "isolation": spec.isolation if spec else None,
        "nice": spec.nice if spec else None,
        "group": spec.group if spec else None,
        "weight": spec.weight if spec else None,
    }


@click.group(cls=Group)
def queues() -> None:
    """List queues; pause, limit, drain, clean and move them."""


@queues.command("list")
@pass_state
def list_queues(state: State) -> None:
    """All queues, those of the settings first."""
    found = state.client().queues.list()
    records = [_fields(info) for info in found]
    people = state.out.style.stdout_terminal and not state.out.structured
    state.out.table(
        records,
        [
            Column("name", lambda row: row["name"]),
            Column("queued", lambda row: row["queued"], right=True),
            Column("paused", lambda row: row["paused"]),
            Column("shed", lambda row: row["shed"]),
            Column("slots", lambda row: row["slots"], right=True),
            Column(
                "target" if people else "target_s",
                lambda row: duration_text(row["target_s"]) if people else row["target_s"],
                right=True,
            ),
            Column("configured", lambda row: row["configured"], wide=True),
            Column("isolation", lambda row: row["isolation"], wide=True),
            Column("rate", lambda row: row["rate"], wide=True),
            Column("concurrency", lambda row: row["concurrency"], right=True, wide=True),
            Column("max_waiting", lambda row: row["max_waiting"], right=True, wide=True),
            Column("reason", lambda row: row["paused_reason"], grow=True),
        ],
        document={"queues": records},
        records=records,
    )


def _show(state: State, info: QueueInfo) -> None:
    state.out.record(_fields(info) | {"task_limits": _task_limits(state.client(), info.name)})


def _task_limits(client: Client, queue: str) -> tuple[str, ...]:
    """What operators have set for tasks of this queue, as far as the application's tasks are known here."""
    return tuple(
        f"{override.whose()}: {override.words()}"
        for override in client.limits.list()
        if override.task in client.registry and client.registry.get(override.task).spec.queue == queue
    )


@queues.command("show")
@click.argument("name", metavar="Q")
@pass_state
def show(state: State, name: str) -> None:
    """One queue."""
    client = state.client()
    check_queue(client, name)
    _show(state, client.queues.get(name))


@queues.command("pause")
@click.argument("name", metavar="Q")
@click.option("--for", "for_", type=DURATION, metavar="10m", help="Resume by itself after this.")
@click.option("--reason", metavar="R", help="Shown with the queue.")
@pass_state
def pause(state: State, name: str, for_: timedelta | None, reason: str | None) -> None:
    """Start no more of a queue's jobs.

    Those that run go on. `resume` undoes it.
    """
    if for_ is not None and not for_:
        raise click.BadParameter("a pause must be longer than 0.", param_hint="'--for'")
    client = state.client()
    check_queue(client, name)
    _show(state, client.queues.pause(name, for_, reason))


@queues.command("resume")
@click.argument("name", metavar="Q")
@pass_state
def resume(state: State, name: str) -> None:
    """End a pause, or what RateLimited closed.

    Of the queue and of the limits of its jobs.
    """
    client = state.client()
    check_queue(client, name)
    _show(state, client.queues.resume(name))


def at_least(low: int) -> Callable[[str], int]:
    """Reads a whole number that is not below ``low``."""

    def parse(text: str) -> int:
        number = int(text)
        if number < low:
            raise ValueError(text)
        return number

    return parse


class LimitType(click.ParamType[Any]):
    """A limit, or ``none`` for no limit."""

    def __init__(self, name: str, parse: Callable[[str], Any], example: str) -> None:
        self.name = name
        self._parse = parse
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The limit, None for none, or a usage error that says what to write."""
        if value is Keep.KEEP:
            return value
        try:
            return None if value == "none" else self._parse(value)
        except (ValueError, ConfigError):
            self.fail(f"{value!r} is not a limit; write {self._example} or none.", param, ctx)


@queues.command("limit")
@click.argument("name", metavar="Q")
@click.option(
    "--rate", type=LimitType("rate", Rate.parse, "50/m, '50/m burst 10'"), default=Keep.KEEP, metavar="50/m",
    help="Starts per window, over all workers, also as '50/m burst 10'; none: any number.",
)  # fmt: skip
@click.option(
    "--slots", type=LimitType("slots", at_least(1), "5"), default=Keep.KEEP, metavar="N",
    help="Runs at once, over all workers; none: any number.",
)  # fmt: skip
@click.option(
    "--max", "most", type=LimitType("max", at_least(0), "10000"), default=Keep.KEEP, metavar="N",
    help="Jobs that wait, for whatever; beyond, enqueues are refused. none: any number.",
)  # fmt: skip
@click.option(
    "--for", "for_", type=DURATION, metavar="10m", help="Until then; afterwards the settings count."
)
@click.option("--reset", is_flag=True, help="The settings count again.")
@pass_state
def limit(
    state: State, name: str, rate: Any, slots: Any, most: Any, for_: timedelta | None, reset: bool
) -> None:
    """Limit a queue while it runs.

    In place of what the settings say; what is not given stays.
    """
    given = any(each is not Keep.KEEP for each in (rate, slots, most))
    if reset == given or (reset and for_):
        raise click.UsageError("Give --rate, --slots or --max, or --reset alone.")
    if for_ is not None and not for_:
        raise click.BadParameter("a limit must be longer than 0.", param_hint="'--for'")
    client = state.client()
    check_queue(client, name)
    if reset:
        _show(state, client.queues.reset_limit(name))
    else:
        _show(state, client.queues.limit(name, rate=rate, concurrency=slots, max_waiting=most, for_=for_))


for _command in (drain, empty, clean, move):
    queues.add_command(_command)
