"""jobq: the supervisor that `jobq worker` runs, serving one queue by one executor process."""

from __future__ import annotations

import os

os.environ.setdefault("JOBQ_REDIS_URL", os.environ["BENCH_REDIS"])
os.environ.setdefault("JOBQ_APP", "jobq_tasks")

import jobq_tasks as tasks
from _common import Base, clones, main

FN = {"noop": tasks.noop, "nap": tasks.nap, "flaky": tasks.flaky, "otp": tasks.otp}
if os.environ.get("BENCH_MODE") == "async":
    FN["nap"] = tasks.anap


class D(Base):
    def one(self, kind, p):
        FN[kind].enqueue(**p)

    def bulk(self, kind, ps):
        FN[kind].enqueue_many(ps)

    def load(self, exports, batch):
        """What the OTPs of the isolation measurement run beside."""
        tasks.export.enqueue_many([{"seconds": 160.0}] * exports)
        tasks.chunk.enqueue_many([{"number": n} for n in range(batch)])

    def work(self, procs, conc):
        from jobq.config import Settings
        from jobq.worker import supervisor
        from jobq.worker.spec import WorkerSpec

        clones(procs)
        if os.environ.get("BENCH_MODE") == "lanes":  # the lanes as they are unless configured
            spec = WorkerSpec(queues=("critical", "low", "batch"))
        else:
            spec = WorkerSpec(queues=("high",), concurrency=conc)
        raise SystemExit(supervisor.run(Settings.load(), spec))


if __name__ == "__main__":
    main(D())
