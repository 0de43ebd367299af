"""One executor process as its supervisor sees it: its slot table, its line, its end."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jobq.steps import Outcome
from jobq.worker.alive import is_stopped
from jobq.worker.channel import Channel, ChannelClosed
from jobq.worker.children import HARD_KILL_S
from jobq.worker.maintenance import Settlement
from jobq.worker.slots import Slot, SlotState, SlotTable
from jobq.worker.spawner_process import START_TIMEOUT_S
from jobq.worker.spec import LaneSpec

RETIRE_S = 2.0
"""Seconds past a job's soft timeout after which its executor is retired: it claims no more, a successor starts."""

HUNG_S = 20.0
"""An executor whose loop has not turned for this long is killed: it would keep its leases for ever.

A turn takes 14 s at most: with a Redis that accepts connections and does not answer. A job that keeps the
interpreter's lock stops the loop, too: while one runs that may, its own timeout decides.
"""

_QUIET_S = 2.0
"""A loop turns once a second at least; who is silent for longer, or for a lease, is looked at."""
_SURE_S = 0.5
"""Who was found stopped twice, so long apart, is."""
_TICKS_S = 5.0
"""Python code has run of late: the ticker's pace, and what a busy machine adds."""

HUNG = "hung"

HOPELESS_S = 10.0
"""Seconds past the soft timeout after which a lease is no longer extended, whoever still claims to run the job."""


