"""Limits, order, turns and quotas as an application asks for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

import jobq
from jobq import calls
from jobq.errors import ConfigError
from jobq.queues import QueueSpec
from jobq.registry import Registry
from jobq.store import Store
from tests.support.hand import Hand


@pytest.fixture
def registry() -> Registry:
    return Registry()


def ids(hand: Hand, n: int = 100) -> list[str]:
    return [job.id for job in hand.claim(n=n)]


@pytest.mark.covers("P-11", "P-12")
def test_a_task_and_a_call_have_an_order(client: jobq.Client, registry: Registry) -> None:
    @jobq.task("t.invoice", order=7, registry=registry)
    def invoice(number: int) -> None: ...

    plain = jobq.task("t.plain", registry=registry)(lambda: None)
    last = invoice.options(client=client).enqueue(number=1)
    middle = plain.options(client=client).enqueue()
    first = invoice.options(client=client, order=1).enqueue(number=2)
    assert ids(Hand(client)) == [first.id, middle.id, last.id]


def test_tenants_take_turns_across_tasks(client: jobq.Client, registry: Registry) -> None:
    @jobq.task("t.export", fair="{tenant}", registry=registry)
    def export(tenant: str) -> None: ...

    @jobq.task("t.report", fair="{owner.id}", registry=registry)
    def report(owner: dict[str, str]) -> None: ...

    flood = export.options(client=client).enqueue_many([{"tenant": "big"}] * 5)
    same = report.options(client=client).enqueue(owner={"id": "big"})
    small = export.options(client=client).enqueue(tenant="small")
    found = ids(Hand(client))
    assert found.index(small.id) <= 1
    assert found[-1] == same.id, "the same tenant, whatever the task"
    assert [job.id for job in flood] == [id_ for id_ in found if id_ in {job.id for job in flood}]


def test_a_tenants_jobs_have_an_order_and_keep_both_by_any_way(
    client: jobq.Client, registry: Registry, redis_client: redis.Redis
) -> None:
    @jobq.task(
        "t.export", fair="{tenant}", order=7, dedup="{name}", on_duplicate="replace", registry=registry
    )
    def export(tenant: str, name: str) -> None: ...

    bound = export.options(client=client)
    last, first = bound.enqueue(tenant="big", name="a"), None
    first = export.options(client=client, order=1).enqueue(tenant="big", name="b")
    small = bound.enqueue(tenant="small", name="c")
    assert "small" not in str(redis_client.hgetall(f"rq:job:{small.id}").get(b"tn"))
    found = ids(Hand(client))
    assert [name for name in found if name != small.id] == [first.id, last.id]
    assert small.id in found[:2]

    early = bound.enqueue(tenant="big", name="d")
    again = export.options(client=client, order=10).enqueue(tenant="small", name="d")
    assert again.id == early.id
    row = redis_client.hmget(f"rq:job:{early.id}", "or", "tn")
    assert row == [b"10", redis_client.hget(f"rq:job:{small.id}", "tn")]


@pytest.mark.covers("L-05", "L-06")
def test_a_quota_of_each_user(client: jobq.Client, registry: Registry) -> None:
    @jobq.task("t.statement", quota=jobq.Quota(2, per=3600, key="{user}"), registry=registry)
    def statement(user: str) -> None: ...

    bound = statement.options(client=client)
    bound.enqueue_many([{"user": "ada"}, {"user": "ada"}, {"user": "bob"}])
    with pytest.raises(jobq.QuotaExceededError, match=r"quota of task 't\.statement' is used up") as caught:
        bound.enqueue(user="ada")
    assert timedelta(minutes=59) < caught.value.retry_after <= timedelta(hours=1)
    assert caught.value.task == "t.statement"
    assert isinstance(caught.value, jobq.QueueFullError)
    bound.enqueue(user="bob")


@pytest.mark.covers("L-06")
def test_each_user_has_a_rate_of_their_own(
    client: jobq.Client, registry: Registry, redis_client: redis.Redis
) -> None:
    @jobq.task("t.call", rate=jobq.Rate(1, key="{user}"), registry=registry)
    def call(user: str) -> None: ...

    bound = call.options(client=client)
    ada, again, bob = (bound.enqueue(user=user) for user in ("ada", "ada", "bob"))
    assert ids(Hand(client)) == [ada.id, bob.id]
    waits = again.refresh()
    assert (waits.state, waits.parked_reason) == (jobq.JobState.PARKED, "rate")
    assert client.stats().queues["medium"].parked == 1
    assert client.stats().queues["medium"].deferred == 0
    assert "ada" not in str(redis_client.keys("*"))


@pytest.mark.covers("L-06")
@pytest.mark.parametrize(
    "limit",
    [
        {"rate": jobq.Rate(1, key="{tenant}", scope="all")},
        {"concurrency": jobq.Concurrency(1, key="{tenant}", scope="all")},
    ],
)
def test_a_tenant_has_one_limit_over_all_tasks_and_queues(
    client: jobq.Client, registry: Registry, limit: dict[str, Any]
) -> None:
    @jobq.task("t.export", queue="exports", registry=registry, **limit)
    def export(tenant: str) -> None: ...

    @jobq.task("t.report", queue="reports", registry=registry, **limit)
    def report(tenant: str, month: int = 1) -> None: ...

    first = export.options(client=client).enqueue(tenant="ada")
    second = report.options(client=client).enqueue(tenant="ada")
    other = report.options(client=client).enqueue(tenant="bob")
    hand = Hand(client)
    assert [job.id for job in hand.claim("exports")] == [first.id]
    assert [job.id for job in hand.claim("reports")] == [other.id]
    assert second.refresh().state is jobq.JobState.PARKED
    assert "of all tasks, for its key" in client.why(second.id).reasons[0].text


@pytest.mark.covers("L-06")
def test_a_quota_of_each_user_over_the_tasks_of_a_queue(client: jobq.Client, registry: Registry) -> None:
    quota = jobq.Quota(2, per=3600, key="{user}", scope="queue")
    tasks = [
        jobq.task(f"t.{name}", queue="exports", quota=quota, registry=registry)(one_of_a_user)
        for name in "ab"
    ]
    a, b = (each.options(client=client) for each in tasks)
    a.enqueue(user="ada")
    b.enqueue(user="ada")
    for task in (a, b):
        with pytest.raises(jobq.QuotaExceededError):
            task.enqueue(user="ada")
    b.enqueue(user="bob")
    tasks[0].options(client=client, queue="reports").enqueue(user="ada")


def one_of_a_user(user: str) -> None: ...


def test_jobs_weigh_by_a_param(client: jobq.Client, registry: Registry) -> None:
    @jobq.task("t.rows", rate=jobq.Rate(10, cost="{rows}"), registry=registry)
    def export(rows: int) -> None: ...

    @jobq.task("t.let", quota=jobq.Quota(10, cost="{rows}"), registry=registry)
    def let(rows: int) -> None: ...

    bound = export.options(client=client)
    first, second = bound.enqueue_many([{"rows": 6}, {"rows": 5}])
    assert ids(Hand(client)) == [first.id]
    why = client.why(second.id).reasons[0]
    assert why.code == "rate"
    assert timedelta(seconds=50) < why.until - datetime.now(UTC) < timedelta(seconds=70)
    small = bound.enqueue(rows=1)
    (why,) = [reason for reason in client.why(small.id).reasons if reason.code == "rate"]
    assert why.blocks
    assert why.text.endswith("1 waits before it"), "it would fit, and is not let past"
    assert ids(Hand(client, "other")) == []
    for task in (bound, let.options(client=client)):
        with pytest.raises(jobq.CostTooHighError, match="costs 11 of a limit that lets in 10"):
            task.enqueue_many([{"rows": 1}, {"rows": 11}])
    assert client.queues.get("medium").queued == 0, "nothing was sent"
    let.options(client=client).enqueue(rows=10)
    with pytest.raises(jobq.QuotaExceededError):
        let.options(client=client).enqueue(rows=1)


def test_a_queue_is_limited_to_a_rate_with_a_burst(client: jobq.Client) -> None:
    info = client.queues.limit("low", rate="50/m burst 10")
    assert (info.limits.rate, str(info.limits.rate)) == (jobq.Rate(50, burst=10), "50/m burst 10")
    settings = jobq.Settings(queues={"email": {"rate": "50/m burst 10"}})
    assert settings.queue_specs()["email"].rate == jobq.Rate(50, burst=10)


@pytest.mark.parametrize(
    "options",
    [
        {"order": 0},
        {"order": 11},
        {"fair": "{nobody}"},
        {"fair": "{code}"},
        {"rate": jobq.Rate(1, key="{code}")},
        {"concurrency": jobq.Concurrency(1, key="{code}")},
        {"quota": jobq.Quota(1, key="{code}")},
        {"rate": jobq.Rate(1, cost="{code}")},
        {"quota": jobq.Quota(1, cost="{nothing}")},
        {"quota": 5},
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_declaration(options: dict[str, object]) -> None:
    def send(user: str, code: jobq.Secret[str]) -> None: ...

    with pytest.raises(ConfigError, match=r"t\.send"):
        jobq.task("t.send", registry=Registry(), **options)(send)  # type: ignore[arg-type]


def test_a_queue_that_settings_limit_says_so(client: jobq.Client) -> None:
    info = client.queues.limit("low", rate="50/10s", concurrency=3, for_=60)
    assert (info.limits.rate, info.limits.concurrency, info.limits_set) == (jobq.Rate(50, per=10), 3, True)
    assert info.limits_until is not None
    info = client.queues.limit("low", concurrency=None)
    assert (info.limits.rate, info.limits.concurrency, info.limits_until) == (
        jobq.Rate(50, per=10),
        None,
        None,
    )
    assert not client.queues.reset_limit("low").limits_set
    with pytest.raises(jobq.JobNotFoundError):
        client.queues.limit("nowhere", concurrency=1)


BURST, PLAIN = jobq.Rate(61, per=60, burst=1), jobq.Rate(2, per=60)


@pytest.mark.parametrize(("before", "after"), [(PLAIN, BURST), (BURST, PLAIN)])
def test_a_rate_may_get_a_burst_or_lose_it(
    client: jobq.Client, registry: Registry, before: jobq.Rate, after: jobq.Rate
) -> None:
    """What the one kind has counted stands under the name that the other counts by."""
    hand = Hand(client)
    plain = jobq.task("t.plain", registry=registry)(lambda: None).options(client=client)
    client.queues.limit("medium", rate=before)
    plain.enqueue_many([{}] * 3)
    assert len(ids(hand, 1)) == 1
    client.queues.limit("medium", rate=after)
    assert len(ids(hand, 1)) == 1
    client.queues.limit("medium", rate=None)
    (third,) = hand.claim()
    assert hand.settle(third) == "ok"
    old = jobq.task("t.same", rate=before, registry=Registry())(lambda: None).options(client=client).enqueue()
    new = jobq.task("t.same", rate=after, registry=Registry())(lambda: None).options(client=client).enqueue()
    (first,) = hand.claim(n=1)
    (second,) = hand.claim(n=1)
    assert [first.id, second.id] == [old.id, new.id]
    assert hand.settle(first, "hand_back") == "ok"
    assert ids(hand) == [old.id]


@pytest.mark.covers("L-05")
def test_a_flood_is_refused_and_an_operator_may_let_more_in(
    client: jobq.Client, registry: Registry, redis_client: redis.Redis
) -> None:
    task = jobq.task("t.flood", queue="low", registry=registry)(lambda: None).options(client=client)
    info = client.queues.limit("low", max_waiting=2, rate="50/m", for_=60)
    assert (info.limits.max_waiting, info.limits_set) == (2, True)
    assert info.limits_until is not None
    task.enqueue_many([{}, {}])
    with pytest.raises(jobq.QueueFullError, match="jobq queues limit low --max N") as caught:
        task.enqueue()
    assert (caught.value.queue, caught.value.task) == ("low", "t.flood")
    info = client.queues.limit("low", concurrency=3)
    assert (info.limits.max_waiting, info.limits.rate) == (2, jobq.Rate(50)), "what is not given stays"
    assert client.queues.limit("low", max_waiting=None).limits.max_waiting is None
    task.enqueue()
    noted = QueueSpec("low", max_waiting=3).noted
    Store(redis_client).run(calls.declare_limits(client.keys, {"low": noted}, first=True))
    task.enqueue()
    assert client.queues.reset_limit("low").limits.max_waiting == 3
    with pytest.raises(jobq.QueueFullError):
        task.enqueue()
    with pytest.raises(ConfigError):
        client.queues.limit("low", max_waiting=-1)
