"""The scripts of recurring schedules, each alone: one job a slot, whoever fires it and however often."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobq import schedule_calls
from jobq.recurrence import Misfire, Timing
from jobq.schedule_calls import AGAIN_MS, TAKEN_MS, SlotJob, Taken
from jobq.schedule_spec import StoredSchedule

from .conftest import T0, Bench

MINUTE = 60_000


def stored(name: str = "s", **more: Any) -> StoredSchedule:
    timing = Timing.checked(name=name, every_ms=MINUTE, misfire=Misfire())
    known: dict[str, Any] = {
        "name": name, "task": "t.x", "queue": "q", "timing": timing, "overlap": "allow",
        "fields": {"origin": "q", "description": "t.x", "timeout": "180"},
    }  # fmt: skip
    return StoredSchedule(**known | more)


class Schedules:
    """Short names for the steps on one bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def put(
        self, made: StoredSchedule, *, next_slot: int | None = T0, digest: str = "d1", **more: Any
    ) -> str:
        call = schedule_calls.put(
            self.bench.keys, made, b"{}", digest, next_slot=next_slot, now_ms=self.bench.now, **more
        )
        return str(self.bench.run(call))

    def take(self, limit: int = 100) -> list[Taken]:
        due: list[Taken] = self.bench.run(
            schedule_calls.take(self.bench.keys, limit, now_ms=self.bench.now)
        ).due
        return due

    def fire(
        self, taken: Taken, made: StoredSchedule, *slots: int, after: int | None = None, missed: int = 0,
        repeats: int = 1, payload: bytes = b"",
    ) -> list[str]:  # fmt: skip
        jobs = [SlotJob(slot, f"{made.name}-{slot}", self.bench.new("x").fields) for slot in slots]
        call = schedule_calls.fire(
            self.bench.keys, taken, made, jobs, next_slot=after, missed=missed, payload=payload,
            now_ms=self.bench.now,
        )  # fmt: skip
        answer: list[str] = self.bench.run(call, repeats=repeats)
        return answer

    def hash(self, name: str = "s") -> dict[str, str]:
        found = self.bench.redis.hgetall(f"jobq:schedule:{name}")
        return {field.decode(): value.decode() for field, value in found.items()}

    def due(self) -> dict[str, float]:
        return self.bench.zset("jobq:due")

    def reason(self, name: str = "s") -> str:
        return str(self.bench.redis.hget("jobq:schedules", name).decode())


@pytest.fixture
def on(bench: Bench) -> Schedules:
    return Schedules(bench)


# --- firing ---------------------------------------------------------------


@pytest.mark.covers("C-02", "C-04", "O-03")
def test_a_slot_becomes_one_job_and_moves_the_schedule_on(on: Schedules) -> None:
    assert on.put(stored()) == "added"
    (taken,) = on.take()
    assert (taken.name, taken.error, taken.slot, taken.job) == ("s", "", str(T0), "")
    assert on.fire(taken, stored(), T0, after=T0 + MINUTE) == ["ok", "queued"]
    assert on.bench.waiting() == [f"s-{T0}"]
    assert on.bench.status(f"s-{T0}") == "queued"
    assert on.due() == {"s": T0 + MINUTE}
    kept = on.hash()
    assert (kept["next"], kept["last"], kept["job"], kept["fired"]) == (
        str(T0 + MINUTE),
        str(T0),
        f"s-{T0}",
        "1",
    )
    assert on.bench.redis.smembers("rq:queues") == {b"rq:queue:q"}


def test_a_fire_that_is_sent_again_or_by_another_worker_does_nothing(on: Schedules) -> None:
    on.put(stored())
    (taken,) = on.take()
    assert on.fire(taken, stored(), T0, after=T0 + MINUTE, repeats=3) == ["stale"]
    assert on.bench.waiting() == [f"s-{T0}"]
    assert on.hash()["fired"] == "1"


def test_five_workers_that_took_the_same_slot_fire_it_once(on: Schedules) -> None:
    on.put(stored())
    taken = []
    for _ in range(5):  # each as if the one before had died with it
        taken += on.take()
        on.bench.now += TAKEN_MS
    assert [on.fire(each, stored(), T0, after=T0 + MINUTE)[0] for each in taken] == ["ok"] + ["stale"] * 4
    assert len(on.bench.waiting()) == 1


