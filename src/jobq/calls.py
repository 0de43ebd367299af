"""The scripts of a job's path and of operators: what to send, how to read the answer. Nothing here talks to Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobq.keys import Keys
from jobq.limits import Noted
from jobq.queues import KEEP_CANCELLED, KEEP_DEAD
from jobq.replies import bounded_int, clean_text, exact_text, exact_texts
from jobq.rq_bridge import iso
from jobq.steps import (
    MOST_JOBS,
    Arg,
    Batch,
    Beat,
    Call,
    Claim,
    Claimed,
    EnqueueAnswer,
    NewJob,
    Outcome,
    Plan,
    Promoted,
    Rescued,
    Suspects,
    script_head,
)
from jobq.units import LONGEST, clock_ms

# --------------------------------------------------------------------------- the path of a job


def _answers(reply: list[bytes]) -> list[EnqueueAnswer]:
    texts = exact_texts(reply)
    return [EnqueueAnswer(word, id_) for word, id_ in zip(texts[::2], texts[1::2], strict=True)]  # type: ignore[arg-type]


def enqueue(
    keys: Keys, queue: str, jobs: Sequence[NewJob], register: bool = False, *, now_ms: int | None = None
) -> Call[list[EnqueueAnswer]]:
    """Admit jobs to one queue, at most 100.

    Args:
        register: Also add the queue to rq's set of queues; once a minute is enough.
    """
    if len(jobs) > MOST_JOBS:
        raise ValueError(f"at most {MOST_JOBS} jobs in one enqueue, got {len(jobs)}")
    sets = {id(job.shared): job.shared for job in jobs}
    numbers = {each: number for number, each in enumerate(sets, 1)}
    args: list[Arg] = [*script_head(keys, now_ms), "1" if register else "0", len(jobs), len(sets)]
    for shared in sets.values():
        args.append(2 * len(shared))
        for field in shared.items():
            args += field
    wishes: list[Arg] = []
    for number, job in enumerate(jobs, 1):
        fields = job.fields
        args += (numbers[id(job.shared)], job.id, job.at_ms or -job.delay_ms, job.dedup_key)
        if job.dedup_key:
            args += (job.dedup_mode, job.window_ms, "1" if job.replace else "0", job.bound_id or job.id)
            if "dk" not in fields:
                fields = {**fields, "dk": f"{job.dedup_mode}:{job.dedup_key}"}
        args.append(2 * len(fields))
        for item in fields.items():
            args += item
        if "or" in fields or "tn" in fields:
            wishes += (number, "p", f"{exact_text(fields.get('or'))}:{exact_text(fields.get('tn'))}")
        if job.quota:
            wishes += (number, "q", job.quota)
    if wishes:
        args[3] = int(register) + 2 * (len(args) + 1)
        args += wishes
    names = (keys.queue(queue), keys.scheduled(queue), keys.queue_state(queue), keys.queues)
    return Call("enqueue", names, tuple(args), _answers)


_LONGEST_S = int(LONGEST.total_seconds())
_RQ_FIELDS = (
    "retries_left", "result_ttl", "failure_ttl", "ttl", "success_callback_name", "failure_callback_name",
    "stopped_callback_name", "webhooks", "repeats_left", "rate_limit_key", "enqueued_at",
)  # fmt: skip


def _claimed(row: list[Any], token: str) -> Claimed:
    job_id, data, queued, attempts, crashes, lost, overrides, timeout, description, extra = row[:10]
    more = row[10] if len(row) > 10 else None
    foreign = more if isinstance(more, list) else None
    return Claimed(
        exact_text(job_id),
        token,
        data,
        bounded_int(attempts),
        bounded_int(crashes),
        bounded_int(lost),
        bounded_int(queued),
        overrides or b"",
        max(0, min(bounded_int(timeout), _LONGEST_S)),
        clean_text(description),
        extra or b"",
        None
        if foreign is None
        else {n: exact_text(v) for n, v in zip(_RQ_FIELDS, foreign, strict=True) if v},
        isinstance(more, bytes) or len(row) > 11,
    )


def claim(
    keys: Keys,
    queue: str,
    *,
    exec_id: str,
    number: int,
    n: int,
    lease_ms: int,
    worker_name: str,
    started_at_iso: str,
    suspects: Suspects = "run",
    known: Sequence[str] = (),
    now_ms: int | None = None,
) -> Call[Claim]:
    """Take up to ``n`` waiting jobs under a lease.

    Args:
        number: Rises with each claim of the executor; the same number again asks for the same jobs.
        suspects: What to do with jobs whose process died under them; with ``only`` name their bucket in ``known``.
        known: Names of the parked buckets that the caller can run.
    """
    token = f"{exec_id}.{number}"

    def decode(reply: list[Any]) -> Claim:
        status, now, until, flags, more = reply[:5]
        jobs = [_claimed(row, token) for row in reply[5:]]
        word = exact_text(status)
        return Claim(word, now, until, flags & 1 > 0, jobs, more == 1, flags & 2 > 0, flags & 4 > 0)  # type: ignore[arg-type]

    names = (
        keys.queue(queue),
        keys.wip(queue),
        keys.leases,
        keys.claim(exec_id),
        keys.queue_state(queue),
        keys.suspended,
        keys.parked(queue),
        keys.quarantine,
        keys.deferred(queue),
        keys.limits,
    )
    head = script_head(keys, now_ms)
    size = (min(n, MOST_JOBS), lease_ms)
    args = (*head, exec_id, number, *size, worker_name, started_at_iso, queue, suspects, *known)
    return Call("claim", names, args, decode)


def settle(
    keys: Keys, queue: str, outcomes: Sequence[Outcome], ended_at_iso: str, *, now_ms: int | None = None
) -> Call[list[str]]:
    """Record how attempts of one queue ended, at most 100: a word for each, in order.

    ``ok already lost cancelled gone``, and ``dead`` for a run that was interrupted once too often.
    """
    if len(outcomes) > MOST_JOBS:
        raise ValueError(f"at most {MOST_JOBS} outcomes in one settle, got {len(outcomes)}")
    args: list[Arg] = [*script_head(keys, now_ms), queue, ended_at_iso, len(outcomes)]
    for outcome in outcomes:
        extra = _extra(outcome)
        args += (outcome.job_id, outcome.token, outcome.kind, "1" if outcome.spends else "0", outcome.keep_s)
        args.append(len(extra))
        args += extra
    names = (
        keys.leases,
        keys.wip(queue),
        keys.queue(queue),
        keys.finished(queue),
        keys.failed(queue),
        keys.scheduled(queue),
        keys.canceled(queue),
        keys.deferred(queue),
        keys.retrying(queue),
        keys.cancels,
        keys.after,
        keys.queue_state(queue),
        keys.parked(queue),
        keys.quarantine,
    )
    return Call("settle", names, tuple(args), exact_texts)


def _extra(outcome: Outcome) -> list[Arg]:
    """What not every outcome has, as names and values."""
    extra: list[Arg] = []
    if outcome.counters:
        extra += ("n", ",".join(outcome.counters))
    if outcome.result:
        extra += ("res", outcome.result, "worker", outcome.worker)
    if outcome.kind == "succeeded" and not (outcome.record or outcome.reason):
        return extra
    pairs: tuple[tuple[str, Arg], ...] = (
        ("delay", outcome.delay_ms),
        ("why", outcome.reason),
        ("fp", outcome.fingerprint),
        ("bucket", outcome.bucket),
        ("rec", outcome.record),
        ("exc", outcome.exc),
        ("worker", outcome.worker),
        ("crash", "1" if outcome.crash else ""),
        ("alone", "1" if outcome.alone else ""),
    )
    for name, value in pairs:
        if value:
            extra += (name, value)
    return extra


def heartbeat(keys: Keys, members: Sequence[str], lease_ms: int, *, now_ms: int | None = None) -> Call[Beat]:
    """Extend leases.

    Args:
        members: ``<id>:<token>`` of each.
    """
    ids = [member.partition(":")[0] for member in members]
    args = (*script_head(keys, now_ms), lease_ms, len(members), *members, *ids)
    return Call(
        "heartbeat", (keys.leases, keys.cancels), args, lambda r: Beat(exact_texts(r[0]), exact_texts(r[1]))
    )


def progress(keys: Keys, job_id: str, token: str, text: str | bytes) -> Call[bool]:
    """Note how far a job is; False when its lease is lost."""
    args = (*script_head(keys, None), f"{job_id}:{token}", text)
    return Call("progress", (keys.job(job_id), keys.leases), args, bool)


def queues_with_suspects(keys: Keys, queues: Sequence[str]) -> Plan[list[str]]:
    """Those of these queues where jobs wait to run apart: one command when there are none."""
    names = [keys.suspects(queue) for queue in queues]
    if (yield Batch((("EXISTS", *names),)))[0] == 0:
        return []
    found = yield Batch(tuple(("EXISTS", name) for name in names))
    return [queue for queue, there in zip(queues, found, strict=True) if there == 1]


def last_claim(keys: Keys, exec_id: str) -> Batch[list[tuple[str, str]]]:
    """List of (id, token) of each job of an executor's last claim, whatever became of them."""

    def decode(replies: list[Any]) -> list[tuple[str, str]]:
        record = replies[0]
        if not record or isinstance(record, Exception):
            return []
        number, _ends, *ids = exact_text(record).split(":")
        return [(job_id, f"{exec_id}.{number}") for job_id in ids if job_id]

    return Batch((("GET", keys.claim(exec_id)),), decode)


