"""What ``jobq doctor`` looks at besides the data: settings, Redis and its safety, then who serves what waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobq.cli.common import load_tasks
from jobq.cli.output import duration_text
from jobq.errors import ConfigError, StoreUnavailableError
from jobq.queues import QueueSpec, served_together
from jobq.units import plural

if TYPE_CHECKING:
    import redis

    from jobq.client import Client
    from jobq.config import Settings
    from jobq.connection import ServerInfo
    from jobq.registry import Registry
    from jobq.snapshot import QueueStats, Stats

_SLOW_WARN_S = 0.010
_SLOW_BAD_S = 0.250
_CLOCK_WARN_S = 1.0
_CLOCK_BAD_S = 60.0
_PROBES = 20


@dataclass(frozen=True, slots=True)
class Check:
    """One check's result.

    Attributes:
        status: ``ok``, ``fixed``, ``warn``, ``bad`` or ``unknown``, when the server does not say.
        remedy: What to do; empty when nothing.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For the JSON forms."""
        return {"check": self.name, "status": self.status, "detail": self.detail, "remedy": self.remedy}


def server_checks(client: Client) -> Iterator[Check]:
    """What Redis is, and how it stands.

    Raises:
        StoreUnavailableError: It cannot be reached.
    """
    # Late: redis.
    from jobq.connection import connect, inspect_server, require_usable

    with connect(client.settings) as raw:
        started = time.perf_counter()
        info = inspect_server(raw)
        took = _ms(time.perf_counter() - started)
        yield Check("redis", "ok", f"{info.flavour} {info.version} answers ({took})")
        yield from _server(info, require_usable)
        if info.role == "primary":
            yield _permissions(client, raw)
        yield from _probes(raw)
        yield from _resources(raw, client)


def _ms(seconds: float) -> str:
    return duration_text(round(seconds, 6))


def settings_checks(settings: Settings) -> Iterator[Check]:
    """What is configured."""
    if settings.secret_key is None:
        severe = settings.env.lower() == "production"
        yield Check(
            "secret key",
            "bad" if severe else "warn",
            "not set: payloads are not signed, secret params not encrypted",
            "set JOBQ_SECRET_KEY on producers and workers",
        )
    else:
        yield Check("secret key", "ok", "payloads are signed, secret params encrypted")
    if settings.secret_key is not None and settings.accept_unsigned:
        yield Check(
            "unsigned payloads",
            "warn",
            "accepted",
            "unset JOBQ_ACCEPT_UNSIGNED once all producers have the key",
        )
    if not settings.enabled:
        yield Check("enabled", "warn", "JOBQ_ENABLED is off")
    try:
        known = load_tasks(settings)
    except ConfigError as error:
        yield Check("app", "bad", str(error), "correct JOBQ_APP, or start where its modules can be imported")
        return
    if settings.app:
        yield Check(
            "app", "ok", f"{plural(len(known), 'task')} in {', '.join(settings.app)} and jobq's helpers"
        )
    else:
        yield Check("app", "warn", "not set: only jobq's own helpers are known", "set JOBQ_APP, or pass -A")
    yield from _declared(settings.renewed(), known)


def _declared(settings: Settings, known: Registry) -> Iterator[Check]:
    """What the application declares and no worker will serve, or fire."""
    # Late: they bring the client's half of the library.
    from jobq.schedule_records import records_of
    from jobq.schedule_spec import declared

    specs = settings.queue_specs()
    for name in known.names():
        queue = known.get(name).spec.queue
        if queue not in specs:
            yield Check(
                "queues",
                "warn",
                f"task {name} goes to queue {queue!r}, which is not configured here: no such worker serves it",
                f'declare it with jobq.queue(jobq.QueueSpec("{queue}", slots=…))',
            )
    for record in records_of(declared.all(), settings):
        if record.stored.error:
            yield Check(
                "schedules", "bad", f"{record.stored.name}: {record.stored.error}", "correct its declaration"
            )


def _server(info: ServerInfo, require_usable: Callable[[ServerInfo], None]) -> Iterator[Check]:
    try:
        require_usable(info)
        limit = f"maxmemory {info.maxmemory:,} bytes" if info.maxmemory else "no maxmemory"
        yield Check("server", "ok", f"{info.role}, {limit}, policy {info.maxmemory_policy}")
    except ConfigError as error:
        yield Check("server", "bad", str(error))
    costs = {
        "none": ("warn", "nothing survives a crash of Redis", "turn on appendonly yes"),
        "snapshot": ("warn", "a crash of Redis loses minutes of jobs", "turn on appendonly yes"),
        "aof-everysec": ("ok", "a crash of Redis loses at most the last 2 s", ""),
        "aof-always": ("ok", "a crash of Redis loses nothing", ""),
    }
    status, detail, remedy = costs.get(info.durability, ("unknown", "not known", ""))
    yield Check("durability", status, f"{info.durability}: {detail}", remedy)


def _permissions(client: Client, raw: redis.Redis) -> Check:
    """What the Redis user lacks, of all that workers and producers need."""
    # Late: redis.
    from jobq.calls import allowed
    from jobq.errors import StorePermissionError

    try:
        refused = client.run(allowed(client.keys))
        if not refused and _call(lambda: _subscribes(raw, f"{client.keys.n}cancel"), "SUBSCRIBE") is None:
            refused = [f"SUBSCRIBE of channels {client.keys.n}*"]
    except StorePermissionError as error:
        return Check("permissions", "bad", str(error), _ACL)
    if refused:
        return Check("permissions", "bad", f"the Redis user may not run {', '.join(refused)}", _ACL)
    return Check("permissions", "ok", "the Redis user may run what jobq needs")


_ACL = "extend its ACL, see 'A Redis user' in docs/operations.md"


def _subscribes(raw: redis.Redis, channel: str) -> bool:
    with raw.pubsub() as listener:  # type: ignore[no-untyped-call]
        listener.subscribe(channel)
        return listener.get_message(timeout=5) is not None


def _probes(raw: redis.Redis) -> Iterator[Check]:
    """Latency and clock, from a few TIMEs; the middle one counts."""
    took: list[float] = []
    offsets: list[float] = []
    for _ in range(_PROBES):
        before, tick = time.time(), time.perf_counter()
        answer = _call(raw.time, "TIME")
        if answer is None:
            yield Check("clock", "unknown", "TIME is closed here")
            return
        seconds, micros = answer
        elapsed = time.perf_counter() - tick
        took.append(elapsed)
        offsets.append(int(seconds) + int(micros) / 1e6 - (before + elapsed / 2))
    middle = sorted(took)[_PROBES // 2]
    status = "bad" if middle > _SLOW_BAD_S else "warn" if middle > _SLOW_WARN_S else "ok"
    slow = "" if status == "ok" else "bring workers closer to Redis, and look at its SLOWLOG"
    yield Check("latency", status, f"{_ms(middle)} a round trip, at worst {_ms(max(took))}", slow)
    offset = sorted(offsets)[_PROBES // 2]
    away = abs(offset)
    status = "bad" if away > _CLOCK_BAD_S else "warn" if away > _CLOCK_WARN_S else "ok"
    remedy = (
        ""
        if status == "ok"
        else "run NTP here and on Redis' host; jobs go by Redis' clock, dates shown by ours"
    )
    yield Check("clock", status, f"Redis is {_ms(away)} {'ahead' if offset >= 0 else 'behind'}", remedy)


def _resources(raw: redis.Redis, client: Client) -> Iterator[Check]:
    info: dict[str, Any] = _call(raw.info, "INFO") or {}
    yield from _disk(info)
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if limit:
        share, at = used / limit, client.settings.shed_at()
        status = "bad" if share * 100 > at.critical else "warn" if share * 100 > at.low else "ok"
        remedy = "" if status == "ok" else "raise maxmemory, or keep fewer ended jobs; see jobq memory"
        yield Check("memory", status, f"{share:.0%} of maxmemory used", remedy)
    else:
        yield Check("memory", "ok", f"{used / 1_048_576:.1f} MB used, no limit")
    listpack = _config(raw, "hash-max-listpack-value")
    if listpack is None:
        yield Check("hash-max-listpack-value", "unknown", "CONFIG is closed here")
    elif int(listpack) < 512:
        yield Check(
            "hash-max-listpack-value", "warn", f"{listpack}: a waiting job takes about twice the memory",
            "set hash-max-listpack-value 512",
        )  # fmt: skip
    else:
        yield Check("hash-max-listpack-value", "ok", listpack)
    most = int(info.get("maxclients", 0) or _config(raw, "maxclients") or 0)
    if most:
        yield _connections(int(info.get("connected_clients", 0)), most, client)


def _disk(info: dict[str, Any]) -> Iterator[Check]:
    failed = [
        name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name, "ok") != "ok"
    ]
    if failed:
        yield Check(
            "disk", "bad", f"Redis could not save: {', '.join(failed)}", "free its disk, mend permissions"
        )
    replicas = int(info.get("connected_slaves", 0))
    detail = f"{replicas} connected" if replicas else "none: when its host is lost, so is what it holds"
    yield Check("replicas", "ok", detail)


def _connections(connected: int, most: int, client: Client) -> Check:
    together = served_together(client.specs.values()).values()
    needed = 2 + sum(1 + len(specs) + max(map(_of_tasks, specs)) for specs in together)
    share = connected / most
    status = "bad" if share > 0.9 else "warn" if share > 0.7 or most - connected < needed else "ok"
    remedy = "" if status == "ok" else "raise maxclients and the open-files limit"
    detail = f"{connected:,} of {most:,}; one more worker of all queues takes up to {needed:,}"
    return Check("connections", status, detail, remedy)


def _of_tasks(spec: QueueSpec) -> int:
    """Connections of a queue's tasks: of one process all together, of children each."""
    from jobq.connection import task_connections  # late: redis

    return spec.slots if spec.isolation == "process" else task_connections(spec.slots)


