"""A hand on jobs, queues and workers from the command line: tables, JSON, questions, dry runs, exit codes."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from jobq import calls
from jobq.cli.common import Exit
from jobq.client import Client
from jobq.private_server import free_port
from jobq.registration import register_worker
from jobq.tasks import Registry, task
from tests.support.cli import Cli, one_line
from tests.support.hand import Hand
from tests.support.processes import until

pytestmark = pytest.mark.process

registry = Registry()


@task("shop.confirm", priority="high", dedup="{order_id}", registry=registry)
def confirm(order_id: str) -> str:
    return order_id


@pytest.fixture
def hand(client: Client) -> Hand:
    return Hand(client)


def orders(client: Client, count: int, **options: Any) -> list[str]:
    made = confirm.options(client=client, **options)
    return [job.id for job in made.enqueue_many({"order_id": str(n)} for n in range(count))]


# --- why ---------------------------------------------------------------------------------


def test_why_is_a_command_of_its_own_and_one_of_jobs(cli: Cli, client: Client) -> None:
    (job_id,) = orders(client, 1)
    assert cli("why", job_id).stdout == cli("jobs", "why", job_id).stdout
    assert cli.json("why", job_id)["job"]["id"] == job_id
    assert "Why a job has not run" in cli("--help").stdout


def test_why_as_json_piped_and_on_a_terminal(cli: Cli, client: Client) -> None:
    (job_id,) = orders(client, 1)
    client.queues.pause("high", reason="bank is down")
    found = cli.json("jobs", "why", job_id)
    assert [reason["code"] for reason in found["reasons"]][:2] == ["paused", "no_worker"]
    assert found["reasons"][0]["remedy"] == "jobq queues resume high"
    assert (found["job"]["state"], found["ahead"], found["eta"]) == ("queued", 0, None)
    piped = cli("jobs", "why", job_id)
    head, first, *_ = piped.stdout.splitlines()
    assert head.split("\t") == ["code", "blocks", "since", "until", "why", "remedy"]
    assert first.startswith("paused\tyes\t-\t-\tqueue high is paused by ")
    assert first.endswith("bank is down\tjobq queues resume high")
    assert "is queued" in piped.stderr
    code, shown = cli.on_terminal("jobs", "why", job_id)
    assert code == 0
    assert "no live worker serves queue high" in shown
    one_line(cli("jobs", "why", "nobody", code=Exit.NOT_FOUND).stderr)


# --- queues --------------------------------------------------------------------------------


@pytest.mark.covers("E-17", "E-18")
@pytest.mark.parametrize(("verb", "count"), [("drain", 3), ("empty", 5)])
def test_drain_and_empty(cli: Cli, client: Client, verb: str, count: int) -> None:
    orders(client, 3)
    orders_later = confirm.options(client=client, delay=60)
    orders_later.enqueue_many({"order_id": f"later{n}"} for n in range(2))
    dry = cli("queues", verb, "high", "--dry-run")
    assert f"would delete {count} jobs" in dry.stderr
    assert dry.stdout.splitlines()[0] == f"matched\t{count}"
    words = one_line(cli("queues", verb, "high", code=Exit.USAGE).stderr)
    assert f"Delete {count} jobs" in words
    assert "--yes" in words
    code, shown = cli.on_terminal("queues", verb, "high", answer="n")
    assert (code, "declined" in shown) == (Exit.DECLINED, True)
    assert client.queues.get("high").queued == 3
    found = cli.json("queues", verb, "high", "--yes")
    assert found == {
        "matched": count, "done": count, "gone": 0, "failed": 0, "dry_run": False, "failures": [],
    }  # fmt: skip
    assert client.stats().queues["high"].queued == 0
    assert client.stats().queues["high"].scheduled == 5 - count
    assert cli("queues", verb, "low", "--yes").stderr.startswith("nothing to do")


def test_a_person_sees_the_question_and_the_bar(cli: Cli, client: Client) -> None:
    orders(client, 150)
    code, shown = cli.on_terminal("queues", "drain", "high", "--rate", "400/s", answer="y")
    assert code == 0
    assert "Delete 150 jobs that wait in queue high, for good?" in shown
    assert "150" in shown.rpartition("done")[2]


@pytest.mark.covers("E-15", "J-25", "T-06")
def test_clean(cli: Cli, client: Client, hand: Hand, redis_client: redis.Redis) -> None:
    orders(client, 2)
    hand.succeed("high")
    hand.kill("high")
    assert cli.json("queues", "clean", "high", "--state", "succeeded", "--yes")["matched"] == 0
    found = cli.json("queues", "clean", "high", "--state", "succeeded", "--older-than", "0", "--yes")
    assert (found["matched"], found["done"]) == (1, 1)
    assert client.dead_letters.count() == 1
    cli("queues", "clean", "high", "--yes", code=Exit.USAGE)
    cli("queues", "clean", "high", "--state", "running", "--yes", code=Exit.USAGE)


def test_move(cli: Cli, client: Client) -> None:
    ids = orders(client, 2)
    assert cli.json("queues", "move", "high", "low", "--yes")["done"] == 2
    assert [client.get(job_id).queue for job_id in ids] == ["low", "low"]
    assert "to itself" in one_line(cli("queues", "move", "low", "low", "--yes", code=Exit.USAGE).stderr)


def test_queues_that_are_not_there_and_redis_away(cli: Cli) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    for args in (
        ["drain", "hihg"], ["empty", "hihg"], ["clean", "hihg", "--state", "dead"], ["move", "high", "hihg"],
    ):  # fmt: skip
        words = one_line(cli("queues", *args, "--yes", code=Exit.NOT_FOUND).stderr)
        assert "did you mean 'high'" in words
    for args in (
        ["queues", "drain", "high", "--yes"],
        ["jobs", "why", "a"],
        ["jobs", "cancel", "--queue", "high"],
    ):
        words = one_line(cli(*args, "-u", url, code=Exit.UNAVAILABLE).stderr)
        assert "hunter2" not in words


# --- jobs ----------------------------------------------------------------------------------


def test_a_dry_run_by_ids_refuses_what_the_verb_refuses(cli: Cli, client: Client, hand: Hand) -> None:
    (done,) = orders(client, 1)
    later = confirm.options(client=client, delay=3600).enqueue(order_id="later").id
    hand.succeed("high")
    (running,) = orders(client, 1)
    hand.claim("high", 1)
    for verb, job_id in (
        ("retry", done), ("retry", running), ("cancel", done), ("promote", done), ("promote", running),
        ("delete", running), ("retry", later),
    ):  # fmt: skip
        before = client.get(job_id).state
        dry = cli("jobs", verb, job_id, "--dry-run", code=Exit.CONFLICT)
        assert one_line(dry.stderr) == one_line(cli("jobs", verb, job_id, "--yes", code=Exit.CONFLICT).stderr)
        assert client.get(job_id).state is before
    assert "would promote (scheduled)" in cli("jobs", "promote", later, "--dry-run").stdout
    found = cli.json("jobs", "promote", later, done, "nobody", "--dry-run", code=Exit.PARTIAL)
    assert [row["id"] for row in found["done"]] == [later]
    assert [row["id"] for row in found["failed"]] == [done, "nobody"]


def test_waiting_for_one_job_shows_how_far_it_is(
    cli: Cli, client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    (job_id,) = orders(client, 1)
    (job,) = hand.claim("high", 1)

    def work() -> None:
        until(lambda: bool(redis_client.exists(f"jobq:wait:{job_id}")))
        client.run(calls.progress(client.keys, job_id, job.token, '[0.42,"42 of 100 rows"]'))
        time.sleep(3)
        hand.settle(job, queue="high", spends=True)

    worker = threading.Thread(target=work)
    worker.start()
    code, shown = cli.on_terminal("jobs", "wait", job_id, "--timeout", "20s")
    worker.join(20)
    assert code == Exit.DONE
    assert "42 of 100 rows" in shown
    assert "42%" in shown


def test_a_bulk_preview_names_the_first_twenty(cli: Cli, client: Client) -> None:
    ids = orders(client, 25)
    dry = cli("jobs", "cancel", "--queue", "high", "--dry-run")
    assert len(dry.stdout.partition("\n\n")[2].splitlines()) == 21
    assert "and 5 more" in dry.stderr
    seen = cli.json("jobs", "cancel", "--queue", "high", "--dry-run")
    assert (seen["matched"], len(seen["jobs"])) == (25, 20)
    assert {each["id"] for each in seen["jobs"]} < {*ids}


@pytest.mark.parametrize(
    "words",
    [
        ("queues", "drain", "high"),
        ("queues", "empty", "high"),
        ("queues", "move", "high", "low"),
        ("queues", "clean", "high", "--state", "dead", "--older-than", "0s"),
        ("retry-failed",),
        ("dead", "replay", "--queue", "high"),
        ("dead", "purge", "--older-than", "0s"),
        ("dead", "archive", "--out", "dead.jsonl"),
    ],
)
def test_whoever_changes_many_says_which_first(
    cli: Cli, client: Client, hand: Hand, words: tuple[str, ...]
) -> None:
    ids = orders(client, 25)
    if words[0] != "queues" or words[1] == "clean":
        for _ in ids:
            hand.kill("high")
    seen = cli.json(*words, "--dry-run")
    assert (seen["matched"], len(seen["jobs"])) == (25, 20)
    assert {each["id"] for each in seen["jobs"]} < {*ids}
    assert {each["refused"] for each in seen["jobs"]} == {None}
    dry = cli(*words, "--dry-run")
    assert [line.split("\t")[0] for line in dry.stdout.partition("\n\n")[2].splitlines()] == [
        "id", *(each["id"] for each in seen["jobs"]),
    ]  # fmt: skip
    assert "and 5 more" in dry.stderr
    code, shown = cli.on_terminal(*words, answer="n")
    assert code == Exit.DECLINED
    assert "and 20 more" in shown
    assert all(f"{each['id']}  shop.confirm  created " in shown for each in seen["jobs"][:5])


def test_a_dry_run_looks_at_no_more_dead_letters_than_it_names(
    cli: Cli, client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    """The others are counted where they are: 100,000 took half a minute."""
    orders(client, 60)
    for _ in range(60):
        hand.kill("high")

    def looks() -> int:
        stats = redis_client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("xrevrange", "lindex"))

    for words in (("--limit", "30"), ("--task", "shop.confirm"), ("--since", "1h"), ()):
        before = looks()
        seen = cli.json("retry-failed", "--dry-run", *words)
        assert (seen["matched"], len(seen["jobs"])) == (30 if "--limit" in words else 60, 20)
        assert looks() - before <= 2 * 20, "how each of these ended"
    said = cli("retry-failed", "--dry-run", "--limit", "30").stderr
    assert "would replay the newest 30 of 60 dead letters (shop.confirm 60)" in said
    assert cli.json("retry-failed", "--yes", "--limit", "30")["replayed"] == 30


def test_limits_of_tasks_at_run_time(cli: Cli, client: Client) -> None:
    orders(client, 2)
    cli("limits", "set", "shop.confirm", "--concurrency", "1", "--for", "1h", "--reason", "bank is slow")
    cli("limits", "set", "shop.confirm", "--rate", "0")
    (found,) = cli.json("limits", "list")["limits"]
    assert (found["task"], found["rate"], found["concurrency"]) == ("shop.confirm", "0", "1")
    (id_, *_) = [job.id for job in client.jobs(queue="high").items]
    assert Hand(client).claim("high") == []
    why = cli("why", id_).stdout
    assert f"limited by an override set by {found['by']} for task shop.confirm: rate 0, concurrency 1" in why
    assert cli.json("queues", "show", "high")["task_limits"] == ["task shop.confirm: rate 0, concurrency 1"]
    assert cli.json("queues", "show", "low")["task_limits"] == []
    cli("limits", "clear", "shop.confirm")
    assert cli.json("limits", "list") == {"limits": []}
    assert "no limit is set" in one_line(cli("limits", "clear", "shop.confirm", code=Exit.NOT_FOUND).stderr)
    cli("limits", "set", "shop.nobody", "--rate", "1/s", "--unknown")
    one_line(cli("limits", "set", "shop.confirm", "--key", "acme", "--rate", "0", code=Exit.USAGE).stderr)


def test_what_a_limit_holds_back_and_what_is_delayed_is_named_too(cli: Cli, client: Client) -> None:
    client.limits.set("shop.confirm", rate=0)
    (held,) = orders(client, 1)
    assert Hand(client).claim("high") == []
    later = orders(client, 2, delay=3600)[1]
    assert [each["id"] for each in cli.json("queues", "drain", "high", "--dry-run")["jobs"]] == [held]
    assert [each["id"] for each in cli.json("queues", "empty", "high", "--dry-run")["jobs"]] == [held, later]


def test_jobs_are_cancelled_by_filter(cli: Cli, client: Client, hand: Hand) -> None:
    ids = orders(client, 3)
    hand.claim("high", 1)
    dry = cli("jobs", "cancel", "--queue", "high", "--state", "queued", "--dry-run")
    assert "would cancel 2 jobs; nothing was changed" in dry.stderr
    counts, _, named = dry.stdout.partition("\n\n")
    assert counts.splitlines()[0] == "matched\t2"
    head, *rows = [line.split("\t") for line in named.splitlines()]
    assert head == ["id", "task", "state", "queue", "created", "refused"]
    assert [[*row[1:4], row[5]] for row in rows] == [["shop.confirm", "queued", "high", "-"]] * 2
    seen = cli.json("jobs", "cancel", "--queue", "high", "--state", "queued", "--dry-run")["jobs"]
    assert {each["id"] for each in seen} == {row[0] for row in rows} < {*ids}
    code, shown = cli.on_terminal("jobs", "cancel", "--queue", "high", "--state", "queued", answer="no")
    assert code == Exit.DECLINED
    assert "Cancel 2 jobs (queued, in queue high)? [y/N]" in shown
    assert all(f"{row[0]}  shop.confirm  created " in shown for row in rows)
    assert cli.json("jobs", "cancel", "--queue", "high", "--state", "queued", "--yes")["done"] == 2
    assert [client.get(job_id).state.value for job_id in ids] == ["running", "cancelled", "cancelled"]
    assert cli.json("jobs", "cancel", "--task", "shop.confirm", "--yes")["done"] == 1  # the one that runs
    assert client.get(ids[0]).cancel_requested


def test_7_when_some_stay_as_they_are(cli: Cli, client: Client, hand: Hand) -> None:
    orders(client, 2)
    for _ in range(2):
        hand.kill("high")
    (holder,) = orders(client, 1)
    done = cli("jobs", "retry", "--queue", "high", "--yes", "--json", code=Exit.PARTIAL)
    found = json.loads(done.stdout)
    assert (found["matched"], found["done"], found["failed"]) == (2, 1, 1)
    assert found["failures"][0]["reason"] == f"conflict:{holder}"
    assert f"job {holder} holds its dedup key" in one_line(done.stderr)


def test_jobs_are_promoted_and_deleted(cli: Cli, client: Client) -> None:
    ids = orders(client, 3, delay=3600)
    assert cli("jobs", "promote", ids[0]).stdout.splitlines()[1] == f"{ids[0]}\tqueued"
    one_line(cli("jobs", "promote", ids[0], code=Exit.CONFLICT).stderr)
    one_line(cli("jobs", "promote", "nobody", code=Exit.NOT_FOUND).stderr)
    assert cli.json("jobs", "promote", "--state", "scheduled", "--limit", "1", "--yes")["done"] == 1
    # Without --state only what has ended is deleted.
    assert cli.json("jobs", "delete", "--queue", "high", "--yes")["matched"] == 0
    found = cli.json(
        "jobs", "delete", "--queue", "high", "--state", "queued", "--state", "scheduled", "--yes"
    )
    assert found["done"] == 3
    assert client.jobs().items == []


@pytest.mark.parametrize("verb", ["cancel", "delete", "retry", "promote"])
def test_ids_or_a_filter(cli: Cli, verb: str) -> None:
    assert "or a filter" in one_line(cli("jobs", verb, "--yes", code=Exit.USAGE).stderr)
    assert "not both" in one_line(cli("jobs", verb, "a", "--queue", "high", code=Exit.USAGE).stderr)
    assert "or a filter" in one_line(cli("jobs", verb, "--limit", "3", code=Exit.USAGE).stderr)


# --- logs and waiting -----------------------------------------------------------------------


@pytest.mark.parametrize("task", ["shop.talk", "shop.talk_apart"])
def test_logs_hold_what_the_task_said_but_no_secret(cli: Cli, task: str, redis_client: redis.Redis) -> None:
    cli.json("enqueue", "shop.confirm", '{"order_id": "1"}')
    cli("worker", "--priority", "high", "--burst", "-q")  # so that the server knows the other scripts by now
    job_id = cli.json("enqueue", task, '{"code": "s3cret-otp"}')["id"]
    cli("worker", "--priority", "high", "--burst", "-q")
    found = cli.json("jobs", "logs", job_id)["lines"]
    assert found[-1]["text"] == ("done" if task == "shop.talk" else "line 249 •••")
    assert found[0]["text"] == ("the code is •••" if task == "shop.talk" else "line 50 •••")
    assert len(found) <= 200
    assert all(line["attempt"] == 1 for line in found)
    assert redis_client.ttl(f"jobq:log:{job_id}") <= redis_client.ttl(f"rq:job:{job_id}")
    piped = cli("jobs", "logs", job_id).stdout
    assert piped.splitlines()[0] == "at\tattempt\ttext"
    assert "\x1b" not in piped
    one_line(cli("jobs", "logs", "nobody", code=Exit.NOT_FOUND).stderr)
    cli("jobs", "logs", job_id, "--follow", "--json", code=Exit.USAGE)


def test_follow_shows_lines_as_they_come_and_ends_with_the_job(cli: Cli, tmp_path: Path) -> None:
    hold = tmp_path / "go"
    job_id = cli.json("enqueue", "shop.talk", json.dumps({"code": "x", "hold": str(hold)}))["id"]
    worker = cli.start("worker", "--priority", "high", "--burst", "-q")
    follow = cli.start("jobs", "logs", job_id, "-f", "-o", "jsonl")
    try:
        assert follow.stdout is not None
        said = [json.loads(follow.stdout.readline()) for _ in range(2)]
        assert [line["number"] for line in said] == [1, 2]
        hold.touch()
        assert json.loads(follow.stdout.readline())["text"] == "done"
        assert follow.wait(20) == 0
        assert worker.wait(20) == 0
    finally:
        for process in (follow, worker):
            process.kill()
            process.communicate()


def test_waiting_for_several_shows_a_bar(cli: Cli, client: Client, hand: Hand) -> None:
    ids = orders(client, 2)
    for _ in ids:
        hand.succeed("high")
    code, shown = cli.on_terminal("jobs", "wait", *ids)
    assert code == 0
    assert "waiting" in shown
    assert "\x1b" not in cli("jobs", "wait", *ids).stderr


# --- workers --------------------------------------------------------------------------------


def test_a_worker_is_quieted_resumed_and_stopped(cli: Cli, client: Client, redis_client: redis.Redis) -> None:
    worker = cli.start("worker", "--priority", "high", "--queue", "low", "--name", "w1", "-q")
    try:
        until(lambda: {each.name for each in client.workers.list()} == {"w1-high", "w1-low"})
        shown = cli.json("workers", "show", "w1")["workers"]
        assert [each["worker"] for each in shown] == ["w1", "w1"]
        assert [each["name"] for each in cli.json("workers", "show", "w1-low")["workers"]] == ["w1-low"]
        assert "would quiet w1" in cli("workers", "quiet", "--all", "--dry-run").stderr
        one_line(cli("workers", "quiet", "w1", code=Exit.USAGE).stderr)
        code, asked = cli.on_terminal("workers", "quiet", "w1-high", answer="n")
        assert (code, "Let no more jobs be claimed by w1?" in asked) == (Exit.DECLINED, True)

        assert cli.json("workers", "quiet", "w1-high", "--yes")["workers"] == [
            {"worker": "w1", "order": "quiet", "given": True}
        ]
        until(lambda: {each.state for each in client.workers.list()} == {"quiet"})
        (job_id,) = orders(client, 1)
        why = cli.json("jobs", "why", job_id)
        assert why["reasons"][0]["code"] == "worker_quiet"
        assert why["reasons"][0]["remedy"] == "jobq workers resume w1"
        with pytest.raises(TimeoutError):
            client.wait(job_id, 1.5)

        cli("workers", "resume", "w1")
        assert client.wait(job_id, 20).state == "succeeded"
        until(lambda: {each.state for each in client.workers.list()} == {"idle"})
        cli("workers", "stop", "--all", "--yes")
        assert worker.wait(20) == 0
        assert client.workers.list() == []
        assert not redis_client.exists("jobq:orders")
    finally:
        worker.kill()
        worker.communicate()


def test_each_queue_of_a_group_has_its_share_shown(cli: Cli, client: Client) -> None:
    record = {"host": "here", "pid": 1, "state": "busy", "tasks": ("t.a",), "birth_ms": 1, "now_ms": 1}
    for name, queues, parts in (("w-mail", ("email", "sms"), ((1, 0), (3, 2))), ("w-low", ("low",), ())):
        step = register_worker(
            client.keys, name=name, worker="w", queues=queues, slots=3, busy=2, parts=parts, **record
        )
        client.run(step)
    low, mail = cli.json("workers", "list")["workers"]
    assert mail["parts"] == {"email": {"busy": 0, "slots": 1}, "sms": {"busy": 2, "slots": 3}}
    assert (mail["queues"], low["parts"]) == (["email", "sms"], {})
    for words in (("list",), ("show", "w")):
        _, shown = cli.on_terminal("workers", *words, COLUMNS="200")
        assert "email 0/1, sms 2/3" in shown
        assert "low 2/3" not in shown


def test_orders_to_nobody(cli: Cli, redis_client: redis.Redis) -> None:
    words = one_line(cli("workers", "stop", "w9", "--yes", code=Exit.NOT_FOUND).stderr)
    assert "no live worker 'w9'" in words
    one_line(cli("workers", "show", "w9", code=Exit.NOT_FOUND).stderr)
    assert "no worker is live" in cli("workers", "stop", "--all", "--yes").stderr
    assert "or --all" in one_line(cli("workers", "stop", code=Exit.USAGE).stderr)
    redis_client.hset("rq:worker:plain", mapping={"queues": "high", "state": "idle"})
    redis_client.sadd("rq:workers", "rq:worker:plain")
    assert "plain rq worker" in one_line(cli("workers", "stop", "plain", "--yes", code=Exit.CONFLICT).stderr)


# --- dead letters ---------------------------------------------------------------------------


@pytest.fixture
def unpaid(cli: Cli) -> str:
    """A dead letter with a secret."""
    job_id: str = cli.json("enqueue", "shop.pay", '{"amount": -1, "code": "s3cret-otp"}')["id"]
    cli("worker", "--priority", "high", "--burst", "-q")
    return job_id


def test_a_dead_letter_is_edited_with_set(cli: Cli, unpaid: str) -> None:
    assert "with other amount" in cli("dead", "edit", unpaid, "--set", "amount=5", "--dry-run").stderr
    one_line(cli("dead", "edit", unpaid, "--set", "amount=5", code=Exit.USAGE).stderr)
    words = one_line(cli("dead", "edit", unpaid, "--set", "code=x", "--yes", code=Exit.USAGE).stderr)
    assert "secret" in words
    assert "amount" in one_line(
        cli("dead", "edit", unpaid, "--set", "amount=much", "--yes", code=Exit.USAGE).stderr
    )
    cli("dead", "edit", unpaid, "--set", "amount", "--yes", code=Exit.USAGE)
    one_line(cli("dead", "edit", "nobody", "--set", "a=1", "--yes", code=Exit.NOT_FOUND).stderr)
    found = cli.json("dead", "edit", unpaid, "--set", "amount=5", "--yes")
    assert (found["id"], found["state"]) == (unpaid, "queued")
    cli("worker", "--priority", "high", "--burst", "-q")
    assert cli.json("jobs", "show", unpaid)["state"] == "succeeded"
    one_line(cli("dead", "edit", unpaid, "--set", "amount=5", "--yes", code=Exit.CONFLICT).stderr)


def test_a_dead_letter_is_edited_in_the_editor(cli: Cli, unpaid: str, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\ncp "$1" {shown}\nsed -i s/-1/7/ "$1"\n')
    editor.chmod(0o700)
    done = cli("dead", "edit", unpaid, "--yes", EDITOR=str(editor), VISUAL=str(editor))
    assert json.loads(shown.read_text()) == {"amount": -1, "code": "•••"}
    assert "changed\tamount" in done.stdout
    cli("worker", "--priority", "high", "--burst", "-q")
    assert cli.json("jobs", "show", unpaid)["state"] == "succeeded"
    assert cli.json("jobs", "logs", unpaid)["lines"][-1]["text"] == "7 s3cret-otp".replace(
        "s3cret-otp", "•••"
    )


def test_without_a_terminal_or_an_editor_values_are_asked_for(cli: Cli, unpaid: str) -> None:
    done = cli("dead", "edit", unpaid, "--yes", EDITOR="", VISUAL="", code=Exit.USAGE)
    assert "no terminal for an editor: give the new values with --set" in one_line(done.stderr)


def test_an_editor_left_without_saving_changes_nothing(cli: Cli, unpaid: str) -> None:
    one_line(cli("dead", "edit", unpaid, "--yes", EDITOR="true", VISUAL="true", code=Exit.DECLINED).stderr)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_export(cli: Cli, unpaid: str, tmp_path: Path, form: str) -> None:
    out = tmp_path / "dead.out"
    out.write_text("old")
    found = cli.json("dead", "export", "--out", str(out), "--format", form)
    assert (found["written"], found["format"]) == (1, form)
    text = out.read_text()
    row = json.loads(text) if form == "jsonl" else next(csv.DictReader(io.StringIO(text)))
    assert (row["id"], row["task"], row["error_type"]) == (unpaid, "shop.pay", "ValueError")
    assert "s3cret" not in text
    assert out.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []
    cli("dead", "export", "--out", str(out), "--queue", "nope", code=Exit.NOT_FOUND)
    assert out.read_text() == text


def test_purge(cli: Cli, unpaid: str, client: Client) -> None:
    assert "nothing to do" in cli("dead", "purge", "--older-than", "1h", "--yes").stderr
    assert "would delete 1 job" in cli("dead", "purge", "--older-than", "0", "--dry-run").stderr
    one_line(cli("dead", "purge", "--older-than", "0", code=Exit.USAGE).stderr)
    assert cli.json("dead", "purge", "--older-than", "0", "--yes")["done"] == 1
    assert client.jobs().items == []


def test_a_canary_that_dies_holds_the_others(cli: Cli, client: Client) -> None:
    for number in range(3):
        cli.json("enqueue", "shop.pay", json.dumps({"amount": -1 - number, "code": "x"}))
    cli("worker", "--priority", "high", "--burst", "-q")
    worker = cli.start("worker", "--priority", "high", "-q")
    try:
        done = cli("dead", "replay", "--queue", "high", "--canary", "1", "--yes", "--json", code=Exit.BAD)
        found = json.loads(done.stdout)
        assert (found["matched"], found["replayed"], found["held"]) == (3, 1, 2)
        assert "of the canary is dead; 2 stay dead" in one_line(done.stderr)
        assert client.dead_letters.count() == 3
    finally:
        worker.terminate()
        worker.communicate(timeout=30)


def test_jobs_are_found_by_their_correlation_id(cli: Cli, tmp_path: Path) -> None:
    first = cli.json("enqueue", "shop.confirm", '{"order_id": "1"}', "--correlation-id", "order-7")
    assert first["correlation_id"] == "order-7"
    lines = tmp_path / "jobs.jsonl"
    line = {"task": "shop.confirm", "params": {"order_id": "2"}, "correlation_id": "order-7"}
    lines.write_text(
        json.dumps(line) + "\n" + json.dumps({"task": "shop.confirm", "params": {"order_id": "3"}})
    )
    second = cli.json("enqueue", "--file", str(lines))["ids"][0]
    found = cli.json("jobs", "list", "--correlation-id", "order-7")["jobs"]
    assert {job["id"] for job in found} == {first["id"], second}
    report = cli.json("jobs", "cancel", "--correlation-id", "order-7", "--yes")
    assert (report["matched"], report["done"]) == (2, 2)
    one_line(cli("enqueue", "shop.confirm", "{}", "--correlation-id", "", code=Exit.USAGE).stderr)
