"""The executor process: claims jobs of one queue, has them run, and settles them, in as few round trips as it can.

One thread, this loop, owns everything that talks to Redis. Functions run in the executors beside it and put their
reports into the inbox; whatever has gathered there is settled in one script call, and the next jobs are claimed in
the same round trip.
"""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redis.connection import AbstractConnection
from redis.exceptions import RedisError

from jobq import calls, events
from jobq.config import Settings
from jobq.connection import connect
from jobq.errors import StoreError, StoreUnavailableError, UnknownTaskError
from jobq.keys import Keys
from jobq.queues import QueueSpec
from jobq.rq_bridge import iso, task_of
from jobq.steps import Call, Claim, Claimed
from jobq.store import Link
from jobq.tasks import Registry, Task, registry
from jobq.worker.channel import Channel, ChannelClosed, Message
from jobq.worker.children import ChildExecutor
from jobq.worker.executors import Executor, LoopExecutor, ThreadExecutor
from jobq.worker.inbox import Inbox
from jobq.worker.runner import Assignment, Report, Runner, no_key_bucket
from jobq.worker.slots import SlotTable
from jobq.worker.waiter import Waiter

_log = logging.getLogger("jobq")

BATCH = 100
"""Jobs per script call at most."""

PREFETCH = 90
PREFETCH_START_S = 0.005
"""More than the free slots is claimed only while run times say that such a job starts within this time."""

BACKLOG_PATIENCE_S = 0.1
"""What was claimed ahead and has not started after this long goes back to the queue."""

PULSE_LOST_S = 4.0
"""An executor that has not seen its supervisor for this long claims nothing more."""

_POLL_EVERY_S = 0.1
_WATCH_S = 0.25
"""How often an idle loop looks whether an isolated job is past its hard timeout."""

