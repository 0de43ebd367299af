"""Limits that operators set for a task, or for one key of it, while it runs: in place of what the task declares.

All of them are one text, which a claim reads along with what it reads anyway. A line of it is
``<task>[:<digest of the key>] <until, ms> <rate> <weighed rate> <concurrency> <JSON>``; each of the three in the
middle is the head of a gate, ``kind,limit,window ms,burst``, or ``-``: as declared. Of the kinds two are found only
here: ``s``, nobody starts, and of a rate ``o``, any number may. The scripts go by the same rules as :func:`in_force`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from jobq import dedup
from jobq.errors import ConfigError, ConflictError
from jobq.limits import Concurrency, Keep, Rate
from jobq.retry import is_whole

MOST_BYTES = 65_536
"""Of all overrides together: a claim looks through them."""

_AS_DECLARED, _STOP, _ANY_RATE = "-", "s,0,0,0", "o,0,0,0"
_ANY_NUMBER = 999_999_999_999
"""Of runs at once: they hold places, so that whoever is limited again finds them counted."""

_HEAD = re.compile(r"([rwbcso]),(\d{1,12}),(\d{1,12}),(\d{1,12})")
_KINDS = {"r": "rbso", "w": "wbso", "c": "cs"}
_LINE = re.compile(r"([\w.-]+(?::[0-9a-f]{32})?) (\d{1,15}) (\S+) (\S+) (\S+) (\{.*\})", re.ASCII)
_LM = re.compile(r"([a-zA-Z]),(\d+),(\d+),(\d+),([^;,]+),?(\d*)")
_SAID = re.compile(r"(\d{1,15}) (\S+) (\S+) (\S+)", re.ASCII)
_NAME = re.compile(r"([rwc]):(.*)", re.DOTALL)

Limit = Literal["none", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """What an operator has set for a task, or for one key of it.

    Attributes:
        key: The value of its limits' key, rendered, that this is for; None: the whole task.
        rate: Starts per window; ``"none"``: any number; ``"stop"``: none; None: as declared.
        concurrency: Runs at once, likewise.
        until: When the declared limits hold again; None: when they are brought back.
        by: Who has set it, and ``reason`` why.
    """

    task: str
    key: str | None = None
    rate: Rate | Limit | None = None
    concurrency: int | Limit | None = None
    until: datetime | None = None
    by: str = ""
    reason: str = ""
    since: datetime | None = None

    @property
    def name(self) -> str:
        """What it is found by."""
        return self.task if self.key is None else f"{self.task}:{dedup.digest(self.task, self.key)}"

    def words(self) -> str:
        """What it says, such as ``rate 10/s, concurrency 0``."""
        said = (("rate", in_words(self.rate)), ("concurrency", in_words(self.concurrency)))
        return ", ".join(f"{what} {limit}" for what, limit in said if limit is not None)

    def whose(self) -> str:
        """Whom it is for: ``task pay``, ``task pay, key acme``."""
        return f"task {self.task}" + ("" if self.key is None else f", key {self.key}")

    @property
    def until_ms(self) -> int:
        """Ms since 1970; 0: for good."""
        return 0 if self.until is None else round(self.until.timestamp() * 1000)

    def line(self) -> str:
        """As the scripts read it."""
        plain, weighed = _rate_heads(self.rate)
        many = _ANY_NUMBER if self.concurrency == "none" else self.concurrency
        count = f"c,{many},0,0" if isinstance(many, int) else _word(many)
        about: dict[str, Any] = {"key": self.key, "by": self.by, "why": self.reason}
        about |= {"at": None if self.since is None else round(self.since.timestamp() * 1000)}
        return " ".join((
            self.name, str(self.until_ms), plain, weighed, count,
            json.dumps({name: value for name, value in about.items() if value not in (None, "")}),
        ))  # fmt: skip


def in_words(limit: Rate | int | Limit | None) -> str | None:
    """As it is set on the command line: stopped is 0; None: as declared."""
    return None if limit is None else "0" if limit == "stop" else str(limit)


def _word(limit: Limit | None) -> str:
    return {None: _AS_DECLARED, "none": _ANY_RATE, "stop": _STOP}[limit]


def _rate_heads(rate: Rate | Limit | None) -> tuple[str, str]:
    """For starts that count as one, and for starts that weigh."""
    if not isinstance(rate, Rate):
        return _word(rate), _word(rate)
    weighed = f"{'b' if rate.burst else 'w'},{rate.limit},{rate.per_ms},{rate.burst or 0}"
    return rate.gate("").rpartition(",")[0], weighed


def rate_of(asked: Rate | str | int | None) -> Rate | Limit:
    """What a caller gives as a rate: None is any number of starts, 0 none.

    Raises:
        ConfigError: It is no rate, or has a key or a cost, which the task declares.
    """
    if asked is None or asked == "none":
        return "none"
    if asked in (0, "0", "stop") and not isinstance(asked, bool):
        return "stop"
    rate = Rate.parse(asked) if isinstance(asked, str) else asked
    if not isinstance(rate, Rate):
        raise ConfigError(f"a rate is written like 50/s or 50/m burst 10, or 0 for no start, got {asked!r}")
    if rate.key is not None or rate.weighs:
        raise ConfigError("what is set in place of a rate has no key and no cost: those of the task stay")
    return rate


def concurrency_of(asked: int | str | None) -> int | Limit:
    """What a caller gives as a concurrency: None is any number of runs, 0 no start.

    Raises:
        ConfigError: It is out of its range.
    """
    if asked is None or asked == "none":
        return "none"
    if asked == "stop":
        return "stop"
    if not is_whole(asked, 0, 1_000_000_000):
        raise ConfigError(f"a concurrency limit must be a whole number of at least 0, got {asked!r}")
    return Concurrency(int(asked)).limit if asked else "stop"


def merged(
    before: Override | None, wanted: Override, rate: Rate | Limit | Keep, concurrency: int | Limit | Keep
) -> Override:
    """``wanted``, with what is not asked for as it was before."""
    return Override(
        task=wanted.task,
        key=wanted.key,
        rate=(before.rate if before else None) if isinstance(rate, Keep) else rate,
        concurrency=(before.concurrency if before else None)
        if isinstance(concurrency, Keep)
        else concurrency,
        until=wanted.until,
        by=wanted.by,
        reason=wanted.reason,
        since=wanted.since,
    )


# --------------------------------------------------------------------------- all of them


def written(overrides: Mapping[str, Override]) -> str:
    """The text of all of them, by name; empty when there are none.

    Raises:
        ConflictError: They are too many.
    """
    text = "".join(f"\n{overrides[name].line()}" for name in sorted(overrides))
    if len(text) > MOST_BYTES:
        raise ConflictError(
            f"limits set at run time take {len(text):,} bytes, and may take {MOST_BYTES:,}: clear some of the "
            f"{len(overrides) - 1} that are set, or limit the whole task"
        )
    return f"{text}\n" if text else ""


def read(text: str, now_ms: int) -> dict[str, Override]:
    """Those that hold now, by name; lines that cannot be read are passed over, as in the scripts."""
    found: dict[str, Override] = {}
    for line in text.split("\n"):
        override = _override(line, now_ms)
        if override is not None and override.name not in found:
            found[override.name] = override
    return found


def unreadable(text: str) -> int:
    """Lines that nobody can read: they limit nothing."""
    return sum(1 for line in text.split("\n") if line and _override(line, 0) is None)


def _override(line: str, now_ms: int) -> Override | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    name, until, rate, weighed, concurrency, about = match.groups()
    ends = int(until)
    heads = {"r": rate, "w": weighed, "c": concurrency}
    if any(text != _AS_DECLARED and _sound(text, slot) is None for slot, text in heads.items()):
        return None
    if 0 < ends <= now_ms or (rate == _AS_DECLARED) != (weighed == _AS_DECLARED):
        return None
    try:
        more = json.loads(about)
        override = Override(
            task=name.partition(":")[0],
            key=str(more["key"]) if "key" in more else None,
            rate=_said(weighed, lambda: _rate(weighed)),
            concurrency=_said(concurrency, lambda: _number(int(concurrency.split(",")[1]))),
            until=datetime.fromtimestamp(ends / 1000, UTC) if ends else None,
            by=str(more.get("by", "")),
            reason=str(more.get("why", "")),
            since=datetime.fromtimestamp(more["at"] / 1000, UTC) if "at" in more else None,
        )
    except (ValueError, TypeError, OverflowError, OSError, ConfigError):
        return None
    return override if override.name == name else None


def _said(head: str, limit: Any) -> Any:
    words = {_AS_DECLARED: None, "s": "stop", "o": "none"}
    return words[head[0]] if head[0] in words else limit()


def _rate(weighed: str) -> Rate:
    """What was set: that head says whether a burst was, which for many starts the other has in any case."""
    _, limit, window, burst = weighed.split(",")
    return Rate(int(limit), timedelta(milliseconds=int(window)), burst=int(burst) or None)


def _number(many: int) -> int | Limit:
    return "none" if many == _ANY_NUMBER else many


def _sound(head: str, slot: str) -> tuple[str, int, int, int] | None:
    match = _HEAD.fullmatch(head)
    if match is None or match[1] not in _KINDS[slot]:
        return None
    kind, most, window, burst = match[1], int(match[2]), int(match[3]), int(match[4])
    if kind in "so":
        return kind, most, window, burst
    fine = most > 0 and (kind == "c" or window > 0) and (kind != "b" or 0 < burst < most)
    return (kind, most, window, burst) if fine else None


# --------------------------------------------------------------------------- what a job has to pass


class _Said:
    """What the text says, as the scripts find it there."""

    def __init__(self, text: str, now_ms: int) -> None:
        self._text, self._now = text, now_ms

    def of(self, name: str) -> tuple[float, dict[str, tuple[str, int, int, int]]] | None:
        """When it ends, and the heads by kind; None: nothing holds."""
        at = self._text.find(f"\n{name} ")
        found = _SAID.match(self._text, at + len(name) + 2) if at >= 0 else None
        if found is None or 0 < int(found[1]) <= self._now:
            return None
        heads = {slot: _sound(found[at], slot) for slot, at in (("r", 2), ("w", 3), ("c", 4))}
        ends = int(found[1]) or math.inf
        return ends, {slot: head for slot, head in heads.items() if head is not None}


def in_force(lm: str, description: str, text: str, now_ms: int) -> tuple[str, float | None]:
    """The gates of a job by what its task declares and what is set; and when the first of what is set ends.

    A limit that the task shares with others stays as it is, and what is set comes on top.

    Args:
        lm: What is declared.
        description: As the job's hash has it: the task, or the call of a job of plain rq's.
        text: All overrides.
    Returns:
        ``lm`` itself, and None, where nothing is set.
    """
    task = re.match(r"\s*([^\s(]*)", description)[1]  # type: ignore[index]
    if not text or not task:
        return lm, None
    said = _Said(text, now_ms)
    whole = said.of(task)
    out: list[str] = []
    ends: float | None = None
    has: set[str] = set()
    keys: dict[str, set[str]] = {}

    def put(
        found: tuple[float, dict[str, tuple[str, int, int, int]]], slot: str, name: str, cost: str
    ) -> None:
        nonlocal ends
        ends = found[0] if ends is None else min(ends, found[0])
        kind, most, window, burst = found[1][slot]
        if cost and kind not in "so":
            name += f",{max(1, min(int(cost), burst if kind == 'b' else most))}"
        out.append(f"{kind},{most},{window},{burst},{name}")

    for gate in _LM.finditer(lm):
        *head, name, cost = gate.groups()
        match = _NAME.fullmatch(name)
        found = None
        slot = match[1] if match else ""
        keyed = match is not None and match[2].startswith(f"{task}:")
        if match and (keyed or match[2] == task):
            counts = "r" if slot == "w" else slot
            has.add(counts)
            if keyed:
                keys.setdefault(match[2], set()).add(counts)
                found = said.of(match[2])
            if found is None or slot not in found[1]:
                found = whole
        if found is not None and slot in found[1]:
            put(found, slot, name, cost)
        else:
            out.append(",".join((*head, name, cost) if cost else (*head, name)))
    for slot in ("r", "c"):
        wanted = [] if slot in has else [(whole, task)]
        wanted += [(said.of(whose), whose) for whose, counted in keys.items() if slot not in counted]
        for more, whose in wanted:
            if more is not None and slot in more[1] and more[1][slot][0] != "o":
                put(more, slot, f"{slot}:{whose}", "")
    return (lm, None) if ends is None else (";".join(out), ends)
