"""The rows of the matrix of ``test_cli_matrix``: how each command is called in each column, or why it has no such cell.

``{dead}`` and its like stand for what the scene holds; ``{tmp}`` is a directory of the cell's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

COLUMNS = (
    "table", "json", "jsonl", "piped", "closed pipe", "dry run", "not found", "declined", "no terminal", "redis away",
    "bad usage",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One command.

    Attributes:
        args: A call that works.
        bad: What is wrong to add to its name, besides an option that is not there.
        code: What the call ends with, which is not 0 where the scene is to blame.
        shows: What a terminal and a pipe must show.
        previewed: What its dry run ends with.
        reads: It changes nothing, in no column.
        yes: Added where it would ask.
        asks: A call that asks, where ``args`` does not.
        missing: Calls that name what is not there, each with the words of the remedy.
        lines: The call whose JSON Lines are looked at, where it is not ``args``.
        absent: Columns that do not apply, each with the reason.
    """

    args: str
    bad: str
    code: int = 0
    previewed: int = 0
    shows: str = ""
    reads: bool = False
    yes: str = ""
    asks: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    lines: str = ""
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def without(self) -> dict[str, str]:
        """Every column that does not apply, with the reason."""
        implied: dict[str, str] = {}
        if self.reads:
            implied = dict.fromkeys(("dry run", "declined", "no terminal"), "it only reads")
        return implied | dict(self.absent)


_JOB = "it never existed, or retention has deleted it"
_QUEUE = "did you mean 'high'"
_SCHEDULE = "did you mean 'nightly'"
_ALL = {"not found": "it is about the whole of Redis, and names nothing"}
_UNDONE = {
    "dry run": "it destroys nothing",
    "declined": "its opposite undoes it",
    "no terminal": "never asks",
}
_SERVES = dict.fromkeys(
    ("table", "json", "jsonl", "piped", "closed pipe", "dry run", "declined", "no terminal"),
    "it serves until it is ended; its lines are log events",
)
_OWN = dict.fromkeys(("not found", "redis away"), "it makes a Redis of its own")


def _queue(args: str, bad: str, **more: object) -> Row:
    return Row(args=args, bad=bad, missing={args.replace("high", "hihg", 1): _QUEUE}, **more)  # type: ignore[arg-type]


