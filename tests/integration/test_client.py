"""The client against a real server: enqueue, look, wait, cancel, list, and what it does when Redis is away."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest
import redis
from pydantic import SecretStr

import jobq
from jobq import calls, dispatch, events
from jobq.client import Client, configure, get_client
from jobq.errors import (
    ConfigError,
    ConflictError,
    JobFailedError,
    JobNotFoundError,
    PayloadError,
    PayloadTooLargeError,
    PayloadUnreadableError,
    QueueFullError,
    StoreUnavailableError,
)
from jobq.job import JobState
from jobq.tasks import Registry, task
from tests.support.hand import Hand

registry = Registry()


@task("t.add", registry=registry)
def add(a: int, b: int = 1) -> int:
    return a + b


@task("t.pay", registry=registry, dedup="{payment}")
def pay(payment: str, note: str = "") -> None:
    return None


@task("t.index", registry=registry, dedup="{doc}", on_duplicate="replace", priority="low")
def index(doc: str, text: str = "") -> None:
    return None


@task("t.code", registry=registry, priority="critical")
def code(secret: SecretStr) -> None:
    return None


@pytest.fixture
def hand(client: Client) -> Hand:
    return Hand(client)


@pytest.fixture
def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield int(listener.getsockname()[1])


def _enqueue(client: Client, **params: Any) -> jobq.Job:
    return add.options(client=client).enqueue(**params)


# --------------------------------------------------------------------------- enqueue


def test_an_enqueued_job_is_one_of_rqs(client: Client, redis_client: redis.Redis) -> None:
    job = _enqueue(client, a=1)
    fields = {name.decode(): value for name, value in redis_client.hgetall(f"rq:job:{job.id}").items()}
    assert fields.keys() == {
        "status", "q", "data", "origin", "created_at", "enqueued_at", "description", "timeout",
    }  # fmt: skip
    assert (fields["description"], fields["origin"], fields["timeout"]) == (b"t.add", b"medium", b"180")
    assert redis_client.lrange("rq:queue:medium", 0, -1) == [job.id.encode()]
    assert redis_client.smembers("rq:queues") == {b"rq:queue:medium"}
    assert client.codec.decode(fields["data"], job_id=job.id).params == {"a": 1, "b": 1}
    assert job.refresh().state is JobState.QUEUED


def test_the_payload_is_signed_for_its_job(redis_url: str, redis_client: redis.Redis) -> None:
    settings = jobq.Settings(redis_url=redis_url, secret_key="k" * 32)
    with Client(settings) as client:
        job = _enqueue(client, a=1)
        data = redis_client.hget(f"rq:job:{job.id}", "data")
        assert client.codec.decode(data, job_id=job.id).bound
        with pytest.raises(jobq.SignatureError):
            client.codec.decode(data, job_id="another")


def test_overrides_reach_the_hash(client: Client, redis_client: redis.Redis) -> None:
    job = add.options(
        client=client, queue="email", max_attempts=7, timeout=1.5, tags=["x"], backoff=jobq.Fixed(3)
    ).enqueue(a=1)
    read = client.get(job.id)
    assert (read.queue, read.max_attempts, read.timeout, read.tags) == (
        "email",
        7,
        timedelta(seconds=1.5),
        ("x",),
    )
    assert redis_client.hget(f"rq:job:{job.id}", "timeout") == b"2"


@pytest.mark.parametrize("how", ["delay", "at"])
@pytest.mark.covers("C-01", "O-01")
def test_a_delayed_job_is_scheduled_for_its_time(client: Client, how: str) -> None:
    due = datetime.now(UTC) + timedelta(seconds=60)
    bound = add.options(client=client, delay=60) if how == "delay" else add.options(client=client, at=due)
    job = bound.enqueue(a=1)
    assert job.state is JobState.SCHEDULED
    read = client.get(job.id)
    assert read.state is JobState.SCHEDULED
    assert read.due_at is not None
    assert abs(read.due_at - due) < timedelta(seconds=5)


def test_a_time_that_has_passed_means_now(client: Client) -> None:
    job = add.options(client=client, at=datetime.now(UTC) - timedelta(days=1)).enqueue(a=1)
    assert client.get(job.id).state is JobState.QUEUED


def test_params_that_do_not_fit_write_nothing(client: Client, redis_client: redis.Redis) -> None:
    with pytest.raises(PayloadError):
        _enqueue(client, a="many")
    with pytest.raises(PayloadTooLargeError):
        pay.options(client=client).enqueue(payment="1", note="x" * 300_000)
    assert redis_client.dbsize() == 0


@pytest.mark.covers("O-07")
def test_bulk_keeps_the_order_over_queues_and_chunks(client: Client, redis_client: redis.Redis) -> None:
    requests = [
        add.options(client=client, queue="even" if n % 2 == 0 else "odd").request(a=n) for n in range(450)
    ]
    jobs = client.enqueue(requests)
    assert [
        client.codec.decode(_data(redis_client, job.id), job_id=job.id).params["a"] for job in jobs
    ] == list(range(450))
    assert redis_client.llen("rq:queue:even") == redis_client.llen("rq:queue:odd") == 225


def _data(redis_client: redis.Redis, job_id: str) -> bytes:
    data = redis_client.hget(f"rq:job:{job_id}", "data")
    assert isinstance(data, bytes)
    return data


def test_bulk_costs_one_call_for_a_hundred_jobs(client: Client, redis_client: redis.Redis) -> None:
    _enqueue(client, a=0)
    redis_client.config_resetstat()
    add.options(client=client).enqueue_many({"a": n} for n in range(300))
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] == 3


def test_a_plain_enqueue_costs_six_commands(client: Client, redis_client: redis.Redis) -> None:
    _enqueue(client, a=0)
    redis_client.config_resetstat()
    _enqueue(client, a=1)
    stats = redis_client.info("commandstats")
    counted = {
        name: row["calls"] for name, row in stats.items() if "config" not in name and "info" not in name
    }
    assert sum(counted.values()) <= 6, counted


def test_a_script_flush_does_not_lose_an_enqueue(client: Client, redis_client: redis.Redis) -> None:
    _enqueue(client, a=0)
    redis_client.script_flush()
    assert client.get(_enqueue(client, a=1).id).state is JobState.QUEUED


def test_threads_share_a_client(client: Client, redis_client: redis.Redis) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda n: _enqueue(client, a=n), range(200)))
    assert len({job.id for job in jobs}) == redis_client.llen("rq:queue:medium") == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_uses_connections_of_its_own(client: Client, redis_client: redis.Redis) -> None:
    _enqueue(client, a=0)
    pid = os.fork()
    if pid == 0:
        try:
            _enqueue(client, a=1)
            os._exit(0)
        finally:
            os._exit(1)
    for n in range(20):
        _enqueue(client, a=n)
    assert os.waitpid(pid, 0)[1] == 0
    assert redis_client.llen("rq:queue:medium") == 22


def test_a_full_queue_refuses(client: Client, redis_client: redis.Redis) -> None:
    redis_client.hset("jobq:q:medium", "max", 1)
    _enqueue(client, a=1)
    with pytest.raises(QueueFullError) as caught:
        _enqueue(client, a=2)
    assert (caught.value.queue, caught.value.task) == ("medium", "t.add")


def test_an_event_tells_of_each_enqueue(client: Client) -> None:
    seen: list[events.Event] = []
    unsubscribe = events.subscribe(seen.append)
    try:
        job = pay.options(client=client).enqueue(payment="1")
        pay.options(client=client).enqueue(payment="1")
    finally:
        unsubscribe()
    assert [(event.name, event.fields["job_id"]) for event in seen] == [
        ("job.enqueued", job.id),
        ("job.deduplicated", job.id),
    ]


# --------------------------------------------------------------------------- deduplication


@pytest.mark.covers("D-02", "D-04")
def test_an_equal_job_is_the_first_one(client: Client, hand: Hand) -> None:
    first = pay.options(client=client).enqueue(payment="1")
    again = pay.options(client=client).enqueue(payment="1")
    assert (again.id, again.deduplicated, again.state) == (first.id, True, JobState.QUEUED)
    assert pay.options(client=client).enqueue(payment="2").id != first.id
    hand.succeed()
    assert not pay.options(client=client).enqueue(payment="1").deduplicated


@pytest.mark.covers("D-01", "D-05")
def test_a_key_of_ones_own_and_none(client: Client) -> None:
    first = add.options(client=client, dedup_key="k").enqueue(a=1)
    assert add.options(client=client, dedup_key="k").enqueue(a=2).id == first.id
    pay.options(client=client).enqueue(payment="1")
    assert not pay.options(client=client, dedup_key="").enqueue(payment="1").deduplicated


@pytest.mark.parametrize("key", [None, "k" * 32])
def test_replace_gives_the_waiting_job_the_new_payload(
    redis_url: str, redis_client: redis.Redis, key: str | None
) -> None:
    with Client(jobq.Settings(redis_url=redis_url, secret_key=key)) as client:
        first = index.options(client=client).enqueue(doc="1", text="old")
        second = index.options(client=client, delay=30).enqueue(doc="1", text="new")
        assert (second.id, second.deduplicated, second.state) == (first.id, True, JobState.SCHEDULED)
        assert client.codec.decode(_data(redis_client, first.id), job_id=first.id).params["text"] == "new"


def test_equal_jobs_in_one_bulk(client: Client, redis_client: redis.Redis) -> None:
    jobs = pay.options(client=client).enqueue_many([{"payment": "1"}, {"payment": "1"}, {"payment": "2"}])
    assert [job.deduplicated for job in jobs] == [False, True, False]
    assert jobs[0].id == jobs[1].id
    assert redis_client.llen("rq:queue:medium") == 2


# --------------------------------------------------------------------------- one job


def test_no_such_job(client: Client) -> None:
    for call in (client.get, client.cancel, client.delete, client.attempts, client.retry, client.wait):
        with pytest.raises(JobNotFoundError):
            call("nobody")  # type: ignore[operator]
    with pytest.raises(JobNotFoundError, match="letters"):
        client.get("a:b")


def test_a_key_of_the_wrong_type_is_said_to_be(client: Client, redis_client: redis.Redis) -> None:
    redis_client.set("rq:job:odd", "x")
    with pytest.raises(PayloadUnreadableError, match="odd"):
        client.get("odd")


def test_cancel_at_once_on_request_and_too_late(client: Client, hand: Hand) -> None:
    waiting = _enqueue(client, a=1)
    assert waiting.cancel() == "cancelled"
    assert waiting.refresh().state is JobState.CANCELLED
    running = _enqueue(client, a=2)
    (claimed,) = hand.claim()
    assert running.cancel() == "requested"
    assert running.refresh().cancel_requested
    assert hand.settle(claimed) == "ok"
    with pytest.raises(ConflictError):
        running.cancel()


@pytest.mark.covers("B-08")
def test_retry_and_delete(client: Client, hand: Hand) -> None:
    job = _enqueue(client, a=1)
    with pytest.raises(ConflictError, match="queued"):
        client.retry(job.id)
    hand.kill()
    assert client.retry(job.id).state is JobState.QUEUED
    (claimed,) = hand.claim()
    with pytest.raises(ConflictError, match="running"):
        client.delete(job.id)
    hand.settle(claimed)
    client.delete(job.id)
    with pytest.raises(JobNotFoundError):
        client.get(job.id)


def test_withdraw(client: Client, hand: Hand) -> None:
    assert client.withdraw(_enqueue(client, a=1).id) == "withdrawn"
    _enqueue(client, a=2)
    (claimed,) = hand.claim()
    assert client.withdraw(claimed.id) == "started"


def test_attempts_are_the_recorded_ones(client: Client, hand: Hand) -> None:
    job = _enqueue(client, a=1)
    assert client.attempts(job.id) == []
    hand.kill()
    (attempt,) = client.attempts(job.id)
    assert (attempt.number, attempt.error_type, attempt.error) == (1, "ValueError", "no funds")


# --------------------------------------------------------------------------- waiting


def _blocked(redis_client: redis.Redis, count: int = 1) -> None:
    """Until so many waiters block."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if int(redis_client.info("clients")["blocked_clients"]) >= count:
            return
    raise AssertionError("no waiter blocks")


