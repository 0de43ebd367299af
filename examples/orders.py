"""A shop's background work: confirm an order once, remind the buyer later, never mail the same code twice.

Run it against a Redis of your own::

    export JOBQ_REDIS_URL=redis://localhost:6379/0 JOBQ_APP=examples.orders
    python -m examples.orders          # enqueues
    jobq worker --burst                # runs what was enqueued, then ends
    jobq stats
"""

from __future__ import annotations

import jobq


@jobq.task(
    "orders.confirm",
    priority="high",
    max_attempts=5,
    backoff=jobq.Backoff(base=2, factor=2, cap=300, jitter=0.25),
    timeout=30,
    dedup="{order_id}",
)
def confirm_order(order_id: str) -> dict[str, str]:
    """Confirm an order. While a confirmation is under way, an equal enqueue returns that job."""
    job = jobq.current_job()
    job.progress(0.5, "stock reserved")
    return {"order": order_id, "status": "confirmed"}


@jobq.task("orders.remind", priority="low", max_attempts=2)
def remind(order_id: str, days: int = 3) -> None:
    """Remind of an unpaid order; a small order is not worth it."""
    if days < 1:
        raise jobq.Discard(f"{order_id} is due already")


@jobq.task("orders.sync", priority="batch")
async def sync_orders(page: int) -> int:
    """Async tasks run in an event loop; this one says how many orders it saw."""
    return page * 100


def checkout(order_id: str) -> jobq.Job:
    """What the web application calls: answers in a millisecond, the work happens later."""
    job = confirm_order.enqueue(order_id=order_id)
    remind.options(delay=3 * 86_400).enqueue(order_id=order_id)
    return job


def main() -> None:
    """Enqueue a morning's orders."""
    for number in range(3):
        job = checkout(f"ORD-{number}")
        again = confirm_order.enqueue(order_id=f"ORD-{number}")
        print(
            f"{job.id} for ORD-{number}; ordered twice: {again.deduplicated}, the same job: {again.id == job.id}"
        )
    sync_orders.enqueue_many([{"page": page} for page in (1, 2)])


if __name__ == "__main__":
    main()
