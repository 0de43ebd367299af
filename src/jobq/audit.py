"""The audit: is each job in exactly the place of its status, and does every other entry and key belong to one?

It reads everything once, in steps of at most 100 jobs, then looks a second time at what seemed wrong, atomically: a
job that was only on its way is no finding. A repair looks a third time, in the script that writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from jobq import calls
from jobq.config import Settings
from jobq.fleet import queue_names_plan
from jobq.keys import Keys
from jobq.probes import KINDS, Finding, Kind, Scope, probe_plan
from jobq.queues import QueueSpec
from jobq.replies import as_int
from jobq.steps import Batch, Call, Plan
from jobq.survey import survey_plan

__all__ = ["GRACE", "KINDS", "Finding", "Kind", "Runner", "audit", "confirm", "repair"]

T = TypeVar("T")

GRACE = timedelta(seconds=2)
"""Between the two looks: longer than any move takes that is no single step, such as a stock worker's."""


class Runner(Protocol):
    """What the audit needs of a client."""

    keys: Keys
    specs: dict[str, QueueSpec]
    settings: Settings

    def run(self, step: Call[T] | Batch[T] | Plan[T]) -> T: ...


def _scope(client: Runner) -> Scope:
    """The scope for a client."""
    keep = max((spec.keep_dead.age for spec in client.specs.values()), default=timedelta(days=7))
    return Scope(client.keys, client.settings.lease // timedelta(milliseconds=1), int(keep.total_seconds()))


def audit(
    client: Runner,
    *,
    grace: timedelta = GRACE,
    limit: int | None = None,
    progress: Callable[[int], object] = lambda _count: None,
) -> list[Finding]:
    """Everything that is not where it belongs, the worst first; empty when all is well.

    No command takes Redis longer than some 50 ms, however many jobs there are. A million jobs take half a
    minute, and some 120 bytes of this process for each one queued.

    Args:
        client: A client, or what has its ``keys``, ``specs``, ``settings`` and ``run``.
        grace: Pause before the second look; with 0 a stock rq worker's own moves may show.
        limit: Look at about so many keys only. Registries and lists are read whole.
        progress: Called with the number of further keys looked at.
    Raises:
        StoreUnavailableError: Redis cannot be reached.
    """
    scope = _scope(client)
    suspects = client.run(survey_plan(scope, client.specs, progress=progress, limit=limit))
    if not suspects:
        return []
    time.sleep(grace.total_seconds())
    return _sorted(client.run(probe_plan(scope, suspects, fix=False)))


def confirm(client: Runner, findings: Sequence[Finding]) -> list[Finding]:
    """Those that are still as they were found.

    Raises:
        StoreUnavailableError: Redis cannot be reached.
    """
    probes = [finding.probe for finding in findings if finding.probe is not None]
    return _sorted(client.run(probe_plan(_grown(client), probes, fix=False)))


def repair(client: Runner, findings: Sequence[Finding], *, delete_unreadable: bool = False) -> list[Finding]:
    """Set right what still is as it was found, and return that.

    Each step looks again and writes in one script, so it may run beside workers, twice, or be interrupted.

    Args:
        findings: Of :func:`audit`, all or some.
        delete_unreadable: Delete jobs that cannot be read, too. Nothing else loses a job.
    Raises:
        StoreUnavailableError: Redis cannot be reached; what was not reached stays as it is.
    """
    probes = [f.probe for f in findings if f.probe is not None and (f.repairable or f.kind == "unreadable")]
    done = _sorted(client.run(probe_plan(_grown(client), probes, fix=True)))
    fixed = [finding for finding in done if finding.repairable]
    if delete_unreadable:
        broken = [finding for finding in done if finding.kind == "unreadable"]
        fixed += [f for f in broken if client.run(calls.delete(client.keys, f.subject)) == "deleted"]
    return fixed


def _grown(client: Runner) -> Scope:
    """The scope for a further look; the longest list bounds how much one call searches."""
    scope = _scope(client)
    queues = client.run(queue_names_plan(client.keys, client.specs))
    lengths: list[Any] = client.run(Batch(tuple(("LLEN", client.keys.queue(name)) for name in queues)))
    scope.longest = max(map(as_int, lengths), default=0)
    return scope


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    places = {name: place for place, name in enumerate(KINDS)}
    return sorted(dict.fromkeys(findings), key=lambda each: (places[each.kind], each.place, each.subject))
