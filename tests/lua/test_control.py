"""The steps of bulk verbs: delete under a guard, move to another queue, hasten what waits for a time."""

from __future__ import annotations

import pytest

from jobq import calls
from jobq.control import delete_many, hasten, move_many
from jobq.job import JobState as S
from jobq.joblog import add_lines, encode_line, lines_plan
from tests.lua.conftest import T0, Bench

F = {"dedup_key": "t.x:k", "dedup_mode": "f"}


# --------------------------------------------------------------------------- delete, guarded


def test_only_what_is_still_in_the_chosen_state_is_deleted(bench: Bench) -> None:
    bench.ended("dead")
    bench.enqueue("waits")
    words = bench.run(delete_many(bench.keys, ["waits", "dead", "nobody"], [S.DEAD]))
    assert words == ["queued", "deleted", "gone"]
    assert bench.hash("waits")
    assert not bench.redis.exists("rq:job:dead")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda b: b.enqueue("a", delay_ms=9_000), "scheduled"),
        (lambda b: b.settle(b.running("a"), kind="retry", spends=True, delay_ms=9_000), "retrying"),
        (lambda b: b.settle(b.running("a"), kind="park", reason="r", bucket="t"), "parked"),
        (lambda b: b.running("a"), "running"),
        (lambda b: b.ended("a", "succeeded"), "succeeded"),
        (lambda b: b.run(calls.cancel(b.keys, b.enqueue("a")[0][1], now_ms=b.now)), "cancelled"),
    ],
)  # fmt: skip
def test_the_guard_names_the_state(bench: Bench, make: object, word: str) -> None:
    make(bench)  # type: ignore[operator]
    before = bench.snapshot()
    assert bench.run(delete_many(bench.keys, ["a"], [S.DEAD])) == [word]
    assert bench.snapshot() == before


def test_a_deleted_job_leaves_nothing_but_the_queue(bench: Bench) -> None:
    bench.enqueue("a", "b", **{**F, "dedup_key": ""})
    bench.enqueue("c", **F)
    assert bench.run(delete_many(bench.keys, ["a", "b", "c"], [S.QUEUED]), repeats=2) == ["gone"] * 3
    assert {*bench.snapshot()} <= {"rq:queues"}


def test_the_head_of_a_long_list_is_taken_out_of_it(real: Bench) -> None:
    for start in range(0, 10_100, 100):
        real.enqueue(*[f"j{i}" for i in range(start, start + 100)])
    assert real.run(delete_many(real.keys, ["j0", "j500", "j9000"])) == ["deleted"] * 3
    # What is far back stays in the list, and claim drops it.
    assert [real.redis.lpos("rq:queue:q", each) for each in ("j0", "j500")] == [None, None]
    assert real.redis.lpos("rq:queue:q", "j9000") is not None


# --------------------------------------------------------------------------- move


def test_jobs_move_in_their_order_with_age_and_dedup_key(bench: Bench) -> None:
    bench.enqueue("x", queue="q2")
    bench.enqueue("a", **F)
    bench.enqueue("b", "c")
    bench.now += 5_000
    assert bench.run(move_many(bench.keys, "q", "q2", ["a", "b"]), repeats=2) == ["moved", "moved"]
    assert (bench.waiting(), bench.waiting("q2")) == (["c"], ["x", "a", "b"])
    assert bench.hash("a")["q"] == str(T0)
    assert bench.hash("a")["origin"] == "q2"
    assert bench.enqueue("d", **F) == [("duplicate", "a")]
    jobs = bench.claim(3, queue="q2").jobs
    assert [job.id for job in jobs] == ["x", "a", "b"]
    assert bench.settle(*jobs, kind="succeeded", queue="q2") == ["ok"] * 3
    assert bench.enqueue("e", **F) == [("queued", "e")]


def test_what_has_left_meanwhile_is_not_moved(bench: Bench) -> None:
    bench.running("a")
    bench.enqueue("b", "c")
    bench.redis.hset("rq:job:c", "status", "canceled")
    bench.redis.zadd("rq:canceled:q", {"c": 1})
    assert bench.run(move_many(bench.keys, "q", "q2", ["a", "b", "c", "nobody"])) == [
        "late", "moved", "dropped", "late",
    ]  # fmt: skip
    assert (bench.waiting(), bench.waiting("q2")) == ([], ["b"])


