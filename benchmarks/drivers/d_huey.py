"""Huey, RedisHuey, thread workers."""

import logging

from _common import URL, Base, barrier, clones, do_flaky, do_nap, do_noop, main
from huey import RedisHuey

huey = RedisHuey("bench", url=URL)
logging.getLogger("huey").setLevel(logging.CRITICAL)


@huey.task(name="noop")
def noop(p):
    do_noop(p)


@huey.task(name="nap")
def nap(p):
    do_nap(p)


@huey.task(name="flaky", retries=3, retry_delay=0)
def flaky(p):
    do_flaky(p)


FN = {"noop": noop, "nap": nap, "flaky": flaky}


class D(Base):
    def one(self, kind, p):
        FN[kind](p)

    def work(self, procs, conc):
        clones(procs)
        barrier(procs)
        huey.create_consumer(workers=conc, worker_type="thread").run()


if __name__ == "__main__":
    main(D())
