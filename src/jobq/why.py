"""Why a job has not run, or what happened to it: what Redis knows, put into :mod:`jobq.reasons`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from jobq.fleet import QueueInfo, Worker, queue_info, workers_plan
from jobq.gates import Gate, Standing, gate_words, gates_of, queue_gates, standings_plan
from jobq.job import Attempt, Job, JobOwner, JobState
from jobq.job_reading import job_plan
from jobq.keys import Keys
from jobq.listing import scored
from jobq.overrides import Override, in_force, read
from jobq.places import Place, place_plan
from jobq.reasons import STATE_CODES, Reason, park_code, reason
from jobq.records import decode_attempt
from jobq.replies import as_int, as_map, as_text
from jobq.snapshot import Counters
from jobq.steps import Batch, Plan
from jobq.units import agreeing, moment, plural, redis_ms

LONGEST_ID = 180
"""A claim reads no longer one: its id stands in names and records."""

ORDER_STEP_MS = 30_000
"""What one step of order is worth, as the scripts have it where a queue's state has no other."""

_PACE_MINUTES = 5
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """What is known of one job.

    Attributes:
        reasons: Why it waits, runs or has ended, what blocks it first. Never empty.
        ahead: Jobs before it in its queue; None: it is not queued, or farther back than 100,000.
        eta: When it is expected to start, by the queue's pace of the last five minutes; None: no pace, or blocked.
        attempts: Its recorded attempts, oldest first.
    """

    job: Job
    reasons: tuple[Reason, ...]
    ahead: int | None = None
    eta: datetime | None = None
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is read for every job, in one pipeline."""

    now_ms: int
    job: Job
    fields: dict[str, str]
    attempts: tuple[Attempt, ...]
    info: QueueInfo
    state: dict[str, str]
    suspended: bool
    holder: str
    readable: bool
    overrides: str
    gates: tuple[Gate, ...]
    ends: float | None

    @property
    def now(self) -> datetime:
        """When the facts were read, by Redis' clock."""
        return moment(self.now_ms)

    @property
    def values(self) -> dict[str, Any]:
        """What every sentence may name."""
        job = self.job
        return {
            "id": job.id,
            "queue": job.queue,
            "task": job.task,
            "attempt": job.attempt,
            "QUEUE": job.queue.upper(),
        }

    def set_for_it(self) -> list[Override]:
        """What operators have set in place of the limits that its task declares."""
        if self.ends is None:
            return []
        names = {gate.name.partition(":")[2] for gate in self.gates} | {self.job.task}
        return [each for name, each in read(self.overrides, self.now_ms).items() if name in names]

    def last_error(self) -> str:
        """``: ValueError: no funds``, or nothing."""
        last = self.attempts[-1] if self.attempts else None
        words = ": ".join(part for part in (last.error_type, last.error) if part) if last else ""
        return f": {words}" if words else ""


_MORE = (
    "q",
    "pb",
    "rp",
    "park",
    "why",
    "lost",
    "crashes",
    "cx",
    "dk",
    "lm",
    "st",
    "sz",
    "or",
    "tn",
    "gt",
    "description",
)

_PASSING = ("busy", "queue_rate", "queue_concurrency", "rate", "concurrency", "backed_off", "gate_open")
"""What goes by as the others do: it is no reason to expect nothing."""


def why_plan(
    keys: Keys, job_id: str, owner: JobOwner | None, lease: timedelta, *, now_ms: int | None = None
) -> Plan[Why]:
    """Everything that keeps this job from running, or that happened to it, in two to seven round trips.

    Args:
        now_ms: For tests. None: Redis' clock.
    Raises:
        JobNotFoundError: There is no such job.
        PayloadUnreadableError: Its key has the wrong type.
    """
    job = yield from job_plan(keys, job_id, owner)
    facts = yield from _facts(keys, job, now_ms)
    ahead: int | None = None
    eta: datetime | None = None
    found: list[Reason] = []
    match job.state:
        case JobState.QUEUED:
            found, ahead, eta = yield from _queued(keys, facts)
        case JobState.SCHEDULED | JobState.RETRYING:
            found = _delayed(facts)
        case JobState.DEFERRED:
            found = yield from _deferred(keys, facts)
        case JobState.PARKED:
            found = yield from _parked(keys, facts)
        case JobState.RUNNING:
            found = yield from _running(keys, facts, lease)
        case _:
            found = _ended(facts)
    if not (job.finished or job.state is JobState.RUNNING):
        stands = yield from _queue_stands(keys, facts)
        found = stands + found if job.state is JobState.QUEUED else found + stands
        found += _overrides(facts)
    found += _beside(facts)
    ordered = sorted(found, key=lambda each: not each.blocks)
    blocked = any(each.blocks and each.code not in _PASSING for each in found)
    # The pace of the last minutes knows nothing of what keeps the queue from going on now.
    opens = max((each.until for each in ordered if each.blocks and each.until), default=None)
    if eta is not None and opens is not None and opens > eta:
        eta = opens
        ordered = [
            replace(each, until=max(each.until, opens)) if each.code == "behind" and each.until else each
            for each in ordered
        ]
    return Why(
        job=job, reasons=tuple(ordered), ahead=ahead, eta=None if blocked else eta, attempts=facts.attempts
    )


