"""Redis clients by role, the deadline of an enqueue, and what a server must be to be used.

=========  ================  =============================================  ==========================
role       socket timeout    retries inside redis-py                        for
=========  ================  =============================================  ==========================
enqueue    enqueue_timeout   none: :class:`Deadline` bounds the whole call  producers
command    5 s               3 after a lost connection, jittered            idempotent scripts, reads
worker     5 s               none: the caller's loop reconnects             a worker's processes
blocking   block + 5 s       none: the caller's loop reconnects             blocking reads
pubsub     block + 5 s       3 after a lost connection, jittered            subscriptions
=========  ================  =============================================  ==========================

redis-py by default retries writes ten times, and gives up a blocking read after 5 s only to start it again; and it
takes six round trips to connect, which on a slow network is all the time that an enqueue has. Here it takes two.
The protocol is never set: an explicit RESP3 changes the shapes of answers.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from jobq import refusals
from jobq.config import Settings
from jobq.deadline import LOST, Bounded, Deadline, Noting, backoff_delays, mixed
from jobq.errors import ConfigError, StoreUnavailableError
from jobq.parsing import RedisUrl, parse_redis_url, redact_url

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

__all__ = [
    "Deadline",
    "Role",
    "ServerInfo",
    "backoff_delays",
    "check_client",
    "connect",
    "connect_async",
    "connection_limit",
    "detached",
    "inspect_server",
    "inspect_server_async",
    "limit_connections",
    "redact_url",
    "require_usable",
    "task_connections",
]

Role = Literal["command", "enqueue", "worker", "blocking", "pubsub"]
Durability = Literal["none", "snapshot", "aof-everysec", "aof-always", "unknown"]

COMMAND_TIMEOUT_S = 5.0
_WORKER_CONNECT_S = 2.0
"""Less than rescue's hold-off after a gap, a third of a lease: a worker that begins to connect when Redis returns, on
a network that drops packets, must be back before its leases are taken for lost."""
_MARGIN_S = 5.0
_SENTINEL_TIMEOUT_S = 0.5

TASK_CONNECTIONS = 6
"""Most connections that the tasks of one executor process share; it has two of its own."""

_most: int | None = None


def _client_name(role: str) -> str:
    # Redis refuses blanks and control characters in a client's name.
    host = re.sub(r"[^\w.-]", "_", socket.gethostname())
    return f"jobq:{role}:{host}:{os.getpid()}"


def _parsed(settings: Settings, url: str | None) -> RedisUrl:
    try:
        return parse_redis_url(url or settings.redis_url)
    except ValueError as error:
        raise ConfigError(f"the Redis URL is wrong: {error}") from None


def _policy(settings: Settings, role: Role, block_s: float) -> dict[str, Any]:
    """Keyword arguments of a connection of this role, but for the retry object."""
    if role == "enqueue":
        timeout_s = connect_s = settings.enqueue_timeout.total_seconds()
    elif role == "command":
        timeout_s = connect_s = COMMAND_TIMEOUT_S
    elif role == "worker":
        timeout_s, connect_s = COMMAND_TIMEOUT_S, _WORKER_CONNECT_S
    else:
        timeout_s, connect_s = block_s + _MARGIN_S, COMMAND_TIMEOUT_S
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_s,
        # A PING before a command costs a round trip and finds nothing that the command would not.
        "health_check_interval": 30 if role == "pubsub" else 0,
        "client_name": _client_name(role),
        "decode_responses": False,
        **_SHORT_HANDSHAKE,
    }


def _short_handshake() -> dict[str, Any]:
    """What spares round trips at connecting, as far as this release of redis-py knows it."""
    known = signature(redis.connection.AbstractConnection).parameters
    options: dict[str, Any] = {}
    if "driver_info" in known:
        options["driver_info"] = None
    else:
        options |= {"lib_name": None, "lib_version": None}
    try:
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:  # redis-py 6 has none
        return options
    return options | {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}


_SHORT_HANDSHAKE = _short_handshake()


def _retry(kind: Any, role: Role) -> Any:
    """A retry object of redis-py, of its sync or its asyncio kind."""
    if role in ("enqueue", "worker", "blocking"):
        return kind(NoBackoff(), 0)
    # A lost connection is made again. Who waited in vain hears of it: a frozen server would take four times as long.
    return kind(
        ExponentialWithJitterBackoff(base=0.01, cap=1.0), 3, supported_errors=(redis.ConnectionError,)
    )


def _sentinel_policy(target: RedisUrl, connect_s: float) -> dict[str, Any]:
    """Each sentinel is asked in turn, so that all of them fit into half of the time to connect."""
    timeout_s = max(0.05, min(_SENTINEL_TIMEOUT_S, connect_s / (2 * len(target.sentinels))))
    return {
        **target.sentinel_options,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        **({"ssl": True} if target.tls else {}),
        **{name: value for name, value in target.options.items() if name.startswith("ssl_")},
    }


def connect(
    settings: Settings,
    role: Role = "command",
    *,
    url: str | None = None,
    block_s: float = 5.0,
    most: int | None = None,
) -> redis.Redis:
    """A client with the timeouts and retries of its role; nothing is sent yet.

    Args:
        settings: Names the server and the enqueue timeout.
        role: What it is for, see the table at the top of the module.
        url: Instead of the URL of the settings, for a queue with a Redis of its own.
        block_s: Longest blocking read, for the roles ``blocking`` and ``pubsub``.
        most: Connections at a time; one more is a ``MaxConnectionsError``. None: no bound.

    Raises:
        ConfigError: The URL cannot be understood.
    """
    target = _parsed(settings, url)
    policy = {**_policy(settings, role, block_s), "retry": _retry(Retry, role), "max_connections": most}
    try:
        pool = (
            _sentinel_pool(target, policy)
            if target.service
            else redis.ConnectionPool.from_url(target.url, **policy)
        )
    except (ValueError, RedisError) as error:
        raise ConfigError(f"the Redis URL is wrong: {error}") from None
    if role == "enqueue":
        pool.connection_class = mixed(Bounded, pool.connection_class)
    return redis.Redis.from_pool(pool)


def _sentinel_pool(target: RedisUrl, policy: dict[str, Any]) -> redis.ConnectionPool:
    from redis.sentinel import Sentinel, SentinelConnectionPool  # late: few have one

    sentinel_kwargs = _sentinel_policy(target, policy["socket_connect_timeout"])
    sentinel = Sentinel(
        list(target.sentinels), sentinel_kwargs={**sentinel_kwargs, "retry": Retry(NoBackoff(), 0)}
    )  # type: ignore[no-untyped-call]
    pool: redis.ConnectionPool = mixed(_Closing, SentinelConnectionPool)(
        target.service, sentinel, is_master=True, ssl=target.tls, **target.options, **policy
    )
    return pool


def connect_async(
    settings: Settings,
    role: Role = "command",
    *,
    url: str | None = None,
    block_s: float = 5.0,
    most: int | None = None,
) -> AsyncRedis:
    """The asyncio twin of :func:`connect`; a client belongs to the event loop that first uses it."""
    from redis import asyncio as aio  # late by name only: redis-py itself imports it
    from redis.asyncio.retry import Retry as AsyncRetry

    target = _parsed(settings, url)
    policy = {
        **_policy(settings, role, block_s),
        "retry": _retry(AsyncRetry, role),
        "max_connections": most,
    }
    try:
        if target.service:
            pool = _async_sentinel_pool(target, policy)
        else:
            pool = aio.ConnectionPool.from_url(target.url, **policy)
    except (ValueError, RedisError) as error:
        raise ConfigError(f"the Redis URL is wrong: {error}") from None
    if role != "blocking":
        pool.connection_class = mixed(Noting, pool.connection_class)
    return aio.Redis.from_pool(pool)


def task_connections(slots: int) -> int:
    """How many connections so many slots of one process share for their tasks' own use."""
    return min(slots, TASK_CONNECTIONS)


