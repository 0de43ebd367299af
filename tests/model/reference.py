"""The protocol as plain Python: what each step answers and what it leaves behind.

Written from the protocol's words, not from the scripts: states, leases, tokens, attempts, dedup keys, parked
buckets, pauses, due times, the counters of lost and crashed runs. Expiries run on a clock of their own
(``uptime_s``), because a wall clock may jump and Redis' expiries then jump with it on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

LEASE_MS = 12_000
MIN_KEEP_S = 60
CLAIM_TTL_S = 600
WITHDRAWN_KEEP_S = 600
LOST_LIMIT = 6
CRASH_LIMIT = 2
CLAIM_ROUNDS = 10
FOREIGN_LOOK_MS = 10_000
FOREIGN_GRACE_S = 60

State = Literal["scheduled", "queued", "running", "deferred", "parked", "succeeded", "dead", "cancelled"]
ENDED: frozenset[State] = frozenset({"succeeded", "dead", "cancelled"})
WAITING: frozenset[State] = frozenset({"scheduled", "queued"})
Suspects = Literal["run", "park", "only"]
SUSPECTS = "~suspect"
_WORD = {"running": "running", "parked": "deferred"}
"""What replay answers where rq's status cannot tell our states apart."""


@dataclass
class Job:
    """One job; a state ``None`` is the stone that a withdraw leaves where no job was."""

    id: str
    queue: str = ""
    state: State | None = None
    payload: str = ""
    attempts: int = 0
    lost: int = 0
    crashes: int = 0
    due_ms: int = 0
    dedup: tuple[str, str] | None = None
    cancel_asked: bool = False
    bucket: str | None = None
    reason: str | None = None
    settled: str | None = None
    replaced_by: tuple[str, ...] = ()
    records: int = 0
    ended_ms: int = 0
    expires_s: float = math.inf
    parents: frozenset[str] = frozenset()
    since_ms: int = 0
    """From when it waits, or waited for the run that is on; 0: nobody knows, as of a job that rq made."""
    gates: tuple[Gate, ...] = ()
    let_in: str | None = None
    ahead: bool = False
    order: int | None = None
    tenant: str | None = None


@dataclass(frozen=True)
class Gate:
    """One limit that a job or a queue names.

    Attributes:
        kind: ``r`` starts in any window, ``w`` their costs, ``b`` either with bursts, ``c`` runs at once.
        cost: What the job uses up; 0: it does not weigh, and uses up 1.
    """

    kind: str
    limit: int
    name: str
    window_ms: int = 0
    burst: int = 0
    cost: int = 0

    def __str__(self) -> str:
        """As the scripts read it."""
        text = f"{self.kind},{self.limit},{self.window_ms},{self.burst},{self.name}"
        return f"{text},{self.cost}" if self.cost else text


@dataclass(frozen=True)
class New:
    """What an enqueue brings; ``due_ms`` 0: at once."""

    id: str
    payload: str
    due_ms: int = 0
    dedup: tuple[str, str] | None = None
    window_s: int = 0
    replace: bool = False
    bound: str = "*"
    gates: tuple[Gate, ...] = ()
    quota: Gate | None = None
    order: int | None = None
    tenant: str | None = None


@dataclass(frozen=True)
class End:
    """How an attempt ended."""

    id: str
    token: str
    kind: str
    spends: bool = False
    delay_ms: int = 0
    reason: str = ""
    bucket: str = ""
    record: bool = False
    keep_s: int = 86_400
    crash: bool = False
    alone: bool = False


@dataclass
class Held:
    """Who holds a dedup key."""

    mode: str
    id: str
    expires_s: float = math.inf


@dataclass
class LastClaim:
    """An executor's last claim."""

    number: int
    ids: list[str]
    ends_ms: int
    expires_s: float


