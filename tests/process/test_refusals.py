"""A Redis that cannot be used, as somebody at a terminal meets it: one line, the remedy, and no password."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis

from jobq.cli.common import Exit
from tests.support.cli import Cli
from tests.support.processes import ROOT
from tests.support.server import ServerFactory

pytestmark = pytest.mark.process

PASSWORD = "s3cretPW99"
COMMANDS = (
    ("stats",),
    ("health",),
    ("why", "abc"),
    ("workers", "list"),
    ("queues", "list"),
    ("dead", "list"),
)


def with_user(url: str, user: str) -> str:
    return url.replace("://", f"://{user}:{PASSWORD}@")


@pytest.fixture
def user(redis_client: redis.Redis):  # type: ignore[no-untyped-def]
    """Makes a user with these rules, and removes it."""

    def make(*rules: str) -> str:
        redis_client.execute_command("ACL", "SETUSER", "somebody", "reset", "on", f">{PASSWORD}", *rules)
        return "somebody"

    yield make
    redis_client.execute_command("ACL", "DELUSER", "somebody")


@pytest.mark.parametrize("command", COMMANDS, ids="-".join)
def test_who_may_not_read_is_told_so_and_not_that_nothing_is_there(
    cli: Cli, redis_url: str, user, command: tuple[str, ...]
) -> None:
    user("~other:*", "&*", "+@all")
    done = cli(*command, "-u", with_user(redis_url, "somebody"), code=Exit.CONFIG)
    assert "may not do this" in done.stderr
    assert "ACL" in done.stderr
    assert done.stderr.count("\n") == 1
    assert PASSWORD not in done.stdout + done.stderr


def test_doctor_names_the_commands_that_the_user_lacks(cli: Cli, redis_url: str, user) -> None:
    url = with_user(redis_url, user("~*", "&*", "+@all", "-hset", "-zadd"))
    done = cli("doctor", "-u", url, code=Exit.BAD)
    assert "may not run" in done.stderr
    assert "HSET" in done.stderr
    assert "ZADD" in done.stderr
    url = with_user(redis_url, user("~*", "&*", "+@all", "-evalsha", "-eval"))
    done = cli("doctor", "-u", url, code=Exit.BAD)
    assert "permissions\tbad" in done.stdout
    assert "clock\tok" in done.stdout, "the rest is still looked at"
    url = with_user(redis_url, user("~*", "&jobq:doctor", "+@all"))
    assert "SUBSCRIBE" in cli("doctor", "-u", url, code=Exit.BAD).stderr


def test_the_user_of_the_documentation_is_enough(cli: Cli, redis_url: str, user) -> None:
    text = Path(ROOT, "docs", "operations.md").read_text()
    found = re.search(r"^ACL SETUSER jobq on >PASSWORD (.+)$", text, re.MULTILINE)
    assert found
    url = with_user(redis_url, user(*found[1].split()))
    cli("enqueue", "shop.confirm", '{"order_id": "1"}', "-u", url)
    assert "\t1\t" in cli("stats", "-u", url).stdout
    cli("worker", "--burst", "-u", url)
    done = cli("doctor", "-u", url)
    assert "permissions\tok" in done.stdout
    row = next(line for line in cli("stats", "-u", url, "-o", "csv").stdout.splitlines() if ",1," in line)
    assert row
    for command in ("jobs", "queues", "workers", "schedules", "dead"):
        cli(command, "list", "-u", url)
    cli("memory", "-u", url)


def test_a_wrong_login(cli: Cli, server_factory: ServerFactory) -> None:
    server = server_factory(requirepass=PASSWORD).start()
    bare = server.url.replace(f":{PASSWORD}@", "")
    wrong = server.url.replace(PASSWORD, "wr0ngPW")
    for url, words in ((bare, "asks for a password"), (wrong, "wrong user or password")):
        for command in (*COMMANDS, ("worker", "--burst")):
            done = cli(*command, "-u", url, code=Exit.CONFIG)
            assert words in done.stderr
            assert "JOBQ_REDIS_URL" in done.stderr
            assert "wr0ngPW" not in done.stdout + done.stderr
        done = cli("doctor", "-u", url, code=Exit.CONFIG)
        assert "redis\tbad" in done.stdout, "the other checks are shown all the same"
        assert words in done.stderr


def test_a_database_that_is_not_there(cli: Cli, redis_url: str) -> None:
    url = re.sub(r"/\d+$", "/999", redis_url)
    for command in (
        *COMMANDS,
        ("doctor",),
        ("worker", "--burst"),
        ("enqueue", "shop.confirm", '{"order_id": "1"}'),
    ):
        done = cli(*command, "-u", url, code=Exit.CONFIG)
        assert "no database of this number" in done.stderr


def test_a_replica_is_read_and_named(cli: Cli, redis_url: str, server_factory: ServerFactory) -> None:
    cli("enqueue", "shop.confirm", '{"order_id": "1"}')
    port = re.search(r":(\d+)/", redis_url)
    assert port
    replica = server_factory(replicaof=f"127.0.0.1 {port[1]}").start()
    done = cli("enqueue", "shop.confirm", '{"order_id": "1"}', "-u", replica.url, code=Exit.UNAVAILABLE)
    assert "replica" in done.stderr
    assert "name its primary" in done.stderr
    cli("stats", "-u", replica.url)
    done = cli("doctor", "--no-data", "-u", replica.url, code=Exit.BAD)
    assert done.stderr.count("replica") == 1
