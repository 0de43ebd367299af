"""``client.dead_letters``, sync and async."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from jobq.client_parts import AsyncRun, Run, Since
from jobq.control import BulkReport, Progress, nobody, replay_plan
from jobq.dead_letters import DeadGroup, DeadLetter, ReplayReport, get_plan
from jobq.editing import Draft, Editor
from jobq.job import Job, JobState
from jobq.listing import JobFilter, Page
from jobq.plans import Plans
from jobq.steps import Plan
from jobq.units import in_seconds

T = TypeVar("T")
Parts: TypeAlias = Sequence[tuple[T, Sequence[str]]]
Groups: TypeAlias = list[DeadGroup]  # inside a class with a method `list`, the name means the method
Ids: TypeAlias = list[str]


def _dead_filter(
    plans: Plans,
    queue: str | Iterable[str] | None,
    task: str | None,
    error: str | None,
    since: Since,
    older_than: float | timedelta | None = None,
) -> Plan[JobFilter]:
    before = None if older_than is None else timedelta(seconds=in_seconds(older_than))
    return plans.wanted(
        state=JobState.DEAD, queue=queue, task=task, error=error, tag=None, since=since, before=before
    )


def _one_way(ids: Sequence[str] | None, *filters: object) -> None:
    if ids is not None and any(each is not None for each in filters):
        raise ValueError("give ids or a filter, not both")


class DeadLetters:
    """The dead letters."""

    def __init__(
        self,
        plans: Plans,
        run: Run,
        editor: Editor,
        serving: Callable[[str | Iterable[str] | None], DeadLetters],
        holders: Callable[[Sequence[str]], Parts[DeadLetters]],
    ) -> None:
        self.plans = plans
        self.run = run
        self.editor = editor
        self._serving = serving
        self._holders = holders

    def list(
        self,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[DeadLetter]:
        """A page of dead letters, newest first.

        Args:
            error: An error fingerprint, or the beginning of one.
            since: A moment, or how long ago.
            cursor: From the page before, with the same filter.
        Raises:
            ValueError: The cursor belongs to another filter.
        """
        there = self._serving(queue)
        return there.run(
            there.plans.dead(_dead_filter(there.plans, queue, task, error, since), limit, cursor)
        )

    def get(self, job_id: str) -> DeadLetter:
        """One dead letter, with its history and traceback.

        Raises:
            JobNotFoundError: There is no such job.
            ConflictError: It is not dead.
        """
        there = self._holder(job_id)
        return there.run(get_plan(there.plans.keys, job_id, there.plans.owner))

    def count(self, queue: str | None = None) -> int:
        """How many there are, in one queue or in all."""
        there = self._serving(queue)
        counts = there.run(there.plans.dead_count())
        return sum(counts.values()) if queue is None else counts.get(queue, 0)

    def by_task(
        self,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
    ) -> dict[str, int]:
        """How many there are of each task, the most first: counted by server-side steps of 1,000."""
        there = self._serving(queue)
        return there.run(there.plans.dead_by_task(_dead_filter(there.plans, queue, task, error, since)))

    def ids(
        self,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
        limit: int | None = None,
    ) -> Ids:
        """Ids of those that the filter chooses, at most ``limit`` of them: the newest, then newest first."""
        there = self._serving(queue)
        return there.run(there.plans.dead_ids(_dead_filter(there.plans, queue, task, error, since), limit))

    def groups(
        self,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
    ) -> Groups:
        """Dead letters by what went wrong, the largest group first: exact, read by server-side steps of 1,000."""
        there = self._serving(queue)
        return there.run(there.plans.dead_groups(_dead_filter(there.plans, queue, task, error, since)))

    def replay(
        self,
        ids: Sequence[str] | None = None,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
        limit: int | None = None,
        rate: float | None = None,
        canary: int = 0,
        canary_timeout: float | timedelta = 300,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> ReplayReport:
        """Enqueue dead letters again, with all their attempts before them.

        Args:
            ids: These; None: those that the filter chooses, all of them without a filter. Newest first.
            limit: At most so many.
            rate: Jobs a second; None: as fast as Redis goes.
            canary: So many first. Unless each of them succeeds at its first attempt, the others stay dead.
            canary_timeout: Seconds or timedelta to wait for those.
            dry_run: Only count.
            progress: Called with the number of further jobs dealt with.
        Raises:
            ValueError: Both ids and a filter, or a rate that is not above 0.
        """
        _one_way(ids, queue, task, error, since)
        if ids is None:
            there = self._serving(queue)
            exact = dry_run or canary > 0 or limit is not None
            wanted = _dead_filter(there.plans, queue, task, error, since)
            chosen = there.run(there.plans.dead_ids(wanted, limit, there=exact))
            parts: Parts[DeadLetters] = [(there, chosen)]
        else:
            chosen = list(dict.fromkeys(ids))[:limit]
            parts = self._holders(chosen)
        if dry_run:
            return ReplayReport(matched=len(chosen), dry_run=True)
        report, wait_s = ReplayReport(), in_seconds(canary_timeout)
        for there, part in parts:
            report.merge(
                there.run(
                    replay_plan(there.plans.keys, part, rate, canary, wait_s, progress, named=ids is not None)
                )
            )
        return report

    def draft(self, job_id: str) -> Draft:
        """A dead letter's params, secrets masked, for :meth:`edit`.

        Raises:
            JobNotFoundError: There is no such job.
            ConflictError: It is not dead.
            CodecError: Its payload cannot be verified or read.
            UnknownTaskError: The application that is loaded here does not have its task.
        """
        there = self._holder(job_id)
        return there.run(there.editor.draft(job_id))

    def edit(self, job_id: str, changes: Mapping[str, Any], *, whole: bool = False) -> Job:
        """Replay a dead letter with other params, which its task has validated, signed for the same id.

        Args:
            changes: New values by name; a secret that still reads as the draft shows it stays as it is.
            whole: They are all there are: a param that is missing is dropped.
        Raises:
            PayloadError: The task does not take these params; nothing was changed.
            ConflictError: It is not dead, its dedup key is held, or a changed param is a part of its dedup key or of
                its limits' keys.
        """
        there = self._holder(job_id)
        return there.run(there.editor.replay(job_id, changes, whole=whole))

    def purge(
        self,
        older_than: float | timedelta,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> BulkReport:
        """Delete dead letters that died so long ago, seconds or timedelta, for good."""
        there = self._serving(queue)
        return there.run(
            there.plans.purge(queue, task, error, in_seconds(older_than), rate, dry_run, progress)
        )

    def export(
        self,
        write: Callable[[DeadLetter], object],
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
        limit: int | None = None,
    ) -> int:
        """Hand every dead letter that the filter chooses to ``write``, newest first; how many there were."""
        there = self._serving(queue)
        return there.run(
            there.plans.each_dead(_dead_filter(there.plans, queue, task, error, since), write, limit)
        )

    def archive(
        self,
        path: str | PathLike[str],
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
        older_than: float | timedelta | None = None,
        limit: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> BulkReport:
        """Move the dead letters that the filter chooses, all of them without one, to the end of a file.

        Each leaves Redis once its line is on disk, so that a crash loses none; archiving into the same file again
        doubles none. The file is readable by its owner only, and holds payloads as Redis does: secret params sealed,
        if there is a key. ``failed`` names those that died again meanwhile, which stay.

        Args:
            older_than: Only those that died so long ago, seconds or timedelta.
        Raises:
            OSError: The file cannot be read or written; nothing more was taken out of Redis.
            ValueError: It is there, and no archive.
            ConflictError: Somebody else is archiving into it.
        """
        there = self._serving(queue)
        wanted = _dead_filter(there.plans, queue, task, error, since, older_than)
        return there.run(there.plans.archive(wanted, Path(path), limit, rate, dry_run, progress))

    def restore(
        self,
        path: str | PathLike[str],
        ids: Sequence[str] | None = None,
        *,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> BulkReport:
        """Put dead letters of an archive back, dead as they were; :meth:`replay` then runs them.

        They are kept as long as if they had died now. The file stays as it is. ``failed`` names those of whose id
        there is a job.

        Args:
            ids: These; None: all.
        Raises:
            OSError: The file cannot be read.
            ValueError: It is no archive.
            JobNotFoundError: One of the ids is not in it; nothing was restored.
        """
        there = self._serving(None)
        return there.run(there.plans.restore(Path(path), ids, dry_run, progress))

    def _holder(self, job_id: str) -> DeadLetters:
        return next(there for there, part in self._holders([job_id]) if part)


class AsyncDeadLetters:
    """Awaitable :class:`DeadLetters`."""

    def __init__(
        self,
        plans: Plans,
        run: AsyncRun,
        editor: Editor,
        serving: Callable[[str | Iterable[str] | None], AsyncDeadLetters],
        holders: Callable[[Sequence[str]], Awaitable[Parts[AsyncDeadLetters]]],
    ) -> None:
        self.plans = plans
        self.run = run
        self.editor = editor
        self._serving = serving
        self._holders = holders

    async def list(
        self,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[DeadLetter]:
        """As :meth:`DeadLetters.list`."""
        there = self._serving(queue)
        return await there.run(
            there.plans.dead(_dead_filter(there.plans, queue, task, error, since), limit, cursor)
        )

    async def get(self, job_id: str) -> DeadLetter:
        """As :meth:`DeadLetters.get`."""
        there = await self._holder(job_id)
        return await there.run(get_plan(there.plans.keys, job_id, there.plans.owner))

    async def count(self, queue: str | None = None) -> int:
        """As :meth:`DeadLetters.count`."""
        there = self._serving(queue)
        counts = await there.run(there.plans.dead_count())
        return sum(counts.values()) if queue is None else counts.get(queue, 0)

    async def by_task(
        self,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
    ) -> dict[str, int]:
        """As :meth:`DeadLetters.by_task`."""
        there = self._serving(queue)
        return await there.run(there.plans.dead_by_task(_dead_filter(there.plans, queue, task, error, since)))

    async def ids(
        self,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
        limit: int | None = None,
    ) -> Ids:
        """As :meth:`DeadLetters.ids`."""
        there = self._serving(queue)
        return await there.run(
            there.plans.dead_ids(_dead_filter(there.plans, queue, task, error, since), limit)
        )

    async def groups(
        self,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
    ) -> Groups:
        """As :meth:`DeadLetters.groups`."""
        there = self._serving(queue)
        return await there.run(there.plans.dead_groups(_dead_filter(there.plans, queue, task, error, since)))

    async def replay(
        self,
        ids: Sequence[str] | None = None,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
        limit: int | None = None,
        rate: float | None = None,
        canary: int = 0,
        canary_timeout: float | timedelta = 300,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> ReplayReport:
        """As :meth:`DeadLetters.replay`."""
        _one_way(ids, queue, task, error, since)
        if ids is None:
            there = self._serving(queue)
            exact = dry_run or canary > 0 or limit is not None
            wanted = _dead_filter(there.plans, queue, task, error, since)
            chosen = await there.run(there.plans.dead_ids(wanted, limit, there=exact))
            parts: Parts[AsyncDeadLetters] = [(there, chosen)]
        else:
            chosen = list(dict.fromkeys(ids))[:limit]
            parts = await self._holders(chosen)
        if dry_run:
            return ReplayReport(matched=len(chosen), dry_run=True)
        report, wait_s = ReplayReport(), in_seconds(canary_timeout)
        for there, part in parts:
            report.merge(
                await there.run(
                    replay_plan(there.plans.keys, part, rate, canary, wait_s, progress, named=ids is not None)
                )
            )
        return report

    async def draft(self, job_id: str) -> Draft:
        """As :meth:`DeadLetters.draft`."""
        there = await self._holder(job_id)
        return await there.run(there.editor.draft(job_id))

    async def edit(self, job_id: str, changes: Mapping[str, Any], *, whole: bool = False) -> Job:
        """As :meth:`DeadLetters.edit`."""
        there = await self._holder(job_id)
        return await there.run(there.editor.replay(job_id, changes, whole=whole))

    async def purge(
        self,
        older_than: float | timedelta,
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> BulkReport:
        """As :meth:`DeadLetters.purge`."""
        there = self._serving(queue)
        return await there.run(
            there.plans.purge(queue, task, error, in_seconds(older_than), rate, dry_run, progress)
        )

    async def export(
        self,
        write: Callable[[DeadLetter], object],
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
        limit: int | None = None,
    ) -> int:
        """As :meth:`DeadLetters.export`."""
        there = self._serving(queue)
        return await there.run(
            there.plans.each_dead(_dead_filter(there.plans, queue, task, error, since), write, limit)
        )

    async def archive(
        self,
        path: str | PathLike[str],
        *,
        queue: str | Iterable[str] | None = None,
        task: str | None = None,
        error: str | None = None,
        since: Since = None,
        older_than: float | timedelta | None = None,
        limit: int | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> BulkReport:
        """As :meth:`DeadLetters.archive`; the event loop waits for the disk, up to 100 dead letters at a time."""
        there = self._serving(queue)
        wanted = _dead_filter(there.plans, queue, task, error, since, older_than)
        return await there.run(there.plans.archive(wanted, Path(path), limit, rate, dry_run, progress))

    async def restore(
        self,
        path: str | PathLike[str],
        ids: Sequence[str] | None = None,
        *,
        dry_run: bool = False,
        progress: Progress = nobody,
    ) -> BulkReport:
        """As :meth:`DeadLetters.restore`."""
        there = self._serving(None)
        return await there.run(there.plans.restore(Path(path), ids, dry_run, progress))

    async def _holder(self, job_id: str) -> AsyncDeadLetters:
        return next(there for there, part in await self._holders([job_id]) if part)
