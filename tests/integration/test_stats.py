"""Statistics and health: the document of the contract, in a few pipelines, whatever the keys hold."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from jobq import histogram
from jobq.client import Client
from jobq.health import Thresholds, judge
from jobq.registration import register_worker
from jobq.stats import Counters, QueueStats, RedisStats, Stats
from jobq.tasks import Registry, task
from tests.support.hand import Hand

registry = Registry()

KEYS = {
    "queued", "scheduled", "retrying", "deferred", "running", "succeeded", "dead", "cancelled", "paused", "workers",
    "slots", "busy", "oldest_queued_s", "wait_p50_s", "wait_p95_s", "wait_p99_s", "target_s", "sla_met",
    "throughput_per_s", "failed_attempts",
}  # fmt: skip


@task("s.add", registry=registry)
def add(a: int) -> int:
    return a


@pytest.fixture
def hand(client: Client) -> Hand:
    return Hand(client)


def _register(client: Client, name: str = "w1", **more: object) -> None:
    fields = {
        "queues": ["medium"], "slots": 5, "busy": 2, "tasks": ["s.add"], "host": "h", "pid": 7, "state": "busy",
        "birth_ms": 0, "now_ms": 1_000, **more,
    }  # fmt: skip
    client.run(register_worker(client.keys, name=name, **fields))  # type: ignore[arg-type]


def test_the_document_is_the_contracts(client: Client) -> None:
    document = json.loads(json.dumps(client.stats().to_dict()))
    assert document.keys() == {"generated_at", "queues", "totals", "redis"}
    assert document["generated_at"].endswith("Z")
    assert list(document["queues"]) == ["critical", "high", "medium", "low", "batch"]
    for queue in (*document["queues"].values(), document["totals"]):
        assert queue.keys() >= KEYS
    assert document["redis"].keys() == {"used_memory", "maxmemory", "durability"}
    assert document["redis"]["used_memory"] > 0
    assert document["redis"]["durability"] in ("none", "snapshot", "aof-everysec", "aof-always")
    assert document["queues"]["critical"]["target_s"] == 1.0
    assert document["queues"]["batch"]["target_s"] is None


def test_every_state_is_counted(client: Client, hand: Hand) -> None:
    bound = add.options(client=client)
    bound.enqueue_many({"a": n} for n in range(6))
    hand.succeed()
    hand.kill()
    (retried,) = hand.claim(n=1)
    hand.settle(retried, "retry", spends=True, delay_ms=60_000, counters=("r:s.add",))
    (parked,) = hand.claim(n=1)
    hand.settle(parked, "park", reason="unknown_task", bucket="s.add")
    hand.claim(n=1)
    add.options(client=client, delay=60).enqueue(a=1)
    bound.enqueue(a=9).cancel()
    found = client.stats().queues["medium"]
    names = (
        "queued", "scheduled", "retrying", "deferred", "parked", "running", "succeeded", "dead", "cancelled",
        "failed_attempts",
    )  # fmt: skip
    counts = {name: getattr(found, name) for name in names}
    assert counts == {
        "queued": 1, "scheduled": 1, "retrying": 1, "deferred": 0, "parked": 1, "running": 1, "succeeded": 1,
        "dead": 1, "cancelled": 1, "failed_attempts": 2,
    }  # fmt: skip
    assert found.sla_met == 0.5
    assert client.stats().totals.queued == 1


def test_waits_come_from_the_counters(client: Client, hand: Hand) -> None:
    add.options(client=client).enqueue_many({"a": n} for n in range(10))
    for wait_ms in (1, 1, 1, 1, 1, 1, 1, 1, 1, 900):
        hand.succeed(wait_ms=wait_ms)
    found = client.stats(queue="medium").queues["medium"]
    assert found.wait_p50_s == pytest.approx(0.001, rel=0.3)
    assert found.wait_p99_s == pytest.approx(0.9, rel=0.3)
    assert found.throughput_per_s > 0
    assert found.counters.by_task == {"s.add": {"s": 10}}


def test_the_oldest_is_as_old_as_it_has_been_due(client: Client, redis_client: redis.Redis) -> None:
    job = add.options(client=client).enqueue(a=1)
    add.options(client=client).enqueue(a=2)
    now = redis_client.time()
    redis_client.hset(f"rq:job:{job.id}", "q", now[0] * 1000 - 90_000)
    assert 90 <= client.stats().queues["medium"].oldest_queued_s < 100
    assert client.stats().totals.oldest_queued_s >= 90


def test_older_minutes_count_in_a_longer_window(client: Client, redis_client: redis.Redis) -> None:
    minute = redis_client.time()[0] // 60
    redis_client.hset(
        f"jobq:n:medium:{minute - 30}", mapping={"s:s.add": 60, f"w:{histogram.bucket(10)}": 60}
    )
    assert client.stats().queues["medium"].throughput_per_s == 0
    hour = client.stats(since=timedelta(hours=1)).queues["medium"]
    assert hour.counters.total("s") == 60
    assert client.stats(since=timedelta(hours=24)).queues["medium"].counters.total("s") == 60
    with pytest.raises(ValueError, match="24 h"):
        client.stats(since=timedelta(hours=25))


def test_three_pipelines_however_many_queues(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(30):
        add.options(client=client, queue=f"q{n}").enqueue(a=1)
    _register(client)
    sent: list[object] = []
    store = client._links.store("command")
    original = store._send

    def counted(step: Any) -> Any:
        sent.append(step)
        return original(step)

    monkeypatch.setattr(store, "_send", counted)
    stats = client.stats()
    assert len(stats.queues) == 35
    assert len(sent) == 3  # the third: since when the next jobs wait


def test_workers(client: Client, redis_client: redis.Redis) -> None:
    _register(client)
    _register(client, "w2", queues=["medium", "high"], slots=10, busy=0, state="idle")
    redis_client.sadd("rq:workers", "rq:worker:stock", "rq:worker:dead")
    redis_client.hset(
        "rq:worker:stock", mapping={"queues": "medium", "state": "busy", "hostname": "h2", "pid": "9"}
    )
    ours, second, stock = sorted(
        client.workers.list(), key=lambda worker: ("w1", "w2", "stock").index(worker.name)
    )
    assert (ours.kind, ours.slots, ours.busy, ours.tasks, ours.pid) == ("jobq", 5, 2, ("s.add",), 7)
    assert second.queues == ("medium", "high")
    assert (stock.kind, stock.slots, stock.busy, stock.host) == ("rq", 1, 1, "h2")
    stats = client.stats()
    medium = stats.queues["medium"]
    assert (medium.workers, medium.slots, medium.busy) == (3, 16, 3)
    assert (stats.totals.workers, stats.totals.slots) == (3, 16)


def test_keys_of_the_wrong_type_are_reported(client: Client, redis_client: redis.Redis) -> None:
    redis_client.set("rq:queue:medium", "x")
    redis_client.set("rq:failed:medium", "x")
    redis_client.set("jobq:q:high", "x")
    redis_client.set("rq:workers", "x")
    redis_client.set("jobq:leases", "x")
    minute = redis_client.time()[0] // 60
    redis_client.set(f"jobq:n:medium:{minute}", "x")
    redis_client.hset(f"jobq:n:high:{minute}", mapping={"s:a": "many", "w:x": "1", "w:9999": "2", "?": "1"})
    stats = client.stats()
    assert set(stats.queues["medium"].unreadable) == {"rq:queue:medium", "rq:failed:medium"}
    assert any("wrong type" in issue for issue in client.health().issues)


def test_a_paused_queue_is_paused(client: Client) -> None:
    client.queues.pause("medium")
    assert client.stats().queues["medium"].paused
    assert client.stats().totals.paused


# --------------------------------------------------------------------------- health


def _stats(**queue: object) -> Stats:
    found = replace(QueueStats(workers=1), **queue)  # type: ignore[arg-type]
    return Stats(generated_at=datetime.now(UTC), queues={"medium": found}, totals=found, redis=RedisStats())


def test_a_quiet_system_is_healthy(client: Client) -> None:
    health = client.health()
    assert (health.status, health.issues, health.ok) == ("ok", (), True)


@pytest.mark.parametrize(
    ("queue", "status", "words"),
    [
        ({"dead": 10, "queued": 100}, "ok", ""),
        ({"dead": 11}, "warning", "11 dead letters (medium 11)"),
        ({"dead": 150}, "unhealthy", "150 dead letters"),
        ({"queued": 101}, "warning", "101 jobs waiting"),
        ({"queued": 1_200}, "unhealthy", "1,200 jobs waiting"),
        ({"queued": 1, "workers": 0}, "unhealthy", "no worker serves it"),
        ({"running": 1, "workers": 0}, "unhealthy", "no live worker"),
        ({"queued": 1, "paused": True}, "warning", "paused"),
        ({"queued": 1, "oldest_queued_s": 3.0, "target_s": 1.0}, "warning", "has waited 3.0 s, target 1 s"),
        (
            {"counters": Counters(met=9, missed=1), "target_s": 1.0},
            "warning",
            "90.0% of jobs started within 1 s",
        ),
        ({"parked": 2}, "warning", "2 jobs parked"),
        (
            {"queued": 1, "held": "limited by hand to 1/h"},
            "warning",
            "is limited by hand to 1/h, with 1 job",
        ),
        ({"queued": 0, "held": "limited by hand to 1/h"}, "ok", ""),
        (
            {"queued": 1, "oldest_queued_s": 3.0, "target_s": 1.0, "limits": "1/h"},
            "warning",
            "target 1 s; it is limited to 1/h",
        ),
    ],
)
def test_thresholds(queue: dict[str, object], status: str, words: str) -> None:
    health = judge(_stats(**queue))
    assert health.status == status
    assert any(words in issue for issue in health.issues) or not words
    assert health.ok is (status != "unhealthy")


def test_a_limit_set_by_hand_is_named_before_its_jobs_are_late(client: Client) -> None:
    add.options(client=client).enqueue(a=1)
    client.queues.limit("medium", rate="1/h", concurrency=3)
    assert client.stats().queues["medium"].held == "limited by hand to 1/h and 3 at once"
    assert any("limited by hand to 1/h" in issue for issue in client.health().issues)
    client.queues.reset_limit("medium")
    assert client.stats().queues["medium"].held == ""


def test_a_worker_that_has_fallen_silent_is_named_while_it_still_counts_as_alive(
    client: Client, redis_client: redis.Redis
) -> None:
    now_ms = redis_client.time()[0] * 1000
    _register(client, "fresh", worker="fresh", now_ms=now_ms - 9_000)
    _register(client, "old-high", worker="old", now_ms=now_ms - 40_000)
    _register(client, "old-low", worker="old", now_ms=now_ms - 40_000)
    issues = client.health().issues
    assert len(issues) == 1
    assert issues[0].startswith("worker old has not been heard of for 4")


def test_thresholds_can_be_set() -> None:
    assert judge(_stats(dead=3), Thresholds(dead_warn=1, dead_bad=2)).status == "unhealthy"


def test_leases_that_nobody_rescues_are_an_issue(client: Client, redis_client: redis.Redis) -> None:
    redis_client.zadd("jobq:leases", {"j:t": 1_000})
    assert client.health().status == "unhealthy"


def test_full_memory_is_an_issue() -> None:
    full = replace(_stats(), redis=RedisStats(used_memory=95, maxmemory=100))
    assert judge(full).issues == ("Redis uses 95% of its maxmemory",)
