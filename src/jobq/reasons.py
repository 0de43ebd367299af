"""Why a job waits, runs or has ended: every reason the engine can give, in words, each with its remedy.

``jobq.why`` finds out which of them hold; a test sees that no state, park reason, answer of a claim or reason of
death is without words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing that keeps a job from running, or that happened to it.

    Attributes:
        code: A key of :data:`WORDS`, for programs.
        text: One sentence for people; it quotes no params.
        since: Since when it holds, where that is known.
        until: When it ends by itself, or is expected to.
        remedy: What to do about it; None: nothing needs to be done.
        blocks: The job cannot start while it holds.
    """

    code: str
    text: str
    since: datetime | None = None
    until: datetime | None = None
    remedy: str | None = None
    blocks: bool = False


class Words(NamedTuple):
    """A sentence and a remedy, both templates."""

    text: str
    remedy: str | None = None
    blocks: bool = False


_RESUME = "jobq queues resume {queue}"
_REPLAY = "mend the cause, then jobq dead replay {id}"

WORDS: Mapping[str, Words] = {
    # It is in its queue.
    "next": Words("it is the next of queue {queue}"),
    "behind": Words("{ahead} of queue {queue} {are} ahead of it; the queue ends {pace}"),
    "order": Words("it has order {order} of 1 to 10: it stands as if it had come {shift}"),
    "no_order": Words("some jobs of queue {queue} have an order, and a low one may go before it"),
    "turn": Words("the tenants of queue {queue} take turns; {own} before it"),
    "no_turn": Words(
        "the tenants of queue {queue} take turns, and jobs of none share the turns of one; {own} before it"
    ),
    "dropped": Words("it is queued, and not in the list of queue {queue}", "jobq doctor --fix", blocks=True),
    "paused": Words("queue {queue} is paused by {by}: {reason}", _RESUME, blocks=True),
    "suspended": Words("rq suspend is in force: no worker starts a job", "rq resume", blocks=True),
    "shed": Words(
        "queue {queue} refuses new jobs while memory is short; those in it go on", "see jobq memory"
    ),
    "unreadable_job": Words(
        "a claim cannot read it, and puts it into quarantine", "jobq doctor --fix", blocks=True
    ),
    "queue_rate": Words(
        "queue {queue} is limited to {limit}, which is used up",
        "jobq queues limit {queue} --rate none",
        blocks=True,
    ),
    "backed_off": Words(
        "job {by} was told to slow down (RateLimited): no job {what} starts before", _RESUME, blocks=True
    ),
    "queue_concurrency": Words(
        "queue {queue} may run {limit} at once, and does",
        "jobq queues limit {queue} --slots none",
        blocks=True,
    ),
    "no_worker": Words(
        "no live worker serves queue {queue}", "start one: jobq worker --queue {queue}", blocks=True
    ),
    "worker_draining": Words(
        "every worker of queue {queue} is draining", "start another: jobq worker --queue {queue}", blocks=True
    ),
    "worker_quiet": Words(
        "every worker of queue {queue} is quiet: it claims nothing",
        "jobq workers resume {workers}",
        blocks=True,
    ),
    "task_not_served": Words(
        "no worker of queue {queue} knows task {task}: whoever claims the job parks it",
        "deploy the code that has it, or name its module in JOBQ_APP",
    ),
    "busy": Words(
        "all {slots} of queue {queue} are busy",
        "wait, or add slots: JOBQ_QUEUES__{QUEUE}__SLOTS",
        blocks=True,
    ),
    "interrupted": Words(
        "earlier runs were interrupted: {lost} lost, {crashes} crashed; from the first crash on it runs alone"
    ),
    # It waits elsewhere.
    "scheduled": Words("it is not due yet", "jobq jobs promote {id} queues it now", blocks=True),
    "retrying": Words(
        "attempt {attempt} failed{error}; the next waits for its backoff",
        "jobq jobs promote {id} queues it now",
        blocks=True,
    ),
    "snoozed": Words(
        "it asked to run later (Snooze), which spends no attempt, and is not due yet",
        "jobq jobs promote {id} queues it now",
        blocks=True,
    ),
    "overdue": Words(
        "it is due, and no worker of queue {queue} has promoted it",
        "start one: jobq worker --queue {queue}",
        blocks=True,
    ),
    "parents": Words("it waits for {parents}", "jobq why {parent}", blocks=True),
    "parents_done": Words(
        "all jobs that it waited for are over; the next worker that looks releases it",
        "start a worker if none is live; jobq doctor otherwise",
        blocks=True,
    ),
    # It is parked.
    "rate": Words("its rate limit {gate} is used up; {position}", blocks=True),
    "concurrency": Words(
        "its concurrency limit {gate} is held by {holders}; {position}", "jobq why {holder}", blocks=True
    ),
    "held": Words(
        "nothing starts {gate}: an operator has stopped that", "jobq limits clear {task}", blocks=True
    ),
    "override": Words(
        "limited by an override set by {by} for {whose}: {limits}{why}", "jobq limits clear {task}{key}"
    ),
    "gate_open": Words(
        "its limit {gate} has room again, and the next worker that looks lets it in; {position}",
        "start a worker if none is live",
        blocks=True,
    ),
    "unknown_task": Words(
        "no worker that claimed it knows task {task}",
        "deploy the code that has it, or name its module in JOBQ_APP; such a worker takes the job at once",
        blocks=True,
    ),
    "no_key": Words(
        "it is signed or encrypted with a key that no worker has",
        "give the workers that key, too: JOBQ_SECRET_KEY may hold several",
        blocks=True,
    ),
    "newer_payload": Words(
        "a newer version of task {task} wrote its params", "deploy the newer code to the workers", blocks=True
    ),
    "unsupported": Words("{park}", "enqueue it without these, or with jobq", blocks=True),
    "suspect": Words(
        "a process died under it, so it runs alone next, in a process of its own; it waits for its turn there",
        "start a worker for queue {queue} if none is live; two such jobs run at once",
        blocks=True,
    ),
    "rate_limited": Words("rq's own rate limit holds it", "it is rq's to release", blocks=True),
    "parked": Words("it is parked: {park}", "jobq jobs cancel {id}, or jobq doctor", blocks=True),
    # It runs.
    "running": Words("attempt {attempt} runs on {worker}{progress}"),
    "lease": Words("its worker holds a lease, and was last heard of {heard} s before it was asked"),
    "lease_expired": Words(
        "its lease has run out: the next worker that looks queues it again", "start a worker if none is live"
    ),
    "no_lease": Words(
        "it runs without a lease of jobq's: a plain rq worker's run, or a claim half lost",
        "jobq doctor --fix",
    ),
    "cancel_requested": Words(
        "it was asked to stop", "it ends when its task looks, at the latest JOBQ_CANCEL_GRACE later"
    ),
    # It has ended.
    "succeeded": Words("it succeeded"),
    "result_too_large": Words(
        "what it returned is over JOBQ_RESULT_LIMIT, and was not kept",
        "let the task store it and return a reference, or raise the limit",
    ),
    "result_not_json": Words(
        "what it returned is nothing that JSON can hold, and was not kept", "let the task return plain values"
    ),
    "cancelled": Words("it was cancelled{why}", "jobq jobs retry {id} brings it back"),
    "exhausted": Words("it is dead: its last attempt failed{error}", _REPLAY),
    "poison": Words(
        "it is dead: processes that ran it crashed or were lost too often",
        "look for a crash in C code, or memory; then jobq dead replay {id}",
    ),
    "unreadable": Words("it is dead: its payload cannot be read or does not fit the task{error}", _REPLAY),
    "no_handler": Words("it is dead: helper {task} has no handler", "supply one, then jobq dead replay {id}"),
    "expired": Words("it is dead: rq's ttl had passed before it started", "enqueue it anew"),
    "rejected": Words(
        "it is dead: the signature of its payload does not fit",
        "find out who wrote it; JOBQ_SECRET_KEY must hold the key it was signed with",
    ),
    "stopped": Words("it is dead: a tool of rq's stopped it", "jobq dead replay {id}"),
    "died": Words("it is dead: {why}", _REPLAY),
    # Beside all that.
    "attempt": Words("attempt {number} {outcome}{error}"),
    "holds_key": Words("it holds its dedup key: an equal enqueue is answered with this job"),
    "key_elsewhere": Words("job {holder} holds its dedup key by now", "jobq why {holder}"),
    "replaced": Words("a later enqueue, {by}, replaced its payload"),
}
"""Every reason: its sentence, its remedy, and whether the job cannot start while it holds."""

