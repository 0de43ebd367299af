"""Promise (c): our worker runs what plain ``rq.Queue.enqueue`` made; and rq's tools may meddle at any moment."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import redis
from rq import Callback, Queue, Repeat, Retry
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job as RqJob
from rq.registry import FailedJobRegistry
from rq.utils import utcformat

import jobq
from jobq import calls
from jobq.codec import Serializer
from jobq.errors import JobqError, PayloadError, UnknownTaskError
from jobq.store import Store
from jobq.worker.maintenance import Fleet, Keeper
from tests.interop import app
from tests.interop.unknown import unknown
from tests.support.hand import Hand
from tests.support.processes import Program, jobq_worker, until

pytestmark = pytest.mark.process

APP = "tests.interop.app"
ENDED = ("succeeded", "dead", "cancelled")


@pytest.fixture
def queue(default_client: jobq.Client, redis_client: redis.Redis) -> Queue:
    """A plain queue of rq's, with our serializer."""
    return Queue("high", connection=redis_client, serializer=Serializer)


@pytest.fixture
def worker(redis_url: str, tmp_path: Path, ledger: Callable[[], list[str]]) -> Iterator[Program]:
    with jobq_worker(redis_url, tmp_path / "worker.log", app=APP, LEDGER=os.environ["LEDGER"]) as running:
        yield running


def test_a_task_by_callable_name_and_path(
    queue: Queue, worker: Program, default_client: jobq.Client, ledger: Callable[[], list[str]]
) -> None:
    jobs = [
        queue.enqueue(app.add, 1, b=2),
        queue.enqueue("i.add", 3, b=4),
        queue.enqueue("tests.interop.app.add", 5, 6),
        queue.enqueue(app.echo, "hello"),
        queue.enqueue_call(app.add, args=(7,), kwargs={"b": 8}),
    ]
    results = [default_client.result(job.id, timeout=20) for job in jobs]
    assert results == [3, 7, 11, {"text": "hello"}, 15]
    assert [job.return_value(refresh=True) for job in jobs] == results
    assert all(job.get_status() == "finished" for job in jobs)
    assert sorted(ledger()) == ["add 1 2", "add 3 4", "add 5 6", "add 7 8", "echo hello"]


def test_wrong_calls_are_refused_before_anything_is_sent(queue: Queue, redis_client: redis.Redis) -> None:
    with pytest.raises(UnknownTaskError):
        queue.enqueue("os.system", "true")
    with pytest.raises(PayloadError):
        queue.enqueue(app.add, "not a number")
    with pytest.raises(PayloadError):
        queue.enqueue(app.add, 1, c=2)
    assert queue.count == 0
    assert redis_client.keys("rq:job:*") == []


@pytest.mark.covers("C-06")
def test_children_wait_for_their_parents(
    queue: Queue, worker: Program, default_client: jobq.Client, ledger: Callable[[], list[str]]
) -> None:
    first = queue.enqueue(app.nap, "a", 0.2)
    second = queue.enqueue(app.quiet, "b", depends_on=first)
    third = queue.enqueue(app.quiet, "c", depends_on=[first, second])
    ours = app.nap.enqueue("ours", 0.1)
    child_of_ours = queue.enqueue(
        app.quiet, "d", depends_on=RqJob.fetch(ours.id, connection=queue.connection, serializer=Serializer)
    )
    for job in (second, third, child_of_ours):
        assert default_client.wait(job.id, timeout=20).state == "succeeded"
    lines = ledger()
    order = [lines.index(line) for line in ("done a", "quiet b", "quiet c")]
    assert order == sorted(order)
    assert lines.index("done ours") < lines.index("quiet d")
    assert len(lines) == 7


def test_a_child_of_a_dead_parent_stays_deferred(
    queue: Queue, worker: Program, default_client: jobq.Client
) -> None:
    parent = queue.enqueue(app.fail, "p", retry=None)
    child = queue.enqueue(app.quiet, "c", depends_on=parent)
    assert default_client.wait(parent.id, timeout=20).state == "dead"
    probe = app.quiet.enqueue("later")
    probe.wait(timeout=20)
    assert default_client.get(child.id).state == "deferred"


