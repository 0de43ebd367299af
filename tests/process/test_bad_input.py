"""What cannot be trusted or read is set aside: it never runs, and never stops a worker."""

from __future__ import annotations

import json
import signal
import zlib

import pytest
import redis

import jobq
from jobq.job import JobState
from tests.process import ledger_app as app
from tests.process.conftest import WorkerFactory
from tests.support.processes import until
from tests.support.workers import Ledger

pytestmark = pytest.mark.process

KEY = "a secret that signs, long enough to be one"


@pytest.fixture
def signing(redis_url: str) -> jobq.Client:
    with jobq.Client(jobq.Settings(redis_url=redis_url, secret_key=KEY)) as made:
        yield made


class Mix:
    """Bad jobs between good ones: enqueued for real, then spoilt before any worker starts."""

    def __init__(self, client: jobq.Client, redis_client: redis.Redis) -> None:
        self.client = client
        self.redis = redis_client
        self.good: list[jobq.Job] = []
        self.bad: dict[str, jobq.Job] = {}

    def add_good(self) -> None:
        key = f"good{len(self.good)}"
        self.good.append(app.note.options(client=self.client).enqueue(key=key))

    def add_bad(self, name: str) -> str:
        """A job to be spoilt; returns the key of its hash."""
        self.add_good()
        self.bad[name] = app.note.options(client=self.client).enqueue(key=f"bad.{name}")
        self.add_good()
        return f"rq:job:{self.bad[name].id}"

    def data(self, name: str) -> bytes:
        found = self.redis.hget(f"rq:job:{self.bad[name].id}", "data")
        assert isinstance(found, bytes)
        return found

    def assert_good_ran(self, ledger: Ledger) -> None:
        for job in self.good:
            assert job.wait(timeout=15).state is JobState.SUCCEEDED
        for n in range(len(self.good)):
            assert ledger.count("ran", f"good{n}") == 1

    def assert_no_bad_ran(self, ledger: Ledger) -> None:
        assert [entry.key for entry in ledger.entries("ran") if entry.key.startswith("bad.")] == []


@pytest.fixture
def mix(client: jobq.Client, redis_client: redis.Redis) -> Mix:
    return Mix(client, redis_client)


def end(running: object) -> None:
    """The worker is as well as before: it ends on request, and had no error of its own."""
    running.send(signal.SIGTERM)
    assert running.wait(15) == 0
    assert "Traceback" not in running.output()
    assert running.events("worker.lost") == []


def test_forged_and_altered_payloads_are_rejected(
    worker: WorkerFactory, signing: jobq.Client, redis_client: redis.Redis, ledger: Ledger
) -> None:
    mix = Mix(signing, redis_client)
    for name in ("param", "task", "moved", "signature", "unknown_key", "unsigned", "packed"):
        mix.add_bad(name)

    def spoil(name: str, data: bytes) -> None:
        assert data != mix.data(name)
        redis_client.hset(f"rq:job:{mix.bad[name].id}", "data", data)

    spoil("param", mix.data("param").replace(b"bad.param", b"bad.PARAM"))
    spoil("task", mix.data("task").replace(b"t.note", b"t.fail"))
    spoil("moved", mix.data("signature"))  # well signed, for another job
    parts = json.loads(mix.data("signature"))
    spoil("signature", mix.data("signature").replace(parts["sig"].encode(), b"A" * len(parts["sig"])))
    with jobq.Client(jobq.Settings(redis_url=signing.settings.redis_url, secret_key="another" * 8)) as forger:
        forged = app.note.options(client=forger).enqueue(key="bad.forged")
    spoil("unknown_key", redis_client.hget(f"rq:job:{forged.id}", "data"))
    with jobq.Client(jobq.Settings(redis_url=signing.settings.redis_url)) as plain:
        unsigned = app.note.options(client=plain).enqueue(key="bad.plain")
    spoil("unsigned", redis_client.hget(f"rq:job:{unsigned.id}", "data"))
    spoil("packed", zlib.compress(mix.data("packed").replace(b"bad.packed", b"bad.PACKED")))

    running = worker(JOBQ_SECRET_KEY=KEY)
    mix.assert_good_ran(ledger)
    for name, job in [*mix.bad.items(), ("forged", forged), ("plain", unsigned)]:
        until(lambda job=job: job.refresh().state in (JobState.DEAD, JobState.PARKED))
        found = job.refresh()
        seen = (found.state, found.dead_reason or found.parked_reason, found.attempt)
        expected = {(JobState.DEAD, "rejected", 0), (JobState.PARKED, "no_key", 0)}
        assert seen in expected, f"{name}: {seen}"
        if name not in ("unknown_key", "forged"):
            assert seen[1] == "rejected", f"{name}: {seen}"
    mix.assert_no_bad_ran(ledger)
    end(running)