def _facts(keys: Keys, job: Job, now_ms: int | None) -> Plan[_Facts]:
    name = (job.dedup_key or "").partition(":")[2]
    clock, more, size, attempts, length, state, suspended, holder, overrides = yield Batch(
        (
            ("TIME",),
            ("HMGET", keys.job(job.id), *_MORE),
            ("HSTRLEN", keys.job(job.id), "data"),
            ("LRANGE", keys.attempts(job.id), 0, -1),
            ("LLEN", keys.queue(job.queue)),
            ("HGETALL", keys.queue_state(job.queue)),
            ("EXISTS", keys.suspended),
            ("GET", keys.dedup(name)),
            ("GET", keys.limits),
        )
    )
    now_ms = redis_ms(clock) if now_ms is None else now_ms
    texts = [as_text(value) if isinstance(value, bytes) else "" for value in more or ()]
    records = [] if isinstance(attempts, Exception) else attempts
    mapped = as_map(state)
    fields = dict(zip(_MORE, texts, strict=False))
    was_set = as_text(overrides) if isinstance(overrides, bytes) else ""
    gates, ends = in_force(fields.get("lm", ""), fields.get("description", ""), was_set, now_ms)
    return _Facts(
        now_ms=now_ms,
        job=job,
        fields=fields,
        attempts=tuple(decode_attempt(record, number) for number, record in enumerate(records, 1)),
        info=queue_info(job.queue, None, as_int(length), mapped, now_ms),
        state=mapped,
        suspended=suspended == 1,
        holder=as_text(holder).partition(":")[2] if isinstance(holder, bytes) else "",
        readable=size != 0 and len(job.id) <= LONGEST_ID,
        overrides=was_set,
        gates=gates_of(gates, was_set=ends is not None),
        ends=ends,
    )


# --------------------------------------------------------------------------- what its queue says


def _queue_stands(keys: Keys, facts: _Facts) -> Plan[list[Reason]]:
    """What keeps the jobs of its queue from starting, as far as it concerns one in this state."""
    found: list[Reason] = []
    job, info, values = facts.job, facts.info, facts.values
    if not facts.readable:
        found.append(reason("unreadable_job", **values))
    if facts.suspended:
        found.append(reason("suspended"))
    due = job.due_at if job.state in (JobState.SCHEDULED, JobState.RETRYING) else None
    if info.paused and not (info.paused_until and due and info.paused_until <= due):
        by, why = info.paused_by or "somebody", info.paused_reason or "no reason given"
        found.append(reason("paused", until=info.paused_until, by=by, reason=why, **values))
    workers = yield from workers_plan(keys)
    if job.state not in (JobState.QUEUED, JobState.PARKED):
        return found + _workers(facts, workers, busy=False)
    if info.shed:
        found.append(reason("shed", until=_of_ms(facts.state.get("shed", "")), **values))
    found += yield from _queue_limits(keys, facts)
    return found + _workers(facts, workers, busy=job.state is JobState.QUEUED)


def _queue_limits(keys: Keys, facts: _Facts) -> Plan[list[Reason]]:
    job, found = facts.job, []
    closed_ms = as_int(facts.state.get("closed"))
    if closed_ms > facts.now_ms:
        by, what = facts.state.get("closed_by") or "of it", f"of queue {job.queue}"
        found.append(reason("backed_off", until=moment(closed_ms), by=by, what=what, **facts.values))
    asked = [(gate, 0) for gate in queue_gates(facts.state, facts.now_ms)]
    for standing in (yield from standings_plan(keys, asked, facts.now_ms, wip=keys.wip(job.queue))):
        if standing.open:
            continue
        counts = standing.gate.kind == "c"
        limit = standing.gate.limit if counts else facts.info.limits.rate
        code = "queue_concurrency" if counts else "queue_rate"
        found.append(reason(code, until=_maybe(standing.opens_ms), limit=limit, **facts.values))
    return found