_SUSPECTS = 2
_RECHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """What the supervisor tells an executor.

    Attributes:
        queue: The queue it serves.
        slots: Jobs at once.
        worker: The name it goes by in Redis.
        lease_ms: Length of a lease.
        exec_id: Its name in tokens; unique for each process.
        burst: End when the queue is empty.
        max_jobs: End after claiming this many; None: never.
    """

    queue: str
    slots: int
    worker: str
    lease_ms: int
    exec_id: str
    burst: bool = False
    max_jobs: int | None = None

    @property
    def capacity(self) -> int:
        """Records in the slot table: all that can be in the executor's hands at once."""
        return self.slots + PREFETCH

    def to_dict(self) -> dict[str, Any]:
        """As keyword arguments, JSON-able."""
        return asdict(self)


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
        self._spec = spec
        self._tasks = tasks
        self._table = table
        self._control = control
        self._spawner = spawner
        self._keys = Keys(settings.key_prefix)
        self._inbox = Inbox(table)
        codec = settings.codec()
        self._runner = Runner(
            codec=codec,
            registry=tasks,
            spec=spec,
            worker=lane.worker,
            sink=self._inbox,
            default_attempts=settings.max_attempts,
            result_limit=settings.result_limit,
        )
        self._known = [*map(no_key_bucket, codec.key_ids), *tasks.names()]
        commands = connect(settings, "command", url=spec.redis_url)
        blocking = connect(settings, "blocking", url=spec.redis_url)
        self._link = Link(commands)
        self._waiter = Waiter(lambda: _connection(blocking), self._keys.queue(lane.queue))
        self._threads: ThreadExecutor | None = None
        self._loop: LoopExecutor | None = None
        self._children: ChildExecutor | None = None
        self._suspects: ChildExecutor | None = None
        self._works: dict[str, Assignment] = {}
        self._held = 0  # claimed and not settled
        self._claimed = 0
        self._number = 0
        self._pending: Call[Claim] | None = (
            None  # a claim whose reply has not come: the same number goes again
        )
        self._hungry = True  # the queue may hold more
        self._ask_parked = False
        self._pause_until = 0.0
        self._draining = False
        self._failures = 0
        self._run_s = 0.0  # what a job takes of late
        self._last_report = 0.0
        self._last_poll = 0.0

    def run(self) -> int:
        """Serve until told to drain, or until a burst is over. Returns the exit code."""
        if self._isolated_by_default:
            self._children = self._make_children("c", self._lane.slots, eager=True)
        while True:
            now = time.monotonic()
            self._table.beat(now)
            if (
                now - self._last_poll > _POLL_EVERY_S
            ):  # no turn of a busy loop sleeps, yet others have their say
                self._poll(0.0, watch_queue=False)
            reports = self._inbox.take(BATCH)
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
        plan: list[Call[Any]] = []
        if reports:
            plan.append(
                calls.settle(self._keys, self._lane.queue, [report.outcome for report in reports], iso())
            )
        if self._pending is None:
            room = self._room(len(reports))
            if room > 0 and self._hungry and self._may_claim():
                self._number += 1
                self._pending = calls.claim(
                    self._keys,
                    self._lane.queue,
                    exec_id=self._lane.exec_id,
                    number=self._number,
                    n=min(room, BATCH),
                    lease_ms=self._lane.lease_ms,
                    worker_name=self._lane.worker,
                    started_at_iso=iso(),
                    known=self._known if self._ask_parked else (),
                )
        if self._pending is not None:
            plan.append(self._pending)
        for job_id, text in self._inbox.due_progress(time.monotonic()).items():
            work = self._works.get(job_id)
            if work is not None:
                plan.append(calls.progress(self._keys, job_id, work.job.token, text))
            else:  # from a thread that the task left behind
                self._inbox.forget(job_id)
        return plan

    def _exchange(self, plan: list[Call[Any]], reports: list[Report]) -> None:
        try:
            replies = self._link.exchange(plan)
        except StoreError as error:
            # Nothing is lost: the outcomes wait here, and the claim keeps its number until it is answered.
            if not isinstance(error, StoreUnavailableError) and self._failures % 10 == 0:
                _log.error("queue %s: %s", self._lane.queue, error)  # of an outage the supervisor tells
            self._inbox.put_back(reports)
            self._failures += 1
            self._nap(min(1.0, 0.02 * 2 ** min(self._failures, 6)))
            return
        self._failures = 0
        at = 0
        if reports:
            self._settled(reports, replies[0])
            at = 1
        if self._pending is not None:
            self._pending = None
            self._take(replies[at])

    def _settled(self, reports: list[Report], words: Sequence[str]) -> None:
        now = time.monotonic()
        self._last_report = now
        for report, word in zip(reports, words, strict=True):
            work = report.assignment
            job_id = work.job.id
            self._table.release(work.slot)
            self._inbox.forget(job_id)
            if self._works.get(job_id) is work:
                del self._works[job_id]
            if report.event:
                run_s = report.fields["run_ms"] / 1000
                self._run_s = run_s if run_s > PREFETCH_START_S else self._run_s * 0.9 + run_s * 0.1
                self._tell(report, word)
        self._held -= len(reports)
        if self._held < self._lane.slots:
            self._hungry = self._hungry or not self._waiter.armed

    def _tell(self, report: Report, word: str) -> None:
        """Say what happened, now that it is stored."""
        if word in ("ok", "already"):
            name = report.event
        elif word == "cancelled":
            name = "job.cancelled"
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

    def _take(self, claim: Claim) -> None:
        # The first hint of parked jobs: ask again at once, naming what this worker can run.
        hinted = claim.parked and not self._ask_parked
        self._ask_parked = claim.parked
        self._pause_until = 0.0
        self._hungry = claim.more or hinted or bool(claim.jobs and claim.parked)
        if claim.status in ("paused", "suspended"):
            self._hungry = False
            self._pause_until = time.monotonic() + _RECHECK_S
        elif claim.status == "stale":  # a reply to a repeated send came after its successor: ask anew
            self._hungry = True
        if not claim.jobs:
            return
        now = time.monotonic()
        self._claimed += len(claim.jobs)
        self._held += len(claim.jobs)
        works = [self._assign(job, claim.now_ms, now) for job in claim.jobs]
        if self._draining:
            self._hand_back(works)
        else:
            self._submit(works)

    def _assign(self, job: Claimed, now_ms: int, now: float) -> Assignment:
        executor = self._executor_for(job)
        isolated = isinstance(executor, ChildExecutor)
        slot = self._table.take(job.id, job.token, isolated=isolated)
        work = Assignment(slot, job, now, now_ms, executor=executor)
        self._works[job.id] = work
        return work

    def _submit(self, works: list[Assignment]) -> None:
        first = works[0].executor
        if all(work.executor is first for work in works):
            first.submit(works)
            return
        for work in works:
            work.executor.submit([work])

    # -- where a job runs ---------------------------------------------------------------------------------------

    @property
    def _isolated_by_default(self) -> bool:
        return self._spec.isolation == "process"

    def _executor_for(self, job: Claimed) -> Executor:
        """By the job's label, which is not signed: the runner checks, and copes with a wrong one."""
        name = task_of(job.description)
        task = self._task(name)
        isolation = (task.spec.isolation if task is not None else None) or self._spec.isolation
        if isolation == "process":
            if self._children is None:
                self._children = self._make_children("c", self._lane.slots, eager=False)
            return self._children
        if job.crashes >= 1 or job.lost >= 3:
            if self._suspects is None:
                self._suspects = self._make_children("s", _SUSPECTS, eager=False)
            return self._suspects
        if task is not None and task.is_async:
            if self._loop is None:
                self._loop = LoopExecutor(self._lane.slots, self._runner, self._inbox)
            return self._loop
        if self._threads is None:
            self._threads = ThreadExecutor(self._lane.slots, self._runner, self._inbox)
        return self._threads

    def _task(self, name: str) -> Task[..., Any] | None:
        try:
            return self._tasks.resolve(name)
        except UnknownTaskError:
            return None

    def _make_children(self, prefix: str, limit: int, *, eager: bool) -> ChildExecutor:
        return ChildExecutor(
            limit,
            self._runner,
            self._inbox,
            self._spawner,
            prefix=prefix,
            queue=self._lane.queue,
            worker=self._lane.worker,
            nice=self._spec.nice,
            eager=eager,
        )

    def _executors(self) -> list[Executor]:
        return [e for e in (self._threads, self._loop, self._children, self._suspects) if e is not None]

    def _child_executors(self) -> list[ChildExecutor]:
        return [e for e in (self._children, self._suspects) if e is not None]

    def _room(self, settling: int) -> int:
        """How many more jobs may be taken now."""
        room = self._lane.slots + self._prefetch() - (self._held - settling)
        if self._lane.max_jobs is not None:
            room = min(room, self._lane.max_jobs - self._claimed)
        return room

    def _prefetch(self) -> int:
        """Jobs beyond the free slots; only threads, which all draw from one backlog, take any."""
        if self._threads is None or not 0 < self._run_s < PREFETCH_START_S or len(self._executors()) > 1:
            return 0
        return min(PREFETCH, int(self._lane.slots * PREFETCH_START_S / self._run_s))

    def _may_claim(self) -> bool:
        now = time.monotonic()
        return not self._draining and now >= self._pause_until and now - self._table.pulse < PULSE_LOST_S

    # -- ending -------------------------------------------------------------------------------------------------

    def _finished(self) -> bool:
        if self._held or self._pending is not None or self._inbox:
            return False
        if self._lane.max_jobs is not None and self._claimed >= self._lane.max_jobs:
            return True
        return self._draining or (self._lane.burst and not self._hungry and self._number > 0)

    def _drain(self) -> None:
        self._draining = True
        for executor in self._executors():
            self._hand_back(executor.take_back())

    def _hand_back(self, works: list[Assignment]) -> None:
        for work in works:
            self._inbox.finished(self._runner.handed_back(work))

    def _close(self) -> None:
        for executor in self._executors():
            executor.close()
        self._waiter.drop()
        self._link.close()

    # -- waiting ------------------------------------------------------------------------------------------------

    def _sleep(self) -> None:
        """Wait until there is something to do: a report, a word from the supervisor or a child, or a new job."""
        now = time.monotonic()
        timeout = _RECHECK_S
        if any(children.busy for children in self._child_executors()):
            timeout = _WATCH_S
        if now < self._pause_until:
            timeout = min(timeout, self._pause_until - now)
        elif self._pause_until:
            self._pause_until, self._hungry = 0.0, True
            return
        watch_queue = False
        if self._room(0) > 0 and self._may_claim() and not self._hungry:
            if self._waiter.arm(now):
                watch_queue = True
            else:
                timeout, self._hungry = min(timeout, 0.2), True
        if self._held > self._lane.slots:
            if now - max(self._last_report, 0.0) > BACKLOG_PATIENCE_S:
                for executor in self._executors():
                    self._hand_back(executor.take_back())
                self._run_s = BACKLOG_PATIENCE_S  # or the same jobs would be claimed again at once
            timeout = BACKLOG_PATIENCE_S / 2
        if self._inbox.prepare_sleep():
            self._poll(timeout, watch_queue)

    def _poll(self, timeout: float, watch_queue: bool) -> None:
        """Hear everybody who has something to say, and look after the children's deadlines."""
        self._last_poll = now = time.monotonic()
        for children in self._child_executors():
            children.tick(now)
        poll = select.poll()
        sources: dict[int, Any] = {self._inbox.fileno(): None, self._control.fileno(): self._control}
        sources[self._spawner.fileno()] = self._spawner
        for children in self._child_executors():
            for number, ref in children.lines():
                sources[number] = (children, ref)
        if watch_queue:
            sources[self._waiter.fileno()] = self._waiter
        for number in sources:
            poll.register(number, select.POLLIN)
        ready = poll.poll(timeout * 1000)
        self._inbox.awake(woken=any(number == self._inbox.fileno() for number, _ in ready))
        for number, _ in ready:
            source = sources[number]
            if source is self._control:
                self._read_control()
            elif source is self._spawner:
                self._read_spawner()
            elif source is self._waiter:
                self._read_waiter()
            elif source is not None:
                self._read_child(*source)

    def _nap(self, seconds: float) -> None:
        """Wait out a failure, still listening to the supervisor."""
        ready, _, _ = select.select([self._control], [], [], seconds)
        if ready:
            self._read_control()

    def _read_waiter(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            self._waiter.fire()
        self._hungry = (
            True  # also when nothing came for the whole block: a look now and then finds parked jobs
        )

    def _read_control(self) -> None:
        for message in self._control.receive():
            if message.op in ("drain", "retire"):
                self._drain()
            elif message.op == "cancel":
                self._cancel(message.body["members"])
            elif message.op == "wake":
                self._pause_until, self._hungry = 0.0, True

    def _cancel(self, members: list[str]) -> None:
        """Tell the runs of these leases to stop. A later run of the same job, under another token, is not meant."""
        for member in members:
            job_id, _, token = member.partition(":")
            work = self._works.get(job_id)
            if work is None or work.job.token != token:
                continue
            self._inbox.cancel([job_id])
            for children in self._child_executors():
                children.cancel(job_id)

    def _read_spawner(self) -> None:
        for message in self._spawner.receive():
            for children in self._child_executors():
                if message.op == "spawned":
                    children.spawned(message.body["ref"], message.body["pid"])
                elif message.op == "exited":
                    children.exited(message.body["ref"], message.body["status"])

    def _read_child(self, children: ChildExecutor, ref: str) -> None:
        for message in children.read(ref):
            self._child_said(message)

    def _child_said(self, message: Message) -> None:
        if message.op == "progress":
            self._inbox.progress(message.body["job_id"], message.body["fraction"], message.body["text"])


def _connection(client: Any) -> AbstractConnection:
    """A connection of a client's own policy, outside of its pool."""
    made: AbstractConnection = client.connection_pool.make_connection()
    return made


def executor_entry(settings: Settings, body: dict[str, Any], fds: list[int]) -> int:
    """What an executor process runs after the fork."""
    table_fd, control_fd, spawner_fd = fds
    lane = LaneSpec(**body["lane"])
    ignore_signals()
    events.configure_logging(settings.log_format)
    _name_process(f"jobq: {lane.queue}")
    table = SlotTable(table_fd, lane.capacity)
    table.beat(time.monotonic())
    control, spawner = Channel.from_fd(control_fd), Channel.from_fd(spawner_fd)
    spec = settings.queue_specs()[lane.queue]
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


def _name_process(name: str) -> None:
    """Show the lane in ``ps`` where the kernel lets a process rename itself."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name[:15])
