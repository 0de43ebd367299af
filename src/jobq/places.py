"""Where a queued job stands: how many a claim would take before it, by the queue's list, its orders and its turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobq.keys import Keys
from jobq.replies import as_int, as_text, exact_text
from jobq.steps import Batch, Plan

FARTHEST = 100_000
"""Jobs of the list that are looked through for one: 2 ms of Redis."""

_SEEN = 2_000
"""Jobs of the list, and tenants, that are looked at one by one where the list alone does not tell."""

_TURN = 2
"""How far apart two turns of one tenant are, as ``claim.lua`` has it."""


@dataclass(frozen=True, slots=True)
class Place:
    """How a queued job stands in its queue.

    Attributes:
        ahead: Jobs that go before it, if none comes and none leaves; with ``more`` at least so many.
        more: There are too many to be counted.
        lost: No claim finds it.
        ordered: It has an order; ``order``: 1 to 10.
        turns: The queue's tenants take turns; ``own``: jobs of its tenant, or else of those without one, before it.
    """

    ahead: int
    more: bool = False
    lost: bool = False
    ordered: bool = False
    order: int = 5
    tenant: bool = False
    turns: bool = False
    own: int = 0


def place_plan(
    keys: Keys, queue: str, job_id: str, state: dict[str, str], order: str, tenant: str
) -> Plan[Place]:
    """Where a queued job stands; one round trip, or up to four where jobs of the queue have an order or a tenant.

    Args:
        state: Of the queue.
        order: As the job's hash has it; ``tenant`` too.
    """
    if not (state.get("order") or state.get("fair")):
        found = yield Batch(
            (("LPOS", keys.queue(queue), job_id, "MAXLEN", FARTHEST), ("LLEN", keys.queue(queue)))
        )
        position, length = found[0], as_int(found[1])
        if isinstance(position, int):
            return Place(position)
        return Place(min(length, FARTHEST), more=length > FARTHEST, lost=length <= FARTHEST)
    return (yield from _by_order(keys, queue, job_id, state, order, tenant))


def _by_order(
    keys: Keys, queue: str, job_id: str, state: dict[str, str], order: str, tenant: str
) -> Plan[Place]:
    """As ``claim.lua`` takes jobs where some have an order or a tenant."""
    fair, turns = f"{keys.n}fair:{queue}", f"{keys.n}turns:{queue}"
    own = f"{keys.n}turn:{queue}:{tenant}"
    rank, score, tenants, mine, is_fair, listed, length = yield Batch(
        (
            ("ZRANK", keys.order(queue), job_id),
            ("ZSCORE", keys.order(queue), job_id),
            ("ZRANGE", turns, 0, _SEEN - 1, "WITHSCORES"),
            ("ZRANK", own, job_id),
            ("SISMEMBER", fair, job_id),
            ("LRANGE", keys.queue(queue), 0, _SEEN - 1),
            ("LLEN", keys.queue(queue)),
        )
    )
    has_tenant = is_fair == 1 and isinstance(mine, int)
    place = _number(score)
    line = yield from _in_line(keys, queue, fair, listed)
    more = as_int(length) > _SEEN
    lost = False
    if has_tenant:
        before = as_int(mine)
        more = False
    elif place is not None:
        before = as_int(rank)
        for _, queued in line:
            if queued >= place:
                more = False
                break
            before += 1
    else:
        at = next((at for at, (each, _) in enumerate(line) if each == job_id), None)
        lost = at is None and not more
        ahead_in_line = line if at is None else line[: at + 1]
        latest = max((queued for _, queued in ahead_in_line), default=0.0)
        before = (len(line) if at is None else at) + as_int(
            (yield Batch((("ZCOUNT", keys.order(queue), "-inf", f"{latest:.3f}"),)))[0]
        )
        more = more and at is None
    ahead = before
    if state.get("fair"):
        others, many = yield from _turns_before(
            keys, queue, state, tenants, tenant if has_tenant else "", before, line
        )
        ahead, more = before + others, more or many
    whole = order if order.isdigit() else "5"
    return Place(
        ahead,
        more=more,
        lost=lost,
        ordered=bool(order),
        order=int(whole),
        tenant=has_tenant,
        turns=bool(state.get("fair")),
        own=before,
    )


def _in_line(keys: Keys, queue: str, fair: str, listed: Any) -> Plan[list[tuple[str, float]]]:
    """The first jobs of the list that have neither an order nor a tenant, each with the moment it became queued."""
    if not isinstance(listed, list | tuple) or not listed:
        return []
    ids = list(listed)
    places, tenants, *moments = yield Batch(
        (
            ("ZMSCORE", keys.order(queue), *ids),
            ("SMISMEMBER", fair, *ids),
            *(("HGET", keys.job(exact_text(job_id)), "q") for job_id in ids),
        )
    )
    placed = [False] * len(ids) if isinstance(places, Exception) else [each is not None for each in places]
    shared = [False] * len(ids) if isinstance(tenants, Exception) else [each == 1 for each in tenants]
    return [
        (as_text(job_id), _number(moment) or 0.0)
        for job_id, moment, has_order, has_tenant in zip(ids, moments, placed, shared, strict=True)
        if not (has_order or has_tenant)
    ]


def _turns_before(
    keys: Keys,
    queue: str,
    state: dict[str, str],
    tenants: Any,
    own: str,
    before: int,
    line: Sequence[tuple[str, float]],
) -> Plan[tuple[int, bool]]:
    """Jobs of other tenants, and of none, that have their turn before a job with so many of its own before it."""
    pairs = _scored(tenants)
    rest = float(max(as_int(state.get("turn")), as_int(state.get("rest"))))
    turn = (dict(pairs).get(own, rest) if own else rest) + _TURN * before
    rivals = [(name, place) for name, place in pairs if name != own and place <= turn]
    counts = yield Batch(
        (
            ("ZCARD", keys.order(queue)),
            *(("ZCARD", f"{keys.n}turn:{queue}:{name}") for name, _ in rivals),
        )
    )
    total = 0
    for (name, place), count in zip(rivals, counts[1:], strict=True):
        # Of two whose turn is the same, the name decides; those without a tenant come last.
        tie = not own or name < own
        total += min(as_int(count), _turns_within(turn - place, tie=tie))
    if own:
        total += min(len(line) + as_int(counts[0]), _turns_within(turn - rest, tie=False))
    return total, len(pairs) >= _SEEN and len(rivals) == len(pairs)


def _turns_within(length: float, *, tie: bool) -> int:
    """How many turns somebody has from its next one on, until so much later; ``tie``: at the very end, too."""
    return max(0, int(length) // _TURN + 1 if tie else -(-int(length) // _TURN))


def _scored(reply: Any) -> list[tuple[str, float]]:
    if not isinstance(reply, list | tuple) or not reply:
        return []
    flat = [part for pair in reply for part in pair] if isinstance(reply[0], list | tuple) else list(reply)
    return [(as_text(name), _number(score) or 0.0) for name, score in zip(flat[::2], flat[1::2], strict=True)]


def _number(reply: Any) -> float | None:
    try:
        return float(reply)
    except (TypeError, ValueError):
        return None
