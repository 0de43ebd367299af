"""Executors that serve several queues by weight, killed again and again: what is lost, and whether shares hold."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

import psutil  # type: ignore[import-untyped]

from tests.chaos.field import Field, lane
from tests.chaos.frame import KILL_EVERY_S, Report, Setup, experiment
from tests.chaos.ledger import Entry
from tests.support.processes import until
from tests.support.workers import Worker, alive

GROUPS: Mapping[str, Mapping[str, int]] = {
    "mail": {"email": 5, "sms": 3, "push": 1},
    "papers": {"pdf": 4, "report": 1},
}
"""Queues that share an executor, and their weights: a group of threads and one of child processes."""

FORKED = "papers"
WAITING, SHORT_WAITING = 200, 40
"""Jobs that each queue has waiting all the time, or its share would not be all it could have."""

LOOK_EVERY_S = 0.25
"""More often, reading the ledger would keep the supply from its work."""

TURNS_OFF = 2.0
"""An executor deals slots to less than one turn off, so to less than two between any two moments."""

LEAST_DURING_KILLS, SHORT_LEAST = 0.5, 0.2
"""In the short form few jobs start during the kills, and each executor begins anywhere in its turns."""

LONGEST_WAIT_S = 5.0


@experiment(
    "FI-01b",
    fault="SIGKILL of an executor that serves several queues by weight, one of 8 every 250 ms",
    criterion="duplicates ≤ in flight at kills; rerun starts ≤ 15 s (p99), ≤ 30 s (max); during the kills each queue"
    " starts jobs, at least half of its share, never 5 s apart; after them its share to 2 turns an executor",
    gate=True,
    minutes=2,
)
def killed_groups(setup: Setup) -> Report:
    """Every queue has jobs waiting from before the first kill until the shares are judged."""
    report, rand = Report(), setup.rand("kills")
    kills, starts = setup.times(240, short=16), setup.times(1_500, short=120)
    workers = 2 if setup.short else 4
    with Field(setup, queues=tuple(_weights()), slots=2, isolated=FORKED, env=_environment()) as field:
        supply = Supply(field)
        field.start(workers)
        began = time.time()
        for _ in range(kills):
            time.sleep(KILL_EVERY_S)
            field.kill(*rand.choice(until(lambda: _executors(field))))
        ended = time.time()
        until(lambda: _recovered(field, workers), 60 + 2 * setup.rerun_within_s, LOOK_EVERY_S)
        settled = time.time()
        until(
            lambda: min(_by_group(_starts(field.runs(), settled)).values()) >= starts,
            60 + starts / 10,
            LOOK_EVERY_S,
        )
        calm = _starts(field.runs(), settled)
        supply.stop()
        report.expect("all jobs ended", field.drain(120))
        field.judge(report)
    report.figure("executors killed", kills)
    field.judge_duplicates(report)
    field.judge_reruns(report)
    report.at_least("fewest jobs waiting in a queue", supply.fewest, 1)
    _judge_kills(report, setup, _starts(field.runs(), began, ended), began, ended)
    _judge_shares(report, calm, workers)
    return report


class Supply:
    """Has jobs wait in each queue of a field, from when it is made until it is stopped.

    Attributes:
        fewest: That waited in any of them, whenever it was looked.
    """

    def __init__(self, field: Field) -> None:
        self._field, self._numbers = field, Counter[str]()
        self._rand = field.setup.rand("lengths")
        self._stop = threading.Event()
        self.fewest = self._level = SHORT_WAITING if field.setup.short else WAITING
        self._fill()
        self._thread = threading.Thread(target=self._run, name="supply", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave what waits to the workers."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.fewest = min(self.fewest, *self._fill())

    def _fill(self) -> list[int]:
        """Enqueue what lacks; how many waited before."""
        queues = self._field.queues
        pipe = self._field.raw.pipeline()
        for queue in queues:
            pipe.llen(f"rq:queue:{queue}")
        waiting: list[int] = pipe.execute()
        for place, queue in enumerate(queues):
            for _ in range(self._level - waiting[place]):
                self._numbers[queue] += 1
                self._field.offer(f"{queue}-{self._numbers[queue]}", self._rand.uniform(0.0, 0.2), place)
        return waiting


def _weights() -> dict[str, int]:
    return {queue: weight for group in GROUPS.values() for queue, weight in group.items()}


def _environment() -> dict[str, str]:
    found = {}
    for name, weights in GROUPS.items():
        for queue, weight in weights.items():
            options = {
                "GROUP": name,
                "WEIGHT": weight,
                "ISOLATION": "process" if name == FORKED else "thread",
            }
            found |= {f"JOBQ_QUEUES__{queue.upper()}__{key}": str(value) for key, value in options.items()}
    return found


def _executors(field: Field) -> list[tuple[Worker, psutil.Process]]:
    """Those of the groups that live, with their workers; not those in which suspects run apart."""
    found = [(worker, each) for worker in field.workers for each in alive(worker.executors())]
    return [(worker, each) for worker, each in found if lane(each) in GROUPS]


def _recovered(field: Field, workers: int) -> bool:
    """Whether all executors serve, and each job that a kill interrupted has started again."""
    names = Counter(lane(each) for _, each in _executors(field))
    return all(names[group] == workers for group in GROUPS) and all(
        any(entry.word == "start" and entry.at > kill.at for entry in field.runs_of(job_id))
        for kill in field.kills
        for job_id in kill.jobs
    )


def _starts(runs: Iterable[Entry], after: float, before: float = math.inf) -> dict[str, list[float]]:
    """When jobs of each queue started in that time; a token begins with its queue."""
    found: dict[str, list[float]] = {queue: [] for queue in _weights()}
    for entry in runs:
        if entry.word == "start" and after < entry.at < before:
            found[entry.token.partition("-")[0]].append(entry.at)
    return found


def _by_group(starts: Mapping[str, list[float]]) -> dict[str, int]:
    return {name: sum(len(starts[queue]) for queue in weights) for name, weights in GROUPS.items()}


def _due(starts: Mapping[str, list[float]]) -> dict[str, float]:
    """How many of its group's starts were each queue's by its weight."""
    by_group = _by_group(starts)
    return {
        queue: by_group[name] * weight / sum(weights.values())
        for name, weights in GROUPS.items()
        for queue, weight in weights.items()
    }


def _judge_kills(
    report: Report, setup: Setup, starts: Mapping[str, list[float]], began: float, ended: float
) -> None:
    """No queue starves, however short the lives of its executors are."""
    due = _due(starts)
    report.at_least(
        "during the kills, the least of its share that a queue had",
        min(len(starts[queue]) / due[queue] for queue in starts),
        SHORT_LEAST if setup.short else LEAST_DURING_KILLS,
    )
    gaps = [
        later - sooner
        for each in starts.values()
        for sooner, later in pairwise([began, *sorted(each), ended])
    ]
    report.at_most(
        "during the kills, longest without a start of a queue, s",
        max(gaps),
        LONGEST_WAIT_S + setup.patience_s,
    )


def _judge_shares(report: Report, starts: Mapping[str, list[float]], executors: int) -> None:
    """By turns: none is further from its share than what its executors may have dealt too many or too few."""
    due = _due(starts)
    report.figure("starts after the last kill", sum(map(len, starts.values())))
    report.at_most(
        "furthest from its share after it, turns an executor",
        max(abs(len(starts[queue]) - due[queue]) for queue in starts) / executors,
        TURNS_OFF,
    )
