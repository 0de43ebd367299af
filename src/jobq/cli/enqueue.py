"""``jobq enqueue``: one job, or a file of jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO

import click

from jobq.cli.common import CliError, Exit, State, load_tasks, pass_state, read_json_object
from jobq.cli.job_options import JOB_OPTIONS, asked, job_options, of_line
from jobq.cli.job_records import job_fields
from jobq.cli.jobs import wait_for
from jobq.cli.options import DURATION, Command
from jobq.cli.output import Column
from jobq.errors import ConfigError, EnqueueError, PayloadError, PayloadTooLargeError, UnknownTaskError
from jobq.units import plural

if TYPE_CHECKING:
    from jobq.client import Client
    from jobq.job import Job
    from jobq.tasks import EnqueueRequest, Registry

_CHUNK = 1_000
_SPANS = 10
_LINE_FIELDS = frozenset({"task", "params", *JOB_OPTIONS})


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
@job_options()
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
    wait: bool,
    timeout: timedelta | None,
    file: TextIO | None,
    dry_run: bool,
    **given: Any,
) -> int:
    """Enqueue one job of TASK, with params as a JSON object (- reads stdin), or a file with --file."""
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait.")
    options = asked(given)
    if file is not None:
        if params is not None:
            raise click.UsageError("Give JSON or --file, not both.")
        if options.get("dedup_key"):
            raise click.UsageError(
                'One --dedup-key for a whole file makes one job: write "dedup_key" in the lines.'
            )
        return _from_file(state, file, task, options, wait=wait, timeout=timeout, dry_run=dry_run)
    if task is None:
        raise click.UsageError("Name a TASK, or a --file.")
    text = sys.stdin.read() if params == "-" else params or "{}"
    call = read_json_object(text, "params")
    request = _request(load_tasks(state.settings()), task, call, options)
    client = state.client()
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
    return _request(registry, name, params, of_line(entry, options))


def _lines(file: TextIO) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line


@dataclass
class _Sent:
    """What became of the good lines of a file.

    Attributes:
        bad: Lines whose job alone cannot be enqueued, and why.
        left: Lines that are still to be sent, once ``error`` is mended.
    """

    ids: list[str] = field(default_factory=list)
    deduplicated: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    error: EnqueueError | None = None


def _send(
    client: Client, good: Sequence[tuple[int, EnqueueRequest]], advance: Callable[[int], object]
) -> _Sent:
    """Send the lines in order, and stop where Redis or a queue refuses."""
    sent = _Sent()
    for start in range(0, len(good), _CHUNK):
        chunk = good[start : start + _CHUNK]
        try:
            jobs = client.enqueue([request for _, request in chunk])
        except PayloadTooLargeError as error:  # nothing of the chunk was sent
            if len(chunk) == 1:
                sent.bad.append((chunk[0][0], str(error)))
            else:
                for line in chunk:
                    one = _send(client, [line], lambda _count: None)
                    sent.ids += one.ids
                    sent.deduplicated += one.deduplicated
                    sent.bad += one.bad
                    sent.left += one.left
                    sent.error = sent.error or one.error
        except EnqueueError as error:
            ids = error.acknowledged or (None,) * len(chunk)
            sent.ids += [job_id for job_id in ids if job_id is not None]
            sent.left += [number for (number, _), job_id in zip(chunk, ids, strict=True) if job_id is None]
            sent.error = error
        else:
            sent.ids += [job.id for job in jobs]
            sent.deduplicated += sum(job.deduplicated for job in jobs)
        advance(len(chunk))
        if sent.error is not None:
            sent.left += [number for number, _ in good[start + len(chunk) :]]
            break
    return sent


def _spans(numbers: Sequence[int]) -> str:
    """``3, 7-9``: runs of numbers; of many the first ones."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in spans[:_SPANS]]
    return ", ".join(shown) + (f" and {len(spans) - _SPANS} more" if len(spans) > _SPANS else "")


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
    registry = load_tasks(state.settings())
    client, out = state.client(), state.out
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
    for number, words in bad:
        out.error(f"{label} line {number}: {words}")
    sent = _Sent()
    if not dry_run:
        with out.progress("enqueueing", len(good)) as bar:
            sent = _send(client, good, bar.advance)
        for number, words in sent.bad:
            out.error(f"{label} line {number}: {words}")
        if sent.error is not None:
            if not sent.ids and not bad and not sent.bad:
                raise sent.error
            out.error(f"{label}: {sent.error}")
            out.error(
                f"{len(sent.ids):,} of {plural(len(good), verb='were')} enqueued, "
                f"not those of lines {_spans(sent.left)}"
            )
    bad += sent.bad
    failures = [{"line": number, "error": words} for number, words in bad]
    failures += [{"line": number, "error": str(sent.error)} for number in sent.left]
    summary = {
        "enqueued": len(sent.ids),
        "deduplicated": sent.deduplicated,
        "failed": len(failures),
    } | ({"would_enqueue": len(good)} if dry_run else {})
    if wait and sent.ids and not failures:
        return wait_for(state, sent.ids, timeout)
    document = summary | {"failures": failures, "ids": sent.ids, "dry_run": dry_run}
    out.record(summary, document=document)
    return Exit.PARTIAL if failures else Exit.DONE
