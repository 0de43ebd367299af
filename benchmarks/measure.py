"""The workloads. Each measurement flushes Redis, runs one contender alone, and counts what really ran."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contenders import Contender
from benchmarks.machine import Server, busy, kill_tree, program, usage

HERE = Path(__file__).resolve().parent
WARM, WARM_BASE, FAILED = 50, 900_000, 1_000_000
WARM_PACED = 20
JOBS = {
    "enqueue": 10_000,
    "bulk": 20_000,
    "drain": 20_000,
    "io": 2_000,
    "retry": 2_000,
    "latency": 500,
    "batch": 10_000,
}
OTP_GAP_S = 0.02
START_S = 40.0

Row = dict[str, Any]


class Bench:
    """One run's server, files and processes.

    Args:
        venvs: Where the environments of the contenders of ``--full`` are.
        jobs: How many jobs each workload has.
        cap_s: A drain is cut off so long after its first job.
    """

    def __init__(self, *, venvs: Path, jobs: dict[str, int], cap_s: float, otp_s: float, aof: bool) -> None:
        self._venvs = venvs
        self._jobs = jobs
        self._cap_s = cap_s
        self._otp_s = otp_s
        self.server = Server(aof=aof)
        self._redis = self.server.redis
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._tmp = Path(tempfile.mkdtemp(prefix="jobq-bench-", dir=base))
        self._log = (self._tmp / "log").open("ab")
        self._number = 0

    def close(self) -> None:
        self.server.stop()
        self._log.close()
        shutil.rmtree(self._tmp, ignore_errors=True)

    def last_words(self) -> str:
        """The end of what the contenders wrote, for an error message."""
        self._log.flush()
        return (self._tmp / "log").read_text(errors="replace")[-2_000:]

    def measure(self, workload: str, contender: Contender) -> Row:
        """One measurement."""
        self._fresh()
        row: Row = getattr(self, f"_{workload}")(contender)
        return row

    # -- workloads ----------------------------------------------------------------------------------------------

    def _enqueue(self, c: Contender) -> Row:
        return self._produce(c, self._jobs["enqueue"], bulk=False)

    def _bulk(self, c: Contender) -> Row:
        return self._produce(c, self._jobs["bulk"], bulk=True)

    def _produce(self, c: Contender, n: int, *, bulk: bool) -> Row:
        before, own = self._snap(), os.times()
        rate = self._preload(c, "noop", n, bulk=bulk)
        after, end = self._snap(), os.times()
        mine = end.children_user + end.children_system - own.children_user - own.children_system
        total = n + WARM
        memory: Any = self._redis.info("memory")
        return {
            "per_s": rate,
            "bytes_per_job": memory["used_memory_dataset"] / total,
            "cmds_per_job": (after["cmds"] - before["cmds"]) / total,
            "reads_per_job": (after["reads"] - before["reads"]) / total,
            "redis_us_per_job": (after["redis_cpu"] - before["redis_cpu"]) * 1e6 / total,
            "other_cpu": self._other(before, after, mine),
        }

    def _drain_a(self, c: Contender) -> Row:
        return self._drain(c, "drain_a", "noop", c.jobs.get("drain", self._jobs["drain"]), self._cap_s)

    def _drain_b(self, c: Contender) -> Row:
        return self._drain(c, "drain_b", "noop", c.jobs.get("drain", self._jobs["drain"]), self._cap_s)

    def _io(self, c: Contender) -> Row:
        row = self._drain(c, "io", "nap", c.jobs.get("io", self._jobs["io"]), self._cap_s)
        procs, slots = c.processes("io")
        # The first job's own 10 ms belong to the ideal.
        row["ratio"] = (row["seconds"] + 0.010) / (row["jobs"] * 0.010 / (procs * slots))
        return row

    def _retry(self, c: Contender) -> Row:
        # Who puts retries at the end finishes nothing until each has failed once: a window cut short says nothing.
        row = self._drain(c, "retry", "flaky", c.jobs.get("retry", self._jobs["retry"]), 3 * self._cap_s)
        if not row["complete"]:
            raise RuntimeError("not finished within the cap")
        return row

    def _drain(self, c: Contender, workload: str, kind: str, n: int, cap_s: float) -> Row:
        self._preload(c, kind, n, bulk=c.bulk)
        wanted = (n + WARM) * (2 if kind == "flaky" else 1)
        with self._worker(c, workload) as (process, popen):
            started = time.time()
            while self._size() <= WARM:
                if popen.poll() is not None or time.time() - started > START_S:
                    raise RuntimeError(f"no job ran (worker exit {popen.poll()})")
                time.sleep(0.005)
            first = time.time()
            cpu, before, size = usage(process)["cpu"], self._snap(), self._size()
            while self._size() < wanted and time.time() - first < cap_s and popen.poll() is None:
                time.sleep(0.005)
            end, after, count = usage(process), self._snap(), self._size()
            marks = [mark for mark in self._marks() if mark[1] % FAILED < WARM_BASE]
            done = [mark for mark in marks if mark[1] < FAILED]
            complete = len({mark[1] for mark in done}) == n
            left = self._settled(c) if complete else None
            memory = usage(process, memory=True)
        begin = min(mark[0] for mark in marks)
        if not complete:
            done = [mark for mark in done if mark[0] <= begin + cap_s]
        times = sorted(mark[0] for mark in done)
        if len(times) < 2:
            raise RuntimeError(f"{len(times)} jobs finished within {cap_s:g} s")
        jobs, worker_cpu = max(1, count - size), end["cpu"] - cpu
        redis_cpu, wall = after["redis_cpu"] - before["redis_cpu"], after["t"] - before["t"]
        return {
            "jobs": len(times),
            "complete": complete,
            "repeated": len(done) - len({mark[1] for mark in done}),
            "left": left,
            "seconds": times[-1] - begin,
            "per_s": (len(times) - 1) / (times[-1] - begin),
            "startup_s": begin - started,
            "worker_cores": worker_cpu / wall,
            "redis_cores": redis_cpu / wall,
            "other_cpu": self._other(before, after, worker_cpu),
            "worker_us_per_job": worker_cpu * 1e6 / jobs,
            "redis_us_per_job": redis_cpu * 1e6 / jobs,
            "cmds_per_job": (after["cmds"] - before["cmds"]) / jobs,
            "reads_per_job": (after["reads"] - before["reads"]) / jobs,
            "pss_mb": memory["pss_mb"],
        }

    def _latency(self, c: Contender) -> Row:
        with self._worker(c, "latency") as (process, popen):
            time.sleep(0.3)
            self._preload(c, "noop", 0, bulk=False)
            self._await_marks(WARM, popen)
            time.sleep(0.5)
            memory = usage(process, memory=True)
            cpu, redis_cpu, since = usage(process)["cpu"], self.server.cpu(), time.time()
            time.sleep(1.0)
            wall = time.time() - since
            idle = {
                "idle_cpu_pct": 100 * (usage(process)["cpu"] - cpu) / wall,
                "idle_redis_pct": 100 * (self.server.cpu() - redis_cpu) / wall,
                "idle_pss_mb": memory["pss_mb"],
            }
            row = self._paced(c, "noop", process, round(self._jobs["latency"] * 0.02 / c.gap), c.gap, WARM)
        return row | idle

    def _otp_isolation(self, c: Contender) -> Row:
        """OTPs while exports take all of `low` and 10,000 jobs wait in `batch`."""
        lanes = Contender(c.driver, c.acks, env={**c.env, "BENCH_MODE": "lanes"}, slots={"otp": (1, 1)})
        self._call(lanes, "load", "--exports", "4", "--batch", str(self._jobs["batch"]))
        with self._worker(lanes, "otp") as (process, popen):
            since = time.time()
            while not (self._busy_queue("low", 2) and self._busy_queue("batch", 1)):
                if popen.poll() is not None or time.time() - since > START_S:
                    raise RuntimeError("low and batch were not taken up")
                time.sleep(0.05)
            time.sleep(1.0)
            before = int(self._redis.llen("rq:queue:batch"))
            row = self._paced(lanes, "otp", process, round(self._otp_s / OTP_GAP_S), OTP_GAP_S, 0)
            left = int(self._redis.llen("rq:queue:batch"))
            row["batch_left"] = left
            row["batch_per_s"] = (before - left) / row["seconds"]
            row["low_running"] = int(self._redis.zcard("rq:wip:low"))
        return row

    def _busy_queue(self, name: str, jobs: int) -> bool:
        return int(self._redis.zcard(f"rq:wip:{name}")) >= jobs

    def _paced(
        self, c: Contender, kind: str, process: psutil.Process, n: int, gap_s: float, warm: int
    ) -> Row:
        """Waits of jobs enqueued one by one at a steady pace, in ms."""
        cpu, before, own = usage(process)["cpu"], self._snap(), os.times()
        rows = self._call(c, "paced", "--kind", kind, "--n", str(n), "--gap", str(gap_s))
        after, end, spent = self._snap(), os.times(), usage(process)["cpu"] - cpu
        mine = end.children_user + end.children_system - own.children_user - own.children_system
        since = time.time()
        while self._size() < warm + WARM_PACED + n and time.time() - since < 15:
            time.sleep(0.01)
        began = {mark[1]: mark[0] for mark in reversed(self._marks())}
        # The first start counts: a second one would only hide how long the first took.
        after_return = sorted(began[i] - back for i, _, back in rows if i in began)
        after_call = sorted(began[i] - call for i, call, _ in rows if i in began)
        return {
            "jobs": len(after_call),
            "missing": n - len(after_call),
            "p50_ms": _percentile(after_return, 0.50),
            "p99_ms": _percentile(after_return, 0.99),
            "call_p50_ms": _percentile(after_call, 0.50),
            "call_p99_ms": _percentile(after_call, 0.99),
            "call_max_ms": after_call[-1] * 1000,
            "seconds": after["t"] - before["t"],
            "worker_cores": spent / (after["t"] - before["t"]),
            "other_cpu": self._other(before, after, mine + spent),
        }

    # -- processes ----------------------------------------------------------------------------------------------

    def _command(self, c: Contender) -> list[str]:
        return [program(c.venv, self._venvs, c.driver), str(HERE / "drivers" / c.driver)]

    def _environment(self, c: Contender) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JOBQ_", "RQ_", "BENCH_RANK"))
        }
        modules = str(self._venvs / (c.venv or "-") / "node_modules")
        return kept | {
            "BENCH_REDIS": self.server.url,
            "BENCH_MARKS": str(self._mark_file),
            "BENCH_FLAGS": str(self._flag_file),
            "PYTHONPATH": str(HERE / "drivers"),
            "NODE_PATH": modules,
            **c.env,
        }

    def _fresh(self) -> None:
        """Empty Redis, new files."""
        self._redis.flushall()
        self._number += 1
        for file in self._tmp.glob("m*"):
            file.unlink()
        self._mark_file = self._tmp / f"m{self._number}"
        self._flag_file = self._tmp / f"m{self._number}.flags"
        self._mark_file.touch()
        with self._flag_file.open("wb") as flags:
            flags.truncate(WARM_BASE + 1_000)

    def _call(self, c: Contender, *args: str) -> Any:
        run = subprocess.run(
            [*self._command(c), *args],
            env=self._environment(c),
            stdout=subprocess.PIPE,
            stderr=self._log,
            timeout=300,
            check=False,
        )
        if run.returncode:
            raise RuntimeError(f"{' '.join(args)}: exit {run.returncode}")
        return json.loads(run.stdout.decode().strip().splitlines()[-1])

    def _preload(self, c: Contender, kind: str, n: int, *, bulk: bool) -> float | None:
        """Enqueue n jobs, and the warm-up jobs before them; jobs per second."""
        took = self._call(c, "enqueue", "--kind", kind, "--n", str(n), *(["--bulk"] if bulk else []))
        return n / took["seconds"] if n else None

    @contextmanager
    def _worker(
        self, c: Contender, workload: str
    ) -> Iterator[tuple[psutil.Process, subprocess.Popen[bytes]]]:
        procs, slots = c.processes(workload)
        popen = subprocess.Popen(
            [*self._command(c), "work", "--procs", str(procs), "--conc", str(slots)],
            env=self._environment(c),
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        process = psutil.Process(popen.pid)
        try:
            yield process, popen
        finally:
            kill_tree(process, popen)

    # -- reading ------------------------------------------------------------------------------------------------

    def _size(self) -> int:
        return self._mark_file.stat().st_size // 16

    def _marks(self) -> list[tuple[float, int, int]]:
        data = self._mark_file.read_bytes()
        return list(struct.iter_unpack("<dii", data[: len(data) // 16 * 16]))

    def _await_marks(self, count: int, popen: subprocess.Popen[bytes]) -> None:
        since = time.time()
        while self._size() < count:
            if popen.poll() is not None or time.time() - since > START_S:
                raise RuntimeError(f"the worker did not warm up (exit {popen.poll()})")
            time.sleep(0.01)

    def _settled(self, c: Contender) -> int:
        """Jobs that the library itself does not hold for finished, after at most ten seconds more."""
        since = time.time()
        while (left := self._left(c)) and time.time() - since < 10:
            time.sleep(0.01)
        return left

    def _left(self, c: Contender) -> int:
        total = 0
        for command, pattern in c.left:
            for key in self._redis.keys(pattern) if "*" in pattern else [pattern]:
                if command != "xleft":
                    total += int(getattr(self._redis, command)(key))
                elif self._redis.exists(key):
                    groups: Any = self._redis.xinfo_groups(key)
                    total += sum(group["pending"] + (group.get("lag") or 0) for group in groups)
        return total

    def _snap(self) -> dict[str, float]:
        info: Any = self._redis.info("stats")
        return {
            "redis_cpu": self.server.cpu(),
            "cmds": info["total_commands_processed"],
            "reads": info["total_reads_processed"],
            "busy": busy(),
            "t": time.time(),
        }

    @staticmethod
    def _other(before: dict[str, float], after: dict[str, float], ours: float) -> float:
        """Cores used by what is neither the contender nor Redis. A high one makes a row suspect."""
        redis_cpu = after["redis_cpu"] - before["redis_cpu"]
        return max(0.0, (after["busy"] - before["busy"] - ours - redis_cpu) / (after["t"] - before["t"]))


def _percentile(values: list[float], part: float) -> float:
    return values[min(len(values) - 1, int(len(values) * part))] * 1000