def _workers(facts: _Facts, workers: Sequence[Worker], *, busy: bool) -> list[Reason]:
    """What the workers of its queue say.

    Args:
        busy: Whether they have room matters.
    """
    serving = [worker for worker in workers if facts.job.queue in worker.queues]
    values = facts.values
    if not serving:
        return [reason("no_worker", **values)]
    awake = [worker for worker in serving if worker.state not in ("draining", "quiet")]
    if not awake:
        names = " ".join(sorted({worker.worker or worker.name for worker in serving}))
        quiet = any(worker.state == "quiet" for worker in serving)
        return [reason("worker_quiet" if quiet else "worker_draining", workers=names, **values)]
    found = []
    # A plain rq worker does not tell what it knows.
    if all(worker.kind == "jobq" and facts.job.task not in worker.tasks for worker in awake):
        found.append(reason("task_not_served", **values))
    slots = sum(worker.slots_of(facts.job.queue) for worker in awake)
    if busy and not any(worker.has_room_for(facts.job.queue) for worker in awake):
        others = sorted({queue for worker in awake for queue in worker.parts} - {facts.job.queue})
        shared = f" (shared with {', '.join(others)})" if others else ""
        found.append(reason("busy", slots=f"{plural(slots, 'slot')}{shared}", **values))
    return found


# --------------------------------------------------------------------------- where it waits


def _queued(keys: Keys, facts: _Facts) -> Plan[tuple[list[Reason], int | None, datetime | None]]:
    job, now = facts.job, facts.now
    minute = facts.now_ms // 60_000
    minutes = range(minute - _PACE_MINUTES + 1, minute + 1)
    gates = facts.gates
    queued = facts.fields["q"] or str(facts.now_ms)
    counted = yield Batch(
        (
            *(("HGETALL", keys.counters(job.queue, each)) for each in minutes),
            *(("ZCOUNT", keys.gate(gate.name), "-inf", queued if gate.cost else "+inf") for gate in gates),
        )
    )
    counted, before = counted[: len(minutes)], counted[len(minutes) :]
    pace = _pace(counted, minutes, now)
    # Whoever was let in from among those that weigh and wait there is before all of them.
    let_in = facts.fields["gt"]
    asked = [
        (gate, 0 if let_in and gate.name == let_in else as_int(many))
        for gate, many in zip(gates, before, strict=True)
    ]
    found = [
        _at_gate(standing, facts, None)
        for standing in (yield from standings_plan(keys, asked, facts.now_ms))
        # Whoever is parked there is let in by room alone, and a claim passes what has any; but where jobs weigh, none
        # goes past who waits.
        if not standing.passes or (standing.gate.cost and standing.behind)
    ]
    fields = facts.fields
    since = _of_ms(fields["q"])
    place = yield from place_plan(keys, job.queue, job.id, facts.state, fields["or"], fields["tn"])
    if place.lost:
        return [*found, reason("dropped", since=since, **facts.values)], None, None
    found += _standing_words(place, facts)
    ahead = None if place.more else place.ahead
    if ahead == 0:
        found.append(reason("next", since=since, **facts.values))
    else:
        many = f"{'more than ' if place.more else ''}{plural(place.ahead)}"
        words = f"{pace:.3g} a second" if pace else "none of late"
        eta = now + timedelta(seconds=(ahead + 1) / pace) if pace and ahead is not None else None
        are = "are" if place.more else agreeing(place.ahead, "are")
        found.append(
            reason("behind", since=since, until=eta, ahead=many, are=are, pace=words, **facts.values)
        )
    eta = now + timedelta(seconds=ahead / pace) if pace and ahead is not None else None
    return found, ahead, eta


def _standing_words(place: Place, facts: _Facts) -> list[Reason]:
    """What its order and its tenant's turns do to a queued job."""
    found = []
    if place.ordered:
        step = as_int(facts.state.get("step")) or ORDER_STEP_MS
        seconds = (place.order - 5) * step / 1000
        shift = f"{abs(seconds):g} s {'later' if seconds > 0 else 'earlier'}" if seconds else "when it did"
        found.append(reason("order", order=place.order, shift=shift))
    elif facts.state.get("order") and not place.turns:
        found.append(reason("no_order", **facts.values))
    if place.turns:
        kind, whose = ("turn", "its own tenant") if place.tenant else ("no_turn", "those")
        own = f"{plural(place.own)} of {whose} {agreeing(place.own, 'are')}"
        found.append(reason(kind, own=own, **facts.values))
    return found


