"""One reply lost, late or cut off: one job and not two, counted once; and enqueue keeps its deadline."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

import jobq
from jobq import calls
from jobq.client import AsyncClient
from jobq.connection import connect
from jobq.errors import StoreUnavailableError
from jobq.job import Job
from jobq.keys import Keys
from jobq.private_server import PrivateServer
from jobq.rq_bridge import iso
from jobq.steps import Outcome
from jobq.store import Link
from tests.interop import app
from tests.support.processes import jobq_worker, until
from tests.support.proxy import Proxy
from tests.support.server import ServerFactory

DEADLINE_S = 1.0
LEEWAY_S = 1.0
APP = "tests.interop.app"


@contextmanager
def within_deadline() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began <= DEADLINE_S + LEEWAY_S


def waiting(server: redis.Redis, queue: str = "high") -> list[str]:
    """The queue's list; each of its jobs must be whole."""
    ids = [job_id.decode() for job_id in server.lrange(f"rq:queue:{queue}", 0, -1)]
    for job_id in ids:
        assert server.hmget(f"rq:job:{job_id}", "status", "origin") == [b"queued", queue.encode()]
        assert server.hlen(f"rq:job:{job_id}") >= 8
    assert len(server.keys("rq:job:*")) == len(ids)
    return ids


# --------------------------------------------------------------------------- enqueue


@pytest.mark.parametrize("fate", ["swallow", "reset"])
@pytest.mark.parametrize("warm", [True, False])
def test_a_lost_exchange_enqueues_one_job(
    through: jobq.Client, proxy: Proxy, server: redis.Redis, fate: str, warm: bool
) -> None:
    first = [app.add.enqueue(0).id] if warm else []
    proxy.on("enqueue", fate, times=2)  # type: ignore[arg-type]
    with within_deadline():
        job = app.add.enqueue(1)
    assert proxy.met == {fate: 2}
    assert not job.deduplicated
    assert waiting(server) == [*first, job.id]


def test_a_lost_reply_does_not_make_a_job_its_own_duplicate(
    through: jobq.Client, proxy: Proxy, server: redis.Redis
) -> None:
    proxy.on("enqueue", "swallow")
    job = app.keyed.enqueue("k")
    assert not job.deduplicated
    assert app.keyed.enqueue("k").deduplicated
    assert waiting(server) == [job.id]


def test_a_lost_reply_of_a_scheduled_job(through: jobq.Client, proxy: Proxy, server: redis.Redis) -> None:
    proxy.on("enqueue", "swallow")
    job = app.add.options(delay=60).enqueue(1)
    assert job.state == "scheduled"
    assert server.zrange("rq:scheduled:high", 0, -1) == [job.id.encode()]
    assert server.llen("rq:queue:high") == 0


def test_a_lost_reply_of_a_bulk(through: jobq.Client, proxy: Proxy, server: redis.Redis) -> None:
    proxy.on("enqueue", "swallow", times=2, skip=1)
    jobs = app.add.enqueue_many([{"a": n} for n in range(250)])
    assert proxy.met == {"swallow": 2}
    assert waiting(server) == [job.id for job in jobs]


async def _enqueue_async(client: jobq.Client) -> Job:
    try:
        return await app.add.enqueue_async(1)
    finally:
        await client.aclose()


def test_a_lost_reply_of_an_async_enqueue(through: jobq.Client, proxy: Proxy, server: redis.Redis) -> None:
    proxy.on("enqueue", "swallow", times=2)
    job = asyncio.run(_enqueue_async(through))
    assert proxy.met == {"swallow": 2}
    assert waiting(server) == [job.id]


def test_a_late_reply_is_waited_for(through: jobq.Client, proxy: Proxy, server: redis.Redis) -> None:
    proxy.on("enqueue", "delay", delay_s=0.4)
    with within_deadline():
        job = app.add.enqueue(1)
    assert waiting(server) == [job.id]


def test_a_reply_too_late_leaves_one_job_in_doubt(
    through: jobq.Client, proxy: Proxy, server: redis.Redis
) -> None:
    proxy.on("enqueue", "delay", delay_s=1.5)
    with within_deadline(), pytest.raises(StoreUnavailableError) as caught:
        app.add.enqueue(1)
    assert caught.value.ambiguous
    assert waiting(server) == [caught.value.job_id]


# --------------------------------------------------------------------------- a frozen or absent server


@contextmanager
def frozen(server: PrivateServer) -> Iterator[None]:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def own(server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateServer]:
    """A server of the test's own, behind the default client."""
    monkeypatch.setattr("jobq.client._default", None)
    with server_factory() as server, jobq.configure(redis_url=server.url):
        yield server


def test_a_frozen_server_costs_no_more_than_the_deadline(own: PrivateServer) -> None:
    first = app.add.enqueue(0)
    with frozen(own), within_deadline(), pytest.raises(StoreUnavailableError) as caught:
        app.add.enqueue(1)
    error = caught.value
    assert error.ambiguous
    assert error.job_id
    assert (error.task, error.queue) == ("i.add", "high")
    # What was sent may still run, as often as it was sent: then whole, and once.
    third = app.add.enqueue(2)
    with redis.Redis.from_url(own.url) as connection:
        found = waiting(connection)
        assert found in (
            [first.id, third.id],
            [first.id, error.job_id, third.id],
            [first.id, third.id, error.job_id],
        )


