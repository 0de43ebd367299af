"""rq-scheduler's ``Scheduler``, kept by jobq: ``from jobq.rq_scheduler import Scheduler``.

Same methods, same arguments; but any jobq worker fires what is scheduled, so there is no scheduler process. Functions
must be tasks. What jobq has no place for (``depends_on``, callbacks, ``meta``, ``ttl``, ``at_front``) is refused, never
dropped in silence; how long results are kept is a matter of the queue, so ``result_ttl`` changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobq import schedule_calls
from jobq.client import Client, get_client
from jobq.cron import milliseconds, moment
from jobq.errors import ConfigError, JobNotFoundError
from jobq.job import Job
from jobq.parsing import parse_duration
from jobq.registry import Registry
from jobq.schedule_spec import ScheduleOptions, make_schedule
from jobq.schedules import ScheduleInfo
from jobq.tasks import Task

if TYPE_CHECKING:
    import redis

_MS = timedelta(milliseconds=1)
_NO_PLACE = ("depends_on", "on_success", "on_failure", "meta", "ttl", "at_front")
_PAGE = 200
_TAG = "rq-id:"


@dataclass(frozen=True, slots=True)
class Entry:
    """A scheduled call: a job that waits for its time, or a recurring schedule.

    Attributes:
        id: The job's id, or the schedule's name: what ``cancel`` and ``in`` take.
        func_name: Name of the task.
        origin: The queue.
        at: When it is due next.
        meta: ``interval`` in seconds or ``cron_string`` of a recurring one.
        job: The job of a single one.
    """

    id: str
    func_name: str
    origin: str
    at: datetime
    meta: Mapping[str, Any]
    job: Job | None = None


class Scheduler:
    """Schedules calls of tasks at times, once or again and again.

    Args:
        queue_name: Where jobs go that name no queue. None: to their task's own.
        queue: An rq queue, for its name.
        interval: Without meaning here: due jobs are looked for all the time; ``job_class``, ``queue_class`` and
            ``name`` likewise.
        connection: The Redis client. None: that of the settings.
        client: A jobq client, in place of ``connection``.
    """

    def __init__(
        self,
        queue_name: str | None = None,
        queue: Any = None,
        interval: float = 60,
        connection: redis.Redis | None = None,
        job_class: Any = None,
        queue_class: Any = None,
        name: str | None = None,
        *,
        client: Client | None = None,
    ) -> None:
        if client is None:
            client = get_client() if connection is None else Client(redis=connection)
        self.client = client
        self.connection = connection
        self.queue_name: str | None = queue.name if queue is not None else queue_name

    # ------------------------------------------------------------------ once

    def enqueue_at(self, scheduled_time: datetime, func: Any, *args: Any, **kwargs: Any) -> Entry:
        """Call ``func`` once, at a time; a naive one is UTC.

        Args:
            scheduled_time: When.
            func: A task, its function, or a name of either.
            *args: Passed on.
            **kwargs: Passed on, but for ``timeout job_id queue_name job_result_ttl job_description``, which are about
                the job. A job that waits under the same ``job_id`` is replaced.
        Raises:
            UnknownTaskError: ``func`` is no task.
            ConfigError: An option has no place in jobq.
        """
        about = {
            option: kwargs.pop(option, None)
            for option in (
                "timeout", "job_id", "job_ttl", "job_result_ttl", "job_description", "depends_on", "meta",
                "queue_name", "on_success", "on_failure", "at_front",
            )
        }  # fmt: skip
        about["ttl"] = about.pop("job_ttl")
        _refuse(about)
        return self._once(
            scheduled_time, func, args, kwargs, about["job_id"], about["queue_name"], about["timeout"]
        )

    def enqueue_in(self, time_delta: timedelta, func: Any, *args: Any, **kwargs: Any) -> Entry:
        """Call ``func`` once, after a time; arguments as for :meth:`enqueue_at`."""
        return self.enqueue_at(datetime.now(UTC) + time_delta, func, *args, **kwargs)

    def _once(
        self,
        at: datetime,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        given_id: str | None,
        queue: str | None,
        timeout: Any,
    ) -> Entry:
        task = self._task(func)
        options: dict[str, Any] = {"at": _utc(at)}
        if queue or self.queue_name:
            options["queue"] = queue or self.queue_name
        if timeout is not None:
            options["timeout"] = _duration(timeout)
        if given_id is not None:
            # An id is a token here, and made by the client: one that was chosen is a key that replaces.
            options |= {"dedup_key": given_id, "on_duplicate": "replace", "tags": [_TAG + given_id]}
        request = task.options(**options).request(*args, **kwargs)
        return _of_job(self.client.enqueue([request])[0], at=_utc(at))

    # ------------------------------------------------------------------ again and again

    def schedule(
        self,
        scheduled_time: datetime,
        func: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        interval: float | None = None,
        repeat: int | None = None,
        result_ttl: int | None = None,
        ttl: int | None = None,
        timeout: Any = None,
        id: str | None = None,  # noqa: A002 - rq-scheduler's word
        description: str | None = None,
        queue_name: str | None = None,
        meta: Mapping[str, Any] | None = None,
        depends_on: Any = None,
        on_success: Any = None,
        on_failure: Any = None,
        at_front: bool | None = None,
    ) -> Entry:
        """Call ``func`` at a time, and from then on every ``interval`` seconds, ``repeat`` times in all.

        Later calls stay on the grid that the first one sets, whatever was missed in between.

        Raises:
            UnknownTaskError: ``func`` is no task.
            ConfigError: An option has no place in jobq.
            ValueError: ``repeat`` without ``interval``.
        """
        _refuse(
            {"ttl": ttl, "meta": meta, "depends_on": depends_on, "on_success": on_success,
             "on_failure": on_failure, "at_front": at_front}
        )  # fmt: skip
        if interval is None:
            if repeat:
                raise ValueError("Can't repeat a job without interval argument")
            return self._once(scheduled_time, func, args or (), kwargs or {}, id, queue_name, timeout)
        # A first time that has passed means now.
        start = max(_utc(scheduled_time), datetime.now(UTC) + timedelta(seconds=1))
        options: ScheduleOptions = {"every": float(int(interval)), "start": start}
        if repeat is not None:
            options["end"] = start + timedelta(seconds=int(interval)) * (max(1, repeat) - 1) + _MS
        return self._recurring(func, args, kwargs, id, queue_name, timeout, options)

    def cron(
        self,
        cron_string: str,
        func: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        repeat: int | None = None,
        queue_name: str | None = None,
        result_ttl: int | None = -1,
        ttl: int | None = None,
        id: str | None = None,  # noqa: A002 - rq-scheduler's word
        timeout: Any = None,
        description: str | None = None,
        meta: Mapping[str, Any] | None = None,
        use_local_timezone: bool = False,
        depends_on: Any = None,
        on_success: Any = None,
        on_failure: Any = None,
        at_front: bool = False,
        *,
        tz: str | None = None,
    ) -> Entry:
        """Call ``func`` at the times of a cron expression, ``repeat`` times in all.

        Args:
            cron_string: Read in UTC, with ``use_local_timezone`` in this machine's zone, with ``tz`` in that one.

        Raises:
            UnknownTaskError: ``func`` is no task.
            ConfigError: The expression is wrong, or an option has no place in jobq.
        """
        _refuse(
            {"ttl": ttl, "meta": meta, "depends_on": depends_on, "on_success": on_success,
             "on_failure": on_failure, "at_front": at_front}
        )  # fmt: skip
        options: ScheduleOptions = {
            "cron": cron_string,
            "tz": tz or (local_zone() if use_local_timezone else "UTC"),
        }
        return self._recurring(func, args, kwargs, id, queue_name, timeout, options, repeat)

    def _recurring(
        self,
        func: Any,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        given_id: str | None,
        queue: str | None,
        timeout: Any,
        options: ScheduleOptions,
        repeat: int | None = None,
    ) -> Entry:
        task = self._task(func)
        params = task.bind(tuple(args or ()), kwargs or {})
        if queue or self.queue_name:
            options["queue"] = queue or self.queue_name
        if timeout is not None:
            options["timeout"] = _duration(timeout)
        name = schedule_name(given_id or f"{task.name}.{os.urandom(6).hex()}")
        if repeat is not None:
            slots = make_schedule(name, task, params, **options).timing.slots(now_ms())
            *_, last = islice(slots, max(1, repeat))
            options["end"] = moment(last + 1)
        return _of_schedule(self.client.schedules.add(name, task, params, replace=True, **options))

    # ------------------------------------------------------------------ looking

    def __contains__(self, item: Any) -> bool:
        """Whether this entry, or one of this id, is scheduled."""
        return self._find(item) is not None

    def count(self, until: datetime | timedelta | float | None = None) -> int:
        """How many calls are due until then; see :meth:`get_jobs`."""
        return sum(1 for _ in self.get_jobs(until))

    def get_jobs(
        self,
        until: datetime | timedelta | float | None = None,
        with_times: bool = False,
        offset: int | None = None,
        length: int | None = None,
    ) -> Iterator[Any]:
        """Everything that is scheduled in all queues, soonest first.

        Args:
            until: Only what is due until this time, or within this timedelta, or until this second since 1970.
            with_times: Yield pairs of an entry and its time, aware.
            offset: Leave out so many, and yield ``length`` at most. Both or neither.

        Raises:
            ValueError: One of ``offset`` and ``length`` without the other.
        """
        if (offset is None) != (length is None):
            raise ValueError("give offset and length, or neither")
        last = _until(until)
        found = sorted(
            (entry for entry in self._entries() if last is None or entry.at <= last),
            key=lambda entry: (entry.at, entry.id),
        )
        chosen = found if offset is None or length is None else found[offset : offset + length]
        return iter([(entry, entry.at) for entry in chosen] if with_times else chosen)

    def get_jobs_to_queue(self, with_times: bool = False) -> Iterator[Any]:
        """What is due and waits for the next look of a worker."""
        return self.get_jobs(datetime.now(UTC), with_times)

    def _entries(self) -> Iterator[Entry]:
        for info in self.client.schedules.list():
            if info.next_at is not None and info.state in ("active", "broken"):
                yield _of_schedule(info)
        cursor = None
        while True:
            page = self.client.jobs(state="scheduled", limit=_PAGE, cursor=cursor)
            yield from (_of_job(job) for job in page.items if job.due_at is not None)
            cursor = page.cursor
            if cursor is None:
                return

    def _find(self, item: Any) -> Entry | None:
        wanted = str(getattr(item, "id", item))
        try:
            info = self.client.schedules.get(schedule_name(wanted))
        except JobNotFoundError:
            pass
        else:
            return _of_schedule(info) if info.next_at is not None else None
        try:
            job = self.client.get(wanted)
        except JobNotFoundError:
            page = self.client.jobs(state="scheduled", tag=_TAG + wanted, limit=1)
            found = page.items[0] if page.items else None
        else:
            found = job if job.state == "scheduled" else None
        return _of_job(found) if found is not None and found.due_at is not None else None

    # ------------------------------------------------------------------ changing

    def cancel(self, job: Any) -> None:
        """Take an entry out, given itself or its id; nothing happens when it is not there."""
        entry = self._find(job)
        if entry is None:
            return
        try:
            if entry.job is None:
                self.client.schedules.remove(entry.id)
            else:
                self.client.cancel(entry.id)
        except JobNotFoundError:
            return

    def change_execution_time(self, job: Any, date_time: datetime) -> None:
        """Let an entry be due next at another time; a recurring one goes on with its own times after that.

        Raises:
            ValueError: It is not scheduled.
        """
        entry = self._find(job)
        ms = milliseconds(_utc(date_time))
        keys = self.client.keys
        if entry is None:
            moved = False
        elif entry.job is not None:
            moved = self.client.run(schedule_calls.reschedule(keys, entry.id, entry.origin, ms))
        else:
            moved = self.client.run(schedule_calls.move(keys, entry.id, ms))
        if not moved:
            raise ValueError("Job not in scheduled jobs queue")

    def enqueue_job(self, job: Any) -> None:
        """Run an entry now: a single one instead of later, a recurring one in addition.

        Raises:
            ValueError: It is not scheduled.
        """
        entry = self._find(job)
        if entry is None:
            raise ValueError("Job not in scheduled jobs queue")
        if entry.job is None:
            self.client.schedules.run(entry.id)
        else:
            self.change_execution_time(entry, datetime.now(UTC))

    def enqueue_jobs(self) -> list[Entry]:
        """Nothing is left to do here: jobq workers do it all the time."""
        return []

    def run(self, burst: bool = False) -> None:
        """There is no scheduler process.

        Raises:
            ConfigError: Always; it says what to run instead.
        """
        raise ConfigError(
            "jobq workers fire what is scheduled: run `jobq worker`, and no scheduler beside it"
        )

    def _task(self, func: Any) -> Task[Any, Any]:
        return task_of(self.client.registry, func)


# --------------------------------------------------------------------------- small parts


def task_of(registry: Registry, func: Any) -> Task[Any, Any]:
    """The task that a function, a task or a name stands for.

    Raises:
        UnknownTaskError: None does.
    """
    if isinstance(func, Task):
        return func
    if isinstance(func, str):
        return registry.resolve(func)
    return registry.resolve(f"{getattr(func, '__module__', '')}.{getattr(func, '__qualname__', func)}")


def schedule_name(wanted: str) -> str:
    """A schedule's name for an id that somebody chose: itself, or something like it where it cannot be."""
    kept = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "_.-") else "_" for letter in wanted
    )
    if kept == wanted and len(wanted) <= 200:
        return wanted
    return f"{kept[:150]}-{sha256(wanted.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def local_zone() -> str:
    """The name of this machine's time zone.

    Raises:
        ConfigError: It has none that others would understand.
    """
    named = (
        os.environ.get("TZ", "").lstrip(":")
        or str(Path("/etc/localtime").resolve()).partition("zoneinfo/")[2]
    )
    if not named:
        raise ConfigError("this machine's time zone has no name: pass tz='Europe/Berlin' or the like")
    return named


