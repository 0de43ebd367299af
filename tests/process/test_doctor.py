"""The audit beside real workers, and ``jobq doctor`` and ``jobq memory`` as a shell runs them."""

from __future__ import annotations

import random
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import redis

import jobq
from jobq import schedule_calls
from jobq.audit import audit, repair
from jobq.cli.common import Exit
from jobq.job import JobState
from jobq.registration import register_worker
from tests.process import ledger_app as app
from tests.process.conftest import WorkerFactory
from tests.support.cli import Cli
from tests.support.hand import Hand
from tests.support.processes import until
from tests.support.workers import Ledger

pytestmark = pytest.mark.process

NO_GRACE = timedelta(0)


def drained(raw: redis.Redis) -> bool:
    pipe = raw.pipeline()  # one step: a job on its way from one to the other must not be missed
    pipe.zcard("jobq:leases")
    for queue in ("high", "batch"):
        pipe.llen(f"rq:queue:{queue}")
        pipe.zcard(f"rq:scheduled:{queue}")
    return not sum(pipe.execute())


def test_a_busy_server_has_no_findings(
    worker: WorkerFactory, client: jobq.Client, redis_client: redis.Redis
) -> None:
    for _ in range(2):
        worker("--concurrency", "4", queues=("high", "batch"), JOBQ_LEASE="1s")
    ended = threading.Event()

    def produce() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            key = f"k{number}"
            app.note.options(client=client).enqueue(key=key)
            app.flaky.options(client=client).enqueue(key=key)
            app.fail.options(client=client).enqueue(key=key)
            if number % 20 == 0:
                app.isolated.options(client=client).enqueue(key=key)
                app.note.options(client=client, delay=30).enqueue(key=key).cancel()

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        until(lambda: redis_client.zcard("rq:finished:high") > 20)
        found = [audit(client, grace=NO_GRACE) for _ in range(15)]
    finally:
        ended.set()
        producer.join()
    assert [[str(each) for each in findings] for findings in found if findings] == []
    until(lambda: drained(redis_client), 60)
    assert audit(client, grace=NO_GRACE) == []


def test_repairs_beside_a_worker_lose_nothing_and_repeat_nothing_that_settled(
    worker: WorkerFactory, client: jobq.Client, redis_client: redis.Redis, ledger: Ledger
) -> None:
    rand = random.Random(7)
    running = worker("--concurrency", "4", JOBQ_LEASE="1s")
    jobs = app.nap.options(client=client).enqueue_many(
        [{"key": f"k{i}", "seconds": 0.05} for i in range(200)]
    )
    without_lease: set[str] = set()
    fixed = 0
    for already in range(0, 150, 10):
        until(lambda: redis_client.zcard("rq:finished:high") >= already)  # noqa: B023 - called at once
        redis_client.rpop("rq:queue:high", 3)
        leases = [member.decode() for member in redis_client.zrange("jobq:leases", 0, -1)]
        if leases:
            member = rand.choice(leases)
            redis_client.zrem("jobq:leases", member)
            without_lease.add(member.partition(":")[0])
        fixed += len(repair(client, audit(client, grace=NO_GRACE)))
    assert fixed > 20
    assert repair(client, audit(client, grace=NO_GRACE)) == []
    until(lambda: drained(redis_client), 30)
    for number, job in enumerate(jobs):
        assert client.get(job.id).state is JobState.SUCCEEDED
        ran = ledger.count("ran", f"k{number}")
        assert ran >= 1 if job.id in without_lease else ran == 1
    assert audit(client, grace=NO_GRACE) == []
    assert "Traceback" not in running.output()


# --------------------------------------------------------------------------- the command line


@pytest.fixture
def lost_job(cli: Cli, client: jobq.Client, redis_client: redis.Redis) -> str:
    """A job that a stock worker popped and lost, as everything else on a server where all is well."""
    job = app.note.options(client=client, delay=3600).enqueue(key="a")
    redis_client.zrem("rq:scheduled:high", job.id)
    assert cli("doctor", "--no-data", "--json").returncode == Exit.DONE
    return job.id


def test_doctor_finds_and_repairs(cli: Cli, lost_job: str, redis_client: redis.Redis) -> None:
    found = cli.json("doctor", code=Exit.BAD)
    (data,) = found["data"]
    assert data["kind"] == "not_in_registry"
    assert data["severe"] is True
    assert data["fixed"] is False
    assert data["count"] == 1
    assert [each["subject"] for each in data["sample"]] == [lost_job]
    assert found["ok"] is False

    asked = cli("doctor", "--fix", code=Exit.USAGE)
    assert "add --yes, or --dry-run" in asked.stderr
    said = cli("doctor", "--fix", "--dry-run", code=Exit.BAD).stderr
    assert "would repair 1 finding" in said
    assert redis_client.zscore("rq:scheduled:high", lost_job) is None

    found = cli.json("doctor", "--fix", "--yes")
    assert [(data["kind"], data["fixed"]) for data in found["data"]] == [("not_in_registry", True)]
    assert {check["check"]: check["status"] for check in found["checks"]}["data: not_in_registry"] == "fixed"
    assert redis_client.zscore("rq:scheduled:high", lost_job) is not None
    again = cli("doctor", "--fix", "--yes")
    assert "nothing to repair" in again.stderr
    assert "every job is where it belongs" in again.stdout


