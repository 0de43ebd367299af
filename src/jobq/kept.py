"""A store for the path of every enqueue: connections kept ready, commands packed at once.

redis-py's pool costs 45 us for each command (events, metrics, a health check), a quarter of a whole enqueue.
"""

from __future__ import annotations

import os
import time
from collections import deque
from datetime import timedelta
from typing import Any

import redis
from hiredis import pack_command
from redis.exceptions import NoScriptError

from jobq import lua
from jobq.calls import Batch, Step
from jobq.connection import detached
from jobq.deadline import current
from jobq.store import Store
from jobq.wire import Wire

_FRESH_S = 1.0
_MOST_IDLE = 10
"""Connections kept after a burst of threads; the others are closed."""


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
        script = lua.script(step.script)
        rest: tuple[Any, ...] = (len(step.keys), *step.keys, *step.args)
        packed = pack_command(("EVALSHA", script.sha, *rest))
        pid, deadline = os.getpid(), current()
        wire = self._take(pid)
        try:
            reply = wire.exchange(packed, 1, deadline)[0]
            if isinstance(reply, NoScriptError):
                reply = wire.exchange(pack_command(("EVAL", script.text, *rest)), 1, deadline)[0]
        except BaseException:
            wire.close()
            # Whatever broke this one, a restart or a failover, broke the idle ones too.
            self._drop_idle()
            raise
        if len(self._idle) < _MOST_IDLE:
            self._idle.append((pid, time.monotonic(), wire))
        else:
            wire.close()
        if isinstance(reply, Exception):
            raise reply
        return reply

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
