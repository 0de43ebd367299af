"""Tasks with limits, for tests with real workers; each leaves its traces in the ledger."""

from __future__ import annotations

import time
from pathlib import Path

import jobq
from tests.process.ledger_app import trace


@jobq.task("t.limited", priority="high", rate=jobq.Rate(5, per=1))
def limited(key: str) -> None:
    trace("ran", key)


@jobq.task("t.alone", priority="high", concurrency=jobq.Concurrency(1, key="{account}"))
def alone(account: str, place: int, seconds: float = 0.05) -> None:
    trace("start", f"{account}:{place}")
    time.sleep(seconds)
    trace("end", f"{account}:{place}")


@jobq.task("t.plain", priority="high")
def plain(key: str) -> None:
    trace("ran", key)


@jobq.task("t.told", priority="high", max_attempts=1)
def told(key: str, gate: str = "") -> None:
    """Has no limit at all, and is told to come back later, for as long as a file is there."""
    trace("ran", key)
    if gate and Path(gate).exists():
        Path(gate).unlink()
        raise jobq.RateLimited(retry_after=1)


@jobq.task("t.refused", priority="high", rate=jobq.Rate(100, per=1), max_attempts=1)
def refused(key: str, gate: str) -> None:
    """Is told to come back later, for as long as a file is there."""
    trace("ran", key)
    if Path(gate).exists():
        Path(gate).unlink()
        raise jobq.RateLimited(retry_after=0.5)


@jobq.task("t.spell", priority="high")
def spell(key: str, seconds: float = 0.1) -> None:
    """Declares no limit."""
    trace("start", key)
    time.sleep(seconds)
    trace("end", key)
