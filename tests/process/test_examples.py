"""The examples run as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import jobq

pytestmark = pytest.mark.process


def test_orders(redis_url: str, client: jobq.Client) -> None:
    environment = {**os.environ, "JOBQ_REDIS_URL": redis_url, "JOBQ_APP": "examples.orders"}

    said = subprocess.run(
        [sys.executable, "-m", "examples.orders"], env=environment, capture_output=True, text=True, timeout=30
    )
    worker = subprocess.run(
        [sys.executable, "-m", "jobq.cli", "worker", "--burst"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert said.returncode == 0, said.stderr
    assert said.stdout.count("ordered twice: True, the same job: True") == 3
    assert worker.returncode == 0, worker.stderr
    queues = client.stats().queues
    assert (queues["high"].succeeded, queues["batch"].succeeded, queues["low"].scheduled) == (3, 2, 3)


def test_schedules(redis_url: str, client: jobq.Client) -> None:
    environment = {**os.environ, "JOBQ_REDIS_URL": redis_url, "JOBQ_APP": "examples.schedules"}

    said = subprocess.run(
        [sys.executable, "-m", "examples.schedules"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert said.returncode == 0, said.stderr
    assert said.stdout.count("08:30") == 3
    assert said.stdout.endswith("and one now: queued\n")
    assert client.schedules.get("report.ada").times == "At 08:30 on Monday through Friday, Europe/Berlin"


def test_queues(redis_url: str, client: jobq.Client) -> None:
    environment = {**os.environ, "JOBQ_REDIS_URL": redis_url, "JOBQ_APP": "examples.queues"}

    said = subprocess.run(
        [sys.executable, "-m", "examples.queues"], env=environment, capture_output=True, text=True, timeout=30
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout == "email: 3 wait\npdf-invoices: 3 wait\n"
    worker = subprocess.run(
        [
            sys.executable,
            "-m",
            "jobq.cli",
            "worker",
            "--queue",
            "email",
            "--queue",
            "pdf-invoices",
            "--burst",
        ],
        env={**environment, "JOBQ_QUEUES__EMAIL__SLOTS": "10"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert worker.returncode == 0, worker.stderr
    queues = client.stats().queues
    assert (queues["email"].succeeded, queues["pdf-invoices"].succeeded) == (3, 3)
