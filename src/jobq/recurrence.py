"""When a schedule is due: cron or an interval, its bounds and its jitter, and what becomes of slots that were missed.

A slot is a moment at which a schedule is due, in ms since 1970.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, NamedTuple, get_args

from jobq.cron import cron_slots, cron_words, parse_cron, spread, zone
from jobq.errors import ConfigError

MisfirePolicy = Literal["skip", "one", "all"]
Overlap = Literal["allow", "skip", "queue_one", "cancel_previous"]

OVERLAPS: tuple[Overlap, ...] = get_args(Overlap)

_MS = timedelta(milliseconds=1)
_SHORTEST_MS = 1_000
_LONGEST_MS = 3_650 * 86_400_000
_MOST_WALKED = 10_000

# --------------------------------------------------------------------------- what to do about missed slots


@dataclass(frozen=True, slots=True)
class Misfire:
    """What becomes of slots that nobody fired in time, because no worker ran or Redis was away.

    Attributes:
        policy: ``skip``: the newest, if hardly late, else none. ``one``: the newest. ``all``: each.
        within: Slots that are later than this are dropped. None: 60 s for ``skip``, else 24 h.
        max: For ``all``: at most so many, the newest.
    Raises:
        ConfigError: A value is out of its range.
    """

    policy: MisfirePolicy = "one"
    within: timedelta | None = None
    max: int = 100

    def __post_init__(self) -> None:
        if self.policy not in get_args(MisfirePolicy):
            raise ConfigError(f"misfire={self.policy!r}: expected 'skip', 'one' or 'all'")
        if self.within is not None and not timedelta(0) < self.within <= timedelta(days=365):
            raise ConfigError(f"misfire: within must be more than 0 and at most a year, got {self.within}")
        if isinstance(self.max, bool) or not isinstance(self.max, int) or not 1 <= self.max <= 1_000:
            raise ConfigError(f"misfire: max must be from 1 to 1,000, got {self.max!r}")

    @property
    def window_ms(self) -> int:
        """``within``, or its default, in ms."""
        default = timedelta(seconds=60) if self.policy == "skip" else timedelta(hours=24)
        return (self.within or default) // _MS


class Due(NamedTuple):
    """What to do about a schedule that is due.

    Attributes:
        slots: To be fired, oldest first.
        missed: How many due slots are dropped.
        next: The first slot that is not due yet; None: there is none.
    """

    slots: tuple[int, ...]
    missed: int
    next: int | None


# --------------------------------------------------------------------------- a schedule's times


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times of one schedule.

    Attributes:
        name: The schedule's: jitter is drawn from it.
        cron: An expression of :func:`parse_cron`; empty: ``every_ms`` counts.
        every_ms: Slots are ``start_ms`` plus multiples of this; without a start, multiples since 1970 in UTC.
        tz: Name of the time zone that ``cron`` is read in.
        start_ms: No slot before this; None: no bound. ``end_ms``: none from this on.
        jitter_ms: Each slot is fired up to so much later: the same for a slot on every machine.
    """

    name: str
    cron: str = ""
    every_ms: int = 0
    tz: str = "UTC"
    start_ms: int | None = None
    end_ms: int | None = None
    jitter_ms: int = 0
    misfire: Misfire = field(default_factory=Misfire)

    def slots(self, after_ms: int) -> Iterator[int]:
        """The slots after a moment, in order."""
        if self.start_ms is not None:
            after_ms = max(after_ms, self.start_ms - 1)
        found = cron_slots(self.cron, zone(self.tz), after_ms) if self.cron else self._multiples(after_ms)
        return itertools.takewhile(lambda slot: self.end_ms is None or slot < self.end_ms, found)

    def _multiples(self, after_ms: int) -> Iterator[int]:
        anchor = self.start_ms or 0
        return itertools.count(
            anchor + ((after_ms - anchor) // self.every_ms + 1) * self.every_ms, self.every_ms
        )

    def after(self, ms: int) -> int | None:
        """The first slot after a moment; None: there is none."""
        return next(self.slots(ms), None)

    def fires_at(self, slot: int) -> int:
        """When a slot is fired: itself, later by its jitter."""
        return slot + (spread(self.name, str(slot), self.jitter_ms + 1) if self.jitter_ms else 0)

    def due(self, slot: int, now_ms: int) -> Due:
        """What to do now.

        Args:
            slot: The first slot that has not been dealt with.
        """
        oldest = now_ms - self.misfire.window_ms
        found = self._walk(slot, now_ms)
        if not found:
            return Due((), 0, slot)
        if len(found) == _MOST_WALKED:  # after a long outage: look at the end of it only
            found += self._newest(found[-1], now_ms)
        most = self.misfire.max if self.misfire.policy == "all" else 1
        kept = tuple(due for due in found[-most:] if self.fires_at(due) >= oldest)
        return Due(kept, len(found) - len(kept), self.after(found[-1]))

    def _walk(self, slot: int, now_ms: int) -> list[int]:
        """Due slots from ``slot`` on. Jitter keeps their order: none overtakes an earlier one."""
        chain = itertools.chain((slot,), self.slots(slot))
        due = itertools.takewhile(lambda each: self.fires_at(each) <= now_ms, chain)
        return list(itertools.islice(due, _MOST_WALKED))

    def _newest(self, after_ms: int, now_ms: int) -> list[int]:
        span = 60_000 + 2 * self.jitter_ms
        while True:
            begin = max(after_ms, now_ms - span)
            first = self.after(begin)
            found = self._walk(first, now_ms) if first is not None else []
            if len(found) >= self.misfire.max or begin == after_ms:
                return found
            span *= 4

    def words(self) -> str:
        """The times for people: ``At 02:00 every day, Europe/Berlin``."""
        text = f"{cron_words(self.cron)}, {self.tz}" if self.cron else f"Every {_length(self.every_ms)}"
        return text + (f", up to {_length(self.jitter_ms)} later" if self.jitter_ms else "")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for :meth:`from_dict`."""
        kept: dict[str, Any] = (
            {"cron": self.cron, "tz": self.tz} if self.cron else {"every_ms": self.every_ms}
        )
        for key in ("start_ms", "end_ms", "jitter_ms"):
            if getattr(self, key):
                kept[key] = getattr(self, key)
        policy = self.misfire
        kept["misfire"] = {"policy": policy.policy, "within_ms": policy.window_ms, "max": policy.max}
        return kept

    @classmethod
    def from_dict(cls, name: str, kept: Mapping[str, Any]) -> Timing:
        """The timing that :meth:`to_dict` wrote.

        Raises:
            ConfigError: Somebody else wrote it.
        """
        try:
            misfire = kept["misfire"]
            return cls.checked(
                name=name,
                cron=kept.get("cron", ""),
                every_ms=kept.get("every_ms", 0),
                tz=kept.get("tz", "UTC"),
                start_ms=kept.get("start_ms"),
                end_ms=kept.get("end_ms"),
                jitter_ms=kept.get("jitter_ms", 0),
                misfire=Misfire(misfire["policy"], misfire["within_ms"] * _MS, misfire["max"]),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ConfigError(f"its times cannot be read ({type(error).__name__}: {error})") from None

    @classmethod
    def checked(
        cls,
        *,
        name: str,
        cron: str = "",
        every_ms: int = 0,
        tz: str = "UTC",
        start_ms: int | None = None,
        end_ms: int | None = None,
        jitter_ms: int = 0,
        misfire: Misfire,
    ) -> Timing:
        """A timing whose values fit together.

        Raises:
            ConfigError: They do not; the message says what to write instead.
        """
        if bool(cron) == bool(every_ms):
            raise ConfigError("give cron= or every=, one of them")
        zone(tz)
        numbers = {"every": every_ms, "start": start_ms, "end": end_ms, "jitter": jitter_ms}
        for word, number in numbers.items():
            if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
                raise ConfigError(f"{word}={number!r}: expected whole milliseconds")
        if every_ms and not _SHORTEST_MS <= every_ms <= _LONGEST_MS:
            raise ConfigError("every= must be from one second to ten years")
        if not 0 <= jitter_ms <= 86_400_000:
            raise ConfigError("jitter= must be from 0 to 24 hours")
        if start_ms is not None and end_ms is not None and start_ms >= end_ms:
            raise ConfigError("end= must be after start=")
        return cls(
            name=name,
            cron=parse_cron(cron, name) if cron else "",
            every_ms=every_ms,
            tz=tz,
            start_ms=start_ms,
            end_ms=end_ms,
            jitter_ms=jitter_ms,
            misfire=misfire,
        )


_UNITS = ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"), (1_000, "second"), (1, "millisecond"))


def _length(ms: int) -> str:
    for size, word in _UNITS:
        if ms % size == 0:
            count = ms // size
            return f"{count:,} {word}s" if count != 1 else word
    raise AssertionError("1 divides every number")