def test_every_waiter_wakes_when_the_job_ends(client: Client, hand: Hand, redis_client: redis.Redis) -> None:
    job = _enqueue(client, a=1)
    with ThreadPoolExecutor(3) as pool:
        waiters = [pool.submit(job.result, 10) for _ in range(3)]
        _blocked(redis_client, 3)
        started = time.monotonic()
        hand.succeed(value={"sum": 2})
        assert [waiter.result(5) for waiter in waiters] == [{"sum": 2}] * 3
        assert time.monotonic() - started < 0.9  # shorter than the first look after a block


def test_an_ended_job_needs_no_waiting(client: Client, hand: Hand) -> None:
    job = _enqueue(client, a=1)
    hand.succeed()
    assert job.wait(0).state is JobState.SUCCEEDED
    assert job.result(0) is None


def test_waiting_ends_with_its_time(client: Client) -> None:
    job = _enqueue(client, a=1)
    with pytest.raises(TimeoutError, match=job.id):
        job.wait(0.05)


def test_a_failed_job_says_why(client: Client, hand: Hand) -> None:
    job = _enqueue(client, a=1)
    hand.kill()
    with pytest.raises(JobFailedError, match=r"dead \(exhausted\): ValueError: no funds") as caught:
        job.result(0)
    assert (caught.value.job_id, caught.value.task, caught.value.queue) == (job.id, "t.add", "medium")
    cancelled = _enqueue(client, a=2)
    cancelled.cancel()
    with pytest.raises(JobFailedError, match="is cancelled"):
        cancelled.result(0)


