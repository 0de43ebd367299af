"""A store for the path of every enqueue: connections kept ready, commands packed at once.

redis-py's pool costs 45 us for each command (events, metrics, a health check), a quarter of a whole enqueue.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import redis
from hiredis import pack_command
from redis.exceptions import NoScriptError

from jobq.connection import detached
from jobq.deadline import LOST, Deadline, current
from jobq.steps import Batch, Call, Step, Stream
from jobq.store import Store
from jobq.wire import Wire

_AHEAD = 2
"""Calls of a stream that Redis has while the next one is made."""
_FRESH_S = 1.0
_MOST_IDLE = 10
"""Connections kept after a burst of threads; the others are closed."""


def _packed(command: tuple[Any, ...]) -> bytes:
    return cast("bytes", pack_command(command))


class KeptStore(Store):
    """A :class:`Store` whose scripts go over connections of its own, one per thread that sends at a time.

    Safe between threads, since taking from and giving to a deque is atomic; a child process leaves its
    parent's connections alone.

    Args:
        client: A client of the role ``enqueue``; its pool makes the connections.
        deadline: Seconds or a timedelta, for connecting, sending and repeating together.
    """

    def __init__(self, client: redis.Redis, *, deadline: float | timedelta) -> None:
        super().__init__(client, deadline=deadline)
        self._idle: deque[tuple[int, float, Wire]] = deque()

    def close(self) -> None:
        """Close all idle connections."""
        self._drop_idle()

    def _leave(self) -> None:
        super()._leave()
        self._drop_idle()

    def _send(self, step: Step) -> Any:
        if isinstance(step, Batch):
            return super()._send(step)
        deadline = current()
        with self._lent() as wire:
            wire.send(_packed(step.command()), deadline)
            reply = wire.receive(deadline)
            if isinstance(reply, NoScriptError):
                wire.send(_packed(step.full_command()), deadline)
                reply = wire.receive(deadline)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _stream(self, stream: Stream[Any]) -> None:
        """Send ahead, so that a producer makes the next call while Redis works on the one before."""
        calls, flying = stream.calls, deque[tuple[Call[Any], Deadline | None]]()
        for call in calls:
            stream.took(self._tried(call, self._deadline()))  # by itself: it connects, and loads the script
            break
        try:
            with self._lent() as wire:
                for call in calls:
                    flying.append((call, self._deadline()))
                    wire.send(_packed(call.command()), flying[-1][1])
                    if len(flying) > _AHEAD:
                        self._land(wire, flying, stream)
                while flying:
                    self._land(wire, flying, stream)
        except LOST:
            for call, deadline in flying:
                stream.took(self._tried(call, deadline))
            super()._stream(stream)

    def _land(
        self, wire: Wire, flying: deque[tuple[Call[Any], Deadline | None]], stream: Stream[Any]
    ) -> None:
        call, deadline = flying[0]
        reply = wire.receive(deadline)
        flying.popleft()
        # What was refused is asked again by itself: it loads the script, or finds out what is wrong.
        refused = isinstance(reply, Exception)
        stream.took(self._tried(call, deadline) if refused else call.decode(reply))

    @contextmanager
    def _lent(self) -> Iterator[Wire]:
        pid = os.getpid()
        wire = self._take(pid)
        try:
            yield wire
        except BaseException:
            wire.close()
            # Whatever broke this one, a restart or a failover, broke the idle ones too.
            self._drop_idle()
            raise
        if len(self._idle) < _MOST_IDLE:
            self._idle.append((pid, time.monotonic(), wire))
        else:
            wire.close()

    def _take(self, pid: int) -> Wire:
        while True:
            try:
                owner, used, wire = self._idle.pop()
            except IndexError:
                break
            if owner != pid:
                continue  # the parent's: closing the object here would only close our copy of the descriptor
            if time.monotonic() - used < _FRESH_S or wire.quiet():
                return wire
            wire.close()
        return Wire(detached(self.client))

    def _drop_idle(self) -> None:
        for _ in range(len(self._idle)):
            try:
                owner, _, wire = self._idle.pop()
            except IndexError:
                return
            if owner == os.getpid():
                wire.close()
