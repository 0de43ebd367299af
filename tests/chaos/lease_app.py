"""A task that returns the token of the lease it runs under: the result tells which of a job's runs was settled."""

from __future__ import annotations

import os
import time
from contextvars import ContextVar
from typing import Any

import jobq
from jobq.worker.runner import Runner
from tests.chaos.app import LEDGER
from tests.chaos.ledger import append

_lease: ContextVar[str] = ContextVar("lease")
_run = Runner.run


def _run_noting_the_lease(self: Runner, work: Any) -> Any:
    _lease.set(work.job.token)
    return _run(self, work)


Runner.run = _run_noting_the_lease  # type: ignore[method-assign]


@jobq.task("chaos.leased", priority="high", max_attempts=1, timeout=60)
def leased(token: str, seconds: float) -> str:
    """Takes its time, and returns the token of its lease."""
    context = jobq.current_job()
    for word in ("start", "end"):
        line = f"{word} {token} {context.job_id} {context.attempt} {os.getpid()} {time.time():.6f}"
        append(os.environ[LEDGER], line)
        if word == "start":
            time.sleep(seconds)
    return _lease.get()
