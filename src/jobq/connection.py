"""Redis clients by role, the deadline of an enqueue, and what a server must be to be used.

=========  ================  =============================================  ==========================
role       socket timeout    retries inside redis-py                        for
=========  ================  =============================================  ==========================
enqueue    enqueue_timeout   none: :class:`Deadline` bounds the whole call  producers
command    5 s               3, jittered                                    idempotent scripts, reads
blocking   block + 5 s       none: the caller's loop reconnects             blocking reads
pubsub     block + 5 s       3, jittered                                    subscriptions
=========  ================  =============================================  ==========================

redis-py by default retries writes ten times, and gives up a blocking read after 5 s only to start it again.
The protocol is never set: an explicit RESP3 changes the shapes of answers.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    MaxConnectionsError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from jobq.config import Settings
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
    "inspect_server",
    "inspect_server_async",
    "redact_url",
    "require_usable",
]

T = TypeVar("T")
Role = Literal["command", "enqueue", "blocking", "pubsub"]
Durability = Literal["none", "snapshot", "aof-everysec", "aof-always"]

_COMMAND_TIMEOUT_S = 5.0
_MARGIN_S = 5.0
_SENTINEL_TIMEOUT_S = 0.5
_LOST = (redis.ConnectionError, redis.TimeoutError)
_HOPELESS = (AuthenticationError, AuthorizationError, MaxConnectionsError)


# --- the deadline of an enqueue ------------------------------------------------------------------------------------

_current: ContextVar[Deadline | None] = ContextVar("jobq_deadline", default=None)


class Deadline:
    """A bound on connecting, sending, reading and retrying together.

    Connections of the role ``enqueue`` shorten each socket operation to what is left of the deadline they run
    under. Only a name look-up is beyond it: ``getaddrinfo`` cannot be interrupted.

    Args:
        seconds: Time from now.
        rand: Source of the jitter.

    Attributes:
        sent: A command may have reached the server. When False after an error, nothing was written for sure.
    """

    __slots__ = ("_ends", "_rand", "sent")

    def __init__(self, seconds: float | timedelta, *, rand: random.Random | None = None) -> None:
        total_s = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        self._ends = time.monotonic() + total_s
        self._rand = rand or random.Random()
        self.sent = False

    def remaining(self) -> float:
        """Seconds left; 0 when the deadline has passed."""
        return max(0.0, self._ends - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.remaining() <= 0.0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make it the deadline of the connections used inside."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def run(self, call: Callable[[], T], *, idempotent: bool = True) -> T:
        """What ``call`` returns, tried again after lost connections until the deadline.

        Args:
            call: One exchange with Redis over a client of the role ``enqueue``.
            idempotent: Whether it may be sent again although the server may have run it. A call that is not is
                tried again only while nothing was sent.

        Raises:
            redis.ConnectionError, redis.TimeoutError: The last error, when time is up.
        """
        delays = backoff_delays(base_s=0.01, cap_s=0.25, rand=self._rand)
        while True:
            try:
                with self.active():
                    return call()
            except _LOST as error:
                time.sleep(self._pause(error, delays, idempotent))

    async def run_async(self, call: Callable[[], Awaitable[T]], *, idempotent: bool = True) -> T:
        """Awaitable :meth:`run`, over a client of :func:`connect_async`."""
        delays = backoff_delays(base_s=0.01, cap_s=0.25, rand=self._rand)
        while True:
            try:
                with self.active():
                    return await self._within(call)
            except _LOST as error:
                pause_s = self._pause(error, delays, idempotent)
            await asyncio.sleep(pause_s)

    async def _within(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self.remaining()) as bound:
                return await call()
        except TimeoutError:
            if bound.expired():
                raise redis.TimeoutError("the deadline passed before Redis answered") from None
            raise

    def _pause(self, error: Exception, delays: Iterator[float], idempotent: bool) -> float:
        """How long to wait before the next try; raises ``error`` when there is to be none."""
        if isinstance(error, _HOPELESS) or (self.sent and not idempotent):
            raise error
        pause_s = next(delays)
        if pause_s >= self.remaining():
            raise error
        return pause_s


def backoff_delays(
    *, base_s: float = 0.05, cap_s: float = 1.0, rand: random.Random | None = None
) -> Iterator[float]:
    """Endless delays in seconds for a loop that reconnects: doubling to ``cap_s``, each jittered down by up to half."""
    rand = rand or random.Random()
    delay_s = base_s
    while True:
        yield delay_s * rand.uniform(0.5, 1.0)
        delay_s = min(cap_s, delay_s * 2)


def _left(limit_s: float | None) -> float | None:
    """``limit_s``, or what the current deadline leaves of it."""
    deadline = _current.get()
    if deadline is None:
        return limit_s
    left_s = deadline.remaining()
    if left_s <= 0:
        raise redis.TimeoutError("the deadline passed before Redis answered")
    return left_s if limit_s is None else min(limit_s, left_s)


class _Bounded:
    """Mixed into a redis-py connection class: every socket operation ends with the current deadline."""

    _sock: socket.socket | None
    _shaking_hands = False
    socket_timeout: float | None
    socket_connect_timeout: float | None

    def _connect(self) -> Any:
        if _current.get() is None:
            return super()._connect()  # type: ignore[misc]
        policy = self.socket_connect_timeout, self.socket_timeout
        self.socket_connect_timeout, self.socket_timeout = _left(policy[0]), _left(policy[1])
        try:
            return super()._connect()  # type: ignore[misc]
        finally:
            self.socket_connect_timeout, self.socket_timeout = policy

    def on_connect_check_health(self, *args: Any, **kwargs: Any) -> Any:
        self._shaking_hands = True
        try:
            return super().on_connect_check_health(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._shaking_hands = False

    def _bound(self) -> None:
        if self._sock is not None:
            self._sock.settimeout(_left(self.socket_timeout))

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        deadline = _current.get()
        self._bound()
        if deadline is not None and not self._shaking_hands:
            deadline.sent = True
        return super().send_packed_command(command, check_health)  # type: ignore[misc]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        self._bound()
        return super().read_response(*args, **kwargs)  # type: ignore[misc]


class _Noting:
    """Mixed into an asyncio connection class: notes that a command was sent. The time is bounded from outside."""

    _shaking_hands = False

    async def on_connect_check_health(self, *args: Any, **kwargs: Any) -> Any:
        self._shaking_hands = True
        try:
            return await super().on_connect_check_health(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._shaking_hands = False

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> Any:
        deadline = _current.get()
        if deadline is not None and not self._shaking_hands:
            deadline.sent = True
        return await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]


@cache
def _mixed(mixin: type, base: type) -> type:
    return type(f"{mixin.__name__.strip('_')}{base.__name__}", (mixin, base), {})


# --- clients -------------------------------------------------------------------------------------------------------


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
        timeout_s = connect_s = _COMMAND_TIMEOUT_S
    else:
        timeout_s, connect_s = block_s + _MARGIN_S, _COMMAND_TIMEOUT_S
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_s,
        "health_check_interval": 30,
        "client_name": _client_name(role),
        "decode_responses": False,
    }


def _retry(kind: Any, role: Role) -> Any:
    """A retry object of redis-py, of its sync or its asyncio kind."""
    if role in ("enqueue", "blocking"):
        return kind(NoBackoff(), 0)
    return kind(ExponentialWithJitterBackoff(base=0.01, cap=1.0), 3)


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
    settings: Settings, role: Role = "command", *, url: str | None = None, block_s: float = 5.0
) -> redis.Redis:
    """A client with the timeouts and retries of its role; nothing is sent yet.

    Args:
        settings: Names the server and the enqueue timeout.
        role: What it is for, see the table at the top of the module.
        url: Instead of the URL of the settings, for a queue with a Redis of its own.
        block_s: Longest blocking read, for the roles ``blocking`` and ``pubsub``.

    Raises:
        ConfigError: The URL cannot be understood.
    """
    target = _parsed(settings, url)
    policy = {**_policy(settings, role, block_s), "retry": _retry(Retry, role)}
    try:
        if target.service:
            pool = _sentinel_pool(target, policy)
        else:
            pool = redis.ConnectionPool.from_url(target.url, **policy)
    except (ValueError, RedisError) as error:
        raise ConfigError(f"the Redis URL is wrong: {error}") from None
    if role == "enqueue":
        pool.connection_class = _mixed(_Bounded, pool.connection_class)
    return redis.Redis.from_pool(pool)


def _sentinel_pool(target: RedisUrl, policy: dict[str, Any]) -> redis.ConnectionPool:
    from redis.sentinel import Sentinel, SentinelConnectionPool  # late: few have one

    sentinel_kwargs = _sentinel_policy(target, policy["socket_connect_timeout"])
    sentinel = Sentinel(
        list(target.sentinels), sentinel_kwargs={**sentinel_kwargs, "retry": Retry(NoBackoff(), 0)}
    )  # type: ignore[no-untyped-call]
    return SentinelConnectionPool(
        target.service, sentinel, is_master=True, ssl=target.tls, **target.options, **policy
    )  # type: ignore[no-untyped-call]


def connect_async(
    settings: Settings, role: Role = "command", *, url: str | None = None, block_s: float = 5.0
) -> AsyncRedis:
    """The asyncio twin of :func:`connect`; a client belongs to the event loop that first uses it."""
    from redis import asyncio as aio  # late by name only: redis-py itself imports it
    from redis.asyncio.retry import Retry as AsyncRetry

    target = _parsed(settings, url)
    policy = {**_policy(settings, role, block_s), "retry": _retry(AsyncRetry, role)}
    try:
        if target.service:
            pool = _async_sentinel_pool(target, policy)
        else:
            pool = aio.ConnectionPool.from_url(target.url, **policy)
    except (ValueError, RedisError) as error:
        raise ConfigError(f"the Redis URL is wrong: {error}") from None
    if role == "enqueue":
        pool.connection_class = _mixed(_Noting, pool.connection_class)
    return cast("AsyncRedis", aio.Redis.from_pool(pool))


def _async_sentinel_pool(target: RedisUrl, policy: dict[str, Any]) -> Any:
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool  # late: few have one

    sentinel_kwargs = _sentinel_policy(target, policy["socket_connect_timeout"])
    sentinel = Sentinel(
        list(target.sentinels), sentinel_kwargs={**sentinel_kwargs, "retry": AsyncRetry(NoBackoff(), 0)}
    )  # type: ignore[no-untyped-call]
    return SentinelConnectionPool(
        target.service, sentinel, is_master=True, ssl=target.tls, **target.options, **policy
    )  # type: ignore[no-untyped-call]


def check_client(client: Any) -> None:
    """Refuse a client that cannot work, whoever made it; nothing is sent.

    Raises:
        ConfigError: A Cluster client, or one with ``decode_responses=True``.
    """
    if isinstance(client, redis.RedisCluster) or type(client).__name__ == "RedisCluster":
        raise ConfigError(
            "a Redis Cluster client cannot be used: a job's keys live in one Redis. Use a single server, Sentinel "
            "(redis+sentinel://host:26379/master-name), or a Redis per queue (JOBQ_QUEUES__BATCH__REDIS_URL)"
        )
    pool = getattr(client, "connection_pool", None)
    if pool is not None and pool.connection_kwargs.get("decode_responses"):
        raise ConfigError("decode_responses must be off: payloads are bytes; make the client without it")


# --- servers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server says of itself.

    Attributes:
        flavour: ``redis``, ``valkey``, or ``unknown`` when it does not say.
        version: Its version, ``7.0.15``; empty when it does not say.
        durability: What a crash of the server costs: ``none`` everything, ``snapshot`` minutes, ``aof-everysec``
            up to 2 s, ``aof-always`` nothing.
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


def _server_info(info: dict[str, Any], config: dict[str, str]) -> ServerInfo:
    valkey = "valkey_version" in info
    durability: Durability = "none"
    if int(info.get("aof_enabled", 0)):
        # everysec is the default; where CONFIG is closed, as managed servers have it, that is the best guess.
        durability = "aof-always" if config.get("appendfsync") == "always" else "aof-everysec"
        if config.get("appendfsync") == "no":
            durability = "snapshot"  # the kernel writes when it likes, some 30 s
    elif config.get("save") or ("save" not in config and int(info.get("rdb_saves", 0))):
        durability = "snapshot"
    return ServerInfo(
        flavour="valkey" if valkey else "redis" if "redis_version" in info else "unknown",
        version=_text(info.get("valkey_version") or info.get("redis_version") or ""),
        durability=durability,
        maxmemory=int(info.get("maxmemory", 0)),
        maxmemory_policy=_text(info.get("maxmemory_policy", "noeviction")),
        role="replica" if info.get("role") in ("slave", "replica") else "primary",
        mode=_text(info.get("server_mode") or info.get("redis_mode") or "standalone"),
    )


def _unavailable(error: Exception) -> Exception:
    if isinstance(error, AuthenticationError | AuthorizationError):
        return ConfigError(f"Redis refuses the login: {error}; check the user and password of JOBQ_REDIS_URL")
    return StoreUnavailableError(f"Redis cannot be reached: {error}")


def inspect_server(client: redis.Redis) -> ServerInfo:
    """Ask the server what it is. What it refuses to tell is taken as fit.

    Raises:
        StoreUnavailableError: It cannot be reached.
        ConfigError: It refuses the login.
    """
    config: dict[str, str] = {}
    try:
        try:
            info: dict[str, Any] = client.info()
        except ResponseError:  # not allowed, or not known to an imitation
            return _server_info({}, config)
        for name in _CONFIG:
            try:
                found = client.config_get(name)
            except ResponseError:
                break
            config.update((_text(key), _text(value)) for key, value in found.items())
    except _LOST as error:
        raise _unavailable(error) from error
    return _server_info(info, config)


async def inspect_server_async(client: AsyncRedis) -> ServerInfo:
    """Awaitable :func:`inspect_server`."""
    config: dict[str, str] = {}
    try:
        try:
            info: dict[str, Any] = await client.info()
        except ResponseError:
            return _server_info({}, config)
        for name in _CONFIG:
            try:
                found = await client.config_get(name)
            except ResponseError:
                break
            config.update((_text(key), _text(value)) for key, value in found.items())
    except _LOST as error:
        raise _unavailable(error) from error
    return _server_info(info, config)


_OLDEST = {"redis": (6, 2), "valkey": (7, 2)}


def require_usable(info: ServerInfo) -> None:
    """Refuse a server on which jobs would be lost or scripts fail.

    Raises:
        ConfigError: It evicts keys, is too old, is a replica, a cluster's node, or a sentinel. Says what to do.
    """
    if info.mode == "sentinel":
        raise ConfigError("this is a Sentinel, not a Redis: use redis+sentinel://host:26379/master-name")
    if info.mode == "cluster":
        raise ConfigError(
            "the server runs in cluster mode: a job's keys live in one Redis. Use a single server, Sentinel, or a "
            "Redis per queue (JOBQ_QUEUES__BATCH__REDIS_URL)"
        )
    if info.role == "replica":
        raise ConfigError(
            "the server is a replica and takes no writes: name its primary, or use redis+sentinel://"
        )
    if info.maxmemory_policy != "noeviction":
        raise ConfigError(
            f"maxmemory-policy is {info.maxmemory_policy}, with which Redis deletes jobs when memory is short: "
            "set maxmemory-policy noeviction"
        )
    oldest = _OLDEST.get(info.flavour)
    numbers = tuple(int(part) for part in re.findall(r"\d+", info.version)[:2])
    if oldest and numbers and numbers < oldest:
        raise ConfigError(
            f"{info.flavour} {info.version} is too old: Redis 6.2 or Valkey 7.2 is the oldest that works"
        )
