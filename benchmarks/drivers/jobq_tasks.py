"""The benchmark's jobs as jobq's tasks: the application that the worker loads."""

from __future__ import annotations

import csv
import io
import logging
import time
from decimal import Decimal

from _common import ado_nap, do_flaky, do_nap, do_noop, mark

import jobq

logging.disable(logging.ERROR)  # as for every contender: nothing below CRITICAL


@jobq.task("noop", priority="high")
def noop(email: str, code: str) -> None:
    do_noop({"code": code})


@jobq.task("nap", priority="high")
def nap(email: str, code: str) -> None:
    do_nap({"code": code})


@jobq.task("anap", priority="high")
async def anap(email: str, code: str) -> None:
    await ado_nap({"code": code})


@jobq.task("flaky", priority="high", max_attempts=4, backoff=jobq.Fixed(0))
def flaky(email: str, code: str) -> None:
    do_flaky({"code": code})


@jobq.task("otp", priority="critical")
def otp(email: str, code: str) -> None:
    mark(int(code))


@jobq.task("export", priority="low", timeout=170)
def export(seconds: float) -> None:
    """Formats rows as a CSV export does, without a pause."""
    end = time.monotonic() + seconds
    amount = Decimal("0.01")
    while time.monotonic() < end:
        out = io.StringIO()
        writer = csv.writer(out)
        for number in range(1_000):
            amount += Decimal("1.37")
            writer.writerow([number, f"customer-{number}", amount, "EUR", "settled"])


@jobq.task("chunk", priority="batch")
def chunk(number: int) -> None:
    """About a millisecond of Python."""
    sum(i & 7 for i in range(20_000))
