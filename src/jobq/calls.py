"""One function per Lua script: its keys, its arguments, and what its answer means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobq.keys import Keys
from jobq.rq_bridge import encode_exc, iso
from jobq.store import Batch, Call, Value

_KEEP_CANCELLED_S = 86_400
_KEEP_DEAD_S = 7 * 86_400

RQ_FIELDS = (
    "retries_left", "result_ttl", "failure_ttl", "ttl", "success_callback_name", "failure_callback_name",
    "stopped_callback_name", "webhooks", "repeats_left", "rate_limit_key", "enqueued_at",
)  # fmt: skip
"""Fields of a job that plain rq made, in the order in which claim.lua returns them."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to enqueue.

    Attributes:
        id: Made by the client; sending it again is safe.
        fields: The hash, but for status and times that Redis' clock decides.
        delay_ms: Due so long from now, by Redis' clock. Or ``at_ms``: due then. Both 0: now.
        dedup_key: ``<task>:<digest>``; empty: none. With ``dedup_mode`` f, s or w, and ``window_ms`` for w.
        replace: A waiting holder of the key takes this payload and time.
        bound_id: The job that ``data`` is signed for; None: this one. Empty: none.
    """

    id: str
    fields: Mapping[str, bytes | str]
    delay_ms: int = 0
    at_ms: int = 0
    dedup_key: str = ""
    dedup_mode: str = ""
    window_ms: int = 0
    replace: bool = False
    bound_id: str | None = None


@dataclass(frozen=True, slots=True)
class EnqueueAnswer:
    """``queued scheduled mine full`` with the job's id; ``duplicate replaced rebind`` with the holder's."""

    status: str
    id: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """One job under a lease.

    Attributes:
        token: ``<exec>.<claim number>``.
        attempts: Attempts spent before.
        queued_ms: When it became due, by Redis' clock; 0 for a job that plain rq made.
        overrides: The hash's ``o``; ``extra`` its ``jk``.
        timeout: Seconds.
        rq: Fields of a job that plain rq made, else None.
    """

    id: str
    token: str
    data: bytes
    attempts: int
    crashes: int
    lost: int
    queued_ms: int
    overrides: bytes
    timeout: int
    description: str
    extra: bytes
    rq: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim took.

    Attributes:
        status: ``ok``, ``stale`` (a later claim was seen), ``paused`` or ``suspended``.
        now_ms: Redis' clock.
        until_ms: When the leases end, or the pause.
        parked: Parked jobs exist: pass the buckets that this worker knows.
        more: The queue may hold more.
    """

    status: str
    now_ms: int
    until_ms: int
    parked: bool
    more: bool
    jobs: list[Claimed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        kind: ``succeeded retry dead snooze cancelled park hand_back interrupted``.
        spends: It counts as an attempt.
        delay_ms: For retry and snooze.
        reason: Why dead, parked or cancelled. With ``bucket``, where parked.
        record: The attempt for the history; empty: none.
        result: The stream's return value; ``exc`` its error text. Empty: no entry.
        keep_s: How long an ended job stays.
        crash: For interrupted: its process ended by its own doing. ``alone``: no other job ran there.
        counters: Names to count up, if the outcome stands.
    """

    job_id: str
    token: str
    kind: str
    spends: bool = False
    delay_ms: int = 0
    reason: str = ""
    bucket: str = ""
    fingerprint: str = ""
    record: bytes = b""
    result: bytes = b""
    exc: bytes = b""
    worker: str = ""
    keep_s: int = 604_800
    crash: bool = False
    alone: bool = False
    counters: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat learnt: members whose lease is lost, ids whose job was asked to stop."""

    lost: list[str]
    cancelled: list[str]


@dataclass(frozen=True, slots=True)
class Rescued:
    """What a rescue pass moved: ``(id, queue, "queued" | "dead")``; ``held``: it waited, after an outage."""

    moved: list[tuple[str, str, str]]
    held: bool


@dataclass(frozen=True, slots=True)
class Promoted:
    """How many jobs became due, and when the next will be."""

    count: int
    next_due_ms: int | None


def _head(keys: Keys, now_ms: int | None) -> tuple[Value, Value, Value]:
    return ("" if now_ms is None else now_ms, keys.p, keys.n)


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else (value or "")


def _int(value: bytes | str | int | None) -> int:
    try:
        return int(float(value)) if value else 0
    except (ValueError, OverflowError):
        return 0


def _texts(reply: Any) -> list[str]:
    return [_text(each) for each in reply]


# -- producers ------------------------------------------------------------------------------------------------------


def enqueue(
    keys: Keys, queue: str, jobs: Sequence[NewJob], register: bool, *, now_ms: int | None = None
) -> Call[list[EnqueueAnswer]]:
    """Admit up to 100 jobs to one queue. ``register`` adds the queue to rq's set."""
    args: list[Value] = [*_head(keys, now_ms), int(register), len(jobs)]
    for job in jobs:
        args += (
            job.id,
            -job.delay_ms if job.delay_ms else job.at_ms,
            job.dedup_key,
            job.dedup_mode,
            job.window_ms,
            int(job.replace),
            job.id if job.bound_id is None else (job.bound_id or "*"),
            2 * len(job.fields),
        )
        for name, value in job.fields.items():
            args += (name, value)
    names = (keys.queue(queue), keys.scheduled(queue), keys.queue_state(queue), keys.queues)
    return Call("enqueue", names, tuple(args), _answers)


def _answers(reply: Any) -> list[EnqueueAnswer]:
    words = _texts(reply)
    return [EnqueueAnswer(words[at], words[at + 1]) for at in range(0, len(words), 2)]


def cancel(keys: Keys, job_id: str, *, now_ms: int | None = None) -> Call[str]:
    """``cancelled`` (it waited), ``requested`` (it runs), the state it has ended in, or ``gone``."""
    return _cancel(keys, job_id, 0, now_ms)


def withdraw(keys: Keys, job_id: str, *, now_ms: int | None = None) -> Call[str]:
    """Cancel and delete, unless it has started: ``withdrawn``, ``started``, its final state, or ``gone``."""
    return _cancel(keys, job_id, 1, now_ms)


def _cancel(keys: Keys, job_id: str, withdraw_only: int, now_ms: int | None) -> Call[str]:
    names = (keys.job(job_id), keys.cancels, keys.cancel_channel)
    return Call("cancel", names, (*_head(keys, now_ms), job_id, withdraw_only, iso(), _KEEP_CANCELLED_S), _text)


def delete(keys: Keys, job_id: str, *, now_ms: int | None = None) -> Call[str]:
    """Delete a job that is not running: ``deleted``, ``running`` or ``gone``."""
    names = (keys.job(job_id), keys.quarantine, keys.queues)
    return Call("delete", names, (*_head(keys, now_ms), job_id), _text)


def replay(
    keys: Keys, job_ids: Sequence[str], data: Mapping[str, bytes] | None = None, *, now_ms: int | None = None
) -> Call[list[str]]:
    """Queue dead or cancelled jobs again: ``queued``, ``conflict:<holder>``, ``gone`` or the state, each.

    Args:
        data: New payloads, by id, for those that were mended.
    """
    args: list[Value] = [*_head(keys, now_ms), iso()]
    for job_id in job_ids:
        args += (job_id, (data or {}).get(job_id, b""))
    return Call("replay", (keys.quarantine,), tuple(args), _texts)


def pause(
    keys: Keys, queue: str, until_ms: int, by: str, reason: str, *, now_ms: int | None = None
) -> Call[str]:
    """Begin no lease of the queue from now on; ``until_ms`` 0: until resumed."""
    args = (*_head(keys, now_ms), queue, until_ms, by, reason)
    return Call("pause", (keys.queue_state(queue), keys.wake_channel), args, _text)


def resume(keys: Keys, queue: str, *, now_ms: int | None = None) -> Call[str]:
    """End a pause."""
    return Call("resume", (keys.queue_state(queue), keys.wake_channel), (*_head(keys, now_ms), queue), _text)


# -- executors ------------------------------------------------------------------------------------------------------


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
    known: Sequence[str] = (),
    now_ms: int | None = None,
) -> Call[Claim]:
    """Take up to ``n`` jobs under a lease. The same number yields the same jobs again."""
    token = f"{exec_id}.{number}"
    args = (
        *_head(keys, now_ms), exec_id, number, n, lease_ms, worker_name, started_at_iso, queue, *known,
    )  # fmt: skip
    names = (
        keys.queue(queue), keys.wip(queue), keys.leases, keys.claim(exec_id), keys.queue_state(queue),
        keys.suspended, keys.parked(queue), keys.quarantine, keys.deferred(queue),
    )  # fmt: skip
    return Call("claim", names, args, lambda reply: _claim(reply, token))


