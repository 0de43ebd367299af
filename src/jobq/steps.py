"""What a step in Redis is, and the records that go in and come out: values only, nothing here talks to Redis.

A :class:`Call` is one script, a :class:`Batch` a pipeline of plain reads, a :data:`Plan` a generator that
yields either and is sent the answers: written once, run by the sync and the async store alike.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from jobq import lua
from jobq.errors import JobqError
from jobq.keys import Keys
from jobq.queues import KEEP_SUCCEEDED

T = TypeVar("T")
Arg: TypeAlias = str | bytes | int | float

MOST_JOBS = 100
"""Jobs that one script call takes: it bounds how long Redis serves nobody else."""


@dataclass(frozen=True, slots=True)
class Rider:
    """A call that goes along with another one, behind it in the same write.

    Attributes:
        call: It is sent once, whatever becomes of it.
        took: Told its raw reply, which may be an error.
    """

    call: Call[Any]
    took: Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One run of a script.

    Attributes:
        script: Its name.
        decode: Turns the raw reply into the answer.
        idempotent: It may be sent again after a lost reply.
        rider: What goes along.
    """

    script: str
    keys: tuple[str, ...]
    args: tuple[Arg, ...]
    decode: Callable[[Any], T]
    idempotent: bool = True
    rider: Rider | None = None

    def __post_init__(self) -> None:
        lua.script(self.script).check(len(self.keys))

    def command(self) -> tuple[Arg, ...]:
        """What is sent as a rule: the script by its digest."""
        return ("EVALSHA", lua.script(self.script).sha, len(self.keys), *self.keys, *self.args)

    def full_command(self) -> tuple[Arg, ...]:
        """What is sent when the server does not know the digest: the script itself."""
        return ("EVAL", lua.script(self.script).text, len(self.keys), *self.keys, *self.args)


def script_head(keys: Keys, now_ms: int | None) -> tuple[Arg, Arg, Arg]:
    """The arguments that every script starts with: the time, for tests, and the two prefixes."""
    return ("" if now_ms is None else now_ms, keys.p, keys.n)


def _as_is(replies: list[Any]) -> Any:
    return replies


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """Plain commands in one pipeline, all safe to repeat.

    ``decode`` gets the replies in order, as redis-py returns them; one that Redis refused arrives as an
    exception, so that a key of a wrong type does not break the reading of the others.
    """

    commands: tuple[tuple[Any, ...], ...]
    decode: Callable[[list[Any]], T] = _as_is


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent for so many seconds: it keeps a bulk to its rate."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stream(Generic[T]):
    """Calls that may be sent before those ahead of them are answered; a store keeps their order.

    Attributes:
        calls: Asked for the next one when it can be sent: what has been answered by then may end it.
        took: Told each answer, or the error in its place, in the order of the calls.
    """

    calls: Iterator[Call[T]]
    took: Callable[[T | JobqError], object]


Step: TypeAlias = Call[Any] | Batch[Any]
Plan: TypeAlias = Generator[Step | Stream[Any] | Pause, Any, T]


# --------------------------------------------------------------------------- what goes in and comes out


_NOTHING: Mapping[str, str] = {}


class NewJob(NamedTuple):
    """A job to enqueue.

    Attributes:
        fields: The job hash, without ``status`` and ``q``, which the script sets, and without ``shared``. Its place
            in the queue goes by ``or``, an order from 1 (first) to 10, and ``tn``, the tenant whose turn it takes.
        delay_ms: Due so many ms from now; 0: at once.
        at_ms: Due at this ms since 1970 instead; 0: see ``delay_ms``.
        dedup_key: ``<task>:<digest>``, empty: none.
        dedup_mode: ``f`` until finished, ``s`` until started, ``w`` for ``window_ms``.
        replace: A waiting holder of the key takes over this job's payload and due time.
        bound_id: The id that ``data`` is signed for, empty: ``id``, ``*``: any. A holder is replaced only by
            data signed for it, else the answer is ``rebind``.
        quota: A gate of :mod:`jobq.limits` that it is counted against; empty: none.
        shared: More of the job hash: jobs that hold the same mapping have it sent once. ``fields`` come after it.
    """

    id: str
    fields: Mapping[str, bytes | str]
    delay_ms: int = 0
    at_ms: int = 0
    dedup_key: str = ""
    dedup_mode: str = ""
    window_ms: int = 0
    replace: bool = False
    bound_id: str = ""
    quota: str = ""
    shared: Mapping[str, str] = _NOTHING


