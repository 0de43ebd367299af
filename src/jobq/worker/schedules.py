"""A worker's part in recurring schedules: it fires what is due, and writes what its code declares."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from jobq import events, schedule_calls
from jobq.codec import Codec
from jobq.cron import moment
from jobq.errors import ConfigError, JobqError, NoKeyError, StoreError, StoreUnavailableError
from jobq.fleet import workers_plan
from jobq.keys import Keys
from jobq.schedule_calls import Take, Taken
from jobq.schedule_firing import Fired, fire_plan
from jobq.schedule_records import Record, fingerprint_of, sync_plan
from jobq.schedule_spec import StoredSchedule
from jobq.store import Store

_log = logging.getLogger("jobq")

FIRE_S = 0.2
LOOK_S = 1.0
"""How often the schedules are asked for when none is due before: so late is a new one noticed at most."""

DECLARE_S = 10.0
_TURN_S = 0.5
"""How long firing may keep the other duties waiting, the heartbeat above all; a batch that has begun is finished."""

_BATCH = 25
"""Few, since each may have years of missed slots to look at."""


class Served(Protocol):
    """What the duties need to know of the worker: ``jobq.worker.maintenance.Fleet``."""

    @property
    def keys(self) -> Keys: ...
    @property
    def policies(self) -> Collection[str]: ...


_NO_KEY = (
    "schedules are left to other workers: those have a key and would reject what this one enqueues; "
    "set JOBQ_SECRET_KEY here, too"
)


def _others_sign(store: Store, fleet: Served) -> bool:
    """Whether a live worker has a key, so that an unsigned job would be rejected."""
    return any(worker.signs for worker in store.run(workers_plan(fleet.keys)))


class FireSchedules:
    """Enqueues the jobs of due slots: one call a pass while nothing is due.

    Without a key nothing is fired while a live worker has one.

    Args:
        codec: Reads what is stored, and signs for the jobs.
    """

    period_s = FIRE_S

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._not_before = 0.0
        self._elsewhere: frozenset[str] = frozenset()  # tasks that other workers know
        self._asked = float("-inf")
        self._warned: set[str] = set()

    def tick(self, store: Store, fleet: Served) -> None:
        """Fire what is due, for half a second at most."""
        begun = time.monotonic()
        # Before the application is loaded, every task would seem to be one that nobody knows.
        if begun < self._not_before or not fleet.policies:
            return
        while True:
            taken = self._take(store, fleet)
            if taken is None:
                return
            if taken.due and not self._codec.signs and _others_sign(store, fleet):
                self._warn_once("", _NO_KEY)
                self._not_before = begun + DECLARE_S  # else it would take them again before who can fire them
                return
            for due in taken.due:
                self._fire(store, fleet, due, taken.now_ms)
            if len(taken.due) < _BATCH or time.monotonic() - begun > _TURN_S:
                break
        wait_s = LOOK_S if taken.next_ms is None else (taken.next_ms - taken.now_ms) / 1000
        self._not_before = begun + (0.0 if taken.due else min(LOOK_S, wait_s))

    def _take(self, store: Store, fleet: Served) -> Take | None:
        try:
            return store.run(schedule_calls.take(fleet.keys, _BATCH))
        except StoreUnavailableError:
            raise
        except StoreError as error:  # such as a key of another type: jobs go on
            self._warn_once("", f"schedules cannot be read: {error}")
            self._not_before = time.monotonic() + LOOK_S
            return None

    def _fire(self, store: Store, fleet: Served, due: Taken, now_ms: int) -> None:
        try:
            if due.error:
                raise ConfigError(due.error)
            stored = StoredSchedule.decode(due.name, due.spec)
            self._require_known(store, fleet, stored.task)
            fired = store.run(fire_plan(fleet.keys, self._codec, due, stored, now_ms))
        except NoKeyError as error:  # left to a worker that has the key
            self._warn_once(due.name, f"schedule {due.name} is left to other workers: {error}")
        except StoreUnavailableError:
            raise
        except Exception as error:  # whatever stands in Redis, it must not stop the others
            if isinstance(error, StoreError) and "out of memory" in str(error):  # it stays due
                self._warn_once(due.name, f"schedule {due.name} cannot be fired: {error}")
            else:
                self._set_aside(store, fleet, due.name, error)
        else:
            if fired is not None and fired.full:
                self._warn_once(
                    due.name, f"schedule {due.name} waits: queue {fired.stored.queue} takes no more jobs"
                )
            else:
                self._warned.discard(due.name)
            if fired is not None:
                tell(due.name, fired, now_ms)

    def _require_known(self, store: Store, fleet: Served, task: str) -> None:
        """Raise ConfigError when no live worker could run the job; any that does may have a newer version."""
        if task in fleet.policies or task in self._elsewhere:
            return
        if time.monotonic() - self._asked > DECLARE_S:
            self._elsewhere = frozenset(
                name for worker in store.run(workers_plan(fleet.keys)) for name in worker.tasks
            )
            self._asked = time.monotonic()
        if task not in self._elsewhere:
            raise ConfigError(f"no live worker knows the task {task!r}")

    def _set_aside(self, store: Store, fleet: Served, name: str, error: Exception) -> None:
        reason = str(error) if isinstance(error, JobqError) else f"it cannot be read ({type(error).__name__})"
        if store.run(schedule_calls.set_aside(fleet.keys, name, reason)):
            events.emit("schedule.broken", schedule=name, reason=reason)

    def _warn_once(self, name: str, text: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            _log.warning("%s", text)


def tell(name: str, fired: Fired, now_ms: int) -> None:
    """The events of one fire."""
    task, queue = fired.stored.task, fired.stored.queue
    if fired.missed:
        events.emit("schedule.missed", schedule=name, task=task, queue=queue, missed=fired.missed)
    for slot, job_id, word in fired.slots:
        at = moment(slot).isoformat()
        if word == "queued":
            events.emit(
                "schedule.fired", schedule=name, task=task, queue=queue, job_id=job_id, slot=at,
                late_ms=now_ms - fired.stored.timing.fires_at(slot),
            )  # fmt: skip
        else:
            events.emit("schedule.skipped", schedule=name, task=task, queue=queue, slot=at, reason=word)


class DeclareSchedules:
    """Writes what this worker's code declares, as long as no newer version of it runs.

    While two versions run, the set that was first seen last counts; the older one again when no worker has declared
    the newer for a minute. Without a key nothing is written while a live worker has one, which could not read it.

    A Redis that has lost its data, or comes back with old ones, has lost that this set is declared: then it is written
    again. What was written is looked for once more the next time, since a crash of Redis takes its last seconds.

    Args:
        source: Names the application: its modules.
        records: What its code declares; None as long as it is not loaded.
        signs: The records are signed.
    """

    period_s = LOOK_S

    def __init__(
        self, source: str, records: Callable[[], Sequence[Record] | None], *, signs: bool = False
    ) -> None:
        self._source = source
        self._records = records
        self._signs = signs
        self._written = ""  # and found written
        self._taken: set[str] = set()
        self._seen: tuple[Sequence[Record] | None, float] = (None, 0.0)

    def tick(self, store: Store, fleet: Served) -> None:
        """Say that this set is declared, and write it when it has come to count."""
        records, now = self._records(), time.monotonic()
        if records is None or (records is self._seen[0] and now < self._seen[1]):
            return
        self._seen = records, now + DECLARE_S
        if not self._signs and _others_sign(store, fleet):
            self._written = ""
            return
        fingerprint = fingerprint_of(records)
        known = store.run(schedule_calls.is_declared(fleet.keys, self._source, fingerprint))
        if not store.run(schedule_calls.declare(fleet.keys, self._source, fingerprint)):
            self._written = ""
            return
        if known and self._written == fingerprint:
            return
        done = store.run(sync_plan(fleet.keys, self._source, records))
        broken = {record.stored.name: record.stored.error for record in records if record.stored.error}
        for name, word in done.items():
            if word in ("added", "changed") and name in broken:
                events.emit("schedule.broken", schedule=name, reason=broken[name])
            elif word != "theirs":
                events.emit(f"schedule.{word}", schedule=name)
        taken = {name for name, word in done.items() if word == "theirs"}
        for name in sorted(taken - self._taken):
            _log.warning(
                "schedule %s is not written: one of the name was added at run time, or another application "
                "declares it", name,
            )  # fmt: skip
        self._taken = taken
        self._written = "" if done else fingerprint  # a name that was taken may be free by then
