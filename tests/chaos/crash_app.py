"""Tasks that take their process with them, or do not let go of it."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jobq
from tests.chaos.app import LEDGER
from tests.chaos.ledger import append

ADDRESS_SPACE = 4 << 30
"""``RLIMIT_AS`` of executors and job children: threads reserve much of it that they never use."""

CGROUP = "CHAOS_CGROUP"
"""The folder of a cgroup with little memory, where one can be made: the worker goes there first of all."""

OOM_EVENTS = "CHAOS_OOM_EVENTS"
"""A file that stands in for the kernel's ``memory.events``."""

if OOM_EVENTS in os.environ:  # in a worker
    from jobq.worker import memory

    events = Path(os.environ[OOM_EVENTS])
    if CGROUP in os.environ:
        (Path(os.environ[CGROUP]) / "cgroup.procs").write_text(str(os.getpid()))
    else:
        memory.oom_kill_file = lambda: events  # type: ignore[assignment]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.RLIM_INFINITY))


def note(word: str, token: str) -> None:
    """One line in the handlers' ledger."""
    context = jobq.current_job()
    line = f"{word} {token} {context.job_id} {context.attempt} {os.getpid()} {time.time():.6f}"
    append(os.environ[LEDGER], line)


# -- crashes --------------------------------------------------------------------------------------------------------


def _leave() -> None:
    os._exit(3)


def _segfault() -> None:
    ctypes.string_at(0)


def _eat() -> None:
    eaten = []
    while True:
        eaten.append(bytes(256 << 20))  # never touched, so it costs address space and no memory


def _eat_in_c() -> None:
    """What a C library does when ``malloc`` fails."""
    try:
        _eat()
    except MemoryError:
        os.abort()


def _killed_for_memory() -> None:
    """What the kernel does to a process of a full cgroup; imitated where none could be made."""
    if CGROUP in os.environ:
        eaten = []
        while True:
            eaten.append(b"x" * (4 << 20))
    with Path(os.environ[OOM_EVENTS]).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel counts each, however many at once
        count = int(file.read().split()[1])
        file.seek(0)
        file.write(f"oom_kill {count + 1}\n")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def _kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


CRASHES: dict[str, Callable[[], None]] = {
    "os._exit": _leave,
    "segfault": _segfault,
    "abort without memory": _eat_in_c,
    "oom_kill": _killed_for_memory,
}
PARENT_KILL = "kill of the parent"
"""The parent is the spawner: all that the worker runs goes with it."""

MEMORY_ERROR = "MemoryError"
"""Under ``RLIMIT_AS`` Python code is refused the memory: a failed attempt, and no crash."""


@jobq.task("chaos.crash", priority="high", max_attempts=1, timeout=60)
def crash(token: str, how: str) -> None:
    """Never ends well."""
    note("start", token)
    ({MEMORY_ERROR: _eat, PARENT_KILL: _kill_parent} | CRASHES)[how]()


# -- tasks that do not stop -----------------------------------------------------------------------------------------


def _busy() -> NoReturn:
    while True:
        pass


def _catches_all() -> NoReturn:
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            continue


def _blocks_signals() -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    _catches_all()


def _sleeps_in_c() -> None:
    ctypes.CDLL(None).sleep(60)


def _sleeps_in_c_with_the_gil() -> None:
    ctypes.PyDLL(None).sleep(60)


HOLDS: dict[str, Callable[[], None]] = {
    "busy loop": _busy,
    "broad except": _catches_all,
    "blocked signals": _blocks_signals,
    "C sleep": _sleeps_in_c,
    "C sleep with the GIL": _sleeps_in_c_with_the_gil,
}
CATCHES_CANCEL = "broad except around await"
"""For async tasks only: an event loop that turns, and a task that does not care."""

TIMEOUT_S = 1


@jobq.task("chaos.stay", priority="high", max_attempts=1, timeout=TIMEOUT_S)
def stay(token: str, how: str) -> None:
    """Does not stop at its timeout."""
    note("start", token)
    HOLDS[how]()


@jobq.task("chaos.stay_async", priority="high", max_attempts=1, timeout=TIMEOUT_S)
async def stay_async(token: str, how: str) -> None:
    """Does not stop at its timeout, in an event loop."""
    note("start", token)
    while how == CATCHES_CANCEL:
        try:
            await asyncio.sleep(0.01)
        except BaseException:
            continue
    HOLDS[how]()
