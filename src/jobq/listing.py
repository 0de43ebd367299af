"""Listing jobs: which ones a filter takes, the containers that hold their ids, and pages that end in a cursor.

A key of the wrong type is reported as unreadable and never stops a listing.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from jobq.job import Job, JobOwner, JobState
from jobq.job_reading import hash_command, moment_of
from jobq.keys import Keys
from jobq.replies import as_text
from jobq.rq_bridge import job_from_fields
from jobq.steps import Batch, Plan
from jobq.tags import names

SCAN_LIMIT = 10_000
"""Jobs that one page looks at, at most; a page that found fewer than asked for then carries a cursor."""

_CHUNK = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a listing.

    Attributes:
        items: Newest first, where the container knows the age; scheduled jobs soonest first.
        cursor: Pass it on to get the next page, with the same filter. None: this was the last.
        unreadable: Ids whose hash, and names of containers that, have the wrong type.
    """

    items: list[T]
    cursor: str | None = None
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a listing shows; None means any.

    Attributes:
        error: An error fingerprint, or the beginning of one.
        since: Only jobs that ended, or if they have not, were created, at or after this moment.
        before: Only those that did so before this moment.
    """

    states: tuple[JobState, ...] = tuple(JobState)
    queues: tuple[str, ...]
    task: str | None = None
    error: str | None = None
    tag: str | None = None
    correlation_id: str | None = None
    since: datetime | None = None
    before: datetime | None = None

    @property
    def by_id_alone(self) -> bool:
        """Whether being in the container is enough, so that no hash needs to be read."""
        asked = (self.task, self.error, self.tag, self.correlation_id, self.since, self.before)
        shared = ({JobState.SCHEDULED, JobState.RETRYING}, {JobState.DEFERRED, JobState.PARKED})
        whole = all(len(pair & {*self.states}) != 1 for pair in shared)
        return whole and all(each is None for each in asked)

    def takes(self, job: Job) -> bool:
        """Whether the job passes."""
        if job.state not in self.states or job.queue not in self.queues:
            return False
        if self.task is not None and job.task != self.task:
            return False
        if self.error is not None and not (job.error_fingerprint or "").startswith(self.error):
            return False
        if self.tag is not None and self.tag not in job.tags:
            return False
        if self.correlation_id is not None and self.correlation_id != job.correlation_id:
            return False
        moment = moment_of(job)
        if self.before is not None and (moment is None or moment >= self.before):
            return False
        return self.since is None or moment is None or moment >= self.since

    def digest(self) -> str:
        """Names the filter in a cursor, so that a cursor cannot be used with another filter."""
        found_by = (self.tag, self.correlation_id)
        text = repr((self.states, self.queues, self.task, self.error, *found_by, self.since, self.before))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def since_moment(since: datetime | timedelta | None, now: datetime) -> datetime | None:
    """A moment from a moment or from how long ago it was.

    Raises:
        ValueError: A naive datetime.
    """
    if since is None:
        return None
    if isinstance(since, timedelta):
        return now - since
    if since.tzinfo is None:
        raise ValueError("since needs a time zone: datetime.now(UTC), for example")
    return since


def states_of(state: JobState | str | Iterable[JobState | str] | None) -> tuple[JobState, ...]:
    """One state, several, or all of them for None.

    Raises:
        ValueError: A word that is no state.
    """
    if state is None:
        return tuple(JobState)
    words = [state] if isinstance(state, str) else list(state)
    known = {str(each) for each in JobState}
    for word in words:
        if str(word) not in known:
            raise ValueError(f"unknown state {str(word)!r}; it is one of {', '.join(sorted(known))}")
    return tuple(JobState(word) for word in words)


# --------------------------------------------------------------------------- containers


@dataclass(slots=True)
class _Container:
    """One key that holds ids, read from ``offset`` on."""

    queue: str
    kind: str
    key: str
    offset: int
    ended: bool = False
    ready: list[tuple[str, Job | None]] = field(default_factory=list)

    def command(self, count: int = _CHUNK) -> tuple[Any, ...]:
        """The command that reads the next ``count`` ids."""
        first, last = self.offset, self.offset + count - 1
        if self.kind == "list":  # the newest is at the right
            return ("LRANGE", self.key, -last - 1, -first - 1)
        if self.kind == "due":
            return ("ZRANGE", self.key, first, last, "WITHSCORES")
        return ("ZREVRANGE", self.key, first, last, "WITHSCORES")

    def ids(self, reply: Any) -> list[tuple[str, float]]:
        """Ids with their scores, in the order of the listing."""
        if isinstance(reply, Exception) or not reply:
            return []
        if self.kind == "list":
            return [(as_text(member), 0.0) for member in reversed(reply)]
        return [(as_text(member).partition(":")[0], float(score)) for member, score in scored(reply)]


def scored(reply: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Members with scores, from RESP3's pairs or RESP2's flat list."""
    if reply and isinstance(reply[0], list | tuple):
        return [(member, score) for member, score in reply]
    return list(zip(reply[::2], reply[1::2], strict=True))