@dataclass
class Reference:
    """The whole of a server's state, and the steps over it."""

    now_ms: int
    uptime_s: float = 0
    jobs: dict[str, Job] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    leases: dict[tuple[str, str], int] = field(default_factory=dict)
    claims: dict[str, LastClaim] = field(default_factory=dict)
    keys: dict[str, Held] = field(default_factory=dict)
    paused: dict[str, int] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    shed_until: dict[str, int] = field(default_factory=dict)
    foreign: dict[str, tuple[str, int]] = field(default_factory=dict)
    cancels: set[str] = field(default_factory=set)
    after: dict[str, int] = field(default_factory=dict)
    children: dict[str, set[str]] = field(default_factory=dict)
    buckets: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    kept: dict[tuple[str, State], dict[str, int]] = field(default_factory=dict)
    counted: int = 0
    seen_ms: int | None = None
    hold_ms: int | None = None
    looked_ms: int | None = None

    # ------------------------------------------------------------------ time

    def pass_time(self, seconds: int) -> None:
        """Both clocks go on, and what has expired is gone."""
        self.now_ms += seconds * 1000
        self.uptime_s += seconds
        for job in [job for job in self.jobs.values() if job.expires_s <= self.uptime_s]:
            del self.jobs[job.id]
            self.children.pop(job.id, None)
        self.keys = {name: held for name, held in self.keys.items() if held.expires_s > self.uptime_s}
        self.claims = {name: last for name, last in self.claims.items() if last.expires_s > self.uptime_s}

    # ------------------------------------------------------------------ parts

    def _list(self, queue: str) -> list[str]:
        return self.lists.setdefault(queue, [])

    # What a reference of limits or of turns adds.

    def _enter(self, job: Job, since_ms: int) -> None:
        """It waits in line from now on, as one that has waited since then."""
        job.state, job.since_ms = "queued", since_ms

    def _exit(self, job: Job) -> None:
        """It waits in line no more."""

    def _unblock(self, job: Job) -> None:
        """It waits at no gate any more."""

    def _room(self, queue: str, n: int) -> int:
        """How many of ``n`` may start, whoever they are."""
        return n

    def _blocked(self, job: Job, token: str) -> bool:
        """Whether a limit keeps it from starting; it waits there then."""
        return False

    def _freed(self, job: Job | None, member: tuple[str, str], unused: bool = False) -> None:
        """A lease has ended; ``unused``: its run had not begun."""

    def _close(self, job: Job, until_ms: int) -> bool:
        """Whether a job that was told to slow down waits at a gate of its own, which is closed until then."""
        return False

    def _quota(self, one: New) -> tuple[str, str] | None:
        """The answer to a job that its quota refuses; None, and it is counted."""
        return None

    def _live(self, job_id: str) -> Job | None:
        job = self.jobs.get(job_id)
        return job if job is not None and job.state is not None and job.state not in ENDED else None

    def _holder(self, name: str) -> str | None:
        """Who makes an equal enqueue a duplicate; a key whose owner is over refuses nobody, but for a window."""
        held = self.keys.get(name)
        if held is None:
            return None
        if held.mode == "w":
            return held.id
        job = self._live(held.id)
        if job is None or (held.mode == "s" and job.state == "running"):
            return None
        return held.id

    def _free_key(self, job: Job) -> None:
        if job.dedup and job.dedup[0] != "w":
            mode, name = job.dedup
            held = self.keys.get(name)
            if held and (held.mode, held.id) == (mode, job.id):
                del self.keys[name]

    def _take_key(self, job: Job, window_s: int = 0) -> None:
        if job.dedup:
            mode, name = job.dedup
            expires = self.uptime_s + window_s if mode == "w" else math.inf
            self.keys[name] = Held(mode, job.id, expires)

    def _leave(self, job: Job) -> None:
        """Out of every place where a waiting job stands."""
        if job.state == "queued":
            self.lists[job.queue] = [other for other in self._list(job.queue) if other != job.id]
            self._exit(job)
        if job.bucket is not None:
            self._unbucket(job.queue, job.bucket, job.id)
            self._unblock(job)
        job.bucket = None

    def _unbucket(self, queue: str, bucket: str, job_id: str) -> None:
        ids = self.buckets.get((queue, bucket), {})
        ids.pop(job_id, None)
        if not ids:
            self.buckets.pop((queue, bucket), None)

    def _end(self, job: Job, state: State, keep_s: int, score: int) -> None:
        job.state, job.ended_ms = state, self.now_ms
        job.expires_s = self.uptime_s + keep_s
        self.kept.setdefault((job.queue, state), {})[job.id] = score
        self._free_key(job)
        if job.id in self.children:
            self.after[job.id] = self.now_ms

    def _drop_lease(self, job_id: str, token: str) -> bool:
        return self.leases.pop((job_id, token), None) is not None

    def _second(self) -> int:
        return self.now_ms // 1000

    # ------------------------------------------------------------------ the path of a job

    def enqueue(self, queue: str, new: Sequence[New]) -> list[tuple[str, str]]:
        """Admit jobs in order; each sees those before it."""
        room, refusal = math.inf, "full"
        if self.shed_until.get(queue, 0) > self.now_ms:
            room, refusal = 0, "shed"
        elif queue in self.most:
            room = self.most[queue] - self._waiting(queue)
        answers = []
        for one in new:
            word, who = self._judge(one)
            if word == "new":
                over = self._quota(one) if one.quota and room >= 1 else None
                if room < 1:
                    word = refusal
                elif over:
                    word, who = over
                else:
                    room -= 1
                    word = self._admit(queue, one)
            elif word == "replaced":
                self._replace(self.jobs[who], one)
            answers.append(("replaced" if word == "repeated" else word, who))
        return answers

    def _waiting(self, queue: str) -> int:
        """How many jobs wait, for whatever."""
        others = ("scheduled", "deferred", "parked")
        beside = sum(job.queue == queue and job.state in others for job in self.jobs.values())
        return len(self._list(queue)) + beside

    def _judge(self, one: New) -> tuple[str, str]:
        if one.id in self.jobs:
            return "mine", one.id
        holder = self._holder(one.dedup[1]) if one.dedup else None
        if holder is None:
            return "new", one.id
        if not one.replace:
            return "duplicate", holder
        job = self.jobs.get(holder)
        if job is not None and one.id in job.replaced_by:
            return "repeated", holder
        if job is None or job.state in ENDED or job.state in ("deferred", "parked", None):
            return "duplicate", holder
        if job.state == "running":
            return "new", one.id
        return ("replaced", holder) if one.bound in (holder, "*") else ("rebind", holder)

    def _admit(self, queue: str, one: New) -> str:
        later = one.due_ms > self.now_ms
        job = Job(one.id, queue, "scheduled" if later else "queued", one.payload, dedup=one.dedup)
        job.due_ms = job.since_ms = one.due_ms if later else 0
        job.gates, job.order, job.tenant = one.gates, one.order, one.tenant
        self.jobs[one.id] = job
        if not later:
            self._list(queue).append(one.id)
            self._enter(job, self.now_ms)
        self._take_key(job, one.window_s)
        return "scheduled" if later else "queued"

    def _replace(self, job: Job, one: New) -> None:
        later = one.due_ms > self.now_ms
        if job.state == "queued" and later:
            self._leave(job)
        elif job.state == "queued":
            self._exit(job)
        elif not later:
            self._list(job.queue).append(job.id)
        job.state, job.due_ms = ("scheduled", one.due_ms) if later else ("queued", 0)
        job.payload, job.dedup, job.replaced_by = one.payload, one.dedup, (one.id, *job.replaced_by)[:8]
        job.attempts = job.lost = job.crashes = 0
        job.gates, job.order, job.tenant, job.let_in = one.gates, one.order, one.tenant, None
        job.ahead = False
        job.since_ms = one.due_ms
        if not later:
            self._enter(job, self.now_ms)
        self._take_key(job, one.window_s)

    def claim(
        self, queue: str, exec_id: str, number: int, n: int, known: Sequence[str], suspects: Suspects = "run"
    ) -> tuple[str, list[str]]:
        """Word and ids; the same number again yields what it still holds."""
        last = self.claims.get(exec_id)
        token = f"{exec_id}.{number}"
        if last is not None and last.number > number:
            return "stale", []
        if last is not None and last.number == number:
            return "ok", [i for i in last.ids if (i, token) in self.leases and self._is_running(i)]
        if queue in self.paused and not 0 < self.paused[queue] <= self.now_ms:
            return "paused", []
        asked, n = n, self._room(queue, n)
        if self.closed.get(queue, 0) > self.now_ms:
            # Nobody hears of it while nothing waits, and no such claim is remembered.
            waits = (queue, SUSPECTS) in self.buckets if suspects == "only" else bool(self._list(queue))
            return ("limited" if waits else "ok"), []
        self.closed.pop(queue, None)
        if n < 1 <= asked:
            waits = (queue, SUSPECTS) in self.buckets if suspects == "only" else bool(self._list(queue))
            return ("limited" if waits else "ok"), []
        taken: list[str] = []
        for bucket in known:
            ids = self.buckets.get((queue, bucket), {})
            for job_id in sorted(ids, key=lambda i: (ids[i], i))[: n - len(taken)]:
                self._unbucket(queue, bucket, job_id)
                job = self.jobs.get(job_id)
                if job is not None and job.state == "parked":
                    self._take(job, token, suspects, taken)
        if suspects != "only":
            self._take_in_line(queue, n, token, suspects, taken)
        ends = self.now_ms + LEASE_MS
        self.claims[exec_id] = LastClaim(number, taken, ends, self.uptime_s + CLAIM_TTL_S)
        return "ok", taken

    def _take_in_line(self, queue: str, n: int, token: str, suspects: Suspects, taken: list[str]) -> None:
        """Take what stands first in the list; what is there in vain is dropped."""
        for _ in range(CLAIM_ROUNDS):
            room = n - len(taken)
            if room < 1:
                break
            popped, self.lists[queue] = self._list(queue)[:room], self._list(queue)[room:]
            for job_id in popped:
                job = self.jobs.get(job_id)
                if job is not None and job.state == "queued":
                    self._take(job, token, suspects, taken)
            if taken or len(popped) < room:
                break

    def _is_running(self, job_id: str) -> bool:
        job = self.jobs.get(job_id)
        return job is not None and job.state == "running"

    def _take(self, job: Job, token: str, suspects: Suspects, taken: list[str]) -> None:
        if job.settled:
            job.cancel_asked, job.reason, job.expires_s, job.ended_ms = False, None, math.inf, 0
        if suspects == "park" and (job.crashes >= 1 or job.lost >= 3):
            job.state, job.bucket = "parked", SUSPECTS
            self.buckets.setdefault((job.queue, SUSPECTS), {})[job.id] = self.now_ms
        elif not self._blocked(job, token):
            taken.append(self._start(job, token))

    def _start(self, job: Job, token: str) -> str:
        job.state, job.bucket, job.let_in = "running", None, None
        if job.dedup and job.dedup[0] == "s":
            self._free_key(job)
        self.leases[job.id, token] = self.now_ms + LEASE_MS
        return job.id

    def settle(self, queue: str, ends: Sequence[End]) -> list[str]:
        """Word per outcome, in order."""
        answers, back = [], []
        looked = [(end.id, end.token) in self.leases for end in ends]
        before = {
            end.id: (self.jobs[end.id].settled, self.jobs[end.id].state)
            for end in ends
            if end.id in self.jobs
        }
        seen: set[tuple[str, str]] = set()
        for end, held in zip(ends, looked, strict=True):
            job = self.jobs.get(end.id)
            exists = job is not None and job.state is not None
            if (end.id, end.token) in seen:
                answers.append("already")
                continue
            if not held:
                word = "gone"
                if exists:
                    settled, state = before[end.id]
                    ended = "dead" if end.kind == "interrupted" and state == "dead" else "already"
                    ended = "cancelled" if end.kind != "cancelled" and state == "cancelled" else ended
                    word = ended if settled == end.token else "lost"
                answers.append(word)
                continue
            seen.add((end.id, end.token))
            self._drop_lease(end.id, end.token)
            self._freed(job, (end.id, end.token), end.kind == "hand_back")
            if not exists or job.state != "running":
                self.cancels.discard(end.id)
                answers.append("gone" if not exists else "cancelled" if job.state == "cancelled" else "lost")
                continue
            answers.append(self._settle(queue, job, end, back))
        self.lists[queue] = back + self._list(queue)
        return answers

    def _settle(self, queue: str, job: Job, end: End, back: list[str]) -> str:
        kind, word, reason = end.kind, "ok", end.reason or None
        if job.cancel_asked:
            self.cancels.discard(job.id)
            if kind != "succeeded":
                word = "ok" if kind == "cancelled" else "cancelled"
                kind, reason = "cancelled", None
        keep = max(MIN_KEEP_S, end.keep_s)
        job.settled = end.token
        job.records = min(20, job.records + end.record)
        self.counted += 1
        if kind == "interrupted":
            if end.crash:
                job.crashes += 1
            else:
                job.lost += 1
            if (end.crash and end.alone and job.crashes >= CRASH_LIMIT) or (
                not end.crash and job.lost >= LOST_LIMIT
            ):
                kind, reason, word = "dead", "poison", "dead"
        elif end.spends:
            job.attempts += 1
        if kind == "succeeded":
            self._end(job, "succeeded", keep, self._second() + keep)
        elif kind == "dead":
            job.reason = reason or "exhausted"
            self._end(job, "dead", keep, self._second() + keep)
        elif kind == "cancelled":
            job.cancel_asked = True
            self._end(job, "cancelled", keep, self._second())
        elif kind in ("retry", "snooze"):
            job.state, job.due_ms = "scheduled", self.now_ms + end.delay_ms
            job.since_ms = job.due_ms if job.since_ms else 0
        elif kind == "park":
            job.state, job.bucket = "parked", end.bucket
            self.buckets.setdefault((queue, end.bucket), {})[job.id] = self.now_ms
        elif kind == "limited" and self._close(job, self.now_ms + end.delay_ms):
            job.state = "parked"
        else:
            self._enter(job, job.since_ms)
            back.append(job.id)
            if kind == "limited":
                self.closed[queue] = max(self.closed.get(queue, 0), self.now_ms + end.delay_ms)
        return word

    def heartbeat(self, members: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """Lost members, ids asked to stop."""
        lost = [f"{i}:{t}" for i, t in members if (i, t) not in self.leases]
        held = [(i, t) for i, t in members if (i, t) in self.leases]
        for member in held:
            self.leases[member] = max(self.leases[member], self.now_ms + LEASE_MS)
        return lost, [i for i, _ in held if i in self.cancels]

    def progress(self, job_id: str, token: str) -> bool:
        """Whether the note was taken."""
        job = self.jobs.get(job_id)
        return (job_id, token) in self.leases and job is not None and job.state is not None

    # ------------------------------------------------------------------ background duties

    def _set_back(self, last_ms: int) -> None:
        """The clock was set back: leases given before keep what they had left, and at least a whole lease."""
        start = max(self.now_ms + LEASE_MS, last_ms - LEASE_MS)
        for held, ends in self.leases.items():
            if ends > start:
                self.leases[held] = max(ends - (last_ms - self.now_ms), self.now_ms + LEASE_MS)

    def rescue(self, limit: int, keep_s: int, record: bool) -> tuple[bool, list[tuple[str, str, str]]]:
        """Held or not; what was moved."""
        third = LEASE_MS / 3
        last, self.seen_ms = self.seen_ms, self.now_ms
        if last is None or abs(self.now_ms - last) > third:
            if last is not None and last > self.now_ms:
                self._set_back(last)
            self.hold_ms = self.now_ms + int(third)
            return True, []
        if self.hold_ms is not None and 0 < self.hold_ms - self.now_ms <= third:
            return True, []
        moved: list[tuple[str, str, str]] = []
        back: dict[str, list[str]] = {}
        due = sorted((ends, f"{i}:{t}", i, t) for (i, t), ends in self.leases.items() if ends <= self.now_ms)[
            :limit
        ]
        for _, _, job_id, token in due:
            self._drop_lease(job_id, token)
            self._freed(self.jobs.get(job_id), (job_id, token))
            self._interrupt(job_id, keep_s, record, moved, back)
        if self.looked_ms is None or abs(self.now_ms - self.looked_ms) > FOREIGN_LOOK_MS:
            self.looked_ms = self.now_ms
            for job_id, (_, until_s) in sorted(self.foreign.items(), key=lambda item: (*item[1], item[0])):
                if until_s <= self._second() - FOREIGN_GRACE_S:
                    del self.foreign[job_id]
                    self._interrupt(job_id, keep_s, record, moved, back)
        for queue, ids in back.items():
            self.lists[queue] = ids + self._list(queue)
        return False, moved

    def _interrupt(
        self,
        job_id: str,
        keep_s: int,
        record: bool,
        moved: list[tuple[str, str, str]],
        back: dict[str, list[str]],
    ) -> None:
        job = self.jobs.get(job_id)
        if job is None or job.state != "running":
            self.cancels.discard(job_id)
            return
        job.lost += 1
        job.records = min(20, job.records + record)
        if job.cancel_asked:
            self.cancels.discard(job_id)
            word = "cancelled"
            job.settled = "rescue"
            self._end(job, "cancelled", keep_s, self._second())
        elif job.lost >= LOST_LIMIT:
            word = "dead"
            job.settled, job.reason = "rescue", "poison"
            self._end(job, "dead", keep_s, self._second() + keep_s)
        else:
            word = "queued"
            self._enter(job, job.since_ms)
            back.setdefault(job.queue, []).append(job_id)
        moved.append((job_id, job.queue, word))

    def promote(self, queues: Sequence[str], limit: int) -> tuple[int, int | None]:
        """How many became queued, and when the next is due."""
        count, later = 0, []
        for queue in queues:
            waiting = sorted(
                (j.due_ms, j.id) for j in self.jobs.values() if j.queue == queue and j.state == "scheduled"
            )
            due = [job_id for at, job_id in waiting if at <= self.now_ms][:limit]
            for job_id in due:
                job = self.jobs[job_id]
                self._enter(job, job.due_ms if job.since_ms else 0)
                self._list(queue).append(job_id)
            count += len(due)
            later += [at for at, job_id in waiting if job_id not in due][:1]
        return count, min(later, default=None)

    def release(self) -> tuple[set[str], int]:
        """Children that leave deferred, and parents done with."""
        released: set[str] = set()
        parents = sorted(self.after, key=lambda i: (self.after[i], i))[:20]
        for parent in parents:
            children = self.children.get(parent, set())
            for child in sorted(children):
                job = self.jobs.get(child)
                if job is not None and job.state == "deferred" and all(self._lets_go(p) for p in job.parents):
                    self._enter(job, self.now_ms if job.since_ms else 0)
                    self._list(job.queue).append(child)
                    released.add(child)
                    children.discard(child)
            if not children or (parent in self.jobs and self.jobs[parent].state == "succeeded"):
                self.children.pop(parent, None)
            del self.after[parent]
        return released, len(parents)

    def _lets_go(self, parent: str) -> bool:
        job = self.jobs.get(parent)
        return job is None or job.state in (None, "succeeded")

    def prune(
        self, queue: str, succeeded: int, dead: int, cancelled_s: int, limit: int, cancelled: int = -1
    ) -> int:
        """How many entries went: by age first, then by count."""
        removed = 0
        plan: tuple[tuple[State, int, int], ...] = (
            ("succeeded", self._second(), succeeded),
            ("dead", self._second(), dead),
            ("cancelled", self._second() - cancelled_s, cancelled),
        )
        for state, until, most in plan:
            kept = self.kept.get((queue, state), {})
            ordered = sorted(kept, key=lambda i: (kept[i], i))
            old = [i for i in ordered if kept[i] <= until][: max(0, limit - removed)]
            removed += self._forget(kept, old, state)
            room = limit - removed
            over = len(kept) - most
            if most < 0 or over < 1 or room < 1:
                continue
            first = sorted(kept, key=lambda i: (kept[i], i))[: min(over, room)]
            removed += self._forget(kept, [i for i in first if not self._fresh(i)], state)
        return removed

    def _fresh(self, job_id: str) -> bool:
        """A terminal job lives for a minute at least, so that a late enqueue still finds it."""
        job = self.jobs.get(job_id)
        return job is not None and job.ended_ms >= self.now_ms - MIN_KEEP_S * 1000

    def _forget(self, kept: dict[str, int], ids: Sequence[str], state: State) -> int:
        for job_id in ids:
            del kept[job_id]
            self.cancels.discard(job_id)
            job = self.jobs.get(job_id)
            if job is not None and job.state in (state, None):
                self._free_key(job)
                del self.jobs[job_id]
                self.children.pop(job_id, None)
        return len(ids)

    def sweep(self) -> set[str]:
        """Names of the dedup keys that refuse nobody, which are deleted."""
        idle = {name for name, held in self.keys.items() if held.mode != "w" and self._holder(name) is None}
        for name in idle:
            del self.keys[name]
        return idle

    # ------------------------------------------------------------------ what operators ask for

    def cancel(self, job_id: str, keep_s: int) -> str:
        """Its word."""
        job = self.jobs.get(job_id)
        if job is None or job.state is None:
            return "gone"
        if job.state == "cancelled":
            return "cancelled"
        if job.state in ENDED:
            return "finished"
        if job.state == "running":
            job.cancel_asked = True
            self.cancels.add(job_id)
            return "requested"
        self._leave(job)
        job.cancel_asked, job.settled = True, "cancel"
        self._end(job, "cancelled", max(MIN_KEEP_S, keep_s), self._second())
        return "cancelled"

    def withdraw(self, job_id: str, keep_s: int) -> str:
        """Its word; what never came leaves a stone, so that it finds itself here."""
        keep = max(WITHDRAWN_KEEP_S, keep_s)
        job = self.jobs.get(job_id)
        if job is None or job.state is None:
            self.jobs[job_id] = Job(
                job_id, settled="withdraw", cancel_asked=True, expires_s=self.uptime_s + keep
            )
            return "gone"
        if job.state == "cancelled":
            return "withdrawn" if job.settled == "withdraw" else "finished"
        if job.state in ENDED:
            return "finished"
        if job.state == "running":
            return "started"
        self._leave(job)
        job.cancel_asked, job.settled = True, "withdraw"
        self._end(job, "cancelled", keep, self._second())
        return "withdrawn"

    def delete(self, job_id: str) -> str:
        """Its word."""
        job = self.jobs.get(job_id)
        if job is None:
            return "gone"
        if job.state == "running":
            return "running"
        self._leave(job)
        self._free_key(job)
        self._unkeep(job)
        self.cancels.discard(job_id)
        self.after.pop(job_id, None)
        self.children.pop(job_id, None)
        del self.jobs[job_id]
        return "deleted"

    def _unkeep(self, job: Job) -> None:
        if job.state in ENDED:
            self.kept.get((job.queue, job.state), {}).pop(job.id, None)

    def replay(self, job_ids: Sequence[str]) -> list[str]:
        """Word per id."""
        return [self._replay(job_id) for job_id in job_ids]

    def _replay(self, job_id: str) -> str:
        job = self.jobs.get(job_id)
        if job is None or job.state is None:
            return "gone"
        if job.state not in ("dead", "cancelled"):
            return _WORD.get(job.state, job.state)
        if job.dedup:
            holder = self._holder(job.dedup[1])
            if holder is not None and holder != job_id:
                return f"conflict:{holder}"
        self._unkeep(job)
        # At most one lease per job: one that an rq tool's cancel left behind ends here.
        self.leases = {member: ends for member, ends in self.leases.items() if member[0] != job_id}
        self.foreign.pop(job_id, None)
        self.cancels.discard(job_id)
        if job.dedup and job.dedup[0] != "w":
            self._take_key(job)
        job.expires_s = math.inf
        job.attempts = job.lost = job.ended_ms = 0
        job.crashes = int(job.reason == "poison")
        job.cancel_asked, job.reason, job.settled, job.replaced_by, job.let_in = False, None, None, (), None
        job.ahead = False
        self._enter(job, self.now_ms if job.since_ms else 0)
        self._list(job.queue).append(job_id)
        return "queued"

    def unpark(self, queue: str, bucket: str, limit: int) -> int:
        """How many became queued."""
        ids = dict(self.buckets.get((queue, bucket), {}))
        count = 0
        for job_id in sorted(ids, key=lambda i: (ids[i], i))[:limit]:
            self._unbucket(queue, bucket, job_id)
            job = self.jobs.get(job_id)
            if job is not None and job.state == "parked":
                job.bucket = None
                self._enter(job, self.now_ms if job.since_ms else 0)
                self._list(queue).append(job_id)
                count += 1
        return count

    def pause(self, queue: str, until_ms: int) -> bool:
        """Always true."""
        self.paused[queue] = until_ms
        return True

    def resume(self, queue: str) -> bool:
        """Whether there was a pause; what was told to slow down goes on, too."""
        self.closed.pop(queue, None)
        return self.paused.pop(queue, None) is not None

    # ------------------------------------------------------------------ rq's tools

    def rq_child(self, job_id: str, queue: str, parents: frozenset[str]) -> None:
        """A job that waits for its parents."""
        self.jobs[job_id] = Job(job_id, queue, "deferred", parents=parents)
        for parent in parents:
            self.children.setdefault(parent, set()).add(job_id)

    def rq_cancel(self, job_id: str) -> None:
        """Status and registry; nothing of ours."""
        job = self.jobs[job_id]
        if job.state == "queued":
            self.lists[job.queue] = [other for other in self._list(job.queue) if other != job_id]
        job.bucket = None
        job.state = "cancelled"
        self.kept.setdefault((job.queue, "cancelled"), {})[job_id] = self._second()

    def rq_delete(self, job_id: str) -> None:
        """Hash, list and registry; nothing of ours."""
        job = self.jobs.pop(job_id)
        self.lists[job.queue] = [other for other in self._list(job.queue) if other != job_id]
        self._unkeep(job)
        self.children.pop(job_id, None)

    def rq_requeue(self, job_id: str) -> None:
        """A dead letter to the back of its queue; it keeps its expiry."""
        job = self.jobs[job_id]
        self._unkeep(job)
        job.state, job.ended_ms = "queued", 0
        self._list(job.queue).append(job_id)

    def rq_empty(self, queue: str) -> None:
        """All that the list names is deleted."""
        for job_id in self._list(queue):
            self.jobs.pop(job_id, None)
            self.children.pop(job_id, None)
        self.lists[queue] = []

    def stock_pop(self, queue: str, timeout_s: int | None) -> str | None:
        """A stock worker takes the first id; with a timeout it also starts the job, without it dies at once."""
        if not self._list(queue):
            return None
        job_id = self.lists[queue].pop(0)
        if timeout_s is not None:
            job = self.jobs[job_id]
            job.state = "running"
            self.foreign[job_id] = (queue, self._second() + timeout_s)
        return job_id

    def stock_end(self, job_id: str, keep_s: int) -> None:
        """A stock worker finishes its job."""
        job = self.jobs[job_id]
        job.state = "succeeded"
        del self.foreign[job_id]
        job.expires_s = self.uptime_s + keep_s
        self.kept.setdefault((job.queue, "succeeded"), {})[job_id] = self._second() + keep_s
