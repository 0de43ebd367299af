"""A TCP proxy before a server: it loses, delays or cuts off chosen exchanges, or is slow and flaky in all of them."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Self

from jobq import lua

_MARK = 40
"""Bytes that a script is known by, at most."""

Fate = Literal["swallow", "delay", "reset", "truncate"]


@dataclass(slots=True)
class _Rule:
    marks: tuple[bytes, ...]
    fate: Fate
    times: int
    delay_s: float
    skip: int
    after: int = 0


@dataclass(frozen=True)
class Weather:
    """What befalls every exchange of a proxy.

    Attributes:
        latency_s: Least and most seconds by which a reply comes late, chosen evenly.
        resets: Share of exchanges that end in a reset: of every second one the server has run the request.
        seed: The same seed makes the same choices, as far as the order of the exchanges is the same.
    """

    latency_s: tuple[float, float] = (0.0, 0.0)
    resets: float = 0.0
    seed: int = 0


@dataclass(eq=False)
class Proxy:
    """Passes bytes on between clients and a server on 127.0.0.1.

    ``swallow``: the server runs the request, its reply is lost with the connection. ``delay``: the reply comes
    late. ``reset``: the connection is reset before the server gets the request. ``truncate``: the reply is cut
    off after some bytes, and the connection reset.

    Attributes:
        weather: What befalls exchanges that no rule is for; may be replaced at any time.
        requests: What clients sent, one entry per chunk that arrived together; nothing while there is weather.
        met: How many requests a rule was applied to, by fate; ``weather`` counts its resets.
    """

    server_port: int
    weather: Weather | None = None
    requests: list[bytes] = field(default_factory=list)
    met: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rand = random.Random(self.weather.seed if self.weather else 0)
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._passing = threading.Event()
        self._passing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def on(
        self, script: str, fate: Fate, times: int = 1, *, delay_s: float = 0.0, skip: int = 0, after: int = 0
    ) -> None:
        """Apply ``fate`` to the next requests that call ``script``, after letting ``skip`` pass.

        Args:
            after: Bytes of the reply that ``truncate`` lets through.
        """
        with self._lock:
            self._rules.append(_Rule(_marks(script), fate, times, delay_s, skip, after))

    def clear(self) -> None:
        """Forget all rules: from now on everything is passed on."""
        with self._lock:
            self._rules.clear()

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Pass nothing on, not even the end of a connection: as a network that drops every packet."""
        self._passing.clear()
        try:
            yield
        finally:
            self._passing.set()

    def calls(self, *scripts: str) -> int:
        """How many requests called one of these scripts: round trips, however many calls each held."""
        marks = [mark for name in scripts for mark in _marks(name)]
        with self._lock:
            return sum(any(mark in request for mark in marks) for request in self.requests)

    def close(self) -> None:
        """Close all connections; clients are refused from now on."""
        self._passing.set()
        # close() alone leaves a blocked accept() waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            _end(each)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            try:
                theirs = socket.create_connection(("127.0.0.1", self.server_port))
            except OSError:
                ours.close()
                continue
            for each in (ours, theirs):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {ours, theirs}
            fates: list[_Rule] = []
            for pump in (self._forth, self._back):
                threading.Thread(target=pump, args=(ours, theirs, fates), daemon=True).start()

    def _forth(self, ours: socket.socket, theirs: socket.socket, fates: list[_Rule]) -> None:
        before = b""
        try:
            while data := ours.recv(1 << 20):
                rule = self._rule_for(data, before)
                before = data[-_MARK + 1 :]
                if rule is not None and rule.fate == "reset":
                    break
                if rule is not None:
                    fates.append(rule)
                self._passing.wait()
                theirs.sendall(data)
        except OSError:
            pass
        self._passing.wait()
        self._cut(ours, theirs)

    def _back(self, ours: socket.socket, theirs: socket.socket, fates: list[_Rule]) -> None:
        try:
            while data := theirs.recv(1 << 20):
                rule = fates.pop(0) if fates else None
                if rule is not None and rule.fate == "swallow":
                    break
                if rule is not None and rule.fate == "truncate":
                    ours.sendall(data[: rule.after])
                    break
                if rule is not None:
                    time.sleep(rule.delay_s)
                self._passing.wait()
                ours.sendall(data)
        except OSError:
            pass
        self._passing.wait()
        self._cut(ours, theirs)

    def _rule_for(self, data: bytes, before: bytes) -> _Rule | None:
        """``before``: too little for a mark, so that one that came in two parts is found once."""
        with self._lock:
            if self.weather is not None:
                return self._weathered(self.weather)
            self.requests.append(data)
            for rule in self._rules:
                if rule.times and any(mark in before + data for mark in rule.marks):
                    if rule.skip:
                        rule.skip -= 1
                        continue
                    rule.times -= 1
                    self.met[rule.fate] = self.met.get(rule.fate, 0) + 1
                    return rule
        return None

    def _weathered(self, weather: Weather) -> _Rule:
        fate: Fate = "delay"
        if self._rand.random() < weather.resets:
            fate = self._rand.choice(("reset", "swallow"))
            self.met["weather"] = self.met.get("weather", 0) + 1
        return _Rule((), fate, 1, self._rand.uniform(*weather.latency_s), 0)

    def _cut(self, *sockets: socket.socket) -> None:
        with self._lock:
            self._sockets -= set(sockets)
        for each in sockets:
            _end(each)


def _marks(script: str) -> tuple[bytes, ...]:
    """What calls of it hold: its hash, or its text."""
    return lua.script(script).sha.encode(), f"-- {script}.lua:".encode()


def _end(each: socket.socket) -> None:
    """Reset rather than close: the other side must not take what was in flight for complete."""
    with contextlib.suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
