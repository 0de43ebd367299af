"""Retention by size: how many ended jobs of a queue fit into so many bytes, by a sample of them."""

from __future__ import annotations

from jobq.keys import Keys
from jobq.replies import exact_texts
from jobq.steps import Batch, Plan

_SAMPLE = 20
_ENTRY = 100
"""Bytes of a job's entry in its registry, which grows with the id."""


def fitting_plan(keys: Keys, registry: str, size: int) -> Plan[int | None]:
    """How many jobs like those of a registry take so many bytes of Redis' memory; None: that cannot be told."""
    reply = (yield Batch((("ZRANDMEMBER", registry, _SAMPLE),)))[0]
    ids = [] if isinstance(reply, Exception) or not reply else exact_texts(reply)
    if not ids:
        return None
    names = [
        name for id_ in ids for name in (keys.job(id_), keys.results(id_), keys.attempts(id_), keys.log(id_))
    ]
    sizes = yield Batch(tuple(("MEMORY", "USAGE", name, "SAMPLES", 0) for name in names))
    if any(isinstance(each, Exception) for each in sizes):
        return None  # a server, or a user of it, that does not tell
    total = sum(each for each in sizes if isinstance(each, int)) + _ENTRY * len(ids)
    return size * len(ids) // total
