"""The background duties of a worker, and the thread that performs them.

Each duty is one small class: a period, and a ``tick``. Any worker performs them for all; each is one bounded, atomic
step, so two workers at once do no harm, and none has to be the leader.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from jobq import brake, calls, events, rq_bridge
from jobq.errors import SoftTimeout, StoreError, StoreUnavailableError
from jobq.failures import describe_error, process_ended
from jobq.job import Attempt
from jobq.keys import Keys
from jobq.probes import free_dedup
from jobq.queues import KEEP_DEAD, QueueSpec, Retention, served_together
from jobq.records import encode_attempt
from jobq.registration import register_worker, unregister_worker
from jobq.replies import as_text, bounded_int, clean_text
from jobq.retry import Dead, RetryPolicy
from jobq.steps import MOST_JOBS, Batch, Outcome
from jobq.store import Store
from jobq.worker.opening import override_policy
from jobq.worker.retention import fitting_plan

_log = logging.getLogger("jobq")

PROMOTE_S = 0.2
RESCUE_S = 0.5
"""At the default lease; a shorter one is looked after more often, or every pass would take itself for the first one
after an outage."""
RELEASE_S = 0.5
SUSPECTS_S = 1.0
PRUNE_S = 5.0
PRUNE_BEHIND_S = 0.05
"""Between two passes while more ends than one pass deletes: a lane may end 10,000 jobs a second."""
SWEEP_S = 1.0
RQ_SLOTS_S = 1.0
BRAKE_S = 1.0
REGISTER_S = 10.0
LOOK_S = 0.25
_OUTAGE = 2
"""Failures in a row that are an outage: after one, the connection may just have been closed."""
_OPEN_FOR_S = 0.05
"""How long one turn opens gates: 1,000 keys whose windows move on at once are let in by a turn or two."""
_MOST_ROUNDS = 20
"""Full batches in a row before the other duties have their turn."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a supervisor settles in place of a process that ended.

    Attributes:
        queue: The jobs' queue.
        outcomes: What became of those it knows.
        exec_id: The ended executor; empty when it lives on. What its last claim took beyond those goes back too.
        worker: Its name, for the history.
        status: How it ended: exit code, or minus the signal.
        timed_out: ``(job id, token)`` of jobs that were killed at their hard timeout, an attempt spent.
    """

    queue: str
    outcomes: Sequence[Outcome] = ()
    exec_id: str = ""
    worker: str = ""
    status: int = 0
    timed_out: Sequence[tuple[str, str]] = ()


@dataclass(slots=True)
class Fleet:
    """What the duties need to know of the worker they serve.

    Attributes:
        name: The worker's.
        members: ``<id>:<token>`` of every job in the executors' hands that may still be extended.
        tell: Passes the members whose lease is lost, or that were asked to stop, on to the executors.
        workers: The registration of each executor, as arguments of ``register_worker``.
        found_suspects: Takes the name of a queue where jobs wait to run apart.
        thresholds: Of the memory brake, for each queue of the settings.
    """

    name: str
    keys: Keys
    specs: Mapping[str, QueueSpec]
    lease_ms: int
    members: Callable[[], list[str]]
    tell: Callable[[list[str]], None]
    workers: Callable[[], list[dict[str, Any]]]
    found_suspects: Callable[[str], None]
    policies: dict[str, RetryPolicy] = field(default_factory=dict)
    thresholds: Mapping[str, int] = field(default_factory=dict)

    @property
    def executors(self) -> dict[str, list[str]]:
        """The names that its executors go by in Redis, and the queues of each."""
        return {
            executor_name(self.name, name): [spec.name for spec in specs]
            for name, specs in served_together(self.specs.values()).items()
        }


def executor_name(worker: str, queue: str) -> str:
    """The name that a worker's executor of a queue, or of a group of queues, goes by in Redis."""
    return f"{worker}-{queue}"


class Duty(Protocol):
    """One background duty."""

    period_s: float

    def tick(self, store: Store, fleet: Fleet) -> None:
        """Do it once, in bounded steps."""
        ...


