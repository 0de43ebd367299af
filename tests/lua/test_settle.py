"""settle.lua: each outcome, the fence, the counters."""

from __future__ import annotations

import dataclasses

import pytest

from jobq import calls
from jobq.steps import Outcome
from tests.lua.conftest import T0, Bench

S0 = T0 // 1000


def test_success(bench: Bench) -> None:
    job = bench.running("a")
    assert bench.settle(job, kind="succeeded", spends=True, keep_s=100) == ["ok"]
    found = bench.hash("a")
    assert (found["status"], found["attempts"], found["st"]) == ("finished", "1", "ex.1")
    assert found["ended_at"].startswith("2027")
    assert bench.zset("rq:finished:q") == {"a": S0 + 100}
    assert 95 <= bench.redis.ttl("rq:job:a") <= 100
    assert not bench.redis.exists("rq:results:a")


def test_success_with_a_result(bench: Bench) -> None:
    bench.settle(bench.running("a"), kind="succeeded", result=b"MQ==", worker="w1", keep_s=100)
    ((_, entry),) = bench.redis.xrange("rq:results:a")
    assert entry == {b"type": b"1", b"worker_name": b"w1", b"return_value": b"MQ=="}
    assert 0 < bench.redis.ttl("rq:results:a") <= 100


def test_a_repeat_changes_nothing(bench: Bench) -> None:
    job = bench.running("a")
    options = {"kind": "retry", "spends": True, "delay_ms": 10, "record": b"{}", "counters": ("r",)}
    bench.settle(job, **options)  # type: ignore[arg-type]
    before = bench.snapshot()
    assert bench.settle(job, **options) == ["already"]  # type: ignore[arg-type]
    assert bench.snapshot() == before


def test_the_same_outcome_twice_in_one_call(bench: Bench) -> None:
    job = bench.running("a")
    assert bench.settle(job, job, kind="succeeded", counters=("o",)) == ["ok", "already"]
    (key,) = bench.redis.keys("jobq:n:*")
    assert bench.redis.hget(key, "o") == b"1"


def test_a_lost_lease_changes_nothing(bench: Bench) -> None:
    job = bench.running("a")
    zombie = dataclasses.replace(job, token="zz.9")
    before = bench.snapshot()
    assert bench.settle(zombie, kind="dead", counters=("d",), record=b"{}") == ["lost"]
    assert bench.snapshot() == before


def test_an_expired_lease_that_nobody_rescued_still_settles(bench: Bench) -> None:
    job = bench.running("a")
    bench.now += 60_000
    assert bench.settle(job, kind="succeeded") == ["ok"]


def test_a_deleted_job_is_gone_and_stays_gone(bench: Bench) -> None:
    job = bench.running("a")
    bench.redis.delete("rq:job:a")
    assert bench.settle(job, kind="succeeded") == ["gone"]
    assert bench.settle(job, kind="succeeded") == ["gone"]
    assert not bench.redis.exists("rq:job:a", "jobq:leases", "rq:wip:q", "rq:finished:q")


@pytest.mark.parametrize(("status", "word"), [("canceled", "cancelled"), ("queued", "lost")])
def test_an_rq_tool_moved_it(bench: Bench, status: str, word: str) -> None:
    job = bench.running("a")
    bench.redis.hset("rq:job:a", "status", status)
    if status == "canceled":
        bench.redis.zadd("rq:canceled:q", {"a": S0})
    else:
        bench.redis.rpush("rq:queue:q", "a")
    assert bench.settle(job, kind="succeeded", counters=("o",)) == [word]
    assert bench.status("a") == status
    assert not bench.redis.exists("jobq:leases", "rq:wip:q")
    assert not bench.redis.keys("jobq:n:*")


def test_a_hash_of_the_wrong_type_is_set_aside_and_the_rest_goes_on(
    bench: Bench, request: pytest.FixtureRequest
) -> None:
    bench.enqueue("a", "b")
    a, b = bench.claim().jobs
    bench.redis.delete("rq:job:a")
    bench.redis.set("rq:job:a", "x")
    assert bench.settle(a, b, kind="succeeded") == ["gone", "ok"]
    assert set(bench.zset("jobq:quarantine")) == {"a"}
    assert not bench.redis.exists("jobq:leases")


