"""Dead letters: what they tell, how they group, and how they come back."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import redis

import jobq
from jobq.client import Client
from jobq.dead_letters import chunks, last_line
from jobq.errors import ConflictError, JobNotFoundError
from jobq.job import JobState
from jobq.rq_bridge import encode_exc
from jobq.tasks import Registry, task
from tests.support.hand import Hand

registry = Registry()


@task("d.add", registry=registry)
def add(a: int) -> int:
    return a


@task("d.pay", registry=registry, dedup="{payment}", priority="high")
def pay(payment: str) -> None:
    return None


@pytest.fixture
def hand(client: Client) -> Hand:
    return Hand(client)


def _dead(client: Client, hand: Hand, count: int = 1, **more: Any) -> list[str]:
    ids = [job.id for job in add.options(client=client).enqueue_many({"a": n} for n in range(count))]
    for _ in ids:
        hand.kill(**more)
    return ids


def test_a_dead_letter_tells_what_happened(client: Client, hand: Hand) -> None:
    (job_id,) = _dead(client, hand)
    (letter,) = client.dead_letters.list().items
    assert (letter.id, letter.task, letter.queue, letter.reason) == (job_id, "d.add", "medium", "exhausted")
    assert (letter.error_type, letter.error, letter.attempts, letter.fingerprint) == (
        "ValueError", "no funds", 1, "fp1",
    )  # fmt: skip
    assert letter.died_at is not None
    whole = client.dead_letters.get(job_id)
    assert whole.traceback is not None
    assert whole.traceback.startswith("Traceback")
    assert [attempt.outcome for attempt in whole.history] == ["failed"]


def test_only_the_dead_are_dead_letters(client: Client) -> None:
    job = add.options(client=client).enqueue(a=1)
    with pytest.raises(ConflictError, match="queued, not dead"):
        client.dead_letters.get(job.id)
    with pytest.raises(JobNotFoundError):
        client.dead_letters.get("nobody")


def test_what_plain_rq_left_dead_is_readable(client: Client, redis_client: redis.Redis) -> None:
    redis_client.hset(
        "rq:job:theirs",
        mapping={"status": "failed", "origin": "medium", "description": "app.add(1)", "data": "x"},
    )
    redis_client.zadd("rq:failed:medium", {"theirs": 4_000_000_000})
    redis_client.xadd(
        "rq:results:theirs", {"type": "2", "exc_string": encode_exc("Traceback:\n\napp.Bad: odd: 7")}
    )
    (letter,) = client.dead_letters.list().items
    assert (letter.task, letter.reason, letter.error_type, letter.error) == (
        "app.add",
        "exhausted",
        "app.Bad",
        "odd: 7",
    )
    assert client.dead_letters.get("theirs").traceback == "Traceback:\n\napp.Bad: odd: 7"
    (group,) = client.dead_letters.groups()
    assert (group.fingerprint, group.count, group.error) == (None, 1, "odd: 7")


def test_count_and_filters(client: Client, hand: Hand) -> None:
    _dead(client, hand, 2, fingerprint="aaa")
    _dead(client, hand, 1, fingerprint="bbb")
    letters = client.dead_letters
    assert (letters.count(), letters.count("medium"), letters.count("high")) == (3, 3, 0)
    assert len(letters.list(error="aaa").items) == 2
    assert letters.list(task="d.pay").items == letters.list(queue="high").items == []
    assert len(letters.list(since=timedelta(minutes=5)).items) == 3


def test_groups_by_fingerprint(client: Client, hand: Hand) -> None:
    _dead(client, hand, 3, fingerprint="aaa", error="first")
    _dead(client, hand, 1, fingerprint="bbb", error="second")
    groups = client.dead_letters.groups()
    assert [(group.fingerprint, group.count, group.error) for group in groups] == [
        ("aaa", 3, "first"),
        ("bbb", 1, "second"),
    ]
    assert groups[0].first_seen is not None
    assert groups[0].last_seen is not None
    assert groups[0].first_seen <= groups[0].last_seen


def test_how_many_there_are_of_each_task(client: Client, hand: Hand, settings: jobq.Settings) -> None:
    _dead(client, hand, 3, fingerprint="aaa")
    _dead(client, hand, 1, fingerprint="bbb")
    pay.options(client=client, priority="medium").enqueue(payment="1")
    hand.kill()
    letters = client.dead_letters
    assert list(letters.by_task().items()) == [("d.add", 4), ("d.pay", 1)]
    assert letters.by_task(error="bb") == {"d.add": 1}
    assert letters.by_task(queue="high") == {}
    assert letters.by_task(since=timedelta(minutes=5)) == letters.by_task()

    async def twin() -> dict[str, int]:
        async with jobq.AsyncClient(settings) as client:
            return await client.dead_letters.by_task()

    assert asyncio.run(twin()) == letters.by_task()


def test_pages_since_a_time_ago(client: Client, hand: Hand) -> None:
    """An hour ago is another moment with each page."""
    ids = _dead(client, hand, 3)
    page = client.dead_letters.list(since=timedelta(hours=1), limit=2)
    rest = client.dead_letters.list(since=timedelta(hours=1), limit=2, cursor=page.cursor)
    assert sorted(letter.id for letter in page.items + rest.items) == sorted(ids)
    jobs = client.jobs(since=timedelta(hours=1), state="dead", limit=2)
    assert len(client.jobs(since=timedelta(hours=1), state="dead", limit=2, cursor=jobs.cursor).items) == 1


def test_what_has_expired_is_no_failure_of_a_replay(
    client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    gone, *others = _dead(client, hand, 3)
    redis_client.delete(f"rq:job:{gone}")
    report = client.dead_letters.replay()
    assert (report.matched, report.replayed, report.failed) == (2, 2, [])
    assert {client.get(job_id).state for job_id in others} == {JobState.QUEUED}


def test_replay_all(client: Client, hand: Hand, redis_client: redis.Redis) -> None:
    ids = _dead(client, hand, 230)
    report = client.dead_letters.replay()
    assert (report.matched, report.replayed, report.failed_count) == (230, 230, 0)
    assert redis_client.llen("rq:queue:medium") == 230
    assert client.dead_letters.count() == 0
    job = client.get(ids[0])
    assert (job.state, job.attempt, job.dead_reason) == (JobState.QUEUED, 0, None)
    assert redis_client.ttl(f"rq:job:{ids[0]}") == -1


def test_replay_what_a_filter_chooses(client: Client, hand: Hand) -> None:
    _dead(client, hand, 3, fingerprint="aaa")
    _dead(client, hand, 2, fingerprint="bbb")
    assert client.dead_letters.replay(error="bbb", dry_run=True).matched == 2
    assert client.dead_letters.count() == 5
    newest = [letter.id for letter in client.dead_letters.list().items]
    assert client.dead_letters.ids(limit=3) == newest[:3]
    assert client.dead_letters.ids(error="bbb") == newest[:2]
    report = client.dead_letters.replay(error="aaa", limit=2)
    assert (report.matched, report.replayed) == (2, 2)
    assert client.dead_letters.count() == 3


def test_replay_of_ids_reports_those_that_cannot(client: Client, hand: Hand) -> None:
    first = pay.options(client=client).enqueue(payment="1")
    hand.kill("high")
    second = pay.options(client=client).enqueue(payment="1")
    assert not second.deduplicated
    report = client.dead_letters.replay([first.id, first.id, "nobody"])
    assert (report.matched, report.replayed, report.failed_count) == (2, 0, 2)
    assert dict(report.failed) == {first.id: f"conflict:{second.id}", "nobody": "gone"}
    with pytest.raises(ConflictError, match=second.id):
        client.retry(first.id)


def test_ids_and_a_filter_contradict_each_other(client: Client) -> None:
    with pytest.raises(ValueError, match="not both"):
        client.dead_letters.replay(["a"], queue="high")


def test_a_rate_spreads_the_replay() -> None:
    ids = [str(n) for n in range(25)]
    steps = list(chunks(ids, 40))
    assert [len(chunk) for chunk, _ in steps] == [10, 10, 5]
    assert [pause for _, pause in steps] == [0.25, 0.25, 0.0]
    assert [pause for _, pause in chunks(ids[:3], 1)] == [1.0, 1.0, 0.0]
    assert [len(chunk) for chunk, _ in chunks(ids * 9, None)] == [100, 100, 25]
    with pytest.raises(ValueError, match="above 0"):
        list(chunks(ids, 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Traceback\n  File x\nValueError: no", ("ValueError", "no")),
        ("Traceback\n  File x\na.b.Bad: two\nlines", ("a.b.Bad", "two")),
        ("killed", (None, "killed")),
        ("it broke: badly", (None, "it broke: badly")),
        ("", (None, None)),
    ],
)
def test_the_last_line_of_a_traceback(text: str, expected: tuple[str | None, str | None]) -> None:
    assert last_line(text) == expected
