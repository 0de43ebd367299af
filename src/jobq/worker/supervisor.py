"""The supervisor: starts the executors, keeps their jobs' leases alive, enforces deadlines, replaces, drains.

It imports no application code. Its main thread owns the processes, its keeper thread owns Redis; neither waits for
the other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobq import events
from jobq.config import Settings
from jobq.errors import ConfigError
from jobq.queues import QueueSpec, served_together
from jobq.retry import RetryPolicy
from jobq.schedule_records import Record
from jobq.worker.channel import Channel, ChannelClosed, Message
from jobq.worker.keepers import Keepers, check_servers
from jobq.worker.lane import HUNG, Lane, new_exec_id
from jobq.worker.lanes import Lanes
from jobq.worker.maintenance import executor_name
from jobq.worker.memory import OomWatch, rss_kb
from jobq.worker.recycling import Recycling, pause_after_stillbirth
from jobq.worker.reload import run_with_reload
from jobq.worker.slots import SlotTable
from jobq.worker.spawner_process import START_TIMEOUT_S, SpawnerProcess, note_warnings
from jobq.worker.spec import SUSPECT_SLOTS, LaneSpec, ServedSpec, WorkerSpec
from jobq.worker.waiter import BLOCK_S

if TYPE_CHECKING:
    from jobq.worker.health import HealthServer

_log = logging.getLogger("jobq")

_TURN_S = 0.25
_RECYCLE_EVERY_S = 1.0
_FAST_DEATHS = 5
_FAST_DEATH_S = 2.0
_RESPAWN_PAUSE_S = 1.0
_FORCED_STOP_S = 2.0
_READY_WITHIN_S = 4.0
"""Readiness is withdrawn within 5 s, a probe's own pace apart."""
_POLLED_WITHIN_S = BLOCK_S + 5.0
"""An idle executor asks for jobs once a block; a connection that died without a word answers no block."""
_STALLED_S = 30.0
_KEEPER_STALLED_S = 60.0
"""One duty of many calls takes so long with a Redis that answers each just in time."""
_STOOD_STILL_S = 5.0
"""A turn this late means that this process was stopped, and its executors with it."""


