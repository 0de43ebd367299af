"""Bucket arithmetic: every duration falls in one bucket, and quantiles come back within a bucket's width."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq import histogram


def test_edges_rise_and_hold_every_usual_target() -> None:
    assert list(histogram.EDGES_MS) == sorted(set(histogram.EDGES_MS))
    seconds = {0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600}
    assert seconds <= {edge / 1000 for edge in histogram.EDGES_MS}
    assert histogram.EDGES_MS[0] == 0.1
    assert histogram.EDGES_MS[-1] == 3_600_000


@given(st.floats(min_value=-10, max_value=1e9))
def test_a_duration_lies_within_the_edges_of_its_bucket(ms: float) -> None:
    index = histogram.bucket(ms)
    assert 0 <= index <= histogram.OVERFLOW
    if index < histogram.OVERFLOW:
        assert ms <= histogram.EDGES_MS[index]
    if index > 0:
        assert ms > histogram.EDGES_MS[index - 1]


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_a_quantile_is_within_a_bucket_of_the_true_one(q: float) -> None:
    rand = random.Random(7)
    values = sorted(rand.lognormvariate(3, 1.5) for _ in range(5_000))
    counts: dict[int, int] = {}
    for value in values:
        counts[histogram.bucket(value)] = counts.get(histogram.bucket(value), 0) + 1
    estimate = histogram.quantile(counts, q)
    assert estimate is not None
    assert estimate * 1000 == pytest.approx(values[int(q * len(values))], rel=0.35)


def test_nothing_counted_has_no_quantile() -> None:
    assert histogram.quantile({}, 0.5) is None
    assert histogram.quantile({3: 0}, 0.5) is None


def test_beyond_the_last_edge_reads_as_one_hour() -> None:
    assert histogram.quantile({histogram.OVERFLOW: 5}, 0.99) == 3600