EnqueueStatus = Literal[
    "queued", "scheduled", "duplicate", "replaced", "rebind", "full", "shed", "over_quota", "mine"
]


class EnqueueAnswer(NamedTuple):
    """What became of one job; ``id`` is the holder's for duplicate, replaced, rebind; ms to wait for over_quota."""

    status: EnqueueStatus
    id: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job under a lease.

    Attributes:
        token: Fences this run: ``<exec>.<claim number>``.
        queued_ms: When it became queued, or due; 0 for a job that plain rq made.
        overrides: JSON of the per-call options; ``extra``: JSON of tags and trace. Empty when there are none.
        timeout: Seconds; 0 when the hash has none that can be read.
        rq: Fields of a job that plain rq made; None for ours.
        gated: Its task has limits.
    """

    id: str
    token: str
    data: bytes
    attempts: int
    crashes: int
    lost: int
    queued_ms: int
    overrides: bytes
    timeout: int
    description: str
    extra: bytes
    rq: dict[str, str] | None
    gated: bool = False

    @property
    def suspect(self) -> bool:
        """Whether it ended a process before, or was lost three times: the rule of claim.lua."""
        return self.crashes >= 1 or self.lost >= 3


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim.

    Attributes:
        now_ms: Redis' clock.
        until_ms: When the leases end; for ``paused`` when the pause does, 0: by resume only; for ``limited`` when
            it is worth asking again.
        parked: The queue has parked jobs: name the buckets that can be run in the next claim.
        more: All that was asked for was taken off the list, so it may hold more.
        limited: The queue has limits of its own.
        suspects: It has set some apart, or found some, and whoever runs them may not know.
    """

    status: Literal["ok", "stale", "paused", "suspended", "limited"]
    now_ms: int
    until_ms: int
    parked: bool
    jobs: list[Claimed]
    more: bool
    limited: bool = False
    suspects: bool = False


Suspects = Literal["run", "park", "only"]
"""What a claim does with jobs whose process died under them: take them like others, set them apart, take no others."""

OutcomeKind = Literal[
    "succeeded", "retry", "dead", "snooze", "limited", "cancelled", "park", "hand_back", "interrupted"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one attempt ended.

    Attributes:
        spends: It counts as an attempt.
        delay_ms: For retry and snooze: due so many ms from now; for limited: its gate or queue is closed so long.
        reason: Why it is dead, parked or cancelled, or its result not kept.
        bucket: Where a worker that can run a parked job looks.
        record: JSON for the attempt history; empty: none.
        result: Encoded for rq's stream; empty: no entry. ``exc``: the traceback of a dead job, likewise.
        keep_s: Seconds that an ended job is kept, at least 60.
        crash: For interrupted: the process died of itself; ``alone``: the job ran alone in it.
        counters: Fields of the minute's counters to add 1 to.
    """

    job_id: str
    token: str
    kind: OutcomeKind
    spends: bool = False
    delay_ms: int = 0
    reason: str = ""
    bucket: str = ""
    fingerprint: str = ""
    record: bytes = b""
    result: bytes = b""
    exc: bytes = b""
    worker: str = ""
    keep_s: int = KEEP_SUCCEEDED.age_s
    crash: bool = False
    alone: bool = False
    counters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat: members whose lease is lost, ids that were asked to stop."""

    lost: list[str]
    cancelled: list[str]


@dataclass(frozen=True, slots=True)
class Rescued:
    """What a rescue pass moved, as (id, queue, ``queued``, ``dead`` or ``cancelled``).

    ``held``: Redis was away, so nobody is rescued for now.
    """

    moved: list[tuple[str, str, str]] = field(default_factory=list)
    held: bool = False


@dataclass(frozen=True, slots=True)
class Promoted:
    """How many due jobs were queued, when the next is due, and whether a gate may open."""

    count: int
    next_due_ms: int | None
    gate: bool = False
