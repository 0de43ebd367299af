"""A hand on many jobs at once: bulk verbs, and a queue's drain, empty, clean and move.

Every step takes at most 100 jobs, each of which is looked at again as it is touched: what has moved on since it was
chosen stays as it is, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from jobq import calls, lua
from jobq.dead_letters import ReplayReport, chunks
from jobq.job import VERB_STATES, Job, JobOwner, JobState, Verb
from jobq.job_reading import hash_command
from jobq.keys import Keys
from jobq.listing import JobFilter, ids_plan
from jobq.queues import KEEP_CANCELLED
from jobq.replies import as_int, exact_text, exact_texts
from jobq.rq_bridge import STATUS_OF, job_from_fields
from jobq.steps import Batch, Call, Pause, Plan, script_head

Progress: TypeAlias = Callable[[int], object]
"""Called with the number of further jobs dealt with."""

_LEFT = ("gone", "dropped", "late", "running")
"""Answers about an id that stands in its queue's list no more."""

SHOWN = 20
"""Jobs that a dry run names."""

_DETAILS = 1_000
_READ = 1_000
_DELETED_AT_ONCE = 25
_LOOK_S = 0.2


def nobody(count: int) -> None:
    """Nobody looks."""


@dataclass(slots=True, kw_only=True)
class BulkReport:
    """What a bulk did.

    Attributes:
        matched: Jobs that it was asked to deal with.
        done: Those that it dealt with; 0 for a dry run.
        gone: Those that no longer existed, or had left the queue that was drained or moved.
        failed: Those that it left as they were, with the state or the conflict that forbade it. At most 1,000 are
            listed; ``failed_count`` counts all.
        first: Of a dry run the first 20 jobs that it is about.
    """

    matched: int = 0
    done: int = 0
    gone: int = 0
    failed_count: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    dry_run: bool = False
    first: list[str] = field(default_factory=list)

    @classmethod
    def would(cls, ids: Sequence[str]) -> BulkReport:
        """Of a dry run that is about these jobs."""
        return cls(matched=len(ids), dry_run=True, first=list(ids[:SHOWN]))

    def merge(self, other: BulkReport) -> None:
        """Take in the report of another part."""
        self.matched += other.matched
        self.done += other.done
        self.gone += other.gone
        self.failed_count += other.failed_count
        self.failed += other.failed[: _DETAILS - len(self.failed)]
        self.dry_run = self.dry_run or other.dry_run
        self.first = [*self.first, *other.first][:SHOWN]

    def add(self, ids: Sequence[str], words: Sequence[str], fine: Sequence[str]) -> None:
        """Count the answers to one step; ``fine`` are those that mean done."""
        for job_id, word in zip(ids, words, strict=True):
            if word in fine:
                self.done += 1
            elif word == "gone":
                self.gone += 1
            else:
                self.failed_count += 1
                if len(self.failed) < _DETAILS:
                    self.failed.append((job_id, word))


# --------------------------------------------------------------------------- steps


def delete_many(keys: Keys, job_ids: Sequence[str], states: Sequence[JobState] = ()) -> Call[list[str]]:
    """Remove jobs: per id ``deleted``, ``gone``, ``changed``, or the state that forbids it.

    Args:
        job_ids: Each may be ``<id>:<ended_at>``: then it is ``changed``, and stays, if it has ended again since.
        states: The states to remove; none: any but running.
    """
    args = (*script_head(keys, None), _words(states), *job_ids)
    return Call("delete", (keys.quarantine, keys.after), args, exact_texts)


def _words(states: Sequence[JobState]) -> str:
    """These states in the words of rq, each with a comma after it."""
    words = dict.fromkeys(STATUS_OF[state] for state in states)
    if JobState.DEAD in states:
        words["stopped"] = None  # what a tool of rq's has stopped
    return "".join(f"{word}," for word in words)


def _cancel_many(
    keys: Keys, job_ids: Sequence[str], states: Sequence[JobState], keep_s: int = KEEP_CANCELLED.age_s
) -> Batch[list[str]]:
    only = _words(states)
    return together([calls.cancel(keys, job_id, only=only, keep_s=keep_s) for job_id in job_ids])


