"""The executor process: claims jobs of one queue, has them run, and settles them, in as few round trips as it can.

One thread, this loop, owns everything that talks to Redis. Functions run in the executors beside it and put their
reports into the inbox; whatever has gathered there is settled in one script call. The next jobs are claimed in the
same round trip, if there may be any: the last claim found more than it could take, or the waiter has called.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Sequence
from typing import Any

from jobq import calls, events
from jobq.client import share_connections
from jobq.config import Settings
from jobq.connection import connect, detached, task_connections
from jobq.errors import StoreError, StoreUnavailableError
from jobq.joblog import RUNNING_S, add_lines
from jobq.keys import Keys
from jobq.queues import QueueSpec
from jobq.records import decode_progress
from jobq.rq_bridge import iso, task_of
from jobq.steps import MOST_JOBS, Call, Claim, Claimed
from jobq.store import Link
from jobq.tasks import Registry, registry
from jobq.worker.alive import start_ticking
from jobq.worker.attempt import Assignment, Report
from jobq.worker.channel import Channel, ChannelClosed, Message
from jobq.worker.children import ChildExecutor
from jobq.worker.claims import Claims
from jobq.worker.executors import PREFETCH_RUN_S, Executors
from jobq.worker.inbox import Inbox
from jobq.worker.listening import Listener
from jobq.worker.opening import no_key_bucket
from jobq.worker.runner import Runner
from jobq.worker.slots import SlotTable
from jobq.worker.spec import LaneSpec
from jobq.worker.waiter import Waiter

_log = logging.getLogger("jobq")

BACKLOG_PATIENCE_S = 0.1
"""What was claimed ahead and has not started after this long goes back to the queue."""

PULSE_LOST_S = 4.0
"""An executor that has not seen its supervisor for this long claims nothing more."""

_LISTEN_EVERY_S = 0.1
_LOOK_EVERY_S = 0.25
_LONGEST_SLEEP_S = 1.0
_ARM_AGAIN_S = 0.2
_APART_IDLE_S = 5.0
"""An executor for suspects that has had none for this long ends."""
_ENDS = ("succeeded", "dead", "cancelled")
_OUTAGE = 2
"""Exchanges that failed in a row before this executor counts as cut off."""


class LaneExecutor:
    """The loop of one executor process."""

    def __init__(
        self,
        lane: LaneSpec,
        spec: QueueSpec,
        settings: Settings,
        tasks: Registry,
        table: SlotTable,
        control: Channel,
        spawner: Channel,
    ) -> None:
        self._lane = lane
        self._control = control
        self._table = table
        self._keys = Keys(settings.key_prefix)
        self._inbox = Inbox(table, lane.doubt_s)
        codec = settings.codec()
        runner = Runner(
            codec=codec,
            registry=tasks,
            spec=spec,
            worker=lane.worker,
            sink=self._inbox,
            default=settings.retry_policy(),
            result_limit=settings.result_limit,
        )
        self._executors = Executors(lane, spec, settings, tasks, runner, self._inbox, spawner)
        self._claims = Claims(lane, self._keys, [*map(no_key_bucket, codec.key_ids), *tasks.names()])
        client = connect(settings, "worker", url=spec.redis_url)
        self._link = Link(client)
        self._waiter = Waiter(lambda: detached(client), self._keys.queue(lane.queue))
        self._listener = Listener(self._inbox, control, spawner, self._waiter, self._executors)
        self._works: dict[str, Assignment] = {}
        self._saying: dict[str, list[str]] = {}  # log lines that this turn sends
        self._advanced: list[tuple[Assignment, bytes]] = []  # progress that this turn sends
        self._held = 0  # claimed and not settled
        self._claimed = 0  # in all, what was handed back apart
        self._draining = False
        self._quiet = False
        self._failures = 0
        self._run_s = 0.0  # what a job takes of late
        self._last_report = time.monotonic()
        self._last_listened = 0.0

    def run(self) -> int:
        """Serve until told to drain, or until a burst is over. Returns the exit code."""
        while True:
            now = time.monotonic()
            if self._inbox.stood_still(now):
                self._executors.hand_back(self._executors.take_back())
            self._table.beat(now)
            if now - self._last_listened > _LISTEN_EVERY_S:
                self._listen(0.0, queue=False)  # no turn of a busy loop sleeps, yet others have their say
            reports = self._inbox.take(MOST_JOBS)
            plan = self._plan(reports)
            if plan:
                self._exchange(plan, reports)
            elif self._finished():
                self._close()
                return 0
            else:
                self._sleep()

    # -- talking to Redis ---------------------------------------------------------------------------------------

    def _plan(self, reports: list[Report]) -> list[Call[Any]]:
        """What this turn has to say to Redis; empty when there is nothing."""
        plan = self._lines(reports)
        if reports:
            plan.append(
                calls.settle(self._keys, self._lane.queue, [report.outcome for report in reports], iso())
            )
            if any(report.assignment.job.gated for report in reports):
                plan.append(calls.open_gates(self._keys))  # so that the claim finds who waited for these
                self._claims.look()
            if not self._claims.hungry and self._listener.queue_has_called():
                self._claims.look()  # so that the claim rides along
        now = time.monotonic()
        claim = self._claims.next(self._room(len(reports)) if self._may_claim(now) else 0, now)
        if claim is not None:
            plan.append(claim)
        self._advanced.clear()
        for job_id, text in self._inbox.due_progress(now).items():
            work = self._works.get(job_id)
            if work is not None:
                plan.append(calls.progress(self._keys, job_id, work.job.token, text))
                self._advanced.append((work, text))
            else:  # from a thread that the task left behind
                self._inbox.forget(job_id)
        return plan

    def _lines(self, reports: list[Report]) -> list[Call[Any]]:
        """What tasks have said, sent before their jobs are settled: later they have no lease."""
        ended = {report.outcome.job_id: report.outcome for report in reports}
        steps: list[Call[Any]] = []
        self._saying = self._inbox.due_lines(time.monotonic(), ended)
        for job_id, lines in self._saying.items():
            work, outcome = self._works.get(job_id), ended.get(job_id)
            if work is None:  # from a thread that the task left behind
                self._inbox.forget(job_id)
                continue
            over = outcome is not None and outcome.kind in _ENDS
            keep_s = outcome.keep_s if outcome is not None and over else RUNNING_S
            steps.append(add_lines(self._keys, job_id, work.job.token, lines, keep_s))
        return steps

    def _exchange(self, plan: list[Call[Any]], reports: list[Report]) -> None:
        try:
            replies = self._link.exchange(plan)
        except StoreError as error:
            # Nothing is lost: the outcomes wait here, and the claim keeps its number until it is answered.
            if not isinstance(error, StoreUnavailableError) and self._failures % 10 == 0:
                _log.error("queue %s: %s", self._lane.queue, error)  # of an outage the supervisor tells
            self._inbox.put_back(reports)
            self._inbox.put_back_lines(self._saying)
            self._failures += 1
            # One lost connection is made again at once.
            pause_s = min(1.0, 0.02 * 2 ** min(self._failures, 6)) if self._failures >= _OUTAGE else 0.0
            self._obey(self._listener.pause(pause_s))
            return
        self._failures = 0
        if reports:
            self._settled(reports, replies[[step.script for step in plan].index("settle")])
        if self._advanced:
            self._tell_progress(plan, replies)
        if self._claims.pending is not None:
            self._take(replies[[step.script for step in plan].index("claim")])
        now = time.monotonic()
        if self._wants_waiter(now):
            self._waiter.arm(now)

    def _settled(self, reports: list[Report], words: Sequence[str]) -> None:
        self._last_report = time.monotonic()
        for report, word in zip(reports, words, strict=True):
            work = report.assignment
            job_id = work.job.id
            self._table.release(work.slot)
            if self._works.get(job_id) is work:  # else the job came back under another lease, and runs again
                self._inbox.forget(job_id)
                del self._works[job_id]
            if report.event:
                run_s = report.fields["run_ms"] / 1000
                self._run_s = run_s if run_s > PREFETCH_RUN_S else self._run_s * 0.9 + run_s * 0.1
                self._tell(report, word)
            else:  # it never ran here
                self._claimed -= 1
        self._held -= len(reports)
        self._table.count_claimed(self._claimed)
        if self._lane.burst and not self._held:
            self._claims.look()  # what ran may have enqueued more

    def _tell(self, report: Report, word: str) -> None:
        """Say what happened, now that it is stored."""
        if word in ("ok", "already"):
            name = report.event
        elif word in ("cancelled", "dead"):  # asked to stop meanwhile; interrupted once too often
            name = f"job.{word}"
            report.fields.setdefault("reason", "poison" if word == "dead" else "requested")
        else:  # another worker's job by now, or deleted: this run does not count
            name = "job.rescued" if word == "lost" else "job.removed"
        if events.enabled(name):
            events.emit(
                name,
                job_id=report.outcome.job_id,
                queue=self._lane.queue,
                worker=self._lane.worker,
                **report.fields,
            )

    def _tell_progress(self, plan: list[Call[Any]], replies: Sequence[Any]) -> None:
        stored = [reply for step, reply in zip(plan, replies, strict=True) if step.script == "progress"]
        for (work, text), kept in zip(self._advanced, stored, strict=True):
            if kept and events.enabled("job.progressed"):
                events.emit(
                    "job.progressed",
                    job_id=work.job.id,
                    task=task_of(work.job.description),
                    queue=self._lane.queue,
                    attempt=work.attempt,
                    worker=self._lane.worker,
                    progress=decode_progress(text)[0],
                )

    def _take(self, claim: Claim) -> None:
        now = time.monotonic()
        self._table.polled(now)
        self._claims.answered(claim, now)
        if claim.suspects:
            self._control.send("suspects")
        if not claim.jobs:
            return
        self._claimed += len(claim.jobs)
        self._held += len(claim.jobs)
        self._table.count_claimed(self._claimed)
        works = [self._assign(job, claim.now_ms, now) for job in claim.jobs]
        if self._draining:
            self._executors.hand_back(works)
        else:
            self._executors.submit(works)

    def _assign(self, job: Claimed, now_ms: int, now: float) -> Assignment:
        if (
            job.id in self._works
        ):  # rescued from here, and claimed again: what was said of the old lease is over
            self._inbox.forget(job.id)
        place = self._executors.place(job)
        isolated = isinstance(place, ChildExecutor)
        slot = self._table.take(job.id, job.token, isolated=isolated, suspect=job.suspect)
        work = Assignment(slot, job, now, now_ms, executor=place)
        self._works[job.id] = work
        return work

    # -- how many -----------------------------------------------------------------------------------------------

    def _room(self, settling: int) -> int:
        """How many more jobs may be taken now, once ``settling`` of them are settled."""
        held = self._held - settling
        ahead = 0 if self._claims.limited else self._executors.prefetch(self._run_s)
        room = self._lane.slots + ahead - held
        if self._lane.max_jobs is not None:
            room = min(room, self._lane.max_jobs - self._claimed)
        return room

    def _may_claim(self, now: float) -> bool:
        return (
            not (self._draining or self._quiet or self._executors.barren)
            and now - self._table.pulse < PULSE_LOST_S
        )

    def _wants_waiter(self, now: float) -> bool:
        """Whether slots are free and the queue was seen empty.

        The waiter answers at once if a job has come since: nothing is missed in between.
        """
        free = self._room(0) > 0 and self._may_claim(now) and not self._lane.apart
        return free and not self._claims.hungry and not self._claims.closed_for(now)

    # -- ending -------------------------------------------------------------------------------------------------

    def _finished(self) -> bool:
        if self._held or self._claims.pending is not None or self._inbox:
            return False
        if self._lane.max_jobs is not None and self._claimed >= self._lane.max_jobs:
            return True
        if self._draining:
            return True
        empty = not self._claims.hungry and self._claims.any_made
        return empty and (self._lane.burst or (self._lane.apart and self._idle_for_long()))

    def _idle_for_long(self) -> bool:
        now = time.monotonic()
        return not self._claims.closed_for(now) and now - self._last_report > _APART_IDLE_S

    def _drain(self) -> None:
        self._draining = True
        self._executors.hand_back(self._executors.take_back())

    def _close(self) -> None:
        self._executors.close()
        self._waiter.drop()
        self._link.close()

    # -- waiting ------------------------------------------------------------------------------------------------

    def _sleep(self) -> None:
        """Wait until there is something to do: a report, a word from the supervisor or a child, or a new job."""
        now = time.monotonic()
        timeout = min(_LONGEST_SLEEP_S, self._claims.closed_for(now) or _LONGEST_SLEEP_S)
        if self._executors.restless:
            timeout = _LOOK_EVERY_S
        listen_to_queue = False
        if self._wants_waiter(now):
            listen_to_queue = self._waiter.arm(now)
            if not listen_to_queue:  # Redis is away, and the claim will say so
                timeout = min(timeout, _ARM_AGAIN_S)
                self._claims.look()
        else:
            self._table.polled(now)  # it has no use for more jobs
        if self._held > self._lane.slots:
            if now - self._last_report > BACKLOG_PATIENCE_S:
                self._executors.hand_back(self._executors.take_back())
                self._run_s = BACKLOG_PATIENCE_S  # or the same jobs would be claimed again at once
            timeout = BACKLOG_PATIENCE_S / 2
        if self._inbox.prepare_sleep():
            self._listen(timeout, queue=listen_to_queue)

    def _listen(self, timeout_s: float, *, queue: bool) -> None:
        """Hear everybody who has something to say, and look after the children."""
        self._last_listened = now = time.monotonic()
        self._executors.look(now)
        self._table.set_ready(self._executors.ready and self._failures < _OUTAGE)
        heard = self._listener.listen(timeout_s, queue=queue)
        if heard.queue:
            self._claims.look()
        self._obey(heard.control)

    def _obey(self, messages: list[Message]) -> None:
        for message in messages:
            if message.op in ("drain", "retire"):
                self._drain()
            elif message.op in ("quiet", "resume"):
                self._quiet = message.op == "quiet"
                if not self._quiet:
                    self._claims.look()
            elif message.op == "cancel":
                self._cancel(message.body["members"])
            elif message.op == "wake":
                self._claims.look()

    def _cancel(self, members: list[str]) -> None:
        """Tell the runs of these leases to stop. A later run of the same job, under another token, is not meant."""
        for member in members:
            job_id, _, token = member.partition(":")
            work = self._works.get(job_id)
            if work is not None and work.job.token == token:
                self._executors.cancel(work)


def executor_entry(settings: Settings, body: dict[str, Any], fds: list[int]) -> int:
    """What an executor process runs after the fork."""
    table_fd, control_fd, spawner_fd = fds
    lane = LaneSpec(**body["lane"])
    table = SlotTable(table_fd, lane.capacity)
    control, spawner = Channel.from_fd(control_fd), Channel.from_fd(spawner_fd)
    spec = settings.queue_specs()[lane.queue]
    start_ticking(table)
    share_connections(task_connections(lane.slots))
    try:
        return LaneExecutor(lane, spec, settings, registry, table, control, spawner).run()
    except ChannelClosed:  # the supervisor or the spawner has gone, and takes its children with it
        return 1
    finally:
        control.close()


def ignore_signals() -> None:
    """The supervisor drains us by a message. A handler, not SIG_IGN, which what tasks start would inherit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
