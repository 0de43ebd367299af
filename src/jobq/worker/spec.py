"""What a worker, and each of its executors, is asked to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from jobq.errors import ConfigError
from jobq.steps import Suspects

SUSPECT_SLOTS = 2
"""Suspects of a queue that a worker runs at once, beside the queue's own slots."""

PREFETCH = 90
"""Most jobs that an executor holds beyond its slots."""

_SHORTEST_VOID_S = 4.0
"""A busy machine holds up a loop for a second or two; a lease may be shorter."""

_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What one worker serves, and for how long.

    Attributes:
        queues: Names of the queues; empty: all that the settings know.
        concurrency: Slots of each queue, instead of its own number.
        burst: End when the queues are empty.
        max_jobs: Each executor, of a queue or a group of queues, ends after claiming this many. None: never.
        grace: How long a stopping worker lets running jobs finish; default 30 s. Longer ones are requeued.
        name: The name it goes by. None: host and process id.
        health_port: Serve ``/livez`` and ``/readyz`` on this port of the loopback interface.
        reload: Start anew when a source file changes; for development.
    Raises:
        ConfigError: A value is out of its range.
    """

    queues: tuple[str, ...] = ()
    concurrency: int | None = None
    burst: bool = False
    max_jobs: int | None = None
    grace: timedelta = timedelta(seconds=30)
    name: str | None = None
    health_port: int | None = None
    reload: bool = False

    def __post_init__(self) -> None:
        for field, value, high in (
            ("concurrency", self.concurrency, 10_000),
            ("max_jobs", self.max_jobs, 10**12),
            ("health_port", self.health_port, 65_535),
        ):
            if value is not None and not 1 <= value <= high:
                raise ConfigError(f"{field} must be from 1 to {high:,}, got {value}")
        if self.grace < timedelta(0):
            raise ConfigError(f"grace must not be negative, got {self.grace}")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ConfigError(f"a worker's name is made of letters, digits and _.@-, got {self.name!r}")


@dataclass(frozen=True, slots=True)
class ServedSpec:
    """One of the queues that an executor serves.

    Attributes:
        queue: Its name.
        slots: Of its jobs at once.
        exec_id: The name in tokens of this queue, unique for each process; its last claim is on record under it.
        weight: Its share of the slots that fall free while several of the queues have jobs.
    """

    queue: str
    slots: int
    exec_id: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """What the supervisor tells an executor.

    Attributes:
        name: Of the queue it serves, or of the group of queues.
        queues: The queues, at least one.
        worker: The name it goes by in Redis.
        lease_ms: Length of a lease.
        burst: End when the queues are empty.
        max_jobs: End after claiming this many; None: never.
        suspects: ``run``: each of its jobs has a process of its own. ``park``: it leaves them to an executor that runs
            them apart. ``only``: it is that executor, which ends when there are none.
    """

    name: str
    queues: tuple[ServedSpec, ...]
    worker: str
    lease_ms: int
    burst: bool = False
    max_jobs: int | None = None
    suspects: Suspects = "run"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its queues."""
        return tuple(served.queue for served in self.queues)

    @property
    def slots(self) -> int:
        """Jobs at once, of all its queues together: as many as the largest of them may have."""
        return max(served.slots for served in self.queues)

    @property
    def apart(self) -> bool:
        """Whether it runs suspects alone."""
        return self.suspects == "only"

    @property
    def capacity(self) -> int:
        """Records in the slot table: all that can be in the executor's hands at once."""
        return self.slots + PREFETCH

    @property
    def void_s(self) -> float:
        """Seconds of silence of its loop after which what it has claimed and not started may be given to others."""
        return max(self.lease_ms / 1_000, _SHORTEST_VOID_S)

    @property
    def doubt_s(self) -> float:
        """Seconds of silence of its own loop after which an executor starts nothing of what it had claimed before."""
        return 0.75 * self.void_s

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> LaneSpec:
        """What :meth:`to_dict` wrote."""
        return cls(**{**kept, "queues": tuple(ServedSpec(**served) for served in kept["queues"])})
