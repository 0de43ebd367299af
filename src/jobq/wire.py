"""Bytes to a server and replies back, on the socket of a connection that redis-py has made.

redis-py connects (TLS, Sentinel, login, database); after that its layers around one exchange, made for any command
on any kind of connection, cost 20 us, a tenth of a whole enqueue.
"""

from __future__ import annotations

from typing import Any

import redis
from hiredis import ProtocolError, Reader
from redis.exceptions import BusyLoadingError, NoScriptError, ResponseError

from jobq.deadline import MOMENT_S, Deadline

_READ_BYTES = 65_536


def _reply_error(text: str) -> Exception:
    """An error reply, under its whole text; the two that callers tell apart by type get theirs."""
    if text.startswith("NOSCRIPT"):
        return NoScriptError(text)
    if text.startswith("LOADING"):  # a connection error to redis-py: worth another try
        return BusyLoadingError(text)
    return ResponseError(text)


def _lost(error: Exception) -> redis.ConnectionError | redis.TimeoutError:
    if isinstance(error, TimeoutError):
        return redis.TimeoutError("Redis did not answer in time")
    return redis.ConnectionError(f"the connection broke: {error}")


class Wire:
    """One open connection, for whole commands and their replies. Not for several threads at once.

    Args:
        connection: A connection of redis-py, of its own or a pool's policy; opened here if need be.
    Raises:
        redis.ConnectionError, redis.TimeoutError: It cannot be opened.
    """

    __slots__ = ("_reader", "_sock", "_timeout_s", "connection")

    def __init__(self, connection: Any) -> None:
        connection.connect()
        self.connection = connection
        self._sock = connection._sock  # noqa: SLF001 - redis-py offers no other way to what it connected
        self._timeout_s: float | None = self._sock.gettimeout()
        self._reader = Reader(protocolError=redis.ConnectionError, replyError=_reply_error)

    def send(self, packed: bytes, deadline: Deadline | None = None) -> None:
        """Send one command, or several.

        Args:
            deadline: Ends the sending; None: the connection's own timeout does.
        Raises:
            redis.ConnectionError, redis.TimeoutError: It cannot be sent. The wire is of no more use.
        """
        try:
            if deadline is not None:
                self._limit(deadline)
                deadline.sent = True
            self._sock.sendall(packed)
        except OSError as error:
            raise _lost(error) from error

    def receive(self, deadline: Deadline | None = None) -> Any:
        """The next reply; an error reply is a value, too.

        Args:
            deadline: Ends the reading; None: the connection's own timeout does.
        Raises:
            redis.ConnectionError, redis.TimeoutError: It did not come. The wire is of no more use.
        """
        reader = self._reader
        try:
            while (reply := reader.gets()) is False:
                if deadline is not None:
                    self._limit(deadline)
                data = self._sock.recv(_READ_BYTES)
                if not data:
                    raise redis.ConnectionError("Connection closed by server.")
                reader.feed(data)
        except (OSError, ProtocolError) as error:
            raise _lost(error) from error
        if isinstance(reply, redis.ConnectionError):
            raise reply
        return reply

    def receive_for(self, client: redis.Redis, command: str) -> Any:
        """The next reply, as a client's pipeline gives it, under the current deadline; an error reply is a value.

        Raises:
            redis.ConnectionError, redis.TimeoutError: It did not come. The wire is of no more use.
        """
        self._timeout_s = None  # the connection sets its own
        try:
            return client.parse_response(self.connection, command)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            return error

    def quiet(self) -> bool:
        """Whether a wire that was idle is still open: an open one has nothing to read."""
        try:
            return not self.connection.can_read()
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            return False

    def close(self) -> None:
        """Close the connection."""
        self.connection.disconnect()

    def _limit(self, deadline: Deadline) -> None:
        left_s = deadline.remaining()
        if left_s <= 0:
            raise redis.TimeoutError("the deadline passed before Redis answered")
        # Each change is a system call; the first try of a deadline finds its whole length set.
        if self._timeout_s is None or abs(self._timeout_s - left_s) > MOMENT_S:
            self._sock.settimeout(left_s)
            self._timeout_s = left_s
