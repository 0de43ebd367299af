"""Rates, concurrency limits and gates: what claim lets start, where the others wait, and how they come back."""

from __future__ import annotations

import random

import pytest

from jobq import calls
from jobq.limits import Concurrency, Noted, QueueLimits, Quota, Rate
from jobq.steps import Claim, Claimed
from tests.lua.conftest import T0, Bench

MINUTE = 60_000
SPAN = MINUTE + 500
"""How long a start counts in a window of a minute: it may follow its claim by half a second."""


def limited(bench: Bench, rate: Rate | None = None, concurrency: int | None = None, queue: str = "q") -> None:
    gates = QueueLimits(rate, concurrency).gates(queue)
    bench.run(calls.declare_limits(bench.keys, {queue: Noted(gates)}, first=True))


def gated(bench: Bench, *ids: str, lm: str, queue: str = "q") -> None:
    bench.enqueue(*ids, queue=queue, fields={"lm": lm})


def ids(claim: Claim) -> list[str]:
    return [job.id for job in claim.jobs]


def open_gates(bench: Bench) -> int:
    answer: int = bench.run(calls.open_gates(bench.keys, now_ms=bench.now))
    return answer


R2 = Rate(2).gate("r:t")
C1 = Concurrency(1).gate("c:t")


# --------------------------------------------------------------------------- a whole queue


@pytest.mark.covers("L-01", "L-02", "L-03")
@pytest.mark.parametrize("limit", [10, 50, 20])
def test_a_queue_starts_no_more_than_its_rate(bench: Bench, limit: int) -> None:
    limited(bench, Rate(limit))
    names = [f"j{n:03}" for n in range(limit + 5)]
    bench.enqueue(*names)
    assert ids(bench.claim(limit - 1)) == names[: limit - 1]
    bench.now += 10_000
    last = bench.claim(100)
    assert (ids(last), last.limited) == (names[limit - 1 : limit], True)
    refused = bench.claim(100)
    assert (refused.status, refused.until_ms, ids(refused)) == ("limited", T0 + SPAN, [])
    assert bench.waiting() == names[limit:], "they wait in the list, in order"
    bench.now = T0 + SPAN - 1
    assert bench.claim(100).status == "limited"
    bench.now += 1
    assert ids(bench.claim(100)) == names[limit:]


def test_a_queue_runs_no_more_at_once_than_it_may(bench: Bench) -> None:
    limited(bench, concurrency=2)
    bench.enqueue(*"abcd")
    first = bench.claim(10)
    assert ids(first) == ["a", "b"]
    assert bench.claim(10, ex="other").status == "limited"
    bench.settle(first.jobs[0], kind="succeeded")
    assert ids(bench.claim(10)) == ["c"]


def test_an_empty_queue_is_not_limited_but_empty(bench: Bench) -> None:
    """So that an idle executor waits for the next job, and does not ask again and again."""
    limited(bench, concurrency=1)
    bench.enqueue("a")
    bench.claim(1)
    assert bench.claim(1).status == "ok"


def test_a_repeated_claim_counts_once(bench: Bench) -> None:
    limited(bench, Rate(2))
    bench.enqueue(*"abc")
    call = bench.claim_call(1)
    assert [ids(bench.run(call)) for _ in range(3)] == [["a"]] * 3
    assert ids(bench.claim(10)) == ["b"]


@pytest.mark.covers("L-04")
def test_an_operators_limit_counts_before_the_settings_until_its_time_is_over(bench: Bench) -> None:
    limited(bench, Rate(1))
    bench.run(calls.limit(bench.keys, "q", Rate(2).gate("q:q"), T0 + 1_000))
    bench.enqueue(*"abcd")
    assert ids(bench.claim(10)) == ["a", "b"]
    bench.run(calls.limit(bench.keys, "q", ""))
    assert ids(bench.claim(1)) == ["c"], "no limit at all"
    bench.run(calls.limit(bench.keys, "q", Rate(9).gate("q:q"), T0 + 1_000))
    bench.now += 1_000
    assert bench.claim(1).status == "limited", "as the settings say again"
    bench.run(calls.limit(bench.keys, "q", Rate(9).gate("q:q")))
    bench.run(calls.limit(bench.keys, "q", None))
    assert bench.claim(1).status == "limited"


def test_a_worker_that_starts_replaces_the_declared_limits_and_others_only_repair(bench: Bench) -> None:
    def declare(gates: str, *, first: bool) -> int:
        changed: int = bench.run(
            calls.declare_limits(bench.keys, {"q": Noted(gates), "q2": Noted()}, first=first)
        )
        return changed

    assert declare(R2, first=True) == 1
    assert declare("", first=False) == 0, "another worker's, older settings"
    assert declare(C1, first=False) == 0
    assert declare(C1, first=True) == 1
    bench.redis.delete("jobq:q:q")
    assert declare(C1, first=False) == 1
    assert declare("", first=True) == 1
    assert not bench.redis.exists("jobq:q:q")


