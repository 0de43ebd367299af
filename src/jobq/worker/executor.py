"""The executor process: claims jobs of its queues, has them run, and settles them, in as few round trips as it can.

One thread, this loop, owns everything that talks to Redis. Functions run in the executors beside it and put their
reports into the inbox; whatever has gathered there is settled in one script call for each queue. The next jobs are
claimed in the same round trip, if there may be any: the last claim found more than it could take, or the waiter has
called. Several queues share the slots: what falls free goes to those that may have jobs, by turns.
"""

from __future__ import annotations

import logging
import random
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
from jobq.worker.listening import Listener, have_called
from jobq.worker.opening import no_key_bucket
from jobq.worker.parts import Part
from jobq.worker.runner import make_runners
from jobq.worker.slots import SlotTable
from jobq.worker.spec import LaneSpec
from jobq.worker.turns import Turns
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
_COMPLAIN_EVERY_S = 10.0
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
        specs: Sequence[QueueSpec],
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
        runners = make_runners(settings, tasks, specs, worker=lane.worker, sink=self._inbox)
        # In what is asked of one of them here they all agree.
        self._executors = Executors(lane, specs[0], settings, tasks, runners, self._inbox, spawner)
        client = connect(settings, "worker", url=specs[0].redis_url)
        self._link = Link(client)
        known = [*map(no_key_bucket, settings.codec().key_ids), *tasks.names()]
        self._parts = [
            Part(
                place,
                served,
                Claims(lane, served, self._keys, known),
                Waiter(lambda: detached(client), self._keys.queue(served.queue)),
            )
            for place, served in enumerate(lane.queues)
        ]
        self._turns = turns_of(lane)
        self._listener = Listener(self._inbox, control, spawner, self._executors)
        self._works: dict[str, Assignment] = {}
        self._saying: dict[str, list[str]] = {}  # log lines that this turn sends
        self._asking: list[Part] = []  # whose claims this turn sends
        self._settles_at = self._claims_at = 0  # places in this turn's plan
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
                self._listen(0.0)  # no turn of a busy loop sleeps, yet others have their say
                self._note_content()
            batches = self._by_queue(self._inbox.take(MOST_JOBS))
            plan = self._plan(batches)
            if plan:
                self._exchange(plan, batches)
            elif self._finished():
                self._close()
                return 0
            else:
                self._sleep()

    # -- talking to Redis ---------------------------------------------------------------------------------------

    def _by_queue(self, reports: list[Report]) -> list[list[Report]]:
        """The reports of each queue, in the order of the parts: a call settles those of one."""
        if self._turns is None:
            return [reports]
        batches: list[list[Report]] = [[] for _ in self._parts]
        for report in reports:
            batches[report.assignment.queue].append(report)
        return batches

    def _plan(self, batches: list[list[Report]]) -> list[Call[Any]]:
        """What this turn has to say to Redis; empty when there is nothing."""
        plan = self._lines(batches)
        if any(batches):
            self._settles_at, gated = len(plan), False
            for part, reports in zip(self._parts, batches, strict=True):
                if not reports:
                    continue
                plan.append(
                    calls.settle(self._keys, part.served.queue, [report.outcome for report in reports], iso())
                )
                if any(report.assignment.job.gated for report in reports):
                    gated = True
                    part.claims.look()
            if gated:
                plan.append(calls.open_gates(self._keys))  # so that the claim finds who waited for these
            if seen_empty := [part for part in self._parts if not part.claims.hungry]:
                for part in have_called(seen_empty):
                    part.claims.look()  # so that the claim rides along
        now = time.monotonic()
        self._claims_at, self._asking = len(plan), []
        for part, room in zip(self._parts, self._rooms(batches, now), strict=True):
            claim = part.claims.next(room, now)
            if claim is not None:
                plan.append(claim)
                self._asking.append(part)
        self._advanced.clear()
        for job_id, text in self._inbox.due_progress(now).items():
            work = self._works.get(job_id)
            if work is not None:
                plan.append(calls.progress(self._keys, job_id, work.job.token, text))
                self._advanced.append((work, text))
            else:  # from a thread that the task left behind
                self._inbox.forget(job_id)
        return plan

    def _lines(self, batches: list[list[Report]]) -> list[Call[Any]]:
        """What tasks have said, sent before their jobs are settled: later they have no lease."""
        if not self._inbox.has_lines:
            self._saying = {}
            return []
        ended = {report.outcome.job_id: report.outcome for reports in batches for report in reports}
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

    def _exchange(self, plan: list[Call[Any]], batches: list[list[Report]]) -> None:
        try:
            # What is wrong with one of several queues does not hold up the others.
            replies = self._link.exchange(plan, "" if self._turns is None else "claim")
        except StoreError as error:
            # Nothing is lost: the outcomes wait here, and the claim keeps its number until it is answered.
            if not isinstance(error, StoreUnavailableError) and self._failures % 10 == 0:
                _log.error("queue %s: %s", self._lane.name, error)  # of an outage the supervisor tells
            for reports in batches:
                self._inbox.put_back(reports)
            self._inbox.put_back_lines(self._saying)
            self._failures += 1
            # One lost connection is made again at once.
            pause_s = min(1.0, 0.02 * 2 ** min(self._failures, 6)) if self._failures >= _OUTAGE else 0.0
            self._obey(self._listener.pause(pause_s))
            return
        self._failures = 0
        if any(batches):
            at = self._settles_at
            for part, reports in zip(self._parts, batches, strict=True):
                if reports:
                    self._settled(part, reports, replies[at])
                    at += 1
            if self._lane.burst and not self._held:
                self._look()  # what ran may have enqueued more
        if self._advanced:
            self._tell_progress(plan, replies)
        for at, part in enumerate(self._asking, self._claims_at):
            claim = replies[at]
            if isinstance(claim, Claim):
                self._take(part, claim)
            else:
                self._refused(part, claim)
        now = time.monotonic()
        for part in self._parts:
            if not part.claims.hungry and self._awaits(part, now) and not part.claims.rests_for(now):
                part.waiter.arm(now)

    def _settled(self, part: Part, reports: list[Report], words: Sequence[str]) -> None:
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
                self._tell(part, report, word)
            else:  # it never ran here
                self._claimed -= 1
        part.held -= len(reports)
        self._held -= len(reports)
        self._table.count_claimed(self._claimed)

    def _tell(self, part: Part, report: Report, word: str) -> None:
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
                queue=part.served.queue,
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
                    queue=self._parts[work.queue].served.queue,
                    attempt=work.attempt,
                    worker=self._lane.worker,
                    progress=decode_progress(text)[0],
                )

    def _take(self, part: Part, claim: Claim) -> None:
        now = time.monotonic()
        self._table.polled(now, part.place)
        part.claims.answered(claim, now)
        if claim.suspects:
            self._control.send("suspects", queue=part.served.queue)
        if not claim.jobs:
            return
        self._claimed += len(claim.jobs)
        part.held += len(claim.jobs)
        self._held += len(claim.jobs)
        self._table.count_claimed(self._claimed)
        works = [self._assign(part.place, job, claim.now_ms, now) for job in claim.jobs]
        if self._draining:
            self._executors.hand_back(works)
        else:
            self._executors.submit(works)

    def _refused(self, part: Part, error: StoreError) -> None:
        now = time.monotonic()
        part.claims.refused(now)
        if now - part.complained_at > _COMPLAIN_EVERY_S:
            part.complained_at = now
            _log.error("queue %s: %s", part.served.queue, error)

    def _assign(self, queue: int, job: Claimed, now_ms: int, now: float) -> Assignment:
        if (
            job.id in self._works
        ):  # rescued from here, and claimed again: what was said of the old lease is over
            self._inbox.forget(job.id)
        place = self._executors.place(job)
        isolated = isinstance(place, ChildExecutor)
        slot = self._table.take(job.id, job.token, queue=queue, isolated=isolated, suspect=job.suspect)
        work = Assignment(slot, job, now, now_ms, executor=place, queue=queue)
        self._works[job.id] = work
        return work

    # -- how many -----------------------------------------------------------------------------------------------

    def _rooms(self, batches: list[list[Report]], now: float) -> Sequence[int]:
        """How many more jobs of each queue may be taken now, once these reports are settled."""
        if not self._may_claim(now):
            return [0] * len(self._parts)
        if self._turns is None:
            return (self._room(len(batches[0]), self._ahead(self._parts[0])),)
        wants = [
            part.served.slots - part.held + len(reports) if part.claims.wanting(now) else 0
            for part, reports in zip(self._parts, batches, strict=True)
        ]
        wanting = [part for part, want in zip(self._parts, wants, strict=True) if want > 0]
        ahead = 0
        if len(wanting) == 1 and wanting[0].served.slots == self._lane.slots:
            ahead = self._ahead(wanting[0])
            wants[wanting[0].place] += ahead
        unanswered = sum(part.claims.asked for part in self._parts)
        return self._turns.share(self._room(sum(map(len, batches)), ahead) - unanswered, wants)

    def _room(self, settling: int, ahead: int = 0) -> int:
        """How many more jobs may be taken now, once ``settling`` of them are settled.

        Args:
            ahead: Beyond the slots.
        """
        room = self._lane.slots + ahead - self._held + settling
        if self._lane.max_jobs is not None:
            room = min(room, self._lane.max_jobs - self._claimed)
        return room

    def _ahead(self, part: Part) -> int:
        return 0 if part.claims.limited else self._executors.prefetch(self._run_s)

    def _may_claim(self, now: float) -> bool:
        return (
            not (self._draining or self._quiet or self._executors.barren)
            and now - self._table.pulse < PULSE_LOST_S
        )

    def _awaits(self, part: Part, now: float) -> bool:
        """Whether slots are free and the queue was seen empty.

        The waiter answers at once if a job has come since: nothing is missed in between.
        """
        empty = not (part.claims.hungry or part.claims.closed_for(now) or self._lane.apart)
        return empty and self._may_claim(now) and self._has_room(part)

    def _has_room(self, part: Part) -> bool:
        if self._turns is None:
            return self._room(0, self._ahead(part)) > 0
        return self._room(0) > 0 and part.held < part.served.slots

    def _note_content(self) -> None:
        """Note of each queue that has all its slots that no more is wanted of it now."""
        now = time.monotonic()
        for part in self._parts:
            if part.claims.pending is None and not self._has_room(part):
                self._table.polled(now, part.place)

    # -- ending -------------------------------------------------------------------------------------------------

    def _finished(self) -> bool:
        if self._held or self._inbox or any(part.claims.pending is not None for part in self._parts):
            return False
        if self._lane.max_jobs is not None and self._claimed >= self._lane.max_jobs:
            return True
        if self._draining:
            return True
        empty = all(part.claims.any_made and not part.claims.hungry for part in self._parts)
        return empty and (self._lane.burst or (self._lane.apart and self._idle_for_long()))

    def _idle_for_long(self) -> bool:
        now = time.monotonic()
        return not self._closed_for(now) and now - self._last_report > _APART_IDLE_S

    def _closed_for(self, now: float) -> float:
        """Seconds until the first of the paused or limited queues is to be asked again; 0: there is none."""
        return min((closed for part in self._parts if (closed := part.claims.closed_for(now))), default=0.0)

    def _look(self) -> None:
        """Something may have come to any queue: ask."""
        for part in self._parts:
            part.claims.look()

    def _drain(self) -> None:
        self._draining = True
        self._executors.hand_back(self._executors.take_back())

    def _close(self) -> None:
        self._executors.close()
        for part in self._parts:
            part.waiter.drop()
        self._link.close()

    # -- waiting ------------------------------------------------------------------------------------------------

    def _sleep(self) -> None:
        """Wait until there is something to do: a report, a word from the supervisor or a child, or a new job."""
        now = time.monotonic()
        timeout = min(_LONGEST_SLEEP_S, self._closed_for(now) or _LONGEST_SLEEP_S)
        if self._executors.restless:
            timeout = _LOOK_EVERY_S
        waiting = []
        for part in self._parts:
            if part.claims.pending is not None:
                continue  # refused of late
            if not self._awaits(part, now):
                self._table.polled(now, part.place)  # it has no use for more jobs
            elif not part.waiter.armed and (rest_s := part.claims.rests_for(now)):
                timeout = min(timeout, rest_s)
            elif part.waiter.arm(now):
                waiting.append(part)
            else:  # Redis is away, and the claim will say so
                timeout = min(timeout, _ARM_AGAIN_S)
                part.claims.look()
        if self._held > self._lane.slots:
            if now - self._last_report > BACKLOG_PATIENCE_S:
                self._executors.hand_back(self._executors.take_back())
                self._run_s = BACKLOG_PATIENCE_S  # or the same jobs would be claimed again at once
            timeout = BACKLOG_PATIENCE_S / 2
        if self._inbox.prepare_sleep():
            self._listen(timeout, waiting)

    def _listen(self, timeout_s: float, queues: Sequence[Part] = ()) -> None:
        """Hear everybody who has something to say, and look after the children."""
        self._last_listened = now = time.monotonic()
        self._executors.look(now)
        self._table.set_ready(self._executors.ready and self._failures < _OUTAGE)
        heard = self._listener.listen(timeout_s, queues)
        for part in heard.queues:
            part.claims.look()
        self._obey(heard.control)

    def _obey(self, messages: list[Message]) -> None:
        for message in messages:
            if message.op in ("drain", "retire"):
                self._drain()
            elif message.op in ("quiet", "resume"):
                self._quiet = message.op == "quiet"
                if not self._quiet:
                    self._look()
            elif message.op == "cancel":
                self._cancel(message.body["members"])
            elif message.op == "wake":
                for part in self._parts:
                    if part.served.queue == message.body["queue"]:
                        part.claims.look()

    def _cancel(self, members: list[str]) -> None:
        """Tell the runs of these leases to stop. A later run of the same job, under another token, is not meant."""
        for member in members:
            job_id, _, token = member.partition(":")
            work = self._works.get(job_id)
            if work is not None and work.job.token == token:
                self._executors.cancel(work)


def turns_of(lane: LaneSpec) -> Turns | None:
    """Whose turn it is, beginning anywhere; None: one queue has all slots."""
    if len(lane.queues) == 1:
        return None
    weights = [served.weight for served in lane.queues]
    return Turns(weights, random.randrange(Turns.cycle(weights)))


def executor_entry(settings: Settings, body: dict[str, Any], fds: list[int]) -> int:
    """What an executor process runs after the fork."""
    table_fd, control_fd, spawner_fd = fds
    lane = LaneSpec.from_dict(body["lane"])
    table = SlotTable(table_fd, lane.capacity, len(lane.queues))
    control, spawner = Channel.from_fd(control_fd), Channel.from_fd(spawner_fd)
    known = settings.queue_specs()
    specs = [known[served.queue] for served in lane.queues]
    start_ticking(table)
    share_connections(task_connections(lane.slots))
    try:
        return LaneExecutor(lane, specs, settings, registry, table, control, spawner).run()
    except ChannelClosed:  # the supervisor or the spawner has gone, and takes its children with it
        return 1
    finally:
        control.close()


def ignore_signals() -> None:
    """The supervisor drains us by a message. A handler, not SIG_IGN, which what tasks start would inherit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
