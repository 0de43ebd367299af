"""Limits that operators set for tasks while they run: claim and open go by them, and every end frees what was taken."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import pytest

from jobq import calls, lua
from jobq.dedup import digest
from jobq.gates import gates_of
from jobq.keys import Keys
from jobq.limits import Concurrency, Rate
from jobq.overrides import Override, in_force, written
from jobq.steps import Claim
from tests.lua.conftest import T0, Bench

SECOND = 1_050
"""How long a start counts in a window of a second."""

ACME, OTHER = (f"t.x:{digest('t.x', key)}" for key in ("acme", "other"))
C3, R5 = Concurrency(3).gate("c:t.x"), Rate(5, 1).gate("r:t.x")


def ids(claim: Claim) -> list[str]:
    return [job.id for job in claim.jobs]


def until(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def put(bench: Bench, *overrides: Override, repeats: int = 1) -> None:
    """Have these set, and no others."""
    before = bench.redis.get(bench.keys.limits) or b""
    text = written({each.name: each for each in overrides})
    names = {each.name for each in overrides} | {"t.x", ACME, OTHER}
    gates = [f"{kind}:{name}" for name in sorted(names) for kind in "rwc"]
    assert bench.run(calls.override(bench.keys, before, text, gates, now_ms=bench.now), repeats=repeats)


def x(**options: Any) -> Override:
    return Override(task="t.x", **options)


def gated(bench: Bench, *names: str, lm: str = "") -> None:
    bench.enqueue(*names, fields={"lm": lm} if lm else {})


def open_gates(bench: Bench) -> int:
    answer: int = bench.run(calls.open_gates(bench.keys, now_ms=bench.now))
    return answer


def held(bench: Bench, gate: str) -> list[str]:
    return sorted(member.partition(":")[0] for member in bench.zset(f"{bench.keys.n}held:{gate}"))


# --------------------------------------------------------------------------- a whole task


def test_a_task_that_declares_nothing_gets_a_limit_and_loses_it(bench: Bench) -> None:
    put(bench, x(concurrency=2))
    gated(bench, *"abcde")
    claim = bench.claim(10)
    assert (ids(claim), [job.gated for job in claim.jobs]) == (["a", "b"], [True, True])
    assert held(bench, "c:t.x") == ["a", "b"]
    bench.settle(claim.jobs[0], kind="succeeded")
    assert open_gates(bench)
    assert ids(bench.claim(10)) == ["c"]
    put(bench)
    assert open_gates(bench)
    last = bench.claim(10)
    assert ids(last) == ["d", "e"], "at once, and all of them"
    assert "lo" not in bench.hash("d")
    assert held(bench, "c:t.x") == ["b", "c"], "who took a place under it frees it, whatever holds by now"
    for job in claim.jobs[1:]:
        assert bench.settle(job, kind="succeeded") == ["ok"]
    assert held(bench, "c:t.x") == ["c"]


@pytest.mark.parametrize("word", ["cancel", "delete", "withdraw"])
@pytest.mark.parametrize(
    ("options", "lm"),
    [
        ({"rate": Rate(2, 60)}, ""),
        ({"concurrency": 2}, ""),
        ({"rate": Rate(2, 60)}, C3),
        ({"key": "acme", "rate": Rate(2, 60)}, f"c,9,0,0,c:{ACME}"),
    ],
)
def test_who_leaves_the_line_makes_way_at_a_gate_that_is_set_alone(
    bench: Bench, word: str, options: dict[str, Any], lm: str
) -> None:
    put(bench, x(**options))
    gated(bench, *"abcde", lm=lm)
    running = bench.claim().jobs
    assert [job.id for job in running] == ["a", "b"]
    bench.now += 63_000
    bench.settle(*running, kind="succeeded")
    assert open_gates(bench) == 3
    assert bench.waiting() == ["c", "d"]
    step = {"cancel": calls.cancel, "delete": calls.delete, "withdraw": calls.withdraw}[word](bench.keys, "c")
    bench.run(step)
    assert open_gates(bench) == 2
    assert sorted(ids(bench.claim())) == ["d", "e"]


@pytest.mark.parametrize("repeats", [1, 3])
def test_what_waits_obeys_and_so_does_what_comes(bench: Bench, repeats: int) -> None:
    gated(bench, *"ab", lm=C3)
    put(bench, x(concurrency=1), repeats=repeats)
    gated(bench, *"cd", lm=C3)
    assert ids(bench.claim(10)) == ["a"]
    put(bench, x(concurrency=2), repeats=repeats)
    open_gates(bench)
    assert ids(bench.claim(10)) == ["b"], "looser, at once, and those that run count"
    put(bench, x(concurrency="none"))
    open_gates(bench)
    assert ids(bench.claim(10)) == ["c", "d"], "any number, over what is declared"


def test_a_lowered_limit_holds_for_new_starts_while_those_above_it_finish(bench: Bench) -> None:
    gated(bench, *"abcd", lm=C3)
    running = bench.claim(10).jobs
    put(bench, x(concurrency=1))
    for job in running[:2]:
        bench.settle(job, kind="succeeded")
        open_gates(bench)
        assert ids(bench.claim(10)) == []
    bench.settle(running[2], kind="succeeded")
    open_gates(bench)
    assert ids(bench.claim(10)) == ["d"]


def test_a_rate_is_another_within_the_window_of_the_old_one(bench: Bench) -> None:
    gated(bench, *"abcdefgh", lm=R5)
    put(bench, x(rate=Rate(2, 1)))
    assert ids(bench.claim(10)) == ["a", "b"]
    put(bench, x(rate=Rate(4, 10)))
    open_gates(bench)
    assert ids(bench.claim(10)) == ["c", "d"], "what has started counts on"
    bench.now += 2 * SECOND
    open_gates(bench)
    assert ids(bench.claim(10)) == []
    put(bench)
    open_gates(bench)
    assert ids(bench.claim(10)) == ["e", "f", "g", "h"], "5 in a second, as declared"


def test_a_rate_with_a_burst_in_place_of_one_without_and_back(bench: Bench) -> None:
    gated(bench, *(f"j{n}" for n in range(9)), lm=R5)
    assert len(bench.claim(2).jobs) == 2
    put(bench, x(rate=Rate(10, 1, burst=3)))
    assert len(bench.claim(10).jobs) == 3
    put(bench)
    bench.now += SECOND
    open_gates(bench)
    assert len(bench.claim(10).jobs) == 4


def test_nobody_starts_until_it_is_lifted(bench: Bench) -> None:
    put(bench, x(rate="stop"))
    gated(bench, "a")
    gated(bench, "b", lm=f"{R5};{C3}")
    assert ids(bench.claim(10)) == []
    assert bench.hash("a")["park"] == bench.hash("b")["park"] == "rate"
    for _ in range(3):
        bench.now += 3_000
        assert open_gates(bench)
        assert ids(bench.claim(10)) == []
    put(bench)
    for _ in range(2):
        open_gates(bench)
    assert sorted(ids(bench.claim(10))) == ["a", "b"]


def test_it_ends_by_itself(bench: Bench) -> None:
    """And whoever waits for a rate that opens far later is looked at then."""
    put(bench, x(rate=Rate(1, 3600), until=until(T0 + 5_000)))
    gated(bench, *"abc")
    assert ids(bench.claim(10)) == ["a"]
    bench.now = T0 + 4_999
    assert not open_gates(bench)
    bench.now += 1
    assert open_gates(bench)
    assert ids(bench.claim(10)) == ["b", "c"]


def test_it_expires_when_all_of_it_is_over(bench: Bench) -> None:
    text = written({"t.x": x(rate="stop", until=until(T0 + 60_000))})
    bench.run(calls.override(bench.keys, "", text, [], T0 + 60_000))
    assert bench.redis.pexpiretime(bench.keys.limits) == T0 + 60_000
    put(bench, x(rate="stop"))
    assert bench.redis.ttl(bench.keys.limits) == -1


def test_two_operators_at_once(bench: Bench) -> None:
    mine, theirs = written({"t.x": x(rate="stop")}), written({"t.y": Override(task="t.y", rate="stop")})
    assert bench.run(calls.override(bench.keys, "", mine, []))
    assert not bench.run(calls.override(bench.keys, "", theirs, [])), "it was read before"
    assert bench.redis.get(bench.keys.limits).decode() == mine


def test_a_task_that_another_ones_name_begins_with_is_left_alone(bench: Bench) -> None:
    put(bench, Override(task="t", rate="stop"), Override(task="t.x.y", rate="stop"))
    gated(bench, "a")
    assert ids(bench.claim(10)) == ["a"]


def test_a_job_of_plain_rqs_is_limited_too(bench: Bench) -> None:
    put(bench, Override(task="shop.mail", concurrency=1))
    for name in "ab":
        fields = {"description": f"shop.mail('{name}')"}
        bench.redis.hset(
            f"rq:job:{name}", mapping={"status": "queued", "data": b"x", "origin": "q", **fields}
        )
        bench.redis.rpush("rq:queue:q", name)
    (job,) = bench.claim(10).jobs
    assert (job.id, job.gated, job.rq is not None) == ("a", True, True)
    bench.settle(job, kind="succeeded")
    open_gates(bench)
    assert ids(bench.claim(10)) == ["b"]


# --------------------------------------------------------------------------- keys, scopes, costs


def test_one_key_of_a_limit(bench: Bench) -> None:
    for name, whose in (("a1", ACME), ("a2", ACME), ("o1", OTHER), ("o2", OTHER)):
        gated(bench, name, lm=f"c,2,0,0,c:{whose}")
    put(bench, x(key="acme", concurrency="stop"))
    assert ids(bench.claim(10)) == ["o1", "o2"]
    put(bench, x(key="acme", concurrency=1), x(concurrency=2))
    open_gates(bench)
    assert ids(bench.claim(10)) == ["a1"], "the key's own counts before the task's"


def test_a_task_with_keys_is_limited_for_each(bench: Bench) -> None:
    put(bench, x(concurrency=1))
    for name, whose in (("a1", ACME), ("a2", ACME), ("o1", OTHER)):
        gated(bench, name, lm=f"c,2,0,0,c:{whose}")
    assert ids(bench.claim(10)) == ["a1", "o1"]


def test_a_key_of_a_rate_may_get_a_concurrency(bench: Bench) -> None:
    put(bench, x(key="acme", concurrency=1))
    for name, whose in (("a1", ACME), ("a2", ACME), ("o1", OTHER), ("o2", OTHER)):
        gated(bench, name, lm=f"r,9,1000,0,r:{whose}")
    assert ids(bench.claim(10)) == ["a1", "o1", "o2"]


def test_a_limit_that_tasks_share_stays_and_what_is_set_comes_on_top(bench: Bench) -> None:
    shared = "r,3,1000,0,r:@:d"
    put(bench, x(rate=Rate(2, 1)))
    gated(bench, *"abc", lm=shared)
    bench.enqueue(*"xyz", fields={"lm": shared, "description": "t.other"})
    assert ids(bench.claim(10)) == ["a", "b", "x"]


def test_jobs_keep_what_they_cost(bench: Bench) -> None:
    put(bench, x(rate=Rate(10, 1)))
    for name, cost in (("a", 4), ("b", 6)):
        gated(bench, name, lm=Rate(100, 1, cost=cost).gate("w:t.x"))
    claim = bench.claim(10)
    assert ids(claim) == ["a", "b"]
    bench.settle(claim.jobs[0], kind="hand_back")
    assert bench.zset("jobq:rate:w:t.x")["~sum"] == 6, "what never started gives back what it had taken"
    put(bench, x(rate=Rate(3, 1)))
    bench.now += SECOND
    open_gates(bench)
    assert ids(bench.claim(10)) == ["a"], "what costs more than there ever is goes alone"
    assert bench.zset("jobq:rate:w:t.x")["~sum"] == 3


# --------------------------------------------------------------------------- places


@pytest.mark.parametrize("after", ["set", "cleared", "stopped"])
@pytest.mark.parametrize(
    "end",
    ["succeeded", "retry", "dead", "snooze", "cancelled", "park", "hand_back", "interrupted", "limited"],
)
def test_every_end_frees_what_was_taken_whatever_holds_by_then(bench: Bench, end: str, after: str) -> None:
    put(bench, x(concurrency=1))
    gated(bench, "a")
    (job,) = bench.claim(10).jobs
    put(bench, *{"set": [x(concurrency=5)], "cleared": [], "stopped": [x(concurrency="stop")]}[after])
    bench.settle(job, kind=end, bucket="b", reason="no_key", repeats=2)
    assert held(bench, "c:t.x") == []


@pytest.mark.parametrize("after", ["set", "cleared"])
def test_a_rescue_frees_what_was_taken(bench: Bench, after: str) -> None:
    put(bench, x(concurrency=1))
    gated(bench, *"ab")
    bench.claim(10)
    bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now))
    bench.now += 5_000
    bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now))
    if after == "cleared":
        put(bench)
    for _ in range(4):
        bench.now += 3_500
        bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now))
    assert bench.status("a") == "queued"
    assert held(bench, "c:t.x") == []
    open_gates(bench)
    assert len(bench.claim(10).jobs) == (2 if after == "cleared" else 1)


def test_a_run_that_began_before_counts(bench: Bench) -> None:
    gated(bench, "a")
    gated(bench, "b", lm=R5)
    gated(bench, "c", lm=C3)
    bench.enqueue("z", fields={"description": "t.other"})
    before = bench.claim(10).jobs
    put(bench, x(concurrency=3))
    members = [f"{job.id}:{job.token}" for job in before]
    assert bench.run(calls.hold(bench.keys, members, now_ms=bench.now)) == 2
    assert bench.run(calls.hold(bench.keys, members, now_ms=bench.now)) == 0, "a second time nothing"
    assert held(bench, "c:t.x") == ["a", "b", "c"]
    assert bench.hash("b")["lo"] == f"{R5};{C3}"
    gated(bench, "d")
    assert ids(bench.claim(10)) == []
    put(bench)
    for job in before:
        bench.settle(job, kind="succeeded")
    assert held(bench, "c:t.x") == []


def test_a_run_that_has_ended_gets_no_place(bench: Bench) -> None:
    gated(bench, "a")
    (job,) = bench.claim(10).jobs
    put(bench, x(concurrency=1))
    bench.settle(job, kind="succeeded")
    assert bench.run(calls.hold(bench.keys, [f"a:{job.token}"], now_ms=bench.now)) == 0
    assert held(bench, "c:t.x") == []


def test_a_repeated_claim_says_the_same(bench: Bench) -> None:
    put(bench, x(concurrency=1))
    gated(bench, *"ab")
    call = bench.claim_call(10)
    assert [[(job.id, job.gated) for job in bench.run(call).jobs] for _ in range(3)] == [[("a", True)]] * 3
    assert held(bench, "c:t.x") == ["a"]


def test_who_was_told_to_slow_down_waits_whatever_is_set(bench: Bench) -> None:
    put(bench, x(rate="none"))
    gated(bench, *"ab", lm=R5)
    (job,) = bench.claim(1).jobs
    bench.settle(job, kind="limited", delay_ms=5_000)
    assert ids(bench.claim(10)) == []
    bench.now += 4_000
    open_gates(bench)
    assert ids(bench.claim(10)) == []
    bench.now += 1_000
    open_gates(bench)
    assert ids(bench.claim(10)) == ["a", "b"]


# --------------------------------------------------------------------------- damage, and who holds whom to it


@pytest.mark.parametrize(
    "text",
    ["", "{", "\n", "\nt.x", "\nt.x ", "\nt.x 0 ", "\nt.x 0 - -", "\nt.x 0 x y z {}\n", "\nt.x -1 s,0,0,0 - - {}\n",
     "\nt.x 0 c,1,0,0 r,1,1,0 r,1,1000,0 {}\n", "\nt.x 0 r,0,1000,0 w,0,1,0 c,0,0,0 {}\n",
     "\nt.x 0 b,5,1000,9 - - {}\n",
     f"\nt.x 0 - - c,{'1' * 13},0,0 {{}}\n", f"\nt.x {'9' * 16} s,0,0,0 - - {{}}\n", "\nt.x 0\x00\xff s,0,0,0 - -"],
)  # fmt: skip
def test_what_makes_no_sense_sets_nothing(bench: Bench, text: str) -> None:
    bench.redis.set(bench.keys.limits, text)
    gated(bench, "a")
    gated(bench, "b", lm=C3)
    assert ids(bench.claim(10)) == ["a", "b"]
    assert in_force(C3, "t.x", text, bench.now) == (C3, None)


def test_a_key_of_another_type_sets_nothing_and_is_written_over(bench: Bench) -> None:
    bench.redis.lpush(bench.keys.limits, "x")
    gated(bench, *"ab")
    assert ids(bench.claim(1)) == ["a"]
    assert bench.run(calls.override(bench.keys, "", written({"t.x": x(rate="stop")}), []))
    assert ids(bench.claim(1)) == []


def test_a_prefix_has_limits_of_its_own(bench: Bench) -> None:
    put(bench, x(rate="stop"))
    other = Bench(bench.redis, Keys("other"))
    other.enqueue("a")
    assert other.keys.limits == "jobq:other:limits"
    assert ids(other.claim(10)) == ["a"]


def test_a_gate_of_these_kinds_in_a_jobs_own_hash_limits_nothing(bench: Bench) -> None:
    gated(bench, "a", lm="s,0,0,0,c:t.x")
    assert ids(bench.claim(10)) == ["a"]
    assert gates_of("s,0,0,0,c:t.x") == ()


def test_all_scripts_go_by_the_same_rules() -> None:
    def rules(name: str) -> str:
        text = lua.script(name).text.decode()
        return text[
            text.index("-- What operators have set for a task") : text.index(
                "  return table.concat(out, ';'), ends"
            )
        ]

    assert rules("claim") == rules("open") == rules("hold")


RATES = (None, "none", "stop", Rate(3, 1), Rate(9, 2, burst=4), Rate(30_000, 1))
LM = (
    "", C3, R5, f"{R5};{C3}", f"r,4,1000,0,r:{ACME};c,2,0,0,c:{ACME}", f"r,4,1000,0,r:{ACME};c,2,0,0,c:{OTHER}",
    f"w,50,1000,0,w:{ACME},20", "b,50,1000,9,w:t.x,4", f"r,5,1000,0,r:@:d;c,2,0,0,c:{ACME}", "c,5,0,0,c:@q:d", "x",
    "z,1,2,3,q:t.x",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_the_reader_has_the_same_rules_as_claim(bench: Bench, seed: int) -> None:
    """What a run has passed is what ``in_force`` says."""
    rand = random.Random(seed)
    sets = [x(key=key, rate=rate, concurrency=many) for key in (None, "acme", "other")
            for rate in RATES for many in (None, "none", 7)]  # fmt: skip
    chosen = [pair for pair in combinations(sets, 2) if pair[0].name != pair[1].name and "stop" not in
              (pair[0].rate, pair[1].rate)]  # fmt: skip
    for number, pair in enumerate(rand.sample(chosen, 12)):
        bench.redis.flushdb()
        put(bench, *pair)
        text = bench.redis.get(bench.keys.limits).decode()
        for place, lm in enumerate(LM):
            job_id = f"j{number}-{place}"
            gated(bench, job_id, lm=lm)
            bench.now += 10_000
            claim = bench.claim(10)
            expected, ends = in_force(lm, "t.x", text, bench.now)
            assert ids(claim) == [job_id], (pair, lm)
            assert bench.hash(job_id).get("lo") == (None if ends is None else expected), (pair, lm)
            bench.settle(*claim.jobs, kind="succeeded")
