"""Any sequence of steps over limited jobs and queues: gates let in what they may, and nobody waits at an open one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.model.invariants import nothing_left
from tests.model.limits import LimitedPair, LimitedReference
from tests.model.machine import T0
from tests.model.player import Player, executors, jumps, play, some, steps
from tests.model.reference import Gate, New
from tests.support.server import Flavour, Servers

QUEUES = ("q", "r")
queues = st.sampled_from(("q", "q", "q", "r"))

RATE = Gate("r", 2, "r:t", 10_000)
WIDER = Gate("r", 3, "r:t", 10_000)
BURST = Gate("b", 4, "r:t:k", 8_000, burst=1)
ONE, TWO = Gate("c", 1, "c:t"), Gate("c", 2, "c:t")
KEYED = Gate("c", 1, "c:t:k")
weighing = st.integers(1, 4).map(lambda cost: (Gate("w", 4, "w:t", 10_000, cost=cost),))
bursting = st.integers(1, 2).map(lambda cost: (Gate("b", 4, "r:bw", 8_000, burst=2, cost=cost),))
asked = st.one_of(
    st.sampled_from(
        ((), (RATE,), (RATE,), (WIDER,), (BURST,), (ONE,), (TWO,), (KEYED,), (RATE, KEYED), (BURST, ONE))
    ),
    weighing,
    bursting,
)
of_queue = st.sampled_from(
    (
        (),
        (Gate("r", 3, "q:q", 5000),),
        (Gate("c", 2, "q:q"),),
        (Gate("b", 5, "q:q", 5000, burst=1), Gate("c", 3, "q:q")),
    )
)
ends = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(
            (
                "succeeded",
                "retry",
                "dead",
                "snooze",
                "hand_back",
                "hand_back",
                "limited",
                "limited",
                "interrupted",
            )
        ),
        "delay_ms": st.sampled_from((700, 2000)),
        "crash": st.booleans(),
    }
)
claims = {"queue": queues, "exec_id": executors, "n": st.integers(1, 4)}
picks = {"pick": some}
USUAL = {
    "arrive": {
        "queue": queues,
        "gates": st.lists(asked, min_size=1, max_size=4),
        "delay_ms": st.sampled_from((0, 0, 1500)),
    },
    "claim": claims,
    "run": claims | {"end": ends},
    "settle": {"pick": some, "count": st.integers(1, 3), "end": ends},
    "open": {"most": st.sampled_from((1, 2, 100))},
    "time": {"seconds": st.sampled_from((1, 2, 5, 12))},
}
RARE = {
    "jump": jumps,
    "send_again": picks,
    "claim_again": {"exec_id": executors},
    "settle_again": {},
    "die": claims,
    "rescue": {"passes": st.integers(1, 2)},
    "promote": {},
    "cancel": picks,
    "withdraw": picks,
    "delete": picks,
    "replay": picks,
    "pause": {"queue": queues},
    "resume": {"queue": queues},
    "lift": {"queue": queues},
    "declare": {"gates": of_queue, "first": st.booleans()},
    "order": {"queue": queues, "gates": st.none() | of_queue, "for_ms": st.sampled_from((0, 4000))},
    "rq_cancel": picks,
    "rq_delete": picks,
    "rq_requeue": picks,
    "rq_empty": {"queue": queues},
}


class LimitsMachine(Player):
    """Rules over one server."""

    SCRIPTS = frozenset(
        (
            "cancel", "claim", "declare_limits", "delete", "enqueue", "lift", "limit", "open", "pause", "promote",
            "prune", "replay", "rescue", "resume", "settle", "withdraw",
        )
    )  # fmt: skip
    pair: LimitedPair

    def __init__(self, client: Any) -> None:
        super().__init__(LimitedPair(client, LimitedReference(T0)), QUEUES)

    @initialize(gates=asked)
    def begin(self, gates: tuple[Gate, ...]) -> None:
        self.arrive("q", [gates, gates, gates], 0)

    @rule(step=steps(USUAL, USUAL, USUAL, RARE))
    def do(self, step: tuple[str, dict[str, Any]]) -> None:
        self.play(step)

    def arrive(self, queue: str, gates: list[tuple[Gate, ...]], delay_ms: int) -> None:
        due = self.pair.model.now_ms + delay_ms if delay_ms else 0
        self.send(
            queue, [New(job_id := self.new_id(), f'{{"n":"{job_id}"}}', due, gates=each) for each in gates]
        )

    def open(self, most: int) -> None:
        self.pair.open(most)

    def lift(self, queue: str) -> None:
        self.pair.lift(queue)

    def declare(self, gates: tuple[Gate, ...], first: bool) -> None:
        self.pair.declare({"q": gates, "r": ()}, first=first)

    def order(self, queue: str, gates: tuple[Gate, ...] | None, for_ms: int) -> None:
        gates = None if gates is None else tuple(replace(gate, name=f"q:{queue}") for gate in gates)
        self.pair.order(queue, gates, self.pair.model.now_ms + for_ms if for_ms else 0)

    def tick(self) -> None:
        self.pair.open_all()

    def end(self) -> None:
        for queue in QUEUES:
            self.pair.resume(queue)
            self.pair.order(queue, None)
        self.drain(rounds=150)
        self.pair.declare({"q": (), "r": ()}, first=True)
        nothing_left(self.pair.now, self.pair.history)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_any_sequence_over_limits(servers: Servers, flavour: Flavour) -> None:
    play(LimitsMachine, servers.client(flavour), sequences=20, derandomize=True)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_ten_thousand_sequences_over_limits(servers: Servers, flavour: Flavour) -> None:
    play(LimitsMachine, servers.client(flavour), sequences=10_000, derandomize=False)