def test_a_cancel_wakes_a_waiter(client: Client, redis_client: redis.Redis) -> None:
    job = _enqueue(client, a=1)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(job.wait, 10)
        _blocked(redis_client)
        job.cancel()
        assert waiter.result(5).state is JobState.CANCELLED


def test_an_end_before_a_replay_does_not_wake_again(
    client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    job = _enqueue(client, a=1)
    redis_client.rpush(f"jobq:done:{job.id}", "dead")
    redis_client.config_resetstat()
    with pytest.raises(TimeoutError):
        job.wait(0.3)
    assert redis_client.info("commandstats")["cmdstat_blmove"]["calls"] <= 2


def test_a_job_that_a_stock_worker_ends_is_noticed(client: Client, redis_client: redis.Redis) -> None:
    job = _enqueue(client, a=1)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(job.wait, 10)
        _blocked(redis_client)
        redis_client.hset(f"rq:job:{job.id}", "status", "finished")
        assert waiter.result(5).state is JobState.SUCCEEDED


# --------------------------------------------------------------------------- listings


def test_pages_hold_each_job_once_newest_first(client: Client) -> None:
    jobs = [_enqueue(client, a=n) for n in range(7)]
    found: list[str] = []
    cursor = None
    while True:
        page = client.jobs(state="queued", limit=3, cursor=cursor)
        found += [job.id for job in page.items]
        cursor = page.cursor
        if cursor is None:
            break
    assert found == [job.id for job in reversed(jobs)]


def test_a_cursor_belongs_to_its_filter(client: Client) -> None:
    for n in range(3):
        _enqueue(client, a=n)
    cursor = client.jobs(limit=1).cursor
    assert cursor is not None
    with pytest.raises(ValueError, match="another filter"):
        client.jobs(limit=1, task="t.add", cursor=cursor)
    with pytest.raises(ValueError, match="not a cursor"):
        client.jobs(limit=1, cursor="%%%")
    with pytest.raises(ValueError, match="unknown state"):
        client.jobs(state="failed")


def test_listings_by_state_task_queue_tag_and_age(client: Client, hand: Hand) -> None:
    done, dead = _enqueue(client, a=1), _enqueue(client, a=2)
    hand.succeed()
    hand.kill(fingerprint="abcdef")
    tagged = add.options(client=client, tags=["vip"], priority="high").enqueue(a=3)
    late = add.options(client=client, delay=60).enqueue(a=4)

    def ids(**filters: Any) -> list[str]:
        return [job.id for job in client.jobs(**filters).items]

    assert ids(state="succeeded") == [done.id]
    assert ids(state=["dead", "scheduled"]) in ([dead.id, late.id], [late.id, dead.id])
    assert ids(queue="high") == ids(tag="vip") == [tagged.id]
    assert ids(error="abc") == [dead.id]
    assert ids(task="t.nothing") == []
    assert len(ids(since=timedelta(minutes=1))) == 4
    assert ids(since=datetime.now(UTC) + timedelta(minutes=1)) == []


def test_wrong_types_are_reported_and_stop_nothing(client: Client, redis_client: redis.Redis) -> None:
    good = _enqueue(client, a=1)
    redis_client.set("rq:job:odd", "x")
    redis_client.rpush("rq:queue:medium", "odd", "gone")
    redis_client.set("rq:failed:medium", "x")
    page = client.jobs()
    assert [job.id for job in page.items] == [good.id]
    assert set(page.unreadable) == {"odd", "rq:failed:medium"}


# --------------------------------------------------------------------------- queues


def test_pause_and_resume(client: Client, hand: Hand) -> None:
    _enqueue(client, a=1)
    info = client.queues.pause("medium", for_=60, reason="deploy")
    assert (info.paused, info.paused_reason, info.queued) == (True, "deploy", 1)
    assert info.paused_until is not None
    assert hand.claim() == []
    assert not client.queues.resume("medium").paused
    assert len(hand.claim()) == 1
    with pytest.raises(JobNotFoundError, match="no queue"):
        client.queues.pause("nowhere")


@pytest.mark.parametrize("skew_s", [-300, 300])
def test_a_pause_and_a_limit_are_as_long_as_said_though_this_clock_is_wrong(
    client: Client, hand: Hand, monkeypatch: pytest.MonkeyPatch, skew_s: int
) -> None:
    _enqueue(client, a=1)
    now = datetime.now(UTC)
    machine = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: machine() + skew_s * 1_000_000_000)
    paused = client.queues.pause("medium", for_=60)
    assert paused.paused_until is not None
    assert timedelta(seconds=55) < paused.paused_until - now < timedelta(seconds=90)
    assert hand.claim() == []
    limited = client.queues.limit("medium", concurrency=1, for_=60)
    assert limited.limits_until is not None
    assert timedelta(seconds=55) < limited.limits_until - now < timedelta(seconds=90)
    assert [info.paused for info in client.queues.list() if info.name == "medium"] == [True]


