"""The audit: is each job in exactly the place of its status, and does every other entry and key belong to one?

It reads everything once, in steps of at most 100 jobs, then looks a second time at what seemed wrong, atomically: a
job that was only on its way is no finding. A repair looks a third time, in the script that writes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from typing import Any, ClassVar, Protocol, Self, TypeVar

from jobq import calls
from jobq.config import Settings
from jobq.keys import Keys
from jobq.queues import QueueSpec
from jobq.replies import as_int, as_text
from jobq.steps import Arg, Batch, Call, Plan

T = TypeVar("T")

GRACE = timedelta(seconds=2)
"""Between the two looks: longer than any move takes that is no single step, such as a stock worker's."""

_PAGE = 1_000
_MOST = calls.MOST_JOBS
_SEARCHED = 1_000_000
"""List entries that one script call may go through: some 50 ms."""
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of damage.

    Attributes:
        words: What is wrong, with the jobs, entries or keys as the subject.
        repair: What a repair has done to them; empty: nothing can be done by machine.
        severe: A job is lost, stuck or may run twice. Otherwise something only takes room or is miscounted.
    """

    name: str
    words: str
    repair: str
    severe: bool = True


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("not_in_list", "queued, and in no list: nobody will claim them", "queued in front"),
        Kind("not_in_registry", "missing from the registry of their state", "entered"),
        Kind("not_in_bucket", "parked where no worker looks", "entered"),
        Kind("expiring", "not ended, and about to expire", "expiry taken away"),
        Kind("no_lease", "running, and nobody holds the lease", "given a lease, rescued when it ends"),
        Kind(
            "stock_run",
            "running on a plain rq worker that is dead",
            "given a lease that has ended, rescued at once",
        ),
        Kind("no_wip", "leases missing from rq's registry of started jobs", "entered"),
        Kind("second_lease", "older leases of a job that has a later one", "removed"),
        Kind("dead_lease", "leases of jobs that do not run", "removed"),
        Kind("stray_entry", "entries in a registry that is not their job's", "removed"),
        Kind("wrong_type", "keys of the wrong type: what they hold is out of reach", ""),
        Kind("unreadable", "jobs that cannot be read", ""),
        Kind("stale_quarantine", "in quarantine, and readable or gone", "released", severe=False),
        Kind("dropped_id", "ids in a list that claim will drop", "", severe=False),
        Kind("retry_count", "counted wrongly among those that wait for a retry", "recounted", severe=False),
        Kind("no_expiry", "ended jobs that never expire", "given an expiry", severe=False),
        Kind("orphan_dedup", "dedup keys that refuse nobody", "deleted", severe=False),
        Kind("orphan_key", "keys of no job, which nothing deletes", "given an expiry", severe=False),
        Kind("unknown_queue", "queues missing from rq's set of queues", "entered", severe=False),
    )
}
"""Every kind of finding, the worst first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        subject: A job id, an entry, a key, or a queue's name.
        place: The queue, or the registry's key; empty where the subject says all.
        detail: Which way it is wrong, where there are several.
        probe: How to look at it again.
    """

    kind: str
    subject: str
    place: str = ""
    detail: str = ""
    probe: _Probe | None = field(default=None, repr=False, compare=False)

    @property
    def severe(self) -> bool:
        """A job is lost, stuck or may run twice."""
        return KINDS[self.kind].severe

    @property
    def repairable(self) -> bool:
        """:func:`repair` can set it right."""
        return bool(KINDS[self.kind].repair)

    def __str__(self) -> str:
        more = ", ".join(part for part in (self.place, self.detail) if part)
        return f"{self.kind}: {self.subject}{f' ({more})' if more else ''}"


class Runner(Protocol):
    """What the audit needs of a client."""

    keys: Keys
    specs: dict[str, QueueSpec]
    settings: Settings

    def run(self, step: Call[T] | Batch[T] | Plan[T]) -> T: ...


@dataclass(slots=True)
class Scope:
    """What every step of one audit needs to know.

    Attributes:
        lease_ms: How long a lease lasts.
        keep_s: Seconds to keep an ended job that lacks an expiry.
        longest: Entries of the longest list.
    """

    keys: Keys
    lease_ms: int
    keep_s: int
    longest: int = 0

    def head(self, *, fix: bool) -> tuple[str, str, str, int]:
        """What the arguments of each script start with."""
        return ("", self.keys.p, self.keys.n, int(fix))


# --------------------------------------------------------------------------- probes: what one script is asked about


class _Probe:
    """Something to look at, with the script that looks and repairs.

    Attributes:
        order: Repairs go by it: first the jobs, then what should not be there.
    """

    __slots__ = ()
    order: ClassVar[int]

    @property
    def group(self) -> tuple[Any, ...]:
        """Probes of the same group may share a call."""
        return ()

    def most(self, scope: Scope) -> int:
        """Probes of its group that one call takes."""
        return _MOST

    def step(self, scope: Scope, probes: Sequence[Any], fix: bool) -> Call[Any] | Batch[Any]:
        """Ask about probes of its group; answers with the findings."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class _JobProbe(_Probe):
    """A job hash.

    Attributes:
        seen: ``list``: it is queued and was in no list; or the start of a run that had no lease.
        member: Its entry in the registry of started jobs.
    """

    job_id: str
    seen: str = ""
    member: str = ""
    order: ClassVar[int] = 0

    @property
    def group(self) -> tuple[Any, ...]:
        return (self.seen == "list",)

    def most(self, scope: Scope) -> int:
        return max(1, min(_MOST, _SEARCHED // max(1, scope.longest))) if self.seen == "list" else _MOST

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Call[list[Finding]]:
        call = self.states(scope, probes, fix)
        return Call(
            call.script, call.keys, call.args, lambda r: [f for row in call.decode(r) for f in row[2]]
        )

    @classmethod
    def states(
        cls, scope: Scope, probes: Sequence[Self], fix: bool
    ) -> Call[list[tuple[str, str, list[Finding]]]]:
        """Status in rq's word, start of the run, and findings of each job."""
        args: list[str | int] = [*scope.head(fix=fix), scope.lease_ms, scope.keep_s]
        for probe in probes:
            args += (probe.job_id, probe.seen, probe.member)

        def decode(reply: Sequence[Any]) -> list[tuple[str, str, list[Finding]]]:
            texts = [as_text(value) for value in reply]
            rows = zip(probes, texts[::3], texts[1::3], texts[2::3], strict=True)
            return [(status, run, list(probe._findings(kinds))) for probe, status, run, kinds in rows]  # noqa: SLF001

        return Call("audit_jobs", (scope.keys.leases, scope.keys.quarantine), tuple(args), decode)

    def _findings(self, kinds: str) -> Iterator[Finding]:
        for each in filter(None, kinds.split(",")):
            kind, _, detail = each.partition(":")
            yield Finding(kind, self.job_id, detail=detail, probe=self)


@dataclass(frozen=True, slots=True)
class _Registry:
    """A sorted set of ids.

    Attributes:
        statuses: rq's words of the jobs that belong in it; none: no entry belongs.
        queue: The queue of all jobs in it; ``*``: any.
        bucket: The bucket of parked jobs that it is.
        pruned: Entries leave by their score.
    """

    key: str
    queue: str
    statuses: tuple[str, ...]
    bucket: str | None = None
    pruned: bool = False


@dataclass(frozen=True, slots=True)
class _EntryProbe(_Probe):
    """An entry of a registry."""

    registry: _Registry
    member: str
    order: ClassVar[int] = 2

    @property
    def group(self) -> tuple[Any, ...]:
        return (self.registry.key, self.registry.statuses)

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Call[list[Finding]]:
        at = probes[0].registry
        args: tuple[Arg, ...] = (
            *scope.head(fix=fix),
            at.queue,
            ",".join(at.statuses),
            "*" if at.bucket is None else at.bucket,
            int(at.pruned),
            *(probe.member for probe in probes),
        )

        def decode(reply: Sequence[Any]) -> list[Finding]:
            words = zip(probes, map(as_text, reply), strict=True)
            return [Finding("stray_entry", p.member, at.key, word, p) for p, word in words if word]

        return Call("audit_entries", (at.key, scope.keys.leases), args, decode)


@dataclass(frozen=True, slots=True)
class _LeaseProbe(_Probe):
    """All leases of one job."""

    members: tuple[str, ...]
    order: ClassVar[int] = 1

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Call[list[Finding]]:
        every = [(member, probe) for probe in probes for member in probe.members]
        args: tuple[Arg, ...] = (*scope.head(fix=fix), scope.lease_ms, *(member for member, _ in every))

        def decode(reply: Sequence[Any]) -> list[Finding]:
            words = zip(every, map(as_text, reply), strict=True)
            return [Finding(word, member, probe=probe) for (member, probe), word in words if word]

        return Call("audit_leases", (scope.keys.leases, scope.keys.cancels), args, decode)


@dataclass(frozen=True, slots=True)
class _DedupProbe(_Probe):
    """A dedup key."""

    key: str
    order: ClassVar[int] = 3

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Call[list[Finding]]:
        names = [probe.key for probe in probes]
        call = free_dedup(scope.keys, names, fix=fix)

        def decode(reply: Any) -> list[Finding]:
            dead = set(call.decode(reply))
            return [Finding("orphan_dedup", probe.key, probe=probe) for probe in probes if probe.key in dead]

        return Call(call.script, call.keys, call.args, decode)


@dataclass(frozen=True, slots=True)
class _KeyProbe(_Probe):
    """A key beside a job, or one that must expire in any case.

    Attributes:
        owner: Id of its job; empty: it must expire whatever becomes of jobs.
        keep_s: Seconds that a repair gives it.
        children: Its job's children wait for it.
    """

    key: str
    owner: str
    keep_s: int
    children: bool = False
    order: ClassVar[int] = 3

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Call[list[Finding]]:
        args: list[str | int] = [*scope.head(fix=fix)]
        for probe in probes:
            args += (probe.owner, probe.keep_s, int(probe.children))

        def decode(reply: Sequence[int]) -> list[Finding]:
            return [
                Finding("orphan_key", probe.key, probe=probe)
                for probe, left in zip(probes, reply, strict=True)
                if left
            ]

        return Call("audit_keys", (scope.keys.after, *(probe.key for probe in probes)), tuple(args), decode)


@dataclass(frozen=True, slots=True)
class _ListProbe(_Probe):
    """An id in a list whose job was not queued."""

    queue: str
    job_id: str
    order: ClassVar[int] = 4

    def most(self, scope: Scope) -> int:
        return max(1, min(_MOST, _SEARCHED // max(1, scope.longest)))

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Batch[list[Finding]]:
        keys = scope.keys
        commands = tuple(
            command
            for probe in probes
            # In this order: a claim between the two takes the id out of the list.
            for command in (
                ("HGET", keys.job(probe.job_id), "status"),
                ("LPOS", keys.queue(probe.queue), probe.job_id, "MAXLEN", _SEARCHED),
            )
        )

        def decode(replies: list[Any]) -> list[Finding]:
            return [
                Finding("dropped_id", probe.job_id, probe.queue, probe=probe)
                for probe, status, place in zip(probes, replies[::2], replies[1::2], strict=True)
                if status != b"queued" and isinstance(place, int)
            ]

        return Batch(commands, decode)


@dataclass(frozen=True, slots=True)
class _QueueProbe(_Probe):
    """A queue with a list that may be missing from rq's set of queues."""

    queue: str
    order: ClassVar[int] = 4

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Batch[list[Finding]]:
        keys = scope.keys
        command = "SADD" if fix else "SISMEMBER"
        wrong = 1 if fix else 0  # SADD answers 1 when it was missing

        def decode(replies: list[Any]) -> list[Finding]:
            return [
                Finding("unknown_queue", probe.queue, probe=probe)
                for probe, reply in zip(probes, replies, strict=True)
                if not isinstance(reply, Exception) and int(reply) == wrong
            ]

        return Batch(tuple((command, keys.queues, keys.queue(probe.queue)) for probe in probes), decode)


@dataclass(frozen=True, slots=True)
class _TypeProbe(_Probe):
    """A container, and the type it must have."""

    key: str
    type: str
    order: ClassVar[int] = 5

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Batch[list[Finding]]:
        def decode(replies: list[Any]) -> list[Finding]:
            return [
                Finding("wrong_type", probe.key, detail=found, probe=probe)
                for probe, found in zip(probes, map(as_text, replies), strict=True)
                if found not in ("none", probe.type)
            ]

        return Batch(tuple(("TYPE", probe.key) for probe in probes), decode)


def free_dedup(keys: Keys, names: Sequence[str], *, fix: bool) -> Call[list[str]]:
    """Those dedup keys whose holder is not live, deleted when ``fix``; at most 100.

    Args:
        names: Keys, as Redis has them.
    """
    return Call(
        "free_dedup",
        tuple(names),
        ("", keys.p, keys.n, int(fix)),
        lambda reply: [name for name, dead in zip(names, reply, strict=True) if dead],
    )


def probe_plan(scope: Scope, probes: Iterable[_Probe], *, fix: bool) -> Plan[list[Finding]]:
    """What is wrong with these, atomically for each; with ``fix`` it has been set right."""
    found: list[Finding] = []
    ordered = sorted(probes, key=lambda probe: (probe.order, type(probe).__name__, str(probe.group)))
    for _, group in groupby(ordered, key=lambda probe: (type(probe), probe.group)):
        members = list(dict.fromkeys(group))
        size = members[0].most(scope)
        for start in range(0, len(members), size):
            found += yield members[0].step(scope, members[start : start + size], fix)
    return found


# --------------------------------------------------------------------------- the first look


@dataclass(slots=True)
class _Look:
    """The first look: reads everything, and collects what may be wrong."""

    scope: Scope
    specs: Mapping[str, QueueSpec]
    progress: Callable[[int], object]
    limit: int | None
    suspects: list[_Probe] = field(default_factory=list)
    queued: dict[str, bool] = field(default_factory=dict)  # id: whether a list has it
    running: dict[str, str] = field(default_factory=dict)  # id: start of the run
    gates: list[str] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)

    @property
    def _keys(self) -> Keys:
        return self.scope.keys

    def plan(self) -> Plan[list[_Probe]]:
        """Hashes first: whoever is queued or running there must then be found in a list or under a lease."""
        queues = yield from self._queues()
        yield from self._scan(queues)
        yield from self._lists(queues)
        yield from self._leases(queues)
        for queue in queues:
            for registry in (yield from self._registries(queue)):
                yield from self._entries(registry)
        for gate in self.gates:
            yield from self._entries(_Registry(self._keys.gate(gate), "*", ("deferred",), f"~gate:{gate}"))
        yield from self._quarantine()
        self.suspects += (_JobProbe(job_id, "list") for job_id, found in self.queued.items() if not found)
        return self.suspects

    def _ask(self, probes: Sequence[_Probe]) -> Plan[None]:
        findings = yield from probe_plan(self.scope, probes, fix=False)
        self.suspects += (finding.probe for finding in findings if finding.probe is not None)

    def _queues(self) -> Plan[list[str]]:
        keys = self._keys
        (members,) = yield Batch((("SMEMBERS", keys.queues),))
        start = keys.queue("")
        listed = (
            set() if isinstance(members, Exception) else {as_text(m).removeprefix(start) for m in members}
        )
        queues = [*self.specs, *sorted(listed - set(self.specs))]
        types = [
            _TypeProbe(keys.queues, "set"),
            *(_TypeProbe(key, "zset") for key in (keys.leases, keys.quarantine, keys.after)),
            _TypeProbe(keys.cancels, "set"),
            *(_TypeProbe(keys.queue(queue), "list") for queue in queues),
            *(_TypeProbe(keys.queue_state(queue), "hash") for queue in queues),
            *(_TypeProbe(keys.parked(queue), "set") for queue in queues),
            *(_TypeProbe(registry.key, "zset") for queue in queues for registry in _registries(keys, queue)),
        ]
        wrong = yield from probe_plan(self.scope, types, fix=False)
        self.suspects += (finding.probe for finding in wrong if finding.probe is not None)
        self.wrong = {finding.subject for finding in wrong}
        return queues

    # -- all keys -----------------------------------------------------------------------------------------------

    def _scan(self, queues: Sequence[str]) -> Plan[None]:
        cursor, looked = 0, 0
        sort = _Sorter(self._keys)
        while True:
            (page,) = yield Batch((("SCAN", cursor, "COUNT", _PAGE),))
            if isinstance(page, Exception):
                raise page
            cursor, names = int(page[0]), [as_text(name) for name in page[1]]
            yield from self._jobs([job_id for name in names if (job_id := sort.job_id(name))])
            yield from self._ask([probe for name in names if (probe := sort.beside_a_job(name))])
            self.suspects += (
                _QueueProbe(queue) for name in names if (queue := sort.queue(name)) and queue not in queues
            )
            self.gates += (gate for name in names if (gate := sort.gate(name)))
            looked += len(names)
            self.progress(len(names))
            if cursor == 0 or (self.limit is not None and looked >= self.limit):
                return

    def _jobs(self, ids: Sequence[str]) -> Plan[None]:
        for start in range(0, len(ids), _MOST):
            probes = [_JobProbe(job_id) for job_id in ids[start : start + _MOST]]
            rows = yield _JobProbe.states(self.scope, probes, False)
            for probe, (status, run, findings) in zip(probes, rows, strict=True):
                if findings:
                    self.suspects.append(probe)
                if status == "queued" and run:
                    self.queued.setdefault(probe.job_id, False)
                elif status == "started" and run:
                    self.running[probe.job_id] = run

    # -- where jobs are -----------------------------------------------------------------------------------------

    def _lists(self, queues: Sequence[str]) -> Plan[None]:
        for queue in queues:
            key = self._keys.queue(queue)
            if key in self.wrong:
                continue
            others: dict[str, None] = {}
            end = -1
            # From the back: claims shorten the front meanwhile, and places counted from the back stay.
            while True:
                (ids,) = yield Batch((("LRANGE", key, end - _PAGE + 1, end),))
                if isinstance(ids, Exception) or not ids:
                    break
                for job_id in map(as_text, ids):
                    if job_id in self.queued:
                        self.queued[job_id] = True
                    elif len(others) < _PAGE:
                        others[job_id] = None
                end -= _PAGE
            self.scope.longest = max(self.scope.longest, -1 - end)
            yield from self._others(queue, list(others))

    def _others(self, queue: str, ids: Sequence[str]) -> Plan[None]:
        """Ids that were not queued when their hash was read: enqueued since, as a rule."""
        for start in range(0, len(ids), _MOST):
            part = ids[start : start + _MOST]
            statuses = yield Batch(tuple(("HGET", self._keys.job(job_id), "status") for job_id in part))
            left = [_ListProbe(queue, i) for i, s in zip(part, statuses, strict=True) if s != b"queued"]
            self.suspects += left

    def _leases(self, queues: Sequence[str]) -> Plan[None]:
        keys = self._keys
        leases: defaultdict[str, list[str]] = defaultdict(list)
        if keys.leases not in self.wrong:
            for members in (yield from self._members(keys.leases)):
                leases[members.partition(":")[0]].append(members)
        yield from self._ask([_LeaseProbe(tuple(members)) for members in leases.values()])
        held: dict[str, str] = {}
        for queue in queues:
            key = keys.wip(queue)
            if key in self.wrong:
                continue
            stray = _Registry(key, queue, ())
            for member in (yield from self._members(key)):
                job_id = member.partition(":")[0]
                if job_id not in leases:
                    held[job_id] = member
                elif member not in leases[job_id]:
                    self.suspects.append(_EntryProbe(stray, member))
        if keys.leases not in self.wrong:
            self.suspects += (
                _JobProbe(job_id, run, held.get(job_id, ""))
                for job_id, run in self.running.items()
                if job_id not in leases
            )

    def _registries(self, queue: str) -> Plan[list[_Registry]]:
        keys = self._keys
        (buckets,) = yield Batch((("SMEMBERS", keys.parked(queue)),))
        names = [] if isinstance(buckets, Exception) else sorted(map(as_text, buckets))
        every = [
            *_registries(keys, queue),
            *(_Registry(keys.bucket(queue, name), queue, ("deferred",), name) for name in names),
        ]
        return [registry for registry in every if registry.key not in self.wrong]

    def _entries(self, registry: _Registry) -> Plan[None]:
        cursor = 0
        while True:
            (page,) = yield Batch((("ZSCAN", registry.key, cursor, "COUNT", _MOST),))
            if isinstance(page, Exception):
                return
            cursor = int(page[0])
            yield from self._ask([_EntryProbe(registry, as_text(member)) for member, _ in page[1]])
            if cursor == 0:
                return

    def _members(self, key: str) -> Plan[list[str]]:
        """All members of a sorted set; one that is in it all the while is not missed, whatever moves."""
        found: dict[str, None] = {}
        cursor = 0
        while True:
            (page,) = yield Batch((("ZSCAN", key, cursor, "COUNT", _PAGE),))
            if isinstance(page, Exception):
                return list(found)
            cursor = int(page[0])
            found.update((as_text(member), None) for member, _ in page[1])
            if cursor == 0:
                return list(found)

    def _quarantine(self) -> Plan[None]:
        if self._keys.quarantine not in self.wrong:
            yield from self._ask(
                [_JobProbe(job_id) for job_id in (yield from self._members(self._keys.quarantine))]
            )


def _registries(keys: Keys, queue: str) -> tuple[_Registry, ...]:
    return (
        _Registry(keys.wip(queue), queue, ("started",)),
        _Registry(keys.scheduled(queue), queue, ("scheduled",)),
        _Registry(keys.retrying(queue), queue, ("scheduled",)),
        _Registry(keys.deferred(queue), queue, ("deferred",)),
        _Registry(keys.blocked(queue), queue, ("deferred",)),
        _Registry(keys.finished(queue), queue, ("finished",), pruned=True),
        _Registry(keys.failed(queue), queue, ("failed", "stopped"), pruned=True),
        _Registry(keys.canceled(queue), queue, ("canceled",), pruned=True),
    )


class _Sorter:
    """Tells keys apart by their names."""

    def __init__(self, keys: Keys) -> None:
        self._job, self._queue, self._dedup = keys.job(""), keys.queue(""), keys.dedup("")
        self._gate = keys.gate("")
        self._dependents = ":dependents"
        self._dependencies = keys.dependencies("").partition("::")[0] + "::"
        self._beside = {
            keys.results(""): _DAY_S,
            keys.attempts(""): _DAY_S,
        }
        self._passing = {keys.wait(""): 60, keys.done(""): 60, f"{keys.n}n:": 93_600}

    def job_id(self, name: str) -> str:
        """The id, if this is a job hash."""
        job_id = name.removeprefix(self._job) if name.startswith(self._job) else ""
        return "" if ":" in job_id else job_id

    def queue(self, name: str) -> str:
        """The queue, if this is its list."""
        return name.removeprefix(self._queue) if name.startswith(self._queue) else ""

    def gate(self, name: str) -> str:
        """The gate, if these are the jobs that wait at it."""
        return name.removeprefix(self._gate) if name.startswith(self._gate) else ""

    def beside_a_job(self, name: str) -> _Probe | None:
        """The probe for a key that is not a job, but belongs to one."""
        if name.startswith(self._dedup):
            return _DedupProbe(name)
        if name.startswith(self._dependencies):
            return _KeyProbe(name, name.removeprefix(self._dependencies).rpartition(":")[0], _DAY_S)
        if name.startswith(self._job):
            if not name.endswith(self._dependents):
                return None
            owner = name.removeprefix(self._job).removesuffix(self._dependents)
            return _KeyProbe(name, owner, _DAY_S, children=True)
        for start, keep_s in self._beside.items():
            if name.startswith(start):
                return _KeyProbe(name, name.removeprefix(start), keep_s)
        for start, keep_s in self._passing.items():
            if name.startswith(start):
                return _KeyProbe(name, "", keep_s)
        return None


# --------------------------------------------------------------------------- what callers use


def look_plan(
    scope: Scope,
    specs: Mapping[str, QueueSpec],
    *,
    progress: Callable[[int], object] = lambda _count: None,
    limit: int | None = None,
) -> Plan[list[_Probe]]:
    """The first look: what may be wrong, or may only have been on its way."""
    return (yield from _Look(scope, specs, progress, limit).plan())


def scope_of(client: Runner) -> Scope:
    """The scope for a client."""
    keep = max((spec.keep_dead.age for spec in client.specs.values()), default=timedelta(days=7))
    return Scope(client.keys, client.settings.lease // timedelta(milliseconds=1), int(keep.total_seconds()))


def audit(
    client: Runner,
    *,
    grace: timedelta = GRACE,
    limit: int | None = None,
    progress: Callable[[int], object] = lambda _count: None,
) -> list[Finding]:
    """Everything that is not where it belongs, the worst first; empty when all is well.

    No command takes Redis longer than some 50 ms, however many jobs there are. A million jobs take about a minute, and
    some 200 bytes of this process for each one queued.

    Args:
        client: A client, or what has its ``keys``, ``specs``, ``settings`` and ``run``.
        grace: Pause before the second look; with 0 a stock rq worker's own moves may show.
        limit: Look at about so many keys only. Registries and lists are read whole.
        progress: Called with the number of further keys looked at.
    Raises:
        StoreUnavailableError: Redis cannot be reached.
    """
    scope = scope_of(client)
    suspects = client.run(look_plan(scope, client.specs, progress=progress, limit=limit))
    if not suspects:
        return []
    time.sleep(grace.total_seconds())
    return _sorted(client.run(probe_plan(scope, suspects, fix=False)))


def confirm(client: Runner, findings: Sequence[Finding]) -> list[Finding]:
    """Those that are still as they were found.

    Raises:
        StoreUnavailableError: Redis cannot be reached.
    """
    probes = [finding.probe for finding in findings if finding.probe is not None]
    return _sorted(client.run(probe_plan(_grown(client), probes, fix=False)))


def repair(client: Runner, findings: Sequence[Finding], *, delete_unreadable: bool = False) -> list[Finding]:
    """Set right what still is as it was found, and return that.

    Each step looks again and writes in one script, so it may run beside workers, twice, or be interrupted.

    Args:
        findings: Of :func:`audit`, all or some.
        delete_unreadable: Delete jobs that cannot be read, too. Nothing else loses a job.
    Raises:
        StoreUnavailableError: Redis cannot be reached; what was not reached stays as it is.
    """
    probes = [f.probe for f in findings if f.probe is not None and (f.repairable or f.kind == "unreadable")]
    done = _sorted(client.run(probe_plan(_grown(client), probes, fix=True)))
    fixed = [finding for finding in done if finding.repairable]
    if delete_unreadable:
        broken = [finding for finding in done if finding.kind == "unreadable"]
        fixed += [f for f in broken if client.run(calls.delete(client.keys, f.subject)) == "deleted"]
    return fixed


def _grown(client: Runner) -> Scope:
    """The scope for a further look; the longest list bounds how much one call searches."""
    scope = scope_of(client)
    lengths: list[Any] = client.run(Batch(tuple(("LLEN", client.keys.queue(name)) for name in client.specs)))
    scope.longest = max(map(as_int, lengths), default=0)
    return scope


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    places = {name: place for place, name in enumerate(KINDS)}
    return sorted(dict.fromkeys(findings), key=lambda each: (places[each.kind], each.place, each.subject))
