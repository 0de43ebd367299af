"""Queues that the application declares, from code to the worker and the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import redis

import jobq
from jobq.cli.common import Exit
from jobq.private_server import PrivateServer
from tests.process.test_cli import Cli
from tests.support.processes import search_path, until

pytestmark = pytest.mark.process

APP = """
import jobq

print("imported")  # no result of a command's
jobq.configure(queues=[jobq.QueueSpec("email-out", slots=3, rate=jobq.Rate(50, per=60))])
jobq.queue(jobq.QueueSpec("apart", slots=2, redis_url="{other}"))

@jobq.task("mail.send", queue="email-out")
def send(to: str) -> str:
    return f"sent to {{to}}"

@jobq.task("apart.run", queue="apart")
def run(number: int) -> int:
    return 2 * number
"""


@pytest.fixture
def cli(redis_url: str, tmp_path: Path) -> Cli:
    (tmp_path / "declaring_app.py").write_text(APP.format(other=redis_url))
    env = {n: value for n, value in os.environ.items() if n not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    known = {"JOBQ_REDIS_URL": redis_url, "JOBQ_APP": "declaring_app", "PYTHONPATH": search_path(tmp_path)}
    return Cli(env | known, tmp_path)


@pytest.mark.covers("Q-17", "Q-20")
def test_a_declared_queue_is_served_and_shown(cli: Cli, client: jobq.Client) -> None:
    job = cli.json("enqueue", "mail.send", '{"to": "ada"}')
    assert job["queue"] == "email-out"
    cli("worker", "--queue", "email-out", "--burst", "-q")
    assert client.get(job["id"]).result(5) == "sent to ada"
    shown = cli.json("queues", "show", "email-out")
    assert (shown["configured"], shown["slots"], shown["rate"]) == (True, 3, "50/m")
    assert cli.json("config", "show", "--origin")["queues.email-out.slots"] == {
        "value": "3",
        "origin": "code",
    }


def test_all_queues_are_served_unless_some_are_named_and_the_environment_comes_first(
    cli: Cli, client: jobq.Client
) -> None:
    job = cli.json("enqueue", "mail.send", '{"to": "ada"}')
    done = cli(
        "worker",
        "--burst",
        JOBQ_LOG_FORMAT="json",
        JOBQ_QUEUES__EMAIL_OUT__SLOTS="9",
        JOBQ_QUEUES__APART__SLOTS="4",
    )
    assert client.get(job["id"]).result(5) == "sent to ada"
    (started,) = [line for line in done.stderr.splitlines() if '"worker.started"' in line]
    assert (
        '"queues": ["critical", "high", "medium", "low", "batch", "email-out", "apart"], "slots": 51'
        in started
    )


def test_a_declared_queue_may_have_a_redis_of_its_own(
    cli: Cli, tmp_path: Path, redis_client: redis.Redis
) -> None:
    with PrivateServer() as other:
        (tmp_path / "declaring_app.py").write_text(APP.format(other=other.url))
        job = cli.json("enqueue", "apart.run", '{"number": 21}')
        assert not redis_client.exists(f"rq:job:{job['id']}")
        cli("worker", "--queue", "apart", "--burst", "-q")
        with redis.Redis.from_url(other.url) as there:
            assert there.hget(f"rq:job:{job['id']}", "status") == b"finished"


def test_a_queue_that_nobody_knows_is_refused_with_a_remedy(cli: Cli) -> None:
    near = cli("worker", "--queue", "email_out", code=Exit.CONFIG)
    assert "queue 'email_out' is not configured; did you mean 'email-out'?" in near.stderr
    none = cli("worker", "--queue", "nowhere", code=Exit.CONFIG)
    assert (
        "declare it with jobq.queue in a module of JOBQ_APP, or set JOBQ_QUEUES__NOWHERE__SLOTS"
        in none.stderr
    )


def test_commands_go_on_without_an_application_that_cannot_be_imported(cli: Cli) -> None:
    Path(cli.cwd, "declaring_app.py").write_text("1 / 0")
    assert cli("health", "live").stderr == ""  # a probe does not import it
    done = cli("queues", "pause", "high", "--json")
    assert "queues that the application declares are not known here: JOBQ_APP: cannot import" in done.stderr


BAD = """
import jobq

@jobq.schedule(name="big", cron="@hourly", params={"text": "x" * 300_000})
@jobq.task("t.big", queue="emial")
def big(text: str) -> None: ...

@jobq.schedule(cron="@hourly")
@jobq.task("t.good")
def good() -> None: ...
"""


def test_a_worker_starts_and_the_doctor_tells_of_what_cannot_be_fired_or_served(
    cli: Cli, client: jobq.Client
) -> None:
    Path(cli.cwd, "declaring_app.py").write_text(BAD)
    checks = cli.json("doctor", "--no-data", code=Exit.BAD)["checks"]
    found = [(each["status"], each["detail"]) for each in checks if each["check"] in ("queues", "schedules")]
    queues, cannot, unwritten = found
    assert queues[0] == "warn"
    assert "task t.big goes to queue 'emial'" in queues[1]
    assert cannot[0] == "bad"
    assert cannot[1].startswith("big: no job can be made of it: ")
    assert unwritten == ("warn", "big, t.good declared here, and written by no worker")
    process = cli.start("worker", "--queue", "medium", "-q")
    try:
        until(lambda: len(client.schedules.list()) == 2)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert {info.name: info.state for info in client.schedules.list()} == {
        "big": "broken",
        "t.good": "active",
    }
