"""Finding jobs by a tag: ``jobq:tag:<tag>`` names the jobs that carry it, newest last.

Written before the jobs, so that none is missed; what a refused enqueue or a deleted job leaves behind, a listing drops.
Jobs without tags cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

from jobq.calls import Batch
from jobq.keys import Keys

MOST_JOBS = 100_000
"""Jobs that one tag finds; the oldest go first."""

KEEP = timedelta(days=14)
"""How long after it was due a job is found by its tags at least: twice as long as dead letters are kept by default."""


def index(
    keys: Keys, tagged: Iterable[tuple[str, Sequence[str]]], due_ms: int, now_ms: int, keep: timedelta = KEEP
) -> Batch[None]:
    """Note which jobs carry which tags.

    Args:
        tagged: Ids with their tags.
        due_ms: When the last of them is due, ms since 1970.
        keep: How long after that they are found.
    """
    ids: dict[str, list[str]] = {}
    for job_id, tags in tagged:
        for tag in tags:
            ids.setdefault(tag, []).append(job_id)
    seconds = max(0, due_ms - now_ms) // 1000 + int(keep.total_seconds())
    commands: list[tuple[str | int, ...]] = []
    for tag, found in ids.items():
        key = keys.tag(tag)
        commands.append(("ZADD", key, *(part for job_id in found for part in (now_ms, job_id))))
        commands.append(("ZREMRANGEBYRANK", key, 0, -MOST_JOBS - 1))
        commands.append(("EXPIRE", key, seconds))
    # What Redis refuses here, for lack of memory, it refuses the enqueue as well.
    return Batch(tuple(commands), lambda _replies: None)
