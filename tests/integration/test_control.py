"""Many jobs at once: bulk verbs, and a queue's drain, empty, clean and move, from both kinds of client."""

from __future__ import annotations

import inspect
import time
from datetime import timedelta
from typing import Any

import pytest
import redis

import jobq
from jobq import events
from jobq.client import Client
from jobq.control import BulkReport
from jobq.errors import ConflictError, JobNotFoundError
from jobq.job import VERB_STATES, JobState
from jobq.tasks import Registry, task
from tests.support.both import Both
from tests.support.hand import Hand

registry = Registry()


@task("c.add", registry=registry)
def add(a: int) -> int:
    return a


@task("c.pay", registry=registry, dedup="{a}", concurrency=jobq.Concurrency(1))
def pay(a: int) -> int:
    return a


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def do(request: pytest.FixtureRequest, settings: jobq.Settings) -> Both:
    return Both(settings, request.param)


@pytest.fixture
def hand(client: Client) -> Hand:
    return Hand(client)


def many(client: Client, count: int, **options: Any) -> list[str]:
    return [
        job.id for job in add.options(client=client, **options).enqueue_many({"a": n} for n in range(count))
    ]


def counts(report: BulkReport) -> tuple[int, int, int, int]:
    return report.matched, report.done, report.gone, report.failed_count


def left(redis_client: redis.Redis) -> set[str]:
    return {key.decode() for key in redis_client.keys("*")}


@pytest.fixture
def told() -> list[events.Event]:
    found: list[events.Event] = []
    end = events.subscribe(lambda event: found.append(event) if event.name.startswith("queue.") else None)
    yield found  # type: ignore[misc]
    end()


# --------------------------------------------------------------------------- drain and empty


@pytest.mark.covers("E-17", "J-37")
def test_drain_deletes_what_waits_and_nothing_else(
    do: Both, client: Client, hand: Hand, redis_client: redis.Redis, told: list[events.Event]
) -> None:
    many(client, 1)
    hand.claim()
    many(client, 250)
    (later,) = many(client, 1, delay=60)
    assert counts(do("queues.drain", "medium", dry_run=True)) == (250, 0, 0, 0)
    seen: list[int] = []
    assert counts(do("queues.drain", "medium", progress=seen.append)) == (250, 250, 0, 0)
    assert sum(seen) == 250
    assert client.get(later).state is JobState.SCHEDULED
    assert redis_client.zcard("rq:wip:medium") == 1
    assert {key for key in left(redis_client) if key.startswith("rq:job:")} == {
        f"rq:job:{later}", *(f"rq:job:{job.id}" for job in client.jobs(state="running").items),
    }  # fmt: skip
    (event,) = told
    assert (event.name, event.fields["queue"], event.fields["jobs"]) == ("queue.drained", "medium", 250)


