"""Whatever operators set and clear, no more jobs start than the limit in force lets in, and no place leaks.

A model of one task without a limit and one with: it knows who runs, and what is set. Places are held exactly by those
whose run has passed a concurrency gate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jobq import calls
from jobq.keys import Keys
from jobq.overrides import Override, written
from jobq.rq_bridge import iso
from jobq.steps import NewJob, Outcome
from jobq.store import Store
from tests.support.server import Servers

KEYS, QUEUE, T0 = Keys(), "q", 1_800_000_000_000
LEASE_MS = 12_000
DECLARED = {"t.free": "", "t.two": "c,2,0,0,c:t.two"}
tasks = st.sampled_from(tuple(DECLARED))

steps = st.one_of(
    st.tuples(st.just("enqueue"), tasks),
    st.tuples(st.just("enqueue"), tasks),
    st.tuples(st.just("claim"), st.integers(1, 5)),
    st.tuples(st.just("claim"), st.integers(1, 5)),
    st.tuples(st.just("settle"), st.integers(0, 9), st.sampled_from(("succeeded", "hand_back", "interrupted"))),
    st.tuples(st.just("set"), tasks, st.sampled_from((1, 2, 3, "none", "stop"))),
    st.tuples(st.just("clear"), tasks),
    st.tuples(st.just("open")),
    st.tuples(st.just("forget"), st.integers(0, 9)),
    st.tuples(st.just("crash")),
)  # fmt: skip


class Fleet:
    """The model, and the server beside it."""

    def __init__(self, client: redis.Redis) -> None:
        client.flushdb()
        self.client, self.store, self.now = client, Store(client), T0
        self.task: dict[str, str] = {}
        self.running: list[tuple[str, str]] = []
        self.set: dict[str, Override] = {}
        self.number = 0

    def limit(self, task: str) -> float:
        """What holds for a task now."""
        found = self.set.get(task)
        limit = found.concurrency if found else None
        if limit is None:
            return 2 if DECLARED[task] else float("inf")
        return {"none": float("inf"), "stop": 0}.get(limit, limit)  # type: ignore[arg-type, return-value]

    def step(self, name: str, *args: Any) -> None:
        getattr(self, f"_{name}")(*args)
        self.check()

    def check(self) -> None:
        """A place is held by a run that has passed the gate, and by nobody else."""
        expected: dict[str, set[str]] = {f"c:{task}": set() for task in DECLARED}
        for job_id, token in self.running:
            lo = self.client.hget(KEYS.job(job_id), "lo")
            passed = DECLARED[self.task[job_id]] if lo is None else lo.decode()
            for gate in re.findall(r"c,\d+,\d+,\d+,([^;]+)", passed):
                expected[gate].add(f"{job_id}:{token}")
        for gate, members in expected.items():
            assert {m.decode() for m in self.client.zrange(f"{KEYS.n}held:{gate}", 0, -1)} == members

    def _enqueue(self, task: str) -> None:
        job_id = f"j{len(self.task)}"
        self.task[job_id] = task
        fields = {"data": b"{}", "origin": QUEUE, "description": task, "timeout": "180"}
        fields |= {"lm": DECLARED[task]} if DECLARED[task] else {}
        self.store.run(calls.enqueue(KEYS, QUEUE, [NewJob(id=job_id, fields=fields)], now_ms=self.now))

    def _claim(self, n: int) -> None:
        before = {task: self._many(task) for task in DECLARED}
        self.number += 1
        step = calls.claim(
            KEYS, QUEUE, exec_id="e", number=self.number, n=n, lease_ms=LEASE_MS, worker_name="w",
            started_at_iso=iso(self.now), suspects="run", known=(), now_ms=self.now,
        )  # fmt: skip
        jobs = [self.store.run(step).jobs for _ in range(2)][1]
        self.running += [(job.id, job.token) for job in jobs]
        for task in DECLARED:
            # Those above a limit that was lowered finish; nobody starts beside them.
            assert self._many(task) <= max(self.limit(task), before[task]), task

    def _many(self, task: str) -> int:
        return sum(self.task[job_id] == task for job_id, _ in self.running)

    def _settle(self, place: int, kind: Any) -> None:
        if self.running:
            job_id, token = self.running.pop(place % len(self.running))
            outcome = Outcome(job_id=job_id, token=token, kind=kind, spends=kind == "retry", delay_ms=10**9)
            for _ in range(2):
                self.store.run(calls.settle(KEYS, QUEUE, [outcome], iso(self.now), now_ms=self.now))

    def _set(self, task: str, concurrency: Any) -> None:
        self.set[task] = Override(task=task, concurrency=concurrency)
        self._write(task)

    def _clear(self, task: str) -> None:
        self.set.pop(task, None)
        self._write(task)

    def _write(self, task: str) -> None:
        before = self.client.get(KEYS.limits) or b""
        for _ in range(2):
            step = calls.override(KEYS, before, written(self.set), [f"c:{task}"], now_ms=self.now)
            assert self.store.run(step)
            members = [f"{job_id}:{token}" for job_id, token in self.running]
            self.store.run(calls.hold(KEYS, members, now_ms=self.now))

    def _open(self) -> None:
        self.store.run(calls.open_gates(KEYS, now_ms=self.now))

    def _forget(self, place: int) -> None:
        """The hash is lost under a run: its end still gives the place back, or the claim that finds it full."""
        waiting = [job_id for job_id in self.task if job_id not in dict(self.running)]
        if waiting:
            self.client.hdel(KEYS.job(waiting[place % len(waiting)]), "lo")

    def _crash(self) -> None:
        """All that runs is lost: their leases run out, and a rescue queues them again."""
        for _ in range(5):
            self.now += LEASE_MS // 3 - 1
            self.store.run(calls.rescue(KEYS, LEASE_MS, 100, now_ms=self.now))
        self.running.clear()

    def drained(self) -> set[str]:
        """Clears all, and runs what is left."""
        for task in DECLARED:
            self._clear(task)
        done = {job_id for job_id in self.task if self.client.hget(KEYS.job(job_id), "status") != b"deferred"}
        for _ in range(200):
            self.now += 300
            self.step("open")
            self.step("claim", 5)
            while self.running:
                done.add(self.running[0][0])
                self.step("settle", 0, "succeeded")
        return done


@pytest.fixture(scope="module")
def server(servers: Servers) -> Iterator[redis.Redis]:
    with servers.client("redis") as client:
        yield client


@pytest.mark.timeout(300)
def test_no_place_leaks_and_none_is_freed_twice(server: redis.Redis) -> None:
    @settings(
        max_examples=120,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(sequence=st.lists(steps, min_size=6, max_size=40))
    def check(sequence: list[tuple[Any, ...]]) -> None:
        fleet = Fleet(server)
        for one in sequence:
            fleet.step(*one)

    check()


def test_those_that_started_under_no_limit_count_when_one_holds_again(server: redis.Redis) -> None:
    fleet = Fleet(server)
    for _ in range(9):
        fleet.step("enqueue", "t.two")
    fleet.step("set", "t.two", "none")
    fleet.step("claim", 5)
    assert fleet._many("t.two") == 5
    fleet.step("clear", "t.two")
    fleet.step("claim", 5)
    assert fleet._many("t.two") == 5


def test_what_waits_starts_when_all_is_cleared(server: redis.Redis) -> None:
    fleet = Fleet(server)
    for n in range(40):
        fleet.step("enqueue", tuple(DECLARED)[n % 2])
    fleet.step("set", "t.free", "stop")
    fleet.step("set", "t.two", 1)
    for _ in range(10):
        fleet.step("claim", 5)
    assert fleet.drained() == set(fleet.task)