class Heartbeat:
    """Extends the lease of every running job, and learns of lost leases and of requests to stop."""

    def __init__(self, lease_ms: int) -> None:
        self.period_s = lease_ms / 3000

    def tick(self, store: Store, fleet: Fleet) -> None:
        members = fleet.members()
        for start in range(0, len(members), 500):
            beat = store.run(calls.heartbeat(fleet.keys, members[start : start + 500], fleet.lease_ms))
            if beat.lost or beat.cancelled:
                asked = set(beat.cancelled)
                fleet.tell(
                    beat.lost + [m for m in members[start : start + 500] if m.partition(":")[0] in asked]
                )


class Promote:
    """Moves due jobs into their queues, and those that waited at a gate which may be open by now."""

    period_s = PROMOTE_S

    def tick(self, store: Store, fleet: Fleet) -> None:
        queues = list(fleet.specs)
        ends = time.monotonic() + _OPEN_FOR_S
        for _ in range(_MOST_ROUNDS):
            promoted = store.run(calls.promote(fleet.keys, queues))
            # Fewer jobs and gates than a call takes: no gate is due any more.
            while promoted.gate and store.run(calls.open_gates(fleet.keys)) >= MOST_JOBS:
                if time.monotonic() >= ends:
                    break
            if promoted.count < MOST_JOBS:
                return


_RESCUED = Attempt(
    number=0,
    outcome="interrupted",
    error_type="LeaseExpired",
    error="whoever ran it did not extend its lease",
)
"""What rescue notes of a run."""


class Rescue:
    """Takes jobs whose lease has expired away from whoever held them."""

    def __init__(self, lease_ms: int) -> None:
        self.period_s = min(RESCUE_S, lease_ms / 8000)

    def tick(self, store: Store, fleet: Fleet) -> None:
        for _ in range(_MOST_ROUNDS):
            rescued = store.run(
                calls.rescue(
                    fleet.keys,
                    fleet.lease_ms,
                    record=encode_attempt(replace(_RESCUED, ended_at=datetime.now(UTC))),
                    exc=rq_bridge.encode_exc(_RESCUED.error or ""),
                    keep_of={name: spec.keep_dead.age_s for name, spec in fleet.specs.items()},
                )
            )
            for job_id, queue, word in rescued.moved:
                if word == "queued":
                    events.emit("job.rescued", job_id=job_id, queue=queue, outcome=word)
                elif word == "cancelled":  # it had been asked to stop
                    events.emit("job.cancelled", job_id=job_id, queue=queue, reason="requested")
                else:
                    events.emit("job.dead", job_id=job_id, queue=queue, reason="poison")
            if len(rescued.moved) < MOST_JOBS:
                return


class Release:
    """Queues the children of jobs that have succeeded."""

    period_s = RELEASE_S

    def tick(self, store: Store, fleet: Fleet) -> None:
        for _ in range(_MOST_ROUNDS):
            if not store.run(calls.release(fleet.keys)):
                return


class LookForSuspects:
    """Finds jobs that wait to run apart, and that nobody has told this worker of: who parked them may have gone."""

    period_s = SUSPECTS_S

    def tick(self, store: Store, fleet: Fleet) -> None:
        if fleet.specs:
            for queue in store.run(calls.queues_with_suspects(fleet.keys, list(fleet.specs))):
                fleet.found_suspects(queue)


class Prune:
    """Deletes ended jobs beyond their retention, as fast as they end."""

    def __init__(self) -> None:
        self.period_s = PRUNE_S

    def tick(self, store: Store, fleet: Fleet) -> None:
        behind = False
        for name, spec in fleet.specs.items():
            succeeded = _count(store, fleet.keys, spec.keep_succeeded, fleet.keys.finished(name))
            dead = _count(store, fleet.keys, spec.keep_dead, fleet.keys.failed(name))
            cancelled = _count(store, fleet.keys, spec.keep_cancelled, fleet.keys.canceled(name))
            for _ in range(_MOST_ROUNDS):
                deleted = store.run(
                    calls.prune(
                        fleet.keys,
                        name,
                        keep_succeeded=succeeded,
                        keep_dead=dead,
                        keep_cancelled_s=spec.keep_cancelled.age_s,
                        keep_cancelled=cancelled,
                    )
                )
                if deleted < MOST_JOBS:
                    break
            else:
                behind = True
        self.period_s = PRUNE_BEHIND_S if behind else PRUNE_S


