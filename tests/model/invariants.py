"""The protocol's invariants, checked on a server's raw keys after each step.

Each takes the step that was just done and the history of all; those that are about one state look at
``step.after`` alone. What an rq tool may break for a while is excused by name, nothing else is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from jobq import lua
from jobq.job import TRANSITIONS, JobState
from jobq.rq_bridge import state_of
from tests.model.snapshot import LIVE, REGISTRIES, TERMINAL, Snapshot

COUNTER = "n"
"""The counter that each settle of a test adds 1 to."""


@dataclass(frozen=True)
class Step:
    """One step and what it did.

    Attributes:
        name: The script, or ``rq_...`` for one of rq's tools, ``time`` for expiries.
        facts: What went in, by the names of the step's own arguments.
    """

    name: str
    now_ms: int
    before: Snapshot
    after: Snapshot
    answer: Any = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def moved(self) -> dict[str, tuple[str | None, str | None]]:
        """Ids whose status changed, with the status before and after; None: no such job."""
        ids = self.before.hashes.keys() | self.after.hashes.keys()
        found = {i: (self.before.status(i), self.after.status(i)) for i in ids}
        return {i: change for i, change in found.items() if change[0] != change[1]}


@dataclass
class History:
    """What the invariants remember.

    Attributes:
        acked: Ids whose enqueue answered that they are in.
        settled: How often each ``<id>:<token>`` settled.
        given: Ids that each (executor, claim number) was given first.
        cancelled: Ids whose cancel answered ``cancelled``, until somebody queues them again.
        released: Ids of children that left deferred.
        popped: Ids that a stock worker took off a list and may have lost.
        keyless: Ids that lost their dedup key to a newer job, or came back through rq's requeue without it.
        expiring: Ids that rq's requeue left with an expiry.
        swept_by_rq: Ids that rq's tools removed, or cancelled while they ran before they were removed: their records
            stay for a while, or longer (see test_regressions.py), and a request to stop one that a stock worker ran.
    """

    acked: set[str] = field(default_factory=set)
    settled: Counter[str] = field(default_factory=Counter)
    given: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)
    popped: set[str] = field(default_factory=set)
    keyless: set[str] = field(default_factory=set)
    expiring: set[str] = field(default_factory=set)
    swept_by_rq: set[str] = field(default_factory=set)

    def forget(self, ids: AbstractSet[str]) -> None:
        """These are gone, or begin anew."""
        for kept in (self.cancelled, self.keyless, self.expiring, self.released, self.popped):
            kept.difference_update(ids)


def one_container(step: Step, history: History) -> None:
    """1. A job is in exactly the container of its state; a list may also hold ids that claim will drop."""
    after = step.after
    places: dict[str, list[str]] = {}
    for queue in after.queues:
        for word in REGISTRIES:
            for job_id in after.zset(f"rq:{word}:{queue}"):
                places.setdefault(job_id, []).append(word)
        for job_id in set(after.waiting(queue)):
            if after.status(job_id) == "queued":
                places.setdefault(job_id, []).append("queued")
    for _, job_id, _, _ in after.wip():
        if after.status(job_id) == "started":
            places.setdefault(job_id, []).append("started")
    for job_id, found in after.hashes.items():
        if not (found["status"] == "queued" and job_id in history.popped):
            assert places.get(job_id) == [found["status"]], (
                f"{job_id} is {found['status']}, in {places.get(job_id)}"
            )
        if "park" in found:
            gate = found["pb"].removeprefix("~gate:")
            at_gate = f"jobq:gate:{gate}"
            bucket = at_gate if gate != found["pb"] else f"jobq:parked:{found['origin']}:{found['pb']}"
            assert found["status"] == "canceled" or job_id in after.zset(bucket), f"{job_id} is in no bucket"
        if found["status"] == "scheduled":
            due = after.zset(f"jobq:retrying:{found['origin']}").get(job_id)
            spent = int(found.get("attempts", "0")) > 0
            assert (due is not None) == spent, f"{job_id}: attempts {spent}, retrying {due}"
    if step.name == "promote":
        retrying = {job_id for queue in after.queues for job_id in after.zset(f"jobq:retrying:{queue}")}
        assert not step.moved().keys() & retrying, f"promoted, and still retrying: {retrying}"
    for job_id in places.keys() - after.hashes.keys():
        assert set(places[job_id]) <= TERMINAL, f"{job_id} is gone, but still in {places[job_id]}"


def one_lease(step: Step, history: History) -> None:
    """2. At most one lease per job; running by jobq is the same as a lease and a member of wip."""
    after = step.after
    for job_id, tokens in after.leases.items():
        assert len(tokens) == 1, f"{job_id} is leased to {tokens}"
    ours = {(job_id, token) for _, job_id, token, score in after.wip() if math.isinf(score)}
    leased = {(job_id, tokens[0]) for job_id, tokens in after.leases.items()}
    assert ours == leased, f"wip {ours}, leases {leased}"
    foreign = {job_id for _, job_id, _, score in after.wip() if not math.isinf(score)}
    for job_id, found in after.hashes.items():
        if found["status"] == "started":
            assert (job_id in after.leases) != (job_id in foreign), f"{job_id} runs, leases {after.leases}"


def settles_once(step: Step, history: History) -> None:
    """3. A token settles once; after ``lost`` it changes nothing."""
    if step.name != "settle":
        return
    for (job_id, token), word in zip(step.facts["members"], step.answer, strict=True):
        if word == "ok" or (word in ("cancelled", "dead") and step.before.status(job_id) == "started"):
            history.settled[f"{job_id}:{token}"] += 1
            assert history.settled[f"{job_id}:{token}"] == 1, f"{job_id}:{token} settled twice"
        if word in ("lost", "gone", "already") and len(step.answer) == 1:
            held = token in step.before.leases.get(job_id, ())
            assert held or step.before == step.after, f"{word}, but something changed"
            assert step.before.hashes == step.after.hashes, f"{word}, but a job changed"


def terminal_stays(step: Step, history: History) -> None:
    """4. A terminal job moves only by replay, rq's requeue, or prune (and by delete and its own expiry)."""
    for job_id, (was, now) in step.moved().items():
        if was in TERMINAL:
            removed = now is None and step.name in ("prune", "delete", "rq_delete", "time")
            again = now == "queued" and step.name in ("replay", "rq_requeue")
            assert removed or again, f"{step.name} moved {job_id} from {was} to {now}"


