"""What ``/livez`` says: only what a new process would cure."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from jobq.worker.supervisor import Supervisor


@pytest.mark.parametrize(
    ("main_s", "keeper_s", "expected"),
    [
        (0, 0, []),
        (29, 59, []),
        (31, 0, ["the supervisor has stood still for 31 s"]),
        (0, 61, ["a thread for Redis has stood still for 61 s"]),
        (0, -math.inf, []),  # none has begun yet
    ],
)
def test_a_thread_that_stands_still_is_told(main_s: float, keeper_s: float, expected: list[str]) -> None:
    worker: Any = object.__new__(Supervisor)
    now = time.monotonic()
    worker._turned_at = now - main_s
    worker._keepers = SimpleNamespace(last_turn=now - keeper_s)
    assert worker.stalled() == expected