class Supervisor:
    """One worker: its spawner, its executors, its keeper.

    Args:
        settings: Where Redis is, and the queues.
        worker: What to serve, and for how long.
    """

    def __init__(self, settings: Settings, worker: WorkerSpec) -> None:
        self._settings = settings
        self._worker = worker
        self._name = worker.name or f"{socket.gethostname().split('.')[0]}-{os.getpid()}"
        self._specs: dict[str, QueueSpec] = {}  # known when the application is
        # Those that share an executor, by the name of their group; any other by its own.
        self._groups: dict[str, list[QueueSpec]] = {}
        self._lease_ms = int(settings.lease.total_seconds() * 1000)
        self._policies: dict[str, RetryPolicy] = {}
        self._lanes = Lanes(self._policies, signs=bool(settings.secret_keys()))
        self._numbers = 0
        self._left: dict[str, int] = {}  # of the most jobs, by the name of the executor
        self._recycling = Recycling.of(settings)
        self._recycled_at = 0.0
        self._keepers = Keepers(settings, self._specs, self._name, self._lanes, self._policies)
        self._oom = OomWatch()
        # By whom they serve: a queue or a group, or (True) a queue's suspects.
        self._deaths: defaultdict[tuple[str, bool], deque[float]]
        self._deaths = defaultdict(lambda: deque(maxlen=_FAST_DEATHS))
        self._restarts: dict[tuple[str, bool], float] = {}  # when the next executor is started
        self._spawner: SpawnerProcess | None = None
        self._spawner_due: float | None = None  # when the next one is started
        self._one_suspect = False  # one has died under jobs: suspects run one at a time
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._signals: list[int] = []
        self._orders: deque[str] = deque()
        self._keepers.obey = self._note_order
        self._suspected: deque[str] = deque()
        self._keepers.found_suspects = self._note_suspects
        self._turned_at = self._awake_since = time.monotonic()
        self._ending = False
        self._deadline = 0.0
        self._forced = 0
        self._health: HealthServer | None = None

    def _serve(self, known: Mapping[str, QueueSpec]) -> None:
        """Settle which queues are served, of those that the settings and the application know."""
        for name in self._worker.queues:
            if name not in known:
                raise ConfigError(_unknown_queue(name, known), queue=name)
        self._specs.update((spec.name, spec) for spec in self._served(known))
        self._groups = served_together(self._specs.values())
        most = self._worker.max_jobs or 0
        self._left = {executor_name(self._name, name): most for name in self._groups}
        self._keepers.known = known

    def run(self) -> int:
        """Serve until a signal, the end of a burst, or a failure to start. Returns the exit code."""
        # First of all, while there are no threads and no connections. It imports the application while we look at
        # the servers.
        self._spawner = SpawnerProcess(self._settings, fork=True)
        try:
            # Which others the application's queues are in, we hear when it is imported.
            checked = check_servers(self._settings, self._served(self._settings.queue_specs()))
            self._install_signals()
            said = self._spawner.wait_ready()
            self._serve({spec.name: spec for spec in map(QueueSpec.from_dict, said["queues"])})
            check_servers(self._settings, self._specs.values(), checked)
        except BaseException:
            self._spawner.kill()
            raise
        try:
            self._keepers.start()
            if self._worker.health_port is not None:
                from jobq.worker.health import HealthServer  # late: 0.5 MB that only probes need

                self._health = HealthServer(self._worker.health_port, self.problems, self.stalled)
            self._attempt(lambda: self._spawner_ready(said))
            events.emit(
                "worker.started",
                worker=self._name,
                queues=list(self._specs),
                slots=sum(max(map(self._slots, specs)) for specs in self._groups.values()),
            )
            while self._lanes or not (self._ending or self._idle):
                self._attempt(self._turn)
        finally:
            self._stop()
        events.emit("worker.stopped", worker=self._name)
        return 128 + self._forced if self._forced else 0

    def _served(self, known: Mapping[str, QueueSpec]) -> list[QueueSpec]:
        return [known[name] for name in self._worker.queues or known if name in known]

    @property
    def _idle(self) -> bool:
        """Whether nothing is about to start, either."""
        booting = self._spawner is not None and not self._spawner.ready
        return not (self._restarts or booting or self._spawner_due is not None)

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except ChannelClosed:
            self._spawner_died()

    # -- the spawner --------------------------------------------------------------------------------------------

    def _spawner_ready(self, said: dict[str, Any]) -> None:
        """It has imported the application: every queue gets an executor."""
        assert self._spawner is not None
        self._spawner.ready = True
        note_warnings(said)
        policies = {name: RetryPolicy.from_dict(policy) for name, policy in said["tasks"].items()}
        for gone in self._policies.keys() - policies.keys():
            del self._policies[gone]
        self._policies.update(policies)
        self._keepers.declare(Record.from_dict(record) for record in said["schedules"])
        for name in self._groups:
            self._start_lane(name)

    def _spawner_died(self) -> None:
        """Its executors went with it: settle what they held, and begin again, later when it could not even start.

        A job can have ended it, as the parent of its process, and would for ever if that did not count. Which one
        nobody can tell, so all that ran are blamed; once there are suspects among them, these alone. To tell suspects
        from each other, from now on no two of them run at once.
        """
        now = time.monotonic()
        running = [slot for lane in self._lanes.all() if not lane.killed for slot in lane.running()]
        suspects = [slot for slot in running if slot.suspect]
        blamed = frozenset(slot.member for slot in suspects or running)
        self._one_suspect = self._one_suspect or bool(blamed)
        for lane in self._lanes.all():
            lane.killed, lane.blamed = lane.killed or "spawner", blamed
            self._bury(lane, -9)
        self._restarts.clear()  # every queue gets an executor as soon as there is a spawner
        spawner, self._spawner = self._spawner, None
        if spawner is None:
            return
        cpu_s = spawner.kill()
        if self._ending:
            return
        events.emit("worker.lost", worker=self._name, queue="*", status=-9)
        self._spawner_due = now + (_RESPAWN_PAUSE_S if spawner.ready else pause_after_stillbirth(cpu_s, 1))

    def _check_spawner(self, now: float) -> None:
        if self._spawner_due is not None and now >= self._spawner_due:
            self._spawner_due = None
            self._spawner = SpawnerProcess(self._settings)
        spawner = self._spawner
        if spawner is not None and not spawner.ready and now - spawner.started_at > START_TIMEOUT_S:
            raise ChannelClosed

    # -- the executors ------------------------------------------------------------------------------------------

    def _slots(self, spec: QueueSpec) -> int:
        return self._worker.concurrency or spec.slots

    def _start_lane(self, name: str, replaces: Lane | None = None, *, apart: bool = False) -> None:
        """Start an executor of a queue, or of a group of queues.

        Args:
            replaces: The one that serves until this one does.
            apart: It runs the queue's suspects alone, and ends when there are none.
        """
        if self._spawner is None:
            raise ChannelClosed
        specs = [self._specs[name]] if apart else self._groups[name]
        worker = executor_name(self._name, specs[0].group or specs[0].name)
        max_jobs = None
        if self._worker.max_jobs is not None:
            max_jobs = self._left[worker] - sum(lane.table.claimed for lane in self._lanes.of(worker))
            if max_jobs < 1:
                return
        lane_spec = LaneSpec(
            name=name,
            queues=tuple(
                ServedSpec(
                    spec.name,
                    (1 if self._one_suspect else SUSPECT_SLOTS) if apart else self._slots(spec),
                    new_exec_id(),
                    spec.weight,
                )
                for spec in specs
            ),
            worker=worker,
            lease_ms=self._lease_ms,
            burst=self._worker.burst or (apart and (self._one_suspect or max_jobs is not None)),
            max_jobs=max_jobs,
            suspects="only" if apart else "park" if self._sets_apart(specs[0]) else "run",
        )
        self._numbers += 1
        table = SlotTable.create(lane_spec.capacity, len(specs))
        table.set_pulse(time.monotonic())
        control, theirs = Channel.pair()
        lane = Lane(lane_spec, f"lane-{self._numbers}", table, control, replaces=replaces)
        try:
            self._spawner.line.send(
                "spawn",
                fds=(table.fd, theirs.fileno()),
                kind="executor",
                ref=lane.ref,
                lane=lane_spec.to_dict(),
            )
        except ChannelClosed:
            lane.close()
            raise
        finally:
            theirs.close()
        self._lanes.add(lane)
        if self._lanes.quiet:
            lane.send("quiet")

    def _sets_apart(self, spec: QueueSpec) -> bool:
        """Whether a queue's suspects do not run among other jobs. Those of a group agree on it."""
        return self._one_suspect or spec.isolation != "process"

    def _serve_suspects(self, queue: str) -> None:
        """Jobs of this queue wait to run apart: tell who runs them, or start it."""
        if not self._sets_apart(self._specs[queue]):
            return
        if self._one_suspect and any(lane.spec.apart and lane.key[0] != queue for lane in self._lanes.all()):
            return  # it will be found again
        serving = next((lane for lane in self._lanes.like((queue, True)) if not lane.killed), None)
        if serving is not None:
            serving.called = True
            serving.send("wake", queue=queue)
        elif not (self._ending or self._lanes.quiet or (queue, True) in self._restarts):
            self._start_lane(queue, apart=True)

    def _hear(self, lane: Lane) -> None:
        """What an executor says: that it has parked a suspect of a queue."""
        try:
            messages = lane.control.receive()
        except ChannelClosed:
            lane.mute = True
            return
        for queue in {message.body["queue"] for message in messages}:
            self._serve_suspects(queue)

    def _lane_died(self, lane: Lane, status: int) -> None:
        self._hear(lane)
        name, worker, ran = lane.spec.name, lane.spec.worker, lane.table.claimed
        expected = self._bury(lane, status)
        if not expected and not lane.killed:
            events.emit("worker.lost", worker=worker, queue=name, status=status)
        over = expected and (self._worker.burst or (self._worker.max_jobs and self._left[worker] < 1))
        if lane.spec.apart:
            over = expected and not lane.called
        if lane.stillborn and lane.replaces is not None:
            # The old one serves on; it must not count as tired at once again.
            lane.replaces.replace_after = time.monotonic() + self._pause(lane)
        if not (self._ending or over or self._served_by_another(lane)):
            self._restart(lane)
        if lane.spec.apart and self._worker.burst and (ran or not expected) and not self._ending:
            self._look_again(self._specs[name].group or name)

    def _look_again(self, name: str) -> None:
        """What ran apart may have put jobs into a queue whose burst was over, or gone back there."""
        if not self._lanes.like((name, False)) and (name, False) not in self._restarts:
            self._start_lane(name)

    def _served_by_another(self, lane: Lane) -> bool:
        """Whether its queues, or the queue's suspects, have an executor that claims, or is about to."""
        others = (other for other in self._lanes.like(lane.key) if other is not lane)
        return lane.key in self._restarts or any(not other.retired for other in others)

    def _bury(self, lane: Lane, status: int) -> bool:
        """Take an ended executor off the list, and have settled what it held. Returns whether it ended as it should."""
        self._lanes.remove(lane)
        wills = lane.last_will(status, by_oom=self._oom.explains(status, time.monotonic()))
        held = sum(len(will.outcomes) for will in wills)
        expected = status == 0 and not held
        for will in () if expected else wills:
            self._keepers.post(will)
        self._left[lane.spec.worker] -= lane.table.claimed - held
        lane.stillborn = not lane.last_turn
        lane.close()
        return expected

    def _restart(self, lane: Lane) -> None:
        """Start a successor: at once, or later when the last ones died as soon as they were born."""
        now = time.monotonic()
        if lane.stillborn:
            self._restarts[lane.key] = now + self._pause(lane)
            return
        deaths = self._deaths[lane.key]
        if now - lane.started_at > _FAST_DEATH_S:
            deaths.clear()  # it could serve: what ended it is no reason to let its jobs wait
        deaths.append(now)
        if len(deaths) == _FAST_DEATHS and now - deaths[0] < _FAST_DEATHS * _FAST_DEATH_S:
            self._restarts[lane.key] = now + _RESPAWN_PAUSE_S
        else:
            self._start_lane(lane.spec.name, apart=lane.spec.apart)

    def _pause(self, stillborn: Lane) -> float:
        return pause_after_stillbirth(stillborn.cpu_s, len(self._groups))

    def _recycle(self, now: float) -> None:
        """Replace executors that have run long enough: the old one serves until the new one does."""
        if self._ending or self._worker.burst or self._worker.max_jobs is not None:
            return
        if now - self._recycled_at < _RECYCLE_EVERY_S:
            return
        self._recycled_at = now
        for lane in self._lanes.all():
            if lane.replaces is not None and lane.table.ready:
                lane.replaces.retired = True
                lane.replaces.send("retire")
                lane.replaces = None
            if (
                not (lane.retired or lane.spec.apart)
                and self._is_tired(lane, now)
                and not self._served_by_another(lane)
            ):
                self._start_lane(lane.spec.name, replaces=lane)

    def _is_tired(self, lane: Lane, now: float) -> bool:
        if now < lane.replace_after:
            return False
        claimed = lane.table.claimed
        growth_kb = 0
        if claimed and lane.pid:
            resident = rss_kb(lane.pid)
            lane.first_rss_kb = lane.first_rss_kb or resident
            growth_kb = resident - lane.first_rss_kb
        return self._recycling.is_due(jobs=claimed, age_s=now - lane.started_at, growth_kb=growth_kb)

    # -- the loop -----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Look after everything once. Raises ChannelClosed when the spawner has gone."""
        line = None if self._spawner is None else self._spawner.line
        sources = [self._wake_r] if line is None else [self._wake_r, line.fileno()]
        lines = {lane.control.fileno(): lane for lane in self._lanes.all() if not lane.mute}
        sources += lines
        ready, _, _ = select.select(sources, [], [], _TURN_S)
        if self._wake_r in ready:
            os.read(self._wake_r, 512)
        while self._signals:
            self._on_signal(self._signals.pop(0))
        while self._orders:
            self._on_order(self._orders.popleft())
        while self._suspected:
            self._serve_suspects(self._suspected.popleft())
        for number in ready:
            if number in lines:
                self._hear(lines[number])
        if line is not None and line.fileno() in ready:
            for message in line.receive():
                self._on_message(message)
        now = time.monotonic()
        if now - self._turned_at > _STOOD_STILL_S:
            self._awake_since = now
        self._turned_at = now
        self._oom.look(now)
        self._check_spawner(now)
        for lane in self._lanes.all():
            lane.table.set_pulse(now)
            self._check_deadlines(lane, now)
        for key, at in list(self._restarts.items()):
            if now >= at:
                del self._restarts[key]
                self._start_lane(key[0], apart=key[1])
        self._recycle(now)
        if self._ending and now > self._deadline:
            self._kill_all("grace")

    def _on_message(self, message: Message) -> None:
        if message.op == "ready":
            self._spawner_ready(message.body)
        elif message.op == "failed":
            _log.error("the application cannot be loaded: %s", message.body["error"])
        elif (lane := self._lanes.get(message.body["ref"])) is None:
            return
        elif message.op == "spawned":
            lane.pid = message.body["pid"]
            if lane.killed:  # before its number was known
                self._kill(lane, lane.killed)
            if lane.draining:
                lane.send("drain")
        elif message.op == "exited":
            lane.cpu_s = message.body["cpu_s"]
            self._lane_died(lane, message.body["status"])

    def _check_deadlines(self, lane: Lane, now: float) -> None:
        retire, culprits = lane.overdue(now)
        if retire and not lane.retired:
            lane.retired = True
            lane.send("retire")
            if not self._ending and not self._served_by_another(lane):
                self._start_lane(lane.spec.name, apart=lane.spec.apart)
        if culprits and not lane.killed:
            lane.culprits = culprits
            self._kill(lane, "timeout")
        elif not lane.killed and (why := lane.hung(now, self._awake_since)):
            _log.error("the executor of queue %s %s: it is replaced", lane.spec.name, why)
            self._kill(lane, HUNG)

    def _kill(self, lane: Lane, why: str) -> None:
        lane.killed = why
        if lane.pid and self._spawner is not None:
            self._spawner.line.send("kill", pid=lane.pid)

    def _kill_all(self, why: str) -> None:
        for lane in self._lanes.all():
            if not lane.killed:
                self._kill(lane, why)

    # -- ending -------------------------------------------------------------------------------------------------

    def _install_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _note_order(self, word: str) -> None:
        self._orders.append(word)
        self._wake()

    def _note_suspects(self, queue: str) -> None:
        self._suspected.append(queue)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._wake_w, b"o")

    def _on_order(self, word: str) -> None:
        """What an operator asks for; to do it twice changes nothing."""
        if word == "stop":
            if not self._ending:
                self._on_signal(signal.SIGTERM)
        elif word in ("quiet", "resume"):
            self._lanes.quiet = word == "quiet"
            for lane in self._lanes.all():
                lane.send(word)

    def _on_signal(self, number: int) -> None:
        """The first drains, the second forces."""
        if self._ending:
            self._forced = number
            self._kill_all("force")
            return
        self._ending = self._lanes.draining = True
        grace_s = self._worker.grace.total_seconds()
        self._deadline = time.monotonic() + grace_s
        self._restarts.clear()
        self._spawner_due = None
        events.emit("worker.draining", worker=self._name, grace_s=grace_s)
        for lane in self._lanes.all():
            lane.draining = True
            lane.send("drain")

    def problems(self) -> list[str]:
        """Why this worker is not ready to take jobs; empty when it is. For the readiness probe."""
        now = time.monotonic()
        found = ["it is draining"] if self._ending else []
        if now - self._keepers.last_success > _READY_WITHIN_S:
            found.append(f"Redis has not answered for {_READY_WITHIN_S:.0f} s")
        serving = self._lanes.serving(_READY_WITHIN_S, _POLLED_WITHIN_S)
        return found + [f"queue {name} is not served" for name in self._specs if name not in serving]

    def stalled(self) -> list[str]:
        """Why this worker must be started anew; empty when it need not. For the liveness probe."""
        now = time.monotonic()
        found = []
        for who, turned_at, most_s in (
            ("the supervisor", self._turned_at, _STALLED_S),
            ("a thread for Redis", self._keepers.last_turn, _KEEPER_STALLED_S),
        ):
            if now - turned_at > most_s:
                found.append(f"{who} has stood still for {now - turned_at:.0f} s")
        return found

    def _stop(self) -> None:
        if self._health is not None:
            self._health.close()
        self._keepers.stop(_FORCED_STOP_S)
        if self._spawner is not None:
            self._spawner.end()
        signal.set_wakeup_fd(-1)


def _unknown_queue(name: str, known: Mapping[str, QueueSpec]) -> str:
    near = get_close_matches(name, known, n=1)
    remedy = (
        f"did you mean {near[0]!r}?"
        if near
        else (
            f"declare it with jobq.queue in a module of JOBQ_APP, or set JOBQ_QUEUES__{name.upper()}__SLOTS"
        )
    )
    return f"queue {name!r} is not configured; {remedy}"


def run(settings: Settings, worker: WorkerSpec) -> int:
    """Run a worker until it is told to stop. Returns the process' exit code.

    Raises:
        ConfigError: The application, a queue or the server cannot be used.
        StoreUnavailableError: Redis cannot be reached at start.
    """
    if worker.reload:
        return run_with_reload(settings.app)
    return Supervisor(settings, worker).run()