def move_many(keys: Keys, source: str, target: str, job_ids: Sequence[str]) -> Call[list[str]]:
    """Put jobs from the head of one queue at the back of another: per id ``moved``, ``dropped`` or ``late``."""
    names = (keys.queue(source), keys.queue(target), keys.queues)
    return Call("move", names, (*script_head(keys, None), source, target, *job_ids), exact_texts)


def hasten(keys: Keys, job_ids: Sequence[str], *, now_ms: int | None = None) -> Call[list[str]]:
    """Queue jobs that wait for a time: per id ``queued``, ``gone``, or the state that forbids it."""
    return Call("hasten", (keys.quarantine,), (*script_head(keys, now_ms), *job_ids), exact_texts)


def together(steps: Sequence[Call[str]]) -> Batch[list[str]]:
    """Runs of one script in one pipeline, each atomic by itself; an answer that is an error is ``unreadable``."""
    script = lua.script(steps[0].script)

    def decode(replies: list[Any]) -> list[str]:
        return ["unreadable" if isinstance(reply, Exception) else exact_text(reply) for reply in replies[1:]]

    return Batch((("SCRIPT", "LOAD", script.text), *(step.command() for step in steps)), decode)


class _Action(NamedTuple):
    """How a verb deals with a chunk, and which answers mean done."""

    step: Callable[[Keys, Sequence[str], Sequence[JobState]], Call[list[str]] | Batch[list[str]]]
    fine: tuple[str, ...]


_S = JobState
_ACTIONS: Mapping[Verb, _Action] = {
    "cancel": _Action(_cancel_many, ("cancelled", "requested")),
    "delete": _Action(delete_many, ("deleted",)),
    "promote": _Action(lambda keys, ids, _states: hasten(keys, ids), ("queued",)),
    "retry": _Action(lambda keys, ids, _states: calls.replay(keys, ids), ("queued",)),
}


# --------------------------------------------------------------------------- looking first

_LIVE = ("queued", "scheduled", "started", "deferred", "created", "ready_to_enqueue", "rate_limited")
"""Statuses of a job that holds its dedup key, as ``replay.lua`` has them."""


def preview_plan(
    keys: Keys, verb: Verb, ids: Sequence[str], owner: JobOwner | None
) -> Plan[list[tuple[Job | None, str]]]:
    """Jobs as they stand, each with the word that the verb's script would refuse it with; empty: it would not."""
    ids = list(ids)
    replies = yield Batch(tuple(hash_command(keys, job_id) for job_id in ids))
    looks: list[tuple[Job | None, str]] = []
    keyed: list[tuple[int, str]] = []
    for at, (job_id, values) in enumerate(zip(ids, replies, strict=True)):
        job = None if isinstance(values, Exception) else job_from_fields(job_id, values, owner=owner)
        looks.append((job, _refusal_word(verb, job)))
        if verb == "retry" and job is not None and not looks[-1][1] and job.dedup_key:
            keyed.append((at, job.dedup_key.partition(":")[2]))
    if keyed:
        held = yield Batch(tuple(("GET", keys.dedup(name)) for _, name in keyed))
        modes = [
            exact_text(reply).partition(":") if isinstance(reply, bytes) else ("", "", "") for reply in held
        ]
        statuses = yield Batch(tuple(("HGET", keys.job(holder), "status") for _, _, holder in modes))
        for (at, _), (mode, _, holder), status in zip(keyed, modes, statuses, strict=True):
            word = exact_text(status) if isinstance(status, bytes) else ""
            live = word in _LIVE and not (mode == "s" and word == "started")
            if holder and holder != ids[at] and (mode == "w" or live):
                looks[at] = looks[at][0], f"conflict:{holder}"
    return looks


def _refusal_word(verb: Verb, job: Job | None) -> str:
    if job is None:
        return "gone"
    if verb == "cancel":
        return "finished" if job.finished else ""
    if verb == "delete":
        return job.state.value if job.state is _S.RUNNING else ""
    return "" if job.state in VERB_STATES[verb] else job.state.value


# --------------------------------------------------------------------------- plans


