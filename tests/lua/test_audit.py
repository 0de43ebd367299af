"""The audit: finds each kind of damage, reports nothing else, and sets it right once, without losing a job."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

import jobq
from jobq import calls
from jobq.audit import KINDS, Finding, audit, confirm, repair
from jobq.queues import LANES
from jobq.steps import Outcome
from tests.lua.conftest import Bench

NO_GRACE = timedelta(0)


@pytest.fixture
def bench(real: Bench) -> Bench:
    """Some jobs in every state, on the server's own time."""
    real.now = time.time_ns() // 1_000_000
    for job_id, kind in (("won", "succeeded"), ("lost", "dead"), ("off", "cancelled")):
        real.ended(job_id, kind, result=b"x" if kind == "succeeded" else b"")
    assert real.settle(real.running("again"), kind="retry", delay_ms=60_000, spends=True) == ["ok"]
    assert real.settle(real.running("parked"), kind="park", bucket="t.new", reason="unknown") == ["ok"]
    real.enqueue("held", dedup_key="t.x:k", dedup_mode="f")
    real.enqueue("later", delay_ms=60_000)
    real.enqueue("child", delay_ms=60_000)
    real.redis.zrem("rq:scheduled:q", "child")
    real.redis.hset("rq:job:child", "status", "deferred")
    real.redis.zadd("rq:deferred:q", {"child": real.now / 1000})
    (running,) = real.claim(1).jobs
    assert running.id == "held"
    real.enqueue("first", "second", "third")
    return real


def limited(bench: Bench) -> str:
    """A job that waits at a gate, behind one that has passed it; the gate's name."""
    bench.enqueue("passed", "gated", queue="q2", fields={"lm": "r,1,60000,0,t.x"})
    assert [job.id for job in bench.claim(10, queue="q2").jobs] == ["passed"]
    assert bench.hash("gated")["pb"] == "~gate:t.x"
    return "t.x"


def runner(bench: Bench) -> Any:
    """What the audit needs of a client."""
    specs = {**LANES, "q": jobq.QueueSpec("q"), "q2": jobq.QueueSpec("q2")}
    settings = SimpleNamespace(lease=timedelta(seconds=12))
    return SimpleNamespace(keys=bench.keys, specs=specs, settings=settings, run=bench.store.run)


def look(bench: Bench) -> list[Finding]:
    return audit(runner(bench), grace=NO_GRACE)


def told(findings: list[Finding]) -> list[tuple[str, str]]:
    return sorted((finding.kind, finding.subject) for finding in findings)


def test_a_healthy_server_has_no_findings(bench: Bench) -> None:
    before = bench.snapshot()
    assert look(bench) == []
    assert bench.snapshot() == before


Inflict = Callable[[Bench], object]
HELD = "held:ex.6"


def _expired_lease(bench: Bench) -> None:
    bench.redis.zadd("jobq:leases", {"won:old.1": bench.now - 60_000})


def _second_lease(bench: Bench) -> None:
    bench.redis.zadd("jobq:leases", {"held:old.1": bench.now + 100})
    bench.redis.zadd("rq:wip:q", {"held:old.1": "+inf"})


def _stock_run(bench: Bench) -> None:
    bench.redis.zrem("jobq:leases", HELD)
    bench.redis.zadd("rq:wip:q", {HELD: bench.now / 1000 - 200})


def _readable_again(bench: Bench) -> None:
    bench.redis.zadd("jobq:quarantine", {"second": bench.now})
    bench.redis.lrem("rq:queue:q", 0, "second")


