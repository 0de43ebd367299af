"""``jobq doctor``: find out why jobs do not run, or would be lost, and set the data right.

The order is that of the runbook: settings, Redis, its safety, who serves what waits, then the data, job by job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.checks import Check, queue_checks, server_checks, settings_checks
from jobq.cli.common import CliError, Exit, State, confirm, pass_state, yes_options
from jobq.cli.options import Command
from jobq.cli.output import Column
from jobq.cli.schedule_checks import schedule_checks
from jobq.errors import ConfigError, StorePermissionError, StoreUnavailableError
from jobq.parsing import redact_url
from jobq.units import plural

if TYPE_CHECKING:
    from jobq.audit import Finding
    from jobq.client import Client
    from jobq.schedule_spec import Schedule


@click.command(cls=Command)
@click.option("--fix", is_flag=True, help="Set the data right, as far as that loses nothing.")
@click.option("--delete-unreadable", is_flag=True, help="With --fix: delete jobs that cannot be read, too.")
@click.option("--data/--no-data", default=True, help="Look at every job, or not; by default yes.")
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="Look at about N keys only; the rest goes unseen."
)
@click.option(
    "--sample", type=click.IntRange(0), default=5, metavar="N", help="Ids to show of each kind; default 5."
)
@yes_options
@pass_state
def doctor(
    state: State,
    fix: bool,
    delete_unreadable: bool,
    data: bool,
    limit: int | None,
    sample: int,
    yes: bool,
    dry_run: bool,
) -> int:
    """Check settings, Redis, workers, and that every job is where it belongs.

    Exits with 6 when something is bad, 69 when Redis is away. Safe while workers run.
    """
    if not data and (fix or limit):
        raise click.UsageError("--fix and --limit are about the data: not with --no-data.")
    if delete_unreadable and not fix:
        raise click.UsageError("--delete-unreadable goes with --fix.")
    checks = list(settings_checks(state.settings()))
    findings: list[Finding] = []
    fixed: list[Finding] = []
    unreachable: StoreUnavailableError | None = None
    closed: ConfigError | StorePermissionError | None = None
    refused: CliError | None = None
    root = state.client()
    servers = root.each()
    for client in servers:
        here: list[Check] = []
        try:
            here += server_checks(client)
            here += queue_checks(client)
            here += schedule_checks(client, _declared_for(root, client))
            if data:
                found = _look(state, client, limit)
                mended: list[Finding] = []
                if fix:
                    try:
                        mended, found = _fix(
                            state,
                            client,
                            found,
                            delete_unreadable=delete_unreadable,
                            yes=yes,
                            dry_run=dry_run,
                        )
                    except CliError as error:
                        refused = error
                here += _data_checks(found, mended, sample)
                findings += found
                fixed += mended
        except StoreUnavailableError as error:
            unreachable = error
            here += _not_usable(here, error)
        except (ConfigError, StorePermissionError) as error:
            closed = error
            here += _not_usable(here, error)
        place = f"{redact_url(client.settings.redis_url)}: " if len(servers) > 1 else ""
        checks += [replace(check, name=f"{place}{check.name}") for check in here]
    bad = [check for check in checks if check.status == "bad"]
    _print(state, checks, bad, _document(findings, fixed, sample), dry_run=dry_run)
    if unreachable is not None:
        return Exit.UNAVAILABLE
    if closed is not None:
        return Exit.CONFIG
    if refused is not None:
        raise refused
    return Exit.BAD if bad else Exit.DONE


def _declared_for(root: Client, client: Client) -> list[Schedule]:
    """The schedules of the code here whose queues are in one client's Redis."""
    from jobq.schedule_spec import declared  # late: it brings the client's half of the library

    return [each for each in declared.all() if root.url_of(each.request.queue) == client.settings.redis_url]


def _not_usable(said: Sequence[Check], error: Exception) -> Iterator[Check]:
    """That Redis cannot be asked further, with the remedy; nothing when that has been said."""
    from jobq.refusals import remedy  # late: only when something failed

    away = isinstance(error, StoreUnavailableError)
    if not any(check.status == "bad" for check in said):
        words = (
            remedy(str(error)).replace("(see jobq doctor)", "(see jobq config show --origin)") if away else ""
        )
        yield Check("redis", "bad", str(error).rstrip("."), words)


