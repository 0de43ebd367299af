"""What a recurring schedule is: a call of a task, its times, and what happens when runs would overlap.

``@jobq.schedule`` declares one in code; workers bring Redis in line with what their code declares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack

from jobq.cron import milliseconds
from jobq.dispatch import EnqueueRequest
from jobq.errors import ConfigError, JobqError
from jobq.options import Duration, PriorityName, Until
from jobq.parsing import parse_duration
from jobq.recurrence import OVERLAPS, Misfire, MisfirePolicy, Overlap, Timing
from jobq.retry import Delays
from jobq.tasks import Task

P = ParamSpec("P")
R = TypeVar("R")

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")


class ScheduleOptions(TypedDict, total=False):
    """When a schedule fires, and what its jobs ask for beyond their task's options.

    Attributes:
        cron: Five fields, six with seconds first, or an alias such as ``@daily``; see ``parse_cron``.
        every: Instead of ``cron``: an interval of at least a second, as seconds, a timedelta, or text such as
            ``5m``. Slots are multiples of it after ``start``, else after 1970: a restart shifts nothing.
        tz: Time zone of ``cron``, such as ``Europe/Berlin``. Default UTC.
        start: Aware; no slot before it. ``end``: none from then on.
        jitter: Fire each slot up to so much later, the same for a slot on every machine. Default 0.
        misfire: What becomes of slots that no worker fired in time: ``skip``, ``one`` (default), ``all``, or a
            ``Misfire``.
        overlap: What happens when the job before is still there: ``allow`` (default) ignores that, ``skip`` drops
            the slot, ``queue_one`` lets one wait behind the running one, ``cancel_previous`` cancels it.
        priority, queue, dedup_key, dedup_until, max_attempts, backoff, timeout, tags, correlation_id, order: As for
            ``Task.options``. A slot whose dedup key a live job holds is skipped.
    """

    cron: str
    every: Duration | str
    tz: str
    start: datetime | None
    end: datetime | None
    jitter: Duration | str
    misfire: Misfire | MisfirePolicy
    overlap: Overlap
    priority: PriorityName | None
    queue: str | None
    dedup_key: str | None
    dedup_until: Until | None
    max_attempts: int | None
    backoff: Delays | None
    timeout: Duration | None
    tags: Iterable[str]
    correlation_id: str | None
    order: int | None


_OF_TIME = frozenset({"cron", "every", "tz", "start", "end", "jitter", "misfire", "overlap"})


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule, checked.

    Attributes:
        request: The call that each slot makes.
    """

    name: str
    timing: Timing
    overlap: Overlap
    request: EnqueueRequest


