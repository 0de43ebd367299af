"""How a worker makes itself known, in rq's lists and ours; ``jobq.fleet`` reads what is written here."""

from __future__ import annotations

from collections.abc import Sequence

from jobq.keys import Keys
from jobq.rq_bridge import worker_fields
from jobq.steps import Arg, Call, script_head

WORKER_TTL_S = 60
"""Seconds after which a worker that has not registered again is gone."""


def register_worker(
    keys: Keys,
    *,
    name: str,
    queues: Sequence[str],
    slots: int,
    busy: int,
    tasks: Sequence[str],
    host: str,
    pid: int,
    state: str,
    birth_ms: int,
    now_ms: int,
    version: str = "",
    worker: str = "",
    succeeded: int = 0,
    failed: int = 0,
    working_s: float = 0.0,
    signs: bool = False,
    parts: Sequence[tuple[int, int]] = (),
) -> Call[bool]:
    """Show a worker as alive for 60 s, in rq's lists and ours.

    Args:
        state: ``idle``, ``busy``, ``draining`` or ``quiet``; rq's readers see the last two as busy and suspended.
        worker: Name of the worker that this executor belongs to; orders go to that.
        signs: It has a key, and so rejects jobs that are not signed.
        parts: Of each queue the slots that it may use and those that it does, if it shares them with others.
        birth_ms: When it started, and ``now_ms``, now: ms since 1970.
    """
    theirs = worker_fields(
        queues=queues,
        pid=pid,
        hostname=host,
        birth_ms=birth_ms,
        now_ms=now_ms,
        state={"draining": "busy", "quiet": "suspended"}.get(state, state),
        succeeded=succeeded,
        failed=failed,
        working_s=working_s,
    )
    ours = {
        "slots": str(slots),
        "busy": str(busy),
        "queues": ",".join(queues),
        "tasks": ",".join(tasks),
        "host": host,
        "pid": str(pid),
        "state": state,
        "version": version,
        "worker": worker or name,
        "signs": "1" if signs else "",
        "parts": ",".join(f"{most}/{used}" for most, used in parts),
    }
    args: list[Arg] = [*script_head(keys, now_ms), WORKER_TTL_S, len(queues), *queues, 2 * len(theirs)]
    for item in (*theirs.items(), *ours.items()):
        args += item
    names = (keys.worker(name), keys.live_worker(name), keys.workers, keys.queues)
    return Call("register", names, tuple(args), bool)


def unregister_worker(keys: Keys, name: str, queues: Sequence[str]) -> Call[bool]:
    """Take a worker out of the lists."""
    names = (keys.worker(name), keys.live_worker(name), keys.workers)
    return Call("unregister", names, (*script_head(keys, None), *queues), bool)
