"""The audit's first look: reads every key, list and registry once, and collects what may be wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jobq.keys import Keys
from jobq.probes import (
    CopyProbe,
    DedupProbe,
    EntryProbe,
    JobProbe,
    KeyProbe,
    LeaseProbe,
    ListProbe,
    MemberProbe,
    Probe,
    QueueProbe,
    Registry,
    ScheduleProbe,
    Scope,
    TypeProbe,
    probe_plan,
)
from jobq.queues import QueueSpec
from jobq.replies import as_text
from jobq.steps import MOST_JOBS, Batch, Plan
from jobq.tags import KEEP

_PAGE = 1_000
_DAY_S = 86_400


@dataclass(slots=True)
class Survey:
    """The first look: reads everything, and collects what may be wrong."""

    scope: Scope
    specs: Mapping[str, QueueSpec]
    progress: Callable[[int], object]
    limit: int | None
    suspects: list[Probe] = field(default_factory=list)
    queued: dict[str, tuple[str, bool]] = field(
        default_factory=dict
    )  # id: its queue, and whether that list has it
    running: dict[str, str] = field(default_factory=dict)  # id: start of the run
    gates: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    _marks: dict[tuple[str, bool], tuple[str, bool]] = field(default_factory=dict)

    @property
    def _keys(self) -> Keys:
        return self.scope.keys

    def plan(self) -> Plan[list[Probe]]:
        """Hashes first: whoever is queued or running there must then be found in a list or under a lease."""
        queues = yield from self._queues()
        yield from self._scan(queues)
        yield from self._lists(queues)
        yield from self._leases(queues)
        for queue in queues:
            for registry in (yield from self._registries(queue)):
                yield from self._entries(registry)
        for gate in self.gates:
            yield from self._entries(Registry(self._keys.gate(gate), "*", ("deferred",), f"~gate:{gate}"))
        yield from self._quarantine()
        yield from self._ghosts()
        yield from self._schedules()
        self.suspects += (JobProbe(job_id, "list") for job_id, (_, found) in self.queued.items() if not found)
        return self.suspects

    def _ask(self, probes: Sequence[Probe]) -> Plan[None]:
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
            TypeProbe(keys.queues, "set"),
            *(TypeProbe(key, "zset") for key in (keys.leases, keys.quarantine, keys.after, keys.gates)),
            TypeProbe(keys.cancels, "set"),
            TypeProbe(keys.workers, "set"),
            *(TypeProbe(key, "hash") for key in (keys.pulse, keys.schedules)),
            TypeProbe(keys.due, "zset"),
            *(TypeProbe(keys.queue(queue), "list") for queue in queues),
            *(TypeProbe(keys.queue_state(queue), "hash") for queue in queues),
            *(TypeProbe(keys.parked(queue), "set") for queue in queues),
            *(TypeProbe(registry.key, "zset") for queue in queues for registry in registries(keys, queue)),
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
            yield from self._ask([TypeProbe(name, kind) for name in names if (kind := sort.type_of(name))])
            self.suspects += (
                QueueProbe(queue) for name in names if (queue := sort.queue(name)) and queue not in queues
            )
            self.gates += (gate for name in names if (gate := sort.gate(name)))
            self.held += (name for name in names if sort.is_held(name))
            looked += len(names)
            self.progress(len(names))
            if cursor == 0 or (self.limit is not None and looked >= self.limit):
                return

    def _jobs(self, ids: Sequence[str]) -> Plan[None]:
        for start in range(0, len(ids), MOST_JOBS):
            probes = [JobProbe(job_id) for job_id in ids[start : start + MOST_JOBS]]
            rows = yield JobProbe.states(self.scope, probes, False)
            for probe, (status, run, findings) in zip(probes, rows, strict=True):
                if findings:
                    self.suspects.append(probe)
                if status == "queued" and run:
                    self.queued.setdefault(probe.job_id, self._mark(run, found=False))
                elif status == "started" and run:
                    self.running[probe.job_id] = run

    def _mark(self, queue: str, *, found: bool) -> tuple[str, bool]:
        """One object for all jobs of a queue: there may be a million."""
        return self._marks.setdefault((queue, found), (queue, found))

    # -- where jobs are -----------------------------------------------------------------------------------------

    def _lists(self, queues: Sequence[str]) -> Plan[None]:
        for queue in queues:
            key = self._keys.queue(queue)
            if key in self.wrong:
                continue
            others: dict[str, None] = {}
            copies: dict[str, None] = {}
            end = -1
            # From the back: claims shorten the front meanwhile, and places counted from the back stay.
            while True:
                (ids,) = yield Batch((("LRANGE", key, end - _PAGE + 1, end),))
                if isinstance(ids, Exception) or not ids:
                    break
                for job_id in map(as_text, ids):
                    home, found = self.queued.get(job_id, ("", False))
                    if home == queue and not found:
                        self.queued[job_id] = self._mark(queue, found=True)
                    elif not home and len(others) < _PAGE:
                        others[job_id] = None
                    elif home and len(copies) < _PAGE:
                        copies[job_id] = None
                end -= _PAGE
            self.scope.longest = max(self.scope.longest, -1 - end)
            self.suspects += (CopyProbe(queue, job_id) for job_id in copies)
            yield from self._others(queue, list(others))

    def _others(self, queue: str, ids: Sequence[str]) -> Plan[None]:
        """Ids that were not queued when their hash was read: enqueued since, as a rule."""
        for start in range(0, len(ids), MOST_JOBS):
            part = ids[start : start + MOST_JOBS]
            statuses = yield Batch(tuple(("HGET", self._keys.job(job_id), "status") for job_id in part))
            left = [ListProbe(queue, i) for i, s in zip(part, statuses, strict=True) if s != b"queued"]
            self.suspects += left

    def _leases(self, queues: Sequence[str]) -> Plan[None]:
        keys = self._keys
        leases: defaultdict[str, list[str]] = defaultdict(list)
        if keys.leases not in self.wrong:
            for members in (yield from self._members(keys.leases)):
                leases[members.partition(":")[0]].append(members)
        yield from self._ask([LeaseProbe(tuple(members)) for members in leases.values()])
        held: dict[str, str] = {}
        for queue in queues:
            key = keys.wip(queue)
            if key in self.wrong:
                continue
            stray = Registry(key, queue, ())
            for member in (yield from self._members(key)):
                job_id = member.partition(":")[0]
                if job_id not in leases:
                    held[job_id] = member
                elif member not in leases[job_id]:
                    self.suspects.append(EntryProbe(stray, member))
        if keys.leases not in self.wrong:
            self.suspects += (
                JobProbe(job_id, run, held.get(job_id, ""))
                for job_id, run in self.running.items()
                if job_id not in leases
            )

    def _registries(self, queue: str) -> Plan[list[Registry]]:
        keys = self._keys
        (buckets,) = yield Batch((("SMEMBERS", keys.parked(queue)),))
        names = [] if isinstance(buckets, Exception) else sorted(map(as_text, buckets))
        every = [
            *registries(keys, queue),
            *(Registry(keys.bucket(queue, name), queue, ("deferred",), name) for name in names),
        ]
        return [registry for registry in every if registry.key not in self.wrong]

    def _entries(self, registry: Registry) -> Plan[None]:
        cursor = 0
        while True:
            (page,) = yield Batch((("ZSCAN", registry.key, cursor, "COUNT", MOST_JOBS),))
            if isinstance(page, Exception):
                return
            cursor = int(page[0])
            yield from self._ask([EntryProbe(registry, as_text(member)) for member, _ in page[1]])
            if cursor == 0:
                return

    def _members(self, key: str, scan: str = "ZSCAN") -> Plan[list[str]]:
        """All members of a sorted set, a set or a hash; one that is in it all the while is not missed."""
        found: dict[str, None] = {}
        cursor = 0
        while True:
            (page,) = yield Batch(((scan, key, cursor, "COUNT", _PAGE),))
            if isinstance(page, Exception):
                return list(found)
            cursor = int(page[0])
            names = page[1] if scan != "ZSCAN" else (member for member, _ in page[1])
            found.update((as_text(member), None) for member in names)
            if cursor == 0:
                return list(found)

    def _quarantine(self) -> Plan[None]:
        if self._keys.quarantine not in self.wrong:
            yield from self._ask(
                [JobProbe(job_id) for job_id in (yield from self._members(self._keys.quarantine))]
            )

    def _ghosts(self) -> Plan[None]:
        """What would stay in a set when its owner has gone."""
        keys = self._keys
        sets = [
            (keys.cancels, "run", "SSCAN"),
            (keys.workers, "key", "SSCAN"),
            (keys.after, "parent", "ZSCAN"),
            *((key, "lease", "ZSCAN") for key in self.held),
        ]
        for key, needs, scan in sets:
            if key not in self.wrong:
                members = yield from self._members(key, scan)
                for start in range(0, len(members), MOST_JOBS):
                    part = members[start : start + MOST_JOBS]
                    yield from self._ask([MemberProbe(key, needs, member) for member in part])

    def _schedules(self) -> Plan[None]:
        if self._keys.schedules not in self.wrong:
            names = yield from self._members(self._keys.schedules, "HSCAN")
            for start in range(0, len(names), MOST_JOBS):
                yield from self._ask([ScheduleProbe(name) for name in names[start : start + MOST_JOBS]])


def registries(keys: Keys, queue: str) -> tuple[Registry, ...]:
    """Every registry that a queue always has."""
    return (
        Registry(keys.wip(queue), queue, ("started",)),
        Registry(keys.scheduled(queue), queue, ("scheduled",)),
        Registry(keys.retrying(queue), queue, ("scheduled",)),
        Registry(keys.deferred(queue), queue, ("deferred",)),
        Registry(keys.blocked(queue), queue, ("deferred",)),
        Registry(keys.order(queue), queue, ("queued",)),
        Registry(keys.finished(queue), queue, ("finished",), pruned=True),
        Registry(keys.failed(queue), queue, ("failed", "stopped"), pruned=True),
        Registry(keys.canceled(queue), queue, ("canceled",), pruned=True),
    )


class _Sorter:
    """Tells keys apart by their names."""

    def __init__(self, keys: Keys) -> None:
        self._job, self._queue, self._dedup = keys.job(""), keys.queue(""), keys.dedup("")
        self._gate, self._held = keys.gate(""), f"{keys.n}held:"
        self._dependents = ":dependents"
        self._dependencies = keys.dependencies("").partition("::")[0] + "::"
        self._beside = {
            keys.results(""): _DAY_S,
            keys.attempts(""): _DAY_S,
            keys.log(""): _DAY_S,
        }
        self._types = {
            keys.results(""): "stream",
            **dict.fromkeys((keys.attempts(""), keys.log(""), keys.done("")), "list"),
            **dict.fromkeys((keys.gate(""), keys.order(""), f"{keys.n}held:"), "zset"),
            **dict.fromkeys((self._dedup, keys.limits), "string"),
            f"{keys.n}n:": "hash",
            self._dependencies: "set",
        }
        self._passing = {keys.wait(""): 60, keys.done(""): 60, f"{keys.n}n:": 93_600}
        self._passing |= {f"{keys.n}quota:": _DAY_S, keys.claim(""): 600}
        self._passing |= dict.fromkeys((keys.tag(""), keys.correlation("")), int(KEEP.total_seconds()))

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

    def is_held(self, name: str) -> bool:
        """Whether these are the runs that hold a place at a gate."""
        return name.startswith(self._held)

    def type_of(self, name: str) -> str:
        """The type that it must have, as far as its name tells; of containers that are always there others look."""
        if name.startswith(self._job) and name.endswith(self._dependents):
            return "set"
        return next((kind for start, kind in self._types.items() if name.startswith(start)), "")

    def beside_a_job(self, name: str) -> Probe | None:
        """The probe for a key that is not a job, but belongs to one."""
        if name.startswith(self._dedup):
            return DedupProbe(name)
        if name.startswith(self._dependencies):
            return KeyProbe(name, name.removeprefix(self._dependencies).rpartition(":")[0], _DAY_S)
        if name.startswith(self._job):
            if not name.endswith(self._dependents):
                return None
            owner = name.removeprefix(self._job).removesuffix(self._dependents)
            return KeyProbe(name, owner, _DAY_S, children=True)
        for start, keep_s in self._beside.items():
            if name.startswith(start):
                return KeyProbe(name, name.removeprefix(start), keep_s)
        for start, keep_s in self._passing.items():
            if name.startswith(start):
                return KeyProbe(name, "", keep_s)
        return None


def survey_plan(
    scope: Scope,
    specs: Mapping[str, QueueSpec],
    *,
    progress: Callable[[int], object] = lambda _count: None,
    limit: int | None = None,
) -> Plan[list[Probe]]:
    """The first look: what may be wrong, or may only have been on its way."""
    return (yield from Survey(scope, specs, progress, limit).plan())
