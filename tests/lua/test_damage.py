"""What a foreign hand or a broken disk leaves behind: a damaged hash or a key of the wrong type costs itself alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from jobq import calls
from jobq.control import move_many
from jobq.errors import StoreError
from jobq.limits import Concurrency, QueueLimits, Rate
from jobq.steps import Claim
from tests.lua.conftest import Bench

C1 = Concurrency(1).gate("c:t")
R1 = Rate(1).gate("r:t")


def spoil(bench: Bench, key: str) -> None:
    """Put something of another type in the key's place."""
    kind = bench.redis.type(key)
    bench.redis.delete(key)
    if kind == b"string" or "dedup" in key or "closed" in key:
        bench.redis.rpush(key, "x")
    else:
        bench.redis.set(key, "x")


def ids(claim: Claim) -> list[str]:
    return [job.id for job in claim.jobs]


def everywhere(bench: Bench, names: Sequence[str], *queues: str) -> None:
    """Each of these is somewhere: under a lease, in a list, or in the registry of its state."""
    leased = {member.partition(":")[0] for member in bench.zset("jobq:leases")}
    for name in names:
        status, queue = bench.status(name), bench.hash(name)["origin"]
        if status == "started":
            assert name in leased, f"{name} runs without a lease"
        elif status == "queued":
            assert name in bench.waiting(queue), f"{name} is queued, and in no list"
        else:
            assert name in bench.zset(f"rq:{status}:{queue}"), f"{name} is {status}, and in no registry"


# --------------------------------------------------------------------------- claim

NO_NUMBERS = ["now", "", "nan", "inf", "-inf", "1e300", "-5", "0x10", "9" * 40, "\x00"]


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("field", ["q", "attempts", "lost", "crashes", "timeout", "ttl"])
def test_a_claim_loses_nothing_to_numbers_that_are_none(bench: Bench, field: str, value: str) -> None:
    bench.enqueue("a", "b", fields={"lm": C1})
    bench.enqueue("c", "d")
    bench.redis.hset("rq:job:b", field, value)
    assert ids(bench.claim(suspects="park"))[0] == "a"
    everywhere(bench, "abcd")
    assert bench.status("d") == "started"


@pytest.mark.parametrize(
    "text",
    [
        "b,5,1000,5,w", "b,1,1,1,y", "b,5,1000,9,w", "b,5,0,1,w", "r,0,0,0,x", "r,1,0,0,x", "c,0,0,0,z",
        "b," + "9" * 400 + ",1000,1,w", "r,1," + "9" * 400 + ",0,w", "nonsense", "",
    ],
)  # fmt: skip
def test_a_gate_that_makes_no_sense_limits_nothing(bench: Bench, text: str) -> None:
    bench.enqueue("a", "b", "c", fields={"lm": text})
    call = bench.claim_call()
    assert ids(bench.run(call)) == ["a", "b", "c"]
    assert ids(bench.run(call)) == ["a", "b", "c"]
    bench.redis.hset("jobq:q:q", "limit", text)
    bench.enqueue("d")
    assert ids(bench.claim()) == ["d"]


@pytest.mark.parametrize(
    "key",
    [
        "rq:wip:q", "rq:deferred:q", "jobq:blocked:q", "jobq:gates", "jobq:gate:r:t", "jobq:rate:r:t",
        "jobq:held:c:t", "jobq:closed:r:t", "jobq:parked:q:~suspect", "jobq:dedup:t.x:k", "jobq:quarantine",
        "jobq:rate:q:q",
    ],
)  # fmt: skip
def test_a_claim_beside_a_key_of_the_wrong_type(
    bench: Bench, key: str, request: pytest.FixtureRequest
) -> None:
    request.node.skip_check = True
    bench.run(calls.declare_limits(bench.keys, {"q": QueueLimits(Rate(50)).gates("q")}, first=True))
    bench.enqueue("s")
    bench.redis.hset("rq:job:s", "crashes", "1")
    bench.enqueue("d", dedup_key="t.x:k", dedup_mode="s")
    bench.enqueue("r1", "r2", fields={"lm": f"{R1};{C1}"})
    bench.enqueue("a")
    bench.redis.set("rq:job:broken", "x")
    bench.redis.rpush("rq:queue:q", "broken")
    bench.enqueue("b")
    spoil(bench, key)
    call = bench.claim_call(suspects="park")
    claim = bench.run(call)
    assert {"a", "b", "d", "r1"} <= set(ids(claim))
    assert ids(bench.run(call)) == ids(claim)
    assert {member.partition(":")[0] for member in bench.zset("jobq:leases")} == set(ids(claim))
    assert bench.status("s") == "deferred"


