"""The reference of schedules: which slot becomes a job, who may change what, and whose set of schedules counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobq import schedule_calls
from jobq.recurrence import Misfire, Overlap, Timing
from jobq.rq_bridge import iso
from jobq.schedule_calls import AGAIN_MS, DECLARED_MS, RQ_SCHEDULED, TAKEN_MS, SlotJob, Taken
from jobq.schedule_spec import StoredSchedule
from tests.model.machine import KEYS, Pair, compare_parts
from tests.model.reference import Held, Job, Reference
from tests.model.snapshot import Snapshot

FULL_MS = 2000
"""When a queue without room is tried again."""
ONE = Misfire()
PAYLOAD = '{"v":1}'


@dataclass(frozen=True)
class Spec:
    """What somebody wants of a schedule."""

    name: str
    every_ms: int
    queue: str = "q"
    overlap: Overlap = "allow"
    dedup: tuple[str, str] | None = None
    misfire: Misfire = ONE

    @property
    def stored(self) -> StoredSchedule:
        """As it is written."""
        mode, key = self.dedup or ("", "")
        fields = {"origin": self.queue, "description": "t.x", "timeout": "180"}
        return StoredSchedule(
            name=self.name,
            task="t.x",
            queue=self.queue,
            timing=Timing.checked(name=self.name, every_ms=self.every_ms, misfire=self.misfire),
            overlap=self.overlap,
            fields=fields | ({"dk": f"{mode}:{key}"} if key else {}),
            dedup_key=key,
            dedup_mode=mode,
            window_ms=7000 if mode == "w" else 0,
        )

    @property
    def digest(self) -> str:
        """Of all of it."""
        return f"{self.every_ms} {self.queue} {self.overlap} {self.dedup} {self.misfire}"

    def after(self, ms: int) -> int:
        """Its first slot after a moment."""
        slot = self.stored.timing.after(ms)
        assert slot is not None
        return slot


@dataclass
class Plan:
    """One schedule as it is kept."""

    spec: Spec
    source: str
    rev: int = 0
    next_ms: int | None = None
    paused: tuple[int, str] | None = None
    job: str = ""
    last: int | None = None
    fired: int = 0
    skipped: int = 0
    missed: int = 0


@dataclass
class Sets:
    """The sets of schedules that the workers of one application declare."""

    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    current: str = ""
    expires_s: float = 0


@dataclass
class SchedulesReference(Reference):
    """A server with schedules.

    Attributes:
        due: When each is looked at.
        reasons: Of each: why it cannot be fired; empty when it is in order.
        elsewhere: What rq-scheduler has: ids, and the seconds when they are due.
    """

    plans: dict[str, Plan] = field(default_factory=dict)
    due: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    sets: dict[str, Sets] = field(default_factory=dict)
    elsewhere: dict[str, int] = field(default_factory=dict)

    def pass_time(self, seconds: int) -> None:
        """Sets that nobody declares are forgotten."""
        super().pass_time(seconds)
        self.sets = {source: each for source, each in self.sets.items() if each.expires_s > self.uptime_s}

    # ------------------------------------------------------------------ who may change what

    def declare(self, source: str, fingerprint: str) -> bool:
        """Whether it is the set that counts: the one that was seen last for the first time."""
        sets = self.sets.setdefault(source, Sets())
        stale = [
            other
            for other, (_, last) in sets.seen.items()
            if other != fingerprint and abs(last - self.now_ms) > DECLARED_MS
        ]
        for other in stale:
            del sets.seen[other]
        others = {other: first for other, (first, _) in sets.seen.items() if other != fingerprint}
        newest = max(others, key=lambda each: others[each], default=fingerprint)
        first, last = sets.seen.get(fingerprint, (0, 0))
        if last < self.now_ms - DECLARED_MS:
            first = max(self.now_ms, others.get(newest, 0) + 1)
        if first > others.get(newest, 0):
            newest = fingerprint
        sets.seen[fingerprint] = (first, self.now_ms)
        sets.current, sets.expires_s = newest, self.uptime_s + DECLARED_MS / 1000
        return newest == fingerprint

    def _outdated(self, source: str, fingerprint: str) -> bool:
        return bool(source) and (source not in self.sets or self.sets[source].current != fingerprint)

    def put(self, spec: Spec, source: str, fingerprint: str, *, replace: bool) -> str:
        """Its word."""
        if self._outdated(source, fingerprint):
            return "older"
        plan, slot = self.plans.get(spec.name), spec.after(self.now_ms)
        if plan is not None and plan.source != source:
            if not source:
                return "declared"
            if not plan.source:
                return "theirs"
            if plan.source in self.sets:
                return "same" if plan.spec.digest == spec.digest else "theirs"
        same_source = plan is not None and plan.source == source
        if plan is not None and same_source and plan.spec.digest == spec.digest:
            self.reasons.setdefault(spec.name, "")
            if plan.next_ms is not None and not plan.paused:
                self.due.setdefault(spec.name, slot)
            return "same"
        if plan is not None and not source and not replace:
            return "exists"
        new = plan or Plan(spec, source)
        kept = (
            plan is not None and plan.spec.stored.times() == spec.stored.times() and plan.next_ms is not None
        )
        new.spec, new.source, new.rev = spec, source, new.rev + 1
        self.plans[spec.name], self.reasons[spec.name] = new, ""
        if not kept:
            new.next_ms = slot
        if not new.paused:
            if kept:
                self.due.setdefault(spec.name, slot)
            else:
                self.due[spec.name] = slot
        return "added" if plan is None else "changed"

    def remove(self, name: str, source: str, fingerprint: str) -> str:
        """Its word."""
        if self._outdated(source, fingerprint):
            return "older"
        plan = self.plans.get(name)
        if plan is None and name not in self.reasons:
            return "gone"
        owner = plan.source if plan else ""
        if source and owner != source:
            return "theirs"
        if not source and owner in self.sets:
            return "declared"
        for where in (self.plans, self.due, self.reasons):
            where.pop(name, None)
        return "removed"

    def pause_schedule(self, name: str, by: str) -> str:
        """Its word."""
        plan = self.plans.get(name)
        if plan is None:
            return "gone"
        self.due.pop(name, None)
        plan.paused = plan.paused or (self.now_ms, by)
        return "paused"

    def resume_schedule(self, name: str, rev: str, slot: int) -> str:
        """Its word."""
        plan = self.plans.get(name)
        if plan is None:
            return "gone"
        if plan.paused is None:
            return "running"
        if rev != str(plan.rev):
            return "changed"
        plan.paused, plan.next_ms, plan.rev = None, slot, plan.rev + 1
        self.due[name] = slot
        return "resumed"

    def move(self, name: str, slot: int) -> bool:
        """Whether it has a next slot, which is another now."""
        plan = self.plans.get(name)
        if plan is None or plan.next_ms is None or plan.paused:
            return False
        plan.next_ms, plan.rev = slot, plan.rev + 1
        self.due[name] = slot
        return True

    # ------------------------------------------------------------------ firing

    def take(self, limit: int) -> tuple[int | None, list[tuple[str, str, str, str]]]:
        """When the next is due, and of each that is: name, revision, slot, last job."""
        taken = []
        due = sorted((at, name) for name, at in self.due.items() if at <= self.now_ms)
        for _, name in due[:limit]:
            plan = self.plans.get(name)
            if plan is None or plan.paused or plan.next_ms is None:
                del self.due[name]
                if plan is None:
                    self.reasons.pop(name, None)
                continue
            taken.append((name, str(plan.rev), str(plan.next_ms), plan.job))
            self.due[name] = self.now_ms + TAKEN_MS
        return min(self.due.values(), default=None), taken

    def fire(
        self, taken: Taken, spec: Spec, slots: Sequence[int], following: int | None, missed: int
    ) -> list[str]:
        """Word, and a word per slot."""
        plan = self.plans.get(taken.name)
        if plan is None or str(plan.rev) != taken.rev or str(plan.next_ms) != taken.slot or plan.paused:
            return ["stale"]
        room: float = math.inf
        if self.shed_until.get(spec.queue, 0) > self.now_ms:
            room = 0
        elif spec.queue in self.most:
            room = self.most[spec.queue] - self._waiting(spec.queue)
        held = spec.dedup is not None and self._holder(spec.dedup[1]) is not None
        before, words, look_ms = self._live(plan.job), list[str](), following
        running = before is not None and before.state == "running"
        waits = before is not None and not running
        new: list[Job] = []
        for slot in slots:
            job_id = slot_id(spec.name, slot)
            if job_id in self.jobs:
                words.append("mine")
            elif (waits and spec.overlap in ("skip", "queue_one")) or (running and spec.overlap == "skip"):
                words.append("overlap")
            elif held:
                words.append("duplicate")
            elif room < 1:
                words = ["full", *words]
                following, look_ms = slot, self.now_ms + FULL_MS
                break
            else:
                words.append("queued")
                room, waits, running, held = room - 1, True, False, spec.dedup is not None
                new.append(Job(job_id, spec.queue, payload=PAYLOAD, dedup=spec.dedup))
            plan.last = slot
        for job in new:
            self.jobs[job.id] = job
            self._enter(job, self.now_ms)
            self._list(spec.queue).append(job.id)
        if new:
            plan.job = new[-1].id
            if spec.dedup:
                mode, name = spec.dedup
                self.keys[name] = Held(mode, plan.job, self.uptime_s + 7 if mode == "w" else math.inf)
        plan.fired += len(new)
        plan.skipped += len([word for word in words if word not in ("full", "queued")])
        plan.missed += missed
        plan.next_ms, self.reasons[taken.name] = following, ""
        if look_ms is None:
            self.due.pop(taken.name, None)
        else:
            self.due[taken.name] = look_ms
        return words if words[:1] == ["full"] else ["ok", *words]

    def set_aside(self, name: str, reason: str) -> bool:
        """Whether it was in order before."""
        before = self.reasons.get(name, "")
        self.reasons[name] = reason
        if name in self.due:
            self.due[name] = self.now_ms + AGAIN_MS
        return not before

    # ------------------------------------------------------------------ what rq-scheduler has

    def adopt_schedule(self, rq_id: str, score: int, spec: Spec, slot: int) -> str:
        """Its word."""
        if self.elsewhere.get(rq_id) != score:
            return "changed"
        if spec.name in self.plans:
            return "exists"
        del self.elsewhere[rq_id]
        self.plans[spec.name] = Plan(spec, "", 1, slot)
        self.reasons[spec.name], self.due[spec.name] = "", slot
        return "adopted"

    def adopt_job(self, rq_id: str, score: int, job_id: str, queue: str) -> str:
        """Its word."""
        if self.elsewhere.get(rq_id) != score:
            return "changed"
        del self.elsewhere[rq_id]
        due_ms = score * 1000
        self.jobs[job_id] = Job(job_id, queue, "scheduled", PAYLOAD, due_ms=due_ms, since_ms=due_ms)
        return "adopted"


def slot_id(name: str, slot: int) -> str:
    """The id of a slot's job."""
    return f"{name}-{slot}"


