"""Queues with a Redis of their own: each verb finds the right server, and says so where it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis

import jobq
from jobq.client import Client
from jobq.errors import ConfigError, ConflictError, JobNotFoundError, StoreUnavailableError
from jobq.job import JobState
from jobq.private_server import PrivateServer
from jobq.schedule_records import records_of
from jobq.schedule_spec import Declarations, schedule
from jobq.tasks import Registry, Task, task
from jobq.worker.keepers import Keepers
from jobq.worker.lanes import Lanes
from tests.support.both import Both
from tests.support.hand import Hand
from tests.support.processes import until

registry = Registry()


@task("o.add", registry=registry)
def add(a: int) -> int:
    return a


@pytest.fixture
def other() -> Iterator[PrivateServer]:
    """The server of the queue critical."""
    with PrivateServer() as server:
        yield server


@pytest.fixture
def split(settings: jobq.Settings, other: PrivateServer) -> jobq.Settings:
    return jobq.Settings(redis_url=settings.redis_url, queues={"critical": {"redis_url": other.url}})


@pytest.fixture
def client(split: jobq.Settings) -> Iterator[Client]:
    with Client(split, registry=registry) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def do(request: pytest.FixtureRequest, split: jobq.Settings) -> Both:
    return Both(split, request.param, registry)


def put(client: Client, queue: str, a: int = 1, **options: object) -> jobq.Job:
    return add.options(client=client, queue=queue, **options).enqueue(a=a)  # type: ignore[arg-type]


def dead(client: Client, queue: str) -> str:
    """A dead letter."""
    job = put(client, queue)
    Hand(client.at(queue)).kill(queue)
    return job.id


@pytest.fixture
def lists(redis_client: redis.Redis, other: PrivateServer) -> Iterator[dict[str, redis.Redis]]:
    with redis.Redis.from_url(other.url) as theirs:
        yield {"medium": redis_client, "critical": theirs}


def test_each_job_goes_to_its_queues_server(client: Client, lists: dict[str, redis.Redis]) -> None:
    jobs = {queue: put(client, queue) for queue in lists}
    for queue, server in lists.items():
        assert server.lrange(f"rq:queue:{queue}", 0, -1) == [jobs[queue].id.encode()]
    assert lists["critical"].exists("rq:queue:medium") == lists["medium"].exists("rq:queue:critical") == 0


def test_many_at_once(client: Client, lists: dict[str, redis.Redis]) -> None:
    jobs = add.options(client=client, queue="critical").enqueue_many({"a": n} for n in range(250))
    assert len(jobs) == lists["critical"].llen("rq:queue:critical") == 250


def test_when_one_is_away_the_other_goes_on(do: Both, other: PrivateServer, client: Client) -> None:
    job = put(client, "medium")
    other.kill()
    with pytest.raises(StoreUnavailableError):
        put(client, "critical")
    assert put(client, "medium").state is JobState.QUEUED
    assert do("get", job.id).id == job.id
    assert [job.queue for job in do("jobs", queue="medium").items] == ["medium", "medium"]
    with pytest.raises(StoreUnavailableError):
        do("stats")


def test_jobs_are_found_by_their_ids(do: Both, client: Client) -> None:
    job = put(client, "critical")
    assert do("get", job.id).queue == "critical"
    assert do("why", job.id).reasons
    assert do("attempts", job.id) == []
    assert do("logs", job.id) == []
    assert do("cancel", job.id) == "cancelled"
    assert do("retry", job.id).state is JobState.QUEUED
    assert do("withdraw", job.id) == "withdrawn"
    later = put(client, "critical", delay=60)
    assert do("promote", later.id).state is JobState.QUEUED
    do("delete", later.id)
    with pytest.raises(JobNotFoundError):
        do("get", later.id)
    with pytest.raises(JobNotFoundError):
        do("cancel", "nobody")


def test_the_methods_of_a_job_ask_its_server(client: Client) -> None:
    job = put(client, "critical", a=7)
    hand = Hand(client.at("critical"))
    hand.succeed("critical", value=7)
    assert job.result(5) == 7
    assert client.result(job.id, 5) == 7
    assert job.refresh().state is JobState.SUCCEEDED

    async def later() -> int:
        async with jobq.AsyncClient(client.settings, registry=registry) as awaited:
            made = await add.options(client=awaited, queue="critical").enqueue_async(a=8)
            await asyncio.to_thread(hand.succeed, "critical", 8)
            result: int = await made.result_async(5)
            return result

    assert asyncio.run(later()) == 8


def test_queues_are_controlled_where_they_are(
    do: Both, client: Client, lists: dict[str, redis.Redis]
) -> None:
    for queue in lists:
        put(client, queue)
    assert do("queues.pause", "critical", reason="bank holiday").paused
    assert lists["critical"].hexists("jobq:q:critical", "paused")
    assert not lists["medium"].exists("jobq:q:critical")
    assert not do("queues.resume", "critical").paused
    assert {info.name: info.queued for info in do("queues.list")} == {
        "critical": 1, "high": 0, "medium": 1, "low": 0, "batch": 0,
    }  # fmt: skip
    assert do("queues.drain", "critical").done == 1
    with pytest.raises(ConflictError, match="different Redis"):
        do("queues.move", "medium", "critical")
    with pytest.raises(ConflictError, match="different Redis"):
        do("queues.move", "critical", "medium")


def test_a_limit_of_a_task_holds_in_each(do: Both, client: Client) -> None:
    do("limits.set", "o.add", concurrency=1)
    for queue in ("critical", "high"):
        for _ in range(2):
            put(client, queue)
        assert len(Hand(client.at(queue)).claim(queue)) == 1
    assert [each.task for each in do("limits.list")] == ["o.add"], "once"
    do("limits.clear", "o.add")
    assert [there.limits.list() for there in client.each()] == [[], []]


def test_stats_are_about_all(do: Both, client: Client, other: PrivateServer) -> None:
    for queue, count in (("medium", 2), ("critical", 3)):
        for n in range(count):
            put(client, queue, a=n)
    stats = do("stats")
    assert (stats.queues["medium"].queued, stats.queues["critical"].queued, stats.totals.queued) == (2, 3, 5)
    assert list(stats.others) == [other.url]
    assert list(stats.to_dict()["other_redis"]) == [other.url]
    assert do("stats", queue="critical").totals.queued == 3
    assert isinstance(do("health").ok, bool)


def test_listings_want_a_queue(do: Both, client: Client) -> None:
    ids = {queue: put(client, queue).id for queue in ("medium", "critical")}
    for queue, job_id in ids.items():
        assert [job.id for job in do("jobs", queue=queue).items] == [job_id]
        assert do("job_ids", queue=[queue]) == [job_id]
    for path in ("jobs", "job_ids", "memory", "dead_letters.list", "dead_letters.groups", "dead_letters.count",
                 "dead_letters.replay"):  # fmt: skip
        with pytest.raises(ConfigError, match="critical"):
            do(path)
    with pytest.raises(ConfigError, match="medium, critical"):
        do("jobs", queue=["medium", "critical"])
    assert [job.id for job in client.at("critical").jobs().items] == [ids["critical"]]
    assert [job.id for job in client.at("medium").jobs().items] == [ids["medium"]]


def test_a_bulk_finds_each_job(do: Both, client: Client) -> None:
    ids = [put(client, "critical" if n % 2 else "medium", a=n).id for n in range(6)]
    report = do("bulk", "cancel", [*ids, "nobody"])
    assert (report.matched, report.done, report.gone) == (7, 6, 1)


def test_dead_letters_by_id_and_by_queue(do: Both, client: Client) -> None:
    ids = {queue: dead(client, queue) for queue in ("medium", "critical")}
    for queue, job_id in ids.items():
        assert do("dead_letters.get", job_id).id == job_id
        assert [letter.id for letter in do("dead_letters.list", queue=queue).items] == [job_id]
        assert do("dead_letters.count", queue) == 1
    assert do("dead_letters.draft", ids["critical"]).params == {"a": 1}
    report = do("dead_letters.replay", list(ids.values()))
    assert (report.matched, report.replayed) == (2, 2)
    assert {client.get(job_id).state for job_id in ids.values()} == {JobState.QUEUED}


def test_one_server_costs_nothing_and_is_one_client(settings: jobq.Settings) -> None:
    given = {"critical": {"redis_url": settings.redis_url}}  # its own, which is that of all
    with Client(jobq.Settings(redis_url=settings.redis_url, queues=given), registry=registry) as client:
        assert client.at("critical") is client
        assert client.each() == [client]
        assert client.jobs().items == []


def test_what_a_client_opened_it_closes(split: jobq.Settings, lists: dict[str, redis.Redis]) -> None:
    client = Client(split, registry=registry)
    put(client, "critical")
    client.close()
    names = [each["name"] for each in lists["critical"].client_list()]
    assert not any(name.startswith("jobq:") for name in names)


def there_task() -> Task[..., int]:
    @task("o.there", queue="critical", registry=registry)
    def there(a: int) -> int:
        return a

    return there


def test_a_schedule_is_where_the_queue_of_its_task_is(do: Both, client: Client) -> None:
    there_task()
    made = do("schedules.add", "there", "o.there", {"a": 1}, cron="@hourly")
    do("schedules.add", "here", "o.add", {"a": 1}, every=60)
    assert made.queue == "critical"
    assert [info.name for info in do("schedules.list")] == ["here", "there"]
    assert [info.name for info in client.at("critical").schedules.list()] == ["there"]
    assert [info.name for info in client.at("high").schedules.list()] == ["here"]
    assert do("schedules.get", "there").times
    assert len(do("schedules.next", "there", 2)) == 2
    assert do("schedules.pause", "there").state == "paused"
    assert do("schedules.resume", "there").state == "active"
    job = do("schedules.run", "there")
    assert client.at("critical").get(job.id).queue == "critical"
    assert do("schedules.add", "there", "o.there", {"a": 1}, cron="@hourly").name == "there"
    with pytest.raises(ConflictError, match="in another Redis"):
        do("schedules.add", "there", "o.add", {"a": 1}, cron="@hourly", replace=True)
    do("schedules.remove", "there")
    with pytest.raises(JobNotFoundError):
        do("schedules.get", "there")


def test_what_code_declares_is_written_where_its_queue_is(
    client: Client, redis_client: redis.Redis, other: PrivateServer, split: jobq.Settings
) -> None:
    declarations = Declarations()
    schedule(name="far", cron="@hourly", params={"a": 1}, declarations=declarations)(there_task())
    schedule(name="near", cron="@hourly", params={"a": 1}, declarations=declarations)(add)
    settings = split.model_copy(update={"app": ("shop",)})
    keepers = Keepers(settings, split.queue_specs(), "w", Lanes({}, signs=False), {})
    keepers.start()
    try:
        keepers.declare(records_of(declarations.all(), split))
        until(lambda: len(client.schedules.list()) == 2)
    finally:
        keepers.stop(5)
    assert [info.name for info in client.at("critical").schedules.list()] == ["far"]
    assert [info.name for info in client.at("high").schedules.list()] == ["near"]
    assert {info.state for info in client.schedules.list()} == {"active"}
