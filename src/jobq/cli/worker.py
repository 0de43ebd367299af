"""``jobq worker``."""

from __future__ import annotations

import os
from datetime import timedelta

import click

from jobq.cli.common import State, pass_state
from jobq.cli.options import DURATION, PRIORITY, Command


@click.command(cls=Command)
@click.option(
    "--priority", "-p", "priorities", type=PRIORITY, multiple=True, help="Serve this lane; repeatable."
)
@click.option("--queue", "queues", metavar="Q", multiple=True, help="Serve this queue; repeatable.")
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="Slots of each queue.")
@click.option("--burst", is_flag=True, help="End when the queues are empty.")
@click.option("--max-jobs", type=click.IntRange(1), metavar="N", help="End after this many jobs of a queue.")
@click.option("--grace", type=DURATION, metavar="S", help="How long a stopping worker lets jobs finish.")
@click.option("--name", metavar="NAME", help="Name of the worker; default: host and process id.")
@click.option(
    "--health-port", type=click.IntRange(1, 65_535), metavar="PORT", help="Serve /livez and /readyz."
)
@click.option("--reload", is_flag=True, help="Start anew when a source file changes; for development.")
@pass_state
def worker(
    state: State,
    priorities: tuple[str, ...],
    queues: tuple[str, ...],
    concurrency: int | None,
    burst: bool,
    max_jobs: int | None,
    grace: timedelta | None,
    name: str | None,
    health_port: int | None,
    reload: bool,
) -> int:
    """Run jobs: of every queue, or of the lanes and queues named.

    The first SIGTERM or Ctrl-C lets running jobs finish, the second ends them; they run again elsewhere.
    """
    settings = state.settings()
    state.configure_logging(settings, default="INFO")
    served = tuple(dict.fromkeys([*(priority.lower() for priority in priorities), *queues]))
    # Late: the supervisor brings redis with it.
    from jobq.worker.spec import WorkerSpec
    from jobq.worker.supervisor import run

    if state.config:
        os.environ["JOBQ_CONFIG"] = str(state.config)  # the worker's processes read it, too
    return run(
        settings,
        WorkerSpec(
            queues=served,
            concurrency=concurrency,
            burst=burst,
            max_jobs=max_jobs,
            grace=settings.grace if grace is None else grace,
            name=name,
            health_port=health_port,
            reload=reload,
        ),
    )
