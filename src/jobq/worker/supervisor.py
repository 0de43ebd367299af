"""The supervisor: starts the executors, keeps their jobs' leases alive, enforces deadlines, drains.

It imports no application code. Its main thread owns the processes, its keeper thread owns Redis; neither waits for
the other.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from datetime import timedelta
from types import FrameType
from typing import Any

from pydantic import SecretStr

from jobq import __version__, events
from jobq.config import Settings
from jobq.connection import connect, inspect_server, require_usable
from jobq.errors import ConfigError
from jobq.keys import Keys
from jobq.queues import QueueSpec
from jobq.retry import RetryPolicy
from jobq.store import Store
from jobq.worker.channel import Channel, ChannelClosed, Message
from jobq.worker.executor import LaneSpec
from jobq.worker.health import HealthServer
from jobq.worker.lane import HUNG, HUNG_S, Lane, new_exec_id
from jobq.worker.maintenance import Fleet, Keeper, executor_name
from jobq.worker.reload import run_with_reload
from jobq.worker.slots import SlotState, SlotTable
from jobq.worker.spawner import CHANNEL_ENV
from jobq.worker.spec import WorkerSpec

_log = logging.getLogger("jobq")

_TURN_S = 0.25
_START_TIMEOUT_S = 60.0
_FAST_DEATHS = 5
_FAST_DEATH_S = 2.0
_RESPAWN_PAUSE_S = 1.0
_FORCED_STOP_S = 2.0
_READY_WITHIN_S = 5.0
_READS_WITHIN_S = 15.0


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
        self._specs = self._served(settings, worker)
        self._keys = Keys(settings.key_prefix)
        self._lease_ms = int(settings.lease.total_seconds() * 1000)
        self._lanes: dict[str, Lane] = {}
        self._tables = threading.Lock()  # the keeper reads slot tables while lanes come and go
        self._numbers = 0
        self._policies: dict[str, RetryPolicy] = {}
        self._keepers: dict[str | None, Keeper] = {}
        self._deaths: dict[str, deque[float]] = {name: deque(maxlen=_FAST_DEATHS) for name in self._specs}
        self._restarts: list[tuple[float, str]] = []
        self._spawner: subprocess.Popen[bytes] | None = None
        self._line: Channel | None = None
        self._birth_ms = time.time_ns() // 1_000_000
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._signals: list[int] = []
        self._ending = False
        self._deadline = 0.0
        self._forced = 0
        self._health: HealthServer | None = None

    @staticmethod
    def _served(settings: Settings, worker: WorkerSpec) -> dict[str, QueueSpec]:
        specs = settings.queue_specs()
        unknown = [name for name in worker.queues if name not in specs]
        if unknown:
            raise ConfigError(
                f"queue {unknown[0]!r} is not configured: set JOBQ_QUEUES__{unknown[0].upper()}__SLOTS, "
                f"or serve one of {', '.join(specs)}",
                queue=unknown[0],
            )
        return {name: specs[name] for name in (worker.queues or specs)}

    def run(self) -> int:
        """Serve until a signal, the end of a burst, or a failure to start. Returns the exit code."""
        self._check_servers()
        self._install_signals()
        self._start_spawner()
        self._start_keepers()
        for name in self._specs:
            self._start_lane(name)
        if self._worker.health_port is not None:
            self._health = HealthServer(self._worker.health_port, self.problems)
        events.emit(
            "worker.started",
            worker=self._name,
            queues=list(self._specs),
            slots=sum(self._slots(spec) for spec in self._specs.values()),
        )
        try:
            while self._lanes or self._restarts:
                try:
                    self._turn()
                except ChannelClosed:
                    self._spawner_died()
        finally:
            self._stop()
        events.emit("worker.stopped", worker=self._name)
        return 128 + self._forced if self._forced else 0

    # -- starting -----------------------------------------------------------------------------------------------

    def _check_servers(self) -> None:
        for url in {spec.redis_url for spec in self._specs.values()}:
            client = connect(self._settings, "command", url=url)
            info = inspect_server(client)
            require_usable(info)
            events.emit("redis.connected", durability=info.durability, version=info.version)
            client.close()
            if info.durability == "none":
                _log.warning("Redis keeps nothing on disk: jobs are lost when it stops; set appendonly yes")

    def _start_spawner(self) -> None:
        line, theirs = Channel.pair()
        self._spawner = subprocess.Popen(
            [sys.executable, "-m", "jobq.worker.spawner"],
            env={**self._environment(), CHANNEL_ENV: str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C is for the supervisor alone
        )
        theirs.close()
        self._line = line
        ready, _, _ = select.select([line.fileno()], [], [], _START_TIMEOUT_S)
        try:
            messages = line.receive(block=bool(ready))
        except ChannelClosed:
            messages = []
        if not messages or messages[0].op == "failed":
            self._spawner.kill()
            self._spawner.wait()
            said = messages[0].body["error"] if messages else f"no answer within {_START_TIMEOUT_S:.0f} s"
            raise ConfigError(f"the application cannot be loaded: {said}")
        first = messages[0]
        self._policies.update(
            {name: RetryPolicy.from_dict(policy) for name, policy in first.body["tasks"].items()}
        )
        if first.body["unlimited"]:
            _log.warning(
                "rate= and concurrency= are checked and kept, but not enforced yet: %s run without limits",
                ", ".join(first.body["unlimited"]),
            )
        if first.body["threads"]:
            _log.warning(
                "importing the application starts threads, so nothing can be forked from it; "
                "start them on first use to save memory and start-up time"
            )

    def _environment(self) -> dict[str, str]:
        """Ours, with what came by argument as variables: the spawner reads all other sources itself."""
        environment = dict(os.environ)
        for name, origin in self._settings.origins().items():
            value = getattr(self._settings, name, None)
            if origin != "argument" or value is None:
                continue
            if isinstance(value, SecretStr):
                text = value.get_secret_value()
            elif isinstance(value, timedelta):
                text = f"{value / timedelta(milliseconds=1):.0f}ms"
            elif isinstance(value, tuple):
                text = ",".join(value)
            else:
                text = str(value)
            environment[f"JOBQ_{name.upper()}"] = text
            environment.pop(f"JOBQ_{name.upper()}_FILE", None)
        return environment

    def _start_keepers(self) -> None:
        for url in {spec.redis_url for spec in self._specs.values()}:
            specs = {name: spec for name, spec in self._specs.items() if spec.redis_url == url}
            fleet = Fleet(
                name=self._name,
                keys=self._keys,
                specs=specs,
                lease_ms=self._lease_ms,
                members=lambda names=frozenset(specs): self._members(names),  # type: ignore[misc]
                tell=self._tell_all,
                workers=lambda names=frozenset(specs): self._registrations(names),  # type: ignore[misc]
                policies=self._policies,
            )
            keeper = Keeper(Store(connect(self._settings, "command", url=url)), fleet)
            self._keepers[url] = keeper
            keeper.start()

    def _slots(self, spec: QueueSpec) -> int:
        return self._worker.concurrency or spec.slots

    def _start_lane(self, queue: str) -> None:
        assert self._line is not None
        spec = self._specs[queue]
        lane_spec = LaneSpec(
            queue=queue,
            slots=self._slots(spec),
            worker=executor_name(self._name, queue),
            lease_ms=self._lease_ms,
            exec_id=new_exec_id(),
            burst=self._worker.burst,
            max_jobs=self._worker.max_jobs,
        )
        self._numbers += 1
        table = SlotTable.create(lane_spec.capacity)
        table.set_pulse(time.monotonic())
        control, theirs = Channel.pair()
        lane = Lane(lane_spec, f"lane-{self._numbers}", table, control)
        self._line.send(
            "spawn", fds=(table.fd, theirs.fileno()), kind="executor", ref=lane.ref, lane=lane_spec.to_dict()
        )
        theirs.close()
        with self._tables:
            self._lanes[lane.ref] = lane

    # -- the loop -----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Look after everything once. Raises ChannelClosed when the spawner has gone."""
        assert self._line is not None
        ready, _, _ = select.select([self._line.fileno(), self._wake_r], [], [], _TURN_S)
        if self._wake_r in ready:
            os.read(self._wake_r, 512)
        while self._signals:
            self._on_signal(self._signals.pop(0))
        if self._line.fileno() in ready:
            for message in self._line.receive():
                self._on_message(message)
        now = time.monotonic()
        for lane in list(self._lanes.values()):
            lane.table.set_pulse(now)
            self._check_deadlines(lane, now)
        for at, queue in list(self._restarts):
            if now >= at:
                self._restarts.remove((at, queue))
                self._start_lane(queue)
        if self._ending and now > self._deadline:
            self._kill_all("grace")

    def _on_message(self, message: Message) -> None:
        lane = self._lanes.get(message.body["ref"])
        if lane is None:
            return
        if message.op == "spawned":
            lane.pid = message.body["pid"]
            if lane.killed:  # before its number was known
                self._kill(lane, lane.killed)
            if lane.draining:
                lane.send("drain")
        elif message.op == "exited":
            self._lane_died(lane, message.body["status"])

    def _lane_died(self, lane: Lane, status: int) -> None:
        queue = lane.spec.queue
        with self._tables:
            del self._lanes[lane.ref]
            will = lane.last_will(status)
            lane.close()
        expected = status == 0 and not will.outcomes
        if not expected:
            self._keepers[self._specs[queue].redis_url].post(will)
            if not lane.killed:
                events.emit("worker.lost", worker=lane.spec.worker, queue=queue, status=status)
        over = expected and (self._worker.burst or self._worker.max_jobs is not None)
        if self._ending or lane.retired or over:
            return
        self._restart(queue, time.monotonic() - lane.started_at)

    def _restart(self, queue: str, lived_s: float) -> None:
        """Start a successor: at once, or a second later when the last ones died as soon as they were born."""
        now = time.monotonic()
        deaths = self._deaths[queue]
        if lived_s > _FAST_DEATH_S:  # it could serve: what ended it is no reason to let its jobs wait
            deaths.clear()
        deaths.append(now)
        fast = len(deaths) == _FAST_DEATHS and now - deaths[0] < _FAST_DEATHS * _FAST_DEATH_S
        if fast:
            self._restarts.append((now + _RESPAWN_PAUSE_S, queue))
        else:
            self._start_lane(queue)

    def _check_deadlines(self, lane: Lane, now: float) -> None:
        retire, culprits = lane.overdue(now)
        if retire and not lane.retired:
            lane.retired = True
            lane.send("retire")
            if not self._ending:
                self._start_lane(lane.spec.queue)
        if culprits and not lane.killed:
            lane.culprits = culprits
            self._kill(lane, "timeout")
        elif not lane.killed and lane.hung(now):
            _log.error(
                "the executor of queue %s has not answered for %.0f s: it is replaced",
                lane.spec.queue,
                HUNG_S,
            )
            self._kill(lane, HUNG)

    def _kill(self, lane: Lane, why: str) -> None:
        assert self._line is not None
        lane.killed = why
        if lane.pid:
            self._line.send("kill", pid=lane.pid)

    def _kill_all(self, why: str) -> None:
        for lane in self._lanes.values():
            if not lane.killed:
                self._kill(lane, why)

    def _spawner_died(self) -> None:
        """Its executors went with it: settle what they held, and begin again."""
        with self._tables:
            for lane in self._lanes.values():
                lane.killed = lane.killed or "spawner"
                self._keepers[self._specs[lane.spec.queue].redis_url].post(lane.last_will(-9))
                lane.close()
            self._lanes.clear()
        self._restarts.clear()  # every queue gets an executor below
        if self._line is not None:
            self._line.close()
        if self._spawner is not None:
            self._spawner.kill()
            self._spawner.wait()
        if self._ending:
            return
        events.emit("worker.lost", worker=self._name, queue="*", status=-9)
        time.sleep(_RESPAWN_PAUSE_S)
        self._start_spawner()
        for name in self._specs:
            self._start_lane(name)

    # -- what the keeper asks, from its thread ------------------------------------------------------------------

    def _members(self, queues: frozenset[str]) -> list[str]:
        now = time.monotonic()
        with self._tables:
            return [
                m for lane in self._lanes.values() if lane.spec.queue in queues for m in lane.members(now)
            ]

    def _tell_all(self, members: list[str]) -> None:
        now = time.monotonic()
        with self._tables:
            for lane in self._lanes.values():
                # Told again at each heartbeat: a line that nobody reads would fill, and this thread hang with it.
                if now - lane.last_turn < _READS_WITHIN_S:
                    lane.send("cancel", members=members)

    def _registrations(self, queues: frozenset[str]) -> list[dict[str, Any]]:
        now_ms = time.time_ns() // 1_000_000
        with self._tables:
            # One without a process id has not been forked yet.
            known = (lane for lane in self._lanes.values() if lane.pid and not lane.retired)
            lanes = [lane for lane in known if lane.spec.queue in queues]
            return [self._registration(lane, now_ms) for lane in lanes]

    def _registration(self, lane: Lane, now_ms: int) -> dict[str, Any]:
        busy = sum(slot.state is SlotState.STARTED for slot in lane.table.read())
        return {
            "name": lane.spec.worker,
            "queues": (lane.spec.queue,),
            "slots": lane.spec.slots,
            "busy": busy,
            "tasks": tuple(self._policies),
            "host": socket.gethostname(),
            "pid": lane.pid,
            "state": "draining" if self._ending else ("busy" if busy else "idle"),
            "birth_ms": self._birth_ms,
            "now_ms": now_ms,
            "version": __version__,
        }

    # -- ending -------------------------------------------------------------------------------------------------

    def _install_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _on_signal(self, number: int) -> None:
        """The first drains, the second forces."""
        if self._ending:
            self._forced = number
            self._kill_all("force")
            return
        self._ending = True
        grace_s = self._worker.grace.total_seconds()
        self._deadline = time.monotonic() + grace_s
        self._restarts.clear()
        events.emit("worker.draining", worker=self._name, grace_s=grace_s)
        for lane in self._lanes.values():
            lane.draining = True
            lane.send("drain")

    def problems(self) -> list[str]:
        """Why this worker is not ready to take jobs; empty when it is. For the readiness probe."""
        now = time.monotonic()
        found = ["it is draining"] if self._ending else []
        if any(now - keeper.last_success > _READY_WITHIN_S for keeper in self._keepers.values()):
            found.append(f"Redis has not answered for {_READY_WITHIN_S:.0f} s")
        with self._tables:
            serving = {
                lane.spec.queue
                for lane in self._lanes.values()
                if not lane.retired and now - lane.last_turn < _READY_WITHIN_S
            }
        return found + [f"queue {name} is not served" for name in self._specs if name not in serving]

    def _stop(self) -> None:
        if self._health is not None:
            self._health.close()
        for keeper in self._keepers.values():
            keeper.stop(_FORCED_STOP_S)
        if self._line is not None:
            self._line.close()
        if self._spawner is not None:
            try:
                self._spawner.wait(_FORCED_STOP_S)
            except subprocess.TimeoutExpired:
                self._spawner.kill()
                self._spawner.wait()
        signal.set_wakeup_fd(-1)


def run(settings: Settings, worker: WorkerSpec) -> int:
    """Run a worker until it is told to stop. Returns the process' exit code.

    Raises:
        ConfigError: The application, a queue or the server cannot be used.
        StoreUnavailableError: Redis cannot be reached at start.
    """
    if worker.reload:
        return run_with_reload()
    return Supervisor(settings, worker).run()
