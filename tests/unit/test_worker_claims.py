"""When an executor asks for more jobs, and how many it may take."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from jobq.keys import Keys
from jobq.steps import Claim, Claimed
from jobq.worker.claims import Claims
from jobq.worker.executor import LaneExecutor, turns_of
from jobq.worker.executors import Executors
from jobq.worker.parts import Part
from jobq.worker.spec import LaneSpec, ServedSpec
from jobq.worker.turns import Turns

JOB = Claimed("j", "e.1", b"", 0, 0, 0, 1_000, b"", 30, "t.x", b"", None)


@pytest.fixture
def claims() -> Claims:
    served = ServedSpec("high", 4, "e")
    return Claims(LaneSpec("high", (served,), "w", 12_000), served, Keys("rq"), ["t.known"])


def answer(claims: Claims, now: float = 0.0, **fields: Any) -> None:
    assert claims.next(4, now) is not None
    given: dict[str, Any] = {"status": "ok", "now_ms": 0, "until_ms": 0, "parked": False, "jobs": []}
    claims.answered(Claim(**(given | {"more": False} | fields)), now)


def test_an_empty_queue_is_not_asked_again_until_something_may_have_come(claims: Claims) -> None:
    answer(claims)
    assert claims.next(4, 0.0) is None
    claims.look()
    assert claims.next(4, 0.0) is not None


def test_a_queue_that_may_hold_more_is_asked_with_the_next_settle(claims: Claims) -> None:
    answer(claims, jobs=[JOB] * 4, more=True)
    assert claims.next(0, 0.0) is None  # every slot is taken
    assert claims.next(1, 0.0) is not None


def test_a_claim_without_an_answer_goes_again_under_its_number(claims: Claims) -> None:
    first = claims.next(4, 0.0)
    claims.look()
    assert claims.next(4, 0.0) is first


def test_a_paused_queue_is_looked_at_again_after_a_while(claims: Claims) -> None:
    answer(claims, now=10.0, status="paused")
    assert claims.next(4, 10.5) is None
    assert claims.closed_for(10.5) == 0.5
    assert claims.next(4, 11.0) is not None


def test_a_hint_of_parked_jobs_is_followed_at_once_and_with_names(claims: Claims) -> None:
    answer(claims, parked=True)
    again = claims.next(4, 0.0)
    assert again is not None
    assert again.args[-1] == "t.known"


def test_a_late_reply_of_an_older_claim_tells_nothing(claims: Claims) -> None:
    answer(claims, status="stale")
    assert claims.next(4, 0.0) is not None


def test_who_is_woken_in_vain_again_and_again_listens_less_until_it_finds_a_job(claims: Claims) -> None:
    rests = []
    for _ in range(40):
        claims.called = True
        claims.look()
        answer(claims, now=5.0)
        rests.append(claims.rests_for(5.0))
    assert rests[:3] == [0.0, 0.0, 0.0]  # two or three executors of a queue are quicker in turn
    assert 0.005 <= rests[3] <= 0.01
    assert all(0.125 <= rest <= 0.25 for rest in rests[10:])
    assert claims.rests_for(5.25) == 0.0
    claims.called = True
    claims.look()
    answer(claims, now=6.0, jobs=[JOB])
    claims.called = True
    claims.look()
    answer(claims, now=6.0)
    assert claims.rests_for(6.0) == 0.0


def test_a_look_that_nobody_asked_for_is_no_miss(claims: Claims) -> None:
    for _ in range(20):
        claims.look()
        answer(claims, now=5.0)
    assert claims.rests_for(5.0) == 0.0


@pytest.mark.parametrize(
    ("run_s", "ahead"),
    [(0.0, 0), (0.000_01, 90), (0.001, 50), (0.01, 5), (0.015, 3), (0.016, 0), (1.0, 0)],
)
def test_as_many_are_claimed_ahead_as_start_within_5_ms_on_average_and_none_while_runs_are_long(
    run_s: float, ahead: int
) -> None:
    executors: Any = object.__new__(Executors)
    executors._lane = LaneSpec("high", (ServedSpec("high", 10, "e"),), "w", 12_000)
    executors._threads = object()
    executors._all = lambda: [executors._threads]
    assert executors.prefetch(run_s) == ahead


def test_a_claim_that_redis_refused_goes_again_under_its_number_in_a_while(claims: Claims) -> None:
    first = claims.next(4, 10.0)
    claims.refused(10.0)
    assert claims.next(4, 10.5) is None
    assert claims.closed_for(10.5) == 0.5
    assert claims.next(4, 11.0) is first
    assert claims.asked == 4


# -- several queues ----------------------------------------------------------------------------------------------------


class Group:
    """An executor of queues with these slots and weights, as far as it matters to who gets how many."""

    def __init__(self, *queues: tuple[int, int]) -> None:
        served = tuple(
            ServedSpec(f"q{n}", slots, f"e{n}", weight) for n, (slots, weight) in enumerate(queues)
        )
        self.lane = LaneSpec("group", served, "w", 12_000)
        made: Any = object.__new__(LaneExecutor)
        made._lane, made._held, made._claimed, made._run_s = self.lane, 0, 0, 0.0
        made._turns = Turns([each.weight for each in served])
        made._may_claim = lambda _now: True
        made._executors = type("E", (), {"prefetch": staticmethod(lambda _run_s: self.ahead)})()
        waiter: Any = None
        made._parts = self.parts = [
            Part(place, each, Claims(self.lane, each, Keys("rq"), ()), waiter)
            for place, each in enumerate(served)
        ]
        self.executor, self.ahead = made, 0

    def rooms(self) -> list[int]:
        return list(self.executor._rooms([[] for _ in self.parts], 1.0))

    def hold(self, place: int, jobs: int) -> None:
        self.parts[place].held += jobs
        self.executor._held += jobs

    def empty(self, *places: int) -> None:
        for place in places:
            self.parts[place].claims.hungry = False


def test_a_group_has_the_slots_of_its_largest_queue_and_each_queue_its_own_at_most() -> None:
    group = Group((2, 1), (5, 1))
    assert sum(group.rooms()) == 5
    group.empty(1)
    assert group.rooms() == [2, 0]
    group.hold(0, 2)
    assert group.rooms() == [0, 0]
    group.parts[1].claims.look()
    assert group.rooms() == [0, 3]


def test_what_a_claim_without_an_answer_may_have_taken_is_not_given_again() -> None:
    group = Group((4, 1), (4, 1))
    assert group.parts[0].claims.next(3, 0.0)
    assert group.rooms() == [0, 1]


def test_ahead_of_the_slots_claims_who_may_have_all_of_them_and_is_alone() -> None:
    group = Group((2, 1), (5, 1))
    group.ahead = 10
    assert sum(group.rooms()) == 5
    group.empty(1)
    assert group.rooms() == [2, 0], "it has fewer slots than threads"
    group.parts[1].claims.look()
    group.empty(0)
    assert group.rooms() == [0, 15]
    group.parts[1].claims.limited = True
    assert group.rooms() == [0, 5]


def test_executors_of_one_job_each_come_to_every_queue() -> None:
    lane = Group((5, 20), (5, 20), (5, 20)).lane
    first = Counter(turns.share(1, [5, 5, 5]).index(1) for _ in range(300) if (turns := turns_of(lane)))
    assert set(first) == {0, 1, 2}, first
    assert turns_of(LaneSpec("alone", lane.queues[:1], "w", 12_000)) is None
