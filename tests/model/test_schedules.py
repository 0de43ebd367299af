"""Any sequence of steps over schedules: each slot becomes one job or none, whoever takes it, dies, or changes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from jobq.recurrence import Misfire, Overlap
from jobq.schedule_calls import Taken
from tests.model.invariants import nothing_left
from tests.model.machine import T0
from tests.model.player import Player, executors, jumps, play, some, steps
from tests.model.schedules import SchedulesPair, SchedulesReference, Spec
from tests.support.server import Flavour, Servers

NAMES = ("s1", "s2")
SOURCES = ("app", "other")
names = st.sampled_from(NAMES)
specs = st.builds(
    Spec,
    names,
    st.sampled_from((2000, 2000, 5000)),
    st.just("q"),
    st.sampled_from(("allow", "allow", "skip", "queue_one")),
    st.sampled_from((None, None, None, ("f", "t.x:k"), ("s", "t.x:k"), ("w", "t.x:k"))),
    st.sampled_from((Misfire(), Misfire(), Misfire("all", max=3), Misfire("skip"))),
)
overlaps = st.sampled_from(("allow", "skip", "queue_one"))
sources = st.sampled_from(("", "", *SOURCES))
prints = st.sampled_from(("old", "new"))
ends = st.fixed_dictionaries(
    {"kind": st.sampled_from(("succeeded", "retry", "dead", "hand_back")), "delay_ms": st.just(700)}
)
claims = {"queue": st.just("q"), "exec_id": executors, "n": st.integers(1, 3)}
picks = {"pick": some}
USUAL = {
    "put": {"spec": specs, "source": sources, "fingerprint": prints, "over": st.booleans()},
    "take": {"limit": st.sampled_from((1, 100))},
    "fire": picks,
    "change": {"name": names, "overlap": overlaps},
    "tick": {},
    "run": claims | {"end": ends},
    "time": {"seconds": st.sampled_from((1, 2, 3, 12))},
}
RARE = {
    "jump": jumps,
    "fire_again": {},
    "race": {"overlap": overlaps},
    "declare": {"source": st.sampled_from(SOURCES), "fingerprint": prints},
    "remove": {"name": names, "source": sources, "fingerprint": prints},
    "pause_schedule": {"name": names},
    "resume_schedule": {"name": names, "fresh": st.booleans()},
    "move": {"name": names},
    "set_aside": {"name": names},
    "lose": {"name": names},
    "elsewhere": picks,
    "adopt_schedule": {"pick": some, "spec": specs, "moved": st.booleans()},
    "adopt_job": {"pick": some, "moved": st.booleans()},
    "most": {"most": st.sampled_from((None, 1, 3))},
    "shed": {"for_ms": st.sampled_from((0, 3000))},
    "claim": claims,
    "settle": {"pick": some, "count": st.integers(1, 2), "end": ends},
    "die": claims,
    "promote": {},
    "time": {"seconds": st.sampled_from((70, 200))},
    "cancel": picks,
    "rq_delete": picks,
    "rq_empty": {"queue": st.just("q")},
}


class SchedulesMachine(Player):
    """Rules over one server."""

    SCRIPTS = frozenset(
        (
            "adopt", "cancel", "claim", "promote", "prune", "rescue", "resume", "schedule_adopt",
            "schedule_break", "schedule_declare", "schedule_fire", "schedule_move", "schedule_pause", "schedule_put",
            "schedule_remove", "schedule_resume", "schedule_take", "settle",
        )
    )  # fmt: skip
    pair: SchedulesPair

    def __init__(self, client: Any) -> None:
        super().__init__(SchedulesPair(client, SchedulesReference(T0)), ("q",))
        self.model = self.pair.model
        self.taken: list[tuple[Taken, Spec]] = []

    @initialize(spec=specs)
    def begin(self, spec: Spec) -> None:
        self.pair.put(spec)

    @rule(step=steps(USUAL, USUAL, RARE))
    def do(self, step: tuple[str, dict[str, Any]]) -> None:
        self.play(step)

    def put(self, spec: Spec, source: str, fingerprint: str, over: bool) -> None:
        if source:
            self.pair.declare(source, fingerprint)
        self.pair.put(spec, source, fingerprint if source else "", replace=over)

    def change(self, name: str, overlap: Overlap) -> None:
        """At run time, and not its times."""
        if plan := self.model.plans.get(name):
            self.pair.put(replace(plan.spec, overlap=overlap), replace=True)

    def declare(self, source: str, fingerprint: str) -> None:
        self.pair.declare(source, fingerprint)

    def remove(self, name: str, source: str, fingerprint: str) -> None:
        self.pair.remove(name, source, fingerprint if source else "")

    def take(self, limit: int) -> None:
        """Whoever took them may fire them at any time, or never."""
        self.taken += self.pair.take(limit)

    def fire(self, pick: int) -> None:
        """Also what others have fired meanwhile, or changed."""
        if self.taken:
            self.pair.fire(*self.taken[-1 - pick % len(self.taken)])

    def fire_again(self) -> None:
        """The reply was lost."""
        if self.taken:
            self.pair.fire(*self.taken[-1])
            self.pair.fire(*self.taken[-1])

    def tick(self) -> None:
        """Take and fire, as workers do."""
        for taken, spec in self.pair.take(100):
            self.taken.append((taken, spec))
            self.pair.fire(taken, spec)

    def race(self, overlap: Overlap) -> None:
        """Changed while a worker is about to fire it."""
        self.pair.pass_time(5)
        for taken, spec in self.pair.take(100):
            self.change(taken.name, overlap)
            self.pair.fire(taken, spec)

    def pause_schedule(self, name: str) -> None:
        self.pair.pause_schedule(name)

    def resume_schedule(self, name: str, fresh: bool) -> None:
        plan = self.model.plans.get(name)
        rev = plan.rev if plan else 1
        spec = plan.spec if plan else Spec(name, 2000)
        self.pair.resume_schedule(name, str(rev if fresh else rev - 1), spec.after(self.model.now_ms))

    def move(self, name: str) -> None:
        """To a moment that is no slot of any."""
        self.pair.move(name, self.model.now_ms + 1111)

    def set_aside(self, name: str) -> None:
        if name in self.model.plans:
            self.pair.set_aside(name)

    def lose(self, name: str) -> None:
        self.pair.lose(name)

    def elsewhere(self, pick: int) -> None:
        self.pair.elsewhere(f"rq{pick % 3}", self.model.now_ms // 1000 + pick)

    def adopt_schedule(self, pick: int, spec: Spec, moved: bool) -> None:
        rq_id = f"rq{pick % 3}"
        self.pair.adopt_schedule(rq_id, self.model.elsewhere.get(rq_id, 0) - moved, spec)

    def adopt_job(self, pick: int, moved: bool) -> None:
        rq_id = f"rq{pick % 3}"
        self.pair.adopt_job(rq_id, self.model.elsewhere.get(rq_id, 0) - moved, self.new_id())

    def most(self, most: int | None) -> None:
        self.pair.limit("q", most)

    def shed(self, for_ms: int) -> None:
        self.pair.shed("q", self.model.now_ms + for_ms)

    def teardown(self) -> None:
        self.ids.append("begun")
        super().teardown()

    def end(self) -> None:
        self.pair.limit("q", None)
        self.pair.shed("q", 0)
        self.pair.resume("q")
        self.pair.pass_time(70)
        self.tick()
        for plan in self.model.plans.values():
            waits = plan.paused or plan.next_ms is None or self.model.reasons[plan.spec.name]
            assert waits or plan.next_ms > self.model.now_ms, f"{plan} is late"  # type: ignore[operator]
        for name in NAMES:
            self.pair.remove(name)
        for rq_id in list(self.model.elsewhere):
            self.pair.adopt_job(rq_id, self.model.elsewhere[rq_id], self.new_id())
        self.drain(rounds=30)
        self.pair.sweep()
        nothing_left(self.pair.now, self.pair.history)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_any_sequence_over_schedules(servers: Servers, flavour: Flavour) -> None:
    play(SchedulesMachine, servers.client(flavour), sequences=20, derandomize=True)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_ten_thousand_sequences_over_schedules(servers: Servers, flavour: Flavour) -> None:
    play(SchedulesMachine, servers.client(flavour), sequences=10_000, derandomize=False)
