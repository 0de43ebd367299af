"""Jobs are found by their tags, in as many commands however many other jobs there are."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

import jobq
from jobq import calls, tags
from jobq.audit import audit, repair
from jobq.client import Client
from jobq.errors import ConfigError
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


def test_jobs_that_are_gone_hide_none_of_the_others(client: Client, redis_client: redis.Redis) -> None:
    jobs = add.options(client=client, tags=("t",)).enqueue_many({"a": n} for n in range(450))
    lost = {job.id for job in jobs[250:400]}
    redis_client.delete(*(f"rq:job:{job_id}" for job_id in lost))
    assert set(client.job_ids(tag="t")) == {job.id for job in jobs} - lost


def test_the_async_client_finds_and_makes_them(client: Client, settings: jobq.Settings) -> None:
    async def run() -> list[str]:
        async with jobq.AsyncClient(settings) as twin:
            made = await add.options(client=twin, tags=("t",)).enqueue_async(a=1)
            assert [job.id for job in (await twin.jobs(tag="t")).items] == [made.id]
            return await twin.job_ids(tag="t")

    assert asyncio.run(run()) == client.job_ids(tag="t")


# --- correlation ids -----------------------------------------------------------------


def test_a_correlation_id_finds_its_jobs_among_many(client: Client, redis_client: redis.Redis) -> None:
    belongs = add.options(client=client, correlation_id="order-7")
    waits, dead = belongs.enqueue(a=1).id, belongs.enqueue(a=2).id
    later = add.options(client=client, correlation_id="order-7", delay=60, tags=("vip",)).enqueue(a=3).id
    add.options(client=client).enqueue_many({"a": n} for n in range(2_000))
    add.options(client=client, correlation_id="order-8", tags=("vip",)).enqueue(a=4)
    hand = Hand(client)
    first, second = hand.claim(n=2)
    assert hand.settle(first, "retry", spends=True, delay_ms=60_000) == "ok"
    assert hand.settle(second, "dead", reason="exhausted") == "ok"
    before = reads(redis_client)
    found = client.jobs(correlation_id="order-7").items
    assert reads(redis_client) - before < 10
    assert {job.id: job.state for job in found} == {waits: "retrying", dead: "dead", later: "scheduled"}
    assert {job.correlation_id for job in found} == {"order-7"}
    assert [job.id for job in client.jobs(correlation_id="order-7", state="dead").items] == [dead]
    assert [job.id for job in client.jobs(correlation_id="order-7", tag="vip").items] == [later]
    assert set(client.job_ids(correlation_id="order-7")) == {waits, dead, later}
    assert client.jobs(correlation_id="nobody").items == []
    assert client.get(waits).correlation_id == "order-7"


def test_a_cursor_of_one_correlation_id_is_of_no_other(client: Client) -> None:
    add.options(client=client, correlation_id="c").enqueue_many({"a": n} for n in range(3))
    page = client.jobs(correlation_id="c", limit=2)
    assert len(client.jobs(correlation_id="c", limit=2, cursor=page.cursor).items) == 1
    with pytest.raises(ValueError, match="another filter"):
        client.jobs(correlation_id="d", cursor=page.cursor)


@pytest.mark.parametrize("end", ["delete", "prune"])
def test_the_entries_of_a_job_go_with_it(client: Client, redis_client: redis.Redis, end: str) -> None:
    add.options(client=client, correlation_id="c", tags=("t", "u")).enqueue(a=1)
    stays = add.options(client=client, correlation_id="c", tags=("t",)).enqueue(a=2).id
    job = Hand(client).succeed()
    if end == "delete":
        client.delete(job.id)
    else:
        far_ms = 4_000_000_000_000
        client.run(calls.prune(client.keys, "medium", keep_succeeded=0, keep_dead=-1, now_ms=far_ms))
    assert (
        redis_client.zrange("jobq:corr:c", 0, -1)
        == redis_client.zrange("jobq:tag:t", 0, -1)
        == [stays.encode()]
    )
    assert not redis_client.exists("jobq:tag:u")


def test_a_job_that_takes_its_holders_place_is_found_by_its_own_id(client: Client) -> None:
    old = pay.options(client=client, correlation_id="first").enqueue(a=1).id
    assert pay.options(client=client, correlation_id="second").enqueue(a=1).id == old
    assert [job.id for job in client.jobs(correlation_id="second").items] == [old]
    assert client.jobs(correlation_id="first").items == []


def test_jobs_without_a_correlation_id_pay_nothing(client: Client, redis_client: redis.Redis) -> None:
    add.options(client=client).enqueue(a=1)
    assert redis_client.keys("jobq:corr:*") == []
    assert not redis_client.exists("jobq:tag:")


@pytest.mark.parametrize("wrong", ["", "x" * 201, 7])
def test_a_wrong_correlation_id(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="correlation_id"):
        add.options(correlation_id=wrong)


def test_an_index_that_would_never_go_is_a_finding(client: Client, redis_client: redis.Redis) -> None:
    add.options(client=client, correlation_id="c", tags=("t",)).enqueue(a=1)
    assert audit(client) == []
    redis_client.persist("jobq:corr:c")
    redis_client.persist("jobq:tag:t")
    findings = audit(client)
    assert {(each.kind, each.subject) for each in findings} == {
        ("orphan_key", "jobq:corr:c"),
        ("orphan_key", "jobq:tag:t"),
    }
    repair(client, findings)
    assert audit(client) == []
    assert redis_client.ttl("jobq:corr:c") > 86_400