def _count(store: Store, keys: Keys, kept: Retention, registry: str) -> int:
    """The most jobs to keep, -1 for any number."""
    fitting = None if kept.size is None else store.run(fitting_plan(keys, registry, kept.size))
    return min((most for most in (kept.count, fitting) if most is not None), default=-1)


class Sweep:
    """Deletes dedup keys whose holder is not live: an rq tool or a stock worker ended it."""

    period_s = SWEEP_S

    def __init__(self) -> None:
        self._cursor = 0

    def tick(self, store: Store, fleet: Fleet) -> None:
        page = store.run(
            Batch(
                (("SCAN", self._cursor, "MATCH", f"{fleet.keys.dedup('')}*", "COUNT", MOST_JOBS),),
                lambda replies: replies[0],
            )
        )
        if isinstance(page, Exception):
            return  # a user who may not SCAN: these keys refuse nobody
        self._cursor, names = int(page[0]), [as_text(name) for name in page[1]]
        if names:
            store.run(free_dedup(fleet.keys, names, fix=True))


class Brake:
    """Lets queues refuse new jobs while memory is short."""

    period_s = BRAKE_S

    def tick(self, store: Store, fleet: Fleet) -> None:
        brake.tell(store.run(brake.look(fleet.keys, fleet.thresholds)), worker=fleet.name)


class FreeRqSlots:
    """Lets jobs with rq's own ``RateLimit`` go on when one has ended here, was cancelled or deleted."""

    period_s = RQ_SLOTS_S

    def tick(self, store: Store, fleet: Fleet) -> None:
        for _ in range(_MOST_ROUNDS):
            if store.run(calls.free_rq_slots(fleet.keys)) < MOST_JOBS:
                return


class DeclareLimits:
    """Notes what the scripts go by, when the worker starts; later only what has been lost since."""

    period_s = REGISTER_S

    def __init__(self) -> None:
        self._first = True

    def tick(self, store: Store, fleet: Fleet) -> None:
        noted = {name: spec.noted for name, spec in fleet.specs.items()}
        if not self._first:
            noted = {name: each for name, each in noted.items() if any(each)}
        if noted:
            store.run(calls.declare_limits(fleet.keys, noted, first=self._first))
        self._first = False


class Register:
    """Keeps the executors in rq's and our lists of workers: each anew in a while, and all when one came or went."""

    period_s = LOOK_S

    def __init__(self) -> None:
        self._shown: set[tuple[str, int, str]] = set()
        self._again = 0.0

    def tick(self, store: Store, fleet: Fleet) -> None:
        workers = fleet.workers()
        now = time.monotonic()
        # Busy or idle is no news of its own.
        seen = {
            (worker["name"], worker["pid"], worker["state"].replace("busy", "idle")) for worker in workers
        }
        if seen == self._shown and now < self._again:
            return
        for worker in workers:
            store.run(register_worker(fleet.keys, **worker))
        self._shown, self._again = seen, now + REGISTER_S


def _tell(queue: str, outcome: Outcome, word: str) -> None:
    """Say what became of a job whose process ended; one that was handed back has lost nothing."""
    told: dict[str, str] = {"job_id": outcome.job_id, "queue": queue}
    if word == "cancelled":
        events.emit("job.cancelled", **told, reason="requested")
    elif word == "dead":
        events.emit("job.dead", **told, reason="poison")
    elif word == "ok" and outcome.kind == "dead":
        events.emit("job.dead", **told, reason=outcome.reason, error_fingerprint=outcome.fingerprint)
    elif word == "ok" and outcome.kind != "hand_back":
        events.emit("job.timed_out" if outcome.spends else "job.rescued", **told, outcome=outcome.kind)