def test_queues_are_those_of_the_settings_and_of_redis(client: Client) -> None:
    add.options(client=client, queue="email").enqueue(a=1)
    assert [info.name for info in client.queues.list()] == [
        "critical",
        "high",
        "medium",
        "low",
        "batch",
        "email",
    ]
    assert client.queues.get("email").spec is None


# --------------------------------------------------------------------------- Redis away, or switched off


def test_nobody_listens(free_port: int) -> None:
    settings = jobq.Settings(redis_url=f"redis://127.0.0.1:{free_port}/0", enqueue_timeout=0.2)
    with Client(settings) as client:
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError) as caught:
            _enqueue(client, a=1)
        assert time.monotonic() - started < 1
        assert (caught.value.ambiguous, caught.value.task) == (False, "t.add")
        assert caught.value.job_id is not None


def test_a_server_that_accepts_and_is_silent(silent_port: int) -> None:
    settings = jobq.Settings(redis_url=f"redis://127.0.0.1:{silent_port}/0", enqueue_timeout=0.3)
    with Client(settings) as client:
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            _enqueue(client, a=1)
        assert time.monotonic() - started < 1.5


def test_the_fallback_runs_the_task_here(free_port: int) -> None:
    settings = jobq.Settings(
        redis_url=f"redis://127.0.0.1:{free_port}/0", enqueue_timeout=0.1, fallback="inline"
    )
    seen: list[events.Event] = []
    unsubscribe = events.subscribe(seen.append)
    try:
        with Client(settings) as client:
            job = _enqueue(client, a=1, b=2)
    finally:
        unsubscribe()
    assert (job.state, job.result()) == (JobState.SUCCEEDED, 3)
    assert [event.name for event in seen] == ["fallback.used"]


