"""A worker in outages of Redis: it outlives them, settles what finished meanwhile, and says how it fares."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request

import pytest
import redis

import jobq
from jobq.job import JobState
from jobq.private_server import free_port
from jobq.worker.lane import HUNG_S
from tests.process import ledger_app as app
from tests.process.conftest import WorkerFactory
from tests.support.processes import until
from tests.support.proxy import Proxy
from tests.support.server import ServerFactory
from tests.support.workers import Ledger

pytestmark = pytest.mark.process

NOT_READY_WITHIN_S = 5.0


def readiness(port: int) -> tuple[bool, list[str]]:
    """What ``/readyz`` says: whether, and why not."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return True, json.load(answer)["problems"]
    except urllib.error.HTTPError as error:
        with error:
            return False, json.load(error)["problems"]


def test_what_finishes_during_an_outage_longer_than_the_leases_is_settled_after_it(
    worker: WorkerFactory, server_factory: ServerFactory, ledger: Ledger
) -> None:
    with (
        server_factory(appendonly=True, appendfsync="always") as server,
        jobq.Client(jobq.Settings(redis_url=server.url)) as client,
    ):
        port = free_port()
        workers = [
            worker("--concurrency", "2", "--health-port", str(port), url=server.url, JOBQ_LEASE="1s"),
            worker("--concurrency", "2", url=server.url, queues=("high", "batch"), JOBQ_LEASE="1s"),
        ]
        until(lambda: readiness(port)[0])
        naps = app.nap.options(client=client)
        jobs = [naps.enqueue(key=f"n{number}", seconds=2.0) for number in range(4)]
        jobs += [
            app.nap.options(client=client, queue="batch").enqueue(key=f"i{n}", seconds=2.0) for n in (0, 1)
        ]
        ledger.wait("start", count=6)
        server.kill()
        away = time.monotonic()
        until(lambda: any("Redis has not answered" in why for why in readiness(port)[1]), NOT_READY_WITHIN_S)
        ledger.wait("ran", count=6)
        server.start()
        until(lambda: readiness(port)[0], NOT_READY_WITHIN_S)
        for job in jobs:
            assert job.wait(timeout=10).state is JobState.SUCCEEDED
        assert len(ledger.entries("start")) == 6  # settled by their tokens, not run again
        for each in workers:
            (told,), (ended,) = each.events("redis.unavailable"), each.events("redis.recovered")
            assert told["error_type"] == "StoreUnavailableError"
            assert 1 < ended["away_s"] < time.monotonic() - away + 1
            each.send(signal.SIGTERM)
        for each in workers:
            assert each.wait(15) == 0
            assert "Traceback" not in each.output()


def test_killed_connections_are_no_outage(
    worker: WorkerFactory, client: jobq.Client, redis_client: redis.Redis, ledger: Ledger
) -> None:
    running = worker("--concurrency", "4")
    naps = app.nap.options(client=client)
    jobs = []
    for number in range(20):
        jobs.append(naps.enqueue(key=f"n{number}", seconds=0.05))
        redis_client.client_kill_filter(_type="normal", skipme=True)
        ledger.wait("start", f"n{number}")
    for job in jobs:
        assert job.wait(timeout=10).state is JobState.SUCCEEDED
    assert len(ledger.entries("start")) == len(jobs)
    assert running.events("redis.unavailable") == running.events("job.rescued") == []
    assert "Traceback" not in running.output()


def test_an_executor_that_cannot_claim_is_not_ready(
    worker: WorkerFactory, redis_client: redis.Redis, client: jobq.Client
) -> None:
    """Though Redis answers its supervisor."""
    port = free_port()
    with Proxy(redis_client.connection_pool.connection_kwargs["port"]) as proxy:
        worker("--health-port", str(port), url=proxy.url)
        until(lambda: readiness(port)[0])
        proxy.on("claim", "reset", times=1_000_000)
        job = app.note.options(client=client).enqueue(key="a")  # wakes it
        until(lambda: readiness(port) == (False, ["queue high is not served"]), NOT_READY_WITHIN_S)
        proxy.clear()
        assert job.wait(timeout=10).state is JobState.SUCCEEDED
        until(lambda: readiness(port)[0], NOT_READY_WITHIN_S)


def test_an_executor_that_is_stopped_alone_is_replaced_and_its_jobs_run_again(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    port = free_port()
    first = worker("--concurrency", "1", "--health-port", str(port), JOBQ_LEASE="1s")
    victim = first.executor()
    job = app.nap.options(client=client).enqueue(key="a", seconds=3.0)
    ledger.wait("start")
    stopped_at = time.time()
    victim.send_signal(signal.SIGSTOP)
    again = ledger.wait("start", count=2)[-1]
    assert again.at - stopped_at < HUNG_S / 2, "long before a loop that merely stands still would be given up"
    assert again.pid != victim.pid
    assert job.wait(timeout=20).state is JobState.SUCCEEDED
    assert ledger.count("ran", "a") == 1
    assert "is stopped: it is replaced" in first.output()
    until(lambda: readiness(port)[0])


def test_a_call_into_c_that_keeps_the_interpreters_lock_is_run_once(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    """It stops the loop for many leases; a second worker stands by."""
    for _ in range(2):
        running = worker("--concurrency", "2", JOBQ_LEASE="1s")
    job = app.grip.options(client=client).enqueue(key="a", seconds=6.0)
    assert job.wait(timeout=20).state is JobState.SUCCEEDED
    assert (ledger.count("start", "a"), ledger.count("ran", "a")) == (1, 1)
    assert running.events("worker.lost") == []


def test_a_reply_that_breaks_off_is_asked_for_again(
    worker: WorkerFactory, redis_client: redis.Redis, client: jobq.Client, ledger: Ledger
) -> None:
    with Proxy(redis_client.connection_pool.connection_kwargs["port"]) as proxy:
        worker(url=proxy.url)
        proxy.on("claim", "truncate", times=3, after=50)
        jobs = [app.note.options(client=client).enqueue(key=f"n{n}") for n in range(5)]
        until(lambda: proxy.met.get("truncate") == 3)
        for job in jobs:
            assert job.wait(timeout=10).state is JobState.SUCCEEDED
    assert sorted(entry.key for entry in ledger.entries("ran")) == [f"n{n}" for n in range(5)]


def test_a_worker_that_is_stopped_during_an_outage_ends_within_its_grace(
    worker: WorkerFactory, server_factory: ServerFactory, ledger: Ledger
) -> None:
    with (
        server_factory(appendonly=True) as server,
        jobq.Client(jobq.Settings(redis_url=server.url)) as client,
    ):
        running = worker("--grace", "1s", url=server.url, queues=("high", "batch"), JOBQ_LEASE="1s")
        job = app.nap.options(client=client).enqueue(key="n", seconds=0.5)
        ledger.wait("start")
        server.kill()
        ledger.wait("ran")
        began = time.monotonic()
        running.send(signal.SIGTERM)
        assert running.wait(10) == 0
        assert time.monotonic() - began < 1 + 2 + 1  # the grace, 2 s to settle, and processes to end
        assert "Traceback" not in running.output()
        server.start()
        worker(url=server.url, JOBQ_LEASE="1s")
        assert job.wait(timeout=15).state is JobState.SUCCEEDED
        assert ledger.count("ran", "n") == 2  # nobody was left who knew of the first
