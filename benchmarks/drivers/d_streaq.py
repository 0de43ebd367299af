"""streaQ."""

import logging

from _common import URL, Base, Flaky, ado_nap, barrier, clones, do_flaky, do_noop, main
from streaq import StreaqRetry, Worker

logging.getLogger("streaq").setLevel(logging.CRITICAL)
worker = Worker(redis_url=URL, concurrency=10)


@worker.task(name="noop")
async def noop(p: dict) -> None:
    do_noop(p)


@worker.task(name="nap")
async def nap(p: dict) -> None:
    await ado_nap(p)


@worker.task(name="flaky")
async def flaky(p: dict) -> None:
    try:
        do_flaky(p)
    except Flaky:
        raise StreaqRetry("again", delay=0)


FN = {"noop": noop, "nap": nap, "flaky": flaky}


class D(Base):
    async def open(self):
        await worker.__aenter__()

    async def close(self):
        await worker.__aexit__(None, None, None)

    async def one(self, kind, p):
        await FN[kind].enqueue(p)

    async def bulk(self, kind, ps):
        await worker.enqueue_many([FN[kind].enqueue(p) for p in ps])

    def work(self, procs, conc):
        worker.concurrency = conc
        worker.prefetch = 2 * conc  # what the constructor computes
        clones(procs)
        barrier(procs)
        worker.run_sync()


if __name__ == "__main__":
    main(D())
