"""One deadline for connecting, sending, reading and retrying, and the connections that keep to it."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import redis
from redis.exceptions import AuthenticationError, AuthorizationError, MaxConnectionsError

from jobq.units import in_seconds

T = TypeVar("T")

LOST = (redis.ConnectionError, redis.TimeoutError)
_HOPELESS = (AuthenticationError, AuthorizationError, MaxConnectionsError)

MOMENT_S = 0.005
"""A socket's timeout may be so much longer than what is left of the deadline."""

_RAND = random.Random()
os.register_at_fork(after_in_child=_RAND.seed)  # else forked producers would retry in step
"""Shared: seeding one costs 8 us, which each enqueue would pay."""

_current: ContextVar[Deadline | None] = ContextVar("jobq_deadline", default=None)


def current() -> Deadline | None:
    """The deadline that the calling code runs under, if any."""
    return _current.get()


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
        self._ends = time.monotonic() + in_seconds(seconds)
        self._rand = rand or _RAND
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
            idempotent: Whether it may be sent again although the server may have run it. A call that is not
                is tried again only while nothing was sent.

        Raises:
            redis.ConnectionError, redis.TimeoutError: The last error, when time is up.
        """
        delays: Iterator[float] | None = None  # nearly always the first try is the last
        while True:
            # Not active(): a generator costs twice as much, and each enqueue pays it.
            token = _current.set(self)
            try:
                return call()
            except LOST as error:
                delays = delays or backoff_delays(base_s=0.01, cap_s=0.25, rand=self._rand)
                pause_s = self._pause(error, delays, idempotent)
            finally:
                _current.reset(token)
            time.sleep(pause_s)

    async def run_async(self, call: Callable[[], Awaitable[T]], *, idempotent: bool = True) -> T:
        """Awaitable :meth:`run`, over a client of :func:`connect_async`."""
        delays = backoff_delays(base_s=0.01, cap_s=0.25, rand=self._rand)
        while True:
            try:
                with self.active():
                    return await self._within(call)
            except LOST as error:
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
    """Endless delays in seconds for a loop that reconnects: doubling to ``cap_s``, each cut by up to half."""
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


class Bounded:
    """Mixed into a redis-py connection class: every socket operation ends with the current deadline."""

    _sock: socket.socket | None
    _shaking_hands = False
    _shortened = False
    _bounded_by: Deadline | None = None
    _bounded_at = 0.0
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
        deadline = _current.get()
        limited = deadline is not None
        if self._sock is not None and (limited or self._shortened):
            now = time.monotonic()
            # Set for the sending a moment ago: reading so soon after needs no other system call.
            if not limited or deadline is not self._bounded_by or now - self._bounded_at > MOMENT_S:
                self._sock.settimeout(_left(self.socket_timeout))
                self._bounded_by, self._bounded_at = deadline, now
        self._shortened = limited

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        deadline = _current.get()
        self._bound()
        if deadline is not None and not self._shaking_hands:
            deadline.sent = True
        return super().send_packed_command(command, check_health)  # type: ignore[misc]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        self._bound()
        return super().read_response(*args, **kwargs)  # type: ignore[misc]


class Noting:
    """Mixed into an asyncio connection class: notes that a command was sent; time is bounded from outside."""

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
def mixed(mixin: type, base: type) -> type:
    """The connection class ``base`` with :class:`Bounded` or :class:`Noting` in front of it."""
    return type(f"{mixin.__name__.strip('_')}{base.__name__}", (mixin, base), {})
