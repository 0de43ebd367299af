"""``jobq workers``: see who works, and tell them to pause or stop."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import State, confirm, pass_state, yes_options
from jobq.cli.options import Group
from jobq.cli.output import Column, ago

if TYPE_CHECKING:
    from jobq.fleet import Worker


def worker_fields(worker: Worker) -> dict[str, Any]:
    """A worker for the JSON forms."""
    return {
        "name": worker.name,
        "worker": worker.worker,
        "kind": worker.kind,
        "queues": worker.queues,
        "state": worker.state,
        "slots": worker.slots,
        "busy": worker.busy,
        "parts": {name: {"busy": used, "slots": most} for name, (most, used) in worker.parts.items()},
        "host": worker.host,
        "pid": worker.pid,
        "version": worker.version,
        "started_at": worker.started_at,
        "last_heartbeat": worker.last_heartbeat,
        "tasks": worker.tasks,
    }


def _queues(worker: Worker) -> list[str]:
    """Its queues; of those that share its slots, how many of theirs are taken: ``email 2/5``."""
    return [f"{name} {worker.busy_of(name)}/{worker.slots_of(name)}" if worker.parts else name
            for name in worker.queues]  # fmt: skip


@click.group(cls=Group)
def workers() -> None:
    """See who works; quiet, resume and stop them."""


@workers.command("list")
@pass_state
def list_workers(state: State) -> None:
    """All live workers, plain rq ones too.

    One line per executor process.
    """
    found = state.client().workers.list()
    people = state.out.style.stdout_terminal and not state.out.structured
    records = [worker_fields(worker) for worker in found]
    state.out.table(
        found,
        [
            Column("name", lambda worker: worker.name),
            Column("kind", lambda worker: worker.kind, wide=True),
            Column("queues", lambda worker: ", ".join(_queues(worker)) if people else worker.queues),
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


@workers.command("show")
@click.argument("name", metavar="NAME")
@pass_state
def show(state: State, name: str) -> None:
    """One worker, or one of its executors.

    By its own name or that of an executor.
    """
    found = state.client().workers.get(name)
    records = [worker_fields(worker) for worker in found]
    if state.out.structured or not state.out.style.stdout_terminal:
        columns = [Column(key, itemgetter(key)) for key in records[0]]
        state.out.table(records, columns, document={"workers": records}, records=records)
        return
    for place, (worker, fields) in enumerate(zip(found, records, strict=True)):
        if place:
            state.out.text("")
        shown = {name: value for name, value in fields.items() if name != "parts"}
        state.out.record(shown | {"queues": ", ".join(_queues(worker))})


def _order(verb: str, words: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command that gives workers an order; its function holds the help."""

    def decorate(described: Callable[..., None]) -> click.Command:
        @pass_state
        def command(state: State, names: tuple[str, ...], everyone: bool, dry_run: bool, yes: bool) -> None:
            if bool(names) == everyone:
                raise click.UsageError("Give names of workers, or --all.")
            order = getattr(state.client().workers, verb)
            chosen = order(names or None, dry_run=True)
            if not chosen:
                state.out.say("nothing to do: no worker is live")
            elif dry_run:
                state.out.say(f"would {verb} {', '.join(chosen)}; nothing was changed")
            else:
                if verb != "resume":
                    confirm(state, f"{words} {', '.join(chosen)}?", yes=yes)
                order(chosen)
            rows = [{"worker": name, "order": verb, "given": not dry_run} for name in chosen]
            columns = [Column(key, itemgetter(key)) for key in ("worker", "order", "given")]
            state.out.table(rows, columns, document={"workers": rows, "dry_run": dry_run}, empty="")

        made: Any = click.argument("names", metavar="[NAME]...", nargs=-1)(command)
        made = click.option("--all", "everyone", is_flag=True, help="Every live worker.")(yes_options(made))
        return workers.command(verb, help=described.__doc__)(made)

    return decorate


@_order("quiet", "Let no more jobs be claimed by")
def quiet() -> None:
    """Claim nothing more, until `resume`.

    What runs goes on. Obeyed within about a second.
    """


@_order("resume", "Let claim again:")
def resume() -> None:
    """Let quiet workers claim again."""


@_order("stop", "Drain and end")
def stop() -> None:
    """Drain and end, as SIGTERM does. Whoever supervises the workers may start them again."""