def _claim(reply: Any, token: str) -> Claim:
    word, now_ms, until_ms, parked, more, *rows = reply
    jobs = [
        Claimed(
            id=_text(row[0]),
            token=token,
            data=row[1],
            attempts=_int(row[3]),
            crashes=_int(row[4]),
            lost=_int(row[5]),
            queued_ms=_int(row[2]),
            overrides=row[6] or b"",
            timeout=_int(row[7]),
            description=_text(row[8]),
            extra=row[9] or b"",
            rq={name: _text(value) for name, value in zip(RQ_FIELDS, row[10], strict=True) if value is not None}
            if len(row) > 10 and row[10]
            else None,
        )
        for row in rows
    ]
    return Claim(_text(word), _int(now_ms), _int(until_ms), bool(parked), bool(more), jobs)


def settle(
    keys: Keys, queue: str, outcomes: Sequence[Outcome], ended_at_iso: str, *, now_ms: int | None = None
) -> Call[list[str]]:
    """Record up to 100 outcomes: ``ok already lost cancelled gone``, each."""
    args: list[Value] = [*_head(keys, now_ms), queue, ended_at_iso, len(outcomes)]
    for outcome in outcomes:
        extra: list[Value] = []
        for name, value in (
            ("delay", outcome.delay_ms), ("why", outcome.reason), ("fp", outcome.fingerprint),
            ("bucket", outcome.bucket), ("rec", outcome.record), ("res", outcome.result), ("exc", outcome.exc),
            ("crash", int(outcome.crash)), ("alone", int(outcome.alone)), ("n", ",".join(outcome.counters)),
        ):  # fmt: skip
            if value:
                extra += (name, value)
        if outcome.worker and (outcome.result or outcome.exc):
            extra += ("worker", outcome.worker)
        args += (outcome.job_id, outcome.token, outcome.kind, int(outcome.spends), outcome.keep_s, len(extra), *extra)
    names = (
        keys.leases, keys.wip(queue), keys.queue(queue), keys.finished(queue), keys.failed(queue),
        keys.scheduled(queue), keys.canceled(queue), keys.deferred(queue), keys.retrying(queue), keys.cancels,
        keys.after, keys.queue_state(queue), keys.parked(queue), keys.quarantine,
    )  # fmt: skip
    return Call("settle", names, tuple(args), _texts)


