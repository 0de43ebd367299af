"""The experiment: enqueue, kill at random, heal, drain, and compare two ledgers.

The producer's ledger says what was acknowledged, the handlers' what ran. Neither trusts a log or the queue itself.
Everything is measured from outside: processes are found by the operating system, leases are read from Redis.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import redis

import jobq
from jobq.errors import JobNotFoundError, StoreUnavailableError
from jobq.job import JobState
from jobq.private_server import PrivateServer
from tests.chaos import app
from tests.support.workers import Worker

ISOLATED = "batch"
QUEUES = ("high", ISOLATED)
"""A lane of threads and a lane of processes."""

DEFAULT_LEASE_S = 12.0
RERUN_WITHIN_S = 15.0
"""The promise for 99 of 100 jobs at the default lease, and twice that for all; in proportion at any other."""

_TERMINAL = (JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One experiment.

    Attributes:
        jobs: Jobs in all, half of them on each lane.
        lease: ``JOBQ_LEASE``; None: the default.
        lease_s: The same in seconds, for the waits at the end.
        workers: Supervisors at a time.
        slots: Slots of each lane of each worker.
        longest_s: A job takes from 0 to this long.
        kill_every_s: Mean pause between two kills.
        supervisor_share: How many of the kills hit a whole supervisor.
        patience_s: Allowed on top of the promise for what does not shrink with the lease: starting processes while
            other tests have the cores. 0 where the promise itself is judged.
        drain_s: All jobs must have ended this long after the last was enqueued.
    """

    jobs: int
    lease: str | None
    lease_s: float
    seed: int
    workers: int = 2
    slots: int = 4
    longest_s: float = 0.2
    kill_every_s: float = 0.7
    supervisor_share: float = 0.34
    drain_s: float = 60.0
    patience_s: float = 0.0


@dataclass(kw_only=True)
class Verdict:
    """What the two ledgers say."""

    seed: int
    jobs: int
    lease_s: float
    rerun_within_s: float
    executors_killed: int = 0
    supervisors_killed: int = 0
    in_flight_at_kills: int = 0
    lost: int = 0
    phantom: int = 0
    duplicates: int = 0
    recovered: int = 0
    pruned: int = 0
    stuck: int = 0
    attempts_spent: int = 0
    audit: list[str] = field(default_factory=list)
    tracebacks: int = 0
    reruns: int = 0
    rerun_p50_s: float = 0.0
    rerun_p99_s: float = 0.0
    rerun_max_s: float = 0.0
    drained: bool = True
    took_s: float = 0.0

    @property
    def problems(self) -> list[str]:
        """What is not as promised; empty when all is well."""
        checks = {
            "not drained in time": not self.drained,
            "lost": self.lost,
            "phantom": self.phantom,
            "stuck": self.stuck,
            "attempts spent": self.attempts_spent,
            "tracebacks": self.tracebacks,
            "audit": self.audit,
            "more duplicates than jobs in flight": self.duplicates > self.in_flight_at_kills,
            "rerun late, p99": self.rerun_p99_s > self.rerun_within_s,
            "rerun late, max": self.rerun_max_s > 2 * self.rerun_within_s,
            "no executor was killed": not self.executors_killed,
            "no supervisor was killed": not self.supervisors_killed,
        }
        return [name for name, bad in checks.items() if bad]

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Kill:
    """One kill: when, and the jobs that ran under a lease in the processes it ended."""

    at: float
    jobs: frozenset[str]


@dataclass(frozen=True)
class Run:
    """One line of the handlers' ledger."""

    word: str
    token: str
    job_id: str
    attempt: int
    pid: int
    at: float


