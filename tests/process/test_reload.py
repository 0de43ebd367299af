"""``jobq worker --reload``: a change is served, a syntax error is survived, a signal still ends it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Protocol

import pytest

import jobq
from jobq.tasks import Registry
from jobq.worker.reload import stamps, watched
from tests.process.conftest import WorkerFactory
from tests.support.processes import ROOT, search_path, until
from tests.support.workers import Ledger, Worker

CODE = """
import time
import jobq
from tests.process.ledger_app import trace

@jobq.task("t.edited", priority="high")
def edited(seconds: float) -> None:
    trace("start", "{word}")
    time.sleep(seconds)
    trace("ran", "{word}")
"""


@jobq.task("t.edited", priority="high", registry=Registry())
def edited(seconds: float) -> None:
    """As producers know it."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    for path in (folder, tmp_path / "here"):
        path.mkdir()
    path = folder / "edited_app.py"
    path.write_text(CODE.format(word="one"))
    return path


class Start(Protocol):
    """``start("--grace", "60s")`` runs ``jobq worker --reload`` beside the application's folder."""

    def __call__(self, *args: str) -> Worker: ...


@pytest.fixture
def start(worker: WorkerFactory, source: Path, tmp_path: Path) -> Start:
    search = search_path(ROOT, source.parent)
    here = tmp_path / "here"

    def run(*args: str) -> Worker:
        return worker("--reload", *args, app="edited_app", wait=False, cwd=here, PYTHONPATH=search)

    return run


@pytest.mark.process
def test_it_serves_what_was_edited_and_survives_a_syntax_error(
    start: Start, source: Path, client: jobq.Client, ledger: Ledger
) -> None:
    running = start()
    task = edited.options(client=client)
    task.enqueue(seconds=0)
    ledger.wait("ran", "one", timeout=30)
    source.write_text("def broken(:\n")
    until(lambda: "SyntaxError" in running.output(), 30)
    task.enqueue(seconds=0)
    source.write_text(CODE.format(word="two"))
    ledger.wait("ran", "two", timeout=30)
    assert ledger.count("ran", "one") == 1
    running.send(signal.SIGTERM)
    assert running.wait(20) == 0


@pytest.mark.process
def test_a_second_signal_forces_through_the_reloader(
    start: Start, client: jobq.Client, ledger: Ledger
) -> None:
    running = start("--grace", "60s")
    edited.options(client=client).enqueue(seconds=50)
    ledger.wait("start", "one", timeout=30)
    running.send(signal.SIGINT)
    running.wait_event("worker.draining")
    running.send(signal.SIGINT)
    assert running.wait(10) == 130


def test_only_sources_and_settings_are_watched(tmp_path: Path) -> None:
    for name in ("a.py", "b.toml", ".env", "c.txt", ".hidden/d.py", "venv/pyvenv.cfg", "venv/e.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert {Path(path).name for path in stamps([tmp_path])} == {"a.py", "b.toml", ".env"}


def test_an_application_elsewhere_is_watched_and_an_installed_one_is_not(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(source.parent))
    assert watched(["edited_app", "redis.client", "no_such_module"]) == [Path.cwd(), source]
