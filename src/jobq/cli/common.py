"""What every command shares: the global options, settings and client, confirmation, parameter types."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobq.cli.output import Output, Style
from jobq.errors import (
    ConfigError,
    ConflictError,
    JobFailedError,
    JobNotFoundError,
    NoKeyError,
    PayloadError,
    PayloadTooLargeError,
    QueueFullError,
    ResultNotKeptError,
    StorePermissionError,
    StoreUnavailableError,
    TextError,
    UnknownTaskError,
)

if TYPE_CHECKING:
    from jobq.client import Client
    from jobq.config import Settings
    from jobq.tasks import Registry

F = TypeVar("F", bound=Callable[..., Any])


class Exit(IntEnum):
    """The exit codes, the same for every command."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    CONFLICT = 5
    BAD = 6
    PARTIAL = 7
    DECLINED = 8
    UNAVAILABLE = 69
    TIMEOUT = 75
    CONFIG = 78
    INTERRUPTED = 130
    TERMINATED = 143


class CliError(Exception):
    """An end with a chosen exit code and one line for stderr."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


class Terminated(BaseException):
    """SIGTERM arrived. Not an ``Exception``: nothing but clean-up may catch it."""


# The order matters where one class derives from another: the first match decides.
_CODES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Exit], ...] = (
    ((PayloadError, PayloadTooLargeError, TextError), Exit.USAGE),
    ((JobNotFoundError, UnknownTaskError), Exit.NOT_FOUND),
    ((ConflictError, QueueFullError), Exit.CONFLICT),
    ((JobFailedError, ResultNotKeptError), Exit.BAD),
    (StoreUnavailableError, Exit.UNAVAILABLE),
    # A Redis user that may not run our commands is a setting to correct; exit code 4 is for roles of our own.
    ((ConfigError, NoKeyError, StorePermissionError), Exit.CONFIG),
    (TimeoutError, Exit.TIMEOUT),
)


def exit_code_for(error: BaseException) -> Exit:
    """The exit code that an exception stands for; ``UNEXPECTED`` for one that is nobody's plan."""
    if isinstance(error, CliError):
        return error.code
    for kinds, code in _CODES:
        if isinstance(error, kinds):
            return code
    return Exit.UNEXPECTED


def is_terminal(stream: Any) -> bool:
    """Whether a person looks at this stream. A closed or replaced stream is not a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


@dataclass
class State:
    """The global options as given so far, and what is built from them on demand.

    One per run. Each global option may come before or after the command; the last one wins.
    """

    app: str | None = None
    redis_url: str | None = None
    config: str | None = None
    output: str = "table"
    color: str = "auto"
    quiet: bool = False
    verbose: int = 0
    debug: bool = False
    _clients: dict[bool, Client] = field(default_factory=dict, repr=False)

    @property
    def colored(self) -> bool | None:
        """True or False where the user decided; None: only on a terminal.

        ``--color always|never`` decides first, then ``NO_COLOR``, ``FORCE_COLOR``, and ``TERM=dumb``.
        """
        if self.color != "auto":
            return self.color == "always"
        if os.environ.get("NO_COLOR"):
            return False
        if os.environ.get("FORCE_COLOR"):
            return True
        return False if os.environ.get("TERM") == "dumb" else None

    @property
    def out(self) -> Output:
        """Where results and words go, in the format asked for."""
        return Output(
            format=self.output,
            style=Style(self.colored, is_terminal(sys.stdout), is_terminal(sys.stderr)),
            quiet=self.quiet,
        )

    def settings(self, **more: Any) -> Settings:
        """The settings, with the global options on top of every other source.

        Raises:
            ConfigError: A value is wrong; the message names where it comes from.
        """
        # Late: pydantic alone costs more than the 150 ms that --help may take.
        from jobq.config import Settings

        flags = {"app": self.app, "redis_url": self.redis_url, "config_file": self.config} | more
        given = {name: value for name, value in flags.items() if value is not None}
        return Settings.load(called={name: f"--{name.replace('_', '-')}" for name in given}, **given)

    def app_settings(self) -> Settings:
        """The settings with the queues that the application declares; without them when it cannot be imported."""
        settings = self.settings()
        if not settings.app:
            return settings
        try:
            _import_app(settings)
        except ConfigError as error:
            self.out.say(f"queues that the application declares are not known here: {error}")
            return settings
        return settings.renewed()

    def configure_logging(self, settings: Settings, *, default: str = "ERROR") -> None:
        """Send events to stderr: ``-q`` shows errors only, ``-v`` one level more."""
        from jobq.events import configure_logging  # late: --help logs nothing

        levels = ["ERROR", "WARNING", "INFO", "DEBUG"]
        level = "ERROR" if self.quiet else levels[min(levels.index(default) + self.verbose, 3)]
        configure_logging(settings.log_format, level)

    def client(self, *, app: bool = True) -> Client:
        """The one client of this run, closed when the command ends.

        Args:
            app: Import the application, so that the client knows the queues that it declares. A probe that is run every
                few seconds should not.
        """
        if app not in self._clients:
            from jobq.client import Client  # late: redis

            settings = self.app_settings() if app else self.settings()
            self.configure_logging(settings)
            self._clients[app] = Client(settings)
        return self._clients[app]

    def close(self) -> None:
        """Close what was opened. Safe to call twice."""
        while self._clients:
            self._clients.popitem()[1].close()


def state_of(ctx: click.Context) -> State:
    """The state of this run."""
    state = ctx.find_object(State)
    assert state is not None, "main() makes it"
    return state


def pass_state(command: F) -> F:
    """Decorator: call the command with the :class:`State` as its first argument."""
    return click.make_pass_decorator(State)(command)  # type: ignore[return-value]


# --- asking ------------------------------------------------------------


def confirm(state: State, question: str, *, yes: bool, before: Callable[[], object] = lambda: None) -> None:
    """Ask before something is destroyed or sent.

    Args:
        state: The run.
        question: A yes-or-no question that says how much of what is concerned.
        yes: ``--yes`` was given: do not ask.
        before: Says what belongs before the question; not called where none is asked.
    Raises:
        CliError: The answer was not yes (8), or there is no terminal to ask on (2).
    """
    if yes:
        return
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise CliError(
            Exit.USAGE, f"{question} There is no terminal to ask on: add --yes, or --dry-run to look first"
        )
    before()
    # Not click.confirm: it turns Ctrl-C and "no" into the same exception, and they have codes of their own.
    click.echo(f"{question} [y/N] ", nl=False, err=True, color=state.colored)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CliError(Exit.DECLINED, "declined, nothing was changed")


def yes_options(command: F) -> F:
    """Decorator: ``--dry-run`` and ``--yes``."""
    command = click.option("--yes", "-y", is_flag=True, help="Do not ask.")(command)
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(command)


# --- lookups and bulk ------------------------------------------------------------


def suggest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"``, or nothing when no known name is near."""
    near = get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(other) for other in near)}?" if near else ""