# --------------------------------------------------------------------------- both, side by side


class SchedulesPair(Pair):
    """A server with schedules, and the reference."""

    model: SchedulesReference

    def __init__(self, client: Any, model: SchedulesReference) -> None:
        super().__init__(client, model)
        self.fired: set[str] = set()
        """Ids of the jobs of slots, ever."""

    def put(self, spec: Spec, source: str = "", fingerprint: str = "", *, replace: bool = False) -> None:
        """Write a schedule."""
        call = schedule_calls.put(
            KEYS,
            spec.stored,
            PAYLOAD.encode(),
            spec.digest,
            next_slot=spec.after(self.model.now_ms),
            source=source,
            fingerprint=fingerprint,
            replace=replace,
            now_ms=self.model.now_ms,
        )
        self.call(call, self.model.put(spec, source, fingerprint, replace=replace))

    def remove(self, name: str, source: str = "", fingerprint: str = "") -> None:
        """Delete a schedule."""
        call = schedule_calls.remove(
            KEYS, name, source=source, fingerprint=fingerprint, now_ms=self.model.now_ms
        )
        self.call(call, self.model.remove(name, source, fingerprint))

    def pause_schedule(self, name: str) -> None:
        """Fire no more slots."""
        call = schedule_calls.pause(KEYS, name, "me", now_ms=self.model.now_ms)
        self.call(call, self.model.pause_schedule(name, "me"))

    def resume_schedule(self, name: str, rev: str, slot: int) -> None:
        """Fire again, from that slot on."""
        call = schedule_calls.resume(KEYS, name, rev, slot, slot, now_ms=self.model.now_ms)
        self.call(call, self.model.resume_schedule(name, rev, slot))

    def move(self, name: str, slot: int) -> None:
        """Let the next slot be another moment."""
        self.call(
            schedule_calls.move(KEYS, name, slot, now_ms=self.model.now_ms), self.model.move(name, slot)
        )

    def declare(self, source: str, fingerprint: str) -> None:
        """Say that a worker declares this set."""
        call = schedule_calls.declare(KEYS, source, fingerprint, now_ms=self.model.now_ms)
        self.call(call, self.model.declare(source, fingerprint))

    def take(self, limit: int) -> list[tuple[Taken, Spec]]:
        """The schedules that are due, and what each was when it was taken."""
        next_ms, due = self.model.take(limit)
        taken = self.call(
            schedule_calls.take(KEYS, limit, now_ms=self.model.now_ms),
            (next_ms, due),
            lambda take: (take.next_ms, [(each.name, each.rev, each.slot, each.job) for each in take.due]),
        )
        return [(each, self.model.plans[each.name].spec) for each in taken.due]

    def fire(self, taken: Taken, spec: Spec) -> None:
        """Deal with what is due of a schedule that was taken, as a worker does."""
        stored, now = spec.stored, self.model.now_ms
        slots, missed, following = stored.timing.due(int(taken.slot), now)
        fields = {**stored.fields, "data": PAYLOAD, "created_at": iso(now), "enqueued_at": iso(now)}
        jobs = [SlotJob(slot, slot_id(spec.name, slot), fields) for slot in slots]
        call = schedule_calls.fire(KEYS, taken, stored, jobs, next_slot=following, missed=missed, now_ms=now)
        words = self.call(call, self.model.fire(taken, spec, slots, following, missed))
        for slot, word in zip(slots, words[1:], strict=False):
            if word == "queued":
                assert slot_id(spec.name, slot) not in self.fired, f"{spec.name} has fired {slot} twice"
                self.fired.add(slot_id(spec.name, slot))
                self.history.acked.add(slot_id(spec.name, slot))

    def set_aside(self, name: str) -> None:
        """A worker cannot fire it."""
        call = schedule_calls.set_aside(KEYS, name, "bad", now_ms=self.model.now_ms)
        self.call(call, self.model.set_aside(name, "bad"))

    def elsewhere(self, rq_id: str, score: int) -> None:
        """rq-scheduler has, or moves, a job."""
        self.model.elsewhere[rq_id] = score
        self.tool("rq_scheduler", lambda: self.client.zadd(RQ_SCHEDULED, {rq_id: score}))

    def adopt_schedule(self, rq_id: str, score: int, spec: Spec) -> None:
        """A periodic job of rq-scheduler becomes a schedule."""
        slot = spec.after(self.model.now_ms)
        call = schedule_calls.adopt_schedule(
            KEYS, rq_id, score, spec.stored, PAYLOAD.encode(), spec.digest, slot
        )
        self.call(call, self.model.adopt_schedule(rq_id, score, spec, slot))

    def adopt_job(self, rq_id: str, score: int, job_id: str) -> None:
        """A single job of rq-scheduler becomes a scheduled job."""
        fields = {"data": PAYLOAD, "origin": "q", "description": "t.x", "timeout": "180"}
        call = schedule_calls.adopt_job(KEYS, rq_id, score, job_id, "q", fields)
        self.call(call, self.model.adopt_job(rq_id, score, job_id, "q"))

    def lose(self, name: str) -> None:
        """Somebody deletes a schedule by hand."""
        self.model.plans.pop(name, None)
        self.tool("lose", lambda: self.client.delete(KEYS.schedule(name)))

    def _compare(self, after: Snapshot) -> None:
        super()._compare(after)
        compare_parts(_server_schedules(after), _model_schedules(self.model))


