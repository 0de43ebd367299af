"""The contenders. To add one: write drivers/d_NAME.py, and add a row here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SLOTS: Mapping[str, tuple[int, int]] = {
    "drain_a": (1, 10),
    "drain_b": (2, 10),
    "io": (2, 10),
    "latency": (1, 10),
    "retry": (2, 10),
}
"""Worker processes and slots of each, by workload."""

_SERIAL = {"drain_a": (1, 1), "drain_b": (2, 1), "io": (20, 1), "latency": (1, 1), "retry": (2, 1)}


@dataclass(frozen=True)
class Contender:
    """One way to run jobs.

    Attributes:
        driver: File under drivers/.
        acks: What it does about losing a job; printed, since it is what a rate is paid with.
        venv: Folder under $BENCH_VENVS; None: this project's own environment has it.
        env: Selects a mode of the driver.
        bulk: It has a call that enqueues many jobs in fewer round trips.
        left: Commands and keys that say how many jobs are not finished; 0 after a drain, or the row is wrong.
        slots: Processes and slots per workload, where ``SLOTS`` does not fit.
        jobs: Fewer jobs, for a contender that would need minutes: rates compare, totals do not.
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
    gap: float = 0.02
    skip: frozenset[str] = frozenset()

    def processes(self, workload: str) -> tuple[int, int]:
        """Processes, and slots of each."""
        return self.slots[workload] if workload in self.slots else SLOTS[workload]


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

DEFAULT: Mapping[str, Contender] = {
    "jobq": Contender(
        "d_jobq.py",
        "leased until settled, rescued after a crash; history kept 24 h",
        bulk=True,
        left=_JOBQ_LEFT,
    ),
    "rq": Contender(
        "d_rq.py",
        "id moved to an intermediate list, then a registry; a fork for each job; result kept 500 s",
        env={"BENCH_MODE": "fork"},
        bulk=True,
        left=_RQ_LEFT,
        slots=_SERIAL,
        jobs={"drain": 400, "io": 500, "retry": 150},
        gap=0.1,
    ),
    "dramatiq": Contender(
        "d_dramatiq.py",
        "prefetched ids in a set of the worker's, acknowledged after the job; no results",
        left=_DRAMATIQ_LEFT,
        jobs={"drain": 12_000},
    ),
    "huey": Contender(
        "d_huey.py",
        "BRPOP, not acknowledged: a killed worker loses the job",
        left=(("llen", "huey.redis.bench"), ("zcard", "huey.schedule.bench")),
        jobs={"drain": 8_000},
    ),
}
"""What runs in the project's own environment."""

_FULL: Mapping[str, Contender] = {
    "jobq-signed": Contender(
        "d_jobq.py",
        "as jobq; payloads signed and verified",
        env={"JOBQ_SECRET_KEY": "a key for measuring only"},
        bulk=True,
        left=_JOBQ_LEFT,
    ),
    "rq-simple": Contender(
        "d_rq.py",
        "as rq; the job runs in the worker process",
        env={"BENCH_MODE": "simple"},
        bulk=True,
        left=_RQ_LEFT,
        slots=_SERIAL,
        jobs={"drain": 2_000},
        skip=frozenset({"drain_b", "io", "retry", "enqueue"}),
    ),
    "rq-pool": Contender(
        "d_rq.py",
        "as rq-simple; a pool of two",
        env={"BENCH_MODE": "pool"},
        bulk=True,
        left=_RQ_LEFT,
        slots=_SERIAL,
        jobs={"drain": 2_000, "io": 1_000, "retry": 1_000},
        skip=frozenset({"drain_a", "latency", "enqueue"}),
    ),
    "celery-threads": Contender(
        "d_celery.py",
        "popped, a copy in a hash; acknowledged before the task runs; no result backend",
        venv="celery",
        env={"BENCH_MODE": "threads"},
        left=(("llen", "celery"), ("hlen", "unacked")),
        jobs={"drain": 6_000, "retry": 500},
    ),
    "celery-prefork": Contender(
        "d_celery.py",
        "as celery-threads",
        venv="celery",
        env={"BENCH_MODE": "prefork"},
        left=(("llen", "celery"), ("hlen", "unacked")),
        slots={"drain_a": (1, 10), "drain_b": (2, 1), "io": (20, 1), "retry": (2, 1), "latency": (1, 10)},
        jobs={"drain": 6_000, "retry": 500},
        skip=frozenset({"enqueue"}),
    ),
    "arq": Contender(
        "d_arq.py",
        "id stays in a sorted set until done; result kept 1 h; polls each 0.5 s",
        venv="arq",
        left=(("zcard", "arq:queue"),),
        jobs={"drain": 1_000, "io": 500, "retry": 500},
    ),
    "arq-poll10ms": Contender(
        "d_arq.py",
        "as arq; polls each 10 ms",
        venv="arq",
        env={"BENCH_POLL": "0.01"},
        left=(("zcard", "arq:queue"),),
        jobs={"drain": 8_000},
        skip=frozenset({"enqueue"}),
    ),
    "taskiq": Contender(
        "d_taskiq.py",
        "stream and consumer group, acknowledged after the job; no result backend",
        venv="taskiq",
        env={"BENCH_MODE": "stream"},
        left=(("xleft", "taskiq"),),
        jobs={"drain": 12_000},
    ),
    "saq": Contender(
        "d_saq.py",
        "moved to an active list, removed after the job; result kept 10 min",
        venv="saq",
        left=(("zcard", "saq:default:incomplete"),),
        jobs={"drain": 7_000},
    ),
    "streaq": Contender(
        "d_streaq.py",
        "stream and consumer group, acknowledged after the job; result kept 5 min",
        venv="streaq",
        bulk=True,
        left=(("xleft", "streaq:default:queues:normal"),),
        jobs={"drain": 7_000},
    ),
    "tasktiger": Contender(
        "d_tasktiger.py",
        "sorted set of active tasks with a heartbeat; a fork for each job; no result",
        venv="tasktiger",
        env={"BENCH_MODE": "fork"},
        left=_TIGER_LEFT,
        slots=_SERIAL,
        jobs={"drain": 800, "io": 500, "retry": 150},
        gap=0.1,
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

ALL: Mapping[str, Contender] = {**DEFAULT, **_FULL}
"""Everybody; those with a ``venv`` need setup.sh first."""
