"""Running jobs that are asked to stop: at once, and cut off when they do not.

The lease is an hour, so no heartbeat can tell of a request in time: only what is published.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from rq.command import send_shutdown_command, send_stop_job_command

import jobq
from jobq.codec import Serializer
from jobq.job import JobState
from tests.chaos import app as chaos_app
from tests.process import ledger_app as app
from tests.process.conftest import WorkerFactory
from tests.support.processes import until
from tests.support.workers import Ledger

pytestmark = pytest.mark.process


def ended(client: jobq.Client, job_id: str) -> jobq.Job:
    """The job, once it is over."""

    def look() -> jobq.Job | None:
        job = client.get(job_id)
        return job if job.state in (JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED) else None

    found = until(look)
    assert found is not None
    return found


def test_a_request_to_stop_is_heard_at_once(
    worker: WorkerFactory, client: jobq.Client, tmp_path: Path
) -> None:
    running = worker(app="tests.chaos.app", JOBQ_LEASE="1h", CHAOS_LEDGER=str(tmp_path / "chaos.ledger"))
    job = chaos_app.patient.options(client=client).enqueue(token="a")
    until(lambda: client.get(job.id).state is JobState.RUNNING)
    assert job.cancel() == "requested"
    over = ended(client, job.id)
    assert (over.state, running.wait_event("job.cancelled")["reason"]) == (
        JobState.CANCELLED,
        "asked to stop",
    )


@pytest.mark.parametrize("kind", ["thread", "event loop", "process"])
def test_who_does_not_stop_is_cut_off_and_nobody_else(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger, kind: str
) -> None:
    worker(JOBQ_LEASE="1h", JOBQ_CANCEL_GRACE="200ms")
    neighbour = app.nap.options(client=client).enqueue(key="neighbour", seconds=3)
    if kind == "thread":
        job = app.slow.options(client=client, timeout=60).enqueue(key="a")
    elif kind == "event loop":
        job = app.async_nap.options(client=client, timeout=60).enqueue(key="a", seconds=50)
    else:
        job = app.isolated_stubborn.options(client=client, timeout=60).enqueue(key="a")
    ledger.wait("start", "a")
    ledger.wait("start", "neighbour")
    assert job.cancel() == "requested"
    over = ended(client, job.id)
    assert over.state is JobState.CANCELLED
    assert ended(client, neighbour.id).state is JobState.SUCCEEDED
    assert ledger.count("start", "neighbour") == 1


def test_rqs_own_commands_are_obeyed(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger, redis_client: redis.Redis
) -> None:
    running = worker(JOBQ_LEASE="1h", JOBQ_CANCEL_GRACE="200ms")
    job = app.slow.options(client=client, timeout=60).enqueue(key="a")
    ledger.wait("start", "a")
    name = redis_client.hget(f"rq:job:{job.id}", "worker_name")
    assert name is not None
    for nonsense in (
        "",
        "[]",
        "{",
        '{"command": 1}',
        '{"command": "stop-job", "job_id": ["a"]}',
        "[" * 100_000,
    ):
        redis_client.publish(f"rq:pubsub:{name.decode()}", nonsense)
    send_stop_job_command(redis_client, job.id, serializer=Serializer)
    assert ended(client, job.id).state is JobState.CANCELLED
    send_shutdown_command(redis_client, name.decode())
    assert running.wait() == 0
    assert "Traceback" not in running.output()