def queue_checks(client: Client) -> Iterator[Check]:
    """Who serves what waits, and what else waits in vain."""
    # Late: redis.
    from jobq.health import Thresholds
    from jobq.limit_parts import unreadable_plan

    stats = client.stats()
    anybody = any(queue.workers for queue in stats.queues.values())
    for name, queue in stats.queues.items():
        found = list(_queue(client, name, queue, anybody=anybody))
        yield from found
        if not found and (queue.queued or queue.workers):
            yield Check(f"queue {name}", "ok", f"{queue.queued:,} waiting, {plural(queue.workers, 'worker')}")
    if not anybody:
        yield Check("workers", "warn", "none is alive", "start jobq worker")
    yield from _silent(stats)
    yield from _idle(stats)
    lost = client.run(unreadable_plan(client.keys))
    if lost:
        yield Check(
            "limits",
            "bad",
            f"{lost:,} of those that operators have set for tasks cannot be read, and may limit nothing",
            "see jobq limits list, and set anew what is missing",
        )
    if stats.stalled:
        words = f"{plural(stats.stalled, 'running job', 'have')} no live worker"
        yield Check("leases", "bad", words, "start jobq worker")
    if stats.totals.dead:
        limits, dead = Thresholds(), stats.totals.dead
        status = "bad" if dead > limits.dead_bad else "warn" if dead > limits.dead_warn else "ok"
        yield Check("dead letters", status, f"{dead:,}", "" if status == "ok" else "see jobq dead groups")


