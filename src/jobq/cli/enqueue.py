"""``jobq enqueue``: one job, or a file of jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TextIO

import click

from jobq.cli.common import CliError, Exit, State, load_tasks, one_queue, pass_state, read_json_object
from jobq.cli.job_records import job_fields
from jobq.cli.jobs import wait_for
from jobq.cli.options import DURATION, PRIORITIES, PRIORITY, TIME, Command
from jobq.cli.output import Column
from jobq.errors import ConfigError, EnqueueError, PayloadError, UnknownTaskError

if TYPE_CHECKING:
    from jobq.job import Job
    from jobq.tasks import EnqueueRequest, Registry

_CHUNK = 100
_LINE_FIELDS = frozenset(
    {"task", "params", "priority", "queue", "delay", "at", "dedup_key", "tags", "correlation_id"}
)


def _request(
    registry: Registry, name: str, params: Mapping[str, Any], options: Mapping[str, Any]
) -> EnqueueRequest:
    """The validated call.

    Raises:
        CliError: An option does not fit (2).
        PayloadError: The params do not fit.
        UnknownTaskError: No such task.
    """
    task = registry.resolve(name)
    try:
        bound = task.options(**options)
    except ConfigError as error:  # of the declaration for a program, of the call for us
        raise CliError(Exit.USAGE, str(error)) from error
    try:
        return bound.request(**params)
    except TypeError as error:  # a param called `self`
        raise PayloadError(f"task {name!r}: the params do not fit its function", task=name) from error


@click.command(cls=Command)
@click.argument("task", required=False)
@click.argument("params", metavar="[JSON|-]", required=False)
@click.option("--priority", "-p", type=PRIORITY, help="Lane, instead of the task's.")
@click.option("--queue", metavar="Q", help="Queue, instead of the task's.")
@click.option("--delay", type=DURATION, metavar="D", help="Due after this.")
@click.option("--at", type=TIME, metavar="T", help="Due at this moment, with time zone.")
@click.option("--dedup-key", metavar="K", help="Key that equal jobs share; empty: none.")
@click.option("--tag", "tags", metavar="T", multiple=True, help="Label to find the job by; repeatable.")
@click.option("--correlation-id", metavar="C", help="What the job belongs to, to find it by.")
@click.option("--wait", is_flag=True, help="Wait for the end: 0 succeeded, 6 not, 75 time is up.")
@click.option("--timeout", type=DURATION, metavar="S", help="How long to wait; with --wait.")
@click.option(
    "--file",
    "file",
    type=click.File("r", encoding="utf-8"),
    metavar="FILE",
    help='One job a line: {"task": …, "params": {…}, "priority": …}; with TASK, its params only. - is stdin.',
)
@click.option("--dry-run", is_flag=True, help="Check the params, and enqueue nothing.")
@pass_state
def enqueue(
    state: State,
    task: str | None,
    params: str | None,
    priority: str | None,
    queue: str | None,
    delay: timedelta | None,
    at: datetime | None,
    dedup_key: str | None,
    tags: tuple[str, ...],
    correlation_id: str | None,
    wait: bool,
    timeout: timedelta | None,
    file: TextIO | None,
    dry_run: bool,
) -> int:
    """Enqueue one job of TASK, with params as a JSON object (- reads stdin), or a file with --file."""
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait.")
    if delay is not None and at is not None:
        raise click.UsageError("Give --delay or --at, not both.")
    options: dict[str, Any] = {
        name: value
        for name, value in (
            ("delay", delay),
            ("at", at),
            ("dedup_key", dedup_key),
            ("tags", tags),
            ("correlation_id", correlation_id),
        )
        if value not in (None, ())
    }
    chosen = one_queue(priority and priority.lower(), queue)
    if chosen is not None:
        options["priority" if chosen in PRIORITIES else "queue"] = chosen
    if file is not None:
        if params is not None:
            raise click.UsageError("Give JSON or --file, not both.")
        if dedup_key:
            raise click.UsageError(
                'One --dedup-key for a whole file makes one job: write "dedup_key" in the lines.'
            )
        return _from_file(state, file, task, options, wait=wait, timeout=timeout, dry_run=dry_run)
    if task is None:
        raise click.UsageError("Name a TASK, or a --file.")
    text = sys.stdin.read() if params == "-" else params or "{}"
    given = read_json_object(text, "params")
    client = state.client()
    request = _request(load_tasks(client.settings), task, given, options)
    if dry_run:
        name, queue = request.task.name, request.queue
        state.out.would(f"enqueue {name} in {queue}", task=name, queue=queue)
        return Exit.DONE
    job = client.enqueue([request])[0]
    if job.deduplicated:
        state.out.say(f"an equal job is there already: {job.id}")
    if wait:
        return wait_for(state, [job.id], timeout)
    _print(state, [job])
    return Exit.DONE


def _print(state: State, jobs: list[Job]) -> None:
    records = [job_fields(job) | {"deduplicated": job.deduplicated} for job in jobs]
    state.out.table(
        jobs,
        [
            Column("id", lambda job: job.id),
            Column("task", lambda job: job.task),
            Column("queue", lambda job: job.queue),
            Column("state", lambda job: job.state),
            Column("deduplicated", lambda job: job.deduplicated),
        ],
        document=records[0] if len(records) == 1 else {"jobs": records},
        records=records,
    )


# --- a file of jobs ------------------------------------------------------------


def _line_options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one line; durations and times as on the command line."""
    options: dict[str, Any] = {}
    for name in ("priority", "queue", "dedup_key", "tags", "correlation_id"):
        if entry.get(name) is not None:
            options[name] = entry[name]
    if entry.get("delay") is not None:
        options["delay"] = DURATION.convert(entry["delay"], None, None)
    if entry.get("at") is not None:
        options["at"] = TIME.convert(str(entry["at"]), None, None)
    return options


