"""Queues: the five lanes, what a queue is allowed and owes, and whether a wait kept its target."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from jobq.errors import ConfigError
from jobq.limits import MOST_WAITING, Concurrency, Noted, QueueLimits, Rate
from jobq.retry import (
    MOST_ATTEMPTS,
    Delays,
    delays_from_dict,
    delays_to_dict,
    is_duration,
    is_number,
    is_whole,
)

Isolation = Literal["thread", "process"]
ISOLATIONS: tuple[Isolation, ...] = get_args(Isolation)

# No colon: Redis keys put the queue's name between colons. Also what an environment variable can spell.
QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LONGEST = timedelta(days=3650)

LONGEST_STEP = timedelta(seconds=30)
"""What a step of order is worth in a queue without a target."""


class Priority(StrEnum):
    """The five lanes, most urgent first. A lane is a queue of that name."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Retention:
    """How long ended jobs stay readable.

    Attributes:
        age: Until they are this old, at most 10 years.
        count: Only so many of the newest, per queue. None: any number.
        size: Only as many of the newest, per queue, as take so many bytes of Redis' memory, by a sample. None: any.

    Raises:
        ConfigError: A value is out of its range.
    """

    age: timedelta = _LONGEST
    count: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if not is_duration(self.age, timedelta(0), _LONGEST):
            raise ConfigError(
                f"the age of a retention must be a timedelta of at most 10 years, got {self.age!r}"
            )
        if self.count is not None and not is_whole(self.count, 0, 1_000_000_000):
            raise ConfigError(
                f"the count of a retention must be a whole number of at least 0, got {self.count!r}"
            )
        if self.size is not None and not is_whole(self.size, 0, 2**50):
            raise ConfigError(f"the size of a retention must be a whole number of bytes, got {self.size!r}")

    @property
    def age_s(self) -> int:
        """The age in whole seconds, as Redis counts it."""
        return int(self.age.total_seconds())


KEEP_SUCCEEDED = Retention(timedelta(hours=24), 1_000)
KEEP_DEAD = Retention(timedelta(days=7), 5_000)
KEEP_CANCELLED = KEEP_SUCCEEDED


