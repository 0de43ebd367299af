"""``jobq doctor``: find out why jobs do not run, or would be lost.

The order is that of the runbook: settings, Redis, its safety, then who serves what waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from jobq.cli.common import Exit, State, load_tasks, pass_state
from jobq.cli.options import Command
from jobq.cli.output import Column, duration_text
from jobq.errors import ConfigError, StoreUnavailableError

if TYPE_CHECKING:
    import redis

    from jobq.client import Client
    from jobq.config import Settings
    from jobq.connection import ServerInfo

_SLOW_WARN_S = 0.010
_SLOW_BAD_S = 0.250
_CLOCK_WARN_S = 1.0
_CLOCK_BAD_S = 60.0
_PROBES = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result.

    Attributes:
        status: ``ok``, ``warn``, ``bad`` or ``unknown``, when the server does not say.
        remedy: What to do; empty when nothing.
    """

    check: str
    status: str
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For the JSON forms."""
        return {"check": self.check, "status": self.status, "detail": self.detail, "remedy": self.remedy}


@click.command(cls=Command)
@pass_state
def doctor(state: State) -> int:
    """Check settings, Redis and workers. Exits with 6 when something is bad, 69 when Redis is away."""
    settings = state.settings()
    findings = list(_settings(settings))
    client = state.client()
    # Late: redis.
    from jobq.connection import connect, inspect_server, require_usable

    unreachable: StoreUnavailableError | None = None
    try:
        with connect(settings) as raw:
            started = time.perf_counter()
            info = inspect_server(raw)
            findings.append(
                Finding(
                    "redis",
                    "ok",
                    f"{info.flavour} {info.version} answers ({_ms(time.perf_counter() - started)})",
                )
            )
            findings += _server(info, require_usable)
            findings += _probes(raw)
            findings += _memory_and_connections(raw, client)
        findings += _queues(client)
    except StoreUnavailableError as error:
        unreachable = error
        findings.append(
            Finding(
                "redis",
                "bad",
                str(error),
                "start Redis, or correct JOBQ_REDIS_URL (see jobq config show --origin)",
            )
        )
    records = [finding.as_dict() for finding in findings]
    bad = [finding for finding in findings if finding.status == "bad"]
    state.out.table(
        findings,
        [
            Column("check", lambda finding: finding.check),
            Column("status", lambda finding: finding.status),
            Column("detail", lambda finding: finding.detail, grow=True),
            Column("remedy", lambda finding: finding.remedy or None, grow=True),
        ],
        document={"ok": not bad, "checks": records},
        records=records,
    )
    for finding in bad:
        state.out.error(
            f"{finding.check}: {finding.detail}" + (f"; {finding.remedy}" if finding.remedy else "")
        )
    if unreachable is not None:
        return Exit.UNAVAILABLE
    return Exit.BAD if bad else Exit.DONE


def _ms(seconds: float) -> str:
    return duration_text(round(seconds, 6))


def _settings(settings: Settings) -> Iterator[Finding]:
    if settings.secret_key is None:
        severe = settings.env.lower() == "production"
        yield Finding(
            "secret key",
            "bad" if severe else "warn",
            "not set: payloads are not signed, secret params not encrypted",
            "set JOBQ_SECRET_KEY on producers and workers",
        )
    else:
        yield Finding("secret key", "ok", "payloads are signed, secret params encrypted")
    if settings.secret_key is not None and settings.accept_unsigned:
        yield Finding(
            "unsigned payloads",
            "warn",
            "accepted",
            "unset JOBQ_ACCEPT_UNSIGNED once all producers have the key",
        )
    if not settings.enabled:
        yield Finding("enabled", "warn", "JOBQ_ENABLED is off")
    try:
        names = load_tasks(settings).names()
    except ConfigError as error:
        yield Finding(
            "app", "bad", str(error), "correct JOBQ_APP, or start where its modules can be imported"
        )
        return
    if settings.app:
        yield Finding("app", "ok", f"{len(names)} tasks in {', '.join(settings.app)} and jobq's helpers")
    else:
        yield Finding("app", "warn", "not set: only jobq's own helpers are known", "set JOBQ_APP, or pass -A")


def _server(info: ServerInfo, require_usable: Callable[[ServerInfo], None]) -> Iterator[Finding]:
    try:
        require_usable(info)
        limit = f"maxmemory {info.maxmemory:,} bytes" if info.maxmemory else "no maxmemory"
        yield Finding("server", "ok", f"{info.role}, {limit}, policy {info.maxmemory_policy}")
    except ConfigError as error:
        yield Finding("server", "bad", str(error))
    costs = {
        "none": ("warn", "nothing survives a crash of Redis", "turn on appendonly yes"),
        "snapshot": ("warn", "a crash of Redis loses minutes of jobs", "turn on appendonly yes"),
        "aof-everysec": ("ok", "a crash of Redis loses at most the last 2 s", ""),
        "aof-always": ("ok", "a crash of Redis loses nothing", ""),
    }
    status, detail, remedy = costs.get(info.durability, ("unknown", "not known", ""))
    yield Finding("durability", status, f"{info.durability}: {detail}", remedy)


def _probes(raw: redis.Redis) -> Iterator[Finding]:
    """Latency and clock, from a few TIMEs; the middle one counts."""
    took: list[float] = []
    offsets: list[float] = []
    for _ in range(_PROBES):
        before, tick = time.time(), time.perf_counter()
        seconds, micros = _call(raw.time, "TIME")
        elapsed = time.perf_counter() - tick
        took.append(elapsed)
        offsets.append(int(seconds) + int(micros) / 1e6 - (before + elapsed / 2))
    middle = sorted(took)[_PROBES // 2]
    status = "bad" if middle > _SLOW_BAD_S else "warn" if middle > _SLOW_WARN_S else "ok"
    slow = "" if status == "ok" else "bring workers closer to Redis, and look at its SLOWLOG"
    yield Finding("latency", status, f"{_ms(middle)} a round trip, at worst {_ms(max(took))}", slow)
    offset = sorted(offsets)[_PROBES // 2]
    away = abs(offset)
    status = "bad" if away > _CLOCK_BAD_S else "warn" if away > _CLOCK_WARN_S else "ok"
    remedy = (
        ""
        if status == "ok"
        else "run NTP here and on Redis' host; jobs go by Redis' clock, dates shown by ours"
    )
    yield Finding("clock", status, f"Redis is {_ms(away)} {'ahead' if offset >= 0 else 'behind'}", remedy)


def _memory_and_connections(raw: redis.Redis, client: Client) -> Iterator[Finding]:
    info = _call(raw.info, "INFO") or {}
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if limit:
        share = used / limit
        status = "bad" if share > 0.95 else "warn" if share > 0.8 else "ok"
        yield Finding(
            "memory", status, f"{share:.0%} of maxmemory used",
            "" if status == "ok" else "raise maxmemory, or keep fewer ended jobs",
        )  # fmt: skip
    else:
        yield Finding("memory", "ok", f"{used / 1_048_576:.1f} MB used, no limit")
    listpack = _config(raw, "hash-max-listpack-value")
    if listpack is None:
        yield Finding("hash-max-listpack-value", "unknown", "CONFIG is closed here")
    elif int(listpack) < 512:
        yield Finding(
            "hash-max-listpack-value", "warn", f"{listpack}: a waiting job takes about twice the memory",
            "set hash-max-listpack-value 512",
        )  # fmt: skip
    else:
        yield Finding("hash-max-listpack-value", "ok", listpack)
    connected = int(info.get("connected_clients", 0))
    most = int(info.get("maxclients", 0) or _config(raw, "maxclients") or 0)
    if most:
        share = connected / most
        status = "bad" if share > 0.9 else "warn" if share > 0.7 else "ok"
        remedy = "" if status == "ok" else "raise maxclients and the open-files limit"
        yield Finding("connections", status, f"{connected:,} of {most:,}", remedy)
    broken = _call(lambda: raw.zcard(client.keys.quarantine), "ZCARD")
    if broken:
        yield Finding(
            "quarantine",
            "warn",
            f"{broken:,} jobs cannot be read",
            f"look at ZRANGE {client.keys.quarantine} 0 -1",
        )


def _queues(client: Client) -> Iterator[Finding]:
    """What the health check finds, and a line for each queue that is well."""
    stats = client.stats()
    for name, queue in stats.queues.items():
        if queue.queued and not queue.workers:
            yield Finding(
                f"queue {name}", "bad", f"{queue.queued:,} jobs wait and no live worker serves it",
                f"start jobq worker --queue {name}",
            )  # fmt: skip
        elif queue.paused and queue.queued:
            yield Finding(
                f"queue {name}",
                "warn",
                f"paused with {queue.queued:,} jobs waiting",
                f"jobq queues resume {name}",
            )
        elif queue.parked:
            yield Finding(
                f"queue {name}", "warn", f"{queue.parked:,} jobs parked: no live worker can run them",
                "start a worker whose JOBQ_APP and JOBQ_SECRET_KEY fit; see jobq jobs list --state parked",
            )  # fmt: skip
        elif queue.target_s is not None and queue.oldest_queued_s > queue.target_s:
            yield Finding(
                f"queue {name}", "warn", f"the next job has waited {duration_text(queue.oldest_queued_s)}",
                "add workers or slots, or look for slow tasks",
            )  # fmt: skip
        elif queue.queued or queue.workers:
            yield Finding(f"queue {name}", "ok", f"{queue.queued:,} waiting, {queue.workers} workers")
    if not any(queue.workers for queue in stats.queues.values()):
        yield Finding("workers", "warn", "none is alive", "start jobq worker")
    if stats.stalled:
        yield Finding(
            "leases", "bad", f"{stats.stalled:,} running jobs have no live worker", "start jobq worker"
        )
    if stats.totals.dead:
        status = "bad" if stats.totals.dead > 100 else "warn" if stats.totals.dead > 10 else "ok"
        yield Finding(
            "dead letters", status, f"{stats.totals.dead:,}", "" if status == "ok" else "see jobq dead groups"
        )


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
