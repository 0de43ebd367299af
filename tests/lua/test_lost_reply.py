"""A reply lost on its way, on a real socket: the step counts once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobq import calls
from jobq.errors import StoreUnavailableError
from jobq.keys import Keys
from jobq.steps import Outcome
from jobq.store import Link, Store
from tests.lua.conftest import Bench

KEYS = Keys()


class Swallow:
    """Passes bytes between a client and the server; cuts the line instead of the next reply when told to."""

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.armed = False
        self.cut = threading.Event()
        self.ends: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        for end in self.ends:
            self._end(end)
        for thread in self.threads:
            thread.join(5)
        for end in (self.listener, *self.ends):
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.server_port))
            self.ends += (near, far)
            self._start(self._pump, near, far, False)
            self._start(self._pump, far, near, True)

    def _pump(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        try:
            while data := source.recv(65_536):
                if replies and self.armed:
                    self.armed = False
                    self.cut.set()
                    break
                target.sendall(data)
        except OSError:
            pass
        self._end(source)
        self._end(target)

    @staticmethod
    def _end(end: socket.socket) -> None:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def swallow(bench: Bench) -> Iterator[tuple[Swallow, redis.Redis]]:
    line = Swallow(bench.redis.connection_pool.connection_kwargs["port"])
    client = redis.Redis(port=line.port, retry=Retry(NoBackoff(), 0), socket_timeout=5)
    try:
        client.ping()
        yield line, client
    finally:
        client.close()
        line.close()


def test_enqueue_within_its_deadline(real: Bench) -> None:
    call = calls.enqueue(KEYS, "q", [real.new("a")])
    real.store.run(calls.release(KEYS))
    real.enqueue("warm")  # the script is loaded: the lost reply is the enqueue's own
    with swallow(real) as (line, client):
        line.armed = True
        assert [answer.status for answer in Store(client, deadline=5).run(call)] == ["mine"]
        assert line.cut.is_set()
    assert real.waiting() == ["warm", "a"]


def test_enqueue_without_repeats_says_that_it_may_have_landed(real: Bench) -> None:
    real.enqueue("warm")
    with swallow(real) as (line, client):
        line.armed = True
        with pytest.raises(StoreUnavailableError) as caught:
            Store(client).run(calls.enqueue(KEYS, "q", [real.new("a")]))
    assert caught.value.ambiguous is True
    assert real.status("a") == "queued"
    assert real.enqueue("a") == [("mine", "a")]


def test_settle_and_claim_of_a_worker(real: Bench) -> None:
    real.enqueue("a", "b")
    (job,) = real.claim(1).jobs
    outcome = Outcome(job_id="a", token=job.token, kind="succeeded", spends=True, counters=("o",))
    steps = [
        calls.settle(KEYS, "q", [outcome], "2027-01-15T08:00:02.000000Z", now_ms=real.now),
        real.claim_call(),
    ]
    real.settle(kind="succeeded")  # loads the script
    with swallow(real) as (line, client):
        link = Link(client)
        link.exchange([calls.heartbeat(KEYS, [], 1)])
        line.armed = True
        with pytest.raises(StoreUnavailableError) as caught:
            link.exchange(steps)
        assert caught.value.ambiguous is True
        words, claim = link.exchange(steps)
        link.close()
    assert words == ["already"]
    assert [job.id for job in claim.jobs] == ["b"]
    (counters,) = real.redis.keys("jobq:n:*")
    assert real.redis.hget(counters, "o") == b"1"
    assert real.hash("a")["attempts"] == "1"