def test_doctor_asks_on_a_terminal(cli: Cli, lost_job: str, redis_client: redis.Redis) -> None:
    code, shown = cli.on_terminal("doctor", "--fix", answer="n")
    assert code == Exit.DECLINED, shown
    assert redis_client.zscore("rq:scheduled:high", lost_job) is None
    code, shown = cli.on_terminal("doctor", "--fix", answer="y")
    assert code == Exit.DONE, shown
    assert redis_client.zscore("rq:scheduled:high", lost_job) is not None


def test_doctor_deletes_the_unreadable_on_request(cli: Cli, redis_client: redis.Redis) -> None:
    redis_client.set("rq:job:broken", "x")
    assert "cannot be read (broken (not a hash))" in cli("doctor", "--fix", "--yes", code=Exit.BAD).stdout
    assert redis_client.exists("rq:job:broken")
    cli("doctor", "--fix", "--delete-unreadable", "--yes")
    assert not redis_client.exists("rq:job:broken")
    cli("doctor", "--delete-unreadable", code=Exit.USAGE)
    cli("doctor", "--no-data", "--fix", code=Exit.USAGE)


def test_doctor_names_what_parked_jobs_wait_for(cli: Cli, client: jobq.Client) -> None:
    app.note.options(client=client).enqueue(key="a")
    hand = Hand(client)
    (job,) = hand.claim("high")
    assert hand.settle(job, "park", queue="high", bucket="t.note", reason="unknown_task") == "ok"
    checks = {check["check"]: check for check in cli.json("doctor")["checks"]}
    assert checks["queue high"]["detail"] == "1 job parked for t.note"


def test_doctor_names_a_limit_that_was_set_by_hand(
    cli: Cli, client: jobq.Client, worker: WorkerFactory
) -> None:
    worker()
    cli("queues", "limit", "high", "--rate", "1/h")
    for key in "ab":
        app.note.options(client=client).enqueue(key=key)
    until(lambda: client.stats().queues["high"].succeeded == 1)
    until(lambda: client.stats().queues["high"].workers == 1)  # the list of workers follows a moment later
    row = next(
        line for line in cli("doctor", "--no-data").stdout.splitlines() if line.startswith("queue high")
    )
    assert row == (
        "queue high\twarn\tlimited by hand to 1/h, with 1 job waiting\tjobq queues limit high --reset"
    )


def test_what_is_parked_hides_nothing_that_is_worse(
    cli: Cli, client: jobq.Client, redis_client: redis.Redis
) -> None:
    register = {"queues": ["high"], "slots": 1, "tasks": [], "host": "h", "pid": 1, "state": "idle"}
    now_ms = redis_client.time()[0] * 1000
    client.run(register_worker(client.keys, name="w", busy=0, birth_ms=0, now_ms=now_ms - 50_000, **register))
    app.note.options(client=client).enqueue(key="a")
    Hand(client).settle(
        Hand(client).claim("high", 1)[0], "park", queue="high", reason="unknown_task", bucket="t.x"
    )
    job = app.note.options(client=client).enqueue(key="b")
    redis_client.hset(f"rq:job:{job.id}", "q", now_ms - 60_000)
    shown = cli("doctor", "--no-data").stdout
    assert "the next job has waited 1 min" in shown
    assert "1 job parked for t.x" in shown
    assert "worker w\twarn\thas not been heard of for" in shown


def test_a_worker_whose_clock_is_wrong_is_named(
    cli: Cli, client: jobq.Client, redis_client: redis.Redis
) -> None:
    register = {"queues": ["high"], "slots": 1, "tasks": [], "host": "h", "pid": 1, "state": "idle"}
    now_ms = redis_client.time()[0] * 1000
    for name, off_s in (("fast", 300), ("slow", -300), ("right", 0)):
        client.run(
            register_worker(
                client.keys, name=name, busy=0, birth_ms=0, now_ms=now_ms + off_s * 1000, **register
            )
        )
    shown = [line for line in cli("doctor", "--no-data").stdout.splitlines() if line.startswith("worker ")]
    slow, fast = (line.split("\t") for line in shown)
    assert slow[0] == "worker slow"
    assert "its host's clock is wrong" in slow[3]
    assert fast[0] == "worker fast"
    assert fast[2].startswith("its clock is ")
    assert fast[2].endswith(" ahead of Redis'")


