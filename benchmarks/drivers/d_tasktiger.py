"""TaskTiger.  BENCH_MODE: fork (default executor) | sync (SyncExecutor)."""

import logging
import os

import redis
import structlog
from _common import URL, Base, barrier, clones, do_flaky, do_nap, do_noop, main
from tasktiger import TaskTiger, fixed
from tasktiger.executor import ForkExecutor, SyncExecutor

structlog.configure(
    processors=[structlog.stdlib.filter_by_level, structlog.processors.JSONRenderer()],
    wrapper_class=structlog.stdlib.BoundLogger,
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
logging.getLogger("tasktiger").setLevel(logging.CRITICAL)


def noop(p):
    do_noop(p)


def nap(p):
    do_nap(p)


def flaky(p):
    do_flaky(p)


class D(Base):
    def open(self):
        self.t = TaskTiger(connection=redis.Redis.from_url(URL, decode_responses=True))

    def one(self, kind, p):
        import d_tasktiger as m

        kw = {"retry": True, "retry_method": fixed(0, 3)} if kind == "flaky" else {}
        self.t.delay(getattr(m, kind), args=(p,), **kw)

    def work(self, procs, conc):
        clones(procs)
        barrier(procs)
        self.open()
        self.t.run_worker(
            queues="default",
            executor_class={"fork": ForkExecutor, "sync": SyncExecutor}[os.environ.get("BENCH_MODE", "fork")],
        )


if __name__ == "__main__":
    main(D())
