"""``jobq schedules``: recurring schedules, and what rq-scheduler left behind."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import click

from jobq.cli.common import (
    CliError,
    Exit,
    State,
    bulk_exit,
    confirm,
    each,
    load_tasks,
    pass_state,
    read_json_object,
    suggest,
    yes_options,
)
from jobq.cli.job_options import asked, job_options
from jobq.cli.job_records import job_fields
from jobq.cli.options import DURATION, TIME, Group
from jobq.cli.output import Column, ago
from jobq.errors import ConfigError, JobNotFoundError
from jobq.units import plural

if TYPE_CHECKING:
    from jobq.client import Client
    from jobq.recurrence import MisfirePolicy
    from jobq.schedules import ScheduleInfo

_OVERLAPS = ("allow", "skip", "queue_one", "cancel_previous")


def _fields(info: ScheduleInfo) -> dict[str, Any]:
    timing = info.timing
    return {
        "name": info.name,
        "state": info.state,
        "reason": info.reason,
        "task": info.task,
        "queue": info.queue,
        "times": info.times,
        "cron": timing.cron or None if timing else None,
        "every_s": timing.every_ms / 1000 if timing and timing.every_ms else None,
        "tz": timing.tz if timing else None,
        "start": _moment(timing.start_ms) if timing else None,
        "end": _moment(timing.end_ms) if timing else None,
        "jitter_s": timing.jitter_ms / 1000 if timing else None,
        "misfire": timing.misfire.policy if timing else None,
        "misfire_within_s": timing.misfire.window_ms / 1000 if timing else None,
        "misfire_max": timing.misfire.max if timing else None,
        "overlap": info.overlap,
        "tags": info.tags,
        "next_at": info.next_at,
        "last_at": info.last_at,
        "last_job": info.job_id,
        "fired": info.fired,
        "missed": info.missed,
        "skipped": info.skipped,
        "declared_by": info.declared_by or None,
        "paused_at": info.paused_at,
        "paused_by": info.paused_by,
    }


def _moment(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, tz=UTC)


def _show(state: State, info: ScheduleInfo) -> None:
    state.out.details(_fields(info))


def _known(client: Client, name: str) -> ScheduleInfo:
    """The schedule; an unknown name's error suggests near ones."""
    try:
        return client.schedules.get(name)
    except JobNotFoundError as error:
        near = suggest(name, [info.name for info in client.schedules.list()])
        raise CliError(Exit.NOT_FOUND, f"no schedule {name!r}{near}" if near else str(error)) from error


@click.group(cls=Group)
def schedules() -> None:
    """Recurring schedules: list, add, pause, run; take over those of rq-scheduler."""


@schedules.command("list")
@click.option(
    "--state", "wanted", type=click.Choice(("active", "paused", "ended", "broken")), help="Only these."
)
@click.option("--task", metavar="T", help="Only this task's.")
@click.option("--tag", metavar="T", help="Only those with this tag.")
@pass_state
def list_schedules(state: State, wanted: str | None, task: str | None, tag: str | None) -> None:
    """All schedules, by name."""
    found = [
        info
        for info in state.client().schedules.list()
        if wanted in (None, info.state) and task in (None, info.task) and (tag is None or tag in info.tags)
    ]
    people = state.out.style.stdout_terminal and not state.out.structured
    records = [_fields(info) for info in found]
    state.out.table(
        found,
        [
            Column("name", lambda info: info.name),
            Column("state", lambda info: info.state),
            Column("task", lambda info: info.task),
            Column("queue", lambda info: info.queue),
            Column("next", lambda info: ago(info.next_at) if people else info.next_at),
            Column("last", lambda info: ago(info.last_at) if people else info.last_at),
            Column("fired", lambda info: info.fired, right=True),
            Column("missed", lambda info: info.missed, right=True, wide=True),
            Column("skipped", lambda info: info.skipped, right=True, wide=True),
            Column("overlap", lambda info: info.overlap, wide=True),
            Column("declared by", lambda info: info.declared_by or None, wide=True),
            Column("times", lambda info: info.reason or info.times, grow=True),
        ],
        document={"schedules": records},
        records=records,
        empty="no schedules",
    )


