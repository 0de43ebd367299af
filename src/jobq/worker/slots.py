"""The slot table: what an executor holds, readable by its supervisor after any crash.

Anonymous shared memory, one fixed record per job in the executor's hands. The executor writes; the supervisor
reads it for heartbeats and deadlines, and after a death to know who *ran*, who only *waited*, and who had
*finished* without being settled. The state byte is written last when a record is filled and first when it is
freed, so a reader never sees a state whose id is not there yet.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from dataclasses import dataclass
from enum import IntEnum

_HEADER = 64
_POLL = 8
_RECORD = 256
_ID_MAX = 180
_TOKEN_MAX = 44
# Flags, queue, id length, token length, start, deadline, id, token.
_FILL = struct.Struct(f"<BHHHxdd{_ID_MAX}s{_TOKEN_MAX}s")
_TIMES = struct.Struct("<dd")
_DOUBLE = struct.Struct("<d")
_COUNT = struct.Struct("<Q")
_OFF_BEAT, _OFF_CLAIMED, _OFF_READY, _OFF_TICK, _OFF_POLLED = 8, 16, 24, 32, _HEADER
_OFF_TIMES = 1 + struct.calcsize("<BHHHx")

ISOLATED = 1
"""Flag: the job runs in a child of its own; its crash or kill touches nobody else."""

SUSPECT = 2
"""Flag: the job ended a process before, or was lost several times."""


class SlotState(IntEnum):
    """What became of the job in a record."""

    FREE = 0
    CLAIMED = 1  # in memory, not started
    STARTED = 2  # its function runs
    FINISHED = 3  # its function has ended, the outcome is not settled yet


@dataclass(frozen=True, slots=True)
class Slot:
    """One record, as a reader saw it. Times are seconds of the machine's monotonic clock.

    Attributes:
        queue: Place of the job's queue among those that the executor serves.
    """

    index: int
    queue: int
    state: SlotState
    isolated: bool
    suspect: bool
    job_id: str
    token: str
    started: float
    deadline: float

    @property
    def member(self) -> str:
        """``<id>:<token>``, as leases name it."""
        return f"{self.job_id}:{self.token}"


class SlotTable:
    """Shared memory for ``capacity`` jobs, plus the supervisor's pulse and the executor's.

    Args:
        fd: The file that backs it; ``SlotTable.create`` makes one.
        capacity: Number of records.
        queues: Number of queues that the executor serves.
    """

    def __init__(self, fd: int, capacity: int, queues: int = 1) -> None:
        self.fd = fd
        self.capacity = capacity
        self._first = _HEADER + queues * _POLL
        self._mem = mmap.mmap(fd, self._first + capacity * _RECORD)
        self._free = list(range(capacity - 1, -1, -1))

    @classmethod
    def create(cls, capacity: int, queues: int = 1) -> SlotTable:
        """A new table in anonymous memory (a deleted temporary file where the system has none)."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("jobq-slots", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, _HEADER + queues * _POLL + capacity * _RECORD)
        return cls(fd, capacity, queues)

    def close(self) -> None:
        """Unmap it and close its file."""
        self._mem.close()
        os.close(self.fd)

    # -- the executor's side ------------------------------------------------------------------------------------

    def take(
        self, job_id: str, token: str, *, queue: int = 0, isolated: bool = False, suspect: bool = False
    ) -> int:
        """Fill a free record as claimed and return its index.

        Raises:
            IndexError: Every record is in use.
        """
        index = self._free.pop()
        at = self._first + index * _RECORD
        raw_id, raw_token = job_id.encode(), token.encode()
        _FILL.pack_into(
            self._mem,
            at + 1,
            ISOLATED * isolated | SUSPECT * suspect,
            queue,
            len(raw_id),
            len(raw_token),
            0.0,
            0.0,
            raw_id,
            raw_token,
        )
        self._mem[at] = SlotState.CLAIMED
        return index

    def start(self, index: int, now: float, deadline: float) -> None:
        """Mark the job as started, with the deadline of its soft timeout."""
        at = self._first + index * _RECORD
        _TIMES.pack_into(self._mem, at + _OFF_TIMES, now, deadline)
        self._mem[at] = SlotState.STARTED

    def unstart(self, index: int) -> None:
        """Mark the job as not started after all: it goes back."""
        self._mem[self._first + index * _RECORD] = SlotState.CLAIMED

    def finish(self, index: int) -> None:
        """Mark the job as finished, not yet settled."""
        self._mem[self._first + index * _RECORD] = SlotState.FINISHED

    def release(self, index: int) -> None:
        """Free the record: the job is settled, or somebody else's."""
        self._mem[self._first + index * _RECORD] = SlotState.FREE
        self._free.append(index)

    def beat(self, now: float) -> None:
        """The executor's sign of life, written by each turn of its loop."""
        _DOUBLE.pack_into(self._mem, _OFF_BEAT, now)

    def tick(self, now: float) -> None:
        """A sign that Python code runs in the executor's process, whatever its loop does."""
        _DOUBLE.pack_into(self._mem, _OFF_TICK, now)

    def polled(self, now: float, queue: int = 0) -> None:
        """This queue has answered a claim, or the executor has no use for more of its jobs."""
        _DOUBLE.pack_into(self._mem, _OFF_POLLED + queue * _POLL, now)

    def count_claimed(self, total: int) -> None:
        """How many jobs the executor has claimed, those it handed back apart."""
        _COUNT.pack_into(self._mem, _OFF_CLAIMED, total)

    def set_ready(self, ready: bool) -> None:
        """Whether the executor hears from Redis, and a job that it claimed now could start."""
        self._mem[_OFF_READY] = ready

    @property
    def pulse(self) -> float:
        """When the supervisor last looked after this executor."""
        return float(_DOUBLE.unpack_from(self._mem, 0)[0])

    # -- the supervisor's side ----------------------------------------------------------------------------------

    def set_pulse(self, now: float) -> None:
        """The supervisor's sign of life."""
        _DOUBLE.pack_into(self._mem, 0, now)

    @property
    def last_beat(self) -> float:
        """When the executor's loop last turned; 0.0 before its first."""
        return float(_DOUBLE.unpack_from(self._mem, _OFF_BEAT)[0])

    @property
    def last_tick(self) -> float:
        """When Python code last ran in the executor's process, to a second or two."""
        return float(_DOUBLE.unpack_from(self._mem, _OFF_TICK)[0])

    def last_poll(self, queue: int = 0) -> float:
        """When the executor last heard from this queue, or wanted nothing of it; 0.0 before the first time."""
        return float(_DOUBLE.unpack_from(self._mem, _OFF_POLLED + queue * _POLL)[0])

    @property
    def claimed(self) -> int:
        """Jobs that the executor has claimed and not handed back."""
        return int(_COUNT.unpack_from(self._mem, _OFF_CLAIMED)[0])

    @property
    def ready(self) -> bool:
        """Whether it serves: not while Redis is away, or while its job children have not come up, or cannot."""
        return bool(self._mem[_OFF_READY])

    def read(self) -> list[Slot]:
        """Every record in use."""
        found = []
        mem = self._mem
        for index in range(self.capacity):
            at = self._first + index * _RECORD
            state = mem[at]
            if not state:
                continue
            flags, queue, id_len, token_len, started, deadline, raw_id, raw_token = _FILL.unpack_from(
                mem, at + 1
            )
            if mem[at] != state:  # it changed under us: whatever it is now, the next look sees it whole
                continue
            found.append(
                Slot(
                    index,
                    queue,
                    SlotState(state),
                    bool(flags & ISOLATED),
                    bool(flags & SUSPECT),
                    raw_id[:id_len].decode(errors="replace"),
                    raw_token[:token_len].decode(errors="replace"),
                    started,
                    deadline,
                )
            )
        return found
