"""The reference of limits: gates that let in so many, and the jobs that wait at them.

What a gate knows is how many it has let in: the starts of a window, what they cost, when a bucket is full again, or who
runs. Starts are counted for a bit longer than the window, because they follow their claims. When the server means to
look at a gate again is not predicted: it must not be later than the gate has room (:func:`late`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import takewhile
from operator import itemgetter
from typing import Any

from jobq import calls
from jobq.limits import Noted
from tests.model.machine import KEYS, Pair, compare_parts
from tests.model.reference import LEASE_MS, Gate, Job, Reference
from tests.model.snapshot import Snapshot

POLL_MS = 2000
"""Who waits for a run to end is looked at again after so long, because not all that end can say so."""
HELD_TTL_S = 2_678_400
AT_GATE = "~gate:"
Member = tuple[str, str]


@dataclass
class Door:
    """What is known of one gate.

    Attributes:
        starts: When each start was, and what it cost.
        full_ms: When the bucket is full again.
        held: Who runs.
        closed: Until when somebody was told to slow down, and who.
        waiting: Ids in order, by their scores; what rq's tools took away may be among them.
        promised_ms: Until when those that were let in last may take all the room there is.
    """

    starts: dict[Member, tuple[int, int]] = field(default_factory=dict)
    full_ms: float = 0
    held: set[Member] = field(default_factory=set)
    closed: tuple[int, str] | None = None
    waiting: dict[str, float] = field(default_factory=dict)
    promised_ms: float = 0
    counted_until_s: float = 0
    held_until_s: float = 0
    closed_until_s: float = 0

    def in_order(self) -> list[str]:
        """Ids that wait, the next first."""
        return sorted(self.waiting, key=lambda job_id: (self.waiting[job_id], job_id))


def span(gate: Gate) -> float:
    """How long a start counts, ms."""
    return gate.window_ms + min(500, gate.window_ms / 20)


def step(gate: Gate) -> float:
    """How far two starts beyond the burst are apart, ms."""
    return span(gate) / (gate.limit - gate.burst)


@dataclass
class LimitedReference(Reference):
    """A server whose jobs and queues have limits.

    Attributes:
        listed: Gates that are looked at when it is time.
        blocked: By queue: ids that were put at a gate.
        noted: By queue: gates that the settings name.
        ordered: By queue: until when (0: for good) an operator's gates and most jobs count in their place.
    """

    doors: dict[str, Door] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    blocked: dict[str, set[str]] = field(default_factory=dict)
    noted: dict[str, tuple[Gate, ...]] = field(default_factory=dict)
    ordered: dict[str, tuple[int, tuple[Gate, ...]]] = field(default_factory=dict)
    wip: dict[Member, str] = field(default_factory=dict)
    cleared: set[str] = field(default_factory=set)
    unnoticed_ms: int = 0
    """How far the clock was set back by steps too small for a rescue to notice: looks are late by that."""

    def rescue(self, limit: int, keep_s: int, record: bool) -> tuple[bool, list[tuple[str, str, str]]]:
        """It makes all gates due where it notices that the clock was set back."""
        if self.seen_ms is not None and self.seen_ms > self.now_ms:
            back = self.seen_ms - self.now_ms
            self.unnoticed_ms = self.unnoticed_ms + back if back <= LEASE_MS / 3 else 0
        return super().rescue(limit, keep_s, record)

    def pass_time(self, seconds: int) -> None:
        """Counts expire, too."""
        super().pass_time(seconds)
        for door in self.doors.values():
            if door.counted_until_s <= self.uptime_s:
                door.starts, door.full_ms = {}, 0
            if door.held_until_s <= self.uptime_s:
                door.held = set()
            if door.closed_until_s <= self.uptime_s:
                door.closed = None

    # ------------------------------------------------------------------ what a gate lets in

    def door(self, name: str) -> Door:
        """The gate of this name."""
        return self.doors.setdefault(name, Door())

    def room(self, gate: Gate, *, forget: bool = True) -> int:
        """How much may start at a gate now.

        Args:
            forget: What has left the window is forgotten, and so is, of a full gate, who holds no lease any more.
        """
        door = self.door(gate.name)
        live = {member: start for member, start in door.starts.items() if start[0] > self.now_ms - span(gate)}
        if forget or gate.kind == "r":
            # What a gate of another kind has counted under this name says nothing.
            door.starts = {} if gate.kind == "b" else live
            door.full_ms = door.full_ms if gate.kind in "bc" else 0
        if door.closed and door.closed[0] > self.now_ms:
            return 0
        if gate.kind == "b":
            return math.floor(gate.burst - (max(self.now_ms, door.full_ms) - self.now_ms) / step(gate) + 1e-6)
        if gate.kind != "c":
            room = gate.limit - sum(cost for _, cost in live.values())
            if room < (gate.cost or 1) and any(at > self.now_ms for at, _ in door.starts.values()):
                # Of a clock that was set back: they count from now.
                door.counted_until_s = self.uptime_s + math.ceil((math.ceil(span(gate)) + 1000) / 1000)
                door.starts = {
                    member: (min(at, self.now_ms), cost) for member, (at, cost) in door.starts.items()
                }
            return room
        held = door.held
        if len(held) >= gate.limit and gate.name not in self.cleared:
            held = {member for member in held if member in self.leases}
            if forget:
                self.cleared.add(gate.name)
                door.held = held
        return gate.limit - len(held)

    def _pass(self, gate: Gate, member: Member) -> None:
        door, cost = self.door(gate.name), gate.cost or 1
        if gate.kind == "c":
            door.held.add(member)
            door.held_until_s = self.uptime_s + HELD_TTL_S
            return
        lasts = span(gate)
        if gate.kind == "b":
            door.full_ms = max(self.now_ms, door.full_ms) + cost * step(gate)
            lasts = door.full_ms - self.now_ms
        else:
            door.starts[member] = (self.now_ms, cost)
        door.counted_until_s = self.uptime_s + math.ceil((math.ceil(lasts) + 1000) / 1000)

    def opens_ms(self, gate: Gate) -> float:
        """When a gate lets in the job that asked, if nobody goes before it."""
        door, at, wanted = self.door(gate.name), float(self.now_ms), gate.cost or 1
        if gate.kind in "rw":
            free = gate.limit
            for when, cost in sorted(door.starts.values(), reverse=True):
                free -= cost
                if free < wanted:
                    at = when + span(gate)
                    break
        elif gate.kind == "b":
            at = door.full_ms + (wanted - gate.burst) * step(gate)
        return max(at, door.closed[0] if door.closed else 0, self.now_ms)

    # ------------------------------------------------------------------ a claim

    def gates_of(self, queue: str) -> tuple[Gate, ...]:
        """What limits a whole queue."""
        if queue in self.ordered:
            until, gates = self.ordered[queue]
            if until == 0 or until > self.now_ms:
                return gates
        return self.noted.get(queue, ())

    def _room(self, queue: str, n: int) -> int:
        self.cleared = set()
        for gate in self.gates_of(queue):
            if gate.kind == "c":
                runs = [member for member in self.leases if self.wip[member] == queue]
                stock = [job_id for job_id, (where, _) in self.foreign.items() if where == queue]
                n = min(n, gate.limit - len(runs) - len(stock))
            else:
                n = min(n, self.room(gate))
        return n

    def _blocked(self, job: Job, token: str) -> bool:
        for gate in job.gates:
            if self.room(gate) < (gate.cost or 1) or self._behind(gate, job):
                self._wait_at(gate, job)
                return True
        for gate in job.gates:
            self._pass(gate, (job.id, token))
        return False

    def _behind(self, gate: Gate, job: Job) -> bool:
        """Where jobs weigh, whoever takes a lot would wait for ever if those who take little went past."""
        waiting = self.door(gate.name).waiting.values()
        first = min(waiting, default=math.inf)
        return gate.cost > 0 and job.let_in != gate.name and (job.since_ms or self.now_ms) >= first

    def _wait_at(self, gate: Gate, job: Job) -> None:
        waiting, score = self.door(gate.name).waiting, float(job.since_ms or self.now_ms)
        last = max(waiting.values(), default=0)
        if 0 <= last - score < 1:
            score = last + 0.001
        waiting[job.id] = round(score, 3)
        self._block(gate, job)

    def _block(self, gate: Gate, job: Job) -> None:
        job.state, job.bucket = "parked", AT_GATE + gate.name
        self.listed.add(gate.name)
        self.blocked.setdefault(job.queue, set()).add(job.id)

    def _start(self, job: Job, token: str) -> str:
        member = (job.id, token)
        self.wip[member] = job.queue
        for gate in self.gates_of(job.queue):
            if gate.kind != "c":
                self._pass(gate, member)
        return super()._start(job, token)

    # ------------------------------------------------------------------ the end of a run

    def _freed(self, job: Job | None, member: Member, unused: bool = False) -> None:
        if job is None or job.state is None:
            # Which gates its job named nobody knows any more: those where somebody waits are tried.
            for name in self.listed:
                self.door(name).held.discard(member)
            return
        for gate in job.gates:
            door = self.door(gate.name)
            if gate.kind == "c":
                door.held.discard(member)
            elif unused:
                door.starts.pop(member, None)

    def _close(self, job: Job, until_ms: int) -> bool:
        rates = [gate for gate in job.gates if gate.kind != "c"]
        keyed = [gate for gate in job.gates if gate.kind == "c" and gate.name.count(":") == 2]
        for gate in (rates or keyed)[:1]:
            door = self.door(gate.name)
            if door.closed is None or door.closed[0] < until_ms:
                door.closed = (until_ms, job.id)
                door.closed_until_s = self.uptime_s + math.ceil((until_ms - self.now_ms) / 1000)
            door.waiting[job.id] = job.since_ms or self.now_ms
            self._block(gate, job)
            return True
        return False

    def _unblock(self, job: Job) -> None:
        if job.bucket and job.bucket.startswith(AT_GATE):
            self.door(job.bucket.removeprefix(AT_GATE)).waiting.pop(job.id, None)
            self.blocked.get(job.queue, set()).discard(job.id)

    def _leave(self, job: Job) -> None:
        super()._leave(job)
        for gate in job.gates:
            self.door(gate.name).promised_ms = 0

    # ------------------------------------------------------------------ who waits is let in

    def asked(self, job_id: str, name: str) -> Gate | None:
        """What a job that waits at a gate asks of it; None when it does not wait there."""
        job = self.jobs.get(job_id)
        if job is None or job.state != "parked" or job.bucket != AT_GATE + name:
            return None
        return next(gate for gate in job.gates if gate.name == name)

    def open(self, due: Sequence[str], most: int) -> int:
        """How many jobs were queued and gates looked at.

        Args:
            due: The gates whose time has come, in order.
        """
        queued, front = 0, dict[str, list[str]]()
        for name in due:
            door = self.door(name)
            waiting = door.in_order()
            first = self.asked(waiting[0], name) if waiting else None
            if first is not None:
                free = self.room(first, forget=False)
                for job_id in waiting[: max(0, min(free, most - queued))]:
                    gate = self.asked(job_id, name)
                    if first.cost and gate is not None:
                        if gate.cost > free:
                            break
                        free -= gate.cost
                    del door.waiting[job_id]
                    if first.kind != "c":
                        door.promised_ms = self.now_ms + max(span(first), first.burst * step(first))
                    if gate is not None:
                        self._let_in(job_id, name if first.cost else None, front)
                        queued += 1
                    else:
                        self._taken_away(job_id)
            elif waiting:
                # Taken away by one of rq's tools: the others are looked at the next time.
                del door.waiting[waiting[0]]
                self._taken_away(waiting[0])
                continue
            if not door.waiting:
                self.listed.discard(name)
            if queued >= most:
                break
        for queue, ids in front.items():
            self._put_in_front(queue, ids)
        return queued + len(due)

    def _put_in_front(self, queue: str, ids: list[str]) -> None:
        """By how long they have waited; of equals, whoever was let in goes before who was not."""

        def rank(job_id: str) -> float:
            job = self.jobs.get(job_id)
            # What plain rq made does not say since when it waits.
            return (job.since_ms or math.inf) + (0.0 if job.ahead else 0.5) if job else math.inf

        new = sorted(
            ((self.jobs[job_id].since_ms or self.now_ms, job_id) for job_id in ids), key=itemgetter(0)
        )
        listed = self._list(queue)
        older = list(takewhile(lambda entry: entry[0] <= new[-1][0], ((rank(i), i) for i in listed)))
        merged = [job_id for _, job_id in merge(older, new, key=itemgetter(0))]
        self.lists[queue] = merged + listed[len(older) :]

    def _let_in(self, job_id: str, past: str | None, front: dict[str, list[str]]) -> None:
        job = self.jobs[job_id]
        self.blocked[job.queue].discard(job_id)
        job.bucket, job.let_in, job.ahead = None, past or job.let_in, True
        self._enter(job, job.since_ms)
        front.setdefault(job.queue, []).append(job_id)

    def _taken_away(self, job_id: str) -> None:
        job = self.jobs.get(job_id)
        if job is None or not (job.bucket or "").startswith(AT_GATE):
            for ids in self.blocked.values():
                ids.discard(job_id)

    def lift(self, queue: str) -> int:
        """How many blocked jobs were looked at; the gates that they wait at are closed no more."""
        ids = self.blocked.get(queue, set())
        for job_id in ids:
            job = self.jobs.get(job_id)
            if job is not None and job.bucket is not None:
                self.door(job.bucket.removeprefix(AT_GATE)).closed = None
        return len(ids)

    # ------------------------------------------------------------------ what limits queues

    def declare(self, gates: dict[str, tuple[Gate, ...]], *, first: bool) -> int:
        """Of how many queues something changed."""
        changed = 0
        for queue, new in gates.items():
            old = self.noted.get(queue, ())
            if old != new and (first or not old):
                self.noted[queue] = new
                changed += 1
        return changed

    def limit(self, queue: str, gates: tuple[Gate, ...] | None, until_ms: int) -> None:
        """An operator's limit, or as the settings say."""
        self.closed.pop(queue, None)
        self.ordered.pop(queue, None)
        if gates is not None:
            self.ordered[queue] = (until_ms, gates)


