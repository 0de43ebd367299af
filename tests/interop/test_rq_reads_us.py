"""Promise (a): unmodified rq reads every state of ours correctly, also while leases expire."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from rq import Queue, Worker
from rq.job import Job as RqJob
from rq.job import JobStatus
from rq.registry import (
    BaseRegistry,
    CanceledJobRegistry,
    DeferredJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ScheduledJobRegistry,
    StartedJobRegistry,
)

import jobq
from jobq import calls
from jobq.codec import Serializer
from jobq.private_server import free_port
from jobq.registration import register_worker
from tests.interop import app
from tests.support.hand import Hand
from tests.support.processes import BIN, environment, jobq_worker, program, until

APP = "tests.interop.app"

REGISTRIES: dict[str, type[BaseRegistry]] = {
    "started": StartedJobRegistry,
    "finished": FinishedJobRegistry,
    "failed": FailedJobRegistry,
    "scheduled": ScheduledJobRegistry,
    "deferred": DeferredJobRegistry,
    "canceled": CanceledJobRegistry,
}

PLACES = {
    "queued": "queued", "scheduled": "scheduled", "retrying": "scheduled", "running": "started",
    "succeeded": "finished", "silent": "finished", "dead": "failed", "cancelled": "canceled", "parked": "deferred",
}  # fmt: skip
"""Each of our states, and rq's word for it; ``silent`` is a success without a result."""


@dataclass
class Zoo:
    """One job of each state."""

    ids: dict[str, str]
    due: datetime

    def of(self, word: str) -> set[str]:
        return {self.ids[name] for name, place in PLACES.items() if place == word}


@pytest.fixture
def zoo(default_client: jobq.Client) -> Zoo:
    hand = Hand(default_client)
    ids: dict[str, str] = {}
    ids["succeeded"] = app.add.enqueue(40, b=2).id
    hand.succeed("high", 42)
    ids["silent"] = app.quiet.enqueue("x").id
    hand.succeed("high")
    ids["dead"] = app.fail.enqueue("x").id
    hand.kill("high")
    ids["cancelled"] = app.add.enqueue(1).id
    default_client.cancel(ids["cancelled"])
    ids["parked"] = app.add.enqueue(2).id
    (job,) = hand.claim("high")
    assert hand.settle(job, "park", queue="high", bucket="i.other", reason="unknown_task") == "ok"
    ids["retrying"] = app.add.enqueue(3).id
    (job,) = hand.claim("high")
    assert hand.settle(job, "retry", queue="high", spends=True, delay_ms=60_000) == "ok"
    ids["running"] = app.add.enqueue(4).id
    hand.claim("high")
    due = datetime.now(UTC).replace(microsecond=250_000) + timedelta(hours=1)
    ids["scheduled"] = app.add.options(at=due).enqueue(5).id
    ids["queued"] = app.add.enqueue(6, b=7).id
    return Zoo(ids, due)


def test_every_registry_holds_the_jobs_of_its_state(zoo: Zoo, redis_client: redis.Redis) -> None:
    queue = Queue("high", connection=redis_client, serializer=Serializer)
    assert set(queue.get_job_ids()) == zoo.of("queued")
    assert queue.count == len(queue) == 1
    for word, registry_class in REGISTRIES.items():
        registry = registry_class("high", connection=redis_client, serializer=Serializer)
        # With clean-up, as rq's tools call it by default.
        assert set(registry.get_job_ids()) == zoo.of(word), word
        assert registry.count == len(zoo.of(word)), word
    assert [each.name for each in Queue.all(connection=redis_client)] == ["high"]
    scheduled = ScheduledJobRegistry("high", connection=redis_client)
    assert abs(scheduled.get_scheduled_time(zoo.ids["scheduled"]) - zoo.due) < timedelta(seconds=1)


def test_job_fetch_reads_every_state(zoo: Zoo, redis_client: redis.Redis) -> None:
    now = datetime.now(UTC)
    for name, job_id in zoo.ids.items():
        job = RqJob.fetch(job_id, connection=redis_client, serializer=Serializer)
        assert job.get_status() == JobStatus(PLACES[name]), name
        assert job.origin == "high"
        assert job.timeout >= 1
        assert job.description in ("i.add", "i.quiet", "i.fail")
        assert job.func_name == "jobq.rq_bridge.perform"
        assert job.get_meta() == {}
        assert abs(job.created_at - now) < timedelta(minutes=1)
        assert abs(job.enqueued_at - now) < timedelta(minutes=1)
        ended = name in ("succeeded", "silent", "dead", "cancelled")
        assert (job.ended_at is not None) == ended, name
        assert job.is_finished == (PLACES[name] == "finished")
        assert job.is_failed == (name == "dead")
    running = RqJob.fetch(zoo.ids["running"], connection=redis_client, serializer=Serializer)
    assert running.worker_name == "hand"
    assert running.started_at is not None


