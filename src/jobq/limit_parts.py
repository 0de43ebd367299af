"""``client.limits``, sync and async: limits of tasks that operators set while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TypeAlias, TypeVar

from jobq import calls, events, overrides
from jobq.client_parts import AsyncRun, Run, who
from jobq.errors import ConfigError, ConflictError, JobNotFoundError
from jobq.keys import Keys
from jobq.limits import Keep, Rate
from jobq.listing import scored
from jobq.options import check_name
from jobq.overrides import Override
from jobq.plans import Plans
from jobq.registry import Registry
from jobq.replies import as_int, as_text
from jobq.steps import MOST_JOBS, Batch, Plan
from jobq.units import moment, redis_ms

Made = TypeVar("Made", Override, Override | None)
AllSet: TypeAlias = list[Override]  # inside a class with a method `list`, the name means the method
_MOST_TRIES = 20


# --------------------------------------------------------------------------- the steps


def _read(keys: Keys) -> Plan[tuple[bytes, dict[str, Override], int]]:
    """The text as it is, what holds of it by name, and Redis' clock."""
    text, clock = yield Batch((("GET", keys.limits), ("TIME",)))
    raw = text if isinstance(text, bytes) else b""
    now_ms = redis_ms(clock)
    return raw, overrides.read(as_text(raw), now_ms), now_ms


def overrides_plan(keys: Keys) -> Plan[AllSet]:
    """What operators have set, by task."""
    _, found, _ = yield from _read(keys)
    return sorted(found.values(), key=lambda each: (each.task, each.key or ""))


def unreadable_plan(keys: Keys) -> Plan[int]:
    """Lines that nobody can read, and that limit nothing; what is set or cleared next leaves them out."""
    (text,) = yield Batch((("GET", keys.limits),))
    return overrides.unreadable(as_text(text)) if isinstance(text, bytes) else 0


def set_plan(
    keys: Keys,
    task: str,
    key: str | None,
    rate: Rate | str | int | Keep | None,
    concurrency: int | str | Keep | None,
    for_: float | timedelta | None,
    reason: str | None,
    by: str,
    *,
    dry_run: bool = False,
) -> Plan[Override]:
    """Set limits of a task, or of one key of it; what is not given stays as it is."""
    check_name(task)
    if key == "":
        raise ConfigError("the key of a limit that is set must not be empty")
    if isinstance(rate, Keep) and isinstance(concurrency, Keep):
        raise ConfigError("give a rate or a concurrency")
    some_rate = rate if isinstance(rate, Keep) else overrides.rate_of(rate)
    some = concurrency if isinstance(concurrency, Keep) else overrides.concurrency_of(concurrency)
    length = for_ if isinstance(for_, timedelta) or for_ is None else timedelta(seconds=for_)
    if length is not None and length <= timedelta(0):
        raise ValueError(f"a limit must be longer than 0, got {length}")

    def change(found: dict[str, Override], now_ms: int) -> Override:
        until = None if length is None else moment(now_ms) + length
        wanted = Override(task=task, key=key, until=until, by=by, reason=reason or "", since=moment(now_ms))
        found[wanted.name] = made = overrides.merged(found.get(wanted.name), wanted, some_rate, some)
        return made

    made = yield from _change(keys, change, dry_run)
    if not dry_run:
        if isinstance(made.concurrency, int):
            yield from _hold(keys)
        events.emit("task.limited", task=task, rate=str(made.rate or ""), concurrency=made.concurrency, by=by)
    return made


def clear_plan(keys: Keys, task: str, key: str | None, *, dry_run: bool = False) -> Plan[Override | None]:
    """Let the declared limits hold again; what was set, None: nothing was."""
    name = Override(task=task, key=key).name

    def change(found: dict[str, Override], _now_ms: int) -> Override | None:
        return found.pop(name, None)

    before = yield from _change(keys, change, dry_run)
    if before is not None and not dry_run:
        events.emit("task.limited", task=task)
    return before


def _change(keys: Keys, change: Callable[[dict[str, Override], int], Made], dry_run: bool) -> Plan[Made]:
    """Change what is set, whoever else does at the same time, and look at the gates that this may open."""
    for _ in range(_MOST_TRIES):
        raw, found, now_ms = yield from _read(keys)
        made = change(found, now_ms)
        text = overrides.written(found)
        if dry_run or made is None:
            return made
        ends = [each.until_ms for each in found.values()]
        over = max(ends) if ends and all(ends) else 0
        gates = [f"{kind}:{made.name}" for kind in "rwc"]
        if (yield calls.override(keys, raw, text, gates, over)):
            if made.key is None:
                yield from _look_at(keys, made.task)
            return made
    raise ConflictError("others changed the limits that are set again and again: try once more")


def _look_at(keys: Keys, task: str) -> Plan[None]:
    """Have the gates of all keys of a task looked at next."""
    cursor = 0
    while True:
        page, clock = yield Batch(
            (("ZSCAN", keys.gates, cursor, "MATCH", f"[rwc]:{task}:*", "COUNT", 1_000), ("TIME",))
        )
        if isinstance(page, Exception):
            return
        cursor, found = as_int(page[0]), [as_text(name) for name, _ in scored(page[1])]
        if found:
            pairs = [part for name in found for part in (redis_ms(clock), name)]
            yield Batch((("ZADD", keys.gates, "XX", "LT", *pairs),))
        if cursor == 0:
            return


