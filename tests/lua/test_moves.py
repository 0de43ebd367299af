"""The steps beside a job's usual path: promote, cancel, withdraw, delete, replay, unpark, release, prune, workers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from jobq import calls
from jobq.registration import register_worker, unregister_worker
from jobq.rq_bridge import iso
from tests.lua.conftest import T0, Bench

S0 = T0 // 1000
F = {"dedup_key": "t.x:k", "dedup_mode": "f"}


def promote(bench: Bench, *queues: str, **options: Any) -> Any:
    return bench.run(calls.promote(bench.keys, queues or ("q",), now_ms=bench.now, **options))


def cancel(bench: Bench, job_id: str, repeats: int = 1) -> str:
    word: str = bench.run(calls.cancel(bench.keys, job_id, now_ms=bench.now), repeats=repeats)
    return word


def park(bench: Bench, job_id: str) -> None:
    bench.settle(bench.running(job_id), kind="park", reason="r", bucket="t.new")


# --------------------------------------------------------------------------- promote


def test_nothing_starts_before_its_time(bench: Bench) -> None:
    bench.enqueue("a", delay_ms=1001)
    bench.now += 1000
    answer = promote(bench)
    assert (answer.count, answer.next_due_ms, bench.claim().jobs) == (0, T0 + 1001, [])
    bench.now += 1
    answer = promote(bench)
    assert (answer.count, answer.next_due_ms) == (1, None)
    bench.now += 500
    assert bench.claim().jobs[0].queued_ms == T0 + 1001  # lateness counts as waiting


def test_promote_in_order_over_several_queues(bench: Bench) -> None:
    bench.enqueue("a", delay_ms=20)
    bench.enqueue("b", delay_ms=10)
    bench.enqueue("c", delay_ms=5, queue="q2")
    bench.enqueue("d", delay_ms=70_000, queue="q2")
    bench.now += 30
    answer = promote(bench, "q", "q2", "empty")
    assert (answer.count, answer.next_due_ms) == (3, T0 + 70_000)
    assert (bench.waiting(), bench.waiting("q2")) == (["b", "a"], ["c"])


def test_promote_a_hundred_at_a_time(bench: Bench) -> None:
    for start in (0, 100):
        bench.enqueue(*[f"j{i}" for i in range(start, start + 100)], delay_ms=10)
    bench.now += 10
    assert [promote(bench).count for _ in range(3)] == [100, 100, 0]


def test_promote_drops_what_is_not_scheduled(bench: Bench) -> None:
    bench.enqueue("a", "b", "c", delay_ms=10)
    bench.redis.delete("rq:job:a", "rq:job:b")
    bench.redis.set("rq:job:b", "x")
    bench.now += 10
    assert promote(bench).count == 1
    assert bench.waiting() == ["c"]
    assert not bench.redis.exists("rq:scheduled:q")
    assert set(bench.zset("jobq:quarantine")) == {"b"}


def test_promote_leaves_the_mark_of_plain_rq(bench: Bench) -> None:
    bench.redis.hset("rq:job:a", mapping={"status": "scheduled", "data": "x", "origin": "q"})
    bench.redis.zadd("rq:scheduled:q", {"a": S0})
    assert promote(bench).count == 1
    assert "q" not in bench.hash("a")


# --------------------------------------------------------------------------- cancel, withdraw, delete


@pytest.mark.parametrize("where", ["queued", "scheduled", "retrying", "parked"])
def test_cancel_a_waiting_job(bench: Bench, where: str) -> None:
    if where == "parked":
        park(bench, "a")
    elif where == "retrying":
        bench.settle(bench.running("a"), kind="retry", spends=True, delay_ms=50)
    else:
        bench.enqueue("a", delay_ms=50 if where == "scheduled" else 0, **F)
    bench.redis.set("jobq:wait:a", 1)
    assert cancel(bench, "a", repeats=2) == "cancelled"
    assert bench.status("a") == "canceled"
    assert bench.redis.lrange("jobq:done:a", 0, -1) == [b"cancelled"]
    assert bench.redis.ttl("rq:job:a") > 0
    assert not bench.redis.exists("rq:queue:q", "rq:scheduled:q", "rq:deferred:q", "jobq:retrying:q")
    assert not bench.redis.exists("jobq:dedup:t.x:k", "jobq:parked:q", "jobq:parked:q:t.new", "jobq:q:q")
    bench.now += 100
    assert promote(bench).count == 0
    assert bench.claim(known=["t.new"]).jobs == []


def test_cancel_asks_a_running_job(bench: Bench) -> None:
    bench.running("a")
    assert cancel(bench, "a", repeats=2) == "requested"
    assert bench.redis.smembers("jobq:cancels") == {b"a"}
    assert bench.status("a") == "started"


def test_cancel_what_is_over_or_gone(bench: Bench) -> None:
    bench.ended("a", "succeeded")
    assert cancel(bench, "a") == "finished"
    assert cancel(bench, "b") == "gone"
    bench.redis.set("rq:job:c", "x")
    assert cancel(bench, "c") == "gone"


def test_cancel_in_a_long_list_leaves_the_id_for_claim(bench: Bench) -> None:
    bench.enqueue("a")
    bench.redis.rpush("rq:queue:q", *["x"] * 10_001)
    assert cancel(bench, "a") == "cancelled"
    assert bench.waiting()[0] == "a"
    assert bench.claim(1).jobs == []


def test_withdraw(bench: Bench) -> None:
    def withdraw(job_id: str) -> str:
        word: str = bench.run(calls.withdraw(bench.keys, job_id, now_ms=bench.now), repeats=2)
        return word

    bench.enqueue("a", **F)
    assert withdraw("a") == "withdrawn"
    assert bench.claim().jobs == []
    assert not bench.redis.exists("jobq:dedup:t.x:k")
    bench.running("b")
    assert withdraw("b") == "started"
    bench.ended("c", "succeeded")
    assert withdraw("c") == "finished"
    assert withdraw("d") == "gone"
    assert bench.enqueue("d") == [("mine", "d")]  # the lost command comes after all
    assert bench.claim().jobs == []
    assert 0 < bench.redis.ttl("rq:job:d") <= 86_400


def test_delete(bench: Bench) -> None:
    def delete(job_id: str) -> str:
        word: str = bench.run(calls.delete(bench.keys, job_id))
        return word

    bench.ended("dead", "dead", record=b"{}", exc=b"x")
    park(bench, "parked")
    bench.running("running")
    bench.enqueue("queued", **F)
    bench.enqueue("later", delay_ms=5)
    assert delete("running") == "running"
    for job_id in ("dead", "parked", "queued", "later"):
        assert (delete(job_id), delete(job_id)) == ("deleted", "gone")
    left = {key.decode() for key in bench.redis.keys("*")}
    assert left == {"rq:queues", "rq:job:running", "rq:wip:q", "jobq:leases", "jobq:claim:ex"}


# --------------------------------------------------------------------------- replay


def replay(bench: Bench, *ids: str, **options: Any) -> list[str]:
    words: list[str] = bench.run(calls.replay(bench.keys, ids, now_ms=bench.now, **options))
    return words


def test_replay_as_if_it_had_never_run(bench: Bench) -> None:
    bench.ended("a", "dead", spends=True, reason="exhausted", fingerprint="f", record=b"{}", exc=b"x")
    bench.enqueue("z")
    bench.now += 5000
    assert replay(bench, "a") == ["queued"]
    assert replay(bench, "a") == ["queued"]
    found = bench.hash("a")
    assert (found["status"], found["q"]) == ("queued", str(bench.now))
    assert not {"attempts", "why", "fp", "st", "ended_at", "lost", "crashes"} & set(found)
    assert bench.waiting() == ["z", "a"]
    assert (
        bench.redis.ttl("rq:job:a")
        == bench.redis.ttl("jobq:attempts:a")
        == bench.redis.ttl("rq:results:a")
        == -1
    )
    _, job = bench.claim().jobs
    bench.settle(job, kind="succeeded", keep_s=99)
    assert bench.status("a") == "finished"


def test_replay_of_poison_runs_apart(bench: Bench) -> None:
    bench.ended("a", "dead", reason="poison")
    bench.ended("b", "dead", reason="exhausted")
    assert replay(bench, "a", "b") == ["queued", "queued"]
    assert [bench.hash(job_id).get("crashes") for job_id in "ab"] == ["1", None]
    assert [job.id for job in bench.claim(suspects="park").jobs] == ["b"]
    assert bench.hash("a")["park"] == "suspect"


def test_replay_with_a_new_payload(bench: Bench) -> None:
    bench.ended("a")
    assert replay(bench, "a", data={"a": b"new"}) == ["queued"]
    assert bench.claim().jobs[0].data == b"new"


def test_replay_takes_its_key_again_or_says_who_has_it(bench: Bench) -> None:
    bench.enqueue("a", **F)
    bench.settle(bench.claim().jobs[0], kind="dead")
    bench.enqueue("b", **F)
    before = bench.snapshot()
    assert replay(bench, "a") == ["conflict:b"]
    assert bench.snapshot() == before
    bench.settle(bench.claim().jobs[0], kind="succeeded")
    assert replay(bench, "a") == ["queued"]
    assert bench.redis.get("jobq:dedup:t.x:k") == b"f:a"


def test_two_dead_letters_of_one_key(bench: Bench) -> None:
    for job_id in ("a", "b"):
        bench.enqueue(job_id, **F)
        bench.settle(bench.claim().jobs[0], kind="dead")
    assert replay(bench, "a", "b") == ["queued", "conflict:a"]


def test_replay_of_what_it_cannot(bench: Bench) -> None:
    bench.ended("a", "succeeded")
    bench.running("b")
    bench.enqueue("c", delay_ms=5)
    bench.enqueue("d")
    cancel(bench, "d")
    bench.redis.set("rq:job:e", "x")
    assert replay(bench, "a", "b", "c", "d", "e", "f") == [
        "succeeded",
        "running",
        "scheduled",
        "queued",
        "gone",
        "gone",
    ]
    assert "cx" not in bench.hash("d")


# --------------------------------------------------------------------------- unpark, release


def test_unpark(bench: Bench) -> None:
    park(bench, "a")
    park(bench, "b")
    cancel(bench, "b")
    call = calls.unpark(bench.keys, "q", "t.new", now_ms=T0)
    assert [bench.run(call), bench.run(call)] == [1, 0]
    assert bench.waiting() == ["a"]
    assert not bench.redis.exists("jobq:parked:q", "jobq:parked:q:t.new", "jobq:q:q")


def child(bench: Bench, job_id: str, *parents: str, **fields: str) -> None:
    """A child as rq writes it."""
    bench.redis.hset(
        f"rq:job:{job_id}", mapping={"status": "deferred", "data": "x", "origin": "q2", **fields}
    )
    bench.redis.zadd("rq:deferred:q2", {job_id: S0})
    for parent in parents:
        bench.redis.sadd(f"rq:job:{parent}:dependents", job_id)
        bench.redis.sadd(f"rq:job::{job_id}:dependencies", parent)


@pytest.mark.covers("C-06")
def test_children_wait_for_all_their_parents(bench: Bench) -> None:
    bench.enqueue("a", "b")
    a, b = bench.claim().jobs
    child(bench, "c", "a", "b")
    child(bench, "d", "a")
    release = calls.release(bench.keys, now_ms=T0)
    assert bench.run(release) == 0
    bench.settle(a, kind="succeeded")
    bench.run(release)
    assert (bench.waiting("q2"), bench.status("c")) == (["d"], "deferred")
    bench.settle(b, kind="succeeded")
    bench.run(release)
    assert bench.waiting("q2") == ["d", "c"]
    assert bench.run(release) == 0
    assert not bench.redis.exists("jobq:after")


def test_children_of_a_dead_parent(bench: Bench) -> None:
    job = bench.running("a")
    child(bench, "c", "a")
    child(bench, "d", "a", allow_dependency_failures="1")
    bench.settle(job, kind="dead")
    bench.run(calls.release(bench.keys, now_ms=T0))
    assert (bench.waiting("q2"), bench.status("c")) == (["d"], "deferred")
    replay(bench, "a")
    bench.settle(bench.claim().jobs[0], kind="succeeded")
    bench.run(calls.release(bench.keys, now_ms=T0))
    assert bench.waiting("q2") == ["d", "c"]


def test_a_full_step_leaves_the_next_parent_for_later(bench: Bench) -> None:
    bench.enqueue("a", "b")
    a, b = bench.claim().jobs
    for number in range(100):
        child(bench, f"c{number}", "a")
    child(bench, "late", "b", allow_dependency_failures="1")
    bench.settle(a, kind="succeeded")
    bench.settle(b, kind="dead")
    while bench.run(calls.release(bench.keys, now_ms=T0)):
        pass
    assert len(bench.waiting("q2")) == 101


def test_many_children_in_bounded_steps(bench: Bench) -> None:
    job = bench.running("a")
    for number in range(250):
        child(bench, f"c{number}", "a")
    bench.settle(job, kind="succeeded")
    steps = 0
    while bench.run(calls.release(bench.keys, now_ms=T0)):
        steps += 1
    assert (len(bench.waiting("q2")), steps) == (250, 3)


# --------------------------------------------------------------------------- prune


def prune(bench: Bench, **options: Any) -> int:
    count: int = bench.run(calls.prune(bench.keys, "q", now_ms=bench.now, **options))
    return count


@pytest.mark.covers("T-02", "T-03", "T-07")
def test_prune_by_age(bench: Bench) -> None:
    bench.ended("a", "succeeded", keep_s=100, result=b"x")
    bench.ended("b", "dead", keep_s=200, record=b"{}", exc=b"x")
    bench.enqueue("c", **F)
    cancel(bench, "c")
    bench.now += 99_000
    assert prune(bench) == 0
    bench.now += 1_000
    assert prune(bench) == 1
    bench.now += 100_000
    assert prune(bench, keep_cancelled_s=200) == 2
    left = {key.decode() for key in bench.redis.keys("*")}
    assert {key for key in left if not key.startswith("jobq:claim")} == {"rq:queues"}


@pytest.mark.covers("T-02", "T-03", "T-07")
def test_prune_by_count_spares_the_last_minute(bench: Bench) -> None:
    bench.enqueue(*"abcde")
    ended = dict.fromkeys("abcde", T0 - 90_000) | {"e": T0}
    for job in bench.claim().jobs:
        bench.settle(job, kind="succeeded")
        bench.redis.hset(f"rq:job:{job.id}", "ended_at", iso(ended[job.id]))
    assert prune(bench, keep_succeeded=3) == 2
    assert sorted(bench.zset("rq:finished:q")) == ["c", "d", "e"]
    assert prune(bench, keep_succeeded=0) == 2
    assert sorted(bench.zset("rq:finished:q")) == ["e"]


@pytest.mark.covers("T-02", "T-03", "T-07")
def test_cancelled_jobs_are_kept_up_to_a_count_too(bench: Bench) -> None:
    for name in "abcde":
        bench.enqueue(name)
        cancel(bench, name)
        bench.now += 1_000
    assert prune(bench, keep_cancelled=0) == 0, "each lives for a minute"
    bench.now += 58_000
    assert prune(bench) == 0
    assert prune(bench, keep_cancelled=3) == 2
    assert prune(bench, keep_cancelled=3) == 0
    assert sorted(bench.zset("rq:canceled:q")) == ["c", "d", "e"]
    assert not bench.redis.exists("rq:job:a", "rq:job:b")


def test_prune_leaves_what_an_rq_tool_requeued(bench: Bench) -> None:
    bench.ended("a", "dead", keep_s=60)
    bench.redis.hset("rq:job:a", "status", "queued")
    bench.redis.rpush("rq:queue:q", "a")
    bench.now += 61_000
    assert prune(bench) == 1
    assert [job.id for job in bench.claim().jobs] == ["a"]


def test_prune_sweeps_the_retrying(bench: Bench) -> None:
    bench.redis.zadd("jobq:retrying:q", {"gone": T0 - 1})
    bench.settle(bench.running("a"), kind="retry", spends=True)
    prune(bench)
    assert set(bench.zset("jobq:retrying:q")) == {"a"}


# --------------------------------------------------------------------------- workers


def test_workers_come_and_go(bench: Bench) -> None:
    now = time.time_ns() // 1_000_000
    worker = {"slots": 10, "busy": 1, "tasks": ("t.x",), "host": "h", "pid": 7, "state": "draining"}
    call = register_worker(bench.keys, name="w1", queues=("q", "q2"), birth_ms=now, now_ms=now, **worker)  # type: ignore[arg-type]
    bench.run(call, repeats=2)
    assert bench.redis.smembers("rq:workers") == {b"rq:worker:w1"}
    assert bench.redis.hget("rq:worker:w1", "queues") == b"q,q2"
    assert bench.redis.hget("rq:worker:w1", "state") == b"busy"
    assert bench.redis.hget("jobq:worker:w1", "state") == b"draining"
    assert 0 < bench.redis.ttl("rq:worker:w1") <= 60
    assert bench.redis.get("rq:scheduler-lock:q2") == b"jobq"
    assert bench.redis.smembers("rq:queues") == {b"rq:queue:q", b"rq:queue:q2"}
    bench.run(unregister_worker(bench.keys, "w1", ("q", "q2")), repeats=2)
    assert not bench.redis.exists("rq:workers", "rq:workers:q", "rq:worker:w1", "jobq:worker:w1")


def test_the_last_claim(bench: Bench) -> None:
    assert bench.run(calls.last_claim(bench.keys, "ex")) == []  # type: ignore[arg-type]
    bench.enqueue("a", "b")
    bench.claim()
    assert bench.run(calls.last_claim(bench.keys, "ex")) == [("a", "ex.1"), ("b", "ex.1")]  # type: ignore[arg-type]