@pytest.mark.covers("E-18")
def test_empty_takes_delayed_jobs_and_retries_too(
    do: Both, client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    many(client, 1)
    hand.settle(hand.claim()[0], "retry", spends=True, delay_ms=60_000)
    many(client, 3)
    many(client, 120, delay=60)
    assert counts(do("queues.empty", "medium", dry_run=True)) == (124, 0, 0, 0)
    assert counts(do("queues.empty", "medium")) == (124, 124, 0, 0)
    assert not [key for key in left(redis_client) if "job:" in key or "retrying" in key or "scheduled" in key]


def test_drain_frees_dedup_keys_and_takes_what_a_limit_holds(client: Client, hand: Hand, do: Both) -> None:
    jobs = [pay.options(client=client).enqueue(a=n) for n in range(3)]
    assert len(hand.claim()) == 1
    assert client.get(jobs[1].id).state is JobState.PARKED
    assert counts(do("queues.drain", "medium")) == (2, 2, 0, 0)
    assert not pay.options(client=client).enqueue(a=1).deduplicated
    assert pay.options(client=client).enqueue(a=0).deduplicated  # it runs


def test_drain_cleans_a_list_of_what_is_no_more(do: Both, client: Client, redis_client: redis.Redis) -> None:
    ids = many(client, 5)
    redis_client.delete(f"rq:job:{ids[0]}")
    redis_client.hset(f"rq:job:{ids[1]}", "status", "canceled")
    assert counts(do("queues.drain", "medium")) == (5, 3, 2, 0)
    assert redis_client.lrange("rq:queue:medium", 0, -1) == [ids[1].encode()]


def test_what_is_enqueued_meanwhile_stays(client: Client) -> None:
    many(client, 150)
    first = [True]

    def another(_count: int) -> None:
        if first.pop() if first else False:
            many(client, 1)

    assert counts(client.queues.drain("medium", progress=another)) == (150, 150, 0, 0)
    assert client.queues.get("medium").queued == 1


def test_a_rate_is_kept(do: Both, client: Client) -> None:
    many(client, 12)
    began = time.monotonic()
    assert counts(do("queues.drain", "medium", rate=20.0))[1] == 12
    assert time.monotonic() - began >= 0.5  # 10 jobs at 20 a second, before the last 2


def test_an_unknown_queue_is_refused(do: Both) -> None:
    for path, args in (
        ("drain", ()), ("empty", ()), ("clean", ("dead", 0)), ("move", ("medium",)),
    ):  # fmt: skip
        with pytest.raises(JobNotFoundError, match="no queue 'nope'"):
            do(f"queues.{path}", "nope", *args)


# --------------------------------------------------------------------------- clean


@pytest.mark.covers("E-15", "J-25", "T-05", "T-06")
def test_clean_takes_one_state_beyond_an_age(
    do: Both, client: Client, hand: Hand, redis_client: redis.Redis, told: list[events.Event]
) -> None:
    for _ in range(4):
        many(client, 1)
        hand.succeed()
    many(client, 1)
    hand.kill()
    old = [job.id for job in client.jobs(state="succeeded").items][:2]
    for job_id in old:
        redis_client.hset(f"rq:job:{job_id}", "ended_at", "2026-01-01T00:00:00.000000Z")
    assert counts(do("queues.clean", "medium", "succeeded", timedelta(hours=24), dry_run=True)) == (
        2,
        0,
        0,
        0,
    )
    assert counts(do("queues.clean", "medium", "succeeded", timedelta(hours=24), limit=1)) == (1, 1, 0, 0)
    assert counts(do("queues.clean", "medium", ["succeeded", "cancelled"], 86_400)) == (1, 1, 0, 0)
    assert len(client.jobs(state="succeeded").items) == 2
    assert client.dead_letters.count() == 1
    assert counts(do("queues.clean", "medium", "dead", 0)) == (1, 1, 0, 0)
    assert {event.name for event in told} == {"queue.cleaned"}


def test_clean_leaves_what_was_replayed_meanwhile(client: Client, hand: Hand) -> None:
    many(client, 3)
    for _ in range(3):
        hand.kill()
    ids = client.job_ids(state="dead")
    client.retry(ids[0])
    report = client.bulk("delete", ids, states="dead")
    assert counts(report) == (3, 2, 0, 1)
    assert report.failed == [(ids[0], "queued")]
    assert client.get(ids[0]).state is JobState.QUEUED


@pytest.mark.parametrize("state", ["queued", "running", "nonsense"])
def test_what_is_not_cleaned_away(do: Both, state: str) -> None:
    with pytest.raises(ValueError, match=r"cleaned|unknown state"):
        do("queues.clean", "medium", state, 0)


# --------------------------------------------------------------------------- move


def test_move_keeps_order_age_and_dedup(
    do: Both, client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    ids = many(client, 120)
    paid = pay.options(client=client).enqueue(a=1)
    assert counts(do("queues.move", "medium", "low", dry_run=True)) == (121, 0, 0, 0)
    assert counts(do("queues.move", "medium", "low")) == (121, 121, 0, 0)
    assert [value.decode() for value in redis_client.lrange("rq:queue:low", 0, -1)] == [*ids, paid.id]
    assert client.get(ids[0]).queue == "low"
    assert pay.options(client=client).enqueue(a=1).id == paid.id
    for _ in ids:
        hand.succeed("low")
    assert hand.succeed("low").id == paid.id
    assert client.stats().queues["low"].succeeded == 121


def test_moves_that_make_no_sense(
    settings: jobq.Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with jobq.Client(settings) as client, pytest.raises(ValueError, match="to itself"):
        client.queues.move("medium", "medium")
    monkeypatch.setenv("JOBQ_REDIS_URL", redis_url)
    monkeypatch.setenv("JOBQ_QUEUES__FAR__REDIS_URL", "redis://elsewhere:6379/0")
    with jobq.Client(jobq.Settings.load()) as client, pytest.raises(ConflictError, match="different Redis"):
        client.queues.move("medium", "far")


# --------------------------------------------------------------------------- bulk verbs


def test_bulk_cancels_waiting_and_running_jobs(do: Both, client: Client, hand: Hand) -> None:
    ids = many(client, 3)
    hand.claim(n=1)
    (ended,) = many(client, 1, queue="low")
    hand.succeed("low")
    report = do("bulk", "cancel", [*ids, ended, "nobody", ids[0]])
    assert counts(report) == (5, 3, 1, 1)
    assert report.failed == [(ended, "finished")]
    assert [client.get(job_id).state.value for job_id in ids] == ["running", "cancelled", "cancelled"]
    assert client.get(ids[0]).cancel_requested


def test_bulk_cancels_nothing_that_has_moved_on_since_it_was_chosen(
    do: Both, client: Client, hand: Hand
) -> None:
    """Who wants those that wait gone did not ask for a payment to be cut off."""
    ids = many(client, 3)
    (started,) = hand.claim(n=1)
    (later,) = many(client, 1, delay=3600)
    report = do("bulk", "cancel", [*ids, later], states="queued")
    assert counts(report) == (4, 2, 0, 2)
    assert sorted(report.failed) == sorted([(started.id, "running"), (later, "scheduled")])
    assert not client.get(started.id).cancel_requested
    assert counts(do("bulk", "cancel", ids, states=["running", "queued"])) == (3, 3, 0, 0)
    assert client.get(started.id).cancel_requested


def test_bulk_promotes_what_waits_for_a_time(do: Both, client: Client) -> None:
    ids = many(client, 130, delay=3600)
    assert counts(do("bulk", "promote", ids)) == (130, 130, 0, 0)
    assert client.queues.get("medium").queued == 130
    assert client.stats().queues["medium"].scheduled == 0


def test_bulk_retries_the_dead_with_their_conflicts(do: Both, client: Client, hand: Hand) -> None:
    dead = pay.options(client=client).enqueue(a=1)
    hand.kill()
    holder = pay.options(client=client).enqueue(a=1)
    report = do("bulk", "retry", client.job_ids(state="dead"))
    assert report.failed == [(dead.id, f"conflict:{holder.id}")]


def test_one_job_is_promoted(do: Both, client: Client) -> None:
    (job_id,) = many(client, 1, delay=3600)
    assert do("promote", job_id).state is JobState.QUEUED
    with pytest.raises(ConflictError, match="is queued: it waits for no time"):
        do("promote", job_id)
    with pytest.raises(JobNotFoundError):
        do("promote", "nobody")


def test_the_ids_of_a_filter(do: Both, client: Client, hand: Hand, redis_client: redis.Redis) -> None:
    tagged = add.options(client=client, tags=("t",)).enqueue(a=1).id
    rest = many(client, 4)
    delayed = many(client, 2, delay=60)
    assert do("job_ids", tag="t") == [tagged]
    assert {*do("job_ids", state="queued")} == {tagged, *rest}
    assert {*do("job_ids", state=["scheduled"])} == {*delayed}
    assert do("job_ids", state="retrying") == []
    assert len(do("job_ids", state="queued", limit=2)) == 2
    redis_client.hset(f"rq:job:{rest[0]}", "created_at", "2026-01-01T00:00:00.000000Z")
    assert do("job_ids", before=timedelta(hours=1)) == [rest[0]]


def test_a_verb_is_one_of_four(do: Both) -> None:
    with pytest.raises(ValueError, match="unknown verb 'stop'"):
        do("bulk", "stop", ["a"])
    assert all(VERB_STATES[verb] for verb in ("cancel", "delete", "promote", "retry"))


def test_the_scripts_survive_a_flushed_cache(client: Client, redis_client: redis.Redis) -> None:
    ids = many(client, 2)
    redis_client.script_flush()
    assert counts(client.bulk("cancel", ids)) == (2, 2, 0, 0)


@pytest.mark.parametrize("part", ["", "queues", "dead_letters", "workers"])
def test_both_clients_have_the_same_methods(client: Client, part: str) -> None:
    theirs = jobq.AsyncClient(client.settings)
    ours, other = (getattr(client, part), getattr(theirs, part)) if part else (client, theirs)
    names = {name for name in vars(type(ours)) if not name.startswith("_")} - {
        "aclose", "enqueue_async", "twin", "sync_actions", "async_actions", "run",
    }  # fmt: skip
    for name in names:
        assert inspect.signature(getattr(ours, name)).parameters.keys() == (
            inspect.signature(getattr(other, name)).parameters.keys()
        ), name


def test_a_preview_of_a_retry_sees_who_holds_its_key(do: Both, client: Client, hand: Hand) -> None:
    first = pay.options(client=client).enqueue(a=1)
    hand.kill()
    assert [each.error for each in do("preview", "retry", [first.id])] == [None]
    second = pay.options(client=client).enqueue(a=1)
    (seen, gone) = do("preview", "retry", [first.id, "nobody"])
    with pytest.raises(ConflictError) as caught:
        client.retry(first.id)
    assert str(seen.error) == str(caught.value)
    assert second.id in str(seen.error)
    assert isinstance(gone.error, JobNotFoundError)
    hand.succeed()
    assert [each.error for each in do("preview", "retry", [first.id])] == [None]
    assert client.retry(first.id).state is JobState.QUEUED
