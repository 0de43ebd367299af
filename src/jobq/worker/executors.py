"""Which place a job runs in: a thread, the event loop, or a child process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from jobq.config import Settings
from jobq.errors import UnknownTaskError
from jobq.queues import QueueSpec
from jobq.rq_bridge import task_of
from jobq.steps import Claimed
from jobq.tasks import Registry, Task
from jobq.worker.attempt import Assignment
from jobq.worker.channel import Channel
from jobq.worker.children import ChildExecutor, ChildrenSpec
from jobq.worker.inbox import Inbox
from jobq.worker.loop import LoopExecutor
from jobq.worker.places import Place
from jobq.worker.recycling import Recycling
from jobq.worker.runner import Runner
from jobq.worker.spec import PREFETCH, LaneSpec
from jobq.worker.threads import ThreadExecutor

PREFETCH_START_S = 0.005
"""More than the free slots is claimed only while run times say that such a job starts within this time on average."""

PREFETCH_RUN_S = 0.015
"""And only while runs are at most this long: when all slots were filled at once, the next waits for a whole run."""

JOBS_PER_CHILD = 1_000


class Executors:
    """The places of one executor process, each made when a job first needs it.

    Args:
        lane: What the supervisor asked for.
        spec: One of the queues, which agree on where their jobs run by default.
        runners: One for each queue.
        tasks: Knows where each task wants to run.
        spawner: The line to the process that forks children.
    """

    def __init__(
        self,
        lane: LaneSpec,
        spec: QueueSpec,
        settings: Settings,
        tasks: Registry,
        runners: Sequence[Runner],
        inbox: Inbox,
        spawner: Channel,
    ) -> None:
        self._lane = lane
        self._spec = spec
        self._tasks = tasks
        self._runners = runners
        self._inbox = inbox
        self._spawner = spawner
        self._cancel_grace_s = settings.cancel_grace.total_seconds()
        self._recycling = Recycling.of(settings, jobs=JOBS_PER_CHILD)
        self._threads: ThreadExecutor | None = None
        self._loop: LoopExecutor | None = None
        self._children: ChildExecutor | None = None
        self._all_isolated = lane.apart or spec.isolation == "process"
        if self._all_isolated:
            self._children = self._make_children(eager=not lane.apart)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def place(self, job: Claimed) -> Place:
        """Where a job runs. By its label, which is not signed: the runner checks, and copes with a wrong one."""
        task = self._task(task_of(job.description))
        isolation = (task.spec.isolation if task is not None else None) or self._spec.isolation
        if self._lane.apart or isolation == "process":
            if self._children is None:
                self._children = self._make_children()
            return self._children
        if task is not None and task.is_async:
            if self._loop is None:
                self._loop = LoopExecutor(self._lane.slots, self._runners, self._inbox)
            return self._loop
        if self._threads is None:
            self._threads = ThreadExecutor(self._lane.slots, self._runners, self._inbox)
        return self._threads

    def submit(self, works: list[Assignment]) -> None:
        """Hand each job to its place, those of one place at once."""
        first = works[0].executor
        if all(work.executor is first for work in works):
            self._submit(first, works)
            return
        for work in works:
            self._submit(work.executor, [work])

    def _submit(self, place: Place, works: list[Assignment]) -> None:
        if isinstance(place, ChildExecutor) and place.barren:
            for work in works:
                self._inbox.finished(self._runners[work.queue].reporter.set_aside(work))
            return
        place.submit(works)

    def take_back(self) -> list[Assignment]:
        """Everything that has not started."""
        return [work for place in self._all() for work in place.take_back()]

    def hand_back(self, works: list[Assignment]) -> None:
        """Put jobs that did not start back to the front of their queues."""
        for work in works:
            self._inbox.finished(self._runners[work.queue].reporter.handed_back(work))

    def cancel(self, work: Assignment) -> None:
        """Tell a run that it was asked to stop, and see to it that it is over before long."""
        self._inbox.cancel([work.job.id])
        work.stop_by = min(work.stop_by, time.monotonic() + self._cancel_grace_s)
        for children in self.child_sets():
            children.cancel(work.job.id)
        if self._loop is not None:
            self._loop.cut(work)

    # -- how many -----------------------------------------------------------------------------------------------

    @property
    def barren(self) -> bool:
        """Whether all jobs run in children by default, and none can be started."""
        return self._all_isolated and self._children is not None and self._children.barren

    @property
    def ready(self) -> bool:
        """Whether a job that was claimed now could start."""
        return self._children is None or self._children.ready

    def prefetch(self, run_s: float) -> int:
        """Jobs beyond the free slots; only threads, which all draw from one backlog, take any.

        A slot falls free every ``run_s / slots`` seconds on average, and the last of these jobs waits for as many.

        Args:
            run_s: What a job takes of late; 0: not known.
        """
        if self._threads is None or not 0 < run_s <= PREFETCH_RUN_S or len(self._all()) > 1:
            return 0
        return min(PREFETCH, int(self._lane.slots * PREFETCH_START_S / run_s))

    # -- the processes behind them ------------------------------------------------------------------------------

    def child_sets(self) -> list[ChildExecutor]:
        """Every set of children."""
        return [] if self._children is None else [self._children]

    def look(self, now: float) -> None:
        """What wants to be looked at several times a second."""
        for children in self.child_sets():
            children.tick(now)
        if self._loop is not None:
            self._loop.look(now)

    @property
    def restless(self) -> bool:
        """Whether :meth:`look` wants to be called soon, though nobody says anything."""
        return self._loop is not None and self._loop.busy

    def close(self) -> None:
        """Let everything end that is idle."""
        for place in self._all():
            place.close()

    def _all(self) -> list[Place]:
        places = (self._threads, self._loop, self._children)
        return [place for place in places if place is not None]

    def _make_children(self, *, eager: bool = False) -> ChildExecutor:
        spec = ChildrenSpec(
            limit=self._lane.slots,
            name=self._lane.name,
            queues=self._lane.names,
            worker=self._lane.worker,
            nice=self._spec.nice,
            eager=eager,
            recycling=self._recycling,
        )
        return ChildExecutor(spec, self._runners, self._inbox, self._spawner, self.hand_back)

    def _task(self, name: str) -> Task[..., Any] | None:
        try:
            return self._tasks.resolve(name)
        except UnknownTaskError:
            return None
