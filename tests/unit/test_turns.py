"""Whose turn it is among queues that share slots: properties, whatever the weights and whoever comes and goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from jobq.worker.turns import Turns

MANY = 1_000_000
weights = st.lists(st.integers(1, 100), min_size=1, max_size=10)


def dealt(turns: Turns, wants: Sequence[int], times: int) -> list[int]:
    """Whom each of so many slots goes to that fall free one by one."""
    found = []
    for _ in range(times):
        given_to = turns.share(1, wants)
        assert sum(given_to) == 1
        found.append(given_to.index(1))
    return found


@given(weights, st.integers(1, 150))
@example([1, 5, 1, 5, 69, 1, 1, 5, 5, 84], 300)  # where the greatest credit first is wrong by 1.3
@example([100, 90, 10, 1, 10, 10, 10, 1, 1, 1], 300)
def test_each_has_had_its_share_at_any_moment(by_weight: list[int], times: int) -> None:
    turns, had, total = Turns(by_weight), Counter[int](), sum(by_weight)
    for n, chosen in enumerate(dealt(turns, [MANY] * len(by_weight), times), start=1):
        had[chosen] += 1
        for place, weight in enumerate(by_weight):
            assert abs(had[place] - n * weight / total) < 1 + 1e-6


@given(st.lists(st.integers(1, 20), min_size=2, max_size=4), st.integers(0, 100), st.integers(1, 100))
def test_over_any_stretch_its_share_give_or_take_two(by_weight: list[int], skipped: int, times: int) -> None:
    """In one that begins anywhere, both its ends may be off by less than one."""
    turns, total = Turns(by_weight), sum(by_weight)
    dealt(turns, [MANY] * len(by_weight), skipped)
    had = Counter(dealt(turns, [MANY] * len(by_weight), times))
    for place, weight in enumerate(by_weight):
        assert abs(had[place] - times * weight / total) < 2 + 1e-6


@given(
    weights.flatmap(
        lambda each: st.tuples(
            st.just(each),
            st.lists(
                st.tuples(
                    st.integers(0, 50),
                    st.lists(st.integers(0, 12), min_size=len(each), max_size=len(each)),
                ),
                max_size=20,
            ),
        )
    )
)
def test_none_gets_more_than_it_wants_and_no_wanted_slot_stays_free(
    case: tuple[list[int], list[tuple[int, list[int]]]],
) -> None:
    by_weight, rounds = case
    turns = Turns(by_weight)
    for free, wants in rounds:
        given_to = turns.share(free, wants)
        assert all(0 <= got <= want for got, want in zip(given_to, wants, strict=True))
        assert sum(given_to) == min(free, sum(wants))


def test_no_slots_and_fewer_than_none() -> None:
    assert Turns([1, 1]).share(0, [3, 3]) == [0, 0]
    assert Turns([1, 1]).share(-2, [3, 3]) == [0, 0]  # more is held than there are slots
    assert Turns([1, 1]).share(5, [-1, 3]) == [0, 3]


@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=6).flatmap(
        lambda each: st.tuples(
            st.just(each),
            st.lists(st.lists(st.booleans(), min_size=len(each) - 1, max_size=len(each) - 1), max_size=150),
        )
    )
)
def test_whoever_waits_all_the_time_is_served_whoever_comes_and_goes(
    case: tuple[list[int], list[list[bool]]],
) -> None:
    by_weight, rounds = case
    turns, since = Turns(by_weight), 0
    most = -(-sum(by_weight) // by_weight[0]) + len(by_weight)
    for others in rounds:
        given_to = turns.share(1, [1, *others])
        since = 0 if given_to[0] else since + 1
        assert since <= most


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.integers(0, 300), st.integers(1, 60))
def test_who_was_away_has_hoarded_nothing(by_weight: list[int], away: int, times: int) -> None:
    turns, total = Turns(by_weight), sum(by_weight)
    dealt(turns, [0] + [MANY] * (len(by_weight) - 1), away)
    had = dealt(turns, [MANY] * len(by_weight), times).count(0)
    assert had <= times * by_weight[0] / total + 1 + 1e-6


@given(st.integers(0, 300), st.integers(1, 60))
def test_who_had_all_for_itself_owes_nothing(alone: int, times: int) -> None:
    turns = Turns([1, 1])
    dealt(turns, [MANY, 0], alone)
    had = dealt(turns, [MANY, MANY], times).count(0)
    assert abs(had - times / 2) <= 1


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 30))
def test_however_short_lives_are_each_has_its_share_over_all_beginnings(
    by_weight: list[int], times: int
) -> None:
    """An executor that is replaced after every job would otherwise serve the heaviest alone."""
    cycle, had = Turns.cycle(by_weight), Counter[int]()
    for begin in range(cycle):
        had.update(dealt(Turns(by_weight, begin), [MANY] * len(by_weight), times))
    for place, weight in enumerate(by_weight):
        assert had[place] == times * cycle * weight // sum(by_weight)


def test_weights_of_3_2_and_1_take_turns_smoothly() -> None:
    assert dealt(Turns([3, 2, 1]), [MANY] * 3, 12) == [0, 1, 0, 1, 0, 2] * 2
