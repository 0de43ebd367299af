"""Cron by brute force: every minute of some years, read off the wall clock. Shares nothing with jobq.cron."""

from __future__ import annotations

import calendar
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import NamedTuple
from zoneinfo import ZoneInfo

_QUARTER = timedelta(minutes=15)


class Stretch(NamedTuple):
    """Minutes in which the clock runs on: the first as minutes since 1970 and since the clock's midnight; how many."""

    utc: int
    clock: int
    length: int


def wall(zone: str, first: date, last: date) -> dict[date, list[Stretch]]:
    """What a clock in the zone shows on each of its days. Clocks change at quarters of an hour of UTC."""
    where = ZoneInfo(zone)
    days: dict[date, list[Stretch]] = {}
    moment = datetime(first.year, first.month, first.day, tzinfo=UTC) - timedelta(days=2)
    end = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=2)
    while moment < end:
        shown = moment.astimezone(where)
        utc, clock = int(moment.timestamp()) // 60, shown.hour * 60 + shown.minute
        stretches = days.setdefault(shown.date(), [])
        known = stretches[-1] if stretches else Stretch(0, 0, 0)
        if (known.utc + known.length, known.clock + known.length) == (utc, clock):
            stretches[-1] = known._replace(length=known.length + 15)
        else:
            stretches.append(Stretch(utc, clock, 15))
        moment += _QUARTER
    return days


@dataclass(frozen=True)
class Expression:
    """A cron expression and what it means."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]  # 0: the last day of the month
    months: frozenset[int]
    weekdays: frozenset[
        tuple[int, int]
    ]  # weekday from Sunday = 0, and which of the month: 0 each, -1 the last

    @property
    def repeats(self) -> bool:
        """Whether it follows the clock: its minute or hour is a star."""
        minute, hour, *_ = self.text.split()
        return minute.startswith("*") or hour.startswith("*")

    def on(self, day: date) -> bool:
        """Whether it can fire on that day."""
        _, _, of_month, _, of_week = self.text.split()
        last = calendar.monthrange(day.year, day.month)[1]
        by_day = day.day in self.days or (0 in self.days and day.day == last)
        weekday = day.isoweekday() % 7
        nth = (day.day + 6) // 7
        by_week = any(
            weekday == known and (which == 0 or which == nth or (which == -1 and day.day + 7 > last))
            for known, which in self.weekdays
        )
        both = of_month.startswith("*") or of_week.startswith("*")
        return day.month in self.months and (by_day and by_week if both else by_day or by_week)

    def slots(self, clock: Mapping[date, list[Stretch]], first: date, last: date) -> list[int]:
        """Its slots from the first day to the last, both included, in minutes since 1970."""
        wanted = sorted(hour * 60 + minute for hour in self.hours for minute in self.minutes)
        found: set[int] = set()
        day = first
        while day <= last:
            if self.on(day):
                stretches = clock.get(day, [])
                for shown in wanted:
                    hits = [s.utc + shown - s.clock for s in stretches if 0 <= shown - s.clock < s.length]
                    if self.repeats:
                        found.update(hits)
                    elif hits:
                        found.add(hits[0])
                    else:  # the clock skipped it: the first moment after the gap
                        later = [s.utc for s in stretches if s.clock > shown]
                        after = clock.get(day + timedelta(days=1), [])
                        found.add(later[0] if later else after[0].utc)
            day += timedelta(days=1)
        return sorted(found)


def expressions(seed: int) -> Iterator[Expression]:
    """Expressions at random, many of them at the hours when clocks change."""
    random = Random(seed)
    while True:
        # Few by the minute: their slots are many, and show no more.
        minute, minutes = _field(random, 0, 59, (0, 15, 30, 45), star=0.02)
        if len(minutes) > 6 and random.random() < 0.8:
            continue
        hour, hours = _field(random, 0, 23, (0, 1, 2, 3))
        day, days = _days(random)
        month, months = _field(random, 1, 12, (3, 4, 9, 10, 11), star=0.7)
        week, weekdays = _weekdays(random)
        if random.random() < 0.1:  # daily by alias-like shapes, the commonest of all
            day, days, week, weekdays = "*", frozenset(range(1, 32)), "*", _EVERY
        yield Expression(f"{minute} {hour} {day} {month} {week}", minutes, hours, days, months, weekdays)


def _field(
    random: Random, low: int, high: int, likely: tuple[int, ...], star: float = 0.15
) -> tuple[str, frozenset[int]]:
    shape = random.random()
    if shape < star:
        return "*", frozenset(range(low, high + 1))
    kind = random.choice(("one", "one", "likely", "likely", "list", "range", "step", "stepped range"))
    if kind == "one":
        value = random.randint(low, high)
        return str(value), frozenset({value})
    if kind == "likely":
        value = random.choice(likely)
        return str(value), frozenset({value})
    if kind == "list":
        values = random.sample(range(low, high + 1), random.randint(2, 4))
        return ",".join(map(str, values)), frozenset(values)
    if kind == "step":
        step = random.choice([s for s in (2, 3, 5, 10, 15, 20, 30) if s <= high])
        # Days end at 31, whatever the highest day that is drawn here.
        return f"*/{step}", frozenset(range(low, (31 if high == 28 else high) + 1, step))
    first = random.randint(low, high)
    last = random.randint(first, high)
    step = random.randint(1, 7) if kind == "stepped range" else 1
    return f"{first}-{last}" + (f"/{step}" if step > 1 else ""), frozenset(range(first, last + 1, step))


def _days(random: Random) -> tuple[str, frozenset[int]]:
    shape = random.random()
    if shape < 0.1:
        return "L", frozenset({0})
    if shape < 0.2:
        return "*/2", frozenset(range(1, 32, 2))
    if shape < 0.6:
        return "*", frozenset(range(1, 32))
    # Up to 28, so that every month has such a day and every expression has slots.
    return _field(random, 1, 28, (1, 8, 14, 25, 28), star=0)


_EVERY = frozenset((day, 0) for day in range(7))


def _weekdays(random: Random) -> tuple[str, frozenset[tuple[int, int]]]:
    shape = random.random()
    if shape < 0.6:
        return "*", _EVERY
    day = random.randint(0, 6)
    if shape < 0.7:
        return f"{day}L", frozenset({(day, -1)})
    if shape < 0.8:
        nth = random.randint(1, 4)
        return f"{day}#{nth}", frozenset({(day, nth)})
    if shape < 0.9:
        return "MON-FRI", frozenset((each, 0) for each in range(1, 6))
    return str(day), frozenset({(day, 0)})
