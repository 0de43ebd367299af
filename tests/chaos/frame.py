"""What every chaos experiment has in common: its name, its setup, its report, and the list of all.

An experiment is a function ``(setup) -> Report`` in one of the ``fi_*`` modules, registered under its id of the
reliability page with :func:`experiment`. ``python -m tests.chaos`` runs them; their short forms are tests.
"""

from __future__ import annotations

import importlib
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MODULES = (
    "fi_workers",
    "fi_groups",
    "fi_crashes",
    "fi_redis",
    "fi_outages",
    "fi_data",
    "fi_scale",
    "fi_schedules",
    "fi_limits",
    "fi_control",
    "fi_producers",
)
"""Modules of this package that hold experiments."""

KILL_EVERY_S = 0.25
DEFAULT_LEASE_S = 12.0
RERUN_WITHIN_S = 15.0
"""The promise for 99 of 100 jobs at the default lease, and twice that for all; in proportion at any other."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How one experiment is run.

    Attributes:
        folder: Empty, the experiment's own.
        short: The form that runs in ``make test``: a lease of 1 s, bounds in proportion, a few repetitions.
        effort: Share of the full form's repetitions, from 0 to 1; at least one is run.
        patience_s: Allowed on top of bounds on time for what does not shrink with the lease: starting processes
            while other tests have the cores. 0 where the promise itself is judged.
    """

    folder: Path
    seed: int
    short: bool = False
    effort: float = 1.0

    @property
    def lease_s(self) -> float:
        """``JOBQ_LEASE`` of the workers, in seconds."""
        return 1.0 if self.short else DEFAULT_LEASE_S

    @property
    def lease(self) -> str:
        """``JOBQ_LEASE`` as text."""
        return f"{self.lease_s:g}s"

    @property
    def patience_s(self) -> float:
        """See above."""
        return 2.0 if self.short else 0.0

    @property
    def rerun_within_s(self) -> float:
        """Bound on the start of 99 of 100 reruns after a kill; twice that holds for all."""
        return self.lease_s * RERUN_WITHIN_S / DEFAULT_LEASE_S + self.patience_s

    def times(self, full: int, *, short: int = 1) -> int:
        """Repetitions, jobs, or whatever else is scaled: ``short`` in the short form, else a share of ``full``."""
        return short if self.short else max(1, round(full * self.effort))

    def rand(self, salt: str = "") -> random.Random:
        """A source of randomness that repeats with the seed."""
        return random.Random(f"{self.seed}:{salt}")

    def part(self, name: str) -> Path:
        """A folder of its own for one repetition."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass
class Report:
    """What an experiment found.

    Attributes:
        figures: Measured values by their names, in the order of the table; text is shown as it is.
        problems: What is not as promised; empty when the experiment passed.
        notes: What the reader of the table must know, such as a durability limit of Redis.
    """

    figures: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figure(self, name: str, value: object) -> None:
        """Note a measured value."""
        self.figures[name] = round(value, 3) if isinstance(value, float) else value

    def add(self, other: Report) -> None:
        """Take in the report of a part; counts add up."""
        for name, value in other.figures.items():
            so_far = self.figures.get(name, 0)
            self.figures[name] = so_far + value if isinstance(value, int) else value  # type: ignore[operator]
        self.problems += other.problems
        self.notes += [note for note in other.notes if note not in self.notes]

    def expect(self, name: str, holds: bool, value: object = None) -> None:
        """A criterion: ``name`` says it in words, ``value`` what was measured instead."""
        if not holds:
            self.problems.append(name if value is None else f"{name}: {value}")

    def at_most(self, name: str, value: float, bound: float) -> None:
        """Note a value and hold it against its bound."""
        self.figure(name, value)
        self.expect(f"{name} at most {bound:g}", value <= bound, value)

    def at_least(self, name: str, value: float, bound: float) -> None:
        """Note a value and hold it against its bound."""
        self.figure(name, value)
        self.expect(f"{name} at least {bound:g}", value >= bound, value)

    def zero(self, name: str, value: int) -> None:
        """Note a count that must be 0."""
        self.at_most(name, value, 0)


Run = Callable[[Setup], Report]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row of the reliability page.

    Attributes:
        fault: What is done to the system, in a few words.
        criterion: What must hold, in a few words; every experiment also asks for lost, phantom, stuck, audit and
            traceback counts of 0, unless its notes say why not.
        gate: Its short form blocks every merge.
        minutes: About how long the full form takes on 2 cores at ``effort`` 1.
    """

    id: str
    fault: str
    criterion: str
    run: Run
    gate: bool
    minutes: float


_experiments: dict[str, Experiment] = {}


def experiment(
    id_: str, *, fault: str, criterion: str, gate: bool = False, minutes: float = 1.0
) -> Callable[[Run], Run]:
    """Register a function as the experiment of this id."""

    def register(run: Run) -> Run:
        if id_ in _experiments:
            raise ValueError(f"{id_} is registered twice")
        _experiments[id_] = Experiment(
            id=id_, fault=fault, criterion=criterion, run=run, gate=gate, minutes=minutes
        )
        return run

    return register


def experiments() -> dict[str, Experiment]:
    """All of them, by id."""
    here = Path(__file__).parent
    for name in MODULES:
        if (here / f"{name}.py").exists():
            importlib.import_module(f"{__package__}.{name}")
    return dict(sorted(_experiments.items()))


def perform(found: Experiment, setup: Setup) -> tuple[Report, float]:
    """Run one; its report and how many seconds it took. An exception of the experiment is a problem of it."""
    began = time.monotonic()
    try:
        report = found.run(setup)
    except Exception as error:
        traceback.print_exc()
        report = Report(problems=[f"did not end: {type(error).__name__}: {error}"])
    return report, time.monotonic() - began
