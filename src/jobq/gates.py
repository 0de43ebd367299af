"""How the gates of limits stand, for readers: the arithmetic of ``claim.lua`` without its writes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobq.keys import Keys
from jobq.listing import scored
from jobq.replies import as_int, as_text
from jobq.steps import Batch, Plan

_GATE = re.compile(r"([rbcwso]),(\d{1,12}),(\d{1,12}),(\d{1,12}),([^;,]+)(?:,(\d{1,12}))?")
_LOOKED_AT = 100
"""Starts whose costs are looked at to tell when a gate opens, as many as a claim looks at."""
_ANY = 1_000_000_000
_HELD = 1_000
"""Holders whose leases are looked at, as many as a claim looks at."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate of a text that ``claim.lua`` describes.

    Attributes:
        kind: ``r`` starts in a window, ``w`` what they cost, ``b`` either with bursts, ``c`` runs at once; where an
            operator has set it, ``s`` nobody starts, ``o`` anybody may.
        cost: What the job uses up; 0: it does not weigh, and uses up 1.
    """

    kind: str
    limit: int
    window_ms: int
    burst: int
    name: str
    cost: int = 0

    @property
    def wants(self) -> int:
        """The room that the job needs; what costs more than there ever is goes alone."""
        return max(1, min(self.cost, self.burst if self.kind == "b" else self.limit))

    @property
    def sound(self) -> bool:
        """Whether it makes sense: the rule of ``claim.lua``."""
        if self.kind in "so":
            return True
        windowed = self.kind == "c" or self.window_ms > 0
        return self.limit > 0 and windowed and (self.kind != "b" or 0 < self.burst < self.limit)

    @property
    def span_ms(self) -> float:
        """How long a start counts: a bit longer than the window, because it follows its claim."""
        return self.window_ms + min(500, self.window_ms / 20)

    @property
    def step_ms(self) -> float:
        """What one start beyond the burst has to be away from the next."""
        return self.span_ms / max(1, self.limit - self.burst)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a gate stands for one job.

    Attributes:
        used: Starts in the window, or runs that hold a place; of a gate with bursts 0.
        room: How many may start now, or how much, whoever they are; negative when a limit was lowered.
        behind: Jobs that go before this one.
        opens_ms: When it lets the job in, if the others go as soon as they may; None: nobody can tell.
        closed_ms: Somebody was told to slow down, and the gate is closed until then; 0: it is not.
        closed_by: The job that closed it.
        holders: Ids of some jobs that hold a place.
    """

    gate: Gate
    used: int = 0
    room: int
    behind: int = 0
    opens_ms: float | None = None
    closed_ms: int = 0
    closed_by: str = ""
    holders: tuple[str, ...] = ()

    @property
    def open(self) -> bool:
        """Whether a claim would let the job in."""
        if self.gate.cost:
            return self.room >= self.gate.wants and not self.behind
        return self.room > self.behind

    @property
    def passes(self) -> bool:
        """Whether a claim would take the job past whoever waits there: that is let in by room alone."""
        return self.room >= self.gate.wants


def gates_of(text: str, *, was_set: bool = False) -> tuple[Gate, ...]:
    """The gates of a text; what makes no sense limits nothing, as in the scripts.

    Args:
        was_set: An operator has set some of them.
    """
    found = (
        Gate(kind, int(limit), int(window), int(burst), name, int(cost or 0))
        for kind, limit, window, burst, name, cost in _GATE.findall(text)
    )
    return tuple(gate for gate in found if gate.sound and (was_set or gate.kind not in "so"))


def standings_plan(
    keys: Keys, asked: Sequence[tuple[Gate, int]], now_ms: int, wip: str | None = None
) -> Plan[list[Standing]]:
    """How gates stand, in one round trip, or two when one counts runs.

    Args:
        asked: Gates, each with the number of jobs that go before.
        wip: The gates are a queue's; runs at once are then counted in this registry, stock workers' too.
    """
    if not asked:
        return []
    commands = [_commands(keys, gate, behind, now_ms, wip) for gate, behind in asked]
    replies = iter((yield Batch(tuple(command for each in commands for command in each))))
    found = [[next(replies) for _ in each] for each in commands]
    members = [
        member
        for (gate, _), reply in zip(asked, found, strict=True)
        if gate.kind == "c" and wip is None
        for member in _list(reply[2])
    ]
    leased: dict[Any, bool] = {}
    if members:
        scores = (yield Batch((("ZMSCORE", keys.leases, *members),)))[0]
        leased = {member: score is not None for member, score in zip(members, _list(scores), strict=False)}
    return [
        _standing(gate, behind, reply, now_ms, leased)
        for (gate, behind), reply in zip(asked, found, strict=True)
    ]


def _list(reply: Any) -> list[Any]:
    return list(reply) if isinstance(reply, list | tuple) else []


