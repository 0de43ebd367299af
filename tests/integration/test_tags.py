"""Jobs are found by their tags, in as many commands however many other jobs there are."""

from __future__ import annotations

import asyncio

import pytest
import redis

import jobq
from jobq import tags
from jobq.client import Client
from jobq.tasks import Registry, task
from tests.support.hand import Hand

registry = Registry()


@task("g.add", registry=registry)
def add(a: int) -> int:
    return a


@task("g.pay", registry=registry, dedup="{a}", on_duplicate="replace")
def pay(a: int) -> int:
    return a


def reads(redis_client: redis.Redis) -> int:
    return int(redis_client.info("stats")["total_commands_processed"])


def test_a_tag_finds_its_jobs_in_every_state(client: Client) -> None:
    tagged = add.options(client=client, tags=("order:7", "vip"))
    waits = tagged.enqueue(a=1).id
    dead = add.options(client=client, queue="low", tags=("order:7",)).enqueue(a=1).id
    Hand(client).kill("low")
    later = add.options(client=client, tags=("order:7",), delay=3600).enqueue(a=1).id
    add.options(client=client, tags=("order:8",)).enqueue(a=1)
    found = [job.id for job in client.jobs(tag="order:7").items]
    assert {*found} == {waits, dead, later}
    assert [job.id for job in client.jobs(tag="order:7", state="dead").items] == [dead]
    assert [job.id for job in client.jobs(tag="order:7", queue="medium", state="queued").items] == [waits]
    (delayed,) = client.jobs(tag="order:7", state="scheduled").items
    assert (delayed.id, delayed.due_at) == (later, client.get(later).due_at)
    assert client.jobs(tag="nobody").items == []


def test_it_costs_the_same_among_many_jobs(client: Client, redis_client: redis.Redis) -> None:
    wanted = add.options(client=client, tags=("t",)).enqueue(a=1).id
    add.options(client=client).enqueue_many({"a": n} for n in range(2_000))
    before = reads(redis_client)
    assert [job.id for job in client.jobs(tag="t").items] == [wanted]
    assert reads(redis_client) - before < 10


def test_jobs_without_tags_pay_nothing(client: Client, redis_client: redis.Redis) -> None:
    add.options(client=client).enqueue(a=1)
    before = redis_client.info("commandstats").get("cmdstat_zadd", {"calls": 0})["calls"]
    add.options(client=client).enqueue(a=1)
    after = redis_client.info("commandstats").get("cmdstat_zadd", {"calls": 0})["calls"]
    assert after == before
    assert redis_client.keys("jobq:tag:*") == []


def test_what_is_gone_leaves_the_set_when_it_is_read(client: Client, redis_client: redis.Redis) -> None:
    made = add.options(client=client, tags=("t",))
    ids = [job.id for job in made.enqueue_many({"a": n} for n in range(5))]
    for job_id in ids[1:4]:
        client.delete(job_id)
    first = client.jobs(tag="t", limit=1)
    second = client.jobs(tag="t", limit=1, cursor=first.cursor)
    assert {job.id for job in (*first.items, *second.items)} == {ids[0], ids[4]}
    assert redis_client.zcard("jobq:tag:t") == 2


def test_a_tag_is_bounded_and_expires(
    client: Client, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "MOST_JOBS", 3)
    made = add.options(client=client, tags=("t",))
    ids = [made.enqueue(a=n).id for n in range(5)]
    found = {each.decode() for each in redis_client.zrange("jobq:tag:t", 0, -1)}
    assert (len(found), found < {*ids}) == (3, True)
    assert 13 * 86_400 < redis_client.ttl("jobq:tag:t") <= 14 * 86_400
    add.options(client=client, tags=("t",), delay=20 * 86_400).enqueue(a=9)
    assert redis_client.ttl("jobq:tag:t") > 33 * 86_400


def test_a_replaced_job_is_found_by_its_new_tags(client: Client) -> None:
    first = pay.options(client=client, tags=("old",), delay=60).enqueue(a=1)
    again = pay.options(client=client, tags=("new",), delay=60).enqueue(a=1)
    assert again.id == first.id
    assert [job.id for job in client.jobs(tag="new").items] == [first.id]
    assert client.jobs(tag="old").items == []


def test_the_async_client_finds_and_makes_them(client: Client, settings: jobq.Settings) -> None:
    async def run() -> list[str]:
        async with jobq.AsyncClient(settings) as twin:
            made = await add.options(client=twin, tags=("t",)).enqueue_async(a=1)
            assert [job.id for job in (await twin.jobs(tag="t")).items] == [made.id]
            return await twin.job_ids(tag="t")

    assert asyncio.run(run()) == client.job_ids(tag="t")
