"""A shop's recurring work: sums every minute, clean-up at night, a report that somebody asked for at run time.

Run it against a Redis of your own::

    export JOBQ_REDIS_URL=redis://localhost:6379/0 JOBQ_APP=examples.schedules
    python -m examples.schedules       # adds the report
    jobq worker                        # writes what is declared below, and fires
    jobq schedules list
    jobq schedules next nights.clean
"""

from __future__ import annotations

from datetime import timedelta

import jobq


@jobq.schedule(every="1m", overlap="skip", jitter="5s")
@jobq.task("shop.sums", priority="low")
def sums() -> int:
    """Each minute, but never twice at a time."""
    return 42


@jobq.schedule(name="nights.clean", cron="0 2 * * *", tz="Europe/Berlin", params={"days": 30})
@jobq.task("shop.clean", priority="batch")
def clean(days: int) -> None:
    """At two in the night, also on the two nights when the clock changes."""


@jobq.task("shop.report", priority="low")
def report(to: str) -> None:
    """Sent when somebody asked for it; see below."""


def main() -> None:
    """Add a report on working days; whatever a weekend without workers missed, one is enough."""
    client = jobq.Client()
    client.schedules.add(
        "report.ada",
        report,
        {"to": "ada@example.com"},
        cron="30 8 * * MON-FRI",
        tz="Europe/Berlin",
        misfire=jobq.Misfire("one", within=timedelta(hours=4)),
        replace=True,
    )
    for slot in client.schedules.next("report.ada", 3):
        print(f"report at {slot:%a %H:%M}")
    print(f"and one now: {client.schedules.run('report.ada').state}")


if __name__ == "__main__":
    main()
