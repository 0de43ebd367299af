"""Tasks with limits, for the experiments on them; each run is written to the handlers' ledger."""

from __future__ import annotations

import jobq
from tests.chaos.app import work

RATE, PER_S = 50, 60
SHORT_RATE, SHORT_PER_S = 25, 2


@jobq.task("chaos.rated", priority="high", max_attempts=1, rate=jobq.Rate(RATE, per=PER_S))
def rated(token: str, seconds: float) -> None:
    """As the mail provider allows."""
    work.fn(token, seconds)


@jobq.task("chaos.rated_short", priority="high", max_attempts=1, rate=jobq.Rate(SHORT_RATE, per=SHORT_PER_S))
def rated_short(token: str, seconds: float) -> None:
    """The same in seconds."""
    work.fn(token, seconds)


@jobq.task(
    "chaos.alone", priority="high", max_attempts=1, timeout=60, concurrency=jobq.Concurrency(1, key="{key}")
)
def alone(token: str, key: str, seconds: float) -> None:
    """One of its key at a time."""
    work.fn(token, seconds)


@jobq.task("chaos.of_tenant", priority="high", max_attempts=1, fair="{tenant}")
def of_tenant(token: str, tenant: str) -> None:
    """One of many customers' jobs."""
    work.fn(token, 0.0)
