"""What a foreign hand or a broken disk leaves behind: a damaged hash or a key of the wrong type costs itself alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from jobq import calls
from jobq.control import hasten, move_many
from jobq.errors import StoreError
from jobq.joblog import add_lines
from jobq.limits import Concurrency, Noted, QueueLimits, Rate
from jobq.steps import Claim, Outcome
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
    bench.run(calls.declare_limits(bench.keys, {"q": Noted(QueueLimits(Rate(50)).gates("q"))}, first=True))
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


# --------------------------------------------------------------------------- every other step

REST = "rest"
"""A good job beside each damaged one."""


def without(bench: Bench, key: str, *names: str) -> None:
    """All is where it belongs, but for what would be in the spoilt key."""
    if bench.redis.type(key) == b"string" or "dedup" in key:
        bench.redis.delete(key)
    for name in names:
        status, queue = bench.status(name), bench.hash(name)["origin"]
        place = f"rq:queue:{queue}" if status == "queued" else f"rq:{status}:{queue}"
        if place != key:
            everywhere(bench, [name])


BESIDE = ["rq:results:a", "jobq:attempts:a", "jobq:done:a", "rq:job:a:dependents", "jobq:dedup:t.x:k"]
OF_THE_QUEUE = [
    "rq:wip:q", "rq:finished:q", "rq:failed:q", "rq:canceled:q", "rq:scheduled:q", "rq:deferred:q", "rq:queue:q",
    "jobq:retrying:q", "jobq:parked:q", "jobq:parked:q:t.new", "jobq:q:q", "jobq:blocked:q",
]  # fmt: skip
OF_ALL = ["jobq:cancels", "jobq:after", "jobq:quarantine", "jobq:gates", "jobq:gate:r:t", "jobq:closed:r:t"]
OF_GATES = ["jobq:held:c:t", "jobq:rate:r:t"]


@pytest.mark.parametrize(
    "key", [*BESIDE, *OF_THE_QUEUE, *OF_ALL, *OF_GATES, f"jobq:n:q:{1_800_000_000 // 60}"]
)
def test_settle(bench: Bench, key: str, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    kinds = (
        "succeeded",
        "dead",
        "retry",
        "snooze",
        "hand_back",
        "park",
        "limited",
        "cancelled",
        "interrupted",
    )
    bench.enqueue("a", dedup_key="t.x:k", dedup_mode="f", fields={"lm": f"{Rate(9).gate('r:t')};{C1}"})
    bench.enqueue(*kinds, fields={"lm": Rate(50).gate("r:t")})
    jobs = {job.id: job for job in bench.claim(100).jobs}
    bench.redis.set("jobq:wait:a", "1")
    bench.redis.hset("rq:job:cancelled", "cx", "1")
    bench.redis.sadd("rq:job:a:dependents", "child")
    spoil(bench, key)
    outcomes = [
        Outcome(
            job_id=name, token=job.token, kind="succeeded" if name == "a" else name, spends=True,
            record=b"{}", result=b"MQ==", exc=b"x", bucket="t.new", delay_ms=9, counters=("o:t.x",),
        )  # type: ignore[arg-type]
        for name, job in jobs.items()
    ]  # fmt: skip
    call = calls.settle(bench.keys, "q", outcomes, "2027-01-15T08:00:02.000000Z", now_ms=bench.now)
    assert set(bench.run(call)) == {"ok"}
    assert set(bench.run(call)) == {"already"}
    assert bench.zset("jobq:leases") == {}
    assert "started" not in {bench.status(name) for name in jobs}
    without(bench, key, *jobs)


@pytest.mark.parametrize("field", ["attempts", "lost", "crashes", "q"])
@pytest.mark.parametrize("value", [value for value in NO_NUMBERS if value != "0x10"])
def test_settle_of_numbers_that_are_none(bench: Bench, field: str, value: str) -> None:
    bench.enqueue("a", "b", fields={"lm": R1.replace("r,1,", "r,9,")})
    jobs = bench.claim().jobs
    bench.redis.hset("rq:job:a", field, value)
    kinds = ("retry", "interrupted", "limited")
    for kind in kinds:
        words = bench.settle(*jobs, kind=kind, spends=kind == "retry", delay_ms=1)
        assert words == ["ok", "ok"]
        bench.now += 60_600
        bench.run(calls.promote(bench.keys, ["q"], now_ms=bench.now))
        bench.run(calls.open_gates(bench.keys, now_ms=bench.now))
        jobs = bench.claim().jobs
        assert (ids(bench.claim()), len(jobs)) == ([], 2)
    if field == "attempts":
        assert bench.hash("a")["attempts"] == "1"


@pytest.mark.parametrize(
    "key",
    [*BESIDE, "rq:wip:q", "rq:queue:q", "rq:failed:q", "rq:canceled:q", "jobq:pulse", *OF_ALL, *OF_GATES],
)
def test_rescue(bench: Bench, key: str, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    bench.enqueue("a", dedup_key="t.x:k", dedup_mode="f", fields={"lm": f"{Rate(9).gate('r:t')};{C1}"})
    bench.enqueue("b", "asked", "poison")
    bench.enqueue(REST, queue="q2")
    bench.claim()
    bench.claim(queue="q2")
    for name in ("a", "poison"):
        bench.redis.hset(f"rq:job:{name}", "lost", "5")
    bench.redis.hset("rq:job:asked", "cx", "1")
    bench.redis.sadd("rq:job:a:dependents", "child")
    bench.redis.set("jobq:wait:a", "1")
    spoil(bench, key)
    moved: list[str] = []
    for _ in range(60):
        bench.now += 500
        call = calls.rescue(bench.keys, 12_000, record=b"{}", now_ms=bench.now)
        moved += [name for name, *_ in bench.run(call).moved]
    assert sorted(moved) == ["a", "asked", "b", "poison", REST]
    assert bench.zset("jobq:leases") == {}
    without(bench, key, "a", "b", "asked", "poison", REST)


@pytest.mark.parametrize(
    "key", ["rq:scheduled:q", "rq:queue:q", "jobq:retrying:q", "jobq:q:q", "jobq:order:q"]
)
def test_promote(bench: Bench, key: str, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    bench.enqueue("a", "b", delay_ms=5, fields={"or": "3"})
    bench.enqueue(REST, queue="q2", delay_ms=5)
    bench.redis.hset("rq:job:a", "or", "nan")
    spoil(bench, key)
    bench.now += 10
    bench.run(calls.promote(bench.keys, ["q", "q2"], now_ms=bench.now))
    assert bench.waiting("q2") == [REST]
    without(bench, key, "a", "b")


@pytest.mark.parametrize(
    "key", ["rq:deferred:q", "rq:queue:q", "rq:job:p:dependents", "rq:job::c:dependencies"]
)
def test_release(bench: Bench, key: str, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    for parent, child, queue in (("p", "c", "q"), ("p2", REST, "q2")):
        bench.ended(parent, "succeeded")
        bench.enqueue(child, queue=queue)
        bench.redis.lrem(f"rq:queue:{queue}", 0, child)
        bench.redis.hset(f"rq:job:{child}", "status", "deferred")
        bench.redis.zadd(f"rq:deferred:{queue}", {child: 1})
        bench.redis.sadd(f"rq:job:{parent}:dependents", child)
        bench.redis.sadd(f"rq:job::{child}:dependencies", parent)
        bench.redis.zadd("jobq:after", {parent: 1})
    spoil(bench, key)
    for _ in range(3):
        bench.run(calls.release(bench.keys, now_ms=bench.now))
    assert bench.waiting("q2") == [REST]
    assert bench.zset("jobq:after") == {}
    without(bench, key, "c")


@pytest.mark.parametrize(
    "key", ["rq:deferred:q", "rq:queue:q", "jobq:parked:q", "jobq:q:q", "jobq:quarantine"]
)
def test_unpark(bench: Bench, key: str, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    bench.settle(bench.running("a"), kind="park", bucket="t.new", reason="unknown_task")
    spoil(bench, key)
    assert bench.run(calls.unpark(bench.keys, "q", "t.new", now_ms=bench.now)) == 1
    without(bench, key, "a")


@pytest.mark.parametrize(
    "key", [*BESIDE, *OF_THE_QUEUE, *OF_ALL, "jobq:order:q", "jobq:corr:c", "jobq:tag:t"]
)
@pytest.mark.parametrize("verb", ["cancel", "withdraw", "delete"])
def test_to_end_what_waits(real: Bench, verb: str, key: str) -> None:
    for state in ("queued", "scheduled", "parked", "blocked"):
        real.redis.flushall()
        end_what_waits(real, verb, key, state)


def end_what_waits(bench: Bench, verb: str, key: str, state: str) -> None:
    fields = {"jk": '{"tags":["t"],"correlation_id":"c"}'}
    if state == "blocked":
        bench.running("before", fields={"lm": C1})
        fields["lm"] = C1
    delay_ms = 5 if state == "scheduled" else 0
    bench.enqueue("a", delay_ms=delay_ms, dedup_key="t.x:k", dedup_mode="f", fields=fields)
    if state == "blocked":
        bench.claim()
        assert bench.status("a") == "deferred"
    elif state == "parked":
        bench.settle(*bench.claim().jobs, kind="park", bucket="t.new", reason="unknown_task")
    bench.redis.set("jobq:wait:a", "1")
    bench.redis.hset("rq:job:a", "attempts", "1")
    bench.redis.sadd("rq:job:a:dependents", "child")
    spoil(bench, key)
    steps = {
        "cancel": calls.cancel(bench.keys, "a", now_ms=bench.now),
        "withdraw": calls.withdraw(bench.keys, "a", now_ms=bench.now),
        "delete": calls.delete(bench.keys, "a"),
    }
    assert bench.run(steps[verb], repeats=2) in ("cancelled", "withdrawn", "gone")
    if verb != "delete":
        assert bench.status("a") == "canceled"
        without(bench, key, "a")
        assert bench.redis.ttl("rq:job:a") > 0


@pytest.mark.parametrize("key", [*BESIDE, "rq:failed:q", "rq:wip:q", "rq:queue:q", "jobq:cancels"])
def test_replay(bench: Bench, key: str, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    bench.running("a", dedup_key="t.x:k", dedup_mode="f")
    bench.enqueue(REST, queue="q2")
    for name, queue in (("a", "q"), (REST, "q2")):
        bench.redis.delete(f"rq:queue:{queue}", "jobq:leases", "rq:wip:q")
        bench.redis.hset(f"rq:job:{name}", "status", "failed")
        bench.redis.zadd(f"rq:failed:{queue}", {name: 1})
    spoil(bench, key)
    assert bench.run(calls.replay(bench.keys, ["a", REST], now_ms=bench.now)) == ["queued", "queued"]
    without(bench, key, "a", REST)


@pytest.mark.parametrize(
    "key", ["rq:scheduled:q", "rq:queue:q", "jobq:retrying:q", "jobq:q:q", "jobq:order:q", "jobq:quarantine"]
)
def test_hasten(bench: Bench, key: str, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    bench.enqueue("a", "b", delay_ms=5, fields={"or": "3"})
    bench.enqueue(REST, queue="q2", delay_ms=5)
    bench.redis.hset("rq:job:b", "or", "soon")
    spoil(bench, key)
    assert bench.run(hasten(bench.keys, ["a", "b", REST], now_ms=bench.now)) == ["queued"] * 3
    without(bench, key, "a", "b", REST)


@pytest.mark.parametrize("key", ["rq:queue:q", "rq:queue:q2", "jobq:order:q", "rq:queues"])
def test_move(bench: Bench, key: str, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    bench.enqueue("a")
    spoil(bench, key)
    try:
        bench.run(move_many(bench.keys, "q", "q2", ["a"]))
    except StoreError:
        assert (bench.hash("a")["origin"], bench.hash("a")["status"]) == ("q", "queued")
    without(bench, key, "a")


@pytest.mark.parametrize("key", ["rq:finished:q", "rq:failed:q", "rq:canceled:q", "jobq:cancels", *BESIDE])
def test_prune(bench: Bench, key: str, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    bench.ended("a", "succeeded")
    bench.ended("b", "dead")
    bench.redis.hset("rq:job:a", mapping={"dk": "f:t.x:k", "jk": '{"tags":["t"],"correlation_id":"c"}'})
    bench.redis.set("jobq:tag:t", "x")
    spoil(bench, key)
    bench.now += 10**10
    bench.run(calls.prune(bench.keys, "q", now_ms=bench.now))
    if bench.redis.type(key) != b"string" or not key.startswith("rq:"):
        assert not bench.redis.exists("rq:job:b", "rq:job:a")


@pytest.mark.parametrize("key", ["jobq:cancels", "jobq:quarantine"])
def test_a_heartbeat_extends_all_the_same(bench: Bench, key: str) -> None:
    job = bench.running("a")
    spoil(bench, key)
    bench.now += 4_000
    beat = bench.run(calls.heartbeat(bench.keys, [f"a:{job.token}"], 12_000, now_ms=bench.now))
    assert (beat.lost, bench.zset("jobq:leases")) == ([], {f"a:{job.token}": bench.now + 12_000})


def test_lines_for_a_log_of_the_wrong_type_are_left_out(bench: Bench) -> None:
    job = bench.running("a")
    bench.redis.set("jobq:log:a", "x")
    bench.run(add_lines(bench.keys, "a", job.token, ["1 line"], 60))
    assert bench.redis.get("jobq:log:a") == b"x"


@pytest.mark.parametrize("text", ["b,5,1000,5,r:t", "r,0,0,0,r:t", "", "nonsense"])
def test_who_waits_at_a_gate_that_makes_no_sense_any_more_is_let_in(bench: Bench, text: str) -> None:
    bench.enqueue("a", "b", "c", fields={"lm": R1})
    assert ids(bench.claim()) == ["a"]
    for name in "bc":
        bench.redis.hset(f"rq:job:{name}", "lm", text)
    bench.now += 60_600
    bench.run(calls.open_gates(bench.keys, now_ms=bench.now))
    assert bench.waiting() == ["b", "c"], "all at once, in their order"
    assert ids(bench.claim()) == ["b", "c"]


@pytest.mark.parametrize(
    "key",
    ["rq:deferred:q", "rq:queue:q", "jobq:blocked:q", "jobq:rate:r:t", "jobq:closed:r:t", "jobq:gate:r:t"],
)
def test_open(bench: Bench, key: str, request: pytest.FixtureRequest) -> None:
    request.node.skip_check = True
    bench.enqueue("a", "b", fields={"lm": R1})
    bench.enqueue("c", REST, fields={"lm": Rate(1).gate("r:t2")})
    bench.claim()
    spoil(bench, key)
    bench.now += 60_600
    bench.run(calls.open_gates(bench.keys, now_ms=bench.now))
    if key != "rq:queue:q":
        assert REST in bench.waiting()
    without(bench, key, "b", REST)


@pytest.mark.parametrize("key", ["rq:queue:q", "rq:scheduled:q"])
@pytest.mark.parametrize("mode", ["f", "w"])
def test_a_container_of_the_wrong_type_takes_no_new_job(bench: Bench, key: str, mode: str) -> None:
    spoil(bench, key)
    new = [
        bench.new("a"),
        bench.new("b", delay_ms=5),
        bench.new("c", dedup_key="t.x:k", dedup_mode=mode, window_ms=9),
    ]
    call = calls.enqueue(bench.keys, "q", new, True, now_ms=bench.now)
    for _ in range(2):
        with pytest.raises(StoreError):
            bench.run(call)
    assert not bench.redis.exists("rq:job:a", "rq:job:b", "rq:job:c", "jobq:dedup:t.x:k")
    bench.redis.delete(key)
    assert [word for word, _ in bench.run(call)] == ["queued", "scheduled", "queued"]


def test_a_set_of_queues_of_the_wrong_type_refuses_nobody(bench: Bench) -> None:
    spoil(bench, "rq:queues")
    assert bench.enqueue("a") == [("queued", "a")]
