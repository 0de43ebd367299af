"""What a task's declaration and a single call may ask for, checked as soon as it is written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any, Final, Literal, TypeAlias, TypeVar

from jobq.dedup import DedupSpec, fields
from jobq.errors import ConfigError
from jobq.limits import Concurrency, Quota, Rate
from jobq.queues import ISOLATIONS, QUEUE_NAME, Isolation, Priority, QueueSpec
from jobq.retry import MOST_ATTEMPTS, Delays, RetryPolicy
from jobq.units import LONGEST, is_text

Duration: TypeAlias = float | timedelta
Until: TypeAlias = Literal["finished", "started"] | float | timedelta
OnDuplicate: TypeAlias = Literal["skip", "replace"]
PriorityName: TypeAlias = Priority | Literal["critical", "high", "medium", "low", "batch"]
Upcast: TypeAlias = Callable[[dict[str, Any], int], dict[str, Any]]

NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_MAX_NAME: Final = 200
_LONGEST_CORRELATION_ID = 200
_DEFAULT: Final = RetryPolicy()
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """A task's options, validated. None means: as the queue or the settings say.

    Attributes:
        queue: Where the task's jobs go: the name of a lane, or of a queue of the application.
        retry: A whole policy; then ``max_attempts`` and ``backoff`` are None.
        timeout: Longest run.
        dedup: The key by which equal jobs are recognised.
        keep_result: Whether what the function returns is stored.
        order: Place among the jobs of its queue: 1 first, 5 in line, 10 last.
        fair: Template of the tenant whose turn a job takes.
        quota: Enqueues per window.
    """

    queue: str = Priority.MEDIUM.value
    max_attempts: int | None = None
    backoff: Delays | None = None
    retry: RetryPolicy | None = None
    timeout: timedelta | None = None
    dedup: DedupSpec | None = None
    rate: Rate | None = None
    concurrency: Concurrency | None = None
    isolation: Isolation | None = None
    version: int = 1
    upcast: Upcast | None = None
    keep_result: bool = True
    order: int = 5
    fair: str | None = None
    quota: Quota | None = None

    def policy(
        self,
        spec: QueueSpec | None = None,
        *,
        max_attempts: int | None = None,
        backoff: Delays | None = None,
        default: RetryPolicy = _DEFAULT,
    ) -> RetryPolicy:
        """The retry policy of one job: the call's wishes before the task's, the queue's, and the default.

        Args:
            spec: The job's queue.
            max_attempts: What the call asked for.
            backoff: What the call asked for.
            default: As the settings say it.
        """
        if self.retry is None:
            of_queue = (spec.max_attempts, spec.backoff) if spec else (None, None)
            base = RetryPolicy(
                max_attempts=self.max_attempts or of_queue[0] or default.max_attempts,
                delays=self.backoff or of_queue[1] or default.delays,
            )
        else:
            base = self.retry
        if max_attempts is not None:
            base = replace(base, max_attempts=max_attempts)
        return base if backoff is None else replace(base, delays=backoff)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What one call asks for beyond its task's options. None: as the task says.

    Attributes:
        delay: How long from now, by Redis' clock, the job becomes due.
        at: When the job becomes due; aware.
        queue: Another queue, or lane.
        dedup_key: A key instead of the task's template; empty switches deduplication off for this call.
        tags: Labels to find the job by.
        correlation_id: What the job belongs to, such as a request or a payment.
        order: Place among the jobs of its queue, 1 to 10.
    """

    delay: timedelta | None = None
    at: datetime | None = None
    queue: str | None = None
    dedup_key: str | None = None
    dedup_until: Literal["finished", "started"] | timedelta | None = None
    on_duplicate: OnDuplicate | None = None
    max_attempts: int | None = None
    backoff: Delays | None = None
    timeout: timedelta | None = None
    tags: tuple[str, ...] = ()
    correlation_id: str | None = None
    order: int | None = None


NO_OVERRIDES: Final = Overrides()


