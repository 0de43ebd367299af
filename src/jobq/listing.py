"""Listing jobs: which ones a filter takes, the containers that hold their ids, and pages that end in a cursor.

A key of the wrong type is reported as unreadable and never stops a listing.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from jobq.job import Job, JobOwner, JobState
from jobq.job_reading import hash_command, moment_of
from jobq.keys import Keys
from jobq.replies import as_text, clean_text, exact_text
from jobq.rq_bridge import JOB_FIELDS, job_from_fields, task_of
from jobq.steps import Batch, Plan
from jobq.tags import names
from jobq.units import moment

SCAN_LIMIT = 10_000
"""Jobs that one page looks at, at most; a page that found fewer than asked for then carries a cursor."""

_CHUNK = 200
_SIEVED = 1_000
_SIEVED_PER_LOOK = 10
_DESCRIPTION, _FINGERPRINT = (JOB_FIELDS.index(name) for name in ("description", "fp"))
"""Ids that are told apart by an index alone cost about so much less than jobs whose hashes are read."""

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
        return all(each is None for each in asked)

    def rules_out(self, values: Sequence[Any]) -> bool:
        """Whether a hash's task or error alone says that its job does not pass: making a job of it costs the most."""
        if self.task is not None and task_of(values[_DESCRIPTION]) != self.task:
            return True
        return self.error is not None and not clean_text(values[_FINGERPRINT]).startswith(self.error)

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
        """Names the filter in a cursor, so that a cursor cannot be used with another filter.

        Not the moments: an hour ago is another one with each page, and no matter for where the next begins.
        """
        found_by = (self.tag, self.correlation_id)
        text = repr((self.states, self.queues, self.task, self.error, *found_by))
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
    """One key that holds ids, read from ``offset`` on.

    Attributes:
        kind: ``list``, ``due``, ``set`` or ``named``; see :meth:`command`.
        others: Keys that hold those of its ids which are in another state.
        due_ms: How many ms one of its scores is, where that is when the job is due.
        name: Stands for it in a cursor; empty: its place does, as containers of this kind are always there.
        ready: Ids, their jobs, and the offset behind each.
    """

    queue: str
    kind: str
    key: str
    offset: int = 0
    others: tuple[str, ...] = ()
    due_ms: int = 1_000
    name: str = ""
    ended: bool = False
    ready: list[tuple[str, Job | None, int]] = field(default_factory=list)

    @property
    def chunk(self) -> int:
        """How many ids are read at once."""
        return _SIEVED if self.others else _CHUNK

    def command(self, count: int) -> tuple[Any, ...]:
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
            return [(exact_text(member), 0.0) for member in reversed(reply)]
        return [(exact_text(member).partition(":")[0], float(score)) for member, score in scored(reply)]


