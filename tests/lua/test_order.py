"""Order 1 to 10 within a queue, with ageing; and turns by tenant."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from jobq import calls
from jobq.queues import QueueSpec
from tests.lua.conftest import T0, Bench

STEP_MS = 30_000


def ordered(bench: Bench, job_id: str, order: int, **options: object) -> None:
    bench.enqueue(job_id, **({} if order == 5 else {"order": order}), **options)


def drained(bench: Bench, n: int = 1) -> list[str]:
    found: list[str] = []
    while jobs := bench.claim(n).jobs:
        found += (job.id for job in jobs)
    return found


@pytest.mark.covers("P-11")
@pytest.mark.parametrize("n", [1, 3, 10])
def test_one_is_first_and_ten_last(bench: Bench, n: int) -> None:
    for order in (5, 10, 7, 3, 1, 5, 3):
        ordered(bench, f"{order}-{len(bench.waiting())}", order)
    assert drained(bench, n) == ["1-4", "3-3", "3-6", "5-0", "5-5", "7-2", "10-1"]
    assert bench.waiting() == []
    assert not bench.redis.exists("jobq:order:q")


def test_a_queue_that_is_in_line_again_forgets_that_it_was_not(bench: Bench) -> None:
    ordered(bench, "a", 1)
    bench.enqueue("b", "c")
    assert bench.redis.hget("jobq:q:q", "order") == b"1"
    assert [job.id for job in bench.claim(2).jobs] == ["a", "b"]
    assert [job.id for job in bench.claim(2).jobs] == ["c"]
    assert not bench.redis.exists("jobq:q:q")


def test_the_list_tells_rq_and_the_waiter_of_every_queued_job(bench: Bench) -> None:
    ordered(bench, "a", 9)
    ordered(bench, "b", 2)
    bench.enqueue("c")
    assert bench.waiting() == ["a", "b", "c"]
    bench.claim(1)
    assert bench.waiting() == ["a", "c"]


@pytest.mark.parametrize("seed", range(4))
def test_waiting_ages(bench: Bench, seed: int) -> None:
    """However many more urgent ones come: nobody is passed by a job that came later than their orders' distance."""
    rand = random.Random(seed)
    queued: dict[str, tuple[int, int]] = {}
    claimed: list[str] = []
    for number in range(150):
        bench.now += rand.randrange(0, 9_000)
        order = rand.choice([1, 1, 3, 5, 5, 7, 10])
        queued[f"j{number}"] = bench.now, order
        ordered(bench, f"j{number}", order)
        if number % 3:
            (job,) = bench.claim(1).jobs
            claimed.append(job.id)
            at, own = queued[job.id]
            for other in queued.keys() - set(claimed):
                since, its = queued[other]
                assert at + (own - 5) * STEP_MS <= since + (its - 5) * STEP_MS
                assert at - since <= (its - own) * STEP_MS, "at most 270 s"
    claimed += drained(bench, 4)
    assert sorted(claimed) == sorted(queued)


