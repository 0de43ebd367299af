"""The demo application's own tasks; ``JOBQ_APP`` of its worker."""

from __future__ import annotations

import os
from pathlib import Path

import jobq


@jobq.task("demo.import_rates", priority="medium", max_attempts=2, backoff=jobq.Fixed(0.2), timeout=10)
def import_rates() -> str:
    """Fails until somebody repairs it: until the file with the rates is there."""
    return Path(os.environ["DEMO_RATES"]).read_text(encoding="utf-8")


@jobq.task("demo.clean_up", priority="batch", timeout=10)
def clean_up(page: int) -> int:
    """A page of the nightly cleanup: a little work for the processor."""
    return sum(number * number for number in range(page % 50 * 100))