_KINDS = {
    JobState.SCHEDULED: "due",
    JobState.RETRYING: "due",
    JobState.QUEUED: "list",
    JobState.RUNNING: "set",
    JobState.DEFERRED: "set",
    JobState.PARKED: "set",
    JobState.SUCCEEDED: "set",
    JobState.DEAD: "set",
    JobState.CANCELLED: "set",
}


def container_key(keys: Keys, queue: str, state: JobState) -> str:
    """The key that holds the ids of a queue's jobs in this state."""
    match state:
        case JobState.SCHEDULED | JobState.RETRYING:
            return keys.scheduled(queue)
        case JobState.QUEUED:
            return keys.queue(queue)
        case JobState.RUNNING:
            return keys.wip(queue)
        case JobState.DEFERRED | JobState.PARKED:
            return keys.deferred(queue)
        case JobState.SUCCEEDED:
            return keys.finished(queue)
        case JobState.DEAD:
            return keys.failed(queue)
        case JobState.CANCELLED:
            return keys.canceled(queue)


def _containers(keys: Keys, wanted: JobFilter, offsets: Sequence[int]) -> list[_Container]:
    made: dict[str, _Container] = {}
    tags = () if wanted.tag is None else (wanted.tag,)
    # Of all queues and states: these name far fewer.
    for key in names(keys, tags, wanted.correlation_id)[-1:]:
        made[key] = _Container("", "named", key, 0)
    for queue in () if made else wanted.queues:
        for state in wanted.states:
            key = container_key(keys, queue, state)
            if key not in made:
                made[key] = _Container(queue, _KINDS[state], key, 0)
    containers = list(made.values())
    for container, offset in zip(containers, offsets, strict=False):
        container.offset, container.ended = max(offset, 0), offset < 0
    return containers


# --------------------------------------------------------------------------- pages