@schedules.command("show")
@click.argument("name", metavar="NAME")
@pass_state
def show(state: State, name: str) -> None:
    """One schedule: its times, its job, its past."""
    _show(state, _known(state.client(), name))


@schedules.command("next")
@click.argument("name", metavar="NAME")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many.")
@pass_state
def next_slots(state: State, name: str, count: int) -> None:
    """When it is due next.

    In its own time zone and in UTC; jitter comes on top.
    """
    client = state.client()
    info = _known(client, name)
    slots = client.schedules.next(name, count)
    if info.times:
        state.out.say(info.times)
    if info.state != "active":
        state.out.say(f"the schedule is {info.state}: it fires none of these")
    state.out.table(
        slots,
        [
            Column("local", lambda slot: slot.isoformat()),
            Column("utc", lambda slot: slot),
            Column("in", ago),
        ],
        document={"name": name, "times": info.times, "next": slots},
        records=[{"utc": slot, "local": slot.isoformat()} for slot in slots],
        empty="no slot is left",
    )


@schedules.command("add")
@click.argument("name", metavar="NAME")
@click.argument("task", metavar="TASK")
@click.argument("params", metavar="[JSON|-]", required=False)
@click.option("--cron", metavar="EXPR", help="Five cron fields, six with seconds, or '@daily' and its like.")
@click.option("--every", type=DURATION, metavar="D", help="Instead of --cron: an interval such as 5m.")
@click.option("--tz", metavar="ZONE", help="Time zone of --cron, such as Europe/Berlin; default UTC.")
@click.option("--start", type=TIME, metavar="T", help="No slot before this.")
@click.option("--end", type=TIME, metavar="T", help="None from then on.")
@click.option("--jitter", type=DURATION, metavar="D", help="Fire each slot up to so much later.")
@click.option(
    "--misfire", type=click.Choice(("skip", "one", "all")), default="one", show_default=True,
    help="What becomes of slots that no worker fired in time.",
)  # fmt: skip
@click.option(
    "--misfire-within", type=DURATION, metavar="D",
    help="Drop slots later than this; default 60s for `skip`, else 24h.",
)  # fmt: skip
@click.option(
    "--misfire-max",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="For `all`: only the newest N; default 100.",
)
@click.option(
    "--overlap", type=click.Choice(_OVERLAPS), default="allow", show_default=True,
    help="What happens when the job before is still there.",
)  # fmt: skip
@job_options("delay", "at", "on_duplicate", timeout=("--run-timeout", "--timeout"))
@click.option("--replace", is_flag=True, help="Take the place of another schedule of the name.")
@click.option("--dry-run", is_flag=True, help="Check all, show the next slots, and add nothing.")
@pass_state
def add(
    state: State,
    name: str,
    task: str,
    params: str | None,
    misfire: str,
    misfire_within: timedelta | None,
    misfire_max: int | None,
    replace: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Add a schedule that enqueues TASK.

    Its params are a JSON object; - reads it from stdin.
    """
    # Late: only this command makes schedules.
    from jobq.recurrence import Misfire
    from jobq.schedule_spec import make_schedule

    options = asked(given)
    call = read_json_object(sys.stdin.read() if params == "-" else params or "{}", "params")
    known = load_tasks(state.settings()).resolve(task)
    client = state.client()
    try:
        options["misfire"] = Misfire(cast("MisfirePolicy", misfire), misfire_within, misfire_max or 100)
        made = make_schedule(name, known, call, **options)
        if not dry_run:
            _show(state, client.schedules.add(name, known, call, replace=replace, **options))
            return
    except ConfigError as error:  # of the declaration for a program, of the call for us
        raise CliError(Exit.USAGE, str(error)) from error
    times = made.timing.words()
    state.out.would(f"add {name}: {known.name}, {times}", name=name, task=known.name, times=times)


@schedules.command("remove")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@yes_options
@pass_state
def remove(state: State, names: tuple[str, ...], dry_run: bool, yes: bool) -> int:
    """Delete schedules; their jobs stay."""
    client = state.client()
    what = f"{plural(len(names), 'schedule')} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
    if dry_run:
        found, missing = each(names, lambda name: _get(client, name))
        removed = [name for name, _ in found]
        state.out.would(
            f"remove {', '.join(removed) or 'nothing'}",
            removed=removed,
            failed=[failure.as_dict() for failure in missing],
        )
        return bulk_exit(state, len(found), missing)
    confirm(state, f"Remove {what}?", yes=yes)
    done, failed = each(names, client.schedules.remove)
    state.out.record(
        {"removed": len(done), "failed": len(failed)},
        document={"removed": [name for name, _ in done], "failed": [failure.as_dict() for failure in failed]},
    )
    return bulk_exit(state, len(done), failed)


def _get(client: Client, name: str) -> ScheduleInfo:
    return client.schedules.get(name)


@schedules.command("pause")
@click.argument("name", metavar="NAME")
@pass_state
def pause(state: State, name: str) -> None:
    """Fire no more slots; `resume` undoes it. A deploy does not."""
    client = state.client()
    _known(client, name)
    _show(state, client.schedules.pause(name))


@schedules.command("resume")
@click.argument("name", metavar="NAME")
@pass_state
def resume(state: State, name: str) -> None:
    """Go on with the next slot after now."""
    client = state.client()
    _known(client, name)
    _show(state, client.schedules.resume(name))


@schedules.command("run")
@click.argument("name", metavar="NAME")
@click.option("--dry-run", is_flag=True, help="Say what would be enqueued, and enqueue nothing.")
@pass_state
def run(state: State, name: str, dry_run: bool) -> None:
    """Enqueue its job now.

    Whatever its times, its pause and the job before.
    """
    client = state.client()
    info = _known(client, name)
    if dry_run:
        state.out.would(f"enqueue {info.task} in {info.queue}", task=info.task, queue=info.queue)
        return
    state.out.details(job_fields(client.schedules.run(name)))


@schedules.command("import-rq-scheduler")
@click.option(
    "--tz",
    metavar="ZONE",
    default="UTC",
    show_default=True,
    help="Zone of the machine that rq-scheduler ran on.",
)
@yes_options
@pass_state
def import_rq_scheduler(state: State, tz: str, dry_run: bool, yes: bool) -> int:
    """Take over what rq-scheduler would run.

    Periodic jobs become schedules, single ones scheduled jobs.

    Stop rq-scheduler first. Each entry leaves it in the step that adds it here, so none runs twice.
    """
    from jobq.rq_takeover import take_over  # late: only this command reads its data

    load_tasks(state.settings())
    client = state.client()
    found = take_over(client, tz=tz, dry_run=True)
    ready = sum(entry.error is None for entry in found)
    if not dry_run and ready:
        confirm(state, f"Take over {ready} of {len(found)} entries of rq-scheduler?", yes=yes)
        found = take_over(client, tz=tz)
    records = [
        {"id": entry.id, "kind": entry.kind, "task": entry.task, "name": entry.name, "next_at": entry.at,
         "error": entry.error}
        for entry in found
    ]  # fmt: skip
    state.out.table(
        records,
        [
            Column("id", lambda row: row["id"]),
            Column("kind", lambda row: row["kind"]),
            Column("task", lambda row: row["task"]),
            Column("name", lambda row: row["name"]),
            Column("next", lambda row: row["next_at"]),
            Column("error", lambda row: row["error"], grow=True),
        ],
        document={"entries": records, "dry_run": dry_run},
        records=records,
        empty="rq-scheduler has nothing scheduled here",
    )
    if dry_run:
        state.out.say(f"would take over {ready} of {len(found)}; nothing was changed")
    return Exit.PARTIAL if any(entry.error for entry in found) else Exit.DONE