def limit_connections(most: int | None) -> None:
    """Bound what each client that is first used from now on opens in this process: it waits for a free connection.

    Args:
        most: Connections that enqueues and commands share, and as many again for blocking reads. None: no bound.
    """
    global _most
    _most = most


def connection_limit() -> int | None:
    """What :func:`limit_connections` was told."""
    return _most


def detached(client: redis.Redis) -> redis.connection.AbstractConnection:
    """An unopened connection with a client's policy, outside of its pool; the caller closes it.

    The pool's own ``make_connection`` counts what it has made and never counts back: a hundred connections later,
    after some time of an outage, it would refuse for ever.
    """
    pool = client.connection_pool
    made: redis.connection.AbstractConnection = pool.connection_class(**pool.connection_kwargs)
    return made


class _Closing:
    """Mixed into a Sentinel pool: closes the connections to the sentinels too, which redis-py leaves open."""

    sentinel_manager: Any

    def close(self) -> None:
        super().close()  # type: ignore[misc]
        self.sentinel_manager.close()


class _ClosingAsync:
    """The asyncio twin of :class:`_Closing`."""

    sentinel_manager: Any

    async def aclose(self) -> None:
        await super().aclose()  # type: ignore[misc]
        await self.sentinel_manager.aclose()


def _async_sentinel_pool(target: RedisUrl, policy: dict[str, Any]) -> Any:
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool  # late: few have one

    sentinel_kwargs = _sentinel_policy(target, policy["socket_connect_timeout"])
    sentinel = Sentinel(
        list(target.sentinels), sentinel_kwargs={**sentinel_kwargs, "retry": AsyncRetry(NoBackoff(), 0)}
    )  # type: ignore[no-untyped-call]
    return mixed(_ClosingAsync, SentinelConnectionPool)(
        target.service, sentinel, is_master=True, ssl=target.tls, **target.options, **policy
    )