# --------------------------------------------------------------------------- a task, or a key of it


def test_a_tasks_rate_holds_back_its_own_jobs_only(bench: Bench) -> None:
    gated(bench, *"abcd", lm=R2)
    bench.enqueue("x", "y")
    assert ids(bench.claim(10)) == ["a", "b", "x", "y"]
    found = bench.hash("c")
    assert (found["status"], found["park"], found["pb"]) == ("deferred", "rate", "~gate:r:t")
    assert list(bench.zset("jobq:gate:r:t")) == ["c", "d"]
    assert list(bench.zset("jobq:blocked:q")) == ["c", "d"]
    assert bench.zset("jobq:gates") == {"r:t": T0 + SPAN}
    bench.now += SPAN - 1
    assert open_gates(bench) == 0
    bench.now += 1
    bench.enqueue("z")
    assert open_gates(bench) == 3, "two jobs, one gate"
    assert bench.waiting() == ["c", "d", "z"], "in front of what came later, in their order"
    assert "park" not in bench.hash("c")
    assert ids(bench.claim(10)) == ["c", "d", "z"]
    for key in ("jobq:gates", "jobq:gate:r:t", "jobq:blocked:q"):
        assert not bench.redis.exists(key)


def test_a_key_runs_once_at_a_time(bench: Bench) -> None:
    gated(bench, "a1", "a2", "a3", lm=Concurrency(1).gate("c:t:a"))
    gated(bench, "b1", lm=Concurrency(1).gate("c:t:b"))
    first = bench.claim(10)
    assert ids(first) == ["a1", "b1"]
    assert bench.hash("a2")["park"] == "concurrency"
    bench.settle(first.jobs[0], kind="succeeded")
    assert open_gates(bench) == 2, "one job, one gate: as many as there is room for"
    assert ids(bench.claim(10)) == ["a2"]
    assert not bench.redis.exists("jobq:held:c:t:b") or bench.zset("jobq:held:c:t:b") == {"b1:ex.1": T0}


def test_the_order_is_kept_however_often_they_are_let_in(bench: Bench) -> None:
    names = [f"{n:02}" for n in (7, 3, 9, 1, 5, 8, 2)]  # all of one millisecond
    gated(bench, *names, lm=C1)
    done = []
    for _ in names:
        open_gates(bench)
        (job,) = bench.claim(3).jobs
        done.append(job.id)
        bench.settle(job, kind="succeeded")
    assert done == names


def test_who_is_let_in_stands_behind_those_let_in_before_and_before_whoever_came_later(bench: Bench) -> None:
    """Every slot is taken for long: a look lets the next one in while nobody claims."""
    for name in ("a", "b", "c", "d"):
        gated(bench, name, lm=C1)
        bench.now += 5
    (job,) = bench.claim(10).jobs
    bench.settle(job, kind="succeeded")
    bench.enqueue("late")
    for _ in range(3):
        open_gates(bench)
        bench.now += 2_000
    assert bench.waiting("q") == ["b", "c", "d", "late"]
    assert ids(bench.claim(10)) == ["b", "late"]


def test_all_gates_or_none(bench: Bench) -> None:
    """A job that one gate stops uses up nothing at the other."""
    gated(bench, "a", lm=C1)
    gated(bench, "b", "c", lm=f"{R2};{C1}")
    a = bench.claim(10).jobs[0]
    assert bench.zset("jobq:rate:r:t") == {}
    bench.settle(a, kind="succeeded")
    open_gates(bench)
    assert ids(bench.claim(10)) == ["b"]
    assert list(bench.zset("jobq:rate:r:t")) == ["b:ex.2"]


@pytest.mark.parametrize(
    "kind", ["succeeded", "retry", "dead", "snooze", "cancelled", "park", "hand_back", "interrupted"]
)
def test_every_end_gives_the_place_back(bench: Bench, kind: str) -> None:
    gated(bench, "a", "b", lm=C1)
    (a,) = bench.claim(10).jobs
    bench.settle(a, kind=kind, delay_ms=60_000)
    assert not bench.redis.exists("jobq:held:c:t")
    assert open_gates(bench) == 2


def test_what_never_started_is_not_counted_in_the_window(bench: Bench) -> None:
    gated(bench, "a", "b", "c", lm=R2)
    a, b = bench.claim(10).jobs
    bench.settle(a, kind="hand_back")
    bench.settle(b, kind="interrupted")
    assert list(bench.zset("jobq:rate:r:t")) == ["b:ex.1"]


def test_a_rescue_gives_the_place_back(bench: Bench) -> None:
    gated(bench, "a", "b", lm=C1)
    bench.claim(10)
    bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now + 9_000))
    bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now + 11_999))
    bench.now += 13_500
    assert bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now)).moved == [("a", "q", "queued")]
    assert open_gates(bench) == 2
    assert ids(bench.claim(1)) == ["b"], "opened last, so in front"
    assert ids(bench.claim(1)) == []


