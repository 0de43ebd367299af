"""Every way back into a queue keeps a job's order and its tenant; every way out leaves no place behind."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from jobq import calls, lua, schedule_calls
from jobq.control import delete_many, hasten, move_many
from jobq.schedule_calls import SlotJob
from tests.lua.conftest import Bench
from tests.lua.test_order import drained
from tests.lua.test_schedules import Schedules, stored

BIG, SMALL = "b" * 32, "s" * 32
NAMES = [f"big{n:02}" for n in range(12)]
GATE = "r,1000,60000,0,r:t"


def delayed(bench: Bench, **asked: Any) -> None:
    bench.enqueue(*NAMES, delay_ms=1_000, **asked)
    bench.now += 1_000
    bench.run(calls.promote(bench.keys, ["q"], now_ms=bench.now))


def retried(bench: Bench, **asked: Any) -> None:
    bench.enqueue(*NAMES, **asked)
    bench.settle(*bench.claim(100).jobs, kind="retry", spends=True, delay_ms=100)
    bench.now += 100
    bench.run(calls.promote(bench.keys, ["q"], now_ms=bench.now))


def hastened(bench: Bench, **asked: Any) -> None:
    bench.enqueue(*NAMES, delay_ms=60_000, **asked)
    bench.run(hasten(bench.keys, NAMES, now_ms=bench.now))


def let_in(bench: Bench, **asked: Any) -> None:
    bench.redis.set("jobq:closed:r:t", bench.now + 1_000)
    bench.enqueue(*NAMES, fields={"lm": GATE}, **asked)
    while bench.claim(100).more:
        pass
    assert bench.waiting() == []
    bench.now += 1_000
    bench.redis.zadd("jobq:gates", {"r:t": bench.now})
    bench.run(calls.open_gates(bench.keys, now_ms=bench.now))


def unparked(bench: Bench, **asked: Any) -> None:
    bench.enqueue(*NAMES, **asked)
    bench.settle(*bench.claim(100).jobs, kind="park", reason="r", bucket="t")
    bench.run(calls.unpark(bench.keys, "q", "t", now_ms=bench.now))


def released(bench: Bench, **asked: Any) -> None:
    parent = bench.running("parent")
    for name in NAMES:
        fields = bench.new(name, **asked).fields
        bench.redis.hset(f"rq:job:{name}", mapping={"status": "deferred", "q": bench.now, **fields})
        bench.redis.zadd("rq:deferred:q", {name: bench.now / 1000})
        bench.redis.sadd("rq:job:parent:dependents", name)
        bench.redis.sadd(f"rq:job::{name}:dependencies", "parent")
    bench.settle(parent, kind="succeeded")
    bench.run(calls.release(bench.keys, now_ms=bench.now))


def fired(bench: Bench, **asked: Any) -> None:
    on, made = Schedules(bench), stored()
    on.put(made)
    (taken,) = on.take()
    jobs = [SlotJob(bench.now + n, name, bench.new(name, **asked).fields) for n, name in enumerate(NAMES)]
    bench.run(
        schedule_calls.fire(
            bench.keys, taken, made, jobs, next_slot=bench.now + 1000, missed=0, now_ms=bench.now
        )
    )


def handed_back(bench: Bench, **asked: Any) -> None:
    bench.enqueue(*NAMES, **asked)
    bench.settle(*bench.claim(100).jobs, kind="hand_back")


def rescued(bench: Bench, **asked: Any) -> None:
    bench.enqueue(*NAMES, **asked)
    bench.claim(100)
    for _ in range(3):
        bench.now += 12_000
        bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now))
        bench.now += 3_999
        bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now))
        bench.now += 2
        bench.run(calls.rescue(bench.keys, 12_000, now_ms=bench.now))


def replayed(bench: Bench, **asked: Any) -> None:
    bench.enqueue(*NAMES, **asked)
    bench.settle(*bench.claim(100).jobs, kind="dead")
    bench.run(calls.replay(bench.keys, NAMES, now_ms=bench.now))


def moved(bench: Bench, **asked: Any) -> None:
    bench.enqueue(*NAMES, queue="q2", **asked)
    bench.run(move_many(bench.keys, "q2", "q", NAMES))
    assert not bench.redis.keys("jobq:*:q2*") or set(bench.redis.keys("jobq:*:q2*")) <= {
        b"jobq:turns:q2",
        b"jobq:q:q2",
    }


WAYS: list[Callable[..., None]] = [
    delayed, retried, hastened, let_in, unparked, released, fired, handed_back, rescued, replayed, moved,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_tenants_many_jobs_do_not_hold_up_anothers_one(bench: Bench, way: Callable[..., None]) -> None:
    way(bench, tenant=BIG)
    assert sorted(bench.waiting()) == NAMES
    bench.enqueue("small", tenant=SMALL)
    found = drained(bench)
    assert "small" in found[:2]
    bigs = [name for name in found if name != "small"]
    assert (sorted(bigs) if way is released else bigs) == NAMES, "in their order, where they have one"
    assert not bench.redis.exists("jobq:turns:q", "jobq:fair:q", f"jobq:turn:q:{BIG}", "jobq:q:q")


@pytest.mark.parametrize("way", WAYS)
def test_an_order_is_kept(bench: Bench, way: Callable[..., None]) -> None:
    way(bench, order=1)
    bench.now += 1
    bench.enqueue("urgent", order=1)
    bench.enqueue("plain")
    bench.enqueue("last", order=10)
    found = drained(bench)
    assert found[len(NAMES) :] == ["urgent", "plain", "last"]
    assert (sorted(found[: len(NAMES)]) if way is released else found[: len(NAMES)]) == NAMES
    assert not bench.redis.exists("jobq:order:q", "jobq:q:q")


def test_a_job_that_comes_back_stands_before_its_tenants_younger_ones(bench: Bench) -> None:
    bench.enqueue("a", "b", tenant=BIG)
    held = bench.claim(1).jobs
    bench.now += 1_000
    bench.enqueue("c", tenant=BIG)
    bench.settle(*held, kind="hand_back")
    assert drained(bench) == ["a", "b", "c"]


# --------------------------------------------------------------------------- order and tenants in one queue


def test_one_job_with_an_order_leaves_the_turns_as_they_are(bench: Bench) -> None:
    bench.enqueue("urgent", order=1)
    bench.enqueue(*NAMES, tenant=BIG)
    bench.enqueue("small0", "small1", tenant=SMALL)
    bench.enqueue("plain")
    bench.enqueue("late", order=10)
    found = drained(bench)
    assert set(found[:3]) == {"urgent", NAMES[0], "small0"}
    assert set(found[3:6]) == {"plain", NAMES[1], "small1"}
    assert set(found[6:8]) == {"late", NAMES[2]}
    assert found[8:] == NAMES[3:]
    assert not bench.redis.exists("jobq:turns:q", "jobq:fair:q", "jobq:order:q", "jobq:q:q")


def test_nobody_goes_before_a_tenant_that_has_just_come_twice(bench: Bench) -> None:
    """Nor does it go before anybody twice, though its name and theirs would have it so."""
    bench.enqueue("b0", "b1", tenant=BIG)
    bench.enqueue("s0", "s1", tenant=SMALL)
    assert [job.id for job in bench.claim(1).jobs] == ["b0"]
    bench.enqueue("z0", "z1", tenant="z" * 32)
    bench.enqueue("a0", "a1", tenant="a" * 32)
    assert drained(bench) == ["s0", "a0", "z0", "b1", "s1", "a1", "z1"]


def test_an_order_counts_among_a_tenants_jobs(bench: Bench) -> None:
    bench.enqueue("b-last", tenant=BIG, order=10)
    bench.enqueue("b0", "b1", tenant=BIG)
    bench.enqueue("b-first", tenant=BIG, order=1)
    bench.enqueue("s0", "s1", tenant=SMALL)
    found = drained(bench)
    assert [name for name in found if name[0] == "b"] == ["b-first", "b0", "b1", "b-last"]
    assert set(found[:2]) == {"b-first", "s0"}, "however urgent, a tenant's job waits for its turn"


def test_who_has_to_wait_at_a_gate_holds_up_no_other_tenant(bench: Bench) -> None:
    bench.redis.set("jobq:closed:r:t", bench.now + 1_000)
    bench.enqueue(*(f"{n:03}" for n in range(100)), tenant=BIG, fields={"lm": GATE})
    bench.enqueue("small", tenant=SMALL)
    assert [job.id for job in bench.claim(1).jobs] == ["small"]


# --------------------------------------------------------------------------- out of a place


def cancelled(bench: Bench, job_id: str) -> None:
    bench.run(calls.cancel(bench.keys, job_id, now_ms=bench.now))


def withdrawn(bench: Bench, job_id: str) -> None:
    bench.run(calls.withdraw(bench.keys, job_id, now_ms=bench.now))


def deleted(bench: Bench, job_id: str) -> None:
    bench.run(delete_many(bench.keys, [job_id]))


def moved_on(bench: Bench, job_id: str) -> None:
    bench.run(move_many(bench.keys, "q", "q2", [job_id]))


@pytest.mark.parametrize("way", [cancelled, withdrawn, deleted, moved_on])
@pytest.mark.parametrize("asked", [{"order": 2}, {"tenant": BIG}, {"tenant": BIG, "order": 2}])
def test_who_leaves_leaves_no_place(
    bench: Bench, way: Callable[[Bench, str], None], asked: dict[str, Any]
) -> None:
    bench.enqueue("a", **asked)
    way(bench, "a")
    assert not bench.redis.exists("jobq:order:q", "jobq:fair:q", f"jobq:turn:q:{BIG}")
    bench.enqueue("b")
    assert [job.id for job in bench.claim(2).jobs] == ["b"]
    assert not bench.redis.exists("jobq:turns:q", "jobq:q:q")


def test_what_was_cancelled_has_cost_its_tenant_no_turns(bench: Bench) -> None:
    bench.enqueue(*NAMES, tenant=BIG)
    for name in NAMES:
        cancelled(bench, name)
    for name in ("s0", "s1", "s2"):
        bench.enqueue(name, tenant=SMALL)
    bench.enqueue("again", tenant=BIG)
    assert "again" in drained(bench)[:2]


def test_what_rq_deleted_costs_nobody_a_turn(bench: Bench) -> None:
    bench.enqueue(*NAMES, "last", tenant=BIG)
    bench.enqueue("s0", "s1", tenant=SMALL)
    for name in NAMES:
        bench.redis.delete(f"rq:job:{name}")
        bench.redis.lrem("rq:queue:q", 0, name)
    found = drained(bench)
    while bench.waiting():
        found += drained(bench)
    assert "last" in found[:2]
    assert not bench.redis.exists("jobq:turns:q", "jobq:fair:q", f"jobq:turn:q:{BIG}", "jobq:q:q")


# --------------------------------------------------------------------------- replaced

KEY = {"dedup_key": "t.x:k", "dedup_mode": "f", "bound_id": "*", "replace": True}


@pytest.mark.covers("P-11")
@pytest.mark.parametrize(("before", "after"), [(9, 1), (1, 9), (None, 1), (9, None)])
@pytest.mark.parametrize("delay_ms", [0, 1_000])
def test_a_replaced_job_has_the_order_of_the_new_call(
    bench: Bench, before: int | None, after: int | None, delay_ms: int
) -> None:
    bench.enqueue("first", order=2)
    bench.enqueue("a", **KEY, **({} if before is None else {"order": before}))
    bench.enqueue("b", "c", order=7)
    bench.now += 10
    asked = {} if after is None else {"order": after}
    assert bench.enqueue("new", delay_ms=delay_ms, **KEY, **asked) == [("replaced", "a")]
    if delay_ms:
        assert "a" not in bench.zset("jobq:order:q")
        bench.now += delay_ms
        bench.run(calls.promote(bench.keys, ["q"], now_ms=bench.now))
    found = drained(bench)
    assert bench.hash("a").get("or") == (None if after is None else str(after))
    assert sorted(found) == ["a", "b", "c", "first"]
    wanted = {1: ["a", "first", "b", "c"], 9: ["first", "b", "c", "a"], None: ["first", "a", "b", "c"]}
    assert found == wanted[after]


def test_a_replaced_job_takes_the_turns_of_the_new_calls_tenant(bench: Bench) -> None:
    bench.enqueue("a", tenant=BIG, **KEY)
    bench.enqueue(*(f"b{n}" for n in range(4)), tenant=BIG)
    bench.enqueue(*(f"s{n}" for n in range(4)), tenant=SMALL)
    bench.now += 10
    assert bench.enqueue("new", tenant=SMALL, repeats=2, **KEY) == [("replaced", "a")]
    assert bench.hash("a")["tn"] == SMALL
    assert "a" not in bench.zset(f"jobq:turn:q:{BIG}")
    assert [name for name in drained(bench) if name[0] != "b"] == ["s0", "s1", "s2", "s3", "a"]


def test_replaced_within_one_call_the_last_order_counts(bench: Bench) -> None:
    jobs = [bench.new(name, order=order, **KEY) for name, order in (("a", 1), ("b", 9))]
    jobs.insert(1, bench.new("x", order=5))
    bench.run(calls.enqueue(bench.keys, "q", jobs, now_ms=bench.now))
    assert bench.hash("a")["or"] == "9"
    assert drained(bench) == ["x", "a"]


# --------------------------------------------------------------------------- any mix


@pytest.mark.parametrize("seed", range(3))
def test_after_any_mix_of_steps_nobody_is_lost_and_turns_are_taken(real: Bench, seed: int) -> None:
    """However tenants' jobs come, go and come back: who has something waiting is served within two rounds."""
    rand, made, held = random.Random(seed), 0, []
    owner: dict[str, str] = {}
    since: dict[str, int] = defaultdict(int)
    waits: set[str] = set()

    def waiting_of(tenant: str) -> bool:
        return any(owner[name] == tenant for name in waits)

    for _ in range(250):
        step = rand.choice(("enqueue", "enqueue", "claim", "claim", "cancel", "back", "retry", "promote"))
        if step == "enqueue":
            tenant = rand.choice("aab") * 32 if rand.random() < 0.6 else rand.choice("cde") * 32
            names = [f"j{made + n}" for n in range(rand.choice((1, 1, 8)))]
            made += len(names)
            if not waiting_of(tenant):
                since[tenant] = 0
            owner |= dict.fromkeys(names, tenant)
            waits |= set(names)
            real.enqueue(
                *names, tenant=tenant, **({"order": rand.randint(1, 10)} if rand.random() < 0.3 else {})
            )
        elif step == "claim":
            for job in real.claim(rand.choice((1, 1, 3))).jobs:
                waits.discard(job.id)
                held.append(job)
                mine = owner[job.id]
                since[mine] = 0
                for tenant in {owner[name] for name in waits} - {mine}:
                    since[tenant] += 1
                    assert since[tenant] <= 2 * len(set(owner.values())), "at most two rounds of the others"
        elif step == "cancel" and waits:
            gone = rand.choice(sorted(waits))
            real.run(calls.cancel(real.keys, gone, now_ms=real.now))
            waits.discard(gone)
        elif step in ("back", "retry") and held:
            job = held.pop()
            if not waiting_of(owner[job.id]):
                since[owner[job.id]] = 0
            if step == "back":
                real.settle(job, kind="hand_back")
                waits.add(job.id)
            else:
                real.settle(job, kind="retry", spends=True, delay_ms=500)
        elif step == "promote":
            real.now += rand.choice((100, 600))
            before = set(real.waiting())
            real.run(calls.promote(real.keys, ["q"], now_ms=real.now))
            for name in set(real.waiting()) - before:
                if not waiting_of(owner[name]):
                    since[owner[name]] = 0
                waits.add(name)
    assert set(drained(real, 3)) == waits
    assert real.waiting() == []
    assert not real.redis.keys("jobq:turn*") + real.redis.keys("jobq:fair*")


