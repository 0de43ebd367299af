"""The small protocol of the places where functions run.

``submit`` takes assignments, every ending goes to ``hooks.finished``, ``take_back`` returns what has not started.
At most the queue's slots run at a time; threads may hold more.
"""

from __future__ import annotations

from typing import Protocol

from jobq.worker.attempt import Assignment, Report


class Hooks(Protocol):
    """What a place tells its owner. Called from any thread.

    ``started`` answers whether the run may begin; if not, it hands the job back.
    """

    def started(self, work: Assignment) -> bool: ...
    def postponed(self, work: Assignment, deadline: float) -> None: ...
    def finished(self, report: Report) -> None: ...


class Place(Protocol):
    """A place where functions run."""

    def submit(self, works: list[Assignment]) -> None: ...
    def take_back(self) -> list[Assignment]: ...
    def close(self) -> None: ...
