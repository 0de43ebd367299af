"""The reference of admission: how many jobs a queue takes, who may enqueue how much, and the brake on memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from jobq import brake, calls
from jobq.limits import Noted
from tests.model.machine import KEYS, Pair, compare_parts
from tests.model.reference import New, Reference
from tests.model.snapshot import Snapshot


@dataclass
class Count:
    """What a quota has let in: each enqueue with its moment and its cost, or when its bucket is full again."""

    taken: dict[str, tuple[int, int]] = field(default_factory=dict)
    full_ms: float = 0
    expires_s: float = math.inf


@dataclass
class AdmissionReference(Reference):
    """A server that refuses some of the jobs that come.

    Attributes:
        noted: By queue: the most jobs that may wait, as the settings say.
        ordered: By queue: until when (0: for good) an operator's number counts in its place; None: any number.
        braked: Queues that the brake has told to refuse.
    """

    counts: dict[str, Count] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    ordered: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    looked_ms: int | None = None

    def pass_time(self, seconds: int) -> None:
        """Quotas that count nothing any more are forgotten."""
        super().pass_time(seconds)
        self.counts = {name: count for name, count in self.counts.items() if count.expires_s > self.uptime_s}

    def _quota(self, one: New) -> tuple[str, str] | None:
        gate = one.quota
        assert gate is not None
        count, cost = self.counts.setdefault(gate.name, Count()), gate.cost or 1
        if gate.kind == "b":
            step = gate.window_ms / (gate.limit - gate.burst)
            full_ms = max(self.now_ms, count.full_ms) + step * cost
            waits = full_ms - self.now_ms - gate.burst * step
            if waits > 1e-6:
                return "over_quota", str(math.ceil(waits))
            count.full_ms = full_ms
            count.expires_s = self.uptime_s + math.ceil((full_ms - self.now_ms) / 1000)
            return None
        live = {i: taken for i, taken in count.taken.items() if taken[0] > self.now_ms - gate.window_ms}
        free = gate.limit - sum(its for _, its in live.values())
        if free < cost:
            left = sorted(live.values())
            while free < cost:
                at, its = left.pop(0)
                free += its
            return "over_quota", str(at + gate.window_ms - self.now_ms)
        count.taken = {**live, one.id: (self.now_ms, cost)}
        count.expires_s = self.uptime_s + gate.window_ms // 1000
        return None

    def enqueue(self, queue: str, new: Sequence[New]) -> list[tuple[str, str]]:
        """As an operator has set it, while that counts, else as the settings say."""
        self.most.pop(queue, None)
        until, most = self.ordered.get(queue, (-1, None))
        if until == 0 or until > self.now_ms:
            if most is not None:
                self.most[queue] = most
        elif queue in self.noted:
            self.most[queue] = self.noted[queue]
        return super().enqueue(queue, new)

    def brake(self, on: dict[str, bool], every_ms: int, lasts_ms: int) -> list[tuple[str, bool]]:
        """The queues where it has just changed; nobody looks twice in so short a time."""
        if self.looked_ms is not None and abs(self.now_ms - self.looked_ms) < every_ms:
            return []
        self.looked_ms, changed = self.now_ms, []
        for queue, refuses in on.items():
            was = self.shed_until.get(queue, 0) > self.now_ms
            self.shed_until.pop(queue, None)
            if refuses:
                self.shed_until[queue] = self.now_ms + lasts_ms
            if refuses != was:
                changed.append((queue, refuses))
        return changed


class AdmissionPair(Pair):
    """Such a server, and its reference."""

    model: AdmissionReference

    def declare(self, queue: str, most: int | None) -> None:
        """Note what the settings say."""
        old = self.model.noted.pop(queue, None)
        if most is not None:
            self.model.noted[queue] = most
        noted = Noted(most="" if most is None else str(most))
        self.call(calls.declare_limits(KEYS, {queue: noted}, first=True), int(old != most))

    def order(self, queue: str, most: int | None, until_ms: int, *, lift: bool) -> None:
        """Limit a queue as an operator does, or as the settings say again."""
        self.model.ordered.pop(queue, None)
        if not lift:
            self.model.ordered[queue] = (until_ms, most)
        self.call(calls.limit(KEYS, queue, None if lift else "", until_ms, most=most), True)

    def brake(self, on: dict[str, bool], every_ms: int) -> None:
        """Look at memory; the server has no bound, so a threshold below nothing is what tells a queue to refuse."""
        look = brake.look(
            KEYS,
            {queue: -50 if refuses else 50 for queue, refuses in on.items()},
            every=timedelta(milliseconds=every_ms),
            now_ms=self.model.now_ms,
        )
        changed = self.model.brake(on, every_ms, brake.HOLD // timedelta(milliseconds=1))
        words = [tuple(queue for queue, refuses in changed if refuses is word) for word in (True, False)]
        self.call(look, words, lambda answer: [answer.shed, answer.admitted])

    def _compare(self, after: Snapshot) -> None:
        super()._compare(after)
        compare_parts(_server_admission(after), _model_admission(self.model))


def _server_admission(state: Snapshot) -> dict[str, Any]:
    parts: dict[str, Any] = {"taken": {}, "full": {}}
    for key, value in state.values.items():
        kind, _, name = key.removeprefix("jobq:").partition(":")
        if kind == "quota" and isinstance(value, str):
            parts["full"][name] = round(float(value), 2)
        elif kind == "quota":
            taken = {member: at for member, at in value.items() if member != "~sum"}
            costs = sum(int(member.partition(":")[2] or 1) for member in taken)
            assert value.get("~sum", costs) == costs, f"{name} sums up {value}"
            parts["taken"][name] = {member.partition(":")[0]: at for member, at in taken.items()}
    states = {key.removeprefix("jobq:q:"): v for key, v in state.values.items() if key.startswith("jobq:q:")}
    return parts | {
        name: {queue: found[name] for queue, found in states.items() if name in found}
        for name in ("max", "max_set", "shed")
    }


def _model_admission(model: AdmissionReference) -> dict[str, Any]:
    counts = model.counts.items()
    return {
        "taken": {
            name: {job_id: at for job_id, (at, _) in count.taken.items()}
            for name, count in counts
            if count.taken
        },
        "full": {name: round(count.full_ms, 2) for name, count in counts if count.full_ms},
        "max": {queue: str(most) for queue, most in model.noted.items()},
        "max_set": {
            queue: f"{until}|{'' if most is None else most}" for queue, (until, most) in model.ordered.items()
        },
        "shed": {queue: str(until) for queue, until in model.shed_until.items()},
    }
