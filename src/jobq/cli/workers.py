"""``jobq workers``: see who works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import State, pass_state
from jobq.cli.options import Group
from jobq.cli.output import Column, ago

if TYPE_CHECKING:
    from jobq.fleet import Worker


def worker_fields(worker: Worker) -> dict[str, Any]:
    """A worker for the JSON forms."""
    return {
        "name": worker.name,
        "kind": worker.kind,
        "queues": worker.queues,
        "state": worker.state,
        "slots": worker.slots,
        "busy": worker.busy,
        "host": worker.host,
        "pid": worker.pid,
        "version": worker.version,
        "started_at": worker.started_at,
        "last_heartbeat": worker.last_heartbeat,
        "tasks": worker.tasks,
    }


@click.group(cls=Group)
def workers() -> None:
    """See who works."""


@workers.command("list")
@pass_state
def list_workers(state: State) -> None:
    """All live workers, plain rq ones too; one line per executor process."""
    found = state.client().workers.list()
    people = state.out.style.stdout_terminal and not state.out.structured
    records = [worker_fields(worker) for worker in found]
    state.out.table(
        found,
        [
            Column("name", lambda worker: worker.name),
            Column("kind", lambda worker: worker.kind, wide=True),
            Column("queues", lambda worker: worker.queues),
            Column("state", lambda worker: worker.state),
            Column(
                "busy", lambda worker: f"{worker.busy}/{worker.slots}" if people else worker.busy, right=True
            ),
            *([] if people else [Column("slots", lambda worker: worker.slots)]),
            Column("host", lambda worker: worker.host),
            Column("pid", lambda worker: worker.pid, right=True),
            Column("version", lambda worker: worker.version, wide=True),
            Column("seen", lambda worker: ago(worker.last_heartbeat) if people else worker.last_heartbeat),
        ],
        document={"workers": records},
        records=records,
        empty="no workers; start one with jobq worker",
    )
