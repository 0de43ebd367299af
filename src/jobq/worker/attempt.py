"""One attempt of one job as the worker's parts hand it on: what was claimed, what it runs with, how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from jobq.context import JobContext
from jobq.retry import RetryPolicy
from jobq.rq_bridge import ForeignOptions
from jobq.steps import Claimed, Outcome
from jobq.tasks import Task


@dataclass(slots=True, eq=False)
class Assignment:
    """One claimed job in an executor's hands.

    Attributes:
        slot: Index of its record in the slot table.
        job: The job as claimed.
        claimed_at: Seconds of the monotonic clock when the claim was answered.
        claimed_ms: The same moment by Redis' clock.
        started_at: Seconds of the monotonic clock when its run began; 0 before.
        stop_by: When it is cut off, since it was asked to stop; seconds of the monotonic clock.
        expired: Its event loop has cancelled it because its time was up.
        ready: What it needs to run, once its payload is decoded.
        executor: Where it runs.
        queue: Place of its queue among those that its executor serves.
    """

    slot: int
    job: Claimed
    claimed_at: float
    claimed_ms: int
    started_at: float = 0.0
    stop_by: float = math.inf
    expired: bool = False
    ready: Ready | None = field(default=None, repr=False)
    executor: Any = None
    queue: int = 0

    @property
    def attempt(self) -> int:
        """The attempt this run is, counted from 1."""
        return self.job.attempts + 1

    @property
    def wait_ms(self) -> float:
        """From when it was queued, or due, until its run began; 0 for a job of plain rq's."""
        if not self.job.queued_ms:
            return 0.0
        return self.claimed_ms - self.job.queued_ms + (self.started_at - self.claimed_at) * 1000

    @property
    def timeout_s(self) -> float:
        """Seconds until the soft timeout; always finite."""
        return float(self.job.timeout) if self.job.timeout > 0 else 180.0


@dataclass(slots=True)
class Report:
    """How an attempt ended: what to settle, and what to tell once it is stored."""

    assignment: Assignment
    outcome: Outcome
    event: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Ready:
    """What a run needs, once its payload is verified, decoded and validated.

    Attributes:
        secrets: Every text inside its secret params, to be blotted out of what errors say.
        foreign: What plain rq asked for, if it made the job.
    """

    task: Task[..., Any]
    params: dict[str, Any]
    secrets: tuple[str, ...]
    policy: RetryPolicy
    foreign: ForeignOptions
    context: JobContext
