"""``jobq stats``."""

from __future__ import annotations

import operator
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click

from jobq.cli.common import Exit, State, check_queue, pass_state, refused_as_usage, suggest
from jobq.cli.options import DURATION, Command
from jobq.cli.output import Column, duration_text

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_CONDITION = re.compile(
    r"\s*(?:([\w.-]+)[.:])?([a-z][a-z0-9_]*)\s*(>=|<=|==|!=|>|<|=)\s*(-?\d+(?:\.\d+)?)\s*"
)
_ALIASES = {"failed": "dead"}
# Sums over all queues; any other field is compared queue by queue.
_SUMMED = frozenset(
    {"queued", "scheduled", "retrying", "deferred", "parked", "running", "succeeded", "dead", "cancelled"}
    | {"slots", "busy", "throughput_per_s", "failed_attempts"}
)
_FIELDS = _SUMMED | {
    "paused", "shed", "workers", "oldest_queued_s", "wait_p50_s", "wait_p95_s", "wait_p99_s", "target_s", "sla_met"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """One ``--fail-on``: bad when the comparison holds."""

    text: str
    queue: str | None
    field: str
    compare: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """From ``failed>10``, ``oldest_queued_s>=60`` or ``critical.queued>100``.

        Raises:
            click.BadParameter: It is none of these.
        """
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise click.BadParameter(f"{text!r} is no condition; write 'failed>10' or 'critical.queued>100'.")
        queue, name, compare, limit = match.groups()
        field = _ALIASES.get(name, name)
        if field not in _FIELDS:
            known = {*_FIELDS, *_ALIASES}
            hint = suggest(name, known) or f"; there are {', '.join(sorted(known))}"
            raise click.BadParameter(f"no field {name!r}{hint}.")
        return cls(text.strip(), queue, field, compare, float(limit))

    def broken_by(self, document: Mapping[str, Any]) -> Iterator[str]:
        """What breaks the limit, as words; a measure that has no value breaks none."""
        queues: Mapping[str, Any] = document["queues"]
        places: list[tuple[str, Any]]
        if self.queue is not None:
            places = [(f"queue {self.queue}: ", queues.get(self.queue, {}).get(self.field))]
        elif self.field in _SUMMED:
            places = [("", document["totals"].get(self.field))]
        else:
            places = [(f"queue {name}: ", queue.get(self.field)) for name, queue in queues.items()]
        for where, value in places:
            if value is not None and _COMPARE[self.compare](float(value), self.limit):
                yield f"{where}{self.field} is {value:g}, as in {self.text!r}"


def _conditions(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> tuple[Condition, ...]:
    return tuple(Condition.parse(part) for value in values for part in value.split(","))


def _of(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda row: row[name]


def _named(row: Mapping[str, Any]) -> str:
    """The queue, and why it does not go on, or takes nothing."""
    marks = [word for word in ("paused", "shed") if row[word]]
    return f"{row['queue']} ({', '.join(marks)})" if marks else str(row["queue"])


def _time(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda row: duration_text(row[name])


def _columns(people: bool) -> list[Column]:
    """Columns for people have units in the cells; those for programs plain seconds, named as in the JSON."""

    def seconds(title: str, name: str, *, wide: bool = False, spare: int = 0) -> Column:
        get = _time(name) if people else _of(name)
        return Column(title if people else name, get, right=True, wide=wide, spare=spare)

    def sla(row: Mapping[str, Any]) -> Any:
        value = row["sla_met"]
        return value if value is None or not people else f"{value:.1%}"

    def count(name: str, *, wide: bool = False, spare: int = 0) -> Column:
        return Column(name, _of(name), right=True, wide=wide, spare=spare)

    return [
        Column("queue", _named if people else _of("queue")),
        count("queued"),
        count("scheduled", spare=5),
        count("retrying", spare=3),
        count("running"),
        count("succeeded", spare=6),
        count("dead"),
        count("deferred", wide=True),
        count("parked", wide=True),
        count("cancelled", wide=True),
        *([] if people else [Column("paused", _of("paused")), Column("shed", _of("shed"))]),
        count("workers", spare=2),
        Column("busy", lambda row: f"{row['busy']}/{row['slots']}" if people else row["busy"], right=True),
        *([] if people else [count("slots")]),
        seconds("oldest", "oldest_queued_s"),
        seconds("wait p50", "wait_p50_s", wide=people),
        seconds("wait p95", "wait_p95_s", wide=people),
        seconds("wait p99", "wait_p99_s"),
        seconds("target", "target_s", spare=4),
        Column("in time" if people else "sla_met", sla, right=True),
        Column("per s" if people else "throughput_per_s", _of("throughput_per_s"), right=True, wide=people),
        count("failed_attempts", wide=people),
    ]


@click.command(cls=Command)
@click.option("--queue", metavar="Q", help="Only this queue.")
@click.option(
    "--since", type=DURATION, metavar="D", help="Window of waits and throughput; default 5m, at most 24h."
)
@click.option(
    "--watch", type=DURATION, is_flag=False, flag_value="2s", metavar="[S]", help="Again every S; default 2s."
)
@click.option(
    "--fail-on",
    multiple=True,
    callback=_conditions,
    metavar="'failed>10'",
    help="Exit with 6 when this holds. Any field of --json, and failed = dead; QUEUE.FIELD for one queue.",
)
@pass_state
def stats(
    state: State,
    queue: str | None,
    since: timedelta | None,
    watch: timedelta | None,
    fail_on: tuple[Condition, ...],
) -> int:
    """Counts, waits and targets of every queue."""
    client = state.client()
    check_queue(client, queue)
    while True:
        with refused_as_usage():
            document = client.stats(queue=queue, since=since).to_dict()
        _print(state, document, again=watch is not None)
        broken = [words for condition in fail_on for words in condition.broken_by(document)]
        for words in broken:
            state.out.error(words)
        if broken:
            return Exit.BAD
        if watch is None:
            return Exit.DONE
        sys.stdout.flush()
        time.sleep(max(watch.total_seconds(), 0.1))


def _print(state: State, document: Mapping[str, Any], *, again: bool) -> None:
    out = state.out
    people = out.style.stdout_terminal and not out.structured
    rows = [{"queue": name, **values} for name, values in document["queues"].items()]
    if again and people:
        click.clear()
    if again and out.format == "json":
        out.record({}, document=document)
        return
    out.table(rows, _columns(people), document=document, records=[document] if again else rows)
    if people:
        for name, redis in {"Redis": document["redis"], **document.get("other_redis", {})}.items():
            used = f"{redis['used_memory'] / 1_048_576:.1f} MB"
            limit = f" of {redis['maxmemory'] / 1_048_576:.0f} MB" if redis["maxmemory"] else ""
            out.say(f"{name} uses {used}{limit}, durability {redis['durability']}")
