"""Isolated tasks, and suspects that must run alone: one child process per slot.

Used by the executor's own thread: its loop watches the children's sockets, and the spawner tells it of exits. Only
the hard timeout has a thread of its own, since that loop may have to wait for Redis.
"""

from __future__ import annotations

import base64
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from jobq.steps import Claimed, Outcome
from jobq.worker.attempt import Assignment, Report
from jobq.worker.channel import Channel, ChannelClosed, Message
from jobq.worker.memory import OomWatch
from jobq.worker.places import Hooks
from jobq.worker.recycling import Recycling, pause_after_stillbirth
from jobq.worker.runner import Runner

HARD_KILL_S = 4.5
"""Seconds past the soft timeout after which a process is killed: gone by five, for who looks twice a second."""

UP_WITHIN_S = 60.0
"""A child that has not come up by then is killed: it would hold its slot for ever. As long as a spawner may take."""

_LOOK_EVERY_S = 0.25

_CLAIMED_BYTES = ("data", "overrides", "extra")
_OUTCOME_BYTES = tuple(f.name for f in fields(Outcome) if f.type in ("bytes", bytes))


@dataclass(slots=True, eq=False)
class _Child:
    ref: str
    channel: Channel
    replaces: str = ""  # the tired one that goes once this one is up
    born: float = field(default_factory=time.monotonic)
    pid: int = 0
    work: Assignment | None = None
    told: Assignment | None = None  # the job that it was told to stop
    jobs: int = 0
    first_rss_kb: int = 0
    rss_kb: int = 0
    up: bool = False  # it has said hello: what it needs is imported
    leaving: bool = False  # its successor is up: it gets no more jobs
    killed: bool = False  # past the hard timeout of its job, or not up in time
    gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildrenSpec:
    """What a set of children is for.

    Attributes:
        limit: Children at most, those apart that are about to be replaced.
        name: Of the queue or the group of queues that they serve.
        queues: The queues, in their executor's order.
        worker: The name their history entries carry.
        nice: Added to their niceness.
        eager: Fork all at once instead of when they are first needed.
        recycling: When one is replaced.
    """

    limit: int
    name: str
    queues: tuple[str, ...]
    worker: str
    nice: int = 0
    eager: bool = False
    recycling: Recycling