def test_retry_sets_the_number_of_attempts(
    queue: Queue, worker: Program, default_client: jobq.Client, ledger: Callable[[], list[str]]
) -> None:
    twice = queue.enqueue(app.fail, "twice", retry=Retry(max=1))
    default = queue.enqueue(app.fail, "default")
    four = queue.enqueue(app.fail, "four", retry=Retry(max=3))
    for job, attempts in ((twice, 2), (default, 3), (four, 4)):
        ended = default_client.wait(job.id, timeout=20)
        assert (ended.state, ended.attempt) == ("dead", attempts)
    assert [ledger().count(f"fail {key}") for key in ("twice", "default", "four")] == [2, 3, 4]


def test_a_job_killed_at_its_timeout_keeps_to_what_rq_was_asked(
    queue: Queue, default_client: jobq.Client, redis_url: str
) -> None:
    """The supervisor settles it, knowing nothing but the hash."""
    once = queue.enqueue(app.fail, "once", failure_ttl=100)
    once.retries_left = 0
    once.save()
    twice = queue.enqueue(app.fail, "twice", retry=Retry(max=1), failure_ttl=100)
    fleet = Fleet(
        name="w",
        keys=default_client.keys,
        specs={},
        lease_ms=1000,
        members=list,
        tell=lambda _: None,
        workers=list,
        found_suspects=lambda _: None,
    )
    with redis.Redis.from_url(redis_url) as connection:
        keeper = Keeper(Store(connection), fleet)
        outcomes = [keeper._timed_out((job.id, "x.1"), "w", 604_800) for job in (once, twice)]
    assert [outcome.kind for outcome in outcomes] == ["dead", "retry"]
    assert outcomes[0].keep_s == 100


def test_times_to_live(
    queue: Queue, worker: Program, default_client: jobq.Client, redis_client: redis.Redis
) -> None:
    kept = queue.enqueue(app.add, 1, result_ttl=300, failure_ttl=400)
    failed = queue.enqueue(app.fail, "x", result_ttl=300, failure_ttl=400)
    default_client.wait(kept.id, timeout=20)
    default_client.wait(failed.id, timeout=20)
    assert 290 <= redis_client.ttl(f"rq:job:{kept.id}") <= 300
    assert 290 <= redis_client.ttl(f"rq:results:{kept.id}") <= 300
    assert 390 <= redis_client.ttl(f"rq:job:{failed.id}") <= 400
    score = redis_client.zscore("rq:failed:high", failed.id)
    assert score is not None
    assert 390 <= score - time.time() <= 401


def test_a_job_that_starts_too_late_is_not_run(
    queue: Queue, redis_client: redis.Redis, redis_url: str, tmp_path: Path, default_client: jobq.Client,
    ledger: Callable[[], list[str]],
) -> None:  # fmt: skip
    again = queue.enqueue(app.quiet, "again", ttl=1)
    hand = Hand(default_client)
    (claimed,) = hand.claim("high")
    assert hand.settle(claimed, "retry", queue="high", spends=True, delay_ms=1100) == "ok"
    late = queue.enqueue(app.quiet, "late", ttl=1)
    fine = queue.enqueue(app.quiet, "fine", ttl=100)
    # rq lets the whole hash expire with its ttl; a job that was saved again (retried, say) has lost that expiry.
    redis_client.persist(f"rq:job:{late.id}")
    for job in (again, late):
        before = datetime.fromisoformat(redis_client.hget(f"rq:job:{job.id}", "enqueued_at").decode())
        redis_client.hset(f"rq:job:{job.id}", "enqueued_at", utcformat(before - timedelta(seconds=2)))
    with jobq_worker(redis_url, tmp_path / "worker.log", app=APP, LEDGER=os.environ["LEDGER"]):
        assert default_client.wait(fine.id, timeout=20).state == "succeeded"
        ended = default_client.wait(late.id, timeout=20)
        assert (ended.state, ended.dead_reason) == ("dead", "expired")
        # A ttl bounds the first wait alone: not that for a retry, nor that of a replayed dead letter.
        assert default_client.wait(again.id, timeout=20).state == "succeeded"
        assert "quiet late" not in ledger()
        default_client.retry(late.id)
        assert default_client.wait(late.id, timeout=20).state == "succeeded"
    assert sorted(ledger()) == ["quiet again", "quiet fine", "quiet late"]
    assert redis_client.ttl(f"rq:job:{fine.id}") > 1000


def test_an_expired_hash_is_dropped(queue: Queue, worker: Program, redis_client: redis.Redis) -> None:
    gone = queue.enqueue(app.quiet, "gone")
    redis_client.delete(f"rq:job:{gone.id}")
    app.quiet.enqueue("next").wait(timeout=20)
    until(lambda: queue.count == 0)
    assert redis_client.exists(f"rq:job:{gone.id}") == 0


