"""A client's parts, ``client.queues`` and ``client.workers``, sync and async, and what all its parts share."""

from __future__ import annotations

import getpass
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias, TypeVar

from jobq.control import BulkReport, Progress, nobody
from jobq.errors import ConfigError, ConflictError
from jobq.fleet import QueueInfo, Worker, workers_plan
from jobq.job import JobState
from jobq.limits import Keep, Rate
from jobq.orders import Word, named, order_plan
from jobq.plans import Plans
from jobq.steps import Plan

T = TypeVar("T")
Since: TypeAlias = datetime | timedelta | None
Executors: TypeAlias = list[Worker]
Names: TypeAlias = list[str]


class Run(Protocol):
    """Runs a plan and returns what it returns."""

    def __call__(self, plan: Plan[T], /) -> T: ...


class AsyncRun(Protocol):
    """The awaitable twin of :class:`Run`."""

    def __call__(self, plan: Plan[T], /) -> Awaitable[T]: ...


def who() -> str:
    """Who pauses a queue: the operating system's user, as far as there is one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"


Q = TypeVar("Q")


def _serving_both(serving: Callable[[str | Iterable[str]], Q], source: str, target: str) -> Q:
    try:
        return serving((source, target))
    except ConfigError:
        raise ConflictError(
            f"queues {source!r} and {target!r} are in different Redis servers: enqueue the jobs anew",
            queue=source,
        ) from None


class Queues:
    """The queues."""

    def __init__(
        self,
        plans: Plans,
        run: Run,
        serving: Callable[[str | Iterable[str]], Queues],
        each: Callable[[], Sequence[Queues]],
    ) -> None:
        self.plans = plans
        self.run = run
        self._serving = serving
        self._each = each

    def list(self) -> list[QueueInfo]:
        """All queues, those of the settings first."""
        return [info for there in self._each() for info in there.run(there.plans.queues())]

    def get(self, name: str) -> QueueInfo:
        """One queue.

        Raises:
            JobNotFoundError: Neither the settings nor Redis know it.
        """
        there = self._serving(name)
        return there.run(there.plans.queue(name))

    def pause(self, name: str, for_: float | timedelta | None = None, reason: str | None = None) -> QueueInfo:
        """Start no more jobs of the queue, from the moment this returns; running ones go on.

        Args:
            for_: Seconds or timedelta after which it resumes by itself; None: ``resume`` only.
            reason: Shown with the queue.
        Raises:
            JobNotFoundError: There is no such queue.
        """
        there = self._serving(name)
        return there.run(there.plans.pause(name, for_, reason, who()))

    def resume(self, name: str) -> QueueInfo:
        """End a pause, and whatever ``RateLimited`` closed: the queue, and limits at which its jobs wait."""
        there = self._serving(name)
        return there.run(there.plans.resume(name))

    def limit(
        self,
        name: str,
        *,
        rate: Rate | str | Keep | None = Keep.KEEP,
        concurrency: int | Keep | None = Keep.KEEP,
        max_waiting: int | Keep | None = Keep.KEEP,
        for_: float | timedelta | None = None,
    ) -> QueueInfo:
        """Limit the queue over all workers, in place of what the settings say. What runs goes on.

        Args:
            rate: Starts per window, such as ``"50/m"``. None: any number. Not given: as it is now.
            concurrency: Runs at once. None: any number. Not given: as it is now.
            max_waiting: Jobs that wait; beyond, enqueues are refused. None: any number. Not given: as it is now.
            for_: Seconds or timedelta after which the settings count again; None: ``reset_limit`` only.
        Raises:
            JobNotFoundError: There is no such queue.
            ConfigError: A limit is out of its range.
        """
        there = self._serving(name)
        return there.run(there.plans.limit(name, rate, concurrency, for_, max_waiting))

    def reset_limit(self, name: str) -> QueueInfo:
        """Limit the queue to what the settings say."""
        there = self._serving(name)
        return there.run(there.plans.reset_limit(name))

    def drain(
        self, name: str, *, rate: float | None = None, dry_run: bool = False, progress: Progress = nobody
    ) -> BulkReport:
        """Delete what waits in the queue now; delayed jobs and retries stay, and so does what runs.

        Args:
            rate: Jobs a second; None: as fast as Redis goes.
            dry_run: Only count.
            progress: Called with the number of further jobs dealt with.
        Raises:
            JobNotFoundError: There is no such queue.
        """
        there = self._serving(name)
        return there.run(there.plans.drain(name, rate, dry_run, progress))

    def empty(
        self, name: str, *, rate: float | None = None, dry_run: bool = False, progress: Progress = nobody
    ) -> BulkReport:
        """As :meth:`drain`, and delete delayed jobs and retries, too."""
        there = self._serving(name)
        return there.run(there.plans.empty(name, rate, dry_run, progress))

    def clean(
        self,
        name: str,
        state: JobState | str | Iterable[JobState | str],
        older_than: float | timedelta,
        *,
        limit: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> BulkReport:
        """Delete the queue's jobs in these states that ended, or if they have not, were created, so long ago.

        Args:
            state: One or more; neither queued, which ``drain`` is for, nor running.
            older_than: Seconds or timedelta.
            limit: At most so many, the newest first.
        Raises:
            JobNotFoundError: There is no such queue.
            ValueError: A word is no state, or one that is not cleaned away.
        """
        there = self._serving(name)
        return there.run(there.plans.clean(name, state, older_than, limit, rate, dry_run, progress))

    def move(
        self,
        source: str,
        target: str,
        *,
        rate: float | None = None,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> BulkReport:
        """Put what waits in a queue now at the back of another, in its order; dedup keys and limits stay theirs.

        Raises:
            JobNotFoundError: There is no such queue.
            ConflictError: The two are in different Redis servers.
            ValueError: Both are the same.
        """
        there = _serving_both(self._serving, source, target)
        return there.run(there.plans.move(source, target, rate, dry_run, progress))


class Workers:
    """The workers."""

    def __init__(self, plans: Plans, run: Run, each: Callable[[], Sequence[Workers]]) -> None:
        self.plans = plans
        self.run = run
        self._each = each

    def list(self) -> list[Worker]:
        """All live workers, by name, plain rq ones too."""
        return [info for there in self._each() for info in there.run(workers_plan(there.plans.keys))]

    def get(self, name: str) -> Executors:
        """The executors of one live worker, or the one of this name.

        Raises:
            JobNotFoundError: Nobody goes by it.
        """
        return named(self.list(), name)

    def quiet(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """Let workers claim nothing more, until :meth:`resume`; what they run goes on. A new worker claims as ever.

        Args:
            names: Of workers or their executors; None: every live worker.
            dry_run: Only look which.
        Returns:
            Names of the workers. Each obeys within about a second.
        Raises:
            JobNotFoundError: Nobody goes by one of the names.
            ConflictError: One is a plain rq worker.
        """
        return self._order("quiet", names, dry_run)

    def resume(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """Let quiet workers claim again; as :meth:`quiet`."""
        return self._order("resume", names, dry_run)

    def stop(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """Let workers drain and end, as SIGTERM does; as :meth:`quiet`. Whoever supervises them may restart them."""
        return self._order("stop", names, dry_run)

    def _order(self, word: Word, names: Sequence[str] | None, dry_run: bool) -> Names:
        each = self._each()
        if len(each) == 1 or names is None:
            told = [
                name
                for there in each
                for name in there.run(order_plan(there.plans.keys, word, names, dry_run))
            ]
            return sorted(set(told))
        live = [(there, there.list()) for there in each]
        for name in names:
            named([worker for _, workers in live for worker in workers], name)
        told = []
        for there, workers in live:
            here = [name for name in names if any(name in (each.name, each.worker) for each in workers)]
            told += there.run(order_plan(there.plans.keys, word, here, dry_run))
        return sorted(set(told))


class AsyncQueues:
    """Awaitable :class:`Queues`."""

    def __init__(
        self,
        plans: Plans,
        run: AsyncRun,
        serving: Callable[[str | Iterable[str]], AsyncQueues],
        each: Callable[[], Sequence[AsyncQueues]],
    ) -> None:
        self.plans = plans
        self.run = run
        self._serving = serving
        self._each = each

    async def list(self) -> list[QueueInfo]:
        """As :meth:`Queues.list`."""
        return [info for there in self._each() for info in await there.run(there.plans.queues())]

    async def get(self, name: str) -> QueueInfo:
        """As :meth:`Queues.get`."""
        there = self._serving(name)
        return await there.run(there.plans.queue(name))

    async def pause(
        self, name: str, for_: float | timedelta | None = None, reason: str | None = None
    ) -> QueueInfo:
        """As :meth:`Queues.pause`."""
        there = self._serving(name)
        return await there.run(there.plans.pause(name, for_, reason, who()))

    async def resume(self, name: str) -> QueueInfo:
        """As :meth:`Queues.resume`."""
        there = self._serving(name)
        return await there.run(there.plans.resume(name))

    async def limit(
        self,
        name: str,
        *,
        rate: Rate | str | Keep | None = Keep.KEEP,
        concurrency: int | Keep | None = Keep.KEEP,
        max_waiting: int | Keep | None = Keep.KEEP,
        for_: float | timedelta | None = None,
    ) -> QueueInfo:
        """As :meth:`Queues.limit`."""
        there = self._serving(name)
        return await there.run(there.plans.limit(name, rate, concurrency, for_, max_waiting))

    async def reset_limit(self, name: str) -> QueueInfo:
        """As :meth:`Queues.reset_limit`."""
        there = self._serving(name)
        return await there.run(there.plans.reset_limit(name))

    async def drain(
        self, name: str, *, rate: float | None = None, dry_run: bool = False, progress: Progress = nobody
    ) -> BulkReport:
        """As :meth:`Queues.drain`."""
        there = self._serving(name)
        return await there.run(there.plans.drain(name, rate, dry_run, progress))

    async def empty(
        self, name: str, *, rate: float | None = None, dry_run: bool = False, progress: Progress = nobody
    ) -> BulkReport:
        """As :meth:`Queues.empty`."""
        there = self._serving(name)
        return await there.run(there.plans.empty(name, rate, dry_run, progress))

    async def clean(
        self,
        name: str,
        state: JobState | str | Iterable[JobState | str],
        older_than: float | timedelta,
        *,
        limit: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> BulkReport:
        """As :meth:`Queues.clean`."""
        there = self._serving(name)
        return await there.run(there.plans.clean(name, state, older_than, limit, rate, dry_run, progress))

    async def move(
        self,
        source: str,
        target: str,
        *,
        rate: float | None = None,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> BulkReport:
        """As :meth:`Queues.move`."""
        there = _serving_both(self._serving, source, target)
        return await there.run(there.plans.move(source, target, rate, dry_run, progress))


class AsyncWorkers:
    """Awaitable :class:`Workers`."""

    def __init__(self, plans: Plans, run: AsyncRun, each: Callable[[], Sequence[AsyncWorkers]]) -> None:
        self.plans = plans
        self.run = run
        self._each = each

    async def list(self) -> list[Worker]:
        """As :meth:`Workers.list`."""
        return [info for there in self._each() for info in await there.run(workers_plan(there.plans.keys))]

    async def get(self, name: str) -> Executors:
        """As :meth:`Workers.get`."""
        return named(await self.list(), name)

    async def quiet(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """As :meth:`Workers.quiet`."""
        return await self._order("quiet", names, dry_run)

    async def resume(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """As :meth:`Workers.resume`."""
        return await self._order("resume", names, dry_run)

    async def stop(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """As :meth:`Workers.stop`."""
        return await self._order("stop", names, dry_run)

    async def _order(self, word: Word, names: Sequence[str] | None, dry_run: bool) -> Names:
        each = self._each()
        if len(each) == 1 or names is None:
            told = [
                name
                for there in each
                for name in await there.run(order_plan(there.plans.keys, word, names, dry_run))
            ]
            return sorted(set(told))
        live = [(there, await there.list()) for there in each]
        for name in names:
            named([worker for _, workers in live for worker in workers], name)
        told = []
        for there, workers in live:
            here = [name for name in names if any(name in (each.name, each.worker) for each in workers)]
            told += await there.run(order_plan(there.plans.keys, word, here, dry_run))
        return sorted(set(told))
