"""``jobq dead archive|restore``: dead letters moved to a file, and put back from there."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from jobq.cli.bulk import carry_out, plural, rate_option
from jobq.cli.common import State, pass_state, refused_as_usage, yes_options
from jobq.cli.dead_records import filter_options, wanted
from jobq.cli.options import DURATION, Command


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
    """Move dead letters to a file that only you can read, all of them or those chosen by the options.

    Each leaves Redis once it is on disk. The file holds payloads as Redis does, secret params sealed if there is a
    key; `jobq dead restore` puts them back.
    """
    letters = state.client().dead_letters
    chosen = wanted(state.client(), **options) | {"older_than": older_than, "limit": limit}
    matched = letters.archive(out, **chosen, dry_run=True).matched
    with refused_as_usage():
        return carry_out(
            state,
            f"Move {plural(matched, 'dead letter')} to {out}",
            matched,
            lambda progress: letters.archive(out, **chosen, rate=rate, progress=progress),
            verb="archive",
            dry_run=dry_run,
            yes=yes,
        )


@click.command("restore", cls=Command)
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("ids", metavar="[ID]...", nargs=-1)
@yes_options
@pass_state
def restore(state: State, file: Path, ids: tuple[str, ...], dry_run: bool, yes: bool) -> int:
    """Put dead letters of an archive back, dead as they were: these, or all. The file stays as it is."""
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