# --------------------------------------------------------------------------- the scripts

_FUNCTION = re.compile(r"^local function (\w+)\(.*?^end$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["place", "displace", "most_of", "waiting_in"])
def test_scripts_that_share_a_function_have_it_word_for_word(name: str) -> None:
    """Scripts are not joined from parts, so what several need stands in each."""
    found: dict[str, list[str]] = {}
    for script in lua.names():
        for each in _FUNCTION.finditer(lua.script(script).text.decode()):
            if each[1] == name:
                found.setdefault(each[0], []).append(script)
    assert len(found) == 1, found.values()
    assert len(next(iter(found.values()))) > 1


# --------------------------------------------------------------------------- damage


@pytest.mark.parametrize("key", ["jobq:order:q", "jobq:turns:q", "jobq:fair:q", f"jobq:turn:q:{BIG}"])
@pytest.mark.parametrize("early", [True, False])
def test_a_key_of_the_wrong_type_costs_places_and_no_jobs(bench: Bench, key: str, early: bool) -> None:
    if early:
        bench.redis.set(key, "x")
    bench.enqueue("a", "b", "c", tenant=BIG)
    bench.enqueue("o", order=2)
    bench.enqueue("p")
    if not early:
        bench.redis.delete(key)
        bench.redis.set(key, "x")
    held = bench.claim(2).jobs
    bench.settle(*held, kind="hand_back")
    found = drained(bench) + drained(bench)
    bench.redis.delete(key)
    found += drained(bench)
    assert sorted(found) == ["a", "b", "c", "o", "p"]


@pytest.mark.parametrize("value", ["nan", "inf", "-5", "x", "", "9" * 400])
def test_numbers_that_are_none_lose_nobody(bench: Bench, value: str) -> None:
    bench.enqueue("a", "b", tenant=BIG)
    bench.enqueue("c", order=2)
    for field in ("turn", "rest", "step"):
        bench.redis.hset("jobq:q:q", field, value)
    held = bench.claim(3).jobs
    for job in held:
        bench.redis.hset(f"rq:job:{job.id}", mapping={"q": value, "or": value})
    assert bench.settle(*held, kind="hand_back") == ["ok"] * 3
    assert sorted(drained(bench)) == ["a", "b", "c"]
