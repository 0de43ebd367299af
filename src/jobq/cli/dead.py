"""``jobq dead`` and ``jobq retry-failed``: look at dead letters, and put them back in their queues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.bulk import LISTED, list_previewed, name_some, previewed, reason_words
from jobq.cli.common import Exit, State, confirm, pass_state, refused_as_usage, yes_options
from jobq.cli.dead_archive import archive, export, purge, restore
from jobq.cli.dead_edit import edit
from jobq.cli.dead_records import filter_options, letter_fields, wanted
from jobq.cli.job_records import attempt_fields, show_attempts
from jobq.cli.options import DURATION, RATE, Command, Group
from jobq.cli.output import Column, ago
from jobq.units import plural

if TYPE_CHECKING:
    from jobq.client import Client
    from jobq.dead_letters import DeadGroup, DeadLetter
    from jobq.plans import Preview


def _group_fields(group: DeadGroup) -> dict[str, Any]:
    return {
        "fingerprint": group.fingerprint,
        "task": group.task,
        "reason": group.reason,
        "count": group.count,
        "first_seen": group.first_seen,
        "last_seen": group.last_seen,
        "error_type": group.error_type,
        "error": group.error,
        "example_id": group.example_id,
    }


def _error(item: DeadGroup | DeadLetter) -> str | None:
    return ": ".join(part for part in (item.error_type, item.error) if part) or None


_GROUP_COLUMNS = [
    Column("count", lambda group: group.count, right=True),
    Column("task", lambda group: group.task),
    Column("reason", lambda group: group.reason),
    Column("fingerprint", lambda group: group.fingerprint),
    Column("error", _error, grow=True),
    Column("last seen", lambda group: group.last_seen, wide=True),
    Column("example", lambda group: group.example_id, wide=True),
]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The dead letters to replay: counted, not read one by one.

    Attributes:
        by_task: How many there are of each task, the most first.
        limit: At most so many of them, the newest.
        ids: Reads the ids of the first so many, or of all.
        asked: For ``client.dead_letters.replay``.
    """

    by_task: Mapping[str, int]
    limit: int | None
    ids: Callable[[int | None], Sequence[str]]
    asked: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many are to be replayed."""
        found = sum(self.by_task.values())
        return found if self.limit is None else min(found, self.limit)

    @property
    def words(self) -> str:
        """How many, and of which tasks: ``12 dead letters (orders.confirm 10, mail.send 2)``."""
        found = sum(self.by_task.values())
        first = list(self.by_task.items())
        names = ", ".join(f"{task} {count:,}" for task, count in first[:3])
        more = f", {plural(len(first) - 3, 'more task')}" if len(first) > 3 else ""
        some = "" if self.count == found else f"the newest {self.count:,} of "
        return f"{some}{plural(found, 'dead letter')} ({names}{more})"


def _by_filter(client: Client, wanted: dict[str, Any], limit: int | None) -> _Chosen:
    letters = client.dead_letters

    def first(count: int | None) -> list[str]:
        return letters.ids(**wanted, limit=count)

    return _Chosen(letters.by_task(**wanted), limit, first, wanted)


def _replay(
    state: State,
    chosen: _Chosen,
    *,
    rate: float | None,
    dry_run: bool,
    yes: bool,
    canary: int = 0,
    canary_timeout: timedelta = timedelta(minutes=5),
) -> int:
    """Replay these, after asking; the same for ``retry-failed`` and ``dead replay``."""
    client, out = state.client(), state.out
    report, matched = None, chosen.count

    def looked(ids: Sequence[str]) -> Sequence[Preview]:
        return client.preview("retry", ids[:LISTED])

    rows = previewed(looked(chosen.ids(min(matched, LISTED)))) if dry_run and matched else []
    if dry_run or not matched:
        out.say(
            f"would replay {chosen.words}; nothing was changed"
            if matched
            else "nothing to replay: no dead letter matches"
        )
    else:
        asked: Mapping[str, Any] = {**chosen.asked, "limit": chosen.limit}

        def named() -> None:
            nonlocal asked
            # Those that the question is about, and none that dies before it is answered, perhaps of something else.
            asked = {"ids": chosen.ids(chosen.limit)}
            name_some(state, looked(asked["ids"]), matched)

        confirm(state, f"Replay {chosen.words}?", yes=yes, before=named)
        with out.progress("replaying", matched) as bar:
            report = client.dead_letters.replay(
                **asked, rate=rate, canary=canary, canary_timeout=canary_timeout,
                progress=bar.advance,
            )  # fmt: skip
        matched = report.matched
    replayed = report.replayed if report else 0
    failed = [{"id": job_id, "reason": reason} for job_id, reason in report.failed] if report else []
    held = report.held if report else 0
    result = {"matched": matched, "replayed": replayed, "failed": failed, "held": held, "dry_run": dry_run}
    if out.structured:
        flat = result | {"failed": len(failed)}
        out.record(flat, document=result | ({"jobs": rows} if dry_run else {}))
    else:
        out.record({"matched": matched, "replayed": replayed, "failed": len(failed)})
    list_previewed(state, rows, matched)
    for item in failed[:20]:
        out.error(f"job {item['id']} was not replayed: {reason_words(item['reason'])}")
    if len(failed) > 20:
        out.error(f"and {len(failed) - 20:,} more; --json lists them")
    for job_id, word in report.canary if report and held else ():
        if word != "succeeded":
            out.error(f"job {job_id} of the canary is {word}; {held:,} stay dead. See jobq why {job_id}")
    if held:
        return Exit.BAD
    return Exit.PARTIAL if failed else Exit.DONE


@click.command("retry-failed", cls=Command)
@filter_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most this many, newest first.")
@click.option("--rate", type=RATE, metavar="50/s", help="Not faster than this.")
@yes_options
@pass_state
def retry_failed(
    state: State,
    priority: str | None,
    queue: str | None,
    task: str | None,
    error: str | None,
    since: timedelta | None,
    limit: int | None,
    rate: float | None,
    dry_run: bool,
    yes: bool,
) -> int:
    """Replay dead letters.

    All of them, or those chosen by the options.
    """
    client = state.client()
    chosen = _by_filter(client, wanted(client, priority, queue, task, error, since), limit)
    return _replay(state, chosen, rate=rate, dry_run=dry_run, yes=yes)


@click.group(cls=Group)
def dead() -> None:
    """Look at dead letters; replay, edit, purge, export and archive them."""


@dead.command("list")
@filter_options
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="At most.")
@click.option("--cursor", metavar="C", help="Go on where a listing ended.")
@pass_state
def list_dead(
    state: State,
    priority: str | None,
    queue: str | None,
    task: str | None,
    error: str | None,
    since: timedelta | None,
    limit: int,
    cursor: str | None,
) -> None:
    """Dead letters, newest first."""
    client = state.client()
    chosen = wanted(client, priority, queue, task, error, since)
    with refused_as_usage():
        page = client.dead_letters.list(**chosen, limit=limit, cursor=cursor)
    people = state.out.style.stdout_terminal
    records = [letter_fields(letter) for letter in page.items]
    state.out.table(
        page.items,
        [
            Column("id", lambda letter: letter.id),
            Column("queue", lambda letter: letter.queue),
            Column("task", lambda letter: letter.task),
            Column("reason", lambda letter: letter.reason),
            Column("attempts", lambda letter: letter.attempts, right=True),
            Column("died", lambda letter: ago(letter.died_at) if people else letter.died_at),
            Column("fingerprint", lambda letter: letter.fingerprint, wide=True),
            Column("error", _error, grow=True),
        ],
        document={"dead": records, "cursor": page.cursor},
        records=records,
        empty="no dead letters",
    )
    if page.cursor:
        state.out.say(f"more: --cursor {page.cursor}")


@dead.command("groups")
@filter_options
@pass_state
def groups(
    state: State,
    priority: str | None,
    queue: str | None,
    task: str | None,
    error: str | None,
    since: timedelta | None,
) -> None:
    """Dead letters by what went wrong.

    The largest group first.
    """
    client = state.client()
    found = client.dead_letters.groups(**wanted(client, priority, queue, task, error, since))
    records = [_group_fields(group) for group in found]
    state.out.table(
        found, _GROUP_COLUMNS, document={"groups": records}, records=records, empty="no dead letters"
    )


@dead.command("show")
@click.argument("job_id", metavar="ID")
@pass_state
def show(state: State, job_id: str) -> None:
    """One dead letter: why it died, its attempts."""
    letter = state.client().dead_letters.get(job_id)
    fields = letter_fields(letter)
    document = fields | {
        "history": [attempt_fields(attempt) for attempt in letter.history],
        "traceback": letter.traceback,
    }
    state.out.details(fields, document=document)
    if not state.out.structured:
        show_attempts(state, letter.history)
        if letter.traceback:
            state.out.text("")
            state.out.block(letter.traceback)


@dead.command("replay")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@filter_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most this many, newest first.")
@click.option("--rate", type=RATE, metavar="50/s", help="Not faster than this.")
@click.option(
    "--canary", type=click.IntRange(1), metavar="N",
    help="So many first; unless all of them succeed at once, the others stay dead.",
)  # fmt: skip
@click.option(
    "--canary-timeout", type=DURATION, default="5m", show_default=True, metavar="D", help="To wait for those."
)
@yes_options
@pass_state
def replay(
    state: State,
    ids: tuple[str, ...],
    priority: str | None,
    queue: str | None,
    task: str | None,
    error: str | None,
    since: timedelta | None,
    limit: int | None,
    rate: float | None,
    canary: int | None,
    canary_timeout: timedelta,
    dry_run: bool,
    yes: bool,
) -> int:
    """Replay dead letters.

    Those named, or those chosen by the options.
    """
    filters = (priority, queue, task, error, since)
    if ids and any(each is not None for each in filters):
        raise click.UsageError("Give ids or options that choose, not both.")
    if not ids and all(each is None for each in filters):
        raise click.UsageError(
            "Name ids, or choose with --queue, --task, --error or --since; all: jobq retry-failed."
        )
    client = state.client()
    if ids:
        # Asked for by name: each must be there, and dead.
        letters = [client.dead_letters.get(job_id) for job_id in dict.fromkeys(ids)][:limit]
        named = [letter.id for letter in letters]
        by_task = dict(Counter(letter.task for letter in letters).most_common())
        chosen = _Chosen(by_task, limit, lambda count: named[:count], {"ids": named})
    else:
        chosen = _by_filter(client, wanted(client, priority, queue, task, error, since), limit)
    return _replay(
        state, chosen, rate=rate, dry_run=dry_run, yes=yes, canary=canary or 0, canary_timeout=canary_timeout
    )


for _command in (edit, purge, export, archive, restore):
    dead.add_command(_command)
