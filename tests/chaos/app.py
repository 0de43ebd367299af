"""The application that chaos kills: each run writes its start and its end, fsynced, to the handlers' ledger."""

from __future__ import annotations

import os
import time

import jobq
from tests.chaos.ledger import append

LEDGER = "CHAOS_LEDGER"


@jobq.task("chaos.work", priority="high", max_attempts=1, timeout=60)
def work(token: str, seconds: float) -> None:
    """``max_attempts=1``: no kill may spend an attempt, or the job would end dead."""
    context = jobq.current_job()
    path = os.environ[LEDGER]
    append(path, f"start {token} {context.job_id} {context.attempt} {os.getpid()} {time.time():.6f}")
    time.sleep(seconds)
    append(path, f"end {token} {context.job_id} {context.attempt} {os.getpid()} {time.time():.6f}")
