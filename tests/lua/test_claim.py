"""claim.lua: a lease for each job taken, the same answer to the same number, and nothing that must not run."""

from __future__ import annotations

import pytest

from jobq import calls
from tests.lua.conftest import T0, Bench


def test_a_job_under_a_lease(bench: Bench) -> None:
    bench.enqueue("a", fields={"o": "{}", "jk": '{"tags":["x"]}'})
    claim = bench.claim(1)
    (job,) = claim.jobs
    assert (claim.status, claim.now_ms, claim.until_ms, claim.parked, claim.more) == (
        "ok",
        T0,
        T0 + 12_000,
        False,
        True,
    )
    assert (job.id, job.token, job.data, job.queued_ms) == ("a", "ex.1", b'{"v":1,"of":"a"}', T0)
    assert (job.attempts, job.crashes, job.lost, job.timeout, job.description) == (0, 0, 0, 180, "t.x")
    assert (job.overrides, job.extra, job.rq) == (b"{}", b'{"tags":["x"]}', None)
    found = bench.hash("a")
    assert (found["status"], found["worker_name"], found["started_at"][:4]) == ("started", "w1", "2027")
    assert bench.zset("jobq:leases") == {"a:ex.1": T0 + 12_000}
    assert bench.zset("rq:wip:q") == {"a:ex.1": float("inf")}
    assert bench.claim().jobs == []


def test_oldest_first_and_no_more_than_asked(bench: Bench) -> None:
    bench.enqueue(*"abcde")
    assert [job.id for job in bench.claim(3).jobs] == ["a", "b", "c"]
    claim = bench.claim(3)
    assert ([job.id for job in claim.jobs], claim.more) == (["d", "e"], False)


def test_the_same_number_yields_the_same_jobs(bench: Bench) -> None:
    bench.enqueue(*"abcd")
    call = bench.claim_call(2)
    first = bench.run(call)
    bench.now += 5_000
    again = bench.run(call)
    assert [job.id for job in again.jobs] == [job.id for job in first.jobs] == ["a", "b"]
    assert [job.data for job in again.jobs] == [job.data for job in first.jobs]
    assert again.until_ms == first.until_ms
    assert bench.waiting() == ["c", "d"]


def test_a_repeat_leaves_out_what_was_lost_or_settled(bench: Bench) -> None:
    bench.enqueue("a", "b")
    call = bench.claim_call()
    a, _ = bench.run(call).jobs
    bench.settle(a, kind="succeeded")
    assert [job.id for job in bench.run(call).jobs] == ["b"]


def test_a_late_claim_is_stale_even_after_an_empty_one(bench: Bench) -> None:
    late = bench.claim_call()
    bench.claim()  # nothing there
    bench.enqueue("a")
    assert bench.run(late).status == "stale"
    assert bench.waiting() == ["a"]


def test_what_is_not_queued_is_dropped(bench: Bench) -> None:
    bench.enqueue("a", "b", "c")
    bench.redis.rpush("rq:queue:q", "c", "gone")  # a second copy, and one without a hash
    bench.redis.delete("rq:job:a")
    bench.run(calls.cancel(bench.keys, "b", now_ms=T0))
    bench.redis.lpush("rq:queue:q", "b")  # as after a cancel in a long list
    assert [job.id for job in bench.claim().jobs] == ["c"]
    assert bench.waiting() == []
    assert bench.status("b") == "canceled"


def test_a_claim_of_dropped_ids_alone_tries_again(bench: Bench) -> None:
    bench.redis.rpush("rq:queue:q", "x", "y", "z")
    bench.enqueue("a")
    assert [job.id for job in bench.claim(1).jobs] == ["a"]