@pytest.mark.covers("P-11")
@pytest.mark.parametrize("target_ms", [100, 1_000, 5_000, 30_000, 300_000, None])
@pytest.mark.parametrize("seed", range(2))
def test_nobody_is_passed_by_who_comes_a_target_later(real: Bench, target_ms: int | None, seed: int) -> None:
    """A step of waiting follows the queue's target, so that the most urgent flood starves nobody for longer."""
    target = None if target_ms is None else timedelta(milliseconds=target_ms)
    real.run(calls.declare_limits(real.keys, {"q": QueueSpec("q", target=target).noted}, first=True))
    most = min(target_ms or 270_000, 270_000)
    rand = random.Random(seed)
    queued: dict[str, int] = {}
    claimed: set[str] = set()
    for number in range(120):
        real.now += rand.randrange(0, most // 10)
        name = f"j{number}"
        queued[name] = real.now
        ordered(real, name, rand.choice([1, 1, 1, 1, 5, 10]))
        if number % 3:
            (job,) = real.claim(1).jobs
            claimed.add(job.id)
            passed = [other for other in queued.keys() - claimed if queued[job.id] - queued[other] > most]
            assert not passed, "by one that came more than the target later"
    assert len(drained(real, 4)) == len(queued) - len(claimed)


def test_orders_still_count_within_a_target(bench: Bench) -> None:
    spec = QueueSpec("q", target=timedelta(seconds=9))
    bench.run(calls.declare_limits(bench.keys, {"q": spec.noted}, first=True))
    ordered(bench, "last", 10)
    bench.now += 8_999
    ordered(bench, "first", 1)
    bench.now += 2
    ordered(bench, "late", 1)
    assert drained(bench) == ["first", "last", "late"]


def test_an_urgent_job_behind_thousands_in_order(bench: Bench) -> None:
    """Jobs in line are found behind any number of those with a place, and the other way round."""
    for start in range(0, 300, 100):
        bench.enqueue(*(f"late{n:03}" for n in range(start, start + 100)), order=10)
    bench.enqueue("plain")
    ordered(bench, "urgent", 1)
    assert [job.id for job in bench.claim(3).jobs] == ["urgent", "plain", "late000"]


def test_what_left_meanwhile_is_passed_over(bench: Bench) -> None:
    for name, order in (("a", 1), ("b", 2), ("c", 3), ("d", 4)):
        ordered(bench, name, order)
    bench.enqueue("x", "y")
    bench.run(calls.cancel(bench.keys, "a", now_ms=bench.now))
    assert "a" not in bench.zset("jobq:order:q")
    bench.redis.delete("rq:job:b", "rq:job:x")  # as rq's delete, which knows no order
    bench.redis.set("rq:job:c", "broken")
    assert drained(bench) == ["d", "y"]
    assert list(bench.zset("jobq:quarantine")) == ["c"]
    bench.redis.delete("rq:job:c")


def test_a_delayed_job_keeps_its_order_and_a_retried_one_too(bench: Bench) -> None:
    ordered(bench, "late", 1, delay_ms=1_000)
    bench.enqueue("early", delay_ms=1_000)
    bench.now += 1_000
    bench.enqueue("now")
    bench.run(calls.promote(bench.keys, ["q"], now_ms=bench.now))
    (job,) = bench.claim(1).jobs
    assert job.id == "late"
    bench.settle(job, kind="retry", spends=True, delay_ms=100)
    bench.now += 100
    bench.run(calls.promote(bench.keys, ["q"], now_ms=bench.now))
    assert drained(bench)[0] == "late"


def test_a_repeated_enqueue_has_one_place(bench: Bench) -> None:
    bench.enqueue("a", order=1, repeats=3)
    bench.enqueue("b", "c", order=2)
    assert drained(bench) == ["a", "b", "c"]


# --------------------------------------------------------------------------- turns


def test_tenants_take_turns(bench: Bench) -> None:
    bench.enqueue(*(f"big{n}" for n in range(6)), tenant="b" * 32)
    bench.enqueue("one0", "one1", tenant="1" * 32)
    bench.enqueue("two0", tenant="2" * 32)
    bench.enqueue("plain0", "plain1")
    found = drained(bench)
    assert set(found[:4]) == {"big0", "one0", "two0", "plain0"}
    assert set(found[4:7]) == {"big1", "one1", "plain1"}
    assert found[7:] == ["big2", "big3", "big4", "big5"]
    assert not bench.redis.exists("jobq:turns:q", "jobq:order:q", "jobq:q:q")


def test_who_comes_late_owes_nothing_and_is_owed_nothing(bench: Bench) -> None:
    bench.enqueue(*(f"big{n:02}" for n in range(20)), tenant="b" * 32)
    assert [job.id for job in bench.claim(10).jobs] == [f"big{n:02}" for n in range(10)]
    bench.enqueue(*(f"new{n}" for n in range(5)), tenant="n" * 32)
    found = drained(bench)
    assert found.index("new0") <= 2
    assert abs(found[:8].count("new0") + sum(x.startswith("new") for x in found[:8]) - 4) <= 1


@pytest.mark.parametrize("n", [1, 4])
def test_a_flood_costs_the_small_ones_little(bench: Bench, n: int) -> None:
    """Each of ten tenants has its tenth of what is started while it has anything to start."""
    for start in range(0, 400, 100):
        bench.enqueue(*(f"flood-{i:03}" for i in range(start, start + 100)), tenant="f" * 32)
    for tenant in range(9):
        bench.enqueue(*(f"t{tenant}-{i}" for i in range(5)), tenant=f"{tenant}" * 32)
    found: list[str] = []
    while len(found) < 55:
        found += (job.id for job in bench.claim(n).jobs)
    assert sum(not name.startswith("flood") for name in found[:51]) == 45


def test_a_queue_has_one_kind_and_the_other_stands_in_line(bench: Bench) -> None:
    bench.enqueue("t0", "t1", tenant="b" * 32)
    ordered(bench, "urgent", 1)
    bench.enqueue("plain")
    assert set(drained(bench)[:2]) == {"t0", "urgent"}
    assert bench.now == T0


def test_a_tenant_whose_jobs_were_all_taken_away_holds_nobody_up(bench: Bench) -> None:
    """As many looks as a claim of one job has, in vain: what stands in line is taken all the same."""
    gone = [f"gone{n}" for n in range(9)]
    bench.enqueue(*gone, tenant="b" * 32)
    for job_id in gone:
        bench.redis.delete(f"rq:job:{job_id}")
        bench.redis.lrem("rq:queue:q", 1, job_id)
    bench.now += 1
    bench.enqueue("plain")
    (job,) = bench.claim(1).jobs
    assert job.id == "plain"
    assert not bench.redis.hexists("jobq:q:q", "fair")
