"""Everybody who may have something to say to an executor, heard in one poll."""

from __future__ import annotations

import contextlib
import select
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from jobq.worker.channel import Channel, Message
from jobq.worker.children import ChildExecutor
from jobq.worker.executors import Executors
from jobq.worker.inbox import Inbox
from jobq.worker.waiter import Waiter


@dataclass(slots=True)
class Heard:
    """What the executor itself must act on.

    Attributes:
        queue: A job may have come.
        control: What the supervisor said.
    """

    queue: bool = False
    control: list[Message] = field(default_factory=list)


class Listener:
    """Listens to the inbox, the supervisor, the spawner, the job children, and the queue's waiter.

    What spawner and children say goes to the sets of children at once.
    """

    def __init__(
        self, inbox: Inbox, control: Channel, spawner: Channel, waiter: Waiter, executors: Executors
    ) -> None:
        self._inbox = inbox
        self._control = control
        self._spawner = spawner
        self._waiter = waiter
        self._executors = executors

    def listen(self, timeout_s: float, *, queue: bool) -> Heard:
        """Wait until anybody says something, or the time is up.

        Args:
            queue: Listen to the waiter, too.
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
        if queue:
            sources[self._waiter.fileno()] = self._waiter
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
            elif source is self._waiter:
                heard.queue = self._hear_waiter()
            elif source is not self._inbox:
                self._hear_child(*source)
        return heard

    def pause(self, seconds: float) -> list[Message]:
        """Wait out a failure, still listening to the supervisor."""
        return self._control.receive() if _readable(self._control.fileno(), seconds) else []

    def queue_has_called(self) -> bool:
        """Whether the waiter has an answer: a look that costs no turn of the loop."""
        return self._waiter.armed and _readable(self._waiter.fileno(), 0.0) and self._hear_waiter()

    def _hear_waiter(self) -> bool:
        """True also when nothing came for the whole block: a look now and then finds parked jobs."""
        with contextlib.suppress(RedisError, OSError):
            self._waiter.fire()
        return True

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


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()  # not select(), which knows no descriptor above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
