"""The application that chaos kills: each run writes its start and its end, fsynced, to the handlers' ledger."""

from __future__ import annotations

import os
import time

import jobq
from tests.chaos.ledger import append

LEDGER = "CHAOS_LEDGER"


def _now() -> float:
    """The kernel's clock: an experiment may have put ``time.time`` wrong."""
    return time.clock_gettime(time.CLOCK_REALTIME)


@jobq.task("chaos.work", priority="high", max_attempts=1, timeout=60)
def work(token: str, seconds: float) -> None:
    """``max_attempts=1``: no kill may spend an attempt, or the job would end dead."""
    context = jobq.current_job()
    path = os.environ[LEDGER]
    append(path, f"start {token} {context.job_id} {context.attempt} {os.getpid()} {_now():.6f}")
    time.sleep(seconds)
    append(path, f"end {token} {context.job_id} {context.attempt} {os.getpid()} {_now():.6f}")


@jobq.task(
    "chaos.gated", priority="high", max_attempts=1, timeout=60,
    rate=jobq.Rate(200, per=1), concurrency=jobq.Concurrency(2),
)  # fmt: skip
def gated(token: str, seconds: float) -> None:
    """Waits at its gates when there are too many of it."""
    work.fn(token, seconds)


@jobq.task("chaos.busy", priority="high", max_attempts=1, timeout=60)
def busy(token: str, seconds: float) -> None:
    """Enqueues and looks all the time, as much as a task can ask of Redis."""
    path, job_id = os.environ[LEDGER], jobq.current_job().job_id
    append(path, f"start {token} {job_id} 1 {os.getpid()} {_now():.6f}")
    ends = _now() + seconds
    while _now() < ends:
        idle.enqueue(number=0).refresh()
        time.sleep(0.02)
    append(path, f"end {token} {job_id} 1 {os.getpid()} {_now():.6f}")


@jobq.task("chaos.polite", priority="high", max_attempts=1, timeout=60)
def polite(token: str, seconds: float) -> None:
    """Looks once, before its effect, whether it was asked to stop: only the effect is written."""
    time.sleep(seconds)
    context = jobq.current_job()
    if context.cancelled:
        raise jobq.Cancel("asked to stop")
    append(os.environ[LEDGER], f"end {token} {context.job_id} {context.attempt} {os.getpid()} {_now():.6f}")


@jobq.task("chaos.patient", priority="high", max_attempts=1, timeout=60)
def patient(token: str) -> None:
    """Goes on until it is asked to stop."""
    work.fn(token, 0.0)
    while not jobq.current_job().cancelled:
        time.sleep(0.01)
    raise jobq.Cancel("asked to stop")


@jobq.task("chaos.asked", priority="high", max_attempts=1, timeout=60)
def asked(token: str, obeys: bool) -> None:
    """Waits until it is asked to stop; does so, or ends all the same."""
    context = jobq.current_job()
    while not context.cancelled:
        time.sleep(0.01)
    if obeys:
        raise jobq.Cancel("asked to stop")
    append(os.environ[LEDGER], f"end {token} {context.job_id} {context.attempt} {os.getpid()} {_now():.6f}")


@jobq.task("chaos.single", priority="high", max_attempts=1, timeout=60, dedup="{key}")
def single(key: str) -> None:
    """One of its key at a time, as long as it waits or runs."""
    work.fn(key, 0.005)


@jobq.task("chaos.large", priority="low", max_attempts=1, timeout=60)
def large(token: str, blob: str) -> None:
    """A payload of any size."""
    work.fn(token, 0.0)


@jobq.task("chaos.idle", priority="medium", max_attempts=1, timeout=60)
def idle(number: int) -> None:
    """Nothing, many times."""


@jobq.task("chaos.mixed", priority="medium", max_attempts=2, backoff=jobq.Fixed(0), timeout=60)
def mixed(number: int) -> dict[str, int] | None:
    """One of fifty fails at first, one of ten has a result."""
    if number % 50 == 0 and jobq.current_job().attempt == 1:
        raise ValueError("not yet")
    return {"number": number} if number % 10 == 1 else None