def lost_hash(bench: Bench) -> Claimed:
    """A job that an rq tool deleted while it runs, and one that waits for its place."""
    gated(bench, "a", "b", lm=C1)
    (a,) = bench.claim(10).jobs
    bench.redis.delete("rq:job:a")
    return a


def test_the_end_of_a_run_whose_job_was_deleted_gives_the_place_back(bench: Bench) -> None:
    assert bench.settle(lost_hash(bench), kind="succeeded") == ["gone"]
    assert not bench.redis.exists("jobq:held:c:t")
    assert open_gates(bench) == 2, "at once"


def test_the_end_of_a_run_whose_job_is_of_another_type_gives_the_place_back(bench: Bench) -> None:
    a = lost_hash(bench)
    bench.redis.set("rq:job:a", "x")
    assert bench.settle(a, kind="succeeded") == ["gone"]
    assert open_gates(bench) == 2, "at once"


def test_the_rescue_of_a_run_whose_job_was_deleted_gives_the_place_back(bench: Bench) -> None:
    lost_hash(bench)
    for later in (9_000, 11_999):
        bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now + later))
    bench.redis.zadd("jobq:gates", {"c:t": T0 + 99_000})
    bench.now += 13_500
    bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now))
    assert not bench.redis.exists("jobq:held:c:t")
    assert open_gates(bench) == 2, "at once"


@pytest.mark.covers("L-04")
def test_a_place_without_a_lease_heals_by_itself(bench: Bench) -> None:
    """Whatever killed the holder and its traces: who has no lease holds nothing."""
    gated(bench, "a", "b", "c", lm=C1)
    bench.redis.zadd("jobq:held:c:t", {"dead:ex.0": T0 - 1})
    assert ids(bench.claim(10)) == ["a"]
    bench.redis.delete("jobq:leases", "rq:wip:q", "rq:job:a")  # as after a rollback to before its claim
    assert open_gates(bench) == 0, "nobody has said so"
    bench.now += 2_000
    assert open_gates(bench) == 2
    assert ids(bench.claim(10)) == ["b"]


def test_the_gate_of_one_task_in_several_queues(bench: Bench) -> None:
    gated(bench, "a", lm=C1)
    gated(bench, "b", lm=C1, queue="q2")
    (a,) = bench.claim(10).jobs
    assert ids(bench.claim(10, queue="q2")) == []
    bench.settle(a, kind="succeeded")
    open_gates(bench)
    assert bench.waiting("q2") == ["b"]
    assert ids(bench.claim(10, queue="q2")) == ["b"]


@pytest.mark.parametrize("word", ["cancel", "delete", "withdraw"])
def test_a_job_that_waits_at_a_gate_can_leave(bench: Bench, word: str) -> None:
    gated(bench, "a", "b", lm=C1)
    bench.claim(10)
    step = {"cancel": calls.cancel, "delete": calls.delete, "withdraw": calls.withdraw}[word](bench.keys, "b")
    bench.run(step)  # type: ignore[arg-type]
    for key in ("jobq:gate:c:t", "jobq:blocked:q", "rq:deferred:q"):
        assert not bench.redis.exists(key)
    bench.now += 2_000
    assert open_gates(bench) == 1, "the gate alone, which is forgotten"
    assert not bench.redis.exists("jobq:gates")


def test_what_an_rq_tool_took_from_a_gate_is_passed_over(bench: Bench) -> None:
    gated(bench, "a", "b", "c", lm=C1)
    (a,) = bench.claim(10).jobs
    bench.redis.delete("rq:job:b")
    bench.settle(a, kind="succeeded")
    while open_gates(bench):
        pass
    assert ids(bench.claim(10)) == ["c"]
    assert bench.redis.zrem("rq:deferred:q", "b") == 1  # rq's delete has left the registry itself


@pytest.mark.parametrize("limit", [1, 3])
def test_a_thousand_blocked_jobs_cost_a_claim_nothing(bench: Bench, limit: int) -> None:
    for start in range(0, 500, 100):
        gated(bench, *(f"t{n:04}" for n in range(start, start + 100)), lm=Rate(limit).gate("r:t"))
    bench.enqueue("other")
    found: list[str] = []
    for _ in range(20):
        found += ids(bench.claim(10))
    assert found == [*(f"t{n:04}" for n in range(limit)), "other"]
    assert bench.redis.zcard("jobq:gate:r:t") == 500 - limit


