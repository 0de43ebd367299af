"""An application whose schedules fire every second and every night; it writes as ``ledger_app`` does."""

from __future__ import annotations

import jobq
from tests.process.ledger_app import trace


@jobq.schedule(every=1, misfire=jobq.Misfire("all"))
@jobq.task("clock.tick", priority="high")
def tick() -> None:
    trace("tick", jobq.current_job().job_id)


@jobq.schedule(name="clock.nightly", cron="0 0 * * *", tz="Europe/Berlin")
@jobq.task("clock.nightly", priority="batch")
def nightly() -> None: ...
