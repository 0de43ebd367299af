"""Dramatiq, RedisBroker, its own CLI."""

import logging
import os
import sys

import dramatiq
from _common import URL, Base, do_flaky, do_nap, do_noop, main
from dramatiq.brokers.redis import RedisBroker

logging.getLogger("dramatiq").setLevel(logging.CRITICAL)
broker = RedisBroker(url=URL)
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(p):
    do_noop(p)


@dramatiq.actor
def nap(p):
    do_nap(p)


@dramatiq.actor(max_retries=3, min_backoff=1, max_backoff=1)
def flaky(p):
    do_flaky(p)


FN = {"noop": noop, "nap": nap, "flaky": flaky}


class D(Base):
    def one(self, kind, p):
        FN[kind].send(p)

    def work(self, procs, conc):
        here = os.path.dirname(os.path.abspath(__file__))
        os.execv(
            sys.executable,
            [
                sys.executable,
                "-m",
                "dramatiq",
                "d_dramatiq",
                "--path",
                here,
                "-p",
                str(procs),
                "-t",
                str(conc),
                "--skip-logging",
            ],
        )


if __name__ == "__main__":
    main(D())
