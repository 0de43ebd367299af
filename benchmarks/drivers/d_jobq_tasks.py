"""The jobs of the jobq driver; imported by its workers, too."""

from _common import do_flaky, do_nap, do_noop

import jobq


@jobq.task("bench.noop", priority="high")
def noop(p: dict[str, str]) -> None:
    do_noop(p)


@jobq.task("bench.nap", priority="high")
def nap(p: dict[str, str]) -> None:
    do_nap(p)


@jobq.task("bench.flaky", priority="high", max_attempts=4, backoff=jobq.Fixed(0))
def flaky(p: dict[str, str]) -> None:
    do_flaky(p)


@jobq.task("bench.otp", priority="critical")
def otp(p: dict[str, str]) -> None:
    do_noop(p)


@jobq.task("bench.export", priority="low", timeout=600)
def export(seconds: float) -> None:
    """Burns a core, as an export does."""
    import time

    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        sum(range(1000))


@jobq.task("bench.batch", priority="batch")
def batch(n: int) -> None:
    sum(range(20_000))
