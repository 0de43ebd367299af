"""arq.  BENCH_POLL overrides poll_delay (default 0.5 s)."""

import os

from _common import URL, Base, Flaky, ado_nap, barrier, clones, do_flaky, do_noop, main
from arq.connections import RedisSettings, create_pool
from arq.worker import Retry, Worker

SETTINGS = RedisSettings.from_dsn(URL)


async def noop(ctx, p):
    do_noop(p)


async def nap(ctx, p):
    await ado_nap(p)


async def flaky(ctx, p):
    try:
        do_flaky(p)
    except Flaky:
        raise Retry(defer=0)


class D(Base):
    async def open(self):
        self.r = await create_pool(SETTINGS)

    async def close(self):
        await self.r.aclose()

    async def one(self, kind, p):
        await self.r.enqueue_job(kind, p)

    def work(self, procs, conc):
        clones(procs)
        barrier(procs)
        kw = {"poll_delay": float(os.environ["BENCH_POLL"])} if os.environ.get("BENCH_POLL") else {}
        import asyncio

        asyncio.set_event_loop(asyncio.new_event_loop())
        Worker(functions=[noop, nap, flaky], redis_settings=SETTINGS, max_jobs=conc, **kw).run()


if __name__ == "__main__":
    main(D())
