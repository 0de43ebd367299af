"""How results are printed: tables for people, tab-separated when piped; JSON, JSON Lines, CSV for programs.

Results go to stdout; words, errors and progress bars go to stderr.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import click

from jobq.units import in_seconds, is_text

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("table", "wide", "json", "jsonl", "csv")

_NOTHING: tuple[Any, ...] = (None, (), "", False)

# What a terminal obeys; what turns the direction of the text around it; halves of characters, which no stream takes.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

# States and check results, as coloured in tables.
_COLORS = {
    "running": "cyan",
    "succeeded": "green",
    "ok": "green",
    "fixed": "green",
    "warn": "yellow",
    "retrying": "yellow",
    "parked": "yellow",
    "dead": "red",
    "bad": "red",
    "lost": "red",
    "cancelled": "bright_black",
}


@dataclass(frozen=True, slots=True)
class Style:
    """What the two streams can show.

    Attributes:
        color: True or False where the user decided, None: as the stream allows.
        stdout_terminal: Results are read by a person, in a terminal.
        stderr_terminal: Words are.
    """

    color: bool | None
    stdout_terminal: bool
    stderr_terminal: bool


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        title: Heading; in lower case it is the CSV heading.
        get: The cell's value, from the row.
        wide: Shown only with ``-o wide``, in CSV, and when piped.
        right: Aligned to the right.
        grow: Words, which are wrapped where the terminal is narrow; nothing else is ever cut.
        spare: Left out of a table that is too wide for the terminal, the highest first; 0: never.
    """

    title: str
    get: Callable[[Any], Any]
    wide: bool = False
    right: bool = False
    grow: bool = False
    spare: int = 0


class Bar(Protocol):
    """A progress bar, shown or not."""

    def advance(self, count: int = 1) -> None:
        """Count further items as done."""

    def reach(self, share: float, text: str | None = None) -> None:
        """Show that so much of one thing is done, 0 to 1, and what it says of that."""


class _NoBar:
    def advance(self, count: int = 1) -> None:
        """Nobody looks."""

    def reach(self, share: float, text: str | None = None) -> None:
        """Nobody looks."""


def plain(value: Any) -> Any:
    """The value as JSON can hold it: enums by value, times in ISO with Z, durations in seconds."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    return value


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text; NaN and infinity become null, which JSON can hold."""
    clean = plain(value)
    try:
        text = json.dumps(clean, ensure_ascii=False, indent=indent, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(clean), ensure_ascii=False, indent=indent, default=str)
    return _printable(text)


def _printable(text: str) -> str:
    """Halves of characters, as in an id that is not UTF-8, written out as JSON does: nothing prints them."""
    return text if is_text(text) else _HALF.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


_HALF = re.compile("[\ud800-\udfff]")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


# Below this many seconds: size of the unit in seconds, its name, size and name of the part that follows it.
_UNITS = (
    (3599.5, 60, "min", 1, "s"),
    (86370.0, 3600, "h", 60, "min"),
    (float("inf"), 86400, "d", 3600, "h"),
)


def duration_text(value: timedelta | float | None) -> str:
    """A duration for people: ``4 ms``, ``2.5 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if value is None:
        return "-"
    seconds = in_seconds(value)
    if seconds < 0:
        return f"-{duration_text(-seconds)}"
    if seconds == 0:
        return "0"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    for limit, size, unit, part, small in _UNITS:
        if seconds < limit:
            whole, rest = divmod(round(seconds / part), size // part)
            return f"{whole} {unit} {rest} {small}" if rest else f"{whole} {unit}"
    return f"{seconds:.3g} s"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago, or in how long, for people."""
    if moment is None:
        return "-"
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if not round(seconds):
        return "now"
    return f"{duration_text(round(seconds))} ago" if seconds >= 0 else f"in {duration_text(round(-seconds))}"


