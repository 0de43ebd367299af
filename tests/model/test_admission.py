"""Any sequence of enqueues against quotas, the most jobs of a queue and the brake: who must be refused is, alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.model.admission import AdmissionPair, AdmissionReference
from tests.model.invariants import nothing_left
from tests.model.machine import T0
from tests.model.player import Player, executors, jumps, play, some, steps
from tests.model.reference import Gate, New
from tests.support.server import Flavour, Servers

QUEUES = ("q", "r")
queues = st.sampled_from(("q", "q", "q", "r"))
quotas = st.one_of(
    st.sampled_from((None, None, Gate("r", 3, "n:t", 10_000), Gate("b", 4, "n:t:b", 8_000, burst=2))),
    st.integers(1, 4).map(lambda cost: Gate("w", 6, "nw:t", 10_000, cost=cost)),
    st.integers(1, 2).map(lambda cost: Gate("b", 5, "n:t:w", 9_000, burst=2, cost=cost)),
)
asked = st.fixed_dictionaries({"quota": quotas, "delay_ms": st.sampled_from((0, 0, 1500))})
kinds = st.sampled_from(("succeeded", "retry", "dead", "hand_back", "park"))
ends = st.fixed_dictionaries({"kind": kinds, "delay_ms": st.just(700), "bucket": st.just("t")})
claims = {"queue": queues, "exec_id": executors, "n": st.integers(1, 4)}
most = st.sampled_from((None, 0, 2, 4))
picks = {"pick": some}
USUAL = {
    "arrive": {"queue": queues, "jobs": st.lists(asked, min_size=1, max_size=4)},
    "arrive_keyed": {
        "queue": queues,
        "job": asked,
        "dedup": st.tuples(st.sampled_from(("f", "s", "w")), st.sampled_from(("t.x:1", "t.x:2"))),
        "over": st.booleans(),
    },
    "run": claims | {"end": ends},
    "time": {"seconds": st.sampled_from((1, 2, 5, 12))},
}
RARE = {
    "jump": jumps,
    "send_again": picks,
    "declare": {"queue": queues, "most": most},
    "order": {"queue": queues, "most": most, "for_ms": st.sampled_from((0, 4000)), "lift": st.booleans()},
    "brake": {
        "on": st.fixed_dictionaries(dict.fromkeys(QUEUES, st.booleans())),
        "every_ms": st.sampled_from((0, 1500)),
    },
    "claim": claims,
    "settle": {"pick": some, "count": st.integers(1, 3), "end": ends},
    "die": claims,
    "promote": {},
    "unpark": {"queue": queues},
    "cancel": picks,
    "withdraw": picks,
    "delete": picks,
    "replay": picks,
    "rq_cancel": picks,
    "rq_delete": picks,
    "rq_empty": {"queue": queues},
}


class AdmissionMachine(Player):
    """Rules over one server."""

    SCRIPTS = frozenset(
        (
            "brake", "cancel", "claim", "declare_limits", "delete", "enqueue", "free_dedup", "limit", "promote",
            "prune", "replay", "rescue", "settle", "unpark", "withdraw",
        )
    )  # fmt: skip
    pair: AdmissionPair

    def __init__(self, client: Any) -> None:
        super().__init__(AdmissionPair(client, AdmissionReference(T0)), QUEUES)

    @initialize(jobs=st.lists(asked, min_size=1, max_size=4))
    def begin(self, jobs: list[dict[str, Any]]) -> None:
        self.arrive("q", jobs)

    @rule(step=steps(USUAL, USUAL, RARE))
    def do(self, step: tuple[str, dict[str, Any]]) -> None:
        self.play(step)

    def _new(self, quota: Gate | None, delay_ms: int, **more: Any) -> New:
        job_id, due = self.new_id(), self.pair.model.now_ms + delay_ms if delay_ms else 0
        return New(job_id, f'{{"n":"{job_id}"}}', due, quota=quota, **more)

    def arrive(self, queue: str, jobs: list[dict[str, Any]]) -> None:
        self.send(queue, [self._new(**job) for job in jobs])

    def arrive_keyed(self, queue: str, job: dict[str, Any], dedup: tuple[str, str], over: bool) -> None:
        """Who is a duplicate uses up nothing, nor does who replaces a waiting one."""
        self.send(queue, [self._new(**job, dedup=dedup, window_s=60 if dedup[0] == "w" else 0, replace=over)])

    def declare(self, queue: str, most: int | None) -> None:
        self.pair.declare(queue, most)

    def order(self, queue: str, most: int | None, for_ms: int, lift: bool) -> None:
        self.pair.order(queue, most, self.pair.model.now_ms + for_ms if for_ms else 0, lift=lift)

    def brake(self, on: dict[str, bool], every_ms: int) -> None:
        self.pair.brake(on, every_ms)

    def unpark(self, queue: str) -> None:
        self.pair.unpark(queue, "t", 100)

    def tick(self) -> None:
        for queue in QUEUES:
            self.pair.unpark(queue, "t", 100)

    def end(self) -> None:
        for queue in QUEUES:
            self.pair.order(queue, None, 0, lift=True)
            self.pair.declare(queue, None)
        self.drain(rounds=10)
        self.pair.sweep()
        nothing_left(self.pair.now, self.pair.history)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_any_sequence_over_admission(servers: Servers, flavour: Flavour) -> None:
    play(AdmissionMachine, servers.client(flavour), sequences=20, derandomize=True)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_ten_thousand_sequences_over_admission(servers: Servers, flavour: Flavour) -> None:
    play(AdmissionMachine, servers.client(flavour), sequences=10_000, derandomize=False)
