"""The asynchronous client: the same plans as :class:`jobq.Client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from redis.exceptions import RedisError

from jobq.client_base import Apart, ClientBase, exists_step
from jobq.client_links import AsyncLinks
from jobq.client_parts import AsyncQueues, AsyncWorkers, Since
from jobq.config import Settings
from jobq.connection import check_client
from jobq.control import BulkReport, Progress, nobody
from jobq.dead_parts import AsyncDeadLetters
from jobq.errors import JobqError, StoreUnavailableError
from jobq.health import Health, Thresholds, judge
from jobq.job import AsyncJobActions, Attempt, Job, JobActions, JobState, Verb
from jobq.job_reading import attempts_plan, outcome_plan
from jobq.joblog import LogLine, lines_plan
from jobq.limit_parts import AsyncLimits
from jobq.listing import Page
from jobq.memory import MemoryReport, memory_plan
from jobq.parsing import redact_url
from jobq.plans import Preview
from jobq.schedule_parts import AsyncSchedules
from jobq.stats import Stats, stats_plan, united
from jobq.steps import Batch, Call, Plan
from jobq.tasks import EnqueueRequest, Registry
from jobq.units import in_seconds
from jobq.waiting import BLOCK_S, Patience, Watch, block_command, failure_plan, look_plan, pause_after
from jobq.why import Why, why_plan

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

T = TypeVar("T")


class AsyncClient(ClientBase):
    """An asynchronous client, for one event loop: the one that first uses it.

    Args:
        settings: None: from the environment, see ``Settings``.
        registry: Where tasks are looked up by name; None: the default one.
        redis: Use this ``redis.asyncio`` client instead of making one; its timeouts and retries then apply.
        sync: The client that the plain methods of its jobs use; None: they raise.
        alone: Leave alone what other Redis servers the settings know.
    Raises:
        ConfigError: The settings are wrong, or the given client cannot be used.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        registry: Registry | None = None,
        redis: AsyncRedis | None = None,
        sync: JobActions | None = None,
        alone: bool = False,
    ) -> None:
        super().__init__(settings, registry, alone=alone)
        if redis is not None:
            check_client(redis)
        self._links = AsyncLinks(self.settings, redis)
        self._sync = sync
        self._others: dict[str, AsyncClient] = {}
        self.queues = AsyncQueues(
            self.plans,
            self.run,
            lambda name: self.serving(name).queues,
            lambda: [c.queues for c in self.each()],
        )
        self.dead_letters = AsyncDeadLetters(
            self.plans, self.run, self.editor, lambda name: self.serving(name).dead_letters, self._letters
        )
        self.limits = AsyncLimits(
            self.plans, self.run, self.registry, lambda: [c.limits for c in self.each()]
        )
        self.workers = AsyncWorkers(self.plans, self.run, lambda: [c.workers for c in self.each()])
        self.schedules = AsyncSchedules(
            self._schedule_plans,
            self.run,
            self.registry,
            lambda queue: self.serving(queue).schedules,
            lambda: [c.schedules for c in self.each()],
        )

    # ------------------------------------------------------------------ running

    async def run(self, step: Call[T] | Batch[T] | Plan[T]) -> T:
        """As :meth:`jobq.Client.run`."""
        return await self._links.store("command").run(step)

    async def enqueue(self, requests: list[EnqueueRequest]) -> list[Job]:
        """As :meth:`jobq.Client.enqueue`."""
        if not self.settings.enabled:
            return await asyncio.to_thread(self._inline, requests, "JOBQ_ENABLED is false")
        if self.elsewhere:
            return await self._enqueue_apart(requests)
        try:
            return await self._links.store("enqueue").run(self.enqueuer.plan(requests))
        except StoreUnavailableError as error:
            if not self._may_run_inline(error):
                raise
            return await asyncio.to_thread(self._inline, requests, "Redis is away")

    async def _enqueue_apart(self, requests: list[EnqueueRequest]) -> list[Job]:
        apart = Apart(requests, self.url_of)
        for url, part in apart.parts():
            try:
                apart.done(url, await self._other(url).enqueue(part))
            except JobqError as error:
                apart.failed(url, error)
                raise
        return apart.result()

    def sync_actions(self) -> JobActions:
        """The synchronous client, if there is one."""
        if self._sync is None:
            raise RuntimeError(
                "this job came from an AsyncClient: use its _async methods, as in await job.wait_async()"
            )
        return self._sync

    def async_actions(self) -> AsyncJobActions:
        """Itself."""
        return self

    # ------------------------------------------------------------------ one of several servers

    def at(self, queue: str) -> AsyncClient:
        """As :meth:`jobq.Client.at`."""
        return self._other(self.url_of(queue)) if self.elsewhere else self

    def serving(self, queue: str | Iterable[str] | None) -> AsyncClient:
        """As :meth:`jobq.Client.serving`."""
        url = self.url_of(queue)
        return self if url == self.settings.redis_url else self._other(url)

    def each(self) -> list[AsyncClient]:
        """As :meth:`jobq.Client.each`."""
        return [self._other(url) for url in self._urls] if self.elsewhere else [self]

    async def holders(self, ids: Sequence[str]) -> list[tuple[AsyncClient, Sequence[str]]]:
        """As :meth:`jobq.Client.holders`."""
        if not self.elsewhere:
            return [(self, ids)]
        first, *others = self.each()
        found: list[tuple[AsyncClient, Sequence[str]]] = []
        rest: Sequence[str] = ids
        for client in others:
            there = [
                flag
                for start in range(0, len(rest), 1_000)
                for flag in await client.run(exists_step(self.keys, rest[start : start + 1_000]))
            ]
            found.append((client, [job_id for job_id, flag in zip(rest, there, strict=True) if flag]))
            rest = [job_id for job_id, flag in zip(rest, there, strict=True) if not flag]
        return [(first, rest), *found]

    async def _letters(self, ids: Sequence[str]) -> list[tuple[AsyncDeadLetters, Sequence[str]]]:
        return [(client.dead_letters, part) for client, part in await self.holders(ids)]

    async def _holder(self, job_id: str) -> AsyncClient:
        if self.elsewhere:
            for client in self.each():
                if (await client.run(exists_step(self.keys, [job_id])))[0]:
                    return client
        return self

    def _other(self, url: str) -> AsyncClient:
        made = self._others.get(url)
        if made is None:
            given = self._links.given if url == self.settings.redis_url else None
            made = self._others[url] = AsyncClient(
                self.settings.seen_from(url), registry=self.registry, redis=given, sync=self._sync, alone=True
            )
        return made

    # ------------------------------------------------------------------ one job

    async def get(self, job_id: str) -> Job:
        """As :meth:`jobq.Client.get`."""
        there = await self._holder(job_id)
        return await there.run(there.plans.get(job_id))

    async def attempts(self, job_id: str) -> list[Attempt]:
        """As :meth:`jobq.Client.attempts`."""
        return await (await self._holder(job_id)).run(attempts_plan(self.keys, job_id))

    async def why(self, job_id: str) -> Why:
        """As :meth:`jobq.Client.why`."""
        there = await self._holder(job_id)
        return await there.run(why_plan(self.keys, job_id, there, self.settings.lease))

    async def logs(self, job_id: str, after: int = 0) -> list[LogLine]:
        """As :meth:`jobq.Client.logs`."""
        return await (await self._holder(job_id)).run(lines_plan(self.keys, job_id, after))

    async def cancel(self, job_id: str) -> Literal["cancelled", "requested"]:
        """As :meth:`jobq.Client.cancel`."""
        there = await self._holder(job_id)
        return await there.run(there.plans.cancel(job_id))

    async def withdraw(self, job_id: str) -> str:
        """As :meth:`jobq.Client.withdraw`."""
        there = await self._holder(job_id)
        return await there.run(there.plans.withdraw(job_id))

    async def retry(self, job_id: str) -> Job:
        """As :meth:`jobq.Client.retry`."""
        there = await self._holder(job_id)
        return await there.run(there.plans.retry(job_id))

    async def promote(self, job_id: str) -> Job:
        """As :meth:`jobq.Client.promote`."""
        there = await self._holder(job_id)
        return await there.run(there.plans.promote(job_id))

    async def delete(self, job_id: str) -> None:
        """As :meth:`jobq.Client.delete`."""
        there = await self._holder(job_id)
        await there.run(there.plans.delete(job_id))

    async def wait(self, job_id: str, timeout: float | timedelta | None = None) -> Job:
        """As :meth:`jobq.Client.wait`."""
        there = await self._holder(job_id)
        if there is not self:
            return await there.wait(job_id, timeout)
        patience = Patience.of(timeout)
        woken = False
        while True:
            job = await self.run(look_plan(self.keys, job_id, self, woken=woken))
            if job.finished:
                return job
            block = patience.next_block(job)
            try:
                command = block_command(self.keys, job_id, block)
                woken = await self._links.blocking.execute_command(*command) is not None
            except RedisError as error:
                woken = False
                await asyncio.sleep(min(block, pause_after(error)))

    async def wait_all(
        self,
        ids: Sequence[str],
        timeout: float | timedelta | None = None,
        *,
        look: float | timedelta = BLOCK_S,
        seen: Callable[[Job], object] = lambda _job: None,
    ) -> list[Job]:
        """As :meth:`jobq.Client.wait_all`."""
        parts = [(there, part) for there, part in await self.holders(list(dict.fromkeys(ids))) if part]

        async def watch(there: AsyncClient, part: Sequence[str]) -> Mapping[str, Job]:
            return await there._watch(
                Watch(there.keys, part, there, Patience.of(timeout), in_seconds(look), seen)
            )

        found: dict[str, Job] = {}
        for each in await asyncio.gather(*(watch(there, part) for there, part in parts)):
            found |= each
        return [found[job_id] for job_id in dict.fromkeys(ids)]

    async def _watch(self, watch: Watch) -> Mapping[str, Job]:
        while await self.run(watch.look()):
            while watch.left_s > 0:
                try:
                    reply = await self._links.blocking.execute_command(*watch.command())
                except RedisError as error:
                    await asyncio.sleep(min(watch.left_s, pause_after(error)))
                    break
                if reply is not None:
                    await self.run(watch.woken(reply))
        return watch.found

    async def result(self, job_id: str, timeout: float | timedelta | None = None) -> Any:
        """As :meth:`jobq.Client.result`."""
        there = await self._holder(job_id)
        await there.wait(job_id, timeout)
        job, entry = await there.run(outcome_plan(self.keys, job_id, there))
        if job.state is not JobState.SUCCEEDED:
            raise await there.run(failure_plan(self.keys, job))
        return self._value(job, entry)

    # ------------------------------------------------------------------ all jobs

    async def jobs(
        self,
        *,
        state: JobState | str | Iterable[JobState | str] | None = None,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        tag: str | None = None,
        correlation_id: str | None = None,
        error: str | None = None,
        since: Since = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Job]:
        """As :meth:`jobq.Client.jobs`."""
        there = self.serving(queue)
        wanted = there.plans.wanted(
            state=state,
            queue=queue,
            task=task,
            error=error,
            tag=tag,
            correlation_id=correlation_id,
            since=since,
        )
        return await there.run(there.plans.jobs(wanted, limit, cursor))

    async def job_ids(
        self,
        *,
        state: JobState | str | Iterable[JobState | str] | None = None,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        tag: str | None = None,
        correlation_id: str | None = None,
        error: str | None = None,
        since: Since = None,
        before: Since = None,
        limit: int | None = None,
    ) -> list[str]:
        """As :meth:`jobq.Client.job_ids`."""
        there = self.serving(queue)
        wanted = there.plans.wanted(
            state=state, queue=queue, task=task, error=error, tag=tag, correlation_id=correlation_id, since=since,
            before=before,
        )  # fmt: skip
        return await there.run(there.plans.job_ids(wanted, limit))

    async def bulk(
        self,
        verb: Verb,
        ids: Sequence[str],
        *,
        states: JobState | str | Iterable[JobState | str] | None = None,
        rate: float | None = None,
        progress: Progress = nobody,
    ) -> BulkReport:
        """As :meth:`jobq.Client.bulk`."""
        report = BulkReport()
        for there, part in await self.holders(ids):
            report.merge(await there.run(there.plans.bulk(verb, part, states, rate, progress)))
        return report

    async def preview(self, verb: Verb, ids: Sequence[str]) -> list[Preview]:
        """As :meth:`jobq.Client.preview`."""
        found: dict[str, Preview] = {}
        for there, part in await self.holders(ids):
            found |= {each.id: each for each in await there.run(there.plans.preview(verb, part))}
        return [found[job_id] for job_id in dict.fromkeys(ids)]

    async def stats(self, *, queue: str | None = None, since: timedelta | None = None) -> Stats:
        """As :meth:`jobq.Client.stats`."""
        if queue is not None or not self.elsewhere:
            there = self.serving(queue)
            return await there.run(stats_plan(self.keys, there.specs, queue=queue, since=since))
        clients = self.each()
        names = [redact_url(client.settings.redis_url) for client in clients]
        return united(names, [await client.stats(since=since) for client in clients])

    async def health(self, thresholds: Thresholds | None = None) -> Health:
        """As :meth:`jobq.Client.health`."""
        return judge(await self.stats(), thresholds)

    async def memory(
        self, *, limit: int | None = None, progress: Callable[[int], object] = lambda _count: None
    ) -> MemoryReport:
        """As :meth:`jobq.Client.memory`."""
        there = self.serving(None)
        return await there.run(memory_plan(self.keys, there.specs, limit=limit, progress=progress))

    # ------------------------------------------------------------------ the end

    async def close(self) -> None:
        """Give the connections back; a client that was passed in stays open."""
        others, self._others = self._others, {}
        for other in others.values():
            await other.close()
        await self._links.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
