"""Fixtures of the interop tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jobq
from jobq import client as client_module


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What ran, line by line, in this test's processes."""
    file = tmp_path / "ledger"
    monkeypatch.setenv("LEDGER", str(file))
    return lambda: file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def default_client(settings: jobq.Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[jobq.Client]:
    """The client behind ``task.enqueue`` and rq's serializer."""
    monkeypatch.setattr(client_module, "_default", None)
    with jobq.configure(settings) as made:
        yield made