def check_client(client: Any) -> None:
    """Refuse a client that cannot work, whoever made it; nothing is sent.

    Raises:
        ConfigError: A Cluster client, or one with ``decode_responses=True``.
    """
    if isinstance(client, redis.RedisCluster) or type(client).__name__ == "RedisCluster":
        raise ConfigError(
            "a Redis Cluster client cannot be used: a job's keys live in one Redis. Use a single server, "
            "Sentinel (redis+sentinel://host:26379/master-name), or a Redis per queue "
            "(JOBQ_QUEUES__BATCH__REDIS_URL)"
        )
    pool = getattr(client, "connection_pool", None)
    if pool is not None and pool.connection_kwargs.get("decode_responses"):
        raise ConfigError("decode_responses must be off: payloads are bytes; make the client without it")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server says of itself.

    Attributes:
        flavour: ``redis``, ``valkey``, or ``unknown`` when it does not say.
        version: Its version, ``7.0.15``; empty when it does not say.
        durability: What a crash of the server costs: ``none`` everything, ``snapshot`` minutes,
            ``aof-everysec`` up to 2 s, ``aof-always`` nothing; ``unknown``: it does not tell.
        maxmemory: Bytes; 0: no limit.
        maxmemory_policy: What it does when memory is full.
        role: ``primary`` or ``replica``.
        mode: ``standalone``, ``cluster`` or ``sentinel``.
    """

    flavour: Literal["redis", "valkey", "unknown"]
    version: str
    durability: Durability
    maxmemory: int
    maxmemory_policy: str
    role: Literal["primary", "replica"]
    mode: str = "standalone"


_CONFIG = ("appendfsync", "save")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def durability_of(info: Mapping[str, Any], config: Mapping[str, str]) -> Durability:
    """What a crash of the server costs.

    Args:
        info: The fields of ``INFO``; empty: the server refuses it.
        config: ``appendfsync`` and ``save``, as far as ``CONFIG GET`` tells: managed servers refuse it.
    """
    if not info:
        return "unknown"
    if str(info.get("aof_enabled", 0)) == "1":
        if config.get("appendfsync") == "no":
            return "snapshot"  # the kernel writes when it likes, some 30 s
        # everysec is the default, and so the best guess where CONFIG is closed.
        return "aof-always" if config.get("appendfsync") == "always" else "aof-everysec"
    if "save" in config:
        return "snapshot" if config["save"] else "none"
    return "snapshot" if str(info.get("rdb_saves", 0)) != "0" else "unknown"


def _server_info(info: dict[str, Any], config: dict[str, str]) -> ServerInfo:
    valkey = "valkey_version" in info
    return ServerInfo(
        flavour="valkey" if valkey else "redis" if "redis_version" in info else "unknown",
        version=_text(info.get("valkey_version") or info.get("redis_version") or ""),
        durability=durability_of(info, config),
        maxmemory=int(info.get("maxmemory", 0)),
        maxmemory_policy=_text(info.get("maxmemory_policy", "noeviction")),
        role="replica" if info.get("role") in ("slave", "replica") else "primary",
        mode=_text(info.get("server_mode") or info.get("redis_mode") or "standalone"),
    )


def _unavailable(error: Exception) -> Exception:
    if isinstance(error, AuthenticationError | AuthorizationError):
        return ConfigError(refusals.denied(str(error)))
    return StoreUnavailableError(f"Redis cannot be reached: {error}")


def _require_setting(error: ResponseError) -> None:
    text = str(error)
    if "protected mode" in text:
        raise ConfigError(refusals.denied(text)) from error
    if refusals.WRONG_SETTING.search(text):
        raise ConfigError(refusals.wrong_setting(text)) from error


def inspect_server(client: redis.Redis) -> ServerInfo:
    """Ask the server what it is. What it refuses to tell is taken as fit.

    Raises:
        StoreUnavailableError: It cannot be reached.
        ConfigError: It refuses the login, or has no database of this number.
    """
    config: dict[str, str] = {}
    try:
        try:
            info: dict[str, Any] = client.info()
        except ResponseError as error:  # not allowed, or not known to an imitation
            _require_setting(error)
            return _server_info({}, config)
        for name in _CONFIG:
            try:
                found = client.config_get(name)
            except ResponseError:
                break
            config.update((_text(key), _text(value)) for key, value in found.items())
    except LOST as error:
        raise _unavailable(error) from error
    return _server_info(info, config)


async def inspect_server_async(client: AsyncRedis) -> ServerInfo:
    """Awaitable :func:`inspect_server`."""
    config: dict[str, str] = {}
    try:
        try:
            info: dict[str, Any] = await client.info()
        except ResponseError as error:
            _require_setting(error)
            return _server_info({}, config)
        for name in _CONFIG:
            try:
                found = await client.config_get(name)
            except ResponseError:
                break
            config.update((_text(key), _text(value)) for key, value in found.items())
    except LOST as error:
        raise _unavailable(error) from error
    return _server_info(info, config)


_OLDEST = {"redis": (6, 2), "valkey": (7, 2)}


def require_usable(info: ServerInfo) -> None:
    """Refuse a server on which jobs would be lost or scripts fail.

    Raises:
        ConfigError: It evicts keys, is too old, is a replica, a cluster's node, or a sentinel.
    """
    if info.mode == "sentinel":
        raise ConfigError("this is a Sentinel, not a Redis: use redis+sentinel://host:26379/master-name")
    if info.mode == "cluster":
        raise ConfigError(
            "the server runs in cluster mode: a job's keys live in one Redis. Use a single server, Sentinel, "
            "or a Redis per queue (JOBQ_QUEUES__BATCH__REDIS_URL)"
        )
    if info.role == "replica":
        raise ConfigError(
            "the server is a replica and takes no writes: name its primary, or use redis+sentinel://"
        )
    if info.maxmemory_policy != "noeviction":
        raise ConfigError(
            f"maxmemory-policy is {info.maxmemory_policy}, with which Redis deletes jobs when it is full: "
            "set maxmemory-policy noeviction"
        )
    oldest = _OLDEST.get(info.flavour)
    numbers = tuple(int(part) for part in re.findall(r"\d+", info.version)[:2])
    if oldest and numbers and numbers < oldest:
        raise ConfigError(
            f"{info.flavour} {info.version} is too old: Redis 6.2 or Valkey 7.2 is the oldest that works"
        )
