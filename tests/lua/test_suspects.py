"""Jobs whose process died under them: who cannot run them apart leaves them to whoever can."""

from __future__ import annotations

import pytest

from jobq import calls
from jobq.keys import SUSPECTS
from jobq.steps import Claim
from tests.lua.conftest import Bench


def suspect(bench: Bench, job_id: str = "s", **fields: str) -> None:
    """A queued job that has ended a process, or was lost three times."""
    bench.enqueue(job_id)
    bench.redis.hset(f"rq:job:{job_id}", mapping=fields or {"crashes": "1"})


def ids(claim: Claim) -> list[str]:
    return [job.id for job in claim.jobs]


@pytest.mark.parametrize(
    ("fields", "apart"),
    [
        ({"crashes": "1"}, True),
        ({"lost": "3"}, True),
        ({"lost": "2"}, False),
        ({"crashes": "nonsense", "lost": "x"}, False),
    ],
)
def test_who_parks_suspects_takes_the_others(bench: Bench, fields: dict[str, str], apart: bool) -> None:
    suspect(bench, **fields)
    bench.enqueue("good")
    call = bench.claim_call(suspects="park")
    claim = bench.run(call)
    assert (ids(claim), claim.suspects) == (["good"], True) if apart else (["s", "good"], False)
    assert ids(bench.run(call)) == ids(claim)  # after a lost reply
    assert bench.run(call).suspects is apart  # told again, or nobody would know
    if apart:
        assert bench.hash("s")["park"] == "suspect"
        assert bench.redis.zscore("rq:deferred:q", "s") == bench.now // 1000
        assert bench.redis.zrange("jobq:parked:q:~suspect", 0, -1) == [b"s"]


def test_who_runs_them_apart_takes_nothing_else(bench: Bench) -> None:
    suspect(bench)
    bench.claim(suspects="park")
    bench.enqueue("good")
    claim = bench.claim(suspects="only", known=[SUSPECTS])
    assert (ids(claim), claim.jobs[0].crashes) == (["s"], 1)
    assert bench.status("good") == "queued"
    assert ids(bench.claim(suspects="only", known=[SUSPECTS])) == []
    assert not bench.redis.exists("jobq:parked:q", "jobq:parked:q:~suspect")
    assert bench.redis.zscore("rq:deferred:q", "s") is None


def test_who_has_a_process_for_each_takes_them_from_either_place(bench: Bench) -> None:
    suspect(bench, "a")
    bench.claim(suspects="park")
    suspect(bench, "b")
    assert sorted(ids(bench.claim(known=[SUSPECTS]))) == ["a", "b"]


def test_a_full_batch_of_suspects_is_no_empty_queue(bench: Bench) -> None:
    for number in range(15):
        suspect(bench, f"s{number}")
    bench.enqueue("good")
    assert ids(bench.claim(2, suspects="park")) == ["good"]
    claim = bench.claim(2, suspects="only", known=[SUSPECTS])
    assert (ids(claim), claim.more) == (["s0", "s1"], True)


def test_a_suspect_can_be_cancelled_while_it_waits(bench: Bench) -> None:
    suspect(bench)
    bench.claim(suspects="park")
    assert bench.run(calls.cancel(bench.keys, "s", now_ms=bench.now)) == "cancelled"
    assert not bench.redis.exists("jobq:parked:q", "jobq:parked:q:~suspect")


def test_a_suspect_waits_for_a_pause_to_end(bench: Bench) -> None:
    suspect(bench)
    bench.claim(suspects="park")
    bench.run(calls.pause(bench.keys, "q", 0, "me", ""))
    assert bench.claim(suspects="only", known=[SUSPECTS]).status == "paused"


def test_the_queues_with_suspects_are_found(bench: Bench) -> None:
    assert bench.store.run(calls.queues_with_suspects(bench.keys, ["q", "other"])) == []
    suspect(bench)
    bench.claim(suspects="park")
    assert bench.store.run(calls.queues_with_suspects(bench.keys, ["q", "other"])) == ["q"]
