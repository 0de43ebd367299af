"""The global options, the classes of our commands, and the types of their parameters."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from jobq.cli.common import state_of
from jobq.cli.output import FORMATS
from jobq.queues import Priority
from jobq.units import is_text

PRIORITIES = tuple(lane.value for lane in Priority)

# --- global options ------------------------------------------------------------


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    source = ctx.get_parameter_source(param.name or "")
    if source is click.core.ParameterSource.COMMANDLINE:
        state = state_of(ctx)
        setattr(state, (param.name or "").removeprefix("g_"), value)
        ctx.color = state.colored


def _remember_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        state_of(ctx).output = "json"


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version  # late: only --version needs it

        try:
            number = version("jobq")
        except PackageNotFoundError:
            number = "(not installed)"
        click.echo(f"jobq {number}")
        ctx.exit()


def _global(*names: str, **options: Any) -> click.Option:
    return click.Option(names, expose_value=False, **({"callback": _remember} | options))


GLOBAL_OPTIONS: tuple[click.Option, ...] = (
    _global(
        "-A", "--app", "g_app", metavar="MODULES", help="Modules with tasks, comma-separated (JOBQ_APP)."
    ),
    _global("-u", "--redis-url", "g_redis_url", metavar="URL", help="Redis to use (JOBQ_REDIS_URL)."),
    _global(
        "-c", "--config", "g_config", metavar="FILE", help="Settings file (jobq.toml or pyproject.toml)."
    ),
    _global("-o", "--output", "g_output", type=click.Choice(FORMATS), help="Format of the result."),
    _global("--json", "g_json", is_flag=True, callback=_remember_json, help="Same as -o json."),
    _global(
        "--color", "g_color", type=click.Choice(("auto", "always", "never")), help="Colours; NO_COLOR counts."
    ),
    _global("-q", "--quiet", "g_quiet", is_flag=True, help="Say nothing but results and errors."),
    _global("-v", "--verbose", "g_verbose", count=True, help="Say more; twice for still more."),
    _global("--debug", "g_debug", is_flag=True, help="Show a traceback when something fails."),
    _global(
        "--version",
        "g_version",
        is_flag=True,
        is_eager=True,
        callback=_show_version,
        help="Show the version.",
    ),
)
_GLOBAL_NAMES = frozenset(option.name for option in GLOBAL_OPTIONS)


class _WithGlobals(click.Command):
    """A command that accepts the global options too, and lists them apart in its help."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then the global options."""
        return [*super().get_params(ctx), *GLOBAL_OPTIONS]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The values; of those that are text each must be text in any encoding, as names of files need not be."""
        left = super().parse_args(ctx, args)
        for param in self.params:
            value = ctx.params.get(param.name or "")
            for text in value if isinstance(value, tuple | list) else (value,):
                if isinstance(text, str) and not is_text(text):
                    raise click.BadParameter("it is not UTF-8 text.", ctx, param)
        return left

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Own options, commands, global options."""
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            if isinstance(param, click.Argument):  # the usage line names it, and it has no text of its own
                continue
            record = param.get_help_record(ctx)
            if record is not None:
                (shared if param.name in _GLOBAL_NAMES or "--help" in param.opts else own).append(record)
        if own:
            with formatter.section("Options"):
                formatter.write_dl(own)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        with formatter.section("Global options, before or after the command"):
            formatter.write_dl(shared)


class Command(_WithGlobals):
    """A command of ours."""


class Group(_WithGlobals, click.Group):
    """A group of ours: its commands and groups take the global options too."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("no_args_is_help", True)
        super().__init__(*args, **kwargs)


# --- parameter types ------------------------------------------------------------


class DurationType(click.ParamType[timedelta]):
    """A duration as the settings write it: ``500ms 30s 5m 24h 7d``; a bare number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The value, or a usage error that says what to write."""
        if isinstance(value, timedelta):
            return value
        from jobq.parsing import parse_duration  # late: only commands with durations

        try:
            duration = parse_duration(value)
        except ValueError:
            self.fail(f"{value!r} is not a duration; write 500ms, 30s, 5m, 24h or 7d.", param, ctx)
        if duration < timedelta(0):
            self.fail(f"{value!r} is negative.", param, ctx)
        return duration


class TimeType(click.ParamType[datetime]):
    """A moment as ISO text with its time zone, so that it means the same on every machine."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The value, or a usage error that says what to write."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time; write 2026-12-31T09:00:00Z.", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone; write {value}Z or {value}+01:00.", param, ctx)
        return moment.astimezone(UTC)


_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(s|m|h)\s*")
_PER = {"s": 1.0, "m": 60.0, "h": 3600.0}


class RateType(click.ParamType[float]):
    """A rate as ``50/s``, ``100/m`` or ``1000/h``; the value is per second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The value, or a usage error that says what to write."""
        if isinstance(value, float):
            return value
        match = _RATE.fullmatch(value)
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a rate; write 50/s, 100/m or 1000/h.", param, ctx)
        return float(match[1]) / _PER[match[2]]


DURATION = DurationType()
TIME = TimeType()
RATE = RateType()
PRIORITY = click.Choice(PRIORITIES, case_sensitive=False)
