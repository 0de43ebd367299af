"""enqueue.lua: one id, one job; dedup; refusals."""

from __future__ import annotations

import pytest

from jobq import calls
from jobq.limits import Noted
from jobq.steps import NewJob
from tests.lua.conftest import T0, Bench

F = {"dedup_key": "t.x:k", "dedup_mode": "f"}


def test_one_job(bench: Bench) -> None:
    assert bench.enqueue("a") == [("queued", "a")]
    job = bench.hash("a")
    assert (job["status"], job["q"], job["origin"]) == ("queued", str(T0), "q")
    assert bench.waiting() == ["a"]
    assert bench.redis.smembers("rq:queues") == {b"rq:queue:q"}


def test_a_repeat_is_mine_and_writes_nothing(bench: Bench) -> None:
    bench.enqueue("a")
    before = bench.snapshot()
    assert bench.enqueue("a", repeats=2) == [("mine", "a")]
    assert bench.snapshot() == before


def test_a_repeat_after_the_end_is_mine(bench: Bench) -> None:
    bench.ended("a", "succeeded", keep_s=0)
    assert bench.enqueue("a") == [("mine", "a")]
    assert bench.redis.ttl("rq:job:a") >= 59  # whatever the retention


def test_many_keep_their_order(bench: Bench) -> None:
    ids = [f"j{i}" for i in range(100)]
    bench.enqueue(*ids)
    assert bench.waiting() == ids


def test_the_same_id_twice_in_one_call(bench: Bench) -> None:
    assert bench.enqueue("a", "a") == [("queued", "a"), ("mine", "a")]
    assert bench.waiting() == ["a"]


def test_each_job_gets_the_fields_of_its_set_and_its_own(bench: Bench) -> None:
    """A job's own fields take the place of the shared ones, and nothing of the job before is left."""
    first, second = {"timeout": "30", "origin": "q"}, {"timeout": "60", "origin": "q", "lm": "x"}
    jobs = [
        NewJob("a", {"data": b"1", "or": "3", "timeout": "5"}, shared=first),
        NewJob("b", {"data": b"2"}, shared=second),
        NewJob("c", {"data": b"3"}, shared=first),
    ]
    bench.run(calls.enqueue(bench.keys, "q", jobs, now_ms=bench.now))
    common = {"status": "queued", "q": str(T0), "origin": "q"}
    assert bench.hash("a") == {**common, "data": "1", "or": "3", "timeout": "5"}
    assert bench.hash("b") == {**common, "data": "2", "timeout": "60", "lm": "x"}
    assert bench.hash("c") == {**common, "data": "3", "timeout": "30"}


def test_a_replaced_holder_takes_the_shared_timeout_too(bench: Bench) -> None:
    bench.enqueue("a", **F)
    new = NewJob(
        "b",
        {"data": b"2"},
        replace=True,
        bound_id="*",
        shared={"timeout": "60", "origin": "elsewhere"},
        dedup_key="t.x:k",
        dedup_mode="f",
    )
    bench.run(calls.enqueue(bench.keys, "q", [new], now_ms=bench.now))
    found = bench.hash("a")
    assert (found["data"], found["timeout"], found["origin"]) == ("2", "60", "q")


def test_too_many_is_a_mistake(bench: Bench) -> None:
    with pytest.raises(ValueError, match="at most 100"):
        bench.enqueue(*[f"j{i}" for i in range(101)])


@pytest.mark.parametrize("due", [{"delay_ms": 1500}, {"at_ms": T0 + 1500}])
def test_scheduled_to_the_millisecond(bench: Bench, due: dict[str, int]) -> None:
    assert bench.enqueue("a", **due) == [("scheduled", "a")]
    assert bench.zset("rq:scheduled:q") == {"a": (T0 + 1500) / 1000}
    assert (bench.status("a"), bench.hash("a")["q"]) == ("scheduled", str(T0 + 1500))
    assert bench.claim().jobs == []


def test_due_in_the_past_is_queued(bench: Bench) -> None:
    assert bench.enqueue("a", at_ms=T0 - 1) == [("queued", "a")]


@pytest.mark.covers("D-02")
def test_a_live_holder_refuses_an_equal_job(bench: Bench) -> None:
    assert bench.enqueue("a", **F) == [("queued", "a")]
    assert bench.enqueue("b", **F) == [("duplicate", "a")]
    (job,) = bench.claim().jobs
    assert bench.enqueue("c", **F) == [("duplicate", "a")]
    bench.settle(job, kind="retry", delay_ms=1000, spends=True)
    assert bench.enqueue("d", **F) == [("duplicate", "a")]
    assert bench.hash("a")["dk"] == "f:t.x:k"


