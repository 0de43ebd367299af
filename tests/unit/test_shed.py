"""When queues refuse jobs for want of memory: thresholds by priority, and the settings of both."""

from __future__ import annotations

import pytest

import jobq
from jobq.errors import ConfigError
from jobq.queues import LANES, Priority, QueueSpec, ShedAt


def test_thresholds_of_the_lanes() -> None:
    assert ShedAt().by_queue(LANES) == {"critical": 95, "high": 90, "medium": 90, "low": 80, "batch": 80}


def test_a_queue_of_ones_own_is_medium_unless_it_says() -> None:
    assert QueueSpec("pdf").urgency is Priority.MEDIUM
    assert QueueSpec("pdf", priority="batch").urgency is Priority.BATCH
    assert QueueSpec("low").urgency is Priority.LOW
    assert QueueSpec("low", priority=Priority.CRITICAL).urgency is Priority.CRITICAL
    with pytest.raises(ConfigError, match="priority of queue 'pdf'"):
        QueueSpec("pdf", priority="urgent")


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQ_SHED_LOW", "70%")
    monkeypatch.setenv("JOBQ_SHED_CRITICAL", "100")
    monkeypatch.setenv("JOBQ_QUEUES__PDF__PRIORITY", "Low")
    settings = jobq.Settings.load()
    specs = settings.queue_specs()
    assert specs["pdf"].priority is Priority.LOW
    assert settings.shed_at() == ShedAt(70, 90, 100)
    assert settings.shed_at().by_queue(specs)["pdf"] == 70


@pytest.mark.parametrize("value", ["0", "101", "much", "-5", "80.5"])
def test_a_wrong_percentage_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQ_SHED_MEDIUM", value)
    with pytest.raises(ConfigError, match=r"JOBQ_SHED_MEDIUM.*expected a percentage from 1 to 100"):
        jobq.Settings.load()