def _print(
    state: State, checks: Sequence[Check], bad: Sequence[Check], data: Sequence[Any], *, dry_run: bool
) -> None:
    records = [check.as_dict() for check in checks]
    state.out.table(
        checks,
        [
            Column("check", lambda check: check.name),
            Column("status", lambda check: check.status),
            Column("detail", lambda check: check.detail, grow=True),
            Column("remedy", lambda check: check.remedy or None, grow=True),
        ],
        document={"ok": not bad, "checks": records, "data": data, "dry_run": dry_run},
        records=records,
    )
    for check in bad:
        state.out.error(f"{check.name}: {check.detail}" + (f"; {check.remedy}" if check.remedy else ""))


# --- the data ------------------------------------------------------------


def _look(state: State, client: Client, limit: int | None) -> list[Finding]:
    # Late: the steps know the scripts.
    from jobq.audit import audit
    from jobq.steps import Batch

    total: int = client.run(Batch((("DBSIZE",),), lambda replies: replies[0]))
    with state.out.progress("keys looked at", min(limit or total, total)) as bar:
        return audit(client, limit=limit, progress=bar.advance)


def _fix(
    state: State,
    client: Client,
    findings: Sequence[Finding],
    *,
    delete_unreadable: bool,
    yes: bool,
    dry_run: bool,
) -> tuple[list[Finding], list[Finding]]:
    """What was set right, and what is still wrong.

    Raises:
        CliError: The answer was not yes, or there is nobody to ask.
    """
    from jobq import audit  # late: the steps know the scripts

    broken = sum(finding.kind == "unreadable" for finding in findings) if delete_unreadable else 0
    repairs = sum(finding.repairable for finding in findings)
    parts = [
        *([f"repair {plural(repairs, 'finding')}"] if repairs else []),
        *([f"delete {plural(broken, 'unreadable job')}"] if broken else []),
    ]
    if not parts:
        state.out.say("nothing to repair")
        return [], list(findings)
    if dry_run:
        state.out.say(f"would {' and '.join(parts)}")
        return [], list(findings)
    question = " and ".join(parts)
    confirm(state, f"{question[:1].upper()}{question[1:]}?", yes=yes)
    fixed = audit.repair(client, findings, delete_unreadable=delete_unreadable)
    return fixed, audit.confirm(client, findings)


def _kinds(findings: Sequence[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    for kind, group in groupby(findings, key=lambda finding: finding.kind):
        yield kind, list(group)


def _data_checks(findings: Sequence[Finding], fixed: Sequence[Finding], sample: int) -> Iterator[Check]:
    """A line for each kind of finding; one when there are none."""
    from jobq.audit import KINDS  # late: the steps know the scripts

    for kind, group in _kinds(fixed):
        words = KINDS[kind].repair or "deleted"
        yield Check(f"data: {kind}", "fixed", f"{len(group):,}: {words}{_named(group, sample)}")
    for kind, group in _kinds(findings):
        about = KINDS[kind]
        remedy = "jobq doctor --fix" if about.repair else _BY_HAND.get(kind, "")
        status = "bad" if about.severe else "warn"
        yield Check(f"data: {kind}", status, f"{len(group):,}: {about.words}{_named(group, sample)}", remedy)
    if not findings:
        yield Check("data", "ok", "every job is where it belongs")


_BY_HAND: Mapping[str, str] = {
    "unreadable": "look at them with HGETALL; jobq doctor --fix --delete-unreadable deletes them",
    "wrong_type": "rename or delete them in redis-cli",
}


def _named(group: Sequence[Finding], sample: int) -> str:
    """Some of them, with what is wrong where it differs."""
    shown = [f"{each.subject} ({each.detail})" if each.detail else each.subject for each in group[:sample]]
    more = " …" if len(group) > sample else ""
    return f" ({', '.join(shown)}{more})" if shown else ""


def _document(findings: Sequence[Finding], fixed: Sequence[Finding], sample: int) -> list[dict[str, Any]]:
    """The findings by kind, for the JSON forms."""
    from jobq.audit import KINDS  # late: the steps know the scripts

    return [
        {
            "kind": kind,
            "severe": KINDS[kind].severe,
            "words": KINDS[kind].words,
            "repair": KINDS[kind].repair or None,
            "fixed": is_fixed,
            "count": len(group),
            "sample": [
                {"subject": each.subject, "place": each.place or None, "detail": each.detail or None}
                for each in group[:sample]
            ],
        }
        for is_fixed, every in ((True, fixed), (False, findings))
        for kind, group in _kinds(every)
    ]