def test_fetch_many_reads_a_page_of_all_states(zoo: Zoo, redis_client: redis.Redis) -> None:
    ids = [*zoo.ids.values(), "no-such-job"]
    jobs = RqJob.fetch_many(ids, connection=redis_client, serializer=Serializer)
    assert [job.id if job else None for job in jobs] == [*zoo.ids.values(), None]


def test_results_and_tracebacks(zoo: Zoo, redis_client: redis.Redis) -> None:
    def fetch(name: str) -> RqJob:
        return RqJob.fetch(zoo.ids[name], connection=redis_client, serializer=Serializer)

    done = fetch("succeeded")
    assert done.return_value() == 42
    (result,) = done.results()
    assert result.type == result.Type.SUCCESSFUL
    assert result.worker_name == "hand"
    assert fetch("silent").return_value() is None
    assert fetch("silent").latest_result() is None
    dead = fetch("dead").latest_result()
    assert dead is not None
    assert dead.type == dead.Type.FAILED
    assert "ValueError: no funds" in (dead.exc_string or "")
    assert fetch("dead").return_value() is None


def test_a_deferred_child_names_its_parent(default_client: jobq.Client, redis_client: redis.Redis) -> None:
    parent = app.add.enqueue(1)
    queue = Queue("high", connection=redis_client, serializer=Serializer)
    rq_parent = RqJob.fetch(parent.id, connection=redis_client, serializer=Serializer)
    child = queue.enqueue("i.add", 2, depends_on=rq_parent)
    assert default_client.get(child.id).state == "deferred"
    assert DeferredJobRegistry("high", connection=redis_client).get_job_ids() == [child.id]
    assert rq_parent.dependent_ids == [child.id]


