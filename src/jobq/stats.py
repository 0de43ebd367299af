"""Taking the snapshot that ``jobq stats`` shows: counts, waits against targets, throughput, in a few pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from jobq.connection import durability_of
from jobq.fleet import Worker, queue_info, queue_names, worker_commands, worker_names, worker_of
from jobq.keys import Keys
from jobq.queues import QueueSpec
from jobq.replies import as_int, as_map, as_text, exact_text
from jobq.snapshot import WINDOW, Counters, QueueStats, RedisStats, Stats
from jobq.steps import Batch, Plan
from jobq.units import redis_ms

__all__ = ["WINDOW", "Counters", "QueueStats", "RedisStats", "Stats", "redis_stats", "stats_plan", "united"]

_LONGEST = timedelta(hours=24)
_CHUNK = 2_000


def stats_plan(
    keys: Keys,
    specs: Mapping[str, QueueSpec],
    *,
    queue: str | None = None,
    since: timedelta | None = None,
) -> Plan[Stats]:
    """Counts and measures of all queues, or of one.

    Two pipelines however many queues there are, a third, small one while jobs wait or are parked. Nothing but reads
    that no server keeps to itself, so that a replica and a modest user answer, too.

    Args:
        since: The window; None: five minutes. Rounded up to whole minutes.
    Raises:
        ValueError: A window of zero or less, or of more than 24 h, which is as long as counters are kept.
    """
    window = WINDOW if since is None else since
    if not timedelta(0) < window <= _LONGEST:
        raise ValueError(f"the window must be above 0 and at most 24 h, got {window}")
    members, worker_members, time_reply, info, fsync, save = yield Batch(
        (
            ("SMEMBERS", keys.queues),
            ("SMEMBERS", keys.workers),
            ("TIME",),
            ("INFO",),
            ("CONFIG", "GET", "appendfsync"),
            ("CONFIG", "GET", "save"),
        )
    )
    now_ms = redis_ms(time_reply)
    names = queue_names(keys, specs, members) if queue is None else (queue,)
    workers_known = worker_names(keys, worker_members)
    minutes = _minutes(now_ms, window)
    commands: list[tuple[Any, ...]] = [("ZCOUNT", keys.leases, "-inf", f"({now_ms - 15_000}")]
    for name in names:
        commands += _queue_commands(keys, name)
    for name in workers_known:
        commands += worker_commands(keys, name)
    for name in names:
        commands += [("HGETALL", keys.counters(name, minute)) for minute in minutes]
    replies = yield from _in_chunks(commands)
    feed = iter(replies)
    stalled = as_int(next(feed))
    raw = {name: [next(feed) for _ in range(_PER_QUEUE)] for name in names}
    found = [worker_of(name, next(feed), next(feed)) for name in workers_known]
    workers = tuple(worker for worker in found if worker is not None)
    counted = {name: _counters(feed, minutes, now_ms) for name in names}
    heads = yield from _heads_plan(keys, {name: raw[name][9] for name in names})
    parked = yield from _parked_plan(keys, [name for name in names if as_map(raw[name][7]).get("parked")])
    queues = {
        name: _queue_stats(
            keys,
            name,
            specs.get(name),
            raw[name],
            heads.get(name, 0),
            counted[name],
            workers,
            parked.get(name, 0) + as_int(raw[name][-1]),
            now_ms,
            window,
        )
        for name in names
    }
    return Stats(
        generated_at=datetime.fromtimestamp(now_ms / 1000, tz=UTC),
        queues=queues,
        totals=_totals(queues.values(), workers, window),
        redis=redis_stats(info, fsync, save),
        workers=workers,
        stalled=stalled,
    )


def united(names: Sequence[str], parts: Sequence[Stats]) -> Stats:
    """One snapshot of several Redis servers' queues; the first server comes as ``redis``, the others by their names."""
    queues = {name: queue for part in parts for name, queue in part.queues.items()}
    workers = tuple(worker for part in parts for worker in part.workers)
    window = timedelta(seconds=parts[0].totals.window_s)
    return replace(
        parts[0],
        queues=queues,
        totals=_totals(queues.values(), workers, window),
        workers=workers,
        stalled=sum(part.stalled for part in parts),
        others={name: part.redis for name, part in zip(names[1:], parts[1:], strict=True)},
    )


def _in_chunks(commands: Sequence[tuple[Any, ...]]) -> Plan[list[Any]]:
    """One pipeline for the usual window; a day's worth of minutes goes in several, to keep buffers small."""
    replies: list[Any] = []
    for start in range(0, len(commands), _CHUNK):
        replies += yield Batch(tuple(commands[start : start + _CHUNK]))
    return replies


def _queue_commands(keys: Keys, name: str) -> tuple[tuple[Any, ...], ...]:
    return (
        ("LLEN", keys.queue(name)),
        ("ZCARD", keys.scheduled(name)),
        ("ZCARD", keys.retrying(name)),
        ("ZCARD", keys.deferred(name)),
        ("ZCARD", keys.wip(name)),
        ("ZCARD", keys.finished(name)),
        ("ZCARD", keys.failed(name)),
        ("HGETALL", keys.queue_state(name)),
        ("ZCARD", keys.canceled(name)),
        # SORT … GET would bring the `q` of its hash along: but it counts as a write, and as dangerous.
        ("LINDEX", keys.queue(name), 0),
        ("ZCARD", keys.blocked(name)),
    )


_PER_QUEUE = len(_queue_commands(Keys(), ""))


