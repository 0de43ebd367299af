"""A one-time code, enqueued with a key, is found nowhere: not in Redis, logs, listings, tracebacks or ``ps``."""

from __future__ import annotations

import base64
import socket
import subprocess
import threading
import traceback
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

import jobq
from jobq.errors import JobFailedError, PayloadError
from jobq.helpers import send_otp
from tests.interop import app
from tests.support.processes import BIN, environment, jobq_worker, rq_worker, until
from tests.support.proxy import Proxy

pytestmark = pytest.mark.process

APP = "tests.interop.app,jobq.helpers"
KEY = "a key for the tests, thirty-two bytes and more"
CODE = "QX7-94ZK-31"


def forms(data: bytes) -> Iterator[bytes]:
    """The data, and what it holds under zlib and base64, some layers deep."""
    todo, seen = [data], set()
    while todo and len(seen) < 50:
        each = todo.pop()
        if each in seen:
            continue
        seen.add(each)
        yield each
        for decode in (
            zlib.decompress,
            lambda raw: base64.b64decode(raw, validate=True),
            base64.urlsafe_b64decode,
        ):
            try:
                todo.append(decode(each))
            except (ValueError, zlib.error):
                continue


def assert_absent(data: bytes | str, where: str) -> None:
    raw = data if isinstance(data, bytes) else data.encode()
    for form in forms(raw):
        assert CODE.encode() not in form, where
    for shift in range(3):  # a code inside of a longer text, encoded as base64
        encoded = base64.b64encode(b"x" * shift + CODE.encode())
        assert encoded[4 * bool(shift) : -4] not in raw, where


def dump(connection: redis.Redis) -> dict[str, Any]:
    """Every key and all that it holds."""
    found: dict[str, Any] = {}
    for key in connection.scan_iter(count=1000):
        kind = connection.type(key)
        name = key.decode()
        if kind == b"none":  # gone meanwhile
            continue
        if kind == b"hash":
            found[name] = [part for pair in connection.hgetall(key).items() for part in pair]
        elif kind == b"list":
            found[name] = connection.lrange(key, 0, -1)
        elif kind == b"set":
            found[name] = list(connection.smembers(key))
        elif kind == b"zset":
            found[name] = connection.zrange(key, 0, -1)
        elif kind == b"stream":
            found[name] = [
                part for _, entry in connection.xrange(key) for pair in entry.items() for part in pair
            ]
        else:
            found[name] = [connection.get(key)]
        found[name].append(key)
    return found


def assert_not_in_redis(connection: redis.Redis) -> int:
    """Returns how many values were looked at."""
    count = 0
    for name, values in dump(connection).items():
        for value in values:
            count += 1
            assert_absent(value, name)
    return count


def test_the_search_itself_finds_a_code() -> None:
    text = f"Traceback: refused {CODE} today".encode()
    for hidden in (
        text,
        zlib.compress(text),
        base64.b64encode(zlib.compress(text)),
        base64.b64encode(CODE.encode()),
    ):
        with pytest.raises(AssertionError):
            assert_absent(hidden, "here")
    for shift in range(3):
        with pytest.raises(AssertionError):
            assert_absent(b"{" + base64.b64encode(b"a" * shift + text)[:-4] + b"}", "here")


