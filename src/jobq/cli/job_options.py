"""What a call may ask for beyond its task: one table, for ``jobq enqueue``, the lines of its files, and schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import click

from jobq.cli.common import one_queue
from jobq.cli.options import DURATION, PRIORITIES, PRIORITY, TIME

F = TypeVar("F", bound=Callable[..., Any])

_UNTIL = ("finished", "started")


class _BackoffType(click.ParamType[Any]):
    """A backoff as the settings write it."""

    name = "backoff"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value, or a usage error that says what to write."""
        # Late: pydantic takes longer to import than the rest of a small command.
        from jobq.setting_kinds import BACKOFF

        check: Any = BACKOFF.func
        try:
            return check(value)
        except ValueError as error:
            self.fail(f"{value!r} is not a backoff: {error}.", param, ctx)


class _UntilType(click.ParamType[Any]):
    """How long a dedup key is held: until the job is ``finished`` or ``started``, or for a window."""

    name = "until"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | timedelta:
        """The value, or a usage error that says what to write."""
        if value in _UNTIL:
            return str(value)
        try:
            return DURATION.convert(value, param, ctx)
        except click.UsageError:
            self.fail(f"{value!r} is neither finished nor started nor a window such as 5m.", param, ctx)


class JobOption(NamedTuple):
    """One thing that a call may ask for.

    Attributes:
        name: Of the keyword of ``Task.options``, and of the field of a line.
        flags: On the command line.
        read: Reads the value, there and in a line; None: it is text.
        checked: The command line alone checks it so; a line's value is the task's to check.
    """

    name: str
    flags: tuple[str, ...]
    metavar: str
    help: str
    read: click.ParamType[Any] | None = None
    checked: click.ParamType[Any] | None = None
    multiple: bool = False


JOB_OPTIONS = {
    option.name: option
    for option in (
        JobOption("priority", ("--priority", "-p"), "", "Lane, instead of the task's.", checked=PRIORITY),
        JobOption("queue", ("--queue",), "Q", "Queue, instead of the task's."),
        JobOption("delay", ("--delay",), "D", "Due after this.", DURATION),
        JobOption("at", ("--at",), "T", "Due at this moment, with time zone.", TIME),
        JobOption(
            "order", ("--order",), "N", "Place in its queue, 1 first, 10 last.", checked=click.IntRange(1, 10)
        ),
        JobOption("dedup_key", ("--dedup-key",), "K", "Key that equal jobs share; empty: none."),
        JobOption(
            "dedup_until", ("--dedup-until",), "U", "Held until finished or started, or for 5m.", _UntilType()
        ),
        JobOption(
            "on_duplicate", ("--on-duplicate",), "", "What an equal job does to one that waits.",
            checked=click.Choice(("skip", "replace")),
        ),
        JobOption("max_attempts", ("--max-attempts",), "N", "Total runs.", checked=click.IntRange(1)),
        JobOption(
            "backoff", ("--backoff",), "B", "Delays between runs: 2s (it grows), fixed=30s, 1s,10s,1m.",
            _BackoffType(),
        ),
        JobOption("timeout", ("--run-timeout",), "D", "What one run may take.", DURATION),
        JobOption("tags", ("--tag",), "T", "Label to find the job by; repeatable.", multiple=True),
        JobOption("correlation_id", ("--correlation-id",), "C", "What the job belongs to, to find it by."),
    )
}  # fmt: skip
"""By name, in the order of the help."""

_EITHER = (("priority", "queue"), ("delay", "at"))


def job_options(*without: str, timeout: tuple[str, ...] = ("--run-timeout",)) -> Callable[[F], F]:
    """Decorator: the options of the table, each a keyword of its name with ``job_`` before it.

    Args:
        without: Names of those that the command does not have.
        timeout: The flags of the longest run.
    """

    def decorate(function: F) -> F:
        for option in reversed(JOB_OPTIONS.values()):
            if option.name in without:
                continue
            flags = timeout if option.name == "timeout" else option.flags
            function = click.option(
                *flags,
                f"job_{option.name}",
                type=option.read or option.checked,
                metavar=option.metavar or None,
                multiple=option.multiple,
                help=option.help,
            )(function)
        return function

    return decorate


def asked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of ``Task.options`` that a command line asks for.

    Raises:
        click.UsageError: Two contradict each other.
    """
    options = {name.removeprefix("job_"): value for name, value in given.items() if value not in (None, ())}
    if "delay" in options and "at" in options:
        raise click.UsageError("Give --delay or --at, not both.")
    chosen = one_queue(options.pop("priority", "").lower(), options.pop("queue", None))
    if chosen:
        options["priority" if chosen in PRIORITIES else "queue"] = chosen
    return options


def of_line(entry: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that a line of a file asks for, before those of the command line.

    Raises:
        click.UsageError: A value cannot be read.
    """
    options = {
        name: entry[name] if option.read is None else option.read.convert(_plain(entry[name]), None, None)
        for name, option in JOB_OPTIONS.items()
        if entry.get(name) is not None
    }
    kept = dict(base)
    for pair in _EITHER:
        if any(name in options for name in pair):
            for name in pair:
                kept.pop(name, None)
    return kept | options


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
