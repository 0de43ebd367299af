"""What a job costs: round trips and Redis commands, counted by the server and by a proxy before it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest
import redis

import jobq
from jobq.private_server import PrivateServer
from jobq.worker.waiter import BLOCK_S
from tests.interop import app
from tests.support.processes import jobq_worker, until
from tests.support.proxy import Proxy
from tests.support.server import program_of

APP = "tests.interop.app"
JOBS = 200
BACKLOG = 600
MOST_PER_JOB = 16
MOST_TRIPS_PER_JOB = 0.3
MOST_PER_ENQUEUE = 6
MOST_SENT = 200
"""Bytes on the wire of a small job in a bulk: what all jobs of a task have in common goes once a hundred."""

MOST_BYTES = {"64": 950, "512": 550}
"""Of a waiting job, by ``hash-max-listpack-value``: the server's default, and the one that doctor recommends."""

_OWN = ("info", "config|resetstat", "ping")
"""What the test itself sends."""


def commands(server: redis.Redis) -> dict[str, int]:
    """Calls of each command since the last reset, those inside scripts included."""
    found = server.info("commandstats")
    counted = {name.removeprefix("cmdstat_"): int(value["calls"]) for name, value in found.items()}
    return {name: calls for name, calls in counted.items() if name not in _OWN}


def test_a_plain_enqueue_is_one_round_trip_of_six_commands(
    through: jobq.Client, proxy: Proxy, server: redis.Redis
) -> None:
    app.quiet.enqueue("first")  # connects, and makes the queue known, once a minute
    proxy.requests.clear()
    server.config_resetstat()
    for n in range(JOBS):
        app.quiet.enqueue(f"{n}")
    used = commands(server)
    assert len(proxy.requests) == JOBS, "one round trip each"
    assert used["evalsha"] == JOBS
    assert sum(used.values()) <= MOST_PER_ENQUEUE * JOBS, used


def test_where_memory_has_a_limit_a_look_once_a_second_goes_along(
    through: jobq.Client, proxy: Proxy, server: redis.Redis
) -> None:
    server.config_set("maxmemory", 2**30)
    try:
        app.quiet.enqueue("first")
        proxy.requests.clear()
        server.config_resetstat()
        began = time.monotonic()
        for n in range(JOBS):
            app.quiet.enqueue(f"{n}")
        looks = int(time.monotonic() - began) + 1
        used = commands(server)
        assert len(proxy.requests) == JOBS, "in no round trip of its own"
        assert sum(used.values()) <= MOST_PER_ENQUEUE * JOBS + 25 * looks, used
    finally:
        server.config_set("maxmemory", 0)


def test_a_bulk_is_one_round_trip_for_a_hundred_jobs(
    through: jobq.Client, proxy: Proxy, server: redis.Redis
) -> None:
    app.quiet.enqueue("first")
    server.config_resetstat()
    before = server.info("stats")["total_net_input_bytes"]
    app.quiet.enqueue_many([{"key": str(n)} for n in range(JOBS)])
    used, sent = commands(server), server.info("stats")["total_net_input_bytes"] - before
    assert used["evalsha"] == JOBS // 100
    assert sum(used.values()) <= 2 * JOBS + 10, used
    assert sent <= MOST_SENT * JOBS


@pytest.mark.process
def test_jobs_that_come_one_by_one(
    through: jobq.Client, proxy: Proxy, server: redis.Redis, tmp_path: Path
) -> None:
    """How many share a batch depends on the machine; what a job and a batch cost does not."""
    with jobq_worker(proxy.url, tmp_path / "worker.log", app=APP):
        app.quiet.enqueue("first").wait(timeout=20)
        # What an idle worker's maintenance costs, to be taken off.
        server.config_resetstat()
        began = time.monotonic()
        time.sleep(1.0)
        idle_per_s = sum(commands(server).values()) / (time.monotonic() - began)

        proxy.requests.clear()
        server.config_resetstat()
        began = time.monotonic()
        for n in range(JOBS):
            app.quiet.enqueue(f"{n}")
        until(lambda: server.zcard("rq:finished:high") == JOBS + 1)
        took = time.monotonic() - began
        used = commands(server)
        batches, exchanges = proxy.calls("settle"), proxy.calls("claim", "settle")
    used.pop("zcard", 0)  # our own look at how far it is
    # A job: enqueue 6, claim 2, settle 4. A batch: the waiter 1, claim 8, settle 8.
    assert sum(used.values()) - idle_per_s * took <= 12 * JOBS + 17 * (batches + 1), (batches, used)
    assert exchanges <= 2 * batches + 2, "beside claim and settle, one claim that finds nothing at each end"


