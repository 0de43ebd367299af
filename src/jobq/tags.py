"""Finding jobs by a tag or a correlation id: ``jobq:tag:<tag>`` and ``jobq:corr:<id>`` name those that carry it.

Written before the jobs, so that none is missed, newest last. A job's entries go with it; what a refused enqueue or an
expired job leaves behind, a listing drops. Jobs that carry neither cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

from jobq.keys import Keys
from jobq.steps import Batch

MOST_JOBS = 100_000
"""Jobs that one tag or correlation id finds; the oldest go first."""

KEEP = timedelta(days=14)
"""How long after it was due a job is found so at least: twice as long as dead letters are kept by default."""


def names(keys: Keys, tags: Sequence[str], correlation_id: str | None) -> tuple[str, ...]:
    """The keys that a job with these is found by."""
    found = tuple(keys.tag(tag) for tag in tags)
    return (*found, keys.correlation(correlation_id)) if correlation_id else found


def index(
    named: Iterable[tuple[str, Sequence[str]]], due_ms: int, now_ms: int, keep: timedelta = KEEP
) -> Batch[None]:
    """Note which jobs are found by which keys.

    Args:
        named: Ids, each with its :func:`names`.
        due_ms: When the last of them is due, ms since 1970.
        keep: How long after that they are found.
    """
    ids: dict[str, list[str]] = {}
    for job_id, places in named:
        for key in places:
            ids.setdefault(key, []).append(job_id)
    seconds = max(0, due_ms - now_ms) // 1000 + int(keep.total_seconds())
    commands: list[tuple[str | int, ...]] = []
    for key, found in ids.items():
        commands.append(("ZADD", key, *(part for job_id in found for part in (now_ms, job_id))))
        commands.append(("ZREMRANGEBYRANK", key, 0, -MOST_JOBS - 1))
        commands.append(("EXPIRE", key, seconds))
    # What Redis refuses here, for lack of memory, it refuses the enqueue as well.
    return Batch(tuple(commands), lambda _replies: None)