def progress(keys: Keys, job_id: str, token: str, text: bytes) -> Call[bool]:
    """Store how far a job is, while its lease stands."""
    return Call("progress", (keys.leases, keys.job(job_id)), (*_head(keys, None), f"{job_id}:{token}", text), bool)


def last_claim(keys: Keys, exec_id: str) -> Batch:
    """``(id, token)`` of what an executor claimed last."""

    def decode(replies: list[Any]) -> list[tuple[str, str]]:
        number, _, ids = (_text(replies[0]).split(":", 2) + ["", "", ""])[:3]
        return [(job_id, f"{exec_id}.{number}") for job_id in ids.split(":") if job_id]

    return Batch((("GET", keys.claim(exec_id)),), decode)


# -- supervisors ----------------------------------------------------------------------------------------------------


def heartbeat(keys: Keys, members: Sequence[str], lease_ms: int, *, now_ms: int | None = None) -> Call[Beat]:
    """Extend the leases of ``<id>:<token>``."""
    ids = [member.partition(":")[0] for member in members]
    args = (*_head(keys, now_ms), lease_ms, len(members), *members, *ids)
    return Call("heartbeat", (keys.leases, keys.cancels), args, lambda r: Beat(_texts(r[0]), _texts(r[1])))


def rescue(keys: Keys, lease_ms: int, limit: int = 100, *, now_ms: int | None = None) -> Call[Rescued]:
    """Take jobs whose lease has expired back to the front of their queues."""

    def decode(reply: Any) -> Rescued:
        held, *words = reply
        texts = _texts(words)
        return Rescued([(texts[i], texts[i + 1], texts[i + 2]) for i in range(0, len(texts), 3)], bool(held))

    names = (keys.leases, keys.pulse, keys.cancels, keys.quarantine, keys.queues)
    poison = encode_exc("its worker fell silent six times while it ran")
    return Call("rescue", names, (*_head(keys, now_ms), lease_ms, limit, iso(), poison, _KEEP_DEAD_S), decode)


