"""What is published to workers, heard the moment it is said.

Nothing rests on it: who was cut off meanwhile learns of a request to stop from the next heartbeat, and of a queue that
goes on again by looking.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.exceptions import RedisError

from jobq import calls
from jobq.errors import JobqError
from jobq.store import Store
from jobq.worker.lanes import Lanes
from jobq.worker.maintenance import Fleet

_log = logging.getLogger("jobq")

BLOCK_S = 5.0
_AGAIN_S = 0.5
_LOOK_S = 0.05

ASKED_S = 1.0
"""How long an id is looked for: a job that was just claimed comes into an executor's hands a moment later."""

_MOST_ASKED = 10_000


class Subscriber:
    """A thread that listens to one Redis. It outlives any outage.

    Args:
        redis: A client of the role ``pubsub``, its own.
        fleet: The worker, and which of its queues are in this Redis.
        lanes: Its executors.
        obey: Takes ``stop``, from this thread.
        catch_up: Called once subscribed, also after a lost connection: who asked before was not heard.
    """

    def __init__(
        self,
        redis: redis.Redis,
        fleet: Fleet,
        lanes: Lanes,
        obey: Callable[[str], None],
        catch_up: Callable[[], None],
    ) -> None:
        self._redis = redis
        self._fleet = fleet
        self._lanes = lanes
        self._obey = obey
        self._catch_up = catch_up
        keys = fleet.keys
        self._channels: dict[str, Callable[[str], None]] = {
            keys.cancel_channel: self._stop_run,
            keys.wake_channel: lanes.wake,
            # An executor goes by the name of a worker of rq's, and so do commands to it.
            **{keys.rq_commands(name): self._command for name in fleet.executors},
        }
        self._asked: dict[str, float] = {}  # ids that were asked to stop, and until when they are looked for
        self._told: set[str] = set()  # once each: a line that is not read would fill, and hang this thread
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="subscriber", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Hear nothing any more. The thread itself ends within seconds, or with its process."""
        self._ending.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._listen()
            except (RedisError, OSError):  # the keeper tells of outages
                self._ending.wait(random.uniform(_AGAIN_S / 2, _AGAIN_S))
            except Exception:
                _log.exception("what was published could not be understood")
                self._ending.wait(_AGAIN_S)

    def _listen(self) -> None:
        with self._redis.pubsub() as line:  # type: ignore[no-untyped-call]
            line.subscribe(*self._channels)
            while not self._ending.is_set():
                message = line.get_message(timeout=_LOOK_S if self._asked else BLOCK_S)
                if message is not None and not self._ending.is_set():
                    self._hear(message)
                if self._asked:
                    self._tell(time.monotonic())

    def _hear(self, message: dict[str, Any]) -> None:
        channel = _text(message["channel"])
        if message["type"] == "message":
            self._channels[channel](_text(message["data"]))
        elif channel == self._fleet.keys.cancel_channel and message["type"] == "subscribe":
            self._catch_up()

    def _stop_run(self, job_id: str) -> None:
        if len(self._asked) < _MOST_ASKED:
            self._asked[job_id] = time.monotonic() + ASKED_S

    def _tell(self, now: float) -> None:
        """Tell the executors which of their leases' jobs are to stop."""
        held = self._fleet.members()
        self._told.intersection_update(held)
        members = [m for m in held if m.rpartition(":")[0] in self._asked and m not in self._told]
        if members:
            self._told.update(members)
            self._lanes.tell(members)
        self._asked = {job_id: until for job_id, until in self._asked.items() if now < until}

    def _command(self, text: str) -> None:
        """A command of rq's: ``stop-job`` and ``shutdown``. Whoever may publish here may write to Redis anyway."""
        try:
            command = json.loads(text)
            word, job_id = command["command"], command.get("job_id")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return
        if word == "shutdown":
            self._obey("stop")
        elif word == "stop-job" and isinstance(job_id, str) and self._holds(job_id):
            try:
                Store(self._redis).run(calls.cancel(self._fleet.keys, job_id))
            except JobqError as error:
                _log.warning("job %s was to stop, and was not asked to: %s", job_id, error)

    def _holds(self, job_id: str) -> bool:
        return any(member.rpartition(":")[0] == job_id for member in self._fleet.members())


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
