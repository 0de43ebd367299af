"""The workloads: each runs one contender alone on an empty Redis, and counts what really ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from benchmarks.bench import FAILED, WARM, WARM_BASE, Bench, Row, Worker
from benchmarks.contenders import ALL, Contender
from benchmarks.machine import CONDITIONS

OTP_GAP_S = 0.02


def split(workload: str) -> tuple[str, str]:
    """Name and condition: of ``drain_a@everysec``, ``drain_a`` and ``everysec``."""
    name, _, condition = workload.partition("@")
    return name, condition


def concerns(contender: str, workload: str) -> bool:
    """Whether a workload says anything about a contender."""
    name, _ = split(workload)
    if name in OURS:
        return contender == "jobq"
    return name not in ALL[contender].skip and (name != "bulk" or ALL[contender].bulk)


def known(workload: str) -> bool:
    """Whether there is such a workload."""
    name, condition = split(workload)
    return name in _WORKLOADS and condition in CONDITIONS


def measure(bench: Bench, workload: str, contender: Contender) -> Row:
    """One measurement."""
    name, condition = split(workload)
    bench.fresh(condition)
    return _WORKLOADS[name](bench, contender)


# -- what every library can do ------------------------------------------------------------------------------------


def _enqueue(bench: Bench, c: Contender) -> Row:
    bench.preload(c, "noop", 0, bulk=False)  # what is there once, such as scripts, is no part of a job
    empty = bench.memory()
    row = _produce(bench, c, c.count("enqueue"), bulk=False)
    return row | {"bytes_per_job": (bench.memory() - empty) / (c.count("enqueue") + WARM)}


def _bulk(bench: Bench, c: Contender) -> Row:
    return _produce(bench, c, c.count("bulk"), bulk=True)


def _produce(bench: Bench, c: Contender, n: int, *, bulk: bool) -> Row:
    before = bench.snap()
    rate = bench.preload(c, "noop", n, bulk=bulk)
    after = bench.snap()
    total = n + WARM
    return {
        "per_s": rate,
        "cmds_per_job": (after["cmds"] - before["cmds"]) / total,
        "reads_per_job": (after["reads"] - before["reads"]) / total,
        "redis_us_per_job": (after["redis_cpu"] - before["redis_cpu"]) * 1e6 / total,
        "other_cpu": bench.other(before, after, after["calls_cpu"] - before["calls_cpu"]),
    }


def _drain_a(bench: Bench, c: Contender) -> Row:
    return _drain(bench, c, "drain_a", "noop", c.count("drain"), bench.cap_s)


def _drain_b(bench: Bench, c: Contender) -> Row:
    return _drain(bench, c, "drain_b", "noop", c.count("drain"), bench.cap_s)


def _io(bench: Bench, c: Contender) -> Row:
    row = _drain(bench, c, "io", "nap", c.count("io"), bench.cap_s)
    procs, slots = c.processes("io")
    # The first job's own 10 ms belong to the ideal.
    row["ratio"] = (row["seconds"] + 0.010) / (row["jobs"] * 0.010 / (procs * slots))
    return row


def _retry(bench: Bench, c: Contender) -> Row:
    # Who puts retries at the end finishes nothing until each has failed once: a window cut short says nothing.
    row = _drain(bench, c, "retry", "flaky", c.count("retry"), 3 * bench.cap_s)
    if not row["complete"]:
        raise RuntimeError("not finished within the cap")
    return row


def _drain(bench: Bench, c: Contender, workload: str, kind: str, n: int, cap_s: float) -> Row:
    bench.preload(c, kind, n, bulk=c.bulk)
    wanted = (n + WARM) * (2 if kind == "flaky" else 1)
    with bench.worker(c, c.processes(workload)) as worker:
        bench.await_marks(WARM + 1, worker)
        first = time.time()
        cpu, before, size = worker.cpu, bench.snap(), bench.size()
        while bench.size() < wanted and time.time() - first < cap_s and worker.popen.poll() is None:
            time.sleep(0.005)
        spent, after, count = worker.cpu - cpu, bench.snap(), bench.size()
        marks = [mark for mark in bench.marks() if mark[1] % FAILED < WARM_BASE]
        done = [mark for mark in marks if mark[1] < FAILED]
        complete = len({mark[1] for mark in done}) == n
        left = bench.settled(c) if complete else None
        pss_mb = worker.pss_mb
    begin = min(mark[0] for mark in marks)
    if not complete:
        done = [mark for mark in done if mark[0] <= begin + cap_s]
    times = sorted(mark[0] for mark in done)
    if len(times) < 2:
        raise RuntimeError(f"{len(times)} jobs finished within {cap_s:g} s")
    jobs = max(1, count - size)
    redis_cpu, wall = after["redis_cpu"] - before["redis_cpu"], after["t"] - before["t"]
    return {
        "jobs": len(times),
        "complete": complete,
        "repeated": len(done) - len({mark[1] for mark in done}),
        "left": left,
        "seconds": times[-1] - begin,
        "per_s": (len(times) - 1) / (times[-1] - begin),
        "startup_s": begin - worker.started,
        "worker_cores": spent / wall,
        "redis_cores": redis_cpu / wall,
        "other_cpu": bench.other(before, after, spent),
        "worker_us_per_job": spent * 1e6 / jobs,
        "redis_us_per_job": redis_cpu * 1e6 / jobs,
        "cmds_per_job": (after["cmds"] - before["cmds"]) / jobs,
        "reads_per_job": (after["reads"] - before["reads"]) / jobs,
        "pss_mb": pss_mb,
    }


def _latency(bench: Bench, c: Contender) -> Row:
    with bench.worker(c, c.processes("latency")) as worker:
        time.sleep(0.3)
        bench.preload(c, "noop", 0, bulk=False)
        bench.await_marks(WARM, worker)
        idle = _idle(bench, worker)
        return idle | _paced(bench, c, "noop", worker, c.count("latency"), c.gap)


def _idle(bench: Bench, worker: Worker) -> Row:
    """What a worker costs that has run its first jobs and has nothing to do."""
    time.sleep(0.5)
    pss_mb = worker.pss_mb
    cpu, redis_cpu, since = worker.cpu, bench.server.cpu(), time.time()
    time.sleep(1.0)
    wall = time.time() - since
    return {
        "idle_cpu_pct": 100 * (worker.cpu - cpu) / wall,
        "idle_redis_pct": 100 * (bench.server.cpu() - redis_cpu) / wall,
        "idle_pss_mb": pss_mb,
    }


def _paced(bench: Bench, c: Contender, kind: str, worker: Worker, n: int, gap_s: float) -> Row:
    """Waits of jobs enqueued one by one at a steady pace."""
    cpu, before = worker.cpu, bench.snap()
    rows = bench.call(c, "paced", "--kind", kind, "--n", str(n), "--gap", str(gap_s))
    after, spent = bench.snap(), worker.cpu - cpu
    ours = spent + after["calls_cpu"] - before["calls_cpu"]
    return bench.waits(rows) | {
        "seconds": after["t"] - before["t"],
        "worker_cores": spent / (after["t"] - before["t"]),
        "other_cpu": bench.other(before, after, ours),
    }


# -- what only jobq has -------------------------------------------------------------------------------------------


def serving(c: Contender, queues: str) -> Contender:
    """jobq with a worker of these lanes, with the slots that they have unless configured."""
    return replace(c, env={**c.env, "BENCH_QUEUES": queues})


def _otp_isolation(bench: Bench, c: Contender) -> Row:
    """OTPs while exports take all of `low` and 10,000 jobs wait in `batch`."""
    lanes = serving(c, "critical,low,batch")
    bench.step(lanes, "load", exports=4, batch=10_000)
    with bench.worker(lanes, (1, 1)) as worker:
        since = time.time()
        while bench.redis.zcard("rq:wip:low") < 2 or not bench.redis.zcard("rq:wip:batch"):
            worker.must_live(since, "low and batch were not taken up")
            time.sleep(0.05)
        time.sleep(1.0)
        before = int(bench.redis.llen("rq:queue:batch"))
        row = _paced(bench, lanes, "otp", worker, c.count("latency"), OTP_GAP_S)
        row["batch_left"] = int(bench.redis.llen("rq:queue:batch"))
        row["batch_per_s"] = (before - row["batch_left"]) / row["seconds"]
        row["low_running"] = int(bench.redis.zcard("rq:wip:low"))
    return row


def _five_lanes(bench: Bench, c: Contender) -> Row:
    """What a worker of all five lanes costs that has run a job in each and has nothing to do."""
    lanes = ("critical", "high", "medium", "low", "batch")
    with bench.worker(serving(c, "all"), (1, 1)) as worker:
        bench.step(c, "fill", n=5_000, lanes=lanes)
        bench.await_marks(5_000, worker)
        before = bench.snap()
        row = _idle(bench, worker)
        return row | {"other_cpu": bench.other(before, bench.snap(), 0.0)}


def _replay(bench: Bench, c: Contender) -> Row:
    """What `retry-failed` does, on 100,000 dead letters."""
    n = bench.step(c, "bury", n=20 * c.count("enqueue"))
    before = bench.snap()
    done = bench.step(c, "replay")
    after = bench.snap()
    if done["replayed"] != n:
        raise RuntimeError(f"{done['replayed']} of {n} dead letters replayed")
    spent = after["calls_cpu"] - before["calls_cpu"]
    return {
        "jobs": n,
        "per_s": n / done["seconds"],
        "redis_us_per_job": (after["redis_cpu"] - before["redis_cpu"]) * 1e6 / n,
        "other_cpu": bench.other(before, after, spent),
    }


OURS = frozenset({"otp_isolation", "five_lanes", "replay"})
"""The others have nothing to compare."""

_WORKLOADS: Mapping[str, Callable[[Bench, Contender], Row]] = {
    "enqueue": _enqueue,
    "bulk": _bulk,
    "drain_a": _drain_a,
    "drain_b": _drain_b,
    "io": _io,
    "retry": _retry,
    "latency": _latency,
    "otp_isolation": _otp_isolation,
    "five_lanes": _five_lanes,
    "replay": _replay,
}