def attempts_by_settle(step: Step, history: History) -> None:
    """5. No rescue, hand-back, snooze or park changes ``attempts``: only what spends one, and a fresh start."""
    spent: set[str] = set()
    if step.name == "settle":
        outcomes = zip(step.facts["members"], step.facts["ends"], step.answer, strict=True)
        spent = {i for (i, _), end, word in outcomes if end.spends and word in ("ok", "cancelled")}
    for job_id in step.before.hashes.keys() & step.after.hashes.keys():
        was, now = step.before.number(job_id, "attempts"), step.after.number(job_id, "attempts")
        if job_id in spent and now == was + 1:
            continue
        fresh = now == 0 and step.name in ("replay", "enqueue")
        assert now == was or fresh, f"{step.name} changed the attempts of {job_id} from {was} to {now}"


def one_id_one_job(step: Step, history: History) -> None:
    """6. One id, one job, however often enqueue is sent."""
    if step.name == "enqueue" and all(
        word in ("mine", "duplicate", "full", "shed") for word, _ in step.answer
    ):
        assert step.before == step.after, f"{step.answer}, but something changed"
    for queue in step.after.queues:
        ids = Counter(job_id for job_id in step.after.waiting(queue) if step.after.status(job_id) == "queued")
        assert not ids or max(ids.values()) == 1, f"twice in the list of {queue}: {ids}"


def same_number_same_jobs(step: Step, history: History) -> None:
    """7. The same claim number never yields a new job."""
    if step.name == "claim":
        key = (step.facts["exec_id"], step.facts["number"])
        ids = {row[0] for row in step.answer[1]}
        if key in history.given:
            assert ids <= history.given[key], f"{key} was given {history.given[key]}, now {ids}"
        elif step.answer[0] == "ok":
            history.given[key] = ids


def live_holder_is_alone(step: Step, history: History) -> None:
    """8. A live mode-f holder is the only live job of its key, save replace on a running one and rq's requeue."""
    holders: dict[str, list[str]] = {}
    for job_id, found in step.after.hashes.items():
        key = found.get("dk", "")
        if key.startswith("f:") and found["status"] in LIVE and job_id not in history.keyless:
            holders.setdefault(key[2:], []).append(job_id)
    for name, ids in holders.items():
        assert len(ids) == 1, f"{name} is held by {ids}"


def paused_and_cancelled_stay(step: Step, history: History) -> None:
    """9. After pause returned, or while a queue is backed off, no lease begins; none of what a cancel ended runs."""
    begun = {job_id for job_id, (_, now) in step.moved().items() if now == "started"}
    assert not begun & history.cancelled, f"{begun & history.cancelled} were cancelled, and run"
    if step.name == "claim":
        state = step.before.values.get(f"jobq:q:{step.facts['queue']}", {})
        ends = int(state.get("until", "0"))
        if state.get("paused") == "1" and (ends == 0 or ends > step.now_ms):
            new = step.after.leases.keys() - step.before.leases.keys()
            assert not new, f"{new} began on a paused queue"
        if int(state.get("closed", "0")) > step.now_ms:
            new = step.after.leases.keys() - step.before.leases.keys()
            assert not new, f"{new} began on a queue that was told to slow down"


def nothing_early(step: Step, history: History) -> None:
    """10. Nothing starts before its due time by Redis' clock, unless somebody asks for it."""
    for job_id, (was, now) in step.moved().items():
        if was == "scheduled" and now in ("queued", "started"):
            due_s = step.before.zset(f"rq:scheduled:{step.before.hashes[job_id]['origin']}")[job_id]
            early = round(due_s * 1000) > step.now_ms
            assert step.name in ("promote", "enqueue", "hasten"), f"{step.name} made {job_id} {now}"
            assert step.name != "promote" or not early, f"{job_id} was due at {due_s}, now {step.now_ms}"


