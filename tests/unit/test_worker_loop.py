"""Async tasks in one loop: who holds it up pays alone."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from jobq.codec import Codec
from jobq.queues import LANES
from jobq.steps import Claimed
from jobq.tasks import Registry, task
from jobq.worker.attempt import Assignment, Report
from jobq.worker.loop import HELD_UP_S, LoopExecutor
from jobq.worker.runner import Runner
from jobq.worker.threads import ThreadExecutor
from tests.support.processes import until

tasks = Registry()
release = threading.Event()
blocked = threading.Event()


@task("l.polite", registry=tasks)
async def polite(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task("l.plain", registry=tasks)
def plain(seconds: float) -> None:
    time.sleep(seconds)


@task("l.rude", registry=tasks)
async def rude() -> None:
    blocked.set()
    release.wait(20)


@task("l.delegates", registry=tasks)
async def delegates() -> None:
    async def inner() -> None:
        blocked.set()
        release.wait(20)

    await asyncio.gather(inner(), asyncio.sleep(0))


class Sink:
    def progress(self, job_id: str, fraction: float, text: str) -> None: ...
    def log(self, job_id: str, text: str) -> None: ...
    def cancel_requested(self, job_id: str) -> bool:
        return False


class Hooks:
    may_start = True

    def __init__(self) -> None:
        self.deadlines: dict[str, list[float]] = {}
        self.reports: dict[str, Report] = {}
        self.running = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)

    def started(self, work: Assignment) -> bool:
        work.started_at = time.monotonic()
        self.running.release()
        return self.may_start

    def postponed(self, work: Assignment, deadline: float) -> None:
        self.deadlines.setdefault(work.job.id, []).append(deadline)

    def finished(self, report: Report) -> None:
        self.reports[report.assignment.job.id] = report
        self.ended.release()


@pytest.fixture
def hooks() -> Hooks:
    release.clear()
    blocked.clear()
    return Hooks()


@pytest.fixture
def loop(hooks: Hooks) -> Iterator[LoopExecutor]:
    runner = Runner(codec=Codec(), registry=tasks, spec=LANES["high"], worker="w", sink=Sink())
    made = LoopExecutor(4, [runner], hooks)
    yield made
    release.set()
    until(lambda: not made._tasks)
    made.close()
    made._loop.close()


def work(job_id: str, name: str, timeout: int, **params: Any) -> Assignment:
    data = Codec().encode(task=name, version=1, params=params, job_id=job_id)
    job = Claimed(job_id, "e.1", data, 0, 0, 0, 1_000, b"", timeout, name, b"", None)
    return Assignment(0, job, time.monotonic(), 1_000)


def hold_up(loop: LoopExecutor, hooks: Hooks, culprit: str) -> float:
    """A polite job with one second left, and one that holds up the loop for longer than that."""
    loop.submit([work("polite", "l.polite", 1, seconds=0.5)])
    hooks.running.acquire(timeout=5)
    loop.submit([work("culprit", culprit, 1)])
    assert blocked.wait(5)
    began = time.monotonic()
    while time.monotonic() - began < HELD_UP_S + 0.4:  # what the executor's own loop does
        loop.look(time.monotonic())
        time.sleep(0.02)
    return time.monotonic()


@pytest.mark.parametrize("name", ["l.polite", "l.plain"])
def test_what_may_not_start_goes_back_and_does_not_run(loop: LoopExecutor, hooks: Hooks, name: str) -> None:
    """In a thread as in the loop; the next one may."""
    runner = Runner(codec=Codec(), registry=tasks, spec=LANES["high"], worker="w", sink=Sink())
    threads = ThreadExecutor(1, [runner], hooks)
    place = loop if name == "l.polite" else threads
    try:
        hooks.may_start = False
        place.submit([work("old", name, 5, seconds=0.0)])
        assert hooks.ended.acquire(timeout=5)
        assert (hooks.reports["old"].outcome.kind, hooks.reports["old"].event) == ("hand_back", "")
        hooks.may_start = True
        place.submit([work("new", name, 5, seconds=0.0)])
        assert hooks.ended.acquire(timeout=5)
        assert hooks.reports["new"].outcome.kind == "succeeded"
    finally:
        threads.close()


@pytest.mark.parametrize("culprit", ["l.rude", "l.delegates"])
def test_only_the_job_that_holds_up_the_loop_is_overdue(
    loop: LoopExecutor, hooks: Hooks, culprit: str
) -> None:
    hold_up(loop, hooks, culprit)
    assert hooks.deadlines == {"polite": [math.inf]}  # while the loop stands, its time stands, too


def test_what_was_held_up_gets_its_time_back(loop: LoopExecutor, hooks: Hooks) -> None:
    held_until = hold_up(loop, hooks, "l.rude")
    release.set()
    for _ in range(2):
        assert hooks.ended.acquire(timeout=5)
    assert hooks.reports["polite"].outcome.kind == "succeeded"
    assert held_until - 0.5 < hooks.deadlines["polite"][-1] < math.inf


def test_nobody_is_innocent_while_the_culprit_is_not_known(loop: LoopExecutor, hooks: Hooks) -> None:
    loop.submit([work("polite", "l.polite", 1, seconds=0.5)])
    hooks.running.acquire(timeout=5)
    loop._loop.call_soon_threadsafe(lambda: (blocked.set(), release.wait(20)))
    assert blocked.wait(5)
    loop.look(time.monotonic() + HELD_UP_S + 1)
    assert hooks.deadlines == {}


def test_a_job_that_waits_past_its_timeout_is_stopped(loop: LoopExecutor, hooks: Hooks) -> None:
    loop.submit([work("slow", "l.polite", 1, seconds=30)])
    assert hooks.ended.acquire(timeout=5)
    report = hooks.reports["slow"]
    assert (report.outcome.kind, report.event) == ("retry", "job.timed_out")


@task("l.leaves", registry=tasks)
async def leaves() -> None:
    def bye() -> None:
        raise SystemExit(3)

    asyncio.get_running_loop().call_later(0.05, bye)


def test_what_a_job_left_behind_does_not_end_the_loop(loop: LoopExecutor, hooks: Hooks) -> None:
    loop.submit([work("leaver", "l.leaves", 5)])
    assert hooks.ended.acquire(timeout=5)
    time.sleep(0.2)  # nothing tells of a callback that has run
    loop.submit([work("next", "l.polite", 5, seconds=0.0)])
    assert hooks.ended.acquire(timeout=5)
    assert hooks.reports["next"].outcome.kind == "succeeded"
