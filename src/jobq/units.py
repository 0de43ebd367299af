"""Lengths of time in seconds, and moments in ms since 1970, as Redis and waiting take them; and numbers in words."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any, TypeGuard

LONGEST = timedelta(days=3_650)
"""No run and no delay is longer; what a hash says beyond that counts as so long."""

_LAST_MS = 253_370_764_800_000  # the year 9999


def in_seconds(length: float | timedelta) -> float:
    """Seconds of what a caller may give as seconds or as a timedelta."""
    return length.total_seconds() if isinstance(length, timedelta) else float(length)


def is_text(value: Any) -> TypeGuard[str]:
    """Whether this is text without halves of characters (lone surrogates), which nothing can store or print."""
    return isinstance(value, str) and (
        value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)
    )


def plural(count: int, noun: str = "job", verb: str = "") -> str:
    """``1 job``, ``1,234 jobs``; with a verb ``1 job waits``, ``2 jobs wait``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}{verb and ' ' + agreeing(count, verb)}"


def agreeing(count: int, verb: str) -> str:
    """The verb, given as of many, as of so many: ``waits`` of one, ``wait`` of two."""
    if count != 1:
        return verb
    return {"are": "is", "were": "was", "have": "has"}.get(verb) or f"{verb}s"


def clock_ms() -> int:
    """The machine's clock. Redis' own counts wherever jobs are compared: see :func:`redis_ms`."""
    return time.time_ns() // 1_000_000


def moment(ms: float) -> datetime:
    """A moment in ms as UTC; what somebody wrote that no calendar has is the nearest one that it has."""
    return datetime.fromtimestamp(max(0.0, min(ms, _LAST_MS)) / 1000, tz=UTC)


def redis_ms(reply: Any) -> int:
    """Redis' clock from a ``TIME`` reply; the machine's where Redis refused to tell."""
    if isinstance(reply, Exception):
        return clock_ms()
    return int(reply[0]) * 1000 + int(reply[1]) // 1000