# --------------------------------------------------------------------------- background duties


def rescue(
    keys: Keys,
    lease_ms: int,
    limit: int = MOST_JOBS,
    *,
    keep_s: int = KEEP_DEAD.age_s,
    record: bytes = b"",
    exc: bytes = b"",
    keep_of: Mapping[str, int] | None = None,
    now_ms: int | None = None,
) -> Call[Rescued]:
    """Queue again what an expired lease still holds.

    Args:
        keep_s: Seconds to keep what is dead (poison) or cancelled by it.
        record: JSON for the attempt history of each, as attempt 0, which the script puts right; empty: none.
        exc: What the results stream of a dead one says; empty: nothing.
        keep_of: ``keep_s`` of queues with one of their own.
    """

    def decode(reply: list[Any]) -> Rescued:
        texts = exact_texts(reply[1:])
        moved = list(zip(texts[::3], texts[1::3], texts[2::3], strict=True))
        return Rescued(moved, reply[0] == 1)

    names = (keys.leases, keys.pulse, keys.cancels, keys.quarantine, keys.queues, keys.after)
    args: tuple[Arg, ...] = (
        *script_head(keys, now_ms),
        lease_ms,
        min(limit, MOST_JOBS),
        iso(now_ms),
        keep_s,
        record,
        exc,
    )
    for pair in (keep_of or {}).items():
        args += pair
    return Call("rescue", names, args, decode)


