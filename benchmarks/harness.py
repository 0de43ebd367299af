"""A private server, one contender's processes, and the file in which its jobs leave their marks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import redis

from benchmarks.contenders import Contender
from jobq.private_server import PrivateServer

DRIVERS = Path(__file__).parent / "drivers"
WARM, WARM_BASE = 50, 900_000
CAP_S = 20.0


class Bench:
    """One run: a server on loopback without persistence, emptied before each measurement."""

    def __init__(self) -> None:
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="jobq-bench-", dir=base))
        self.server = PrivateServer({"save": "", "appendonly": "no"}).start()
        self.redis = redis.Redis.from_url(self.server.url)
        self.log = (self.folder / "log").open("ab")
        self.number = 0
        self.marks = self.folder / "marks"

    def close(self) -> None:
        """Stop the server, delete the marks."""
        self.redis.close()
        self.server.stop()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def fresh(self) -> None:
        """Empty everything."""
        self.redis.flushall()
        self.redis.config_resetstat()
        self.number += 1
        self.marks = self.folder / f"marks{self.number}"
        self.marks.touch()
        flags = self.folder / f"marks{self.number}.flags"
        with flags.open("wb") as file:
            file.truncate(WARM_BASE + 1000)

    def environment(self, who: Contender) -> dict[str, str]:
        """Of a driver's processes."""
        return {
            **os.environ,
            "BENCH_REDIS": self.server.url,
            "BENCH_MARKS": str(self.marks),
            "BENCH_FLAGS": f"{self.marks}.flags",
            "PYTHONPATH": str(DRIVERS),
            **who.env,
        }

    def call(self, who: Contender, *words: str) -> Any:
        """Run a driver to its end, and return what it prints."""
        done = subprocess.run(
            [sys.executable, str(DRIVERS / who.driver), *words],
            env=self.environment(who),
            stdout=subprocess.PIPE,
            stderr=self.log,
            timeout=300,
            check=True,
        )
        return json.loads(done.stdout.decode().strip().splitlines()[-1])

    def enqueue(self, who: Contender, count: int, *, bulk: bool) -> float:
        """Jobs per second; 50 for warming up go first."""
        words = ["enqueue", "--n", str(count), *(["--bulk"] if bulk else [])]
        return count / float(self.call(who, *words)["seconds"])

    @contextmanager
    def worker(self, who: Contender) -> Iterator[psutil.Process]:
        """A driver's worker, ended with everything it started."""
        process = subprocess.Popen(
            [sys.executable, str(DRIVERS / who.driver), "work", "--procs", "1", "--conc", str(who.slots)],
            env=self.environment(who),
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        root = psutil.Process(process.pid)
        try:
            yield root
        finally:
            for each in tree(root):
                try:
                    each.send_signal(signal.SIGKILL)
                except psutil.Error:
                    continue
            process.wait()

    def ran(self) -> int:
        """Marks so far."""
        return self.marks.stat().st_size // 16

    def await_marks(self, count: int, cap_s: float) -> bool:
        """Wait until so many jobs have run."""
        ends = time.monotonic() + cap_s
        while self.ran() < count:
            if time.monotonic() > ends:
                return False
            time.sleep(0.005)
        return True

    def read(self) -> list[tuple[float, int, int]]:
        """Time, index and process of each mark, warm-up apart."""
        with self.marks.open("rb") as file:
            found = struct.iter_unpack("<dii", file.read())
        return [mark for mark in found if mark[1] % 1_000_000 < WARM_BASE]

    def left(self, who: Contender) -> int:
        """Jobs that the library has not acknowledged."""
        return sum(int(self.redis.execute_command(command, key)) for command, key in who.left)


def tree(root: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def cpu(processes: list[psutil.Process]) -> float:
    """Seconds of processor that they and their ended children took."""
    total = 0.0
    for each in processes:
        try:
            times = each.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def busy() -> float:
    """Seconds of processor that the whole machine took, stolen time included."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)