@pytest.mark.process
def test_a_job_that_comes_alone_is_claimed_once_and_nobody_asks_for_more(
    through: jobq.Client, proxy: Proxy, server: redis.Redis, tmp_path: Path
) -> None:
    with jobq_worker(proxy.url, tmp_path / "worker.log", app=APP):
        app.quiet.enqueue("first").wait(timeout=20)
        proxy.requests.clear()
        began = time.monotonic()
        for n in range(50):
            job = app.quiet.enqueue(f"{n}")
            until(lambda job=job: server.hget(f"rq:job:{job.id}", "status") == b"finished", every=0.002)
        looks = int((time.monotonic() - began) / BLOCK_S) + 1
        claims, settles = proxy.calls("claim"), proxy.calls("settle")
        together = proxy.calls("claim", "settle")
    assert settles == 50
    assert claims <= 50 + looks, "the waiter says when there is a job; it lets one look now and then"
    assert together >= claims + settles - looks, (
        "no claim but such a look rides along when there is nothing to claim"
    )


@pytest.mark.process
def test_a_backlog_costs_what_is_promised(
    client: jobq.Client, proxy: Proxy, server: redis.Redis, tmp_path: Path
) -> None:
    """At full slots, enqueue included; what an idle worker's maintenance costs is counted before, and taken off."""
    quiet = app.quiet.options(client=client)  # past the proxy, which counts the worker's round trips
    with jobq_worker(proxy.url, tmp_path / "worker.log", app=APP):
        quiet.enqueue("first").wait(timeout=20)
        client.queues.pause("high")
        time.sleep(1.0)  # its own pace while the queue is paused
        server.config_resetstat()
        proxy.requests.clear()
        began = time.monotonic()
        time.sleep(2.0)
        idle_s = time.monotonic() - began
        idle, idle_trips = sum(commands(server).values()) / idle_s, len(proxy.requests) / idle_s

        server.config_resetstat()
        proxy.requests.clear()
        began = time.monotonic()
        for n in range(BACKLOG):
            quiet.enqueue(f"{n}")
        client.queues.resume("high")
        until(lambda: server.zcard("rq:finished:high") == BACKLOG + 1)
        took = time.monotonic() - began
        used, trips = commands(server), len(proxy.requests)
    used.pop("zcard", 0)  # our own look at how far it is
    per_job = (sum(used.values()) - idle * took) / BACKLOG
    assert per_job <= MOST_PER_JOB, used
    assert (trips - idle_trips * took) / BACKLOG <= MOST_TRIPS_PER_JOB


@pytest.mark.parametrize("longest", MOST_BYTES)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_bytes_of_a_waiting_otp(flavour: Literal["redis", "valkey"], longest: str) -> None:
    """Signed, and the code encrypted, as in production; list, hash, key and their overhead."""
    program = program_of(flavour)
    if program is None:
        pytest.skip(f"no {flavour}-server here")
    params = [{"email": "ada@example.com", "code": "123456"}] * 1_000
    with (
        PrivateServer({"hash-max-listpack-value": longest}, program=program) as server,
        jobq.Client(
            jobq.Settings(redis_url=server.url, secret_key="a key of sixteen or more", enqueue_timeout="30s")
        ) as client,
        redis.Redis.from_url(server.url) as raw,
    ):
        task = jobq.send_otp.options(client=client)
        task.enqueue_many(params)  # scripts, connections, the first pages of the list
        before = raw.info("memory")["used_memory"]
        for _ in range(10):
            task.enqueue_many(params)
        used = (raw.info("memory")["used_memory"] - before) / 10_000
    assert used <= MOST_BYTES[longest]
