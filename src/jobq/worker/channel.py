"""How the worker's processes talk: JSON lines over a Unix socket pair, with file descriptors where needed."""

from __future__ import annotations

import array
import contextlib
import json
import socket
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

_CHUNK = 65_536
_FDS_ROOM = socket.CMSG_LEN(16 * array.array("i").itemsize)
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # descriptors must not leak into what tasks start


@dataclass(slots=True)
class Message:
    """One message: ``op`` says what it is."""

    op: str
    body: dict[str, Any]
    fds: list[int] = field(default_factory=list)


class ChannelClosed(Exception):
    """The other side has gone."""


class Channel:
    """One end of a socket pair.

    Any thread may send. Reading never blocks unless asked to; writing blocks until the other side has room,
    which it has: messages are small, and both sides read in every turn of their loop.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(True)
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self._sending = threading.Lock()

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """A channel for this side, and the raw socket to hand to the other."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(ours), theirs

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """The channel over an inherited or received descriptor, which it then owns."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """For ``select``."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close this end."""
        self._sock.close()

    def close_write(self) -> None:
        """Tell the other side that nothing more will come; what it says can still be read."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def send(self, op: str, *, fds: tuple[int, ...] = (), **body: Any) -> None:
        """Send one message.

        Raises:
            ChannelClosed: The other side has gone.
        """
        data = json.dumps({"op": op, "nfds": len(fds), **body}, separators=(",", ":")).encode() + b"\n"
        try:
            with self._sending:
                sent = 0
                if fds:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                    sent = self._sock.sendmsg([data], [rights])
                self._sock.sendall(data[sent:])
        except OSError as error:
            raise ChannelClosed from error

    def receive(self, *, block: bool = False) -> list[Message]:
        """All messages that have arrived; with ``block``, at least one.

        Raises:
            ChannelClosed: The other side has gone and nothing is left to read.
        """
        messages: list[Message] = []
        while True:
            self._fill(block and not messages)
            messages += self._parse()
            if messages or not block:
                return messages

    def _fill(self, block: bool) -> None:
        while True:
            flags = _CLOEXEC if block else _CLOEXEC | socket.MSG_DONTWAIT
            try:
                # Not socket.recv_fds: it drops its flags (CPython 3.11), and would block here.
                data, ancillary, _, _ = self._sock.recvmsg(_CHUNK, _FDS_ROOM, flags)
            except BlockingIOError:
                return
            except OSError as error:
                raise ChannelClosed from error
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                    self._fds.extend(fds)
            if not data:
                if b"\n" in self._buffer:
                    return
                raise ChannelClosed
            self._buffer += data
            if len(data) < _CHUNK:
                return

    def _parse(self) -> list[Message]:
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        messages = []
        for line in lines:
            body = json.loads(line)
            op, count = body.pop("op"), body.pop("nfds")
            messages.append(Message(op, body, [self._fds.popleft() for _ in range(count)]))
        return messages
