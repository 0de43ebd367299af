"""The client: enqueue jobs, look at them, wait for them."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import redis
from redis.exceptions import RedisError

from jobq.async_client import AsyncClient
from jobq.client_base import Apart, ClientBase, exists_step
from jobq.client_links import Links
from jobq.client_parts import Queues, Since, Workers
from jobq.config import Settings
from jobq.connection import check_client
from jobq.control import BulkReport, Progress, nobody
from jobq.dead_parts import DeadLetters
from jobq.errors import ConfigError, JobqError, StoreUnavailableError
from jobq.health import Health, Thresholds, judge
from jobq.job import AsyncJobActions, Attempt, Job, JobActions, JobState, Verb
from jobq.job_reading import attempts_plan, outcome_plan
from jobq.joblog import LogLine, lines_plan
from jobq.limit_parts import Limits
from jobq.listing import Page
from jobq.memory import MemoryReport, memory_plan
from jobq.parsing import redact_url
from jobq.plans import Preview
from jobq.schedule_parts import Schedules
from jobq.stats import Stats, stats_plan, united
from jobq.steps import Batch, Call, Plan
from jobq.tasks import EnqueueRequest, Registry
from jobq.units import in_seconds
from jobq.waiting import BLOCK_S, Patience, Watch, block_command, failure_plan, look_plan, pause_after
from jobq.why import Why, why_plan

T = TypeVar("T")


class Client(ClientBase):
    """A client. Safe to share between threads and across forks.

    Args:
        settings: None: from the environment, see ``Settings``.
        registry: Where tasks are looked up by name; None: the default one.
        redis: Use this client's connections instead of making one; its timeouts and retries then apply.
        alone: Leave alone what other Redis servers the settings know.
    Raises:
        ConfigError: The settings are wrong, or the given client cannot be used.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        registry: Registry | None = None,
        redis: redis.Redis | None = None,
        alone: bool = False,
    ) -> None:
        super().__init__(settings, registry, alone=alone)
        if redis is not None:
            check_client(redis)
        self._links = Links(self.settings, redis)
        self._twins: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncClient]
        self._twins = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._others: dict[str, Client] = {}
        self.queues = Queues(
            self.plans,
            self.run,
            lambda name: self.serving(name).queues,
            lambda: [c.queues for c in self.each()],
        )
        self.dead_letters = DeadLetters(
            self.plans, self.run, self.editor, lambda name: self.serving(name).dead_letters, self._letters
        )
        self.limits = Limits(self.plans, self.run, self.registry, lambda: [c.limits for c in self.each()])
        self.workers = Workers(self.plans, self.run, lambda: [c.workers for c in self.each()])
        self.schedules = Schedules(
            self._schedule_plans,
            self.run,
            self.registry,
            lambda queue: self.serving(queue).schedules,
            lambda: [c.schedules for c in self.each()],
        )

    # ------------------------------------------------------------------ running

    def run(self, step: Call[T] | Batch[T] | Plan[T]) -> T:
        """Run a step of ``jobq.calls`` or a plan.

        Raises:
            StoreUnavailableError: Redis cannot be reached.
        """
        return self._links.store("command").run(step)

    def enqueue(self, requests: list[EnqueueRequest]) -> list[Job]:
        """Enqueue what tasks have validated; use ``task.enqueue`` or ``task.enqueue_many``.

        Raises:
            EnqueueError: A job was not enqueued.
            StoreUnavailableError: Redis did not answer within ``JOBQ_ENQUEUE_TIMEOUT`` (default 1 s; for each
                100 jobs). ``job_id`` names the job and ``ambiguous`` says whether it may have been enqueued.
        """
        if not self.settings.enabled:
            return self._inline(requests, "JOBQ_ENABLED is false")
        if self.elsewhere:
            return self._enqueue_apart(requests)
        try:
            return self._links.store("enqueue").run(self.enqueuer.plan(requests))
        except StoreUnavailableError as error:
            if not self._may_run_inline(error):
                raise
            return self._inline(requests, "Redis is away")

    def _enqueue_apart(self, requests: list[EnqueueRequest]) -> list[Job]:
        apart = Apart(requests, self.url_of)
        for url, part in apart.parts():
            try:
                apart.done(url, self._other(url).enqueue(part))
            except JobqError as error:
                apart.failed(url, error)
                raise
        return apart.result()

    async def enqueue_async(self, requests: list[EnqueueRequest]) -> list[Job]:
        """Awaitable :meth:`enqueue`, over a connection of the running event loop."""
        return await self.twin().enqueue(requests)

    def twin(self) -> AsyncClient:
        """The asynchronous client of these settings for the running event loop."""
        if self._links.given is not None:
            raise ConfigError(
                "a client with a Redis of its own has no asynchronous twin: make a jobq.AsyncClient for that Redis"
            )
        loop = asyncio.get_running_loop()
        twin = self._twins.get(loop)
        if twin is None:
            twin = self._twins[loop] = AsyncClient(
                self.settings, registry=self.registry, sync=self, alone=self.alone
            )
        return twin

    def sync_actions(self) -> JobActions:
        """Itself."""
        return self

    def async_actions(self) -> AsyncJobActions:
        """Its twin for the running event loop."""
        return self.twin()

    # ------------------------------------------------------------------ one of several servers

    def at(self, queue: str) -> Client:
        """The client of the Redis that a queue is in, and of nothing else; itself while there is but one.

        What a client does for queues by their names and for jobs by their ids, it does in any Redis; so are ``stats``
        and ``health`` about all of them. The rest is about one, and wants a queue's name or such a client.
        """
        return self._other(self.url_of(queue)) if self.elsewhere else self

    def serving(self, queue: str | Iterable[str] | None) -> Client:
        """Whoever has these queues in its Redis.

        Raises:
            ConfigError: They are in several, or none is named while queues of the settings are.
        """
        url = self.url_of(queue)
        return self if url == self.settings.redis_url else self._other(url)

    def each(self) -> list[Client]:
        """A client of each Redis alone; itself while there is but one."""
        return [self._other(url) for url in self._urls] if self.elsewhere else [self]

    def holders(self, ids: Sequence[str]) -> list[tuple[Client, Sequence[str]]]:
        """Who has which of these jobs; those that nobody has come with the first."""
        if not self.elsewhere:
            return [(self, ids)]
        first, *others = self.each()
        found: list[tuple[Client, Sequence[str]]] = []
        rest: Sequence[str] = ids
        for client in others:
            there = [
                flag
                for start in range(0, len(rest), 1_000)
                for flag in client.run(exists_step(self.keys, rest[start : start + 1_000]))
            ]
            found.append((client, [job_id for job_id, flag in zip(rest, there, strict=True) if flag]))
            rest = [job_id for job_id, flag in zip(rest, there, strict=True) if not flag]
        return [(first, rest), *found]

    def _letters(self, ids: Sequence[str]) -> list[tuple[DeadLetters, Sequence[str]]]:
        return [(client.dead_letters, part) for client, part in self.holders(ids)]

    def _holder(self, job_id: str) -> Client:
        """Whoever has the job; itself when nobody has. Costs a round trip for each Redis, none while there is one."""
        if self.elsewhere:
            for client in self.each():
                if client.run(exists_step(self.keys, [job_id]))[0]:
                    return client
        return self

    def _other(self, url: str) -> Client:
        with self._lock:
            made = self._others.get(url)
            if made is None:
                given = self._links.given if url == self.settings.redis_url else None
                made = self._others[url] = Client(
                    self.settings.seen_from(url), registry=self.registry, redis=given, alone=True
                )
        return made

    # ------------------------------------------------------------------ one job

    def get(self, job_id: str) -> Job:
        """The job as it stands.

        Raises:
            JobNotFoundError: No job has this id.
        """
        there = self._holder(job_id)
        return there.run(there.plans.get(job_id))

    def attempts(self, job_id: str) -> list[Attempt]:
        """The job's recorded attempts, oldest first; empty before the first failure.

        Raises:
            JobNotFoundError: No job has this id.
        """
        return (self._holder(job_id)).run(attempts_plan(self.keys, job_id))

    def why(self, job_id: str) -> Why:
        """Why the job has not run, or what happened to it: reasons with remedies, what blocks it first.

        Raises:
            JobNotFoundError: No job has this id.
        """
        there = self._holder(job_id)
        return there.run(why_plan(self.keys, job_id, there, self.settings.lease))

    def logs(self, job_id: str, after: int = 0) -> list[LogLine]:
        """What the task has said with ``ctx.log``, oldest first: its last 200 lines over all attempts.

        Args:
            after: Only lines with a higher number than this.
        Raises:
            JobNotFoundError: No job has this id.
        """
        return (self._holder(job_id)).run(lines_plan(self.keys, job_id, after))

    def cancel(self, job_id: str) -> Literal["cancelled", "requested"]:
        """Stop a job: at once while it waits, on request while it runs.

        Raises:
            ConflictError: It has ended already.
            JobNotFoundError: No job has this id.
        """
        there = self._holder(job_id)
        return there.run(there.plans.cancel(job_id))

    def withdraw(self, job_id: str) -> str:
        """Remove a job unless it has started: ``withdrawn``, or the word for why not."""
        there = self._holder(job_id)
        return there.run(there.plans.withdraw(job_id))

    def retry(self, job_id: str) -> Job:
        """Enqueue a dead or cancelled job again, with all its attempts before it.

        Raises:
            ConflictError: It is in another state, or its dedup key is held.
            JobNotFoundError: No job has this id.
        """
        there = self._holder(job_id)
        return there.run(there.plans.retry(job_id))

    def promote(self, job_id: str) -> Job:
        """Queue a delayed job or a retry now.

        Raises:
            ConflictError: It waits for no time.
            JobNotFoundError: No job has this id.
        """
        there = self._holder(job_id)
        return there.run(there.plans.promote(job_id))

    def delete(self, job_id: str) -> None:
        """Delete a job that does not run, with its result and history.

        Raises:
            ConflictError: It runs.
            JobNotFoundError: No job has this id.
        """
        there = self._holder(job_id)
        there.run(there.plans.delete(job_id))

    def wait(self, job_id: str, timeout: float | timedelta | None = None) -> Job:
        """Block until the job has ended.

        Args:
            timeout: Seconds or timedelta; None waits for as long as it takes.
        Raises:
            TimeoutError: The job had not ended by then. It goes on.
            JobNotFoundError: No job has this id.
        """
        there = self._holder(job_id)
        if there is not self:
            return there.wait(job_id, timeout)
        patience = Patience.of(timeout)
        woken = False
        while True:
            job = self.run(look_plan(self.keys, job_id, self, woken=woken))
            if job.finished:
                return job
            block = patience.next_block(job)
            try:
                command = block_command(self.keys, job_id, block)
                woken = self._links.blocking.execute_command(*command) is not None
            except RedisError as error:
                woken = False
                time.sleep(min(block, pause_after(error)))

    def wait_all(
        self,
        ids: Sequence[str],
        timeout: float | timedelta | None = None,
        *,
        look: float | timedelta = BLOCK_S,
        seen: Callable[[Job], object] = lambda _job: None,
    ) -> list[Job]:
        """Block until all these jobs have ended, by one blocking read; what has not when time is up comes as it stands.

        Args:
            timeout: Seconds or timedelta; None waits for as long as it takes.
            look: Longest time between two looks at what runs, seconds or timedelta; at most 5 s.
            seen: Told of each job at each look: of its progress, and at last of its end.
        Raises:
            JobNotFoundError: No job has one of these ids.
        """
        parts = [(there, part) for there, part in self.holders(list(dict.fromkeys(ids))) if part]

        def watch(there: Client, part: Sequence[str]) -> Mapping[str, Job]:
            return there._watch(Watch(there.keys, part, there, Patience.of(timeout), in_seconds(look), seen))

        found: dict[str, Job] = {}
        if len(parts) == 1:
            found |= watch(*parts[0])
        elif parts:
            with ThreadPoolExecutor(len(parts)) as pool:
                for each in pool.map(watch, *zip(*parts, strict=True)):
                    found |= each
        return [found[job_id] for job_id in dict.fromkeys(ids)]

    def _watch(self, watch: Watch) -> Mapping[str, Job]:
        while self.run(watch.look()):
            while watch.left_s > 0:
                try:
                    reply = self._links.blocking.execute_command(*watch.command())
                except RedisError as error:
                    time.sleep(min(watch.left_s, pause_after(error)))
                    break
                if reply is not None:
                    self.run(watch.woken(reply))
        return watch.found

    def result(self, job_id: str, timeout: float | timedelta | None = None) -> Any:
        """What the task returned, as plain JSON values, waiting for it if need be.

        Raises:
            JobFailedError: The job is dead or cancelled; the message says why.
            ResultNotKeptError: It succeeded, and what it returned could not be stored.
            TimeoutError: The job had not ended by then. It goes on.
        """
        there = self._holder(job_id)
        there.wait(job_id, timeout)
        job, entry = there.run(outcome_plan(self.keys, job_id, there))
        if job.state is not JobState.SUCCEEDED:
            raise there.run(failure_plan(self.keys, job))
        return self._value(job, entry)

    # ------------------------------------------------------------------ all jobs

    def jobs(
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
        """A page of jobs, newest first where the container knows the age, scheduled ones soonest first.

        Args:
            tag, correlation_id: Only jobs with this; no other job is looked at.
            error: An error fingerprint, or the beginning of one.
            since: A moment, or how long ago.
            cursor: From the page before, with the same filter. A page looks at 10,000 jobs at most: it may
                hold fewer than ``limit`` and still have a cursor.
        Raises:
            ValueError: The cursor belongs to another filter, or a word is no state.
        """
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
        return there.run(there.plans.jobs(wanted, limit, cursor))

    def job_ids(
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
        """Ids of all jobs that the filter chooses, as :meth:`jobs` orders them; for :meth:`bulk`.

        Args:
            before: A moment, or how long ago: only jobs that ended, or if they have not, were created, before.
            limit: At most so many; None: all.
        """
        there = self.serving(queue)
        wanted = there.plans.wanted(
            state=state, queue=queue, task=task, error=error, tag=tag, correlation_id=correlation_id, since=since,
            before=before,
        )  # fmt: skip
        return there.run(there.plans.job_ids(wanted, limit))

    def bulk(
        self,
        verb: Verb,
        ids: Sequence[str],
        *,
        states: JobState | str | Iterable[JobState | str] | None = None,
        rate: float | None = None,
        progress: Progress = nobody,
    ) -> BulkReport:
        """Cancel, delete, promote or retry many jobs, a hundred a round trip.

        Each is looked at as it is touched: one that has moved on stays as it is, and the report says so.

        Args:
            verb: ``cancel``, ``delete``, ``promote`` or ``retry``.
            states: For ``cancel`` and ``delete``: only what is in these states by then. None: any, but to delete none
                that runs.
            rate: Jobs a second; None: as fast as Redis goes.
            progress: Called with the number of further jobs dealt with.
        Raises:
            ValueError: No such verb or state, or ``rate`` is not above 0.
        """
        report = BulkReport()
        for there, part in self.holders(ids):
            report.merge(there.run(there.plans.bulk(verb, part, states, rate, progress)))
        return report

    def preview(self, verb: Verb, ids: Sequence[str]) -> list[Preview]:
        """What a verb would do to each of these jobs, if nothing moves meanwhile; nothing is changed.

        Args:
            verb: As for :meth:`bulk`, of jobs in any state.
        """
        found: dict[str, Preview] = {}
        for there, part in self.holders(ids):
            found |= {each.id: each for each in there.run(there.plans.preview(verb, part))}
        return [found[job_id] for job_id in dict.fromkeys(ids)]

    def stats(self, *, queue: str | None = None, since: timedelta | None = None) -> Stats:
        """Counts of all queues, or one; waits and throughput of the last five minutes, or of ``since``.

        Raises:
            ValueError: A window of more than 24 h, which is as long as counters are kept.
        """
        if queue is not None or not self.elsewhere:
            there = self.serving(queue)
            return there.run(stats_plan(self.keys, there.specs, queue=queue, since=since))
        clients = self.each()
        names = [redact_url(client.settings.redis_url) for client in clients]
        return united(names, [client.stats(since=since) for client in clients])

    def health(self, thresholds: Thresholds | None = None) -> Health:
        """Whether anything is wrong, and what."""
        return judge(self.stats(), thresholds)

    def memory(
        self, *, limit: int | None = None, progress: Callable[[int], object] = lambda _count: None
    ) -> MemoryReport:
        """What holds Redis' memory, by kind, queue and state: an estimate, from a sample of each kind.

        Args:
            limit: Count about so many keys only; a million take some seconds.
            progress: Called with the number of further keys counted.
        Raises:
            StoreError: The server does not tell the size of a key.
        """
        there = self.serving(None)
        return there.run(memory_plan(self.keys, there.specs, limit=limit, progress=progress))

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Give the connections back; a client that was passed in stays open."""
        with self._lock:
            others, self._others = self._others, {}
        for other in others.values():
            other.close()
        self._links.close()

    async def aclose(self) -> None:
        """:meth:`close`, and the connections of the running event loop."""
        for other in self._others.values():
            await other.aclose()
        twin = self._twins.pop(asyncio.get_running_loop(), None)
        if twin is not None:
            await twin.close()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
