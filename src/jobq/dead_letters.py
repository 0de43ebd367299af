"""Dead letters: listing them, grouping them by what went wrong, and replaying them.

The plans here read and build; :mod:`jobq.dead_parts` runs them, for ``client.dead_letters``, sync and async.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from jobq.errors import ConflictError
from jobq.job import Attempt, Job, JobOwner, JobState
from jobq.job_reading import hash_command, job_plan, newest_result
from jobq.keys import Keys
from jobq.listing import JobFilter, Page, jobs_plan
from jobq.records import decode_attempt
from jobq.replies import clean_text, exact_text
from jobq.rq_bridge import StreamResult, iso, job_from_fields, parse_iso
from jobq.steps import MOST_JOBS, Batch, Call, Plan, script_head

_STRETCH = 1_000
"""Dead letters that one script call counts: about 2 ms in which Redis serves nobody else."""

_DETAILS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A job that no retry will touch, with what is known of its end.

    Attributes:
        reason: One of ``DEAD_REASONS``.
        error_type: Class of the last error, where one is known.
        error: One line: the last error's text.
        attempts: Attempts spent.
        history: All recorded attempts, oldest first; filled by ``get`` only.
        traceback: Of the last attempt; filled by ``get`` only.
    """

    job: Job
    reason: str
    error_type: str | None = None
    error: str | None = None
    history: tuple[Attempt, ...] = ()
    traceback: str | None = None

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.job.task

    @property
    def queue(self) -> str:
        """Name of the queue."""
        return self.job.queue

    @property
    def attempts(self) -> int:
        """Attempts spent."""
        return self.job.attempt

    @property
    def died_at(self) -> datetime | None:
        """When it became a dead letter."""
        return self.job.ended_at

    @property
    def fingerprint(self) -> str | None:
        """Equal for errors of the same kind and place."""
        return self.job.error_fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadGroup:
    """Dead letters that died of the same error.

    Attributes:
        fingerprint: Pass it as ``error=`` to list or replay the group; None: these carry none.
        example_id: The newest of them.
    """

    fingerprint: str | None
    task: str
    reason: str
    count: int
    first_seen: datetime | None
    last_seen: datetime | None
    error_type: str | None
    error: str | None
    example_id: str


@dataclass(slots=True, kw_only=True)
class ReplayReport:
    """What a replay did.

    Attributes:
        matched: Dead letters that the ids or the filter chose.
        replayed: Those that are queued again; 0 for a dry run.
        failed: Those that could not be, with the reason: ``conflict:<holder>``, ``gone`` or their state. At most
            1,000 are listed; ``failed_count`` counts all.
        canary: Ids of the canary with the states they came to.
        held: Those that stay dead because the canary did not succeed.
    """

    matched: int = 0
    replayed: int = 0
    failed_count: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    dry_run: bool = False
    canary: list[tuple[str, str]] = field(default_factory=list)
    held: int = 0

    def merge(self, other: ReplayReport) -> None:
        """Take in the report of another part."""
        self.matched += other.matched
        self.replayed += other.replayed
        self.failed_count += other.failed_count
        self.failed += other.failed[: _DETAILS - len(self.failed)]
        self.canary += other.canary
        self.held += other.held

    def add(self, ids: Sequence[str], words: Sequence[str], *, named: bool) -> None:
        """Count one chunk's answers; what was not asked for by its id and is gone has expired, and does not count."""
        for job_id, word in zip(ids, words, strict=True):
            if word == "queued":
                self.replayed += 1
                continue
            if word == "gone" and not named:
                self.matched -= 1
                continue
            self.failed_count += 1
            if len(self.failed) < _DETAILS:
                self.failed.append((job_id, word))


