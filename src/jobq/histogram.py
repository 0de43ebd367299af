"""Fixed time buckets: a worker counts a duration as one bucket, a reader gets quantiles back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

_TARGETS_MS = (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000)
_LONG_MS = (60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000)


def _edges() -> tuple[float, ...]:
    """Log-spaced edges, eight to a decade, with every usual target as an exact edge."""
    exact = [float(edge) for edge in (*_TARGETS_MS, *_LONG_MS)]
    spaced = [round(0.1 * 10 ** (step / 8), 4) for step in range(61)]
    # A spaced edge within 8 % of an exact one would only make a sliver of a bucket.
    kept = [edge for edge in spaced if all(abs(edge / other - 1) > 0.08 for other in exact)]
    return tuple(sorted({*exact, *(edge for edge in kept if edge < exact[-1])}))


EDGES_MS: tuple[float, ...] = _edges()
"""Upper edges in milliseconds, each inclusive: 0.1 ms to one hour. One more bucket holds what is longer.

Counters under ``jobq:n:`` name a bucket by its index here: change an edge only with a new counter name.
"""

OVERFLOW = len(EDGES_MS)
"""Index of the bucket for anything longer than an hour."""


def bucket(ms: float) -> int:
    """Index of the bucket that holds ``ms`` milliseconds; negative durations count as the shortest."""
    return bisect_left(EDGES_MS, ms)


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """The ``q``-quantile in seconds of durations counted per bucket, linear inside its bucket.

    Args:
        counts: Bucket index to count.
        q: Between 0 and 1; 0.99 for the 99th percentile.
    Returns:
        None when nothing was counted. What lies beyond the last edge counts as that edge, one hour.
    """
    total = sum(counts.values())
    if total <= 0:
        return None
    rank = q * total
    seen = 0
    for index in sorted(counts):
        count = counts[index]
        if count > 0 and seen + count >= rank:
            if index >= OVERFLOW:
                return EDGES_MS[-1] / 1000
            low = EDGES_MS[index - 1] if index else 0.0
            return (low + (EDGES_MS[index] - low) * max(rank - seen, 0.0) / count) / 1000
        seen += max(count, 0)
    return EDGES_MS[-1] / 1000
