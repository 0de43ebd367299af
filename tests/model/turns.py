"""The reference of order and of turns: who is next when jobs have an order, or belong to tenants.

Tenants take turns, one job each, and the jobs of no tenant share the turns of one. Among a tenant's jobs, and among
those of none, the least place is first. A place is the moment since when a job waits, and so much later or earlier for
each step of its order; a job that asked for nothing has that moment, and stands in the list alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobq import calls, schedule_calls
from jobq.control import hasten, move_many
from jobq.limits import Noted
from tests.model.invariants import Step
from tests.model.machine import KEYS, Pair, compare_parts
from tests.model.reference import Job, Reference, Suspects
from tests.model.snapshot import Snapshot

STEP_MS = 30_000
TURN = 2
"""How far apart two turns of one tenant are; who had nothing waiting comes between."""

USUAL_ORDER = 5


@dataclass
class Line:
    """Who waits in one queue beside its list.

    Attributes:
        placed: Ids of no tenant with an order, with their places.
        tenants: By tenant: its ids with their places.
        turns: By tenant: which turn is its next; one that has no more jobs is forgotten when it is come to.
        turn: The turn that was taken last; ``rest``: the next one of the jobs of no tenant.
    """

    placed: dict[str, float] = field(default_factory=dict)
    tenants: dict[str, dict[str, float]] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    ordered: bool = False
    fair: bool = False
    turn: int = 0
    rest: int = 0


@dataclass
class Heads:
    """Those of a list that have no place, as a claim has seen them; it looks again while there are more."""

    ids: list[str] = field(default_factory=list)
    more: bool = True


@dataclass
class TurnsReference(Reference):
    """A server whose jobs have an order or a tenant."""

    lines: dict[str, Line] = field(default_factory=dict)
    step_ms: dict[str, int] = field(default_factory=dict)
    placed: int = 0

    def line(self, queue: str) -> Line:
        """Who waits there."""
        return self.lines.setdefault(queue, Line())

    def _enter(self, job: Job, since_ms: int) -> None:
        super()._enter(job, since_ms)
        if job.order is None and job.tenant is None:
            return
        line, steps = self.line(job.queue), (job.order or USUAL_ORDER) - USUAL_ORDER
        # Those that come in one call keep their order.
        self.placed += 1
        place = round(since_ms + self.placed / 1000 + steps * self.step_ms.get(job.queue, STEP_MS), 3)
        if job.tenant is None:
            line.ordered = True
            line.placed[job.id] = place
        else:
            line.fair = True
            line.turns.setdefault(job.tenant, line.turn + 1)
            line.tenants.setdefault(job.tenant, {})[job.id] = place

    def _exit(self, job: Job) -> None:
        line = self.line(job.queue)
        if job.tenant is not None:
            line.tenants.get(job.tenant, {}).pop(job.id, None)
        else:
            line.placed.pop(job.id, None)

    # ------------------------------------------------------------------ who is next

    def _take_in_line(self, queue: str, n: int, token: str, suspects: Suspects, taken: list[str]) -> None:
        line = self.line(queue)
        if line.ordered or line.fair:
            self._take_in_turn(queue, n, token, suspects, taken)
        if not (line.ordered or line.fair) and len(taken) < n:
            super()._take_in_line(queue, n, token, suspects, taken)

    def _take_in_turn(self, queue: str, n: int, token: str, suspects: Suspects, taken: list[str]) -> None:
        line, fair, looks, heads = self.line(queue), self.line(queue).fair, 10 * n, Heads()
        while len(taken) < n and looks > 0:
            plain, looks = self._first_in_list(queue, heads, looks - 1)
            placed = min(line.placed, key=lambda i: (line.placed[i], i), default=None)
            tenant = min(line.turns, key=lambda t: (line.turns[t], t), default=None)
            free = max(line.turn, line.rest) if plain or placed else None
            if free is not None and (tenant is None or free < line.turns[tenant]):
                had = True
                if placed and (plain is None or line.placed[placed] <= plain.since_ms):
                    del line.placed[placed]
                    had = self._try(queue, placed, token, suspects, taken)
                elif plain:
                    heads.ids.pop(0)
                    self._try(queue, plain.id, token, suspects, taken)
                if fair and had:
                    line.turn, line.rest = free, free + TURN
            elif tenant is not None:
                jobs = line.tenants.get(tenant, {})
                first = min(jobs, key=lambda i: (jobs[i], i), default=None)
                if first is None:
                    line.turn = max(line.turn, line.turns.pop(tenant))
                    continue
                del jobs[first]
                if self._try(queue, first, token, suspects, taken):
                    line.turn = max(line.turn, line.turns[tenant])
                    line.turns[tenant] += TURN
            else:
                break
        if fair and not line.turns:
            line.fair, line.turn, line.rest = False, 0, 0
        line.ordered = line.ordered and bool(line.placed)

    def _first_in_list(self, queue: str, heads: Heads, looks: int) -> tuple[Job | None, int]:
        """The first of those that have no place, and how many looks are left: what is there in vain costs one."""
        line = self.line(queue)
        while looks > 0:
            if not heads.ids and heads.more:
                beside = {job_id for jobs in (line.placed, *line.tenants.values()) for job_id in jobs}
                if len(self._list(queue)) > len(beside):
                    heads.ids = [job_id for job_id in self._list(queue) if job_id not in beside]
                heads.more = bool(heads.ids)
            if not heads.ids:
                break
            job = self.jobs.get(heads.ids[0])
            if job is not None and job.state == "queued":
                return job, looks
            self.lists[queue].remove(heads.ids.pop(0))
            looks -= 1
        return None, looks

    def _try(self, queue: str, job_id: str, token: str, suspects: Suspects, taken: list[str]) -> bool:
        """Whether somebody was there, who is taken, or had to wait and has had a turn all the same."""
        if job_id in self._list(queue):
            self.lists[queue].remove(job_id)
        job = self.jobs.get(job_id)
        if job is None or job.state != "queued":
            return False
        self._take(job, token, suspects, taken)
        return True

    # ------------------------------------------------------------------ what operators ask for

    def hasten(self, job_ids: Sequence[str]) -> list[str]:
        """Word per id."""
        words = {"running": "running", None: "gone"}
        found, push = [], dict[str, list[str]]()
        for job_id in job_ids:
            job = self.jobs.get(job_id)
            if job is not None and job.state == "scheduled":
                self._enter(job, self.now_ms)
                push.setdefault(job.queue, []).append(job_id)
                found.append("queued")
            else:
                state = job.state if job else None
                found.append(words.get(state, state or "gone"))
        for queue, ids in push.items():
            self._list(queue).extend(ids)
        return found

    def reschedule(self, job_id: str, due_ms: int) -> bool:
        """Whether it was scheduled."""
        job = self.jobs.get(job_id)
        if job is None or job.state != "scheduled":
            return False
        job.due_ms = job.since_ms = due_ms
        return True

    def move(self, source: str, target: str, job_ids: Sequence[str]) -> list[str]:
        """Word per id."""
        return [self._move(source, target, job_id) for job_id in job_ids]

    def _move(self, source: str, target: str, job_id: str) -> str:
        job = self.jobs.get(job_id)
        queued = job is not None and job.state == "queued"
        if job is not None and queued and job.queue == target:
            return "moved"
        if job_id not in self._list(source):
            return "late"
        self.lists[source].remove(job_id)
        if job is not None and job.queue == source:
            self._exit(job)
        if job is None or not queued or job.queue != source:
            return "dropped"
        job.queue = target
        self._list(target).append(job_id)
        self._enter(job, job.since_ms)
        return "moved"


# --------------------------------------------------------------------------- both, side by side


class TurnsPair(Pair):
    """A server whose jobs have an order or a tenant, and the reference."""

    model: TurnsReference

    def __init__(self, client: Any, model: TurnsReference) -> None:
        super().__init__(client, model)
        self.passed: dict[tuple[str, str], Counter[str]] = {}
        """By queue and tenant: how many jobs of others were taken since it last had a turn."""

    def _done(self, name: str, after: Snapshot, answer: Any, expected: Any, facts: dict[str, Any]) -> None:
        before = self.now
        super()._done(name, after, answer, expected, facts)
        self.model.placed = 0
        if name == "claim":
            self._turns_are_fair(before, after, facts["queue"], [row[0] for row in answer[1]])

    def _turns_are_fair(self, before: Snapshot, after: Snapshot, queue: str, taken: Sequence[str]) -> None:
        """While a tenant waits, nobody else has two turns before it has one, whatever was predicted."""
        own = f"jobq:turn:{queue}:"
        waiting = {
            key.removeprefix(own) for key in before.values.keys() & after.values.keys() if key.startswith(own)
        }
        at_gates = {
            before.hashes[i].get("tn")
            for i, (was, now) in Step("", 0, before, after).moved().items()
            if (was, now) == ("queued", "deferred")
        }
        for known in list(self.passed):
            if known[0] == queue and known[1] not in waiting - at_gates:
                del self.passed[known]
        in_turns = before.values.get(f"jobq:fair:{queue}", set())
        for job_id in taken:
            # One that an rq tool queued again stands in line, as if it were nobody's.
            whose = before.hashes[job_id].get("tn", "") if job_id in in_turns else ""
            for tenant in waiting - at_gates if before.status(job_id) == "queued" else ():
                others = self.passed.setdefault((queue, tenant), Counter())
                others[whose] += 1
                if tenant == whose:
                    others.clear()
                assert max(others.values(), default=0) <= 1, f"{others} before {tenant}"

    def hasten(self, job_ids: Sequence[str]) -> None:
        """Queue scheduled jobs now."""
        call = hasten(KEYS, job_ids, now_ms=self.model.now_ms)
        self.call(call, self.model.hasten(job_ids))

    def reschedule(self, job_id: str, due_ms: int) -> None:
        """Let a scheduled job become due at another time."""
        job = self.model.jobs.get(job_id)
        call = schedule_calls.reschedule(KEYS, job_id, job.queue if job else "q", due_ms)
        self.call(call, self.model.reschedule(job_id, due_ms))

    def move(self, source: str, target: str, job_ids: Sequence[str]) -> None:
        """Put jobs at the back of another queue."""
        self.call(move_many(KEYS, source, target, job_ids), self.model.move(source, target, job_ids))

    def step(self, queue: str, step_ms: int | None) -> None:
        """Note how much waiting a step of order is worth."""
        old = self.model.step_ms.pop(queue, None)
        if step_ms is not None:
            self.model.step_ms[queue] = step_ms
        noted = Noted(step="" if step_ms is None else str(step_ms))
        self.call(calls.declare_limits(KEYS, {queue: noted}, first=True), int(old != step_ms))

    def _compare(self, after: Snapshot) -> None:
        super()._compare(after)
        compare_parts(_server_turns(after), _model_turns(self.model))


def _server_turns(state: Snapshot) -> dict[str, Any]:
    parts: dict[str, Any] = {"placed": {}, "tenants": {}, "turns": {}, "of tenants": {}}
    names = {"order": "placed", "turn": "tenants", "turns": "turns", "fair": "of tenants"}
    for key, value in state.values.items():
        kind, _, name = key.removeprefix("jobq:").partition(":")
        if kind in names:
            parts[names[kind]][name] = value
    states = {key.removeprefix("jobq:q:"): v for key, v in state.values.items() if key.startswith("jobq:q:")}
    parts["marks"] = {
        queue: {
            name: int(found[name]) for name in ("order", "fair", "turn", "rest") if int(found.get(name, "0"))
        }
        for queue, found in states.items()
    }
    parts["marks"] = {queue: marks for queue, marks in parts["marks"].items() if marks}
    return parts


def _model_turns(model: TurnsReference) -> dict[str, Any]:
    lines = model.lines.items()
    marks = {
        queue: {"order": int(line.ordered), "fair": int(line.fair), "turn": line.turn, "rest": line.rest}
        for queue, line in lines
    }
    marks = {queue: {name: value for name, value in found.items() if value} for queue, found in marks.items()}
    return {
        "placed": {queue: line.placed for queue, line in lines if line.placed},
        "tenants": {
            f"{queue}:{t}": jobs for queue, line in lines for t, jobs in line.tenants.items() if jobs
        },
        "turns": {queue: line.turns for queue, line in lines if line.turns},
        "of tenants": {
            queue: ids
            for queue, line in lines
            if (ids := {i for jobs in line.tenants.values() for i in jobs})
        },
        "marks": {queue: found for queue, found in marks.items() if found},
    }
