"""What the sequences found, one test each."""

from __future__ import annotations

import pytest

from tests.model.machine import KEYS, Pair, load_scripts
from tests.model.reference import End, New
from tests.support.server import Flavour, Servers


@pytest.fixture(params=["redis", "valkey"])
def pair(request: pytest.FixtureRequest, servers: Servers) -> Pair:
    flavour: Flavour = request.param
    client = servers.client(flavour)
    load_scripts(client)
    return Pair(client)


def new(job_id: str, **options: object) -> New:
    return New(job_id, f'{{"v":1,"n":"{job_id}"}}', **options)  # type: ignore[arg-type]


def running(pair: Pair, job_id: str, number: int = 1) -> str:
    """A job that runs; its token."""
    pair.enqueue("q", [new(job_id)])
    ((_, token),) = pair.claim("q", "a", number, 1, [])
    return token


def test_replay_takes_away_the_lease_that_rqs_cancel_left(pair: Pair) -> None:
    zombie = running(pair, "j")
    pair.rq_cancel("j")
    pair.replay(["j"])
    pair.claim("q", "b", 1, 1, [])
    assert pair.settle("q", [End("j", zombie, "succeeded")]) == ["lost"]


def test_a_replayed_job_was_not_asked_to_stop(pair: Pair) -> None:
    running(pair, "j")
    pair.cancel("j")
    pair.rq_cancel("j")
    pair.replay(["j"])
    pair.heartbeat(pair.claim("q", "b", 1, 1, []))


def test_withdraw_leaves_nothing_for_ever(pair: Pair) -> None:
    token = running(pair, "j")
    pair.settle("q", [End("j", token, "retry", spends=True, record=True)])
    pair.client.sadd(KEYS.dependents("j"), "child")
    pair.model.children["j"] = {"child"}
    pair.withdraw("j")
    assert {"jobq:attempts:j", KEYS.dependents("j")} <= pair.now.left_s.keys()


def test_rescue_forgets_the_request_to_a_deleted_job(pair: Pair) -> None:
    running(pair, "j")
    pair.cancel("j")
    pair.rq_delete("j")
    pair.pass_time(13)
    pair.rescue(100, record=False)
    pair.pass_time(4)
    pair.rescue(100, record=False)
    assert "jobq:cancels" not in pair.now.values


@pytest.mark.parametrize("how", ["delete", "prune"])
def test_an_ended_job_leaves_no_request(pair: Pair, how: str) -> None:
    """A stock worker does not know that its job was asked to stop."""
    pair.enqueue("q", [new("j")])
    pair.client.lpop(KEYS.queue("q"))
    pair.client.hset(KEYS.job("j"), "status", "started")
    pair.client.sadd(KEYS.cancels, "j")
    pair.client.hset(KEYS.job("j"), "status", "finished")
    pair.client.zadd(KEYS.finished("q"), {"j": 1})
    pair.model.stock_pop("q", 60)
    pair.model.cancel("j", 60)
    pair.model.stock_end("j", 0)
    pair.model.jobs["j"].expires_s = float("inf")
    pair.model.kept["q", "succeeded"]["j"] = 1
    if how == "delete":
        pair.delete("j")
    else:
        pair.prune("q", 0, 0, 0, 100)
    assert "jobq:cancels" not in pair.now.values


@pytest.mark.parametrize("how", ["requeue", "replay"])
def test_what_rq_cancels_after_an_earlier_end_is_pruned_by_count(pair: Pair, how: str) -> None:
    """It has no end of its own, so no last minute either: that of the run before is gone."""
    token = running(pair, "j")
    pair.settle("q", [End("j", token, "dead", spends=True)])
    if how == "requeue":
        pair.rq_requeue("j")
    else:
        pair.replay(["j"])
    pair.rq_cancel("j")
    pair.prune("q", -1, -1, 300, 100, 0)
    assert "j" not in pair.model.jobs


def test_jobs_of_one_call_keep_their_order(pair: Pair) -> None:
    pair.enqueue("q", [new("j1", dedup=("f", "t.x:1")), new("j2")])
    assert pair.now.waiting("q") == ["j1", "j2"]


def test_a_dedup_key_of_a_wrong_type_refuses_nobody(pair: Pair) -> None:
    """An error midway would leave the jobs before it half written: repeated, they are ``mine``, and never run."""
    pair.client.rpush(KEYS.dedup("t.x:1"), "no string")
    pair.enqueue("q", [new("j1"), new("j2", dedup=("f", "t.x:1"))])
    assert pair.now.waiting("q") == ["j1", "j2"]


def test_a_requeued_parent_keeps_its_children(pair: Pair) -> None:
    token = running(pair, "parent")
    pair.client.sadd(KEYS.dependents("parent"), "child")
    pair.model.children["parent"] = {"child"}
    pair.settle("q", [End("parent", token, "dead", keep_s=60)])
    pair.release()
    pair.client.sadd(KEYS.dependents("parent"), "child")
    pair.rq_requeue("parent")
    pair.claim("q", "a", 2, 1, [])
    assert KEYS.dependents("parent") not in pair.now.left_s


def test_records_of_a_job_that_an_rq_tool_deletes_expire(pair: Pair) -> None:
    token = running(pair, "j")
    pair.settle("q", [End("j", token, "retry", spends=True, record=True)])
    pair.rq_delete("j")
    assert "jobq:attempts:j" in pair.now.left_s


def test_records_of_a_running_job_that_an_rq_tool_deletes_expire(pair: Pair) -> None:
    token = running(pair, "j")
    pair.settle("q", [End("j", token, "retry", spends=True, record=True)])
    pair.promote(["q"], 100)
    pair.claim("q", "a", 2, 1, [])
    pair.rq_delete("j")
    assert "jobq:attempts:j" in pair.now.left_s
