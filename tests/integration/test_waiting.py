"""Waiting for many jobs at once: one blocking read, beside other waiters, in several servers, no longer than asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

import jobq
from jobq import calls
from jobq.client import Client
from jobq.errors import JobNotFoundError
from jobq.job import JobState
from jobq.private_server import PrivateServer
from jobq.tasks import Registry, task
from tests.support.both import Both
from tests.support.hand import Hand

registry = Registry()


@task("w8.add", registry=registry)
def add(a: int) -> int:
    return a


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def do(request: pytest.FixtureRequest, settings: jobq.Settings) -> Both:
    return Both(settings, request.param)


def enqueue(client: Client, count: int, **options: Any) -> list[str]:
    return [
        job.id for job in add.options(client=client, **options).enqueue_many([{"a": n} for n in range(count)])
    ]


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do something beside; its failure is the test's."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
    assert not failures, failures


def waited_for(server: redis.Redis, ids: list[str]) -> bool:
    return all(server.exists(f"jobq:wait:{job_id}") for job_id in ids)


def until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def calls_of(server: redis.Redis, name: str) -> int:
    return int(server.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"])


def test_all_are_waited_for_at_once(do: Both, client: Client, redis_client: redis.Redis) -> None:
    ids = enqueue(client, 20)
    hand = Hand(client)
    jobs = {job.id: job for job in hand.claim()}
    seen: list[tuple[str, str]] = []
    before = 0

    def end_them() -> None:
        nonlocal before
        until(lambda: waited_for(redis_client, ids))
        before = calls_of(redis_client, "blpop")
        for job_id in reversed(ids):
            assert hand.settle(jobs[job_id], spends=True) == "ok"

    with meanwhile(end_them):
        ended = do("wait_all", ids, 15, seen=lambda job: seen.append((job.id, job.state.value)))
    assert [(job.id, job.state) for job in ended] == [(job_id, JobState.SUCCEEDED) for job_id in ids]
    assert {job_id for job_id, state in seen if state == "succeeded"} == {*ids}
    # One blocking read for each that ended, at most, and none in between.
    assert calls_of(redis_client, "blpop") - before <= len(ids)


def test_who_waits_beside_wakes_too(do: Both, client: Client, redis_client: redis.Redis) -> None:
    ids = enqueue(client, 2)
    hand = Hand(client)
    jobs = hand.claim()
    woken: list[float] = []

    def wait_alone() -> None:
        client.wait(ids[0], 15)
        woken.append(time.monotonic())

    def end_them() -> None:
        until(lambda: waited_for(redis_client, ids))
        time.sleep(0.2)
        for job in jobs:
            hand.settle(job, spends=True)

    with meanwhile(wait_alone), meanwhile(wait_alone), meanwhile(end_them):
        do("wait_all", ids, 15)
        over = time.monotonic()
    assert len(woken) == 2
    assert max(woken) - over < 1.5, "a look comes a second later at the earliest"
    # The answer is kept for a minute, for whoever comes.
    assert 0 < redis_client.ttl(f"jobq:done:{ids[0]}") <= 60


def test_time_is_up_and_they_come_as_they_stand(do: Both, client: Client) -> None:
    done, waiting = enqueue(client, 2)
    Hand(client).succeed()
    started = time.monotonic()
    found = do("wait_all", [waiting, done, waiting], 0.3)
    assert 0.25 < time.monotonic() - started < 3
    assert [(job.id, job.state.value) for job in found] == [(waiting, "queued"), (done, "succeeded")]
    assert do("wait_all", []) == []
    with pytest.raises(JobNotFoundError):
        do("wait_all", [done, "nobody"])


def test_a_list_of_an_end_before_a_replay_ends_nothing(
    do: Both, client: Client, redis_client: redis.Redis
) -> None:
    (job_id,) = enqueue(client, 1)
    redis_client.rpush(f"jobq:done:{job_id}", "dead")
    assert do("wait_all", [job_id], 0.3)[0].state is JobState.QUEUED
    assert not redis_client.exists(f"jobq:done:{job_id}")


def test_progress_is_seen_at_each_look(do: Both, client: Client, redis_client: redis.Redis) -> None:
    (job_id,) = enqueue(client, 1)
    hand = Hand(client)
    (job,) = hand.claim()
    seen: list[float | None] = []

    def report() -> None:
        until(lambda: waited_for(redis_client, [job_id]))
        client.run(calls.progress(client.keys, job_id, job.token, '[0.5,"half"]'))
        until(lambda: 0.5 in seen)
        hand.settle(job, spends=True)

    with meanwhile(report):
        do("wait_all", [job_id], 15, look=0.1, seen=lambda job: seen.append(job.progress))
    assert 0.5 in seen


def test_jobs_of_several_servers(settings: jobq.Settings) -> None:
    with PrivateServer() as other:
        split = jobq.Settings(redis_url=settings.redis_url, queues={"critical": {"redis_url": other.url}})
        for awaited in (False, True):
            with jobq.Client(split) as client:
                here, there = enqueue(client, 1)[0], enqueue(client, 1, queue="critical")[0]
                hands = [
                    (queue, Hand(client.at(queue), f"hand-{awaited}")) for queue in ("medium", "critical")
                ]
                runs = [(queue, hand, hand.claim(queue)[0]) for queue, hand in hands]

                def end_them(runs: Any = runs) -> None:
                    time.sleep(0.3)
                    for queue, hand, job in runs:
                        assert hand.settle(job, queue=queue, spends=True) == "ok"

                with meanwhile(end_them):
                    found = Both(split, awaited)("wait_all", [there, here], 15)
                assert [(job.id, job.finished) for job in found] == [(there, True), (here, True)]
