"""``jobq dead edit|purge|export``: mend a dead letter, delete old ones, take them away."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from jobq.cli.bulk import carry_out, plural, rate_option
from jobq.cli.common import (
    CliError,
    Exit,
    State,
    confirm,
    load_tasks,
    pass_state,
    read_json_object,
    refused_as_usage,
    yes_options,
)
from jobq.cli.dead_records import filter_options, letter_fields, wanted
from jobq.cli.job_records import job_fields
from jobq.cli.options import DURATION, Command
from jobq.cli.output import csv_value, duration_text, to_json

if TYPE_CHECKING:
    from jobq.dead_letters import DeadLetter
    from jobq.editing import Draft


@click.command("edit", cls=Command)
@click.argument("job_id", metavar="ID")
@click.option(
    "--set", "changes", metavar="NAME=VALUE", multiple=True,
    help="A new value, as JSON or as text; repeatable. Without it an editor opens.",
)  # fmt: skip
@yes_options
@pass_state
def edit(state: State, job_id: str, changes: tuple[str, ...], dry_run: bool, yes: bool) -> int:
    """Replay a dead letter with other params, under the same id. The task validates them first.

    Secrets are not shown, and are set in the editor only: a command line is seen by others.
    """
    load_tasks(state.settings())
    letters = state.client().dead_letters
    draft = letters.draft(job_id)
    new = _given(draft, changes) if changes else _edited(draft)
    if new is None:
        raise CliError(Exit.DECLINED, "declined, nothing was changed")
    names = sorted(
        name for name in {*new, *draft.params} if new.get(name, ...) != draft.params.get(name, ...)
    )
    if changes:
        names = sorted(new)
    if dry_run:
        words = ", ".join(names) or "params: none"
        state.out.would(f"replay job {job_id} with other {words}", id=job_id, changed=names)
        return Exit.DONE
    confirm(
        state, f"Replay job {job_id} ({draft.task}) with other {', '.join(names) or 'params: none'}?", yes=yes
    )
    job = letters.edit(job_id, new, whole=not changes)
    state.out.details(job_fields(job) | {"changed": names})
    return Exit.DONE


def _given(draft: Draft, changes: tuple[str, ...]) -> dict[str, Any]:
    new: dict[str, Any] = {}
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator or not name:
            raise click.BadParameter("write NAME=VALUE.", param_hint="'--set'")
        if name in draft.secrets:
            raise click.BadParameter(
                f"{name} is a secret: set it in the editor, without --set.", param_hint="'--set'"
            )
        try:
            new[name] = json.loads(text)
        except ValueError:
            new[name] = text
    return new


def _edited(draft: Draft) -> dict[str, Any] | None:
    """What comes out of the editor; None when it was left without saving."""
    text = json.dumps(dict(draft.params), ensure_ascii=False, indent=2)
    saved = click.edit(text, extension=".json", require_save=True)
    return None if saved is None else read_json_object(saved, "params")


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
    matched = client.dead_letters.purge(older_than, **chosen, dry_run=True).matched
    return carry_out(
        state,
        f"Delete {plural(matched, 'dead letter')} older than {duration_text(older_than)}, for good",
        matched,
        lambda progress: client.dead_letters.purge(older_than, **chosen, rate=rate, progress=progress),
        verb="delete",
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
    """Write dead letters with their errors to a file that only you can read. Params are left out."""
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