def _pace(counted: Sequence[Any], minutes: Sequence[int], now: datetime) -> float:
    """Attempts of the queue that end in a second, since the first of these minutes with any."""
    total, first = Counters(), None
    for minute, reply in zip(minutes, counted, strict=True):
        fields = as_map(reply)
        if fields:
            first = minute if first is None else first
            total.add(fields)
    if first is None:
        return 0.0
    return total.total("srdc") / max(now.timestamp() - first * 60, 1.0)


def _delayed(facts: _Facts) -> list[Reason]:
    job, fields = facts.job, facts.fields
    due = job.due_at or _of_ms(fields["q"])
    if fields["sz"] and fields["sz"] == fields["st"]:
        code = "snoozed"
    else:
        code = "retrying" if job.state is JobState.RETRYING else "scheduled"
    found = [
        reason(
            code,
            since=_last_end(facts) or job.created_at,
            until=due,
            error=facts.last_error(),
            **facts.values,
        )
    ]
    if due is not None and due < facts.now - timedelta(seconds=2):
        found.append(reason("overdue", since=due, **facts.values))
    return found


def _deferred(keys: Keys, facts: _Facts) -> Plan[list[Reason]]:
    job = facts.job
    reply = (yield Batch((("SRANDMEMBER", keys.dependencies(job.id), 1_000),)))[0]
    parents = [] if isinstance(reply, Exception) else sorted(as_text(member) for member in reply)
    waiting: list[str] = []
    if parents:
        words = yield Batch(tuple(("HGET", keys.job(parent), "status") for parent in parents))
        statuses = {
            parent: as_text(word)
            for parent, word in zip(parents, words, strict=True)
            if word and not isinstance(word, Exception)
        }
        waiting = [parent for parent, word in statuses.items() if word != "finished"]
    if not waiting:
        return [reason("parents_done", since=job.created_at)]
    named = ", ".join(f"job {parent}" for parent in waiting[:3])
    more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
    return [reason("parents", since=job.created_at, parents=f"{named}{more}", parent=waiting[0])]


def _parked(keys: Keys, facts: _Facts) -> Plan[list[Reason]]:
    job, bucket = facts.job, facts.fields["pb"]
    park = job.parked_reason or ""
    code = park_code(park)
    name = bucket.removeprefix("~gate:")
    entered, rank = yield Batch(
        (("ZSCORE", keys.deferred(job.queue), job.id), ("ZRANK", keys.gate(name), job.id))
    )
    since = moment(float(entered) * 1000) if isinstance(entered, bytes | float | int) else None
    asked = [(gate, as_int(rank)) for gate in facts.gates if gate.name == name]
    if code in ("rate", "concurrency") and name and not asked:
        # It waits at what nothing says any more: that limits nothing.
        return [
            reason("gate_open", since=since, gate=gate_words(name), position="it is let in with all others")
        ]
    if code not in ("rate", "concurrency") or not asked:
        return [reason(code, since=since, park=park, **(_NO_GATE | facts.values))]
    standings = yield from standings_plan(keys, asked, facts.now_ms)
    return [_at_gate(standing, facts, since) for standing in standings]


_NO_GATE = {"gate": "", "holders": "another job", "holder": "", "position": "doctor finds out more"}
"""For a job that names a limit which it does not have: a damaged hash."""


def _at_gate(standing: Standing, facts: _Facts, since: datetime | None) -> Reason:
    """What one closed gate says of a job that waits at it, or would if it were claimed."""
    gate, behind = standing.gate, standing.behind
    words = gate_words(gate.name)
    until_ms = standing.opens_ms
    if facts.ends is not None and math.isfinite(facts.ends):
        until_ms = facts.ends if until_ms is None else min(until_ms, facts.ends)
    until = _maybe(until_ms)
    if standing.closed_ms:
        by, what = standing.closed_by or "that shares it", f"under the limit {words}"
        return reason("backed_off", since=since, until=until, by=by, what=what, **facts.values)
    if gate.kind == "s":
        return reason("held", since=since, until=until, gate=words, **facts.values)
    position = f"{behind:,} {agreeing(behind, 'wait')} before it" if behind else "it is the next"
    if standing.open:
        return reason("gate_open", since=since, gate=words, position=position)
    shown = standing.holders[:3]
    return reason(
        "concurrency" if gate.kind == "c" else "rate",
        since=since,
        until=until,
        gate=words,
        holders=", ".join(f"job {holder}" for holder in shown) or "a run that has just ended",
        holder=shown[0] if shown else facts.job.id,
        position=position,
    )