ROWS: Mapping[str, Row] = {
    "worker": Row(
        args="--burst --queue low", bad="--concurrency 0",
        absent=_SERVES | {"not found": "a queue that is not configured is a wrong setting (78)"},
    ),
    "stats": Row(
        args="", bad="--since soon", shows="high", reads=True, missing={"--queue hihg": _QUEUE},
    ),
    "retry-failed": Row(
        args="--queue high", bad="--rate fast", yes="--yes", missing={"--queue hihg": _QUEUE},
    ),
    "enqueue": Row(
        args="shop.confirm '{{\"order_id\": \"new\"}}' --order 2 --max-attempts 5 --backoff fixed=3s --run-timeout 9s"
        " --dedup-key k --dedup-until 5m --on-duplicate replace --correlation-id c1",
        bad="shop.confirm '{{'", shows="shop.confirm",
        missing={"shop.confrim": "did you mean 'shop.confirm'"},
        absent=dict.fromkeys(("declined", "no terminal"), "enqueueing is what it is called for"),
    ),
    "why": Row(args="{queued}", bad="", shows="paused", reads=True, missing={"nope-1": _JOB}),
    "jobs list": Row(
        args="", bad="--cursor abc", shows="{queued}", reads=True, missing={"--queue hihg": _QUEUE},
    ),
    "jobs show": Row(args="{dead}", bad="", shows="no funds", reads=True, missing={"nope-1": _JOB}),
    "jobs why": Row(args="{queued}", bad="", shows="paused", reads=True, missing={"nope-1": _JOB}),
    "jobs logs": Row(
        args="{done}", bad="{done} --follow --json", shows="paid", reads=True, lines="{done} --follow",
        missing={"nope-1": _JOB},
    ),
    "jobs wait": Row(
        args="{done}", bad="", shows="succeeded", reads=True, missing={"nope-1": _JOB},
    ),
    "jobs retry": Row(
        args="{dead}", bad="", shows="queued", yes="--yes", missing={"nope-1": _JOB},
    ),
    "jobs cancel": Row(
        args="{queued}", bad="", shows="cancelled", yes="--yes", asks="--queue high", missing={"nope-1": _JOB},
    ),
    "jobs promote": Row(
        args="{later}", bad="", shows="queued", yes="--yes", asks="--queue high", missing={"nope-1": _JOB},
    ),
    "jobs delete": Row(
        args="{queued}", bad="", shows="deleted", yes="--yes", missing={"nope-1": _JOB},
    ),
    "queues list": Row(args="", bad="high", shows="high", reads=True, absent=_ALL),
    "queues show": _queue("high", "", shows="deploy", reads=True),
    "queues pause": _queue("high --for 10m", "high --for 0s", shows="yes", absent=_UNDONE),
    "queues resume": _queue("high", "", shows="no", absent=_UNDONE),
    "queues limit": _queue("high --rate 50/m --slots 3 --max 5000", "high", shows="50/m", absent=_UNDONE),
    "queues drain": _queue("high", "high --rate fast", yes="--yes"),
    "queues empty": _queue("high", "high --rate fast", yes="--yes"),
    "queues clean": _queue("high --state dead --older-than 0s", "high", yes="--yes"),
    "queues move": _queue("high low", "high high", yes="--yes"),
    "limits list": Row(args="", bad="shop.confirm", shows="shop.fail", reads=True, absent=_ALL),
    "limits set": Row(
        args="shop.confirm --rate 10/s --concurrency 2 --for 1h --reason night", bad="shop.confirm --rate fast",
        shows="10/s", missing={"shop.confrim --rate 0": "did you mean 'shop.confirm'"},
        absent=dict.fromkeys(("declined", "no terminal"), "`limits clear` undoes it"),
    ),
    "limits clear": Row(
        args="shop.fail", bad="", shows="outage", missing={"shop.confirm": "jobq limits list"},
        absent=dict.fromkeys(("declined", "no terminal"), "`limits set` undoes it"),
    ),
    "dead list": Row(
        args="", bad="--cursor abc", shows="{dead}", reads=True, missing={"--queue hihg": _QUEUE},
    ),
    "dead groups": Row(
        args="", bad="--since soon", shows="no funds", reads=True, missing={"--queue hihg": _QUEUE},
    ),
    "dead show": Row(args="{dead}", bad="", shows="no funds", reads=True, missing={"nope-1": _JOB}),
    "dead replay": Row(
        args="{dead}", bad="", yes="--yes", missing={"nope-1": _JOB, "--queue hihg": _QUEUE},
    ),
    "dead edit": Row(
        args="{dead} --set code=c9", bad="{dead} --set code", yes="--yes", shows="code",
        missing={"nope-1 --set code=c9": _JOB},
    ),
    "dead purge": Row(
        args="--older-than 0s", bad="", yes="--yes", missing={"--older-than 0s --queue hihg": _QUEUE},
    ),
    "dead export": Row(
        args="--out {tmp}/dead.jsonl", bad="", reads=True, shows="dead.jsonl",
        missing={"--out {tmp}/x --queue hihg": _QUEUE},
    ),
    "dead archive": Row(
        args="--out {tmp}/dead.jsonl", bad="", yes="--yes", missing={"--out {tmp}/x --queue hihg": _QUEUE},
    ),
    "dead restore": Row(
        args="{archived}", bad="", yes="--yes", missing={"{archived} nope-1": "no job nope-1 in"},
    ),
    "schedules list": Row(args="", bad="--state nope", shows="nightly", reads=True, absent=_ALL),
    "schedules show": Row(
        args="nightly", bad="", shows="02:00", reads=True, missing={"nigthly": _SCHEDULE},
    ),
    "schedules next": Row(
        args="nightly", bad="nightly -n 0", shows="02:00", reads=True, missing={"nigthly": _SCHEDULE},
    ),
    "schedules add": Row(
        args="hourly shop.confirm '{{\"order_id\": \"h\"}}' --every 1h --order 2 --correlation-id c1 --backoff 2s"
        " --dedup-key k --dedup-until started --run-timeout 9s",
        bad="hourly shop.confirm", shows="hourly",
        missing={"hourly shop.confrim --every 1h": "did you mean 'shop.confirm'"},
        absent=dict.fromkeys(("declined", "no terminal"), "`schedules remove` undoes it"),
    ),
    "schedules remove": Row(
        args="nightly", bad="", yes="--yes", missing={"nigthly": "jobq schedules list"},
    ),
    "schedules pause": Row(
        args="nightly", bad="", shows="paused", missing={"nigthly": _SCHEDULE}, absent=_UNDONE,
    ),
    "schedules resume": Row(
        args="nightly", bad="", shows="active", missing={"nigthly": _SCHEDULE}, absent=_UNDONE,
    ),
    "schedules run": Row(
        args="nightly", bad="", shows="shop.confirm", missing={"nigthly": _SCHEDULE},
        absent=dict.fromkeys(("declined", "no terminal"), "enqueueing is what it is called for"),
    ),
    "schedules import-rq-scheduler": Row(
        args="", bad="--tz", yes="--yes", shows="theirs", absent=_ALL,
    ),
    "workers list": Row(args="", bad="w1", shows="w1", reads=True, absent=_ALL),
    "workers show": Row(args="w1", bad="", shows="idle", reads=True, missing={"w9": "there are: w1"}),
    "workers quiet": Row(
        args="w1", bad="", yes="--yes", shows="quiet", missing={"w9": "there are: w1"},
    ),
    "workers resume": Row(
        args="w1", bad="", yes="--yes", shows="resume", missing={"w9": "there are: w1"},
        absent=dict.fromkeys(("declined", "no terminal"), "it only undoes `quiet`"),
    ),
    "workers stop": Row(
        args="w1", bad="", yes="--yes", shows="stop", missing={"w9": "there are: w1"},
    ),
    "health": Row(args="", bad="dead", shows="status", reads=True, absent=_ALL),
    "health live": Row(args="", bad="x", shows="ok", reads=True, absent=_ALL),
    "health ready": Row(args="", bad="x", shows="ok", reads=True, absent=_ALL),
    "health worker": Row(
        args="--name w1", bad="x", shows="ok", reads=True,
        absent={"not found": "a worker that is away is its verdict (6)"},
    ),
    "doctor": Row(
        args="--fix", bad="--delete-unreadable", previewed=6, shows="redis", yes="--yes", absent=_ALL,
    ),
    "memory": Row(args="", bad="--limit 0", shows="job", reads=True, absent=_ALL),
    "config show": Row(
        args="", bad="x", shows="redis_url", reads=True,
        absent=_ALL | {"redis away": "it does not ask Redis"},
    ),
    "demo": Row(args="", bad="x", absent=_SERVES | _OWN),
    "dev": Row(args="", bad="--port 0", absent=_SERVES | _OWN),
}  # fmt: skip
