"""Child processes: one pre-forked process per slot for isolated tasks, and for suspects that must run alone.

Used by the executor's own thread only: its loop watches the children's sockets, and the spawner tells it of exits.
"""

from __future__ import annotations

import base64
import itertools
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jobq.steps import Claimed, Outcome
from jobq.worker.channel import Channel, ChannelClosed, Message
from jobq.worker.executors import Hooks
from jobq.worker.runner import Assignment, Report, Runner

HARD_KILL_S = 4.5
"""Seconds past the soft timeout after which a process is killed: gone by five, for who looks twice a second."""

_RESPAWN_PAUSE_S = 1.0

JOBS_PER_CHILD = 1_000
GROWTH_LIMIT_KB = 256 * 1024
"""A child is replaced after this many jobs, or when its memory has grown by this much."""

_CLAIMED_BYTES = ("data", "overrides", "extra")
_OUTCOME_BYTES = tuple(f.name for f in fields(Outcome) if f.type in ("bytes", bytes))
OOM_KILL_FILE = Path("/sys/fs/cgroup/memory.events")


@dataclass(slots=True, eq=False)
class _Child:
    ref: str
    channel: Channel
    pid: int = 0
    work: Assignment | None = None
    told: Assignment | None = None  # the job that it was told to stop
    jobs: int = 0
    rss_kb: int = 0
    up: bool = False  # it has said hello: what it needs is imported
    killed: str = ""  # why we killed it: "timeout"
    gone: bool = False


class ChildExecutor:
    """Runs isolated tasks, one job at a time per child.

    Args:
        limit: Children at most.
        spawner: The line to the spawner, which forks them.
        prefix: What the children's names in messages start with; unlike that of any other set of children.
        queue: The queue they serve, and ``worker`` the name their history entries carry.
        nice: Added to the children's niceness.
        eager: Fork all children at once instead of when they are first needed.
    """

    def __init__(
        self,
        limit: int,
        runner: Runner,
        hooks: Hooks,
        spawner: Channel,
        *,
        prefix: str,
        queue: str,
        worker: str,
        nice: int,
        eager: bool,
    ) -> None:
        self._limit = limit
        self._runner = runner
        self._hooks = hooks
        self._spawner = spawner
        self._prefix = prefix
        self._queue = queue
        self._worker = worker
        self._nice = nice
        self._backlog: deque[Assignment] = deque()
        self._children: dict[str, _Child] = {}
        self._numbers = itertools.count()
        self._closed = False
        self._not_before = 0.0
        self._kept_ready = limit if eager else 0
        self._oom_kills = oom_kills()
        for _ in range(self._kept_ready):
            self._start_child()

    # -- the executor protocol ----------------------------------------------------------------------------------

    def submit(self, works: list[Assignment]) -> None:
        """Hand over assignments; each goes to an idle child."""
        self._backlog.extend(works)
        self._feed()

    def take_back(self) -> list[Assignment]:
        """What no child has been given yet."""
        taken = list(self._backlog)
        self._backlog.clear()
        return taken

    def close(self) -> None:
        """Close every line: idle children end by themselves."""
        self._closed = True
        for child in self._children.values():
            child.channel.close()

    # -- the executor's loop calls these ------------------------------------------------------------------------

    def lines(self) -> Iterable[tuple[int, str]]:
        """Descriptor and name of every child that may have something to say."""
        return [(child.channel.fileno(), ref) for ref, child in self._children.items() if not child.gone]

    def read(self, ref: str) -> list[Message]:
        """Take in what a child says; returns the progress messages."""
        child = self._children.get(ref)
        if child is None:  # the spawner told of its end in the same turn
            return []
        progress = []
        try:
            messages = child.channel.receive()
        except ChannelClosed:
            child.gone = True  # the spawner will say how it ended
            return []
        for message in messages:
            if message.op == "done":
                self._done(child, message.body)
            elif message.op == "hello":
                child.up = True
                self._feed()
            else:
                progress.append(message)
        return progress

    def spawned(self, ref: str, pid: int) -> None:
        """The spawner has forked a child."""
        if ref in self._children:
            self._children[ref].pid = pid

    def exited(self, ref: str, status: int) -> None:
        """The spawner has seen a child end."""
        child = self._children.pop(ref, None)
        if child is None:
            return
        try:
            for message in child.channel.receive():  # it may have said how its job ended before it went
                if message.op == "done":
                    self._done(child, message.body)
        except ChannelClosed:
            pass
        child.channel.close()
        work, child.work = child.work, None
        if work is not None:
            self._hooks.finished(self._obituary(child, work, status))
        if not child.up:  # it could not even start: trying at once would only burn the processor
            self._not_before = time.monotonic() + _RESPAWN_PAUSE_S
        self._refill(time.monotonic())

    @property
    def busy(self) -> bool:
        """Whether any child has a job."""
        return any(child.work is not None for child in self._children.values())

    def tick(self, now: float) -> None:
        """Kill children whose job is past its hard timeout; start those that had to wait."""
        self._refill(now)
        for child in self._children.values():
            work = child.work
            if work is None or child.killed or not child.pid:
                continue
            if now > work.started_at + work.timeout_s + HARD_KILL_S:
                child.killed = "timeout"
                self._spawner.send("kill", pid=child.pid)

    def cancel(self, job_id: str) -> None:
        """Tell the child that runs this job that it was asked to stop."""
        for child in self._children.values():
            if child.work is not None and child.work.job.id == job_id and child.told is not child.work:
                child.told = child.work  # once: a line that a long job never reads would fill, and block us
                try:
                    child.channel.send("cancel")
                except ChannelClosed:
                    child.gone = True

    # -- inside -------------------------------------------------------------------------------------------------

    def _refill(self, now: float) -> None:
        if self._closed or now < self._not_before:
            return
        while len(self._children) < self._kept_ready:
            self._start_child()
        self._feed()

    def _start_child(self) -> None:
        channel, theirs = Channel.pair()
        ref = f"{self._prefix}{next(self._numbers)}"
        self._children[ref] = _Child(ref, channel)
        self._spawner.send(
            "spawn",
            fds=(theirs.fileno(),),
            kind="child",
            ref=ref,
            queue=self._queue,
            worker=self._worker,
            nice=self._nice,
        )
        theirs.close()

    def _feed(self) -> None:
        free = [child for child in self._children.values() if child.work is None and not child.gone]
        idle = [child for child in free if child.up]
        if time.monotonic() >= self._not_before:
            wanted = min(len(self._backlog) - len(free), self._limit - len(self._children))
            for _ in range(wanted):
                self._start_child()
        while self._backlog and idle:
            child = idle.pop()
            work = self._backlog.popleft()
            try:
                child.channel.send("run", **encode_work(work))
            except ChannelClosed:
                child.gone = True
                self._backlog.appendleft(work)
                continue
            child.work = work
            child.jobs += 1
            self._hooks.started(work)

    def _done(self, child: _Child, body: dict[str, Any]) -> None:
        work, child.work = child.work, None
        if work is None:
            return
        self._hooks.finished(decode_report(body, work))
        child.rss_kb = child.rss_kb or body["rss_kb"]
        if child.jobs >= JOBS_PER_CHILD or body["rss_kb"] > child.rss_kb + GROWTH_LIMIT_KB:
            child.gone = True
            child.channel.close_write()  # it ends by itself, and its exit brings a successor
        self._feed()

    def _obituary(self, child: _Child, work: Assignment, status: int) -> Report:
        """What the end of a child means for its job."""
        if child.killed == "timeout":
            return self._runner.timed_out(work)
        kills = oom_kills()
        by_oom = kills > self._oom_kills
        self._oom_kills = kills
        # Negative: ended by that signal. 9 and 15 come from outside, unless the kernel killed it for its memory.
        crash = status not in (-9, -15) or by_oom
        return self._runner.interrupted(work, crash=crash, alone=True, status=status)


