"""``jobq config``: the settings, and where they come from."""

from __future__ import annotations

from typing import Any

import click

from jobq.cli.common import State, pass_state
from jobq.cli.options import Group
from jobq.cli.output import Column


@click.group(cls=Group)
def config() -> None:
    """Show the settings and where they come from."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@pass_state
def show(state: State, origin: bool) -> None:
    """Every setting in force.

    Passwords and keys are hidden.
    """
    settings = state.app_settings()
    shown, origins = settings.shown(), settings.origins()
    rows = [
        {"setting": name, "value": value, "origin": origins.get(name, "default")}
        for name, value in shown.items()
    ]
    columns = [Column("setting", lambda row: row["setting"]), Column("value", lambda row: row["value"])]
    if origin:
        columns.append(Column("origin", lambda row: row["origin"]))
    document: dict[str, Any] = (
        {row["setting"]: {"value": row["value"], "origin": row["origin"]} for row in rows}
        if origin
        else dict(shown)
    )
    state.out.table(rows, columns, document=document)
