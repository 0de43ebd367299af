"""Limits of tasks that an operator sets while they run, as an application and the command line ask for them."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
import redis

import jobq
from jobq import calls, events, overrides
from jobq.audit import audit
from jobq.cli.checks import queue_checks
from jobq.errors import ConfigError, ConflictError, JobNotFoundError
from jobq.overrides import Override
from jobq.registry import Registry
from tests.support.hand import Hand


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def by_tenant(registry: Registry) -> Any:
    @jobq.task("t.pay", concurrency=jobq.Concurrency(5, key="{tenant}:{kind}"), registry=registry)
    def pay(tenant: str, kind: str) -> None: ...

    return pay


def ids(hand: Hand) -> list[str]:
    return [job.id for job in hand.claim(n=100)]


def open_gates(client: jobq.Client) -> None:
    client.run(calls.open_gates(client.keys))


def test_set_list_and_clear(client: jobq.Client, redis_client: redis.Redis) -> None:
    made = client.limits.set("t.x", rate="10/s burst 5", for_=60, reason="night")
    assert (str(made.rate), made.concurrency, made.reason, made.key) == ("10/s burst 5", None, "night", None)
    assert made.until is not None
    assert made.since is not None
    assert made.until - made.since == timedelta(seconds=60)
    more = client.limits.set("t.x", concurrency=0)
    assert (str(more.rate), more.concurrency, more.until) == ("10/s burst 5", "stop", None), "the rest stays"
    other = client.limits.set("t.x", key="acme: ü", rate=None)
    assert client.limits.list() == [more, other]
    assert client.limits.clear("t.x") == more
    assert client.limits.list() == [other]
    with pytest.raises(JobNotFoundError, match="jobq limits list"):
        client.limits.clear("t.x")
    client.limits.clear("t.x", key="acme: ü")
    assert not redis_client.exists(client.keys.limits)


@pytest.mark.parametrize(
    "rate", ["1/s", "50/m burst 10", "30000/m", "30000/m burst 1500", "7/90s", "none", "0", None, 0]
)
def test_what_is_set_is_read_back(client: jobq.Client, rate: str | int | None) -> None:
    made = client.limits.set("t.x", rate=rate, concurrency=None)
    (found,) = client.limits.list()
    assert (found.rate, found.concurrency) == (made.rate, made.concurrency)
    if isinstance(rate, str) and rate[-1] not in "e0":
        assert str(found.rate) == rate


def test_the_asynchronous_client_does_the_same(settings: jobq.Settings, client: jobq.Client) -> None:
    async def scenario() -> None:
        async with jobq.AsyncClient(settings) as there:
            made = await there.limits.set("t.x", rate="10/s", concurrency=2, reason="night")
            assert await there.limits.list() == [made] == client.limits.list()
            assert (await there.limits.set("t.x", concurrency=3, dry_run=True)).concurrency == 3
            assert await there.limits.clear("t.x", dry_run=True) == made
            assert await there.limits.clear("t.x") == made
            with pytest.raises(JobNotFoundError):
                await there.limits.clear("t.x")

    asyncio.run(scenario())
    assert client.limits.list() == []


def test_it_lapses(client: jobq.Client) -> None:
    client.limits.set("t.x", rate=0, for_=0.05)
    time.sleep(0.1)
    assert client.limits.list() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"rate": "fast"},
        {"rate": jobq.Rate(5, key="{a}")},
        {"rate": "5/s cost 2"},
        {"rate": True},
        {"concurrency": -1},
        {"concurrency": 1.5},
        {"rate": "5/s", "key": ""},
    ],
)
def test_what_cannot_be_meant_is_refused(client: jobq.Client, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        client.limits.set("t.x", **wrong)
    assert client.limits.list() == []


def test_a_name_that_no_task_can_have_is_refused(client: jobq.Client) -> None:
    with pytest.raises(ConfigError, match="task name"):
        client.limits.set("t.x s,0,0,0", rate=0)


def test_too_many_are_refused(client: jobq.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides, "MOST_BYTES", 200)
    client.limits.set("t.x", rate=0)
    with pytest.raises(ConflictError, match="200"):
        client.limits.set("t.y", rate=0, reason="x" * 100)
    assert len(client.limits.list()) == 1


@pytest.mark.covers("L-04", "L-06")
def test_a_key_is_named_as_its_template_renders_it(
    client: jobq.Client, registry: Registry, by_tenant: Any
) -> None:
    hand, enqueue = Hand(client), by_tenant.options(client=client).enqueue
    stopped = [enqueue(tenant="acme", kind="eu") for _ in range(2)]
    others = [enqueue(tenant="acme", kind="us"), enqueue(tenant="zeta", kind="eu")]
    client.limits.set("t.pay", key="acme:eu", concurrency=0)
    assert ids(hand) == [job.id for job in others]
    client.limits.clear("t.pay", key="acme:eu")
    open_gates(client)
    assert ids(hand) == [job.id for job in stopped]


def test_the_gates_of_all_keys_are_looked_at_when_a_task_is_freed(
    client: jobq.Client, by_tenant: Any
) -> None:
    client.limits.set("t.pay", rate=0)
    client.limits.set("t.pay", rate=None, concurrency=0)
    jobs = [by_tenant.options(client=client).enqueue(tenant=f"n{n}", kind="eu") for n in range(30)]
    hand = Hand(client)
    assert ids(hand) == []
    client.limits.clear("t.pay")
    open_gates(client)
    assert sorted(ids(hand)) == sorted(job.id for job in jobs)


def test_a_key_of_a_task_without_one_is_refused(registry: Registry, settings: jobq.Settings) -> None:
    jobq.task("t.plain", rate=jobq.Rate(5), registry=registry)(lambda: None)
    with (
        jobq.Client(settings, registry=registry) as client,
        pytest.raises(ConfigError, match="no limit with a key"),
    ):
        client.limits.set("t.plain", key="acme", rate=0)


def test_why_names_who_has_set_it(client: jobq.Client, registry: Registry) -> None:
    plain = jobq.task("t.plain", registry=registry)(lambda: None).options(client=client)
    first, second = plain.enqueue(), plain.enqueue()
    made = client.limits.set("t.plain", concurrency=1, reason="bank is slow", for_=600)
    assert ids(Hand(client)) == [first.id]
    reasons = {each.code: each for each in client.why(second.id).reasons}
    told = reasons["override"]
    assert told.text == (
        f"limited by an override set by {made.by} for task t.plain: concurrency 1 (bank is slow)"
    )
    assert (told.until, told.remedy) == (made.until, "jobq limits clear t.plain")
    assert reasons["concurrency"].blocks
    assert first.id in reasons["concurrency"].text
    client.limits.set("t.plain", concurrency=0)
    held = next(each for each in client.why(second.id).reasons if each.blocks)
    assert (held.code, held.remedy) == ("held", "jobq limits clear t.plain")
    client.limits.clear("t.plain")
    assert "override" not in {each.code for each in client.why(second.id).reasons}
    assert "gate_open" in {each.code for each in client.why(second.id).reasons}


def test_an_event_tells(client: jobq.Client) -> None:
    found: list[events.Event] = []
    stop = events.subscribe(found.append)
    try:
        client.limits.set("t.x", key="acme", rate="5/s")
        client.limits.clear("t.x", key="acme")
    finally:
        stop()
    assert [event.name for event in found] == ["task.limited"] * 2
    assert (found[0].fields["task"], found[0].fields["rate"]) == ("t.x", "5/s")
    assert "acme" not in str(found), "a key may be personal data"


def test_doctor_reports_what_cannot_be_read_and_claims_go_on(
    client: jobq.Client, registry: Registry, redis_client: redis.Redis
) -> None:
    client.limits.set("t.x", rate="5/s")
    assert "limits" not in {check.name for check in queue_checks(client)}
    redis_client.append(client.keys.limits, "t.y 0 nonsense\n{\xff")
    (check,) = [check for check in queue_checks(client) if check.name == "limits"]
    assert (check.status, check.detail[0]) == ("bad", "2")
    plain = jobq.task("t.y", registry=registry)(lambda: None).options(client=client)
    job = plain.enqueue()
    assert ids(Hand(client)) == [job.id]
    client.limits.set("t.z", rate="5/s")
    assert [each.task for each in client.limits.list()] == ["t.x", "t.z"], "the others are as they were"
    assert "limits" not in {check.name for check in queue_checks(client)}


def test_a_key_of_another_type_is_found_and_written_over(
    client: jobq.Client, redis_client: redis.Redis
) -> None:
    redis_client.sadd(client.keys.limits, "x")
    assert [(each.kind, each.subject) for each in audit(client)] == [("wrong_type", client.keys.limits)]
    assert client.limits.list() == []
    client.limits.set("t.x", rate=0)
    assert client.limits.list() != []
    assert audit(client) == []


def test_memory_knows_the_key(client: jobq.Client) -> None:
    client.limits.set("t.x", rate=0)
    assert {holding.kind for holding in client.memory().holdings} == {"limits"}


def test_names_and_lines() -> None:
    made = Override(task="t.x", key="acme", rate="none", concurrency="stop", by="ops", reason="a\nb")
    assert "\n" not in made.line()
    assert overrides.read(overrides.written({made.name: made}), 0) == {made.name: made}


LINE = Override(task="t.x", rate=jobq.Rate(5, 1), concurrency=2, by="ops").line()


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ("r,5,1000,0 w,5,1000,0", "r,5,999999999999,0 w,5,999999999999,0"),
        ("r,5,1000,0", "-"),
        ("w,5,1000,0", "r,5,1000,0"),
        ("c,2,0,0", "c,0,0,0"),
        ("{", "[{"),
        ('"ops"}', '"ops"'),
        ('{"by"', '{"at": 1e300, "by"'),
        ("t.x 0", "t.x 999999999999999"),
        ("t.x", "t.x:0123456789abcdef0123456789abcdef"),
    ],
)
def test_a_line_that_makes_no_sense_is_passed_over(what: str, instead: str) -> None:
    assert what in LINE
    text = f"\n{LINE.replace(what, instead)}\n"
    assert overrides.read(text, 0) == {}
    assert overrides.unreadable(text) == 1