# --------------------------------------------------------------------------- both, side by side


class LimitedPair(Pair):
    """A server with limits, and the reference."""

    model: LimitedReference

    def open(self, most: int) -> None:
        """Look at the gates whose time has come."""
        gates = self.now.zset(KEYS.gates)
        due = sorted((at, name) for name, at in gates.items() if at <= self.model.now_ms)
        expected = self.model.open([name for _, name in due], most)
        self.call(calls.open_gates(KEYS, most, now_ms=self.model.now_ms), expected)

    def open_all(self) -> None:
        """Look until no gate's time has come."""
        while any(at <= self.model.now_ms for at in self.now.zset(KEYS.gates).values()):
            before = self.now
            self.open(100)
            if self.now == before:
                break

    def lift(self, queue: str) -> None:
        """Open what ``RateLimited`` closed."""
        self.call(calls.lift(KEYS, queue, now_ms=self.model.now_ms), self.model.lift(queue))

    def declare(self, gates: dict[str, tuple[Gate, ...]], *, first: bool) -> None:
        """Note what the settings say."""
        noted = {queue: Noted(joined(each)) for queue, each in gates.items()}
        self.call(calls.declare_limits(KEYS, noted, first=first), self.model.declare(gates, first=first))

    def order(self, queue: str, gates: tuple[Gate, ...] | None, until_ms: int = 0) -> None:
        """Limit a queue as an operator does."""
        self.model.limit(queue, gates, until_ms)
        self.call(calls.limit(KEYS, queue, None if gates is None else joined(gates), until_ms), True)

    def _compare(self, after: Snapshot) -> None:
        super()._compare(after)
        compare_parts(_server_gates(after), _model_gates(self.model))
        late(after, self.model)
        never_above(after)


