"""The memory brake: while Redis fills up, less urgent queues refuse new jobs first, so that urgent ones are taken.

Workers look once a second, one of them for all, and write into each queue's state until when it refuses; enqueue reads
that with what it reads anyway. When the last worker stops, refusals end within :data:`HOLD`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from jobq.keys import Keys
from jobq.queues import ShedAt
from jobq.replies import as_int, as_text
from jobq.steps import Arg, Batch, Call, Plan, script_head
from jobq.units import redis_ms

LOOK = timedelta(milliseconds=900)
"""Between two looks, by whichever worker comes first: each ticks once a second."""

HOLD = timedelta(seconds=10)
"""How long a refusal holds after the last look."""

RELEASE_POINTS = 3
"""Percentage points below its threshold at which a queue takes jobs again, so that it does not flap."""


@dataclass(frozen=True, slots=True)
class Braked:
    """What a look has changed.

    Attributes:
        percent: Of ``maxmemory`` in use; None: there is none, or Redis does not say, or somebody else has looked.
        shed: Queues that refuse new jobs from now on; ``admitted``: those that take them again.
    """

    percent: int | None = None
    shed: tuple[str, ...] = ()
    admitted: tuple[str, ...] = ()


def look(
    keys: Keys, by_queue: Mapping[str, int], default: int = ShedAt().medium, *, now_ms: int | None = None
) -> Call[Braked]:
    """Compare the memory in use with the thresholds, unless another worker has just done so.

    Args:
        by_queue: Threshold of each known queue, in percent.
        default: That of queues which only Redis knows.
    """
    args: list[Arg] = [
        *script_head(keys, now_ms),
        LOOK // timedelta(milliseconds=1),
        HOLD // timedelta(milliseconds=1),
        RELEASE_POINTS,
        default,
    ]
    for name, threshold in by_queue.items():
        # 100 means never, and memory in use can be a little over its limit.
        args += (name, threshold if threshold < 100 else 1_000)

    def decode(reply: list[Any]) -> Braked:
        if not reply:
            return Braked()
        words = list(zip(map(as_text, reply[1::2]), map(as_text, reply[2::2]), strict=True))
        return Braked(
            percent=reply[0] if reply[0] >= 0 else None,
            shed=tuple(name for name, word in words if word == "on"),
            admitted=tuple(name for name, word in words if word == "off"),
        )

    return Call("brake", (keys.pulse, keys.queues), tuple(args), decode)


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