def promote(
    keys: Keys, queues: Sequence[str], limit: int = MOST_JOBS, *, now_ms: int | None = None
) -> Call[Promoted]:
    """Queue what is due, at most ``limit`` jobs of each queue."""
    args = (*script_head(keys, now_ms), min(limit, MOST_JOBS), *queues)
    return Call(
        "promote",
        (keys.quarantine, keys.gates),
        args,
        lambda r: Promoted(r[0], r[1] if r[1] >= 0 else None, r[2] == 1),
    )


def open_gates(keys: Keys, limit: int = MOST_JOBS, *, now_ms: int | None = None) -> Call[int]:
    """Queue what waits at gates that may be open; how many jobs were queued and gates looked at. 0: nothing to do."""
    args = (*script_head(keys, now_ms), MOST_JOBS, min(limit, MOST_JOBS))
    return Call("open", (keys.gates, keys.leases, keys.quarantine, keys.limits), args, sum)


def release(keys: Keys, limit: int = MOST_JOBS, *, now_ms: int | None = None) -> Call[int]:
    """Queue children of ended jobs; how many were queued and parents done with. 0: nothing to do."""
    args = (*script_head(keys, now_ms), limit)
    return Call("release", (keys.after, keys.quarantine), args, sum)


def allowed(keys: Keys) -> Call[list[str]]:
    """Commands of our scripts that this Redis user may not run, by name; none: all is well."""
    call_keys = (f"{keys.n}doctor", f"{keys.p}doctor")
    return Call(
        "allowed", call_keys, script_head(keys, None), lambda reply: [clean_text(name) for name in reply]
    )


