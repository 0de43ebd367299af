"""A real worker for tests, its log as events, its process tree, and the ledger its tasks write."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from tests.support.processes import ROOT, Program, environment, until

LEDGER_APP = "tests.process.ledger_app"


@dataclass(frozen=True)
class Entry:
    """One line of the ledger: ``word key pid time``."""

    word: str
    key: str
    pid: int
    at: float


class Ledger:
    """What the tasks of ``ledger_app`` have written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def entries(self, word: str = "", key: str = "") -> list[Entry]:
        found = []
        for line in self.path.read_text().splitlines():
            a_word, a_key, pid, at = line.split(" ")
            if word in ("", a_word) and key in ("", a_key):
                found.append(Entry(a_word, a_key, int(pid), float(at)))
        return found

    def count(self, word: str, key: str) -> int:
        return len(self.entries(word, key))

    def wait(self, word: str, key: str = "", *, count: int = 1, timeout: float = 15.0) -> list[Entry]:
        """The entries, once there are enough of them."""

        def enough() -> list[Entry]:
            found = self.entries(word, key)
            return found if len(found) >= count else []

        return until(enough, timeout)


class Worker(Program):
    """``python -m jobq.cli worker`` in a process of its own, with its log in JSON lines."""

    def __init__(
        self, url: str, folder: Path, *args: str, queues: Sequence[str] = ("high",), app: str = LEDGER_APP,
        program: str = "jobq.cli", cwd: Path = ROOT, **env: str,
    ) -> None:  # fmt: skip
        named = [part for queue in queues for part in ("--queue", queue)]
        number = len(list(folder.glob("worker-*.log")))
        super().__init__(
            [sys.executable, "-m", program, "worker", *named, *args],
            folder / f"worker-{number}.log",
            environment(url, app, JOBQ_LOG_FORMAT="json", **env),
            cwd,
        )

    def events(self, name: str, **match: Any) -> list[dict[str, Any]]:
        """What it has logged under this name."""
        found = []
        for line in self.output().splitlines():
            if not line.startswith("{"):
                continue
            try:
                event = json.loads(line)
            except ValueError:  # half a line: it is being written
                continue
            if event.get("event") == name and match.items() <= event.items():
                found.append(event)
        return found

    def wait_event(self, name: str, *, timeout: float = 15.0, **match: Any) -> dict[str, Any]:
        """The first such event, as soon as it is logged."""

        def first() -> dict[str, Any]:
            found = self.events(name, **match)
            if not found and self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.returncode}:\n{self.output()[-4000:]}")
            return found[0] if found else {}

        return until(first, timeout)

    def ready(self) -> Worker:
        """This worker, once it serves."""
        self.wait_event("worker.started", timeout=60)
        return self

    def send(self, number: signal.Signals) -> None:
        """Signal the supervisor alone."""
        self.process.send_signal(number)

    def tree(self) -> list[psutil.Process]:
        """Every process below the supervisor: spawner, executors, job children."""
        try:
            found: list[psutil.Process] = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found

    def executors(self) -> list[psutil.Process]:
        """The executor processes, by the name they give themselves."""
        return [p for p in self.tree() if _name(p).startswith("jobq: ")]

    def executor(self) -> psutil.Process:
        """The only executor, once it has started."""
        (found,) = until(self.executors)
        return found

    def kill(self) -> None:
        """SIGKILL the supervisor alone, as a host's OOM killer would."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()


def _name(process: psutil.Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/comm").read_text().strip()
    except (OSError, psutil.Error):
        return ""


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie does not."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
