"""taskiq, its own CLI.  BENCH_MODE: stream (acks, RedisStreamBroker) | list (no acks, ListQueueBroker)."""

import os
import sys

from _common import URL, Base, ado_nap, do_flaky, do_noop, main
from taskiq import SimpleRetryMiddleware
from taskiq_redis import ListQueueBroker, RedisStreamBroker

MODE = os.environ.get("BENCH_MODE", "stream")
broker = (RedisStreamBroker if MODE == "stream" else ListQueueBroker)(URL)
broker = broker.with_middlewares(SimpleRetryMiddleware(default_retry_count=3))


@broker.task(task_name="noop")
async def noop(p: dict) -> None:
    do_noop(p)


@broker.task(task_name="nap")
async def nap(p: dict) -> None:
    await ado_nap(p)


@broker.task(task_name="flaky", retry_on_error=True)
async def flaky(p: dict) -> None:
    do_flaky(p)


FN = {"noop": noop, "nap": nap, "flaky": flaky}


class D(Base):
    async def open(self):
        await broker.startup()

    async def close(self):
        await broker.shutdown()

    async def one(self, kind, p):
        await FN[kind].kiq(p)

    def work(self, procs, conc):
        here = os.path.dirname(os.path.abspath(__file__))
        os.execv(
            sys.executable,
            [
                sys.executable,
                "-m",
                "taskiq",
                "worker",
                "d_taskiq:broker",
                "--app-dir",
                here,
                "--workers",
                str(procs),
                "--max-async-tasks",
                str(conc),
                "--log-level",
                "CRITICAL",
            ],
        )


if __name__ == "__main__":
    main(D())
