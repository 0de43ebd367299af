"""Cron expressions: what they mean, and the moments at which they fire, across time zones and daylight saving.

Moments are ms since 1970. The policy for clock changes is cron's own: a job at a fixed time of day runs once a
day, and one that repeats by the clock follows the clock. cronsim knows expressions and calendars; it is given
readings of a clock in no zone, and their mapping to moments is made here.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from jobq.errors import ConfigError

ALIASES: Mapping[str, str] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_READING = datetime(2000, 1, 1)  # noqa: DTZ001 - what a clock shows, in no zone: the engine knows none
_MAX_EXPRESSION = 200
_RANGES = {
    "second": (0, 60),
    "minute": (0, 60),
    "hour": (0, 24),
    "day": (1, 28),
    "month": (1, 12),
    "weekday": (0, 7),
}
_ONE_STEP = re.compile(r"\b(\w+)-\1/\d+")  # a range of one: the engine would read 5-5/2 as 5/2, which goes on
_HASHED = re.compile(r"H(?:/(\d{1,4}))?")


def moment(ms: int) -> datetime:
    """The aware UTC time of a slot."""
    return _EPOCH + ms * _MS


def milliseconds(at: datetime) -> int:
    """The slot of an aware time.

    Raises:
        ConfigError: The time has no zone.
    """
    if at.tzinfo is None:
        raise ConfigError(f"{at.isoformat()} has no time zone: write datetime(…, tzinfo=UTC)")
    return (at - _EPOCH) // _MS


def spread(name: str, purpose: str, size: int) -> int:
    """A number from 0 to ``size`` - 1 that is the same on every machine: what is spread out by name."""
    digest = hashlib.sha256(f"{purpose}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8]) % size


@lru_cache(1024)
def zone(name: str) -> tzinfo:
    """The time zone of this name.

    Raises:
        ConfigError: There is none.
    """
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ConfigError(f"no time zone {name!r}: write a name such as 'Europe/Berlin' or 'UTC'") from None


def parse_cron(text: str, name: str) -> str:
    """A cron expression in full: aliases replaced, each ``H`` by a number that the schedule's name decides.

    Args:
        text: Five fields, six with seconds first, or an alias such as ``@daily``. Beyond numbers, ranges, lists
            and steps: ``MON``, ``JAN``, ``L`` (last day of the month), ``LW`` (its last weekday), ``5L`` (last
            Friday), ``1#2`` (second Monday), ``H`` and ``H/15``.
    Raises:
        ConfigError: It is none, or no time matches it.
    """
    if not isinstance(text, str) or len(text) > _MAX_EXPRESSION:
        raise ConfigError(f"a cron expression is text of at most {_MAX_EXPRESSION} characters")
    known = text.strip().lower()
    if known.startswith("@") and known not in ALIASES:
        raise ConfigError(f"no cron alias {known!r}: there are {', '.join(ALIASES)}")
    parts = ALIASES.get(known, text).upper().split()
    if len(parts) not in (5, 6):
        raise ConfigError(
            f"cron expression {text!r} must have five fields, 'minute hour day month weekday', "
            f"or six with seconds first; it has {len(parts)}"
        )
    kinds = list(_RANGES)[-len(parts) :]
    expression = " ".join(_unhashed(part, kind, name) for part, kind in zip(parts, kinds, strict=True))
    try:
        next(CronSim(expression, _READING))
    except CronSimError as error:
        raise ConfigError(f"cron expression {text!r}: {error}") from None
    except StopIteration:
        raise ConfigError(f"cron expression {text!r}: no day matches it") from None
    return expression


def _unhashed(part: str, kind: str, name: str) -> str:
    part = _ONE_STEP.sub(r"\1", part)
    match = _HASHED.fullmatch(part)
    if match is None:
        return part
    first, size = _RANGES[kind]
    step = int(match[1] or 0)
    if not step:
        return str(first + spread(name, kind, size))
    if not 1 <= step <= size:
        raise ConfigError(f"H/{step}: the step must be from 1 to {size}")
    return ",".join(str(first + value) for value in range(spread(name, kind, step), size, step))


def cron_slots(expression: str, where: tzinfo, after_ms: int) -> Iterator[int]:
    """The slots of a cron expression after a moment, in order.

    With a fixed minute and hour, a time that the clock skips becomes the first moment after the gap, and one that it
    shows twice counts once, the first time. Where either field starts with ``*``, every moment at which the clock
    shows a matching time counts: none in a gap, both passes of an hour that comes twice.

    Args:
        expression: What :func:`parse_cron` returned.
    """
    fields = expression.split()
    fixed = not fields[-5].startswith("*") and not fields[-4].startswith("*")
    local = moment(after_ms).astimezone(where)
    # In the first pass of an hour that comes twice, earlier readings of the clock are still to come.
    rewind = max(timedelta(0), _offset(local, 0) - _offset(local, 1)) if not local.fold else timedelta(0)
    again: deque[int] = deque()  # second passes, which come after all first ones
    last = after_ms
    for reading in CronSim(expression, local.replace(tzinfo=None, fold=0) - rewind):
        known = reading.replace(tzinfo=where)
        early, late = _offset(known, 0), _offset(known, 1)
        if early < late:  # the clock never shows this
            if not fixed:
                continue
            slot = _gap_end(reading, where, early, late)
        else:
            slot = milliseconds(reading.replace(tzinfo=UTC) - early)
        while again and again[0] < slot:
            if (second := again.popleft()) > last:
                last = second
                yield second
        if slot > last:
            last = slot
            yield slot
        if early > late and not fixed:
            again.append(milliseconds(reading.replace(tzinfo=UTC) - late))
    yield from (slot for slot in again if slot > last)


def _offset(reading: datetime, fold: Literal[0, 1]) -> timedelta:
    offset = reading.replace(fold=fold).utcoffset()
    assert offset is not None, "every reading has a zone"
    return offset


def _gap_end(reading: datetime, where: tzinfo, early: timedelta, late: timedelta) -> int:
    """The moment at which the clock jumps over ``reading``."""
    before, after = (milliseconds(reading.replace(tzinfo=UTC) - offset) // 1000 for offset in (late, early))
    while after - before > 1:
        middle = (before + after) // 2
        if moment(middle * 1000).astimezone(where).utcoffset() == early:
            before = middle
        else:
            after = middle
    return after * 1000


def cron_words(expression: str) -> str:
    """The expression for people: ``At 02:00 every day``."""
    return CronSim(expression, _READING).explain()