def test_doctor_says_who_could_help(cli: Cli, client: jobq.Client, worker: WorkerFactory) -> None:
    worker(queues=("batch",))
    until(client.workers.list)
    app.note.options(client=client).enqueue(key="a")
    checks = {check["check"]: check for check in cli.json("doctor", code=Exit.BAD)["checks"]}
    assert checks["queue high"]["status"] == "bad"
    assert checks["queue low"]["detail"] == "configured, and no live worker serves it"
    assert checks["idle workers"]["remedy"] == "let them serve high, too"
    assert "takes up to 32" in checks["connections"]["detail"]
    assert checks["replicas"]["status"] == "ok"


def test_doctor_tells_of_schedules_that_nobody_fires(
    cli: Cli, client: jobq.Client, redis_client: redis.Redis
) -> None:
    def seen(code: int) -> list[tuple[str, str]]:
        checks = cli.json("doctor", "--no-data", code=code)["checks"]
        return [(each["status"], each["detail"]) for each in checks if each["check"] == "schedules"]

    assert seen(Exit.DONE) == []
    for name in "abcde":
        client.schedules.add(name, app.note, {"key": name}, every=3600, jitter=60)
    client.schedules.pause("e")
    assert seen(Exit.DONE) == [("ok", "5, 1 of them paused")]
    now_ms = redis_client.time()[0] * 1000
    for name, ago_s in (("a", 100), ("b", 200), ("c", 300), ("d", 400), ("e", 500)):
        redis_client.hset(f"jobq:schedule:{name}", "next", now_ms - ago_s * 1000)
    ((status, late),) = seen(Exit.BAD)
    assert status == "bad"
    assert late.startswith("b, c, d not fired, overdue by up to 5 min")  # a is within its jitter
    client.run(schedule_calls.set_aside(client.keys, "b", "no live worker knows the task 't.note'"))
    broken, late = (detail for _, detail in seen(Exit.BAD))
    assert broken == "b cannot be fired: no live worker knows the task 't.note'"
    assert late.startswith("c, d not fired")


def test_memory(cli: Cli, client: jobq.Client) -> None:
    app.note.options(client=client).enqueue_many([{"key": str(number)} for number in range(50)])
    found = cli.json("memory")
    queued = [each for each in found["holdings"] if (each["kind"], each["state"]) == ("jobs", "queued")]
    assert [(each["queue"], each["keys"]) for each in queued] == [("high", 50)]
    assert 200 < found["queued_job_bytes"] < 2_000
    assert found["estimate"]["complete"] is True
    assert found["shed"] == []
    said = cli("memory").stderr
    assert "an estimate: " in said
    assert "it needs a maxmemory" in said


# --------------------------------------------------------------------------- the memory brake


def fill(raw: redis.Redis, percent: float) -> None:
    """Ballast, until so much of the memory is in use."""
    info = raw.info("memory")
    missing = int(info["maxmemory"] * percent / 100) - info["used_memory"]
    for number in range(1_000):
        if missing < 100_000:
            return
        raw.set(f"ballast:{percent}:{number}", b"x" * 81_000)
        info = raw.info("memory")
        missing = int(info["maxmemory"] * percent / 100) - info["used_memory"]
    raise AssertionError("memory does not fill")


def test_full_memory_refuses_the_least_urgent_first(
    worker: WorkerFactory, server_factory, tmp_path: Path
) -> None:
    with (
        server_factory(maxmemory="60mb") as server,
        redis.Redis.from_url(server.url) as raw,
        jobq.Client(jobq.Settings(redis_url=server.url)) as client,
    ):
        running = worker(url=server.url)

        def taken(queue: str) -> bool:
            try:
                app.note.options(client=client, queue=queue, delay=3600).enqueue(key="x")
            except jobq.QueueFullError:
                return False
            return True

        assert all(taken(queue) for queue in client.specs)
        fill(raw, 83)
        running.wait_event("queue.shed", queue="batch")
        assert [queue for queue in client.specs if taken(queue)] == ["critical", "high", "medium"]
        assert client.stats().queues["low"].shed
        assert client.queues.get("batch").shed
        assert not client.health().ok
        fill(raw, 92)
        running.wait_event("queue.shed", queue="high")
        assert [queue for queue in client.specs if taken(queue)] == ["critical"]
        fill(raw, 97)
        running.wait_event("queue.shed", queue="critical")
        assert not any(taken(queue) for queue in client.specs)
        assert client.memory().brake.shed == tuple(client.specs)

        raw.delete(*raw.keys("ballast*"))
        running.wait_event("queue.admitted", queue="low")
        assert all(taken(queue) for queue in client.specs)

        fill(raw, 83)
        until(lambda: not taken("low"))
        running.kill()
        raw.hdel("jobq:q:low", "shed")
        until(lambda: not taken("low"), 20)  # whoever enqueues looks, when no worker does
        raw.delete(*raw.keys("ballast*"))
        until(lambda: taken("low"), 20)