def test_without_leases_nothing_is_taken(bench: Bench) -> None:
    bench.enqueue("a", "b")
    spoil(bench, "jobq:leases")
    with pytest.raises(StoreError):
        bench.claim()
    assert (bench.waiting(), bench.status("a")) == (["a", "b"], "queued")
    bench.redis.delete("jobq:leases")
    assert ids(bench.claim()) == ["a", "b"]


def test_a_list_of_the_wrong_type_does_not_cost_what_was_parked(bench: Bench) -> None:
    bench.settle(bench.running("p"), kind="park", bucket="t.new", reason="unknown_task")
    spoil(bench, "rq:queue:q")
    assert ids(bench.claim(known=["t.new"])) == ["p"]
    with pytest.raises(StoreError):
        bench.claim()
    bench.redis.delete("rq:queue:q")


# --------------------------------------------------------------------------- an id in another queue's list


@pytest.mark.parametrize("there", [True, False])
def test_a_queue_runs_no_job_of_another(bench: Bench, there: bool) -> None:
    bench.enqueue("a", queue="q2")
    if not there:
        bench.redis.delete("rq:queue:q2")
    bench.redis.rpush("rq:queue:q", "a")
    bench.enqueue("b")
    assert ids(bench.claim()) == ["b"]
    assert (bench.waiting(), bench.waiting("q2")) == ([], ["a"])
    assert ids(bench.claim(queue="q2")) == ["a"]


@pytest.mark.parametrize("place", [{"order": 1}, {"tenant": "t1"}])
def test_nor_one_by_its_place_in_the_order(bench: Bench, place: dict[str, object]) -> None:
    bench.enqueue("a", queue="q2")
    bench.enqueue("b", **place)
    bench.redis.lpush("rq:queue:q", "a")
    assert ids(bench.claim()) == ["b"]
    assert (bench.waiting(), bench.waiting("q2")) == ([], ["a"])


def test_a_copy_that_a_move_leaves_behind_is_dropped(bench: Bench) -> None:
    bench.enqueue("x")
    bench.redis.rpush("rq:queue:q", *["ghost"] * 10_001)
    assert (
        bench.run(calls.cancel(bench.keys, "x", now_ms=bench.now)) == "cancelled"
    )  # it stays in so long a list
    assert bench.run(calls.replay(bench.keys, ["x"], now_ms=bench.now)) == ["queued"]  # a second copy
    assert bench.run(move_many(bench.keys, "q", "q2", ["x"])) == ["moved"]
    bench.redis.lrem("rq:queue:q", 0, "ghost")
    assert (bench.waiting(), bench.waiting("q2")) == (["x"], ["x"])
    assert ids(bench.claim()) == []
    assert (bench.waiting(), bench.waiting("q2")) == ([], ["x"])
    assert bench.settle(*bench.claim(queue="q2").jobs, kind="succeeded", queue="q2") == ["ok"]
    assert bench.zset("rq:finished:q2").keys() == {"x"}


def test_what_plain_rq_made_without_an_origin_is_run(bench: Bench) -> None:
    bench.enqueue("a")
    bench.redis.hdel("rq:job:a", "origin")
    assert ids(bench.claim()) == ["a"]
    bench.redis.hset("rq:job:a", "origin", "q")
