"""``jobq memory``: what holds the memory of Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobq.cli.common import State, pass_state
from jobq.cli.options import Command
from jobq.cli.output import Column
from jobq.units import plural

if TYPE_CHECKING:
    from jobq.memory import Holding, MemoryReport


def size_text(size: float) -> str:
    """Bytes for people: ``917 B``, ``4.4 kB``, ``1.2 MB``."""
    if size < 1_000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1_000
        if size < 999.5 or unit == "GB":
            break
    return f"{size:.3g} {unit}"


@click.command(cls=Command)
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="Count about N keys only; the rest stays unknown."
)
@pass_state
def memory(state: State, limit: int | None) -> None:
    """What holds the memory of Redis: jobs by queue and state, results, registries, and what is not ours.

    An estimate: every key is counted, a sample of each kind measured.
    """
    from jobq.steps import Batch  # late: the steps know the scripts

    client = state.client()
    total: int = client.run(Batch((("DBSIZE",),), lambda replies: replies[0]))
    with state.out.progress("keys counted", min(limit or total, total)) as bar:
        report = client.memory(limit=limit, progress=bar.advance)
    people = state.out.style.stdout_terminal and not state.out.structured
    state.out.table(
        report.holdings,
        _columns(report, people=people),
        document=report.to_dict(),
        records=[holding.to_dict() for holding in report.holdings],
        empty="Redis holds no key",
    )
    if not state.out.structured:
        _say(state, report)


def _columns(report: MemoryReport, *, people: bool) -> list[Column]:
    held = sum(holding.bytes for holding in report.holdings) or 1

    def each(holding: Holding) -> int:
        return round(holding.bytes / holding.keys) if holding.keys else 0

    return [
        Column("kind", lambda holding: holding.kind),
        Column("queue", lambda holding: holding.queue or None),
        Column("state", lambda holding: holding.state or None),
        Column("keys", lambda holding: f"{holding.keys:,}" if people else holding.keys, right=True),
        Column("bytes", lambda holding: size_text(holding.bytes) if people else holding.bytes, right=True),
        Column("each", lambda holding: size_text(each(holding)) if people else each(holding), right=True),
        Column("share", lambda holding: f"{holding.bytes / held:.1%}", right=True),
        Column("measured", lambda holding: holding.measured, right=True, wide=True),
    ]


def _say(state: State, report: MemoryReport) -> None:
    counted = (
        plural(report.keys, "key") if report.complete else f"the first {plural(report.keys, 'key')} only"
    )
    state.out.say(f"an estimate: {counted} counted, {report.measured:,} measured")
    for words, size in (("a queued", report.queued_job_bytes), ("an ended", report.ended_job_bytes)):
        if size is not None:
            state.out.say(f"{words} job takes {size_text(size)}")
    limit = f" of {size_text(report.maxmemory)}" if report.maxmemory else ", no limit"
    ratio = "" if report.fragmentation is None else f", fragmentation {report.fragmentation:.2f}"
    state.out.say(
        f"Redis uses {size_text(report.used)}{limit}; at most so far {size_text(report.peak)}{ratio}"
    )
    if report.brake.shed:
        state.out.say(f"brake: {', '.join(report.brake.shed)} refuse new jobs")
    elif report.maxmemory:
        state.out.say("brake: off")
    else:
        state.out.say("brake: off, it needs a maxmemory")