def scored(reply: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Members with scores, from RESP3's pairs or RESP2's flat list."""
    if reply and isinstance(reply[0], list | tuple):
        return [(member, score) for member, score in reply]
    return list(zip(reply[::2], reply[1::2], strict=True))


def _containers_of(
    keys: Keys, queue: str, states: Sequence[JobState], buckets: Sequence[str]
) -> Iterator[_Container]:
    """Where a queue's jobs of these states are, each container once.

    Where one registry of rq's holds two states, and one of them is asked for, our index of the other is gone by: it
    lists the state, or it tells who is not of it. So a state costs what it holds, however many jobs the other has.
    """
    asked = {*states}
    parked = (keys.blocked(queue), *(keys.bucket(queue, bucket) for bucket in buckets))
    for state in states:
        match state:
            case JobState.RETRYING if JobState.SCHEDULED not in asked:
                yield _Container(queue, "due", keys.retrying(queue), due_ms=1)
            case JobState.SCHEDULED | JobState.RETRYING:
                retries = () if JobState.RETRYING in asked else (keys.retrying(queue),)
                yield _Container(queue, "due", keys.scheduled(queue), others=retries)
            case JobState.PARKED if JobState.DEFERRED not in asked:
                for key in parked:
                    yield _Container(queue, "set", key, name=key.removeprefix(keys.n))
            case JobState.DEFERRED | JobState.PARKED:
                yield _Container(
                    queue, "set", keys.deferred(queue), others=() if JobState.PARKED in asked else parked
                )
            case JobState.QUEUED:
                yield _Container(queue, "list", keys.queue(queue))
            case JobState.RUNNING:
                yield _Container(queue, "set", keys.wip(queue))
            case JobState.SUCCEEDED:
                yield _Container(queue, "set", keys.finished(queue))
            case JobState.DEAD:
                yield _Container(queue, "set", keys.failed(queue))
            case JobState.CANCELLED:
                yield _Container(queue, "set", keys.canceled(queue))


def _containers(keys: Keys, wanted: JobFilter, cursor: str | None) -> Plan[list[_Container]]:
    """Where the jobs of a filter are, as far as a listing has read them.

    Raises:
        ValueError: The cursor is damaged, or belongs to another filter.
    """
    offsets, named = decode_cursor(cursor, wanted.digest())
    made: dict[str, _Container] = {}
    tags = () if wanted.tag is None else (wanted.tag,)
    # Of all queues and states: these name far fewer.
    for key in names(keys, tags, wanted.correlation_id)[-1:]:
        made[key] = _Container("", "named", key)
    if not made:
        buckets: dict[str, list[str]] = {}
        if (JobState.PARKED in wanted.states) != (JobState.DEFERRED in wanted.states):
            replies = yield Batch(tuple(("SMEMBERS", keys.parked(queue)) for queue in wanted.queues))
            for queue, reply in zip(wanted.queues, replies, strict=True):
                found = () if isinstance(reply, Exception) else reply
                buckets[queue] = sorted(as_text(bucket) for bucket in found)
        for queue in wanted.queues:
            for each in _containers_of(keys, queue, wanted.states, buckets.get(queue, ())):
                made.setdefault(each.key, each)
    containers = list(made.values())
    fixed = iter(offsets)
    for container in containers:
        offset = named.get(container.name, 0) if container.name else next(fixed, 0)
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
    containers = yield from _containers(keys, wanted, cursor)
    items: list[Job] = []
    unreadable: list[str] = []
    scanned = 0
    while len(items) < limit:
        empty = [each for each in containers if not each.ended and not each.ready]
        if empty:  # what it holds next may come before what the others hold
            if scanned >= SCAN_LIMIT:
                break
            scanned += yield from _fill(keys, empty, wanted, owner)
            continue
        live = [each for each in containers if each.ready]
        if not live:
            break
        chosen = min(live, key=_rank)
        job_id, job, chosen.offset = chosen.ready.pop(0)
        if job is None:
            unreadable.append(job_id)
        elif job.id and wanted.takes(job):
            items.append(job)
    done = all(each.ended and not each.ready for each in containers)
    return Page(items, None if done else encode_cursor(containers, wanted.digest()), tuple(unreadable))


def ids_plan(
    keys: Keys, wanted: JobFilter, limit: int | None = None, *, there: bool = False
) -> Plan[list[str]]:
    """Ids of the jobs that a filter chooses, once each; at most ``limit``, and then as a listing orders them.

    All are collected before anything is done to the first: that would take it out of the very list that is read.

    Args:
        there: Only of jobs that can be read, also by a filter that needs no look at them.
    """
    if wanted.by_id_alone and not there:
        return (yield from _container_ids(keys, wanted, limit))
    ids: dict[str, None] = {}
    if limit is None:  # one container after the other: nothing is read twice, or put in order
        for container in (yield from _containers(keys, wanted, None)):
            while not container.ended:
                yield from _fill(keys, [container], wanted, None)
                ids |= {i: None for i, job, _ in container.ready if job and job.id and wanted.takes(job)}
                container.offset = container.ready[-1][2] if container.ready else container.offset
                container.ready.clear()
        return list(ids)
    cursor: str | None = None
    while len(ids) < limit:
        page = yield from jobs_plan(
            keys, wanted, limit=min(1_000, limit - len(ids)), cursor=cursor, owner=None
        )
        ids |= dict.fromkeys(job.id for job in page.items)
        cursor = page.cursor
        if cursor is None:
            break
    return list(ids)


def _container_ids(keys: Keys, wanted: JobFilter, limit: int | None) -> Plan[list[str]]:
    """All ids in the containers of a filter that needs no hash, newest first within each queue."""
    ids: dict[str, None] = {}
    for container in (yield from _containers(keys, wanted, None)):
        while not container.ended and (limit is None or len(ids) < limit):
            reply = (yield Batch((container.command(_SIEVED),)))[0]
            found = container.ids(reply)
            kept = yield from _sieve(container, found)
            container.offset += len(found)
            container.ended = len(found) < _SIEVED
            ids |= dict.fromkeys(job_id for job_id, _, _ in kept)
    return list(ids)[:limit]


def _sieve(container: _Container, found: Sequence[tuple[str, float]]) -> Plan[list[tuple[str, float, int]]]:
    """Those of the next ids of a container that are of no other state, each with the offset behind it."""
    placed = [(job_id, score, at) for at, (job_id, score) in enumerate(found, container.offset + 1)]
    if not container.others or not found:
        return placed
    ids = [job_id for job_id, _ in found]
    replies = yield Batch(tuple(("ZMSCORE", other, *ids) for other in container.others))
    elsewhere = [reply for reply in replies if not isinstance(reply, Exception)]
    kept = [each for at, each in enumerate(placed) if all(reply[at] is None for reply in elsewhere)]
    if kept:  # what comes behind the last of them has been seen
        job_id, score, _ = kept.pop()
        kept.append((job_id, score, container.offset + len(found)))
    return kept


_GONE = Job(id="", task="", queue="", state=JobState.CANCELLED)


def _fill(
    keys: Keys, containers: Sequence[_Container], wanted: JobFilter, owner: JobOwner | None
) -> Plan[int]:
    """Read the next chunk of each container, ids first and then all their hashes, in two round trips."""
    replies = yield Batch(tuple(each.command(each.chunk) for each in containers))
    found: list[tuple[_Container, str, float, int]] = []
    looks = 0
    for container, reply in zip(containers, replies, strict=True):
        ids = container.ids(reply)
        if isinstance(reply, Exception):  # the container itself has the wrong type: say so, once
            container.ready.append((container.key, None, container.offset))
        container.ended = len(ids) < container.chunk
        kept = yield from _sieve(container, ids)
        if not kept:
            container.offset += len(ids)
        found += [(container, *each) for each in kept]
        looks += len(ids) // _SIEVED_PER_LOOK if container.others else 0
    if not found:
        return looks
    hashes = yield Batch(tuple(hash_command(keys, job_id) for _, job_id, _, _ in found))
    gone: list[tuple[Any, ...]] = []
    delayed: list[tuple[str, tuple[Any, ...]]] = []
    for (container, job_id, score, behind), values in zip(found, hashes, strict=True):
        if isinstance(values, Exception):
            container.ready.append((job_id, None, behind))
            continue
        if container.kind != "named" and wanted.rules_out(values):
            container.ready.append((job_id, _GONE, behind))
            continue
        due = score * container.due_ms if container.kind == "due" else None
        job = job_from_fields(job_id, values, due_ms=due, owner=owner)
        if container.kind != "named":
            container.ready.append((job_id, job or _GONE, behind))
        elif job is None:
            gone.append(("ZREM", container.key, job_id))  # nobody else does
        else:
            container.ready.append((job_id, job, behind - len(gone)))
            if job.state in (JobState.SCHEDULED, JobState.RETRYING):
                delayed.append((job_id, ("ZSCORE", keys.scheduled(job.queue), job_id)))
    if gone or delayed:
        scores = yield Batch((*(command for _, command in delayed), *gone))
        _note_due(containers, dict(zip((job_id for job_id, _ in delayed), scores, strict=False)))
    return looks + len(found)


def _note_due(containers: Sequence[_Container], scores: Mapping[str, Any]) -> None:
    """When the jobs that a tag or a correlation id has named are due, which its own set does not say."""
    for container in containers:
        for place, (job_id, job, behind) in enumerate(container.ready):
            score = scores.get(job_id)
            if job is not None and isinstance(score, bytes | float | int):
                due = moment(float(score) * 1000)
                container.ready[place] = job_id, replace(job, due_at=due), behind


def _rank(container: _Container) -> float:
    job = container.ready[0][1]
    if job is None or not job.id:
        return float("-inf")  # get what cannot be shown out of the way
    moment = moment_of(job)
    return -moment.timestamp() if moment else float("inf")


def encode_cursor(containers: Sequence[_Container], digest: str) -> str:
    """An opaque text for where a listing stopped."""
    offsets = {each.key: -1 if each.ended and not each.ready else each.offset for each in containers}
    fixed = [offsets[each.key] for each in containers if not each.name]
    named = {each.name: offsets[each.key] for each in containers if each.name and offsets[each.key]}
    text = json.dumps([digest, *fixed, *([named] if named else ())], separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, digest: str) -> tuple[list[int], dict[str, int]]:
    """The offsets of a cursor, by place and by name; none for None.

    Raises:
        ValueError: It is damaged, or was made for another filter.
    """
    if not cursor:
        return [], {}
    try:
        made_for, *offsets = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        named = offsets.pop() if offsets and isinstance(offsets[-1], dict) else {}
        numbers = [int(offset) for offset in offsets], {name: int(at) for name, at in named.items()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"not a cursor: {cursor!r}") from error
    if made_for != digest:
        raise ValueError("this cursor belongs to another filter: start again without a cursor")
    return numbers
