"""A waiting job is told of something that blocks it exactly when a claim would not take it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jobq import calls
from jobq.dedup import digest
from jobq.job import JobState
from jobq.keys import Keys
from jobq.limits import Rate
from jobq.overrides import Override, written
from jobq.rq_bridge import iso
from jobq.steps import NewJob, Outcome
from jobq.store import Store
from jobq.units import moment
from jobq.why import Why, why_plan
from tests.support.server import Servers

KEYS, QUEUE, T0 = Keys(), "q", 1_800_000_000_000
LEASE_MS = 12_000
GATES = (
    "",
    "",
    "r,2,1000,0,r:t",
    "b,4,1000,1,r:u",
    "c,1,0,0,c:t:k",
    "c,1,0,0,c:t:k;r,1,3000,0,r:v:k",
    "w,5,1000,0,w:t,3",
    "w,5,1000,0,w:t,2",
)
OWN_GATES = (
    "",
    "r,2,1000,0,r:t.x",
    "c,2,0,0,c:t.x",
    f"r,3,1000,0,r:t.x:{digest('t.x', 'acme')};c,1,0,0,c:t.x:{digest('t.x', 'acme')}",
    "w,5,1000,0,w:t.x,3",
    "r,3,2000,0,r:@:d",
)
"""Of the task that the jobs are of."""

QUEUE_GATES = ("", "r,3,1000,0,q:q", "b,6,1000,2,q:q", "c,1,0,0,q:q", "r,2,500,0,q:q;c,2,0,0,q:q")

steps = st.one_of(
    st.tuples(st.just("enqueue"), st.sampled_from(GATES), st.sampled_from((0, 0, 0, 700))),
    st.tuples(st.just("enqueue"), st.sampled_from(GATES), st.just(0)),
    st.tuples(st.just("claim"), st.integers(1, 3), st.booleans()),
    st.tuples(
        st.just("settle"),
        st.sampled_from(("succeeded", "retry", "snooze", "limited", "park", "hand_back", "interrupted")),
    ),
    st.tuples(st.just("time"), st.sampled_from((1, 300, 1500, 13_000))),
    st.tuples(st.just("open")),
    st.tuples(st.just("promote")),
    st.tuples(st.just("rescue")),
    st.tuples(st.just("pause"), st.sampled_from((0, 1000))),
    st.tuples(st.just("resume")),
    st.tuples(st.just("limit"), st.sampled_from(QUEUE_GATES)),
    st.tuples(st.just("suspend"), st.booleans()),
)
overrides = st.builds(
    lambda key, rate, concurrency, ends_ms: Override(
        task="t.x",
        key=key,
        rate=rate,
        concurrency=concurrency,
        until=moment(T0 + ends_ms) if ends_ms else None,
    ),
    st.sampled_from((None, None, "acme")),
    st.sampled_from((None, "none", "stop", Rate(1, 1), Rate(4, 1, burst=2))),
    st.sampled_from((None, "none", "stop", 1, 2)),
    st.sampled_from((0, 0, 1_500)),
)
own_steps = st.one_of(
    steps,
    st.tuples(st.just("enqueue"), st.sampled_from(OWN_GATES), st.just(0)),
    st.tuples(st.just("claim"), st.integers(1, 3), st.booleans()),
    st.tuples(st.just("override"), st.lists(overrides, max_size=2)),
)


class Scene:
    """A queue in which a bit of everything has happened."""

    def __init__(self, client: redis.Redis) -> None:
        client.flushdb()
        self.client, self.store, self.now = client, Store(client), T0
        self.ids: list[str] = []
        self.held: list[tuple[str, str]] = []
        self.number = 0

    def enqueue(self, gates: str, delay_ms: int) -> None:
        """Add a job that has to pass these gates."""
        self.ids.append(f"j{len(self.ids)}")
        fields = {"data": b"{}", "origin": QUEUE, "description": "t.x", "timeout": "180"}
        fields |= {"lm": gates} if gates else {}
        new = NewJob(id=self.ids[-1], fields=fields, at_ms=self.now + delay_ms if delay_ms else 0)
        self.store.run(calls.enqueue(KEYS, QUEUE, [new], now_ms=self.now))

    def wish(self, order: int | None, tenant: str | None) -> None:
        """Add a job with an order, or one of a tenant."""
        self.ids.append(f"j{len(self.ids)}")
        fields = {"data": b"{}", "origin": QUEUE, "description": "t.x", "timeout": "180"}
        fields |= {"or": str(order)} if order else {}
        fields |= {"tn": tenant} if tenant else {}
        self.store.run(calls.enqueue(KEYS, QUEUE, [NewJob(id=self.ids[-1], fields=fields)], now_ms=self.now))

    def claim(self, n: int, *, known: tuple[str, ...] = ("b",)) -> list[str]:
        """Take jobs as a worker that knows the parked bucket does."""
        self.number += 1
        step = calls.claim(
            KEYS, QUEUE, exec_id="e", number=self.number, n=n, lease_ms=LEASE_MS, worker_name="w",
            started_at_iso=iso(self.now), suspects="run", known=known, now_ms=self.now,
        )  # fmt: skip
        jobs = self.store.run(step).jobs
        self.held += [(job.id, job.token) for job in jobs]
        return [job.id for job in jobs]

    def settle(self, kind: Any) -> None:
        """End the oldest run."""
        if self.held:
            job_id, token = self.held.pop(0)
            outcome = Outcome(
                job_id=job_id,
                token=token,
                kind=kind,
                spends=kind == "retry",
                delay_ms=900,
                bucket="b",
                reason="no_key",
            )
            self.store.run(calls.settle(KEYS, QUEUE, [outcome], iso(self.now), now_ms=self.now))

    def step(self, name: str, *args: Any) -> None:
        """Do one of the steps."""
        match name:
            case "enqueue":
                self.enqueue(*args)
            case "claim":
                self.claim(args[0], known=("b",) if args[1] else ())
            case "settle":
                self.settle(*args)
            case "time":
                self.now += args[0]
            case "open":
                self.store.run(calls.open_gates(KEYS, now_ms=self.now))
            case "promote":
                self.store.run(calls.promote(KEYS, [QUEUE], now_ms=self.now))
            case "rescue":
                self.store.run(calls.rescue(KEYS, LEASE_MS, 100, now_ms=self.now))
            case "pause":
                self.store.run(calls.pause(KEYS, QUEUE, self.now + args[0] if args[0] else 0, "me", "why"))
            case "resume":
                self.store.run(calls.resume(KEYS, QUEUE))
            case "limit":
                self.store.run(calls.limit(KEYS, QUEUE, f"0|{args[0]}"))
            case "override":
                text = written({each.name: each for each in args[0]})
                before = self.client.get(KEYS.limits) or b""
                names = [f"{kind}:{each.name}" for each in args[0] for kind in "rwc"]
                assert self.store.run(calls.override(KEYS, before, text, names, now_ms=self.now))
                members = [f"{job_id}:{token}" for job_id, token in self.held]
                self.store.run(calls.hold(KEYS, members, now_ms=self.now))
            case "suspend" if args[0]:
                self.client.set(KEYS.suspended, 1)
            case "suspend":
                self.client.delete(KEYS.suspended)

    def why(self, job_id: str) -> Why:
        """What a person is told."""
        lease = timedelta(milliseconds=LEASE_MS)
        return self.store.run(why_plan(KEYS, job_id, None, lease, now_ms=self.now))

    def alone(self, job_id: str, aside: redis.Redis) -> list[str]:
        """What a claim takes if no other job is in the queue's list; in a copy of the data."""
        aside.flushdb()
        database = aside.connection_pool.connection_kwargs["db"]
        pipe = self.client.pipeline(transaction=False)
        for key in self.client.scan_iter():
            pipe.copy(key, key, destination_db=database)
        pipe.execute()
        for other in self.ids:
            if other != job_id:
                aside.lrem(KEYS.queue(QUEUE), 0, other)
        copy = Scene.__new__(Scene)
        copy.client, copy.store, copy.now = aside, Store(aside), self.now
        copy.held, copy.number = [], self.number
        return copy.claim(1, known=())


