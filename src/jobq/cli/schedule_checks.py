"""What ``jobq doctor`` looks at in recurring schedules: those that are not fired, and those that nobody has written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from jobq.cli.checks import Check
from jobq.cli.output import duration_text

if TYPE_CHECKING:
    from jobq.client import Client
    from jobq.schedule_spec import Schedule

_LATE = timedelta(seconds=60)
"""A slot that has not been fired so long after it was due will not be: a worker fires it within 2 s."""

_SHOWN = 3


def schedule_checks(client: Client, declared: Sequence[Schedule]) -> Iterator[Check]:
    """Whether each schedule of this Redis is fired when it is due.

    Args:
        declared: What the code here declares for it.
    """
    from jobq.cron import moment  # late: the steps know the scripts
    from jobq.steps import Batch
    from jobq.units import redis_ms

    found = client.schedules.list()
    now = moment(client.run(Batch((("TIME",),), lambda replies: redis_ms(replies[0]))))
    broken = [info for info in found if info.state == "broken"]
    late = {
        info.name: late
        for info in found
        if info.state == "active" and info.next_at is not None and info.timing is not None
        if (late := now - info.next_at - timedelta(milliseconds=info.timing.jitter_ms)) > _LATE
    }
    written = {info.name for info in found}
    missing = [each.name for each in declared if each.name not in written]
    if broken:
        words = f"{_named([info.name for info in broken])} cannot be fired: {broken[0].reason}"
        yield Check("schedules", "bad", words, "see jobq schedules list --state broken")
    if late:
        longest = duration_text(round(max(late.values()).total_seconds()))
        words = f"{_named(list(late))} not fired, overdue by up to {longest}"
        yield Check(
            "schedules", "bad", words, "start jobq worker, or make room in the queue: any worker fires"
        )
    if missing:
        words = f"{_named(missing)} declared here, and written by no worker"
        yield Check("schedules", "warn", words, "start jobq worker with this JOBQ_APP and JOBQ_SECRET_KEY")
    if found and not (broken or late):
        paused = sum(info.state == "paused" for info in found)
        yield Check("schedules", "ok", f"{len(found):,}" + (f", {paused:,} of them paused" if paused else ""))


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