class Experiment:
    """Runs one plan in one folder, on a server of its own."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.rand = random.Random(plan.seed)
        self.produced = folder / "producer.ledger"
        self.handled = folder / "handlers.ledger"
        self.handled.touch()
        self.workers: list[Worker] = []
        self.everybody: list[Worker] = []
        self.kills: list[Kill] = []
        self.verdict = Verdict(
            seed=plan.seed, jobs=plan.jobs, lease_s=plan.lease_s,
            rerun_within_s=round(plan.lease_s * RERUN_WITHIN_S / DEFAULT_LEASE_S + plan.patience_s, 3),
        )  # fmt: skip
        self._enqueued = threading.Event()

    def run(self) -> Verdict:
        """Enqueue while killing, heal, drain, judge."""
        started = time.monotonic()
        with (
            PrivateServer() as server,
            jobq.Client(jobq.Settings(redis_url=server.url)) as client,
            redis.Redis.from_url(server.url) as raw,
        ):
            try:
                self.workers = [self._start(server.url) for _ in range(self.plan.workers)]
                for worker in self.workers:
                    worker.ready()
                producer = threading.Thread(target=self._produce, args=(client,))
                producer.start()
                self._kill_at_random(server.url, raw)
                producer.join()
                self._drain(raw)
                self._judge(client, raw)
            finally:
                for worker in self.everybody:
                    worker.kill()
        self.verdict.took_s = round(time.monotonic() - started, 1)
        return self.verdict

    # -- the fault phase --------------------------------------------------------------------------------------------

    def _start(self, url: str) -> Worker:
        env = {app.LEDGER: str(self.handled)}
        if self.plan.lease is not None:
            env["JOBQ_LEASE"] = self.plan.lease
        made = Worker(
            url,
            self.folder,
            "--concurrency",
            str(self.plan.slots),
            queues=QUEUES,
            app="tests.chaos.app",
            **env,
        )
        self.everybody.append(made)
        return made

    def _produce(self, client: jobq.Client) -> None:
        """One at a time, spread over about the time that the jobs take."""
        rand = random.Random(self.plan.seed + 1)
        pace = self.plan.longest_s / 2 / (self.plan.workers * self.plan.slots * len(QUEUES))
        try:
            for number in range(self.plan.jobs):
                token = f"t{number}"
                task = app.work.options(client=client, queue=QUEUES[number % len(QUEUES)])
                try:
                    job = task.enqueue(token=token, seconds=round(rand.uniform(0, self.plan.longest_s), 4))
                except StoreUnavailableError as error:
                    outcome, job_id = "ambiguous" if error.ambiguous else "failed", error.job_id
                else:
                    outcome, job_id = "acked", job.id
                app.append(str(self.produced), f"{token} {job_id} {time.time():.6f} {outcome}")
                time.sleep(rand.uniform(0, 2 * pace))
        finally:
            self._enqueued.set()

    def _kill_at_random(self, url: str, raw: redis.Redis) -> None:
        """Until everything is enqueued."""
        while not self._enqueued.wait(self.rand.uniform(0.2, 1.8) * self.plan.kill_every_s):
            place = self.rand.randrange(len(self.workers))
            worker = self.workers[place]
            # The promise is about the jobs of a dead worker, not about a fleet that is down: one serves at any time.
            others_serve = all(len(w.executors()) == len(QUEUES) for w in self.workers if w is not worker)
            killed = self.verdict.executors_killed + self.verdict.supervisors_killed
            due = self.verdict.supervisors_killed < self.plan.supervisor_share * (killed + 1)
            if due and others_serve:
                self._kill(worker, None, raw)
                self.workers[place] = self._start(url)
            elif executors := worker.executors():
                self._kill(worker, self.rand.choice(executors), raw)

    def _kill(self, worker: Worker, executor: psutil.Process | None, raw: redis.Redis) -> None:
        """Freeze the victims, note what they were at, and end them: what they did is then known exactly."""
        tree = worker.tree()
        if executor is None:
            os.kill(worker.pid, signal.SIGSTOP)
            victims = tree
        else:
            # The jobs of the lane of processes run in children of the spawner, which go with the executor.
            children = _job_children(worker, tree) if _lane(executor) == ISOLATED else []
            victims = [executor, *children]
        for process in victims:  # job children too: one may be about to start the job it was handed
            _signal(process, signal.SIGSTOP)
        leased = {member.decode().partition(":")[0] for member in raw.zrange("jobq:leases", 0, -1)}
        last: dict[str, Run] = {}
        for entry in self._runs():
            if entry.word == "start":
                last[entry.job_id] = entry
        pids = {process.pid for process in victims}
        jobs = frozenset(job_id for job_id, entry in last.items() if entry.pid in pids and job_id in leased)
        at = time.time()
        if executor is None:
            worker.kill()
            self.verdict.supervisors_killed += 1
        else:
            _signal(executor, signal.SIGKILL)
            for process in children:  # woken, one would start the job that it had just been handed
                _signal(process, signal.SIGKILL)
            self.verdict.executors_killed += 1
        self.kills.append(Kill(at, jobs))
        self.verdict.in_flight_at_kills += len(jobs)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _drain(self, raw: redis.Redis) -> None:
        """Wait until nothing waits or runs, then as long as any lease could still have a say."""
        deadline = time.monotonic() + self.plan.drain_s
        while time.monotonic() < deadline:
            left = raw.zcard("jobq:leases") + sum(
                raw.llen(f"rq:queue:{queue}") + raw.zcard(f"rq:scheduled:{queue}") for queue in QUEUES
            )
            if not left:
                break
            time.sleep(0.05)
        else:
            self.verdict.drained = False
        time.sleep(2 * self.plan.lease_s)
        for worker in self.workers:
            worker.send(signal.SIGTERM)
        for worker in self.workers:
            worker.wait(40)

    def _runs(self) -> list[Run]:
        found = []
        for line in self.handled.read_text().splitlines():
            word, token, job_id, attempt, pid, at = line.split(" ")
            found.append(Run(word, token, job_id, int(attempt), int(pid), float(at)))
        return found

    def _judge(self, client: jobq.Client, raw: redis.Redis) -> None:
        verdict = self.verdict
        outcomes: dict[str, str] = {}
        ids: dict[str, str] = {}
        for line in self.produced.read_text().splitlines():
            token, job_id, _, outcome = line.split(" ")
            outcomes[token], ids[token] = outcome, job_id
        runs = self._runs()
        starts: defaultdict[str, list[Run]] = defaultdict(list)
        ended = Counter(entry.token for entry in runs if entry.word == "end")
        for entry in runs:
            if entry.word == "start":
                starts[entry.token].append(entry)
        acked = [token for token, outcome in outcomes.items() if outcome == "acked"]
        verdict.lost = sum(not ended[token] for token in acked)
        verdict.phantom = sum(token not in outcomes for token in starts)
        verdict.duplicates = sum(len(entries) - 1 for entries in starts.values())
        verdict.recovered = sum(bool(ended[t]) for t, outcome in outcomes.items() if outcome == "ambiguous")
        for token in acked:
            try:
                job = client.get(ids[token])
            except (
                JobNotFoundError
            ):  # retention deletes what has ended, and nothing else; "lost" is in the ledgers
                verdict.pruned += 1
                continue
            verdict.stuck += job.state not in _TERMINAL
            verdict.attempts_spent += max(0, job.attempt - 1)
            if job.state is JobState.DEAD:
                verdict.audit.append(f"{token} is dead: {job.dead_reason}")
        verdict.audit += audit(raw)
        verdict.tracebacks = sum(worker.output().count("Traceback") for worker in self.everybody)
        self._time_reruns(starts)

    def _time_reruns(self, starts: dict[str, list[Run]]) -> None:
        by_id = {entries[0].job_id: [entry.at for entry in entries] for entries in starts.values()}
        waits = sorted(
            min(later) - kill.at
            for kill in self.kills
            for job_id in kill.jobs
            if (later := [at for at in by_id[job_id] if at > kill.at])
        )
        self.verdict.reruns = len(waits)
        if waits:
            self.verdict.rerun_p50_s = round(waits[len(waits) // 2], 3)
            self.verdict.rerun_p99_s = round(waits[min(len(waits) - 1, int(len(waits) * 0.99))], 3)
            self.verdict.rerun_max_s = round(waits[-1], 3)


def audit(raw: redis.Redis) -> list[str]:
    """Jobs that are in no container, or in several, and leases that nobody holds."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for queue in QUEUES:
        for job_id in raw.lrange(f"rq:queue:{queue}", 0, -1):
            places[job_id.decode()].append("queue")
        for name in ("wip", "finished", "failed", "scheduled", "deferred", "canceled"):
            for member in raw.zrange(f"rq:{name}:{queue}", 0, -1):
                places[member.decode().partition(":")[0]].append(name)
    found = []
    for key in raw.scan_iter("rq:job:*", count=1_000):
        job_id = key.decode().removeprefix("rq:job:")
        if len(places.get(job_id, [])) != 1:
            found.append(f"{job_id} is in {places.get(job_id, [])}")
    if left := raw.zcard("jobq:leases"):
        found.append(f"{left} leases are left")
    return found


def _job_children(worker: Worker, tree: list[psutil.Process]) -> list[psutil.Process]:
    """What the spawner has forked beside the executors. Never the supervisor or the spawner itself."""
    found = []
    for process in tree:
        try:
            if process.pid != worker.pid and process.ppid() != worker.pid and not _lane(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _lane(process: psutil.Process) -> str:
    """The lane that an executor's name tells; empty: it is none."""
    try:
        name = Path(f"/proc/{process.pid}/comm").read_text().strip()
    except OSError:
        return ""
    return name.removeprefix("jobq: ") if name.startswith("jobq: ") else ""


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
