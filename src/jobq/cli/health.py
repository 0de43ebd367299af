"""``jobq health``: whether all is well, by exit code: 0 yes, 6 no, 69 Redis cannot be reached."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import Exit, State, pass_state
from jobq.cli.options import Group
from jobq.cli.workers import worker_fields

if TYPE_CHECKING:
    from jobq.client import Client
    from jobq.fleet import Worker


@click.group(cls=Group, invoke_without_command=True, no_args_is_help=False)
@click.pass_context
def health(ctx: click.Context) -> int:
    """Say whether all is well, by exit code: 0 yes, 6 no, 69 Redis cannot be reached.

    Without a part: dead letters, waiting jobs, targets, queues nobody serves. Warnings pass.
    """
    if ctx.invoked_subcommand is not None:
        return Exit.DONE
    state = ctx.find_object(State)
    assert state is not None
    verdict = state.client().health()
    state.out.record({"status": verdict.status, "issues": list(verdict.issues)}, document=verdict.to_dict())
    for issue in verdict.issues:
        state.out.say(issue)
    return Exit.DONE if verdict.ok else Exit.BAD


def _verdict(state: State, issues: list[str], **more: Any) -> int:
    status = "unhealthy" if issues else "ok"
    state.out.record({"status": status, "issues": issues, **more})
    for issue in issues:
        state.out.error(issue)
    return Exit.BAD if issues else Exit.DONE


@health.command("live")
@pass_state
def live(state: State) -> int:
    """Redis answers."""
    for client in state.client(app=False).each():
        client.run(_ping())
    return _verdict(state, [])


@health.command("ready")
@pass_state
def ready(state: State) -> int:
    """Every Redis answers, and is fit for jobs.

    Each one of the settings: its version, what it does when memory is full, whether it is a cluster.
    """
    # Late: redis.
    from jobq.connection import connect, inspect_server, require_usable
    from jobq.errors import ConfigError
    from jobq.parsing import redact_url

    clients = state.client().each()
    infos, issues = [], []
    for client in clients:
        with connect(client.settings) as redis:
            info = inspect_server(redis)
        infos.append(info)
        try:
            require_usable(info)
        except ConfigError as error:
            where = f"{redact_url(client.settings.redis_url)}: " if len(clients) > 1 else ""
            issues.append(f"{where}{error}")
    return _verdict(
        state,
        issues,
        server=", ".join(f"{info.flavour} {info.version}" for info in infos),
        durability=", ".join(info.durability for info in infos),
    )


@health.command("worker")
@click.option("--name", metavar="NAME", help="This worker; default: any of this host.")
@pass_state
def worker(state: State, name: str | None) -> int:
    """A worker of this host is alive.

    Made for container probes. A busy one is alive.
    """
    here = socket.gethostname()
    # Most workers are found without the queues that only the application knows, and importing it is dear.
    found = _workers(state.client(app=False), name, here) or _workers(state.client(), name, here)
    issues = [] if found else [f"no live worker {name!r}" if name else f"no live worker on host {here}"]
    if state.out.structured:
        return _verdict(state, issues, workers=[worker_fields(each) for each in found])
    return _verdict(state, issues, workers=len(found))


def _workers(client: Client, name: str | None, here: str) -> list[Worker]:
    """Its live workers of this name, or of this host."""

    def meant(each: Worker) -> bool:
        if name:
            return name in (each.name, each.worker)
        return (each.host or "").split(".")[0] == here.split(".", maxsplit=1)[0]

    return [each for each in client.workers.list() if each.kind == "jobq" and meant(each)]


def _ping() -> Any:
    from jobq.steps import Batch  # late: redis

    return Batch((("PING",),))