def task_options(
    task: str,
    *,
    names: Iterable[str],
    secrets: Iterable[str],
    priority: PriorityName | None = None,
    queue: str | None = None,
    max_attempts: int | None = None,
    backoff: Delays | None = None,
    retry: RetryPolicy | None = None,
    timeout: Duration | None = None,
    dedup: str | DedupSpec | None = None,
    dedup_until: Until = "finished",
    on_duplicate: OnDuplicate = "skip",
    rate: Rate | None = None,
    concurrency: Concurrency | None = None,
    isolation: Isolation | None = None,
    version: int = 1,
    upcast: Upcast | None = None,
    keep_result: bool = True,
    order: int = 5,
    fair: str | None = None,
    quota: Quota | None = None,
) -> TaskOptions:
    """The options of a declaration, as :func:`jobq.task` describes them.

    ``task`` is for messages; templates may use the params ``names``, save those in ``secrets``.

    Raises:
        ConfigError: An option is wrong, or two contradict each other; the message says what to write instead.
    """
    if retry is not None and (max_attempts is not None or backoff is not None):
        raise _wrong(task, "retry= is a whole policy: put max_attempts and backoff (as delays) into it")
    if dedup is None and (dedup_until != "finished" or on_duplicate != "skip"):
        raise _wrong(task, "dedup_until= and on_duplicate= need dedup='{param}', the key that they are about")
    if isinstance(dedup, DedupSpec) and (dedup_until != "finished" or on_duplicate != "skip"):
        raise _wrong(task, "put until and on_duplicate into the DedupSpec")
    if upcast is not None and version < 2:
        raise _wrong(task, "upcast= turns params of older versions into this one's: set version=2 or higher")
    _typed(task, "retry", retry, RetryPolicy, "a jobq.RetryPolicy(…)")
    _typed(task, "rate", rate, Rate, "jobq.Rate(50, per=60)")
    _typed(task, "concurrency", concurrency, Concurrency, "jobq.Concurrency(1, key='{param}')")
    _typed(task, "quota", quota, Quota, "jobq.Quota(100, per=3600, key='{account_id}')")
    _typed(task, "fair", fair, str, "a template such as '{tenant_id}'")
    spec = dedup
    if isinstance(dedup, str):
        until = _until(task, dedup_until)
        spec = _made(task, "dedup", lambda: DedupSpec(dedup, until, on_duplicate))
    elif dedup is not None:
        _typed(task, "dedup", dedup, DedupSpec, "a template such as '{order_id}'")
    for option, template in (
        ("dedup", spec.template if isinstance(spec, DedupSpec) else None),
        ("rate", rate.key if rate else None),
        ("rate", rate.cost if rate and isinstance(rate.cost, str) else None),
        ("concurrency", concurrency.key if concurrency else None),
        ("quota", quota.key if quota else None),
        ("quota", quota.cost if quota and isinstance(quota.cost, str) else None),
        ("fair", fair),
    ):
        _check_template(task, option, template, frozenset(names), frozenset(secrets))
    return TaskOptions(
        queue=_queue(task, priority, queue) or Priority.MEDIUM.value,
        max_attempts=_count(task, "max_attempts", max_attempts, MOST_ATTEMPTS),
        backoff=_backoff(task, backoff),
        retry=retry,
        timeout=_duration(task, "timeout", timeout, positive=True),
        dedup=spec if isinstance(spec, DedupSpec) else None,
        rate=rate,
        concurrency=concurrency,
        isolation=_one_of(task, "isolation", isolation, ISOLATIONS),
        version=_count(task, "version", version, 1_000_000) or 1,
        upcast=upcast,
        keep_result=bool(keep_result),
        order=_count(task, "order", order, 10) or 5,
        fair=fair,
        quota=quota,
    )


def call_overrides(
    task: str,
    options: TaskOptions,
    *,
    delay: Duration | None = None,
    at: datetime | None = None,
    priority: PriorityName | None = None,
    queue: str | None = None,
    dedup_key: str | None = None,
    dedup_until: Until | None = None,
    on_duplicate: OnDuplicate | None = None,
    max_attempts: int | None = None,
    backoff: Delays | None = None,
    timeout: Duration | None = None,
    tags: Iterable[str] = (),
    correlation_id: str | None = None,
    order: int | None = None,
) -> Overrides:
    """The overrides of one call.

    Raises:
        ConfigError: One is wrong, or two contradict each other; the message says what to write instead.
    """
    if delay is not None and at is not None:
        raise _wrong(task, "give delay= or at=, not both")
    if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
        raise _wrong(task, "at= must be a datetime with a time zone, such as datetime.now(UTC) + …")
    if (dedup_until is not None or on_duplicate is not None) and options.dedup is None and not dedup_key:
        raise _wrong(task, "dedup_until= and on_duplicate= need a dedup_key=: the task has no template")
    if dedup_key is not None and not isinstance(dedup_key, str):
        raise _wrong(task, "dedup_key= must be text")
    if isinstance(tags, str):
        raise _wrong(task, f"tags= must be a list, such as [{tags!r}]")
    labels = tuple(tags)
    if not all(is_text(tag) and tag for tag in labels):
        raise _wrong(task, "every tag must be text and not empty")
    if correlation_id is not None and not (
        is_text(correlation_id) and 0 < len(correlation_id) <= _LONGEST_CORRELATION_ID
    ):
        raise _wrong(task, f"correlation_id= must be text of 1 to {_LONGEST_CORRELATION_ID} characters")
    return Overrides(
        delay=_duration(task, "delay", delay),
        at=None if at is None else at.astimezone(UTC),
        queue=_queue(task, priority, queue),
        dedup_key=dedup_key,
        dedup_until=None if dedup_until is None else _until(task, dedup_until),
        on_duplicate=_one_of(task, "on_duplicate", on_duplicate, ("skip", "replace")),
        max_attempts=_count(task, "max_attempts", max_attempts, MOST_ATTEMPTS),
        backoff=_backoff(task, backoff),
        timeout=_duration(task, "timeout", timeout, positive=True),
        tags=labels,
        correlation_id=correlation_id,
        order=_count(task, "order", order, 10),
    )


