"""Writes the table of ``docs/reliability.md``: one row an experiment, replaced by each newer run."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import rq

from jobq import __version__
from jobq.private_server import find_server
from tests.chaos.frame import Experiment, Report, Setup

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN = "<!-- experiments: written by `python -m tests.chaos --publish` -->"
END = "<!-- end of experiments -->"
HEADER = """| id | fault | must hold | measured | passed | run |
|---|---|---|---|---|---|"""


def row(experiment: Experiment, setup: Setup, report: Report, took_s: float) -> str:
    """One line of the table."""
    figures = "; ".join(f"{name} {_text(value)}" for name, value in report.figures.items())
    remarks = " ".join(f"*{note}*" for note in report.notes)
    verdict = "yes" if not report.problems else "**no**: " + "; ".join(report.problems)
    form = "short form" if setup.short else f"effort {setup.effort:g}"
    date = datetime.now(UTC).date().isoformat()
    cells = (
        experiment.id,
        experiment.fault,
        experiment.criterion,
        f"{figures} {remarks}".strip(),
        verdict,
        f"{date}, {revision()}, {form}, seed {setup.seed}, {took_s:.0f} s",
    )
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def revision() -> str:
    """The version, and the state of the code it was made of where git knows it."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"], cwd=PAGE.parent, capture_output=True, text=True
    )
    commit = asked.stdout.strip()
    return f"jobq {__version__}, commit {commit}" if commit else f"jobq {__version__}"


def machine() -> str:
    """What it ran on, in one line."""
    words = subprocess.run(
        [str(find_server()), "--version"], capture_output=True, text=True, check=True
    ).stdout.split()
    version = next(word for word in words if word.startswith("v="))[2:]
    flavour = words[0]
    return f"{platform.system()}, Python {platform.python_version()}, rq {rq.VERSION}, {flavour} {version}."


def publish(experiment: Experiment, setup: Setup, report: Report, took_s: float, page: Path = PAGE) -> None:
    """Put the row in its place, in the order of the ids."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {
        line.split(" | ")[0].removeprefix("| "): line
        for line in table.splitlines()
        if line.startswith("| FI-")
    }
    rows[experiment.id] = row(experiment, setup, report, took_s)
    lines = [BEGIN, f"Last run on {machine()}", "", HEADER, *(rows[id_] for id_ in sorted(rows)), "", END]
    page.write_text(before + "\n".join(lines) + after)
