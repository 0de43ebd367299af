"""When an executor asks for more jobs, and how many it may take."""

from __future__ import annotations

from typing import Any

import pytest

from jobq.keys import Keys
from jobq.steps import Claim, Claimed
from jobq.worker.claims import Claims
from jobq.worker.executors import Executors
from jobq.worker.spec import LaneSpec

JOB = Claimed("j", "e.1", b"", 0, 0, 0, 1_000, b"", 30, "t.x", b"", None)


@pytest.fixture
def claims() -> Claims:
    return Claims(LaneSpec("high", 4, "w", 12_000, "e"), Keys("rq"), ["t.known"])


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


@pytest.mark.parametrize(
    ("run_s", "ahead"),
    [(0.0, 0), (0.000_01, 90), (0.001, 50), (0.01, 5), (0.015, 3), (0.016, 0), (1.0, 0)],
)
def test_as_many_are_claimed_ahead_as_start_within_5_ms_on_average_and_none_while_runs_are_long(
    run_s: float, ahead: int
) -> None:
    executors: Any = object.__new__(Executors)
    executors._lane = LaneSpec("high", 10, "w", 12_000, "e")
    executors._threads = object()
    executors._all = lambda: [executors._threads]
    assert executors.prefetch(run_s) == ahead
