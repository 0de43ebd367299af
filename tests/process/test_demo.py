"""The guided tour: it says what it counted, and exits 6 when a count is off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobq import demo
from jobq.demo.peers import ROWS, Gateway, make_ledger
from jobq.job import Job, JobState
from jobq.steps import MOST_JOBS
from jobq.tasks import EnqueueRequest
from tests.support.processes import until
from tests.support.workers import alive

pytestmark = pytest.mark.process

_LOSES_A_MAIL = """
from jobq import demo
from jobq.demo.peers import MailServer

async def forget(self, server, session, envelope):
    if envelope.rcpt_tos != ["user7@example.com"]:
        self.received.update(envelope.rcpt_tos)
    return "250 taken"

MailServer.handle_DATA = forget
raise SystemExit(demo.run())
"""
_WITHOUT = """
import sys
sys.modules[{name!r}] = None
from jobq.cli import main
sys.exit(main(["demo"]))
"""


@pytest.mark.timeout(90)
@pytest.mark.covers("Y-04", "P-07", "P-08", "P-09")
def test_the_tour_counts_right_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "jobq.cli", "demo"],
        # The last two are somebody's settings for another job queue, which must not reach the demo's.
        env={**os.environ, "TMPDIR": str(tmp_path), "QUEUE_ENABLED": "false", "JOB_MAX_RETRIES": "1"},
        capture_output=True,
        text=True,
        timeout=80,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("\nok ") == 7
    assert "802 jobs in" in ran.stdout
    assert "critical 200/200" in ran.stdout  # no terminal: lines, not bars
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(90)
def test_a_count_that_is_off_is_said_and_ends_with_6(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _LOSES_A_MAIL],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=80,
    )
    assert ran.returncode == 6, ran.stdout + ran.stderr
    assert ran.stdout.count("\nok ") == 6
    assert "OFF  200 mails received" in ran.stdout


def test_ctrl_c_twice_ends_all_that_was_started(tmp_path: Path) -> None:
    log = tmp_path / "out"
    files = tmp_path / "files"
    files.mkdir()
    with log.open("wb") as out:
        tour = subprocess.Popen(
            [sys.executable, "-m", "jobq.cli", "demo"],
            env={**os.environ, "TMPDIR": str(files), "PYTHONUNBUFFERED": "1"},
            stdout=out,
            stderr=out,
        )
    try:
        until(lambda: "enqueued:" in log.read_text(), timeout=30)
        started = psutil.Process(tour.pid).children(recursive=True)
        own = psutil.Process(
            tour.pid
        ).children()  # the spawner below the worker is a fork: it has the same command line
        (worker,) = (child for child in own if child.cmdline()[-1:] == ["worker"])
        executors = worker.children(recursive=True)
        assert executors
        # Stopped, it cannot drain: the demo is bound to be waiting for it when the second Ctrl-C arrives.
        worker.suspend()
        tour.send_signal(signal.SIGINT)
        until(lambda: _pending(worker.pid, signal.SIGTERM))
        tour.send_signal(signal.SIGINT)
        assert tour.wait(20) == 130, log.read_text()
        until(lambda: not alive([*started, *executors]))
        assert list(files.iterdir()) == []
    finally:
        if tour.poll() is None:
            tour.kill()
            tour.wait()


@pytest.mark.parametrize(("name", "extra"), [("aiosmtpd", "dev"), ("httpx2", "http"), ("sqlalchemy", "sql")])
def test_a_missing_package_is_said_before_anything_starts(name: str, extra: str) -> None:
    ran = subprocess.run([sys.executable, "-c", _WITHOUT.format(name=name)], capture_output=True, text=True)
    assert ran.returncode == 78, ran.stderr
    assert f"pip install 'jobq[{extra}]'" in ran.stderr
    assert ran.stdout == ""


def _pending(pid: int, number: signal.Signals) -> bool:
    """Whether the signal has been sent to a process that is stopped."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:  # the demo has lost patience and killed it
        return True
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


class _Recorder:
    """Takes requests in place of a client."""

    def __init__(self) -> None:
        self.sent: dict[str, list[EnqueueRequest]] = {}

    def enqueue(self, requests: list[EnqueueRequest]) -> list[Job]:
        self.sent.setdefault(requests[0].task.name, []).extend(requests)
        return [Job(id="", task=each.task.name, queue=each.queue, state=JobState.QUEUED) for each in requests]

    async def enqueue_async(self, requests: list[EnqueueRequest]) -> list[Job]:
        raise AssertionError("not used")


def test_each_pair_of_equal_payments_is_enqueued_in_one_atomic_step() -> None:
    recorder: Any = _Recorder()
    demo._enqueue(recorder)
    ids = [request.params["payment_id"] for request in recorder.sent["jobq.process_payment"]]
    first_step = Counter(ids[:MOST_JOBS])
    assert len(ids) == demo.PAYMENTS + demo.TWICE
    assert sum(count == 2 for count in first_step.values()) == demo.TWICE


def test_the_gateway_charges_once_per_key_and_is_busy_now_and_then() -> None:
    gateway = Gateway()
    answers = [gateway.charge(f"key-{n}", f"pay_{n}")[0] for n in range(10)]
    assert answers.count(503) == gateway.refused == 2
    assert gateway.charge("key-0", "pay_0")[0] == 200
    assert gateway.charges["pay_0"] == 1
    gateway.close()


def test_the_ledger_has_its_rows(tmp_path: Path) -> None:
    import sqlite3

    make_ledger(tmp_path / "ledger.db")
    database = sqlite3.connect(tmp_path / "ledger.db")
    assert database.execute("SELECT count(*) FROM transactions").fetchone() == (ROWS,)
    database.close()
