"""A worker and a command line whose queues are in two Redis servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

import jobq
from jobq.cli.common import Exit
from jobq.job import JobState
from jobq.private_server import PrivateServer
from tests.process import ledger_app as app
from tests.process.conftest import WorkerFactory
from tests.support.cli import Cli, shell
from tests.support.processes import until
from tests.support.workers import Ledger

pytestmark = pytest.mark.process


@pytest.fixture
def other() -> Iterator[PrivateServer]:
    """The server of the queue critical."""
    with PrivateServer({"appendonly": "yes", "appendfsync": "always"}) as server:
        yield server


@pytest.fixture
def split(redis_url: str, other: PrivateServer) -> Iterator[jobq.Client]:
    queues = {"critical": {"redis_url": other.url}}
    with jobq.Client(jobq.Settings(redis_url=redis_url, queues=queues)) as made:
        yield made


@pytest.fixture
def cli(redis_url: str, other: PrivateServer, tmp_path: Path) -> Cli:
    return Cli(shell(JOBQ_REDIS_URL=redis_url, JOBQ_QUEUES__CRITICAL__REDIS_URL=other.url), tmp_path)


def test_one_worker_serves_both_and_outlives_the_loss_of_one(
    worker: WorkerFactory, split: jobq.Client, other: PrivateServer, ledger: Ledger
) -> None:
    running = worker(queues=("high", "critical"), JOBQ_QUEUES__CRITICAL__REDIS_URL=other.url)
    jobs = [app.note.options(client=split, queue=queue).enqueue(key=queue) for queue in ("high", "critical")]
    assert [job.result(20) for job in jobs] == ["noted high", "noted critical"]
    later = app.note.options(client=split, queue="critical", delay=1).enqueue(key="later")
    other.kill()
    assert (
        app.note.options(client=split, queue="high").enqueue(key="meanwhile").result(20) == "noted meanwhile"
    )
    other.restart()
    until(lambda: ledger.count("ran", "later") == 1)
    until(lambda: split.get(later.id).state is JobState.SUCCEEDED)
    assert "Traceback" not in running.output()


def test_the_command_line_covers_both_or_asks_which(
    cli: Cli, split: jobq.Client, other: PrivateServer, redis_url: str
) -> None:
    ids = {q: app.note.options(client=split, queue=q).enqueue(key=q).id for q in ("high", "critical")}
    stats = cli.json("stats")
    assert {queue: stats["queues"][queue]["queued"] for queue in ids} == {"high": 1, "critical": 1}
    assert list(stats["other_redis"]) == [other.url]
    for queue, job_id in ids.items():
        assert cli.json("jobs", "show", job_id)["id"] == job_id
        assert [job["id"] for job in cli.json("jobs", "list", "--queue", queue)["jobs"]] == [job_id]
        assert cli.json("queues", "pause", queue)["paused"]
    refused = cli("jobs", "list", code=Exit.CONFIG)
    assert refused.stderr.count("\n") == 1
    assert "critical" in refused.stderr
    names = {check["check"] for check in cli.json("doctor", "--no-data", code=Exit.BAD)["checks"]}
    assert {f"{url}: redis" for url in (redis_url, other.url)} <= names
    assert cli("jobs", "cancel", *ids.values(), "--yes").returncode == Exit.DONE
    assert {split.get(job_id).state for job_id in ids.values()} == {JobState.CANCELLED}
    ready = cli.json("health", "ready")
    assert len(ready["server"].split(", ")) == 2
    assert ready["durability"].endswith(", aof-always")
    with redis.Redis.from_url(other.url) as server:
        server.config_set("maxmemory-policy", "allkeys-lru")
        evicts = cli("health", "ready", code=Exit.BAD)
        assert f"{other.url}: maxmemory-policy is allkeys-lru" in evicts.stderr
        server.config_set("maxmemory-policy", "noeviction")
    other.kill()
    assert cli("health", "ready", code=Exit.UNAVAILABLE).stderr
    down = cli("doctor", "--no-data", code=Exit.UNAVAILABLE)
    assert f"{other.url}: redis" in down.stderr
    assert f"{redis_url}: redis" not in down.stderr
