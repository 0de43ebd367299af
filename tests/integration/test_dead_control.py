"""Dead letters in hand: edited, purged, exported, and replayed behind a canary, from both kinds of client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import redis

import jobq
from jobq.client import Client
from jobq.dead_letters import DeadLetter
from jobq.errors import ConflictError, JobNotFoundError, PayloadError, SignatureError
from jobq.job import JobState
from jobq.tasks import Registry, task
from tests.integration.test_control import Both
from tests.support.hand import Hand

registry = Registry()
KEY = "k" * 40


@task("e.pay", registry=registry, dedup="{payment}")
def pay(payment: str, amount: int, code: Annotated[str, jobq.Secret] = "none", note: str = "") -> None:
    return None


@pytest.fixture
def settings(redis_url: str) -> jobq.Settings:
    return jobq.Settings(redis_url=redis_url, secret_key=KEY)


@pytest.fixture
def client(settings: jobq.Settings) -> Iterator[Client]:
    with Client(settings, registry=registry) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def do(request: pytest.FixtureRequest, settings: jobq.Settings) -> Both:
    return Both(settings, request.param, registry)


@pytest.fixture
def hand(client: Client) -> Hand:
    return Hand(client)


def dead(client: Client, hand: Hand, count: int = 1, **params: Any) -> list[str]:
    ids = [
        pay.options(client=client).enqueue(**{"payment": f"p{n}", "amount": 1, "code": "s3cret"} | params).id
        for n in range(count)
    ]
    for _ in ids:
        hand.kill()
    return ids


def params_of(client: Client, redis_client: redis.Redis, job_id: str) -> dict[str, Any]:
    data = redis_client.hget(f"rq:job:{job_id}", "data")
    assert isinstance(data, bytes)
    return client.codec.decode(data, job_id=job_id).params


# --------------------------------------------------------------------------- edit


def test_an_edited_job_runs_under_its_id_with_its_secret(
    do: Both, client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    (job_id,) = dead(client, hand)
    draft = do("dead_letters.draft", job_id)
    assert draft.params == {"payment": "p0", "amount": 1, "code": "•••", "note": ""}
    assert draft.secrets == {"code"}
    job = do("dead_letters.edit", job_id, {**draft.params, "amount": "12"}, whole=True)
    assert (job.id, job.state, job.attempt) == (job_id, JobState.QUEUED, 0)
    found = params_of(client, redis_client, job_id)
    assert (found["amount"], found["code"]) == (12, "s3cret")
    assert b"s3cret" not in redis_client.hget(f"rq:job:{job_id}", "data")  # type: ignore[operator]
    assert hand.succeed().id == job_id


def test_what_does_not_fit_changes_nothing(
    do: Both, client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    (job_id,) = dead(client, hand)
    before = redis_client.hgetall(f"rq:job:{job_id}")
    for changes in ({"amount": "much"}, {"nonsense": 1}):
        with pytest.raises(PayloadError, match=r"amount|no param 'nonsense'"):
            do("dead_letters.edit", job_id, changes)
    with pytest.raises(PayloadError, match="payment"):
        do("dead_letters.edit", job_id, {"amount": 1}, whole=True)
    with pytest.raises(ConflictError, match="dedup key"):
        do("dead_letters.edit", job_id, {"payment": "another"})
    assert redis_client.hgetall(f"rq:job:{job_id}") == before


def test_only_a_dead_letter_that_can_be_trusted_is_edited(
    do: Both, client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    (job_id, other) = dead(client, hand, 2)
    data = redis_client.hget(f"rq:job:{other}", "data")
    redis_client.hset(f"rq:job:{job_id}", "data", data)  # type: ignore[arg-type]
    with pytest.raises(SignatureError):
        do("dead_letters.draft", job_id)
    client.retry(other)
    with pytest.raises(ConflictError, match="queued, not dead"):
        do("dead_letters.edit", other, {"amount": 2})
    with pytest.raises(JobNotFoundError):
        do("dead_letters.draft", "nobody")


# --------------------------------------------------------------------------- purge and export


@pytest.mark.covers("T-04")
def test_purge_takes_what_died_long_ago(
    do: Both, client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    ids = dead(client, hand, 3)
    redis_client.hset(f"rq:job:{ids[1]}", "ended_at", "2026-01-01T00:00:00.000000Z")
    assert do("dead_letters.purge", 3600, dry_run=True).matched == 1
    assert do("dead_letters.purge", 3600, queue="low").matched == 0
    assert do("dead_letters.purge", 3600).done == 1
    assert {letter.id for letter in client.dead_letters.list().items} == {ids[0], ids[2]}


def test_export_hands_over_every_letter(do: Both, client: Client, hand: Hand) -> None:
    ids = dead(client, hand, 230)
    seen: list[DeadLetter] = []
    assert do("dead_letters.export", seen.append) == 230
    assert {letter.id for letter in seen} == {*ids}
    assert {letter.error for letter in seen} == {"no funds"}
    assert do("dead_letters.export", seen.append, limit=7) == 7


# --------------------------------------------------------------------------- canary


class Bank(threading.Thread):
    """Runs what is queued until told to stop, well or badly."""

    def __init__(self, client: Client, outcome: str) -> None:
        super().__init__(daemon=True)
        self._hand, self._outcome, self.over = Hand(client, "bank"), outcome, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.01):
            for job in self._hand.claim(n=1):
                more = {"spends": True, "delay_ms": 60_000} if self._outcome == "retry" else {"spends": True}
                self._hand.settle(job, self._outcome, **more)


@pytest.mark.parametrize(
    ("outcome", "rest", "word"), [("succeeded", 0, "succeeded"), ("retry", 4, "retrying")]
)
def test_the_rest_follow_only_if_the_canary_lives(
    do: Both, client: Client, hand: Hand, outcome: str, rest: int, word: str
) -> None:
    ids = dead(client, hand, 6)
    bank = Bank(client, outcome)
    bank.start()
    report = do("dead_letters.replay", canary=2)
    bank.over.set()
    bank.join()
    assert (report.matched, report.replayed, report.held) == (6, 6 - rest, rest)
    # The first that fails is enough: the other may not have run by then.
    states = {state for _, state in report.canary}
    assert word in states <= ({word} if outcome == "succeeded" else {word, "queued", "running"})
    assert client.dead_letters.count() == rest
    assert {job_id for job_id, _ in report.canary} <= {*ids}


def test_a_canary_that_nobody_runs_holds_the_others(do: Both, client: Client, hand: Hand) -> None:
    dead(client, hand, 3)
    report = do("dead_letters.replay", canary=1, canary_timeout=0.3)
    assert ([state for _, state in report.canary], report.held) == (["queued"], 2)
    assert client.dead_letters.count() == 2
    with pytest.raises(ValueError, match="at least 1"):
        do("dead_letters.replay", canary=-1)


def test_a_canary_of_all(do: Both, client: Client, hand: Hand) -> None:
    dead(client, hand, 2)
    report = do("dead_letters.replay", canary=5, canary_timeout=0.1)
    assert (report.replayed, report.held) == (2, 0)
