"""heartbeat.lua, rescue.lua, progress.lua: who owns a job, and who takes it over."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from jobq import calls
from jobq.job import Attempt
from jobq.records import decode_attempt, encode_attempt
from tests.lua.conftest import T0, Bench

LEASE = 12_000


def rescue(bench: Bench, **options: Any) -> Any:
    return bench.run(calls.rescue(bench.keys, LEASE, now_ms=bench.now, **options))


def expire(bench: Bench) -> Any:
    """Passes every half second, until all leases of now have expired; the last one's answer."""
    answer = rescue(bench)
    for _ in range(25):
        bench.now += 500
        answer = rescue(bench)
        if answer.moved:
            return answer
    return answer


def beat(bench: Bench, *members: str) -> Any:
    return bench.run(calls.heartbeat(bench.keys, members, LEASE, now_ms=bench.now))


def test_heartbeat(bench: Bench) -> None:
    bench.enqueue("a", "b")
    bench.claim()
    bench.now += 4_000
    answer = beat(bench, "a:ex.1", "b:ex.1", "c:ex.1")
    assert (answer.lost, answer.cancelled) == (["c:ex.1"], [])
    assert bench.zset("jobq:leases") == {"a:ex.1": T0 + 16_000, "b:ex.1": T0 + 16_000}
    bench.run(calls.cancel(bench.keys, "b"))
    assert beat(bench, "a:ex.1", "b:ex.1").cancelled == ["b"]


def test_heartbeat_never_shortens_nor_revives(bench: Bench) -> None:
    bench.running("a")
    bench.now -= 5_000
    beat(bench, "a:ex.1")
    assert bench.zset("jobq:leases") == {"a:ex.1": T0 + LEASE}
    bench.redis.delete("rq:job:a")
    beat(bench, "a:ex.1")
    assert not bench.redis.exists("rq:job:a")


def test_heartbeat_of_many(bench: Bench) -> None:
    ids = [f"j{i}" for i in range(950)]
    for start in range(0, 950, 100):
        bench.enqueue(*ids[start : start + 100])
        bench.claim(100)
    members = sorted(bench.zset("jobq:leases"))
    bench.run(calls.cancel(bench.keys, "j949"))
    answer = beat(bench, *members, "x:y")
    assert (answer.lost, answer.cancelled) == (["x:y"], ["j949"])


def test_rescue_queues_at_the_front_in_order(bench: Bench) -> None:
    bench.enqueue(*"abc")
    bench.claim(2)
    answer = expire(bench)
    assert answer.moved == [("a", "q", "queued"), ("b", "q", "queued")]
    assert bench.waiting() == ["a", "b", "c"]
    found = bench.hash("a")
    assert (found["lost"], found["status"], found["q"]) == ("1", "queued", str(T0))
    assert "attempts" not in found
    assert rescue(bench).moved == []


def test_a_late_settle_after_a_rescue_is_lost(bench: Bench) -> None:
    job = bench.running("a")
    expire(bench)
    assert bench.settle(job, kind="succeeded") == ["lost"]
    (again,) = bench.claim().jobs
    assert bench.settle(job, kind="succeeded") == ["lost"]
    assert bench.settle(again, kind="succeeded") == ["ok"]


def test_nobody_is_rescued_right_after_an_outage(bench: Bench) -> None:
    bench.running("a")
    assert rescue(bench).held is True  # the first pass ever
    bench.now += 60_000
    assert rescue(bench).held is True
    bench.now += 2_000
    assert rescue(bench).held is True
    assert beat(bench, "a:ex.1").lost == []
    for _ in range(5):
        bench.now += 500
        assert rescue(bench).moved == []
    assert bench.status("a") == "started"


def test_a_clock_set_back_holds_nobody_for_ever(bench: Bench) -> None:
    rescue(bench)
    bench.now += 100
    bench.redis.hset("jobq:pulse", "hold", T0 + 10_000_000)
    assert rescue(bench).held is False