def _overrides(facts: _Facts) -> list[Reason]:
    """What operators have set in place of its task's limits."""
    return [
        reason(
            "override",
            since=each.since,
            until=each.until,
            by=each.by or "an operator",
            whose=each.whose(),
            limits=each.words(),
            why=f" ({each.reason})" if each.reason else "",
            key="" if each.key is None else f" --key {shlex.quote(each.key)}",
            **facts.values,
        )
        for each in facts.set_for_it()
    ]


# --------------------------------------------------------------------------- it runs, or has ended


def _running(keys: Keys, facts: _Facts, lease: timedelta) -> Plan[list[Reason]]:
    job = facts.job
    done = f", {job.progress:.0%} done" if job.progress is not None else ""
    text = f" ({job.progress_text})" if job.progress_text else ""
    found = [
        reason(
            "running",
            since=job.started_at,
            worker=job.worker or "a worker",
            progress=done + text,
            **facts.values,
        )
    ]
    if job.cancel_requested:
        found.append(reason("cancel_requested"))
    match_all = ("ZSCAN", keys.wip(job.queue), 0, "MATCH", f"{job.id}:*", "COUNT", 10_000)
    reply = (yield Batch((match_all,)))[0]
    pairs = [] if isinstance(reply, Exception) else scored(reply[1])
    ends: Any = None
    if pairs:
        ends = (yield Batch((("ZSCORE", keys.leases, as_text(pairs[0][0])),)))[0]
    if not isinstance(ends, bytes | float | int):
        return [*found, reason("no_lease")]
    until = moment(float(ends))
    if until <= facts.now:
        return [*found, reason("lease_expired", since=until)]
    heard = max(timedelta(0), facts.now - (until - lease))
    return [*found, reason("lease", until=until, heard=f"{heard.total_seconds():.0f}")]


def _ended(facts: _Facts) -> list[Reason]:
    job = facts.job
    if job.state is JobState.DEAD:
        word = job.dead_reason or "exhausted"
        code = word if word in STATE_CODES["dead"] else "died"
        return [reason(code, since=job.ended_at, error=facts.last_error(), why=word, **facts.values)]
    if job.result_dropped:
        dropped = reason(f"result_{job.result_dropped}", since=job.ended_at)
        return [reason("succeeded", since=job.ended_at), dropped]
    why = facts.fields["why"]
    return [reason(job.state.value, since=job.ended_at, why=f": {why}" if why else "", **facts.values)]


def _beside(facts: _Facts) -> list[Reason]:
    """What happened before, and what else is worth knowing."""
    job, fields = facts.job, facts.fields
    found = [
        reason(
            "attempt",
            since=attempt.started_at or attempt.ended_at,
            number=attempt.number,
            outcome=attempt.outcome.replace("_", " "),
            error=f": {attempt.error_type or ''}{': ' if attempt.error_type and attempt.error else ''}"
            f"{attempt.error or ''}"
            if attempt.error_type or attempt.error
            else "",
        )
        for attempt in facts.attempts[-_SHOWN:]
    ]
    lost, crashes = as_int(fields["lost"]), as_int(fields["crashes"])
    if (lost or crashes) and not job.finished:
        found.append(reason("interrupted", lost=lost, crashes=crashes))
    latest = fields["rp"].partition(" ")[0]
    if latest and latest != job.id:
        found.append(reason("replaced", by=latest))
    if facts.holder == job.id and not job.finished:
        found.append(reason("holds_key"))
    elif facts.holder and facts.holder != job.id:
        found.append(reason("key_elsewhere", holder=facts.holder))
    return found


# --------------------------------------------------------------------------- times


def _last_end(facts: _Facts) -> datetime | None:
    return facts.attempts[-1].ended_at if facts.attempts else None


def _maybe(ms: float | None) -> datetime | None:
    return None if ms is None else moment(ms)


def _of_ms(value: Any) -> datetime | None:
    ms = as_int(value)
    return moment(ms) if ms > 0 else None