def promote(keys: Keys, queues: Sequence[str], limit: int = 100, *, now_ms: int | None = None) -> Call[Promoted]:
    """Queue what is due, up to ``limit`` jobs of each queue."""

    def decode(reply: Any) -> Promoted:
        return Promoted(_int(reply[0]), _int(reply[1]) or None)

    return Call("promote", (keys.quarantine,), (*_head(keys, now_ms), limit, *queues), decode)


def release(keys: Keys, limit: int = 100, *, now_ms: int | None = None) -> Call[int]:
    """Queue the children of settled jobs whose parents are all finished; returns how many parents were looked at."""
    return Call("release", (keys.after,), (*_head(keys, now_ms), limit), _int)


def prune(
    keys: Keys,
    queue: str,
    *,
    keep_succeeded: int,
    keep_dead: int,
    keep_cancelled_s: int,
    limit: int = 100,
    now_ms: int | None = None,
) -> Call[int]:
    """Delete ended jobs that are too old or too many; returns how many."""
    names = (keys.finished(queue), keys.failed(queue), keys.canceled(queue), keys.retrying(queue), keys.scheduled(queue))
    args = (*_head(keys, now_ms), keep_succeeded, keep_dead, keep_cancelled_s, limit)
    return Call("prune", names, args, _int)


def unpark(keys: Keys, queue: str, bucket: str, *, now_ms: int | None = None) -> Call[int]:
    """Queue up to 100 parked jobs of a bucket again; returns how many."""
    names = (
        keys.bucket(queue, bucket), keys.parked(queue), keys.deferred(queue), keys.queue(queue), keys.queue_state(queue),
    )  # fmt: skip
    return Call("unpark", names, (*_head(keys, now_ms), bucket), _int)


def register_worker(
    keys: Keys,
    *,
    name: str,
    queues: Sequence[str],
    rq_fields: Mapping[str, str],
    fields: Mapping[str, str],
    ttl_s: int = 60,
) -> Batch:
    """Enter an executor into rq's and our lists, or renew it there."""
    commands: list[tuple[Any, ...]] = [
        ("SADD", keys.workers, keys.worker(name)),
        ("HSET", keys.worker(name), *_flat(rq_fields)),
        ("EXPIRE", keys.worker(name), ttl_s),
        ("HSET", keys.live_worker(name), *_flat(fields)),
        ("EXPIRE", keys.live_worker(name), ttl_s),
    ]
    for queue in queues:
        commands.append(("SADD", keys.queue_workers(queue), keys.worker(name)))
        commands.append(("SADD", keys.queues, keys.queue(queue)))
        commands.append(("SET", keys.scheduler_lock(queue), "jobq", "EX", ttl_s))
    return Batch(tuple(commands))


def unregister_worker(keys: Keys, name: str, queues: Sequence[str]) -> Batch:
    """Take an executor out of the lists."""
    commands: list[tuple[Any, ...]] = [
        ("SREM", keys.workers, keys.worker(name)),
        ("DEL", keys.worker(name), keys.live_worker(name)),
    ]
    commands += [("SREM", keys.queue_workers(queue), keys.worker(name)) for queue in queues]
    return Batch(tuple(commands))


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [word for pair in fields.items() for word in pair]
