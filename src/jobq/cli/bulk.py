"""What the commands that change many jobs share: the filter, the question, the progress bar, the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import Exit, State, confirm
from jobq.cli.options import DURATION, RATE
from jobq.cli.output import Column, ago
from jobq.job import JobState
from jobq.units import plural

if TYPE_CHECKING:
    from jobq.control import BulkReport, Progress
    from jobq.plans import Preview

LISTED = 20
"""Jobs that are named one by one."""
_ASKED = 5
"""Jobs that a question names."""
_ENDED = "ended (or, if not, were created)"


def filter_options(states: Iterable[JobState] = JobState) -> Callable[[Any], Any]:
    """Decorator: the options that choose jobs; but for ``states`` they are called as in ``client.job_ids``.

    Args:
        states: Those that ``--state`` offers.
    """
    choice = click.Choice([state.value for state in states])

    def decorate(command: Any) -> Any:
        for option in (
            click.option("--since", type=DURATION, metavar="D", help=f"Only jobs that {_ENDED} within this time."),
            click.option("--error", metavar="F", help="Only this error fingerprint."),
            click.option("--correlation-id", metavar="C", help="Only jobs with this correlation id."),
            click.option("--tag", metavar="T", help="Only jobs with this tag."),
            click.option("--task", metavar="T", help="Only this task."),
            click.option("--queue", metavar="Q", help="Only this queue."),
            click.option("--state", "states", type=choice, multiple=True, help="Only this state; repeatable."),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def bulk_options(states: Iterable[JobState]) -> Callable[[Any], Any]:
    """Decorator: :func:`filter_options`, and those of commands that change what they choose."""

    def decorate(command: Any) -> Any:
        for option in (
            click.option("--limit", type=click.IntRange(1), metavar="N", help="At most this many."),
            click.option(
                "--older-than", "before", type=DURATION, metavar="D",
                help=f"Only jobs that {_ENDED} before this long ago.",
            ),
            filter_options(states),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def rate_option(command: Any) -> Any:
    """Decorator: ``--rate``."""
    return click.option("--rate", type=RATE, metavar="50/s", help="Not faster than this.")(command)


def describe(chosen: dict[str, Any]) -> str:
    """The filter in words, for a question: ``in queue email, of task mail.send``."""
    words = {
        "queue": "in queue", "task": "of task", "tag": "tagged", "correlation_id": "with correlation id",
        "error": "with error",
    }  # fmt: skip
    parts = [f"{text} {chosen[name]}" for name, text in words.items() if chosen.get(name)]
    if chosen.get("state"):
        parts.insert(0, " or ".join(str(state) for state in chosen["state"]))
    from jobq.cli.output import duration_text  # late: only for a question

    for name, text in (("since", "within"), ("before", "longer ago than")):
        if isinstance(chosen.get(name), timedelta):
            parts.append(f"{text} {duration_text(chosen[name])}")
    return f" ({', '.join(parts)})" if parts else ""


def carry_out(
    state: State,
    what: str,
    matched: int,
    run: Callable[[Progress], BulkReport],
    *,
    verb: str,
    preview: Callable[[], Sequence[Preview]] = tuple,
    ask: bool = True,
    dry_run: bool,
    yes: bool,
) -> int:
    """Ask, do it with a progress bar, report.

    Args:
        what: For the question, such as ``Delete 12 jobs``.
        matched: How many there are; 0: nothing is asked or done.
        run: Does it, given who is to be told of the progress.
        verb: As in ``would delete 12 jobs``.
        preview: Looks at the first :data:`LISTED` of them, for a dry run and for the question.
    Returns:
        0, or 7 when some were left as they were.
    """
    from jobq.control import BulkReport  # late: redis

    out = state.out
    if dry_run or not matched:
        out.say(
            f"would {verb} {plural(matched)}; nothing was changed"
            if matched
            else "nothing to do: no job matches"
        )
        report = BulkReport(matched=matched, dry_run=True)
    else:
        if ask:
            confirm(state, f"{what}?", yes=yes, before=lambda: name_some(state, preview(), matched))
        with out.progress(verb, matched) as bar:
            report = run(bar.advance)
    result = {
        "matched": report.matched,
        "done": report.done,
        "gone": report.gone,
        "failed": report.failed_count,
        "dry_run": dry_run,
    }
    listed = [{"id": job_id, "reason": word} for job_id, word in report.failed]
    looked = list(preview()) if dry_run and matched else []
    rows = previewed(looked)
    out.record(
        result if out.structured else {name: value for name, value in result.items() if name != "dry_run"},
        document=result | {"failures": listed} | ({"jobs": rows} if dry_run else {}),
    )
    list_previewed(state, rows, matched)
    for item in listed[:LISTED]:
        out.error(f"job {item['id']} stays as it is: {reason_words(item['reason'])}")
    if report.failed_count > LISTED:
        out.error(f"and {report.failed_count - LISTED:,} more; --json lists them")
    return Exit.PARTIAL if report.failed_count else Exit.DONE


def previewed(looked: Sequence[Preview]) -> list[dict[str, Any]]:
    """The jobs that a dry run names."""
    return [
        {
            "id": each.job.id,
            "task": each.job.task,
            "state": each.job.state.value,
            "queue": each.job.queue,
            "created_at": each.job.created_at,
            "refused": str(each.error) if each.error else None,
        }
        for each in looked
        if each.job
    ]


def list_previewed(state: State, rows: Sequence[dict[str, Any]], matched: int) -> None:
    """Print them, but for the JSON forms, which have them in their document."""
    out = state.out
    if not rows or out.structured:
        return
    people = out.style.stdout_terminal
    out.text("")
    out.table(
        rows,
        [
            *(Column(name, itemgetter(name)) for name in ("id", "task", "state", "queue")),
            Column("created", lambda row: ago(row["created_at"]) if people else row["created_at"]),
            Column("refused", itemgetter("refused")),
        ],
    )
    if matched > len(rows):
        out.say(f"and {matched - len(rows):,} more")


def name_some(state: State, looked: Sequence[Preview], matched: int) -> None:
    """Name the first few jobs that a question is about."""
    jobs = [each.job for each in looked if each.job][:_ASKED]
    for job in jobs:
        state.out.say(f"  {job.id}  {job.task}  created {ago(job.created_at)}")
    if jobs and matched > len(jobs):
        state.out.say(f"  and {matched - len(jobs):,} more")


def reason_words(word: str) -> str:
    """Why one job was left alone, in words."""
    if word.startswith("conflict:"):
        return f"job {word.partition(':')[2]} holds its dedup key"
    return {
        "gone": "it is gone",
        "finished": "it has ended",
        "unreadable": "it cannot be read",
        "changed": "it has died again meanwhile",
        "there": "a job of its id is there",
    }.get(word, f"it is {word}")