@pytest.mark.covers("O-08")
def test_switched_off_everything_runs_here(free_port: int) -> None:
    own = Registry()

    @task("t.broken", registry=own)
    async def broken() -> None:
        raise RuntimeError("no")

    settings = jobq.Settings(redis_url=f"redis://127.0.0.1:{free_port}/0", enabled=False)
    with Client(settings) as client:
        assert _enqueue(client, a=1).wait().result() == 2
        assert code.options(client=client).enqueue(secret=SecretStr("123456")).state is JobState.SUCCEEDED
        job = broken.options(client=client).enqueue()
        assert job.state is JobState.DEAD
        with pytest.raises(JobFailedError, match="RuntimeError: no"):
            job.result()
        with pytest.raises(ConflictError):
            job.cancel()


def test_an_error_of_a_job_run_here_shows_no_secret(free_port: int) -> None:
    own = Registry()

    @task("t.login", registry=own)
    def login(user: str, code: SecretStr, spare: Annotated[tuple[str, ...], jobq.Secret]) -> None:
        raise ValueError(f"{user}: {code.get_secret_value()!r} is wrong, and so is {spare[0]}")

    settings = jobq.Settings(redis_url=f"redis://127.0.0.1:{free_port}/0", enabled=False)
    with Client(settings) as client:
        call = login.options(client=client)
        job = call.enqueue(user="ada", code=SecretStr("it's 314159"), spare=("271828",))
    with pytest.raises(JobFailedError) as caught:
        job.result()
    assert str(caught.value).endswith('dead: ValueError: ada: "•••" is wrong, and so is •••')
    shown = "".join(traceback.format_exception(caught.value))
    assert "314159" not in shown
    assert "271828" not in shown


