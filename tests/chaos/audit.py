"""The data's invariants after an experiment, read raw: nothing of jobq's own code judges itself here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import redis

_PLACES: dict[str, tuple[str, ...]] = {
    "queued": ("queue",),
    "started": ("wip",),
    "finished": ("finished",),
    "failed": ("failed",),
    "scheduled": ("scheduled",),
    "deferred": ("deferred",),
    "canceled": ("canceled",),
}


def audit(raw: redis.Redis, queues: Sequence[str]) -> list[str]:
    """Jobs that are in no container, in several, or in one that their status does not name; leases left over.

    Only on a server at rest: a move in flight would be reported.
    """
    places: defaultdict[str, list[str]] = defaultdict(list)
    for queue in queues:
        for job_id in raw.lrange(f"rq:queue:{queue}", 0, -1):
            places[job_id.decode()].append("queue")
        for name in ("wip", "finished", "failed", "scheduled", "deferred", "canceled"):
            for member in raw.zrange(f"rq:{name}:{queue}", 0, -1):
                places[member.decode().partition(":")[0]].append(name)
    found = []
    keys = list(raw.scan_iter("rq:job:*", count=1_000, _type="hash"))
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        pipe = raw.pipeline(transaction=False)
        for key in part:
            pipe.hget(key, "status")
        replies: list[Any] = pipe.execute(raise_on_error=False)
        for key, status in zip(part, replies, strict=True):
            job_id = key.decode().removeprefix("rq:job:")
            word = status.decode() if isinstance(status, bytes) else str(status)
            if tuple(places.get(job_id, ())) != _PLACES.get(word):
                found.append(f"{job_id}, {word}, is in {places.get(job_id, [])}")
    if left := raw.zcard("jobq:leases"):
        found.append(f"{left} leases are left")
    return found