def test_delayed_by_rq(queue: Queue, worker: Program, default_client: jobq.Client) -> None:
    job = queue.enqueue_in(timedelta(seconds=1), app.add, 1)
    assert default_client.get(job.id).state == "scheduled"
    ended = default_client.wait(job.id, timeout=20)
    assert ended.state == "succeeded"


def test_what_jobq_does_not_run_is_parked(
    queue: Queue, worker: Program, default_client: jobq.Client, ledger: Callable[[], list[str]]
) -> None:
    jobs = {
        "on_success": queue.enqueue(app.quiet, "a", on_success=Callback(_callback)),
        "on_failure": queue.enqueue(app.quiet, "b", on_failure=Callback(_callback)),
        "repeats": queue.enqueue(app.quiet, "c", repeat=Repeat(times=2)),
    }
    stranger = queue.enqueue(unknown, "d")
    app.quiet.enqueue("after").wait(timeout=20)
    for word, job in jobs.items():  # they may be settled a batch later than the last one
        until(lambda job=job: default_client.get(job.id).state != "running")
        parked = default_client.get(job.id)
        assert parked.state == "parked"
        assert word in str(parked.parked_reason)
    until(lambda: default_client.get(stranger.id).state != "running")
    assert default_client.get(stranger.id).parked_reason == "unknown_task"
    assert ledger() == ["quiet after"]
    assert worker.process.poll() is None


def _callback(*args: object) -> None:
    raise AssertionError("never run")


# --------------------------------------------------------------------------- rq's tools meddle with our jobs


def _fetch(queue: Queue, job_id: str) -> RqJob:
    return RqJob.fetch(job_id, connection=queue.connection, serializer=Serializer)


def _idle(connection: redis.Redis) -> bool:
    """Nothing waits, is due later or runs: looked at in one step, since a job goes round between the three."""
    with connection.pipeline(transaction=True) as pipe:
        pipe.llen("rq:queue:high").zcard("rq:scheduled:high").zcard("jobq:leases")
        return not any(pipe.execute())


def _sane(client: jobq.Client, connection: redis.Redis, ids: list[str]) -> None:
    """The invariants that any mix of tools must leave standing, once nothing runs."""
    assert connection.zcard("jobq:leases") == 0
    assert connection.zcard("rq:wip:high") == 0
    assert connection.scard("jobq:cancels") == 0
    assert connection.zcard("jobq:quarantine") == 0
    listed = connection.lrange("rq:queue:high", 0, -1)
    for job_id in ids:
        try:
            state = client.get(job_id).state
        except JobqError:  # deleted
            continue
        assert state in ENDED or job_id.encode() in listed, (job_id, state)


def test_rq_cancels_deletes_and_empties_waiting_jobs(
    queue: Queue, default_client: jobq.Client, redis_url: str, redis_client: redis.Redis, tmp_path: Path,
    ledger: Callable[[], list[str]],
) -> None:  # fmt: skip
    cancelled, deleted = app.keyed.enqueue("c"), app.keyed.enqueue("d")
    later = app.keyed.options(delay=60).enqueue("l")
    _fetch(queue, cancelled.id).cancel()
    _fetch(queue, deleted.id).delete()
    _fetch(queue, later.id).cancel()
    assert cancelled.refresh().state == later.refresh().state == "cancelled"
    emptied = [app.keyed.enqueue(f"e{n}") for n in range(3)]
    queue.empty()
    # None of them holds its key any more.
    again = [app.keyed.enqueue(key) for key in ("c", "d", "l", "e0", "e1", "e2")]
    assert not any(job.deduplicated for job in again)
    with jobq_worker(redis_url, tmp_path / "w.log", app=APP, LEDGER=os.environ["LEDGER"]):
        for job in again:
            assert job.wait(timeout=20).state == "succeeded"
    assert sorted(ledger()) == sorted(f"keyed {key}" for key in ("c", "d", "l", "e0", "e1", "e2"))
    _sane(default_client, redis_client, [job.id for job in (*again, *emptied, cancelled, deleted, later)])


