"""saq on Redis."""

import asyncio
import logging

from _common import URL, Base, ado_nap, barrier, clones, do_flaky, do_noop, main
from saq import Queue, Worker

logging.getLogger("saq").setLevel(logging.CRITICAL)


async def noop(ctx, *, p):
    do_noop(p)


async def nap(ctx, *, p):
    await ado_nap(p)


async def flaky(ctx, *, p):
    do_flaky(p)


class D(Base):
    async def open(self):
        self.q = Queue.from_url(URL)

    async def close(self):
        await self.q.disconnect()

    async def one(self, kind, p):
        if kind == "flaky":
            await self.q.enqueue(kind, p=p, retries=3)
        else:
            await self.q.enqueue(kind, p=p)

    def work(self, procs, conc):
        clones(procs)
        barrier(procs)

        async def go():
            await Worker(Queue.from_url(URL), [noop, nap, flaky], concurrency=conc).start()

        asyncio.run(go())


if __name__ == "__main__":
    main(D())
