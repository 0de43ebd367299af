"""A store for the path of every enqueue: connections kept ready, commands packed at once.

redis-py's pool costs 45 us for each command (events, metrics, a health check), half of a whole enqueue.
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
from jobq.store import Store

_FRESH_S = 1.0


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
        self._idle: deque[tuple[int, float, Any]] = deque()

    def close(self) -> None:
        """Close all idle connections."""
        self._drop_idle()

    def _send(self, step: Step) -> Any:
        if isinstance(step, Batch):
            return super()._send(step)
        script = lua.script(step.script)
        rest = (len(step.keys), *step.keys, *step.args)
        pid = os.getpid()
        connection = self._take(pid)
        try:
            reply = self._exchange(connection, ("EVALSHA", script.sha, *rest))
            if isinstance(reply, NoScriptError):
                reply = self._exchange(connection, ("EVAL", script.text, *rest))
        except BaseException:
            connection.disconnect()
            # Whatever broke this one, a restart or a failover, broke the idle ones too.
            self._drop_idle()
            raise
        self._idle.append((pid, time.monotonic(), connection))
        if isinstance(reply, Exception):
            raise reply
        return reply

    @staticmethod
    def _exchange(connection: Any, command: tuple[Any, ...]) -> Any:
        connection.send_packed_command([pack_command(command)], check_health=False)
        try:
            return connection.read_response()
        except redis.ResponseError as error:
            return error

    def _take(self, pid: int) -> Any:
        while True:
            try:
                owner, used, connection = self._idle.pop()
            except IndexError:
                break
            if owner != pid:
                continue  # the parent's: closing the object here would only close our copy of the descriptor
            if time.monotonic() - used < _FRESH_S or self._quiet(connection):
                return connection
        connection = self.client.connection_pool.make_connection()
        connection.connect()  # type: ignore[no-untyped-call]
        return connection

    @staticmethod
    def _quiet(connection: Any) -> bool:
        """Whether a connection that was idle is still open: an open one has nothing to read."""
        try:
            readable: bool = connection.can_read()
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            readable = True
        if readable:
            connection.disconnect()
        return not readable

    def _drop_idle(self) -> None:
        for _ in range(len(self._idle)):
            try:
                owner, _, connection = self._idle.pop()
            except IndexError:
                return
            if owner == os.getpid():
                connection.disconnect()
