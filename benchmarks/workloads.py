"""What is measured: enqueue, drain, latency, and the wait of an OTP beside an export."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.harness import CAP_S, DRIVERS, WARM, Bench, busy, cpu, tree

ENQUEUES = 5_000
PACED = 300
OTPS = 300


def enqueue(bench: Bench, who: Contender, scale: float) -> dict[str, float]:
    """Jobs per second, one at a time."""
    bench.fresh()
    count = int(ENQUEUES * scale)
    found = {"one_per_s": bench.enqueue(who, count, bulk=False)}
    if who.bulk:
        bench.fresh()
        found["bulk_per_s"] = bench.enqueue(who, count * 4, bulk=True)
    return found


def drain(bench: Bench, who: Contender, scale: float) -> dict[str, float]:
    """No-op jobs per second with one worker process, everything enqueued before it starts."""
    bench.fresh()
    count = max(100, int(who.drain * scale))
    bench.enqueue(who, count, bulk=who.bulk)
    bench.redis.config_resetstat()
    with bench.worker(who) as root:
        if not bench.await_marks(WARM + 1, 40):
            raise RuntimeError("no job ran")
        began, cpu0, busy0 = time.time(), cpu(tree(root)), busy()
        bench.await_marks(WARM + count, CAP_S)
        took, cpu1, busy1 = time.time() - began, cpu(tree(root)), busy()
        settled = time.monotonic() + 10
        while bench.left(who) and time.monotonic() < settled and bench.ran() >= WARM + count:
            time.sleep(0.01)
        left = bench.left(who)
        stats = bench.redis.info("commandstats")
    marks = bench.read()
    times = sorted(mark[0] for mark in marks)
    unique = len({mark[1] for mark in marks})
    commands = sum(int(row["calls"]) for row in stats.values())
    return {
        "per_s": (len(times) - 1) / (times[-1] - times[0]),
        "jobs": len(times),
        "twice": len(times) - unique,
        "left": left if unique == count else -1,
        "worker_us_per_job": (cpu1 - cpu0) * 1e6 / max(1, len(times)),
        "commands_per_job": commands / (count + WARM),
        "other_cores": ((busy1 - busy0) - (cpu1 - cpu0)) / took if took else 0.0,
    }


def latency(bench: Bench, who: Contender, scale: float) -> dict[str, float]:
    """Milliseconds from the return of an enqueue to the start of its job, fifty a second, worker idle."""
    bench.fresh()
    with bench.worker(who):
        bench.enqueue(who, 1, bulk=False)
        if not bench.await_marks(WARM + 1, 40):
            raise RuntimeError("no job ran")
        time.sleep(1.0)  # lets the worker become idle: that is the state to measure
        bench.marks.write_bytes(b"")
        gap = 0.1 if who.slots == 1 else 0.02
        rows = bench.call(who, "paced", "--n", str(max(20, int(PACED * scale))), "--gap", str(gap))
        bench.await_marks(20 + len(rows), 15)
    began = {mark[1]: mark[0] for mark in bench.read()}
    waits = sorted((began[number] - sent) * 1000 for number, _, sent in rows if number in began)
    return {"p50_ms": quantile(waits, 0.5), "p99_ms": quantile(waits, 0.99), "n": len(waits)}


def otp_isolation(bench: Bench, scale: float) -> dict[str, float]:
    """An OTP's wait while exports hold every slot of `low` and 10,000 jobs wait in `batch`, all lanes served."""
    bench.fresh()
    who = CONTENDERS["jobq"]
    environment = {
        **bench.environment(who),
        "JOBQ_REDIS_URL": bench.server.url,
        "JOBQ_APP": "d_jobq_tasks",
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "jobq.cli", "worker", "-q"],
        env=environment,
        stdout=bench.log,
        stderr=bench.log,
        start_new_session=True,
    )
    try:
        code = _PRODUCER.format(count=max(50, int(OTPS * scale)))
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=DRIVERS,
            capture_output=True,
            text=True,
            timeout=180,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        found: dict[str, Any] = json.loads(done.stdout)
    finally:
        worker.terminate()
        try:
            worker.wait(40)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    began = {mark[1]: mark[0] for mark in bench.read()}
    waits = sorted((began[int(n)] - sent) * 1000 for n, sent in found["sent"].items() if int(n) in began)
    return {
        "p50_ms": quantile(waits, 0.5),
        "p99_ms": quantile(waits, 0.99),
        "max_ms": waits[-1],
        "n": len(waits),
        "missing": len(found["sent"]) - len(waits),
        "batch_waiting": found["batch_waiting"],
        "exports_running": found["exports_running"],
    }


_PRODUCER = """
import json, os, time
import d_jobq_tasks as tasks
import jobq
client = jobq.Client()
while len(client.workers.list()) < 5: time.sleep(0.05)
tasks.export.enqueue_many([{{"seconds": 8.0}}] * 12)
tasks.batch.enqueue_many([{{"n": n}} for n in range(10_000)])
for n in range(20): tasks.otp.enqueue(p={{"email": "someone@example.com", "code": str(900_000 + n)}})
time.sleep(1.0)
sent = {{}}
for n in range({count}):
    tasks.otp.enqueue(p={{"email": "someone@example.com", "code": f"{{n:06d}}"}})
    sent[n] = time.time()
    time.sleep(0.02)
stats = client.stats()
time.sleep(0.5)
print(json.dumps({{"sent": sent, "batch_waiting": stats.queues["batch"].queued, "exports_running": stats.queues["low"].running}}))
"""


def quantile(values: list[float], q: float) -> float:
    """The value that a share ``q`` of the sorted values does not exceed."""
    return values[min(len(values) - 1, int(len(values) * q))] if values else float("nan")
