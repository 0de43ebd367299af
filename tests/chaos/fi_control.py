"""People's hands on jobs while these run."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress

from jobq.errors import ConflictError
from jobq.job import JobState
from tests.chaos import app
from tests.chaos.field import Field
from tests.chaos.frame import Report, Setup, experiment
from tests.chaos.ledger import Entry
from tests.support.processes import until

CALLERS = 4
LONGEST_S = 0.015
GROUP, DELAY_S = 10, 0.05
"""Jobs that a caller enqueues before it cancels them; some come due meanwhile, so that their start is raced, too."""


WAYS = ("cancelled, cancelled", "requested, cancelled", "requested, succeeded", "ended, succeeded")
"""What whoever cancelled was told, and the job's state in the end."""


@experiment(
    "FI-47",
    fault="cancel races the start and the end of its job",
    criterion="exactly one outcome, the same for who cancelled, for the task and in the data; both 0; stuck 0",
    gate=True,
    minutes=3,
)
def cancel_races_completion(setup: Setup) -> Report:
    """Jobs of a few ms, half of which look whether they were asked to stop; each cancelled at a random moment. How
    many of these end in which way, the machine decides: one of each way comes about by hand before them."""
    report = Report()
    jobs = setup.times(10_000, short=400)
    answers: dict[str, str] = {}
    with Field(setup) as field:
        field.start(2)
        _end_in_each_way(field, answers)
        callers = [
            threading.Thread(
                target=_cancel_some, args=(field, setup.rand(f"caller {number}"), number, jobs, answers)
            )
            for number in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        report.expect("all jobs ended", field.drain(120))
        states = {job_id: field.client.get(job_id).state for job_id in answers}
        places = Counter(
            member.decode()
            for queue in field.queues
            for place in ("finished", "canceled", "failed")
            for member in field.raw.zrange(f"rq:{place}:{queue}", 0, -1)
        )
        told: Counter[str] = Counter()
        for worker in field.everybody:
            for name in ("job.succeeded", "job.cancelled", "job.failed", "job.dead"):
                told.update(event["job_id"] for event in worker.events(name))
        runs = field.runs()
        asked = field.raw.scard("jobq:cancels")
        field.audit(report)
    _judge(report, answers, states, runs, least=1 if setup.short else jobs // 100)
    report.zero("in two registries, or none", sum(places[job_id] != 1 for job_id in states))
    report.zero("told of twice, or wrongly", sum(
        told[job_id] != (answer != "cancelled") for job_id, answer in answers.items()
    ))  # fmt: skip
    report.zero("requests left over", asked)
    report.at_least("jobs", len(answers), len(WAYS) + jobs // CALLERS * CALLERS)
    return report


def _cancel_some(field: Field, rand: random.Random, caller: int, jobs: int, answers: dict[str, str]) -> None:
    """One caller's share of the jobs, one after the other; half of the cancels are sent twice."""
    for first in range(0, jobs // CALLERS, GROUP):
        group: list[tuple[str, float]] = []
        for number in range(first, min(first + GROUP, jobs // CALLERS)):
            kind = app.polite if rand.random() < 0.5 else app.work
            task = kind.options(
                client=field.client,
                queue=field.queues[number % 8 == 0],
                delay=DELAY_S if rand.random() < 0.3 else None,
            )
            seconds = rand.uniform(0.0, LONGEST_S)
            group.append((field.enqueue(task, f"c{caller}.{number}", seconds=seconds), seconds))
        rand.shuffle(group)
        for job_id, seconds in group:
            time.sleep(
                max(0.0, rand.uniform(-0.2, 1.2) * seconds)
            )  # before its start, around it, around its end
            answers[job_id] = _cancel(field, job_id)
            if rand.random() < 0.5:
                with suppress(ConflictError):
                    field.client.cancel(job_id)


def _cancel(field: Field, job_id: str) -> str:
    """What whoever cancels is told."""
    try:
        return field.client.cancel(job_id)
    except ConflictError:
        return "ended"


def _end_in_each_way(field: Field, answers: dict[str, str]) -> None:
    """Four jobs, each cancelled once it is where that has this outcome."""

    def cancel_in(state: JobState, job_id: str) -> None:
        until(lambda: field.client.get(job_id).state is state)
        answers[job_id] = _cancel(field, job_id)

    queue = field.queues[0]
    asked, work = (task.options(client=field.client, queue=queue) for task in (app.asked, app.work))
    field.client.queues.pause(queue)
    cancel_in(JobState.QUEUED, field.enqueue(work, "waits", seconds=0.0))
    field.client.queues.resume(queue)
    cancel_in(JobState.RUNNING, field.enqueue(asked, "obeys", obeys=True))
    cancel_in(JobState.RUNNING, field.enqueue(asked, "goes-on", obeys=False))
    cancel_in(JobState.SUCCEEDED, field.enqueue(work, "has-ended", seconds=0.0))


def _judge(
    report: Report, answers: dict[str, str], states: dict[str, JobState], runs: list[Entry], *, least: int
) -> None:
    ends = Counter(entry.job_id for entry in runs if entry.word == "end")
    begun = {entry.job_id for entry in runs}
    wrong = 0
    ways: Counter[str] = Counter()
    for job_id, answer in answers.items():
        state = states[job_id]
        ways[f"{answer}, {state}"] += 1
        wrong += {
            "cancelled": state is not JobState.CANCELLED or job_id in begun,
            "requested": state not in (JobState.CANCELLED, JobState.SUCCEEDED),
            "ended": state is not JobState.SUCCEEDED,
        }[answer]
        # The effect and the verdict agree.
        wrong += ends[job_id] != (state is JobState.SUCCEEDED)
    for way in WAYS:
        report.at_least(way, ways[way], least)
    report.zero("both, or another outcome than was said", wrong)
    report.zero(
        "stuck", sum(state not in (JobState.CANCELLED, JobState.SUCCEEDED) for state in states.values())
    )
