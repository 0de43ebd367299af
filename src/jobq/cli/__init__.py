"""The command line: parse, call, print.

Nothing here does a job's work: each command turns its options into one or two calls of the library and prints
the answer. Commands are loaded when they are used, so that ``jobq --help`` costs no more than click.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

import click

from jobq.cli.common import Exit, State, Terminated, exit_code_for
from jobq.cli.options import Group

__all__ = ["main", "root"]

COMMANDS: Mapping[str, tuple[str, str]] = {
    "worker": ("jobq.cli.worker:worker", "Run jobs."),
    "stats": ("jobq.cli.stats:stats", "Counts, waits and targets of every queue."),
    "retry-failed": ("jobq.cli.dead:retry_failed", "Replay dead letters: all of them, or some."),
    "enqueue": ("jobq.cli.enqueue:enqueue", "Enqueue one job, or a file of jobs."),
    "why": ("jobq.cli.job_why:why", "Why a job has not run, or what happened to it."),
    "jobs": ("jobq.cli.jobs:jobs", "Look at jobs, wait for them, retry, cancel, promote, delete."),
    "queues": ("jobq.cli.queues:queues", "List queues; pause, limit, drain, clean and move them."),
    "limits": ("jobq.cli.limits:limits", "Limits of tasks that hold in place of the declared ones."),
    "dead": ("jobq.cli.dead:dead", "Look at dead letters; replay, edit, purge, export and archive them."),
    "schedules": ("jobq.cli.schedules:schedules", "Recurring schedules: list, add, pause, run."),
    "workers": ("jobq.cli.workers:workers", "See who works; quiet, resume and stop them."),
    "health": ("jobq.cli.health:health", "Say whether all is well, by exit code."),
    "doctor": ("jobq.cli.doctor:doctor", "Find out why jobs do not run."),
    "memory": ("jobq.cli.memory:memory", "See what holds the memory of Redis."),
    "config": ("jobq.cli.config:config", "Show the settings and where they come from."),
    "demo": ("jobq.cli.demo_dev:demo", "A guided tour with real parts."),
    "dev": ("jobq.cli.demo_dev:dev", "A private Redis and a worker in one terminal."),
}
"""Name to where it lives and what help says, so that listing the commands loads none of them."""


class LazyGroup(Group):
    """Loads a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but suggesting from names that are not loaded yet."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


@click.group(cls=LazyGroup, name="jobq", context_settings={"help_option_names": ["-h", "--help"]})
def root() -> None:
    """Typed jobs on RQ's queues.

    Lanes with targets of their own, leases that outlive a crash, dead letters you can replay.

    \b
    jobq worker                  serve every queue
    jobq stats                   see how it goes
    jobq retry-failed --dry-run  see what is dead
    """  # noqa: D301 - click's mark for lines to keep is the backspace itself


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that children and clients are closed; the worker does otherwise."""

    def end(_signum: int, _frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _complete(argv: Sequence[str]) -> int | None:
    """Answer the shell's completion request, if this run is one."""
    instruction = os.environ.get("_JOBQ_COMPLETE")
    if not instruction:
        return None
    from click.shell_completion import shell_complete  # late: only completion needs it

    del argv  # click reads what was typed from the environment
    return shell_complete(root, {"obj": State()}, "jobq", "_JOBQ_COMPLETE", instruction)


def _run(argv: Sequence[str], state: State) -> int:
    with root.make_context("jobq", list(argv), obj=state, color=state.colored) as ctx:
        value: Any = root.invoke(ctx)
    sys.stdout.flush()
    return int(value) if isinstance(value, int) else Exit.DONE


def _usage(error: click.UsageError, state: State) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True, color=state.colored)
    else:
        hint = f" See '{error.ctx.command_path} --help'." if error.ctx is not None else ""
        text = error.format_message()
        state.out.error(f"{text if text.endswith(('.', '?')) else f'{text}.'}{hint}")
    return Exit.USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: Arguments without the program's name. None: those of this process.
    """
    arguments = sys.argv[1:] if argv is None else argv
    # Known before anything is parsed: an error while parsing has to obey it too.
    state = State(debug="--debug" in arguments)
    completed = _complete(arguments)
    if completed is not None:
        return completed
    try:
        with _sigterm_ends():
            try:
                return _run(arguments, state)
            finally:
                state.close()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        return _usage(error, state)
    except click.ClickException as error:
        state.out.error(error.format_message())
        return Exit.USAGE
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    except Terminated:
        return Exit.TERMINATED
    except BrokenPipeError:
        _drop_output()  # the reader went away, as `head` does
        return Exit.DONE
    except OSError as error:
        _drop_output()  # such as a full disk below stdout
        return _report(error, state)
    except Exception as error:
        return _report(error, state)


def _drop_output() -> None:
    """What stdout still buffers must not fail again, with a code of its own, when Python exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _report(error: Exception, state: State) -> int:
    code = exit_code_for(error)
    if state.debug:
        import traceback  # late: only when something failed

        traceback.print_exception(error)
    elif code is Exit.UNEXPECTED:
        state.out.error(f"{type(error).__name__}: {error} (--debug shows where)")
    elif code is Exit.UNAVAILABLE:
        from jobq.refusals import remedy  # late: only when something failed

        words = remedy(str(error))
        state.out.error(f"{str(error).rstrip('.')}{f'; {words}' if words else ''}")
    else:
        state.out.error(str(error))
    return code
