"""Moments as the command line tells them to people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobq.cli.output import ago

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-0.4, "now"), (0, "now"), (0.4, "now"), (-2, "2 s ago"), (2, "in 2 s"), (-90, "1 min 30 s ago")],
)
def test_a_moment_is_told_by_how_far_away_it_is(seconds: float, text: str) -> None:
    assert ago(NOW + timedelta(seconds=seconds), NOW) == text


def test_no_moment_is_a_dash() -> None:
    assert ago(None) == "-"
