"""Sync tasks: a fixed set of threads."""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from jobq.errors import SoftTimeout
from jobq.worker.attempt import Assignment, Report
from jobq.worker.places import Hooks
from jobq.worker.runner import Runner

_CLOCK_TICK_S = 0.2


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

    Args:
        runners: One for each queue of the executor.
    """

    def __init__(self, slots: int, runners: Sequence[Runner], hooks: Hooks) -> None:
        self._runners = runners
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
        runner = self._runners[work.queue]
        report: Report | None = None
        if not self._hooks.started(work):
            self._hooks.finished(runner.reporter.handed_back(work))
            return
        running = _Running(work, work.started_at + work.timeout_s)
        try:
            self._running[thread_id] = running
            report = runner.run(work)
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
            report = runner.timed_out(work)
        self._hooks.finished(report)

    def _watch(self) -> None:
        """Interrupt whoever is past its deadline, once."""
        while not self._closed.wait(_CLOCK_TICK_S):
            now = time.monotonic()
            for thread_id, running in list(self._running.items()):
                if running.fired or now < min(running.deadline, running.work.stop_by):
                    continue
                with self._lock:
                    if self._running.get(thread_id) is running:
                        running.fired = True
                        _interrupt(thread_id, SoftTimeout)