def test_what_is_not_built_is_said_to_be(redis_url: str) -> None:
    with pytest.raises(ConfigError, match="spool"):
        Client(jobq.Settings(redis_url=redis_url, fallback="spool"))


def test_clients_that_cannot_work_are_refused(settings: jobq.Settings, redis_url: str) -> None:
    with (
        redis.Redis.from_url(redis_url, decode_responses=True) as texts,
        pytest.raises(ConfigError, match="bytes"),
    ):
        Client(settings, redis=texts)


def test_a_client_of_ones_own(settings: jobq.Settings, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as given, Client(settings, redis=given) as client:
        job = _enqueue(client, a=1)
        Hand(client).succeed(value=5)
        assert job.result(5) == 5
        client.close()
        assert given.ping()


def test_a_client_of_ones_own_has_no_twin_elsewhere(settings: jobq.Settings, redis_url: str) -> None:
    async def enqueue(client: Client) -> None:
        with pytest.raises(ConfigError, match="AsyncClient"):
            await add.options(client=client).enqueue_async(a=1)

    with redis.Redis.from_url(redis_url) as given, Client(settings, redis=given) as client:
        asyncio.run(enqueue(client))


def test_no_fallback_once_a_part_has_landed(settings: jobq.Settings, redis_client: redis.Redis) -> None:
    """The first 100 are queued: run here, too, they would run twice."""
    inline = settings.model_copy(update={"fallback": "inline"})
    with Client(inline) as client:
        wires: Any = client._links.wires()
        lent, times = wires.lent, []

        def once(deadline: object) -> Any:
            times.append(1)
            if len(times) > 1:
                raise redis.ConnectionError("Error 111 connecting to 127.0.0.1:1. Connection refused.")
            return lent(deadline)

        wires.lent = once
        with pytest.raises(StoreUnavailableError, match="100 of 150") as caught:
            add.options(client=client).enqueue_many([{"a": number} for number in range(150)])
    waiting = [job_id.decode() for job_id in redis_client.lrange("rq:queue:medium", 0, -1)]
    assert list(caught.value.acknowledged) == waiting + [None] * 50
    assert len(waiting) == 100


# --------------------------------------------------------------------------- the default client


@pytest.fixture
def default_client(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("jobq.client._default", None)
    monkeypatch.setenv("JOBQ_REDIS_URL", redis_url)
    yield
    get_client().close()


@pytest.mark.usefixtures("default_client")
@pytest.mark.covers("Q-21")
def test_the_default_client_is_made_once_from_the_environment() -> None:
    job = add.enqueue(a=1)
    assert job.refresh().state is JobState.QUEUED
    assert get_client() is get_client()


@pytest.mark.usefixtures("default_client")
def test_configure_takes_the_place_of_the_default(redis_url: str) -> None:
    before = get_client()
    made = configure(redis_url=redis_url, key_prefix="rq", max_attempts=9)
    assert get_client() is made is not before
    assert made.settings.max_attempts == 9
    with pytest.raises(ConfigError):
        configure(lease="never")
    assert get_client() is made


@pytest.mark.usefixtures("default_client")
def test_plain_rq_enqueues_with_our_serializer(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rq import Queue

    from jobq.codec import Serializer

    client = configure(redis_url=redis_url)
    monkeypatch.setattr(client, "registry", registry)
    theirs = Queue("medium", connection=redis_client, serializer=Serializer).enqueue("t.add", 1, b=5)
    job = client.get(theirs.id)
    assert (job.task, job.state, job.queue) == ("t.add", JobState.QUEUED, "medium")
    (claimed,) = Hand(client).claim()
    envelope = client.codec.decode(claimed.data, job_id=claimed.id)
    assert (envelope.task, envelope.params, envelope.bound) == ("t.add", {"a": 1, "b": 5}, False)
    assert claimed.rq is not None


def test_tasks_find_the_default_client() -> None:
    assert dispatch._provider is get_client


def test_a_step_can_be_run_directly(client: Client) -> None:
    assert client.run(calls.resume(client.keys, "medium")) is False


def test_a_client_of_an_url_says_what_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"takes jobq\.Settings\(redis_url=…\), or nothing, and not a str"):
        Client("redis://localhost")  # type: ignore[arg-type]


def test_an_id_of_another_type_is_no_job(client: Client) -> None:
    with pytest.raises(JobNotFoundError, match="no job 3"):
        client.get(3)  # type: ignore[arg-type]
