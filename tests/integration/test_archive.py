"""Dead letters move to a file and back: none is lost or doubled, whatever ends the run in between."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import redis

import jobq
from jobq import archive
from jobq.archive import ArchiveFile, Line, read_archive
from jobq.audit import audit
from jobq.client import Client
from jobq.errors import ConflictError, JobNotFoundError, StoreError
from jobq.tasks import Registry, task
from tests.integration.test_control import Both
from tests.support.hand import Hand
from tests.support.processes import until

registry = Registry()
KEY = "k" * 40


@task("a.pay", registry=registry, dedup="{payment}")
def pay(payment: str, code: Annotated[str, jobq.Secret] = "none") -> None:
    return None


@pytest.fixture
def settings(redis_url: str) -> jobq.Settings:
    return jobq.Settings(redis_url=redis_url, secret_key=KEY)


@pytest.fixture
def client(settings: jobq.Settings) -> Iterator[Client]:
    with Client(settings, registry=registry) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def do(request: pytest.FixtureRequest, settings: jobq.Settings) -> Both:
    return Both(settings, request.param, registry)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dead.jsonl"


@pytest.fixture
def hand(client: Client) -> Hand:
    return Hand(client)


def dead(client: Client, hand: Hand, count: int) -> list[str]:
    made = pay.options(client=client, tags=("vip",))
    ids = [made.enqueue(payment=f"p{n}", code="s3cret").id for n in range(count)]
    for _ in ids:
        hand.kill()
    return ids


def archived(path: Path) -> list[str]:
    return [line.id for line in read_archive(path)]


def test_to_the_file_and_back(
    do: Both, client: Client, hand: Hand, redis_client: redis.Redis, path: Path
) -> None:
    ids = dead(client, hand, 3)
    letters = [client.dead_letters.get(job_id) for job_id in ids]
    waits = pay.options(client=client).enqueue(payment="other").id
    assert do("dead_letters.archive", path, dry_run=True).matched == 3
    assert not path.exists()
    report = do("dead_letters.archive", path)
    assert (report.matched, report.done, report.failed_count) == (3, 3, 0)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "s3cret" not in path.read_text()
    assert {record["reason"] for record in map(json.loads, path.read_text().splitlines())} == {"exhausted"}
    assert client.dead_letters.count() == 0
    assert not [key for key in redis_client.scan_iter() if any(job_id.encode() in key for job_id in ids)]

    assert do("dead_letters.restore", path, [ids[0]]).done == 1
    assert do("dead_letters.restore", path, dry_run=True).matched == 3
    assert do("dead_letters.restore", path).done == 3  # the first is there already, as it was
    assert [client.dead_letters.get(job_id) for job_id in ids] == letters
    assert {job.id for job in client.jobs(tag="vip").items} == set(ids)
    assert audit(client) == []
    assert client.dead_letters.replay(ids).replayed == 3
    assert do("dead_letters.restore", path).failed == [(job_id, "there") for job_id in archived(path)]
    assert {job.id for job in hand.claim()} == {waits, *ids}


def test_the_filter_chooses(client: Client, hand: Hand, path: Path) -> None:
    ids = dead(client, hand, 3)
    letters = client.dead_letters
    assert letters.archive(path, older_than=3_600).matched == 0
    assert letters.archive(path, queue="low").matched == 0
    assert letters.archive(path, task="a.other").matched == 0
    assert not path.exists()
    assert letters.archive(path, error="fp1", limit=2).done == 2
    assert letters.archive(path, task="a.pay", queue="medium").done == 1
    assert sorted(archived(path)) == sorted(ids)


def test_a_crash_before_they_leave_redis_doubles_none(
    client: Client, hand: Hand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = dead(client, hand, 3)
    with monkeypatch.context() as patch:
        patch.setattr(archive, "delete_many", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            client.dead_letters.archive(path)
    assert client.dead_letters.count() == 3
    with path.open("ab") as file:
        file.write(path.read_bytes()[:100])  # and one that was being written
    assert client.dead_letters.archive(path).done == 3
    assert sorted(archived(path)) == sorted(ids)
    assert client.dead_letters.count() == 0


def test_a_full_disk_takes_none_out_of_redis(
    client: Client, hand: Hand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead(client, hand, 3)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        client.dead_letters.archive(path)
    assert client.dead_letters.count() == 3


def test_one_that_died_again_meanwhile_stays(
    client: Client, hand: Hand, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, other = dead(client, hand, 2)
    add = ArchiveFile.add

    def slow(file: ArchiveFile, lines: Any) -> None:
        add(file, lines)
        client.dead_letters.replay([again])
        hand.kill(error="still no funds")

    with monkeypatch.context() as patch:
        patch.setattr(ArchiveFile, "add", slow)
        report = client.dead_letters.archive(path)
    assert (report.done, report.failed) == (1, [(again, "changed")])
    assert client.dead_letters.get(again).error == "still no funds"
    assert client.dead_letters.archive(path).done == 1
    assert sorted(archived(path)) == sorted([again, other, again])
    client.dead_letters.restore(path)
    assert client.dead_letters.get(again).error == "still no funds"  # the last of its lines counts


SCRIPT = """
import sys
from jobq import Client, Settings
with Client(Settings(redis_url=sys.argv[1])) as client:
    client.dead_letters.archive(sys.argv[2], rate=100)