@pytest.mark.parametrize("back", [LEASE // 2, 60_000, 3_600_000])
def test_a_clock_set_back_keeps_no_dead_workers_jobs(bench: Bench, back: int) -> None:
    """As after a failover to a host whose clock is behind."""
    rescue(bench)
    bench.running("dead")
    bench.running("alive")
    bench.now += 500
    rescue(bench)
    bench.now -= back
    assert rescue(bench).held is True
    until = bench.now + LEASE + 1_500
    moved = []
    while bench.now < until:
        bench.run(calls.heartbeat(bench.keys, ["alive:ex.2"], LEASE, now_ms=bench.now))
        moved += rescue(bench).moved
        bench.now += 500
    assert moved == [("dead", "q", "queued")]
    assert bench.zset("jobq:leases").keys() == {"alive:ex.2"}


def test_a_clock_set_back_keeps_the_longer_leases_of_other_workers(bench: Bench) -> None:
    rescue(bench)
    bench.running("a")
    bench.redis.zadd("jobq:leases", {"a:ex.1": bench.now + 10 * LEASE})
    bench.now -= 3_600_000
    rescue(bench)
    assert bench.zset("jobq:leases") == {"a:ex.1": bench.now + 10 * LEASE}


def test_a_clock_set_back_leaves_alone_who_has_claimed_since(bench: Bench) -> None:
    rescue(bench)
    bench.now -= 3_600_000
    bench.running("a")
    rescue(bench)
    assert bench.zset("jobq:leases") == {"a:ex.1": bench.now + LEASE}


def test_rescue_of_a_cancelled_job(bench: Bench) -> None:
    bench.running("a", dedup_key="t.x:k", dedup_mode="f")
    bench.redis.set("jobq:wait:a", 1)
    bench.run(calls.cancel(bench.keys, "a"))
    assert expire(bench).moved == [("a", "q", "cancelled")]
    assert not bench.redis.exists("jobq:cancels", "jobq:dedup:t.x:k")
    assert bench.redis.lrange("jobq:done:a", 0, -1) == [b"cancelled"]


def test_six_times_lost_is_poison(bench: Bench) -> None:
    bench.running("a")
    for _ in range(5):
        assert expire(bench).moved == [("a", "q", "queued")]
        bench.claim()
    assert expire(bench).moved == [("a", "q", "dead")]
    found = bench.hash("a")
    assert (found["status"], found["why"], found["lost"]) == ("failed", "poison", "6")
    assert bench.redis.ttl("rq:job:a") > 0


def test_what_an_rq_tool_moved_loses_only_its_lease(bench: Bench) -> None:
    bench.enqueue("a", "b")
    bench.claim()
    bench.redis.hset("rq:job:a", "status", "canceled")
    bench.redis.zadd("rq:canceled:q", {"a": 1})
    bench.redis.delete("rq:job:b")
    assert expire(bench).moved == []
    assert bench.status("a") == "canceled"
    assert not bench.redis.exists("jobq:leases", "rq:wip:q")


def test_a_wrong_type_hash_is_set_aside(bench: Bench) -> None:
    bench.enqueue("a", "b")
    bench.claim()
    bench.redis.delete("rq:job:a")
    bench.redis.set("rq:job:a", "x")
    assert expire(bench).moved == [("b", "q", "queued")]
    assert set(bench.zset("jobq:quarantine")) == {"a"}
    assert not bench.redis.exists("rq:wip:q")


def test_a_dead_stock_worker(bench: Bench) -> None:
    bench.enqueue("a", "b")
    bench.redis.delete("rq:queue:q")
    for job_id, score in (("a", T0 // 1000 - 61), ("b", T0 // 1000 - 30)):
        bench.redis.hset(f"rq:job:{job_id}", "status", "started")
        bench.redis.zadd("rq:wip:q", {f"{job_id}:execution": score})
    rescue(bench)
    for _ in range(9):
        bench.now += 500
        answer = rescue(bench)
        if answer.moved:
            break
    assert answer.moved == [("a", "q", "queued")]
    assert bench.zset("rq:wip:q") == {"b:execution": T0 // 1000 - 30}
    bench.redis.delete("rq:wip:q", "rq:job:b")


def test_history_of_a_rescue(bench: Bench) -> None:
    bench.running("a")
    rescue(bench)
    bench.now += 3000
    rescue(bench)
    bench.redis.zadd("jobq:leases", {"a:ex.1": T0})
    bench.now += 2000
    rescue(bench, record=b'{"outcome":"interrupted"}')
    assert bench.redis.lrange("jobq:attempts:a", 0, -1) == [b'{"outcome":"interrupted"}']


@pytest.mark.parametrize("gone", ["lease", "hash"])
def test_progress(bench: Bench, gone: str) -> None:
    job = bench.running("a")
    call = calls.progress(bench.keys, "a", job.token, "[0.5]")
    assert bench.run(call, repeats=2) is True
    assert bench.hash("a")["pr"] == "[0.5]"
    if gone == "lease":
        expire(bench)
    else:
        bench.redis.delete("rq:job:a")
    assert bench.run(call) is False
    assert bool(bench.redis.exists("rq:job:a")) is (gone == "lease")


def lose(bench: Bench, times: int, **options: Any) -> None:
    for _ in range(times):
        bench.claim()
        for _ in range(40):
            bench.now += 500
            rescue(bench, **options)


def test_what_rescue_ends_leaves_its_history_an_error_and_a_count(bench: Bench) -> None:
    record = encode_attempt(Attempt(number=0, outcome="interrupted"))
    options = {"record": record, "exc": b"eA==", "keep_s": 70, "keep_of": {"q": 3600}}
    bench.enqueue("a")
    bench.redis.hset("rq:job:a", "attempts", "2")
    lose(bench, 6, **options)
    assert (bench.status("a"), bench.hash("a")["why"]) == ("failed", "poison")
    attempts = [decode_attempt(entry, 0) for entry in bench.redis.lrange("jobq:attempts:a", 0, -1)]
    assert [(each.number, each.outcome) for each in attempts] == [(3, "interrupted")] * 6
    ((_, entry),) = bench.redis.xrange("rq:results:a")
    assert (entry[b"type"], entry[b"exc_string"]) == (b"2", b"eA==")
    for key in ("rq:job:a", "jobq:attempts:a", "rq:results:a"):
        assert 3500 < bench.redis.ttl(key) <= 3600
    counts: Counter[bytes] = Counter()
    for key in bench.redis.keys("jobq:n:q:*"):
        assert 0 < bench.redis.ttl(key) <= 93_600
        counts.update({name: int(value) for name, value in bench.redis.hgetall(key).items()})
    assert (counts[b"o:t.x"], counts[b"d:t.x"]) == (5, 1)