def check_queue(client: Client, name: str | None) -> str | None:
    """The name, when the settings or Redis know such a queue; None stays None.

    Raises:
        CliError: No such queue (3); the message names near ones.
    """
    if name is None or name in client.specs or name in client.elsewhere:
        return name
    known = [queue.name for queue in client.queues.list()]
    if name not in known:
        near = suggest(name, known) or f"; there are {', '.join(known)}"
        raise CliError(Exit.NOT_FOUND, f"no queue {name!r}{near}")
    return name


def one_queue(priority: str | None, queue: str | None) -> str | None:
    """The queue that ``--priority`` or ``--queue`` names; a lane's name is its priority."""
    if priority and queue and priority != queue:
        raise click.UsageError("Give --priority or --queue, not both: a priority is the queue of that name.")
    return priority or queue


@dataclass(frozen=True, slots=True)
class Failure:
    """One item of a bulk that could not be done."""

    item: str
    error: BaseException

    def as_dict(self) -> dict[str, str]:
        """For the JSON forms."""
        return {"id": self.item, "error": str(self.error)}


def each(items: Sequence[str], do: Callable[[str], Any]) -> tuple[list[tuple[str, Any]], list[Failure]]:
    """Do something for every id, going on past those that refuse.

    Trouble that concerns all of them (Redis away, settings wrong) is raised at once.
    """
    done: list[tuple[str, Any]] = []
    failed: list[Failure] = []
    for item in dict.fromkeys(items):
        try:
            done.append((item, do(item)))
        except (JobNotFoundError, ConflictError) as error:
            failed.append(Failure(item, error))
    return done, failed


def bulk_exit(state: State, done: int, failed: Sequence[Failure]) -> int:
    """Report the failures on stderr, and choose the code.

    A single item ends with its own code (3, 5); several with 7 as soon as one failed.
    """
    for failure in failed:
        state.out.error(str(failure.error))
    if not failed:
        return Exit.DONE
    return exit_code_for(failed[0].error) if done == 0 and len(failed) == 1 else Exit.PARTIAL


def read_json_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object from the user.

    Args:
        text: What the user wrote.
        what: How to call it in the error, such as ``params`` or ``jobs.jsonl line 3``.
    Raises:
        CliError: Not JSON, or not an object (2). The text itself is not repeated: it may hold secrets.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        place = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "not readable"
        raise CliError(Exit.USAGE, f"{what}: not JSON{place}: {reason}") from error
    if not isinstance(value, dict):
        raise CliError(Exit.USAGE, f'{what}: expected a JSON object such as {{"order_id": "1"}}')
    return value


def load_tasks(settings: Settings) -> Registry:
    """The registry, with our helpers and the application's tasks in it.

    Raises:
        ConfigError: A module of ``JOBQ_APP`` cannot be imported.
    """
    # Late: pydantic, and whatever the application imports. Importing the helpers registers them.
    import jobq.helpers  # noqa: F401
    from jobq.tasks import registry

    _import_app(settings)
    return registry


def _import_app(settings: Settings) -> None:
    from jobq.registry import load_app  # late: the application may import anything

    with redirect_stdout(sys.stderr):  # what it prints is no result of ours
        load_app(settings.app)


@contextmanager
def refused_as_usage() -> Iterator[None]:
    """A value that the library refuses with ``ValueError`` is a wrong option (2)."""
    try:
        yield
    except ValueError as error:
        raise CliError(Exit.USAGE, str(error)) from error