class ChildExecutor:
    """Runs isolated tasks, one job at a time per child.

    Args:
        spec: What the children are for.
        runners: One for each queue of the executor.
        spawner: The line to the spawner, which forks them.
        hand_back: Takes the jobs that no child can be started for.
    """

    def __init__(
        self,
        spec: ChildrenSpec,
        runners: Sequence[Runner],
        hooks: Hooks,
        spawner: Channel,
        hand_back: Callable[[list[Assignment]], None],
    ) -> None:
        self._spec = spec
        self._runners = runners
        self._hooks = hooks
        self._spawner = spawner
        self._hand_back = hand_back
        self._backlog: deque[Assignment] = deque()
        self._children: dict[str, _Child] = {}
        self._numbers = itertools.count()
        self._not_before = 0.0
        self._proven = False  # a child has come up
        self._oom = OomWatch()
        # Who has which job: the clock must not kill a child for its last one.
        self._at_work = threading.Lock()
        self._anything_runs = threading.Event()
        self._closed = threading.Event()
        self._clock: threading.Thread | None = None
        for _ in range(spec.limit if spec.eager else 0):
            self._start_child()

    # -- the protocol of a place --------------------------------------------------------------------------------

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
        self._closed.set()
        self._anything_runs.set()
        for child in self._children.values():
            child.channel.close()

    # -- the executor's loop calls these ------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a job that came now would find a child; made on demand, they are taken to start."""
        return not self.barren and (self._proven or not self._spec.eager)

    @property
    def barren(self) -> bool:
        """Whether children die before they can run anything, and none is left that can."""
        return self._not_before > 0 and not any(child.up for child in self._children.values())

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
                self._is_up(child, message.body["pid"])
            else:
                progress.append(message)
        return progress

    def spawned(self, ref: str, pid: int) -> None:
        """The spawner has started a child."""
        child = self._children.get(ref)
        if child is not None:
            child.pid = pid

    def exited(self, ref: str, status: int, cpu_s: float = 0.0) -> None:
        """The spawner has seen a child end.

        Args:
            status: Exit code, or minus the signal that ended it.
            cpu_s: Processor time it has taken.
        """
        child = self._children.get(ref)
        if child is None:
            return
        child.gone = True
        try:
            for message in child.channel.receive():  # it may have said how its job ended before it went
                if message.op == "done":
                    self._done(child, message.body)
        except ChannelClosed:
            pass
        del self._children[ref]
        child.channel.close()
        now = time.monotonic()
        work = self._take_work(child)
        if work is not None:
            self._hooks.finished(self._obituary(child, work, status, now))
        if not child.up:  # it could not even start: trying at once would only burn the processor
            self._not_before = now + pause_after_stillbirth(cpu_s, self._spec.limit)
            if self.barren:
                self._hand_back(self.take_back())
        self._refill(now)

    def tick(self, now: float) -> None:
        """Start children that had to wait, and replace those that are too old."""
        self._oom.look(now)
        for child in list(self._children.values()):
            if child.pid and not (child.up or child.killed) and now - child.born > UP_WITHIN_S:
                child.killed = True
                self._spawner.send("kill", pid=child.pid)
            if self._is_tired(child, now):
                self._replace(child, now)
        self._refill(now)

    def cancel(self, job_id: str) -> None:
        """Tell the child that runs this job that it was asked to stop."""
        for child in self._children.values():
            if child.work is not None and child.work.job.id == job_id and child.told is not child.work:
                child.told = child.work  # once: a line that a long job never reads would fill, and block us
                try:
                    child.channel.send("cancel")
                except ChannelClosed:
                    child.gone = True

    # -- children come and go -----------------------------------------------------------------------------------

    def _start_child(self, replaces: str = "") -> None:
        channel, theirs = Channel.pair()
        ref = f"c{next(self._numbers)}"
        self._children[ref] = _Child(ref, channel, replaces)
        self._spawner.send(
            "spawn",
            fds=(theirs.fileno(),),
            kind="child",
            ref=ref,
            name=self._spec.name,
            queues=self._spec.queues,
            worker=self._spec.worker,
            nice=self._spec.nice,
        )
        theirs.close()

    def _is_up(self, child: _Child, pid: int) -> None:
        child.up, child.pid = True, pid
        self._proven, self._not_before = True, 0.0
        tired = self._children.get(child.replaces)
        if tired is not None:
            tired.leaving = True
            self._let_go(tired)
        self._feed()

    def _let_go(self, child: _Child) -> None:
        """End a child whose successor is up, as soon as it has nothing to do."""
        if child.leaving and child.work is None and not child.gone:
            child.gone = True
            child.channel.close_write()  # it ends by itself

    def _is_tired(self, child: _Child, now: float) -> bool:
        growth_kb = child.rss_kb - child.first_rss_kb
        return child.up and self._spec.recycling.is_due(
            jobs=child.jobs, age_s=now - child.born, growth_kb=growth_kb
        )

    def _replace(self, child: _Child, now: float) -> None:
        """Start a successor; until it is up, the tired one goes on."""
        if now >= self._not_before and child.ref not in self._replaced() and not self._closed.is_set():
            self._start_child(replaces=child.ref)

    def _replaced(self) -> set[str]:
        return {child.replaces for child in self._children.values()}

    def _count(self) -> int:
        """Children, but for those whose successors are counted already."""
        return len(self._children.keys() - self._replaced())

    def _refill(self, now: float) -> None:
        if self._closed.is_set() or now < self._not_before:
            return
        # Of those that are made on demand one is tried, so that demand is heard of again.
        wanted = self._spec.limit if self._spec.eager else int(self.barren)
        for _ in range(wanted - self._count()):
            self._start_child()
        self._feed()

    # -- jobs come and go ---------------------------------------------------------------------------------------

    def _feed(self) -> None:
        free = [c for c in self._children.values() if c.work is None and not c.gone and not c.leaving]
        idle = [child for child in free if child.up]
        if time.monotonic() >= self._not_before:
            for _ in range(min(len(self._backlog) - len(free), self._spec.limit - self._count())):
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
            self._hooks.started(work)
            with self._at_work:
                child.work = work
            child.jobs += 1
            self._anything_runs.set()
            if self._clock is None:
                self._clock = threading.Thread(target=self._enforce, name="deadlines", daemon=True)
                self._clock.start()

    def _take_work(self, child: _Child) -> Assignment | None:
        with self._at_work:
            work, child.work = child.work, None
            if not any(other.work for other in self._children.values()) and not self._closed.is_set():
                self._anything_runs.clear()
        return work

    def _done(self, child: _Child, body: dict[str, Any]) -> None:
        work = self._take_work(child)
        if work is None:
            return
        self._hooks.finished(decode_report(body, work))
        child.rss_kb = body["rss_kb"]
        child.first_rss_kb = child.first_rss_kb or child.rss_kb
        if child.killed:  # too late: it is not to get another job
            child.gone = True
        now = time.monotonic()
        if self._is_tired(child, now):
            self._replace(child, now)
        self._let_go(child)
        self._feed()

    def _obituary(self, child: _Child, work: Assignment, status: int, now: float) -> Report:
        """What the end of a child means for its job."""
        if child.killed:
            return self._runners[work.queue].timed_out(work)
        # Negative: ended by that signal. 9 and 15 come from outside, unless the kernel killed it for its memory.
        crash = status not in (-9, -15) or self._oom.explains(status, now)
        reporter = self._runners[work.queue].reporter
        return reporter.interrupted(work, crash=crash, alone=True, status=status)

    # -- the clock's thread -------------------------------------------------------------------------------------

    def _enforce(self) -> None:
        """Kill children past their hard timeout, or that were to stop and did not, whatever the loop waits for."""
        while self._anything_runs.wait() and not self._closed.wait(_LOOK_EVERY_S):
            try:
                self._kill_overdue(time.monotonic())
            except ChannelClosed:  # the spawner has gone, and its children with it
                return

    def _kill_overdue(self, now: float) -> None:
        with self._at_work:
            for child in list(self._children.values()):
                work = child.work
                if work is None or child.killed:
                    continue
                if now > min(work.started_at + work.timeout_s + HARD_KILL_S, work.stop_by):
                    child.killed = True
                    self._spawner.send("kill", pid=child.pid)


# -- what goes over the line ----------------------------------------------------------------------------------------


def encode_work(work: Assignment) -> dict[str, Any]:
    """An assignment as JSON."""
    job = asdict(work.job)
    for name in _CLAIMED_BYTES:
        job[name] = base64.b64encode(job[name]).decode()
    times = {"claimed_at": work.claimed_at, "claimed_ms": work.claimed_ms}
    return {"job": job, "queue": work.queue, **times}


def decode_work(body: dict[str, Any]) -> Assignment:
    """The assignment that :func:`encode_work` wrote."""
    job = dict(body["job"])
    for name in _CLAIMED_BYTES:
        job[name] = base64.b64decode(job[name])
    return Assignment(-1, Claimed(**job), body["claimed_at"], body["claimed_ms"], queue=body["queue"])


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
