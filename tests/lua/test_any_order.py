"""After any mix of steps, rq tools' included: each job in one place, none lost, no token settles twice."""

from __future__ import annotations

import random
from typing import Any

import pytest

from jobq import calls
from tests.lua.conftest import Bench

QUEUES = ("q", "q2")
KINDS = ("succeeded", "succeeded", "retry", "dead", "snooze", "park", "hand_back", "interrupted", "cancelled")
LIVE = {"queued", "scheduled", "started", "deferred"}


class World:
    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.rand = random.Random(seed)
        self.made: list[str] = []
        self.held: list[tuple[str, Any]] = []
        self.zombies: list[tuple[str, Any]] = []
        self.deleted: set[str] = set()

    def queue(self) -> str:
        return self.rand.choice(QUEUES)

    def some(self) -> str:
        return self.rand.choice(self.made)

    def enqueue(self) -> None:
        rand, job_id, options = self.rand, f"j{len(self.made)}", {}
        if rand.random() < 0.5:
            key = f"t.x:{rand.randrange(3)}"
            mode = rand.choice("fsw")
            options = {
                "dedup_key": key,
                "dedup_mode": mode,
                "window_ms": 3_600_000,
                "replace": rand.random() < 0.3,
            }
            options["bound_id"] = "*"
        if rand.random() < 0.3:
            options["delay_ms"] = rand.randrange(1, 3000)
        words = self.bench.enqueue(job_id, queue=self.queue(), repeats=rand.choice((1, 2)), **options)
        if self.bench.status(job_id):
            self.made.append(job_id)
        else:
            assert words[0][0] in ("duplicate", "replaced")

    def claim(self) -> None:
        queue = self.queue()
        known = ["t.new"] if self.rand.random() < 0.3 else []
        call = self.bench.claim_call(self.rand.randrange(1, 4), queue=queue, known=known)
        claim = self.bench.run(call)
        if self.rand.random() < 0.3:
            assert self.bench.run(call).jobs == claim.jobs
        self.held += [(queue, job) for job in claim.jobs]

    def settle(self) -> None:
        if not self.held:
            return
        queue, job = self.held.pop(self.rand.randrange(len(self.held)))
        options = {"kind": self.rand.choice(KINDS), "delay_ms": self.rand.randrange(2000), "bucket": "t.new"}
        options |= {"spends": self.rand.random() < 0.5, "reason": "r", "record": b"{}"}
        (word,) = self.bench.settle(job, queue=queue, **options)
        if word == "ok":
            before = self.bench.snapshot()
            (again,) = self.bench.settle(job, queue=queue, **options)
            assert again in ("already", "lost")
            assert self.bench.snapshot() == before

    def zombie(self) -> None:
        if self.zombies:
            queue, job = self.rand.choice(self.zombies)
            before = self.bench.snapshot()
            if f"{job.id}:{job.token}" not in self.bench.zset("jobq:leases"):
                (word,) = self.bench.settle(job, queue=queue, kind="succeeded")
                assert word in ("lost", "gone", "already")
                assert self.bench.snapshot() == before

    def crash(self) -> None:
        """Whoever holds them is never heard of again, as far as the others know."""
        self.zombies += self.held
        self.held = []

    def pass_time(self) -> None:
        for _ in range(self.rand.randrange(1, 30)):
            self.bench.now += 500
            self.bench.run(calls.rescue(self.bench.keys, 12_000, now_ms=self.bench.now))
            self.bench.run(calls.promote(self.bench.keys, QUEUES, now_ms=self.bench.now))
        members = [f"{job.id}:{job.token}" for _, job in self.held]
        lost = set(
            self.bench.run(calls.heartbeat(self.bench.keys, members, 12_000, now_ms=self.bench.now)).lost
        )
        self.zombies += [(q, job) for q, job in self.held if f"{job.id}:{job.token}" in lost]
        self.held = [(q, job) for q, job in self.held if f"{job.id}:{job.token}" not in lost]

    def cancel(self) -> None:
        self.bench.run(calls.cancel(self.bench.keys, self.some(), now_ms=self.bench.now), repeats=2)

    def withdraw(self) -> None:
        self.bench.run(calls.withdraw(self.bench.keys, self.some(), now_ms=self.bench.now), repeats=2)

    def replay(self) -> None:
        self.bench.run(calls.replay(self.bench.keys, [self.some(), self.some()], now_ms=self.bench.now))

    def unpark(self) -> None:
        self.bench.run(calls.unpark(self.bench.keys, self.queue(), "t.new", now_ms=self.bench.now))

    def delete(self) -> None:
        job_id = self.some()
        if self.bench.run(calls.delete(self.bench.keys, job_id)) == "deleted":
            self.deleted.add(job_id)

    def rq_cancel(self) -> None:
        """As rq's ``Job.cancel`` on a queued job: status and registry, the id out of the list."""
        job_id, redis = self.some(), self.bench.redis
        found = self.bench.hash(job_id)
        if found.get("status") == "queued":
            redis.lrem(f"rq:queue:{found['origin']}", 0, job_id)
            redis.hset(f"rq:job:{job_id}", "status", "canceled")
            redis.zadd(f"rq:canceled:{found['origin']}", {job_id: self.bench.now // 1000})

    def rq_requeue(self) -> None:
        """As ``rq requeue`` on a dead letter; it keeps the expiry."""
        job_id, redis = self.some(), self.bench.redis
        found = self.bench.hash(job_id)
        if found.get("status") == "failed":
            redis.zrem(f"rq:failed:{found['origin']}", job_id)
            redis.hset(f"rq:job:{job_id}", "status", "queued")
            redis.rpush(f"rq:queue:{found['origin']}", job_id)

    def rq_delete(self) -> None:
        job_id, redis = self.some(), self.bench.redis
        queue = self.bench.hash(job_id).get("origin", "q")
        redis.delete(f"rq:job:{job_id}")
        redis.lrem(f"rq:queue:{queue}", 0, job_id)
        for word in ("scheduled", "finished", "failed", "deferred", "canceled"):
            redis.zrem(f"rq:{word}:{queue}", job_id)
        self.deleted.add(job_id)


STEPS = {
    "enqueue": 6, "claim": 6, "settle": 8, "zombie": 1, "crash": 0.5, "pass_time": 2, "cancel": 1, "withdraw": 0.5,
    "replay": 2, "unpark": 0.5, "delete": 0.3, "rq_cancel": 0.5, "rq_requeue": 0.5, "rq_delete": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_any_order(real: Bench, seed: int) -> None:
    world = World(real, seed)
    for _ in range(5):
        world.enqueue()
    for step in world.rand.choices(list(STEPS), list(STEPS.values()), k=150):
        getattr(world, step)()
        real.check(*QUEUES)
        for job_id in world.made:
            assert job_id in world.deleted or real.status(job_id), (step, job_id)
        holders: dict[str, str] = {}
        for job_id in world.made:
            found = real.hash(job_id)
            if found.get("dk", "").startswith("f:") and found.get("status") in LIVE:
                value = real.redis.get(f"jobq:dedup:{found['dk'][2:]}")
                if value == f"f:{job_id}".encode():
                    assert holders.setdefault(found["dk"], job_id) == job_id
    # And all of it comes to an end.
    world.crash()
    for _ in range(200):
        real.now += 500
        real.run(calls.rescue(real.keys, 12_000, now_ms=real.now))
        real.run(calls.promote(real.keys, QUEUES, now_ms=real.now))
        for queue in QUEUES:
            jobs = real.claim(50, queue=queue, known=["t.new"]).jobs
            if jobs:
                assert set(real.settle(*jobs, queue=queue, kind="succeeded")) == {"ok"}
    for job_id in world.made:
        if job_id not in world.deleted:
            assert real.status(job_id) in ("finished", "failed", "canceled"), (job_id, real.hash(job_id))
    assert not real.redis.exists("jobq:leases", "jobq:cancels", *(f"rq:wip:{queue}" for queue in QUEUES))
    assert not real.redis.exists(*(f"jobq:retrying:{queue}" for queue in QUEUES))
