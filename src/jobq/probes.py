"""What the audit asks Redis about, one small class for each kind of question: a script that looks, and repairs.

All answers are findings. A script that repairs looks first, in the same step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Self

from jobq.keys import Keys
from jobq.replies import as_text
from jobq.steps import MOST_JOBS, Arg, Batch, Call, Plan

_SEARCHED = 500_000
"""List entries that one script call may go through: some 10 ms."""

_FAR = 1_000_000
"""More than this of a list is not searched for a single id, here and in the script."""


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
        Kind("not_due", "schedules that nobody looks at", "looked at again"),
        Kind("wrong_type", "keys of the wrong type: what they hold is out of reach", ""),
        Kind("unreadable", "jobs that cannot be read", ""),
        Kind("stale_quarantine", "in quarantine, and readable or gone", "released", severe=False),
        Kind("dropped_id", "ids in a list that claim will drop", "", severe=False),
        Kind(
            "wrong_list", "queued, and also in the list of another queue", "taken out of that", severe=False
        ),
        Kind("second_copy", "more than once in their list", "left there once", severe=False),
        Kind("ghost", "entries about what is gone", "removed", severe=False),
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
    probe: Probe | None = field(default=None, repr=False, compare=False)

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


class Probe:
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
        return MOST_JOBS

    def step(self, scope: Scope, probes: Sequence[Any], fix: bool) -> Call[Any] | Batch[Any]:
        """Ask about probes of its group; answers with the findings."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class JobProbe(Probe):
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
        return (
            max(1, min(MOST_JOBS, _SEARCHED // max(1, scope.longest))) if self.seen == "list" else MOST_JOBS
        )

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
            return [(status, run, list(probe.findings(kinds))) for probe, status, run, kinds in rows]

        return Call("audit_jobs", (scope.keys.leases, scope.keys.quarantine), tuple(args), decode)

    def findings(self, kinds: str) -> Iterator[Finding]:
        for each in filter(None, kinds.split(",")):
            kind, _, detail = each.partition(":")
            yield Finding(kind, self.job_id, detail=detail, probe=self)


@dataclass(frozen=True, slots=True)
class Registry:
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
class EntryProbe(Probe):
    """An entry of a registry."""

    registry: Registry
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
class LeaseProbe(Probe):
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
class DedupProbe(Probe):
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
class KeyProbe(Probe):
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
class ListProbe(Probe):
    """An id in a list whose job was not queued."""

    queue: str
    job_id: str
    order: ClassVar[int] = 4

    def most(self, scope: Scope) -> int:
        return max(1, min(MOST_JOBS, _SEARCHED // max(1, scope.longest)))

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Batch[list[Finding]]:
        keys = scope.keys
        commands = tuple(
            command
            for probe in probes
            # In this order: a claim between the two takes the id out of the list.
            for command in (
                ("HGET", keys.job(probe.job_id), "status"),
                ("LPOS", keys.queue(probe.queue), probe.job_id, "MAXLEN", _FAR),
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
class CopyProbe(Probe):
    """An id of a queued job that is in a list once too often."""

    queue: str
    job_id: str
    order: ClassVar[int] = 2

    @property
    def group(self) -> tuple[Any, ...]:
        return (self.queue,)

    def most(self, scope: Scope) -> int:
        return max(1, min(MOST_JOBS, _SEARCHED // max(1, scope.longest)))

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Call[list[Finding]]:
        queue = probes[0].queue
        args: tuple[Arg, ...] = (*scope.head(fix=fix), queue, *(probe.job_id for probe in probes))

        def decode(reply: Sequence[Any]) -> list[Finding]:
            words = zip(probes, map(as_text, reply), strict=True)
            return [Finding(word, probe.job_id, queue, probe=probe) for probe, word in words if word]

        return Call("audit_lists", (scope.keys.queue(queue),), args, decode)


@dataclass(frozen=True, slots=True)
class MemberProbe(Probe):
    """A member of a set that goes with something else.

    Attributes:
        needs: What: a ``run`` of this id, a ``lease`` of this name, a ``parent``, a ``key`` of this name.
    """

    key: str
    needs: str
    member: str
    order: ClassVar[int] = 3

    @property
    def group(self) -> tuple[Any, ...]:
        return (self.key, self.needs)

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Call[list[Finding]]:
        at = probes[0]
        args: tuple[Arg, ...] = (*scope.head(fix=fix), at.needs, *(probe.member for probe in probes))

        def decode(reply: Sequence[int]) -> list[Finding]:
            gone = zip(probes, reply, strict=True)
            return [Finding("ghost", probe.member, probe.key, probe=probe) for probe, left in gone if left]

        return Call("audit_members", (at.key, scope.keys.leases), args, decode)


@dataclass(frozen=True, slots=True)
class ScheduleProbe(Probe):
    """A schedule by its name."""

    name: str
    order: ClassVar[int] = 3

    def step(self, scope: Scope, probes: Sequence[Self], fix: bool) -> Call[list[Finding]]:
        args: tuple[Arg, ...] = (*scope.head(fix=fix), *(probe.name for probe in probes))

        def decode(reply: Sequence[Any]) -> list[Finding]:
            words = zip(probes, map(as_text, reply), strict=True)
            return [Finding(w, p.name, scope.keys.schedules, probe=p) for p, w in words if w]

        return Call("audit_schedules", (scope.keys.schedules, scope.keys.due), args, decode)


@dataclass(frozen=True, slots=True)
class QueueProbe(Probe):
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
class TypeProbe(Probe):
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


def probe_plan(scope: Scope, probes: Iterable[Probe], *, fix: bool) -> Plan[list[Finding]]:
    """What is wrong with these, atomically for each; with ``fix`` it has been set right."""
    found: list[Finding] = []
    ordered = sorted(probes, key=lambda probe: (probe.order, type(probe).__name__, str(probe.group)))
    for _, group in groupby(ordered, key=lambda probe: (type(probe), probe.group)):
        members = list(dict.fromkeys(group))
        size = members[0].most(scope)
        for start in range(0, len(members), size):
            found += yield members[0].step(scope, members[start : start + size], fix)
    return found