@pytest.mark.parametrize("kind", ["succeeded", "dead", "cancelled"])
@pytest.mark.covers("D-03")
def test_the_key_is_free_after_the_end(bench: Bench, kind: str) -> None:
    bench.enqueue("a", **F)
    bench.settle(bench.claim().jobs[0], kind=kind)
    assert bench.redis.get("jobq:dedup:t.x:k") is None
    assert bench.enqueue("b", **F) == [("queued", "b")]


def test_an_rq_tool_that_deletes_the_holder_frees_the_key(bench: Bench) -> None:
    bench.enqueue("a", **F)
    bench.redis.delete("rq:job:a")
    bench.redis.lrem("rq:queue:q", 0, "a")
    assert bench.enqueue("b", **F) == [("queued", "b")]
    assert bench.redis.get("jobq:dedup:t.x:k") == b"f:b"


def test_two_equal_jobs_in_one_call(bench: Bench) -> None:
    assert bench.enqueue("a", "b", **F) == [("queued", "a"), ("duplicate", "a")]
    assert bench.waiting() == ["a"]


def test_mode_s_is_free_at_the_claim_and_stays_the_next_ones(bench: Bench) -> None:
    mode = {"dedup_key": "t.x:k", "dedup_mode": "s"}
    bench.enqueue("a", **mode)
    assert bench.enqueue("b", **mode) == [("duplicate", "a")]
    (job,) = bench.claim().jobs
    assert bench.enqueue("b", **mode) == [("queued", "b")]
    bench.settle(job, kind="succeeded")
    assert bench.redis.get("jobq:dedup:t.x:k") == b"s:b"


def test_a_window_outlives_its_job(bench: Bench) -> None:
    mode = {"dedup_key": "t.x:k", "dedup_mode": "w", "window_ms": 60_000}
    bench.enqueue("a", **mode)
    bench.settle(bench.claim().jobs[0], kind="succeeded")
    assert bench.enqueue("b", **mode) == [("duplicate", "a")]
    assert 0 < bench.redis.pttl("jobq:dedup:t.x:k") <= 60_000
    bench.redis.delete("jobq:dedup:t.x:k")
    assert bench.enqueue("c", **mode) == [("queued", "c")]


def test_replace_needs_a_payload_signed_for_the_holder(bench: Bench) -> None:
    bench.enqueue("a", **F)
    before = bench.snapshot()
    assert bench.enqueue("b", replace=True, **F) == [("rebind", "a")]
    assert bench.snapshot() == before


@pytest.mark.parametrize("bound", ["a", "*"])
def test_replace_a_waiting_holder(bench: Bench, bound: str) -> None:
    bench.enqueue("a", fields={"o": "{}"}, **F)
    answer = bench.enqueue("b", replace=True, bound_id=bound, delay_ms=5000, repeats=2, **F)
    assert answer == [("replaced", "a")]
    job = bench.hash("a")
    assert (job["status"], job["q"]) == ("scheduled", str(T0 + 5000))
    assert job["data"] == '{"v":1,"of":"b"}'
    assert "o" not in job
    assert bench.waiting() == []
    assert bench.zset("rq:scheduled:q") == {"a": T0 / 1000 + 5}
    assert bench.status("b") is None


def test_a_replaced_job_that_started_meanwhile_is_not_run_twice(bench: Bench) -> None:
    bench.enqueue("a", **F)
    bench.enqueue("b", replace=True, bound_id="a", **F)
    bench.claim()
    assert bench.enqueue("b", replace=True, bound_id="a", **F) == [("replaced", "a")]
    assert bench.status("b") is None


def test_replace_beside_a_running_holder_takes_the_key(bench: Bench) -> None:
    bench.enqueue("a", **F)
    (job,) = bench.claim().jobs
    assert bench.enqueue("b", replace=True, **F) == [("queued", "b")]
    assert bench.redis.get("jobq:dedup:t.x:k") == b"f:b"
    bench.settle(job, kind="succeeded")
    assert bench.redis.get("jobq:dedup:t.x:k") == b"f:b"


def test_a_late_repeat_of_a_replacement_does_not_undo_those_after_it(bench: Bench) -> None:
    bench.enqueue("h", **F)
    options = {"replace": True, "bound_id": "*", **F}
    for name in ("A", "B", "A"):
        assert bench.enqueue(name, **options) == [("replaced", "h")]
    assert bench.hash("h")["data"] == '{"v":1,"of":"B"}'
    bench.enqueue("C", "D", "E", **options, repeats=2)
    assert bench.enqueue("B", "D", **options) == [("replaced", "h")] * 2
    assert bench.hash("h")["data"] == '{"v":1,"of":"E"}'
    for number in range(20):
        bench.enqueue(f"more{number}", **options)
    assert len(bench.hash("h")["rp"].split()) == 8


