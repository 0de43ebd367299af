"""What brings a worker's process to each point, and what must hold after it has died there."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]
from rq import Queue
from rq.job import Job as RqJob

from jobq.codec import Serializer
from jobq.job import JobState
from tests.chaos import points
from tests.chaos.field import ISOLATED, TERMINAL, THREADS, Field, job_children, lane, send
from tests.chaos.frame import Report, Setup
from tests.chaos.points import Point
from tests.support.processes import until
from tests.support.workers import Worker, alive

WORKERS = 2
_STARTED_WITHIN_S = 90.0
_REACHED_WITHIN_S = 15.0
_TRIES, _DYING_S = 5, 2.0


def method(scene: str) -> str:
    """The method of :class:`Stage` that plays it."""
    return "_" + scene.replace(" ", "_")


class Stage:
    """Two workers that points can kill, and the means to bring them there. Use as ``with Stage(setup, folder)``."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self._setup = setup
        self._armed, self._hold = folder / points.ARMED, folder / points.HOLD
        self._struck = folder / points.STRUCK
        self._struck.touch()
        self._deaths = 0
        self._below: dict[int, list[psutil.Process]] = {}
        self._letters: set[str] = set()
        self.field = Field(
            setup, folder, slots=2, env={points.FOLDER: str(folder)}, program="tests.chaos.armed"
        )

    def __enter__(self) -> Self:
        self.field.__enter__()
        self._staff()
        for worker in self.field.workers:
            worker.ready()
        return self

    def __exit__(self, *details: object) -> None:
        self.field.__exit__(*details)

    def perform(self, point: Point, token: str, report: Report) -> None:
        """One repetition: a job alone, one death at the point, and the job's end."""
        scene = getattr(self, method(point.scene))
        until(self._somebody_serves, _STARTED_WITHIN_S)
        try:
            ids = scene(point, token)
        finally:
            self._hold.unlink(missing_ok=True)
            self._staff()
        bound = 3 * self._setup.rerun_within_s + _REACHED_WITHIN_S
        for job_id in ids:
            until(lambda job_id=job_id: self.field.client.get(job_id).state in TERMINAL, bound)
        self._judge(point, ids, report)

    def end(self, report: Report) -> None:
        """Drain, and hold the ledgers against each other."""
        own = Report()
        own.expect("all jobs ended", self.field.drain(60))
        self.field.judge(own, max_attempts=2, dead=self._letters)
        own.figure("starts beyond the first", own.figures.pop("duplicates"))  # most of them had no effect
        report.add(own)

    # -- after it ---------------------------------------------------------------------------------------------------

    def _judge(self, point: Point, ids: list[str], report: Report) -> None:
        effects = Counter((e.job_id, e.attempt) for e in self.field.runs() if e.word == "effect")
        when = "after" if point.effect else "before"
        for job_id in ids:
            job = self.field.client.get(job_id)
            expected = JobState.DEAD if point.scene == "dead" else JobState.SUCCEEDED
            attempts = 2 if point.scene == "retry" else 1
            report.expect(f"{point.name}: ends {expected}", job.state is expected, job.state)
            report.expect(f"{point.name}: attempts {attempts}", job.attempt == attempts, job.attempt)
            if expected is JobState.DEAD:
                self._letters.add(job_id)
            again = sum(count - 1 for (id_, _), count in effects.items() if id_ == job_id)
            had = sum(id_ == job_id for id_, _ in effects)
            report.expect(f"{point.name}: every attempt had its effect", had == attempts, had)
            report.expect(
                f"{point.name}: duplicates at most {int(point.effect)}", again <= point.effect, again
            )
            report.add(Report({f"duplicates, died {when} the effect": again}))
        report.add(Report({f"deaths {when} the effect": 1}))

    def _staff(self) -> None:
        """Two workers, of which one may still be starting; those that ended are forgotten."""
        for worker in list(self.field.workers):
            if worker.process.poll() is not None:
                self.field.workers.remove(worker)
        while len(self.field.workers) < WORKERS:
            self.field.spawn(app="tests.chaos.points")

    def _somebody_serves(self) -> bool:
        return any(worker.events("worker.started") for worker in self.field.workers)

    # -- steps ------------------------------------------------------------------------------------------------------

    def _arm(self, point: Point) -> None:
        self._deaths = len(self._struck.read_text().splitlines())
        self._below = {}
        for worker in self.field.workers:
            self._below[worker.pid] = worker.tree()
            for spawner in psutil.Process(worker.pid).children():
                self._below[spawner.pid] = spawner.children()
        self._armed.write_text(point.name)

    def _struck_since(self) -> list[str]:
        """Who died at the point."""
        return self._struck.read_text().splitlines()[self._deaths :]

    def _reached(self, point: Point) -> None:
        """Return once a process has died at the point, and all that goes with it."""
        patience = _REACHED_WITHIN_S + self._setup.rerun_within_s
        try:
            line = until(self._struck_since, patience)[0]
        except AssertionError:
            self._armed.unlink(missing_ok=True)
            raise AssertionError("nobody came there") from None
        name, _, pid = line.partition("|")
        assert name == point.name, f"died at {name}"
        for worker in self.field.workers:
            if worker.pid == int(pid):
                worker.wait()
        until(lambda: not alive(self._below.get(int(pid), [])))

    def _enqueue(self, token: str, queue: str = THREADS, *, delay: float | None = None, fails: int = 0,
                 max_attempts: int = 1) -> str:  # fmt: skip
        place = "child" if queue == ISOLATED else "thread"
        task = points.effect.options(
            client=self.field.client, queue=queue, delay=delay, max_attempts=max_attempts
        )
        return self.field.enqueue(task, token, place=place, fails=fails)

    def _started(self, job_id: str) -> tuple[Worker, psutil.Process]:
        """The worker that runs this job, and its executor."""

        def holder() -> tuple[Worker, psutil.Process] | None:
            pids = {
                entry.pid for entry in self.field.runs() if entry.job_id == job_id and entry.word == "start"
            }
            for worker in self.field.workers:
                for process in worker.tree():
                    if process.pid in pids and lane(process) == THREADS:
                        return worker, process
            return None

        found = until(holder)
        assert found is not None
        return found

    def _held_job(self, token: str) -> tuple[str, Worker, psutil.Process]:
        """A job that runs and waits to be let go."""
        self._hold.write_text(token)
        job_id = self._enqueue(token)
        return job_id, *self._started(job_id)

    # -- scenes -----------------------------------------------------------------------------------------------------

    def _run(self, point: Point, token: str) -> list[str]:
        self._arm(point)
        job_id = self._enqueue(token)
        self._reached(point)
        return [job_id]

    def _isolated(self, point: Point, token: str) -> list[str]:
        self._arm(point)
        job_id = self._enqueue(token, ISOLATED)
        self._reached(point)
        return [job_id]

    def _dead(self, point: Point, token: str) -> list[str]:
        self._arm(point)
        job_id = self._enqueue(token, fails=1)
        self._reached(point)
        return [job_id]

    def _retry(self, point: Point, token: str) -> list[str]:
        self._arm(point)
        job_id = self._enqueue(token, fails=1, max_attempts=2)
        self._reached(point)
        return [job_id]

    def _scheduled(self, point: Point, token: str) -> list[str]:
        def delayed(name: str) -> list[str]:
            self._hold.write_text(name)
            return [self._enqueue(name, delay=0.1)]

        self._arm(point)
        return self._again(point, token, delayed)

    def _again(self, point: Point, token: str, make: Callable[[str], list[str]]) -> list[str]:
        """Bring something to the point, the last job of it held.

        What is ready only between a worker's look at the point and its step passes it: then something else.
        """
        ids: list[str] = []
        for number in range(_TRIES):
            ids += make(f"{token}-{number}")
            if self._struck_beside(ids[-1]):
                break
            if number < _TRIES - 1:
                self._hold.unlink()
                self._until(ids[-1], JobState.SUCCEEDED)
        self._reached(point)
        return ids

    def _struck_beside(self, job_id: str) -> bool:
        """Whether somebody died at the point, once this job runs."""
        until(lambda: self._struck_since() or self._is(job_id, JobState.RUNNING), _STARTED_WITHIN_S)
        with suppress(AssertionError):  # whoever has passed it on may be about to die
            until(self._struck_since, _DYING_S)
        return bool(self._struck_since())

    def _until(self, job_id: str, state: JobState) -> None:
        until(lambda: self._is(job_id, state))

    def _is(self, job_id: str, state: JobState) -> bool:
        return self.field.client.get(job_id).state is state

    def _held(self, point: Point, token: str) -> list[str]:
        job_id, _, _ = self._held_job(token)
        self._arm(point)
        self._reached(point)
        return [job_id]

    def _abandoned(self, point: Point, token: str) -> list[str]:
        """Its worker is dead, and the one that rescues it dies too."""
        job_id, worker, _ = self._held_job(token)
        self.field.kill(worker)
        self._arm(point)
        self._reached(point)
        return [job_id]

    def _family(self, point: Point, token: str) -> list[str]:
        def family(name: str) -> list[str]:
            parent, _, _ = self._held_job(name)
            queue = Queue(THREADS, connection=self.field.raw, serializer=Serializer)
            child = queue.enqueue(
                points.effect, token=f"{name}-child",
                depends_on=RqJob.fetch(parent, connection=self.field.raw, serializer=Serializer),
            )  # fmt: skip
            self.field.produced.note(f"{name}-child", child.id, "acked")
            self._hold.write_text(f"{name}-child")
            return [parent, child.id]

        self._arm(point)
        return self._again(point, token, family)

    def _stopped(self, point: Point, token: str) -> list[str]:
        """SIGTERM; an executor dies while it drains, or the supervisor at the very end."""
        job_id, worker, _ = self._held_job(token)
        self._arm(point)
        worker.send(signal.SIGTERM)
        if point.effect:
            self._hold.unlink()
        self._reached(point)
        worker.wait(40)
        return [job_id]

    def _executor_dies(self, point: Point, token: str) -> list[str]:
        job_id, _, executor = self._held_job(token)
        self._arm(point)
        send(executor, signal.SIGKILL)
        self._reached(point)
        return [job_id]

    def _child_dies(self, point: Point, token: str) -> list[str]:
        """An idle child dies, and its successor dies at birth."""
        found = until(lambda: [c for w in self.field.workers for c in job_children(w.tree())])
        self._arm(point)
        send(found[0], signal.SIGKILL)
        job_id = self._enqueue(token, ISOLATED)
        self._reached(point)
        return [job_id]

    def _starts(self, point: Point, token: str) -> list[str]:
        """A duty that every supervisor performs first of all."""
        self._arm(point)
        self.field.spawn(app="tests.chaos.points")
        self._hold.write_text(token)
        job_id = self._enqueue(token)
        self._reached(point)
        return [job_id]
