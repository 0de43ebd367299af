"""A store for the path of every enqueue: connections kept ready, commands packed at once.

redis-py's pool costs 45 us for each command (events, metrics, a health check), a quarter of a whole enqueue.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from hiredis import pack_command
from redis.exceptions import NoScriptError

from jobq.deadline import LOST, Deadline, current
from jobq.steps import Batch, Call, Step, Stream
from jobq.store import Store, checked
from jobq.wire import Wire
from jobq.wires import Wires

_AHEAD = 2
"""Calls of a stream that Redis has while the next one is made."""


def _packed(command: tuple[Any, ...]) -> bytes:
    return cast("bytes", pack_command(command))


def _with_rider(call: Call[Any]) -> bytes:
    packed = _packed(call.command())
    # By itself, and not by its digest: it is rare, and nothing is asked again.
    return packed if call.rider is None else packed + _packed(call.rider.call.full_command())


class KeptStore(Store):
    """A :class:`Store` that sends over wires kept ready. Safe between threads and across forks.

    Args:
        wires: Where it takes them from; another store may share them.
        deadline: Seconds or a timedelta for each step, waiting for a wire, connecting, sending and repeating together.
    """

    def __init__(self, wires: Wires, *, deadline: float | timedelta) -> None:
        super().__init__(wires.client, deadline=deadline)
        self._wires = wires

    def close(self) -> None:
        """Close all idle connections."""
        self._wires.drop_idle()

    def _leave(self) -> None:
        self._wires.drop_idle()

    def _send(self, step: Step) -> Any:
        deadline = current()
        if isinstance(step, Batch):
            with self._wires.lent(deadline) as wire:
                wire.send(b"".join(map(_packed, step.commands)), deadline)
                replies = [wire.receive_for(self.client, command[0]) for command in step.commands]
                return checked(replies, step.commands)
        with self._wires.lent(deadline) as wire:
            wire.send(_with_rider(step), deadline)
            reply = wire.receive(deadline)
            if step.rider is not None:
                step.rider.took(wire.receive(deadline))
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
            with self._wires.lent(self._deadline()) as wire:
                for call in calls:
                    flying.append((call, self._deadline()))
                    wire.send(_with_rider(call), flying[-1][1])
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
        if call.rider is not None:
            call.rider.took(wire.receive(deadline))
        flying.popleft()
        # What was refused is asked again by itself: it loads the script, or finds out what is wrong.
        refused = isinstance(reply, Exception)
        stream.took(self._tried(replace(call, rider=None), deadline) if refused else call.decode(reply))