def test_replacements_within_one_call_are_all_remembered(bench: Bench) -> None:
    options = {"replace": True, "bound_id": "*", **F}
    bench.enqueue("h", "A", "B", **options, repeats=2)
    assert bench.enqueue("A", **options) == [("replaced", "h")]
    assert bench.hash("h")["data"] == '{"v":1,"of":"B"}'


def test_replace_within_one_call(bench: Bench) -> None:
    assert bench.enqueue("a", "b", replace=True, bound_id="*", **F) == [("queued", "a"), ("replaced", "a")]
    assert bench.hash("a")["data"] == '{"v":1,"of":"b"}'
    assert bench.waiting() == ["a"]


def test_full(bench: Bench) -> None:
    bench.redis.hset("jobq:q:q", "max", 2)
    assert bench.enqueue("a", "b", "c") == [("queued", "a"), ("queued", "b"), ("full", "c")]
    assert bench.enqueue("a", "d") == [("mine", "a"), ("full", "d")]
    bench.redis.hset("jobq:q:q", mapping={"max": 10, "shed": bench.now + 1})
    assert bench.enqueue("e") == [("shed", "e")]
    assert bench.status("e") is None


def test_all_that_waits_counts_whatever_it_waits_for(bench: Bench) -> None:
    bench.redis.hset("jobq:q:q", "max", 4)
    bench.settle(bench.running("p"), kind="park", bucket="t.new", reason="unknown_task")
    bench.settle(bench.running("r"), kind="retry", spends=True, delay_ms=60_000)
    bench.running("runs")
    assert bench.enqueue("a", "b", "c", delay_ms=1_000) == [
        ("scheduled", "a"),
        ("scheduled", "b"),
        ("full", "c"),
    ]
    assert bench.enqueue("d") == [("full", "d")]
    bench.run(calls.cancel(bench.keys, "a", now_ms=bench.now))
    assert bench.enqueue("d") == [("queued", "d")]


def test_an_operator_sets_the_most_jobs_for_a_time(bench: Bench) -> None:
    noted = Noted(most="1")
    bench.run(calls.declare_limits(bench.keys, {"q": noted}, first=True))
    assert bench.enqueue("a", "b") == [("queued", "a"), ("full", "b")]
    bench.run(calls.limit(bench.keys, "q", "", bench.now + 1_000, most=3), repeats=2)
    assert bench.enqueue("b") == [("queued", "b")]
    bench.run(calls.limit(bench.keys, "q", "", bench.now + 1_000))
    assert bench.enqueue("c", "d") == [("queued", "c"), ("queued", "d")]
    bench.now += 1_000
    assert bench.enqueue("e") == [("full", "e")]
    bench.run(calls.limit(bench.keys, "q", None))
    assert bench.redis.hgetall("jobq:q:q") == {b"max": b"1"}
    bench.run(calls.declare_limits(bench.keys, {"q": Noted()}, first=False))
    assert bench.enqueue("e") == [("full", "e")], "a worker that runs leaves what another has noted"
    bench.run(calls.declare_limits(bench.keys, {"q": Noted()}, first=True))
    assert bench.enqueue("e") == [("queued", "e")]


@pytest.mark.parametrize("text", ["nan", "", "-1", "x", "0|", "|5", "0|x"])
def test_a_most_that_is_no_number_refuses_nobody(bench: Bench, text: str) -> None:
    bench.redis.hset("jobq:q:q", mapping={"max": text, "max_set": text})
    assert bench.enqueue("a") == [("queued", "a")]


def test_a_wrong_type_holder_refuses_nobody(bench: Bench) -> None:
    bench.redis.set("jobq:dedup:t.x:k", "f:z")
    bench.redis.set("rq:job:z", "not a hash")
    assert bench.enqueue("a", **F) == [("queued", "a")]


def test_six_commands(real: Bench) -> None:
    real.store.run(calls.enqueue(real.keys, "q", [real.new("warm")]))
    real.redis.config_resetstat()
    real.store.run(calls.enqueue(real.keys, "q", [real.new("a")]))
    stats = real.redis.info("commandstats")
    counted = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}
    for name in ("config|resetstat", "info"):
        counted.pop(name, None)
    assert sum(counted.values()) <= 6, counted
