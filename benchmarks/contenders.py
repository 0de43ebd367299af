"""The contenders. To add one: write drivers/d_NAME.py, add a row here and what to install in environments.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

SLOTS: Mapping[str, tuple[int, int]] = {
    "drain_a": (1, 10),
    "drain_b": (2, 10),
    "io": (2, 10),
    "latency": (1, 10),
    "retry": (2, 10),
}
"""Worker processes and slots of each, by workload."""

_SERIAL = {"drain_a": (1, 1), "drain_b": (2, 1), "io": (20, 1), "latency": (1, 1), "retry": (2, 1)}

JOBS: Mapping[str, int] = {
    "enqueue": 5_000,
    "bulk": 20_000,
    "drain": 20_000,
    "io": 2_000,
    "retry": 2_000,
    "latency": 500,
}
"""How many jobs a workload has; `drain` stands for both drains."""


@dataclass(frozen=True)
class Contender:
    """One way to run jobs.

    Attributes:
        driver: File under drivers/.
        acks: What it does about losing a job; printed, since it is what a rate is paid with.
        venv: Its environment; None: the project's own.
        env: Selects a mode of the driver.
        bulk: It has a call that enqueues many jobs in fewer round trips.
        left: Commands and keys that say how many jobs are not finished; 0 after a drain, or the row is wrong.
        slots: Processes and slots per workload, where ``SLOTS`` does not fit.
        jobs: Fewer jobs than ``JOBS``, for who would need minutes: rates compare, totals do not.
        gap: Seconds between the jobs of the latency run.
        skip: Workloads that say nothing about it.
    """

    driver: str
    acks: str
    venv: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    bulk: bool = False
    left: tuple[tuple[str, str], ...] = ()
    slots: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    jobs: Mapping[str, int] = field(default_factory=dict)
    gap: float = 0.01
    skip: frozenset[str] = frozenset()

    def processes(self, workload: str) -> tuple[int, int]:
        """Processes, and slots of each."""
        return self.slots[workload] if workload in self.slots else SLOTS[workload]

    def count(self, workload: str) -> int:
        """Jobs of a workload."""
        return self.jobs[workload] if workload in self.jobs else JOBS[workload]

    def sized(self, divisor: int) -> Contender:
        """The same with one job in so many, but at least 30."""
        return replace(self, jobs={each: max(30, self.count(each) // divisor) for each in JOBS})


_JOBQ_LEFT = (("llen", "rq:queue:high"), ("zcard", "rq:wip:high"), ("zcard", "jobq:leases"))
_RQ_LEFT = (("llen", "rq:queue:default"), ("zcard", "rq:wip:default"))
_DRAMATIQ_LEFT = (
    ("llen", "dramatiq:default"),
    ("scard", "dramatiq:__acks__.*.default"),
    ("llen", "dramatiq:default.DQ"),
    ("scard", "dramatiq:__acks__.*.default.DQ"),
)
_TIGER_LEFT = (
    ("zcard", "t:queued:default"),
    ("zcard", "t:active:default"),
    ("zcard", "t:scheduled:default"),
)
_BULL_LEFT = (
    ("llen", "bull:bench:wait"),
    ("llen", "bull:bench:active"),
    ("zcard", "bull:bench:delayed"),
    ("zcard", "bull:bench:prioritized"),
)

TABLE: Mapping[str, Contender] = {
    "jobq": Contender(
        "d_jobq.py",
        "leased until settled, rescued after a crash; history kept 24 h",
        bulk=True,
        left=_JOBQ_LEFT,
        jobs={"drain": 40_000, "io": 6_000},
    ),
    "rq": Contender(
        "d_rq.py",
        "id moved to an intermediate list, then a registry; a fork for each job; result kept 500 s",
        env={"BENCH_MODE": "fork"},
        bulk=True,
        left=_RQ_LEFT,
        slots=_SERIAL,
        jobs={"drain": 150, "io": 300, "retry": 80, "latency": 50},
        gap=0.1,
    ),
    "rq-simple": Contender(
        "d_rq.py",
        "as rq; the job runs in the worker process; more than one are a pool",
        env={"BENCH_MODE": "simple"},
        bulk=True,
        left=_RQ_LEFT,
        slots=_SERIAL,
        jobs={"drain": 500, "io": 600, "retry": 300},
        skip=frozenset({"enqueue", "bulk"}),
    ),
    "celery": Contender(
        "d_celery.py",
        "popped, a copy in a hash; acknowledged before the task runs; no result backend",
        venv="celery",
        env={"BENCH_MODE": "threads"},
        left=(("llen", "celery"), ("hlen", "unacked")),
        jobs={"enqueue": 3_000, "drain": 2_000, "io": 1_000, "retry": 400},
    ),
    "dramatiq": Contender(
        "d_dramatiq.py",
        "prefetched ids in a set of the worker's, acknowledged after the job; no results",
        left=_DRAMATIQ_LEFT,
        jobs={"drain": 6_000, "retry": 800},
    ),
    "huey": Contender(
        "d_huey.py",
        "BRPOP, not acknowledged: a killed worker loses the job",
        left=(("llen", "huey.redis.bench"), ("zcard", "huey.schedule.bench")),
        jobs={"drain": 5_000, "retry": 800},
    ),
    "taskiq": Contender(
        "d_taskiq.py",
        "stream and consumer group, acknowledged after the job; no result backend",
        venv="taskiq",
        env={"BENCH_MODE": "stream"},
        left=(("xleft", "taskiq"),),
        jobs={"enqueue": 3_000, "drain": 5_000, "retry": 1_000},
    ),
    "saq": Contender(
        "d_saq.py",
        "moved to an active list, removed after the job; result kept 10 min",
        venv="saq",
        left=(("zcard", "saq:default:incomplete"),),
        jobs={"drain": 3_000, "io": 1_000, "retry": 800},
    ),
    "streaq": Contender(
        "d_streaq.py",
        "stream and consumer group, acknowledged after the job; result kept 5 min",
        venv="streaq",
        bulk=True,
        left=(("xleft", "streaq:default:queues:normal"),),
        jobs={"enqueue": 3_000, "bulk": 8_000, "drain": 2_000, "io": 1_000, "retry": 800},
    ),
    "arq": Contender(
        "d_arq.py",
        "id stays in a sorted set until done; result kept 1 h; polls each 10 ms",
        venv="arq",
        env={"BENCH_POLL": "0.01"},
        left=(("zcard", "arq:queue"),),
        jobs={"enqueue": 3_000, "drain": 2_000, "io": 1_000, "retry": 800},
    ),
    "bullmq": Contender(
        "d_bullmq.js",
        "moved to an active list under a lock, then to a sorted set (Node)",
        venv="bullmq",
        bulk=True,
        left=_BULL_LEFT,
    ),
    "bull": Contender(
        "d_bull.js",
        "moved to an active list under a lock, then to a sorted set (Node)",
        venv="bull",
        bulk=True,
        left=_BULL_LEFT,
    ),
}
"""Who is measured unless asked otherwise."""

_MORE: Mapping[str, Contender] = {
    "jobq-signed": Contender(
        "d_jobq.py",
        "as jobq; payloads signed and verified",
        env={"JOBQ_SECRET_KEY": "a key for measuring only"},
        bulk=True,
        left=_JOBQ_LEFT,
    ),
    "jobq-async": Contender(
        "d_jobq.py",
        "as jobq; jobs that sleep are coroutines",
        env={"BENCH_MODE": "async"},
        bulk=True,
        left=_JOBQ_LEFT,
        skip=frozenset({"enqueue", "bulk", "drain_a", "drain_b", "retry", "latency"}),
    ),
    "celery-prefork": Contender(
        "d_celery.py",
        "as celery; a pool of processes",
        venv="celery",
        env={"BENCH_MODE": "prefork"},
        left=(("llen", "celery"), ("hlen", "unacked")),
        slots={"drain_a": (1, 10), "drain_b": (2, 1), "io": (20, 1), "retry": (2, 1), "latency": (1, 10)},
        jobs={"drain": 2_000, "io": 1_000, "retry": 400},
        skip=frozenset({"enqueue"}),
    ),
    "arq-default": Contender(
        "d_arq.py",
        "as arq; polls each 0.5 s, as it does unless configured",
        venv="arq",
        left=(("zcard", "arq:queue"),),
        jobs={"drain": 500, "io": 200, "retry": 200},
        skip=frozenset({"enqueue"}),
    ),
    "tasktiger": Contender(
        "d_tasktiger.py",
        "sorted set of active tasks with a heartbeat; a fork for each job; no result",
        venv="tasktiger",
        env={"BENCH_MODE": "fork"},
        left=_TIGER_LEFT,
        slots=_SERIAL,
        jobs={"enqueue": 3_000, "drain": 200, "io": 300, "retry": 80, "latency": 50},
        gap=0.1,
    ),
}

ALL: Mapping[str, Contender] = {**TABLE, **_MORE}
"""Everybody."""