def test_what_is_taken_is_kept_from_others_for_a_moment(on: Schedules) -> None:
    on.put(stored())
    assert len(on.take()) == 1
    assert on.take() == []
    on.bench.now += TAKEN_MS
    assert len(on.take()) == 1


def test_its_last_slot_is_not_lost_to_a_deploy_when_it_is_due(on: Schedules) -> None:
    on.put(stored())
    assert on.put(stored(), next_slot=None) == "same"
    assert on.put(stored(), next_slot=None, digest="d2", replace=True) == "changed"
    assert on.due() == {"s": T0}
    (taken,) = on.take()
    assert (taken.slot, taken.error) == (str(T0), "")


def test_one_of_which_no_job_can_be_made_has_no_slot_until_it_can(on: Schedules) -> None:
    on.put(stored())
    broken = replace(stored(), error="why")
    assert on.put(broken, next_slot=None, digest="d2", replace=True) == "changed"
    assert StoredSchedule.decode("s", on.hash()["spec"]).error == "why"
    assert on.due() == {}
    assert "next" not in on.hash()
    assert on.put(stored(), digest="d3", replace=True) == "changed"
    assert on.due() == {"s": T0}


def test_a_clock_that_jumps_back_fires_nothing_again(on: Schedules) -> None:
    on.put(stored())
    (taken,) = on.take()
    on.fire(taken, stored(), T0, after=T0 + MINUTE)
    on.bench.now -= 60 * MINUTE
    assert on.take() == []
    on.bench.now = T0 + MINUTE
    (taken,) = on.take()
    assert taken.slot == str(T0 + MINUTE)


def test_a_job_that_is_there_already_is_not_made_again(on: Schedules) -> None:
    """A schedule that was removed and added again while the clock went back."""
    on.put(stored())
    (taken,) = on.take()
    on.fire(taken, stored(), T0, after=T0 + MINUTE)
    on.bench.run(schedule_calls.remove(on.bench.keys, "s", now_ms=T0))
    on.put(stored(), next_slot=T0)
    (taken,) = on.take()
    assert on.fire(taken, stored(), T0, after=T0 + MINUTE) == ["ok", "mine"]
    assert len(on.bench.waiting()) == 1


def test_missed_slots_are_counted_and_several_are_fired_in_order(on: Schedules) -> None:
    on.put(stored())
    (taken,) = on.take()
    slots = [T0 + n * MINUTE for n in range(3)]
    assert on.fire(taken, stored(), *slots, after=T0 + 3 * MINUTE, missed=7) == ["ok", *["queued"] * 3]
    assert on.bench.waiting() == [f"s-{slot}" for slot in slots]
    assert (on.hash()["missed"], on.hash()["fired"]) == ("7", "3")


def test_the_last_slot_ends_it(on: Schedules) -> None:
    on.put(stored())
    (taken,) = on.take()
    on.fire(taken, stored(), T0, after=None)
    assert on.due() == {}
    assert "next" not in on.hash()


def test_a_full_queue_leaves_its_slots_due(on: Schedules) -> None:
    on.put(stored())
    on.bench.redis.hset("jobq:q:q", "max", "1")
    (taken,) = on.take()
    slots = (T0, T0 + MINUTE, T0 + 2 * MINUTE)
    assert on.fire(taken, stored(), *slots, after=T0 + 3 * MINUTE, missed=2) == ["full", "queued"]
    assert on.hash()["next"] == str(T0 + MINUTE)
    assert on.hash()["missed"] == "2"
    on.bench.now += TAKEN_MS
    (taken,) = on.take()
    assert on.fire(taken, stored(), T0 + MINUTE, after=T0 + 3 * MINUTE) == ["full"]
    on.bench.redis.hdel("jobq:q:q", "max")
    on.bench.now += TAKEN_MS
    (taken,) = on.take()
    assert on.fire(taken, stored(), T0 + MINUTE, after=T0 + 2 * MINUTE) == ["ok", "queued"]


