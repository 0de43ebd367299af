"""The drop-in for rq-scheduler: its methods, none of its nine faults, and what it takes over from the real one."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
import rq
from redis.exceptions import ConnectionError as RedisConnectionError

import jobq
from jobq import rq_takeover, schedule_calls
from jobq.registry import Registry
from jobq.rq_scheduler import Scheduler, schedule_name
from jobq.rq_takeover import take_over
from jobq.schedule_calls import RQ_SCHEDULED
from tests.support.hand import Hand
from tests.support.schedules import Firing

HOUR = 3_600_000


def ship(order: str, fast: bool = False) -> None: ...


@pytest.fixture
def tasks() -> Registry:
    registry = Registry()
    jobq.task("shop.ship", priority="high", registry=registry)(ship)
    return registry


@pytest.fixture
def client(settings: jobq.Settings, tasks: Registry) -> Iterator[jobq.Client]:
    with jobq.Client(settings, registry=tasks) as made:
        yield made


@pytest.fixture
def scheduler(client: jobq.Client) -> Scheduler:
    return Scheduler(client=client)


@pytest.fixture
def firing(client: jobq.Client, redis_client: redis.Redis) -> Firing:
    return Firing(client, redis_client)


@pytest.fixture
def theirs(redis_client: redis.Redis) -> Iterator[Any]:
    """The real one. Its own warnings are its ninth fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rq_scheduler import Scheduler as Real

        yield Real(queue_name="high", connection=redis_client, interval=1)


def later(**length: float) -> datetime:
    return datetime.now(UTC) + timedelta(**length)