def rq_info(url: str, *args: str) -> str:
    done = subprocess.run(
        [str(BIN / "rq"), "info", "--url", url, *args],
        env=environment(url, APP), capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rq_info_counts_every_state(zoo: Zoo, redis_url: str) -> None:
    raw = rq_info(redis_url, "--raw", "--only-queues").splitlines()
    assert raw[0] == "queue high 1, 1 executing, 2 finished, 1 failed"


def test_readers_leave_an_expired_lease_alone(default_client: jobq.Client, redis_url: str) -> None:
    job = app.add.enqueue(1)
    step = calls.claim(
        default_client.keys, "high", exec_id="x", number=1, n=1, lease_ms=1, worker_name="x",
        started_at_iso="2026-01-01T00:00:00.000000Z",
    )  # fmt: skip
    assert [each.id for each in default_client.run(step).jobs] == [job.id]
    with redis.Redis.from_url(redis_url) as connection:
        until(lambda: connection.zcount("jobq:leases", "-inf", time.time() * 1000 - 50))
        registry = StartedJobRegistry("high", connection=connection, serializer=Serializer)
        for _ in range(2):
            assert "high 0, 1 executing, 0 finished, 0 failed" in rq_info(redis_url, "--raw")
            assert registry.cleanup() is None
            assert registry.count == 1
            assert len(FailedJobRegistry("high", connection=connection)) == 0
            assert default_client.get(job.id).state == "running"
        # And it can still be rescued: the first pass after a silence only waits.
        rescue = calls.rescue(default_client.keys, 300)
        default_client.run(rescue)
        moved = until(lambda: default_client.run(rescue).moved)
    assert moved[0][0] == job.id
    assert default_client.get(job.id).state == "queued"


@pytest.mark.process
def test_rq_reads_along_while_a_worker_dies_and_its_jobs_are_rescued(
    default_client: jobq.Client, redis_url: str, redis_client: redis.Redis, tmp_path: Path,
    ledger: Callable[[], list[str]],
) -> None:  # fmt: skip
    jobs = [app.nap.enqueue(str(n), 0.7) for n in range(3)]
    ids = [job.id for job in jobs]
    env = {"LEDGER": os.environ["LEDGER"], "JOBQ_LEASE": "600ms"}
    started = StartedJobRegistry("high", connection=redis_client, serializer=Serializer)
    failed = FailedJobRegistry("high", connection=redis_client, serializer=Serializer)

    def read() -> None:
        started.cleanup()
        for job in RqJob.fetch_many(ids, connection=redis_client, serializer=Serializer):
            assert job is not None
            assert job.get_status() in (JobStatus.STARTED, JobStatus.QUEUED, JobStatus.FINISHED)
        assert failed.get_job_ids() == []

    with jobq_worker(redis_url, tmp_path / "first.log", app=APP, **env) as first:
        until(lambda: sum(line.startswith("start") for line in ledger()) == 3)
        read()
        # An executor shows itself within a second of its start, and not only at the next round.
        (worker,) = until(lambda: Worker.all(connection=redis_client), timeout=2)
        assert worker.queue_names() == ["high"]
        assert worker.pid > 0
        assert worker.get_current_job() is None
        assert Worker.count(connection=redis_client) == 1
        assert "high" in rq_info(redis_url, "--only-workers")
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    read()
    with jobq_worker(redis_url, tmp_path / "second.log", app=APP, **env):
        deadline = time.monotonic() + 20
        while not all(job.refresh().finished for job in jobs):
            read()
            assert time.monotonic() < deadline
    read()
    assert sorted(FinishedJobRegistry("high", connection=redis_client).get_job_ids()) == sorted(ids)
    assert started.get_job_ids() == []
    # The drained worker has taken its name off; the killed one's fades with its time to live.
    assert [each.name for each in Worker.all(connection=redis_client)] == [worker.name]


def test_worker_all_reads_an_executor(default_client: jobq.Client, redis_client: redis.Redis) -> None:
    now_ms = time.time_ns() // 1_000_000
    default_client.run(
        register_worker(
            default_client.keys, name="host-1-high", queues=("high",), slots=10, busy=2, tasks=("i.add",),
            host="host", pid=4711, state="busy", birth_ms=now_ms - 5000, now_ms=now_ms, version="0",
        )
    )  # fmt: skip
    for workers in (
        Worker.all(connection=redis_client),
        Worker.all(queue=Queue("high", connection=redis_client)),
        [Worker.find_by_key("rq:worker:host-1-high", connection=redis_client)],
    ):
        (worker,) = workers
        assert (worker.name, worker.pid, worker.hostname) == ("host-1-high", 4711, "host")
        assert worker.get_state() == "busy"
        assert worker.queue_names() == ["high"]
        assert abs(worker.last_heartbeat - datetime.now(UTC)) < timedelta(minutes=1)
        assert worker.birth_date < worker.last_heartbeat
        assert worker.get_current_job() is None


# --------------------------------------------------------------------------- rq-dashboard


@pytest.fixture
def dashboard(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """``rq-dashboard --json`` on the loopback interface; its address."""
    port = free_port()
    command = [
        str(BIN / "rq-dashboard"), "--bind", "127.0.0.1", "--port", str(port), "--redis-url", redis_url, "--json",
    ]  # fmt: skip
    base = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.process.poll() is None, process.output()
        try:
            return _get(f"{base}/favicon.ico")[0] == 200
        except OSError:
            return False

    with program(command, tmp_path / "dashboard.log", environment(redis_url, APP)) as process:
        until(answers)
        yield base


def _get(url: str) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.process
def test_rq_dashboard_shows_every_state(zoo: Zoo, dashboard: str) -> None:
    def page(path: str) -> bytes:
        code, body = _get(dashboard + path)
        assert code == 200, f"{path}: {code}\n{body[-2000:]!r}"
        return body

    for path in ("/", "/0/view/queues", "/0/view/workers", "/0/view/jobs"):
        assert b"<html" in page(path)
    (queue,) = json.loads(page("/0/data/queues.json"))["queues"]
    assert (queue["name"], queue["count"]) == ("high", 1)
    assert json.loads(page("/0/data/workers.json"))["workers"] == []
    for word in ("queued", *REGISTRIES):
        assert b"<html" in page(f"/0/view/jobs/high/{word}/10/asc/1")
        for order in ("asc", "dsc"):
            listed = json.loads(page(f"/0/data/jobs/high/{word}/10/{order}/1.json"))["jobs"]
            assert {job["id"] for job in listed} == zoo.of(word), word
    for name, job_id in zoo.ids.items():
        shown = json.loads(page(f"/0/data/job/{job_id}.json"))
        assert shown["status"] == PLACES[name]
        assert shown["origin"] == "high"
        assert b"<html" in page(f"/0/view/job/{job_id}")
    assert json.loads(page(f"/0/data/job/{zoo.ids['succeeded']}.json"))["result"] == 42
    assert "no funds" in json.loads(page(f"/0/data/job/{zoo.ids['dead']}.json"))["exc_info"]