# --------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("rate", [Rate(5, per=1), Rate(7, per=1, burst=3), Rate(5, per=1, burst=1)])
def test_no_window_of_the_handlers_clocks_holds_more(bench: Bench, rate: Rate) -> None:
    rand = random.Random(4)
    lm = rate.gate("r:t")
    gated(bench, *(f"j{n:03}" for n in range(100)), lm=lm)
    started: list[float] = []
    while bench.now < T0 + 12_000 and len(started) < 100:
        bench.now += rand.randrange(1, 90)
        open_gates(bench)
        for job in bench.claim(rand.randrange(1, 8), ex=f"e{rand.randrange(3)}").jobs:
            started.append(bench.now + rand.uniform(0, 50))  # a start follows its claim
            bench.settle(job, kind="succeeded")
    started.sort()
    for at in started:
        assert sum(at <= other < at + 1_000 for other in started) <= rate.limit
    span = (started[-1] - started[0]) / 1_000
    sustained = rate.limit - (rate.burst or 0)
    assert len(started) >= 0.8 * sustained * span, "a limit, not a halt"


def test_a_burst_then_one_by_one(bench: Bench) -> None:
    lm = Rate(13, per=60, burst=3).gate("r:t")
    gated(bench, *"abcdefgh", lm=lm)
    assert ids(bench.claim(10)) == ["a", "b", "c"]
    (at,) = bench.zset("jobq:gates").values()
    assert at == T0 + SPAN / 10
    bench.now = int(at)
    open_gates(bench)
    assert ids(bench.claim(10)) == ["d"]


# --------------------------------------------------------------------------- what jobs cost

W10 = Rate(10, cost="{rows}")


def weighing(bench: Bench, rate: Rate = W10, /, **costs: int) -> None:
    """Enqueue jobs by their costs."""
    for name, rows in costs.items():
        gated(bench, name, lm=rate.gate("w:t", {"rows": rows}))


def weighed(bench: Bench) -> dict[str, float]:
    """What counts in the window, by member; that their sum is right is looked at by the way."""
    found = bench.zset("jobq:rate:w:t")
    assert found.pop("~sum", 0) == sum(int(member.rpartition(":")[2]) for member in found)
    return found


def test_a_job_uses_up_what_it_costs(bench: Bench) -> None:
    weighing(bench, a=4, b=5, c=2, d=1)
    assert ids(bench.claim(10)) == ["a", "b"]
    assert weighed(bench) == {"a:ex.1:4": T0, "b:ex.1:5": T0}
    assert list(bench.zset("jobq:gate:w:t")) == ["c", "d"], "d would fit, and does not go past"
    assert bench.zset("jobq:gates") == {"w:t": T0 + SPAN}
    bench.now += SPAN - 1
    assert open_gates(bench) == 0
    bench.now += 1
    assert open_gates(bench) == 3, "two jobs, one gate"
    assert ids(bench.claim(10)) == ["c", "d"]
    assert list(weighed(bench)) == ["c:ex.2:2", "d:ex.2:1"]


def test_whoever_takes_a_lot_is_not_passed_by_those_who_take_little(bench: Bench) -> None:
    weighing(bench, a=6, big=9)
    bench.claim(10)
    for number in range(5):
        bench.now += 1_000
        weighing(bench, **{f"small{number}": 1})
        open_gates(bench)
        assert ids(bench.claim(10)) == []
    bench.now = T0 + SPAN
    open_gates(bench)
    assert ids(bench.claim(10)) == ["big", "small0"]
    (at,) = bench.zset("jobq:gates").values()
    assert at == T0 + 2 * SPAN


def test_a_gate_says_when_enough_has_left_the_window(bench: Bench) -> None:
    weighing(bench, a=3)
    bench.claim(1)
    bench.now += 1_000
    weighing(bench, b=4)
    bench.claim(1)
    bench.now += 1_000
    weighing(bench, c=3)
    bench.claim(1)
    weighing(bench, d=6)
    assert ids(bench.claim(1)) == []
    assert bench.zset("jobq:gates") == {"w:t": T0 + 1_000 + SPAN}, "when b has left as well as a"
    bench.now = T0 + SPAN
    bench.redis.zadd("jobq:gates", {"w:t": 0})
    assert open_gates(bench) == 1
    assert bench.zset("jobq:gates") == {"w:t": T0 + 1_000 + SPAN}


def test_who_comes_to_stand_first_at_a_gate_is_looked_at_when_it_fits(bench: Bench) -> None:
    """As a job does that waited elsewhere since before those that stand there."""
    weighing(bench, a=4)
    bench.claim(10)
    bench.now += 1_000
    weighing(bench, b=5)
    bench.claim(10)
    weighing(bench, big=6, older=3)
    bench.redis.hset("rq:job:older", "q", str(T0))
    assert ids(bench.claim(10)) == []
    assert list(bench.zset("jobq:gate:w:t")) == ["older", "big"]
    assert bench.zset("jobq:gates") == {"w:t": T0 + SPAN}


def test_what_never_started_gives_its_cost_back(bench: Bench) -> None:
    weighing(bench, a=6, b=4)
    a, b = bench.claim(10).jobs
    bench.settle(a, kind="hand_back", repeats=2)
    assert list(weighed(bench)) == ["b:ex.1:4"]
    bench.settle(b, kind="interrupted")
    assert list(weighed(bench)) == ["b:ex.1:4"]
    assert ids(bench.claim(10)) == ["b"], "it stands in front, and both its starts count"
    assert weighed(bench) == {"b:ex.1:4": T0, "b:ex.2:4": T0}


