"""The machine under the measurement: its Redis, its processes, its other work, its speed."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import redis

from benchmarks import environments
from jobq.private_server import PrivateServer

_OWN = ("jobq", "rq", "dramatiq", "huey", "redis", "hiredis", "pydantic")
_QUIET = 0.2
"""Cores in use below which the machine counts as idle."""


@dataclass(frozen=True)
class Condition:
    """What a workload's Redis is like.

    Attributes:
        title: For headings.
        config: Server options over the server's own defaults.
        delay_ms: Added to each round trip by a proxy.
    """

    title: str
    config: Mapping[str, str] = field(default_factory=dict)
    delay_ms: float = 0.0


CONDITIONS: Mapping[str, Condition] = {
    "": Condition("Redis as it is unless configured, nothing saved"),
    "512": Condition("`hash-max-listpack-value 512`", {"hash-max-listpack-value": "512"}),
    "everysec": Condition("`appendfsync everysec`", {"appendonly": "yes", "appendfsync": "everysec"}),
    "2ms": Condition("2 ms more per round trip", delay_ms=2.0),
}
"""A workload is named ``drain_a``, or ``drain_a@everysec``."""

# Our own servers set this; here the server's default is what counts.
_DEFAULTS = {"hash-max-listpack-value": "64"}


class Server:
    """A private Redis server in one condition, for one run."""

    def __init__(self, condition: Condition) -> None:
        self._server = PrivateServer({**_DEFAULTS, **condition.config}).start()
        self.redis = redis.Redis.from_url(self._server.url)
        self.url = self._server.url
        self._processes = [psutil.Process(self._server.pid)]
        self._proxy: subprocess.Popen[str] | None = None
        if condition.delay_ms:
            command = [
                sys.executable,
                "-m",
                "benchmarks.delay",
                str(self._server.port),
                str(condition.delay_ms),
            ]
            self._proxy = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).resolve().parent.parent,
            )
            assert self._proxy.stdout is not None
            self.url = f"redis://127.0.0.1:{int(self._proxy.stdout.readline())}/0"
            self._processes.append(psutil.Process(self._proxy.pid))

    def cpu(self) -> float:
        """Seconds of CPU that Redis has used."""
        return _spent(self._processes[0])

    def overhead(self) -> float:
        """Seconds of CPU that the proxy has used."""
        return sum(_spent(process) for process in self._processes[1:])

    def version(self) -> str:
        """The server's name and version."""
        info: Any = self.redis.info("server")
        return f"{info.get('server_name', 'redis')} {info['redis_version']}"

    def stop(self) -> None:
        """End what was started."""
        self.redis.close()
        if self._proxy is not None:
            self._proxy.communicate()
        self._server.stop()


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def busy() -> float:
    """Seconds of CPU that the whole machine has used, and what the hypervisor took."""
    times = psutil.cpu_times()
    fields = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, name, 0.0) for name in fields))


def wait_quiet(limit_s: float) -> None:
    """Wait until hardly anything else runs, but not for ever."""
    end = time.time() + limit_s
    while time.time() < end:
        before, since = busy(), time.time()
        time.sleep(0.2)
        if (busy() - before) / (time.time() - since) < _QUIET:
            return


def calibrate() -> float:
    """Milliseconds of CPU that a fixed loop takes: shows a host that slows down although nothing runs here."""
    best = float("inf")
    for _ in range(3):
        since = time.process_time()
        total = 0
        for i in range(300_000):
            total += i & 7
        best = min(best, (time.process_time() - since) * 1000)
    return best


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def usage(process: psutil.Process, *, memory: bool = False) -> dict[str, float]:
    """CPU seconds of a tree, its ended children included, and on demand its memory in MB."""
    cpu = rss = pss = 0.0
    count = 0
    for each in tree(process):
        with contextlib.suppress(psutil.Error):
            times = each.cpu_times()
            cpu += times.user + times.system + times.children_user + times.children_system
            if memory:
                info = each.memory_full_info()
                rss += info.rss
                pss += getattr(info, "pss", 0)
            count += 1
    return {"cpu": cpu, "rss_mb": rss / 2**20, "pss_mb": pss / 2**20, "procs": count}


def kill_tree(process: psutil.Process, popen: subprocess.Popen[bytes]) -> None:
    """End exactly the tree we started: what it would still do is no part of a measurement."""
    for _ in range(3):  # a supervisor may start a successor while its children die
        members = tree(process)
        for each in members:
            with contextlib.suppress(psutil.Error):
                each.send_signal(signal.SIGKILL)
        psutil.wait_procs([each for each in members if each.pid != process.pid], timeout=2)
    popen.wait()


def describe(server: Server, peers: Iterable[str]) -> dict[str, Any]:
    """What a result depends on: cores, model, memory, kernel, and the versions of everything."""
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    versions = {"python": platform.python_version(), "server": server.version()}
    for name in _OWN:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    with contextlib.suppress(OSError):
        versions["node"] = subprocess.run(
            ["node", "--version"], capture_output=True, text=True, check=False
        ).stdout.strip()
    return {
        "cores": os.cpu_count(),
        "model": model or platform.machine(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
        "peers": {name: environments.versions(name) for name in sorted(peers)},
    }
