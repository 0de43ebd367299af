"""A job child: runs one job at a time in its main thread, in a process of its own.

It has no Redis connection: the executor hands it the claimed job over a socket, and gets the report back.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

from jobq.client import share_connections
from jobq.config import Settings
from jobq.errors import SoftTimeout
from jobq.joblog import encode_line
from jobq.tasks import registry
from jobq.units import clock_ms
from jobq.worker.attempt import Assignment, Report
from jobq.worker.channel import Channel, ChannelClosed
from jobq.worker.children import decode_work, encode_report
from jobq.worker.memory import rss_kb
from jobq.worker.runner import Runner, make_runners

_PROGRESS_EVERY_S = 0.2


class _Line:
    """The child's end of the line, and the sink that the running task reports to."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._cancelled = False
        self._last_progress = 0.0

    def hello(self) -> None:
        """Say that jobs may come: before, their time would run while this process still imports."""
        self._channel.send("hello", pid=os.getpid())

    def next_job(self) -> Assignment:
        """Block until there is a job."""
        self._cancelled = False
        self._last_progress = 0.0
        work: Assignment | None = None
        while work is None:
            for message in self._channel.receive(block=True):
                if message.op == "run":
                    work = decode_work(message.body)
                elif message.op == "cancel":  # before "run" it meant the job that has just ended
                    self._cancelled = work is not None
        return work

    def done(self, report: Report) -> None:
        """Hand the report over."""
        self._channel.send("done", **encode_report(report, rss_kb()))

    def progress(self, job_id: str, fraction: float, text: str) -> None:
        """Pass progress on, a few times a second at most."""
        now = time.monotonic()
        if now - self._last_progress >= _PROGRESS_EVERY_S or fraction >= 1.0:
            self._last_progress = now
            self._channel.send("progress", job_id=job_id, fraction=fraction, text=text)

    def log(self, job_id: str, text: str) -> None:
        """Pass a line on."""
        self._channel.send("log", job_id=job_id, line=encode_line(clock_ms(), text))

    def cancel_requested(self, job_id: str) -> bool:
        """Whether the executor has passed on a request to stop."""
        if not self._cancelled:
            self._cancelled = any(message.op == "cancel" for message in self._channel.receive())
        return self._cancelled


class _Alarm:
    """The soft timeout: a timer whose signal raises in the main thread, wherever the task's Python code is."""

    def __init__(self) -> None:
        self._armed = False
        signal.signal(signal.SIGALRM, self._ring)

    def start(self, seconds: float) -> None:
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def stop(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise SoftTimeout("the task ran longer than its timeout")


def child_entry(settings: Settings, body: dict[str, Any], fds: list[int]) -> int:
    """What a job child runs after the fork."""
    if body["nice"]:
        os.nice(body["nice"])
    share_connections(1)
    line = _Line(Channel.from_fd(fds[0]))
    specs = settings.queue_specs()
    runners = make_runners(
        settings, registry, [specs[name] for name in body["queues"]], worker=body["worker"], sink=line
    )
    alarm = _Alarm()
    try:
        line.hello()
        while True:
            work = line.next_job()
            work.started_at = time.monotonic()
            line.done(_run(runners[work.queue], alarm, work))
    except ChannelClosed:
        return 0


def _run(runner: Runner, alarm: _Alarm, work: Assignment) -> Report:
    try:
        alarm.start(work.timeout_s)
        report = runner.run(work)
        alarm.stop()
    except SoftTimeout:  # it rang in our own code, after the function had ended
        alarm.stop()
        report = runner.timed_out(work)
    return report
