"""All executor processes of a worker: the supervisor's main thread changes the set, its keeper's thread reads it."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from typing import Any

from jobq import __version__
from jobq.units import clock_ms
from jobq.worker.lane import Lane
from jobq.worker.slots import SlotState

_READS_WITHIN_S = 15.0


class Lanes:
    """The executor processes, by the names that supervisor and spawner give them.

    Args:
        tasks: Names of the tasks that the worker knows; they may change when the application is loaded again.
        signs: The worker has a key.
    """

    def __init__(self, tasks: Collection[str], signs: bool) -> None:
        self._tasks = tasks
        self._signs = signs
        self._birth_ms = clock_ms()
        self._lanes: dict[str, Lane] = {}
        self._lock = threading.Lock()
        self.draining = False
        self.quiet = False

    # -- the main thread ----------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def all(self) -> list[Lane]:
        """Every one that has not ended."""
        return list(self._lanes.values())

    def get(self, ref: str) -> Lane | None:
        """The one of this name."""
        return self._lanes.get(ref)

    def of(self, worker: str) -> list[Lane]:
        """Those that go by one name in Redis, those of suspects included."""
        return [lane for lane in self._lanes.values() if lane.spec.worker == worker]

    def like(self, key: tuple[str, bool]) -> list[Lane]:
        """Those that serve the same."""
        return [lane for lane in self._lanes.values() if lane.key == key]

    def add(self, lane: Lane) -> None:
        """One was started."""
        with self._lock:
            self._lanes[lane.ref] = lane

    def remove(self, lane: Lane) -> None:
        """One has ended: after this its memory may go."""
        with self._lock:
            del self._lanes[lane.ref]

    # -- the keeper's threads -----------------------------------------------------------------------------------

    def members(self, queues: AbstractSet[str]) -> list[str]:
        """The leases to extend, ``<id>:<token>``; an executor's queues are all in one Redis."""
        now = time.monotonic()
        with self._lock:
            return [
                member
                for lane in self._lanes.values()
                if not queues.isdisjoint(lane.spec.names)
                for member in lane.members(now)
            ]

    def tell(self, members: list[str]) -> None:
        """Tell every executor of leases whose jobs are to stop."""
        now = time.monotonic()
        with self._lock:
            for lane in self._lanes.values():
                # Told again at each heartbeat: a line that nobody reads would fill, and this thread hang with it.
                if now - lane.last_turn < _READS_WITHIN_S:
                    lane.send("cancel", members=members)

    def wake(self, queue: str) -> None:
        """Tell the executors of a queue to look into it."""
        now = time.monotonic()
        with self._lock:
            for lane in self._lanes.values():
                if queue in lane.spec.names and now - lane.last_turn < _READS_WITHIN_S:
                    lane.send("wake", queue=queue)

    def registrations(self, queues: AbstractSet[str]) -> list[dict[str, Any]]:
        """What Redis is to show of each executor, as arguments of ``register_worker``."""
        now_ms = clock_ms()
        with self._lock:
            # One without a process id has not been forked yet; of two for the same the successor waits for its turn.
            # Who runs suspects apart goes by the same name.
            shown = (
                lane for lane in self._lanes.values() if lane.pid and not (lane.retired or lane.spec.apart)
            )
            first = {lane.spec.name: lane for lane in reversed(list(shown))}
            return [
                self._registration(lane, now_ms)
                for lane in first.values()
                if not queues.isdisjoint(lane.spec.names)
            ]

    def _registration(self, lane: Lane, now_ms: int) -> dict[str, Any]:
        running = Counter(slot.queue for slot in lane.table.read() if slot.state is SlotState.STARTED)
        busy, served = running.total(), lane.spec.queues
        return {
            "name": lane.spec.worker,
            "queues": lane.spec.names,
            "slots": lane.spec.slots,
            "busy": busy,
            "tasks": tuple(self._tasks),
            "host": socket.gethostname(),
            "pid": lane.pid,
            "state": self._state(busy),
            "worker": lane.spec.worker.removesuffix(f"-{lane.spec.name}"),
            "birth_ms": self._birth_ms,
            "now_ms": now_ms,
            "version": __version__,
            "signs": self._signs,
            "parts": [(each.slots, running[place]) for place, each in enumerate(served)]
            if served[1:]
            else (),
        }

    def _state(self, busy: int) -> str:
        if self.draining:
            return "draining"
        return "quiet" if self.quiet else ("busy" if busy else "idle")

    def serving(self, turned_s: float, polled_s: float) -> set[str]:
        """Queues with an executor that turns, hears from its queue, and can run jobs.

        Args:
            turned_s: One that has not turned for longer does not count.
            polled_s: One whose queue has not answered for longer does not count, unless it wanted nothing.
        """
        now = time.monotonic()
        with self._lock:
            return {
                queue
                for lane in self._lanes.values()
                if not (lane.retired or lane.spec.apart)
                and now - lane.last_turn < turned_s
                and lane.table.ready
                for place, queue in enumerate(lane.spec.names)
                if now - lane.table.last_poll(place) < polled_s
            }