def chunks(ids: Sequence[str], rate: float | None) -> Iterator[tuple[Sequence[str], float]]:
    """Chunks to replay, each with the seconds to pause after it; the last pauses for nothing.

    Args:
        rate: Jobs a second; None: as fast as Redis goes.
    Raises:
        ValueError: ``rate`` is not above 0.
    """
    if rate is not None and rate <= 0:
        raise ValueError(f"rate must be above 0 jobs a second, got {rate}")
    # Four chunks a second spread the load of a slow rate; below that, one job at a time.
    size = MOST_JOBS if rate is None else max(1, min(MOST_JOBS, int(rate / 4)))
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]
        last = start + size >= len(ids)
        yield chunk, 0.0 if last or rate is None else len(chunk) / rate


def replay_conflict(job_id: str, word: str) -> ConflictError:
    """The error for one job that could not be replayed."""
    if word.startswith("conflict:"):
        holder = word.partition(":")[2]
        return ConflictError(
            f"job {job_id} cannot be replayed: job {holder} holds its dedup key", job_id=job_id
        )
    return ConflictError(
        f"job {job_id} is {word}: only dead or cancelled jobs can be replayed", job_id=job_id
    )


def list_plan(
    keys: Keys, wanted: JobFilter, *, limit: int, cursor: str | None, owner: JobOwner | None
) -> Plan[Page[DeadLetter]]:
    """A page of dead letters, newest first.

    Raises:
        ValueError: The cursor is damaged or belongs to another filter.
    """
    page = yield from jobs_plan(
        keys, replace(wanted, states=(JobState.DEAD,)), limit=limit, cursor=cursor, owner=owner
    )
    letters = yield from _with_errors(keys, page.items)
    return Page(letters, page.cursor, page.unreadable)


def get_plan(keys: Keys, job_id: str, owner: JobOwner | None) -> Plan[DeadLetter]:
    """One dead letter, with its history.

    Raises:
        JobNotFoundError: There is no such job.
        ConflictError: It is not dead.
    """
    job = yield from job_plan(keys, job_id, owner)
    if job.state is not JobState.DEAD:
        raise ConflictError(f"job {job_id} is {job.state}, not dead", job_id=job_id)
    records, entries = yield Batch(
        (("LRANGE", keys.attempts(job_id), 0, -1), ("XREVRANGE", keys.results(job_id), "+", "-", "COUNT", 1))
    )
    found = [] if isinstance(records, Exception) else records
    history = tuple(decode_attempt(record, number) for number, record in enumerate(found, 1))
    stream = newest_result(entries)
    letter = _letter(job, history[-1] if history else None, stream)
    traceback = (history[-1].traceback if history else None) or (stream.error if stream else None)
    return replace(letter, history=history, traceback=traceback)


def count_plan(keys: Keys, queues: Sequence[str]) -> Plan[dict[str, int]]:
    """Dead letters per queue."""
    counts = yield Batch(tuple(("ZCARD", keys.failed(queue)) for queue in queues))
    return {
        queue: count if isinstance(count, int) else 0 for queue, count in zip(queues, counts, strict=True)
    }


@dataclass(slots=True)
class _Count:
    """How many dead letters are of one kind, with the id of the newest; the moments are ISO texts."""

    count: int
    newest: str
    first_seen: str
    last_seen: str


def by_task_plan(keys: Keys, wanted: JobFilter) -> Plan[dict[str, int]]:
    """How many dead letters there are of each task, the most first."""
    counts: dict[str, int] = {}
    for (_, task, _), found in (yield from _counts(keys, wanted)).items():
        counts[task] = counts.get(task, 0) + found.count
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _counts(keys: Keys, wanted: JobFilter) -> Plan[dict[tuple[str, str, str], _Count]]:
    """Dead letters by error fingerprint, task and reason.

    They are counted where they are, a stretch of each queue at a time: what dies or is replayed meanwhile may be
    counted or not.
    """
    counts: dict[tuple[str, str, str], _Count] = {}
    for queue in wanted.queues:
        first, read = 0, _STRETCH
        while read == _STRETCH:
            read, found = yield _tally(keys, queue, first, wanted)
            first += read
            for kind, more in found:
                known = counts.setdefault(kind, more)
                if known is not more:
                    if more.last_seen > known.last_seen:
                        known.newest, known.last_seen = more.newest, more.last_seen
                    known.first_seen = min(known.first_seen, more.first_seen)
                    known.count += more.count
    return counts