def test_unreadable_hashes_are_set_aside(bench: Bench, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    bench.redis.set("rq:job:text", "x")
    bench.redis.hset("rq:job:nodata", "status", "queued")
    long = "l" * 181
    bench.enqueue(long)
    bench.redis.rpush("rq:queue:q", "text", "nodata")
    bench.enqueue("a")
    assert [job.id for job in bench.claim().jobs] == ["a"]
    assert set(bench.zset("jobq:quarantine")) == {"text", "nodata", long}


def test_a_job_of_plain_rq(bench: Bench) -> None:
    bench.redis.hset(
        "rq:job:r 1",
        mapping={
            "status": "queued",
            "data": b"x\x9c",
            "origin": "q",
            "retries_left": 3,
            "result_ttl": 500,
            "ttl": 60,
        },
    )
    bench.redis.expire("rq:job:r 1", 60)
    bench.redis.rpush("rq:queue:q", "r 1")
    call = bench.claim_call()
    (job,) = bench.run(call).jobs
    assert (job.id, job.queued_ms, job.timeout) == ("r 1", 0, 0)
    assert job.rq == {"retries_left": "3", "result_ttl": "500", "ttl": "60"}
    assert bench.redis.ttl("rq:job:r 1") == -1
    assert bench.run(call).jobs == [job]


def test_a_dead_letter_that_an_rq_tool_requeued_does_not_expire(bench: Bench) -> None:
    bench.ended("a", "dead", reason="exhausted", spends=True)
    assert bench.redis.ttl("rq:job:a") > 0
    bench.redis.zrem("rq:failed:q", "a")
    bench.redis.hset("rq:job:a", "status", "queued")
    bench.redis.rpush("rq:queue:q", "a")
    (job,) = bench.claim().jobs
    assert job.attempts == 1
    assert bench.redis.ttl("rq:job:a") == -1
    assert "why" not in bench.hash("a")


def test_paused_suspended_and_their_end(bench: Bench) -> None:
    bench.enqueue("a")
    bench.run(calls.pause(bench.keys, "q", T0 + 1000, "me", "why"), repeats=2)
    claim = bench.claim()
    assert (claim.status, claim.until_ms, claim.jobs) == ("paused", T0 + 1000, [])
    bench.now += 1000
    bench.redis.set("rq:suspended", 1)
    assert bench.claim().status == "suspended"
    bench.redis.delete("rq:suspended")
    assert [job.id for job in bench.claim().jobs] == ["a"]


def test_resume(bench: Bench) -> None:
    bench.enqueue("a")
    bench.run(calls.pause(bench.keys, "q"))
    assert bench.claim().status == "paused"
    assert bench.run(calls.resume(bench.keys, "q")) is True
    assert bench.run(calls.resume(bench.keys, "q")) is False
    assert len(bench.claim().jobs) == 1


def test_parked_jobs_go_to_who_knows_them(bench: Bench) -> None:
    jobs = [bench.running(job_id) for job_id in ("a", "b", "c")]
    bench.settle(*jobs[:2], kind="park", reason="unknown task", bucket="t.new")
    bench.settle(jobs[2], kind="park", reason="no key", bucket="~key")
    assert bench.status("a") == "deferred"
    claim = bench.claim()
    assert (claim.parked, claim.jobs) == (True, [])
    call = bench.claim_call(known=["t.other", "t.new"])
    assert [job.id for job in bench.run(call).jobs] == ["a", "b"]
    assert [job.id for job in bench.run(call).jobs] == ["a", "b"]
    assert "park" not in bench.hash("a")
    assert bench.redis.smembers("jobq:parked:q") == {b"~key"}
    assert [job.id for job in bench.claim(known=["~key"]).jobs] == ["c"]
    assert bench.claim().parked is False


def test_a_parked_job_that_was_cancelled_is_not_claimed(bench: Bench) -> None:
    bench.settle(bench.running("a"), kind="park", reason="r", bucket="t.new")
    assert bench.run(calls.cancel(bench.keys, "a", now_ms=T0), repeats=2) == "cancelled"
    assert bench.claim(known=["t.new"]).jobs == []
    assert not bench.redis.exists("jobq:parked:q", "jobq:parked:q:t.new", "jobq:q:q")


def test_another_prefix_is_another_world(bench: Bench) -> None:
    from jobq.keys import Keys

    other = Bench(bench.redis, Keys("other"))
    bench.enqueue("a")
    assert other.claim().jobs == []
    other.enqueue("a")
    assert [job.id for job in other.claim().jobs] == ["a"]
    assert bench.redis.exists("jobq:other:leases")
    assert bench.status("a") == "queued"