def joined(gates: Sequence[Gate]) -> str:
    """Gates as a queue's state has them."""
    return ";".join(map(str, gates))


def _server_gates(state: Snapshot) -> dict[str, Any]:
    parts: dict[str, Any] = {"starts": {}, "full": {}, "held": {}, "closed": {}, "waiting": {}, "blocked": {}}
    for key, value in state.values.items():
        kind, _, name = key.removeprefix("jobq:").partition(":")
        if kind == "rate" and isinstance(value, str):
            parts["full"][name] = round(float(value), 2)
        elif kind == "rate":
            costs = {member: int(member.split(":")[2]) for member in value if member.count(":") == 2}
            # What a gate has let in is known as their sum, too: no place is lost or given back twice.
            assert sum(costs.values()) == value.get("~sum", 0), f"{name} sums up {value}"
            starts = {":".join(member.split(":")[:2]): at for member, at in value.items() if member != "~sum"}
            if starts:
                parts["starts"][name] = starts
        elif kind == "closed":
            parts["closed"][name] = value
        elif kind in ("held", "blocked"):
            parts[kind][name] = set(value)
        elif kind == "gate":
            parts["waiting"][name] = value
    states = {key.removeprefix("jobq:q:"): v for key, v in state.values.items() if key.startswith("jobq:q:")}
    return parts | {
        "listed": set(state.zset("jobq:gates")),
        "let in": {job_id: found["gt"] for job_id, found in state.hashes.items() if "gt" in found},
        "noted": {queue: found["limit"] for queue, found in states.items() if "limit" in found},
        "ordered": {queue: found["limit_set"] for queue, found in states.items() if "limit_set" in found},
        "closed queues": {
            queue: int(found["closed"]) for queue, found in states.items() if "closed" in found
        },
    }


