"""Where a function runs: threads (sync tasks), an event loop (async tasks), child processes (isolated tasks).

All three speak one small protocol: ``submit`` takes assignments, every ending goes to ``hooks.finished``,
``take_back`` returns what has not started. At most the queue's slots run at a time; threads may hold more.
"""

from __future__ import annotations

import asyncio
import ctypes
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from jobq.errors import SoftTimeout
from jobq.worker.runner import Assignment, Report, Runner

_CLOCK_TICK_S = 0.2
_JOIN_S = 1.0


class Hooks(Protocol):
    """What an executor tells its owner. Called from any thread."""

    def started(self, work: Assignment) -> None: ...
    def finished(self, report: Report) -> None: ...


class Executor(Protocol):
    """A place where functions run."""

    def submit(self, works: list[Assignment]) -> None: ...
    def take_back(self) -> list[Assignment]: ...
    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Running:
    work: Assignment
    deadline: float
    fired: bool = False


def _interrupt(thread_id: int, error: type[BaseException] | None) -> None:
    """Raise ``error`` in a thread at its next bytecode; None takes back what has not been delivered."""
    target = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), target)


class ThreadExecutor:
    """Runs sync tasks in a fixed set of threads.

    A soft timeout is an asynchronous ``SoftTimeout``: it cannot interrupt C code, which is what the supervisor's
    hard timeout is for.
    """

    def __init__(self, slots: int, runner: Runner, hooks: Hooks) -> None:
        self._runner = runner
        self._hooks = hooks
        self._backlog: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._running: dict[int, _Running] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"slot-{n}", daemon=True) for n in range(slots)
        ]
        self._threads.append(threading.Thread(target=self._watch, name="clock", daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, works: list[Assignment]) -> None:
        """Hand over assignments; a free thread takes each."""
        put = self._backlog.put
        for work in works:
            put(work)

    def take_back(self) -> list[Assignment]:
        """What no thread has taken yet."""
        taken: list[Assignment] = []
        while True:
            try:
                work = self._backlog.get_nowait()
            except queue.Empty:
                return taken
            if work is not None:
                taken.append(work)

    def close(self) -> None:
        """Let idle threads end. Busy ones are left to the process' end."""
        self._closed.set()
        for _ in self._threads:
            self._backlog.put(None)

    def _work(self) -> None:
        thread_id = threading.get_ident()
        while True:
            work = self._backlog.get()
            if work is None:
                return
            self._run_one(thread_id, work)

    def _run_one(self, thread_id: int, work: Assignment) -> None:
        report: Report | None = None
        self._hooks.started(work)
        running = _Running(work, work.started_at + work.timeout_s)
        try:
            self._running[thread_id] = running
            report = self._runner.run(work)
        except SoftTimeout:  # it struck in our own code, after the function had ended
            pass
        # From here on no interrupt may reach this thread, or it would hit the next job, or lose this one.
        while thread_id in self._running:
            try:
                with self._lock:
                    del self._running[thread_id]
                    if running.fired:
                        _interrupt(thread_id, None)
            except SoftTimeout:
                continue
        if report is None:
            report = self._runner.timed_out(work)
        self._hooks.finished(report)

    def _watch(self) -> None:
        """Interrupt whoever is past its deadline, once."""
        while not self._closed.wait(_CLOCK_TICK_S):
            now = time.monotonic()
            for thread_id, running in list(self._running.items()):
                if running.fired or now < running.deadline:
                    continue
                with self._lock:
                    if self._running.get(thread_id) is running:
                        running.fired = True
                        _interrupt(thread_id, SoftTimeout)


class LoopExecutor:
    """Runs async tasks in one event loop, in a thread of its own."""

    def __init__(self, slots: int, runner: Runner, hooks: Hooks) -> None:
        self._slots = slots
        self._runner = runner
        self._hooks = hooks
        self._backlog: deque[Assignment] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="loop", daemon=True)
        self._thread.start()

    def submit(self, works: list[Assignment]) -> None:
        """Hand over assignments; up to the number of slots run at once."""
        self._backlog.extend(works)
        self._loop.call_soon_threadsafe(self._fill)

    def take_back(self) -> list[Assignment]:
        """What has not started yet."""
        taken = []
        while self._backlog:
            try:
                taken.append(self._backlog.popleft())
            except IndexError:  # the loop was quicker
                break
        return taken

    def close(self) -> None:
        """Stop the loop; what still runs in it is left to the process' end."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_JOIN_S)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _fill(self) -> None:
        while self._backlog and len(self._tasks) < self._slots:
            try:
                work = self._backlog.popleft()
            except IndexError:
                return
            task = self._loop.create_task(self._run_one(work))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._fill()

    async def _run_one(self, work: Assignment) -> None:
        self._hooks.started(work)
        inner = self._loop.create_task(self._runner.run_async(work))
        expire = self._loop.call_later(work.timeout_s, _expire, work, inner)
        try:
            report = await inner
        except asyncio.CancelledError:  # it struck before the runner's own handling, or after it
            report = self._runner.timed_out(work)
        finally:
            expire.cancel()
        self._hooks.finished(report)


def _expire(work: Assignment, inner: asyncio.Task[Report]) -> None:
    work.expired = True
    inner.cancel()
