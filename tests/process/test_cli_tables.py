"""Tables in a narrow terminal, and words that a job has written: nothing is cut off that somebody has to copy."""

from __future__ import annotations

import json
import re

import pytest
import redis

import jobq
from jobq.job import Attempt
from jobq.records import encode_attempt
from tests.process import cli_tasks
from tests.support.cli import Cli
from tests.support.hand import Hand

pytestmark = pytest.mark.process

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
WIDTH = 80


def on_narrow(cli: Cli, *args: str, width: int = WIDTH) -> str:
    _, shown = cli.on_terminal(*args, COLUMNS=str(width))
    return ANSI.sub("", shown).replace("\r\n", "\n")


def dead_job(client: jobq.Client, error: str) -> str:
    job = cli_tasks.fail.options(client=client).enqueue(order_id="1")
    hand = Hand(client)
    (claimed,) = hand.claim("high", n=1)
    attempt = Attempt(
        number=1, outcome="failed", error_type="RuntimeError", error=error, fingerprint="f" * 12
    )
    hand.settle(claimed, "dead", reason="exhausted", record=encode_attempt(attempt))
    return job.id


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("command", [("stats",), ("queues", "list"), ("jobs", "list"), ("schedules", "list")])
def test_no_cell_is_cut(cli: Cli, client: jobq.Client, command: tuple[str, ...], width: int) -> None:
    job = cli_tasks.confirm.options(client=client).enqueue(order_id="1")
    client.queues.pause("high", reason="the provider is down until tomorrow, says Ada")
    shown = on_narrow(cli, *command, width=width)
    rows = [line for line in shown.splitlines() if not line.startswith("left out")]
    assert max(map(len, rows)) <= width
    if command[0] in ("stats", "queues"):
        for lane in ("critical", "high", "medium", "low", "batch"):
            assert lane in shown
        assert "paused" in shown
    if command[0] == "jobs":
        assert job.id in shown
        assert "shop.confirm" in shown
    assert "…" not in shown


def test_stats_fit_a_terminal_of_80_columns_as_a_table(cli: Cli, client: jobq.Client) -> None:
    cli_tasks.confirm.options(client=client).enqueue(order_id="1")
    shown = on_narrow(cli, "stats")
    head = next(line for line in shown.splitlines() if line.strip().startswith("queue"))
    for title in ("queued", "running", "dead", "busy", "oldest", "wait p99", "in time"):
        assert title in head
    assert "left out for want of width: " in shown
    assert "succeeded" in on_narrow(cli, "stats", "-o", "wide")


def test_remedies_can_be_copied(cli: Cli, client: jobq.Client) -> None:
    job_id = dead_job(client, "boom")
    assert job_id in on_narrow(cli, "dead", "list")
    why = on_narrow(cli, "why", job_id)
    assert job_id in why.partition("is dead")[2]
    doctor = on_narrow(cli, "doctor", "--no-data")
    assert (
        "set hash-max-listpack-value 512" in " ".join(doctor.split()) or "hash-max-listpack-value" in doctor
    )
    assert "…" not in doctor


EVIL = "boom \x1b[2J\x1b]0;owned\x07 \u202eevil\u2066 \u2028 \x9b31m \ufeff"


@pytest.mark.parametrize("command", ["list", "groups", "show"])
def test_no_error_of_a_job_commands_the_terminal(cli: Cli, client: jobq.Client, command: str) -> None:
    job_id = dead_job(client, EVIL)
    args = ("dead", command, *([job_id] if command == "show" else []))
    for shown in (on_narrow(cli, *args), cli(*args).stdout):
        assert "boom" in shown
        for char in "\x1b\x07\x9b\u202e\u2066\u2028\ufeff":
            assert char not in shown, repr(char)
    assert json.loads(cli(*args, "--json").stdout), "JSON escapes what it must, and keeps the text"


def test_half_a_character_breaks_no_output(cli: Cli, client: jobq.Client, redis_client: redis.Redis) -> None:
    client.queues.pause("high", reason="half")
    redis_client.hset("jobq:q:high", "reason", b"half \xe9\xed\xb3\xa9")
    assert "half" in on_narrow(cli, "queues", "list")
    assert "half" in cli("queues", "list").stdout
