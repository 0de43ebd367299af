"""Limits on a task or a queue: declarations, and how the scripts read them; the counting happens in Redis.

What a limit blocks is a *gate*, written ``kind,limit,window ms,burst,name``, with ``,cost`` behind it where jobs weigh
differently: of kind ``r`` starts per window, ``w`` their costs, ``b`` either with bursts, ``c`` runs at once. Several
are joined by ``;``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Literal, NamedTuple

from jobq import dedup
from jobq.errors import ConfigError, CostTooHighError, PayloadError
from jobq.retry import duration, is_whole


class Keep(Enum):
    """In place of a value: what is there stays."""

    KEEP = "keep"


MOST_COUNTED = 10_000
"""A rate without a burst counts its starts one by one up to this limit; above, a twentieth of it is the burst."""

MOST_WAITING = 1_000_000_000

Scope = Literal["task", "queue", "all"]
"""What counts together: the jobs of a task, those of a queue, or all whose tasks declare it."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_RATE = re.compile(
    r"\s*(\d{1,9})\s*/\s*(\d{1,9}(?:\.\d{1,6})?)?\s*(ms|s|m|h|d)(?:\s+burst\s+(\d{1,9}))?"
    r"(?:\s+cost\s+(\d{1,9}|\S*\{\S+\}\S*))?\s*"
)


def _check(limit: int, key: str | None, scope: str, what: str) -> None:
    if not is_whole(limit, 1, 1_000_000_000):
        raise ConfigError(f"the limit of a {what} must be a whole number of at least 1, got {limit!r}")
    if key == "":
        raise ConfigError(f'the key of a {what} must be a template such as "{{account_id}}", got {key!r}')
    if scope not in ("task", "queue", "all"):
        raise ConfigError(f'the scope of a {what} must be "task", "queue" or "all", got {scope!r}')
    if scope != "task" and key is None:
        raise ConfigError(
            f"a {what} with the scope {scope!r} needs a key, which names what counts together, such as "
            f'"{{tenant_id}}" or just "stripe"'
        )