def _model_gates(model: LimitedReference) -> dict[str, Any]:
    doors = model.doors.items()
    return {
        "starts": {
            name: {f"{i}:{t}": at for (i, t), (at, _) in door.starts.items()}
            for name, door in doors
            if door.starts
        },
        "full": {name: round(door.full_ms, 2) for name, door in doors if door.full_ms},
        "held": {name: {f"{i}:{t}" for i, t in door.held} for name, door in doors if door.held},
        "closed": {name: f"{door.closed[0]} {door.closed[1]}" for name, door in doors if door.closed},
        "waiting": {name: door.waiting for name, door in doors if door.waiting},
        "blocked": {queue: ids for queue, ids in model.blocked.items() if ids},
        "listed": model.listed,
        "let in": {job.id: job.let_in for job in model.jobs.values() if job.let_in},
        "noted": {queue: joined(gates) for queue, gates in model.noted.items() if gates},
        "ordered": {queue: f"{until}|{joined(gates)}" for queue, (until, gates) in model.ordered.items()},
        "closed queues": model.closed,
    }


# --------------------------------------------------------------------------- what must hold whatever was predicted


def late(state: Snapshot, model: LimitedReference) -> None:
    """Whoever is first at a gate is looked at no later than the gate lets it in, or a moment later, of runs.

    Raises:
        AssertionError: It would go on waiting at a gate that has room.
    """
    looks = state.zset("jobq:gates")
    for name, door in model.doors.items():
        first = model.asked(door.in_order()[0], name) if door.waiting else None
        if first is not None:
            opens = max(door.promised_ms, model.opens_ms(first) + (POLL_MS if first.kind == "c" else 0))
            opens += model.unnoticed_ms
            assert looks[name] <= math.ceil(opens), f"{name} opens at {opens}, is looked at {looks[name]}"


def never_above(state: Snapshot) -> None:
    """No more jobs run at once than the most generous of their limits allows, whatever the gates have counted.

    Raises:
        AssertionError: There are more.
    """
    runs: dict[str, list[int]] = {}
    for job_id in state.leases:
        for gate in state.hashes.get(job_id, {}).get("lm", "").split(";"):
            kind, *numbers = gate.split(",")
            if kind == "c" and state.status(job_id) == "started":
                runs.setdefault(numbers[3], []).append(int(numbers[0]))
    for name, limits in runs.items():
        assert len(limits) <= max(limits), f"{len(limits)} run at {name}, which allows {max(limits)}"