def free_rq_slots(keys: Keys, limit: int = MOST_JOBS, *, now_ms: int | None = None) -> Call[int]:
    """Queue jobs that waited for a slot of rq's own ``RateLimit``, as far as jobs with one have ended; how many."""
    args = (*script_head(keys, now_ms), iso(now_ms), min(limit, MOST_JOBS))
    return Call("rq_slots", (keys.rate_limits,), args, int)


def prune(
    keys: Keys,
    queue: str,
    *,
    keep_succeeded: int = 1_000,
    keep_dead: int = 5_000,
    keep_cancelled_s: int = KEEP_CANCELLED.age_s,
    keep_cancelled: int = -1,
    limit: int = MOST_JOBS,
    now_ms: int | None = None,
) -> Call[int]:
    """Delete ended jobs by age, and beyond these counts (-1: any number); how many went, at most ``limit``."""
    now = clock_ms() if now_ms is None else now_ms
    most = (keep_succeeded, keep_dead, keep_cancelled_s)
    args = (*script_head(keys, now_ms), limit, *most, iso(now - 60_000), keep_cancelled)
    names = (
        keys.finished(queue),
        keys.failed(queue),
        keys.canceled(queue),
        keys.retrying(queue),
        keys.scheduled(queue),
    )
    return Call("prune", names, args, int)


# --------------------------------------------------------------------------- what operators ask for


def cancel(
    keys: Keys, job_id: str, *, only: str = "", keep_s: int = KEEP_CANCELLED.age_s, now_ms: int | None = None
) -> Call[str]:
    """End a waiting job, or ask a running one to stop: ``cancelled requested finished gone``.

    Args:
        only: rq's words of the states that are meant, each with a comma after it; a job in another stays as it is, and
            its state is the answer. Empty: any.
    """
    names = (keys.job(job_id), keys.cancels, keys.after, keys.quarantine)
    return Call("cancel", names, (*script_head(keys, now_ms), job_id, iso(now_ms), keep_s, only), exact_text)


def withdraw(
    keys: Keys, job_id: str, *, keep_s: int = KEEP_CANCELLED.age_s, now_ms: int | None = None
) -> Call[str]:
    """See that a job will not run: ``withdrawn``, ``gone`` (never came); too late: ``started finished``."""
    args = (*script_head(keys, now_ms), job_id, iso(now_ms), keep_s)
    return Call("withdraw", (keys.job(job_id), keys.leases, keys.after), args, exact_text)


def delete(keys: Keys, job_id: str) -> Call[str]:
    """Remove a job that does not run: ``deleted running gone``."""
    args = (*script_head(keys, None), "", job_id)
    return Call("delete", (keys.quarantine, keys.after), args, lambda reply: exact_text(reply[0]))


def replay(
    keys: Keys, job_ids: Sequence[str], data: Mapping[str, bytes] | None = None, *, now_ms: int | None = None
) -> Call[list[str]]:
    """Queue dead or cancelled jobs again, at most 100.

    Args:
        data: New payloads by id, signed for that id.
    Returns:
        Per id: ``queued``, ``conflict:<holder>``, ``gone``, or the state that forbids it.
    """
    if len(job_ids) > MOST_JOBS:
        raise ValueError(f"at most {MOST_JOBS} jobs in one replay, got {len(job_ids)}")
    new = data or {}
    pairs: list[Arg] = [value for job_id in job_ids for value in (job_id, new.get(job_id, b""))]
    return Call("replay", (keys.quarantine,), (*script_head(keys, now_ms), *pairs), exact_texts)


