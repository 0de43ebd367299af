"""Promise (b): a stock ``rq worker`` with our serializer runs our jobs, once: no retries, no dedup release."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from rq.job import Job as RqJob

import jobq
from jobq.codec import Serializer
from jobq.registration import register_worker
from tests.interop import app
from tests.support.hand import Hand
from tests.support.processes import jobq_worker, rq_worker

pytestmark = pytest.mark.process

APP = "tests.interop.app"
KEY = "a key for the tests, thirty-two bytes and more"
CODE = "774-SECRET-913"


@pytest.fixture
def stock(redis_url: str, tmp_path: Path, ledger: Callable[[], list[str]]) -> Callable[..., str]:
    """Run a stock worker until the queue is empty."""

    def run(**env: str) -> str:
        return rq_worker(redis_url, tmp_path / "rq.log", app=APP, LEDGER=os.environ["LEDGER"], **env)

    return run


def test_it_runs_each_unsigned_job_once(
    default_client: jobq.Client, redis_client: redis.Redis, stock: Callable[..., str], ledger: Callable[[], list[str]]
) -> None:  # fmt: skip
    added, echoed, quiet = app.add.enqueue(40, b=2), app.echo.enqueue("hello"), app.quiet.enqueue("q")
    said = stock()
    assert ledger() == ["add 40 2", "echo hello", "quiet q"]
    assert [job.refresh().state for job in (added, echoed, quiet)] == ["succeeded"] * 3
    assert added.result(timeout=1) == 42
    assert echoed.result(timeout=1) == {"text": "hello"}
    assert quiet.result(timeout=1) is None
    assert redis_client.llen("rq:queue:high") == 0
    assert redis_client.ttl(f"rq:job:{added.id}") > 0
    assert "hello" not in said
    assert stock()
    assert len(ledger()) == 3


def test_signed_and_encrypted_jobs(
    redis_url: str, redis_client: redis.Redis, stock: Callable[..., str], ledger: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("jobq.client._default", None)
    client = jobq.configure(redis_url=redis_url, secret_key=KEY)
    signed, sealed, forged = app.add.enqueue(1), app.sealed.enqueue("a@b.c", CODE), app.add.enqueue(2)
    # A payload belongs to its job: that of one job in the hash of another is refused.
    data = redis_client.hget(f"rq:job:{signed.id}", "data")
    assert data is not None
    redis_client.hset(f"rq:job:{forged.id}", "data", data)
    said = stock(JOBQ_SECRET_KEY=KEY)
    assert ledger() == ["add 1 1", "sealed a@b.c"]
    assert signed.result(timeout=1) == 2
    assert sealed.result(timeout=1) == len(CODE)
    assert forged.refresh().state == "dead"
    assert "SignatureError" in said
    assert CODE not in said
    client.close()


def test_without_the_key_nothing_signed_runs(
    redis_url: str,
    stock: Callable[..., str],
    ledger: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobq.client._default", None)
    with jobq.configure(redis_url=redis_url, secret_key=KEY):
        job = app.sealed.enqueue("a@b.c", CODE)
        assert "NoKeyError" in stock()
        assert ledger() == []
        assert job.refresh().state == "dead"


def test_a_cancelled_job_is_refused(
    default_client: jobq.Client, redis_client: redis.Redis, stock: Callable[..., str],
    ledger: Callable[[], list[str]],
) -> None:  # fmt: skip
    job = app.add.enqueue(1)
    default_client.cancel(job.id)
    # In a list of more than 10,000 a cancel leaves the id behind, and a stock worker runs whatever it pops.
    redis_client.rpush("rq:queue:high", job.id)
    assert "ConflictError" in stock()
    assert ledger() == []
    assert job.refresh().state != "succeeded"


def test_the_dedup_key_is_free_again_though_a_stock_worker_frees_none(
    default_client: jobq.Client, stock: Callable[..., str], ledger: Callable[[], list[str]]
) -> None:
    first = app.keyed.enqueue("k")
    assert app.keyed.enqueue("k").id == first.id
    stock()
    assert first.refresh().state == "succeeded"
    second = app.keyed.enqueue("k")
    assert second.id != first.id
    assert not second.deduplicated
    assert app.keyed.enqueue("k").id == second.id
    assert Hand(default_client).claim("high")[0].id == second.id


def test_a_failure_is_final_and_replays_with_us(
    default_client: jobq.Client, redis_url: str, redis_client: redis.Redis, stock: Callable[..., str],
    ledger: Callable[[], list[str]], tmp_path: Path,
) -> None:  # fmt: skip
    job = app.fail.enqueue("x")
    stock()
    assert ledger() == ["fail x"]
    dead = default_client.dead_letters.get(job.id)
    assert dead.job.state == "dead"
    assert "cannot do x" in str(dead.traceback)
    fetched = RqJob.fetch(job.id, connection=redis_client, serializer=Serializer)
    assert "cannot do x" in str(fetched.latest_result().exc_string)
    default_client.retry(job.id)
    with jobq_worker(redis_url, tmp_path / "jobq.log", app=APP, LEDGER=os.environ["LEDGER"]):
        assert job.wait(timeout=20).attempt == 3
    assert ledger() == ["fail x"] * 4


def test_its_scheduler_leaves_our_due_jobs_alone(
    default_client: jobq.Client, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    default_client.run(
        register_worker(
            default_client.keys, name="w", queues=("high",), slots=1, busy=0, tasks=(), host="h", pid=1,
            state="idle", birth_ms=1, now_ms=1,
        )
    )  # fmt: skip
    job = app.add.options(delay=0.001).enqueue(1)
    rq_worker(redis_url, tmp_path / "rq.log", "--with-scheduler", "high", app=APP)
    assert job.refresh().state == "scheduled"
    assert redis_client.get("rq:scheduler-lock:high") == b"jobq"