def test_rq_cancels_and_deletes_running_jobs(
    queue: Queue, worker: Program, default_client: jobq.Client, redis_client: redis.Redis,
    ledger: Callable[[], list[str]],
) -> None:  # fmt: skip
    cancelled, deleted = app.nap.enqueue("c", 0.5), app.nap.enqueue("d", 0.5)
    until(lambda: {"start c", "start d"} <= set(ledger()))
    _fetch(queue, cancelled.id).cancel()
    _fetch(queue, deleted.id).delete()
    until(lambda: {"done c", "done d"} <= set(ledger()))
    app.quiet.enqueue("next").wait(timeout=20)
    until(lambda: redis_client.zcard("jobq:leases") == 0)
    assert cancelled.refresh().state == "cancelled"
    assert redis_client.exists(f"rq:job:{deleted.id}") == 0
    assert default_client.stats().queues["high"].running == 0
    _sane(default_client, redis_client, [cancelled.id])


def test_rq_requeues_a_dead_letter(
    queue: Queue, worker: Program, default_client: jobq.Client, redis_client: redis.Redis,
    ledger: Callable[[], list[str]],
) -> None:  # fmt: skip
    job = app.fail.enqueue("x")
    assert job.wait(timeout=20).attempt == 3
    _fetch(queue, job.id).requeue()
    until(lambda: ledger().count("fail x") == 4)
    assert job.wait(timeout=20).state == "dead"
    assert job.refresh().attempt == 4
    assert redis_client.ttl(f"rq:job:{job.id}") > 0
    assert FailedJobRegistry("high", connection=redis_client).get_job_ids() == [job.id]
    _sane(default_client, redis_client, [job.id])


def _enqueue_any(rand: random.Random, number: int) -> jobq.Job:
    match rand.randrange(5):
        case 0:
            return app.quiet.enqueue(f"q{number}")
        case 1:
            return app.nap.enqueue(f"n{number}", 0.02)
        case 2:
            return app.fail.enqueue(f"f{number}")
        case 3:
            return app.keyed.enqueue(f"k{number % 7}")
        case _:
            return app.quiet.options(delay=0.05).enqueue(f"s{number}")


def test_rq_meddles_at_any_moment(
    queue: Queue, redis_url: str, default_client: jobq.Client, redis_client: redis.Redis, tmp_path: Path,
    ledger: Callable[[], list[str]],
) -> None:  # fmt: skip
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    rand = random.Random(seed)
    ids: list[str] = []
    done = threading.Event()
    problems: list[BaseException] = []

    def meddle() -> None:
        with redis.Redis.from_url(redis_url) as connection:
            other = Queue("high", connection=connection, serializer=Serializer)
            while not done.is_set():
                try:
                    if not ids or rand.random() < 0.02:
                        other.empty()
                        continue
                    job = _fetch(other, rand.choice(ids))
                    getattr(job, rand.choice(("cancel", "delete", "requeue")))()
                except (NoSuchJobError, InvalidJobOperation):
                    continue
                except BaseException as error:
                    problems.append(error)
                    raise

    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        env = {"LEDGER": os.environ["LEDGER"], "JOBQ_LEASE": "1s"}
        with jobq_worker(redis_url, tmp_path / "w.log", app=APP, **env) as worker:
            end = time.monotonic() + 4
            number = 0
            while time.monotonic() < end:
                number += 1
                job = _enqueue_any(rand, number)
                ids.append(job.id)
                time.sleep(0.005)
            done.set()
            meddler.join(10)
            assert not problems
            last = app.quiet.enqueue("last")
            assert last.wait(timeout=20).state == "succeeded"
            until(lambda: _idle(redis_client), timeout=20)
            assert worker.process.poll() is None
            log = worker.output()
    finally:
        done.set()
        meddler.join(10)
    assert "Traceback" not in log, log
    _sane(default_client, redis_client, list(dict.fromkeys(ids)))
    # A key whose holder is gone refuses nobody.
    for number in range(7):
        assert not app.keyed.enqueue(f"k{number}").deduplicated


def test_a_claim_that_races_a_cancel_of_rq(queue: Queue, default_client: jobq.Client) -> None:
    """rq decides before its MULTI; between the two, the job is claimed."""
    job = app.quiet.enqueue("x")
    theirs = _fetch(queue, job.id)
    pipe = queue.connection.pipeline()
    theirs.cancel(pipeline=pipe)
    hand = Hand(default_client)
    (claimed,) = hand.claim("high")
    pipe.execute()
    assert job.refresh().state == "cancelled"
    assert hand.settle(claimed, queue="high") == "cancelled"
    assert job.refresh().state == "cancelled"
    assert queue.connection.zcard("jobq:leases") == 0
    assert queue.connection.zcard("rq:wip:high") == 0
    assert Store(queue.connection).run(calls.heartbeat(default_client.keys, [], 1000)).lost == []