def test_while_memory_is_short_its_slots_stay_due(on: Schedules) -> None:
    on.put(stored())
    on.bench.redis.hset("jobq:q:q", "shed", on.bench.now + 5_000)
    (taken,) = on.take()
    assert on.fire(taken, stored(), T0, after=T0 + MINUTE) == ["full"]
    on.bench.now += 6_000
    (taken,) = on.take()
    assert on.fire(taken, stored(), T0, after=T0 + MINUTE) == ["ok", "queued"]


def test_a_payload_may_be_written_anew(on: Schedules) -> None:
    on.put(stored())
    (taken,) = on.take()
    on.fire(taken, stored(), T0, after=T0 + MINUTE, payload=b'{"new":1}')
    assert on.hash()["data"] == '{"new":1}'


# --- overlap and dedup ---------------------------------------------------------------


def two_slots(on: Schedules, made: StoredSchedule, then: str = "") -> list[str]:
    """Fires a slot, lets its job get as far as ``then``, and fires the next one."""
    on.put(made)
    (taken,) = on.take()
    assert on.fire(taken, made, T0, after=T0 + MINUTE) == ["ok", "queued"]
    if then:
        (job,) = on.bench.claim().jobs
        if then != "started":
            on.bench.settle(job, kind=then)
    on.bench.now += MINUTE
    (taken,) = on.take()
    return on.fire(taken, made, T0 + MINUTE, after=T0 + 2 * MINUTE)[1:]


@pytest.mark.covers("O-03")
@pytest.mark.parametrize(
    ("overlap", "then", "word"),
    [
        ("allow", "", "queued"),
        ("allow", "started", "queued"),
        ("skip", "", "overlap"),
        ("skip", "started", "overlap"),
        ("skip", "succeeded", "queued"),
        ("skip", "dead", "queued"),
        ("skip", "retry", "overlap"),
        ("queue_one", "", "overlap"),
        ("queue_one", "started", "queued"),
        ("queue_one", "succeeded", "queued"),
    ],
)
def test_overlap(on: Schedules, overlap: str, then: str, word: str) -> None:
    assert two_slots(on, stored(overlap=overlap), then) == [word]
    assert on.hash().get("skipped", "0") == ("1" if word == "overlap" else "0")


def test_queue_one_lets_one_wait_and_no_more(on: Schedules) -> None:
    made = stored(overlap="queue_one")
    assert two_slots(on, made, "started") == ["queued"]
    on.bench.now += MINUTE
    (taken,) = on.take()
    assert on.fire(taken, made, T0 + 2 * MINUTE, after=T0 + 3 * MINUTE) == ["ok", "overlap"]


@pytest.mark.parametrize(
    ("mode", "then", "word"),
    [("f", "", "duplicate"), ("f", "started", "duplicate"), ("f", "succeeded", "queued"),
     ("s", "started", "queued"), ("s", "", "duplicate"), ("w", "succeeded", "duplicate")],
)  # fmt: skip
def test_a_dedup_key_that_is_held_skips_the_slot(on: Schedules, mode: str, then: str, word: str) -> None:
    if mode == "w" and type(on.bench.redis).__name__ == "FakeRedis":
        pytest.skip("fakeredis expires by its own clock")
    made = stored(dedup_key="t.x:abc", dedup_mode=mode, window_ms=10 * MINUTE if mode == "w" else 0)
    made = replace(made, fields={**made.fields, "dk": f"{mode}:t.x:abc"})
    assert two_slots(on, made, then) == [word]


# --- writing, pausing, removing ---------------------------------------------------------------


def test_an_equal_schedule_is_left_alone_and_another_needs_leave(on: Schedules) -> None:
    assert on.put(stored(), digest="d1") == "added"
    before = on.bench.snapshot()
    assert on.put(stored(), digest="d1", next_slot=T0 + 5) == "same"
    assert on.put(stored(), digest="d2") == "exists"
    assert on.bench.snapshot() == before
    assert on.put(stored(), digest="d2", replace=True) == "changed"
    assert on.hash()["rev"] == "2"


def test_a_change_of_something_else_keeps_the_slot_that_is_due(on: Schedules) -> None:
    on.put(stored(), next_slot=T0)
    on.put(stored(task="t.y"), digest="d2", next_slot=T0 + MINUTE, replace=True)
    assert on.hash()["next"] == str(T0)
    hourly = Timing.checked(name="s", every_ms=60 * MINUTE, misfire=Misfire())
    on.put(stored(timing=hourly), digest="d3", next_slot=T0 + 60 * MINUTE, replace=True)
    assert on.hash()["next"] == str(T0 + 60 * MINUTE)
    assert on.due() == {"s": T0 + 60 * MINUTE}


