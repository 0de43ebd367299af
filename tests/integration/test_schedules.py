"""Recurring schedules against a real server: client, firing by workers, secrets, broken ones, deploys."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from pydantic import SecretStr

import jobq
from jobq import events, schedule_calls
from jobq.cron import moment
from jobq.events import Event
from jobq.job import JobState, slot_job_id
from jobq.recurrence import Misfire
from jobq.registry import Registry
from jobq.schedule_firing import fire_plan
from jobq.schedule_records import bound_id
from jobq.schedule_spec import Declarations, StoredSchedule, schedule
from jobq.schedules import ScheduleInfo
from jobq.store import Store
from jobq.worker.schedules import DeclareSchedules, FireSchedules
from tests.support.hand import Hand
from tests.support.schedules import Firing

MINUTE = 60_000
HOUR = 60 * MINUTE


@pytest.fixture
def tasks() -> Registry:
    registry = Registry()

    @jobq.task("shop.report", registry=registry)
    def report(day: str = "today", copies: int = 1) -> str:
        return day

    @jobq.task("shop.sync", priority="low", timeout=30, dedup="{shop}", registry=registry)
    def sync(shop: str) -> None: ...

    @jobq.task("shop.notify", registry=registry)
    def notify(to: str, token: SecretStr) -> None: ...

    return registry


@pytest.fixture
def client(settings: jobq.Settings, tasks: Registry) -> Iterator[jobq.Client]:
    with jobq.Client(settings, registry=tasks) as made:
        yield made


@pytest.fixture
def firing(client: jobq.Client, redis_client: redis.Redis) -> Firing:
    return Firing(client, redis_client)


def heard(found: list[Event], name: str) -> list[dict[str, Any]]:
    return [dict(event.fields) for event in found if event.name == name]


def queued(client: jobq.Client, queue: str = "medium") -> list[jobq.Job]:
    return client.jobs(state="queued", queue=queue, limit=500).items


# --- the client ---------------------------------------------------------------


@pytest.mark.covers("C-02", "O-03", "J-29")
def test_a_schedule_from_add_to_remove(client: jobq.Client) -> None:
    """O-03, J-29: daily at midnight, and update-sitemap by cron."""
    made = client.schedules.add(
        "update-sitemap", "shop.report", {"day": "all"}, cron="@daily", tz="Europe/Berlin", tags=["seo"],
        overlap="skip", misfire=Misfire("skip", timedelta(minutes=10)), jitter="30s", priority="batch",
    )  # fmt: skip
    assert (made.state, made.task, made.queue, made.overlap) == ("active", "shop.report", "batch", "skip")
    assert made.times == "At 00:00 every day, Europe/Berlin, up to 30 seconds later"
    assert made.next_at is not None
    assert made.next_at.astimezone(ZoneInfo("Europe/Berlin")).strftime("%H:%M:%S") == "00:00:00"
    assert client.schedules.list() == [made]
    assert client.schedules.get("update-sitemap") == made
    slots = client.schedules.next("update-sitemap", 3)
    assert slots[0] == made.next_at
    assert [slot.strftime("%H:%M") for slot in slots] == ["00:00"] * 3
    assert str(slots[0].tzinfo) == "Europe/Berlin"

    paused = client.schedules.pause("update-sitemap")
    assert paused.state == "paused"
    assert paused.paused_by
    assert client.schedules.resume("update-sitemap").state == "active"

    client.schedules.remove("update-sitemap")
    assert client.schedules.list() == []
    with pytest.raises(jobq.JobNotFoundError, match="no schedule 'update-sitemap'"):
        client.schedules.get("update-sitemap")


async def scenario(client: jobq.AsyncClient) -> ScheduleInfo:
    made = await client.schedules.add("nightly", "shop.report", cron="0 2 * * *")
    assert await client.schedules.list() == [made]
    assert len(await client.schedules.next("nightly", 2)) == 2
    await client.schedules.pause("nightly")
    await client.schedules.resume("nightly")
    job = await client.schedules.run("nightly")
    assert job.task == "shop.report"
    again = await client.schedules.get("nightly")
    await client.schedules.remove("nightly")
    with pytest.raises(jobq.JobNotFoundError):
        await client.schedules.get("nightly")
    return again


def test_the_async_client_does_the_same(settings: jobq.Settings, tasks: Registry) -> None:
    import asyncio

    async def run() -> ScheduleInfo:
        async with jobq.AsyncClient(settings, registry=tasks) as client:
            return await scenario(client)

    assert asyncio.run(run()).name == "nightly"


def test_adding_the_same_twice_changes_nothing_and_another_needs_replace(client: jobq.Client) -> None:
    first = client.schedules.add("s", "shop.report", cron="@hourly")
    assert client.schedules.add("s", "shop.report", cron="@hourly") == first
    with pytest.raises(jobq.ConflictError, match="is there already"):
        client.schedules.add("s", "shop.report", cron="@daily")
    replaced = client.schedules.add("s", "shop.report", cron="@daily", replace=True)
    assert replaced.times.startswith("At 00:00 every day")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give cron= or every="),
        ({"cron": "@daily", "every": 5}, "give cron= or every="),
        ({"cron": "never"}, "cron expression 'never'"),
        ({"cron": "@daily", "tz": "Mars"}, "no time zone 'Mars'"),
        ({"every": "5 parsecs"}, "every='5 parsecs'"),
        ({"every": 0.1}, "at most|one second"),
        ({"cron": "@daily", "overlap": "maybe"}, "overlap='maybe'"),
        ({"cron": "@daily", "misfire": "all of them"}, "misfire="),
        ({"cron": "@daily", "end": datetime(2020, 1, 1, tzinfo=UTC)}, "would never fire"),
        ({"cron": "@daily", "start": datetime(2020, 1, 1)}, "no time zone"),  # noqa: DTZ001
        ({"cron": "@daily", "colour": "red"}, "no option 'colour'"),
        ({"cron": "@daily", "timeout": -1}, "timeout"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    client: jobq.Client, redis_client: redis.Redis, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(jobq.ConfigError, match=message):
        client.schedules.add("s", "shop.report", **options)
    with pytest.raises(jobq.PayloadError, match="schedule 's'"):
        client.schedules.add("s", "shop.report", {"copies": "many"}, cron="@daily")
    with pytest.raises(jobq.UnknownTaskError):
        client.schedules.add("s", "shop.nonsense", cron="@daily")
    assert redis_client.keys("jobq:*") == []


# --- firing ---------------------------------------------------------------


@pytest.mark.covers("C-02", "C-04", "O-03", "J-29")
def test_a_due_slot_becomes_a_job_that_a_worker_runs(client: jobq.Client, firing: Firing) -> None:
    client.schedules.add("s", "shop.report", {"day": "mon"}, every="1h", tags=["nightly"], timeout=7)
    assert firing.tick() == []
    firing.let_pass("s", HOUR)
    said = firing.tick()
    (fired,) = heard(said, "schedule.fired")
    info = client.schedules.get("s")
    assert (info.fired, info.missed, info.job_id) == (1, 0, fired["job_id"])
    assert info.last_at is not None
    assert info.next_at == info.last_at + timedelta(hours=1)
    assert firing.tick(3) == []
    job = client.get(str(info.job_id))
    assert (job.task, job.queue, job.tags, job.timeout) == (
        "shop.report",
        "medium",
        ("nightly",),
        timedelta(seconds=7),
    )
    (claimed,) = Hand(client).claim()
    envelope = client.codec.decode(claimed.data, job_id=claimed.id)
    assert (envelope.task, envelope.params) == ("shop.report", {"day": "mon", "copies": 1})


@pytest.mark.parametrize(("policy", "runs"), [("skip", 0), ("one", 1), ("all", 9)])
def test_all_workers_down_for_90_minutes(client: jobq.Client, firing: Firing, policy: Any, runs: int) -> None:
    """FI-28: skip 0, one 1, all the exact count."""
    # Half way between two slots, so that the newest is late whenever the test runs.
    start = moment(firing.now_ms() - 85 * MINUTE)
    client.schedules.add("s", "shop.report", every="10m", start=start, misfire=policy)
    firing.let_pass("s", 90 * MINUTE)  # the first of nine slots was 85 minutes ago
    said = firing.tick(3)
    assert len(queued(client)) == runs
    assert len(heard(said, "schedule.fired")) == runs
    assert sum(event["missed"] for event in heard(said, "schedule.missed")) == 9 - runs
    info = client.schedules.get("s")
    assert (info.fired, info.missed) == (runs, 9 - runs)
    assert info.next_at == start + timedelta(minutes=90)


def test_more_missed_slots_than_one_call_takes_are_fired_in_order(
    client: jobq.Client, firing: Firing
) -> None:
    client.schedules.add("s", "shop.report", every="1m", misfire=Misfire("all", max=250))
    firing.let_pass("s", 250 * MINUTE)
    said = firing.tick(5)
    slots = [event["slot"] for event in heard(said, "schedule.fired")]
    assert len(slots) in (250, 251)  # the minute may turn while the test runs
    assert slots == sorted(set(slots))


def test_a_clock_that_goes_back_fires_nothing_again_also_through_a_change(
    client: jobq.Client, firing: Firing, redis_client: redis.Redis
) -> None:
    """FI-26: what was dealt with stays so; the next slot comes after the last one, whatever the clock says."""
    client.schedules.add("s", "shop.report", every="1h")
    ahead = (
        firing.now_ms() // HOUR * HOUR + 3 * HOUR
    )  # as if the clock had been there when this slot was fired
    redis_client.hset("jobq:schedule:s", "last", ahead)
    client.schedules.pause("s")
    assert client.schedules.resume("s").next_at == moment(ahead + HOUR)
    changed = client.schedules.add("s", "shop.report", every="30m", replace=True)
    assert changed.next_at == moment(ahead + HOUR // 2)
    assert heard(firing.tick(), "schedule.fired") == []


def test_five_workers_fire_every_slot_once(settings: jobq.Settings, tasks: Registry, redis_url: str) -> None:
    """FI-27: each slot enqueued exactly once, whoever is first."""
    with jobq.Client(settings, registry=tasks) as client, redis.Redis.from_url(redis_url) as plain:
        first = Firing(client, plain)
        names = [f"s{n:03}" for n in range(150)]
        for name in names:
            client.schedules.add(name, "shop.report", every="1h", misfire="all")
            first.let_pass(name, 2 * HOUR)
        fired: list[Event] = []
        stop = events.subscribe(lambda event: event.name == "schedule.fired" and fired.append(event))
        workers = [Firing(client, redis.Redis.from_url(redis_url)) for _ in range(5)]
        begin = threading.Barrier(5)

        def work(one: Firing) -> None:
            begin.wait()
            one.tick(6)

        threads = [threading.Thread(target=work, args=(one,)) for one in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop()
        first.tick(3)
        for one in workers:
            one.redis.close()
        jobs = client.jobs(state="queued", limit=1000).items
        assert len(jobs) == len({job.id for job in jobs}) == 300
        assert len(fired) == 300
        assert all(info.fired == 2 for info in client.schedules.list())


def test_what_a_dying_worker_had_taken_is_fired_by_the_next(client: jobq.Client, firing: Firing) -> None:
    """A kill before the fire loses nothing; one after it doubles nothing."""
    client.schedules.add("s", "shop.report", every="1h")
    firing.let_pass("s", HOUR)
    taken = client.run(schedule_calls.take(client.keys, taken_ms=0))  # and died
    assert len(taken.due) == 1
    assert len(heard(firing.tick(2), "schedule.fired")) == 1
    assert len(queued(client)) == 1


@pytest.mark.parametrize(("state", "word"), [("queued", "cancelled"), ("running", "requested")])
def test_cancel_previous(client: jobq.Client, firing: Firing, state: str, word: str) -> None:
    client.schedules.add("s", "shop.report", every="1h", overlap="cancel_previous", misfire="all")
    firing.make_due("s")
    firing.tick()
    (job,) = queued(client)
    if state == "running":
        Hand(client).claim()
    firing.make_due("s")
    said = firing.tick()
    assert len(heard(said, "schedule.fired")) == 1
    before = client.get(job.id)
    assert (before.state, before.cancel_requested) == (
        (JobState.CANCELLED, False) if word == "cancelled" else (JobState.RUNNING, True)
    )
    assert len(queued(client)) == 1


def test_overlap_and_dedup_skip_a_slot(client: jobq.Client, firing: Firing) -> None:
    client.schedules.add("o", "shop.report", every="1h", overlap="skip")
    client.schedules.add("d", "shop.sync", {"shop": "a"}, every="1h")
    client.registry.get("shop.sync").options(client=client).enqueue(shop="a")
    for _ in range(2):
        firing.make_due("o", "d")
        said = firing.tick()
    reasons = {event["schedule"]: event["reason"] for event in heard(said, "schedule.skipped")}
    assert reasons == {"o": "overlap", "d": "duplicate"}
    assert len(queued(client)) == 1
    assert len(queued(client, "low")) == 1
    assert client.schedules.get("d").skipped == 2


def test_pause_holds_and_resume_does_not_catch_up(client: jobq.Client, firing: Firing) -> None:
    client.schedules.add("s", "shop.report", every="1h", misfire="all")
    firing.let_pass("s", 5 * HOUR)
    client.schedules.pause("s")
    assert firing.tick() == []
    resumed = client.schedules.resume("s")
    assert firing.tick() == []
    assert resumed.next_at is not None
    assert resumed.next_at > moment(firing.now_ms())


def test_run_now_ignores_times_pause_and_overlap(client: jobq.Client, firing: Firing) -> None:
    client.schedules.add("s", "shop.report", {"day": "now"}, cron="@yearly", overlap="skip")
    client.schedules.pause("s")
    jobs = [client.schedules.run("s") for _ in range(2)]
    assert len({job.id for job in jobs}) == 2
    envelope = client.codec.decode(Hand(client).claim()[0].data, job_id=jobs[0].id)
    assert envelope.params["day"] == "now"
    assert client.schedules.get("s").state == "paused"
    client.schedules.add("d", "shop.sync", {"shop": "a"}, cron="@yearly")
    client.schedules.run("d")
    with pytest.raises(jobq.ConflictError, match="holds the dedup key"):
        client.schedules.run("d")


def test_an_end_ends_it_and_a_start_waits(client: jobq.Client, firing: Firing) -> None:
    start = firing.now_ms() + HOUR
    client.schedules.add("s", "shop.report", every="1h", start=moment(start), end=moment(start + 1))
    assert client.schedules.next("s") == [moment(start)]
    assert firing.tick() == []
    (taken,) = client.run(schedule_calls.take(client.keys, now_ms=start)).due
    stored = StoredSchedule.decode("s", taken.spec)
    fired = client.run(fire_plan(client.keys, client.codec, taken, stored, start))
    assert fired is not None
    assert [word for _, _, word in fired.slots] == ["queued"]
    info = client.schedules.get("s")
    assert (info.state, info.next_at, info.last_at) == ("ended", None, moment(start))


# --- secrets and keys ---------------------------------------------------------------


@pytest.fixture
def keyed(redis_url: str, tasks: Registry) -> Iterator[Callable[..., jobq.Client]]:
    made = []

    def make(keys: str) -> jobq.Client:
        made.append(jobq.Client(jobq.Settings(redis_url=redis_url, secret_key=keys), registry=tasks))
        return made[-1]

    yield make
    for each in made:
        each.close()


def everything(plain: redis.Redis) -> bytes:
    return b"".join(plain.dump(key) for key in plain.keys("*"))


def test_secrets_stay_encrypted_from_the_schedule_to_the_job(
    keyed: Callable[..., jobq.Client], redis_client: redis.Redis
) -> None:
    client = keyed("k" * 32)
    client.schedules.add("s", "shop.notify", {"to": "ada", "token": "tok-5e3cret"}, every="1h")
    firing = Firing(client, redis_client)
    firing.let_pass("s", HOUR)
    said = firing.tick()
    client.schedules.run("s")
    assert b"5e3cret" not in everything(redis_client)
    assert "5e3cret" not in repr([event.fields for event in said]) + repr(client.schedules.list())
    jobs = Hand(client).claim()
    assert len(jobs) == 2
    for job in jobs:
        assert client.codec.decode(job.data, job_id=job.id).params == {"to": "ada", "token": "tok-5e3cret"}


def test_a_payload_fits_its_schedule_and_its_job_alone(
    keyed: Callable[..., jobq.Client], redis_client: redis.Redis
) -> None:
    client = keyed("k" * 32)
    client.schedules.add("a", "shop.report", {"day": "a"}, every="1h")
    client.schedules.add("b", "shop.report", {"day": "b"}, every="1h")
    redis_client.hset("jobq:schedule:b", "data", redis_client.hget("jobq:schedule:a", "data"))
    firing = Firing(client, redis_client)
    for name in ("a", "b"):
        firing.let_pass(name, HOUR)
    said = firing.tick()
    assert [event["schedule"] for event in heard(said, "schedule.fired")] == ["a"]
    (broken,) = heard(said, "schedule.broken")
    assert broken["schedule"] == "b"
    assert "forged" in broken["reason"]


def test_a_new_key_takes_the_schedules_along(
    keyed: Callable[..., jobq.Client], redis_client: redis.Redis
) -> None:
    """Both keys for a while, the new one first; what fires meanwhile does without the old one."""
    old, both, new = keyed("o" * 32), keyed("n" * 32 + "," + "o" * 32), keyed("n" * 32)
    old.schedules.add("s", "shop.notify", {"to": "ada", "token": "tok"}, every="1h")
    for client in (both, new):
        firing = Firing(client, redis_client)
        firing.make_due("s")
        assert len(heard(firing.tick(), "schedule.fired")) == 1
    data = redis_client.hget("jobq:schedule:s", "data")
    assert new.codec.decode(data, job_id=bound_id("s")).params["token"] == "tok"


def test_without_its_key_a_schedule_is_left_to_others(
    keyed: Callable[..., jobq.Client], redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    keyed("a" * 32).schedules.add("s", "shop.report", every="1h")
    stranger = Firing(keyed("b" * 32), redis_client)
    stranger.let_pass("s", HOUR)
    assert stranger.tick(3) == []
    assert caplog.text.count("left to other workers") == 1
    redis_client.zadd("jobq:due", {"s": 1})  # its moment has passed
    owner = Firing(keyed("a" * 32), redis_client)
    assert len(heard(owner.tick(), "schedule.fired")) == 1


def alive_with_a_key(redis_client: redis.Redis) -> None:
    redis_client.sadd("rq:workers", "rq:worker:w")
    redis_client.hset("jobq:worker:w", mapping={"tasks": "shop.report", "slots": "1", "signs": "1"})


def test_without_a_key_nothing_is_fired_that_workers_with_one_would_reject(
    client: jobq.Client, firing: Firing, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client.schedules.add("s", "shop.report", every="1h")
    firing.let_pass("s", HOUR)
    alive_with_a_key(redis_client)
    assert firing.tick() == []
    redis_client.zadd("jobq:due", {"s": 1})
    assert firing.tick() == []
    assert caplog.text.count("set JOBQ_SECRET_KEY here") == 1
    assert not redis_client.exists("rq:queue:medium")
    redis_client.delete("jobq:worker:w")
    redis_client.zadd("jobq:due", {"s": 1})
    assert len(heard(firing.tick(), "schedule.fired")) == 1


def test_without_a_key_nothing_is_declared_that_workers_with_one_could_not_read(
    keyed: Callable[..., jobq.Client], firing: Firing, tasks: Registry, redis_client: redis.Redis
) -> None:
    owner = Firing(keyed("k" * 32), redis_client)
    signed = owner.records(declare(tasks, a="@hourly"))
    owner.declare(DeclareSchedules("shop", lambda: signed, signs=True))
    alive_with_a_key(redis_client)
    before = redis_client.hgetall("jobq:schedule:a")
    deploy(firing, declare(tasks, a="@hourly"))
    assert redis_client.hgetall("jobq:schedule:a") == before
    redis_client.delete("jobq:worker:w")
    deploy(firing, declare(tasks, a="@hourly"))
    assert redis_client.hgetall("jobq:schedule:a") != before, "nobody is left who could not read it"


# --- broken ones ---------------------------------------------------------------

# Written by a producer whose limit is higher.
_LARGE = b'{"v":1,"kid":"","sig":"","body":{"task":"shop.report","tv":1,"p":{"day":"%s"}}}' % (b"x" * 300_000)

_BREAKS: dict[str, Callable[[redis.Redis], object]] = {
    "spec no JSON": lambda r: r.hset("jobq:schedule:bad", "spec", "{"),
    "spec of others": lambda r: r.hset("jobq:schedule:bad", "spec", '{"task": 1}'),
    "bad cron": lambda r: r.hset(
        "jobq:schedule:bad",
        "spec",
        r.hget("jobq:schedule:bad", "spec").replace(b'"every_ms":3600000', b'"cron":"x"'),
    ),
    "unknown task": lambda r: r.hset(
        "jobq:schedule:bad",
        "spec",
        r.hget("jobq:schedule:bad", "spec").replace(b'"shop.report"', b'"shop.gone"'),
    ),
    "bad params": lambda r: r.hset("jobq:schedule:bad", "data", b"\x80\x04pickle"),
    "no params": lambda r: r.hdel("jobq:schedule:bad", "data"),
    "slot no number": lambda r: r.hset("jobq:schedule:bad", "next", "soon"),
    "slot beyond all time": lambda r: r.hset("jobq:schedule:bad", "next", "9" * 30),
    "payload too large": lambda r: r.hset("jobq:schedule:bad", "data", _LARGE),
    "hash of a wrong type": lambda r: (r.delete("jobq:schedule:bad"), r.set("jobq:schedule:bad", "x")),
    "queue of a wrong type": lambda r: r.set("rq:queue:batch", "x"),
}


@pytest.mark.parametrize("how", _BREAKS)
def test_a_broken_schedule_is_set_aside_and_stops_nobody(
    client: jobq.Client, firing: Firing, redis_client: redis.Redis, how: str
) -> None:
    client.schedules.add("bad", "shop.report", every="1h", priority="batch")
    client.schedules.add("good", "shop.report", every="1h")
    for name in ("bad", "good"):
        firing.let_pass(name, HOUR)
    _BREAKS[how](redis_client)
    said = firing.tick(3)
    assert [event["schedule"] for event in heard(said, "schedule.fired")] == ["good"]
    assert [event["schedule"] for event in heard(said, "schedule.broken")] == ["bad"]
    info = {each.name: each for each in client.schedules.list()}
    assert info["good"].state == "active"
    assert info["bad"].state == "broken"
    assert info["bad"].reason
    redis_client.zadd("jobq:due", {"bad": 1})  # a minute later, all as it was: told once is enough
    assert heard(firing.tick(), "schedule.broken") == []
    client.schedules.remove("bad")
    assert [each.name for each in client.schedules.list()] == ["good"]


def test_a_broken_one_says_so_when_it_is_asked_for_something(
    client: jobq.Client, redis_client: redis.Redis
) -> None:
    client.schedules.add("bad", "shop.report", every="1h")
    client.schedules.pause("bad")
    redis_client.hset("jobq:schedule:bad", "spec", "{")
    for ask in (client.schedules.run, client.schedules.resume, client.schedules.next):
        with pytest.raises(jobq.ConflictError, match="schedule 'bad' is broken"):
            ask("bad")


def test_a_task_that_another_live_worker_knows_is_no_fault(
    client: jobq.Client, redis_client: redis.Redis
) -> None:
    client.schedules.add("s", "shop.report", every="1h")
    stranger = Firing(client, redis_client, policies=("other.task",))
    redis_client.sadd("rq:workers", "rq:worker:w")
    redis_client.hset("rq:worker:w", mapping={"birth": "2026-01-01T00:00:00.000000Z", "queues": "medium"})
    redis_client.hset("jobq:worker:w", mapping={"tasks": "shop.report,shop.sync", "slots": "1"})
    stranger.let_pass("s", HOUR)
    assert len(heard(stranger.tick(), "schedule.fired")) == 1


def test_what_broke_heals_by_itself(client: jobq.Client, redis_client: redis.Redis) -> None:
    client.schedules.add("s", "shop.report", every="1h")
    stranger = Firing(client, redis_client, policies=("other.task",))
    stranger.let_pass("s", HOUR)
    assert len(heard(stranger.tick(), "schedule.broken")) == 1
    redis_client.zadd("jobq:due", {"s": 1})  # a minute later, and the worker that knows it is up
    assert len(heard(Firing(client, redis_client).tick(), "schedule.fired")) == 1
    assert client.schedules.get("s").state == "active"


def test_nothing_but_one_question_a_second_while_nothing_is_due(
    client: jobq.Client, firing: Firing, redis_client: redis.Redis
) -> None:
    client.schedules.add("s", "shop.report", every="24h", start=moment(firing.now_ms() + HOUR))
    store = Store(redis_client)
    duty = FireSchedules(client.codec)
    redis_client.config_resetstat()
    for _ in range(50):
        duty.tick(store, firing)
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] <= 2


def test_a_key_of_another_type_under_the_due_set_harms_no_job(
    firing: Firing, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis_client.set("jobq:due", "text")
    assert firing.tick(5) == []
    assert caplog.text.count("schedules cannot be read") == 1


def test_the_log_says_that_a_full_queue_holds_a_schedule_up_once_until_it_has_fired(
    client: jobq.Client, firing: Firing, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client.schedules.add("often", "shop.report", every=60)
    redis_client.hset("jobq:q:medium", "max", "1")
    for times in (0, 0, 1, 1):
        assert caplog.text.count("schedule often waits: queue medium takes no more jobs") == times
        firing.make_due("often")
        firing.tick(2)
        assert len(queued(client)) == 1


# --- declared in code ---------------------------------------------------------------


def declare(tasks: Registry, **crons: str) -> Declarations:
    declarations = Declarations()
    for name, cron in crons.items():
        schedule(name=name, cron=cron, declarations=declarations)(tasks.get("shop.report"))
    return declarations


def deploy(firing: Firing, declarations: Declarations, source: str = "shop") -> DeclareSchedules:
    records = firing.records(declarations)
    duty = DeclareSchedules(source, lambda: records)
    firing.declare(duty)
    return duty


@pytest.mark.covers("C-02")
def test_a_declared_schedule_of_which_no_job_can_be_made_is_kept_apart_and_costs_no_other(
    client: jobq.Client, firing: Firing, tasks: Registry
) -> None:
    @jobq.task("shop.big", registry=tasks)
    def big(text: str) -> None: ...

    def declarations(size: int) -> Declarations:
        made = declare(tasks, good="@hourly")
        schedule(name="big", cron="@hourly", params={"text": "x" * size}, declarations=made)(big)
        return made

    heard: list[events.Event] = []
    stop = events.subscribe(heard.append)
    duty = deploy(firing, declarations(300_000))
    firing.declare(duty)
    stop()
    (told,) = [event for event in heard if event.name == "schedule.broken"]
    assert told.fields["schedule"] == "big"
    found = {info.name: info for info in client.schedules.list()}
    assert (found["good"].state, found["big"].state) == ("active", "broken")
    assert (found["big"].task, found["big"].times, found["big"].next_at) == (
        "shop.big", found["good"].times, None,
    )  # fmt: skip
    assert found["big"].reason is not None
    assert found["big"].reason.startswith("no job can be made of it: ")
    for refused in (client.schedules.run, client.schedules.resume):
        with pytest.raises(jobq.ConflictError, match="no job can be made of it"):
            refused("big")
    firing.make_due("big")
    assert firing.tick() != []  # whoever makes it due sets it aside again
    assert client.stats().queues["medium"].queued == 0
    deploy(firing, declarations(10))  # the repaired version
    assert client.schedules.get("big").state == "active"
    assert client.schedules.get("big").next_at is not None
    deploy(firing, declarations(300_001))
    assert client.schedules.get("big").state == "broken"
    deploy(firing, declare(tasks, good="@hourly"))
    assert [info.name for info in client.schedules.list()] == ["good"]


@pytest.mark.covers("C-02", "C-03", "C-05")
def test_a_deploy_adds_changes_and_removes_what_code_declares(
    client: jobq.Client, firing: Firing, tasks: Registry
) -> None:
    client.schedules.add("by-hand", "shop.report", cron="@weekly")
    deploy(firing, declare(tasks, logs="0 2 * * *", sync="@hourly"))
    assert {info.name: info.declared_by for info in client.schedules.list()} == {
        "by-hand": "", "logs": "shop", "sync": "shop",
    }  # fmt: skip
    client.schedules.pause("logs")
    deploy(firing, declare(tasks, logs="0 3 * * *"))
    found = {info.name: info for info in client.schedules.list()}
    assert set(found) == {"by-hand", "logs"}
    assert found["logs"].times.startswith("At 03:00")
    assert found["logs"].state == "paused"
    deploy(firing, declare(tasks))
    assert [info.name for info in client.schedules.list()] == ["by-hand"]


@pytest.mark.parametrize("kept", [b"", b"declared"], ids=["all", "the schedules"])
def test_a_live_worker_writes_again_what_redis_has_lost(
    client: jobq.Client, firing: Firing, tasks: Registry, redis_client: redis.Redis, kept: bytes
) -> None:
    """Restarted without persistence; or without its last second, in which they were written."""
    duty = deploy(firing, declare(tasks, logs="0 2 * * *", sync="@hourly"))
    written = client.schedules.list()
    for key in redis_client.scan_iter():
        if not kept or kept not in key:
            redis_client.delete(key)
    assert client.schedules.list() == []
    firing.declare(duty)
    assert client.schedules.list() == written
    client.schedules.pause("logs")
    said: list[Event] = []
    stop = events.subscribe(said.append)
    for _ in range(2):
        firing.declare(duty)
    stop()
    assert said == []
    assert client.schedules.get("logs").state == "paused"
    before = redis_client.info("commandstats")
    firing.declare(duty)
    calls = redis_client.info("commandstats")
    cost = sum(each["calls"] - before.get(name, {"calls": 0})["calls"] for name, each in calls.items())
    assert cost < 10, "what is in order is not read anew"


def test_an_old_snapshot_is_brought_up_to_date(
    client: jobq.Client, firing: Firing, tasks: Registry, redis_client: redis.Redis
) -> None:
    deploy(firing, declare(tasks, logs="0 2 * * *", gone="@hourly"))
    snapshot = {
        key: redis_client.dump(key) for key in redis_client.scan_iter() if b"declared" not in key
    }  # that expires within a minute
    duty = deploy(firing, declare(tasks, logs="0 3 * * *", added="@hourly"))
    firing.declare(duty)
    written = client.schedules.list()
    redis_client.flushdb()
    for key, value in snapshot.items():
        redis_client.restore(key, 0, value)
    assert [info.name for info in client.schedules.list()] == ["gone", "logs"]
    firing.declare(duty)
    assert client.schedules.list() == written


def test_two_versions_at_once_do_not_flap(client: jobq.Client, firing: Firing, tasks: Registry) -> None:
    old, new = declare(tasks, a="@hourly", gone="@daily"), declare(tasks, a="@daily", added="@weekly")
    workers = [deploy(firing, old), deploy(firing, old)]
    workers.append(deploy(firing, new))
    after = client.schedules.list()
    assert [info.name for info in after] == ["a", "added"]
    said: list[Event] = []
    stop = events.subscribe(said.append)
    workers.append(deploy(firing, old))  # an old worker that was restarted in the middle of the roll-out
    for _ in range(3):
        for each in workers:
            firing.declare(each)
    stop()
    assert said == []
    assert client.schedules.list() == after


def test_a_rollback_counts_once_the_newer_version_is_gone(
    client: jobq.Client, firing: Firing, tasks: Registry, redis_client: redis.Redis
) -> None:
    old = deploy(firing, declare(tasks, a="@hourly"))
    deploy(firing, declare(tasks, b="@hourly"))
    firing.declare(old)
    assert [info.name for info in client.schedules.list()] == ["b"]
    for print_, seen in redis_client.hgetall("jobq:declared:shop").items():  # a minute without the newer one
        if print_ != b"current":
            first, last = seen.split(b":")
            redis_client.hset("jobq:declared:shop", print_, f"{int(first) - 61_000}:{int(last) - 61_000}")
    firing.declare(old)
    assert [info.name for info in client.schedules.list()] == ["a"]


def test_applications_that_share_a_redis_leave_each_other_alone(
    client: jobq.Client, firing: Firing, tasks: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    client.schedules.add("taken", "shop.report", cron="@yearly")
    deploy(firing, declare(tasks, a="@hourly"), "shop")
    deploy(firing, declare(tasks, b="@hourly", a="@daily", taken="@daily"), "mail")
    found = {info.name: info for info in client.schedules.list()}
    assert {name: info.declared_by for name, info in found.items()} == {"a": "shop", "b": "mail", "taken": ""}
    assert "hour" in found["a"].times
    assert caplog.text.count("is not written") == 2


def test_a_name_that_has_become_free_is_written(
    client: jobq.Client, firing: Firing, tasks: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    client.schedules.add("taken", "shop.report", cron="@yearly")
    duty = deploy(firing, declare(tasks, taken="@daily"))
    firing.declare(duty)
    assert caplog.text.count("is not written") == 1, "said once"
    client.schedules.remove("taken")
    firing.declare(duty)
    assert client.schedules.get("taken").declared_by == "shop"


def test_a_declared_one_is_changed_in_code_and_nowhere_else(
    client: jobq.Client, firing: Firing, tasks: Registry
) -> None:
    deploy(firing, declare(tasks, a="@hourly"))
    with pytest.raises(jobq.ConflictError, match="declared in code"):
        client.schedules.add("a", "shop.report", cron="@daily", replace=True)
    with pytest.raises(jobq.ConflictError, match="declared in code"):
        client.schedules.remove("a")
    client.schedules.pause("a")


def test_a_deploy_loses_no_slot_that_is_due(client: jobq.Client, firing: Firing, tasks: Registry) -> None:
    deploy(firing, declare(tasks, a="@hourly"))
    firing.let_pass("a", HOUR)
    changed = Declarations()
    schedule(name="a", cron="@hourly", params={"copies": 2}, declarations=changed)(tasks.get("shop.report"))
    deploy(firing, changed)
    assert len(heard(firing.tick(), "schedule.fired")) == 1
    (job,) = Hand(client).claim()
    assert client.codec.decode(job.data, job_id=job.id).params["copies"] == 2


def test_declarations_are_checked_where_they_stand(tasks: Registry) -> None:
    report = tasks.get("shop.report")
    here = Declarations()
    schedule(cron="@daily", declarations=here)(report)
    schedule(name="again", every="5m", declarations=here)(report)
    assert [each.name for each in here.all()] == ["again", "shop.report"]
    with pytest.raises(jobq.ConfigError, match="two schedules of the name"):
        schedule(cron="@hourly", declarations=here)(report)
    with pytest.raises(jobq.ConfigError, match="taken by task"):
        schedule(name="again", cron="@hourly", params={"shop": "a"}, declarations=here)(
            tasks.get("shop.sync")
        )
    with pytest.raises(jobq.ConfigError, match="stands above"):
        schedule(cron="@daily", declarations=here)(print)
    with pytest.raises(jobq.PayloadError):
        schedule(cron="@daily", params={"nope": 1}, declarations=here)(report)


# --- cost ---------------------------------------------------------------


def test_5000_schedules_due_at_once_are_fired_in_bounded_steps(
    client: jobq.Client, firing: Firing, redis_client: redis.Redis
) -> None:
    client.schedules.add("s0000", "shop.report", every="1h")
    firing.let_pass("s0000", HOUR)
    # Copies of the one: 5,000 adds would test nothing more, and the payload is unsigned.
    row = redis_client.hgetall("jobq:schedule:s0000")
    with redis_client.pipeline() as pipe:
        for n in range(1, 5_000):
            name = f"s{n:04}"
            pipe.hset(f"jobq:schedule:{name}", mapping=row)
            pipe.hset("jobq:schedules", name, "")
            pipe.zadd("jobq:due", {name: int(row[b"next"])})
        pipe.execute()
    redis_client.config_resetstat()
    redis_client.config_set("slowlog-log-slower-than", 50_000)
    redis_client.slowlog_reset()
    passes = 0
    while redis_client.llen("rq:queue:medium") < 5_000:
        firing.tick()
        passes += 1
        assert passes < 300
    assert redis_client.llen("rq:queue:medium") == 5_000
    assert len(set(redis_client.lrange("rq:queue:medium", 0, -1))) == 5_000
    assert redis_client.slowlog_get() == []
    assert len(client.schedules.list()) == 5_000


def test_ids_of_slots_are_their_own() -> None:
    ids = {
        slot_job_id(name, slot) for name in ("a", "b", "a.b", "a-b", "a_b") for slot in range(0, 10_000, 100)
    }
    assert len(ids) == 500