_KEPT = (
    "rev", "next", "paused", "by", "job", "last", "fired", "skipped", "missed", "source", "digest", "times", "spec",
)  # fmt: skip


def _server_schedules(state: Snapshot) -> dict[str, Any]:
    plans, sets = {}, {}
    for key, value in state.values.items():
        kind, _, name = key.removeprefix("jobq:").partition(":")
        if kind == "schedule":
            plans[name] = {field: value[field] for field in _KEPT if field in value}
        elif kind == "declared":
            sets[name] = (value, state.left_s[key])
    return {
        "plans": plans,
        "due": state.zset(KEYS.due),
        "reasons": state.values.get(KEYS.schedules, {}),
        "sets": sets,
        "elsewhere": state.zset(RQ_SCHEDULED),
    }


def _model_schedules(model: SchedulesReference) -> dict[str, Any]:
    def view(plan: Plan) -> dict[str, str]:
        paused_ms, by = plan.paused or (None, None)
        fields: dict[str, Any] = {"rev": plan.rev, "next": plan.next_ms, "paused": paused_ms, "by": by}
        fields |= {"job": plan.job or None, "last": plan.last, "source": plan.source}
        fields |= {
            "fired": plan.fired or None,
            "skipped": plan.skipped or None,
            "missed": plan.missed or None,
        }
        fields |= {"digest": plan.spec.digest, "times": plan.spec.stored.times().decode()}
        fields["spec"] = plan.spec.stored.encode().decode()
        return {name: str(value) for name, value in fields.items() if value is not None}

    return {
        "plans": {name: view(plan) for name, plan in model.plans.items()},
        "due": model.due,
        "reasons": model.reasons,
        "sets": {
            source: (
                {each: f"{first}:{last}" for each, (first, last) in sets.seen.items()}
                | {"current": sets.current},
                sets.expires_s - model.uptime_s,
            )
            for source, sets in model.sets.items()
        },
        "elsewhere": model.elsewhere,
    }
