"""A TCP proxy that holds every byte back for a while, as a network does: ``python -m benchmarks.delay PORT MS``.

It forwards to PORT of this machine, prints the port it listens on, and ends when its standard input does. Each
direction takes MS / 2. Two threads per direction: a sleep there is exact to a tenth of a millisecond, which the timer
of an event loop is not.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time

_Chunk = tuple[float, bytes]


def main() -> None:
    """Serve until standard input ends."""
    target, delay_s = int(sys.argv[1]), float(sys.argv[2]) / 2000
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=_accept, args=(listener, target, delay_s), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
    os._exit(0)


def _accept(listener: socket.socket, target: int, delay_s: float) -> None:
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", target))
        for source, sink in ((near, far), (far, near)):
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            held: queue.SimpleQueue[_Chunk] = queue.SimpleQueue()
            threading.Thread(target=_read, args=(source, held, delay_s), daemon=True).start()
            threading.Thread(target=_write, args=(sink, held), daemon=True).start()


def _read(source: socket.socket, held: queue.SimpleQueue[_Chunk], delay_s: float) -> None:
    data = b"-"
    while data:
        try:
            data = source.recv(262_144)
        except OSError:
            data = b""
        held.put((time.monotonic() + delay_s, data))


def _write(sink: socket.socket, held: queue.SimpleQueue[_Chunk]) -> None:
    try:
        while True:
            due, data = held.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                sink.shutdown(socket.SHUT_RDWR)
                return
            sink.sendall(data)
    except OSError:  # the other side has gone; so has the need for what is held
        pass


if __name__ == "__main__":
    main()