def test_a_fire_of_an_earlier_revision_is_refused(on: Schedules) -> None:
    on.put(stored())
    (taken,) = on.take()
    on.put(stored(task="t.y"), digest="d2", replace=True)
    assert on.fire(taken, stored(), T0, after=T0 + MINUTE) == ["stale"]


def test_a_paused_schedule_fires_nothing_also_after_a_change(on: Schedules) -> None:
    on.put(stored())
    (taken,) = on.take()
    assert on.bench.run(schedule_calls.pause(on.bench.keys, "s", "ada", now_ms=T0)) == "paused"
    assert on.fire(taken, stored(), T0, after=T0 + MINUTE) == ["stale"]
    hourly = Timing.checked(name="s", every_ms=60 * MINUTE, misfire=Misfire())
    for digest, made in (("d2", stored(task="t.y")), ("d3", stored(timing=hourly)), ("d4", stored())):
        on.put(made, digest=digest, replace=True)
        on.put(made, digest=digest, replace=True)
        assert on.due() == {}
    on.bench.now += 10 * MINUTE
    resume = schedule_calls.resume(
        on.bench.keys, "s", on.hash()["rev"], T0 + 11 * MINUTE, T0 + 11 * MINUTE, now_ms=on.bench.now
    )
    assert on.bench.run(resume) == "resumed"
    assert on.bench.run(resume) == "running"
    assert on.due() == {"s": T0 + 11 * MINUTE}
    assert "paused" not in on.hash()


def test_removed_is_gone(on: Schedules) -> None:
    on.put(stored())
    call = schedule_calls.remove(on.bench.keys, "s", now_ms=T0)
    assert on.bench.run(call) == "removed"
    assert on.bench.run(call) == "gone"
    assert on.bench.snapshot() == {}
    assert on.bench.run(schedule_calls.pause(on.bench.keys, "s", "ada")) == "gone"


# --- broken ones ---------------------------------------------------------------


def test_a_broken_hash_is_told_and_stops_no_other(on: Schedules) -> None:
    on.put(stored("a"))
    on.put(stored("b"))
    on.put(stored("c"))
    on.bench.redis.delete("jobq:schedule:a")
    on.bench.redis.set("jobq:schedule:a", "text")
    on.bench.redis.hdel("jobq:schedule:b", "rev", "spec")
    found = {each.name: each.error for each in on.take()}
    assert "WRONGTYPE" in found["a"]
    assert found["b"] == "its hash has no spec"
    assert found["c"] == ""


def test_what_is_set_aside_is_looked_at_again_and_heals_when_it_fires(on: Schedules) -> None:
    on.put(stored())
    on.take()
    call = schedule_calls.set_aside(on.bench.keys, "s", "no such task", now_ms=on.bench.now)
    assert on.bench.run(call) is True
    assert on.bench.run(call) is False
    assert on.reason() == "no such task"
    assert on.due() == {"s": T0 + AGAIN_MS}
    on.bench.now += AGAIN_MS
    (taken,) = on.take()
    on.fire(taken, stored(), T0, after=T0 + 10 * MINUTE)
    assert on.reason() == ""


def test_a_schedule_whose_hash_was_deleted_is_forgotten(on: Schedules) -> None:
    on.put(stored())
    on.bench.redis.delete("jobq:schedule:s")
    assert on.take() == []
    assert on.bench.snapshot() == {}


def test_one_of_a_wrong_type_can_be_replaced_and_removed(on: Schedules) -> None:
    on.put(stored())
    on.bench.redis.delete("jobq:schedule:s")
    on.bench.redis.set("jobq:schedule:s", "text")
    assert on.put(stored()) == "exists"
    assert on.put(stored(), replace=True) == "changed"
    on.bench.redis.delete("jobq:schedule:s")
    on.bench.redis.set("jobq:schedule:s", "text")
    assert on.bench.run(schedule_calls.remove(on.bench.keys, "s", now_ms=T0)) == "removed"
    assert on.bench.snapshot() == {}


# --- declared in code ---------------------------------------------------------------


