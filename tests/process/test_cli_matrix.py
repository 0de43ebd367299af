"""Every command of the installed ``jobq`` in every column: what it prints and where, and what it leaves unchanged."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
import redis

import jobq
from jobq import joblog
from jobq.cli import root
from jobq.cli.common import Exit, State
from jobq.private_server import PrivateServer, free_port
from jobq.registration import register_worker
from tests.process import cli_tasks
from tests.process.cli_rows import COLUMNS, ROWS, Row
from tests.support import zygote
from tests.support.cli import Cli, one_line, shell
from tests.support.hand import Hand

pytestmark = pytest.mark.process

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
DATABASES = 32
AT_ONCE = 4


# --- the scene -----------------------------------------------------------------------


@dataclass
class Scene:
    """A server whose database 0 holds a bit of everything; each cell gets a copy in a database of its own."""

    server: PrivateServer
    names: dict[str, str] = field(default_factory=dict)

    def url(self, database: int) -> str:
        return self.server.url.removesuffix("0") + str(database)

    def copy(self, database: int) -> redis.Redis:
        with redis.Redis.from_url(self.url(0)) as source:
            target = redis.Redis.from_url(self.url(database))
            target.flushdb()
            for key in source.scan_iter():
                source.copy(key, key, destination_db=database)
        return target


def fill(client: jobq.Client, server: redis.Redis) -> dict[str, str]:
    """One job of each kind, a worker, a pause, schedules of ours and of rq-scheduler; the names of all that."""
    hand = Hand(client)
    fail = cli_tasks.fail.options(client=client)
    dead = fail.enqueue(order_id="o1").id
    hand.kill("high")
    done = cli_tasks.confirm.options(client=client).enqueue(order_id="o2").id
    (job,) = hand.claim("high", 1)
    line = joblog.encode_line(time.time_ns() // 1_000_000, "paid")
    client.run(joblog.add_lines(client.keys, done, job.token, [line]))
    assert hand.settle(job, queue="high", spends=True) == "ok"
    confirm = cli_tasks.confirm
    later = confirm.options(client=client, delay=3_600).enqueue(order_id="o3").id
    queued = confirm.options(client=client, tags=("vip",)).enqueue(order_id="o4").id
    # What doctor repairs: an id that stands in no list.
    lost = confirm.options(client=client, queue="low").enqueue(order_id="o5").id
    server.lrem(client.keys.queue("low"), 0, lost)
    client.queues.pause("high", reason="deploy")
    client.limits.set("shop.fail", concurrency=1, reason="outage")
    client.schedules.add("nightly", confirm, {"order_id": "n"}, cron="0 2 * * *")
    now = time.time_ns() // 1_000_000
    client.run(
        register_worker(
            client.keys, name="w1", queues=("high",), slots=2, busy=0, tasks=("shop.confirm",), host="h", pid=1,
            state="idle", birth_ms=now, now_ms=now, version="1",
        )
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        from rq_scheduler import Scheduler

        Scheduler(queue_name="high", connection=server).cron(
            "0 3 * * *", "cli_tasks.confirm", ["o6"], id="theirs"
        )
    for key in server.keys("*worker*:w1"):
        server.persist(key)  # it lives as long as the test
    return {"dead": dead, "done": done, "later": later, "queued": queued}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with PrivateServer({"databases": str(DATABASES)}) as server:
        made = Scene(server)
        with (
            jobq.Client(jobq.Settings(redis_url=server.url)) as client,
            redis.Redis.from_url(server.url) as raw,
        ):
            made.names = fill(client, raw)
            made.names["archived"] = str(tmp_path_factory.mktemp("archive") / "dead.jsonl")
            cli_tasks.fail.options(client=client, queue="batch").enqueue(order_id="o7")
            Hand(client, "other").kill("batch")
            assert client.dead_letters.archive(made.names["archived"], queue="batch").done == 1
        yield made


def contents(server: redis.Redis) -> dict[bytes, tuple[bytes, bool]]:
    """All that a database holds: each key's value, and whether it expires.

    That somebody waits is no content, nor is a lock that runs out meanwhile.
    """
    fleeting = (b"jobq:wait:", b"rq:scheduler-lock:")
    keys = sorted(key for key in server.scan_iter() if not key.startswith(fleeting))
    pipe = server.pipeline(transaction=False)
    for key in keys:
        pipe.dump(key).pttl(key)
    found = pipe.execute()
    return {key: (found[2 * at], found[2 * at + 1] >= 0) for at, key in enumerate(keys)}


# --- one cell ------------------------------------------------------------------------


@dataclass
class Cell:
    """One command in one column, on a copy of the scene."""

    row: Row
    command: tuple[str, ...]
    cli: Cli
    server: redis.Redis
    names: dict[str, str]
    documented: dict[str, tuple[list[str], list[str]]]

    def words(self, text: str) -> list[str]:
        return [*self.command, *shlex.split(text.format(**self.names))]

    def call(self, text: str, *, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        return self.cli(*self.words(text), code=code, **env)

    @property
    def agreed(self) -> str:
        """The call that works, and asks nothing."""
        return f"{self.row.args} {self.row.yes}"

    @property
    def name(self) -> str:
        return " ".join(self.command)

    def shown(self, text: str) -> None:
        assert self.row.shows.format(**self.names) in text, text
        assert "/jobq/cli/" not in text  # where a traceback of ours would begin


def table(cell: Cell) -> None:
    code, shown = cell.cli.on_terminal(*cell.words(cell.agreed))
    assert code == cell.row.code, shown
    cell.shown(shown)
    assert "\t" not in shown


def as_json(cell: Cell) -> None:
    done = cell.call(f"{cell.agreed} --json", code=cell.row.code)
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    keys, _ = cell.documented[cell.name]
    if keys == ["(every", "setting)"]:
        keys = list(jobq.Settings().shown())
    assert list(document) == [key.rstrip("*") for key in keys]
    assert "\x1b" not in done.stdout + done.stderr


def as_lines(cell: Cell) -> None:
    done = cell.call(f"{cell.row.lines or cell.row.args} {cell.row.yes} -o jsonl", code=cell.row.code)
    lines = done.stdout.splitlines()
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines)


def piped(cell: Cell) -> None:
    done = cell.cli(*cell.words(cell.agreed), code=cell.row.code, installed=True)
    cell.shown(done.stdout)
    assert "\x1b" not in done.stdout + done.stderr
    assert "[y/N]" not in done.stderr
    rows = [line.split("\t") for line in done.stdout.split("\n\n")[0].splitlines()]
    keys, columns = cell.documented[cell.name]
    if columns == ["(fields)"]:
        assert [row[0] for row in rows] == [key for key in keys if not key.endswith("*")]
        assert {len(row) for row in rows} == {2}
    else:
        assert rows[0] == columns
        assert {len(row) for row in rows} == {len(columns)}


def closed_pipe(cell: Cell) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as out, (cell.cli.cwd / "stderr").open("w+b") as complaints:
        streams = (0, out.fileno(), complaints.fileno())
        process = zygote.start(cell.words(cell.agreed), cell.cli.env, cell.cli.cwd, streams)
        code = process.wait(30)
        complaints.seek(0)
        said = complaints.read().decode()
    assert code in (0, cell.row.code), said
    assert not {"Traceback", "BrokenPipe", "Exception ignored"} & set(said.replace(":", " ").split())


def dry_run(cell: Cell) -> None:
    before = contents(cell.server)
    done = cell.call(f"{cell.row.args} --dry-run --json", code=cell.row.previewed)
    assert contents(cell.server) == before
    assert "would " in done.stdout + done.stderr
    assert json.loads(done.stdout)["dry_run"] is True


def not_found(cell: Cell) -> None:
    for text, remedy in cell.row.missing.items():
        before = contents(cell.server)
        line = one_line(cell.call(f"{text} {cell.row.yes}", code=Exit.NOT_FOUND).stderr)
        assert remedy in line
        assert contents(cell.server) == before


def declined(cell: Cell) -> None:
    before = contents(cell.server)
    code, shown = cell.cli.on_terminal(*cell.words(cell.row.asks or cell.row.args), answer="n")
    assert code == Exit.DECLINED, shown
    assert "declined, nothing was changed" in shown
    assert contents(cell.server) == before


def no_terminal(cell: Cell) -> None:
    before = contents(cell.server)
    done = cell.call(cell.row.asks or cell.row.args, code=Exit.USAGE)
    assert "--yes" in one_line(done.stderr.splitlines()[-1])
    assert "[y/N]" not in done.stderr
    assert contents(cell.server) == before


def redis_away(cell: Cell) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    done = cell.call(f"{cell.agreed} -u {url}", code=Exit.UNAVAILABLE)
    assert "127.0.0.1" in one_line(done.stderr)
    assert "hunter2" not in done.stdout + done.stderr


def bad_usage(cell: Cell) -> None:
    before = contents(cell.server)
    wrong = cell.call(cell.row.bad, code=Exit.USAGE)
    one_line(wrong.stderr)
    assert not wrong.stdout
    assert f"jobq {cell.name} --help" in one_line(cell.call("--nope", code=Exit.USAGE).stderr)
    assert contents(cell.server) == before


CHECKS: dict[str, Callable[[Cell], None]] = dict(
    zip(
        COLUMNS,
        (
            table, as_json, as_lines, piped, closed_pipe, dry_run, not_found, declined, no_terminal, redis_away,
            bad_usage,
        ),
        strict=True,
    )
)  # fmt: skip


# --- the matrix ----------------------------------------------------------------------


def leaves() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its name; a group that does something alone is one, too."""

    def below(group: click.Group, before: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
        context = click.Context(group, obj=State())
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            path = (*before, name)
            if not isinstance(command, click.Group) or command.invoke_without_command:
                yield " ".join(path), command
            if isinstance(command, click.Group):
                yield from below(command, path)

    yield from below(root, ())


LEAVES = dict(leaves())


def documented() -> dict[str, tuple[list[str], list[str]]]:
    """The table of docs/cli.md: of each command, the keys of its JSON object, and its columns when piped."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    parts: dict[str, list[str]] = {}
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0].strip("`")
        if line.startswith("| (") and len(cells) == 3:
            parts[name] = cells[1].split()
        elif line.startswith("| `") and len(cells) == 3 and name in LEAVES:
            keys = [key for word in cells[1].split() for key in parts.get(word, [word])]
            found[name] = keys, cells[2].split()
    return found


def test_every_command_has_a_row_with_every_column() -> None:
    assert set(ROWS) == set(LEAVES)
    for name, row in ROWS.items():
        assert set(row.without) <= set(COLUMNS), name
        assert all(row.without.values()), name
        assert ("not found" in row.without) != bool(row.missing), name
    assert set(documented()) == {name for name, row in ROWS.items() if "json" not in row.without}


def test_whoever_can_ask_or_preview_is_seen_to_do_so() -> None:
    for name, command in LEAVES.items():
        options = {option for param in command.params for option in param.opts}
        row = ROWS[name]
        if "--dry-run" in options:
            assert "dry run" not in row.without, name
        if "--yes" in options and name != "workers resume":
            assert not {"declined", "no terminal"} & set(row.without), name
        assert ("--yes" in options) == bool(row.yes), name


@pytest.mark.parametrize("name", ROWS)
def test_each_column(name: str, scene: Scene, tmp_path: Path) -> None:
    row, known = ROWS[name], documented()
    columns = [column for column in COLUMNS if column not in row.without]

    def check(database: int, column: str) -> str:
        folder = tmp_path / column.replace(" ", "-")
        folder.mkdir()
        with scene.copy(database) as server:
            before = contents(server)
            cli = Cli(shell(JOBQ_REDIS_URL=scene.url(database)), folder)
            names = scene.names | {"tmp": str(folder)}
            try:
                CHECKS[column](Cell(row, tuple(name.split()), cli, server, names, known))
                if row.reads:
                    assert contents(server) == before
            except AssertionError as error:
                return f"{column}: {error}"
            return ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = [words for words in pool.map(check, range(1, DATABASES), columns) if words]
    assert not wrong, "\n\n".join(wrong)
