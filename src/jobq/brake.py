"""The memory brake: while Redis fills up, less urgent queues refuse new jobs first, so that urgent ones are taken.

Workers look once a second, one of them for all, and write into each queue's state until when it refuses; enqueue reads
that with what it reads anyway. While no worker lives, whoever enqueues looks, for a backlog is what fills memory; and
so does, at any time, who has sent a hundredth of it. When nobody looks any more, refusals end within :data:`HOLD`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from jobq import events
from jobq.keys import Keys
from jobq.queues import ShedAt
from jobq.replies import as_int, as_text
from jobq.steps import Arg, Batch, Call, Plan, Rider, script_head
from jobq.units import redis_ms

LOOK = timedelta(milliseconds=900)
"""Between two looks, by whichever worker comes first: each ticks once a second."""

LOOK_OF_CLIENTS = timedelta(seconds=3)
"""Between the last look and one of a client: while a worker lives, its thresholds count."""

HOLD = timedelta(seconds=10)
"""How long a refusal holds after the last look."""

_LIMITED_S = 1.0
_UNLIMITED_S = 60.0
"""A client asks so often: of a server that has a limit, and of one that has none, or could not be asked."""

_OVERHEAD = 700
"""Bytes that a job takes beside its payload."""

_NEVER = 1_000
"""A percentage that is never reached."""

RELEASE_POINTS = 3
"""Percentage points below its threshold at which a queue takes jobs again, so that it does not flap."""


@dataclass(frozen=True, slots=True)
class Braked:
    """What a look has changed.

    Attributes:
        percent: Of ``maxmemory`` in use at the last look, whosever it was; None: there is none, or Redis does not say.
        limit: ``maxmemory`` in bytes; 0: there is none, or Redis does not say.
        shed: Queues that refuse new jobs from now on; ``admitted``: those that take them again.
    """

    percent: int | None = None
    limit: int = 0
    shed: tuple[str, ...] = ()
    admitted: tuple[str, ...] = ()


def look(
    keys: Keys,
    by_queue: Mapping[str, int],
    default: int = ShedAt().medium,
    *,
    every: timedelta = LOOK,
    release: bool = True,
    now_ms: int | None = None,
) -> Call[Braked]:
    """Compare the memory in use with the thresholds, unless somebody has just done so.

    Args:
        by_queue: Threshold of each known queue, in percent.
        default: That of queues which only Redis knows.
        every: Look only when the last one is as long ago.
        release: Also let queues take jobs again.
    """
    args: list[Arg] = [
        *script_head(keys, now_ms),
        every // timedelta(milliseconds=1),
        HOLD // timedelta(milliseconds=1),
        RELEASE_POINTS if release else _NEVER,
        default,
    ]
    for name, threshold in by_queue.items():
        # 100 means never, and memory in use can be a little over its limit.
        args += (name, threshold if threshold < 100 else _NEVER)

    def decode(reply: list[Any]) -> Braked:
        words = list(zip(map(as_text, reply[2::2]), map(as_text, reply[3::2]), strict=True))
        return Braked(
            percent=reply[0] if reply[0] >= 0 else None,
            limit=as_int(reply[1]),
            shed=tuple(name for name, word in words if word == "on"),
            admitted=tuple(name for name, word in words if word == "off"),
        )

    return Call("brake", (keys.pulse, keys.queues), tuple(args), decode)


def tell(changed: Braked, **who: str) -> None:
    """Say which queues refuse or take jobs from now on."""
    for name, queues in (("queue.shed", changed.shed), ("queue.admitted", changed.admitted)):
        for queue in queues:
            events.emit(name, queue=queue, memory_percent=changed.percent, **who)


class ClientBrake:
    """Lets a client look along with what it enqueues.

    Once a minute; if there is a ``maxmemory``, once a second, and after each hundredth of it. The latter, faster than
    workers look, leaves it to them to let queues take jobs again.

    Args:
        by_queue: Threshold of each known queue.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, keys: Keys, by_queue: Mapping[str, int], clock: Callable[[], float]) -> None:
        self._keys = keys
        self._by_queue = by_queue
        self._clock = clock
        self._due = -math.inf
        self._sent, self._most_sent = 0, math.inf

    def rider(self, jobs: int, size: int) -> Rider | None:
        """What is to go along with the next enqueue, of so many jobs and bytes of payload; mostly nothing."""
        now = self._clock()
        self._sent += size + jobs * _OVERHEAD
        much = self._sent > self._most_sent
        if now < self._due and not much:
            return None
        self._due, self._sent = now + _UNLIMITED_S, 0
        every = timedelta(0) if much else LOOK_OF_CLIENTS
        call = look(self._keys, self._by_queue, every=every, release=not much)
        return Rider(call, lambda reply: self._took(call, reply))

    def _took(self, call: Call[Braked], reply: Any) -> None:
        if isinstance(reply, Exception):  # one who may not look leaves it to others
            return
        changed = call.decode(reply)
        if changed.limit:
            self._due = self._clock() + _LIMITED_S
        self._most_sent = changed.limit / 100 if changed.limit else math.inf
        tell(changed)


@dataclass(frozen=True, slots=True)
class BrakeState:
    """How the brake stands.

    Attributes:
        percent: Of ``maxmemory`` in use at the last look; None while no queue refuses jobs.
        shed: Queues that refuse new jobs; ``open``: those that take them.
    """

    percent: int | None
    shed: tuple[str, ...]
    open: tuple[str, ...]

    def refusal(self, queue: str) -> str:
        """Why a queue takes no new job, for its :class:`~jobq.errors.QueueFullError`."""
        used = "nearly full" if self.percent is None else f"{self.percent} % full"
        others = f"queues {', '.join(self.open)} still take jobs" if self.open else "no queue takes jobs"
        return (
            f"queue {queue!r} takes no new jobs: the memory of Redis is {used}; {others}. "
            "Raise maxmemory, or let the workers catch up; see jobq memory"
        )


def state_plan(keys: Keys, queues: Sequence[str], *, now_ms: int | None = None) -> Plan[BrakeState]:
    """How the brake stands for these queues."""
    clock, *rows = yield Batch(
        (("TIME",), *(("HMGET", keys.queue_state(queue), "shed", "mem") for queue in queues))
    )
    if now_ms is None:
        now_ms = redis_ms(clock)
    percents: dict[str, int] = {}
    for queue, row in zip(queues, rows, strict=True):
        if not isinstance(row, Exception) and as_int(row[0]) > now_ms:
            percents[queue] = as_int(row[1])
    return BrakeState(
        max(percents.values(), default=None),
        tuple(percents),
        tuple(queue for queue in queues if queue not in percents),
    )