def check_name(name: str) -> str:
    """``name``, if a schedule may be called that.

    Raises:
        ConfigError: It may not.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"schedule name {name!r}: use at most 200 letters, digits, '_', '.' and '-', such as 'reports.nightly'"
        )
    return name


def make_schedule(
    name: str,
    task: Task[Any, Any],
    params: Mapping[str, Any] | None = None,
    **options: Unpack[ScheduleOptions],
) -> Schedule:
    """The schedule that a declaration or a call describes.

    Raises:
        ConfigError: A name, a time or an option is wrong; the message says what to write instead.
        PayloadError: The params do not fit the task.
    """
    check_name(name)
    unknown = sorted(set(options) - ScheduleOptions.__optional_keys__)
    if unknown:
        raise ConfigError(f"schedule {name!r}: no option {unknown[0]!r}")
    try:
        timing = _timing(name, options)
        overlap = options.get("overlap", "allow")
        if overlap not in OVERLAPS:
            raise ConfigError(f"overlap={overlap!r}: expected one of {', '.join(map(repr, OVERLAPS))}")
        of_job: dict[str, Any] = {key: value for key, value in options.items() if key not in _OF_TIME}
        request = task.options(**of_job).request(**(params or {}))
    except JobqError as error:
        error.args = (f"schedule {name!r}: {error}",)
        raise
    return Schedule(name, timing, overlap, request)


def _timing(name: str, options: ScheduleOptions) -> Timing:
    misfire = options.get("misfire", "one")
    start, end = options.get("start"), options.get("end")
    return Timing.checked(
        name=name,
        cron=options.get("cron", ""),
        every_ms=_length_ms("every", options.get("every", 0)),
        tz=options.get("tz", "UTC"),
        start_ms=None if start is None else milliseconds(start),
        end_ms=None if end is None else milliseconds(end),
        jitter_ms=_length_ms("jitter", options.get("jitter", 0)),
        misfire=misfire if isinstance(misfire, Misfire) else Misfire(misfire),
    )


def _length_ms(option: str, value: Duration | str) -> int:
    try:
        return parse_duration(value) // timedelta(milliseconds=1)
    except ValueError as error:
        raise ConfigError(f"{option}={value!r}: {error}") from None


class Declarations:
    """The schedules that code declares, by name."""

    def __init__(self) -> None:
        self._schedules: dict[str, Schedule] = {}

    def add(self, schedule: Schedule) -> None:
        """Declare one.

        Raises:
            ConfigError: The name is taken by a schedule of another task. The same again (a reload) takes its place.
        """
        holder = self._schedules.get(schedule.name)
        if holder is not None and holder.request.task.origin != schedule.request.task.origin:
            raise ConfigError(
                f"schedule name {schedule.name!r} is taken by task {holder.request.task.name!r}: "
                f"write @jobq.schedule(…, name=…) at task {schedule.request.task.name!r}"
            )
        if holder is not None and not _is_reload(holder, schedule):
            raise ConfigError(
                f"task {schedule.request.task.name!r} has two schedules of the name {schedule.name!r}: name each, "
                "@jobq.schedule(…, name=…)"
            )
        self._schedules[schedule.name] = schedule

    def all(self) -> list[Schedule]:
        """Every schedule, by name."""
        return [self._schedules[name] for name in sorted(self._schedules)]

    def clear(self) -> None:
        """Forget all; for tests."""
        self._schedules.clear()


def _is_reload(old: Schedule, new: Schedule) -> bool:
    """Whether a module was imported again: its task is another object then."""
    return old.request.task is not new.request.task or old == new


declared = Declarations()
"""Where :func:`schedule` declares."""


def schedule(
    *,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    declarations: Declarations = declared,
    **options: Unpack[ScheduleOptions],
) -> Callable[[Task[P, R]], Task[P, R]]:
    """Decorator over ``@jobq.task``: enqueue the task at recurring times. Several may stand over one task.

    Workers write what their code declares to Redis when they start, and remove what it no longer does; see
    ``jobq schedules list``.

    Args:
        name: Unique; default: the task's name.
        params: What each job is called with.
        declarations: Where to declare.
        **options: ``cron=`` or ``every=``, and what else ``ScheduleOptions`` lists.
    Raises:
        ConfigError: A name, a time or an option is wrong; the message says what to write instead.
        PayloadError: The params do not fit the task.
    """

    def declare(task: Task[P, R]) -> Task[P, R]:
        if not isinstance(task, Task):
            raise ConfigError("@jobq.schedule(…) stands above @jobq.task(…), on a task")
        declarations.add(make_schedule(name or task.name, task, params, **options))
        return task

    return declare


# --------------------------------------------------------------------------- as it is stored


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSchedule:
    """What any worker needs to fire a schedule, without the code of its task. The params are not in it.

    Attributes:
        fields: Of the job hash: those that are the same for each slot, without the payload.
        dedup_key: ``<task>:<digest>``; empty: none. ``dedup_mode`` and ``window_ms`` as the scripts have them.
        error: Why no job can be made of what code declares; such a schedule is kept to be seen, and has no slots.
    """

    name: str
    task: str
    queue: str
    timing: Timing
    overlap: Overlap
    fields: Mapping[str, str]
    dedup_key: str = ""
    dedup_mode: str = ""
    window_ms: int = 0
    tags: tuple[str, ...] = ()
    correlation_id: str = ""
    error: str = ""

    def encode(self) -> bytes:
        """JSON, the same bytes for equal schedules."""
        kept: dict[str, Any] = {
            "task": self.task,
            "queue": self.queue,
            "times": self.timing.to_dict(),
            "overlap": self.overlap,
            "fields": dict(self.fields),
            "dedup": [self.dedup_key, self.dedup_mode, self.window_ms],
            "tags": list(self.tags),
        }
        if self.correlation_id:
            kept["correlation_id"] = self.correlation_id
        if self.error:
            kept["error"] = self.error
        return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def times(self) -> bytes:
        """The part of :meth:`encode` that decides when it fires."""
        return b"" if self.error else json.dumps(self.timing.to_dict(), sort_keys=True).encode()

    @classmethod
    def decode(cls, name: str, data: bytes | str) -> StoredSchedule:
        """The schedule that :meth:`encode` wrote.

        Raises:
            ConfigError: Somebody else wrote it.
        """
        try:
            kept = json.loads(data)
            key, mode, window_ms = kept["dedup"]
            fields = {str(field): value for field, value in kept["fields"].items()}
            error = kept.get("error", "")
            correlation_id = kept.get("correlation_id", "")
            texts = (
                correlation_id,
                kept["task"],
                kept["queue"],
                error,
                key,
                mode,
                *fields.values(),
                *kept["tags"],
            )
            if not all(isinstance(text, str) for text in texts) or type(window_ms) is not int:
                raise TypeError("a value of another type")
            if kept["overlap"] not in OVERLAPS:
                raise ValueError("an unknown overlap")
            if mode not in ("", "f", "s", "w") or bool(key) != bool(mode) or (mode == "w" and window_ms < 1):
                raise ValueError("an unknown dedup mode")
            return cls(
                name=name,
                task=kept["task"],
                queue=kept["queue"],
                timing=Timing.from_dict(name, kept["times"]),
                overlap=kept["overlap"],
                fields=fields,
                dedup_key=key,
                dedup_mode=mode,
                window_ms=window_ms,
                tags=tuple(kept["tags"]),
                correlation_id=correlation_id,
                error=error,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"its spec cannot be read ({type(error).__name__})") from None
