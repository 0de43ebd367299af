"""Who reads damaged hashes: each look answers, or says in a word of ours why it cannot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

import jobq
from jobq import Client
from jobq.errors import ConfigError
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


def test_a_timeout_longer_than_any_clock_is_refused(client: Client) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        plain.options(client=client, timeout=1e11)