# --------------------------------------------------------------------------- hasten


def test_delayed_jobs_and_retries_are_queued_now(bench: Bench) -> None:
    bench.enqueue("r")
    bench.settle(*bench.claim().jobs, kind="retry", spends=True, delay_ms=60_000)
    bench.enqueue("a", delay_ms=60_000)
    bench.now += 10
    assert bench.run(hasten(bench.keys, ["a", "r", "no"], now_ms=bench.now), repeats=2) == [
        "queued", "queued", "gone",
    ]  # fmt: skip
    assert bench.waiting() == ["a", "r"]
    assert bench.hash("a")["q"] == str(bench.now)
    assert bench.zset("jobq:retrying:q") == {}
    assert bench.hash("r")["attempts"] == "1"


def test_a_hastened_job_keeps_its_order(bench: Bench) -> None:
    bench.enqueue("plain", "last")
    bench.enqueue("first", delay_ms=60_000, fields={"or": "1"})
    bench.run(hasten(bench.keys, ["first"], now_ms=bench.now))
    assert [job.id for job in bench.claim(3).jobs] == ["first", "plain", "last"]


def test_what_waits_for_no_time_is_left_alone(bench: Bench) -> None:
    bench.running("a")
    bench.settle(bench.running("p"), kind="park", reason="r", bucket="t")
    before = bench.snapshot()
    assert bench.run(hasten(bench.keys, ["a", "p"], now_ms=bench.now)) == ["running", "parked"]
    assert bench.snapshot() == before


# --------------------------------------------------------------------------- log


def add(bench: Bench, job_id: str, token: str, *texts: str, keep_s: int = 60) -> bool:
    noted: bool = bench.run(add_lines(bench.keys, job_id, token, [encode_line(T0, t) for t in texts], keep_s))
    return noted


def test_lines_are_numbered_and_the_oldest_go(bench: Bench) -> None:
    job = bench.running("a")
    assert add(bench, "a", job.token, *(f"t{n}" for n in range(150)))
    assert add(bench, "a", job.token, *(f"u{n}" for n in range(100)), keep_s=90)
    lines = bench.store.run(lines_plan(bench.keys, "a"))
    assert (len(lines), lines[0].number, lines[0].text, lines[-1].number, lines[-1].text) == (
        200, 51, "t50", 250, "u99",
    )  # fmt: skip
    assert 80 < bench.redis.ttl("jobq:log:a") <= 90
    assert [line.text for line in bench.store.run(lines_plan(bench.keys, "a", 248))] == ["u98", "u99"]
    assert {line.attempt for line in lines} == {1}


def test_a_line_is_cut_and_names_its_attempt(bench: Bench) -> None:
    job = bench.running("a")
    bench.settle(job, kind="retry", spends=True, delay_ms=1)
    bench.run(hasten(bench.keys, ["a"], now_ms=bench.now))
    (again,) = bench.claim().jobs
    add(bench, "a", again.token, "ö" * 600 + "\udc80")
    (line,) = bench.store.run(lines_plan(bench.keys, "a"))
    assert (line.attempt, line.text) == (2, "ö" * 500)


def test_without_a_lease_nothing_is_logged(bench: Bench) -> None:
    job = bench.running("a")
    assert not add(bench, "a", "other.1", "x")
    bench.settle(job, kind="succeeded")
    before = bench.snapshot()
    assert not add(bench, "a", job.token, "x")
    assert bench.snapshot() == before


def test_the_log_goes_with_its_job(bench: Bench) -> None:
    job = bench.running("a")
    add(bench, "a", job.token, "x")
    bench.settle(job, kind="dead")
    bench.run(delete_many(bench.keys, ["a"]))
    assert not bench.redis.exists("jobq:log:a")


def test_lines_are_never_refused_for_lack_of_memory(real: Bench) -> None:
    job = real.running("a")
    real.redis.config_set("maxmemory", 1)
    try:
        assert add(real, "a", job.token, "x")
    finally:
        real.redis.config_set("maxmemory", 0)