# --- its methods ---------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    ["enqueue_at", "enqueue_in", "schedule", "cron", "cancel", "count", "get_jobs", "change_execution_time",
     "get_jobs_to_queue", "enqueue_job", "run", "__init__"],
)  # fmt: skip
def test_every_argument_of_theirs_is_one_of_ours(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rq_scheduler import Scheduler as Real
    wanted = list(inspect.signature(getattr(Real, method)).parameters)
    ours = list(inspect.signature(getattr(Scheduler, method)).parameters)
    assert ours[: len(wanted)] == wanted


def test_once_at_a_time_and_after_a_time(scheduler: Scheduler, client: jobq.Client) -> None:
    at = later(hours=1)
    entry = scheduler.enqueue_at(at, "shop.ship", "o1", fast=True, timeout=9)
    soon = scheduler.enqueue_in(timedelta(minutes=5), ship, order="o2")
    naive = scheduler.enqueue_at(at.replace(tzinfo=None), client.registry.get("shop.ship"), "o3")
    assert entry.id in scheduler
    assert soon in scheduler
    assert "nobody" not in scheduler
    job = client.get(entry.id)
    assert (job.state, job.queue, job.timeout) == ("scheduled", "high", timedelta(seconds=9))
    assert abs((entry.at - at).total_seconds()) < 0.01
    assert abs((naive.at - at).total_seconds()) < 0.01
    assert next(scheduler.get_jobs()).id == soon.id
    assert scheduler.count() == 3
    assert scheduler.count(timedelta(minutes=10)) == scheduler.count(later(minutes=10)) == 1
    assert scheduler.count(later(minutes=10).timestamp()) == 1
    pairs = list(scheduler.get_jobs(with_times=True, offset=1, length=1))
    assert len(pairs) == 1
    assert pairs[0][1].tzinfo is not None
    with pytest.raises(ValueError, match="offset and length"):
        scheduler.get_jobs(offset=1)
    scheduler.cancel(entry)
    scheduler.cancel(soon.id)
    scheduler.cancel("nobody")
    assert [each.id for each in scheduler.get_jobs()] == [naive.id]


def test_a_chosen_id_is_a_handle_and_replaces(scheduler: Scheduler) -> None:
    scheduler.enqueue_in(timedelta(hours=1), ship, "o1", job_id="ship:o1")
    scheduler.enqueue_in(timedelta(hours=2), ship, "o1", job_id="ship:o1")
    assert scheduler.count() == 1
    assert scheduler.count(timedelta(minutes=90)) == 0
    assert "ship:o1" in scheduler
    scheduler.cancel("ship:o1")
    assert "ship:o1" not in scheduler
    scheduler.cron("0 0 * * *", ship, ["o1"], id="nightly")
    scheduler.cron("0 1 * * *", ship, ["o1"], id="nightly")
    assert [entry.meta for entry in scheduler.get_jobs()] == [{"cron_string": "0 1 * * *"}]
    assert schedule_name("a b") != schedule_name("a_b")


def test_change_execution_time(scheduler: Scheduler, client: jobq.Client, firing: Firing) -> None:
    once = scheduler.enqueue_in(timedelta(hours=1), ship, "o1")
    again = scheduler.schedule(later(hours=1), ship, ["o2"], interval=3600)
    for entry in (once, again):
        scheduler.change_execution_time(entry, later(hours=5))
    assert scheduler.count() == 2
    assert scheduler.count(timedelta(hours=4)) == 0
    scheduler.cancel(once)
    with pytest.raises(ValueError, match="not in scheduled"):
        scheduler.change_execution_time(once, later(hours=1))
    scheduler.change_execution_time(again, later(seconds=-1))
    assert len([e for e in firing.tick() if e.name == "schedule.fired"]) == 1
    assert client.schedules.get(again.id).next_at == again.at


def test_run_now(scheduler: Scheduler, client: jobq.Client) -> None:
    once = scheduler.enqueue_in(timedelta(hours=1), ship, "o1")
    again = scheduler.schedule(later(hours=1), ship, ["o2"], interval=60)
    scheduler.enqueue_job(once)
    assert list(scheduler.get_jobs_to_queue()) == [e for e in scheduler.get_jobs() if e.id == once.id]
    scheduler.enqueue_job(again)
    assert [job.task for job in client.jobs(state="queued").items] == ["shop.ship"]
    assert scheduler.enqueue_jobs() == []
    with pytest.raises(jobq.ConfigError, match="jobq worker"):
        scheduler.run()


@pytest.mark.parametrize("option", [{"depends_on": "x"}, {"meta": {"a": 1}}, {"at_front": True}, {"ttl": 5},
                                    {"on_success": print}])  # fmt: skip
def test_what_has_no_place_is_refused_and_not_dropped(scheduler: Scheduler, option: dict) -> None:
    name = next(iter(option))
    with pytest.raises(jobq.ConfigError, match=f"{name}= has no place"):
        scheduler.cron("* * * * *", ship, ["o"], **option)
    with pytest.raises(jobq.ConfigError, match=f"{name}= has no place"):
        scheduler.schedule(later(hours=1), ship, ["o"], interval=5, **option)
    with pytest.raises(jobq.ConfigError, match="has no place"):
        scheduler.enqueue_in(
            timedelta(hours=1), ship, "o", **{"job_ttl" if name == "ttl" else name: option[name]}
        )
    assert scheduler.count() == 0


def test_repeat_counts_all_runs(scheduler: Scheduler, client: jobq.Client) -> None:
    entry = scheduler.schedule(later(seconds=-5), ship, ["o"], interval=60, repeat=3)
    assert len(client.schedules.next(entry.id, 10)) == 3
    entry = scheduler.cron("*/5 * * * *", ship, ["o"], repeat=4)
    assert len(client.schedules.next(entry.id, 10)) == 4
    with pytest.raises(ValueError, match="interval"):
        scheduler.schedule(later(hours=1), ship, ["o"], repeat=3)


def test_a_connection_of_theirs_and_a_queue_of_rqs_will_do(
    redis_client: redis.Redis, tasks: Registry
) -> None:
    scheduler = Scheduler(queue=rq.Queue("pdf", connection=redis_client), connection=redis_client, interval=5)
    entry = scheduler.enqueue_in(timedelta(hours=1), tasks.get("shop.ship"), "o1")
    assert entry.origin == "pdf"
    assert scheduler.cron("@daily", tasks.get("shop.ship"), ["o"], queue_name="email").origin == "email"
    scheduler.client.close()


# --- its nine faults ---------------------------------------------------------------


def test_fault_1_no_lock_is_held_so_none_is_stolen_or_left_behind(
    scheduler: Scheduler, firing: Firing, redis_client: redis.Redis
) -> None:
    scheduler.schedule(later(hours=1), ship, ["o"], interval=60, id="s")
    firing.make_due("s")
    before = set(redis_client.keys("*"))
    firing.client.run(schedule_calls.take(firing.keys, taken_ms=0))  # a worker took it, and was killed
    assert set(redis_client.keys("*")) == before
    assert [event.name for event in firing.tick()] == ["schedule.fired"]


class Flaky:
    """A connection that fails just before, or just after, the command of a kind reaches the server."""

    def __init__(self, real: redis.Redis, sha: str, *, sent: bool) -> None:
        self._real, self._sha, self._sent, self.hits = real, sha, sent, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def execute_command(self, *command: Any) -> Any:
        if len(command) > 1 and command[1] == self._sha and not self.hits:
            self.hits += 1
            if self._sent:
                self._real.execute_command(*command)
            raise RedisConnectionError("cut")
        return self._real.execute_command(*command)


@pytest.mark.parametrize("sent", [False, True])
def test_fault_2_a_failure_in_between_neither_loses_nor_doubles(
    scheduler: Scheduler, client: jobq.Client, redis_client: redis.Redis, sent: bool
) -> None:
    from jobq import lua

    scheduler.schedule(later(hours=1), ship, ["o"], interval=3600, id="s")
    Firing(client, redis_client).make_due("s")
    client.run(schedule_calls.take(client.keys, taken_ms=0))
    redis_client.script_load(lua.script("schedule_fire").text)
    flaky = Flaky(redis_client, lua.script("schedule_fire").sha, sent=sent)
    with pytest.raises(jobq.StoreUnavailableError):
        Firing(client, flaky).tick()  # type: ignore[arg-type]
    assert flaky.hits == 1
    redis_client.zadd("jobq:due", {"s": 1}, xx=True) if not sent else None  # its two seconds have passed
    Firing(client, redis_client).tick(2)
    info = client.schedules.get("s")
    assert (info.fired, info.state) == (1, "active")
    assert len(client.jobs(state="queued").items) == 1


def test_fault_3_each_run_is_a_job_of_its_own(
    scheduler: Scheduler, firing: Firing, client: jobq.Client
) -> None:
    scheduler.schedule(later(hours=1), ship, ["o"], interval=3600, id="s")
    for _ in range(4):
        firing.make_due("s")
        firing.tick()
    jobs = client.jobs(state="queued").items
    assert len({job.id for job in jobs}) == 4


def test_fault_4_a_finite_result_ttl_ends_no_schedule(
    scheduler: Scheduler, firing: Firing, client: jobq.Client, redis_client: redis.Redis
) -> None:
    scheduler.cron("* * * * *", ship, ["o"], result_ttl=1, id="s")
    firing.make_due("s")
    firing.tick()
    Hand(client).succeed("high")
    assert redis_client.ttl("jobq:schedule:s") == -1
    assert redis_client.ttl(redis_client.keys("rq:job:*")[0]) > 0
    assert "s" in scheduler


def test_fault_5_one_that_cannot_be_read_stops_no_other(
    scheduler: Scheduler, firing: Firing, redis_client: redis.Redis
) -> None:
    for name in ("a", "b"):
        scheduler.schedule(later(hours=1), ship, ["o"], interval=60, id=name)
        firing.make_due(name)
    redis_client.hset("jobq:schedule:a", mapping={"spec": b"\xff\xfe", "data": b"\x80\x04garbage"})
    assert sorted(event.name for event in firing.tick()) == ["schedule.broken", "schedule.fired"]


def test_fault_6_missed_runs_have_a_policy_and_nothing_drifts(
    scheduler: Scheduler, firing: Firing, client: jobq.Client
) -> None:
    entry = scheduler.schedule(later(minutes=1), ship, ["o"], interval=60)
    client.schedules.pause(entry.id)
    after = client.schedules.resume(entry.id)
    assert after.next_at is not None
    assert (after.next_at - entry.at) % timedelta(seconds=60) == timedelta(0)
    firing.make_due(entry.id)
    firing.tick()
    following = client.schedules.get(entry.id).next_at
    assert following is not None
    assert (following - entry.at) % timedelta(seconds=60) == timedelta(0)


def test_fault_7_each_schedule_has_a_time_zone(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    at = {
        word: scheduler.cron("0 12 * 1 *", ship, ["o"], id=word, **options).at
        for word, options in {
            "utc": {}, "local": {"use_local_timezone": True}, "berlin": {"tz": "Europe/Berlin"},
        }.items()
    }  # fmt: skip
    assert (at["utc"].hour, at["local"].hour, at["berlin"].hour) == (12, 17, 11)


def test_fault_8_nothing_is_pickled(scheduler: Scheduler, firing: Firing, redis_client: redis.Redis) -> None:
    scheduler.enqueue_in(timedelta(hours=1), ship, "o")
    scheduler.cron("* * * * *", ship, ["o"], id="s")
    firing.make_due("s")
    firing.tick()
    payloads = [redis_client.hget(key, "data") for key in redis_client.keys("rq:job:*")]
    payloads.append(redis_client.hget("jobq:schedule:s", "data"))
    assert len(payloads) == 3
    assert all(payload.startswith(b'{"v":1') for payload in payloads)


def test_fault_9_no_warning_of_any_kind_and_no_tick_of_a_minute(redis_url: str) -> None:
    program = (
        "import datetime, jobq\n"
        "from jobq.rq_scheduler import Scheduler\n"
        "@jobq.task('t.x')\n"
        "def x(): ...\n"
        "s = Scheduler()\n"
        "s.cron('*/5 * * * *', x, use_local_timezone=False)\n"
        "s.schedule(datetime.datetime(2030, 1, 1), x, interval=60)\n"
        "s.enqueue_in(datetime.timedelta(seconds=5), x)\n"
        "print(s.count(), len(list(s.get_jobs(with_times=True))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={"JOBQ_REDIS_URL": redis_url, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    assert done.stdout == "3 3\n"


# --- taking over ---------------------------------------------------------------


def fill(theirs: Any) -> dict[str, str]:
    """Entries of every kind, by the id that the real scheduler gave them."""
    name = f"{ship.__module__}.ship"
    return {
        "once": theirs.enqueue_at(datetime(2031, 5, 6, 7, 8, 9), name, "o1", fast=True).id,  # noqa: DTZ001
        "interval": theirs.schedule(datetime(2031, 1, 1), name, ["o2"], interval=90, timeout=44).id,  # noqa: DTZ001
        "cron": theirs.cron("30 2 * * *", name, ["o3"], id="nightly").id,
        "repeat": theirs.schedule(datetime(2031, 1, 1), name, ["o4"], interval=60, repeat=3).id,  # noqa: DTZ001
    }


def test_everything_is_taken_over_once(
    theirs: Any, client: jobq.Client, redis_client: redis.Redis, firing: Firing
) -> None:
    ids = fill(theirs)
    looked = {entry.id: entry for entry in take_over(client, tz="Europe/Berlin", dry_run=True)}
    assert redis_client.zcard(RQ_SCHEDULED) == 4
    assert redis_client.keys("jobq:*") == []
    found = {entry.id: entry for entry in take_over(client, tz="Europe/Berlin")}
    assert found == looked
    assert all(entry.error is None for entry in found.values())
    assert redis_client.zcard(RQ_SCHEDULED) == 0
    assert take_over(client) == []

    once = client.get(ids["once"])
    assert (once.state, once.task, once.queue) == ("scheduled", "shop.ship", "high")
    assert once.due_at == datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    interval = client.schedules.get(found[ids["interval"]].name)
    assert interval.next_at == datetime(2031, 1, 1, tzinfo=UTC)
    assert interval.times == "Every 90 seconds"
    nightly = client.schedules.get("nightly")
    assert nightly.times == "At 02:30 every day, Europe/Berlin"
    assert len(client.schedules.next(found[ids["repeat"]].name, 9)) == 3

    firing.make_due("nightly")
    firing.tick()
    (job,) = Hand(client).claim("high")
    assert client.codec.decode(job.data, job_id=job.id).params == {"order": "o3", "fast": False}


def test_an_overdue_run_is_made_once(
    theirs: Any, client: jobq.Client, redis_client: redis.Redis, firing: Firing
) -> None:
    name = f"{ship.__module__}.ship"
    for kind in ({"interval": 3600}, {}):
        theirs.schedule(later(minutes=-20).replace(tzinfo=None), name, ["o"], **kind)
    take_over(client)
    assert len([e for e in firing.tick(2) if e.name == "schedule.fired"]) == 1
    from jobq import calls

    client.run(calls.promote(client.keys, ["high"]))
    assert len(client.jobs(state="queued").items) == 2


def test_while_an_rq_scheduler_runs_nothing_is_taken_over(
    theirs: Any, client: jobq.Client, redis_client: redis.Redis
) -> None:
    fill(theirs)
    theirs.register_birth()
    with pytest.raises(jobq.ConflictError, match="stop it"):
        take_over(client)
    assert redis_client.zcard(RQ_SCHEDULED) == 4
    theirs.register_death()
    assert len(take_over(client)) == 4


def test_what_rq_scheduler_moved_meanwhile_stays_with_it(
    theirs: Any, client: jobq.Client, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(theirs)
    real = rq_takeover._read

    def read(client: jobq.Client, rq_id: str, score: float, tz: str) -> Any:
        redis_client.zincrby(RQ_SCHEDULED, 60, rq_id)  # it fired, and put it back
        return real(client, rq_id, score, tz)

    monkeypatch.setattr(rq_takeover, "_read", read)
    assert {entry.error for entry in take_over(client)} == {"rq-scheduler changed it meanwhile: try again"}
    assert redis_client.zcard(RQ_SCHEDULED) == len(ids)
    assert redis_client.keys("jobq:*") == []


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was run')",))


def test_what_cannot_be_read_is_left_and_runs_nothing(
    theirs: Any, client: jobq.Client, redis_client: redis.Redis
) -> None:
    name = f"{ship.__module__}.ship"
    theirs.enqueue_in(timedelta(hours=1), "os.system", "true")
    theirs.enqueue_in(timedelta(hours=1), name, wrong=1)
    ids = ["bomb", "noise", "gone"]
    redis_client.hset(
        "rq:job:bomb", mapping={"data": pickle.dumps((name, None, (Bomb(),), {})), "origin": "high"}
    )
    redis_client.hset("rq:job:noise", mapping={"data": b"x\x9cnoise", "origin": "high"})
    redis_client.zadd(RQ_SCHEDULED, dict.fromkeys(ids, 4e9))
    theirs.enqueue_in(timedelta(hours=1), name, "good")
    found = take_over(client)
    assert len(found) == 6
    assert [entry.error for entry in found].count(None) == 1
    errors = {entry.id: str(entry.error) for entry in found}
    assert "builtins.exec" in errors["bomb"]
    assert "cannot be read" in errors["noise"]
    assert errors["gone"] == "its job is gone"
    assert redis_client.zcard(RQ_SCHEDULED) == 5