_LANE_SLOTS = {"critical": 20, "high": 10, "medium": 5, "low": 2, "batch": 1}


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """One queue: what it may use, and what it owes.

    Attributes:
        name: Letters, digits, ``_``, ``-`` and ``.``, at most 64.
        slots: Jobs that one worker runs at once. Default: a lane's own; 1 for any other queue.
        target: Service level: longest wait between due and started, a timedelta or seconds. None: no target.
        rate: Starts per window, over all workers. None: unlimited.
        concurrency: Runs at once, over all workers; also as a plain number. None: unlimited.
        max_waiting: Jobs that wait, for whatever; beyond, enqueues are refused. None: unlimited.
        group: Queues of one group that a worker serves share an executor process, which has as many slots as the
            largest of them. None: it has a process of its own.
        weight: Its share of the slots that fall free while several of its group have jobs, 1 to 1,000; default 1.
        max_attempts: For tasks that do not say; None: ``JOBQ_MAX_ATTEMPTS``.
        backoff: For tasks that do not say; None: the default backoff.
        timeout: For tasks that do not say; None: the default of 180 s. Always finite.
        isolation: ``"thread"`` or ``"process"`` for tasks that do not say; None: threads for sync tasks, the
            event loop for async ones.
        retention: Of succeeded and cancelled jobs and dead letters alike: a Retention, or an age, which leaves the
            counts below as they are. None: the three below.
        keep_succeeded: Retention of succeeded jobs; default 24 h, 1,000.
        keep_dead: Retention of dead letters; default 7 days, 5,000.
        keep_cancelled: Retention of cancelled jobs; default 24 h, 1,000.
        redis_url: The queue's own Redis. None: the one of the settings.
        nice: Lowers the OS priority of its processes, 0 to 19.
        priority: The lane that it is treated as while memory is short: less urgent ones refuse jobs first. None: a
            lane is itself, any other queue is medium.

    Raises:
        ConfigError: A value is out of its range.
    """

    name: str
    slots: int = cast("int", None)
    target: timedelta | None = None
    rate: Rate | None = None
    max_attempts: int | None = None
    backoff: Delays | None = None
    timeout: timedelta | None = None
    retention: Retention | timedelta | None = None
    concurrency: Concurrency | None = None
    isolation: Isolation | None = None
    keep_succeeded: Retention = KEEP_SUCCEEDED
    keep_dead: Retention = KEEP_DEAD
    keep_cancelled: Retention = KEEP_CANCELLED
    redis_url: str | None = None
    nice: int = 0
    priority: Priority | None = None
    max_waiting: int | None = None
    group: str | None = None
    weight: int = 1

    def __post_init__(self) -> None:
        if not QUEUE_NAME.fullmatch(self.name):
            raise ConfigError(
                f"a queue's name is made of letters, digits, '_', '-' and '.', at most 64, got {self.name!r}"
            )
        if self.slots is None:
            object.__setattr__(self, "slots", _LANE_SLOTS.get(self.name, 1))  # type: ignore[unreachable]
        self._whole("slots", self.slots, 1, 10_000)
        self._whole("nice", self.nice, 0, 19)
        if self.max_attempts is not None:
            self._whole("max_attempts", self.max_attempts, 1, MOST_ATTEMPTS)
        if self.max_waiting is not None:
            self._whole("max_waiting", self.max_waiting, 0, MOST_WAITING)
        self._in_seconds()
        self._positive("target", self.target)
        self._positive("timeout", self.timeout)
        if is_whole(self.concurrency, 1, 1_000_000_000):
            object.__setattr__(self, "concurrency", Concurrency(self.concurrency))  # type: ignore[arg-type]
        if self.concurrency is not None and self.concurrency.key is not None:
            raise self._wrong("concurrency", "without a key: its jobs are of many tasks", self.concurrency)
        if self.rate is not None and (self.rate.key is not None or self.rate.weighs):
            raise self._wrong("rate", "without a key and a cost: its jobs are of many tasks", self.rate)
        if self.isolation not in (None, *ISOLATIONS):
            raise self._wrong("isolation", '"thread" or "process"', self.isolation)
        if self.priority is not None:
            if self.priority not in tuple(Priority):
                raise self._wrong("priority", "a lane's name", self.priority)
            object.__setattr__(self, "priority", Priority(self.priority))
        self._whole("weight", self.weight, 1, 1_000)
        if self.group is None:
            return
        if not isinstance(self.group, str) or not QUEUE_NAME.fullmatch(self.group):
            raise self._wrong("group", "letters, digits, '_', '-' and '.', at most 64", self.group)
        if self.urgency is Priority.CRITICAL:
            raise ConfigError(
                f"queue {self.name!r} is critical and must have an executor of its own, not one of group"
                f" {self.group!r}: its jobs would wait for those of other queues, an OTP for an export",
                queue=self.name,
            )

    @property
    def limits(self) -> QueueLimits:
        """What the whole queue is limited to."""
        return QueueLimits(self.rate, self.concurrency.limit if self.concurrency else None, self.max_waiting)

    @property
    def order_step(self) -> timedelta:
        """How long a job waits to be as good as one of the next lower order.

        There are nine steps, so no job is passed by one that comes more than a target later; at most half a minute.
        """
        return LONGEST_STEP if self.target is None else min(self.target / 9, LONGEST_STEP)

    @property
    def noted(self) -> Noted:
        """What the scripts go by."""
        step = self.order_step / timedelta(milliseconds=1)
        return Noted(
            self.limits.gates(self.name),
            "" if self.max_waiting is None else str(self.max_waiting),
            "" if self.order_step == LONGEST_STEP else f"{step:.3f}",
        )

    @property
    def urgency(self) -> Priority:
        """The lane that it is treated as while memory is short."""
        if self.priority is not None:
            return self.priority
        return Priority(self.name) if self.name in tuple(Priority) else Priority.MEDIUM

    def to_dict(self) -> dict[str, Any]:
        """What differs from the default, as plain JSON values; durations in seconds."""
        kept: dict[str, Any] = {"name": self.name}
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default and each.name != "name":
                kept[each.name] = _plain(value)
        return kept

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> QueueSpec:
        """The queue that :meth:`to_dict` wrote."""
        given = dict(kept)
        if "rate" in given:
            limit, per_s, burst = given["rate"]
            given["rate"] = Rate(limit, per_s, burst=burst)
        if "backoff" in given:
            given["backoff"] = delays_from_dict(given["backoff"])
        for name in ("keep_succeeded", "keep_dead"):
            if name in given:
                age_s, count, size = given[name]
                given[name] = Retention(timedelta(seconds=age_s), count, size)
        return cls(**given)

    def _in_seconds(self) -> None:
        """Plain numbers are seconds, and one retention stands for all three."""
        for name in ("target", "timeout", "retention"):
            value = getattr(self, name)
            if is_number(value, 0.001, _LONGEST.total_seconds()):
                object.__setattr__(self, name, timedelta(seconds=value))
        if self.retention is None:
            return
        for name in ("keep_succeeded", "keep_dead", "keep_cancelled"):
            kept: Retention = getattr(self, name)
            asked = self.retention
            object.__setattr__(
                self, name, asked if isinstance(asked, Retention) else Retention(asked, kept.count)
            )
        object.__setattr__(self, "retention", None)  # said once, in the three it stands for

    def _whole(self, field: str, value: object, low: int, high: int) -> None:
        if not is_whole(value, low, high):
            raise self._wrong(field, f"a whole number from {low:,} to {high:,}", value)

    def _positive(self, field: str, value: timedelta | None) -> None:
        if value is not None and not is_duration(value, timedelta(milliseconds=1), _LONGEST):
            raise self._wrong(field, "a timedelta of at least 1 ms", value)

    def _wrong(self, field: str, right: str, value: object) -> ConfigError:
        return ConfigError(f"{field} of queue {self.name!r} must be {right}, got {value!r}", queue=self.name)


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Rate):
        return [value.limit, value.per.total_seconds(), value.burst]
    if isinstance(value, Concurrency):
        return value.limit
    if isinstance(value, Retention):
        return [value.age.total_seconds(), value.count, value.size]
    return delays_to_dict(value) if isinstance(value, Delays) else value


