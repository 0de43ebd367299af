"""A worker whose every process is signalled, as service managers do it, still drains."""

from __future__ import annotations

import signal

import pytest

import jobq
from jobq.job import JobState
from tests.process import ledger_app as app
from tests.process.conftest import WorkerFactory
from tests.support.workers import Ledger

pytestmark = pytest.mark.process


def test_a_signal_to_every_process_drains_like_one_to_the_supervisor(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker()
    job = app.nap.options(client=client).enqueue(key="n", seconds=1.5)
    ledger.wait("start", "n")
    for process in running.tree():
        process.send_signal(signal.SIGTERM)
    running.send(signal.SIGTERM)
    assert running.wait(15) == 0
    assert job.refresh().state is JobState.SUCCEEDED
    assert ledger.count("start", "n") == 1