def _of_line(
    registry: Registry, text: str, where: str, task: str | None, options: Mapping[str, Any]
) -> EnqueueRequest:
    entry = read_json_object(text, where)
    if task is not None:
        return _request(registry, task, entry, options)
    unknown = sorted(set(entry) - _LINE_FIELDS)
    if unknown:
        raise CliError(Exit.USAGE, f"no field {unknown[0]!r}; there are {', '.join(sorted(_LINE_FIELDS))}")
    name, params = entry.get("task"), entry.get("params", {})
    if not isinstance(name, str) or not isinstance(params, dict):
        raise CliError(
            Exit.USAGE, 'expected "task", a name, and "params", an object; or name TASK before --file'
        )
    # What the line says comes before what the command says.
    of_line = _line_options(entry)
    base = dict(options)
    for one, other in (("priority", "queue"), ("delay", "at")):
        if one in of_line or other in of_line:
            base.pop(one, None)
            base.pop(other, None)
    return _request(registry, name, params, base | of_line)


def _lines(file: TextIO) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line


def _from_file(
    state: State,
    file: TextIO,
    task: str | None,
    options: Mapping[str, Any],
    *,
    wait: bool,
    timeout: timedelta | None,
    dry_run: bool,
) -> int:
    """Enqueue every good line; bad ones are named by number, and make the exit code 7.

    Nothing is enqueued before all lines were looked at once.
    """
    client, out = state.client(), state.out
    registry = load_tasks(client.settings)
    label = getattr(file, "name", None) or "stdin"
    good: list[tuple[int, EnqueueRequest]] = []
    bad: list[tuple[int, str]] = []
    try:
        for number, text in _lines(file):
            try:
                good.append((number, _of_line(registry, text, "not usable", task, options)))
            except (CliError, EnqueueError, UnknownTaskError) as error:
                bad.append((number, str(error).removeprefix("not usable: ")))
            except click.UsageError as error:
                bad.append((number, error.format_message()))
    except UnicodeDecodeError as error:
        raise CliError(Exit.USAGE, f"{label} is not UTF-8 text: {error.reason}") from error
    if not good and not bad:
        out.say(f"{label}: no jobs")
        return Exit.DONE
    jobs: list[Job] = []
    if not dry_run:
        with out.progress("enqueueing", len(good)) as bar:
            for start in range(0, len(good), _CHUNK):
                chunk = good[start : start + _CHUNK]
                try:
                    jobs += client.enqueue([request for _, request in chunk])
                except EnqueueError as error:
                    bad += [(number, str(error)) for number, _ in chunk]
                bar.advance(len(chunk))
    for number, words in bad:
        out.error(f"{label} line {number}: {words}")
    failures = [{"line": number, "error": words} for number, words in bad]
    summary = {
        "enqueued": len(jobs),
        "deduplicated": sum(job.deduplicated for job in jobs),
        "failed": len(bad),
    } | ({"would_enqueue": len(good)} if dry_run else {})
    if wait and jobs and not bad:
        return wait_for(state, [job.id for job in jobs], timeout)
    document = summary | {"failures": failures, "ids": [job.id for job in jobs], "dry_run": dry_run}
    out.record(summary, document=document)
    return Exit.PARTIAL if bad else Exit.DONE
