"""``export_transactions`` from a real SQLite database."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import stat
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

import jobq
from jobq.context import JobContext, running_job
from jobq.errors import Cancel, ConfigError, NoHandlerError, PayloadError
from jobq.helpers import Export, ExportSource, SqlExporter, export_transactions, exports, use_settings

ROWS = 100_000
JANUARY = Export("acc_1", date(2026, 1, 1), date(2026, 1, 31), "csv")


class Sink:
    def __init__(self, cancel_after: int | None = None) -> None:
        self.told: list[tuple[float, str]] = []
        self.cancel_after = cancel_after

    def progress(self, job_id: str, fraction: float, text: str) -> None:
        self.told.append((fraction, text))

    def log(self, job_id: str, text: str) -> None:
        return None

    def cancel_requested(self, job_id: str) -> bool:
        return self.cancel_after is not None and len(self.told) >= self.cancel_after


def _database(path: Path, rows: Iterator[tuple[Any, ...]]) -> str:
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE transactions (id INTEGER PRIMARY KEY, account_id TEXT, booked_at TEXT, "
            "amount NUMERIC, currency TEXT, description TEXT)"
        )
        connection.executemany("INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.close()
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("db") / "big.db"
    return _database(path, (
        (n, "acc_1", f"2026-01-{n % 31 + 1:02} 12:00:00", -n / 100 if n % 2 else n, "EUR", f"{n} " + "x" * 84)
        for n in range(ROWS)
    ))  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> str:
    days = ["2025-12-31 23:59:59", "2026-01-01 00:00:00", "2026-01-31 23:59:59", "2026-02-01 00:00:00"]
    return _database(tmp_path / "small.db", iter([
        *((n, "acc_1", day, 1, "EUR", day) for n, day in enumerate(days)),
        (10, "acc_2", days[1], 1, "EUR", "another account"),
    ]))  # fmt: skip


def _parts(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.covers("O-06")
def test_100_000_rows_in_constant_memory(big: str, tmp_path: Path, kind: Any) -> None:
    export = Export("acc_1", date(2026, 1, 1), date(2026, 1, 31), kind)
    exporter = SqlExporter(big, tmp_path / "out")
    exporter(Export("nobody", export.start, export.end, kind))  # imports and caches, before measuring
    sink = Sink()
    tracemalloc.start()
    try:
        with running_job(JobContext(job_id="j", sink=sink)):
            result = exporter(export)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result["rows"] == ROWS
    path = Path(result["path"])
    assert path.stat().st_size == result["bytes"] > 10_000_000
    assert peak < 4_000_000
    with path.open(encoding="utf-8", newline="") as file:
        if kind == "csv":
            records: Any = csv.DictReader(file)
        else:
            records = map(json.loads, file)
        total, seen = Decimal(0), 0
        for record in records:
            total += Decimal(str(record["amount"]))
            seen += 1
    assert seen == ROWS
    assert total == sum((Decimal(-n) / 100 if n % 2 else Decimal(n)) for n in range(ROWS))
    fractions = [fraction for fraction, _ in sink.told]
    assert fractions == sorted(fractions)
    assert sink.told[-1] == (1.0, "100,000 of 100,000 rows")
    assert _parts(path.parent) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_both_days_are_included_and_one_account_only(small: str, tmp_path: Path) -> None:
    result = SqlExporter(small, tmp_path)(JANUARY)
    with Path(result["path"]).open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["1", "2"]
    assert result["rows"] == 2


def test_an_empty_export_has_a_header(small: str, tmp_path: Path) -> None:
    result = SqlExporter(small, tmp_path)(Export("nobody", JANUARY.start, JANUARY.end, "csv"))
    assert Path(result["path"]).read_text() == "id,account_id,booked_at,amount,currency,description\n"
    assert result["rows"] == 0


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+cmd", "@SUM(A1)", "\tx", "\rx", "\nx", "＝1"])
def test_formulas_are_text(tmp_path: Path, text: str) -> None:
    url = _database(tmp_path / "f.db", iter([(1, "acc_1", "2026-01-05", -12.5, "EUR", text)]))
    result = SqlExporter(url, tmp_path)(JANUARY)
    with Path(result["path"]).open(encoding="utf-8", newline="") as file:
        [row] = csv.DictReader(file)
    assert row["description"] == "'" + text
    assert row["amount"] == "-12.5"
    lines = SqlExporter(url, tmp_path)(Export("acc_1", JANUARY.start, JANUARY.end, "jsonl"))
    assert json.loads(Path(lines["path"]).read_text())["description"] == text  # JSON has no formulas


def test_cells() -> None:
    values = [None, True, -3, Decimal("-1E+2"), date(2026, 1, 2), b"\x01", 'a,"b"\n']
    assert [exports._cell(value) for value in values] == [
        "", "true", "-3", "-100", "2026-01-02", "01", 'a,"b"\n',
    ]  # fmt: skip


def test_another_table(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "o.db") as connection:
        connection.execute('CREATE TABLE "my ledger" (nr INTEGER, owner TEXT, "on" DATE, "order" TEXT)')
        connection.execute("INSERT INTO \"my ledger\" VALUES (1, 'acc_1', '2026-01-31', 'x')")
    connection.close()
    source = ExportSource(
        table="my ledger", columns=("nr", "order"), account="owner", booked_at="on", key="nr"
    )
    result = SqlExporter(f"sqlite:///{tmp_path / 'o.db'}", tmp_path, source)(JANUARY)
    assert Path(result["path"]).read_text() == "nr,order\n1,x\n"
    with pytest.raises(ConfigError, match="columns"):
        ExportSource(columns=())


def test_a_cancelled_export_leaves_nothing(big: str, tmp_path: Path) -> None:
    sink = Sink(cancel_after=3)
    with running_job(JobContext(job_id="j", sink=sink)), pytest.raises(Cancel):
        SqlExporter(big, tmp_path)(JANUARY)
    assert len(sink.told) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_old_file_and_names_no_account(small: str, tmp_path: Path) -> None:
    old = Path(SqlExporter(small, tmp_path)(JANUARY)["path"])
    before = old.read_bytes()
    with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
        SqlExporter(small, tmp_path, ExportSource(table="absent"))(JANUARY)
    assert "acc_1" not in str(caught.value)
    assert old.read_bytes() == before
    assert _parts(tmp_path) == []


def test_what_a_killed_run_left_is_removed_after_a_day(small: str, tmp_path: Path) -> None:
    for age, name in ((0, "new"), (90_000, "old")):
        part = tmp_path / f".{JANUARY.file_name}.{name}.part"
        part.touch()
        os.utime(part, (part.stat().st_mtime - age,) * 2)
    SqlExporter(small, tmp_path)(JANUARY)
    assert _parts(tmp_path) == [f".{JANUARY.file_name}.new.part"]


@pytest.mark.parametrize("account", ["../../etc/passwd", "a/b", "é", "x" * 200, ".."])
def test_file_names_are_safe_and_distinct(small: str, tmp_path: Path, account: str) -> None:
    target = tmp_path / "out"
    result = SqlExporter(small, target)(Export(account, JANUARY.start, JANUARY.end, "csv"))
    assert Path(result["path"]).parent == target
    other = Export(account.replace("/", "_") + "_", JANUARY.start, JANUARY.end, "csv")
    assert other.file_name != Path(result["path"]).name


def test_the_default_works_from_settings(small: str, tmp_path: Path) -> None:
    use_settings(jobq.Settings(sql_url=small, export_dir=tmp_path / "exports"))
    try:
        result = export_transactions.run(account_id="acc_1", start="2026-01-01", end="2026-01-31")
    finally:
        use_settings(None)
    assert result["rows"] == 2
    assert Path(result["path"]).parent == tmp_path / "exports"


def test_without_settings_there_is_no_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    use_settings(jobq.Settings())
    with pytest.raises(NoHandlerError, match="JOBQ_SQL_URL"):
        export_transactions.run(account_id="a", start="2026-01-01", end="2026-01-31")
    use_settings(None)


def test_without_the_extra_the_message_says_what_to_install(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ConfigError, match=r"pip install 'jobq\[sql\]'"):
        SqlExporter(small, tmp_path / "out")(JANUARY)


def test_params() -> None:
    given = {"account_id": "a", "start": "2026-01-01", "end": date(2026, 1, 31), "format": "jsonl"}
    bound = export_transactions.bind((), given)
    assert (bound["start"], bound["end"]) == (date(2026, 1, 1), date(2026, 1, 31))
    loaded = export_transactions.load(given | {"end": "2026-01-31"}, 1)
    assert loaded == bound


@pytest.mark.parametrize("params", [
    {"start": "2026-02-01"}, {"start": "01.01.2026"}, {"end": "2026-02-30"}, {"end": "9999-12-31"},
    {"format": "xlsx"}, {"account_id": ""}, {"account_id": "x" * 201}, {"start": None}, {"end": 5.5},
])  # fmt: skip
def test_bad_params(params: dict[str, Any]) -> None:
    good = {"account_id": "a", "start": "2026-01-01", "end": "2026-01-31"}
    with pytest.raises(PayloadError, match=r"param '(start|end|format|account_id)"):
        export_transactions.bind((), good | params)
