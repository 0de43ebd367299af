"""Admission control while no worker lives: whoever enqueues looks at the memory itself, along with what it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis

import jobq
from jobq import brake, events
from jobq.errors import QueueFullError
from jobq.private_server import PrivateServer
from jobq.tasks import Registry, task

registry = Registry()
MAXMEMORY = 40 * 1024 * 1024


@task("t.row", registry=registry)
def row(n: int, text: str = "") -> None: ...


@pytest.fixture
def full() -> Iterator[redis.Redis]:
    """A server of its own with little memory."""
    config = {"maxmemory": str(MAXMEMORY), "maxmemory-policy": "noeviction"}
    with PrivateServer(config) as server, redis.Redis.from_url(server.url) as raw:
        yield raw


def url(raw: redis.Redis) -> str:
    return f"redis://127.0.0.1:{raw.connection_pool.connection_kwargs['port']}/0"


def settings(raw: redis.Redis) -> jobq.Settings:
    """Patient: the machine may be busy."""
    return jobq.Settings(redis_url=url(raw), enqueue_timeout=timedelta(seconds=20))


def share(raw: redis.Redis) -> float:
    return float(raw.info("memory")["used_memory"]) / MAXMEMORY


def fill(raw: redis.Redis, percent: int) -> None:
    """Bring the memory in use to about so many percent."""
    while share(raw) * 100 < percent:
        raw.rpush("filler", bytes(128 * 1024))


def fill_with(large: Any) -> None:
    for n in range(1_000):
        large.enqueue(n=n, text="x" * 200_000)


def put(client: Any, queue: str, count: int = 1) -> None:
    row.options(client=client, queue=queue).enqueue_many([{"n": n} for n in range(count)])


def test_a_backlog_that_nobody_serves_is_refused_before_memory_is_full(full: redis.Redis) -> None:
    seen: list[events.Event] = []
    end = events.subscribe(seen.append)
    try:
        with jobq.Client(settings(full), registry=registry) as client:
            with pytest.raises(QueueFullError, match=r"'batch' takes no new jobs: .* 8\d % full"):
                put(client, "batch", 100_000)
            assert 0.79 < share(full) < 0.86
            put(client, "critical")
            with pytest.raises(QueueFullError):
                row.options(client=client, queue="low").enqueue(n=1)
    finally:
        end()
    shed = [event.fields["queue"] for event in seen if event.name == "queue.shed"]
    assert sorted(shed) == ["batch", "low"], "said once each, as a worker does"


def test_large_payloads_are_refused_in_time_too(full: redis.Redis) -> None:
    with jobq.Client(settings(full), registry=registry) as client:
        large = row.options(client=client, queue="batch")
        with pytest.raises(QueueFullError, match="takes no new jobs"):
            fill_with(large)
    assert share(full) < 0.86


def test_jobs_are_taken_again_when_there_is_room(full: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brake, "_LIMITED_S", 0.0)
    monkeypatch.setattr(brake, "LOOK_OF_CLIENTS", brake.LOOK * 0)
    with jobq.Client(settings(full), registry=registry) as client:
        put(client, "batch")
        fill(full, 85)
        put(client, "batch")  # looks, along with the last job that is taken
        with pytest.raises(QueueFullError):
            put(client, "batch")
        full.delete("filler")
        with pytest.raises(QueueFullError):
            put(client, "batch")
        put(client, "batch")


def test_while_a_worker_looks_clients_leave_it_to_it(full: redis.Redis) -> None:
    with jobq.Client(settings(full), registry=registry) as client:
        lax = dict.fromkeys(client.specs, 100)  # as of a worker with other settings
        client.run(brake.look(client.keys, lax))
        fill(full, 85)
        for _ in range(3):
            put(client, "batch")


def test_who_may_not_look_enqueues_all_the_same(full: redis.Redis) -> None:
    full.execute_command("ACL", "SETUSER", "app", "on", "nopass", "~rq:*", "~jobq:q:*", "+@all")
    address = url(full).replace("redis://", "redis://app:x@")
    with jobq.Client(jobq.Settings(redis_url=address), registry=registry) as client:
        job = row.options(client=client, queue="batch").enqueue(n=1)
    assert full.exists(f"rq:job:{job.id}")
    assert not full.exists("jobq:pulse")


def test_an_async_client_and_a_client_of_ones_own_look_too(full: redis.Redis) -> None:
    async def run() -> None:
        async with jobq.AsyncClient(settings(full), registry=registry) as client:
            await row.options(client=client, queue="batch").enqueue_async(n=1)

    asyncio.run(run())
    assert full.hget("jobq:pulse", "max") == str(MAXMEMORY).encode()
    full.delete("jobq:pulse")
    with jobq.Client(settings(full), registry=registry, redis=full) as client:
        row.options(client=client, queue="batch").enqueue(n=1)
    assert full.hget("jobq:pulse", "max") == str(MAXMEMORY).encode()