def bulk_plan(
    keys: Keys,
    verb: Verb,
    ids: Sequence[str],
    *,
    states: Sequence[JobState] = (),
    rate: float | None = None,
    progress: Progress = nobody,
    keep_cancelled_s: int = KEEP_CANCELLED.age_s,
) -> Plan[BulkReport]:
    """Do this to each of these jobs.

    Args:
        keep_cancelled_s: After so many seconds Redis deletes by itself what is cancelled.
        states: For ``cancel`` and ``delete``: only jobs that are in one of these states by then; none: any, but to
            delete none that runs.
        rate: Jobs a second; None: as fast as Redis goes.
    Raises:
        ValueError: ``rate`` is not above 0, or no such verb.
    """
    if verb not in _ACTIONS:
        raise ValueError(f"unknown verb {verb!r}; it is one of {', '.join(_ACTIONS)}")
    action = _ACTIONS[verb]
    chosen = list(dict.fromkeys(ids))
    report = BulkReport(matched=len(chosen))
    for chunk, pause in chunks(chosen, rate):
        if verb == "delete":
            # Each may look through a list of 10,000: a hundred at once would hold Redis up for 60 ms.
            for start in range(0, len(chunk), _DELETED_AT_ONCE):
                part = chunk[start : start + _DELETED_AT_ONCE]
                report.add(part, (yield delete_many(keys, part, states)), action.fine)
        elif verb == "cancel":
            report.add(chunk, (yield _cancel_many(keys, chunk, states, keep_cancelled_s)), action.fine)
        else:
            report.add(chunk, (yield action.step(keys, chunk, states)), action.fine)
        progress(len(chunk))
        if pause:
            yield Pause(pause)
    return report


def drain_plan(
    keys: Keys, queue: str, *, rate: float | None = None, dry_run: bool = False, progress: Progress = nobody
) -> Plan[BulkReport]:
    """Remove what waits in a queue: the jobs of its list, and those that a limit holds back.

    What is enqueued meanwhile stays.
    """
    if dry_run:
        blocked = keys.blocked(queue)
        listed = yield from _first_listed(keys, queue)
        count, ids = yield Batch((("ZCARD", blocked), ("ZRANGE", blocked, 0, SHOWN - 1)))
        listed.merge(BulkReport(matched=as_int(count), dry_run=True, first=_ids(ids)))
        return listed

    def remove(ids: Sequence[str]) -> Call[list[str]]:
        return delete_many(keys, ids, (_S.QUEUED,))

    report = yield from _from_head(keys, queue, remove, ("deleted",), rate, progress)
    held = yield from _blocked_ids(keys, queue)
    if held:
        more = yield from bulk_plan(
            keys, "delete", held, states=(_S.QUEUED, _S.PARKED), rate=rate, progress=progress
        )
        report.merge(more)
    return report


def empty_plan(
    keys: Keys, queue: str, *, rate: float | None = None, dry_run: bool = False, progress: Progress = nobody
) -> Plan[BulkReport]:
    """Remove what waits in a queue, and what waits for a time: delayed jobs and retries."""
    delayed = (_S.SCHEDULED, _S.RETRYING)
    ids = yield from ids_plan(keys, JobFilter(states=delayed, queues=(queue,)))
    report = yield from drain_plan(keys, queue, rate=rate, dry_run=dry_run, progress=progress)
    if dry_run:
        report.merge(BulkReport.would(ids))
    elif ids:
        more = yield from bulk_plan(keys, "delete", ids, states=delayed, rate=rate, progress=progress)
        report.merge(more)
    return report


def move_plan(
    keys: Keys,
    source: str,
    target: str,
    *,
    rate: float | None = None,
    dry_run: bool = False,
    progress: Progress = nobody,
) -> Plan[BulkReport]:
    """Put a queue's waiting jobs at the back of another, in their order; what is enqueued meanwhile stays.

    Raises:
        ValueError: Both are the same queue.
    """
    if source == target:
        raise ValueError(f"queue {source!r} cannot be moved to itself")
    if dry_run:
        return (yield from _first_listed(keys, source))

    def move(ids: Sequence[str]) -> Call[list[str]]:
        return move_many(keys, source, target, ids)

    return (yield from _from_head(keys, source, move, ("moved",), rate, progress))


def _ids(reply: Any) -> list[str]:
    return [] if isinstance(reply, Exception) else exact_texts(reply)


