"""Each script on each server: Redis, Valkey, and fakeredis as far as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import fakeredis
import pytest

from jobq import calls
from jobq.keys import Keys
from jobq.steps import Call, Claim, Claimed, NewJob, Outcome, Suspects
from jobq.store import Store
from tests.support.server import Servers

T0 = 1_800_000_000_000
"""The tests' own time, ms: scripts take it instead of the server's."""


@dataclass
class Bench:
    """A server, a clock that stands still, and short names for the steps."""

    redis: Any
    keys: Keys = field(default_factory=Keys)
    now: int = T0
    number: int = 0

    def __post_init__(self) -> None:
        self.store = Store(self.redis)

    def run(self, call: Call[Any], *, repeats: int = 1) -> Any:
        """Send a call, or the same call several times as after a lost reply, and return the last answer."""
        answer = None
        for _ in range(repeats):
            answer = self.store.run(call)
        return answer

    def new(self, job_id: str, *, queue: str = "q", **options: Any) -> NewJob:
        extra: dict[str, str | bytes] = dict(options.pop("fields", {}))
        for name, option in (("or", "order"), ("tn", "tenant")):
            if option in options:
                extra[name] = str(options.pop(option))
        iso = "2027-01-15T08:00:00.000000Z"
        fields: dict[str, bytes | str] = {
            "data": b'{"v":1,"of":"%s"}' % job_id.encode(),
            "origin": queue,
            "created_at": iso,
            "enqueued_at": iso,
            "description": "t.x",
            "timeout": "180",
            **extra,
        }
        return NewJob(id=job_id, fields=fields, **options)

    def enqueue(self, *ids: str, queue: str = "q", repeats: int = 1, **options: Any) -> list[tuple[str, str]]:
        jobs = [self.new(job_id, queue=queue, **options) for job_id in ids]
        call = calls.enqueue(self.keys, queue, jobs, True, now_ms=self.now)
        return [tuple(answer) for answer in self.run(call, repeats=repeats)]

    def claim_call(
        self,
        n: int = 10,
        *,
        queue: str = "q",
        ex: str = "ex",
        number: int | None = None,
        known: Sequence[str] = (),
        suspects: Suspects = "run",
    ) -> Call[Claim]:
        if number is None:
            self.number += 1
            number = self.number
        return calls.claim(
            self.keys,
            queue,
            exec_id=ex,
            number=number,
            n=n,
            lease_ms=12_000,
            worker_name="w1",
            started_at_iso="2027-01-15T08:00:01.000000Z",
            suspects=suspects,
            known=known,
            now_ms=self.now,
        )

    def claim(self, n: int = 10, **options: Any) -> Claim:
        answer: Claim = self.store.run(self.claim_call(n, **options))
        return answer

    def settle(
        self, *jobs: Claimed, kind: str, queue: str = "q", repeats: int = 1, **options: Any
    ) -> list[str]:
        outcomes = [
            Outcome(job_id=job.id, token=job.token, kind=kind, **options)  # type: ignore[arg-type]
            for job in jobs
        ]
        call = calls.settle(self.keys, queue, outcomes, "2027-01-15T08:00:02.000000Z", now_ms=self.now)
        answer: list[str] = self.run(call, repeats=repeats)
        return answer

    def running(self, job_id: str, **options: Any) -> Claimed:
        """A job that runs."""
        self.enqueue(job_id, **options)
        (job,) = self.claim().jobs
        return job

    def ended(self, job_id: str, kind: str = "dead", **options: Any) -> Claimed:
        """A job that has ended."""
        job = self.running(job_id)
        assert self.settle(job, kind=kind, **options) == ["ok"]
        return job

    def hash(self, job_id: str) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.redis.hgetall(f"rq:job:{job_id}").items()}

    def status(self, job_id: str) -> str | None:
        value = self.redis.hget(f"rq:job:{job_id}", "status")
        return None if value is None else value.decode()

    def waiting(self, queue: str = "q") -> list[str]:
        return [value.decode() for value in self.redis.lrange(f"rq:queue:{queue}", 0, -1)]

    def zset(self, key: str) -> dict[str, float]:
        return {member.decode(): score for member, score in self.redis.zrange(key, 0, -1, withscores=True)}

    def snapshot(self) -> dict[str, Any]:
        """All data but TTLs: equal snapshots mean that nothing was written."""
        found: dict[str, Any] = {}
        for key in sorted(self.redis.keys("*")):
            kind = self.redis.type(key).decode()
            if kind == "none":  # expired meanwhile
                continue
            read: dict[str, Callable[[], Any]] = {
                "hash": lambda key=key: self.redis.hgetall(key),
                "list": lambda key=key: self.redis.lrange(key, 0, -1),
                "zset": lambda key=key: self.redis.zrange(key, 0, -1, withscores=True),
                "set": lambda key=key: self.redis.smembers(key),
                "string": lambda key=key: self.redis.get(key),
                "stream": lambda key=key: self.redis.xrange(key),
            }
            found[key.decode()] = read[kind]()
        return found

    def check(self, *queues: str) -> None:
        """Each job stands in the container of its status and nowhere else; leases match running jobs."""
        places: dict[str, list[str]] = {}
        for queue in queues or ("q",):
            for word in ("scheduled", "finished", "failed", "deferred", "canceled"):
                for job_id in self.zset(f"rq:{word}:{queue}"):
                    places.setdefault(job_id, []).append(word)
            for member in self.zset(f"rq:wip:{queue}"):
                places.setdefault(member.split(":")[0], []).append("started")
            for job_id in self.waiting(queue):
                if self.status(job_id) == "queued":
                    places.setdefault(job_id, []).append("queued")
        leased = sorted(
            job_id
            for job_id in (member.split(":")[0] for member in self.zset("jobq:leases"))
            if self.redis.exists(f"rq:job:{job_id}")  # a deleted job's lease lasts until its rescue
        )
        running = []
        for key in self.redis.keys("rq:job:*"):
            job_id = key.decode().removeprefix("rq:job:")
            if ":" in job_id or self.redis.type(key) != b"hash" or self.status(job_id) is None:
                continue
            assert places.get(job_id) == [self.status(job_id)], (
                job_id,
                places.get(job_id),
                self.status(job_id),
            )
            if self.status(job_id) == "started":
                running.append(job_id)
        assert sorted(running) == leased


@pytest.fixture(params=["redis", "valkey", "fakeredis"])
def bench(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Bench]:
    """An empty server of each kind."""
    client = fakeredis.FakeRedis() if request.param == "fakeredis" else servers.client(request.param)
    client.flushall()
    made = Bench(client)
    yield made
    if not getattr(request.node, "skip_check", False):
        made.check("q", "q2")


@pytest.fixture(params=["redis", "valkey"])
def real(request: pytest.FixtureRequest, servers: Servers) -> Bench:
    """An empty server, real ones only.

    fakeredis has no maxmemory, no statistics of commands, no users, no replicas and no sockets to cut; and it is
    too slow for sequences of hundreds of steps.
    """
    client = servers.client(request.param)
    client.flushall()
    return Bench(client)
