"""Two workers, three jobs, every order of their steps, a kill or a lost reply at every point, rescues in between.

A worker claims, lets the effect happen, and settles, and may do so again. Before each step it may be killed; after
each command the reply may be lost, whereupon it sends the command again or is killed. A rescue may come at any moment
while a lease stands, and finds the leases expired of those whose supervisor has not renewed them in time: so a worker
that is not killed goes on as a zombie. Whose supervisor survives it is buried instead: its jobs are settled for it, by
the slot table and its last claim, while a settle that it had sent may still come in.

The graph of all that can happen is walked once per state, server's and workers' together; how many schedules lead
through it is counted, and is part of what is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any, Literal

import pytest

from jobq import calls
from jobq.rq_bridge import iso
from jobq.steps import Call, Claim, NewJob, Outcome, OutcomeKind
from tests.model.invariants import COUNTER, INVARIANTS, History, Step
from tests.model.machine import KEYS, T0, load_scripts
from tests.model.reference import LEASE_MS, End
from tests.model.snapshot import READ, TERMINAL, Snapshot
from tests.support.server import Flavour, Servers

JOBS = ("j1", "j2", "j3")
RESCUES = 2
RESCUE_MS = LEASE_MS + LEASE_MS // 3

_RESTORE = """
for _, key in ipairs(redis.call('KEYS', '*')) do redis.call('DEL', key) end
for i = 1, #ARGV, 2 do redis.call('RESTORE', ARGV[i], 0, ARGV[i + 1]) end
"""
_DUMP = """
local out = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  out[#out + 1] = key
  out[#out + 1] = redis.call('DUMP', key)
end
return out
"""

At = Literal["idle", "claiming", "holds", "acted", "settling", "late", "over"]


@dataclass(frozen=True)
class Worker:
    """Where a worker is: ``claiming`` and ``settling`` have sent their command and lost the reply.

    ``late`` is dead and buried, and its settle is still on its way.
    """

    name: str
    takes: int
    rounds: int
    at: At = "idle"
    number: int = 1
    held: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class World:
    """All but the server.

    Attributes:
        rescues: Passes so far; the clock is that far on.
        acted: Members (``<id>:<token>``) that had their effect.
        settled: Members that settled.
        fenced: Members whose lease was taken away.
    """

    workers: tuple[Worker, Worker]
    rescues: int = 0
    acted: frozenset[str] = frozenset()
    settled: frozenset[str] = frozenset()
    fenced: frozenset[str] = frozenset()

    @property
    def now_ms(self) -> int:
        """The clock."""
        return T0 + self.rescues * 2 * RESCUE_MS

    def having(self, worker: Worker, **changes: Any) -> World:
        """The world after this worker's step."""
        first, second = self.workers
        pair = (worker, second) if worker.name == first.name else (first, worker)
        return replace(self, workers=pair, **changes)


class Walk:
    """Walks all schedules on one server.

    Args:
        buried: Workers may be survived by their supervisors.
    Attributes:
        states: States visited; ``steps``: commands run between them.
    """

    def __init__(self, client: Any, *, buried: bool = False) -> None:
        load_scripts(client)
        self.client = client
        self.buried = buried
        self.known: dict[Any, int] = {}
        self.steps = 0

    @property
    def states(self) -> int:
        """Different states seen."""
        return len(self.known)

    def all(self, *workers: Worker) -> int:
        """How many schedules these two workers have; each was checked."""
        self.client.flushall()
        jobs = [NewJob(id=job_id, fields=_fields()) for job_id in JOBS]
        self.client.execute_command(*calls.enqueue(KEYS, "q", jobs, True, now_ms=T0).full_command())
        # Somebody rescues all the time, so that no pass begins with a hold.
        self.client.hset(KEYS.pulse, mapping={"t": T0, "f": T0})
        _, dump, state = self._run([], ())
        return self._from(World(workers), dump, state)

    def _run(
        self, dump: list[bytes], commands: tuple[tuple[Any, ...], ...]
    ) -> tuple[list[Any], list[bytes], Snapshot]:
        """Bring the server to a state and run commands there: their replies, and the state after them."""
        self.steps += len(commands)
        pipe = self.client.pipeline(transaction=False)
        if dump:
            pipe.eval(_RESTORE, 0, *dump)
        for command in commands:
            pipe.execute_command(*command)
        pipe.eval(_DUMP, 0)
        pipe.eval(READ, 0)
        *replies, after, raw = pipe.execute()
        return replies[1 if dump else 0 :], after, Snapshot.parse(raw)

    # ------------------------------------------------------------------ the graph

    def _from(self, world: World, dump: list[bytes], state: Snapshot) -> int:
        """Schedules from here to an end."""
        key = (world, state.frozen())
        if key not in self.known:
            following = list(self._next(world, dump, state))
            if not following:
                self._drain(world, dump)
            self.known[key] = sum(self._from(*one) for one in following) if following else 1
        return self.known[key]

    def _next(
        self, world: World, dump: list[bytes], state: Snapshot
    ) -> Iterator[tuple[World, list[bytes], Snapshot]]:
        for worker in world.workers:
            if worker.at != "over":
                yield world.having(_over(worker)), dump, state
            if self.buried and worker.at in ("claiming", "holds", "acted", "settling"):
                yield from self._bury(world, worker, dump, state)
            if worker.at in ("idle", "claiming"):
                after, dumped, jobs = self._claim(world, worker, dump, state)
                got = replace(worker, at="holds", held=jobs) if jobs else _over(worker)
                yield world.having(got), dumped, after
                if worker.at == "idle":
                    yield world.having(replace(worker, at="claiming")), dumped, after
            elif worker.at == "holds":
                acted = world.acted | {f"{job_id}:{token}" for job_id, token in worker.held}
                yield world.having(replace(worker, at="acted"), acted=acted), dump, state
            elif worker.at in ("acted", "settling"):
                after, dumped, ok = self._settle(world, worker, dump, state)
                settled = world.settled | ok
                done: At = "idle" if worker.number < worker.rounds else "over"
                next_round = replace(worker, at=done, number=worker.number + 1, held=())
                yield world.having(next_round, settled=settled), dumped, after
                if worker.at == "acted":
                    yield world.having(replace(worker, at="settling"), settled=settled), dumped, after
            elif worker.at == "late":
                call = _settle_call(worker.held, world.now_ms)
                replies, dumped, after = self._run(dump, (call.command(),))
                words = set(call.decode(replies[0]))  # already: as far as Redis knows, the burial was its own
                assert words <= {"already", "lost"}, words
                assert after.frozen() == state.frozen(), "what is buried changes nothing more"
                yield world.having(_over(worker)), dumped, after
        if world.rescues < RESCUES and state.leases:
            beating = [worker for worker in world.workers if worker.held and worker.at != "late"]
            for alive in chain.from_iterable(combinations(beating, n) for n in range(len(beating) + 1)):
                yield self._rescue(world, alive, dump, state)

    # ------------------------------------------------------------------ steps

    def _claim(
        self, world: World, worker: Worker, dump: list[bytes], state: Snapshot
    ) -> tuple[Snapshot, list[bytes], tuple[tuple[str, str], ...]]:
        call = _claim_call(worker.name, worker.number, worker.takes, world.now_ms)
        replies, dumped, after = self._run(dump, (call.command(),))
        claim = call.decode(replies[0])
        assert claim.status == "ok"
        step = Step("claim", world.now_ms, state, after, ("ok", [(job.id,) for job in claim.jobs]),
                    {"exec_id": worker.name, "number": worker.number, "queue": "q"})  # fmt: skip
        _check(step, world)
        return after, dumped, tuple((job.id, job.token) for job in claim.jobs)

    def _settle(
        self, world: World, worker: Worker, dump: list[bytes], state: Snapshot
    ) -> tuple[Snapshot, list[bytes], frozenset[str]]:
        call = _settle_call(worker.held, world.now_ms)
        replies, dumped, after = self._run(dump, (call.command(),))
        words = call.decode(replies[0])
        members = [f"{job_id}:{token}" for job_id, token in worker.held]
        for member, word in zip(members, words, strict=True):
            expected = "already" if member in world.settled else "lost" if member in world.fenced else "ok"
            assert word == expected, f"{member} settled: {word}, not {expected}"
        ends = [End(job_id, token, "succeeded", spends=True) for job_id, token in worker.held]
        _check(
            Step("settle", world.now_ms, state, after, words, {"members": worker.held, "ends": ends}), world
        )
        return after, dumped, frozenset(m for m, word in zip(members, words, strict=True) if word == "ok")

    def _bury(
        self, world: World, worker: Worker, dump: list[bytes], state: Snapshot
    ) -> Iterator[tuple[World, list[bytes], Snapshot]]:
        """Its supervisor settles for it: what ran was interrupted, what only waited goes back, as after any death."""
        kind: OutcomeKind = "hand_back" if worker.at == "holds" else "interrupted"
        last = calls.last_claim(KEYS, worker.name)
        replies, _, _ = self._run(dump, last.commands)
        ends = dict.fromkeys(worker.held, kind)
        ends |= {member: "hand_back" for member in last.decode(replies) if member not in ends}
        outcomes = [
            Outcome(job_id=job_id, token=token, kind=end, counters=(COUNTER,))
            for (job_id, token), end in ends.items()
        ]
        call = calls.settle(KEYS, "q", outcomes, iso(world.now_ms), now_ms=world.now_ms)
        replies, dumped, after = self._run(dump, (call.command(),))
        words = call.decode(replies[0])
        members = [f"{job_id}:{token}" for job_id, token in ends]
        for member, word in zip(members, words, strict=True):
            leased = member.partition(":")[2] in state.leases.get(member.partition(":")[0], ())
            assert (word == "ok") == leased, f"{member} buried: {word}"
        facts = {
            "members": tuple(ends),
            "ends": [End(job_id, token, end) for (job_id, token), end in ends.items()],
        }
        _check(Step("settle", world.now_ms, state, after, words, facts), world)
        fenced = world.fenced | {m for m, word in zip(members, words, strict=True) if word == "ok"}
        yield world.having(_over(worker), fenced=fenced), dumped, after
        if worker.at == "acted":
            yield world.having(replace(worker, at="late"), fenced=fenced), dumped, after

    def _rescue(
        self, world: World, alive: tuple[Worker, ...], dump: list[bytes], state: Snapshot
    ) -> tuple[World, list[bytes], Snapshot]:
        """Leases run out, but for those that are renewed; the pass after the gap waits, the next one rescues."""
        members = [f"{job_id}:{token}" for worker in alive for job_id, token in worker.held]
        then = replace(world, rescues=world.rescues + 1)
        at = then.now_ms - LEASE_MS // 3
        commands = (
            calls.rescue(KEYS, LEASE_MS, now_ms=at).command(),
            calls.heartbeat(KEYS, members, LEASE_MS, now_ms=at).command(),
            calls.rescue(KEYS, LEASE_MS, now_ms=then.now_ms).command(),
        )
        _, dumped, after = self._run(dump, commands)
        held = {f"{job_id}:{token}" for job_id, tokens in state.leases.items() for token in tokens}
        still = {f"{job_id}:{token}" for job_id, tokens in after.leases.items() for token in tokens}
        assert still == held & set(members), "only leases that nobody renewed are taken away"
        _check(Step("rescue", then.now_ms, state, after), world)
        return replace(then, fenced=world.fenced | (held - still)), dumped, after

    def _drain(self, world: World, dump: list[bytes]) -> None:
        """Both workers are over: what they left behind is rescued and run, and each job has ended once."""
        late = World(world.workers, rescues=world.rescues + 1).now_ms
        passes = (
            calls.rescue(KEYS, LEASE_MS, now_ms=late - LEASE_MS // 3),
            calls.rescue(KEYS, LEASE_MS, now_ms=late),
        )
        claim = _claim_call("c", 1, 10, late)
        replies, dumped, state = self._run(dump, (*(call.command() for call in passes), claim.command()))
        jobs = tuple((job.id, job.token) for job in claim.decode(replies[-1]).jobs)
        if jobs:
            settle = _settle_call(jobs, late)
            replies, _, state = self._run(dumped, (settle.command(),))
            assert set(settle.decode(replies[0])) == {"ok"}
        ours = [f"{job_id}:{token}" for job_id, token in jobs]
        settled = Counter(member.partition(":")[0] for member in (*world.settled, *ours))
        acted = Counter(member.partition(":")[0] for member in (*world.acted, *ours))
        cut = Counter(member.partition(":")[0] for member in world.acted - world.settled)
        for job_id in JOBS:
            assert state.status(job_id) in TERMINAL, f"{job_id} is {state.status(job_id)}"
            assert settled[job_id] == 1, f"{job_id} settled {settled[job_id]} times"
            assert acted[job_id] <= 1 + cut[job_id], (
                f"{job_id}: {acted[job_id]} effects, {cut[job_id]} runs cut after it"
            )
        assert not state.leases


def _over(worker: Worker) -> Worker:
    return replace(worker, at="over", number=0, held=())


def _check(step: Step, world: World) -> None:
    history = History(acked=set(JOBS), settled=Counter(world.settled))
    for invariant in INVARIANTS:
        invariant(step, history)


def _fields() -> dict[str, str]:
    at = iso(T0)
    return {
        "data": "{}",
        "origin": "q",
        "created_at": at,
        "enqueued_at": at,
        "description": "t.x",
        "timeout": "180",
    }


def _claim_call(exec_id: str, number: int, n: int, now_ms: int) -> Call[Claim]:
    return calls.claim(
        KEYS, "q", exec_id=exec_id, number=number, n=n, lease_ms=LEASE_MS, worker_name=exec_id,
        started_at_iso=iso(now_ms), now_ms=now_ms,
    )  # fmt: skip


def _settle_call(held: tuple[tuple[str, str], ...], now_ms: int) -> Call[list[str]]:
    outcomes = [
        Outcome(job_id=job_id, token=token, kind="succeeded", spends=True, counters=(COUNTER,))
        for job_id, token in held
    ]
    return calls.settle(KEYS, "q", outcomes, iso(now_ms), now_ms=now_ms)


LONG = [pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("flavour", ["redis", "valkey"])
@pytest.mark.parametrize(
    ("rounds", "buried", "expected"),
    [
        pytest.param((1, 1), True, (2_698_322, 5_838), id="short", marks=pytest.mark.timeout(300)),
        pytest.param((2, 1), True, (119_050_703, 18_238), id="two rounds", marks=LONG),
        pytest.param((2, 2), False, (2_692_838_832, 28_859), id="two rounds each", marks=LONG),
    ],
)
def test_every_interleaving(
    servers: Servers, flavour: Flavour, rounds: tuple[int, int], buried: bool, expected: tuple[int, int]
) -> None:
    """Expected are the counts of schedules and of states."""
    walk = Walk(servers.client(flavour), buried=buried)
    schedules = walk.all(Worker("a", 2, rounds[0]), Worker("b", 1, rounds[1]))
    assert (schedules, walk.states) == expected, "a step was added or taken away: was that meant?"
