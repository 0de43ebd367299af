"""Tasks that tell where they ran, for queues that share an executor."""

from __future__ import annotations

import asyncio
import os
import time

import jobq
from tests.process.ledger_app import trace


def here() -> str:
    return f"{jobq.current_job().queue} {os.getpid()}"


@jobq.task("g.note", queue="email")
def note(key: str) -> str:
    trace("ran", key)
    return here()


@jobq.task("g.nap", queue="email", timeout=60)
def nap(key: str, seconds: float) -> str:
    trace("start", key)
    time.sleep(seconds)
    trace("ran", key)
    return here()


@jobq.task("g.async", queue="email")
async def in_loop() -> str:
    await asyncio.sleep(0.01)
    return here()


@jobq.task("g.apart", queue="email", isolation="process")
def in_child() -> str:
    return here()


@jobq.task("g.crash", queue="email")
def crash(key: str) -> None:
    trace("ran", key)
    time.sleep(0.2)
    os._exit(9)


@jobq.task("g.chain", queue="email")
def chain(left: int) -> None:
    """Enqueues the next one into another queue."""
    if left:
        chain.options(queue=("email", "sms", "push")[left % 3]).enqueue(left=left - 1)
    trace("ran", str(left))
