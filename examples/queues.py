"""A shop with queues of its own: mail that a provider limits, and invoices that must not crash anything else.

Run it against a Redis of your own::

    export JOBQ_REDIS_URL=redis://localhost:6379/0 JOBQ_APP=examples.queues
    python -m examples.queues          # enqueues
    jobq queues show email             # its slots and its rate are those below
    JOBQ_QUEUES__EMAIL__SLOTS=10 jobq worker --queue email --queue pdf-invoices
"""

from __future__ import annotations

import jobq

jobq.queue(jobq.QueueSpec("email", slots=5, target=30, rate=jobq.Rate(50, per=60), max_attempts=5))
jobq.queue(jobq.QueueSpec("pdf-invoices", slots=2, isolation="process", timeout=120))


@jobq.task("shop.mail", queue="email")
def mail(to: str) -> None:
    """At most 50 a minute, over all workers."""


@jobq.task("shop.invoice", queue="pdf-invoices")
def invoice(number: int) -> str:
    """In a process of its own; for two minutes at most."""
    return f"invoice-{number}.pdf"


def main() -> None:
    """Three invoices and their mails."""
    for number in range(3):
        invoice.enqueue(number=number)
        mail.enqueue(to=f"customer-{number}@example.com")
    for name, queue in jobq.Client().stats().queues.items():
        if queue.queued:
            print(f"{name}: {queue.queued} wait")


if __name__ == "__main__":
    main()
