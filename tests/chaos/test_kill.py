"""SIGKILL of executors and of whole supervisors at random: nothing lost, nothing stuck, no run without a cause."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.harness import Experiment, Plan, Verdict

DEFAULT_LEASE_S = 12.0
RERUN_WITHIN_S = 15.0
"""The promise at the default lease; in proportion at any other."""


def judge(verdict: Verdict) -> None:
    print(verdict.as_json())
    assert verdict.drained
    assert (verdict.lost, verdict.phantom, verdict.stuck) == (0, 0, 0)
    assert verdict.audit == []
    assert verdict.attempts_spent == 0
    assert verdict.tracebacks == 0
    assert verdict.executors_killed > 0
    assert verdict.supervisors_killed > 0
    assert verdict.duplicates <= verdict.in_flight_at_kills
    assert verdict.rerun_p99_s <= RERUN_WITHIN_S * verdict.lease_s / DEFAULT_LEASE_S
    assert verdict.rerun_max_s <= 2 * RERUN_WITHIN_S * verdict.lease_s / DEFAULT_LEASE_S


def seed() -> int:
    """``CHAOS_SEED`` repeats an experiment's kills."""
    return int(os.environ.get("CHAOS_SEED") or random.randrange(1_000_000))


@pytest.mark.process
@pytest.mark.timeout(90)
def test_kills_at_a_short_lease(tmp_path: Path) -> None:
    judge(Experiment(Plan(jobs=600, lease="1s", lease_s=1.0, seed=seed(), drain_s=30), tmp_path).run())


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_kills_at_the_default_lease(tmp_path: Path) -> None:
    plan = Plan(
        jobs=5_000, lease=None, lease_s=DEFAULT_LEASE_S, seed=seed(), slots=8, kill_every_s=1.5, drain_s=180
    )
    judge(Experiment(plan, tmp_path).run())