def _first_listed(keys: Keys, queue: str) -> Plan[BulkReport]:
    """What a dry run says of the jobs of a queue's list."""
    name = keys.queue(queue)
    length, ids = yield Batch((("LLEN", name), ("LRANGE", name, 0, SHOWN - 1)))
    return BulkReport(matched=as_int(length), dry_run=True, first=_ids(ids))


def _from_head(
    keys: Keys,
    queue: str,
    step: Callable[[Sequence[str]], Call[list[str]]],
    fine: tuple[str, ...],
    rate: float | None,
    progress: Progress,
) -> Plan[BulkReport]:
    """Do something to every job that stands in a queue's list now, from its head on."""
    report = BulkReport(matched=as_int((yield Batch((("LLEN", keys.queue(queue)),)))[0]))
    left, kept = report.matched, 0
    while left > 0:
        last = kept + min(left, _READ) - 1
        reply = (yield Batch((("LRANGE", keys.queue(queue), kept, last),)))[0]
        ids = [] if isinstance(reply, Exception) else exact_texts(reply)
        if not ids:
            break
        left -= len(ids)
        for chunk, pause in chunks(ids, rate):
            words = yield step(chunk)
            report.add(chunk, [word if word in fine else "gone" for word in words], fine)
            vain = [job_id for job_id, word in zip(chunk, words, strict=True) if word == "gone"]
            if vain:  # entries of jobs that are no more, which only a claim would drop
                yield Batch(tuple(("LREM", keys.queue(queue), 1, job_id) for job_id in vain))
            # Other entries that are in vain stay where they are; the next look is behind them.
            kept += sum(word not in (*fine, *_LEFT) for word in words)
            progress(len(chunk))
            if pause or (rate is not None and left):
                yield Pause(pause or len(chunk) / rate)  # type: ignore[operator]
    return report


def _blocked_ids(keys: Keys, queue: str) -> Plan[list[str]]:
    ids: list[str] = []
    while True:
        first = len(ids)
        reply = (yield Batch((("ZRANGE", keys.blocked(queue), first, first + _READ - 1),)))[0]
        found = [] if isinstance(reply, Exception) else exact_texts(reply)
        ids += found
        if len(found) < _READ:
            return ids


def replay_plan(
    keys: Keys,
    ids: Sequence[str],
    rate: float | None,
    canary: int,
    wait_s: float,
    progress: Progress,
    *,
    named: bool,
) -> Plan[ReplayReport]:
    """Replay dead letters; with a canary some first, and the others only if each of those succeeds.

    Args:
        wait_s: Seconds to wait for the canary; the jobs of it go on.
        named: They were asked for by their ids, so one that is gone is a failure.
    Raises:
        ValueError: ``rate`` is not above 0, or ``canary`` is below 0.
    """
    if canary < 0:
        raise ValueError(f"a canary is of at least 1 job, got {canary}")
    report = ReplayReport(matched=len(ids))
    first = min(canary, len(ids))
    for part in (ids[:first], ids[first:]):
        for chunk, pause in chunks(part, rate):
            report.add(chunk, (yield calls.replay(keys, chunk)), named=named)
            progress(len(chunk))
            if pause:
                yield Pause(pause)
        if part and first and not report.canary:
            refused = {job_id for job_id, _ in report.failed}
            report.canary = yield from _outcomes(keys, [i for i in part if i not in refused], wait_s)
            if any(state != _S.SUCCEEDED for _, state in report.canary):
                report.held = len(ids) - first
                return report
    return report


def _outcomes(keys: Keys, ids: Sequence[str], wait_s: float) -> Plan[list[tuple[str, str]]]:
    """The states that replayed jobs come to: ended, or waiting again after a failed attempt."""
    waited, states = 0.0, {}
    while True:
        replies = yield Batch(tuple(hash_command(keys, job_id) for job_id in ids))
        for job_id, values in zip(ids, replies, strict=True):
            job = None if isinstance(values, Exception) else job_from_fields(job_id, values)
            states[job_id] = _S.CANCELLED if job is None else job.state
        going = [state for state in states.values() if state in (_S.QUEUED, _S.RUNNING)]
        if not going or (
            len(going) < len(ids) and any(s not in (*going, _S.SUCCEEDED) for s in states.values())
        ):
            break
        if waited >= wait_s:
            break
        waited += _LOOK_S
        yield Pause(_LOOK_S)
    return [(job_id, state.value) for job_id, state in states.items()]
