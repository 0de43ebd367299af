"""``jobq queues``: list queues, pause and resume them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import State, check_queue, pass_state
from jobq.cli.options import DURATION, Group
from jobq.cli.output import Column, duration_text

if TYPE_CHECKING:
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
        "maximum": info.maximum,
        "slots": spec.slots if spec else None,
        "target_s": spec.target if spec else None,
        "isolation": spec.isolation if spec else None,
        "nice": spec.nice if spec else None,
    }


@click.group(cls=Group)
def queues() -> None:
    """List queues, pause and resume them."""


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
            Column("slots", lambda row: row["slots"], right=True),
            Column(
                "target" if people else "target_s",
                lambda row: duration_text(row["target_s"]) if people else row["target_s"],
                right=True,
            ),
            Column("configured", lambda row: row["configured"], wide=True),
            Column("isolation", lambda row: row["isolation"], wide=True),
            Column("reason", lambda row: row["paused_reason"], grow=True),
        ],
        document={"queues": records},
        records=records,
    )


def _show(state: State, info: QueueInfo) -> None:
    fields = _fields(info)
    state.out.record(fields)


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
    """Start no more jobs of the queue; those that run go on. `resume` undoes it."""
    if for_ is not None and not for_:
        raise click.BadParameter("a pause must be longer than 0.", param_hint="'--for'")
    client = state.client()
    check_queue(client, name)
    _show(state, client.queues.pause(name, for_, reason))


@queues.command("resume")
@click.argument("name", metavar="Q")
@pass_state
def resume(state: State, name: str) -> None:
    """End a pause."""
    client = state.client()
    check_queue(client, name)
    _show(state, client.queues.resume(name))