def _hold(keys: Keys) -> Plan[None]:
    """Count the runs that began before, of tasks that declare no limit."""
    cursor = 0
    while True:
        (page,) = yield Batch((("ZSCAN", keys.leases, cursor, "COUNT", 1_000),))
        if isinstance(page, Exception):
            return
        cursor, members = as_int(page[0]), [as_text(member) for member, _ in scored(page[1])]
        for start in range(0, len(members), MOST_JOBS):
            yield calls.hold(keys, members[start : start + MOST_JOBS])
        if cursor == 0:
            return


def _check_key(registry: Registry, task: str, key: str | None) -> None:
    """Refuse a key where the task, as far as it is known here, has no limit with one of its own."""
    if key is None or task not in registry:
        return
    spec = registry.get(task).spec
    if not any(
        limit and limit.key is not None and limit.scope == "task" for limit in (spec.rate, spec.concurrency)
    ):
        raise ConfigError(
            f"task {task!r} declares no limit with a key of its own: set one for the whole task"
        )


def _cleared(found: Iterable[Override | None], task: str, key: str | None) -> Override:
    """What was set, by what each server says of it.

    Raises:
        JobNotFoundError: Nothing was, in any of them.
    """
    before = next((each for each in found if each is not None), None)
    if before is None:
        what = f"task {task!r}" + ("" if key is None else f" and key {key!r}")
        raise JobNotFoundError(f"no limit is set at run time for {what}; see jobq limits list", task=task)
    return before


# --------------------------------------------------------------------------- what a client has


class Limits:
    """Limits of tasks that hold in place of the declared ones, for jobs that wait and those to come, on all workers."""

    def __init__(
        self, plans: Plans, run: Run, registry: Registry, each: Callable[[], Sequence[Limits]]
    ) -> None:
        self.plans = plans
        self.run = run
        self.registry = registry
        self._each = each

    def list(self) -> AllSet:
        """What is set, by task; where queues have a Redis of their own, what is set in any."""
        return _once(made for there in self._each() for made in there.run(overrides_plan(there.plans.keys)))

    def set(
        self,
        task: str,
        *,
        key: str | None = None,
        rate: Rate | str | int | Keep | None = Keep.KEEP,
        concurrency: int | str | Keep | None = Keep.KEEP,
        for_: float | timedelta | None = None,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> Override:
        """Limit a task, within a second; what runs goes on, and counts.

        Args:
            key: Only for this value of its limits' key, as its template renders it. None: for the whole task; of a
                limit with a key it is then the limit of each.
            rate: Starts per window, such as ``"10/s"``. None: any number. 0: no start. Not given: as it is now.
            concurrency: Runs at once. None: any number. 0: no start. Not given: as it is now.
            for_: Seconds or timedelta after which the declared limits hold again; None: ``clear`` only.
            reason: Shown with it.
            dry_run: Only say what it would be.
        Raises:
            ConfigError: A limit is out of its range, or the task has none with a key.
            ConflictError: Too many are set.
        """
        _check_key(self.registry, task, key)
        made = [
            there.run(
                set_plan(there.plans.keys, task, key, rate, concurrency, for_, reason, who(), dry_run=dry_run)
            )
            for there in self._each()
        ]
        return made[0]

    def clear(self, task: str, *, key: str | None = None, dry_run: bool = False) -> Override:
        """Let the declared limits hold again; what was set.

        Raises:
            JobNotFoundError: Nothing was.
        """
        found = [
            there.run(clear_plan(there.plans.keys, task, key, dry_run=dry_run)) for there in self._each()
        ]
        return _cleared(found, task, key)


class AsyncLimits:
    """Awaitable :class:`Limits`."""

    def __init__(
        self, plans: Plans, run: AsyncRun, registry: Registry, each: Callable[[], Sequence[AsyncLimits]]
    ) -> None:
        self.plans = plans
        self.run = run
        self.registry = registry
        self._each = each

    async def list(self) -> AllSet:
        """As :meth:`Limits.list`."""
        return _once(
            [made for there in self._each() for made in await there.run(overrides_plan(there.plans.keys))]
        )

    async def set(
        self,
        task: str,
        *,
        key: str | None = None,
        rate: Rate | str | int | Keep | None = Keep.KEEP,
        concurrency: int | str | Keep | None = Keep.KEEP,
        for_: float | timedelta | None = None,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> Override:
        """As :meth:`Limits.set`."""
        _check_key(self.registry, task, key)
        made = [
            await there.run(
                set_plan(there.plans.keys, task, key, rate, concurrency, for_, reason, who(), dry_run=dry_run)
            )
            for there in self._each()
        ]
        return made[0]

    async def clear(self, task: str, *, key: str | None = None, dry_run: bool = False) -> Override:
        """As :meth:`Limits.clear`."""
        found = [
            await there.run(clear_plan(there.plans.keys, task, key, dry_run=dry_run))
            for there in self._each()
        ]
        return _cleared(found, task, key)


def _once(found: Iterable[Override]) -> AllSet:
    """Each once, by task and key: several servers are told the same."""
    return list(
        {each.name: each for each in sorted(found, key=lambda one: (one.task, one.key or ""))}.values()
    )
