"""``jobq demo`` and ``jobq dev``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click

from jobq.cli.common import CliError, Exit, State, Terminated, pass_state
from jobq.cli.options import Command

_STOP_MARGIN_S = 10.0


@click.command(cls=Command)
@click.option("--keep", is_flag=True, help="Leave the server and the worker running until Ctrl-C.")
def demo(keep: bool) -> int:
    """A guided tour with real parts: a private Redis, mails, payments, an export, failures, repair."""
    from jobq.demo import run  # late: it brings everything with it

    code: int = run(keep=keep)
    return code


@click.command(cls=Command)
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    metavar="P",
    help="Port of the private Redis; default: a free one.",
)
@click.option("--reload/--no-reload", default=True, help="Start the worker anew when a source file changes.")
@pass_state
def dev(state: State, port: int | None, reload: bool) -> int:
    """A private Redis and a worker in one terminal; Ctrl-C ends both, and forgets all jobs."""
    from jobq.private_server import PrivateServer  # late: subprocess machinery

    server = PrivateServer()
    if port is not None:
        server.port = port
    with server:
        url = server.url
        settings = state.settings(redis_url=url)
        state.out.text(f"export JOBQ_REDIS_URL={url}")
        state.out.say(
            "in another terminal: run that line, then jobq enqueue, jobq stats …; Ctrl-C ends all here"
        )
        sys.stdout.flush()
        command = [sys.executable, "-m", "jobq.cli", "worker"]
        if state.app:
            command += ["--app", state.app]
        if state.config:
            command += ["--config", state.config]
        command += ["-v"] * state.verbose
        if reload:
            command.append("--reload")
        # A session of its own: Ctrl-C reaches this process, which then asks the worker once, not twice.
        child = subprocess.Popen(command, env={**os.environ, "JOBQ_REDIS_URL": url}, start_new_session=True)
        try:
            code = child.wait()
        except (KeyboardInterrupt, Terminated):
            state.out.say("stopping: running jobs may finish; Ctrl-C again ends them")
            _stop(child, settings.grace.total_seconds() + _STOP_MARGIN_S)
            raise
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if code:
            raise CliError(
                Exit(code) if code in set(Exit) else Exit.UNEXPECTED, f"the worker ended with code {code}"
            )
        return Exit.DONE


def _stop(child: subprocess.Popen[bytes], patience_s: float) -> None:
    """Ask the worker to drain; a second Ctrl-C, or the end of patience, forces it."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(patience_s)
    except (KeyboardInterrupt, Terminated, subprocess.TimeoutExpired):
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_MARGIN_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