def test_retry_then_success(bench: Bench) -> None:
    job = bench.running("a")
    bench.settle(job, kind="retry", spends=True, delay_ms=2500, fingerprint="f1", record=b'{"n":1}')
    found = bench.hash("a")
    assert (found["status"], found["attempts"], found["fp"]) == ("scheduled", "1", "f1")
    assert found["q"] == str(T0 + 2500)
    assert bench.zset("rq:scheduled:q") == {"a": (T0 + 2500) / 1000}
    assert bench.zset("jobq:retrying:q") == {"a": T0 + 2500}
    bench.now += 2500
    assert bench.run(calls.promote(bench.keys, ["q"], now_ms=bench.now)).count == 1
    assert not bench.redis.exists("jobq:retrying:q")
    (job,) = bench.claim().jobs
    assert job.attempts == 1
    bench.settle(job, kind="succeeded", spends=True, keep_s=100)
    assert bench.redis.lrange("jobq:attempts:a", 0, -1) == [b'{"n":1}']
    assert 0 < bench.redis.ttl("jobq:attempts:a") <= 100


def test_twenty_attempts_are_kept(bench: Bench) -> None:
    job = bench.running("a")
    for number in range(25):
        bench.settle(job, kind="retry", spends=True, record=b"%d" % number)
        bench.run(calls.promote(bench.keys, ["q"], now_ms=bench.now))
        (job,) = bench.claim().jobs
    kept = bench.redis.lrange("jobq:attempts:a", 0, -1)
    assert (len(kept), kept[0], kept[-1]) == (20, b"5", b"24")


def test_dead(bench: Bench) -> None:
    job = bench.running("a")
    bench.settle(job, kind="dead", spends=True, reason="exhausted", fingerprint="f", exc=b"eA==", keep_s=500)
    found = bench.hash("a")
    assert (found["status"], found["why"], found["fp"], found["attempts"]) == (
        "failed",
        "exhausted",
        "f",
        "1",
    )
    assert bench.zset("rq:failed:q") == {"a": S0 + 500}
    assert bench.redis.xrange("rq:results:a")[0][1][b"type"] == b"2"


def test_snooze_spends_nothing(bench: Bench) -> None:
    bench.settle(bench.running("a"), kind="snooze", delay_ms=1000)
    assert "attempts" not in bench.hash("a")
    assert bench.zset("jobq:retrying:q") == {}


def test_hand_back_goes_to_the_front_in_order(bench: Bench) -> None:
    bench.enqueue(*"abcd")
    jobs = bench.claim(3).jobs
    assert bench.settle(*jobs, kind="hand_back") == ["ok"] * 3
    assert bench.waiting() == ["a", "b", "c", "d"]
    found = bench.hash("a")
    assert not {"attempts", "worker_name", "started_at"} & set(found)
    assert found["q"] == str(T0)


def test_interrupted_counts_apart_from_attempts(bench: Bench) -> None:
    bench.settle(bench.running("a"), kind="interrupted")
    (job,) = bench.claim().jobs
    assert (job.lost, job.crashes, job.attempts) == (1, 0, 0)
    bench.settle(job, kind="interrupted", crash=True)
    (job,) = bench.claim().jobs
    assert (job.lost, job.crashes) == (1, 1)


def test_poison_only_by_the_rule(bench: Bench) -> None:
    bench.settle(bench.running("a"), kind="interrupted", crash=True, alone=True)
    assert bench.status("a") == "queued"  # the first crash
    bench.settle(bench.claim().jobs[0], kind="interrupted", crash=True)
    assert bench.status("a") == "queued"  # the second, but not alone
    third = bench.claim().jobs[0]
    words = bench.settle(third, kind="interrupted", crash=True, alone=True, keep_s=99, repeats=2)
    assert words == ["dead"]
    assert (bench.status("a"), bench.hash("a")["why"]) == ("failed", "poison")
    assert "attempts" not in bench.hash("a")


def test_lost_six_times_is_poison(bench: Bench) -> None:
    job = bench.running("a")
    for _ in range(5):
        assert bench.settle(job, kind="interrupted") == ["ok"]
        (job,) = bench.claim().jobs
    assert bench.settle(job, kind="interrupted", repeats=2) == ["dead"]
    assert (bench.status("a"), bench.hash("a")["why"]) == ("failed", "poison")


@pytest.mark.parametrize("kind", ["retry", "dead", "snooze", "park", "hand_back", "interrupted"])
def test_a_cancel_request_turns_all_but_success(bench: Bench, kind: str) -> None:
    job = bench.running("a")
    assert bench.run(calls.cancel(bench.keys, "a", now_ms=T0), repeats=2) == "requested"
    assert bench.settle(job, kind=kind, bucket="b", reason="r") == ["cancelled"]
    assert bench.status("a") == "canceled"
    assert not bench.redis.exists("jobq:cancels", "jobq:parked:q")


