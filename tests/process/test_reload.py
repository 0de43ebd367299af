"""``jobq worker --reload``: a change is served, a syntax error is survived, a signal still ends it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import jobq
from jobq.tasks import Registry
from jobq.worker.reload import stamps, watched
from tests.process.conftest import WorkerFactory
from tests.support.processes import ROOT, until
from tests.support.workers import Ledger, Worker

CODE = """
import jobq
from tests.process.ledger_app import trace

@jobq.task("t.edited", priority="high")
def edited() -> None:
    trace("ran", "{word}")
"""


@jobq.task("t.edited", priority="high", registry=Registry())
def edited() -> None:
    """As producers know it."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = folder / "edited_app.py"
    path.write_text(CODE.format(word="one"))
    return path


@pytest.fixture
def serving(worker: WorkerFactory, source: Path) -> Iterator[Worker]:
    running = worker("--reload", app="edited_app", wait=False, PYTHONPATH=f"{ROOT}:{source.parent}")
    yield running
    running.send(signal.SIGTERM)
    assert running.wait(20) == 0


@pytest.mark.process
def test_it_serves_what_was_edited_and_survives_a_syntax_error(
    serving: Worker, source: Path, client: jobq.Client, ledger: Ledger
) -> None:
    task = edited.options(client=client)
    task.enqueue()
    ledger.wait("ran", "one", timeout=30)
    source.write_text("def broken(:\n")
    until(lambda: "SyntaxError" in serving.output() or "invalid syntax" in serving.output(), 30)
    task.enqueue()
    source.write_text(CODE.format(word="two"))
    ledger.wait("ran", "two", timeout=30)
    assert ledger.count("ran", "one") == 1


@pytest.mark.process
def test_a_second_signal_forces_through_the_reloader(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    from tests.process import ledger_app as app

    running = worker("--reload", "--grace", "60s", wait=False)
    app.nap.options(client=client).enqueue(key="long", seconds=50)
    ledger.wait("start", "long", timeout=30)
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
