"""The asynchronous client does what the synchronous one does: the same plans, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

import jobq
from jobq.async_client import AsyncClient
from jobq.client import Client
from jobq.errors import ConfigError, JobFailedError, JobNotFoundError, StoreUnavailableError
from jobq.job import JobState
from jobq.tasks import Registry, task
from tests.support.hand import Hand

registry = Registry()


@task("a.add", registry=registry)
def add(a: int) -> int:
    return a


@task("a.pay", registry=registry, dedup="{payment}")
async def pay(payment: str) -> str:
    return payment


@pytest.fixture
def hand(client: Client) -> Hand:
    return Hand(client)


Scenario = Callable[[AsyncClient], Awaitable[Any]]


@pytest.fixture
def run(settings: jobq.Settings) -> Callable[[Scenario], Any]:
    """Run a scenario in a loop and a client of its own."""

    def runner(scenario: Scenario) -> Any:
        async def main() -> Any:
            async with AsyncClient(settings) as client:
                return await scenario(client)

        return asyncio.run(main())

    return runner


def test_enqueue_one_and_many(run: Callable[[Scenario], Any], redis_client: redis.Redis) -> None:
    async def scenario(client: AsyncClient) -> None:
        bound = add.options(client=client)
        job = await bound.enqueue_async(a=1)
        assert (await job.refresh_async()).state is JobState.QUEUED
        assert len(await bound.enqueue_many_async({"a": n} for n in range(150))) == 150
        first = await pay.options(client=client).enqueue_async(payment="1")
        again = await pay.options(client=client).enqueue_async(payment="1")
        assert (again.id, again.deduplicated) == (first.id, True)

    run(scenario)
    assert redis_client.llen("rq:queue:medium") == 152


def test_waiters_wake(run: Callable[[Scenario], Any], hand: Hand, redis_client: redis.Redis) -> None:
    async def scenario(client: AsyncClient) -> list[Any]:
        job = await add.options(client=client).enqueue_async(a=1)
        waiters = [asyncio.create_task(job.result_async(10)) for _ in range(2)]
        while redis_client.info("clients")["blocked_clients"] < 2:  # noqa: ASYNC110 - the server's fact, not ours
            await asyncio.sleep(0)
        await asyncio.to_thread(hand.succeed, value=7)
        async with asyncio.timeout(0.9):  # shorter than the first look after a block
            return await asyncio.gather(*waiters)

    assert run(scenario) == [7, 7]


def test_one_job(run: Callable[[Scenario], Any], hand: Hand) -> None:
    async def scenario(client: AsyncClient) -> None:
        bound = add.options(client=client)
        job = await bound.enqueue_async(a=1)
        with pytest.raises(TimeoutError):
            await job.wait_async(0.02)
        await asyncio.to_thread(hand.kill)
        with pytest.raises(JobFailedError, match="no funds"):
            await job.result_async(0)
        assert len(await client.attempts(job.id)) == 1
        assert (await client.dead_letters.get(job.id)).error == "no funds"
        assert (await client.retry(job.id)).state is JobState.QUEUED
        assert await job.cancel_async() == "cancelled"
        assert await job.cancel_async() == "cancelled"  # asking twice is the same as asking once
        await client.delete(job.id)
        with pytest.raises(JobNotFoundError):
            await client.get(job.id)
        assert await client.withdraw((await bound.enqueue_async(a=2)).id) == "withdrawn"
        with pytest.raises(RuntimeError, match="_async"):
            job.refresh()

    run(scenario)


def test_all_jobs(run: Callable[[Scenario], Any], hand: Hand, client: Client) -> None:
    add.options(client=client).enqueue_many({"a": n} for n in range(3))
    hand.kill()

    async def scenario(other: AsyncClient) -> None:
        assert len((await other.jobs(state="queued")).items) == 2
        letters = other.dead_letters
        assert (await letters.count(), len(await letters.groups())) == (1, 1)
        assert len((await letters.list()).items) == 1
        assert (await letters.replay(dry_run=True)).matched == 1
        assert (await letters.replay(rate=1_000)).replayed == 1
        assert (await other.stats()).queues["medium"].queued == 3
        assert (await other.health()).status == "unhealthy"
        assert (await other.queues.pause("medium")).paused
        assert not (await other.queues.resume("medium")).paused
        assert (await other.queues.get("medium")).queued == 3
        assert len(await other.queues.list()) == 5
        assert await other.workers.list() == []

    run(scenario)


def test_redis_away(run: Callable[[Scenario], Any]) -> None:
    settings = jobq.Settings(redis_url="redis://127.0.0.1:1/0", enqueue_timeout=0.2)

    async def main() -> None:
        async with AsyncClient(settings) as client:
            with pytest.raises(StoreUnavailableError) as caught:
                await add.options(client=client).enqueue_async(a=1)
            assert (caught.value.ambiguous, caught.value.task) == (False, "a.add")

    asyncio.run(main())


def test_switched_off_a_coroutine_runs_here() -> None:
    settings = jobq.Settings(redis_url="redis://127.0.0.1:1/0", enabled=False)

    async def main() -> Any:
        async with AsyncClient(settings) as client:
            job = await pay.options(client=client).enqueue_async(payment="p")
            return await job.result_async()

    assert asyncio.run(main()) == "p"


def test_a_sync_clients_twin_lives_in_its_loop(client: Client) -> None:
    async def main() -> jobq.Job:
        job = await add.options(client=client).enqueue_async(a=1)
        assert client.twin() is client.twin()
        assert (await job.refresh_async()).state is JobState.QUEUED
        await client.aclose()
        return job

    first, second = asyncio.run(main()), asyncio.run(main())
    assert first.id != second.id
    assert first.refresh().state is JobState.QUEUED


def test_a_sync_enqueue_needs_a_sync_client(run: Callable[[Scenario], Any]) -> None:
    async def scenario(client: AsyncClient) -> None:
        with pytest.raises(ConfigError, match="async client"):
            add.options(client=client).enqueue(a=1)

    run(scenario)