class Quoting:
    """A mail server that refuses each mail, quoting all of it."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.refused.append(envelope.content or b"")
        answer = "550" if b"final@" in b"".join(to.encode() for to in envelope.rcpt_tos) else "451"
        return f"{answer} not this one: your code is {CODE}, sorry"

    def __init__(self) -> None:
        self.refused: list[bytes] = []


@pytest.fixture
def mail() -> Iterator[tuple[Quoting, str]]:
    handler = Quoting()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(handler, hostname="127.0.0.1", port=port)
    controller.start()
    yield handler, f"smtp://127.0.0.1:{port}"
    controller.stop()


@pytest.fixture
def client(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[jobq.Client]:
    """The default client, with a key, behind a proxy that keeps all that was sent."""
    monkeypatch.setattr("jobq.client._default", None)
    with (
        Proxy(redis_client.connection_pool.connection_kwargs["port"]) as proxy,
        jobq.configure(redis_url=proxy.url, secret_key=KEY) as made,
    ):
        yield made
        assert proxy.requests
        for request in proxy.requests:
            assert_absent(request, "sent to Redis")


def commands_shown() -> str:
    """The command line, and the title, of every process of the machine."""
    done = subprocess.run(["ps", "-eww", "-o", "pid,comm,args"], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0
    return done.stdout


def test_a_code_is_nowhere(
    client: jobq.Client, redis_url: str, redis_client: redis.Redis, tmp_path: Path, mail: tuple[Quoting, str]
) -> None:
    server, smtp_url = mail
    jobs = {
        "refused": send_otp("final@example.com", CODE),
        "put off": send_otp.options(max_attempts=2, backoff=jobq.Fixed(0.05)).enqueue(
            "user@example.com", CODE
        ),
        "thread": app.leak_in_thread.enqueue(CODE),
        "loop": app.leak_in_loop.enqueue(CODE),
        "child": app.leak_in_child.enqueue(CODE),
        "nested": app.leak_nested.enqueue({"all": [CODE]}),
        "cancel": app.leak_reason.enqueue(CODE, "cancel"),
        "discard": app.leak_reason.enqueue(CODE, "discard"),
        "retry": app.leak_reason.enqueue(CODE, "retry"),
        "exit": app.leak_exit.enqueue(CODE),
        "scheduled": app.leak_in_thread.options(delay=3600).enqueue(CODE),
        "fine": app.sealed.enqueue("a@b.c", CODE),
    }
    for job in jobs.values():
        assert_absent(repr(job) + str(job), "the job's repr")
    assert assert_not_in_redis(redis_client) > 100
    shown: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.3):
            shown.append(commands_shown())
            assert_not_in_redis(redis_client)

    env = {"JOBQ_SECRET_KEY": KEY, "JOBQ_SMTP_URL": smtp_url, "JOBQ_SMTP_FROM": "no-reply@example.com"}
    with (
        jobq_worker(
            redis_url, tmp_path / "worker.log", "-v", "-v", app=APP, queues=("critical", "high"), **env
        ) as worker,
        ThreadPoolExecutor(1) as pool,
    ):
        watching = pool.submit(watch)
        try:
            ended = {
                name: job.wait(timeout=20) for name, job in jobs.items() if name not in ("scheduled", "exit")
            }
            until(lambda: jobs["exit"].refresh().state in ("dead", "queued", "running"))
            # Executors show themselves by their names.
            until(lambda: watching.done() or any("jobq: " in each for each in shown))
        finally:
            done.set()
        watching.result(20)
        log = worker.output()
    assert {name: job.state.value for name, job in ended.items()} == {
        "refused": "dead", "put off": "dead", "thread": "dead", "loop": "dead", "child": "dead", "nested": "dead",
        "cancel": "cancelled", "discard": "cancelled", "retry": "dead", "fine": "succeeded",
    }  # fmt: skip
    assert any(CODE.encode() in mail for mail in server.refused), "the mail itself does hold it"
    assert_absent("".join(shown), "ps")
    assert_absent(log, "the worker's log")
    assert "i.leak" in log
    assert assert_not_in_redis(redis_client) > 200
    for name, job in ended.items():
        assert_absent(repr(job), "the job")
        attempts = client.attempts(job.id)
        assert_absent(repr(attempts), "its attempts")
        assert attempts or job.state != "dead", name
        if job.state == "dead":
            assert "•••" in repr(attempts) or name == "refused" or name == "put off", name
        if job.state != "succeeded":
            with pytest.raises(JobFailedError) as caught:
                job.result(timeout=1)
            assert_absent(repr(caught.value) + str(caught.value), "the error of result()")
    assert_absent(repr(client.dead_letters.list()), "dead letters")
    ids = [job.id for job in jobs.values()]
    shell = environment(redis_url, APP, JOBQ_SECRET_KEY=KEY)
    said = [
        _run(["jobs", "show", job_id, "-v", "-v"], shell)
        for job_id in (ended["thread"].id, ended["refused"].id)
    ]
    said += [
        _run(["jobs", "show", ended["child"].id, "--json"], shell),
        _run(["jobs", "list", "-o", "wide"], shell),
    ]
    said += [_run(["dead", "list", "--json"], shell), _run(["dead", "show", ended["loop"].id, "-v"], shell)]
    assert_absent("".join(said), "the command line")
    assert ids[2] in "".join(said)


def _run(args: list[str], env: dict[str, str]) -> str:
    done = subprocess.run([str(BIN / "jobq"), *args], env=env, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_stock_worker_keeps_it_too(
    client: jobq.Client, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    jobs = [
        app.leak_in_thread.enqueue(CODE),
        app.leak_reason.enqueue(CODE, "retry"),
        app.sealed.enqueue("a@b.c", CODE),
    ]
    said = rq_worker(redis_url, tmp_path / "rq.log", app=APP, JOBQ_SECRET_KEY=KEY)
    assert [job.refresh().state for job in jobs] == ["dead", "dead", "succeeded"]
    assert "LeakyError" in said
    assert_absent(said, "the log of rq worker")
    assert_not_in_redis(redis_client)


def test_refusals_at_enqueue_do_not_quote_it(client: jobq.Client, redis_client: redis.Redis) -> None:
    wrong: Any = CODE
    nested: Any = app.leak_nested
    sealed: Any = app.sealed
    calls = (
        lambda: send_otp("not an address", CODE),
        lambda: send_otp("user@example.com", CODE + "\n"),
        lambda: nested.enqueue({"all": wrong}),
        lambda: sealed.enqueue("a@b.c", {"x": wrong}),
        lambda: sealed.enqueue("a@b.c", code=CODE, more=CODE),
    )
    for call in calls:
        with pytest.raises(PayloadError) as caught:
            call()
        error = caught.value
        assert_absent(f"{error!r} {''.join(traceback.format_exception(error))}", "the error")
    client.stats()
    assert_not_in_redis(redis_client)