def groups_plan(keys: Keys, wanted: JobFilter) -> Plan[list[DeadGroup]]:
    """All dead letters by task, error fingerprint and reason, the largest group first."""
    counts = yield from _counts(keys, wanted)
    if not counts:
        return []
    replies = yield Batch(tuple(hash_command(keys, each.newest) for each in counts.values()))
    there = [
        job
        for each, reply in zip(counts.values(), replies, strict=True)
        if not isinstance(reply, Exception) and (job := job_from_fields(each.newest, reply)) is not None
    ]
    # One that went away since it was counted leaves its group without the words of its error.
    letters = {letter.id: letter for letter in (yield from _with_errors(keys, there))}
    groups = [
        DeadGroup(
            fingerprint=fingerprint or None,
            task=task,
            reason=reason,
            count=count.count,
            first_seen=parse_iso(count.first_seen),
            last_seen=parse_iso(count.last_seen),
            error_type=letter.error_type if (letter := letters.get(count.newest)) else None,
            error=letter.error if letter else None,
            example_id=count.newest,
        )
        for (fingerprint, task, reason), count in counts.items()
    ]
    return sorted(groups, key=lambda group: (-group.count, group.task))


def _tally(
    keys: Keys, queue: str, first: int, wanted: JobFilter
) -> Call[tuple[int, list[tuple[tuple[str, str, str], _Count]]]]:
    def decode(reply: list[Any]) -> tuple[int, list[tuple[tuple[str, str, str], _Count]]]:
        found = []
        for fingerprint, task, reason, count, newest, first_seen, last_seen in reply[1:]:
            kind = (clean_text(fingerprint), clean_text(task), clean_text(reason))
            moments = clean_text(first_seen), clean_text(last_seen)
            found.append((kind, _Count(count, exact_text(newest), *moments)))
        return reply[0], found

    since = "" if wanted.since is None else iso(int(wanted.since.timestamp() * 1000))
    args = (*script_head(keys, None), first, _STRETCH, wanted.task or "", wanted.error or "", since)
    return Call("dead_groups", (keys.failed(queue),), args, decode)


def _with_errors(keys: Keys, jobs: Sequence[Job]) -> Plan[list[DeadLetter]]:
    """The jobs as dead letters, each with its last error, in one round trip."""
    if not jobs:
        return []
    commands: list[tuple[Any, ...]] = []
    for job in jobs:
        commands.append(("LINDEX", keys.attempts(job.id), -1))
        commands.append(("XREVRANGE", keys.results(job.id), "+", "-", "COUNT", 1))
    replies = yield Batch(tuple(commands))
    letters = []
    for job, record, entries in zip(jobs, replies[::2], replies[1::2], strict=True):
        last = None if isinstance(record, Exception) or not record else decode_attempt(record, job.attempt)
        letters.append(_letter(job, last, newest_result(entries)))
    return letters


def _letter(job: Job, last: Attempt | None, stream: StreamResult | None) -> DeadLetter:
    """A dead letter's error: from our own record, else from the traceback that rq keeps."""
    error_type, error = (last.error_type, last.error) if last else (None, None)
    if error is None and stream is not None and stream.error:
        error_type, error = last_line(stream.error)
    return DeadLetter(job=job, reason=job.dead_reason or "exhausted", error_type=error_type, error=error)


def last_line(traceback: str) -> tuple[str | None, str | None]:
    """Class and text of the error that a traceback ends with."""
    lines = [line for line in traceback.strip().splitlines() if line.strip()]
    # The error's line is the last that is not indented; a message of several lines may follow it.
    found = next((line for line in reversed(lines) if not line[0].isspace() and ":" in line), None)
    if found is None:
        return None, lines[-1].strip()[:500] if lines else None
    kind, _, text = found.partition(":")
    if not kind.replace(".", "").replace("_", "").isalnum():
        return None, found[:500]
    return kind, text.strip()[:500]