def jobs_plan(
    keys: Keys, wanted: JobFilter, *, limit: int, cursor: str | None, owner: JobOwner | None
) -> Plan[Page[Job]]:
    """A page of jobs.

    Each container is read in its own order, and the containers are merged by age. Jobs that move while a
    listing goes on may be shown twice or missed; nothing is locked.

    Raises:
        ValueError: The cursor is damaged, or belongs to another filter; or ``limit`` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    containers = _containers(keys, wanted, decode_cursor(cursor, wanted.digest()))
    items: list[Job] = []
    unreadable: list[str] = []
    scanned = 0
    while True:
        empty = [each for each in containers if not each.ended and not each.ready]
        if empty:
            if scanned >= SCAN_LIMIT:
                break
            scanned += yield from _fill(keys, empty, owner)
        live = [each for each in containers if each.ready]
        if not live or len(items) >= limit:
            break
        chosen = min(live, key=_rank)
        job_id, job = chosen.ready.pop(0)
        chosen.offset += 1
        if job is None:
            unreadable.append(job_id)
        elif job.id and wanted.takes(job):
            items.append(job)
    done = all(each.ended and not each.ready for each in containers)
    offsets = [-1 if each.ended and not each.ready else each.offset for each in containers]
    return Page(items, None if done else encode_cursor(offsets, wanted.digest()), tuple(unreadable))


def ids_plan(keys: Keys, wanted: JobFilter, limit: int | None = None) -> Plan[list[str]]:
    """Ids of the jobs that a filter chooses, once each, as a listing orders them; at most ``limit``.

    All are collected before anything is done to the first: that would take it out of the very list that is read.
    """
    if wanted.by_id_alone:
        return (yield from _container_ids(keys, wanted, limit))
    ids: dict[str, None] = {}
    cursor: str | None = None
    while limit is None or len(ids) < limit:
        room = 1_000 if limit is None else min(1_000, limit - len(ids))
        page = yield from jobs_plan(keys, wanted, limit=room, cursor=cursor, owner=None)
        ids |= dict.fromkeys(job.id for job in page.items)
        cursor = page.cursor
        if cursor is None:
            break
    return list(ids)


def _container_ids(keys: Keys, wanted: JobFilter, limit: int | None) -> Plan[list[str]]:
    """All ids in the containers of a filter that needs no hash, newest first within each queue."""
    ids: dict[str, None] = {}
    for container in _containers(keys, wanted, ()):
        while not container.ended and (limit is None or len(ids) < limit):
            reply = (yield Batch((container.command(1_000),)))[0]
            found = [job_id for job_id, _ in container.ids(reply)]
            container.offset += len(found)
            container.ended = len(found) < 1_000
            ids |= dict.fromkeys(found)
    return list(ids)[:limit]


_GONE = Job(id="", task="", queue="", state=JobState.CANCELLED)


def _fill(keys: Keys, containers: Sequence[_Container], owner: JobOwner | None) -> Plan[int]:
    """Read the next chunk of each container, ids first and then all their hashes, in two round trips."""
    replies = yield Batch(tuple(each.command() for each in containers))
    found: list[tuple[_Container, str, float]] = []
    for container, reply in zip(containers, replies, strict=True):
        ids = container.ids(reply)
        if isinstance(reply, Exception):  # the container itself has the wrong type: say so, once
            container.ready.append((container.key, None))
        container.ended = len(ids) < _CHUNK
        found += [(container, job_id, score) for job_id, score in ids]
    if not found:
        return 0
    hashes = yield Batch(tuple(hash_command(keys, job_id) for _, job_id, _ in found))
    gone: list[tuple[Any, ...]] = []
    delayed: list[tuple[str, tuple[Any, ...]]] = []
    for (container, job_id, score), values in zip(found, hashes, strict=True):
        if isinstance(values, Exception):
            container.ready.append((job_id, None))
            continue
        due = score * 1000 if container.kind == "due" else None
        job = job_from_fields(job_id, values, due_ms=due, owner=owner)
        if container.kind != "named":
            container.ready.append((job_id, job or _GONE))
        elif job is None:
            gone.append(("ZREM", container.key, job_id))  # nobody else does; the listing goes on behind it
        else:
            container.ready.append((job_id, job))
            if job.state in (JobState.SCHEDULED, JobState.RETRYING):
                delayed.append((job_id, ("ZSCORE", keys.scheduled(job.queue), job_id)))
    if gone or delayed:
        scores = yield Batch((*(command for _, command in delayed), *gone))
        _note_due(containers, dict(zip((job_id for job_id, _ in delayed), scores, strict=False)))
    return len(found)


def _note_due(containers: Sequence[_Container], scores: Mapping[str, Any]) -> None:
    """When the jobs that a tag or a correlation id has named are due, which its own set does not say."""
    for container in containers:
        for place, (job_id, job) in enumerate(container.ready):
            score = scores.get(job_id)
            if job is not None and isinstance(score, bytes | float | int):
                due = datetime.fromtimestamp(float(score), tz=UTC)
                container.ready[place] = job_id, replace(job, due_at=due)


def _rank(container: _Container) -> float:
    job = container.ready[0][1]
    if job is None or not job.id:
        return float("-inf")  # get what cannot be shown out of the way
    moment = moment_of(job)
    return -moment.timestamp() if moment else float("inf")


def encode_cursor(offsets: Sequence[int], digest: str) -> str:
    """An opaque text for where a listing stopped."""
    return (
        urlsafe_b64encode(json.dumps([digest, *offsets], separators=(",", ":")).encode()).decode().rstrip("=")
    )


def decode_cursor(cursor: str | None, digest: str) -> list[int]:
    """The offsets of a cursor; empty for None.

    Raises:
        ValueError: It is damaged, or was made for another filter.
    """
    if not cursor:
        return []
    try:
        made_for, *offsets = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        numbers = [int(offset) for offset in offsets]
    except (ValueError, TypeError) as error:
        raise ValueError(f"not a cursor: {cursor!r}") from error
    if made_for != digest:
        raise ValueError("this cursor belongs to another filter: start again without a cursor")
    return numbers