def _cell(value: Any) -> str:
    """The whole value as one line of text without anything that a terminal would obey."""
    value = plain(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ",".join(_cell(item) for item in value)
    if isinstance(value, dict):
        return to_json(value)
    return clean(str(value))


_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def clean(text: str) -> str:
    """One line, control characters written out: no stored text moves the cursor, sets colours or turns words around."""

    def written(match: re.Match[str]) -> str:
        code = ord(match[0])
        return _ESCAPES.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")

    return _CONTROL.sub(written, text)


def csv_value(value: Any) -> Any:
    """A cell of a CSV file; a spreadsheet takes none of them for a formula."""
    value = plain(value)
    if isinstance(value, dict | list):
        return to_json(value)
    if isinstance(value, str):
        return _printable(f"'{value}" if value.startswith(_FORMULA) else value)
    return value


@dataclass(frozen=True, slots=True)
class Output:
    """Prints results in the format asked for."""

    format: str
    style: Style
    quiet: bool = False

    @property
    def structured(self) -> bool:
        """Whether a program reads the result: JSON, JSON Lines or CSV."""
        return self.format in {"json", "jsonl", "csv"}

    def table(
        self,
        rows: Sequence[Any],
        columns: Sequence[Column],
        *,
        document: Any = None,
        records: Iterable[Mapping[str, Any]] | None = None,
        title: str | None = None,
        empty: str = "nothing to show",
    ) -> None:
        """Print many rows.

        Args:
            rows: What to print, one a line.
            columns: How to print them.
            document: What ``json`` prints. None: the list of records.
            records: What ``jsonl`` prints, one a line. None: each row by its column titles.
            title: Heading over the table, on a terminal only.
            empty: Said on stderr when there are no rows.
        """
        if self.format in {"json", "jsonl"}:
            entries = list(records) if records is not None else [_record(row, columns) for row in rows]
            if self.format == "json":
                click.echo(to_json(entries if document is None else document, indent=2))
            else:
                for entry in entries:
                    click.echo(to_json(entry))
        elif self.format == "csv":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow([_slug(column.title) for column in columns])
            writer.writerows([csv_value(column.get(row)) for column in columns] for row in rows)
        elif not rows:
            self.say(empty)
        elif self.style.stdout_terminal:
            self._rich_table(rows, columns, title)
        else:
            click.echo("\t".join(_slug(column.title) for column in columns))
            for row in rows:
                click.echo("\t".join(_cell(column.get(row)) for column in columns))

    def record(self, fields: Mapping[str, Any], *, document: Any = None) -> None:
        """Print one thing: a field a line, or its JSON object. ``document`` is what the JSON forms print."""
        value = fields if document is None else document
        if self.format == "json":
            click.echo(to_json(value, indent=2))
        elif self.format == "jsonl":
            click.echo(to_json(value))
        elif self.format == "csv":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(fields)
            writer.writerow([csv_value(item) for item in fields.values()])
        elif self.style.stdout_terminal:
            width = max((len(name) for name in fields), default=0)
            for name, item in fields.items():
                color = _COLORS.get(_cell(item)) if self.style.color is not False else None
                label = click.style(f"{name:<{width}}", bold=True)
                click.echo(f"{label}  {click.style(_cell(item), fg=color)}", color=self.style.color)
        else:
            for name, item in fields.items():
                click.echo(f"{_slug(name)}\t{_cell(item)}")

    def details(self, fields: Mapping[str, Any], *, document: Any = None) -> None:
        """Print one thing as :meth:`record` does; a person is spared the fields that hold nothing."""
        people = self.style.stdout_terminal and not self.structured
        shown = {name: value for name, value in fields.items() if value not in _NOTHING} if people else fields
        self.record(shown, document=fields if document is None else document)

    def text(self, line: str) -> None:
        """Print a line of the result that has no structured form."""
        click.echo(line, color=self.style.color)

    def block(self, text: str) -> None:
        """Lines of the result, such as a traceback; control characters in them are written out."""
        for line in text.splitlines():
            click.echo(clean(line), color=self.style.color)

    def say(self, words: str) -> None:
        """Words for people, on stderr; silent with ``-q``."""
        if not self.quiet:
            click.echo(clean(words), err=True, color=self.style.color)

    def would(self, what: str, **facts: Any) -> None:
        """Say what a dry run would have done; a program reads it as one object, with ``dry_run``."""
        self.say(f"would {what}; nothing was changed")
        if self.structured:
            self.record(facts | {"dry_run": True})

    def error(self, message: str) -> None:
        """One line on stderr: ``jobq: <message>``."""
        line = " ".join(part.strip() for part in message.splitlines() if part.strip())
        prefix = click.style("jobq:", fg="red", bold=True)
        click.echo(f"{prefix} {clean(line)}", err=True, color=self.style.color)

    @contextmanager
    def progress(self, label: str, total: int | None) -> Iterator[Bar]:
        """A progress bar on stderr while a person looks; nothing otherwise."""
        if self.quiet or not self.style.stderr_terminal:
            yield _NoBar()
            return
        from rich.progress import Progress  # late: rich is only for terminals

        with Progress(console=self._console(sys.stderr), transient=True) as progress:
            task = progress.add_task(clean(label), total=total)

            class Shown:
                def advance(self, count: int = 1) -> None:
                    progress.advance(task, count)

                def reach(self, share: float, text: str | None = None) -> None:
                    words = f"{label}: {text}" if text else label
                    progress.update(task, total=1.0, completed=share, description=clean(words))

            yield Shown()

    def _console(self, stream: Any) -> Console:
        from rich.console import Console  # late: rich is only for terminals

        return Console(
            file=stream,
            no_color=self.style.color is False,
            force_terminal=True if self.style.color else None,
            highlight=False,
            emoji=False,
        )

    def _rich_table(self, rows: Sequence[Any], columns: Sequence[Column], title: str | None) -> None:
        console = self._console(sys.stdout)
        shown = [column for column in columns if self.format == "wide" or not column.wide]
        cells = [[_cell(column.get(row)) for column in shown] for row in rows]
        fitting = _fitting(shown, cells, console.width, spare=self.format != "wide")
        if not fitting:
            self._blocks(shown, cells, console.width, title)
            return
        _print_table(console, shown, fitting, cells, title)
        left = [column.title for at, column in enumerate(shown) if at not in fitting]
        if left:
            self.say(f"left out for want of width: {', '.join(left)} (-o wide shows them)")

    def _blocks(
        self, columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int, title: str | None
    ) -> None:
        """Each row as a few lines: what no terminal of this width shows as a table, with nothing cut off."""
        color = self.style.color
        if title:
            click.echo(click.style(title, italic=True), color=color)
        for row in cells:
            head = f"{columns[0].title} {row[0]}" if columns[0].right else row[0]
            click.echo(click.style(head, bold=True), color=color)
            line = ""
            for column, whole in list(zip(columns, row, strict=True))[1:]:
                if whole == "-":
                    continue
                most = _MOST_LINES * width
                text = f"{whole[:most]}…" if column.grow and len(whole) > most else whole
                tone = _COLORS.get(text) if color is not False else None
                part, styled = f"{column.title} {text}", f"{column.title} {click.style(text, fg=tone)}"
                if line and (column.grow or len(click.unstyle(line)) + 2 + len(part) > width):
                    click.echo(line, color=color)
                    line = ""
                line = f"{line}  {styled}"
            if line:
                click.echo(line, color=color)
        click.echo()


_GAP = 2
_EDGES = 2
_LEAST_WORDS, _LONGEST_WORD = 20, 50
"""A column of words gets at least so much, or what it needs; a word up to that length stays whole."""
_MOST_LINES = 4
"""Of one row's words, where there is no table."""


def _fitting(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int, *, spare: bool
) -> dict[int, int]:
    """The columns that fit side by side, with the least width of each; nothing: no table fits.

    Args:
        spare: Some may be left out.
    """
    from rich.cells import cell_len  # late: rich is only for terminals

    needed = []
    for at, column in enumerate(columns):
        longest = max([cell_len(column.title), *(cell_len(row[at]) for row in cells)])
        # A word that is broken cannot be copied: a column of words is as wide as its longest one.
        word = max((cell_len(part) for row in cells for part in row[at].split()), default=0)
        least = max(_LEAST_WORDS, min(word, _LONGEST_WORD), cell_len(column.title))
        needed.append(min(longest, least) if column.grow else longest)
    kept = dict(enumerate(needed))
    dropped = sorted((at for at in kept if spare and columns[at].spare), key=lambda at: columns[at].spare)
    while sum(kept.values()) + _GAP * (len(kept) - 1) + _EDGES > width:
        if not dropped:
            return {}
        del kept[dropped.pop()]
    return kept


def _print_table(
    console: Console,
    columns: Sequence[Column],
    fitting: Mapping[int, int],
    cells: Sequence[Sequence[str]],
    title: str | None,
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
    )
    for at, least in fitting.items():
        column = columns[at]
        table.add_column(
            column.title,
            min_width=least,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not column.grow,
        )
    for row in cells:
        # Text, never markup: brackets in an error message are brackets.
        table.add_row(*(Text(text, style=_COLORS.get(text, "")) for text in map(row.__getitem__, fitting)))
    console.print(table)


def _slug(title: str) -> str:
    return title.lower().replace(" ", "_")


def _record(row: Any, columns: Sequence[Column]) -> dict[str, Any]:
    return {_slug(column.title): column.get(row) for column in columns}