def test_a_server_frozen_before_the_first_connection(own: PrivateServer) -> None:
    with frozen(own), within_deadline(), pytest.raises(StoreUnavailableError) as caught:
        app.add.enqueue(1)
    assert caught.value.job_id
    assert not caught.value.ambiguous  # it never came to sending the job
    job = app.add.enqueue(2)
    with redis.Redis.from_url(own.url) as connection:
        assert waiting(connection) == [job.id]


def test_a_refused_connection_is_not_ambiguous(own: PrivateServer) -> None:
    own.kill()
    with within_deadline(), pytest.raises(StoreUnavailableError) as caught:
        app.add.enqueue(1)
    assert not caught.value.ambiguous
    assert caught.value.job_id


def test_the_same_for_async(own: PrivateServer) -> None:
    async def main() -> None:
        client = AsyncClient(jobq.Settings(redis_url=own.url))
        try:
            await app.add.options(client=client).enqueue_async(0)
            with frozen(own), within_deadline(), pytest.raises(StoreUnavailableError) as caught:
                await app.add.options(client=client).enqueue_async(1)
            assert caught.value.ambiguous
            assert caught.value.job_id
            own.kill()
            with within_deadline(), pytest.raises(StoreUnavailableError) as caught:
                await app.add.options(client=client).enqueue_async(1)
            assert not caught.value.ambiguous
        finally:
            await client.close()

    asyncio.run(main())


def test_a_server_that_dies_between_two_enqueues(own: PrivateServer) -> None:
    app.add.enqueue(0)
    own.kill()
    with within_deadline(), pytest.raises(StoreUnavailableError) as caught:
        app.add.enqueue(1)
    assert caught.value.job_id
    own.start()
    job = app.add.enqueue(2)
    with redis.Redis.from_url(own.url) as connection:
        assert waiting(connection) == [job.id]


# --------------------------------------------------------------------------- claim and settle


@pytest.mark.parametrize("fate", ["swallow", "reset"])
def test_a_lost_claim_yields_the_same_jobs(
    through: jobq.Client, proxy: Proxy, server: redis.Redis, fate: str
) -> None:
    jobs = [app.add.enqueue(n) for n in range(5)]
    link = Link(connect(through.settings, "command"))
    step = calls.claim(
        Keys(), "high", exec_id="x", number=1, n=3, lease_ms=5000, worker_name="x", started_at_iso=iso()
    )
    proxy.on("claim", fate)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailableError):
        link.exchange([step])
    (claim,) = link.exchange([step])
    assert [job.id for job in claim.jobs] == [job.id for job in jobs[:3]]
    assert server.llen("rq:queue:high") == 2
    assert server.zcard("jobq:leases") == server.zcard("rq:wip:high") == 3

    outcomes = [
        Outcome(job_id=job.id, token=job.token, kind="succeeded", spends=True, counters=("s:i.add",))
        for job in claim.jobs
    ]
    settle = calls.settle(Keys(), "high", outcomes, iso())
    proxy.on("settle", fate)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailableError):
        link.exchange([settle])
    (words,) = link.exchange([settle])
    assert words == ["already" if fate == "swallow" else "ok"] * 3
    link.close()
    assert server.zcard("rq:finished:high") == 3
    assert counted(server, "s:i.add") == 3
    assert all(server.hget(f"rq:job:{job.id}", "attempts") == b"1" for job in claim.jobs)


def counted(server: redis.Redis, name: str) -> int:
    return sum(int(server.hget(key, name) or 0) for key in server.keys("jobq:n:high:*"))


@pytest.mark.process
def test_a_worker_on_a_bad_line_runs_and_counts_each_job_once(
    through: jobq.Client, proxy: Proxy, server: redis.Redis, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    for script in ("claim", "settle"):
        for skip in (0, 2):
            proxy.on(script, "swallow", skip=skip)
        proxy.on(script, "reset", skip=4)
    proxy.on("heartbeat", "swallow")
    jobs = [app.nap.enqueue(str(n), 0.01) for n in range(60)]
    with jobq_worker(
        proxy.url, tmp_path / "worker.log", app=APP, LEDGER=str(ledger), JOBQ_LEASE="3s"
    ) as worker:
        for job in jobs:
            assert job.wait(timeout=20).state == "succeeded"
        until(lambda: server.zcard("jobq:leases") == 0)
        assert worker.process.poll() is None
    assert proxy.met["swallow"] >= 3  # of five; a claim and a settle may go, and be lost, in one exchange
    assert proxy.met["reset"] >= 2
    assert sorted(ledger.read_text().split("\n")[:-1]) == sorted(
        f"{word} {n}" for n in range(60) for word in ("start", "done")
    )
    assert counted(server, "s:i.nap") == 60
    assert {server.hget(f"rq:job:{job.id}", "attempts") for job in jobs} == {b"1"}
    assert {server.hget(f"rq:job:{job.id}", "lost") for job in jobs} == {None}
