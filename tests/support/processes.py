"""Real processes for tests: jobq workers, and tools of others. Each ends with its ``with``, by its own id."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def until(
    check: Callable[[], T], timeout: float = 25.0, every: float = 0.02, ignoring: type[Exception] | tuple[()] = ()
) -> T:  # fmt: skip
    """The first true answer of ``check``.

    For what other processes' tools bring about and offer no event for.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer: T | Exception
        try:
            if answer := check():
                return answer
        except ignoring as error:
            answer = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s; last answer: {answer!r}")
        time.sleep(every)


class Program:
    """A running process whose output goes to a file."""

    def __init__(self, args: Sequence[str], log: Path, env: dict[str, str], cwd: Path = ROOT) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                args, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, cwd=cwd
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.output()[-4000:]}") from None

    def stop(self) -> int:
        """End it: by SIGTERM, and when that is not enough by SIGKILL."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                return self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def search_path(*first: Path | str) -> str:
    """``PYTHONPATH`` of a program under test: these folders, then ours, so that it runs the code that we test."""
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")])])


def environment(url: str, app: str, **more: str) -> dict[str, str]:
    """Ours, without settings of whoever runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JOBQ_", "REDIS_", "RQ_"))}
    kept |= {"JOBQ_REDIS_URL": url, "JOBQ_APP": app, "PYTHONPATH": search_path(ROOT), "NO_COLOR": "1"}
    return kept | more


@contextmanager
def program(args: Sequence[str], log: Path, env: dict[str, str]) -> Iterator[Program]:
    """Any program of the test's own."""
    started = Program(args, log, env)
    try:
        yield started
    finally:
        started.stop()


@contextmanager
def jobq_worker(
    url: str, log: Path, *args: str, app: str, queues: Sequence[str] = ("high",), **env: str
) -> Iterator[Program]:
    """``jobq worker`` on some queues."""
    named = [part for queue in queues for part in ("--queue", queue)]
    command = [str(BIN / "jobq"), "worker", *named, *args]
    with program(command, log, environment(url, app, **env)) as started:
        yield started


def rq_worker(url: str, log: Path, *queues: str, app: str, serializer: bool = True, **env: str) -> str:
    """Run a stock ``rq worker --burst`` to its end; what it said."""
    chosen = ["--serializer", "jobq.codec.Serializer"] if serializer else []
    command = [str(BIN / "rq"), "worker", "--burst", "--url", url, *chosen, *(queues or ("high",))]
    with program(command, log, environment(url, app, **env)) as started:
        code = started.wait(40)
        assert code == 0, f"rq worker ended with {code}:\n{started.output()[-4000:]}"
        return started.output()
