"""``jobq jobs retry|cancel|promote|delete``: jobs by their ids, or all that a filter chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from jobq.cli.bulk import LISTED, bulk_options, carry_out, describe, rate_option
from jobq.cli.common import (
    Failure,
    State,
    bulk_exit,
    check_queue,
    confirm,
    each,
    pass_state,
    refused_as_usage,
    yes_options,
)
from jobq.cli.options import Command
from jobq.cli.output import Column
from jobq.job import VERB_STATES, JobState, Verb
from jobq.units import plural

_UNBOUNDED = ("limit", "rate")


def _print(
    state: State, done: Sequence[tuple[str, Any]], failed: Sequence[Any], *, dry_run: bool = False
) -> int:
    rows = [{"id": job_id, "result": result} for job_id, result in done]
    columns = [Column("id", lambda row: row["id"]), Column("result", lambda row: row["result"])]
    document = {"done": rows, "failed": [failure.as_dict() for failure in failed], "dry_run": dry_run}
    if done or state.out.structured:
        state.out.table(rows, columns, document=document)
    return bulk_exit(state, len(done), failed)


def _by_id(
    state: State,
    ids: Sequence[str],
    do: Callable[[str], Any],
    *,
    verb: Verb,
    ask: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    client = state.client()
    if dry_run:
        previews = client.preview(verb, ids)
        would = [
            (each.id, f"would {verb} ({each.job.state.value})")
            for each in previews
            if each.job and not each.error
        ]
        return _print(state, would, [Failure(p.id, p.error) for p in previews if p.error], dry_run=True)
    if ask:
        confirm(state, f"{verb.capitalize()} {plural(len(dict.fromkeys(ids)))}?", yes=yes)
    return _print(state, *each(ids, do))


def _by_filter(state: State, verb: Verb, chosen: dict[str, Any], *, dry_run: bool, yes: bool) -> int:
    client = state.client()
    rate = chosen.pop("rate")
    check_queue(client, chosen["queue"])
    states = chosen["state"] = chosen.pop("states") or tuple(each.value for each in VERB_STATES[verb])
    with refused_as_usage():
        ids = client.job_ids(**chosen)
    return carry_out(
        state,
        f"{verb.capitalize()} {plural(len(ids))}{describe(chosen)}",
        len(ids),
        lambda progress: client.bulk(
            verb, ids, states=states if verb in ("cancel", "delete") else None, rate=rate, progress=progress
        ),
        verb=verb,
        preview=lambda: client.preview(verb, ids[:LISTED]),
        dry_run=dry_run,
        yes=yes,
    )


def _run(
    state: State,
    verb: Verb,
    ids: tuple[str, ...],
    do: Callable[[str], Any],
    chosen: dict[str, Any],
    *,
    ask: bool = True,
    dry_run: bool,
    yes: bool,
) -> int:
    filtered = any(value for name, value in chosen.items() if name not in _UNBOUNDED)
    if ids and (filtered or chosen["limit"] or chosen["rate"]):
        raise click.UsageError("Give ids or a filter, not both.")
    if not ids and not filtered:
        raise click.UsageError("Give ids, or a filter such as --queue or --state.")
    if ids:
        return _by_id(state, ids, do, verb=verb, ask=ask, dry_run=dry_run, yes=yes)
    return _by_filter(state, verb, chosen, dry_run=dry_run, yes=yes)


def _command(verb: Verb) -> Callable[[Callable[..., int]], click.Command]:
    """A command that takes ids or a filter; its function gets the filter's options as ``chosen``."""
    # A job that runs can be asked to stop, and nothing else.
    states = (
        VERB_STATES[verb] if verb != "delete" else [each for each in JobState if each != JobState.RUNNING]
    )

    def decorate(function: Callable[..., int]) -> click.Command:
        command: Any = click.argument("ids", metavar="[ID]...", nargs=-1)(function)
        for option in (yes_options, rate_option, bulk_options(states)):
            command = option(command)
        return click.command(verb, cls=Command)(command)

    return decorate


@_command("retry")
@pass_state
def retry(state: State, ids: tuple[str, ...], dry_run: bool, yes: bool, **chosen: Any) -> int:
    """Queue dead or cancelled jobs again, now.

    These, or all that the options choose.
    """

    def do(job_id: str) -> str:
        return state.client().retry(job_id).state.value

    return _run(state, "retry", ids, do, chosen, dry_run=dry_run, yes=yes)


@_command("promote")
@pass_state
def promote(state: State, ids: tuple[str, ...], dry_run: bool, yes: bool, **chosen: Any) -> int:
    """Queue delayed jobs and retries now.

    These, or all that the options choose.
    """

    def do(job_id: str) -> str:
        return state.client().promote(job_id).state.value

    # One by its id never asks: nothing is lost, it only runs sooner.
    return _run(state, "promote", ids, do, chosen, ask=False, dry_run=dry_run, yes=yes)


@_command("cancel")
@pass_state
def cancel(state: State, ids: tuple[str, ...], dry_run: bool, yes: bool, **chosen: Any) -> int:
    """Cancel jobs, or ask running ones to stop.

    Those that wait end at once. A retry brings them back.
    """
    # One by its id never asks, as a retry undoes it; --yes is taken so that scripts can treat all of them alike.
    return _run(
        state, "cancel", ids, lambda job_id: state.client().cancel(job_id), chosen, ask=False, dry_run=dry_run,
        yes=yes,
    )  # fmt: skip


@_command("delete")
@pass_state
def delete(state: State, ids: tuple[str, ...], dry_run: bool, yes: bool, **chosen: Any) -> int:
    """Delete jobs, with their history.

    Those that run stay. A filter without --state chooses ended ones only.
    """

    def do(job_id: str) -> str:
        state.client().delete(job_id)
        return "deleted"

    return _run(state, "delete", ids, do, chosen, dry_run=dry_run, yes=yes)