"""


@pytest.mark.process
def test_a_kill_midway_loses_and_doubles_none(client: Client, hand: Hand, path: Path, redis_url: str) -> None:
    ids = dead(client, hand, 120)
    with subprocess.Popen([sys.executable, "-c", SCRIPT, redis_url, str(path)]) as process:
        until(lambda: client.dead_letters.count() < 120, 20)
        process.send_signal(signal.SIGKILL)
    assert client.dead_letters.count() > 0
    assert {*archived(path), *(letter.id for letter in client.dead_letters.list(limit=200).items)} == {*ids}
    client.dead_letters.archive(path)
    assert sorted(archived(path)) == sorted(ids)
    assert client.dead_letters.count() == 0


def test_what_is_no_archive_is_left_alone(client: Client, hand: Hand, path: Path) -> None:
    dead(client, hand, 1)
    path.write_text('{"v": 1}\n')
    for step in (client.dead_letters.archive, client.dead_letters.restore):
        with pytest.raises(ValueError, match="line 1"):
            step(path)
    assert path.read_text() == '{"v": 1}\n'
    assert client.dead_letters.count() == 1


def test_two_do_not_write_one_file(client: Client, hand: Hand, path: Path) -> None:
    dead(client, hand, 1)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="another archive run"):
            client.dead_letters.archive(path)
    assert client.dead_letters.archive(path).done == 1


def test_a_full_redis_says_so(client: Client, hand: Hand, path: Path, redis_client: redis.Redis) -> None:
    dead(client, hand, 2)
    client.dead_letters.archive(path)
    redis_client.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(StoreError, match="out of memory"):
            client.dead_letters.restore(path)
    finally:
        redis_client.config_set("maxmemory", "0")
    assert client.dead_letters.count() == 0
    assert client.dead_letters.restore(path).done == 2


def test_an_id_that_is_not_in_the_file(client: Client, hand: Hand, path: Path) -> None:
    (job_id,) = dead(client, hand, 1)
    client.dead_letters.archive(path)
    with pytest.raises(JobNotFoundError, match="nope-1"):
        client.dead_letters.restore(path, [job_id, "nope-1"])
    assert client.dead_letters.count() == 0


def test_a_line_keeps_every_byte() -> None:
    job = {
        "origin": b"q",
        "data": bytes(range(256)),
        "ended_at": b"2026-01-01T00:00:00.000000Z",
        "status": b"failed",
    }
    line = Line("j-1", job, (b"\xff",), (b"type", b"2"), ("€".encode(),))
    assert Line.decode(line.encode()) == line