@dataclass(frozen=True, slots=True, init=False)
class Rate:
    """At most ``limit`` starts in any window of that length.

    Args:
        limit: Starts per window, at least 1.
        per: Length of the window; seconds or a timedelta, 1 ms to 365 days. Default 60 s.
        key: Template over the params; each value is counted apart. None: one count for all.
        burst: Most starts at once, below ``limit``; the others are spread evenly over the window. None: all may come
            at once, and each is counted one by one, up to a limit of 10,000.
        cost: What one start uses up of the limit: a whole number, or a template over the params that gives one, such as
            ``"{rows}"``. At most ``burst``, where there is one, else ``limit``. No window holds more than the limit,
            nor, without a burst, more than 10,000 starts.
        scope: With whom a key counts: with the jobs of its task, or with all of its queue, or with all there are,
            whose tasks declare a rate with this scope, key and window. Each obeys the limit that its task declares.

    Raises:
        ConfigError: A value is out of its range.
    """

    limit: int
    per: timedelta
    key: str | None
    burst: int | None
    scope: Scope
    cost: int | str

    def __init__(
        self,
        limit: int,
        per: float | timedelta = 60,
        key: str | None = None,
        burst: int | None = None,
        *,
        cost: int | str = 1,
        scope: Scope = "task",
    ) -> None:
        _check(limit, key, scope, "rate")
        window = duration(per, "the window of a rate")
        if window < timedelta(milliseconds=1):
            raise ConfigError(f"the window of a rate must be at least 1 ms, got {per}")
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "per", window)
        object.__setattr__(self, "key", key)
        if burst is not None and not is_whole(burst, 1, limit - 1):
            raise ConfigError(
                f"the burst of a rate must be a whole number from 1 to {limit - 1}, got {burst!r}"
            )
        object.__setattr__(self, "burst", burst)
        object.__setattr__(self, "scope", scope)
        object.__setattr__(self, "cost", cost)
        if isinstance(cost, str):
            if not dedup.fields(cost):
                raise ConfigError(f'the cost of a rate names a param, such as "{{rows}}", got {cost!r}')
        elif not is_whole(cost, 1, self._dearest):
            raise ConfigError(
                f"the cost of a rate must be a whole number from 1 to {self._dearest}, got {cost!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Rate:
        """A rate written as ``50/s``, ``50/m``, ``50/10s``, ``1000/h``, ``5/d``, or ``50/m burst 10 cost {rows}``.

        Raises:
            ConfigError: It is written in another way, or out of range.
        """
        found = _RATE.fullmatch(text)
        if found is None:
            raise ConfigError(f"a rate is written like 50/s, 50/10s or 50/m burst 10, got {text!r}")
        limit, count, unit, burst, cost = found.groups()
        return cls(
            int(limit),
            float(count or 1) * _UNITS[unit],
            burst=int(burst) if burst else None,
            cost=int(cost) if cost and cost.isdecimal() else cost or 1,
        )

    @property
    def per_ms(self) -> int:
        """Length of the window in ms."""
        return self.per // timedelta(milliseconds=1)

    def __str__(self) -> str:
        """As :meth:`parse` reads it, such as ``50/m burst 10``; the key and its scope are left out."""
        ms, more = self.per_ms, "" if self.burst is None else f" burst {self.burst}"
        if self.weighs:
            more += f" cost {self.cost}"
        for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
            if ms % length == 0:
                return f"{self.limit}/{'' if ms == length else ms // length}{unit}{more}"
        return f"{self.limit}/{ms}ms{more}"

    @property
    def weighs(self) -> bool:
        """Whether jobs use up different parts of it, or each more than 1."""
        return self.cost != 1

    @property
    def _dearest(self) -> int:
        """The most that one job may cost: what costs more could never start."""
        return self.burst or self.limit

    @property
    def _at_once(self) -> int:
        """Starts at once of a rate that counts no single starts; 0: it does."""
        return self.burst or (self.limit // 20 if self.limit > MOST_COUNTED and not self.weighs else 0)

    @property
    def _kind(self) -> str:
        return "b" if self._at_once else "w" if self.weighs else "r"

    @property
    def counting(self) -> str:
        """What makes two counts of one key different."""
        return f"{self._kind}{self.per_ms}"

    def gate(self, name: str, params: Mapping[str, Any] | None = None, task: str | None = None) -> str:
        """As the scripts read it.

        Raises:
            PayloadError: What these params cost is no whole number of at least 1.
            CostTooHighError: It is more than there ever is.
        """
        text = f"{self._kind},{self.limit},{self.per_ms},{self._at_once},{name}"
        return f"{text},{self._cost_of(params or {}, task)}" if self.weighs else text

    def _cost_of(self, params: Mapping[str, Any], task: str | None) -> int:
        if isinstance(self.cost, int):
            return self.cost
        text = dedup.render(self.cost, params)
        if not (text.isascii() and text.isdecimal()) or int(text[:20]) < 1:
            raise PayloadError(f"the cost {self.cost!r} must be a whole number of at least 1", task=task)
        cost = int(text[:20])
        if cost > self._dearest:
            raise CostTooHighError(
                f"the job costs {cost:,} of a limit that lets in {self._dearest:,} at most: it could never start",
                cost=cost,
                most=self._dearest,
                task=task,
            )
        return cost


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most ``limit`` runs at once, over all workers.

    Attributes:
        limit: Runs at once, at least 1.
        key: Template over the params; each value is counted apart. None: one count for all.
        scope: As for :class:`Rate`.

    Raises:
        ConfigError: A value is out of its range.
    """

    limit: int
    key: str | None = None
    scope: Scope = "task"

    counting = ""
    """As of a rate: all runs at once are counted in one way."""

    def __post_init__(self) -> None:
        _check(self.limit, self.key, self.scope, "concurrency limit")

    def gate(self, name: str, params: Mapping[str, Any] | None = None, task: str | None = None) -> str:
        """As the scripts read it; params change nothing."""
        return f"c,{self.limit},0,0,{name}"


@dataclass(frozen=True, slots=True, init=False)
class Quota(Rate):
    """At most ``limit`` enqueues in any window of that length.

    Args:
        limit: Enqueues per window, at least 1.
        per: Length of the window; seconds or a timedelta, 1 ms to 365 days. Default 60 s.
        key: Template over the params, such as ``"{account_id}"``; each value is counted apart. None: one count.
        burst, cost, scope: As for :class:`Rate`.

    Raises:
        ConfigError: A value is out of its range.
    """

    def of_task(self, task: str, queue: str, params: Mapping[str, Any]) -> str:
        """The gate of one enqueue."""
        return self.gate(_name("nw" if self.weighs else "n", task, queue, self, params), params, task)


def tenant(template: str, params: Mapping[str, Any]) -> str:
    """Whose turn a job takes: 32 hex digits, the same for every task that renders the same text.

    Raises:
        PayloadError: A param of the template is missing or no simple value.
    """
    return dedup.digest("", dedup.render(template, params))


def task_gates(
    task: str, queue: str, rate: Rate | None, concurrency: Concurrency | None, params: Mapping[str, Any]
) -> str:
    """The gates that one job has to pass.

    Raises:
        PayloadError: A key's param is missing or no simple value.
    """
    # What jobs cost and how many there were are two counts, whose keys must not meet when a declaration changes.
    asked = (("w" if rate and rate.weighs else "r", rate), ("c", concurrency))
    return ";".join(
        limit.gate(_name(kind, task, queue, limit, params), params, task) for kind, limit in asked if limit
    )


def _name(kind: str, task: str, queue: str, limit: Rate | Concurrency, params: Mapping[str, Any]) -> str:
    """``r:<task>``, ``r:<task>:<digest of the key>``; with a wider scope ``r:@<queue>:<digest>``, ``r:@:<digest>``."""
    if limit.key is None:
        return f"{kind}:{task}"
    text = dedup.render(limit.key, params)
    if limit.scope == "task":
        return f"{kind}:{task}:{dedup.digest(task, text)}"
    whose = "@" if limit.scope == "all" else f"@{queue}"
    return f"{kind}:{whose}:{dedup.digest(limit.counting, text)}"


class Noted(NamedTuple):
    """What the settings say of a queue, as the scripts read it; empty: as without.

    Attributes:
        limit: Its gates.
        most: The most jobs that may wait.
        step: Milliseconds of waiting that one step of order is worth; empty: 30,000.
    """

    limit: str = ""
    most: str = ""
    step: str = ""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What a whole queue is limited to, over all workers.

    Attributes:
        rate: Starts per window; None: any number.
        concurrency: Runs at once; None: any number.
        max_waiting: Jobs that wait, for whatever; beyond, enqueues are refused. None: any number.
    """

    rate: Rate | None = None
    concurrency: int | None = None
    max_waiting: int | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and (self.rate.key is not None or self.rate.weighs):
            raise ConfigError("the rate of a queue has no key and no cost: its jobs are of many tasks")
        if self.concurrency is not None:
            _check(self.concurrency, None, "task", "concurrency limit")
        if self.max_waiting is not None and not is_whole(self.max_waiting, 0, MOST_WAITING):
            raise ConfigError(
                f"the most waiting jobs of a queue must be a whole number of at least 0, got {self.max_waiting!r}"
            )

    def gates(self, queue: str) -> str:
        """As the scripts read them; empty without a limit."""
        found = [self.rate.gate(f"q:{queue}")] if self.rate else []
        if self.concurrency is not None:
            found.append(Concurrency(self.concurrency).gate(f"q:{queue}"))
        return ";".join(found)

    @classmethod
    def of_gates(cls, text: str, most: str = "") -> QueueLimits:
        """What :meth:`gates` wrote, and the most jobs; what cannot be read limits nothing, as in the scripts."""
        rate, concurrency = None, None
        for kind, limit, window, burst in re.findall(r"([rbc]),(\d{1,12}),(\d{1,12}),(\d{1,12}),[^;]+", text):
            with contextlib.suppress(ConfigError):
                if kind == "c":
                    concurrency = Concurrency(int(limit)).limit
                else:
                    asked = int(burst) if int(limit) <= MOST_COUNTED or int(burst) != int(limit) // 20 else 0
                    rate = Rate(int(limit), timedelta(milliseconds=int(window)), burst=asked or None)
        return cls(rate, concurrency, int(most) if most.isdecimal() and len(most) < 15 else None)