def _counters(feed: Iterator[Any], minutes: Sequence[int], now_ms: int) -> tuple[Counters, float]:
    """The counters of a window, and the seconds that they cover: since the first minute with any."""
    total = Counters()
    first: int | None = None
    for minute in minutes:
        fields = as_map(next(feed))
        if fields:
            first = minute if first is None else first
            total.add(fields)
    elapsed = now_ms / 1000 - (minutes[0] if first is None else first) * 60
    return total, max(elapsed, 1.0)


def _heads_plan(keys: Keys, heads: Mapping[str, Any]) -> Plan[dict[str, int]]:
    """When the next job of each queue became queued, ms."""
    ids = {name: exact_text(head) for name, head in heads.items() if isinstance(head, bytes | str)}
    if not ids:
        return {}
    found = yield Batch(tuple(("HGET", keys.job(job_id), "q") for job_id in ids.values()))
    return dict(zip(ids, map(as_int, found), strict=True))


def _parked_plan(keys: Keys, names: Sequence[str]) -> Plan[dict[str, int]]:
    if not names:
        return {}
    buckets = yield Batch(tuple(("SMEMBERS", keys.parked(name)) for name in names))
    pairs = [
        (name, as_text(bucket))
        for name, members in zip(names, buckets, strict=True)
        if not isinstance(members, Exception)
        for bucket in members
    ]
    if not pairs:
        return {}
    counts = yield Batch(tuple(("ZCARD", keys.bucket(name, bucket)) for name, bucket in pairs))
    parked: dict[str, int] = {}
    for (name, _), count in zip(pairs, counts, strict=True):
        parked[name] = parked.get(name, 0) + as_int(count)
    return parked


def _queue_stats(
    keys: Keys,
    name: str,
    spec: QueueSpec | None,
    raw: Sequence[Any],
    due_ms: int,
    counted: tuple[Counters, float],
    workers: Sequence[Worker],
    parked: int,
    now_ms: int,
    window: timedelta,
) -> QueueStats:
    queued, scheduled, retrying, deferred, running, finished, failed, state, cancelled, _, _ = raw
    info = queue_info(name, spec, 0, as_map(state), now_ms)
    serving = [worker for worker in workers if name in worker.queues]
    commands = _queue_commands(keys, name)
    wrong = tuple(
        str(command[1])
        for command, reply in zip(commands[:-1], raw[:-1], strict=True)
        if isinstance(reply, Exception)
    )
    return QueueStats(
        queued=as_int(queued),
        scheduled=max(as_int(scheduled) - as_int(retrying), 0),
        retrying=min(as_int(retrying), as_int(scheduled)),
        deferred=max(as_int(deferred) - parked, 0),
        parked=parked,
        running=as_int(running),
        succeeded=as_int(finished),
        dead=as_int(failed),
        cancelled=as_int(cancelled),
        paused=info.paused,
        shed=info.shed,
        workers=len(serving),
        slots=sum(worker.slots_of(name) for worker in serving),
        busy=sum(worker.busy_of(name) for worker in serving),
        oldest_queued_s=max(now_ms - due_ms, 0) / 1000 if due_ms else 0.0,
        target_s=spec.target.total_seconds() if spec and spec.target else None,
        window_s=window.total_seconds(),
        counters=counted[0],
        elapsed_s=counted[1],
        unreadable=wrong,
        held=info.held_in_words,
        limits=info.limits_in_words,
    )


_SUMMED = (
    "queued",
    "scheduled",
    "retrying",
    "deferred",
    "parked",
    "running",
    "succeeded",
    "dead",
    "cancelled",
)


def _totals(queues: Any, workers: Sequence[Worker], window: timedelta) -> QueueStats:
    every: list[QueueStats] = list(queues)
    counters = Counters()
    for each in every:
        counters.merge(each.counters)
    return QueueStats(
        **{name: sum(getattr(each, name) for each in every) for name in _SUMMED},
        paused=any(each.paused for each in every),
        shed=any(each.shed for each in every),
        workers=len(workers),
        slots=sum(worker.slots for worker in workers),
        busy=sum(worker.busy for worker in workers),
        oldest_queued_s=max((each.oldest_queued_s for each in every), default=0.0),
        window_s=window.total_seconds(),
        counters=counters,
        elapsed_s=max((each.elapsed_s for each in every if each.counters.by_task), default=1.0),
        unreadable=tuple(key for each in every for key in each.unreadable),
    )


def _minutes(now_ms: int, window: timedelta) -> range:
    last = now_ms // 60_000
    return range((now_ms - int(window.total_seconds() * 1000)) // 60_000, last + 1)


# --------------------------------------------------------------------------- the server


def redis_stats(info: Any, fsync: Any, save: Any) -> RedisStats:
    """Memory and durability from ``INFO`` and two ``CONFIG GET``, which managed servers refuse."""
    fields = _info_fields(info)
    return RedisStats(
        used_memory=as_int(fields.get("used_memory")),
        maxmemory=as_int(fields.get("maxmemory")),
        durability=durability_of(fields, as_map(fsync) | as_map(save)),
    )


def _info_fields(info: Any) -> dict[str, str]:
    if isinstance(info, Mapping):
        return {as_text(name): as_text(value) for name, value in info.items()}
    if isinstance(info, Exception) or not info:
        return {}
    lines = (line.partition(":") for line in as_text(info).splitlines())
    return {name: value.strip() for name, separator, value in lines if separator}
