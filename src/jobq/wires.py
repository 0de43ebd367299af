"""Wires kept ready for the next call, one for each thread that sends at a time; of a bounded set, no more than so many.

In an executor process all that its tasks do with Redis shares one bounded set: forty slots of tasks that enqueue would
else be eighty connections.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import redis

from jobq.connection import detached
from jobq.deadline import Deadline
from jobq.wire import Wire

_FRESH_S = 1.0
_MOST_IDLE = 10
"""Wires kept after a burst of threads; the others are closed."""

_LOOK_AGAIN_S = 0.1
"""Whoever waits for its turn looks so often by itself: a turn that a soft timeout tore down wakes nobody."""


class _Turn:
    """The right to hold a wire, for as long as anybody refers to it: it cannot be lost, whatever strikes its thread."""

    __slots__ = ("__weakref__", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class _Turnstile:
    """Lets a bounded number of threads through; one that is inside already gets through again."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._out: WeakSet[_Turn] = WeakSet()
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def take(self, deadline: Deadline | None) -> _Turn:
        """A turn, when there is one.

        Raises:
            redis.TimeoutError: There was none until the deadline.
        """
        turn, gate = _Turn(), threading.Lock()
        gate.acquire()
        while not self._enter(turn, gate):
            left_s = _LOOK_AGAIN_S if deadline is None else min(_LOOK_AGAIN_S, deadline.remaining())
            woken = left_s > 0 and gate.acquire(timeout=left_s)
            if not woken:
                with self._lock:
                    if gate in self._waiting:
                        self._waiting.remove(gate)
            if left_s <= 0:
                raise redis.TimeoutError(f"all {self.most} connections of this process were in use meanwhile")
        return turn

    def _enter(self, turn: _Turn, gate: threading.Lock) -> bool:
        with self._lock:
            if len(self._out) < self.most or any(other.thread == turn.thread for other in self._out):
                self._out.add(turn)
                return True
            self._waiting.append(gate)
            return False

    def give(self, turn: _Turn) -> None:
        """It is over: the next in line may come."""
        with self._lock:
            self._out.discard(turn)
            if self._waiting:
                self._waiting.popleft().release()

    def full(self, idle: int) -> bool:
        """Whether one more idle wire, beside so many, would be more than is allowed."""
        return len(self._out) + idle > self.most


class Wires:
    """Wires to one server. Safe between threads; a child process leaves its parent's connections alone.

    Args:
        client: A client of the role ``enqueue``, whose policy they have.
        most: Open at a time; whoever finds none free waits until its deadline. None: as many as there are threads.
    """

    def __init__(self, client: redis.Redis, most: int | None = None) -> None:
        self.client = client
        # Taking from and giving to a deque is atomic.
        self._idle: deque[tuple[int, float, Wire]] = deque()
        self._turns = None if most is None else _Turnstile(most)
        self._pid = os.getpid()

    @contextmanager
    def lent(self, deadline: Deadline | None = None) -> Iterator[Wire]:
        """A wire for one exchange, opened if need be.

        Raises:
            redis.ConnectionError, redis.TimeoutError: It cannot be opened, or none was free until the deadline.
        """
        if self._turns is None:
            with self._wire(None) as wire:
                yield wire
            return
        if (
            self._pid != os.getpid()
        ):  # a fork of a task's own: nobody here holds the turns of the parent's threads
            self._pid, self._turns = os.getpid(), _Turnstile(self._turns.most)
        turns = self._turns
        turn = turns.take(deadline)
        try:
            with self._wire(turns) as wire:
                yield wire
        finally:
            turns.give(turn)

    def drop_idle(self) -> None:
        """Close all that are idle."""
        for _ in range(len(self._idle)):
            try:
                owner, _, wire = self._idle.pop()
            except IndexError:
                return
            if owner == os.getpid():
                wire.close()

    @contextmanager
    def _wire(self, turns: _Turnstile | None) -> Iterator[Wire]:
        pid = os.getpid()
        wire = self._take(pid)
        try:
            yield wire
        except BaseException:
            wire.close()
            # Whatever broke this one, a restart or a failover, broke the idle ones too.
            self.drop_idle()
            raise
        idle = len(self._idle)
        if idle >= _MOST_IDLE or (turns is not None and turns.full(idle)):
            wire.close()
        else:
            self._idle.append((pid, time.monotonic(), wire))

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
