"""Orders to workers, through Redis: claim nothing more, go on, or stop.

``jobq:orders`` holds one order for each worker; a worker looks once a second, obeys, and forgets it if no other has
been given since. An order that nobody takes for an hour was for a worker that is gone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobq import events
from jobq.errors import ConflictError, JobNotFoundError
from jobq.fleet import Worker, workers_plan
from jobq.keys import Keys
from jobq.replies import as_text
from jobq.steps import Batch, Call, Plan, script_head

Word = Literal["quiet", "resume", "stop"]

_KEEP_S = 3_600
_EVENTS = {"quiet": "worker.quieted", "resume": "worker.resumed", "stop": "worker.stop_asked"}


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is to do, and the text that Redis holds for it."""

    word: str
    text: str


def named(workers: Sequence[Worker], name: str) -> list[Worker]:
    """The executors that go by this name, or belong to the worker of this name.

    Raises:
        JobNotFoundError: There is none; the message names those there are.
    """
    found = [each for each in workers if name in (each.name, each.worker)]
    if not found:
        there = ", ".join(sorted({each.worker or each.name for each in workers})) or "none"
        raise JobNotFoundError(f"no live worker {name!r}; there are: {there}")
    return found


def order_plan(keys: Keys, word: Word, names: Sequence[str] | None, dry_run: bool = False) -> Plan[list[str]]:
    """Give workers an order; returns their names. Each obeys within about a second, as a whole.

    Args:
        names: Of workers or of their executors; None: every live worker of jobq's.
    Raises:
        ConflictError: One is a plain rq worker, which knows no orders.
        JobNotFoundError: Nobody goes by one of the names; no order was given to anybody.
    """
    live = yield from workers_plan(keys)
    if names is None:
        chosen = [each for each in live if each.kind == "jobq"]
    else:
        chosen = [each for name in names for each in named(live, name)]
    for each in chosen:
        if each.kind != "jobq":
            raise ConflictError(f"{each.name} is a plain rq worker: stop it with rq's own tools")
    wanted = sorted({each.worker or each.name for each in chosen})
    if wanted and not dry_run:
        text = f"{word}|{time.time_ns()}"
        pairs = [part for name in wanted for part in (name, text)]
        replies = yield Batch((("HSET", keys.orders, *pairs), ("EXPIRE", keys.orders, _KEEP_S)))
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        for name in wanted:
            events.emit(_EVENTS[word], worker=name)
    return wanted


def look(keys: Keys, name: str) -> Batch[Order | None]:
    """The order for this worker, if there is one."""

    def decode(replies: list[object]) -> Order | None:
        text = as_text(replies[0]) if isinstance(replies[0], bytes) else ""
        return Order(text.partition("|")[0], text) if text else None

    return Batch((("HGET", keys.orders, name),), decode)


def obeyed(keys: Keys, name: str, order: Order) -> Call[bool]:
    """Forget an order that was carried out."""
    return Call("obeyed", (keys.orders,), (*script_head(keys, None), name, order.text), bool)