def check_options(task: str, options: Iterable[str]) -> None:
    """Refuse an option that no task has.

    Raises:
        TypeError: There is one, as of any function; the message names the nearest that there is.
    """
    known = (task_options.__kwdefaults__ or {}).keys()
    for name in options:
        if name not in known:
            near = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise TypeError(f"task {task!r}: unknown option {name}; {hint}")


def check_name(name: str) -> str:
    """``name``, if a task may be called that.

    Raises:
        ConfigError: It may not.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise ConfigError(
            f"task name {name!r}: use at most {_MAX_NAME} letters, digits, '_', '.' and '-', "
            f"such as 'orders.confirm'"
        )
    return name


def _wrong(task: str, text: str) -> ConfigError:
    return ConfigError(f"task {task!r}: {text}", task=task)


def _typed(task: str, option: str, value: object, kind: type, example: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise _wrong(task, f"{option}={value!r}: expected {example}")


def _one_of(task: str, option: str, value: _T | None, allowed: tuple[_T, ...]) -> _T | None:
    if value is not None and value not in allowed:
        raise _wrong(task, f"{option}={value!r}: expected {' or '.join(map(repr, allowed))}")
    return value


def _made(task: str, option: str, make: Callable[[], _T]) -> _T:
    """What ``make`` returns; a policy module's own complaint gets the task's name."""
    try:
        return make()
    except (ConfigError, TypeError, ValueError) as error:
        raise _wrong(task, f"{option}: {error}") from error


def _queue(task: str, priority: PriorityName | None, queue: str | None) -> str | None:
    if priority is not None and queue is not None:
        raise _wrong(task, "give priority= (one of the five lanes) or queue= (one of your own), not both")
    if priority is not None:
        try:
            return Priority(priority).value
        except ValueError:
            lanes = ", ".join(repr(lane.value) for lane in Priority)
            raise _wrong(task, f"priority={priority!r}: expected one of {lanes}") from None
    if queue is not None and not (isinstance(queue, str) and QUEUE_NAME.fullmatch(queue)):
        raise _wrong(task, f"queue={queue!r}: use letters, digits, '_', '.' and '-', such as 'email'")
    return queue


def _count(task: str, option: str, value: int | None, most: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _wrong(task, f"{option}={value!r}: expected a whole number from 1 to {most:,}")
    return value


def _backoff(task: str, value: Delays | None) -> Delays | None:
    if value is not None and not callable(getattr(value, "delay", None)):
        raise _wrong(task, f"backoff={value!r}: expected jobq.Backoff(…), jobq.Fixed(…) or jobq.Steps([…])")
    return value


def _duration(task: str, option: str, value: Duration | None, *, positive: bool = False) -> timedelta | None:
    if value is None:
        return None
    if isinstance(value, timedelta):
        length = value
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _wrong(task, f"{option}={value!r}: expected seconds or a timedelta (always finite)")
    else:
        length = timedelta(seconds=min(value, 1e12))
    if length < timedelta(0) or (positive and not length) or length > LONGEST:
        least = "more than 0" if positive else "0 or more"
        raise _wrong(task, f"{option}={value!r}: expected {least}, and at most ten years")
    return length


def _until(task: str, value: Until) -> Literal["finished", "started"] | timedelta:
    if isinstance(value, str):
        if value in ("finished", "started"):
            return value
        raise _wrong(task, f"dedup_until={value!r}: expected 'finished', 'started' or a window in seconds")
    length = _duration(task, "dedup_until", value, positive=True)
    assert length is not None, "only None gives None"
    return length


def _check_template(
    task: str, option: str, template: str | None, names: frozenset[str], secrets: frozenset[str]
) -> None:
    if template is None:
        return
    used: Mapping[str, Any] | set[str] = _made(task, option, lambda: fields(template))
    unknown = sorted(set(used) - names)
    if unknown:
        raise _wrong(
            task,
            f"{option} template {template!r} names {', '.join(map(repr, unknown))}, which is no param; "
            f"it can use: {', '.join(sorted(names - secrets)) or 'none'}",
        )
    exposed = sorted(set(used) & secrets)
    if exposed:
        raise _wrong(
            task,
            f"{option} template {template!r} names the secret param {exposed[0]!r}, which would be stored "
            f"in the clear: use another param",
        )