def oom_kills() -> int:
    """How often the kernel has killed in this cgroup for lack of memory; 0 where that cannot be read."""
    try:
        for line in OOM_KILL_FILE.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except (OSError, ValueError):
        pass
    return 0


# -- what goes over the line ----------------------------------------------------------------------------------------


def encode_work(work: Assignment) -> dict[str, Any]:
    """An assignment as JSON."""
    job = asdict(work.job)
    for name in _CLAIMED_BYTES:
        job[name] = base64.b64encode(job[name]).decode()
    return {"job": job, "claimed_at": work.claimed_at, "claimed_ms": work.claimed_ms}


def decode_work(body: dict[str, Any]) -> Assignment:
    """The assignment that :func:`encode_work` wrote."""
    job = dict(body["job"])
    for name in _CLAIMED_BYTES:
        job[name] = base64.b64decode(job[name])
    return Assignment(-1, Claimed(**job), body["claimed_at"], body["claimed_ms"])


def encode_report(report: Report, rss_kb: int) -> dict[str, Any]:
    """A report as JSON."""
    outcome = asdict(report.outcome)
    for name in _OUTCOME_BYTES:
        outcome[name] = base64.b64encode(outcome[name]).decode()
    return {"outcome": outcome, "event": report.event, "fields": report.fields, "rss_kb": rss_kb}


def decode_report(body: dict[str, Any], work: Assignment) -> Report:
    """The report that :func:`encode_report` wrote."""
    outcome = dict(body["outcome"])
    for name in _OUTCOME_BYTES:
        outcome[name] = base64.b64decode(outcome[name])
    outcome["counters"] = tuple(outcome["counters"])
    return Report(work, Outcome(**outcome), body["event"], body["fields"])
