"""Waiting for a job to end: a flag that settle sees, a list to block on, and a look at the state.

``jobq:wait:<id>`` tells settle that somebody waits; settle then pushes to ``jobq:done:<id>``. A waiter moves
that list's head onto the same list: it wakes without consuming, so any number of waiters wake. A stock rq
worker pushes nothing, hence the look at the state every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

from redis.exceptions import MaxConnectionsError, RedisError

from jobq.dead_letters import last_line
from jobq.errors import JobFailedError
from jobq.job import Job, JobOwner, JobState
from jobq.job_reading import hash_command, job_of, newest_result, valid_id
from jobq.keys import Keys
from jobq.records import decode_attempt
from jobq.replies import as_text
from jobq.steps import Batch, Plan
from jobq.units import in_seconds

FLAG_S = 60
"""Seconds that the flag lives; each look renews it."""

BLOCK_S = 5.0
"""Longest block, and so the longest time between two looks."""

_SHORTEST_S = 0.01
_LOOKED_AT_ONCE = 100
_BLOCKED_AT_ONCE = 1_000
_FIRST_BLOCK_S = 1.0


@dataclass(slots=True)
class Patience:
    """How long a waiter may still block.

    Args:
        timeout: Seconds or a timedelta; None: without end.
        clock: Seconds of a clock that never goes back.
    """

    deadline: float | None
    clock: Callable[[], float]
    block_s: float = _FIRST_BLOCK_S

    @classmethod
    def of(cls, timeout: float | timedelta | None, clock: Callable[[], float] = time.monotonic) -> Patience:
        """Start waiting now."""
        if timeout is None:
            return cls(None, clock)
        return cls(clock() + in_seconds(timeout), clock)

    def next_block(self, job: Job) -> float:
        """Seconds to block before the next look; each is twice the one before, up to :data:`BLOCK_S`.

        Raises:
            TimeoutError: The time is up.
        """
        block = self.block_s
        if self.deadline is not None:
            left = self.deadline - self.clock()
            if left <= 0:
                raise TimeoutError(f"job {job.id} is still {job.state}; it goes on")
            block = min(block, left)
        self.block_s = min(self.block_s * 2, BLOCK_S)
        return max(block, _SHORTEST_S)  # 0 would block for ever


def look_plan(keys: Keys, job_id: str, owner: JobOwner | None, *, woken: bool) -> Plan[Job]:
    """The job's state, after saying that somebody waits.

    Args:
        woken: The list was not empty. If the job has not ended, what it held is of an earlier end, before a
            replay: it goes, or it would wake every waiter for a minute.
    """
    flag = ("SET", keys.wait(valid_id(job_id)), "1", "EX", FLAG_S)
    values = (yield Batch((flag, hash_command(keys, job_id))))[1]
    job = job_of(job_id, values, owner)
    if job.finished or not woken:
        return job
    # Delete first, read after: a job that ends in between shows in its state.
    values = (yield Batch((("DEL", keys.done(job_id)), hash_command(keys, job_id))))[1]
    return job_of(job_id, values, owner)


def block_command(keys: Keys, job_id: str, seconds: float) -> tuple[Any, ...]:
    """The blocking command of a waiter."""
    done = keys.done(job_id)
    return ("BLMOVE", done, done, "LEFT", "LEFT", f"{seconds:.3f}")


class Watch:
    """Waits for many jobs of one Redis at once: one blocking read over all their lists.

    The read takes what it finds, and puts it back when the job has ended: so any number of waiters wakes, as by a move.

    Args:
        look_s: Longest time between two looks.
        seen: Told of each job as it is looked at.
    """

    def __init__(
        self,
        keys: Keys,
        ids: Sequence[str],
        owner: JobOwner | None,
        patience: Patience,
        look_s: float = BLOCK_S,
        seen: Callable[[Job], object] = lambda _job: None,
    ) -> None:
        self._keys = keys
        self._owner = owner
        self._patience = patience
        self._look_s = look_s
        self._seen = seen
        self._open = dict.fromkeys(ids)
        self._found: dict[str, Job] = {}
        self._block_until = 0.0

    def look(self) -> Plan[bool]:
        """Look at every job that has not ended; False: there is nothing left to wait for, or no time."""
        waiting = list(self._open)
        for start in range(0, len(waiting), _LOOKED_AT_ONCE):
            part = waiting[start : start + _LOOKED_AT_ONCE]
            flags = tuple(("SET", self._keys.wait(valid_id(job_id)), "1", "EX", FLAG_S) for job_id in part)
            hashes = tuple(hash_command(self._keys, job_id) for job_id in part)
            replies = (yield Batch((*flags, *hashes)))[len(part) :]
            for job_id, values in zip(part, replies, strict=True):
                self._note(job_of(job_id, values, self._owner))
        if not self._open:
            return False
        try:
            block = self._patience.next_block(self._found[next(iter(self._open))])
        except TimeoutError:
            return False
        self._block_until = self._patience.clock() + min(block, self._look_s)
        return True

    @property
    def left_s(self) -> float:
        """Seconds until the next look; 0: it is time, or all have ended."""
        return max(0.0, self._block_until - self._patience.clock()) if self._open else 0.0

    def command(self) -> tuple[Any, ...]:
        """The blocking command. Beyond a thousand jobs it takes the next look to see one end."""
        lists = (self._keys.done(job_id) for job_id in islice(self._open, _BLOCKED_AT_ONCE))
        return ("BLPOP", *lists, f"{max(self.left_s, _SHORTEST_S):.3f}")

    def woken(self, reply: Any) -> Plan[None]:
        """Look at the job whose list had something."""
        key, state = as_text(reply[0]), reply[1]
        job_id = key.removeprefix(self._keys.done(""))
        job = yield from look_plan(self._keys, job_id, self._owner, woken=True)
        if job.finished:
            yield Batch((("RPUSH", key, state), ("EXPIRE", key, FLAG_S)))
        self._note(job)

    def _note(self, job: Job) -> None:
        self._found[job.id] = job
        if job.finished:
            self._open.pop(job.id, None)
        self._seen(job)

    @property
    def found(self) -> Mapping[str, Job]:
        """Each job as it was last seen."""
        return self._found


def pause_after(error: RedisError) -> float:
    """Seconds to the next look when it could not be blocked: the look itself says what is wrong, if anything is.

    The connection may be lost, memory full (a move is refused then), or this process' share of connections in use.
    """
    return 0.25 if isinstance(error, MaxConnectionsError) else 1.0


def failure_plan(keys: Keys, job: Job) -> Plan[JobFailedError]:
    """The error that says why a job is dead or cancelled."""
    why, record, entries = yield Batch(
        (
            ("HGET", keys.job(job.id), "why"),
            ("LINDEX", keys.attempts(job.id), -1),
            ("XREVRANGE", keys.results(job.id), "+", "-", "COUNT", 1),
        )
    )
    kind, text = None, None
    if job.state is JobState.DEAD:
        if record and not isinstance(record, Exception):
            attempt = decode_attempt(record, job.attempt)
            kind, text = attempt.error_type, attempt.error
        stream = newest_result(entries)
        if text is None and stream is not None and stream.error:
            kind, text = last_line(stream.error)
    reason = job.dead_reason or (why.decode("utf-8", "replace") if isinstance(why, bytes) else None)
    detail = ": ".join(part for part in (kind, text) if part)
    return JobFailedError(
        f"job {job.id} is {job.state}"
        + (f" ({reason})" if reason else "")
        + (f": {detail}" if detail else ""),
        job_id=job.id,
        queue=job.queue,
        task=job.task,
    )
