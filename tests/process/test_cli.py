"""The installed ``jobq``: exit codes, output for people and for programs, questions, start-up cost."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

import jobq
from jobq.cli import COMMANDS, root
from jobq.cli.common import Exit
from jobq.private_server import free_port
from tests.support.cli import JOBQ, Cli, one_line
from tests.support.processes import until

pytestmark = pytest.mark.process

HEAVY = ("rq", "redis", "pydantic", "pydantic_settings", "rich", "structlog", "cryptography", "asyncio")


@pytest.fixture
def dead_job(cli: Cli) -> str:
    """A job that a real worker ran and buried."""
    found = cli.json("enqueue", "shop.fail", '{"order_id": "1", "code": "s3cret-otp"}')
    cli("worker", "--priority", "high", "--burst", "-q")
    return str(found["id"])


# --- start-up and help ---------------------------------------------------------------


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(args: Sequence[str]) -> None:
    script = (
        "import sys; from jobq.cli import main; code = main(sys.argv[1:]); "
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert not set(HEAVY) & set(done.stderr.split())


def test_the_table_of_commands_says_what_each_command_says() -> None:
    context = root.make_context("jobq", ["stats"], resilient_parsing=True)
    for name, (_, words) in COMMANDS.items():
        command = root.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert words
        assert command.help


def test_help_names_every_command_and_the_global_options(cli: Cli) -> None:
    shown = cli("-h").stdout
    for word in (*COMMANDS, "--redis-url", "--json", "--color", "--debug"):
        assert word in shown


def test_without_a_command_help_goes_to_stderr(cli: Cli) -> None:
    done = cli(code=Exit.USAGE)
    assert "Commands:" in done.stderr
    assert not done.stdout


# --- exit codes ----------------------------------------------------------------------


def test_0_also_when_there_is_nothing_to_do(cli: Cli) -> None:
    assert "nothing to replay" in cli("retry-failed", "--yes").stderr


def test_1_unexpected(cli: Cli) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([JOBQ, "stats"], env=cli.env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == Exit.UNEXPECTED
    assert "No space left" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["stat"], "Did you mean 'stats'"),
        (["stats", "--nope"], "No such option"),
        (["stats", "--since", "90h"], "at most 24 h"),
        (["stats", "--since", "soon"], "not a duration"),
        (["stats", "--fail-on", "faild>1"], "did you mean 'failed'"),
        (["stats", "--fail-on", "failed"], "write 'failed>10'"),
        (["enqueue", "shop.confirm", "{"], "not JSON"),
        (["enqueue", "shop.confirm", "[1]"], "JSON object"),
        (["enqueue", "shop.confirm", '{"order_id": 5}'], "order_id"),
        (["enqueue", "shop.confirm", "{}", "--at", "2030-01-01T00:00:00"], "no time zone"),
        (["enqueue", "shop.confirm", "{}", "--delay", "5s", "--at", "2030-01-01T00:00:00Z"], "not both"),
        (["retry-failed", "--rate", "fast"], "not a rate"),
        (["dead", "replay"], "Name ids"),
        (["jobs", "list", "--cursor", "abc"], "cursor"),
        (["queues", "pause", "high", "--for", "0s"], "longer than 0"),
    ],
)
def test_2_usage(cli: Cli, args: Sequence[str], words: str) -> None:
    assert words in one_line(cli(*args, code=Exit.USAGE).stderr)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["jobs", "show", "nope-1"], "nope-1"),
        (["jobs", "show", "../../x"], "ids have letters"),
        (["dead", "show", "nope-1"], "nope-1"),
        (["jobs", "retry", "nope-1", "--yes"], "nope-1"),
        (["enqueue", "shop.confrim", "{}"], "did you mean 'shop.confirm'"),
        (["stats", "--queue", "hihg"], "did you mean 'high'"),
        (["queues", "pause", "hihg"], "did you mean 'high'"),
    ],
)
def test_3_not_found(cli: Cli, args: Sequence[str], words: str) -> None:
    assert words in one_line(cli(*args, code=Exit.NOT_FOUND).stderr)


def test_5_conflict(cli: Cli) -> None:
    job = cli.json("enqueue", "shop.confirm", '{"order_id": "1"}')
    assert "only dead or cancelled" in one_line(
        cli("jobs", "retry", job["id"], "--yes", code=Exit.CONFLICT).stderr
    )


def test_6_threshold_and_health(cli: Cli) -> None:
    assert cli("stats", "--fail-on", "failed>0").returncode == 0
    assert cli("health").returncode == 0
    cli("enqueue", "shop.confirm", '{"order_id": "1"}')
    hit = cli("stats", "--fail-on", "failed>0", "--fail-on", "high.queued>=1", code=Exit.BAD)
    assert "queued is 1" in one_line(hit.stderr)
    assert hit.stdout
    verdict = cli.json("health", code=Exit.BAD)
    assert verdict["status"] == "unhealthy"
    assert "no worker serves it" in verdict["issues"][0]
    assert cli.json("doctor", code=Exit.BAD)["ok"] is False
    assert cli.json("health", "worker", code=Exit.BAD)["workers"] == []


def test_6_waiting_for_a_job_that_failed_and_0_for_one_that_did_not(cli: Cli, dead_job: str) -> None:
    done = cli("jobs", "wait", dead_job, "--timeout", "5", code=Exit.BAD)
    assert f"job {dead_job} is dead" in done.stderr
    with cli.start("worker", "--priority", "high", "-q") as worker:
        try:
            cli("enqueue", "shop.confirm", '{"order_id": "2"}', "--wait", "--timeout", "30s")
        finally:
            worker.terminate()
            worker.communicate(timeout=20)


def test_7_part_of_a_bulk_failed(cli: Cli) -> None:
    job = cli.json("enqueue", "shop.confirm", '{"order_id": "1"}')
    done = cli("jobs", "cancel", job["id"], "nope-1", code=Exit.PARTIAL)
    assert job["id"] in done.stdout
    assert "nope-1" in one_line(done.stderr)


def test_69_redis_away(cli: Cli) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    for args in (
        ["stats"],
        ["health"],
        ["health", "live"],
        ["jobs", "list"],
        ["enqueue", "shop.confirm", '{"order_id":"1"}'],
    ):
        done = cli(*args, "-u", url, code=Exit.UNAVAILABLE)
        assert "JOBQ_REDIS_URL" in one_line(done.stderr)
        assert "hunter2" not in done.stderr + done.stdout
    found = cli.json("doctor", "-u", url, code=Exit.UNAVAILABLE)
    assert found["checks"][-1]["status"] == "bad"


def test_75_timed_out(cli: Cli) -> None:
    job = cli.json("enqueue", "shop.confirm", '{"order_id": "1"}')
    done = cli("jobs", "wait", job["id"], "--timeout", "100ms", code=Exit.TIMEOUT)
    assert "timed out after 100 ms" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("args", "env", "words"),
    [
        (["stats"], {"JOBQ_LEASE": "soon"}, "JOBQ_LEASE"),
        (["stats", "-u", "http://x"], {}, "redis"),
        (["enqueue", "x", "{}", "-A", "no_such_module"], {}, "no_such_module"),
        (["worker", "--queue", "nope"], {}, "JOBQ_QUEUES__NOPE__SLOTS"),
        (["stats", "-c", "missing.toml"], {}, "missing.toml"),
        (["stats"], {"JOBQ_ENV": "production"}, "JOBQ_SECRET_KEY"),
    ],
)
def test_78_configuration(cli: Cli, args: Sequence[str], env: dict[str, str], words: str) -> None:
    assert words in one_line(cli(*args, code=Exit.CONFIG, **env).stderr)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_130_and_143_interrupted(cli: Cli, number: signal.Signals, code: int) -> None:
    with cli.start("stats", "--watch", "30s") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert errors == ""


def test_debug_shows_where(cli: Cli) -> None:
    done = cli("jobs", "show", "nope-1", "--debug", code=Exit.NOT_FOUND)
    assert "Traceback" in done.stderr
    assert "JobNotFoundError" in done.stderr


def test_a_closed_pipe_is_no_news(cli: Cli) -> None:
    with cli.start("stats", "--watch", "50ms") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(20) == 0


# --- output --------------------------------------------------------------------------

QUEUE_FIELDS = {
    "queued", "scheduled", "retrying", "deferred", "running", "succeeded", "dead", "cancelled", "paused", "workers",
    "slots", "busy", "oldest_queued_s", "wait_p50_s", "wait_p95_s", "wait_p99_s", "target_s", "sla_met",
    "throughput_per_s", "failed_attempts",
}  # fmt: skip


def test_stats_json_has_the_promised_shape(cli: Cli) -> None:
    cli("enqueue", "shop.confirm", '{"order_id": "1"}')
    found = cli.json("stats")
    assert set(found) == {"generated_at", "queues", "totals", "redis"}
    assert found["generated_at"].endswith("Z")
    assert list(found["queues"]) == ["critical", "high", "medium", "low", "batch"]
    assert set(found["queues"]["high"]) >= QUEUE_FIELDS
    assert found["queues"]["high"]["queued"] == found["totals"]["queued"] == 1
    assert set(found["redis"]) == {"used_memory", "maxmemory", "durability"}
    assert list(cli.json("stats", "--queue", "high")["queues"]) == ["high"]


def test_global_options_come_before_or_after_the_command(cli: Cli) -> None:
    before = cli("--json", "queues", "list").stdout
    between = cli("queues", "--json", "list").stdout
    after = cli("queues", "list", "-o", "json").stdout
    assert json.loads(before) == json.loads(between) == json.loads(after)


def test_piped_is_tab_separated_and_whole(cli: Cli, dead_job: str) -> None:
    lines = cli("dead", "list").stdout.splitlines()
    header, row = (line.split("\t") for line in lines)
    assert len(header) == len(row)
    assert dict(zip(header, row, strict=True))["id"] == dead_job
    assert "the [red]shop\\x1b[31m is closed" in lines[1]  # markup is text, an escape is written out
    rows = list(csv.DictReader(io.StringIO(cli("dead", "list", "-o", "csv").stdout)))
    assert rows[0]["id"] == dead_job
    records = [json.loads(line) for line in cli("dead", "list", "-o", "jsonl").stdout.splitlines()]
    assert [record["reason"] for record in records] == ["exhausted"]
    assert cli.json("dead", "groups")["groups"][0]["count"] == 1


def test_a_terminal_shows_a_table_in_colour_unless_told_otherwise(cli: Cli, dead_job: str) -> None:
    code, shown = cli.on_terminal("jobs", "list")
    assert code == 0
    assert "\t" not in shown
    assert dead_job in shown
    assert "\x1b[31m" in shown  # dead is red
    for args, env in (
        (["jobs", "list"], {"NO_COLOR": "1"}),
        (["jobs", "list"], {"TERM": "dumb"}),
        (["jobs", "list", "--color", "never"], {"FORCE_COLOR": "1"}),
        (["--color", "never", "jobs", "list"], {}),
    ):
        code, shown = cli.on_terminal(*args, **env)
        assert code == 0
        assert "\x1b[3" not in shown, (args, env)
    assert "\x1b[3" in cli.on_terminal("jobs", "list", "--color", "always", NO_COLOR="1")[1]


def test_errors_are_coloured_only_when_asked_for(cli: Cli) -> None:
    assert "\x1b[" not in cli("jobs", "show", "nope-1", code=3).stderr
    assert "\x1b[" in cli("jobs", "show", "nope-1", code=3, FORCE_COLOR="1").stderr
    assert "\x1b[" not in cli("jobs", "show", "nope-1", code=3, FORCE_COLOR="1", NO_COLOR="1").stderr


def test_jobs_show_tells_the_story_without_params(cli: Cli, dead_job: str) -> None:
    found = cli.json("jobs", "show", dead_job)
    assert found["state"] == "dead"
    assert [attempt["error_type"] for attempt in found["attempts"]] == ["ValueError"]
    for args in (
        ["jobs", "show", dead_job],
        ["jobs", "show", dead_job, "-v", "--json"],
        ["dead", "show", dead_job],
    ):
        done = cli(*args)
        assert "ValueError" in done.stdout
        assert "s3cret-otp" not in done.stdout + done.stderr


def test_config_show_names_origins_and_hides_secrets(cli: Cli) -> None:
    done = cli("config", "show", "--origin", "--json", JOBQ_SECRET_KEY="k" * 40, JOBQ_LEASE="9s")
    found = json.loads(done.stdout)
    assert found["lease"] == {"value": "9s", "origin": "environment JOBQ_LEASE"}
    assert found["max_attempts"]["origin"] == "default"
    assert "k" * 40 not in done.stdout


# --- asking --------------------------------------------------------------------------


def test_without_a_terminal_nothing_is_done_unasked(cli: Cli, dead_job: str) -> None:
    for args in (
        ["retry-failed"], ["dead", "replay", dead_job], ["jobs", "retry", dead_job], ["jobs", "delete", dead_job],
    ):  # fmt: skip
        assert "--yes" in one_line(cli(*args, code=Exit.USAGE).stderr)
    for args in (["retry-failed", "--dry-run"], ["jobs", "delete", dead_job, "--dry-run"]):
        cli(*args)
    assert cli.json("jobs", "show", dead_job)["state"] == "dead"


def test_8_declined_130_interrupted_and_agreed(cli: Cli, dead_job: str) -> None:
    code, shown = cli.on_terminal("retry-failed", answer="n")
    assert code == Exit.DECLINED
    assert "Replay 1 dead letter (shop.fail 1)? [y/N]" in shown
    assert "declined" in shown
    assert cli.on_terminal("retry-failed", answer=signal.SIGINT)[0] == Exit.INTERRUPTED
    assert cli.json("jobs", "show", dead_job)["state"] == "dead"
    assert cli.on_terminal("retry-failed", answer="y")[0] == 0
    assert cli.json("jobs", "show", dead_job)["state"] == "queued"


def test_what_dies_while_the_question_stands_is_not_replayed(cli: Cli, dead_job: str) -> None:
    later = []

    def another_dies() -> None:
        later.append(cli.json("enqueue", "shop.fail", '{"order_id": "2", "code": "x"}')["id"])
        cli("worker", "--priority", "high", "--burst", "-q")

    code, _ = cli.on_terminal("retry-failed", answer="y", meanwhile=another_dies)
    assert code == 0
    assert cli.json("jobs", "show", dead_job)["state"] == "queued"
    assert cli.json("jobs", "show", later[0])["state"] == "dead"


def test_retry_failed_filters_and_reports_what_it_could_not_do(cli: Cli, dead_job: str) -> None:
    assert cli.json("retry-failed", "--task", "shop.other", "--yes")["matched"] == 0
    assert cli.json("retry-failed", "--queue", "low", "--yes")["matched"] == 0
    assert cli.json("retry-failed", "--priority", "HIGH", "--since", "1h", "--dry-run")["matched"] == 1
    holder = cli.json("enqueue", "shop.fail", '{"order_id": "1"}')["id"]
    report = cli.json("retry-failed", "--yes", "--rate", "50/s", code=Exit.PARTIAL)
    assert report["failed"] == [{"id": dead_job, "reason": f"conflict:{holder}"}]
    assert report["replayed"] == 0


def test_bytes_that_are_no_text(cli: Cli, redis_client: redis.Redis) -> None:
    """Refused where a person gives them, written out where Redis has them."""
    for args in (("queues", "pause", "low", "--reason", "\udcff"), ("jobs", "show", "a\udcff"),
                 ("enqueue", "shop.confirm", "{}", "--tag", "\udcff")):  # fmt: skip
        done = cli(*args, code=Exit.USAGE, installed=True)
        assert "is not UTF-8 text" in one_line(done.stderr)
    fields = {
        "origin": "high",
        "description": "shop.fail",
        "data": "{}",
        "timeout": "180",
        "status": "failed",
    }
    redis_client.hset(b"rq:job:d\xff", mapping=fields)
    redis_client.zadd("rq:failed:high", {b"d\xff": 4e9})
    for form in ("table", "csv", "json", "jsonl"):
        assert (
            "d\\udcff"
            in cli("dead", "list", "-o", form, installed=True, PYTHONIOENCODING="utf-8:strict").stdout
        )


# --- enqueue -------------------------------------------------------------------------


def test_enqueue_options(cli: Cli) -> None:
    done = cli(
        "enqueue",
        "shop.confirm",
        "-",
        "--delay",
        "1h",
        "-p",
        "low",
        "--tag",
        "a",
        "--json",
        text='{"order_id": "7"}',
    )
    job = json.loads(done.stdout)
    assert (job["state"], job["queue"], job["deduplicated"]) == ("scheduled", "low", False)
    again = cli.json("enqueue", "shop.confirm", '{"order_id": "7"}')
    assert (again["id"], again["deduplicated"]) == (job["id"], True)
    assert cli.json("jobs", "list", "--tag", "a")["jobs"][0]["id"] == job["id"]
    assert "would enqueue" in cli("enqueue", "shop.confirm", '{"order_id": "8"}', "--dry-run").stderr
    assert cli.json("stats")["totals"]["queued"] == 0


def test_all_that_a_call_may_ask_for(cli: Cli, redis_client: redis.Redis) -> None:
    asked = {
        "order": 2, "dedup_key": "k", "dedup_until": "started", "on_duplicate": "replace", "max_attempts": 7,
        "backoff": "1s,10s", "timeout": "90s", "tags": ["t"], "correlation_id": "c1",
    }  # fmt: skip
    flags = [
        "--order",
        "2",
        "--dedup-key",
        "k",
        "--dedup-until",
        "started",
        "--on-duplicate",
        "replace",
        "--max-attempts",
        "7",
        "--backoff",
        "1s,10s",
        "--run-timeout",
        "90s",
        "--tag",
        "t",
        "--correlation-id",
        "c1",
    ]
    kept: list[dict[bytes, bytes]] = []

    def look(job_id: str) -> None:
        row = redis_client.hgetall(f"rq:job:{job_id}")
        kept.append({name: row.get(name, b"") for name in (b"or", b"dk", b"o", b"timeout", b"jk")})

    job = cli.json("enqueue", "shop.confirm", '{"order_id": "7"}', *flags)
    assert (job["max_attempts"], job["timeout_s"], job["correlation_id"]) == (7, 90, "c1")
    look(job["id"])
    again = cli.json("enqueue", "shop.confirm", '{"order_id": "8"}', *flags, "--order", "9")
    assert (again["id"], again["deduplicated"]) == (job["id"], True)
    assert redis_client.hget(f"rq:job:{job['id']}", "or") == b"9"
    cli("jobs", "delete", job["id"], "--yes")
    path = cli.cwd / "jobs.jsonl"
    path.write_text(json.dumps({"task": "shop.confirm", "params": {"order_id": "7"}, **asked}))
    for more in ([], ["--order", "10", "--max-attempts", "1", "--tag", "x", "--on-duplicate", "skip"]):
        found = cli.json("enqueue", "--file", str(path), *more)
        look(found["ids"][0])
    assert kept[0] == kept[1] == kept[2], "a line asks in the same words, and comes first"
    assert kept[0][b"or"] == b"2"
    assert kept[0][b"timeout"] == b"90"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("order", "11", "10"), ("dedup_until", "soon", "finished nor started nor a window"),
        ("on_duplicate", "merge", "replace"), ("max_attempts", "0", "1"), ("backoff", "fast", "not a backoff"),
        ("timeout", "long", "not a duration"),
    ],
)  # fmt: skip
def test_what_a_call_may_not_ask_for(cli: Cli, name: str, value: str, words: str) -> None:
    flag = {"timeout": "--run-timeout"}.get(name, f"--{name.replace('_', '-')}")
    done = cli("enqueue", "shop.confirm", '{"order_id": "1"}', flag, value, code=Exit.USAGE)
    assert words in done.stderr
    path = cli.cwd / "jobs.jsonl"
    line = int(value) if value.isdecimal() else value
    path.write_text(json.dumps({"task": "shop.confirm", "params": {"order_id": "1"}, name: line}))
    assert words in cli("enqueue", "--file", str(path), code=Exit.PARTIAL).stderr


def test_a_schedules_jobs_ask_for_the_same(cli: Cli, redis_client: redis.Redis) -> None:
    flags = [
        "--order",
        "2",
        "--correlation-id",
        "c1",
        "--backoff",
        "fixed=3s",
        "--max-attempts",
        "7",
        "--run-timeout",
        "9s",
        "--tag",
        "t",
    ]
    call = ("hourly", "shop.confirm", '{"order_id": "h"}', "--every", "1h")
    cli("schedules", "add", *call, *flags)
    job = cli.json("schedules", "run", "hourly")
    assert (job["correlation_id"], job["max_attempts"], job["timeout_s"]) == ("c1", 7, 9)
    assert redis_client.hget(f"rq:job:{job['id']}", "or") == b"2"
    assert job["id"] in redis_client.zscan("jobq:corr:c1")[1][0][0].decode()
    assert [found["id"] for found in cli.json("jobs", "list", "--tag", "t")["jobs"]] == [job["id"]]
    assert "'--on-duplicate'" not in cli("schedules", "add", "--help").stdout


def test_enqueue_a_file_names_the_bad_lines(cli: Cli, redis_client: redis.Redis) -> None:
    lines = [
        {"task": "shop.confirm", "params": {"order_id": "1"}},
        {"task": "shop.confrim", "params": {}},
        {"task": "shop.confirm", "params": {"order_id": ["s3cret"]}},
        {"task": "shop.confirm", "params": {"order_id": "2"}, "priority": "critical", "delay": "5m"},
        {"task": "shop.confirm", "params": {"order_id": "3"}, "prio": 1},
    ]
    path = cli.cwd / "jobs.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), "", "{oops"]))
    done = cli("enqueue", "--file", str(path), "--json", code=Exit.PARTIAL)
    found = json.loads(done.stdout)
    assert (found["enqueued"], found["failed"]) == (2, 4)
    assert [failure["line"] for failure in found["failures"]] == [2, 3, 5, 7]
    assert "line 2: no task 'shop.confrim' is registered; did you mean 'shop.confirm'" in done.stderr
    assert "s3cret" not in done.stderr
    assert redis_client.llen("rq:queue:high") == 1
    assert redis_client.zcard("rq:scheduled:critical") == 1


def test_enqueue_a_file_says_where_a_queue_refused(cli: Cli, redis_client: redis.Redis) -> None:
    redis_client.hset("jobq:q:high", "max", 2)
    lines = [
        *({"task": "shop.confirm", "params": {"order_id": str(n)}} for n in range(1, 5)),
        {"task": "shop.confirm", "params": {"order_id": "x" * 300_000}},
        {"task": "shop.confirm", "params": {"order_id": "6"}, "priority": "low"},
    ]
    path = cli.cwd / "jobs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines[:4])))
    done = cli("enqueue", "--file", str(path), "--json", code=Exit.PARTIAL)
    found = json.loads(done.stdout)
    assert (found["enqueued"], [failure["line"] for failure in found["failures"]]) == (2, [3, 4])
    assert found["ids"] == [job_id.decode() for job_id in redis_client.lrange("rq:queue:high", 0, -1)]
    assert "2 of 4 jobs were enqueued, not those of lines 3-4" in done.stderr
    redis_client.hset("jobq:q:high", "max", 100)
    path.write_text("\n".join(map(json.dumps, lines[2:])))
    done = cli("enqueue", "--file", str(path), "--json", code=Exit.PARTIAL)
    found = json.loads(done.stdout)
    assert (found["enqueued"], [failure["line"] for failure in found["failures"]]) == (3, [3])
    assert "line 3: " in done.stderr


def test_enqueue_a_file_of_params_for_one_task(cli: Cli, client: jobq.Client) -> None:
    path = cli.cwd / "params.jsonl"
    path.write_text("".join(json.dumps({"order_id": str(number)}) + "\n" for number in range(250)))
    assert cli.json("enqueue", "shop.confirm", "--file", str(path))["enqueued"] == 250
    assert client.stats().totals.queued == 250


# --- queues, workers -----------------------------------------------------------------


def test_pause_and_resume(cli: Cli) -> None:
    paused = cli.json("queues", "pause", "high", "--for", "10m", "--reason", "deploy")
    assert (paused["paused"], paused["paused_reason"]) == (True, "deploy")
    assert cli.json("stats")["queues"]["high"]["paused"] is True
    assert cli.json("queues", "resume", "high")["paused"] is False
    assert cli.json("queues", "show", "high")["slots"] == 10


@pytest.mark.covers("P-15", "Y-04")
def test_a_worker_shows_up_is_healthy_and_drains(cli: Cli, client: jobq.Client) -> None:
    with cli.start("worker", "--priority", "high", "--name", "w1", "-q") as worker:
        try:
            until(client.workers.list)
            assert cli.json("workers", "list")["workers"][0]["queues"] == ["high"]
            assert cli.json("health", "worker")["status"] == "ok"
            assert cli.json("health", "worker", "--name", "w1")["status"] == "ok"
            assert cli.json("health", "worker", "--name", "w1-high")["status"] == "ok"
            cli("health", "worker", "--name", "w2", code=Exit.BAD)
            # Other workers' names may begin alike.
            cli("health", "worker", "--name", "w", code=Exit.BAD)
        finally:
            worker.terminate()
            _, errors = worker.communicate(timeout=20)
    assert worker.returncode in (0, Exit.TERMINATED), errors


def test_dev_serves_until_interrupted_and_leaves_nothing(cli: Cli) -> None:
    with cli.start("dev", "-q") as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip().removeprefix("export JOBQ_REDIS_URL=")
            assert url.startswith("redis://127.0.0.1:")
            cli("enqueue", "shop.confirm", '{"order_id": "1"}', "-u", url, "--wait", "--timeout", "30s")
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=40)
    assert process.returncode == Exit.INTERRUPTED, errors
    cli("stats", "-u", url, code=Exit.UNAVAILABLE)
