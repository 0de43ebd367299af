"""A client's part for recurring schedules, ``client.schedules``, sync and async."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias, Unpack

from jobq.client_parts import AsyncRun, Run, who
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


class Schedules:
    """The recurring schedules."""

    def __init__(self, plans: SchedulePlans, run: Run, registry: Registry) -> None:
        self._plans = plans
        self._run = run
        self._registry = registry

    def list(self) -> Infos:
        """All schedules, by name."""
        return self._run(self._plans.all())

    def get(self, name: str) -> ScheduleInfo:
        """One schedule.

        Raises:
            JobNotFoundError: There is none of this name.
        """
        return self._run(self._plans.get(name))

    def next(self, name: str, count: int = 5) -> Moments:
        """When it is due next, in its own time zone, without jitter; fewer than ``count`` when it ends before.

        Raises:
            JobNotFoundError: There is none of this name.
            ConflictError: Its times cannot be read.
        """
        return self._run(self._plans.upcoming(name, count))

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
            ConflictError: There is another schedule of the name, or code declares one.
        """
        return self._run(self._plans.add(_made(self._registry, name, task, params, options), replace=replace))

    def remove(self, name: str) -> None:
        """Delete a schedule; its jobs stay.

        Raises:
            JobNotFoundError: There is none of this name.
            ConflictError: Code that a worker runs declares it: it would come back.
        """
        self._run(self._plans.remove(name))

    def pause(self, name: str) -> ScheduleInfo:
        """Fire no more slots until ``resume``, also through deploys.

        Raises:
            JobNotFoundError: There is none of this name.
        """
        return self._run(self._plans.pause(name, who()))

    def resume(self, name: str) -> ScheduleInfo:
        """Go on with the next slot after now.

        Raises:
            JobNotFoundError: There is none of this name.
        """
        return self._run(self._plans.resume(name))

    def run(self, name: str) -> Job:
        """Enqueue its job here and now, whatever its times, its pause and the job before.

        Raises:
            JobNotFoundError: There is none of this name.
            ConflictError: A live job holds its dedup key.
            CodecError: Its payload cannot be used here.
        """
        return self._run(self._plans.run(name))


class AsyncSchedules:
    """Awaitable :class:`Schedules`."""

    def __init__(self, plans: SchedulePlans, run: AsyncRun, registry: Registry) -> None:
        self._plans = plans
        self._run = run
        self._registry = registry

    async def list(self) -> Infos:
        """As :meth:`Schedules.list`."""
        return await self._run(self._plans.all())

    async def get(self, name: str) -> ScheduleInfo:
        """As :meth:`Schedules.get`."""
        return await self._run(self._plans.get(name))

    async def next(self, name: str, count: int = 5) -> Moments:
        """As :meth:`Schedules.next`."""
        return await self._run(self._plans.upcoming(name, count))

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
        return await self._run(
            self._plans.add(_made(self._registry, name, task, params, options), replace=replace)
        )

    async def remove(self, name: str) -> None:
        """As :meth:`Schedules.remove`."""
        await self._run(self._plans.remove(name))

    async def pause(self, name: str) -> ScheduleInfo:
        """As :meth:`Schedules.pause`."""
        return await self._run(self._plans.pause(name, who()))

    async def resume(self, name: str) -> ScheduleInfo:
        """As :meth:`Schedules.resume`."""
        return await self._run(self._plans.resume(name))

    async def run(self, name: str) -> Job:
        """As :meth:`Schedules.run`."""
        return await self._run(self._plans.run(name))
