"""``jobq dead edit``: a dead letter replayed with other params."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import (
    CliError,
    Exit,
    State,
    confirm,
    is_terminal,
    load_tasks,
    pass_state,
    read_json_object,
    yes_options,
)
from jobq.cli.job_records import job_fields
from jobq.cli.options import Command

if TYPE_CHECKING:
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
    """Replay a dead letter with other params.

    It keeps its id, and its task validates the params first.

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
    """What comes out of the editor; None when it was left without saving.

    Raises:
        CliError: Nobody is there to edit it, nor a program named that would (2).
    """
    named = any(os.environ.get(name) for name in ("VISUAL", "EDITOR"))
    if not named and not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise CliError(
            Exit.USAGE,
            "there is no terminal for an editor: give the new values with --set NAME=VALUE and --yes, or name a "
            "program in EDITOR that writes them into the file it is given",
        )
    text = json.dumps(dict(draft.params), ensure_ascii=False, indent=2)
    saved = click.edit(text, extension=".json", require_save=True)
    return None if saved is None else read_json_object(saved, "params")
