"""Delays and the decision that follows a failure."""

from __future__ import annotations

import json
import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq.errors import ConfigError, JobqError, UnknownTaskError
from jobq.retry import Backoff, Dead, Fixed, RetryIn, RetryPolicy, Steps, delays_from_dict, delays_to_dict

seconds = st.floats(0, 10_000, allow_nan=False)
jitters = st.one_of(st.just("full"), st.floats(0, 1, allow_nan=False))
backoffs = st.builds(
    lambda base, factor, extra, jitter: Backoff(base, factor, base + extra, jitter),
    seconds,
    st.floats(1, 1000, allow_nan=False),
    seconds,
    jitters,
)
delays = st.one_of(
    backoffs,
    st.builds(Fixed, seconds, jitters),
    st.builds(Steps, st.lists(seconds, min_size=1, max_size=5), jitters),
)


@pytest.fixture
def rand():
    return random.Random(7)


@pytest.mark.covers("B-01", "B-02")
def test_default_delays_are_2_4_8_up_to_five_minutes(rand):
    plain = Backoff(jitter=0)
    waits = [plain.delay(attempt, rand).total_seconds() for attempt in range(1, 11)]
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_default_jitter_lengthens_by_up_to_a_quarter_after_the_cap(rand):
    waits = [Backoff().delay(20, rand).total_seconds() for _ in range(500)]
    assert min(waits) >= 300
    assert max(waits) <= 375
    assert max(waits) - min(waits) > 60


@given(backoffs, st.integers(1, 10**9), st.integers())
def test_a_backoff_stays_within_its_bounds(backoff, attempt, seed):
    wait = backoff.delay(attempt, random.Random(seed))
    quiet = Backoff(backoff.base, backoff.factor, backoff.cap, 0).delay(attempt, random.Random(0))
    assert min(backoff.base, backoff.cap) <= quiet <= backoff.cap
    if backoff.jitter == "full":
        assert timedelta(0) <= wait <= quiet
    else:
        assert quiet <= wait <= quiet * (1 + backoff.jitter) + timedelta(microseconds=1)


@given(backoffs, st.integers(1, 60))
def test_a_backoff_never_shrinks_from_one_attempt_to_the_next(backoff, attempt):
    quiet = Backoff(backoff.base, backoff.factor, backoff.cap, 0)
    assert quiet.delay(attempt, random.Random(0)) <= quiet.delay(attempt + 1, random.Random(0))


@given(delays, st.integers(1, 50), st.integers())
def test_delays_survive_json(delay, attempt, seed):
    again = delays_from_dict(json.loads(json.dumps(delays_to_dict(delay))))
    assert again == delay
    assert again.delay(attempt, random.Random(seed)) == delay.delay(attempt, random.Random(seed))


@pytest.mark.covers("B-06")
def test_fixed_and_steps(rand):
    assert Fixed(5).delay(9, rand) == timedelta(seconds=5)
    steps = Steps([1, timedelta(seconds=10), 60])
    assert [steps.delay(n, rand).total_seconds() for n in (1, 2, 3, 4, 99)] == [1, 10, 60, 60, 60]


@pytest.mark.parametrize("delay", [Backoff(), Fixed(1), Steps([1])])
def test_attempts_are_counted_from_one(delay, rand):
    with pytest.raises(ValueError, match="from 1"):
        delay.delay(0, rand)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Backoff(base=-1),
        lambda: Backoff(base=float("nan")),
        lambda: Backoff(base=10, cap=5),
        lambda: Backoff(factor=0.5),
        lambda: Backoff(cap=float("inf")),
        lambda: Backoff(jitter=1.5),
        lambda: Backoff(jitter=True),
        lambda: Backoff(jitter="equal"),  # type: ignore[arg-type]
        lambda: Backoff(base="2"),  # type: ignore[arg-type]
        lambda: Fixed(timedelta(days=366)),
        lambda: Fixed(timedelta(seconds=-1)),
        lambda: Steps([]),
        lambda: Steps([1, -2]),
        lambda: RetryPolicy(0),
        lambda: RetryPolicy(True),
        lambda: RetryPolicy(delays=5),  # type: ignore[arg-type]
        lambda: RetryPolicy(per_error=((int, None),)),  # type: ignore[arg-type]
        lambda: RetryPolicy(per_error=(("", None),)),
        lambda: RetryPolicy(per_error=((ValueError, 3),)),  # type: ignore[arg-type]
        lambda: RetryPolicy(per_error=(ValueError,)),  # type: ignore[arg-type]
        lambda: delays_from_dict({}),
        lambda: delays_from_dict({"kind": "linear"}),
        lambda: delays_from_dict({"kind": "fixed", "delay_s": "x", "jitter": 0}),
        lambda: RetryPolicy.from_dict({"max_attempts": 3}),
        lambda: RetryPolicy.from_dict({"max_attempts": 3, "delays": 1, "per_error": []}),
    ],
)
def test_a_wrong_declaration_is_a_config_error(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.covers("B-07", "B-08")
def test_a_policy_retries_until_the_attempts_are_spent(rand):
    policy = RetryPolicy(3, Fixed(4))
    error = ValueError("no")
    assert policy.decide(1, error, rand) == RetryIn(timedelta(seconds=4))
    assert policy.decide(2, error, rand) == RetryIn(timedelta(seconds=4))
    assert policy.decide(3, error, rand) == Dead("exhausted")
    assert policy.decide(4, error, rand) == Dead("exhausted")  # one more after rq's requeue


def test_an_error_may_have_its_own_policy_and_the_first_match_wins(rand):
    policy = RetryPolicy(
        3,
        Fixed(4),
        per_error=(
            (UnknownTaskError, None),
            ("jobq.errors.JobqError", RetryPolicy(5, Fixed(60))),
            (OSError, RetryPolicy(1)),
        ),
    )
    assert policy.decide(1, UnknownTaskError("x"), rand) == Dead("rejected")
    assert policy.decide(4, JobqError("x"), rand) == RetryIn(timedelta(seconds=60))
    assert policy.decide(4, ConfigError("a subclass"), rand) == RetryIn(timedelta(seconds=60))
    assert policy.decide(1, ConnectionResetError(), rand) == Dead("exhausted")
    assert policy.decide(1, ValueError(), rand) == RetryIn(timedelta(seconds=4))


def test_a_policy_decides_the_same_after_a_trip_through_json(rand):
    policy = RetryPolicy(
        4, Steps([1, 2]), ((UnknownTaskError, None), (TimeoutError, RetryPolicy(9, Fixed(7))), ("a.B", None))
    )
    again = RetryPolicy.from_dict(json.loads(json.dumps(policy.to_dict())))
    for error in (UnknownTaskError("x"), TimeoutError(), ValueError(), OSError()):
        for attempt in (1, 3, 4, 9):
            assert again.decide(attempt, error, rand) == policy.decide(attempt, error, rand)
    assert RetryPolicy.from_dict(again.to_dict()) == again


def test_builtin_exceptions_match_with_or_without_their_module(rand):
    for name in ("ValueError", "builtins.ValueError"):
        policy = RetryPolicy(per_error=((name, None),))
        assert policy.decide(1, UnicodeDecodeError("utf-8", b"", 0, 1, ""), rand) == Dead("rejected")
        assert isinstance(policy.decide(1, KeyError(), rand), RetryIn)