def test_a_bucket_gives_each_job_what_it_costs(bench: Bench) -> None:
    rate = Rate(16, burst=6, cost="{rows}")
    for name, rows in (("a", 4), ("b", 3), ("c", 1)):
        gated(bench, name, lm=rate.gate("w:t", {"rows": rows}))
    assert ids(bench.claim(10)) == ["a"]
    step = SPAN / 10
    assert bench.zset("jobq:gates") == {"w:t": T0 + step}, "2 are left, and b needs 3; c does not go past"
    bench.now += int(step)
    assert open_gates(bench) == 2
    assert ids(bench.claim(10)) == ["b"]


def test_jobs_of_before_costs_were_known_go_on(bench: Bench) -> None:
    gated(bench, "old", lm="r,1,60000,0,r:t")
    weighing(bench, new=10)
    assert ids(bench.claim(10)) == ["old", "new"], "two counts"


def test_a_lowered_limit_lets_what_costs_more_go_alone(bench: Bench) -> None:
    gated(bench, "a", "b", lm="w,5,60000,0,w:t,8")
    assert ids(bench.claim(10)) == ["a"]
    bench.now += SPAN
    open_gates(bench)
    assert ids(bench.claim(10)) == ["b"]


def test_jobs_that_state_different_limits_share_a_count(bench: Bench) -> None:
    """As of one key over several tasks, or while a new version is rolled out; also within one claim."""
    for name, limit in (("a", 5), ("b", 5), ("c", 2), ("d", 5)):
        gated(bench, name, lm=Rate(limit).gate("r:@:x"))
    assert ids(bench.claim(10)) == ["a", "b", "d"]
    assert bench.hash("c")["park"] == "rate"


