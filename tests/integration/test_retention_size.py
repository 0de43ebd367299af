"""Retention by size: a queue keeps as many ended jobs as fit."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest
import redis

import jobq
from jobq.client import Client
from jobq.queues import LANES, Retention
from jobq.setting_kinds import format_retention
from jobq.store import Store
from jobq.tasks import Registry, task
from jobq.worker.maintenance import Fleet, Prune
from tests.support.hand import Hand

registry = Registry()


@task("k.store", registry=registry)
def store_text(text: str) -> None:
    return None


def fleet(client: Client, kept: Retention) -> Fleet:
    spec = replace(LANES["medium"], keep_dead=kept)
    return Fleet(
        name="w", keys=client.keys, specs={"medium": spec}, lease_ms=12_000, members=list, tell=lambda _: None,
        workers=list, found_suspects=lambda _: None,
    )  # fmt: skip


def bury(client: Client, redis_client: redis.Redis, count: int) -> list[str]:
    hand = Hand(client)
    ids = [store_text.options(client=client).enqueue(text="x" * 10_000).id for _ in range(count)]
    for place, job_id in enumerate(ids):
        hand.kill()
        # What ended within the last minute is never deleted for the count.
        redis_client.hset(f"rq:job:{job_id}", "ended_at", "2026-01-01T00:00:00.000000Z")
        redis_client.zadd("rq:failed:medium", {job_id: 4_000_000_000 + place})
    return ids


@pytest.mark.covers("T-07")
def test_only_as_many_are_kept_as_fit(client: Client, redis_client: redis.Redis) -> None:
    ids = bury(client, redis_client, 40)
    each = redis_client.memory_usage(f"rq:job:{ids[0]}", samples=0)
    assert each is not None
    size = each * 20
    Prune().tick(Store(redis_client), fleet(client, Retention(size=size)))
    left = [value.decode() for value in redis_client.zrange("rq:failed:medium", 0, -1)]
    assert left == ids[-len(left) :]  # the newest
    assert 5 <= len(left) < 20  # history and errors count, too
    held = sum(
        redis_client.memory_usage(key, samples=0) or 0 for pattern in ("rq:job:*", "rq:results:*", "jobq:attempts:*")
        for key in redis_client.keys(pattern)
    )  # fmt: skip
    assert held <= size


@pytest.mark.covers("T-02", "T-07")
def test_cancelled_jobs_have_a_retention_of_their_own(
    client: Client, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBQ_QUEUES__MEDIUM__KEEP_CANCELLED", "3d/2")
    spec = jobq.Settings.load().queue_specs()["medium"]
    assert (spec.keep_cancelled, spec.keep_succeeded.count) == (Retention(timedelta(days=3), 2), 1_000)
    with jobq.Client(jobq.Settings.load(redis_url=client.settings.redis_url)) as ours:
        for number in range(4):
            job = store_text.options(client=ours).enqueue(text="x")
            assert ours.cancel(job.id) == "cancelled"
            assert redis_client.ttl(f"rq:job:{job.id}") > 2 * 86_400, (
                "Redis keeps it as long as the queue may"
            )
            redis_client.hset(f"rq:job:{job.id}", "ended_at", "2026-01-01T00:00:00.000000Z")
            redis_client.zadd("rq:canceled:medium", {job.id: time.time() - 100 + number})
        bulk = [store_text.options(client=ours).enqueue(text="x").id for _ in range(2)]
        assert ours.bulk("cancel", bulk).done == 2
        assert redis_client.ttl(f"rq:job:{bulk[0]}") > 2 * 86_400
        held = replace(fleet(client, Retention()), specs={"medium": spec})
        Prune().tick(Store(redis_client), held)
    assert {name.decode() for name in redis_client.zrange("rq:canceled:medium", 0, -1)} == set(bulk)


def test_a_count_below_it_still_counts(client: Client, redis_client: redis.Redis) -> None:
    bury(client, redis_client, 5)
    Prune().tick(Store(redis_client), fleet(client, Retention(count=2, size=10**9)))
    assert redis_client.zcard("rq:failed:medium") == 2
    Prune().tick(Store(redis_client), fleet(client, Retention(size=10**9)))
    assert redis_client.zcard("rq:failed:medium") == 2


def test_it_is_written_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("24h/1000/5MB", "5MB", "7d/2048B", "1000"):
        monkeypatch.setenv("JOBQ_QUEUES__EMAIL__KEEP_DEAD", text)
        kept = jobq.Settings.load().queue_specs()["email"].keep_dead
        monkeypatch.setenv("JOBQ_QUEUES__EMAIL__KEEP_DEAD", format_retention(kept))
        assert jobq.Settings.load().queue_specs()["email"].keep_dead == kept
