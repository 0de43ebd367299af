"""The application that chaos kills: each run writes its start and its end, fsynced, to the handlers' ledger."""

from __future__ import annotations

import os
import time

import jobq

LEDGER = "CHAOS_LEDGER"


def append(path: str, line: str) -> None:
    """One whole line, on disk when this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)


@jobq.task("chaos.work", priority="high", max_attempts=1, timeout=60)
def work(token: str, seconds: float) -> None:
    """``max_attempts=1``: no kill may spend an attempt, or the job would end dead."""
    context = jobq.current_job()
    path = os.environ[LEDGER]
    append(path, f"start {token} {context.job_id} {context.attempt} {os.getpid()} {time.time():.6f}")
    time.sleep(seconds)
    append(path, f"end {token} {context.job_id} {context.attempt} {os.getpid()} {time.time():.6f}")
