"""Async tasks: one event loop, in a thread of its own.

A coroutine that does not await holds up all the others: none of them can go on, or be cancelled at its timeout.
Whose coroutine it is can be known from outside, so the others' clocks stand still meanwhile and it pays alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from jobq.worker.attempt import Assignment, Report
from jobq.worker.places import Hooks
from jobq.worker.runner import Runner

T = TypeVar("T")

_TURN_S = 0.2
_JOIN_S = 1.0

HELD_UP_S = 1.0
"""A loop that has not turned for this long is held up by the coroutine that runs in it."""


@dataclass(slots=True, eq=False)
class _Run:
    work: Assignment
    task: asyncio.Task[Report]
    due: float
    timer: asyncio.TimerHandle | None = None


class LoopExecutor:
    """Runs async tasks in one event loop.

    Args:
        runners: One for each queue of the executor.
    """

    def __init__(self, slots: int, runners: Sequence[Runner], hooks: Hooks) -> None:
        self._slots = slots
        self._runners = runners
        self._hooks = hooks
        self._backlog: deque[Assignment] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._runs: dict[Assignment, _Run] = {}
        # Of every asyncio task, those that a job starts included: the job it belongs to.
        self._owners: WeakKeyDictionary[asyncio.Task[Any], Assignment] = WeakKeyDictionary()
        self._turned_at = 0.0
        self._ticker: asyncio.TimerHandle | None = None
        self._culprit: Assignment | None = None
        self._shielding = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(self._make_task)
        self._closing = False
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

    def cut(self, work: Assignment) -> None:
        """Its ``stop_by`` is set: cancel its run then. From another thread."""
        self._loop.call_soon_threadsafe(self._cut, work)

    def close(self) -> None:
        """Stop the loop; what still runs in it is left to the process' end."""
        self._closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_JOIN_S)

    @property
    def busy(self) -> bool:
        """Whether anything runs: then :meth:`look` wants to be called several times a second."""
        return bool(self._runs)

    def look(self, now: float) -> None:
        """Notice a coroutine that holds up the loop, and take the other runs' deadlines away. From another thread."""
        if self._culprit is not None or not self._runs or now - self._turned_at < HELD_UP_S:
            return
        with self._shielding:
            if time.monotonic() - self._turned_at < HELD_UP_S:  # it has just turned
                return
            current = asyncio.current_task(self._loop)
            culprit = self._owners.get(current) if current is not None else None
            # A bare callback, or what an ended job left behind: nobody is innocent.
            if culprit not in self._runs:
                return
            self._culprit = culprit
            for work in list(self._runs):
                if work is not culprit:
                    self._hooks.postponed(work, math.inf)

    # -- inside the loop ----------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._closing:
            try:
                self._loop.run_forever()
            except BaseException as error:  # a task that a job left behind may call sys.exit
                logging.getLogger("jobq").error(
                    "what a job left in the event loop raised %s; the loop goes on", type(error).__name__
                )

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        **options: Any,
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.Task(coro, loop=loop, **options)
        parent = asyncio.current_task(loop)
        if parent is not None and (owner := self._owners.get(parent)) is not None:
            self._owners[task] = owner
        return task

    def _fill(self) -> None:
        while self._backlog and len(self._tasks) < self._slots:
            try:
                work = self._backlog.popleft()
            except IndexError:
                return
            task = self._loop.create_task(self._run_one(work))
            self._owners[task] = work
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._fill()

    async def _run_one(self, work: Assignment) -> None:
        runner = self._runners[work.queue]
        if not self._hooks.started(work):
            self._hooks.finished(runner.reporter.handed_back(work))
            return
        task = self._loop.create_task(runner.run_async(work))
        run = _Run(work, task, work.started_at + work.timeout_s)
        run.timer = self._loop.call_at(run.due, self._expire, run)
        if not self._runs:  # an idle loop does not tick
            self._turned_at = self._loop.time()
            self._ticker = self._loop.call_later(_TURN_S, self._tick)
        self._runs[work] = run
        try:
            report = await task
        except asyncio.CancelledError:  # it struck before the runner's own handling, or after it
            report = runner.timed_out(work)
        finally:
            run.timer.cancel()
            with self._shielding:
                del self._runs[work]
            if not self._runs and self._ticker is not None:
                self._ticker.cancel()
        self._hooks.finished(report)

    def _tick(self) -> None:
        self._turned()
        self._ticker = self._loop.call_later(_TURN_S, self._tick)

    def _turned(self) -> None:
        """The loop has turned. What one run has held it up is given back to the others."""
        now = self._loop.time()
        with self._shielding:
            lost, self._turned_at = now - self._turned_at, now
            culprit, self._culprit = self._culprit, None
        if culprit is None:
            return
        for run in self._runs.values():
            if run.work is not culprit:
                self._set_due(run, run.due + lost)
                self._hooks.postponed(run.work, run.due)

    def _cut(self, work: Assignment) -> None:
        run = self._runs.get(work)
        if run is not None:
            self._set_due(run, min(run.due, work.stop_by))

    def _set_due(self, run: _Run, due: float) -> None:
        run.due = due
        assert run.timer is not None
        run.timer.cancel()
        run.timer = self._loop.call_at(due, self._expire, run)

    def _expire(self, run: _Run) -> None:
        self._turned()
        if run.due <= self._loop.time():
            run.work.expired = True
            run.task.cancel()
