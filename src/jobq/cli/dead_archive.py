"""``jobq dead purge|export|archive|restore``: dead letters deleted, copied to a file, moved there, put back."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from jobq.cli.bulk import carry_out, rate_option
from jobq.cli.common import State, pass_state, refused_as_usage, yes_options
from jobq.cli.dead_records import filter_options, letter_fields, wanted
from jobq.cli.options import DURATION, Command
from jobq.cli.output import csv_value, duration_text, to_json
from jobq.units import plural

if TYPE_CHECKING:
    from jobq.dead_letters import DeadLetter


@click.command("archive", cls=Command)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE",
    help="Where to; what it holds stays.",
)  # fmt: skip
@click.option("--older-than", type=DURATION, metavar="30d", help="Only those that died longer ago.")
@filter_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most this many, newest first.")
@rate_option
@yes_options
@pass_state
def archive(
    state: State,
    out: Path,
    older_than: timedelta | None,
    limit: int | None,
    rate: float | None,
    dry_run: bool,
    yes: bool,
    **options: Any,
) -> int:
    """Move dead letters out of Redis into a file.

    All of them, or those chosen by the options. Each leaves Redis once it is on disk. Only you can read the
    file. It holds payloads as Redis does, secret params sealed if there is a key; `jobq dead restore` puts them back.
    """
    letters = state.client().dead_letters
    chosen = wanted(state.client(), **options) | {"older_than": older_than, "limit": limit}
    look = letters.archive(out, **chosen, dry_run=True)
    with refused_as_usage():
        return carry_out(
            state,
            f"Move {plural(look.matched, 'dead letter')} to {out}",
            look.matched,
            lambda progress: letters.archive(out, **chosen, rate=rate, progress=progress),
            verb="archive",
            preview=lambda: state.client().preview("delete", look.first),
            dry_run=dry_run,
            yes=yes,
        )


@click.command("restore", cls=Command)
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("ids", metavar="[ID]...", nargs=-1)
@yes_options
@pass_state
def restore(state: State, file: Path, ids: tuple[str, ...], dry_run: bool, yes: bool) -> int:
    """Put dead letters of an archive back.

    Dead as they were: these, or all. The file stays as it is.
    """
    letters, chosen = state.client().dead_letters, ids or None
    with refused_as_usage():
        matched = letters.restore(file, chosen, dry_run=True).matched
    return carry_out(
        state,
        f"Restore {plural(matched, 'dead letter')} from {file}",
        matched,
        lambda progress: letters.restore(file, chosen, progress=progress),
        verb="restore",
        dry_run=dry_run,
        yes=yes,
    )


@click.command("purge", cls=Command)
@click.option(
    "--older-than", type=DURATION, required=True, metavar="30d", help="Only those that died longer ago."
)
@click.option("--queue", metavar="Q", help="Only this queue.")
@click.option("--task", metavar="T", help="Only this task.")
@click.option("--error", metavar="FINGERPRINT", help="Only this kind of error.")
@rate_option
@yes_options
@pass_state
def purge(
    state: State,
    older_than: timedelta,
    queue: str | None,
    task: str | None,
    error: str | None,
    rate: float | None,
    dry_run: bool,
    yes: bool,
) -> int:
    """Delete old dead letters, for good."""
    client = state.client()
    chosen = wanted(client, None, queue, task, error, None)
    del chosen["since"]
    look = client.dead_letters.purge(older_than, **chosen, dry_run=True)
    return carry_out(
        state,
        f"Delete {plural(look.matched, 'dead letter')} older than {duration_text(older_than)}, for good",
        look.matched,
        lambda progress: client.dead_letters.purge(older_than, **chosen, rate=rate, progress=progress),
        verb="delete",
        preview=lambda: client.preview("delete", look.first),
        dry_run=dry_run,
        yes=yes,
    )


@click.command("export", cls=Command)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Where to; it is replaced when all is written.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("jsonl", "csv")),
    default="jsonl",
    show_default=True,
    help="One object, or one row, each.",
)
@filter_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most this many, newest first.")
@pass_state
def export(state: State, out: Path, form: str, limit: int | None, **options: Any) -> None:
    """Write dead letters and errors to a file.

    Only you can read it. Params are left out.
    """
    client = state.client()
    chosen = wanted(client, **options)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with (
            open(part, "x", encoding="utf-8", newline="", opener=_private) as file,
            state.out.progress("exporting", None) as bar,
            refused_as_usage(),
        ):
            write = _writer(file, form)

            def one(letter: DeadLetter) -> None:
                write(letter_fields(letter))
                bar.advance()

            count = client.dead_letters.export(one, **chosen, limit=limit)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    state.out.record({"out": str(out), "format": form, "written": count})


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _writer(file: TextIO, form: str) -> Callable[[Mapping[str, Any]], object]:
    if form == "jsonl":
        return lambda fields: file.write(f"{to_json(fields)}\n")
    table = csv.writer(file, lineterminator="\n")
    headed = False

    def row(fields: Mapping[str, Any]) -> None:
        nonlocal headed
        if not headed:
            table.writerow(fields)
            headed = True
        table.writerow([csv_value(value) for value in fields.values()])

    return row