def _refuse(options: Mapping[str, Any]) -> None:
    given = [option for option in _NO_PLACE if options.get(option)]
    if given:
        raise ConfigError(
            f"{given[0]}= has no place in jobq's schedules: do without it, or do its work in the task"
        )


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _duration(value: Any) -> timedelta:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ConfigError(f"timeout={value!r}: {error}") from None


def now_ms() -> int:
    """This machine's clock."""
    return milliseconds(datetime.now(UTC))


def _until(until: datetime | timedelta | float | None) -> datetime | None:
    if until is None:
        return None
    if isinstance(until, datetime):
        return _utc(until)
    return (
        datetime.now(UTC) + until if isinstance(until, timedelta) else datetime.fromtimestamp(until, tz=UTC)
    )


def _of_job(job: Job, at: datetime | None = None) -> Entry:
    due = job.due_at or at
    assert due is not None, "only scheduled jobs become entries"
    return Entry(job.id, job.task, job.queue, due, {}, job)


def _of_schedule(info: ScheduleInfo) -> Entry:
    assert info.next_at is not None, "only a schedule with a slot to come becomes an entry"
    meta: dict[str, Any] = {}
    if info.timing is not None:
        cron, every = info.timing.cron, info.timing.every_ms
        meta = {"cron_string": cron} if cron else {"interval": every // 1000}
    return Entry(info.name, info.task, info.queue, info.next_at, meta)
