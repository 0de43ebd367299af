"""A client's parts, ``client.queues``, ``client.dead_letters`` and ``client.workers``, sync and async."""

from __future__ import annotations

import getpass
import os
from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias, TypeVar

from jobq.calls import Plan
from jobq.control import BulkReport, Progress, nobody
from jobq.fleet import QueueInfo, Worker, workers_plan
from jobq.job import JobState
from jobq.limits import Keep, Rate
from jobq.orders import order_plan, worker_plan
from jobq.plans import Plans

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


class Queues:
    """The queues."""

    def __init__(self, plans: Plans, run: Run) -> None:
        self._plans = plans
        self._run = run

    def list(self) -> list[QueueInfo]:
        """All queues, those of the settings first."""
        return self._run(self._plans.queues())

    def get(self, name: str) -> QueueInfo:
        """One queue.

        Raises:
            JobNotFoundError: Neither the settings nor Redis know it.
        """
        return self._run(self._plans.queue(name))

    def pause(self, name: str, for_: float | timedelta | None = None, reason: str | None = None) -> QueueInfo:
        """Start no more jobs of the queue, from the moment this returns; running ones go on.

        Args:
            for_: Seconds or timedelta after which it resumes by itself; None: ``resume`` only.
            reason: Shown with the queue.
        Raises:
            JobNotFoundError: There is no such queue.
        """
        return self._run(self._plans.pause(name, for_, reason, who()))

    def resume(self, name: str) -> QueueInfo:
        """End a pause."""
        return self._run(self._plans.resume(name))

    def limit(
        self,
        name: str,
        *,
        rate: Rate | str | Keep | None = Keep.KEEP,
        concurrency: int | Keep | None = Keep.KEEP,
        for_: float | timedelta | None = None,
    ) -> QueueInfo:
        """Limit the queue over all workers, in place of what the settings say. What runs goes on.

        Args:
            rate: Starts per window, such as ``"50/m"``. None: any number. Not given: as it is now.
            concurrency: Runs at once. None: any number. Not given: as it is now.
            for_: Seconds or timedelta after which the settings count again; None: ``reset_limit`` only.
        Raises:
            JobNotFoundError: There is no such queue.
            ConfigError: A limit is out of its range.
        """
        return self._run(self._plans.limit(name, rate, concurrency, for_))

    def reset_limit(self, name: str) -> QueueInfo:
        """Limit the queue to what the settings say."""
        return self._run(self._plans.reset_limit(name))

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
        return self._run(self._plans.drain(name, rate, dry_run, progress))

    def empty(
        self, name: str, *, rate: float | None = None, dry_run: bool = False, progress: Progress = nobody
    ) -> BulkReport:
        """As :meth:`drain`, and delete delayed jobs and retries, too."""
        return self._run(self._plans.empty(name, rate, dry_run, progress))

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
        return self._run(self._plans.clean(name, state, older_than, limit, rate, dry_run, progress))

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
        return self._run(self._plans.move(source, target, rate, dry_run, progress))


class Workers:
    """The workers."""

    def __init__(self, plans: Plans, run: Run) -> None:
        self._plans = plans
        self._run = run

    def list(self) -> list[Worker]:
        """All live workers, by name, plain rq ones too."""
        return self._run(workers_plan(self._plans.keys))

    def get(self, name: str) -> Executors:
        """The executors of one live worker, or the one of this name.

        Raises:
            JobNotFoundError: Nobody goes by it.
        """
        return self._run(worker_plan(self._plans.keys, name))

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
        return self._run(order_plan(self._plans.keys, "quiet", names, dry_run))

    def resume(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """Let quiet workers claim again; as :meth:`quiet`."""
        return self._run(order_plan(self._plans.keys, "resume", names, dry_run))

    def stop(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """Let workers drain and end, as SIGTERM does; as :meth:`quiet`. Whoever supervises them may restart them."""
        return self._run(order_plan(self._plans.keys, "stop", names, dry_run))


class AsyncQueues:
    """Awaitable :class:`Queues`."""

    def __init__(self, plans: Plans, run: AsyncRun) -> None:
        self._plans = plans
        self._run = run

    async def list(self) -> list[QueueInfo]:
        """As :meth:`Queues.list`."""
        return await self._run(self._plans.queues())

    async def get(self, name: str) -> QueueInfo:
        """As :meth:`Queues.get`."""
        return await self._run(self._plans.queue(name))

    async def pause(
        self, name: str, for_: float | timedelta | None = None, reason: str | None = None
    ) -> QueueInfo:
        """As :meth:`Queues.pause`."""
        return await self._run(self._plans.pause(name, for_, reason, who()))

    async def resume(self, name: str) -> QueueInfo:
        """As :meth:`Queues.resume`."""
        return await self._run(self._plans.resume(name))

    async def limit(
        self,
        name: str,
        *,
        rate: Rate | str | Keep | None = Keep.KEEP,
        concurrency: int | Keep | None = Keep.KEEP,
        for_: float | timedelta | None = None,
    ) -> QueueInfo:
        """As :meth:`Queues.limit`."""
        return await self._run(self._plans.limit(name, rate, concurrency, for_))

    async def reset_limit(self, name: str) -> QueueInfo:
        """As :meth:`Queues.reset_limit`."""
        return await self._run(self._plans.reset_limit(name))

    async def drain(
        self, name: str, *, rate: float | None = None, dry_run: bool = False, progress: Progress = nobody
    ) -> BulkReport:
        """As :meth:`Queues.drain`."""
        return await self._run(self._plans.drain(name, rate, dry_run, progress))

    async def empty(
        self, name: str, *, rate: float | None = None, dry_run: bool = False, progress: Progress = nobody
    ) -> BulkReport:
        """As :meth:`Queues.empty`."""
        return await self._run(self._plans.empty(name, rate, dry_run, progress))

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
        return await self._run(self._plans.clean(name, state, older_than, limit, rate, dry_run, progress))

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
        return await self._run(self._plans.move(source, target, rate, dry_run, progress))


class AsyncWorkers:
    """Awaitable :class:`Workers`."""

    def __init__(self, plans: Plans, run: AsyncRun) -> None:
        self._plans = plans
        self._run = run

    async def list(self) -> list[Worker]:
        """As :meth:`Workers.list`."""
        return await self._run(workers_plan(self._plans.keys))

    async def get(self, name: str) -> Executors:
        """As :meth:`Workers.get`."""
        return await self._run(worker_plan(self._plans.keys, name))

    async def quiet(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """As :meth:`Workers.quiet`."""
        return await self._run(order_plan(self._plans.keys, "quiet", names, dry_run))

    async def resume(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """As :meth:`Workers.resume`."""
        return await self._run(order_plan(self._plans.keys, "resume", names, dry_run))

    async def stop(self, names: Sequence[str] | None = None, *, dry_run: bool = False) -> Names:
        """As :meth:`Workers.stop`."""
        return await self._run(order_plan(self._plans.keys, "stop", names, dry_run))
