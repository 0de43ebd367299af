"""What the demo shows: a bar per lane while it runs, then a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from jobq.client import Client
from jobq.stats import Stats

_LOOK_EVERY_S = 0.2
_SAY_EVERY_S = 1.0


def watch(
    client: Client, totals: Mapping[str, int], console: Console, alive: Callable[[], bool], deadline_s: float
) -> Stats:
    """Show how far each lane is until all its jobs have ended, the worker is gone, or time is up.

    A bar per lane on a terminal; else a line a second.
    """
    began = time.monotonic()
    ends, said = began + deadline_s, began
    bars = Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(40),
        MofNCompleteColumn(),
        console=console,
        transient=False,
        disable=not console.is_terminal,
    )
    rows = {name: bars.add_task(name, total=total) for name, total in totals.items()}
    with bars:
        while True:
            stats = client.stats()
            done = {name: stats.queues[name].succeeded + stats.queues[name].dead for name in totals}
            for name, row in rows.items():
                bars.update(row, completed=min(done[name], totals[name]))
            now = time.monotonic()
            over = all(done[name] >= total for name, total in totals.items()) or not alive() or now > ends
            if not console.is_terminal and (over or now >= said + _SAY_EVERY_S):
                said = now
                lanes = "  ".join(
                    f"{name} {min(done[name], total)}/{total}" for name, total in totals.items()
                )
                console.print(f"{now - began:4.1f} s  {lanes}")
            if over:
                return stats
            time.sleep(_LOOK_EVERY_S)


def lanes_table(stats: Stats, totals: Mapping[str, int], refused: Mapping[str, int]) -> Table:
    """Waits against targets, retries, refused duplicates and dead letters, per lane."""
    table = Table(
        title="what happened (refused: duplicates of a live job)", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("lane", no_wrap=True)
    for heading in ("jobs", "wait p50", "wait p99", "target", "kept", "retries", "refused", "dead"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, total in totals.items():
        queue = stats.queues[name].to_dict()
        target, p99 = queue["target_s"], queue["wait_p99_s"]
        table.add_row(
            name,
            f"{total:,}",
            _time(queue["wait_p50_s"]),
            _time(p99),
            "none" if target is None else _time(target),
            "-" if target is None or p99 is None else ("yes" if p99 <= target else "no"),
            str(queue["failed_attempts"] - queue["dead"]),
            str(refused.get(name, 0)),
            str(queue["dead"]),
        )
    return table


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds >= 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
