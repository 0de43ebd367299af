"""``export_transactions``: an account's transactions to CSV or JSON Lines, streamed, in the low lane."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import IO, Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import to_json

from jobq.context import current_job
from jobq.errors import Cancel, ConfigError
from jobq.helpers.helper import helper
from jobq.helpers.settings import helper_settings

Format = Literal["csv", "jsonl"]

_BATCH: Final = 1_000
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_STALE_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Export:
    """What a handler of ``export_transactions`` gets. ``start`` and ``end`` are both included."""

    account_id: str
    start: date
    end: date
    format: Format

    @property
    def file_name(self) -> str:
        """The same for equal exports, so a second run replaces the file of the first."""
        account = _UNSAFE.sub("_", self.account_id)[:64]
        if account != self.account_id:
            account += "-" + hashlib.sha256(self.account_id.encode()).hexdigest()[:8]
        return f"transactions-{account}-{self.start}-{self.end}.{self.format}"


@dataclass(frozen=True, slots=True)
class ExportSource:
    """The table that transactions are read from.

    Attributes:
        table: Its name.
        columns: What is exported, in this order; the header of a CSV file.
        account: Column that is compared with the account id.
        booked_at: Column of dates or timestamps that is compared with start and end, and ordered by.
        key: Column that orders transactions of the same time.
        schema: Schema of the table, where the database has any.
    """

    table: str = "transactions"
    columns: tuple[str, ...] = ("id", "account_id", "booked_at", "amount", "currency", "description")
    account: str = "account_id"
    booked_at: str = "booked_at"
    key: str = "id"
    schema: str | None = None

    def __post_init__(self) -> None:
        if not self.columns or not all(self.columns):
            raise ConfigError("ExportSource: columns must be a tuple of column names, and not empty")


class SqlExporter:
    """A handler of ``export_transactions`` that reads any database SQLAlchemy knows.

    Rows are fetched as the file is written, so memory does not grow with their number. The file appears
    under its name only when it is complete and on disk.

    Args:
        url: The database, as SQLAlchemy writes it.
        directory: Where files go; made if need be. Files are readable by their owner only.
        source: Table and columns.
    """

    def __init__(self, url: str, directory: str | Path, source: ExportSource | None = None) -> None:
        self._url = url
        self._directory = Path(directory)
        self._source = source or ExportSource()

    def __call__(self, export: Export) -> dict[str, Any]:
        """Write the file.

        Returns:
            ``{"path": absolute path, "rows": rows without the header, "bytes": size}``

        Raises:
            Cancel: The job was asked to stop; no file is left.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        target = (self._directory / export.file_name).resolve()
        _remove_stale(target)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                rows = self._write(export, file)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            part.replace(target)
        except BaseException:  # a soft timeout, too, leaves nothing behind
            part.unlink(missing_ok=True)
            raise
        _sync_directory(target.parent)
        return {"path": str(target), "rows": rows, "bytes": size}

    def _write(self, export: Export, file: IO[bytes]) -> int:
        job = current_job()
        done = 0
        with _writer(export.format, self._source.columns, file) as write:
            for total, rows in self._batches(export):
                write(rows)
                done += len(rows)
                job.progress(done / max(total, done, 1), f"{done:,} of {total:,} rows")
                if job.cancelled:
                    raise Cancel("cancelled while exporting")
        return done

    def _batches(self, export: Export) -> Iterator[tuple[int, Sequence[Sequence[Any]]]]:
        """The total, and some of the rows, until there are no more."""
        sql = _sqlalchemy()
        source = self._source
        names = dict.fromkeys((*source.columns, source.account, source.booked_at, source.key))
        table = sql.table(source.table, *(sql.column(name) for name in names), schema=source.schema)
        booked_at = table.c[source.booked_at]
        # Whole days: from the start of the first to the start of the day after the last. As dates, which
        # every database compares with timestamps, and SQLite with the ISO text it keeps.
        first = sql.literal(export.start, sql.Date())
        after = sql.literal(export.end + timedelta(days=1), sql.Date())
        chosen = sql.and_(table.c[source.account] == export.account_id, booked_at >= first, booked_at < after)
        count = sql.select(sql.func.count()).select_from(table).where(chosen)
        query = (
            sql.select(*(table.c[name] for name in source.columns))
            .where(chosen)
            .order_by(booked_at, table.c[source.key])
        )
        # hide_parameters: an error must not quote the account.
        engine = sql.create_engine(self._url, poolclass=sql.pool.NullPool, hide_parameters=True)
        try:
            with engine.connect() as connection:
                total = int(connection.execute(count).scalar_one())
                result = connection.execution_options(stream_results=True, yield_per=_BATCH).execute(query)
                for rows in result.partitions():
                    yield total, rows
        finally:
            engine.dispose()


