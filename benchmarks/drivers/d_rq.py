"""RQ.  BENCH_MODE: fork (stock Worker), simple (SimpleWorker; more than one are a WorkerPool)."""

import os

import redis
from _common import URL, Base, barrier, clones, do_flaky, do_nap, do_noop, main
from rq import Queue, Retry, SimpleWorker, Worker
from rq.worker_pool import WorkerPool

MODE = os.environ.get("BENCH_MODE", "fork")


def noop(p):
    do_noop(p)


def nap(p):
    do_nap(p)


def flaky(p):
    do_flaky(p)


def ref(kind):
    return "d_rq." + kind


class D(Base):
    def open(self):
        self.q = Queue(connection=redis.Redis.from_url(URL))

    def one(self, kind, p):
        if kind == "flaky":
            self.q.enqueue(ref(kind), p, retry=Retry(max=3))
        else:
            self.q.enqueue(ref(kind), p)

    def bulk(self, kind, ps):
        kw = {"retry": Retry(max=3)} if kind == "flaky" else {}
        self.q.enqueue_many([Queue.prepare_data(ref(kind), (p,), **kw) for p in ps])

    def work(self, procs, conc):
        import d_rq  # noqa: F401  preload before any fork

        c = redis.Redis.from_url(URL)
        if MODE == "simple" and procs > 1:
            WorkerPool(["default"], connection=c, num_workers=procs, worker_class=SimpleWorker).start(
                logging_level="CRITICAL"
            )
        else:
            clones(procs)
            barrier(procs)
            cls = {"fork": Worker, "simple": SimpleWorker}[MODE]
            cls(["default"], connection=c).work(logging_level="CRITICAL")


if __name__ == "__main__":
    main(D())
