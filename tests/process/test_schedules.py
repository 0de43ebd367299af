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
from tests.process.test_cli import HERE, Cli, one_line
from tests.support.processes import search_path, until
from tests.support.workers import Ledger, Worker

pytestmark = pytest.mark.process

APP = "tests.process.schedule_app"


@pytest.fixture
def shell(redis_url: str, tmp_path: Path) -> Cli:
    """The console script, with the tasks of ``cli_tasks``."""
    known = {"JOBQ_REDIS_URL": redis_url, "JOBQ_APP": "cli_tasks", "PYTHONPATH": search_path(HERE)}
    return Cli(dict(os.environ) | known, tmp_path)


def ticks(client: jobq.Client) -> int:
    return client.schedules.get("clock.tick").fired


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
def test_a_schedule_on_the_command_line(shell: Cli, client: jobq.Client) -> None:
    add = ("schedules", "add", "nightly", "shop.confirm", '{"order_id": "1"}', "--cron", "0 0 * * *")
    shell(*add, "--dry-run")
    assert client.schedules.list() == []
    made = shell.json(*add, "--tz", "Europe/Berlin", "--tag", "a", "--overlap", "skip", "--jitter", "10s",
                    "--misfire", "all", "--misfire-max", "7", "--misfire-within", "2h", "--timeout", "5m")  # fmt: skip
    assert (made["state"], made["queue"], made["tz"], made["misfire_max"]) == (
        "active",
        "high",
        "Europe/Berlin",
        7,
    )
    assert (made["misfire_within_s"], made["jitter_s"], made["tags"]) == (7200.0, 10.0, ["a"])
    assert one_line(shell(*add, code=Exit.CONFLICT).stderr)
    shell(*add, "--replace", "-p", "batch")
    assert client.schedules.get("nightly").queue == "batch"

    listed = shell("schedules", "list").stdout.splitlines()
    assert listed[0].split("\t")[:4] == ["name", "state", "task", "queue"]
    assert listed[1].split("\t")[:4] == ["nightly", "active", "shop.confirm", "batch"]
    assert [row["name"] for row in shell.json("schedules", "list", "--tag", "b")["schedules"]] == []

    upcoming = shell.json("schedules", "next", "nightly", "-n", "3")["next"]
    assert len(upcoming) == 3
    assert datetime.fromisoformat(upcoming[0]) > datetime.now(UTC)
    assert shell.json("schedules", "pause", "nightly")["paused_by"]
    assert shell.json("schedules", "resume", "nightly")["state"] == "active"
    shell("schedules", "run", "nightly", "--dry-run")
    assert client.jobs(state="queued").items == []
    assert shell.json("schedules", "run", "nightly")["queue"] == "batch"
    shell("schedules", "run", "nightly", code=Exit.CONFLICT)  # its dedup key is held

    shell("schedules", "remove", "nightly", code=Exit.USAGE)  # nobody there to confirm
    shell("schedules", "remove", "nightly", "--dry-run")
    assert shell.json("schedules", "remove", "nightly", "--yes")["removed"] == ["nightly"]


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
    shell: Cli,
    client: jobq.Client,
    args: tuple[str, ...],
    code: int,
) -> None:
    one_line(shell("schedules", *args, code=code).stderr)
    assert client.schedules.list() == []


def test_a_near_name_is_suggested(shell: Cli, client: jobq.Client) -> None:
    shell("schedules", "add", "nightly", "shop.confirm", '{"order_id": "1"}', "--cron", "@daily")
    assert "did you mean 'nightly'" in shell("schedules", "show", "nightli", code=Exit.NOT_FOUND).stderr
    done = shell("schedules", "remove", "nightly", "nope", "--yes", "--json", code=Exit.PARTIAL)
    assert json.loads(done.stdout)["removed"] == ["nightly"]


def test_rq_schedulers_entries_are_imported(
    shell: Cli,
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
    looked = json.loads(shell(*run, "--dry-run", "--json", code=Exit.PARTIAL).stdout)
    assert [entry["error"] is None for entry in looked["entries"]].count(True) == 1
    assert client.schedules.list() == []
    shell(*run, code=Exit.USAGE)  # nobody there to confirm
    shell(*run, "--yes", code=Exit.PARTIAL)
    assert client.schedules.get("nightly").times == "At 02:00 every day, Europe/Berlin"
    assert redis_client.zcard("rq:scheduler:scheduled_jobs") == 1
