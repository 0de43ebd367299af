"""The guided tour: it says what it counted, and exits 6 when a count is off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobq.demo.peers import ROWS, Gateway, make_ledger

pytestmark = pytest.mark.process


@pytest.mark.timeout(90)
def test_the_tour_counts_right_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "jobq.cli", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=80,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("\nok ") == 6
    assert "802 jobs in" in ran.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_gateway_charges_once_per_key_and_is_busy_now_and_then() -> None:
    gateway = Gateway()
    answers = [gateway.charge(f"key-{n}", f"pay_{n}")[0] for n in range(10)]
    assert answers.count(503) == gateway.refused == 2
    assert gateway.charge("key-0", "pay_0")[0] == 200
    assert gateway.charges["pay_0"] == 1
    gateway.close()


def test_the_ledger_has_its_rows(tmp_path: Path) -> None:
    import sqlite3

    make_ledger(tmp_path / "ledger.db")
    database = sqlite3.connect(tmp_path / "ledger.db")
    assert database.execute("SELECT count(*) FROM transactions").fetchone() == (ROWS,)
    database.close()