def nothing_lost(step: Step, history: History) -> None:
    """11. Every queued id is in its list; every acknowledged job is terminal, waiting, or leased."""
    after = step.after
    for job_id, found in after.hashes.items():
        if found["status"] == "queued" and job_id not in history.popped:
            assert job_id in after.waiting(found["origin"]), f"{job_id} is queued, and in no list"
    for job_id, (was, now) in step.moved().items():
        if now is None and job_id in history.acked:
            asked = step.name in ("delete", "rq_delete", "rq_empty", "prune")
            expired = step.name == "time" and (was in TERMINAL or job_id in history.expiring)
            assert asked or expired, f"{step.name} lost {job_id}, which was {was}"
            history.acked.discard(job_id)
    missing = history.acked - after.hashes.keys()
    assert not missing, f"acknowledged, but nowhere: {missing}"


def counted_once(step: Step, history: History) -> None:
    """12. Counters count a job's settle once."""
    if step.name != "settle":
        return
    rose = _counted(step.after) - _counted(step.before)
    ended = sum(
        word == "ok" or (word in ("cancelled", "dead") and step.before.status(job_id) == "started")
        for (job_id, _), word in zip(step.facts["members"], step.answer, strict=True)
    )
    assert rose == ended, f"{ended} settled, {rose} counted"


def _counted(state: Snapshot) -> int:
    return sum(
        int(value.get(COUNTER, "0")) for key, value in state.values.items() if key.startswith("jobq:n:")
    )


def child_leaves_once(step: Step, history: History) -> None:
    """13. A child leaves deferred once."""
    for job_id, (was, now) in step.moved().items():
        parked = "park" in step.before.hashes.get(job_id, {})
        if was == "deferred" and not parked and now not in ("canceled", None):
            assert step.name == "release", f"{step.name} released {job_id}"
            assert job_id not in history.released, f"{job_id} left deferred twice"
            history.released.add(job_id)


def poison_by_rule(step: Step, history: History) -> None:
    """14. Poison only after a second crash alone, or the sixth loss."""
    for job_id, (_, now) in step.moved().items():
        if now != "failed" or step.after.hashes[job_id].get("why") != "poison":
            continue
        lost, crashes = step.after.number(job_id, "lost"), step.after.number(job_id, "crashes")
        alone = any(
            end.id == job_id and end.kind == "interrupted" and end.crash and end.alone
            for end in step.facts.get("ends", ())
        )
        assert lost >= 6 or (alone and crashes >= 2), (
            f"{job_id}: lost {lost}, crashes {crashes}, alone {alone}"
        )


def moves_are_legal(step: Step, history: History) -> None:
    """No script moves a job in a way that the table of ``jobq.job`` does not name."""
    if step.name in lua.names():
        for job_id in step.before.hashes.keys() & step.after.hashes.keys():
            was, now = _state(step.before, job_id), _state(step.after, job_id)
            assert was is now or now in TRANSITIONS[was], f"{step.name} moved {job_id} from {was} to {now}"


def _state(state: Snapshot, job_id: str) -> JobState:
    found = state.hashes[job_id]
    return state_of(found["status"], attempts=state.number(job_id, "attempts"), parked="park" in found)


def nothing_left(state: Snapshot, history: History) -> None:
    """15. After drain and retention no ``jobq:`` key is left but ``q``, ``pulse``, ``n``."""
    records = (f"jobq:attempts:{job_id}" for job_id in history.swept_by_rq)
    kept = ("jobq:q:", "jobq:pulse", "jobq:n:", *records)
    left = {
        key: value
        for key, value in state.values.items()
        if key.startswith("jobq:") and not key.startswith(kept)
    }
    if left.get("jobq:cancels", set()) <= history.swept_by_rq:
        left.pop("jobq:cancels", None)
    # Whose job rq deleted or cancelled while it ran holds its place until the gate is full.
    for key in [key for key in left if key.startswith("jobq:held:")]:
        if {member.partition(":")[0] for member in left[key]} <= history.swept_by_rq:
            del left[key]
    assert not left, f"left over: {left}"


INVARIANTS: tuple[Callable[[Step, History], None], ...] = (
    one_container,
    one_lease,
    settles_once,
    terminal_stays,
    attempts_by_settle,
    one_id_one_job,
    same_number_same_jobs,
    live_holder_is_alone,
    paused_and_cancelled_stay,
    nothing_early,
    nothing_lost,
    counted_once,
    child_leaves_once,
    poison_by_rule,
    moves_are_legal,
)
"""All but the fifteenth, which is about the end; the last is of ``jobq.job``, not of the protocol."""


def check(step: Step, history: History) -> None:
    """Check all invariants after a step.

    Raises:
        AssertionError: One does not hold; the message starts with its sentence.
    """
    for invariant in INVARIANTS:
        try:
            invariant(step, history)
        except AssertionError as error:
            raise AssertionError(
                f"{invariant.__doc__}\nafter {step.name} {dict(step.facts)}: {error}"
            ) from None
