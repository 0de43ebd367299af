"""The application that worker tests run: every task leaves its trace in a file, one line per event, fsynced."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from typing import Annotated

import jobq


def trace(word: str, key: str) -> None:
    """Append one line; O_APPEND makes it whole whoever else writes."""
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{word} {key} {os.getpid()} {time.time():.6f}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)


@jobq.task("t.note", priority="high")
def note(key: str) -> str:
    trace("ran", key)
    return f"noted {key}"


@jobq.task("t.chain", priority="high")
def chain(left: int) -> None:
    if left:
        chain.enqueue(left=left - 1)
    trace("ran", str(left))


@jobq.task("t.busy", priority="high", timeout=60)
def busy(key: str, seconds: float) -> None:
    """Enqueues and looks all the time."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        nothing.options(queue="medium").enqueue().refresh()
    trace("ran", key)


@jobq.task("t.logs", priority="high")
def logs(key: str) -> None:
    for level in (logging.DEBUG, logging.INFO, logging.ERROR):
        logging.getLogger("jobq").log(level, "t.logs")


@jobq.task("t.nothing", priority="high")
def nothing() -> None:
    """As small as a job gets."""


@jobq.task("t.nap", priority="high", timeout=60)
def nap(key: str, seconds: float) -> None:
    trace("start", key)
    time.sleep(seconds)
    trace("ran", key)


@jobq.task("t.grip", priority="high", timeout=60)
def grip(key: str, seconds: float) -> None:
    """Sleeps in C and keeps the interpreter's lock: no other Python code of its process runs meanwhile."""
    trace("start", key)
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    trace("ran", key)


@jobq.task("t.advance", priority="high")
def advance(key: str) -> None:
    jobq.current_job().progress(0.4, f"as far as {key}")
    time.sleep(1.5)


@jobq.task("t.async_nap", priority="high")
async def async_nap(key: str, seconds: float) -> None:
    trace("start", key)
    await asyncio.sleep(seconds)
    trace("ran", key)


@jobq.task("t.fail", priority="high", max_attempts=2, backoff=jobq.Fixed(0.05))
def fail(key: str) -> None:
    trace("ran", key)
    raise RuntimeError(f"cannot do {key}")


@jobq.task("t.flaky", priority="high", max_attempts=3, backoff=jobq.Fixed(0.05))
def flaky(key: str) -> str:
    trace("ran", key)
    if jobq.current_job().attempt == 1:
        raise RuntimeError("the first attempt fails")
    return "second time lucky"


@jobq.task("t.crash", priority="high")
def crash(key: str) -> None:
    trace("ran", key)
    os._exit(9)


@jobq.task("t.kill_parent", priority="high")
def kill_parent(key: str) -> None:
    trace("ran", key)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


@jobq.task("t.isolated_crash", priority="high", isolation="process")
def isolated_crash(key: str) -> None:
    trace("ran", key)
    os.kill(os.getpid(), signal.SIGSEGV)


@jobq.task("t.slow", priority="high", timeout=1, max_attempts=1)
def slow(key: str) -> None:
    """Obeys its soft timeout, though it catches every Exception."""
    trace("start", key)
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.02)


@jobq.task("t.stubborn", priority="high", timeout=1, max_attempts=1)
def stubborn(key: str) -> None:
    """Ignores its soft timeout."""
    trace("start", key)
    while True:
        try:
            time.sleep(0.02)
        except BaseException:
            trace("ignored", key)


@jobq.task("t.isolated_stubborn", priority="high", timeout=1, max_attempts=1, isolation="process")
def isolated_stubborn(key: str) -> None:
    """Blocks every signal it can."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP})
    trace("start", key)
    while True:
        time.sleep(0.05)


@jobq.task("t.secret", priority="critical", max_attempts=1)
def secret(code: Annotated[str, jobq.Secret]) -> None:
    trace("ran", "secret")
    raise ValueError(f"this message quotes {code}")


@jobq.task("t.isolated", priority="batch")
def isolated(key: str) -> int:
    trace("ran", key)
    return os.getpid()


@jobq.task("t.brief", priority="high", timeout=1)
async def brief(key: str, seconds: float) -> None:
    trace("start", key)
    await asyncio.sleep(seconds)
    trace("ran", key)


@jobq.task("t.blocks_its_loop", priority="high", timeout=1, max_attempts=1)
async def blocks_its_loop(key: str) -> None:
    trace("start", key)
    time.sleep(60)  # noqa: ASYNC251 - the very mistake


_kept: list[bytes] = []


@jobq.task("t.leak", priority="high")
def leak(key: str) -> None:
    _kept.append(os.urandom(4_000_000))
    trace("ran", key)
