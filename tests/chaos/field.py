"""A field for an experiment: a real server of its own, real workers, producers, two ledgers, and the verdict.

Everything is measured from outside: processes are found by the operating system, leases are read from Redis.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil  # type: ignore[import-untyped]
import redis

import jobq
from jobq.errors import EnqueueError, JobNotFoundError, StoreUnavailableError
from jobq.job import JobState
from jobq.private_server import PrivateServer
from jobq.tasks import Bound
from tests.chaos import app
from tests.chaos.audit import audit
from tests.chaos.frame import Report, Setup
from tests.chaos.ledger import Entry, HandlerLedger, Kill, ProducerLedger, compare, percentile, rerun_waits
from tests.support.processes import until
from tests.support.workers import Worker

THREADS = "high"
ISOLATED = "batch"
QUEUES = (THREADS, ISOLATED)
"""A lane of threads and a lane of child processes."""

TERMINAL = (JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED)


class Field:
    """Use as ``with Field(setup) as field``; everything it started has ended after it.

    Args:
        slots: Of each queue's lane; 0: as the queue's own options say.
        config: Options of the Redis server, by their names in ``redis.conf``.
        slots: Slots of each queue of each worker.
        lease_s: ``JOBQ_LEASE`` in seconds, when the form's own does not fit the fault.
        url: How workers reach the server, when not directly; None: its own URL.
        env: Variables for the workers, beside ``JOBQ_LEASE`` and the ledger.
        program: The module that ``python -m`` starts as a worker.
        isolated: The lane whose jobs run in child processes.
    """

    def __init__(
        self,
        setup: Setup,
        folder: Path | None = None,
        *,
        config: Mapping[str, str] | None = None,
        queues: Sequence[str] = QUEUES,
        slots: int = 4,
        lease_s: float | None = None,
        env: Mapping[str, str] | None = None,
        url: Callable[[PrivateServer], str] | None = None,
        program: str = "jobq.cli",
        isolated: str = ISOLATED,
    ) -> None:
        self.setup = setup
        self.folder = folder or setup.folder
        self.server = PrivateServer(config)
        self.queues = tuple(queues)
        self.slots = slots
        self.lease_s = setup.lease_s if lease_s is None else lease_s
        self.env = dict(env or {})
        self.produced = ProducerLedger(self.folder / "producer.ledger")
        self.handled = self.folder / "handlers.ledger"
        self._runs = HandlerLedger(self.handled)
        self.workers: list[Worker] = []
        """Those that serve now."""
        self.everybody: list[Worker] = []
        self.kills: list[Kill] = []
        self.program = program
        self.isolated = isolated
        self._url = url
        self._producers = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.server)
        self.raw = self._stack.enter_context(redis.Redis.from_url(self.server.url))
        self.client = self._stack.enter_context(jobq.Client(jobq.Settings(redis_url=self.server.url)))
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.everybody:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)
            worker.kill()
        self._stack.close()

    @property
    def url(self) -> str:
        """Where the workers connect to."""
        return self._url(self.server) if self._url else self.server.url

    # -- workers ----------------------------------------------------------------------------------------------------

    def start(self, count: int = 1, *args: str, app: str = "tests.chaos.app", **env: str) -> list[Worker]:
        """Start workers and return once they serve."""
        made = [self.spawn(*args, app=app, **env) for _ in range(count)]
        for worker in made:
            worker.ready()
        return made

    def spawn(self, *args: str, app: str = "tests.chaos.app", **env: str) -> Worker:
        """Start a worker without waiting for it."""
        variables = {"CHAOS_LEDGER": str(self.handled), "JOBQ_LEASE": f"{self.lease_s:g}s", **self.env, **env}
        slots = ("--concurrency", str(self.slots)) if self.slots else ()
        made = Worker(
            self.url, self.folder, *slots, *args,
            queues=self.queues, app=app, program=self.program, **variables,
        )  # fmt: skip
        self.everybody.append(made)
        self.workers.append(made)
        return made

    def kill(self, worker: Worker, executor: psutil.Process | None = None) -> Kill:
        """SIGKILL one executor, or (None) the whole worker, noting exactly what was running in it.

        The victims are frozen first: what they were at is then known.
        """
        if executor is None:
            os.kill(worker.pid, signal.SIGSTOP)
            victims = _freeze(worker.tree)
        else:
            send(executor, signal.SIGSTOP)
            # Jobs of an isolated lane run in children of the spawner, which go with their executor.
            below = lane(executor) == self.isolated
            found = _freeze(lambda: job_children(worker.tree(), self.isolated)) if below else []
            victims = [executor, *found]
        leased = {member.decode().partition(":")[0] for member in self.raw.zrange("jobq:leases", 0, -1)}
        last: dict[str, Entry] = {}
        for entry in self.runs():
            if entry.word == "start":
                last[entry.job_id] = entry
        pids = {process.pid for process in victims}
        jobs = frozenset(id_ for id_, entry in last.items() if entry.pid in pids and id_ in leased)
        made = Kill(time.time(), jobs)
        if executor is None:
            worker.kill()
            self.workers.remove(worker)
        else:
            for process in victims:  # woken, a child would start the job that it had just been handed
                send(process, signal.SIGKILL)
        self.kills.append(made)
        return made

    def running(self) -> int:
        """Jobs that run now, by the handlers' ledger and the processes that live."""
        begun: set[tuple[str, int]] = set()
        for entry in self.runs():
            key = (entry.job_id, entry.pid)
            if entry.word == "start":
                begun.add(key)
            else:
                begun.discard(key)
        return sum(psutil.pid_exists(pid) for _, pid in begun)

    # -- producers --------------------------------------------------------------------------------------------------

    def produce(
        self,
        jobs: int,
        *,
        seconds: tuple[float, float] = (0.0, 0.2),
        pause_s: float = 0.002,
        prefix: str = "t",
        client: jobq.Client | None = None,
        stop: threading.Event | None = None,
    ) -> threading.Thread:
        """Enqueue in a thread of its own, one at a time, alternating between the queues; the thread, started.

        Tokens are ``<prefix><producer>-<number>``: no two producers of a field ever use the same one.
        """
        self._producers += 1
        name = f"{prefix}{self._producers}"

        def work() -> None:
            rand = self.setup.rand(name)
            for number in range(jobs):
                if stop is not None and stop.is_set():
                    return
                self.offer(f"{name}-{number}", rand.uniform(*seconds), number, client)
                if pause_s:
                    time.sleep(rand.uniform(0, 2 * pause_s))

        thread = threading.Thread(target=work, name=f"producer-{name}", daemon=True)
        thread.start()
        return thread

    def offer(self, token: str, seconds: float, number: int = 0, client: jobq.Client | None = None) -> str:
        """Enqueue one job of the chaos task, and note the answer; its id, or an empty text."""
        task = app.work.options(client=client or self.client, queue=self.queues[number % len(self.queues)])
        return self.enqueue(task, token, seconds=round(seconds, 4))

    def enqueue(self, task: Bound[Any], token: str, **params: Any) -> str:
        """Enqueue one job of any task that takes a ``token``, and note the answer; its id, or an empty text."""
        try:
            job = task.enqueue(token=token, **params)
        except StoreUnavailableError as error:
            self.produced.note(token, error.job_id or "", "ambiguous" if error.ambiguous else "failed")
            return error.job_id or ""
        except EnqueueError as error:
            self.produced.note(token, error.job_id or "", "failed")
            return ""
        self.produced.note(token, job.id, "acked")
        return job.id

    # -- the end ----------------------------------------------------------------------------------------------------

    def runs(self) -> list[Entry]:
        """The handlers' ledger."""
        return self._runs.entries()

    def runs_of(self, job_id: str) -> list[Entry]:
        """What the handlers' ledger says of one job."""
        return self._runs.of(job_id)

    def waiting(self) -> int:
        """Jobs that are not yet terminal, by Redis."""
        pipe = self.raw.pipeline()  # one step: a job on its way from one to the other must not be missed
        pipe.zcard("jobq:leases")
        for queue in self.queues:
            pipe.llen(f"rq:queue:{queue}")
            pipe.zcard(f"rq:scheduled:{queue}")
        return sum(pipe.execute())

    def drain(self, timeout_s: float = 60.0, *, leases: float = 2.0, stop: bool = True) -> bool:
        """Wait until nothing waits or runs, then as long as any lease could still have a say; stop the workers."""
        try:
            until(lambda: not self.waiting(), timeout_s, 0.05)
            drained = True
        except AssertionError:
            drained = False
        time.sleep(leases * self.lease_s)
        if stop:
            self.stop()
        return drained

    def stop(self) -> None:
        """Stop the workers: what they maintain stands still for the verdict."""
        for worker in self.workers:
            worker.send(signal.SIGTERM)
        for worker in self.workers:
            worker.wait(40)

    def judge(
        self, report: Report, *, may_lose: bool = False, max_attempts: int = 1, dead: Collection[str] = ()
    ) -> None:
        """Hold the ledgers and the data against what is always required, and add it to the report.

        Args:
            may_lose: The loss is Redis' own, and the experiment judges it: only noted here.
            max_attempts: More attempts than this were spent by nobody's failure.
            dead: Ids of jobs that must end as dead letters.
        """
        offers, runs = self.produced.offers(), self.runs()
        found = compare(offers, runs)
        report.figure("jobs acknowledged", found.acked)
        doomed = {offer.token for offer in offers if offer.job_id in dead}
        found.lost = [token for token in found.lost if token not in doomed]
        report.figure("lost", len(found.lost)) if may_lose else report.zero("lost", len(found.lost))
        report.zero("phantom", len(found.phantom))
        report.zero("refused and run", len(found.refused_ran))
        report.figure("duplicates", found.duplicates)
        if found.ambiguous:
            report.figure("ambiguous, of them run", f"{found.ambiguous}, {found.recovered}")
        stuck, spent = 0, 0
        ids = {offer.job_id for offer in offers if offer.outcome == "acked"}
        lost = set(found.lost) if may_lose else set()
        ids -= {offer.job_id for offer in offers if offer.token in lost}
        for job_id in ids:
            with contextlib.suppress(JobNotFoundError):  # retention deletes what has ended, and nothing else
                job = self.client.get(job_id)
                stuck += job.state not in TERMINAL
                spent += job.attempt > max_attempts
                if (job.state is JobState.DEAD) != (job_id in dead):
                    report.problems.append(f"{job_id} is {job.state}, {job.dead_reason}")
        report.zero("stuck", stuck)
        report.zero("attempts spent by faults", spent)
        self.audit(report)

    def audit(self, report: Report) -> None:
        """The data's invariants, and what the workers logged that they should not have."""
        findings = audit(self.raw, self.queues)
        report.zero("audit findings", len(findings))
        report.problems += findings[:5]
        report.zero("worker tracebacks", sum(worker.output().count("Traceback") for worker in self.everybody))

    def judge_duplicates(self, report: Report, *, most: int | None = None) -> None:
        """No run without a cause: no more reruns than jobs that ran under a lease in what was killed, or ``most``."""
        duplicates = report.figures["duplicates"]
        in_flight = sum(len(kill.jobs) for kill in self.kills)
        report.expect("the kills interrupted jobs", in_flight > 0)
        for bound, what in ((most, "at most {}"), (in_flight, "at most the {} jobs in flight at kills")):
            if bound is not None:
                report.expect(f"duplicates {what.format(bound)}", duplicates <= bound, duplicates)

    def judge_reruns(self, report: Report) -> None:
        """How soon after a kill the interrupted jobs ran again, against the promise."""
        waits = rerun_waits(self.kills, self.runs())
        bound = self.setup.rerun_within_s
        report.figure("in flight at kills", sum(len(kill.jobs) for kill in self.kills))
        report.at_most("rerun p99, s", percentile(waits, 0.99), bound)
        report.at_most("rerun max, s", percentile(waits, 1.0), 2 * bound)


def _freeze(found: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """SIGSTOP to all of them, and to those that were being forked meanwhile, which may be handed jobs as well."""
    frozen: dict[int, psutil.Process] = {}
    while new := [process for process in found() if process.pid not in frozen]:
        for process in new:
            send(process, signal.SIGSTOP)
            frozen[process.pid] = process
    return list(frozen.values())


def job_children(tree: list[psutil.Process], isolated: str = ISOLATED) -> list[psutil.Process]:
    """The children that run the jobs of the isolated lane; not those in which suspects of others run."""
    return [process for process in tree if _name(process) == f"jobq job {isolated}"]


def cpu_s(pid: int) -> float:
    """Processor time of a process, of what it has waited for, and of all that lives below it."""
    total = 0.0
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def lane(process: psutil.Process) -> str:
    """The lane that an executor's name tells; empty: it is none."""
    name = _name(process)
    return name.removeprefix("jobq: ") if name.startswith("jobq: ") else ""


def _name(process: psutil.Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/comm").read_text().strip()
    except OSError:
        return ""


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process that may have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