def test_a_payload_that_cannot_be_read_becomes_a_dead_letter(
    worker: WorkerFactory, mix: Mix, redis_client: redis.Redis, ledger: Ledger
) -> None:
    deep = b'{"v":1,"kid":"","sig":"","body":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    broken = {
        "empty": b" ",
        "text": b"nonsense",
        "bytes": bytes(range(256)),
        "cut": b'{"v":1,"kid":"","sig":"","body":{"task":"t.no',
        "null": b"null",
        "list": b"[1,2]",
        "wrong_types": b'{"v":1,"kid":"","sig":"","body":{"task":7,"tv":"x","p":[]}}',
        "wrong_params": b'{"v":1,"kid":"","sig":"","body":{"task":"t.note","tv":1,"p":{"key":{"a":1}}}}',
        "no_params": b'{"v":1,"kid":"","sig":"","body":{"task":"t.note","tv":1,"p":{}}}',
        "nan": b'{"v":1,"kid":"","sig":"","body":{"task":"t.note","tv":1,"p":{"key":NaN}}}',
        "utf8": b'{"v":1,"kid":"","sig":"","body":{"task":"t.note","tv":1,"p":{"key":"\xff"}}}',
        "huge": b'{"v":1,"kid":"","sig":"","body":{"task":"t.note","tv":'
        + b"9" * 5_000
        + b',"p":{"key":"a"}}}',
        "deep": deep,
        "bomb": zlib.compress(b" " * 50_000_000),
        "zlib": b"x\x9c broken",
        "pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94.",
    }
    parked = {"surrogate": b'{"v":1,"kid":"","sig":"","body":{"task":"t.\\ud800","tv":1,"p":{}}}'}
    for name, data in (broken | parked).items():
        redis_client.hset(mix.add_bad(name), "data", data)
    running = worker()
    mix.assert_good_ran(ledger)
    for name, job in mix.bad.items():
        until(lambda job=job: job.refresh().state in (JobState.DEAD, JobState.PARKED))
        done = job.refresh()
        seen = (done.state, done.dead_reason or done.parked_reason, done.attempt)
        wanted = {(JobState.DEAD, "unreadable", 0)}
        if name in parked:
            wanted.add((JobState.PARKED, "unknown_task", 0))
        assert seen in wanted, f"{name}: {seen}"
    mix.assert_no_bad_ran(ledger)
    end(running)


def test_hashes_that_are_none_are_set_aside(
    worker: WorkerFactory, mix: Mix, redis_client: redis.Redis, ledger: Ledger
) -> None:
    for make in ("string", "list", "set", "zset"):
        key = mix.add_bad(make)
        redis_client.delete(key)
        if make == "string":
            redis_client.set(key, "not a hash")
        elif make == "list":
            redis_client.rpush(key, "not a hash")
        elif make == "set":
            redis_client.sadd(key, "not a hash")
        else:
            redis_client.zadd(key, {"not a hash": 1})
    redis_client.hdel(mix.add_bad("no_data"), "data")
    redis_client.hdel(mix.add_bad("no_status"), "status")
    strange = ["no such job", "a:b", "\x00", "x" * 300]
    for job_id in strange[1:]:
        redis_client.hset(
            f"rq:job:{job_id}", mapping={"status": "queued", "data": "{}", "origin": "high", "q": 1}
        )
    redis_client.hset(
        b"rq:job:\xff\xfe", mapping={"status": "queued", "data": "{}", "origin": "high", "q": 1}
    )
    redis_client.rpush("rq:queue:high", *strange, b"\xff\xfe")
    mix.add_good()
    gone = mix.add_bad("gone")
    redis_client.delete(gone)
    mix.add_good()

    running = worker()
    mix.assert_good_ran(ledger)
    until(lambda: redis_client.llen("rq:queue:high") == 0)
    aside = set(redis_client.zrange("jobq:quarantine", 0, -1))
    expected = {job.id.encode() for name, job in mix.bad.items() if name != "gone"}
    assert aside == expected | {b"a:b", b"\x00", b"x" * 300, b"\xff\xfe"}
    until(lambda: redis_client.zcard("jobq:leases") == 0)
    mix.assert_no_bad_ran(ledger)
    end(running)


@pytest.mark.parametrize("wrong", [b"", b"abc", b"\xff\xfe", b"-1", b"1e400", b"9" * 400, b"nan", b"[]"])
def test_any_field_may_be_wrong(
    worker: WorkerFactory, mix: Mix, redis_client: redis.Redis, ledger: Ledger, wrong: bytes
) -> None:
    fields = (
        "timeout", "description", "attempts", "crashes", "lost", "q", "o", "jk", "dk", "st", "created_at",
        "enqueued_at", "origin", "ttl", "pb", "cx",
    )  # fmt: skip
    for field in fields:
        redis_client.hset(mix.add_bad(field), field, wrong)
    redis_client.hset(
        mix.add_bad("nothing_right"), mapping=dict.fromkeys(("description", "data", "timeout"), wrong)
    )
    redis_client.hdel(mix.add_bad("no_q"), "q")
    mix.add_bad("foreign")
    redis_client.hdel(f"rq:job:{mix.bad['foreign'].id}", "q")
    redis_client.hset(
        f"rq:job:{mix.bad['foreign'].id}",
        mapping=dict.fromkeys(("retries_left", "result_ttl", "failure_ttl", "ttl", "enqueued_at"), wrong),
    )
    running = worker("--concurrency", "4")
    mix.assert_good_ran(ledger)
    # Some of these still run, for what is wrong does not matter: but each leaves the queue, and its lease.
    until(lambda: redis_client.llen("rq:queue:high") == 0)
    until(lambda: redis_client.zrange("jobq:leases", 0, -1) == [], 5)
    end(running)


def test_an_unknown_task_is_parked_until_somebody_knows_it(
    worker: WorkerFactory, mix: Mix, redis_client: redis.Redis, ledger: Ledger
) -> None:
    for n in range(5):
        mix.add_bad(f"later{n}")
    old = worker(app="tests.process.cli_tasks", queues=("high",))
    for job in mix.bad.values():
        until(lambda job=job: job.refresh().state is JobState.PARKED)
        parked = job.refresh()
        assert (parked.parked_reason, parked.attempt) == ("unknown_task", 0)
    assert ledger.entries() == []
    end(old)
    worker()
    mix.assert_good_ran(ledger)
    for job in mix.bad.values():
        assert job.wait(timeout=10).state is JobState.SUCCEEDED
        assert job.refresh().attempt == 1
