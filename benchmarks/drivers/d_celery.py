"""Celery.  BENCH_MODE: threads | prefork.  BENCH_RESULTS=1 adds the Redis result backend."""

import os

from _common import URL, Base, Flaky, barrier, clones, do_flaky, do_nap, do_noop, main
from celery import Celery

MODE = os.environ.get("BENCH_MODE", "threads")
app = Celery("bench", broker=URL, backend=URL if os.environ.get("BENCH_RESULTS") else None)
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = False


@app.task(name="noop")
def noop(p):
    do_noop(p)


@app.task(name="nap")
def nap(p):
    do_nap(p)


@app.task(name="flaky", bind=True, max_retries=3)
def flaky(self, p):
    try:
        do_flaky(p)
    except Flaky as e:
        raise self.retry(exc=e, countdown=0)


FN = {"noop": noop, "nap": nap, "flaky": flaky}


class D(Base):
    def one(self, kind, p):
        FN[kind].delay(p)

    def work(self, procs, conc):
        if MODE == "threads":
            clones(procs)
            barrier(procs)
        else:
            conc = procs * conc
        app.worker_main(
            [
                "worker",
                "-P",
                MODE,
                "-c",
                str(conc),
                "-l",
                "CRITICAL",
                "-n",
                "w%s@%%h" % os.environ.get("BENCH_RANK", "0"),
            ]
        )


if __name__ == "__main__":
    main(D())
