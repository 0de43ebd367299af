"""Fixtures for tests with real worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

import jobq
from tests.support.cli import Cli, shell
from tests.support.workers import LEDGER_APP, Ledger, Worker


class WorkerFactory(Protocol):
    """``worker("--burst", queues=("high",), JOBQ_LEASE="1s")`` starts a worker and waits until it serves."""

    def __call__(
        self,
        *args: str,
        queues: Sequence[str] = ...,
        wait: bool = ...,
        url: str = ...,
        app: str = ...,
        cwd: Path = ...,
        **env: str,
    ) -> Worker: ...


@pytest.fixture
def cli(redis_url: str, tmp_path: Path) -> Cli:
    """``jobq`` on the test's server, with the tasks of ``cli_tasks``."""
    return Cli(shell(JOBQ_REDIS_URL=redis_url), tmp_path)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """The file that the tasks of ``ledger_app`` append to."""
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def worker(redis_url: str, tmp_path: Path, ledger: Ledger, client: jobq.Client) -> Iterator[WorkerFactory]:
    """Start real workers; each ends with the test."""
    started: list[Worker] = []

    def factory(
        *args: str,
        queues: Sequence[str] = ("high",),
        wait: bool = True,
        url: str = redis_url,
        app: str = LEDGER_APP,
        **env: Any,
    ) -> Worker:
        made = Worker(url, tmp_path, *args, queues=queues, app=app, LEDGER=str(ledger.path), **env)
        started.append(made)
        return made.ready() if wait else made

    yield factory
    for made in started:
        made.kill()
