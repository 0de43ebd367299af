"""Real workers and recurring schedules: declared in code, fired once a slot, through kills; and the command line."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import redis

import jobq
from jobq.cli.common import Exit
from tests.process.conftest import WorkerFactory
from tests.support.cli import Cli, one_line
from tests.support.processes import until
from tests.support.workers import Ledger, Worker

pytestmark = pytest.mark.process

APP = "tests.process.schedule_app"


def ticks(client: jobq.Client) -> int:
    """How often it was fired; a worker that serves writes it a moment later."""
    return sum(info.fired for info in client.schedules.list() if info.name == "clock.tick")


@pytest.mark.covers("C-02", "O-03", "J-29")
def test_workers_fire_each_slot_once_though_one_is_killed(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    workers: list[Worker] = [worker(app=APP) for _ in range(2)]
    until(lambda: ticks(client) >= 2)
    os.kill(workers[0].pid, signal.SIGKILL)
    seen = ticks(client)
    until(lambda: ticks(client) >= seen + 3)
    client.schedules.pause("clock.tick")
    info = client.schedules.get("clock.tick")
    ran = [entry.key for entry in ledger.wait("tick", count=info.fired)]
    # One job a slot, and a slot each second from the first to the last.
    assert len(set(ran)) == info.fired
    assert info.missed == 0
    slots = sorted(
        datetime.fromisoformat(event["slot"]) for each in workers for event in each.events("schedule.fired")
    )
    assert all(later - earlier >= timedelta(seconds=1) for earlier, later in pairwise(slots))
    assert info.last_at is not None
    first = min(slots)
    assert info.fired == (info.last_at - first) // timedelta(seconds=1) + 1


@pytest.mark.covers("C-02")
def test_a_worker_writes_what_its_code_declares_and_takes_it_back(
    worker: WorkerFactory, client: jobq.Client, redis_client: redis.Redis
) -> None:
    made = worker(app=APP)
    until(lambda: len(client.schedules.list()) == 2)
    found = {info.name: info for info in client.schedules.list()}
    assert found["clock.nightly"].declared_by == APP
    assert found["clock.nightly"].times == "At 00:00 every day, Europe/Berlin"
    with pytest.raises(jobq.ConflictError):
        client.schedules.remove("clock.nightly")
    made.stop()
    redis_client.delete(f"jobq:declared:{APP}")  # as its expiry does, a minute later
    client.schedules.remove("clock.nightly")


# --- the command line ---------------------------------------------------------------


@pytest.mark.covers("O-03")
def test_a_schedule_on_the_command_line(cli: Cli, client: jobq.Client) -> None:
    add = ("schedules", "add", "nightly", "shop.confirm", '{"order_id": "1"}', "--cron", "0 0 * * *")
    cli(*add, "--dry-run")
    assert client.schedules.list() == []
    made = cli.json(*add, "--tz", "Europe/Berlin", "--tag", "a", "--overlap", "skip", "--jitter", "10s",
                    "--misfire", "all", "--misfire-max", "7", "--misfire-within", "2h", "--timeout", "5m")  # fmt: skip
    assert (made["state"], made["queue"], made["tz"], made["misfire_max"]) == (
        "active",
        "high",
        "Europe/Berlin",
        7,
    )
    assert (made["misfire_within_s"], made["jitter_s"], made["tags"]) == (7200.0, 10.0, ["a"])
    assert one_line(cli(*add, code=Exit.CONFLICT).stderr)
    cli(*add, "--replace", "-p", "batch")
    assert client.schedules.get("nightly").queue == "batch"

    listed = cli("schedules", "list").stdout.splitlines()
    assert listed[0].split("\t")[:4] == ["name", "state", "task", "queue"]
    assert listed[1].split("\t")[:4] == ["nightly", "active", "shop.confirm", "batch"]
    assert [row["name"] for row in cli.json("schedules", "list", "--tag", "b")["schedules"]] == []

    upcoming = cli.json("schedules", "next", "nightly", "-n", "3")["next"]
    assert len(upcoming) == 3
    assert datetime.fromisoformat(upcoming[0]) > datetime.now(UTC)
    assert cli.json("schedules", "pause", "nightly")["paused_by"]
    assert cli.json("schedules", "resume", "nightly")["state"] == "active"
    cli("schedules", "run", "nightly", "--dry-run")
    assert client.jobs(state="queued").items == []
    assert cli.json("schedules", "run", "nightly")["queue"] == "batch"
    cli("schedules", "run", "nightly", code=Exit.CONFLICT)  # its dedup key is held

    cli("schedules", "remove", "nightly", code=Exit.USAGE)  # nobody there to confirm
    cli("schedules", "remove", "nightly", "--dry-run")
    assert cli.json("schedules", "remove", "nightly", "--yes")["removed"] == ["nightly"]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("show", "nope"), Exit.NOT_FOUND),
        (("run", "nope"), Exit.NOT_FOUND),
        (("add", "s", "shop.nope", "--cron", "@daily"), Exit.NOT_FOUND),
        (("add", "s", "shop.confirm", '{"order_id": "1"}'), Exit.USAGE),
        (("add", "s", "shop.confirm", '{"order_id": "1"}', "--cron", "x"), Exit.USAGE),
        (("add", "s", "shop.confirm", "{}", "--every", "5m"), Exit.USAGE),
    ],
)
def test_what_is_wrong_ends_with_its_code_and_one_line(
    cli: Cli,
    client: jobq.Client,
    args: tuple[str, ...],
    code: int,
) -> None:
    one_line(cli("schedules", *args, code=code).stderr)
    assert client.schedules.list() == []


def test_a_near_name_is_suggested(cli: Cli, client: jobq.Client) -> None:
    cli("schedules", "add", "nightly", "shop.confirm", '{"order_id": "1"}', "--cron", "@daily")
    assert "did you mean 'nightly'" in cli("schedules", "show", "nightli", code=Exit.NOT_FOUND).stderr
    done = cli("schedules", "remove", "nightly", "nope", "--yes", "--json", code=Exit.PARTIAL)
    assert json.loads(done.stdout)["removed"] == ["nightly"]


def test_rq_schedulers_entries_are_imported(
    cli: Cli,
    client: jobq.Client,
    redis_client: redis.Redis,
    tmp_path: Path,
) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rq_scheduler import Scheduler as Real
    theirs = Real(queue_name="high", connection=redis_client)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.cron("0 2 * * *", "cli_tasks.confirm", ["o1"], id="nightly")
        theirs.enqueue_in(timedelta(hours=1), "os.system", "true")
    run = ("schedules", "import-rq-scheduler", "--tz", "Europe/Berlin")
    looked = json.loads(cli(*run, "--dry-run", "--json", code=Exit.PARTIAL).stdout)
    assert [entry["error"] is None for entry in looked["entries"]].count(True) == 1
    assert client.schedules.list() == []
    cli(*run, code=Exit.USAGE)  # nobody there to confirm
    cli(*run, "--yes", code=Exit.PARTIAL)
    assert client.schedules.get("nightly").times == "At 02:00 every day, Europe/Berlin"
    assert redis_client.zcard("rq:scheduler:scheduled_jobs") == 1