class Keeper:
    """The thread that talks to Redis for a supervisor. It outlives any outage.

    Args:
        store: Its own connection.
        fleet: The worker it serves.
        more: Duties beside its own.
    """

    def __init__(self, store: Store, fleet: Fleet, more: Sequence[Duty] = ()) -> None:
        self._store = store
        self._fleet = fleet
        beat, rescue = Heartbeat(fleet.lease_ms), Rescue(fleet.lease_ms)
        self._duties: list[Duty] = [
            beat,
            rescue,
            Promote(),
            Release(),
            LookForSuspects(),
            Register(),
            DeclareLimits(),
            FreeRqSlots(),
            Prune(),
            Brake(),
            Sweep(),
            *more,
        ]
        self._due = [0.0] * len(self._duties)
        self._due[1] = time.monotonic() + rescue.period_s
        self._posted: deque[Settlement] = deque()
        self._wake = threading.Condition()
        self._ending = False
        # Who comes back later than rescue holds off after a gap, a third of a lease, has its leases taken away.
        self._longest_pause_s = min(1.0, fleet.lease_ms / 12_000)
        self._rand = random.Random()
        self.last_success = 0.0
        self.last_turn = math.inf  # by the monotonic clock
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def post(self, settlement: Settlement) -> None:
        """Settle this as soon as Redis can be reached."""
        with self._wake:
            self._posted.append(settlement)
            self._wake.notify()

    def beat_now(self) -> None:
        """Do not wait for the next heartbeat's time."""
        with self._wake:
            self._due[0] = 0.0
            self._wake.notify()

    def stop(self, timeout_s: float) -> None:
        """Settle what was posted, sign the workers off, and end; give up after ``timeout_s``."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        failures, answered_at = 0, time.monotonic()
        while True:
            self.last_turn = time.monotonic()
            with self._wake:
                if not self._ending and not self._posted:
                    self._wake.wait(max(0.0, min(self._due) - time.monotonic()))
                ending = self._ending
            try:
                self._settle_posted()
                if ending:
                    self._sign_off()
                    return
                self._tick()
            except StoreError as error:
                failures += 1
                if ending and failures > 3:
                    return
                if failures == _OUTAGE:
                    events.emit("redis.unavailable", error_type=type(error).__name__, error=str(error))
                # After an outage the leases come first. A beat for nobody asks Redis nothing; a rescue pass does.
                self._due[:2] = 0.0, 0.0
                pause_s = min(self._longest_pause_s, 0.05 * 2 ** min(failures, 5))
                time.sleep(pause_s * self._rand.uniform(0.8, 1.0))
            else:
                now = time.monotonic()
                if failures >= _OUTAGE:
                    events.emit("redis.recovered", away_s=round(now - answered_at, 1))
                failures, answered_at, self.last_success = 0, now, now

    def _tick(self) -> None:
        for place, duty in enumerate(self._duties):
            now = time.monotonic()
            if now < self._due[place]:
                continue
            self.last_turn = now
            self._due[place] = now + duty.period_s
            try:
                duty.tick(self._store, self._fleet)
            except StoreError:
                raise
            except Exception:  # one duty's bug must not cost the others, the heartbeat above all
                _log.exception("maintenance: %s failed", type(duty).__name__)

    def _settle_posted(self) -> None:
        while self._posted:
            try:
                self._settle(self._posted[0])
            except StoreUnavailableError:
                raise
            # It must not cost the heartbeat; those leases run out, and rescue takes the jobs.
            except Exception:
                _log.exception("maintenance: the jobs of an ended executor could not be settled")
            self._posted.popleft()

    def _settle(self, settlement: Settlement) -> None:
        keys, queue = self._fleet.keys, settlement.queue
        spec = self._fleet.specs.get(queue)
        keep_dead_s = (spec.keep_dead if spec else KEEP_DEAD).age_s
        # What was interrupted once too often is dead, and kept as long as the queue's other dead letters.
        outcomes = [replace(outcome, keep_s=keep_dead_s) for outcome in self._with_history(settlement)]
        outcomes += [
            self._timed_out(member, settlement.worker, keep_dead_s) for member in settlement.timed_out
        ]
        known = {outcome.job_id for outcome in outcomes}
        if settlement.exec_id:
            for job_id, token in self._store.run(calls.last_claim(keys, settlement.exec_id)):
                if job_id not in known:
                    outcomes.append(Outcome(job_id=job_id, token=token, kind="hand_back"))
        for start in range(0, len(outcomes), MOST_JOBS):
            batch = outcomes[start : start + MOST_JOBS]
            words = self._store.run(calls.settle(keys, queue, batch, rq_bridge.iso()))
            for outcome, word in zip(batch, words, strict=True):
                _tell(queue, outcome, word)

    def _with_history(self, settlement: Settlement) -> list[Outcome]:
        """The outcomes, with an entry for each run that the process took along."""
        cut_off = [outcome.job_id for outcome in settlement.outcomes if outcome.kind == "interrupted"]
        if not cut_off:
            return list(settlement.outcomes)
        keys, now = self._fleet.keys, datetime.now(UTC)
        read: Batch[Iterable[Any]] = Batch(
            tuple(("HMGET", keys.job(job_id), "attempts", "description") for job_id in cut_off)
        )
        rows = zip(cut_off, self._store.run(read), strict=True)
        known = {job_id: (None, None) if isinstance(row, Exception) else row for job_id, row in rows}

        def told(outcome: Outcome) -> Outcome:
            details = process_ended(settlement.status, crash=outcome.crash)
            spent, description = known[outcome.job_id]
            entry = Attempt(
                number=bounded_int(spent) + 1,
                outcome="crashed" if outcome.crash else "interrupted",
                ended_at=now,
                worker=settlement.worker,
                error_type=details.type,
                error=details.message,
            )
            exc = rq_bridge.encode_exc(details.message)
            return replace(
                outcome,
                record=encode_attempt(entry),
                exc=exc,
                worker=settlement.worker,
                counters=(f"o:{rq_bridge.task_of(description)}",),
            )

        return [told(each) if each.job_id in known else each for each in settlement.outcomes]

    def _timed_out(self, member: tuple[str, str], worker: str, keep_dead_s: int) -> Outcome:
        """The outcome of a job killed at its hard timeout: a spent attempt, like any failure."""
        job_id, token = member
        fields = ("attempts", "o", "description", "retries_left", "failure_ttl")
        read = Batch((("HMGET", self._fleet.keys.job(job_id), *fields),), lambda replies: replies[0])
        reply = self._store.run(read)
        # Anybody may have written the hash, or put something else in its place: its neighbours are settled with it.
        attempts, overrides, description, *theirs = (
            (None,) * len(fields) if isinstance(reply, Exception) else reply
        )
        task = rq_bridge.task_of(description)
        policy = self._fleet.policies.get(task, RetryPolicy())
        if overrides:
            policy = override_policy(policy, overrides)
        # Only a job that plain rq made has these fields.
        asked = {name: clean_text(value) for name, value in zip(fields[3:], theirs, strict=True) if value}
        foreign = rq_bridge.foreign_options(asked)
        if foreign.max_attempts is not None:
            policy = replace(policy, max_attempts=foreign.max_attempts)
        attempt = max(0, bounded_int(attempts)) + 1
        error = SoftTimeout("the task did not stop at its timeout, and was killed")
        details = describe_error(error, ())
        decision = policy.decide(attempt, error, self._rand)
        record = encode_attempt(
            Attempt(
                number=attempt,
                outcome="timed_out",
                ended_at=datetime.now(UTC),
                worker=worker,
                error_type=details.type,
                error=details.message,
                fingerprint=details.fingerprint,
            )
        )
        dead = isinstance(decision, Dead)
        return Outcome(
            job_id=job_id,
            token=token,
            kind="dead" if dead else "retry",
            spends=True,
            delay_ms=0 if isinstance(decision, Dead) else int(decision.delay / timedelta(milliseconds=1)),
            reason=decision.reason if isinstance(decision, Dead) else "",
            fingerprint=details.fingerprint,
            record=record,
            exc=rq_bridge.encode_exc(details.message),
            keep_s=keep_dead_s if foreign.keep_dead_s is None else foreign.keep_dead_s,
            counters=(f"{'d' if dead else 'r'}:{task}",),
        )

    def _sign_off(self) -> None:
        for name, queues in self._fleet.executors.items():
            self._store.run(unregister_worker(self._fleet.keys, name, queues))
