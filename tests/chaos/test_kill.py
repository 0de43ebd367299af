"""SIGKILL of executors and of whole supervisors at random: nothing lost, nothing stuck, no run without a cause."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from tests.chaos.harness import Experiment, Plan, Verdict
from tests.chaos.report import long_plan, publish


def seed() -> int:
    """``CHAOS_SEED`` repeats an experiment's kills."""
    return int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))


@pytest.mark.process
@pytest.mark.timeout(90)
def test_kills_at_a_short_lease(tmp_path: Path) -> None:
    plan = Plan(jobs=600, lease="1s", lease_s=1.0, seed=seed(), kill_every_s=0.7, drain_s=30, patience_s=2)
    verdict = Experiment(plan, tmp_path).run()
    sys.stdout.write(verdict.as_json())
    assert verdict.problems == []


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_kills_at_the_default_lease(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = Experiment(long_plan(seed()), tmp_path).run()
    with capsys.disabled():
        sys.stdout.write(f"\n{verdict.as_json()}\n")
    assert verdict.problems == []


def test_a_verdict_becomes_a_row(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What jobq promises\n")
    verdict = Verdict(
        seed=1, jobs=5_000, lease_s=12.0, rerun_within_s=15.0, duplicates=7, in_flight_at_kills=9
    )
    publish(verdict, page)
    publish(verdict, page)
    lines = page.read_text().splitlines()
    assert sum(line.startswith("| date") for line in lines) == 1
    assert lines[-1] == lines[-2]
    assert lines[-1].split(" | ")[4:9] == ["9", "0", "0", "0", "7"]
    assert "no supervisor was killed" in verdict.problems