def _queue(client: Client, name: str, queue: QueueStats, *, anybody: bool) -> Iterator[Check]:
    """What keeps a queue's jobs from running, the worst of it, and jobs that are parked besides."""
    place, serve = f"queue {name}", f"start jobq worker --queue {name}"
    if queue.queued and not queue.workers:
        yield Check(place, "bad", f"{plural(queue.queued, verb='wait')} and no live worker serves it", serve)
    elif queue.shed:
        yield Check(place, "bad", "refuses new jobs: memory is short", "raise maxmemory; see jobq memory")
    elif queue.paused and queue.queued:
        words = f"paused with {plural(queue.queued)} waiting"
        yield Check(place, "warn", words, f"jobq queues resume {name}")
    elif queue.held and queue.queued:
        undo = f"resume {name}" if queue.held.startswith("told") else f"limit {name} --reset"
        words = f"{queue.held}, with {plural(queue.queued)} waiting"
        yield Check(place, "warn", words, f"jobq queues {undo}")
    elif queue.target_s is not None and queue.oldest_queued_s > queue.target_s:
        words, remedy = f"the next job has waited {duration_text(queue.oldest_queued_s)}", _MORE
        if queue.limits:
            words = f"{words}; limited to {queue.limits}"
            remedy = f"if that is too little: jobq queues limit {name}"
        yield Check(place, "warn", words, remedy)
    elif not queue.workers and (later := queue.scheduled + queue.retrying):
        yield Check(place, "warn", f"{plural(later, verb='become')} due and no live worker serves it", serve)
    elif anybody and not queue.workers and name in client.specs:
        yield Check(place, "warn", "configured, and no live worker serves it", serve)
    if queue.parked:
        waits_for = ", ".join(_buckets(client, name))
        yield Check(place, "warn", f"{plural(queue.parked)} parked for {waits_for}", _FITTING)