@dataclass(slots=True, eq=False)
class Lane:
    """One executor process.

    Attributes:
        spec: What it was told to serve.
        ref: Its name between supervisor and spawner.
        replaces: The one that serves until this one does.
        retired: It finishes what it runs; a successor claims.
        killed: Why the worker ended it: ``timeout``, ``grace``, ``force`` or ``spawner``, with which it went; empty: it
            did not.
        blamed: The leases of runs that may have ended the spawner.
        first_rss_kb: Its memory when it had claimed its first job.
        stillborn: It ended before its loop turned once.
        cpu_s: Processor time it had taken when it ended.
        replace_after: When it may be recycled, since its last successor could not start.
        called: It was told of suspects after it had started, perhaps too late for it.
        mute: Its end of the line is closed: it has gone.
        stopped_at: When it was first found stopped, and ever since; None: it is not.
    """

    spec: LaneSpec
    ref: str
    table: SlotTable
    control: Channel
    replaces: Lane | None = None
    pid: int = 0
    retired: bool = False
    draining: bool = False
    killed: str = ""
    started_at: float = field(default_factory=time.monotonic)
    culprits: tuple[Slot, ...] = ()
    blamed: frozenset[str] = frozenset()
    first_rss_kb: int = 0
    stillborn: bool = False
    cpu_s: float = 0.0
    replace_after: float = 0.0
    called: bool = False
    mute: bool = False
    stopped_at: float | None = None

    @property
    def key(self) -> tuple[str, bool]:
        """Whom it serves: a queue or a group of queues, or (True) a queue's suspects."""
        return self.spec.name, self.spec.apart

    @property
    def last_turn(self) -> float:
        """When its loop last turned."""
        return self.table.last_beat

    def send(self, op: str, **body: Any) -> None:
        """Tell it something; it may have gone already."""
        with contextlib.suppress(ChannelClosed):
            self.control.send(op, **body)

    def members(self, now: float) -> list[str]:
        """The leases to extend: of jobs it holds, except those long past their deadline.

        What has not started in an executor that stands still is left to others; it knows, and starts it no more.
        """
        void = now - max(self.last_turn, self.started_at) > self.spec.void_s
        return [
            slot.member
            for slot in self.table.read()
            if not (slot.state is SlotState.STARTED and now > slot.deadline + HOPELESS_S)
            and not (void and slot.state is SlotState.CLAIMED)
        ]

    def overdue(self, now: float) -> tuple[bool, tuple[Slot, ...]]:
        """Whether it must be retired for a job that ignores its soft timeout, and the jobs it must be killed for."""
        retire = False
        culprits = []
        for slot in self.table.read():
            if slot.state is not SlotState.STARTED:
                continue
            # An isolated job's own child is killed by the executor; this is for an executor that hangs itself.
            grace = HOPELESS_S if slot.isolated else HARD_KILL_S
            if now > slot.deadline + grace:
                culprits.append(slot)
            elif not slot.isolated and now > slot.deadline + RETIRE_S:
                retire = True
        return retire or bool(culprits), tuple(culprits)

    def hung(self, now: float, since: float = 0.0) -> str:
        """Why it must be killed though no job of its is overdue; empty: it need not.

        Its jobs run again elsewhere once it is dead, so a wrong answer never makes two runs at a time; but it costs
        the effects of those that would have come to their end.

        Args:
            since: When the supervisor itself last woke from standing still, as all of a frozen container does.
        """
        silent_s, lease_s = now - max(self.last_turn, self.started_at, since), self.spec.lease_ms / 1_000
        if silent_s <= min(lease_s, _QUIET_S) or not self.pid or not is_stopped(self.pid):
            self.stopped_at = None
        elif self.stopped_at is None:
            self.stopped_at = now
        elif silent_s > lease_s and now - self.stopped_at >= _SURE_S:
            return "is stopped"
        most_s = (
            HUNG_S if self.last_turn else START_TIMEOUT_S
        )  # a fresh interpreter imports the application first
        if silent_s > most_s and not self._held_up(now):
            return f"has not answered for {most_s:.0f} s"
        return ""

    def _held_up(self, now: float) -> bool:
        """Whether a job may keep the interpreter's lock: then that job's timeout is the end of it."""
        return now - self.table.last_tick > _TICKS_S and any(
            slot.state is SlotState.STARTED and not slot.isolated and now <= slot.deadline + HARD_KILL_S
            for slot in self.table.read()
        )

    def running(self) -> list[Slot]:
        """What runs."""
        return [slot for slot in self.table.read() if slot.state is SlotState.STARTED]

    def close(self) -> None:
        """Free what belonged to it."""
        self.control.close()
        self.table.close()

    def last_will(self, status: int, *, by_oom: bool = False) -> list[Settlement]:
        """What its end means for the jobs it held: one for each of its queues, whether it had any of that or not.

        A claim may have lost its reply; what it took is found by the name that the executor had in that queue.

        Args:
            status: Exit code, or minus the signal that ended it.
            by_oom: The kernel ended it, for lack of memory.
        """
        slots = self.table.read()
        culprits = {slot.member for slot in self.culprits}
        running = [s for s in slots if s.state is SlotState.STARTED and s.member not in culprits]
        own = [slot for slot in running if not slot.isolated]
        crash = not self.killed and (status not in (-9, -15) or by_oom)
        outcomes = [_handed_back(slot) for slot in slots if slot.state is SlotState.CLAIMED]
        if self.killed and self.killed != HUNG:
            # Because of a culprit, or because the grace is over, or with the spawner. The others lose nothing.
            outcomes += _interrupted((s for s in running if s.member in self.blamed), crash=False)
            outcomes += [_handed_back(slot) for slot in running if slot.member not in self.blamed]
        else:
            outcomes += _interrupted(own, crash=crash)
            outcomes += _interrupted((slot for slot in running if slot.isolated), crash=False)
        unsettled = (s for s in slots if s.state is SlotState.FINISHED and s.member not in culprits)
        outcomes += _interrupted(unsettled, crash=False)
        return [
            Settlement(
                served.queue,
                [outcome for slot, outcome in outcomes if slot.queue == place],
                exec_id=served.exec_id,
                worker=self.spec.worker,
                status=status,
                timed_out=[(slot.job_id, slot.token) for slot in self.culprits if slot.queue == place],
            )
            for place, served in enumerate(self.spec.queues)
        ]


def _handed_back(slot: Slot) -> tuple[Slot, Outcome]:
    return slot, Outcome(job_id=slot.job_id, token=slot.token, kind="hand_back")


def _interrupted(slots: Iterable[Slot], *, crash: bool) -> list[tuple[Slot, Outcome]]:
    """Of one process: who ran in it beside others, of whatever queue, did not crash alone."""
    found = list(slots)
    alone = crash and len(found) == 1
    return [
        (s, Outcome(job_id=s.job_id, token=s.token, kind="interrupted", crash=crash, alone=alone))
        for s in found
    ]


def new_exec_id() -> str:
    """Ten random characters: no two executor processes ever share one, so no token comes twice."""
    return secrets.token_hex(5)
