"""What holds the memory: every key counted under its kind, sizes that add up, a sample that stands for the rest."""

from __future__ import annotations

import asyncio
import inspect
import re

import pytest
import redis

import jobq
from jobq import calls, lua
from jobq.errors import StoreError
from jobq.keys import Keys
from jobq.memory import NOT_OURS, MemoryReport, _Namer, memory_plan
from jobq.steps import NewJob
from tests.support.hand import Hand


def fill(client: jobq.Client, count: int, queue: str = "medium") -> None:
    for start in range(0, count, 100):
        jobs = [
            NewJob(
                id=f"{queue}-{start + i}",
                fields={
                    "data": b"{}",
                    "origin": queue,
                    "created_at": "",
                    "enqueued_at": "",
                    "description": "t.x",
                },
            )
            for i in range(min(100, count - start))
        ]
        client.run(calls.enqueue(client.keys, queue, jobs, True))


def kinds(report: MemoryReport) -> dict[tuple[str, str, str], int]:
    return {(h.kind, h.queue, h.state): h.keys for h in report.holdings}


def test_every_key_is_under_its_kind(client: jobq.Client, redis_client: redis.Redis) -> None:
    fill(client, 30)
    fill(client, 3, "low")
    hand = Hand(client)
    for _ in range(2):
        hand.succeed(value={"ok": 1})
    hand.kill()
    hand.claim("medium", 1)
    redis_client.set("session:1", "x" * 1_000)
    redis_client.set("jobq:dedup:t.x:k", "f:medium-1")
    redis_client.sadd("rq:job:medium-1:dependents", "a")
    redis_client.sadd("rq:job::medium-1:dependencies", "a")
    report = client.memory()
    found = kinds(report)
    assert found[("jobs", "medium", "queued")] == 26
    assert found[("jobs", "medium", "succeeded")] == 2
    assert found[("jobs", "medium", "dead")] == 1
    assert found[("jobs", "medium", "running")] == 1
    assert found[("jobs", "low", "queued")] == 3
    assert found[("lists", "medium", "queued")] == 1
    assert found[("registries", "medium", "succeeded")] == 1
    assert found[("results", "", "")] == 3
    assert found[("attempts", "", "")] == 1
    assert found[("dedup", "", "")] == 1
    assert found[("dependencies", "", "")] == 2
    assert found[(NOT_OURS, "", "")] == 1
    assert report.keys == redis_client.dbsize() == sum(found.values())
    assert report.complete
    sizes = [holding.bytes for holding in report.holdings]
    assert sizes == sorted(sizes, reverse=True)
    measured = sum(redis_client.memory_usage(key, samples=20) or 0 for key in redis_client.keys("*"))
    assert sum(sizes) == measured


CHANNELS = {"cancel_channel", "wake_channel", "rq_commands"}
PREFIXES = {"p", "n"}


def test_every_name_that_keys_knows_has_a_kind() -> None:
    keys = Keys()
    others = {}
    for name, member in inspect.getmembers(Keys):
        if name.startswith("_") or name in CHANNELS | PREFIXES | {"prefix"}:
            continue
        if isinstance(member, property):
            key = getattr(keys, name)
        else:
            wanted = inspect.signature(member).parameters
            key = member(keys, *(1 if each == "minute" else "x" for each in list(wanted)[1:]))
        kind, _, _ = _Namer(keys).of(key)
        if kind == NOT_OURS or kind.startswith("others"):
            others[name] = key
    assert others == {}


def test_every_key_that_a_script_builds_has_a_kind() -> None:
    keys, others = Keys(), set()
    for name in lua.names():
        for prefix, word in re.findall(r"\b([NP]) \.\. '([a-z][a-z:-]*)", lua.script(name).text.decode()):
            key = (keys.n if prefix == "N" else keys.p) + word + "x"
            if prefix + word == "Ncancel":  # a channel
                continue
            if _Namer(keys).of(key)[0].startswith(("others", NOT_OURS)):
                others.add(key)
    assert others == set()


def test_a_sample_stands_for_the_rest(client: jobq.Client) -> None:
    fill(client, 2_000)
    exact = client.memory()
    sampled = client.run(memory_plan(client.keys, client.specs, sample=10))
    (jobs,) = [holding for holding in sampled.holdings if holding.kind == "jobs"]
    assert jobs.measured == 40
    assert jobs.keys == 2_000
    (all_jobs,) = [holding for holding in exact.holdings if holding.kind == "jobs"]
    assert all_jobs.measured == 2_000
    assert jobs.bytes == pytest.approx(all_jobs.bytes, rel=0.05)
    assert sampled.queued_job_bytes == pytest.approx(exact.queued_job_bytes, rel=0.05)


def test_a_job_costs_its_hash_and_its_place(client: jobq.Client, redis_client: redis.Redis) -> None:
    fill(client, 500)
    hashes = sum(redis_client.memory_usage(key, samples=20) or 0 for key in redis_client.keys("rq:job:*"))
    listed = redis_client.memory_usage("rq:queue:medium", samples=20) or 0
    report = client.memory()
    assert report.queued_job_bytes == round((hashes + listed) / 500)
    assert report.ended_job_bytes is None


def test_a_limit_counts_a_part_and_says_so(client: jobq.Client) -> None:
    fill(client, 3_000)
    counted: list[int] = []
    report = client.memory(limit=500, progress=counted.append)
    assert not report.complete
    assert 500 <= report.keys == sum(counted) < 3_000
    assert report.to_dict()["estimate"]["complete"] is False


def test_the_server_is_in_it(server_factory) -> None:
    with (
        server_factory(maxmemory="50mb") as server,
        jobq.Client(jobq.Settings(redis_url=server.url)) as client,
    ):
        document = client.memory().to_dict()
    assert document["maxmemory"] == 50 * 1_048_576
    assert 0 < document["used"] < 1
    assert document["used_memory"] > document["used_memory_overhead"] > 0
    assert document["fragmentation"] > 0
    assert document["queued_job_bytes"] is None
    assert document["shed"] == []


def test_a_server_that_does_not_tell(
    client: jobq.Client, redis_client: redis.Redis, settings: jobq.Settings
) -> None:
    fill(client, 1)
    redis_client.acl_setuser("shy", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-memory"])
    try:
        url = settings.redis_url.replace("redis://", "redis://shy:x@")
        with (
            jobq.Client(jobq.Settings(redis_url=url)) as shy,
            pytest.raises(StoreError, match="MEMORY USAGE"),
        ):
            shy.memory()
    finally:
        redis_client.acl_deluser("shy")


def test_the_asynchronous_client_says_the_same(client: jobq.Client, settings: jobq.Settings) -> None:
    fill(client, 10)

    async def ask() -> MemoryReport:
        other = jobq.AsyncClient(settings)
        try:
            return await other.memory()
        finally:
            await other.close()

    assert kinds(asyncio.run(ask())) == kinds(client.memory())
