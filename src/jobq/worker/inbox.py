"""Where finished attempts wait for the executor's loop, and how they wake it."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from jobq.joblog import MOST_LINES, encode_line
from jobq.records import encode_progress
from jobq.units import clock_ms
from jobq.worker.attempt import Assignment, Report
from jobq.worker.slots import SlotTable

PROGRESS_EVERY_S = 0.5
"""A job's progress is sent at most this often."""


@dataclass(slots=True)
class _Log:
    """What a job has said and is not sent yet, and when the last of it was."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    sent: float = 0.0


class Inbox:
    """Takes reports from any thread; the executor's loop takes them out in batches.

    Also the sink that running tasks report to (``ContextSink``), and what writes the slot table as jobs start and
    finish (``Hooks``).

    Args:
        doubt_s: See :attr:`jobq.worker.spec.LaneSpec.doubt_s`.
    """

    def __init__(self, table: SlotTable, doubt_s: float = math.inf) -> None:
        self._table = table
        self._doubt_s = doubt_s
        self._void_before = 0.0  # what was claimed earlier may be somebody else's by now
        self._reports: deque[Report] = deque()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._asleep = False
        self._cancelled: set[str] = set()
        self._progress: dict[str, bytes] = {}
        self._sent: dict[str, float] = {}
        self._logs: dict[str, _Log] = {}
        self._lock = threading.Lock()

    # -- Hooks --------------------------------------------------------------------------------------------------

    def started(self, work: Assignment) -> bool:
        """A run begins: its record gets start and deadline.

        False: the loop has stood still for so long that the job may be given to others. Asked after the record says
        that it runs, and answered by what the supervisor goes by: its lease was kept up to here, and is from here on.
        """
        now = time.monotonic()
        work.started_at = now
        self._table.start(work.slot, now, now + work.timeout_s)
        if time.monotonic() - self._table.last_beat > self._doubt_s or work.claimed_at < self._void_before:
            work.started_at = 0.0
            self._table.unstart(work.slot)
            return False
        return True

    def postponed(self, work: Assignment, deadline: float) -> None:
        """A run may take longer, because another one has held it up."""
        self._table.start(work.slot, work.started_at, deadline)

    def finished(self, report: Report) -> None:
        """A run has ended: queue its report, and wake the loop if it sleeps."""
        if report.assignment.started_at:  # what never started must not count as interrupted
            self._table.finish(report.assignment.slot)
        self._reports.append(report)
        if self._asleep:
            self.wake()

    # -- ContextSink --------------------------------------------------------------------------------------------

    def progress(self, job_id: str, fraction: float, text: str) -> None:
        """Keep the newest report; it goes out with the loop's next turn, twice a second at most."""
        with self._lock:
            self._progress[job_id] = encode_progress(fraction, text)

    def log(self, job_id: str, text: str) -> None:
        """Keep a line; it goes out with the loop's next turn, twice a second at most, or when the job has ended."""
        self.add_line(job_id, encode_line(clock_ms(), text))

    def add_line(self, job_id: str, line: str) -> None:
        """Keep an encoded line; of too many the last."""
        with self._lock:
            self._logs.setdefault(job_id, _Log()).lines.append(line)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether somebody asked this job to stop, or its lease is lost."""
        return job_id in self._cancelled

    # -- the loop's side ----------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return bool(self._reports)

    def stood_still(self, now: float) -> bool:
        """Whether the loop turns again after so long that nothing it had claimed before may start any more."""
        if not 0 < self._table.last_beat < now - self._doubt_s:
            return False
        self._void_before = now
        return True

    def take(self, limit: int) -> list[Report]:
        """Up to ``limit`` reports, oldest first."""
        reports = self._reports
        return [reports.popleft() for _ in range(min(limit, len(reports)))]

    def put_back(self, reports: list[Report]) -> None:
        """Reports that could not be settled yet."""
        self._reports.extendleft(reversed(reports))

    def due_progress(self, now: float) -> dict[str, bytes]:
        """Progress that may be sent now, by job id."""
        if not self._progress:
            return {}
        with self._lock:
            due = {
                i: p for i, p in self._progress.items() if now - self._sent.get(i, 0.0) >= PROGRESS_EVERY_S
            }
            for job_id in due:
                del self._progress[job_id]
                self._sent[job_id] = now
        return due

    @property
    def has_lines(self) -> bool:
        """Whether any job that is not settled has said something."""
        return bool(self._logs)

    def due_lines(self, now: float, ended: Collection[str] = ()) -> dict[str, list[str]]:
        """Lines that may be sent now, by job id; of jobs that have ended all, so that their log's end is known."""
        with self._lock:
            due = {}
            for job_id, log in self._logs.items():
                if job_id in ended or (log.lines and now - log.sent >= PROGRESS_EVERY_S):
                    due[job_id] = list(log.lines)
                    log.lines.clear()
                    log.sent = now
        return due

    def put_back_lines(self, lines: Mapping[str, Sequence[str]]) -> None:
        """Lines that could not be sent yet."""
        with self._lock:
            for job_id, older in lines.items():
                log = self._logs.setdefault(job_id, _Log())
                log.lines = deque([*older, *log.lines], maxlen=MOST_LINES)

    def cancel(self, job_ids: list[str]) -> None:
        """These running jobs were asked to stop, or are somebody else's now."""
        self._cancelled.update(job_ids)

    def forget(self, job_id: str) -> None:
        """The job is settled."""
        if self._cancelled:
            self._cancelled.discard(job_id)
        if self._sent or self._progress or self._logs:
            with self._lock:
                self._logs.pop(job_id, None)
                self._sent.pop(job_id, None)
                self._progress.pop(job_id, None)

    def fileno(self) -> int:
        """Readable once :meth:`wake` was called."""
        return self._wake_r

    def prepare_sleep(self) -> bool:
        """Say that the loop is about to sleep. False: reports have arrived, so it must not."""
        self._asleep = True
        if self._reports:
            self._asleep = False
            return False
        return True

    def awake(self, *, woken: bool) -> None:
        """The loop is up again; ``woken``: because :meth:`fileno` became readable."""
        self._asleep = False
        if not woken:
            return
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)

    def wake(self) -> None:
        """Wake the loop, from any thread or signal handler."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._wake_w, b"x")
