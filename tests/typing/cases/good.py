"""Everything here type-checks under mypy --strict."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, assert_type

from jobq import helpers
from jobq.helpers import export_transactions, process_payment, send_otp
from jobq.job import Job
from jobq.limits import Concurrency, Rate
from jobq.recurrence import Misfire
from jobq.retry import Backoff
from jobq.schedule_spec import schedule
from jobq.tasks import Secret, task


@task(
    "orders.confirm",
    priority="high",
    max_attempts=5,
    backoff=Backoff(base=2, factor=2, cap=300, jitter=0.25),
    timeout=30,
    dedup="{order_id}",
    rate=Rate(50, per=60),
    concurrency=Concurrency(1, key="{order_id}"),
)
def confirm(order_id: str, copies: int = 1) -> dict[str, int]:
    return {order_id: copies}


@task("mail.send")
async def mail(address: str, code: Annotated[str, Secret]) -> bool:
    return bool(address and code)


@task
def bare(x: int) -> int:
    return x


assert_type(confirm("1"), dict[str, int])
assert_type(confirm.run("1", copies=2), dict[str, int])
assert_type(confirm.enqueue(order_id="1"), Job)
assert_type(confirm.options(delay=5, priority="critical", dedup_key="x").enqueue("1", 2), Job)
assert_type(confirm.options(at=datetime.now(UTC), timeout=timedelta(seconds=1)).enqueue(order_id="1"), Job)
assert_type(confirm.enqueue_many([{"order_id": "1"}, {"order_id": "2"}]), list[Job])
assert_type(bare(1), int)


async def calls() -> None:
    assert_type(await mail(address="a", code="1"), bool)
    assert_type(await mail.run(address="a", code="1"), bool)
    assert_type(await mail.enqueue_async(address="a", code="1"), Job)
    assert_type(await mail.options(tags=["x"]).enqueue_async("a", "1"), Job)
    assert_type(await mail.enqueue_many_async([{"address": "a", "code": "1"}]), list[Job])
    assert_type(await send_otp.enqueue_async(email="a@example.com", code="1"), Job)


assert_type(send_otp(email="ada@example.com", code="123456"), Job)
assert_type(process_payment(payment_id="p", amount="12.50", currency="EUR"), Job)
assert_type(process_payment(payment_id="p", amount=Decimal("12.50"), currency="EUR"), Job)
assert_type(export_transactions(account_id="a", start="2026-01-01", end="2026-01-31", format="csv"), Job)


@process_payment.handler
def charge(payment: helpers.Payment) -> dict[str, Any]:
    return {"id": payment.payment_id}


@send_otp.handler
async def text(otp: helpers.Otp) -> None: ...


assert_type(charge(helpers.Payment("p", Decimal(1), "EUR", "k")), dict[str, Any])
process_payment.handler(helpers.HttpGateway("https://example.com", token="t", timeout=5))


@schedule(name="clean.eu", every="1h", params={"days": 7})
@schedule(cron="0 2 * * *", tz="Europe/Berlin", params={"days": 30}, overlap="skip", misfire=Misfire("all"))
@task("logs.clean")
def clean(days: int) -> int:
    return days


assert_type(clean(30), int)
assert_type(clean.enqueue(days=30), Job)
