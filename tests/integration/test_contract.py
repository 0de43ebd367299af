"""The contract's examples, as they are written there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import timedelta

import pytest

import jobq

SCRIPT = """
import asyncio
import jobq

job = jobq.send_otp(email="ada@example.com", code="123456")
assert (job.queue, job.state, job.task) == ("critical", "queued", "jobq.send_otp"), job
paid = jobq.process_payment(payment_id="pay_42", amount="12.50", currency="EUR")
assert paid.queue == "high" and not paid.deduplicated
again = jobq.process_payment(payment_id="pay_42", amount="12.50", currency="EUR")
assert again.deduplicated and again.id == paid.id
export = jobq.export_transactions(account_id="acc_1", start="2026-01-01", end="2026-01-31", format="csv")
assert export.queue == "low"

@jobq.process_payment.handler
def charge(payment: jobq.helpers.Payment) -> dict: return {}

@jobq.task("orders.confirm", priority="high", max_attempts=5,
           backoff=jobq.Backoff(base=2, factor=2, cap=300, jitter=0.25), timeout=30, dedup="{order_id}",
           rate=jobq.Rate(50, per=60), concurrency=jobq.Concurrency(1, key="{order_id}"))
def confirm_order(order_id: str) -> dict: return {"order": order_id}

job = confirm_order.enqueue(order_id="ORD-1")
assert (job.task, job.queue, job.state) == ("orders.confirm", "high", "queued")
assert job.id and job.attempt == 0 and job.deduplicated is False
later = confirm_order.options(delay=5, priority="critical", dedup_key="x").enqueue(order_id="ORD-1")
assert (later.queue, later.state) == ("critical", "scheduled")
jobs = confirm_order.enqueue_many([{"order_id": "1"}, {"order_id": "2"}])
assert len({j.id for j in jobs}) == 2
assert confirm_order(order_id="ORD-1") == {"order": "ORD-1"} == confirm_order.run(order_id="ORD-1")
assert job.refresh().state == "queued"
assert job.cancel() == "cancelled" and job.refresh().state == "cancelled"

async def main():
    otp = await jobq.send_otp.enqueue_async(email="ada@example.com", code="123456")
    other = await confirm_order.enqueue_async(order_id="ORD-9")
    assert (await other.refresh_async()).state == "queued"
    assert await other.cancel_async() == "cancelled"
asyncio.run(main())

client = jobq.Client(jobq.Settings())
assert client.get(job.id).id == job.id
assert client.stats().queues["critical"].queued == 2
client.health(); client.queues.list(); client.dead_letters.list(); client.workers.list()
for raised in (jobq.Retry(after=30), jobq.Snooze(for_=60), jobq.Cancel("…"), jobq.Discard("…")):
    assert isinstance(raised, Exception)
assert jobq.Priority.CRITICAL == "critical"
jobq.QueueSpec("email", 5, target=5, max_attempts=3, timeout=30, retention=3600)
assert issubclass(jobq.PayloadTooLargeError, jobq.EnqueueError) and issubclass(jobq.ConfigError, jobq.JobqError)
import jobq.codec; jobq.codec.Serializer.dumps
print("kept")
"""


@pytest.mark.covers("P-12", "P-13", "P-14")
def test_the_examples_of_the_contract(redis_url: str) -> None:
    environment = {**os.environ, "JOBQ_REDIS_URL": redis_url}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=50
    )
    assert (ran.returncode, ran.stdout) == (0, "kept\n"), ran.stderr


def test_the_stats_document_has_every_field_of_the_contract(client: jobq.Client) -> None:
    document = client.stats().to_dict()
    assert set(document) >= {"generated_at", "queues", "totals", "redis"}
    assert set(document["queues"]["critical"]) >= {
        "queued", "scheduled", "retrying", "deferred", "running", "succeeded", "dead", "cancelled", "paused", "workers",
        "slots", "busy", "oldest_queued_s", "wait_p50_s", "wait_p95_s", "wait_p99_s", "target_s", "sla_met",
        "throughput_per_s", "failed_attempts",
    }  # fmt: skip
    assert set(document["redis"]) >= {"used_memory", "maxmemory", "durability"}


@pytest.mark.parametrize("wrong", [{"base": -1}, {"factor": 0}, {"jitter": 2}])
def test_a_wrong_backoff_is_refused_at_once(wrong: dict[str, float]) -> None:
    with pytest.raises(jobq.ConfigError):
        jobq.Backoff(**wrong)


def test_a_queue_spec_takes_seconds_and_one_retention() -> None:
    spec = jobq.QueueSpec("email", 5, target=5, timeout=30, retention=3600)
    assert (spec.target, spec.timeout) == (timedelta(seconds=5), timedelta(seconds=30))
    assert spec.keep_succeeded.age == spec.keep_dead.age == timedelta(hours=1)


def test_an_async_client_needs_no_running_loop_to_be_made(settings: jobq.Settings) -> None:
    client = jobq.AsyncClient(settings)

    async def ask() -> int:
        async with client:
            return len(await client.queues.list())

    assert asyncio.run(ask()) == 5