@pytest.fixture(scope="module")
def databases(servers: Servers) -> tuple[redis.Redis, redis.Redis]:
    first = servers.client("redis")
    kwargs = first.connection_pool.connection_kwargs
    return first, redis.Redis(host=kwargs["host"], port=kwargs["port"], db=1)


def test_a_small_job_that_queues_up_behind_a_big_one(databases: tuple[redis.Redis, redis.Redis]) -> None:
    client, aside = databases
    scene = Scene(client)
    for gates in ("w,5,1000,0,w:t,3", "w,5,1000,0,w:t,3"):
        scene.step("enqueue", gates, 0)
    assert scene.claim(2, known=()) == ["j0"]
    scene.step("time", 300)
    scene.step("enqueue", "w,5,1000,0,w:t,1", 0)
    assert any(each.code == "rate" and each.blocks for each in scene.why("j2").reasons)
    assert scene.alone("j2", aside) == []
    scene.step("time", 1500)
    scene.step("open")
    for job_id in ("j1", "j2"):
        assert not any(each.code == "rate" for each in scene.why(job_id).reasons)
        assert scene.alone(job_id, aside) == [job_id]


@pytest.mark.timeout(300)
def test_whoever_is_not_taken_is_told_what_blocks_it_and_nobody_else(
    databases: tuple[redis.Redis, redis.Redis],
) -> None:
    check_why(*databases, steps)


