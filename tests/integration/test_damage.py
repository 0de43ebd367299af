"""Who reads damaged hashes: each look answers, or says in a word of ours why it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

import jobq
from jobq import Client
from jobq.errors import ConfigError, TextError
from jobq.job import JobState
from jobq.tasks import Registry, task

registry = Registry()


@task("d.plain", registry=registry, priority="high")
def plain(key: str) -> None: ...


@pytest.fixture
def client(settings: jobq.Settings) -> Iterator[Client]:
    with Client(settings, registry=registry) as made:
        yield made


VALUES = {
    "timeout": ("9" * 16, "1e300", "inf", "nan", "-1", "soon"),
    "q": ("9" * 16, "1e300", "nan", "-1", "now"),
    "o": ('{"timeout_ms":' + "9" * 25 + "}", '{"max_attempts":1e400}', "[]"),
    "lm": ("r,0,0,0,x", "b,5,1000,5,w", "c,0,0,0,z", "r,1," + "9" * 99 + ",0,w"),
    "attempts": ("1e300", "nan", "-5"),
}


@pytest.mark.parametrize("park", [False, True])
@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in VALUES.items() for v in values])
def test_a_damaged_field_is_read_past(
    client: Client, redis_client: redis.Redis, field: str, value: str, park: bool
) -> None:
    good, bad = (plain.options(client=client).enqueue(key=key) for key in "ab")
    key = f"rq:job:{bad.id}"
    redis_client.hset(key, field, value)
    if park:
        redis_client.hset(key, mapping={"status": "deferred", "park": "rate", "pb": "~gate:w"})
    assert client.get(bad.id).id == bad.id
    assert client.why(bad.id).reasons
    assert {job.id for job in client.jobs(limit=10).items} == {good.id, bad.id}
    for state in JobState:
        client.jobs(state=state, limit=10)


@pytest.mark.parametrize(
    "text", ["r,0,0,0,x", "c,0,0,0,z", "b,5,1000,5,w", "9" * 16 + "|c,1,0,0,z", "nonsense"]
)
def test_a_damaged_state_of_a_queue_is_read_past(
    client: Client, redis_client: redis.Redis, text: str
) -> None:
    plain.options(client=client).enqueue(key="a")
    redis_client.hset(
        "jobq:q:high", mapping={"limit": text, "limit_set": text, "paused": "1", "until": "9" * 30}
    )
    assert {info.name for info in client.queues.list()} >= {"high"}
    assert client.stats().queues["high"].paused


def test_an_id_that_is_no_text_is_shown_and_dealt_with(
    client: Client, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """It goes back to Redis byte by byte."""
    fields = {"origin": "high", "description": "d.plain", "data": "{}", "timeout": "180"}
    for job_id, status in ((b"d\xff", "failed"), (b"q\xff", "queued")):
        redis_client.hset(b"rq:job:" + job_id, mapping=fields)
        redis_client.hset(b"rq:job:" + job_id, "status", status)
    redis_client.zadd("rq:failed:high", {b"d\xff": 4e9})
    redis_client.rpush("rq:queue:high", b"q\xff")
    dead, waits = "d\udcff", "q\udcff"
    assert {job.id for job in client.jobs().items} == {dead, waits}
    assert [letter.id for letter in client.dead_letters.list().items] == [dead]
    assert [group.example_id for group in client.dead_letters.groups()] == [dead]
    assert [look.error for look in client.preview("retry", [dead])] == [None]
    assert client.dead_letters.archive(tmp_path / "dead.jsonl").failed == [(dead, "unreadable")]
    assert client.bulk("delete", [dead]).done == 1
    assert client.queues.drain("high").done == 1
    assert redis_client.keys("rq:job:*") == []


def test_text_that_nothing_can_hold_is_refused(client: Client, settings: jobq.Settings) -> None:
    half = "\ud83d"
    with pytest.raises(TextError, match=r"'down \\ud83d' holds half a character"):
        client.queues.pause("high", reason=f"down {half}")
    assert not client.queues.get("high").paused
    with pytest.raises(TextError):
        client.dead_letters.groups(task=half)
    for options in ({"tags": (half,)}, {"correlation_id": half}, {"tags": ("\udcff",)}):
        with pytest.raises(ConfigError, match="text"):
            plain.options(client=client, **options)

    async def twin() -> None:
        async with jobq.AsyncClient(settings) as made:
            with pytest.raises(TextError):
                await made.queues.pause("high", reason=half)
            assert not (await made.queues.get("high")).paused

    asyncio.run(twin())


def test_a_timeout_longer_than_any_clock_is_refused(client: Client) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        plain.options(client=client, timeout=1e11)
