"""The machine under the measurement: its Redis, its processes, its other work, its speed."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import redis

from jobq.private_server import PrivateServer

OWN = ("jobq", "rq", "dramatiq", "huey", "redis", "hiredis", "pydantic")
_OTHERS = (
    "celery",
    "kombu",
    "arq",
    "taskiq",
    "taskiq-redis",
    "saq",
    "streaq",
    "tasktiger",
    "redis",
    "hiredis",
    "coredis",
)


class Server:
    """A private Redis server for one run."""

    def __init__(self, *, aof: bool) -> None:
        self._server = PrivateServer(
            {"appendonly": "yes", "appendfsync": "everysec"} if aof else None
        ).start()
        self.url = self._server.url
        self.redis = redis.Redis.from_url(self.url)
        self._process = psutil.Process(self._server.pid)

    def cpu(self) -> float:
        """Seconds of CPU it has used."""
        times = self._process.cpu_times()
        return times.user + times.system

    def version(self) -> str:
        info: Any = self.redis.info("server")
        return f"{info.get('server_name', 'redis')} {info['redis_version']}"

    def stop(self) -> None:
        self.redis.close()
        self._server.stop()


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
        time.sleep(0.3)
        if (busy() - before) / (time.time() - since) < 0.2:
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


def describe(server: Server, venvs: Path, names: set[str]) -> dict[str, Any]:
    """What a result depends on: cores, model, memory, kernel, and the versions of everything."""
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    versions = {"python": platform.python_version(), "server": server.version()}
    for name in OWN:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    for name in sorted(names):
        versions |= {
            f"{name}: {package}": number for package, number in _installed(venvs / name, name).items()
        }
    return {
        "cores": os.cpu_count(),
        "model": model or platform.machine(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
    }


def _installed(folder: Path, name: str) -> dict[str, str]:
    if (folder / "node_modules").is_dir():
        files = {package: folder / "node_modules" / package / "package.json" for package in (name, "ioredis")}
        return {p: json.loads(file.read_text())["version"] for p, file in files.items() if file.exists()}
    python = folder / "bin" / "python"
    if not python.exists():
        return {}
    run = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=False
    )
    listed = json.loads(run.stdout or "[]")
    return {each["name"].lower(): each["version"] for each in listed if each["name"].lower() in _OTHERS}


def program(venv: str | None, venvs: Path, driver: str) -> str:
    """The interpreter that runs a driver."""
    if driver.endswith(".js"):
        return shutil.which("node") or "node"
    return sys.executable if venv is None else str(venvs / venv / "bin" / "python")
