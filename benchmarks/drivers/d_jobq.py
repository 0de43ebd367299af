"""jobq: the supervisor that `jobq worker` runs, serving one queue by one executor process.

BENCH_MODE=async: jobs that sleep are coroutines. BENCH_QUEUES: serve these with the slots they have unless
configured; `all`: the five lanes.
"""

from __future__ import annotations

import os

os.environ.setdefault("JOBQ_REDIS_URL", os.environ["BENCH_REDIS"])
os.environ.setdefault("JOBQ_APP", "jobq_tasks")

import resource
import time
from datetime import UTC, datetime

import jobq_tasks as tasks
from _common import CHUNK, Base, barrier, clones, main

from jobq.client import get_client

FN = {"noop": tasks.noop, "nap": tasks.nap, "flaky": tasks.flaky, "otp": tasks.otp}
if os.environ.get("BENCH_MODE") == "async":
    FN["nap"] = tasks.anap
FILLED_FIRST = 2_000_000  # beyond the indexes of what is measured one by one


def timed(step, *args, **options):
    """A step's answer, and the milliseconds that it took."""
    since = time.perf_counter()
    answer = step(*args, **options)
    return answer, (time.perf_counter() - since) * 1000


class D(Base):
    def one(self, kind, p):
        FN[kind].enqueue(**p)

    def bulk(self, kind, ps):
        FN[kind].enqueue_many(ps)

    def work(self, procs, conc):
        from jobq.config import Settings
        from jobq.worker import supervisor
        from jobq.worker.spec import WorkerSpec

        clones(procs)
        queues = os.environ.get("BENCH_QUEUES")
        if queues:
            spec = WorkerSpec(queues=() if queues == "all" else tuple(queues.split(",")))
        else:
            spec = WorkerSpec(queues=("high",), concurrency=conc)
        barrier(procs)
        raise SystemExit(supervisor.run(Settings.load(), spec))

    # Steps that only jobq has.

    def load(self, exports, batch):
        """What the OTPs of the isolation measurement run beside."""
        tasks.export.enqueue_many([{"seconds": 160.0}] * exports)
        tasks.chunk.enqueue_many([{"number": n} for n in range(batch)])

    def fill(self, n, lanes, due_in_s=0.0):
        """Enqueue n jobs over some lanes, now or all due within the one second that begins then."""
        due = time.time() + due_in_s
        before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        for at in range(0, n, CHUNK):
            options = {"priority": lanes[at // CHUNK % len(lanes)]}
            if due_in_s:
                options["at"] = datetime.fromtimestamp(due + at / n, UTC)
            many = range(FILLED_FIRST + at, FILLED_FIRST + min(n, at + CHUNK))
            tasks.noop.options(**options).enqueue_many(
                [{"email": "someone@example.com", "code": str(number)} for number in many]
            )
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return {"seconds": time.perf_counter() - since, "due": due, "grown_mb": grown_kb / 1024}

    def plan(self, n, every_s, due):
        """Add n schedules whose first slot is at the same moment."""
        schedules, start = get_client().schedules, datetime.fromtimestamp(due, UTC)
        since = time.perf_counter()
        for number in range(n):
            params = {"email": "someone@example.com", "code": str(FILLED_FIRST + number)}
            schedules.add(f"s{number}", tasks.noop, params, every=every_s, start=start)
        took = time.perf_counter() - since
        return {"seconds": took, "list_ms": timed(schedules.list)[1]}

    def stats(self, times):
        """Milliseconds of each look at the counts of all queues."""
        client = get_client()
        return [timed(client.stats)[1] for _ in range(times)]

    def bury(self, n):
        """Make n dead letters as a worker does, by its own scripts, of three errors."""
        from jobq import calls
        from jobq.connection import connect
        from jobq.job import Attempt
        from jobq.records import encode_attempt
        from jobq.rq_bridge import encode_exc, iso
        from jobq.steps import Outcome
        from jobq.store import Link

        client = get_client()
        link = Link(connect(client.settings, "command"))
        errors = []
        for kind in ("gateway.Timeout", "gateway.Refused", "ValueError"):
            trace = f'Traceback (most recent call last):\n  File "pay.py", line 42, in charge\n{kind}: no answer\n'
            attempt = Attempt(
                number=1, outcome="failed", worker="bench", error_type=kind, error="no answer", traceback=trace,
                fingerprint=kind,
            )  # fmt: skip
            errors.append((kind, encode_attempt(attempt), encode_exc(trace)))
        for at in range(0, n, CHUNK):
            tasks.noop.enqueue_many(
                [{"email": "someone@example.com", "code": str(i)} for i in range(at, min(n, at + CHUNK))]
            )
        plan, number, buried = [], 0, 0
        while buried < n:
            number += 1
            claim = calls.claim(
                client.keys, "high", exec_id="bench", number=number, n=100, lease_ms=60_000, worker_name="bench",
                started_at_iso=iso(),
            )  # fmt: skip
            jobs = link.exchange([*plan, claim])[-1].jobs
            outcomes = []
            for job in jobs:
                kind, record, exc = errors[buried % 3]
                buried += 1
                outcomes.append(
                    Outcome(
                        job_id=job.id, token=job.token, kind="dead", spends=True, reason="exhausted", fingerprint=kind,
                        record=record, exc=exc, worker="bench", keep_s=604_800, counters=("d:noop",),
                    )
                )  # fmt: skip
            plan = [calls.settle(client.keys, "high", outcomes, iso())]
        link.exchange(plan)
        return buried

    def first_page(self, times):
        """Milliseconds of each look at the newest fifty dead letters."""
        dead = get_client().dead_letters
        return [timed(dead.list, limit=50)[1] for _ in range(times)]

    def groups(self):
        """How many groups the dead letters have, and the milliseconds it took to tell."""
        found, took = timed(get_client().dead_letters.groups)
        return {"groups": len(found), "ms": took}

    def replay(self):
        """Replay all dead letters."""
        report, took = timed(get_client().dead_letters.replay)
        return {"replayed": report.replayed, "failed": report.failed_count, "seconds": took / 1000}


if __name__ == "__main__":
    main(D())