@pytest.mark.parametrize(
    "rate",
    [
        Rate(50, per=1, cost="{rows}"),
        Rate(50, per=1, cost="{rows}", burst=10),
        Rate(500, per=1, cost="{rows}"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_window_costs_more_than_its_limit(bench: Bench, rate: Rate, seed: int) -> None:
    rand = random.Random(seed)
    costs = {f"j{n:03}": rand.choice((1, 2, 3, 9, 10)) * max(1, rate.limit // 50) for n in range(120)}
    for number, cost in costs.items():
        weighing(bench, rate, **{number: cost})
        bench.now += 1
    order, started = list(costs), []
    end, handed_back = T0 + 30_000, 0
    while bench.now < end and len(started) < len(costs):
        bench.now += rand.randrange(1, 60)
        open_gates(bench)
        for job in bench.claim(rand.randrange(1, 8), ex=f"e{rand.randrange(3)}").jobs:
            if rand.random() < 0.1:
                handed_back += 1
                bench.settle(job, kind="hand_back")
                continue
            started.append((bench.now + rand.uniform(0, 50), job.id))
            bench.settle(job, kind="succeeded")
        if rate.burst is None:
            assert sum(int(member.rpartition(":")[2]) for member in weighed(bench)) <= rate.limit
    assert handed_back > 0
    assert len(started) == len(costs), "nobody waits for ever"
    started.sort()
    for at, _ in started:
        assert sum(costs[name] for other, name in started if at <= other < at + 1_000) <= rate.limit
    # The first window and the last are not whole ones; what is handed back to a bucket is used up.
    span = (started[-1][0] - started[0][0]) / 1_000
    sustained = (rate.limit - (rate.burst or 0)) * (1 if rate.burst is None else 0.9)
    assert sum(costs.values()) >= 0.75 * sustained * span, "a limit, not a halt"
    # With another one of its key waiting, nobody is passed but by those of a claim or two.
    places = [order.index(name) for _, name in started]
    assert max(place - at for at, place in enumerate(places)) < 30


def test_a_window_holds_no_more_than_so_many_starts(bench: Bench) -> None:
    rate = Rate(1_000_000, cost="{rows}")
    starts = {f"x{n}:ex.0:1": T0 for n in range(9_999)}
    bench.redis.zadd("jobq:rate:w:t", starts | {"~sum": 9_999})
    weighing(bench, rate, a=5, b=5)
    assert ids(bench.claim(1)) == ["a"]
    assert ids(bench.claim(1)) == []
    bench.now += SPAN
    open_gates(bench)
    assert ids(bench.claim(1)) == ["b"]
    assert list(weighed(bench)) == ["b:ex.3:5"]


# --------------------------------------------------------------------------- RateLimited


def test_rate_limited_closes_the_gate_of_the_task(bench: Bench) -> None:
    gated(bench, "a", "b", lm=f"{R2};{C1}")
    a = bench.claim(1).jobs[0]
    assert bench.settle(a, kind="limited", delay_ms=30_000, repeats=2) == ["already"]
    found = bench.hash("a")
    assert (found["status"], found["park"], found.get("attempts")) == ("deferred", "rate", None)
    assert ids(bench.claim(10)) == [], "nor does another of the task start"
    bench.now += 29_999
    assert open_gates(bench) == 0
    bench.now += 1
    assert open_gates(bench) == 2, "one start is still in the window"
    assert ids(bench.claim(10)) == ["a"]


def test_rate_limited_closes_the_gate_of_a_key_when_there_is_no_rate(bench: Bench) -> None:
    of_a, of_b = (Concurrency(2).gate(f"c:t:{key}") for key in "ab")
    gated(bench, "a1", "a2", "a3", lm=of_a)
    gated(bench, "b1", lm=of_b)
    a1, a2, _ = bench.claim(10).jobs
    assert (a1.id, a2.id) == ("a1", "a2"), "the third of its key waits"
    bench.settle(a1, kind="limited", delay_ms=30_000)
    found = bench.hash("a1")
    assert (found["status"], found["park"], found["pb"], found.get("attempts")) == (
        "deferred", "concurrency", "~gate:c:t:a", None,
    )  # fmt: skip
    gated(bench, "a4", lm=of_a)
    gated(bench, "b2", lm=of_b)
    bench.now += 29_999
    assert open_gates(bench) in (0, 1), "it is looked at, and stays closed"
    assert ids(bench.claim(10)) == ["b2"], "another key goes on"
    bench.now += 1
    open_gates(bench)
    assert ids(bench.claim(10)) == ["a1"], "the first of its key; one still runs"


LIMITS = {
    "no limit": ({}, ""),
    "a rate of the queue": ({"rate": Rate(10)}, ""),
    "a concurrency of the queue": ({"concurrency": 5}, ""),
    "a concurrency of the task": ({}, Concurrency(5).gate("c:t")),
}


@pytest.mark.parametrize("queue", LIMITS)
def test_rate_limited_closes_the_queue_when_no_rate_or_key_says_less(bench: Bench, queue: str) -> None:
    """Whatever limits there are: it is never a mere snooze of one job."""
    of_queue, lm = LIMITS[queue]
    limited(bench, **of_queue)  # type: ignore[arg-type]
    bench.enqueue("a", "b", fields={"lm": lm} if lm else {})
    a = bench.claim(1).jobs[0]
    assert bench.settle(a, kind="limited", delay_ms=30_000, repeats=2) == ["already"]
    assert bench.waiting() == ["a", "b"]
    assert bench.hash("a").get("attempts") is None
    bench.now += 29_999
    refused = bench.claim(1)
    assert (refused.status, refused.until_ms) == ("limited", T0 + 30_000)
    bench.now += 1
    found = bench.claim(1)
    assert (ids(found), found.limited) == (["a"], bool(of_queue))
    assert not bench.redis.hexists("jobq:q:q", "closed"), "what is over costs nobody anything"
    assert ids(bench.claim(10)) == ["b"]


def test_the_longest_of_several_counts(bench: Bench) -> None:
    bench.enqueue(*"abc")
    a, b = bench.claim(2).jobs
    bench.settle(a, kind="limited", delay_ms=30_000)
    bench.settle(b, kind="limited", delay_ms=10_000)
    assert bench.redis.hmget("jobq:q:q", "closed", "closed_by") == [b"%d" % (T0 + 30_000), b"a"]
    gated(bench, "x", "y", lm=Rate(9).gate("r:t"), queue="q2")
    x, y = bench.claim(2, queue="q2").jobs
    bench.settle(x, kind="limited", delay_ms=30_000, queue="q2")
    bench.settle(y, kind="limited", delay_ms=10_000, queue="q2")
    assert bench.redis.get("jobq:closed:r:t") == b"%d x" % (T0 + 30_000)
    assert bench.zset("jobq:gates") == {"r:t": T0 + 30_000}


@pytest.mark.parametrize("step", ["resume", "limit", "reset"])
def test_an_operator_opens_a_queue_that_was_told_to_slow_down(bench: Bench, step: str) -> None:
    a = bench.running("a")
    bench.settle(a, kind="limited", delay_ms=30_000)
    assert bench.claim(1).status == "limited"
    bench.run(
        {
            "resume": calls.resume(bench.keys, "q"),
            "limit": calls.limit(bench.keys, "q", Rate(5).gate("q:q")),
            "reset": calls.limit(bench.keys, "q", None),
        }[step]
    )
    assert ids(bench.claim(1)) == ["a"]


def test_an_operator_opens_the_gates_at_which_jobs_of_a_queue_wait(bench: Bench) -> None:
    for number in range(5):
        gated(bench, f"a{number}", lm=Rate(9).gate(f"r:t:{number}"))
    gated(bench, "other", lm=Rate(9).gate("r:t:other"), queue="q2")
    for queue in ("q", "q2"):
        for job in bench.claim(10, queue=queue).jobs:
            bench.settle(job, kind="limited", delay_ms=30_000, queue=queue)
    assert [bench.run(calls.lift(bench.keys, "q", at, 2, now_ms=bench.now)) for at in (0, 2, 4)] == [2, 2, 1]
    assert bench.redis.keys("jobq:closed:*") == [b"jobq:closed:r:t:other"]
    open_gates(bench)
    assert sorted(ids(bench.claim(10))) == [f"a{number}" for number in range(5)]
    assert bench.waiting("q2") == []


# --------------------------------------------------------------------------- quotas


@pytest.mark.covers("L-05")
def test_a_quota_counts_what_is_let_in(bench: Bench) -> None:
    quota = Quota(2, per=60).gate("n:t")
    bench.enqueue("x", dedup_key="t:1", dedup_mode="f")
    assert bench.enqueue("dup", quota=quota, dedup_key="t:1", dedup_mode="f") == [("duplicate", "x")]
    assert bench.enqueue("a", "b", "c", quota=quota) == [
        ("queued", "a"),
        ("queued", "b"),
        ("over_quota", "60000"),
    ]
    assert bench.enqueue("a", quota=quota) == [("mine", "a")], "the repeat of a lost reply is no second one"
    assert not bench.redis.exists("rq:job:c")
    bench.now += 59_999
    assert bench.enqueue("c", quota=quota) == [("over_quota", "1")]
    bench.now += 1
    assert bench.enqueue("c", quota=quota) == [("queued", "c")]
    assert bench.enqueue("d", "e", quota=quota) == [("queued", "d"), ("over_quota", "60000")]
    assert bench.enqueue("e") == [("queued", "e")], "whoever brings none is not counted"


def test_a_quota_with_a_burst(bench: Bench) -> None:
    quota = Quota(4, per=60, burst=2).gate("n:t")
    assert [word for word, _ in bench.enqueue(*"abc", quota=quota)] == ["queued", "queued", "over_quota"]
    ((_, waits),) = bench.enqueue("c", quota=quota)
    assert waits == "30000"
    bench.now += 30_000
    assert [word for word, _ in bench.enqueue("c", "d", quota=quota)] == ["queued", "over_quota"]


def test_a_quota_counts_what_jobs_cost(bench: Bench) -> None:
    quota = Quota(10, cost="{rows}")

    def ask(name: str, rows: int, **more: str) -> tuple[str, str]:
        (answer,) = bench.enqueue(name, quota=quota.gate("nw:t", {"rows": rows}), **more)
        return answer

    assert ask("a", 4) == ("queued", "a")
    bench.now += 1_000
    assert ask("b", 5) == ("queued", "b")
    assert ask("c", 2) == ("over_quota", "59000"), "when a has left"
    assert ask("c", 6) == ("over_quota", "60000"), "when b has left, too"
    assert ask("d", 1, dedup_key="t:1", dedup_mode="f") == ("queued", "d")
    bench.now = T0 + MINUTE
    assert ask("c", 4) == ("queued", "c")
    assert ask("e", 1) == ("over_quota", "1000")
    bench.now = T0 + 2 * MINUTE
    jobs = [
        bench.new(f"d{n}", dedup_key=f"t:d{n}", dedup_mode="f", quota=quota.gate("nw:t", {"rows": 4}))
        for n in range(4)
    ]
    answers = bench.run(calls.enqueue(bench.keys, "q", jobs, now_ms=bench.now))
    assert [word for word, _ in answers] == ["queued", "queued", "over_quota", "over_quota"]
    assert bench.zset("jobq:quota:nw:t") == {"~sum": 8, "d0:4": bench.now, "d1:4": bench.now}


def test_a_full_queue_uses_up_no_quota(bench: Bench) -> None:
    quota = Quota(2, per=60).gate("n:t")
    bench.redis.hset("jobq:q:q", "max", 1)
    assert [word for word, _ in bench.enqueue(*"abc", quota=quota)] == ["queued", "full", "full"]
    assert list(bench.zset("jobq:quota:n:t")) == ["a"]


@pytest.mark.parametrize("quota", [Quota(2, per=60), Quota(4, per=60, burst=2)])
def test_a_quota_counts_jobs_with_dedup_keys_within_one_call(bench: Bench, quota: Quota) -> None:
    jobs = [bench.new(f"d{n}", dedup_key=f"t:{n}", dedup_mode="f", quota=quota.gate("n:t")) for n in range(4)]
    answers = bench.run(calls.enqueue(bench.keys, "q", jobs, now_ms=bench.now))
    assert [word for word, _ in answers] == ["queued", "queued", "over_quota", "over_quota"]


# --------------------------------------------------------------------------- what the sequences of tests/model found


@pytest.mark.parametrize("how", ["cancelled", "deleted"])
def test_whom_rq_takes_away_from_a_gate_is_blocked_no_more(bench: Bench, how: str) -> None:
    """rq knows nothing of gates: what it leaves there goes at the next look, out of the queue's count too."""
    gated(bench, *"abc", lm=C1)
    (a,) = bench.claim().jobs
    if how == "cancelled":
        bench.redis.hset("rq:job:b", "status", "canceled")
        bench.redis.zrem("rq:deferred:q", "b")
        bench.redis.zadd("rq:canceled:q", {"b": bench.now / 1000})
    else:
        bench.redis.delete("rq:job:b")
    assert set(bench.zset("jobq:blocked:q")) == {"b", "c"}
    bench.settle(a, kind="succeeded")
    open_gates(bench)
    assert open_gates(bench) == 2
    assert bench.waiting() == ["c"]
    assert not bench.redis.exists("jobq:blocked:q", "jobq:gate:c:t", "jobq:gates")


@pytest.mark.parametrize("word", ["cancel", "delete", "withdraw"])
def test_who_leaves_the_line_makes_way_for_who_waits_at_the_gate(bench: Bench, word: str) -> None:
    """Those that a gate has let in have all its room, until they start, or go."""
    gated(bench, *"abcde", lm=R2)
    bench.claim()
    bench.now += SPAN
    assert open_gates(bench) == 3
    assert bench.waiting() == ["c", "d"]
    step = {"cancel": calls.cancel, "delete": calls.delete, "withdraw": calls.withdraw}[word](bench.keys, "c")
    bench.run(step)
    assert open_gates(bench) == 2
    assert sorted(ids(bench.claim())) == ["d", "e"]


@pytest.mark.parametrize("word", ["cancel", "delete", "withdraw"])
def test_behind_a_costly_job_that_leaves_a_gate_the_others_go_at_once(bench: Bench, word: str) -> None:
    heavy, light = (f"w,4,{MINUTE},0,w:t,{cost}" for cost in (3, 1))
    gated(bench, "a", "b", lm=heavy)
    gated(bench, "c", lm=light)
    assert ids(bench.claim()) == ["a"], "the light one does not go past the one that waits"
    step = {"cancel": calls.cancel, "delete": calls.delete, "withdraw": calls.withdraw}[word](bench.keys, "b")
    bench.run(step)
    assert open_gates(bench) == 2
    assert ids(bench.claim()) == ["c"]


HOUR = 3_600_000


def test_a_smaller_burst_empties_no_bucket_for_a_larger_one(bench: Bench) -> None:
    """As while a deploy lowers it: what the old version has let in counts on."""
    large, small = (Rate(burst + 3, 60, burst=burst).gate("r:t") for burst in (10, 2))
    names = [f"{number:02}" for number in range(12)]
    gated(bench, *names, lm=large)
    assert ids(bench.claim(12)) == names[:10]
    gated(bench, "small", lm=small)
    bench.claim(12)
    open_gates(bench)
    gated(bench, "more", lm=large)
    assert ids(bench.claim(12)) == []


@pytest.mark.parametrize("lm", [R2, f"w,2,{MINUTE},0,w:t,1"], ids=["starts", "costs"])
@pytest.mark.parametrize("waiting", [False, True], ids=["comes later", "waits"])
@pytest.mark.parametrize("back", [20_000, HOUR])
def test_a_clock_set_back_shuts_a_rate_for_a_window_at_most(
    bench: Bench, lm: str, waiting: bool, back: int
) -> None:
    """What has started counts on for a whole window, so that none holds more than the limit, and no longer."""
    bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now))
    gated(bench, "a", "b", lm=lm)
    assert ids(bench.claim()) == ["a", "b"]
    if waiting:
        gated(bench, "c", "d", lm=lm)
        assert ids(bench.claim()) == []
    bench.now -= back
    bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now))
    if not waiting:
        gated(bench, "c", "d", lm=lm)
    started: list[tuple[int, str]] = []
    for _ in range(2 * SPAN // 500):
        while open_gates(bench):
            pass
        claim = bench.claim()
        started += [(bench.now - (T0 - back), job_id) for job_id in ids(claim)]
        bench.now += 500
    assert [job_id for _, job_id in started] == ["c", "d"]
    assert SPAN <= started[0][0] <= started[1][0] <= SPAN + min(back, SPAN) + 500
    if back == HOUR:
        assert started[-1][0] <= SPAN + 500


def test_a_replayed_job_is_let_past_no_gate_for_its_earlier_life(bench: Bench) -> None:
    lm = Rate(4, cost=4).gate("w:t")
    gated(bench, "a", "b", "c", lm=lm)
    bench.claim()
    bench.now += SPAN
    assert open_gates(bench) == 2
    bench.run(calls.cancel(bench.keys, "b", now_ms=bench.now))
    bench.run(calls.replay(bench.keys, ["b"], now_ms=bench.now))
    assert ids(bench.claim()) == [], "c waits for longer"
    assert open_gates(bench) == 2
    assert ids(bench.claim()) == ["c"]
