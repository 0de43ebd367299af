"""How an idle executor hears of a new job: one blocking read on a connection of its own.

``BLMOVE q q LEFT LEFT`` takes the first id and puts it back in one step: it waits without consuming, sees what plain
rq enqueues, and costs the producer nothing. The executor's loop watches the socket; nothing polls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from jobq.store import is_demoted

BLOCK_S = 5.0
_OVERDUE_S = 3.0
"""A reply this much later than the block means that the connection is dead without saying so."""


class Waiter:
    """Waits for the queue's list to be non-empty.

    Args:
        connect: Makes an unconnected connection. It is only read when it has data: its timeout may be below the block.
        queue_key: The queue's list.
    """

    def __init__(self, connect: Callable[[], AbstractConnection], queue_key: str) -> None:
        self._connect = connect
        self._key = queue_key
        self._connection: AbstractConnection | None = None
        self._armed_at: float | None = None

    @property
    def armed(self) -> bool:
        """Whether a wait is under way."""
        return self._armed_at is not None

    def arm(self, now: float) -> bool:
        """Begin to wait, unless a wait is under way. False: Redis is away."""
        if self._armed_at is not None:
            if now - self._armed_at < BLOCK_S + _OVERDUE_S:
                return True
            self.drop()
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connection.connect()  # type: ignore[no-untyped-call]
            self._connection.send_command(  # type: ignore[no-untyped-call]
                "BLMOVE", self._key, self._key, "LEFT", "LEFT", BLOCK_S
            )
        except (RedisError, OSError):
            self.drop()
            return False
        self._armed_at = now
        return True

    def fileno(self) -> int:
        """The socket to watch while armed."""
        assert self._connection is not None
        sock: Any = self._connection._sock  # noqa: SLF001 - redis-py has no public way to its socket
        return int(sock.fileno())

    def fire(self) -> bool:
        """Read the reply. True: look for jobs. Raises OSError or RedisError when the connection broke."""
        assert self._connection is not None
        self._armed_at = None
        try:
            return self._connection.read_response() is not None
        except ResponseError as error:
            # Out of memory, or a read-only replica: the claim will say so, or succeed. Do not spin meanwhile.
            if is_demoted(error):
                self.drop()  # its name may lead to the new primary by now
            time.sleep(0.1)
            return True
        except (RedisError, OSError):
            self.drop()
            raise

    def drop(self) -> None:
        """Close the connection; the next wait makes a new one."""
        self._armed_at = None
        if self._connection is not None:
            self._connection.disconnect()  # type: ignore[no-untyped-call]
            self._connection = None
