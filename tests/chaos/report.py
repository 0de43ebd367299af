"""``python -m tests.chaos.report``: the long experiment, its verdict as one JSON line, a row in the documentation."""

from __future__ import annotations

import random
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from jobq import __version__
from tests.chaos.harness import Experiment, Plan, Verdict

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
TITLE = "## Measured"
HEADER = f"""
{TITLE}

SIGKILL of executors and of whole supervisors at random while jobs of 0 to 200 ms run, at the default lease of 12 s;
two workers, a real Redis, two ledgers. `make chaos` runs it, `python -m tests.chaos.report` adds a row.

"In flight": jobs that ran under a lease in the processes killed. "Reruns": executions beyond the first; how long after
the kill each began is in the last column.

| date | version | jobs | executors, workers killed | in flight | lost | phantom | stuck | reruns | p50, p99, max |
|---|---|---|---|---|---|---|---|---|---|
"""


def long_plan(seed: int) -> Plan:
    """What ``make chaos`` runs."""
    return Plan(jobs=5_000, lease=None, lease_s=12.0, seed=seed, slots=8, kill_every_s=1.5, drain_s=180)


def row(verdict: Verdict) -> str:
    """One line of the table."""
    cells = (
        datetime.now(UTC).date().isoformat(),
        __version__,
        f"{verdict.jobs:,}",
        f"{verdict.executors_killed}, {verdict.supervisors_killed}",
        verdict.in_flight_at_kills,
        verdict.lost,
        verdict.phantom,
        verdict.stuck,
        verdict.duplicates,
        f"{verdict.rerun_p50_s:.1f} s, {verdict.rerun_p99_s:.1f} s, {verdict.rerun_max_s:.1f} s",
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def publish(verdict: Verdict, page: Path = PAGE) -> None:
    """Add the row, and the table before the first one."""
    text = page.read_text()
    if TITLE not in text:
        text = text.rstrip("\n") + "\n" + HEADER
    page.write_text(text + row(verdict))


def main() -> int:
    """Run, print, publish."""
    with tempfile.TemporaryDirectory() as folder:
        verdict = Experiment(long_plan(random.randrange(1_000_000)), Path(folder)).run()
    sys.stdout.write(verdict.as_json() + "\n")
    if verdict.problems:
        sys.stderr.write(f"not as promised: {', '.join(verdict.problems)}\n")
        return 1
    publish(verdict)
    return 0


if __name__ == "__main__":
    sys.exit(main())