def declare(on: Schedules, print_: str, source: str = "app") -> bool:
    return bool(on.bench.run(schedule_calls.declare(on.bench.keys, source, print_, now_ms=on.bench.now)))


def test_the_newest_set_counts_and_older_workers_do_not_take_it_back(on: Schedules) -> None:
    assert declare(on, "old") is True
    on.bench.now += 1000
    assert declare(on, "new") is True
    for _ in range(5):  # old workers live on, and more of them start
        on.bench.now += 10_000
        assert declare(on, "old") is False
        assert declare(on, "new") is True


def test_an_older_set_counts_again_when_the_newer_is_gone_for_a_minute(on: Schedules) -> None:
    """A rollback."""
    declare(on, "old")
    on.bench.now += 1000
    declare(on, "new")
    words = []
    for _ in range(8):
        on.bench.now += 10_000
        words.append(declare(on, "old"))
    assert words == [False] * 6 + [True, True]


def test_two_sets_of_one_millisecond_agree_on_who_counts(on: Schedules) -> None:
    first, second = declare(on, "a"), declare(on, "b")
    assert first is True
    assert second is True
    assert (declare(on, "a"), declare(on, "b")) == (False, True)


def test_only_the_set_that_counts_writes_and_removes(on: Schedules) -> None:
    mine = {"source": "app", "fingerprint": "new"}
    assert on.put(stored(), **mine) == "older"
    declare(on, "new")
    assert on.put(stored(), **mine) == "added"
    assert on.put(stored(task="t.y"), digest="d2", source="app", fingerprint="old") == "older"
    old = schedule_calls.remove(on.bench.keys, "s", source="app", fingerprint="old", now_ms=on.bench.now)
    assert on.bench.run(old) == "older"


def test_run_time_and_declared_ones_do_not_touch_each_other(on: Schedules) -> None:
    declare(on, "p")
    on.put(stored("added"))
    assert on.put(stored("added"), digest="d2", source="app", fingerprint="p") == "theirs"
    on.put(stored("declared"), source="app", fingerprint="p")
    assert on.put(stored("declared"), digest="d2", replace=True) == "declared"
    assert on.bench.run(schedule_calls.remove(on.bench.keys, "declared", now_ms=T0)) == "declared"


def test_two_applications_may_declare_the_same(on: Schedules) -> None:
    declare(on, "p", "shop")
    declare(on, "q", "shop,reports")
    assert on.put(stored(), source="shop", fingerprint="p") == "added"
    assert on.put(stored(), source="shop,reports", fingerprint="q") == "same"
    assert on.hash()["source"] == "shop"
    assert on.put(stored(), digest="d2", source="shop,reports", fingerprint="q") == "theirs"


def test_what_nobody_declares_any_more_can_be_removed_and_taken_over(on: Schedules) -> None:
    declare(on, "p", "gone.app")
    on.put(stored(), source="gone.app", fingerprint="p")
    declare(on, "q", "app")
    mine = {"digest": "d2", "source": "app", "fingerprint": "q"}
    assert on.put(stored(), **mine) == "theirs"
    on.bench.redis.delete("jobq:declared:gone.app")  # as its expiry does
    assert on.put(stored(), **mine) == "changed"
    on.bench.redis.delete("jobq:declared:app")
    assert on.bench.run(schedule_calls.remove(on.bench.keys, "s", now_ms=T0)) == "removed"


# --- cost ---------------------------------------------------------------


def test_without_schedules_a_pass_is_one_look(real: Bench) -> None:
    on = Schedules(real)
    on.take()
    real.redis.config_resetstat()
    real.run(schedule_calls.take(real.keys))
    stats = real.redis.info("commandstats")
    assert {name.removeprefix("cmdstat_") for name in stats} - {"info", "config|resetstat"} == {
        "evalsha", "zrange", "time",
    }  # fmt: skip


def test_full_memory_fires_nothing_by_halves(real: Bench) -> None:
    on = Schedules(real)
    on.put(stored())
    (taken,) = on.take()
    before = real.snapshot()
    real.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(Exception, match="out of memory"):
            on.fire(taken, stored(), T0, after=T0 + MINUTE, missed=3)
    finally:
        real.redis.config_set("maxmemory", "0")
    assert real.snapshot() == before