LANES: Mapping[str, QueueSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            QueueSpec("critical", target=timedelta(seconds=1)),
            QueueSpec("high", target=timedelta(seconds=5)),
            QueueSpec("medium", target=timedelta(seconds=30)),
            QueueSpec("low", target=timedelta(minutes=5), isolation="process", nice=10),
            QueueSpec("batch", target=None, isolation="process", nice=10),
        )
    }
)
"""The five lanes as they are unless configured otherwise, most urgent first."""


class Declarations:
    """The queues that code declares, by name.

    Attributes:
        version: Rises whenever they change.
    """

    def __init__(self) -> None:
        self.version = 0
        self._declared: dict[str, QueueSpec] = {}
        self._configured: dict[str, QueueSpec] = {}

    def add(self, spec: QueueSpec) -> None:
        """Declare one more.

        Raises:
            ConfigError: The name is taken by another.
        """
        self._check(spec, self._known())
        if self._known().get(spec.name) != spec:
            self.version += 1
        self._declared[spec.name] = spec

    @property
    def configured(self) -> Sequence[QueueSpec]:
        """Those of ``jobq.configure``; to set them takes the place of those that it said before.

        Raises:
            ConfigError: A name is taken by another; what was said before stays.
        """
        return tuple(self._configured.values())

    @configured.setter
    def configured(self, specs: Sequence[QueueSpec]) -> None:
        found: dict[str, QueueSpec] = {}
        for spec in specs:
            self._check(spec, found | self._declared)
            found[spec.name] = spec
        self._configured = found
        self.version += 1

    @staticmethod
    def _check(spec: QueueSpec, others: Mapping[str, QueueSpec]) -> None:
        if not isinstance(spec, QueueSpec):
            raise ConfigError(f'expected a QueueSpec such as jobq.QueueSpec("email", slots=5), got {spec!r}')
        if others.get(spec.name, spec) != spec:
            raise ConfigError(f"queue {spec.name!r} is declared twice, each time otherwise", queue=spec.name)

    def all(self) -> list[QueueSpec]:
        """All of them."""
        return list(self._known().values())

    def clear(self) -> None:
        """Forget all; for tests."""
        self._declared, self._configured = {}, {}
        self.version += 1

    def _known(self) -> dict[str, QueueSpec]:
        return self._configured | self._declared


