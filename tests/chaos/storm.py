"""``python -m tests.chaos.storm URL THREADS EACH KEY``: many producers of one dedup key; prints what was accepted."""

from __future__ import annotations

import sys
import threading

import jobq
from tests.chaos import app


def main() -> None:
    """Enqueue in all threads at once, through one client."""
    url, threads, each, key = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    accepted: list[str] = []
    with jobq.Client(jobq.Settings(redis_url=url)) as client:
        task = app.single.options(client=client)

        def produce() -> None:
            for _ in range(each):
                job = task.enqueue(key=key)
                if not job.deduplicated:
                    accepted.append(job.id)

        workers = [threading.Thread(target=produce) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    sys.stdout.write("\n".join(accepted) + "\n")


if __name__ == "__main__":
    main()