@pytest.mark.timeout(300)
def test_so_it_is_where_operators_set_limits(databases: tuple[redis.Redis, redis.Redis]) -> None:
    check_why(*databases, own_steps)


def check_why(client: redis.Redis, aside: redis.Redis, one_of: st.SearchStrategy[tuple[Any, ...]]) -> None:
    @settings(
        max_examples=100,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(sequence=st.lists(one_of, min_size=4, max_size=20))
    def check(sequence: list[tuple[Any, ...]]) -> None:
        scene = Scene(client)
        scene.step("enqueue", GATES[2], 0)
        for one in sequence:
            scene.step(*one)
        for job_id in scene.ids[:8]:
            why = scene.why(job_id)
            if why.job.finished or why.job.state is JobState.RUNNING:
                continue
            # That no worker lives is true, and the claim below is by one.
            blocks = [each.code for each in why.reasons if each.blocks and each.code != "no_worker"]
            taken = scene.alone(job_id, aside) == [job_id]
            assert bool(blocks) != taken, (why.job.state, blocks, [r.text for r in why.reasons])

    check()


def test_where_jobs_weigh_none_goes_past_who_waits(databases: tuple[redis.Redis, redis.Redis]) -> None:
    client, aside = databases
    scene = Scene(client)
    for cost in (3, 3, 2):
        scene.enqueue(f"w,5,1000,0,w:t,{cost}", 0)
        scene.now += 1
        scene.claim(1)
    scene.enqueue("w,5,1000,0,w:t,1", 0)
    assert [scene.why(job_id).job.state.value for job_id in scene.ids] == [
        "running",
        "parked",
        "parked",
        "queued",
    ]
    assert scene.alone("j3", aside) == []
    (rate,) = [each for each in scene.why("j3").reasons if each.code == "rate"]
    assert rate.blocks
    assert rate.text.endswith("2 wait before it")
    scene.now += 1_200
    scene.step("open")
    assert scene.why("j1").job.state is JobState.QUEUED
    for job_id in ("j1", "j2", "j3"):
        why = scene.why(job_id)
        if why.job.state is JobState.QUEUED:
            blocks = [each.code for each in why.reasons if each.blocks and each.code != "no_worker"]
            assert bool(blocks) != (scene.alone(job_id, aside) == [job_id]), (job_id, blocks)


wishes = st.tuples(
    st.sampled_from((None, None, 1, 4, 6, 10)),
    st.sampled_from((None, None, "a", "b", "c")),
    st.integers(0, 90_000),
)


@pytest.mark.timeout(300)
def test_the_jobs_ahead_are_those_that_a_claim_takes_before(
    databases: tuple[redis.Redis, redis.Redis],
) -> None:
    client, _ = databases

    @settings(
        max_examples=60,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(asked=st.lists(wishes, min_size=1, max_size=12), claimed=st.integers(0, 4))
    def check(asked: list[tuple[int | None, str | None, int]], claimed: int) -> None:
        scene = Scene(client)
        for order, tenant, later in asked:
            scene.now += later
            scene.wish(order, tenant)
        if claimed:
            scene.claim(claimed)
        waiting = [job_id for job_id in scene.ids if scene.why(job_id).job.state is JobState.QUEUED]
        told = {job_id: scene.why(job_id).ahead for job_id in waiting}
        taken = [job_id for _ in waiting for job_id in scene.claim(1)]
        assert told == {job_id: place for place, job_id in enumerate(taken)}

    check()