def unpark(
    keys: Keys, queue: str, bucket: str, limit: int = MOST_JOBS, *, now_ms: int | None = None
) -> Call[int]:
    """Queue the parked jobs of one bucket; how many."""
    names = (
        keys.bucket(queue, bucket),
        keys.parked(queue),
        keys.queue_state(queue),
        keys.deferred(queue),
        keys.queue(queue),
        keys.quarantine,
    )
    return Call("unpark", names, (*script_head(keys, now_ms), bucket, min(limit, MOST_JOBS)), int)


def pause(keys: Keys, queue: str, until_ms: int = 0, by: str = "", reason: str = "") -> Call[bool]:
    """Let no lease begin on a queue; ``until_ms`` 0: until it is resumed."""
    args = (*script_head(keys, None), queue, until_ms, by, reason)
    return Call("pause", (keys.queue_state(queue),), args, bool)


def limit(
    keys: Keys, queue: str, gates: str | None, until_ms: int = 0, *, most: int | None = None
) -> Call[bool]:
    """Limit a queue to these gates in place of what the settings say; None: to what they say.

    Args:
        most: The most jobs that may wait; None: any number.
    """
    texts = (
        ("", "") if gates is None else (f"{until_ms}|{gates}", f"{until_ms}|{'' if most is None else most}")
    )
    return Call("limit", (keys.queue_state(queue),), (*script_head(keys, None), queue, *texts), bool)


def override(
    keys: Keys,
    before: str | bytes,
    after: str,
    gates: Sequence[str],
    until_ms: int = 0,
    *,
    now_ms: int | None = None,
) -> Call[bool]:
    """Replace the text of the limits that operators have set for tasks; False: it is not ``before`` any more.

    Args:
        gates: What the change may open; they are looked at next.
        until_ms: When all of it is over; 0: never.
    """
    args = (*script_head(keys, now_ms), before, after, until_ms, *gates)
    return Call("override", (keys.limits, keys.gates), args, bool)


def hold(keys: Keys, members: Sequence[str], *, now_ms: int | None = None) -> Call[int]:
    """Count runs that began before an operator limited their task; how many hold a place more now.

    Args:
        members: Of leases, at most 100.
    """
    return Call("hold", (keys.leases, keys.limits), (*script_head(keys, now_ms), *members), int)


def declare_limits(keys: Keys, noted: Mapping[str, Noted], *, first: bool) -> Call[int]:
    """Note what the settings say of queues, by name, as far as scripts go by it; of how many something changed.

    Args:
        first: Replace what is noted; otherwise only fill in what is missing.
    """
    texts = [text for queue, each in noted.items() for text in (queue, *each)]
    names = tuple(keys.queue_state(queue) for queue in noted)
    return Call("declare_limits", names, (*script_head(keys, None), int(first), *texts), int)


def lift(
    keys: Keys, queue: str, start: int = 0, limit: int = MOST_JOBS, *, now_ms: int | None = None
) -> Call[int]:
    """Open the gates that ``RateLimited`` closed and jobs of a queue wait at; how many jobs were looked at.

    Args:
        start: Pass over so many of those jobs: they have been looked at.
    """
    names = (keys.blocked(queue), keys.gates)
    return Call("lift", names, (*script_head(keys, now_ms), start, min(limit, MOST_JOBS)), int)


def resume(keys: Keys, queue: str) -> Call[bool]:
    """End a pause, and what ``RateLimited`` closed the queue for; False when there was no pause."""
    return Call("resume", (keys.queue_state(queue),), (*script_head(keys, None), queue), bool)
