"""A client's part for recurring schedules, ``client.schedules``, sync and async."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias, Unpack

from jobq.client_parts import AsyncRun, Run, who
from jobq.errors import ConflictError
from jobq.job import Job
from jobq.registry import Registry
from jobq.schedule_spec import Schedule, ScheduleOptions, make_schedule
from jobq.schedules import ScheduleInfo, SchedulePlans
from jobq.tasks import Task

Infos: TypeAlias = list[ScheduleInfo]  # inside a class with a method `list`, the name means the method
Moments: TypeAlias = list[datetime]


def _made(
    registry: Registry,
    name: str,
    task: Task[Any, Any] | str,
    params: Mapping[str, Any] | None,
    options: ScheduleOptions,
) -> Schedule:
    return make_schedule(name, registry.resolve(task) if isinstance(task, str) else task, params, **options)


def _elsewhere(name: str, queue: str) -> ConflictError:
    return ConflictError(
        f"schedule {name!r} is in another Redis than queue {queue!r}: remove it first, or choose another name",
        queue=queue,
    )


class Schedules:
    """The recurring schedules."""

    def __init__(
        self,
        plans: SchedulePlans,
        run: Run,
        registry: Registry,
        serving: Callable[[str], Schedules],
        each: Callable[[], Sequence[Schedules]],
    ) -> None:
        self.plans = plans
        self.runner = run
        self._registry = registry
        self._serving = serving
        self._each = each

    def _holder(self, name: str) -> Schedules:
        """Whoever has it in its Redis, else itself. Costs a round trip for each Redis, none while there is one."""
        each = self._each()
        for there in each if len(each) > 1 else ():
            if there.runner(there.plans.has(name)):
                return there
        return self

    def list(self) -> Infos:
        """All schedules, by name."""
        found = [info for there in self._each() for info in there.runner(there.plans.all())]
        return sorted(found, key=lambda info: info.name)

    def get(self, name: str) -> ScheduleInfo:
        """One schedule.

        Raises:
            JobNotFoundError: There is none of this name.
        """
        there = self._holder(name)
        return there.runner(there.plans.get(name))

    def next(self, name: str, count: int = 5) -> Moments:
        """When it is due next, in its own time zone, without jitter; fewer than ``count`` when it ends before.

        Raises:
            JobNotFoundError: There is none of this name.
            ConflictError: Its times cannot be read.
        """
        there = self._holder(name)
        return there.runner(there.plans.upcoming(name, count))

    def add(
        self,
        name: str,
        task: Task[Any, Any] | str,
        params: Mapping[str, Any] | None = None,
        *,
        replace: bool = False,
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleInfo:
        """Add a schedule, or leave an equal one as it is.

        The task's queue, timeout and dedup key are those of now: a later change of its options does not reach the
        schedule until it is added again.

        Args:
            name: Unique: letters, digits, ``_ . -``.
            task: Or its name.
            params: What each job is called with; validated now.
            replace: Let it take the place of another schedule of the name, whose counts and pause it keeps.
            **options: ``cron=`` or ``every=``, and what else ``ScheduleOptions`` lists.
        Raises:
            ConfigError: A name, a time or an option is wrong.
            PayloadError: The params do not fit the task.
            UnknownTaskError: No such task.
            ConflictError: There is another schedule of the name, or code declares one, or it is in another Redis.
        """
        schedule = _made(self._registry, name, task, params, options)
        there = self._serving(schedule.request.queue)
        holder = self._holder(name)
        if holder is not self and not there.runner(there.plans.has(name)):
            raise _elsewhere(name, schedule.request.queue)
        return there.runner(there.plans.add(schedule, replace=replace))

    def remove(self, name: str) -> None:
        """Delete a schedule; its jobs stay.

        Raises:
            JobNotFoundError: There is none of this name.
            ConflictError: Code that a worker runs declares it: it would come back.
        """
        there = self._holder(name)
        there.runner(there.plans.remove(name))

    def pause(self, name: str) -> ScheduleInfo:
        """Fire no more slots until ``resume``, also through deploys.

        Raises:
            JobNotFoundError: There is none of this name.
        """
        there = self._holder(name)
        return there.runner(there.plans.pause(name, who()))

    def resume(self, name: str) -> ScheduleInfo:
        """Go on with the next slot after now.

        Raises:
            JobNotFoundError: There is none of this name.
        """
        there = self._holder(name)
        return there.runner(there.plans.resume(name))

    def run(self, name: str) -> Job:
        """Enqueue its job here and now, whatever its times, its pause and the job before.

        Raises:
            JobNotFoundError: There is none of this name.
            ConflictError: A live job holds its dedup key.
            CodecError: Its payload cannot be used here.
        """
        there = self._holder(name)
        return there.runner(there.plans.run(name))


class AsyncSchedules:
    """Awaitable :class:`Schedules`."""

    def __init__(
        self,
        plans: SchedulePlans,
        run: AsyncRun,
        registry: Registry,
        serving: Callable[[str], AsyncSchedules],
        each: Callable[[], Sequence[AsyncSchedules]],
    ) -> None:
        self.plans = plans
        self.runner = run
        self._registry = registry
        self._serving = serving
        self._each = each

    async def _holder(self, name: str) -> AsyncSchedules:
        """Whoever has it in its Redis, else itself. Costs a round trip for each Redis, none while there is one."""
        each = self._each()
        for there in each if len(each) > 1 else ():
            if await there.runner(there.plans.has(name)):
                return there
        return self

    async def list(self) -> Infos:
        """As :meth:`Schedules.list`."""
        pages = [await there.runner(there.plans.all()) for there in self._each()]
        return sorted((info for page in pages for info in page), key=lambda info: info.name)

    async def get(self, name: str) -> ScheduleInfo:
        """As :meth:`Schedules.get`."""
        there = await self._holder(name)
        return await there.runner(there.plans.get(name))

    async def next(self, name: str, count: int = 5) -> Moments:
        """As :meth:`Schedules.next`."""
        there = await self._holder(name)
        return await there.runner(there.plans.upcoming(name, count))

    async def add(
        self,
        name: str,
        task: Task[Any, Any] | str,
        params: Mapping[str, Any] | None = None,
        *,
        replace: bool = False,
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleInfo:
        """As :meth:`Schedules.add`."""
        schedule = _made(self._registry, name, task, params, options)
        there = self._serving(schedule.request.queue)
        holder = await self._holder(name)
        if holder is not self and not await there.runner(there.plans.has(name)):
            raise _elsewhere(name, schedule.request.queue)
        return await there.runner(there.plans.add(schedule, replace=replace))

    async def remove(self, name: str) -> None:
        """As :meth:`Schedules.remove`."""
        there = await self._holder(name)
        await there.runner(there.plans.remove(name))

    async def pause(self, name: str) -> ScheduleInfo:
        """As :meth:`Schedules.pause`."""
        there = await self._holder(name)
        return await there.runner(there.plans.pause(name, who()))

    async def resume(self, name: str) -> ScheduleInfo:
        """As :meth:`Schedules.resume`."""
        there = await self._holder(name)
        return await there.runner(there.plans.resume(name))

    async def run(self, name: str) -> Job:
        """As :meth:`Schedules.run`."""
        there = await self._holder(name)
        return await there.runner(there.plans.run(name))