STATE_CODES: Mapping[str, tuple[str, ...]] = {
    "scheduled": ("scheduled", "snoozed", "overdue"),
    "retrying": ("retrying", "snoozed", "overdue"),
    "queued": ("next", "behind", "dropped"),
    "running": ("running",),
    "deferred": ("parents", "parents_done"),
    "parked": ("rate", "concurrency", "held", "gate_open", "backed_off", "suspect", "unknown_task", "no_key",
               "newer_payload", "unsupported", "rate_limited", "parked"),
    "succeeded": ("succeeded", "result_too_large", "result_not_json"),
    "dead": ("exhausted", "poison", "unreadable", "no_handler", "expired", "rejected", "stopped", "died"),
    "cancelled": ("cancelled",),
}  # fmt: skip
"""For each state the reasons of which one is always given."""

CLAIM_CODES: Mapping[str, tuple[str, ...]] = {
    "paused": ("paused",),
    "suspended": ("suspended",),
    "limited": ("backed_off", "queue_rate", "queue_concurrency"),
}
"""What a claim answers when it takes nothing, and the reasons that say so."""


ORDER_CODES: Mapping[str, tuple[str, ...]] = {"order": ("order", "no_order"), "fair": ("turn", "no_turn")}
"""How a queue may choose who is next, beside the list, and the reasons that say so."""

OUTCOME_CODES: Mapping[str, tuple[str, ...]] = {
    "succeeded": STATE_CODES["succeeded"],
    "retry": ("retrying",),
    "dead": STATE_CODES["dead"],
    "snooze": ("snoozed",),
    "limited": ("backed_off",),
    "cancelled": STATE_CODES["cancelled"],
    "park": STATE_CODES["parked"],
    "hand_back": ("next", "behind"),
    "interrupted": ("interrupted",),
}
"""How an attempt may end, and the reasons of which one tells of it then."""


def reason(
    code: str, *, since: datetime | None = None, until: datetime | None = None, **values: object
) -> Reason:
    """The reason of this code, its templates filled in."""
    words = WORDS[code]
    return Reason(
        code=code,
        text=words.text.format_map(values),
        since=since,
        until=until,
        remedy=None if words.remedy is None else words.remedy.format_map(values),
        blocks=words.blocks,
    )


def park_code(park: str) -> str:
    """The code of a parked job's reason, which may carry details after a colon."""
    word = park.partition(":")[0].strip()
    if word in STATE_CODES["parked"]:
        return word
    return "unsupported" if word.startswith("rq job with") else "parked"