DAMAGE: dict[str, tuple[Inflict, list[tuple[str, str]]]] = {
    "popped by BLPOP": (lambda b: b.redis.lpop("rq:queue:q"), [("not_in_list", "first")]),
    "an older entry of a running job": (
        lambda b: b.redis.zadd("rq:wip:q", {"held:old.1": "+inf"}),
        [("stray_entry", "held:old.1")],
    ),
    "no longer scheduled": (
        lambda b: b.redis.zrem("rq:scheduled:q", "later"),
        [("not_in_registry", "later")],
    ),
    "no longer deferred": (lambda b: b.redis.zrem("rq:deferred:q", "child"), [("not_in_registry", "child")]),
    "no longer finished": (lambda b: b.redis.zrem("rq:finished:q", "won"), [("not_in_registry", "won")]),
    "no longer failed": (lambda b: b.redis.zrem("rq:failed:q", "lost"), [("not_in_registry", "lost")]),
    "no longer cancelled": (lambda b: b.redis.zrem("rq:canceled:q", "off"), [("not_in_registry", "off")]),
    "out of its bucket": (
        lambda b: b.redis.zrem("jobq:parked:q:t.new", "parked"),
        [("not_in_bucket", "parked")],
    ),
    "bucket forgotten": (lambda b: b.redis.srem("jobq:parked:q", "t.new"), [("not_in_bucket", "parked")]),
    "no flag": (lambda b: b.redis.hdel("jobq:q:q", "parked"), [("not_in_bucket", "parked")]),
    "expires while it waits": (lambda b: b.redis.expire("rq:job:first", 500), [("expiring", "first")]),
    "lease gone": (lambda b: b.redis.zrem("jobq:leases", HELD), [("no_lease", "held")]),
    "lease and entry gone": (
        lambda b: (b.redis.zrem("jobq:leases", HELD), b.redis.zrem("rq:wip:q", HELD)),
        [("no_lease", "held")],
    ),
    "a stock worker died": (_stock_run, [("stock_run", "held")]),
    "entry gone": (lambda b: b.redis.zrem("rq:wip:q", HELD), [("no_wip", HELD)]),
    "two leases": (_second_lease, [("second_lease", "held:old.1")]),
    "a lease of an ended job": (_expired_lease, [("dead_lease", "won:old.1")]),
    "a lease of no job": (
        lambda b: b.redis.zadd("jobq:leases", {"ghost:old.1": b.now - 60_000}),
        [("dead_lease", "ghost:old.1")],
    ),
    "a lease for ever": (
        lambda b: b.redis.zadd("jobq:leases", {"won:old.1": "+inf"}),
        [("dead_lease", "won:old.1")],
    ),
    "started, of an ended job": (
        lambda b: b.redis.zadd("rq:wip:q", {"won:old.1": "+inf"}),
        [("stray_entry", "won:old.1")],
    ),
    "in two registries": (
        lambda b: b.redis.zadd("rq:failed:q", {"won": b.now}),
        [("stray_entry", "won")],
    ),
    "an entry of no job": (
        lambda b: b.redis.zadd("rq:scheduled:q", {"ghost": b.now / 1000 + 60}),
        [("stray_entry", "ghost")],
    ),
    "in the registry of another queue": (
        lambda b: b.redis.zadd("rq:finished:high", {"won": b.now}),
        [("stray_entry", "won")],
    ),
    "in a second bucket": (
        lambda b: (
            b.redis.zadd("jobq:parked:q:t.old", {"parked": 1}),
            b.redis.sadd("jobq:parked:q", "t.old"),
        ),
        [("stray_entry", "parked")],
    ),
    "readable again": (_readable_again, [("not_in_list", "second"), ("stale_quarantine", "second")]),
    "quarantine of nothing": (
        lambda b: b.redis.zadd("jobq:quarantine", {"ghost": 1}),
        [("stale_quarantine", "ghost")],
    ),
    "a retry that is not counted": (
        lambda b: b.redis.zrem("jobq:retrying:q", "again"),
        [("retry_count", "again")],
    ),
    "a first run counted as a retry": (
        lambda b: b.redis.zadd("jobq:retrying:q", {"later": b.now}),
        [("retry_count", "later")],
    ),
    "kept for ever": (lambda b: b.redis.persist("rq:job:won"), [("no_expiry", "won")]),
    "a dedup key of a dead job": (
        lambda b: b.redis.set("jobq:dedup:t.x:d", "f:lost"),
        [("orphan_dedup", "jobq:dedup:t.x:d")],
    ),
    "a dedup key of no job": (
        lambda b: b.redis.set("jobq:dedup:t.x:d", "f:ghost"),
        [("orphan_dedup", "jobq:dedup:t.x:d")],
    ),
    "a dedup key that started": (
        lambda b: b.redis.set("jobq:dedup:t.x:d", "s:held"),
        [("orphan_dedup", "jobq:dedup:t.x:d")],
    ),
    "results of no job": (
        lambda b: b.redis.xadd("rq:results:ghost", {"type": "1"}),
        [("orphan_key", "rq:results:ghost")],
    ),
    "attempts of no job": (
        lambda b: b.redis.rpush("jobq:attempts:ghost", "{}"),
        [("orphan_key", "jobq:attempts:ghost")],
    ),
    "children of no job": (
        lambda b: b.redis.sadd("rq:job:ghost:dependents", "child"),
        [("orphan_key", "rq:job:ghost:dependents")],
    ),
    "parents of no job": (
        lambda b: b.redis.sadd("rq:job::ghost:dependencies", "won"),
        [("orphan_key", "rq:job::ghost:dependencies")],
    ),
    "a waiter for ever": (lambda b: b.redis.set("jobq:wait:won", "1"), [("orphan_key", "jobq:wait:won")]),
    "counters for ever": (lambda b: b.redis.hset("jobq:n:q:1", "t", "1"), [("orphan_key", "jobq:n:q:1")]),
    "only in the list of another queue": (
        lambda b: (b.redis.lrem("rq:queue:q", 0, "second"), b.redis.rpush("rq:queue:q2", "second")),
        [("not_in_list", "second"), ("wrong_list", "second")],
    ),
    "in the list of another queue, too": (
        lambda b: b.redis.lpush("rq:queue:q2", "second"),
        [("wrong_list", "second")],
    ),
    "twice in its list": (lambda b: b.redis.rpush("rq:queue:q", "second"), [("second_copy", "second")]),
    "four times in its list": (
        lambda b: b.redis.rpush("rq:queue:q", "second", "second", "second"),
        [("second_copy", "second")],
    ),
    "a schedule that nobody looks at": (
        lambda b: (
            b.redis.hset("jobq:schedule:s", mapping={"rev": 1, "next": b.now + 60_000}),
            b.redis.hset("jobq:schedules", "s", ""),
        ),
        [("not_due", "s")],
    ),
    "a name without a schedule": (lambda b: b.redis.hset("jobq:schedules", "s", ""), [("ghost", "s")]),
    "a cancel request for no job": (lambda b: b.redis.sadd("jobq:cancels", "no"), [("ghost", "no")]),
    "a cancel request for an ended job": (lambda b: b.redis.sadd("jobq:cancels", "won"), [("ghost", "won")]),
    "a place at a gate that nobody holds": (
        lambda b: b.redis.zadd("jobq:held:c:t", {"won:ex.1": b.now}),
        [("ghost", "won:ex.1")],
    ),
    "a place in a line of a job that is not queued": (
        lambda b: b.redis.zadd("jobq:order:q", {"won": b.now}),
        [("stray_entry", "won")],
    ),
    "a parent that is gone, without children": (
        lambda b: b.redis.zadd("jobq:after", {"no": b.now}),
        [("ghost", "no")],
    ),
    "a worker that is gone": (
        lambda b: b.redis.sadd("rq:workers", "rq:worker:no"),
        [("ghost", "rq:worker:no")],
    ),
    "log of no job": (lambda b: b.redis.rpush("jobq:log:ghost", "1 1 x"), [("orphan_key", "jobq:log:ghost")]),
    "a quota for ever": (
        lambda b: b.redis.zadd("jobq:quota:t", {"won": 1}),
        [("orphan_key", "jobq:quota:t")],
    ),
    "a claim for ever": (
        lambda b: b.redis.set("jobq:claim:x", "1:2:won"),
        [("orphan_key", "jobq:claim:x")],
    ),
    "a queue nobody lists": (
        lambda b: b.redis.rpush("rq:queue:elsewhere", "x"),
        [("unknown_queue", "elsewhere")],
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_set_right_once(bench: Bench, damage: str) -> None:
    inflict, expected = DAMAGE[damage]
    inflict(bench)
    found = look(bench)
    assert told(found) == expected
    assert all(finding.repairable for finding in found)
    before = bench.snapshot()
    assert confirm(runner(bench), found) == found
    assert bench.snapshot() == before
    assert told(repair(runner(bench), found)) == expected
    after = bench.snapshot()
    assert repair(runner(bench), found) == []
    assert bench.snapshot() == after
    left = [finding for finding in look(bench) if finding.kind != "dropped_id"]
    assert left == []


def test_every_kind_is_inflicted_by_some_test() -> None:
    shown = {kind for _, expected in DAMAGE.values() for kind, _ in expected}
    assert shown | {"wrong_type", "unreadable", "dropped_id"} == set(KINDS)


def test_of_many_copies_the_first_stays(bench: Bench) -> None:
    bench.redis.rpush("rq:queue:q", "third", "first", "first")
    repair(runner(bench), look(bench))
    assert bench.waiting("q") == ["first", "second", "third"]


def test_what_is_in_order_is_no_ghost(bench: Bench) -> None:
    """Each of these goes with something that is there."""
    bench.redis.sadd("jobq:cancels", "held")
    bench.redis.zadd("jobq:held:c:t", {HELD: bench.now})
    bench.redis.zadd("jobq:order:q", {"second": bench.now})
    bench.redis.zadd("jobq:after", {"won": bench.now, "gone": bench.now})
    bench.redis.sadd("rq:job:gone:dependents", "child")
    bench.redis.expire("rq:job:gone:dependents", 60)
    bench.redis.hset("rq:worker:w", "birth", "x")
    bench.redis.sadd("rq:workers", "rq:worker:w")
    schedules = {
        "paused": {"rev": 1, "next": 1, "paused": 1},
        "over": {"rev": 1},
        "due": {"rev": 1, "next": 1},
        "broken": {"rev": 1, "next": 1},
    }
    for name, row in schedules.items():
        bench.redis.hset(f"jobq:schedule:{name}", mapping=row)
        bench.redis.hset("jobq:schedules", name, "its times" if name == "broken" else "")
    bench.redis.zadd("jobq:due", {"due": bench.now})
    assert look(bench) == []


def test_a_lost_schedule_is_due_when_its_slot_is(bench: Bench) -> None:
    slot = bench.now + 60_000
    bench.redis.hset("jobq:schedule:s", mapping={"rev": 1, "next": slot})
    bench.redis.hset("jobq:schedules", "s", "")
    repair(runner(bench), look(bench))
    assert bench.zset("jobq:due") == {"s": slot}


def test_a_lost_job_stands_in_front_and_is_claimed(bench: Bench) -> None:
    bench.redis.lpop("rq:queue:q")
    repair(runner(bench), look(bench))
    assert bench.waiting("q") == ["first", "second", "third"]
    assert [job.id for job in bench.claim(1).jobs] == ["first"]


def test_a_run_without_lease_is_rescued_when_its_new_one_ends(bench: Bench) -> None:
    bench.redis.zrem("jobq:leases", HELD)
    repair(runner(bench), look(bench))
    assert bench.status("held") == "started"
    assert bench.zset("jobq:leases").keys() == {HELD}
    assert max(bench.zset("jobq:leases").values()) >= bench.now + 12_000
    (left,) = bench.zset("jobq:leases").values()
    for step in range(20):  # the first passes after a gap hold
        bench.run(calls.rescue(bench.keys, 12_000, now_ms=int(left) + 1 + 500 * step))
    assert bench.status("held") == "queued"
    assert bench.hash("held")["lost"] == "1"


def test_whoever_has_the_job_may_still_settle_under_its_own_token(bench: Bench) -> None:
    bench.redis.zrem("jobq:leases", HELD)
    repair(runner(bench), look(bench))
    outcome = Outcome(job_id="held", token="ex.6", kind="succeeded")
    assert bench.run(calls.settle(bench.keys, "q", [outcome], "2027-01-15T08:00:02.000000Z")) == ["ok"]
    assert look(bench) == []


def test_what_was_settled_after_the_look_is_left_alone(bench: Bench) -> None:
    bench.redis.zrem("jobq:leases", HELD)
    bench.redis.lpop("rq:queue:q")
    found = look(bench)
    assert told(found) == [("no_lease", "held"), ("not_in_list", "first")]
    # Meanwhile somebody else repairs, runs and settles both.
    repair(runner(bench), found)
    jobs = bench.claim(1).jobs
    assert bench.settle(*jobs, kind="succeeded") == ["ok"]
    outcome = Outcome(job_id="held", token="ex.6", kind="succeeded")
    assert bench.run(calls.settle(bench.keys, "q", [outcome], "2027-01-15T08:00:02.000000Z")) == ["ok"]
    before = bench.snapshot()
    assert repair(runner(bench), found) == []
    assert bench.snapshot() == before


def test_a_later_run_of_the_same_job_is_another_matter(bench: Bench) -> None:
    bench.redis.zrem("jobq:leases", HELD)
    found = look(bench)
    assert told(found) == [("no_lease", "held")]
    repair(runner(bench), found)
    outcome = Outcome(job_id="held", token="ex.6", kind="hand_back")
    assert bench.run(calls.settle(bench.keys, "q", [outcome], "2027-01-15T08:00:02.000000Z")) == ["ok"]
    again = calls.claim(
        bench.keys, "q", exec_id="other", number=1, n=1, lease_ms=12_000, worker_name="w2",
        started_at_iso="2027-01-15T08:00:03.000000Z",
    )  # fmt: skip
    assert [job.id for job in bench.run(again).jobs] == ["held"]
    before = bench.snapshot()
    assert repair(runner(bench), found) == []
    assert bench.snapshot() == before


@pytest.mark.parametrize("how", ["string", "no data", "no status", "no origin", "status"])
def test_an_unreadable_job_is_deleted_only_on_request(bench: Bench, how: str) -> None:
    key = "rq:job:second"
    if how == "string":
        bench.redis.delete(key)
        bench.redis.set(key, "x")
    elif how == "status":
        bench.redis.hset(key, "status", "nonsense")
    else:
        bench.redis.hdel(key, how.removeprefix("no "))
    found = [finding for finding in look(bench) if finding.severe]
    assert told(found) == [("unreadable", "second")]
    assert not found[0].repairable
    assert repair(runner(bench), found) == []
    assert told(repair(runner(bench), found, delete_unreadable=True)) == [("unreadable", "second")]
    assert not bench.redis.exists(key)


def test_what_claim_put_in_quarantine_is_found_there(bench: Bench) -> None:
    bench.redis.hdel("rq:job:first", "data")
    assert [job.id for job in bench.claim(3).jobs] == ["second", "third"]
    assert told(look(bench)) == [("unreadable", "first")]
    bench.redis.hset("rq:job:first", "data", "{}")
    found = look(bench)
    assert told(found) == [("not_in_list", "first"), ("stale_quarantine", "first")]
    repair(runner(bench), found)
    assert [job.id for job in bench.claim(1).jobs] == ["first"]
    assert look(bench) == []


@pytest.mark.parametrize(
    "key",
    [
        "rq:queue:q",
        "rq:wip:q",
        "rq:finished:q",
        "rq:scheduled:q",
        "jobq:leases",
        "jobq:quarantine",
        "jobq:parked:q",
    ],
)
def test_a_container_of_the_wrong_type_is_the_only_finding(bench: Bench, key: str) -> None:
    bench.redis.delete(key)
    bench.redis.set(key, "x")
    found = look(bench)
    assert ("wrong_type", key) in told(found)
    assert {finding.kind for finding in found} <= {"wrong_type", "no_wip"}
    repair(runner(bench), found)


@pytest.mark.parametrize(
    "key",
    [
        "jobq:pulse",
        "jobq:gates",
        "jobq:retrying:q",
        "jobq:gate:r:t",
        "jobq:held:c:t",
        "jobq:order:q",
        "jobq:schedules",
        "jobq:due",
        "jobq:cancels",
        "jobq:after",
        "rq:workers",
        "jobq:attempts:won",
        "jobq:log:won",
        "jobq:done:won",
        "rq:results:won",
        "rq:job:won:dependents",
    ],
)
def test_what_is_beside_a_job_is_named_too(bench: Bench, key: str) -> None:
    bench.redis.delete(key)
    bench.redis.set(key, "x")
    found = look(bench)
    assert ("wrong_type", key) in told(found)
    repair(runner(bench), found)


def test_ids_that_claim_will_drop_are_noted(bench: Bench) -> None:
    bench.redis.rpush("rq:queue:q", "won", "ghost")
    found = look(bench)
    assert told(found) == [("dropped_id", "ghost"), ("dropped_id", "won")]
    assert not any(finding.severe or finding.repairable for finding in found)
    bench.claim(100)
    assert look(bench) == []


@pytest.mark.parametrize("key", ["gate:t.x", "blocked:q2", "gates"])
def test_a_job_at_a_gate_that_nobody_opens(bench: Bench, key: str) -> None:
    gate = limited(bench)
    assert look(bench) == []
    bench.redis.zrem(f"jobq:{key}", "gated", gate)
    found = look(bench)
    assert told(found) == [("not_in_bucket", "gated")]
    repair(runner(bench), found)
    assert look(bench) == []
    assert bench.redis.exists(f"jobq:{key}")


def test_an_entry_at_a_gate_whose_job_is_elsewhere(bench: Bench) -> None:
    gate = limited(bench)
    bench.redis.zadd("jobq:gate:other", {"gated": 1})
    bench.redis.zadd("jobq:blocked:q", {"won": 1})
    found = look(bench)
    assert {(f.kind, f.subject, f.place) for f in found} == {
        ("stray_entry", "gated", "jobq:gate:other"),
        ("stray_entry", "won", "jobq:blocked:q"),
    }
    repair(runner(bench), found)
    assert look(bench) == []
    assert bench.redis.zscore(f"jobq:gate:{gate}", "gated") is not None


def test_what_prune_and_rescue_are_about_to_do_is_no_finding(bench: Bench) -> None:
    bench.redis.zadd("rq:finished:q", {"expired": bench.now / 1000 - 5})
    bench.redis.zadd("jobq:leases", {"won:old.1": bench.now - 5_000})
    assert look(bench) == []


def test_what_an_rq_tool_ended_under_its_executor_is_left_to_it(bench: Bench) -> None:
    bench.redis.hset("rq:job:held", "status", "canceled")
    bench.redis.zadd("rq:canceled:q", {"held": bench.now / 1000})
    bench.redis.expire("rq:job:held", 500)
    assert told(look(bench)) == [("orphan_dedup", "jobq:dedup:t.x:k")]


def test_a_live_stock_worker_is_left_alone(bench: Bench) -> None:
    bench.redis.zrem("jobq:leases", HELD)
    bench.redis.zadd("rq:wip:q", {HELD: bench.now / 1000 + 60})
    assert look(bench) == []


def test_full_memory_refuses_no_repair(bench: Bench) -> None:
    bench.redis.lpop("rq:queue:q")
    bench.redis.zrem("jobq:leases", HELD)
    bench.redis.zrem("rq:scheduled:q", "later")
    bench.redis.sadd("rq:job:ghost:dependents", "child")
    found = look(bench)
    bench.redis.config_set("maxmemory-policy", "noeviction")
    bench.redis.config_set("maxmemory", 1)
    try:
        assert told(repair(runner(bench), found)) == told(found)
    finally:
        bench.redis.config_set("maxmemory", 0)
    assert look(bench) == []


def test_children_of_a_parent_that_is_gone_are_released(bench: Bench) -> None:
    bench.redis.sadd("rq:job:ghost:dependents", "child")
    repair(runner(bench), look(bench))
    assert bench.run(calls.release(bench.keys)) > 0
    assert bench.status("child") == "queued"


def test_no_step_asks_about_more_than_a_hundred_jobs(bench: Bench) -> None:
    for start in range(0, 1_000, 100):
        bench.enqueue(*[f"many-{start + i}" for i in range(100)])
    sizes = []
    run = bench.store.run

    def watched(step: Any) -> Any:
        if not hasattr(step, "send"):
            return run(step)
        answer = None
        while True:
            try:
                wanted = step.send(answer)
            except StopIteration as end:
                return end.value
            if getattr(wanted, "script", "") == "audit_jobs":
                sizes.append((len(wanted.args) - 6) // 3)
            answer = run(wanted)

    looking = runner(bench)
    looking.run = watched
    assert audit(looking, grace=NO_GRACE) == []
    assert sum(sizes) >= 1_000
    assert max(sizes) <= 100


@pytest.mark.parametrize("deleted", [False, True])
def test_a_lease_that_goes_leaves_its_gates_too(bench: Bench, deleted: bool) -> None:
    """Who waits behind it is let in by the next pass, not by the slow recheck."""
    bench.enqueue("holder", "gated", queue="q2", fields={"lm": "c,1,0,0,c:t.x"})
    (holder,) = bench.claim(10, queue="q2").jobs
    member = f"{holder.id}:{holder.token}"
    if deleted:
        bench.redis.delete("rq:job:holder")
    else:
        bench.redis.hset("rq:job:holder", "status", "finished")
    bench.redis.zadd("jobq:leases", {member: bench.now - 60_000})
    found = [finding for finding in look(bench) if finding.kind == "dead_lease"]
    assert told(repair(runner(bench), found)) == [("dead_lease", member)]
    assert not bench.redis.exists("jobq:held:c:t.x")
    assert bench.run(calls.open_gates(bench.keys)) == 2
    assert [job.id for job in bench.claim(1, queue="q2").jobs] == ["gated"]
