"""Limits on a task or a queue: declarations only, the counting happens in Redis."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from jobq.errors import ConfigError
from jobq.retry import duration, is_whole

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_RATE = re.compile(r"\s*(\d{1,9})\s*/\s*(\d{1,9}(?:\.\d{1,6})?)?\s*(ms|s|m|h|d)\s*")


def _check(limit: int, key: str | None, what: str) -> None:
    if not is_whole(limit, 1, 1_000_000_000):
        raise ConfigError(f"the limit of a {what} must be a whole number of at least 1, got {limit!r}")
    if key == "":
        raise ConfigError(f'the key of a {what} must be a template such as "{{account_id}}", got {key!r}')


@dataclass(frozen=True, slots=True, init=False)
class Rate:
    """At most ``limit`` starts per window.

    Args:
        limit: Starts per window, at least 1.
        per: Length of the window; seconds or a timedelta, 1 ms to 365 days. Default 60 s.
        key: Template over the params; each value is counted apart. None: one count for all.

    Raises:
        ConfigError: A value is out of its range.
    """

    limit: int
    per: timedelta
    key: str | None

    def __init__(self, limit: int, per: float | timedelta = 60, key: str | None = None) -> None:
        _check(limit, key, "rate")
        window = duration(per, "the window of a rate")
        if window < timedelta(milliseconds=1):
            raise ConfigError(f"the window of a rate must be at least 1 ms, got {per}")
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "per", window)
        object.__setattr__(self, "key", key)

    @classmethod
    def parse(cls, text: str) -> Rate:
        """A rate written as ``50/s``, ``50/m``, ``50/10s``, ``1000/h`` or ``5/d``.

        Raises:
            ConfigError: It is written in another way, or out of range.
        """
        found = _RATE.fullmatch(text)
        if found is None:
            raise ConfigError(f"a rate is written like 50/s, 50/m or 50/10s, got {text!r}")
        limit, count, unit = found.groups()
        return cls(int(limit), float(count or 1) * _UNITS[unit])

    @property
    def per_ms(self) -> int:
        """Length of the window in ms."""
        return self.per // timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most ``limit`` runs at once, over all workers.

    Attributes:
        limit: Runs at once, at least 1.
        key: Template over the params; each value is counted apart. None: one count for all.

    Raises:
        ConfigError: A value is out of its range.
    """

    limit: int
    key: str | None = None

    def __post_init__(self) -> None:
        _check(self.limit, self.key, "concurrency limit")
