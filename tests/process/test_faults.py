"""Faults that must stay small: what one job, one process or one deploy does wrong costs nobody else."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

import jobq
from jobq.job import JobState
from jobq.private_server import free_port
from jobq.tasks import Registry
from tests.process import ledger_app as app
from tests.process.conftest import WorkerFactory
from tests.support.processes import until
from tests.support.server import ServerFactory
from tests.support.workers import Ledger, Worker, alive

pytestmark = pytest.mark.process

DEPLOYED_APP = "tests.process.deployed_app"


def enqueue(client: jobq.Client, task: jobq.Task, **params: object) -> jobq.Job:
    return task.options(client=client).enqueue(**params)


def test_suspects_in_line_do_not_hold_up_the_others(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger, redis_client: redis.Redis
) -> None:
    suspects = [enqueue(client, app.nap, key=f"s{n}", seconds=3) for n in range(5)]
    for job in suspects:
        redis_client.hset(f"rq:job:{job.id}", "crashes", 1)
    worker("--concurrency", "3")
    ledger.wait("start", count=2)
    assert enqueue(client, app.note, key="other").wait(timeout=10).state is JobState.SUCCEEDED
    assert ledger.entries("ran", "s0") == []  # it did not wait for any of them
    assert len(ledger.entries("start")) == 2  # and they run two at a time


def test_a_coroutine_that_blocks_its_loop_pays_alone(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    neighbours = [enqueue(client, app.brief, key=f"n{n}", seconds=0.9) for n in range(2)]
    culprit = enqueue(client, app.blocks_its_loop, key="c")
    worker("--concurrency", "4")  # it claims all three at once, and starts them in order
    dead = culprit.wait(timeout=15)
    assert (dead.state, dead.attempt) == (JobState.DEAD, 1)
    assert client.attempts(dead.id)[0].outcome == "timed_out"
    for job in neighbours:
        done = job.wait(timeout=15)
        assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
        assert client.attempts(job.id) == []  # cut off long after its timeout, through no fault of its own


def test_a_frozen_redis_does_not_delay_a_kill(
    worker: WorkerFactory, server_factory: ServerFactory, ledger: Ledger
) -> None:
    with server_factory() as server, jobq.Client(jobq.Settings(redis_url=server.url)) as client:
        worker("--concurrency", "2", url=server.url)
        enqueue(client, app.nap, key="n", seconds=2)
        enqueue(client, app.isolated_stubborn, key="s")
        (start,) = ledger.wait("start", "s")
        ledger.wait("start", "n")
        child = psutil.Process(start.pid)
        redis_process = psutil.Process(server.pid)
        redis_process.suspend()
        try:
            ledger.wait("ran", "n")  # from now on the executor waits for an answer to its settle
            until(lambda: not alive([child]), 10)
            assert time.time() - start.at < 1 + 5.0 + 0.2
        finally:
            redis_process.resume()


def test_max_jobs_counts_on_when_an_executor_is_replaced(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    app.nap.options(client=client).enqueue_many([{"key": f"n{n}", "seconds": 0.3} for n in range(10)])
    running = worker("--max-jobs", "4", "--concurrency", "1", wait=False)
    ledger.wait("ran", count=2)
    ledger.wait("start", count=3)
    running.executor().kill()
    assert running.wait() == 0
    assert len(ledger.entries("ran")) == 4


@pytest.mark.parametrize(("flag", "said"), [("-q", "error"), ("-v", "debug")])
def test_verbosity_reaches_the_executors(
    worker: WorkerFactory, client: jobq.Client, flag: str, said: str
) -> None:
    running = worker(flag, wait=False)
    enqueue(client, app.logs, key="a").wait(timeout=15)
    running.send(signal.SIGTERM)
    assert running.wait() == 0  # all is said
    lines = [json.loads(line) for line in running.output().splitlines()]
    assert {line["level"] for line in lines if line["event"] == "t.logs"} >= {said}
    assert any(line["event"] == "job.succeeded" for line in lines) == (flag == "-v")


# -- a deploy that cannot be imported -------------------------------------------------------------------------------


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    path = tmp_path / "deploy"
    path.write_text("")
    return path


def serve(worker: WorkerFactory, deploy: Path) -> tuple[Worker, int]:
    port = free_port()
    running = worker(
        "--health-port", str(port), queues=("batch",), app=DEPLOYED_APP, DEPLOY=str(deploy), wait=False
    )
    until(lambda: problems(port) == [])
    return running, port


def problems(port: int) -> list[str] | None:
    """What the readiness probe says; None while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            body: Any = json.load(answer)
    except urllib.error.HTTPError as error:
        body = json.load(error)
    except OSError:
        return None
    found: list[str] = body["problems"]
    return found


@jobq.task("t.deployed", priority="batch", registry=Registry())
def deployed(key: str) -> None:
    """As producers know it; ``deployed_app`` is what workers import."""


@pytest.mark.parametrize("kind", ["", "threads"])
def test_a_broken_deploy_is_reported_tried_gently_and_recovers(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger, deploy: Path, kind: str
) -> None:
    deploy.write_text(kind)
    running, port = serve(worker, deploy)
    deploy.write_text(f"{kind} broken")
    # Without threads the spawner is started anew; with them, each child imports the application for itself.
    victims = [p for p in running.tree() if p.name().startswith("jobq job")] if kind else running.tree()[:1]
    for victim in victims:
        victim.kill()
    until(lambda: problems(port), 5)
    job = enqueue(client, deployed, key="d")
    process = psutil.Process(running.pid)

    def cpu_s() -> float:
        used = process.cpu_times()
        living = [p.cpu_times() for p in running.tree()]
        own = used.user + used.system + used.children_user + used.children_system
        return float(own + sum(t.user + t.system + t.children_user + t.children_system for t in living))

    before, began = cpu_s(), time.monotonic()
    tries = ledger.wait("import", f"{kind}-broken".lstrip("-"), count=2, timeout=40)
    # A fifth of a core at most in the long run; here two starts stand beside one pause.
    assert (cpu_s() - before) / (time.monotonic() - began) < 0.3
    assert all(later.at - earlier.at >= 1.0 for earlier, later in pairwise(tries))
    assert job.refresh().state is JobState.QUEUED  # nobody sits on it
    assert running.process.poll() is None

    deploy.write_text(kind)
    assert job.wait(timeout=30).state is JobState.SUCCEEDED
    until(lambda: problems(port) == [], 10)
    assert "Traceback" not in running.output() or kind


def test_a_spawner_that_dies_again_while_it_starts_is_started_again(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    running = worker()
    first = running.tree()[0]
    first.kill()
    second = until(lambda: [p for p in running.tree() if p.pid != first.pid and p.ppid() == running.pid])[0]
    second.kill()  # it is still importing
    assert enqueue(client, app.note, key="a").wait(timeout=20).state is JobState.SUCCEEDED
    assert len(running.events("worker.lost", queue="*")) == 2
