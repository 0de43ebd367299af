"""Each line that ends in ``# E: code`` is an error with exactly these codes, and no other line is one."""

from __future__ import annotations

from jobq.helpers import Payment, export_transactions, process_payment, send_otp
from jobq.schedule_spec import schedule
from jobq.tasks import task


@task("orders.confirm")
def confirm(order_id: str, copies: int = 1) -> int:
    return copies


@task("mail.send")
async def mail(address: str) -> bool:
    return bool(address)


confirm(order_id=1)  # E: arg-type
confirm.run(order_id=1)  # E: arg-type
confirm.enqueue(order_id=1)  # E: arg-type
confirm.enqueue()  # E: call-arg
confirm.enqueue("1", copy=2)  # E: call-arg
confirm.enqueue("1", 2, 3)  # E: call-arg
confirm.options(delay=5).enqueue(order_id=1)  # E: arg-type
confirm.options(delay=5).enqueue()  # E: call-arg
confirm.options(dealy=5)  # E: call-arg
confirm.options(delay="5")  # E: arg-type
confirm.options(priority="urgent")  # E: arg-type
confirm.enqueue_many(["1"])  # E: list-item
n: str = confirm("1")  # E: assignment


async def calls() -> None:
    await confirm.enqueue_async(order_id=1)  # E: arg-type
    await mail.options(delay=5).enqueue_async()  # E: call-arg
    mail.enqueue_async("a")  # E: unused-coroutine


@task("x", priority="urgent")  # E: call-overload, untyped-decorator
def x() -> None: ...


@task("y", retries=3)  # E: call-overload, untyped-decorator
def y() -> None: ...


send_otp(email="a@example.com", code=123456)  # E: arg-type
send_otp(email="a@example.com")  # E: call-arg
process_payment(payment_id="p", amount=12.5, currency="EUR")  # E: arg-type
export_transactions(account_id="a", start="2026-01-01", end="2026-01-31", format="xlsx")  # E: arg-type


@process_payment.handler  # E: arg-type
def charge(payment: str) -> None: ...


def right(payment: Payment) -> None: ...


process_payment.handler(right)
right()  # E: call-arg


@schedule(cron="@daily", overlap="maybe")  # E: arg-type
@task("bad.overlap")
def overlapping() -> None: ...


@schedule(cron="@daily", colour="red")  # E: call-arg
@task("bad.option")
def coloured() -> None: ...


@schedule(cron="@daily")  # E: arg-type
def no_task() -> None: ...
