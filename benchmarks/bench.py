"""One run's servers, files and processes, and what every measurement does with them."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks import environments
from benchmarks.contenders import Contender
from benchmarks.machine import CONDITIONS, Server, busy, kill_tree, usage

HERE = Path(__file__).resolve().parent
WARM, WARM_BASE, FAILED = 50, 900_000, 1_000_000
WARM_PACED = 20
START_S = 40.0
"""What has not begun by then never will."""

_CALL_S = 900

Row = dict[str, Any]
Snap = dict[str, float]


class Worker:
    """A running worker of some contender."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.process = psutil.Process(popen.pid)
        self.started = time.time()

    @property
    def cpu(self) -> float:
        """Seconds of CPU that it and all below it have used."""
        return usage(self.process)["cpu"]

    @property
    def pss_mb(self) -> float:
        """Its share of memory, all below it included."""
        return usage(self.process, memory=True)["pss_mb"]

    def must_live(self, since: float, what: str) -> None:
        """Raise when it has ended, or was given long enough."""
        if self.popen.poll() is not None or time.time() - since > START_S:
            raise RuntimeError(f"{what} (worker exit {self.popen.poll()})")


class Bench:
    """The means of one run.

    Args:
        cap_s: A drain is cut off so long after its first job.
    """

    def __init__(self, *, cap_s: float) -> None:
        self.cap_s = cap_s
        self._servers: dict[str, Server] = {}
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._tmp = Path(tempfile.mkdtemp(prefix="jobq-bench-", dir=base))
        self._log = (self._tmp / "log").open("ab")
        self._number = 0
        self.fresh("")

    def close(self) -> None:
        """End what was started, and remove the files."""
        for server in self._servers.values():
            server.stop()
        self._log.close()
        shutil.rmtree(self._tmp, ignore_errors=True)

    def fresh(self, condition: str) -> None:
        """From here on: the server of this condition, empty, and new files."""
        if condition not in self._servers:
            self._servers[condition] = Server(CONDITIONS[condition])
        self.server = self._servers[condition]
        self.redis = self.server.redis
        self.redis.flushall()
        self._number += 1
        for file in self._tmp.glob("m*"):
            file.unlink()
        self.mark_file = self._tmp / f"m{self._number}"
        self._flag_file = self._tmp / f"m{self._number}.flags"
        self.mark_file.touch()
        with self._flag_file.open("wb") as flags:
            flags.truncate(WARM_BASE + 1_000)

    def last_words(self) -> str:
        """The end of what the contenders wrote, for an error message."""
        self._log.flush()
        return (self._tmp / "log").read_text(errors="replace")[-1_000:]

    # -- processes ----------------------------------------------------------------------------------------------

    def call(self, c: Contender, *args: str) -> Any:
        """Run a driver's command; what it printed last, decoded."""
        return self.answer(self.begin(c, *args))

    def step(self, c: Contender, name: str, **options: Any) -> Any:
        """Run a step that only this contender has."""
        return self.call(c, "call", name, json.dumps(options))

    def begin(self, c: Contender, *args: str) -> subprocess.Popen[bytes]:
        """Start a driver's command without waiting for it."""
        return subprocess.Popen(
            [*self._command(c), *args], env=self._environment(c), stdout=subprocess.PIPE, stderr=self._log
        )

    @staticmethod
    def answer(popen: subprocess.Popen[bytes]) -> Any:
        """Wait for what :meth:`begin` started."""
        try:
            out, _ = popen.communicate(timeout=_CALL_S)
        except BaseException:
            popen.kill()
            popen.wait()
            raise
        if popen.returncode:
            raise RuntimeError(f"{' '.join(map(str, popen.args[2:5]))}: exit {popen.returncode}")  # type: ignore[index]
        return json.loads(out.decode().strip().splitlines()[-1])

    def preload(self, c: Contender, kind: str, n: int, *, bulk: bool) -> float | None:
        """Enqueue n jobs, and the warm-up jobs before them; jobs per second."""
        took = self.call(c, "enqueue", "--kind", kind, "--n", str(n), *(["--bulk"] if bulk else []))
        return n / took["seconds"] if n else None

    @contextmanager
    def worker(self, c: Contender, slots: tuple[int, int]) -> Iterator[Worker]:
        """A worker of so many processes and slots, ended at the end of ``with``."""
        procs, each = slots
        popen = subprocess.Popen(
            [*self._command(c), "work", "--procs", str(procs), "--conc", str(each)],
            env=self._environment(c),
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        worker = Worker(popen)
        try:
            yield worker
        finally:
            kill_tree(worker.process, popen)

    def _command(self, c: Contender) -> list[str]:
        return [environments.program(c.venv, c.driver), str(HERE / "drivers" / c.driver)]

    def _environment(self, c: Contender) -> Mapping[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JOBQ_", "RQ_", "BENCH_RANK"))
        }
        modules = str(environments.cache() / (c.venv or "-") / "node_modules")
        return kept | {
            "BENCH_REDIS": self.server.url,
            "BENCH_MARKS": str(self.mark_file),
            "BENCH_FLAGS": str(self._flag_file),
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(HERE / "drivers"), os.environ.get("PYTHONPATH")))
            ),
            "NODE_PATH": modules,
            **c.env,
        }

    # -- reading ------------------------------------------------------------------------------------------------

    def size(self) -> int:
        """How many marks jobs have left."""
        return self.mark_file.stat().st_size // 16

    def marks(self) -> list[tuple[float, int, int]]:
        """Time, index and process of each."""
        data = self.mark_file.read_bytes()
        return list(struct.iter_unpack("<dii", data[: len(data) // 16 * 16]))

    def await_marks(self, count: int, worker: Worker) -> None:
        """Wait until so many marks are there."""
        since = time.time()
        while self.size() < count:
            worker.must_live(since, f"{self.size()} of {count} jobs ran")
            time.sleep(0.005)

    def settled(self, c: Contender) -> int:
        """Jobs that the library itself does not hold for finished, after at most ten seconds more."""
        since = time.time()
        while (left := self._left(c)) and time.time() - since < 10:
            time.sleep(0.01)
        return left

    def _left(self, c: Contender) -> int:
        total = 0
        for command, pattern in c.left:
            for key in self.redis.keys(pattern) if "*" in pattern else [pattern]:
                if command != "xleft":
                    total += int(getattr(self.redis, command)(key))
                elif self.redis.exists(key):
                    groups: Any = self.redis.xinfo_groups(key)
                    total += sum(group["pending"] + (group.get("lag") or 0) for group in groups)
        return total

    def memory(self) -> int:
        """Bytes that Redis uses."""
        return int(self.redis.info("memory")["used_memory"])

    def snap(self) -> Snap:
        """Counters of Redis and of the machine."""
        info: Any = self.redis.info("stats")
        own = os.times()
        return {
            "redis_cpu": self.server.cpu(),
            "overhead": self.server.overhead(),
            "calls_cpu": own.children_user + own.children_system,
            "cmds": info["total_commands_processed"],
            "reads": info["total_reads_processed"],
            "busy": busy(),
            "t": time.time(),
        }

    @staticmethod
    def other(before: Snap, after: Snap, ours: float) -> float:
        """Cores used by what is neither the contender nor Redis. A high one makes a row suspect.

        Args:
            ours: Seconds of CPU that the contender used in between.
        """
        redis_cpu = sum(after[name] - before[name] for name in ("redis_cpu", "overhead"))
        return max(0.0, (after["busy"] - before["busy"] - ours - redis_cpu) / (after["t"] - before["t"]))

    def waits(self, rows: list[list[float]], first: int = 0) -> Row:
        """Waits of jobs that were enqueued one by one, in ms: until they started, from the call and its return.

        Args:
            rows: Index, and the times of the call and of its return, of each.
            first: Marks below this index belong to others.
        """
        wanted, since = {int(row[0]) for row in rows}, time.time()
        while True:
            # The first start counts: a second one would only hide how long the first took.
            began = {mark[1]: mark[0] for mark in reversed(self.marks()) if first <= mark[1] < WARM_BASE}
            if wanted <= began.keys() or time.time() - since > 15:
                break
            time.sleep(0.05)
        after_return = sorted(began[int(i)] - back for i, _, back in rows if int(i) in began)
        after_call = sorted(began[int(i)] - call for i, call, _ in rows if int(i) in began)
        if not after_call:
            raise RuntimeError(f"none of {len(rows)} jobs started")
        return {
            "jobs": len(after_call),
            "missing": len(rows) - len(after_call),
            "p50_ms": percentile(after_return, 0.50),
            "p99_ms": percentile(after_return, 0.99),
            "call_p50_ms": percentile(after_call, 0.50),
            "call_p99_ms": percentile(after_call, 0.99),
            "call_max_ms": after_call[-1] * 1000,
        }


def percentile(seconds: list[float], part: float) -> float:
    """Of sorted seconds, in ms."""
    return seconds[min(len(seconds) - 1, int(len(seconds) * part))] * 1000
