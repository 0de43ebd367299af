"""The steps behind a client's methods, as plans that either kind of client runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, cast

from jobq import archive, calls, control, dead_letters, events
from jobq.control import BulkReport, Progress
from jobq.dead_letters import DeadLetter, replay_conflict
from jobq.errors import ConflictError, JobNotFoundError
from jobq.fleet import QueueInfo, queue_names_plan, queues_plan
from jobq.job import VERB_STATES, Job, JobOwner, JobState, Verb
from jobq.job_reading import job_plan, not_found, valid_id
from jobq.keys import Keys
from jobq.limits import Keep, QueueLimits, Rate
from jobq.listing import JobFilter, Page, ids_plan, jobs_plan, since_moment, states_of
from jobq.queues import KEEP_CANCELLED, QueueSpec
from jobq.steps import MOST_JOBS, Batch, Plan
from jobq.units import in_seconds, redis_ms

CancelAnswer = Literal["cancelled", "requested"]


_REMEDIES: Mapping[Verb, str] = {
    "cancel": "it has ended already",
    "promote": "it waits for no time",
    "delete": "cancel it first",
}


def refusal(verb: Verb, job_id: str, word: str) -> ConflictError | JobNotFoundError:
    """The error for a job that a verb cannot be done to, by the word that says why."""
    if word == "gone":
        return not_found(job_id)
    if verb == "retry":
        return replay_conflict(job_id, word)
    return ConflictError(f"job {job_id} is {word}: {_REMEDIES[verb]}", job_id=job_id)


def _refuse(verb: Verb, job_id: str, word: str, fine: Sequence[str]) -> None:
    if word not in fine:
        raise refusal(verb, job_id, word)


@dataclass(frozen=True, slots=True)
class Preview:
    """What a verb would do to a job, as it stands now.

    Attributes:
        job: None: there is none.
        error: What the verb would raise; None: it would be done.
    """

    id: str
    job: Job | None
    error: ConflictError | JobNotFoundError | None


@dataclass(frozen=True, slots=True)
class Plans:
    """What a client can do, given where its keys are.

    Attributes:
        specs: The queues that the settings name.
        owner: What the methods of the jobs use.
        now: The machine's clock, for ``since``; a test passes its own.
    """

    keys: Keys
    specs: Mapping[str, QueueSpec]
    owner: JobOwner | None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    # ------------------------------------------------------------------ one job

    def get(self, job_id: str) -> Plan[Job]:
        return job_plan(self.keys, job_id, self.owner)

    def cancel(self, job_id: str) -> Plan[CancelAnswer]:
        word: str = yield calls.cancel(self.keys, valid_id(job_id), keep_s=self._keep_cancelled_s())
        _refuse("cancel", job_id, word, ("cancelled", "requested"))
        if word == "cancelled":
            events.emit("job.cancelled", job_id=job_id)
        return cast("CancelAnswer", word)

    def _keep_cancelled_s(self) -> int:
        """When Redis deletes a cancelled job by itself; a worker does sooner where its queue says so."""
        return max((spec.keep_cancelled.age_s for spec in self.specs.values()), default=KEEP_CANCELLED.age_s)

    def withdraw(self, job_id: str) -> Plan[str]:
        word: str = yield calls.withdraw(self.keys, valid_id(job_id))
        if word == "withdrawn":
            events.emit("job.removed", job_id=job_id)
        return word

    def retry(self, job_id: str) -> Plan[Job]:
        state = (yield from self.get(job_id)).state
        if state not in (JobState.DEAD, JobState.CANCELLED):
            # The script answers "queued" for a queued job too: it may be what its own lost reply left behind.
            raise refusal("retry", job_id, state)
        (word,) = yield calls.replay(self.keys, [job_id])
        _refuse("retry", job_id, word, ("queued",))
        return (yield from self.get(job_id))

    def promote(self, job_id: str) -> Plan[Job]:
        state = (yield from self.get(job_id)).state
        if state not in VERB_STATES["promote"]:
            # As for a retry: the script answers "queued" for a queued job, too.
            raise refusal("promote", job_id, state)
        (word,) = yield control.hasten(self.keys, [job_id])
        _refuse("promote", job_id, word, ("queued",))
        return (yield from self.get(job_id))

    def delete(self, job_id: str) -> Plan[None]:
        word: str = yield calls.delete(self.keys, valid_id(job_id))
        _refuse("delete", job_id, word, ("deleted",))
        events.emit("job.removed", job_id=job_id)

    def preview(self, verb: Verb, ids: Sequence[str]) -> Plan[list[Preview]]:
        found: list[Preview] = []
        chosen = list(dict.fromkeys(ids))
        for start in range(0, len(chosen), MOST_JOBS):
            part = chosen[start : start + MOST_JOBS]
            looks = yield from control.preview_plan(self.keys, verb, part, self.owner)
            found += [
                Preview(job_id, job, refusal(verb, job_id, word) if word else None)
                for job_id, (job, word) in zip(part, looks, strict=True)
            ]
        return found

    def bulk(
        self,
        verb: Verb,
        ids: Sequence[str],
        states: JobState | str | Iterable[JobState | str] | None,
        rate: float | None,
        progress: Progress,
    ) -> Plan[BulkReport]:
        only = () if states is None else states_of(states)
        keep_s = self._keep_cancelled_s()
        return control.bulk_plan(
            self.keys, verb, ids, states=only, rate=rate, progress=progress, keep_cancelled_s=keep_s
        )

    # ------------------------------------------------------------------ listings

    def wanted(
        self,
        *,
        state: JobState | str | Iterable[JobState | str] | None,
        queue: str | Iterable[str] | None,
        task: str | None,
        error: str | None,
        tag: str | None,
        since: datetime | timedelta | None,
        before: datetime | timedelta | None = None,
        correlation_id: str | None = None,
    ) -> Plan[JobFilter]:
        """The filter of a listing; asks Redis for the queues when none is named."""
        now = self.now()
        states, moment, end = states_of(state), since_moment(since, now), since_moment(before, now)
        if queue is None:
            queues = yield from queue_names_plan(self.keys, self.specs)
        else:
            queues = (queue,) if isinstance(queue, str) else tuple(queue)
        return JobFilter(
            states=states, queues=queues, task=task, error=error, tag=tag, correlation_id=correlation_id,
            since=moment, before=end,
        )  # fmt: skip

    def job_ids(self, wanted: Plan[JobFilter], limit: int | None) -> Plan[list[str]]:
        return (yield from ids_plan(self.keys, (yield from wanted), limit))

    def jobs(self, wanted: Plan[JobFilter], limit: int, cursor: str | None) -> Plan[Page[Job]]:
        chosen = yield from wanted
        return (yield from jobs_plan(self.keys, chosen, limit=limit, cursor=cursor, owner=self.owner))

    def dead(self, wanted: Plan[JobFilter], limit: int, cursor: str | None) -> Plan[Page[DeadLetter]]:
        chosen = yield from wanted
        return (
            yield from dead_letters.list_plan(self.keys, chosen, limit=limit, cursor=cursor, owner=self.owner)
        )

    def dead_count(self) -> Plan[dict[str, int]]:
        queues = yield from queue_names_plan(self.keys, self.specs)
        return (yield from dead_letters.count_plan(self.keys, queues))

    def dead_groups(self, wanted: Plan[JobFilter]) -> Plan[list[dead_letters.DeadGroup]]:
        return (yield from dead_letters.groups_plan(self.keys, (yield from wanted)))

    def dead_by_task(self, wanted: Plan[JobFilter]) -> Plan[dict[str, int]]:
        return (yield from dead_letters.by_task_plan(self.keys, (yield from wanted)))

    def dead_ids(self, wanted: Plan[JobFilter], limit: int | None, *, there: bool = True) -> Plan[list[str]]:
        # One whose hash has expired stays in the registry until a worker prunes it. To look costs as much as a replay.
        return (yield from ids_plan(self.keys, (yield from wanted), limit, there=there))

    def purge(
        self,
        queue: str | Iterable[str] | None,
        task: str | None,
        error: str | None,
        older_than_s: float,
        rate: float | None,
        dry_run: bool,
        progress: Progress,
    ) -> Plan[BulkReport]:
        age = timedelta(seconds=older_than_s)
        dead = self.wanted(
            state=JobState.DEAD, queue=queue, task=task, error=error, tag=None, since=None, before=age
        )
        ids = yield from self.job_ids(dead, None)
        if dry_run:
            return BulkReport.would(ids)
        return (yield from self.bulk("delete", ids, JobState.DEAD, rate, progress))

    def archive(
        self,
        wanted: Plan[JobFilter],
        path: Path,
        limit: int | None,
        rate: float | None,
        dry_run: bool,
        progress: Progress,
    ) -> Plan[BulkReport]:
        ids = yield from self.job_ids(wanted, limit)
        if dry_run or not ids:
            return BulkReport.would(ids) if dry_run else BulkReport()
        return (yield from archive.archive_plan(self.keys, ids, path, rate=rate, progress=progress))

    def restore(
        self, path: Path, ids: Sequence[str] | None, dry_run: bool, progress: Progress
    ) -> Plan[BulkReport]:
        # The last line of an id counts: it died again after an earlier one was restored and replayed.
        lines = {line.id: line for line in archive.read_archive(path)}
        missing = [job_id for job_id in ids or () if job_id not in lines]
        if missing:
            raise JobNotFoundError(f"no job {missing[0]} in {path}", job_id=missing[0])
        chosen = list(lines.values()) if ids is None else [lines[job_id] for job_id in dict.fromkeys(ids)]
        if dry_run:
            return BulkReport.would([letter.id for letter in chosen])
        return (yield from archive.restore_plan(self.keys, self.specs, chosen, progress=progress))

    def each_dead(
        self, wanted: Plan[JobFilter], write: Callable[[DeadLetter], object], limit: int | None
    ) -> Plan[int]:
        chosen, seen, cursor = (yield from wanted), 0, None
        while limit is None or seen < limit:
            room = 200 if limit is None else min(200, limit - seen)
            page = yield from dead_letters.list_plan(
                self.keys, chosen, limit=room, cursor=cursor, owner=self.owner
            )
            for letter in page.items:
                write(letter)
            seen, cursor = seen + len(page.items), page.cursor
            if cursor is None:
                break
        return seen

    # ------------------------------------------------------------------ queues

    def queues(self) -> Plan[list[QueueInfo]]:
        return queues_plan(self.keys, self.specs)

    def queue(self, name: str) -> Plan[QueueInfo]:
        known = yield from queue_names_plan(self.keys, self.specs)
        if name not in known:
            raise JobNotFoundError(f"no queue {name!r}; there are: {', '.join(known)}", queue=name)
        return (yield from queues_plan(self.keys, self.specs, only=name))[0]

    def pause(
        self, name: str, for_: float | timedelta | None, reason: str | None, by: str
    ) -> Plan[QueueInfo]:
        length = _length(for_, "a pause")
        yield from self.queue(name)
        until_ms = yield from _end_plan(length)
        yield calls.pause(self.keys, name, until_ms, by, reason or "")
        events.emit("queue.paused", queue=name, reason=reason or "")
        return (yield from self.queue(name))

    def limit(
        self,
        name: str,
        rate: Rate | str | Keep | None,
        concurrency: int | Keep | None,
        for_: float | timedelta | None,
        max_waiting: int | Keep | None = Keep.KEEP,
    ) -> Plan[QueueInfo]:
        now = (yield from self.queue(name)).limits
        if isinstance(rate, str):
            rate = Rate.parse(rate)
        wanted = QueueLimits(
            now.rate if isinstance(rate, Keep) else rate,
            now.concurrency if isinstance(concurrency, Keep) else concurrency,
            now.max_waiting if isinstance(max_waiting, Keep) else max_waiting,
        )
        until_ms = yield from _end_plan(_length(for_, "a limit"))
        yield calls.limit(self.keys, name, wanted.gates(name), until_ms, most=wanted.max_waiting)
        _tell_limits(name, wanted)
        return (yield from self.queue(name))

    def reset_limit(self, name: str) -> Plan[QueueInfo]:
        yield from self.queue(name)
        yield calls.limit(self.keys, name, None)
        info = yield from self.queue(name)
        _tell_limits(name, info.limits)
        return info

    def drain(self, name: str, rate: float | None, dry_run: bool, progress: Progress) -> Plan[BulkReport]:
        yield from self.queue(name)
        report = yield from control.drain_plan(self.keys, name, rate=rate, dry_run=dry_run, progress=progress)
        return self._told("queue.drained", name, report)

    def empty(self, name: str, rate: float | None, dry_run: bool, progress: Progress) -> Plan[BulkReport]:
        yield from self.queue(name)
        report = yield from control.empty_plan(self.keys, name, rate=rate, dry_run=dry_run, progress=progress)
        return self._told("queue.drained", name, report, delayed=True)

    def clean(
        self,
        name: str,
        state: JobState | str | Iterable[JobState | str],
        older_than: float | timedelta,
        limit: int | None,
        rate: float | None,
        dry_run: bool,
        progress: Progress,
    ) -> Plan[BulkReport]:
        states = states_of(state)
        wrong = [each for each in states if each in (JobState.RUNNING, JobState.QUEUED)]
        if wrong:
            remedy = "cancel it" if wrong[0] is JobState.RUNNING else "drain the queue"
            raise ValueError(f"what is {wrong[0]} is not cleaned away: {remedy}")
        yield from self.queue(name)
        age = timedelta(seconds=in_seconds(older_than))
        chosen = self.wanted(
            state=states, queue=name, task=None, error=None, tag=None, since=None, before=age
        )
        ids = yield from self.job_ids(chosen, limit)
        if dry_run:
            return BulkReport.would(ids)
        report = yield from control.bulk_plan(
            self.keys, "delete", ids, states=states, rate=rate, progress=progress
        )
        return self._told("queue.cleaned", name, report, states=",".join(states))

    def move(
        self, source: str, target: str, rate: float | None, dry_run: bool, progress: Progress
    ) -> Plan[BulkReport]:
        yield from self.queue(source)
        yield from self.queue(target)
        report = yield from control.move_plan(
            self.keys, source, target, rate=rate, dry_run=dry_run, progress=progress
        )
        return self._told("queue.drained", source, report, to=target)

    @staticmethod
    def _told(event: str, queue: str, report: BulkReport, **more: object) -> BulkReport:
        if not report.dry_run:
            events.emit(event, queue=queue, jobs=report.done, **more)
        return report

    def resume(self, name: str) -> Plan[QueueInfo]:
        yield from self.queue(name)
        yield calls.resume(self.keys, name)
        looked, found = 0, MOST_JOBS
        while found == MOST_JOBS:
            found = yield calls.lift(self.keys, name, looked)
            looked += found
        events.emit("queue.resumed", queue=name)
        return (yield from self.queue(name))


def _length(for_: float | timedelta | None, what: str) -> timedelta | None:
    """How long something holds; None: for good."""
    if for_ is None:
        return None
    length = for_ if isinstance(for_, timedelta) else timedelta(seconds=for_)
    if length <= timedelta(0):
        raise ValueError(f"{what} must be longer than 0, got {length}")
    return length


def _end_plan(length: timedelta | None) -> Plan[int]:
    """The ms since 1970 at which what begins now has ended, by Redis' clock, which it is held against; 0: never."""
    if length is None:
        return 0
    now_ms: int = yield Batch((("TIME",),), lambda replies: redis_ms(replies[0]))
    return now_ms + length // timedelta(milliseconds=1)


def _tell_limits(queue: str, limits: QueueLimits) -> None:
    events.emit(
        "queue.limited",
        queue=queue,
        rate=str(limits.rate or ""),
        concurrency=limits.concurrency,
        max_waiting=limits.max_waiting,
    )