_MORE = "add workers or slots, or look for slow tasks"
_FITTING = "start a worker whose JOBQ_APP and JOBQ_SECRET_KEY fit; see jobq jobs list --state parked"


def _silent(stats: Stats) -> Iterator[Check]:
    """Workers that count as alive for a while yet, and do nothing."""
    from jobq.health import silent_workers  # late: redis

    for name, seconds in silent_workers(stats):
        yield Check(
            f"worker {name}",
            "warn",
            f"has not been heard of for {duration_text(round(seconds))}",
            "it hangs, is stopped (SIGSTOP, a debugger), or cut off, or its host's clock is wrong: look there; "
            "another worker takes its jobs after a lease",
        )
    ahead = {
        worker.worker or worker.name: off
        for worker in stats.workers
        if worker.kind == "jobq" and worker.last_heartbeat is not None
        if (off := (worker.last_heartbeat - stats.generated_at).total_seconds()) > _CLOCK_WARN_S
    }
    for name, seconds in ahead.items():
        words = f"its clock is {duration_text(round(seconds))} ahead of Redis'"
        yield Check(f"worker {name}", "warn", words, "run NTP on its host; dates it writes are wrong")


def _buckets(client: Client, queue: str, shown: int = 3) -> list[str]:
    """What parked jobs wait for: names of tasks, or of keys."""
    # Late: the steps know the scripts.
    from jobq.replies import as_text
    from jobq.steps import Batch

    replies: list[Any] = client.run(Batch((("SMEMBERS", client.keys.parked(queue)),)))
    names = [] if isinstance(replies[0], Exception) else sorted(map(as_text, replies[0]))
    more = len(names) - shown
    return names[:shown] + ([f"{more} more"] if more > 0 else [])


def _idle(stats: Stats) -> Iterator[Check]:
    """Workers that could help, were they told to serve what waits."""
    unserved = [name for name, queue in stats.queues.items() if queue.queued and not queue.workers]
    waiting = {name for name, queue in stats.queues.items() if queue.queued}
    idle = [worker.name for worker in stats.workers if not waiting.intersection(worker.queues)]
    if unserved and idle:
        named = ", ".join(idle[:3]) + (" …" if len(idle) > 3 else "")
        words = f"{len(idle):,} serve only queues where nothing waits ({named})"
        yield Check("idle workers", "warn", words, f"let them serve {', '.join(unserved)}, too")


def _call(ask: Callable[[], Any], name: str) -> Any:
    """The answer; None for what this server refuses to tell.

    Raises:
        StoreUnavailableError: It went away meanwhile.
    """
    from redis.exceptions import RedisError, ResponseError  # late: redis

    try:
        return ask()
    except ResponseError:
        return None
    except RedisError as error:
        raise StoreUnavailableError(f"Redis cannot be reached: {name}: {error}") from error


def _config(raw: redis.Redis, name: str) -> str | None:
    found = _call(lambda: raw.config_get(name), "CONFIG GET") or {}
    text = {
        key.decode() if isinstance(key, bytes) else key: value.decode() if isinstance(value, bytes) else value
        for key, value in found.items()
    }
    value = text.get(name)
    return str(value) if value else None
