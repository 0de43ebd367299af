"""Everybody who may have something to say to an executor, heard in one poll."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from jobq.worker.channel import Channel, Message
from jobq.worker.children import ChildExecutor
from jobq.worker.executors import Executors
from jobq.worker.inbox import Inbox
from jobq.worker.parts import Part


@dataclass(slots=True)
class Heard:
    """What the executor itself must act on.

    Attributes:
        queues: Where a job may have come.
        control: What the supervisor said.
    """

    queues: list[Part] = field(default_factory=list)
    control: list[Message] = field(default_factory=list)


class Listener:
    """Listens to the inbox, the supervisor, the spawner, the job children, and the queues' waiters.

    What spawner and children say goes to the sets of children at once.
    """

    def __init__(self, inbox: Inbox, control: Channel, spawner: Channel, executors: Executors) -> None:
        self._inbox = inbox
        self._control = control
        self._spawner = spawner
        self._executors = executors

    def listen(self, timeout_s: float, queues: Iterable[Part] = ()) -> Heard:
        """Wait until anybody says something, or the time is up.

        Args:
            queues: Listen to the waiters of these, too; all are armed.
        Raises:
            ChannelClosed: The supervisor or the spawner has gone.
        """
        poll = select.poll()
        sources: dict[int, Any] = {
            self._inbox.fileno(): self._inbox,
            self._control.fileno(): self._control,
            self._spawner.fileno(): self._spawner,
        }
        for children in self._executors.child_sets():
            sources.update((number, (children, ref)) for number, ref in children.lines())
        for part in queues:
            sources[part.waiter.fileno()] = part
        for number in sources:
            poll.register(number, select.POLLIN)
        ready = [sources[number] for number, _ in poll.poll(timeout_s * 1000)]
        self._inbox.awake(woken=self._inbox in ready)
        heard = Heard()
        for source in ready:
            if source is self._control:
                heard.control = self._control.receive()
            elif source is self._spawner:
                self._hear_spawner()
            elif isinstance(source, Part):
                heard.queues.append(_answered(source))
            elif source is not self._inbox:
                self._hear_child(*source)
        return heard

    def pause(self, seconds: float) -> list[Message]:
        """Wait out a failure, still listening to the supervisor."""
        return self._control.receive() if _readable(self._control.fileno(), seconds) else []

    def _hear_spawner(self) -> None:
        for message in self._spawner.receive():
            for children in self._executors.child_sets():
                if message.op == "exited":
                    children.exited(message.body["ref"], message.body["status"], message.body["cpu_s"])
                elif message.op == "spawned":
                    children.spawned(message.body["ref"], message.body["pid"])

    def _hear_child(self, children: ChildExecutor, ref: str) -> None:
        for message in children.read(ref):
            if message.op == "log":
                self._inbox.add_line(message.body["job_id"], message.body["line"])
            elif message.op == "progress":
                body = message.body
                self._inbox.progress(body["job_id"], body["fraction"], body["text"])


def have_called(queues: Iterable[Part]) -> list[Part]:
    """Those whose waiters have an answer: a look that costs no turn of the loop."""
    waiting = {part.waiter.fileno(): part for part in queues if part.waiter.armed}
    if not waiting:
        return []
    poll = select.poll()
    for number in waiting:
        poll.register(number, select.POLLIN)
    return [_answered(waiting[number]) for number, _ in poll.poll(0)]


def _answered(part: Part) -> Part:
    """Take the answer in. It may say that nothing came for the whole block: a look now and then finds parked jobs."""
    with contextlib.suppress(RedisError, OSError):
        part.claims.called = part.waiter.fire()
    return part


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()  # not select(), which knows no descriptor above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