declared = Declarations()
"""Where :func:`queue` and ``jobq.configure`` declare."""


def queue(spec: QueueSpec) -> QueueSpec:
    """Declare a queue of the application, while its modules are imported: workers serve it, and clients know it.

    It comes below every other source of settings: its options can be set in the environment, too.

    Raises:
        ConfigError: Another module declares one of the name, with other options.
    """
    declared.add(spec)
    return spec


def served_together(specs: Iterable[QueueSpec]) -> dict[str, list[QueueSpec]]:
    """The queues that share an executor process, by the name of their group; any other by its own."""
    found: dict[str, list[QueueSpec]] = {}
    for spec in specs:
        found.setdefault(spec.group or spec.name, []).append(spec)
    return found


def check_groups(specs: Mapping[str, QueueSpec]) -> None:
    """See that what is to share a process can.

    Raises:
        ConfigError: A group has the name of a queue, or two of its queues differ in what holds for a process.
    """
    for name, (first, *others) in served_together(spec for spec in specs.values() if spec.group).items():
        if name in specs:
            raise ConfigError(
                f"group {name!r} of queue {first.name!r} must not have the name of a queue", queue=first.name
            )
        for other in others:
            for what, agree in (
                ("isolation", (first.isolation == "process") == (other.isolation == "process")),
                ("nice", first.nice == other.nice),
                ("redis_url", first.redis_url == other.redis_url),
            ):
                if not agree:
                    raise ConfigError(
                        f"queues {first.name!r} and {other.name!r} of group {name!r} share a process, and must agree"
                        f" on {what}",
                        queue=other.name,
                    )


PROFILES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "low": MappingProxyType({"export": 1, "email": 2, "ai": 1, "scheduled": 1}),
        "medium": MappingProxyType({"export": 2, "email": 5, "ai": 3, "scheduled": 2}),
        "high": MappingProxyType({"export": 4, "email": 10, "ai": 5, "scheduled": 4}),
    }
)
"""Slots of common queues by the size of the machine: low 1 CPU and 512 MB, medium 2 and 2 GB, high 4 and 4 GB."""


@dataclass(frozen=True, slots=True)
class ShedAt:
    """From how many percent of Redis' ``maxmemory`` on which queues refuse new jobs; 100: never.

    Attributes:
        low: Queues of the priorities low and batch.
        medium: Those of medium and high, and all that do not say.
        critical: Those of critical. What is left above it is for the jobs that run.
    """

    low: int = 80
    medium: int = 90
    critical: int = 95

    def of(self, priority: Priority) -> int:
        """The threshold of queues of this priority."""
        if priority is Priority.CRITICAL:
            return self.critical
        return self.low if priority in (Priority.LOW, Priority.BATCH) else self.medium

    def by_queue(self, specs: Mapping[str, QueueSpec]) -> dict[str, int]:
        """The threshold of each queue."""
        return {name: self.of(spec.urgency) for name, spec in specs.items()}


def sla_met(spec: QueueSpec, wait: timedelta) -> bool:
    """Whether a wait kept the queue's target. A queue without one is always on time."""
    return spec.target is None or wait <= spec.target