def test_success_stays_success(bench: Bench) -> None:
    job = bench.running("a")
    bench.run(calls.cancel(bench.keys, "a"))
    assert bench.settle(job, kind="succeeded") == ["ok"]
    assert bench.status("a") == "finished"
    assert not bench.redis.exists("jobq:cancels")


def test_counters_count_once_and_expire(bench: Bench) -> None:
    bench.enqueue(*"abc")
    a, b, c = bench.claim().jobs
    bench.settle(a, b, kind="succeeded", counters=("o:t.x", "w3"))
    bench.settle(a, c, kind="succeeded", counters=("o:t.x",))
    key = f"jobq:n:q:{S0 // 60}"
    assert bench.redis.hgetall(key) == {b"t": b"1", b"o:t.x": b"3", b"w3": b"2"}
    assert 93_000 < bench.redis.ttl(key) <= 93_600


def test_waiters_and_children_are_told(bench: Bench) -> None:
    jobs = [bench.running(job_id) for job_id in ("a", "b")]
    bench.redis.set("jobq:wait:a", 1)
    bench.redis.sadd("rq:job:a:dependents", "c")
    bench.settle(*jobs, kind="succeeded")
    assert bench.redis.lrange("jobq:done:a", 0, -1) == [b"succeeded"]
    assert 0 < bench.redis.ttl("jobq:done:a") <= 60
    assert bench.zset("jobq:after") == {"a": T0}
    assert bench.redis.ttl("rq:job:a:dependents") > 0
    assert not bench.redis.exists("jobq:done:b")


def test_a_hundred_in_one_call(bench: Bench) -> None:
    bench.enqueue(*[f"j{i}" for i in range(100)])
    jobs = bench.claim(100).jobs
    many = tuple(f"c{i}" for i in range(5))
    assert bench.settle(*jobs, kind="dead", record=b"{}", exc=b"x", counters=many) == ["ok"] * 100
    with pytest.raises(ValueError, match="at most 100"):
        calls.settle(bench.keys, "q", [Outcome(job_id="x", token="t", kind="dead")] * 101, "")


def test_commands_per_job(real: Bench) -> None:
    real.enqueue(*[f"j{i}" for i in range(20)])
    counters = ("o:t.x", "w1")
    real.settle(*real.claim(10).jobs, kind="succeeded", spends=True, counters=counters)
    real.redis.config_resetstat()
    claim = real.claim(10)
    claimed = real.redis.info("commandstats")
    real.settle(*claim.jobs, kind="succeeded", spends=True, counters=counters)
    total = {name: entry["calls"] for name, entry in real.redis.info("commandstats").items()}
    for name in ("cmdstat_config|resetstat", "cmdstat_info"):
        total.pop(name, None)
        claimed.pop(name, None)
    assert sum(entry["calls"] for entry in claimed.values()) <= 10 + 2 * 10
    assert sum(total.values()) <= 8 * 10, total


@pytest.mark.parametrize("mark", ["r", "d", "o"])
def test_what_a_job_becomes_is_counted_and_not_what_its_worker_took_it_for(bench: Bench, mark: str) -> None:
    asked = bench.running("asked")
    bench.redis.hset("rq:job:asked", "cx", "1")
    kind = {"r": "retry", "d": "dead", "o": "interrupted"}[mark]
    assert bench.settle(asked, kind=kind, counters=(f"{mark}:t.x", "w:3")) == ["cancelled"]
    poison = bench.running("poison")
    bench.redis.hset("rq:job:poison", "lost", "5")
    bench.settle(poison, kind="interrupted", counters=("o:t.x", "w:3"))
    (key,) = bench.redis.keys("jobq:n:*")
    assert bench.redis.hgetall(key) == {b"t": b"1", b"c:t.x": b"1", b"d:t.x": b"1", b"w:3": b"2"}


def test_a_repeat_says_again_that_the_job_was_cancelled(bench: Bench) -> None:
    job = bench.running("a")
    bench.redis.hset("rq:job:a", "cx", "1")
    assert bench.settle(job, kind="retry", repeats=3) == ["cancelled"]
    own = bench.running("b")
    assert bench.settle(own, kind="cancelled", repeats=2) == ["already"]
