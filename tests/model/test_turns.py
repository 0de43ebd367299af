"""Any sequence of steps over jobs with an order or a tenant: who is next is who should be, and no place is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.model.invariants import nothing_left
from tests.model.limits import LimitedPair, LimitedReference
from tests.model.machine import T0
from tests.model.player import Player, executors, jumps, play, some, steps
from tests.model.reference import Gate, New
from tests.model.turns import TurnsPair, TurnsReference
from tests.support.server import Flavour, Servers

QUEUES = ("q", "r")
queues = st.sampled_from(("q", "q", "q", "r"))
asked = st.fixed_dictionaries(
    {
        "order": st.sampled_from((None, None, 1, 4, 9)),
        "tenant": st.sampled_from((None, None, "big", "big", "big", "small", "tiny")),
        "gates": st.sampled_from(((), (), (), (Gate("r", 2, "r:t", 10_000),), (Gate("c", 1, "c:t"),))),
    }
)
ends = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(
            ("succeeded", "succeeded", "retry", "dead", "hand_back", "limited", "park", "interrupted")
        ),
        "delay_ms": st.sampled_from((700, 2000)),
        "bucket": st.just("t"),
    }
)
claims = {"queue": queues, "exec_id": executors, "n": st.integers(1, 4)}
picks = {"pick": some}
USUAL = {
    "arrive": {
        "queue": queues,
        "jobs": st.lists(asked, min_size=1, max_size=5),
        "delay_ms": st.sampled_from((0, 0, 0, 1500)),
    },
    "claim": claims,
    "run": claims | {"end": ends},
    "settle": {"pick": some, "count": st.integers(1, 3), "end": ends},
    "time": {"seconds": st.sampled_from((1, 2, 40))},
}
RARE = {
    "jump": jumps,
    "replace": {
        "queue": queues,
        "job": asked,
        "key": st.sampled_from("xy"),
        "delay_ms": st.sampled_from((0, 0, 1500)),
    },
    "send_again": picks,
    "claim_again": {"exec_id": executors},
    "settle_again": {},
    "die": claims,
    "open": {},
    "promote": {},
    "unpark": {"queue": queues},
    "hasten": picks,
    "reschedule": picks,
    "move": {"source": queues, "target": queues, "count": st.integers(1, 3)},
    "step": {"queue": queues, "step_ms": st.sampled_from((None, 1000, 0))},
    "cancel": picks,
    "withdraw": picks,
    "delete": picks,
    "replay": picks,
    "resume": {"queue": queues},
    "rq_cancel": picks,
    "rq_delete": picks,
    "rq_requeue": picks,
    "rq_empty": {"queue": queues},
}


@dataclass
class TurnsAndLimits(TurnsReference, LimitedReference):
    """A server whose jobs have an order or a tenant, and limits."""


class TurnsAndLimitsPair(TurnsPair, LimitedPair):
    """Such a server, and its reference."""

    model: TurnsAndLimits  # type: ignore[assignment]


class TurnsMachine(Player):
    """Rules over one server."""

    SCRIPTS = frozenset(
        (
            "cancel", "claim", "declare_limits", "delete", "enqueue", "free_dedup", "hasten", "move", "open",
            "promote", "prune", "replay", "rescue", "reschedule", "resume", "settle", "unpark", "withdraw",
        )
    )  # fmt: skip
    pair: TurnsAndLimitsPair

    def __init__(self, client: Any) -> None:
        super().__init__(TurnsAndLimitsPair(client, TurnsAndLimits(T0)), QUEUES)

    @initialize(jobs=st.lists(asked, min_size=2, max_size=8))
    def begin(self, jobs: list[dict[str, Any]]) -> None:
        self.arrive("q", jobs, 0)

    @rule(step=steps(USUAL, USUAL, RARE))
    def do(self, step: tuple[str, dict[str, Any]]) -> None:
        self.play(step)

    def arrive(self, queue: str, jobs: list[dict[str, Any]], delay_ms: int) -> None:
        due = self.pair.model.now_ms + delay_ms if delay_ms else 0
        self.send(queue, [New(job_id := self.new_id(), f'{{"n":"{job_id}"}}', due, **each) for each in jobs])

    def replace(self, queue: str, job: dict[str, Any], key: str, delay_ms: int) -> None:
        due, job_id = (self.pair.model.now_ms + delay_ms if delay_ms else 0), self.new_id()
        self.send(
            queue, [New(job_id, f'{{"n":"{job_id}"}}', due, dedup=("f", f"t.x:{key}"), replace=True, **job)]
        )

    def open(self) -> None:
        self.pair.open(100)

    def unpark(self, queue: str) -> None:
        self.pair.unpark(queue, "t", 100)

    def hasten(self, pick: int) -> None:
        if job_id := self.which(pick):
            self.pair.hasten([job_id])

    def reschedule(self, pick: int) -> None:
        if job_id := self.which(pick):
            self.pair.reschedule(job_id, self.pair.model.now_ms + 2500)

    def move(self, source: str, target: str, count: int) -> None:
        heads = self.pair.model.lists.get(source, [])[:count]
        if heads and source != target:
            self.pair.move(source, target, heads)

    def step(self, queue: str, step_ms: int | None) -> None:
        self.pair.step(queue, step_ms)

    def tick(self) -> None:
        self.pair.open_all()
        for queue in QUEUES:
            self.pair.unpark(queue, "t", 100)

    def end(self) -> None:
        for queue in QUEUES:
            self.pair.resume(queue)
        self.drain(rounds=150)
        for queue in QUEUES:
            self.pair.step(queue, None)
        self.pair.sweep()
        nothing_left(self.pair.now, self.pair.history)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_any_sequence_over_turns(servers: Servers, flavour: Flavour) -> None:
    play(TurnsMachine, servers.client(flavour), sequences=20, derandomize=True)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_ten_thousand_sequences_over_turns(servers: Servers, flavour: Flavour) -> None:
    play(TurnsMachine, servers.client(flavour), sequences=10_000, derandomize=False)
