"""What one worker is asked to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from jobq.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What one worker serves, and for how long.

    Attributes:
        queues: Names of the queues; empty: all that the settings know.
        concurrency: Slots of each queue, instead of its own number.
        burst: End when the queues are empty.
        max_jobs: Each queue's executor ends after claiming this many. None: never.
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