class _writer:  # noqa: N801 - used like a function
    """``with _writer(…) as write: write(rows)``."""

    def __init__(self, kind: Format, columns: Sequence[str], file: IO[bytes]) -> None:
        self._kind = kind
        self._columns = tuple(columns)
        self._file = file
        self._text: io.TextIOWrapper | None = None

    def __enter__(self) -> Callable[[Sequence[Sequence[Any]]], None]:
        if self._kind == "jsonl":
            return self._json_lines
        self._text = io.TextIOWrapper(self._file, encoding="utf-8", newline="", write_through=False)
        self._csv = csv.writer(self._text)
        self._csv.writerow([_cell(name) for name in self._columns])
        return self._csv_rows

    def __exit__(self, *_: object) -> None:
        if self._text is not None:
            self._text.flush()
            self._text.detach()

    def _csv_rows(self, rows: Sequence[Sequence[Any]]) -> None:
        self._csv.writerows([_cell(value) for value in row] for row in rows)

    def _json_lines(self, rows: Sequence[Sequence[Any]]) -> None:
        for row in rows:
            record = dict(zip(self._columns, row, strict=True))
            self._file.write(to_json(record, inf_nan_mode="strings", bytes_mode="base64") + b"\n")


def _cell(value: Any) -> str:
    """A value as a CSV cell that no spreadsheet runs as a formula. Numbers stay numbers, negative or not."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case Decimal():
            return format(value, "f")
        case datetime() | date():
            return value.isoformat()
        case bytes():
            return value.hex()
    text = str(value)
    return "'" + text if text.startswith(_FORMULA) else text


def _sync_directory(directory: Path) -> None:
    """Make the new name itself survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    """Delete what a killed run of this export left behind."""
    for part in target.parent.glob(f".{target.name}.*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _STALE_S:
                part.unlink()


def _sqlalchemy() -> ModuleType:
    try:
        import sqlalchemy  # late: an extra, and slow to load
    except ImportError:
        raise ConfigError("export_transactions needs SQLAlchemy: pip install 'jobq[sql]'") from None
    return sqlalchemy


def _default() -> SqlExporter | None:
    """The exporter that the settings describe."""
    settings = helper_settings()
    url = settings.sql_url
    if not url:
        return None
    return SqlExporter(url, settings.export_dir)


def _to_date(value: date | str) -> date:
    try:
        return value if isinstance(value, date) else date.fromisoformat(value)
    except ValueError:
        raise ValueError("expected a date such as 2026-01-31") from None


def _to_end(value: date | str, info: ValidationInfo) -> date:
    end = _to_date(value)
    start = info.data.get("start")
    if isinstance(start, date) and end < start:
        raise ValueError("must not be before start")
    if end == date.max:
        raise ValueError("is too far away")
    return end


@helper(
    "jobq.export_transactions",
    default=_default,
    remedy="set JOBQ_SQL_URL",
    priority="low",
    isolation="process",
    timeout=1_800,
    max_attempts=2,
)
def export_transactions(
    account_id: Annotated[str, Field(min_length=1, max_length=200)],
    start: Annotated[date | str, AfterValidator(_to_date)],
    end: Annotated[date | str, AfterValidator(_to_end)],
    format: Format = "csv",  # noqa: A002 - the contract's name
) -> Export:
    """Write an account's transactions from ``start`` to ``end``, both included, to a file; queue ``low``.

    Returns the job, whose result is ``{"path", "rows", "bytes"}``. Without a handler of the application the
    rows come from ``JOBQ_SQL_URL`` and the file goes to ``JOBQ_EXPORT_DIR``.
    """
    return Export(account_id, _to_date(start), _to_date(end), format)