def _commands(
    keys: Keys, gate: Gate, behind: int, now_ms: int, wip: str | None
) -> tuple[tuple[Any, ...], ...]:
    closed = ("GET", f"{keys.n}closed:{gate.name}")
    rate, held = f"{keys.n}rate:{gate.name}", f"{keys.n}held:{gate.name}"
    if gate.kind in "so":
        return (closed,)
    if gate.kind == "c":
        return closed, ("ZCARD", wip or held), ("ZRANGE", held, 0, _HELD - 1)
    if gate.kind == "b":
        return closed, ("GET", rate)
    if gate.kind == "w":
        before = f"{now_ms - gate.span_ms:.17g}"
        live = ("ZRANGEBYSCORE", rate, f"({before}", "+inf", "WITHSCORES", "LIMIT", 0, _LOOKED_AT)
        return closed, ("ZSCORE", rate, "~sum"), ("ZRANGEBYSCORE", rate, "(2000000000", before), live
    # A place is free again when the start that took it has left the window: the n-th oldest of the last `limit`.
    frees = behind % gate.limit - gate.limit
    since = f"({now_ms - gate.span_ms:.17g}"
    return closed, ("ZCOUNT", rate, since, "+inf"), ("ZRANGE", rate, frees, frees, "WITHSCORES")


def _standing(
    gate: Gate, behind: int, reply: Sequence[Any], now_ms: int, leased: dict[Any, bool]
) -> Standing:
    ends, _, by = as_text(reply[0]).partition(" ") if isinstance(reply[0], bytes) else ("", "", "")
    closed_ms = as_int(ends) if as_int(ends) > now_ms else 0
    used = 0
    opens: float | None = None
    holders: tuple[str, ...] = ()
    if gate.kind in "so":
        room = _ANY if gate.kind == "o" else 0
    elif gate.kind == "c":
        dead = [member for member, alive in leased.items() if not alive]
        mine = _list(reply[2])
        used = as_int(reply[1]) - sum(member in mine for member in dead)
        holders = tuple(as_text(each).partition(":")[0] for each in mine if leased.get(each))
        room = gate.limit - used
    elif gate.kind == "r":
        used = as_int(reply[1])
        room = gate.limit - used
        pairs = _list(reply[2])
        if room <= behind and pairs:
            score = pairs[0][1] if isinstance(pairs[0], list | tuple) else pairs[1]
            opens = math.ceil(float(score) + gate.span_ms * (1 + behind // gate.limit))
    elif gate.kind == "w":
        used = int(_number(reply[1])) - sum(map(_cost, _list(reply[2])))
        room = gate.limit - used
        if room < gate.wants and not behind:
            opens = _enough_free_at(gate, room, scored(_list(reply[3])))
    else:
        full = max(float(now_ms), _number(reply[1]))
        room = math.floor(gate.burst - (full - now_ms) / gate.step_ms + 1e-6)
        if room < behind + gate.wants:
            opens = math.ceil(full + (behind + gate.wants - gate.burst) * gate.step_ms)
    if closed_ms:
        room, opens = min(room, 0), max(opens or 0, closed_ms)
    return Standing(
        gate=gate,
        used=used,
        room=room,
        behind=behind,
        opens_ms=opens,
        closed_ms=closed_ms,
        closed_by=by if closed_ms else "",
        holders=holders,
    )


def _cost(member: Any) -> int:
    """What one start has cost, of a member ``<id>:<token>:<cost>``."""
    return as_int(as_text(member).rpartition(":")[2])


def _enough_free_at(gate: Gate, room: int, live: Sequence[tuple[Any, float]]) -> float | None:
    """When enough has left the window; of more starts than are looked at, when these have."""
    opens: float | None = None
    for member, at in live:
        opens, room = math.ceil(float(at) + gate.span_ms), room + _cost(member)
        if room >= gate.wants:
            break
    return opens


def _number(reply: Any) -> float:
    try:
        return float(reply)
    except (TypeError, ValueError):
        return 0.0


def gate_words(gate: str) -> str:
    """What a gate limits, without the digest of its key: ``of task mail.send``, ``of task pay, for its key``."""
    whose, _, key = gate.partition(":")[2].partition(":")
    words = f"of task {whose}"
    if whose.startswith("@"):
        words = f"of queue {whose[1:]}" if whose[1:] else "of all tasks"
    return f"{words}{', for its key' if key else ''}"


def queue_gates(state: dict[str, str], now_ms: int) -> tuple[Gate, ...]:
    """The gates of a queue's state: an operator's while they count, else those of the settings."""
    ends, was_set, text = state.get("limit_set", "").partition("|")
    if not was_set or (ends != "0" and as_int(ends) <= now_ms):
        text = state.get("limit", "")
    return gates_of(text)
