"""Two duties of a worker: orphan dedup keys go, and the brake says on and off once each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

import jobq
from jobq import calls, events
from jobq.retry import RetryPolicy
from jobq.rq_bridge import iso
from jobq.steps import Outcome
from jobq.store import Store
from jobq.worker.maintenance import Brake, Fleet, Keeper, Promote, Rescue, Settlement, Sweep
from tests.support.hand import Hand


@jobq.task("duty.keyed", dedup="{key}")
def keyed(key: str) -> None:
    """Holds a dedup key while it is live."""


@pytest.fixture
def fleet(client: jobq.Client) -> Fleet:
    return Fleet(
        name="w", keys=client.keys, specs=client.specs, lease_ms=12_000, members=list, tell=lambda _: None,
        workers=list, found_suspects=lambda _: None, thresholds=client.settings.shed_at().by_queue(client.specs),
    )  # fmt: skip


@pytest.fixture
def said() -> Iterator[list[events.Event]]:
    found: list[events.Event] = []
    end = events.subscribe(found.append)
    yield found
    end()


def test_orphan_dedup_keys_are_swept_and_live_ones_stay(
    client: jobq.Client, redis_client: redis.Redis, fleet: Fleet
) -> None:
    queued = keyed.options(client=client).enqueue(key="queued")
    running = keyed.options(client=client, queue="high").enqueue(key="running")
    Hand(client).claim("high")
    live = set(redis_client.keys("jobq:dedup:*"))
    assert len(live) == 2
    gone = keyed.options(client=client).enqueue(key="gone")
    redis_client.delete(f"rq:job:{gone.id}")
    redis_client.set("jobq:dedup:t.x:window", f"w:{gone.id}", px=60_000)
    redis_client.mset({f"jobq:dedup:t.x:{number}": "f:nobody" for number in range(300)})
    assert redis_client.dbsize() > 300
    duty, store = Sweep(), Store(redis_client)
    for _ in range(20):  # at most 100 keys each
        duty.tick(store, fleet)
    assert set(redis_client.keys("jobq:dedup:*")) == live | {b"jobq:dedup:t.x:window"}
    assert {queued.refresh().state, running.refresh().state} == {"queued", "running"}


def test_the_brake_tells_once_when_it_goes_on_and_off(
    client: jobq.Client, redis_client: redis.Redis, fleet: Fleet, said: list[events.Event]
) -> None:
    duty, store = Brake(), Store(redis_client)

    def look(percent: float) -> list[tuple[str, str]]:
        used = redis_client.info("memory")["used_memory"]
        redis_client.config_set("maxmemory", int(used * 100 / percent))
        redis_client.hdel("jobq:pulse", "m")  # as if nobody had looked for a second
        said.clear()
        duty.tick(store, fleet)
        return [(event.name, event.fields["queue"]) for event in said]

    redis_client.config_set("maxmemory-policy", "noeviction")
    redis_client.setrange("ballast", 30_000_000, "x")
    try:
        assert look(85) == [("queue.shed", "low"), ("queue.shed", "batch")]
        assert said[0].fields["memory_percent"] == 85
        assert look(85) == []
        assert client.queues.get("low").shed
        assert client.stats().queues["low"].to_dict()["shed"] is True
        assert not client.stats().queues["high"].shed
        assert look(50) == [("queue.admitted", "low"), ("queue.admitted", "batch")]
        assert look(50) == []
        assert not client.queues.get("low").shed
    finally:
        redis_client.config_set("maxmemory", 0)


@jobq.task("duty.each", concurrency=jobq.Concurrency(1, key="{key}"))
def each(key: int) -> None:
    """One of a key at a time."""


@pytest.mark.parametrize(("seconds", "turns"), [(60.0, 1), (0.0, 10)])
def test_a_thousand_gates_that_open_at_once_take_a_turn_or_a_few(
    client: jobq.Client,
    redis_client: redis.Redis,
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    turns: int,
) -> None:
    """A call lets in 100 jobs; a turn goes on while gates are due, for so many seconds at most."""
    keys, hand = client.keys, Hand(client)
    each.options(client=client).enqueue_many([{"key": n % 1_000} for n in range(2_000)])
    running = []
    while found := hand.claim():
        running += found
    for start in range(0, 1_000, 100):
        ends = [
            Outcome(job_id=job.id, token=job.token, kind="succeeded") for job in running[start : start + 100]
        ]
        assert client.run(calls.settle(keys, "medium", ends, iso())) == ["ok"] * 100
    assert redis_client.zcard("jobq:blocked:medium") == 1_000
    monkeypatch.setattr("jobq.worker.maintenance._OPEN_FOR_S", seconds)
    duty, store, passed = Promote(), Store(redis_client), 0
    while redis_client.llen("rq:queue:medium") < 1_000:
        duty.tick(store, fleet)
        passed += 1
    assert passed == turns
    assert not redis_client.exists("jobq:gates")


def _about(said: list[events.Event], job_id: str) -> list[tuple[str, object]]:
    ends = ("job.rescued", "job.dead", "job.cancelled", "job.timed_out")
    found = [event for event in said if event.name in ends and event.fields["job_id"] == job_id]
    return [(event.name, event.fields.get("reason")) for event in found]


def test_what_becomes_of_an_expired_lease_is_said_by_its_own_name(
    client: jobq.Client, redis_client: redis.Redis, fleet: Fleet, said: list[events.Event]
) -> None:
    again, stopped, dead = (keyed.options(client=client).enqueue(key=key) for key in "asd")
    redis_client.hset(f"rq:job:{dead.id}", "lost", 5)
    Hand(client).claim()
    stopped.cancel()
    duty = Rescue(fleet.lease_ms)
    duty.tick(Store(redis_client), fleet)  # the first pass after a gap holds off
    redis_client.hdel("jobq:pulse", "hold")
    leases = redis_client.zrange("jobq:leases", 0, -1)
    redis_client.zadd("jobq:leases", {bytes(lease): 1 for lease in leases})  # type: ignore[arg-type]
    said.clear()
    duty.tick(Store(redis_client), fleet)
    assert (again.refresh().state, stopped.refresh().state, dead.refresh().state) == (
        "queued", "cancelled", "dead",
    )  # fmt: skip
    assert _about(said, again.id) == [("job.rescued", None)]
    assert _about(said, stopped.id) == [("job.cancelled", "requested")]
    assert _about(said, dead.id) == [("job.dead", "poison")]
    for job in (again, stopped, dead):
        (attempt,) = client.attempts(job.id)
        assert (attempt.number, attempt.outcome, attempt.error_type) == (1, "interrupted", "LeaseExpired")
        assert attempt.ended_at is not None
    (minute,) = redis_client.keys("jobq:n:medium:*")
    assert {name: redis_client.hget(minute, f"{name}:duty.keyed") for name in "ocd"} == dict.fromkeys(
        "ocd", b"1"
    )
    kept_s = client.specs["medium"].keep_dead.age_s
    assert kept_s - 60 < redis_client.ttl(f"rq:job:{dead.id}") <= kept_s
    assert redis_client.xlen(f"rq:results:{dead.id}") == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attempts", "many"), ("attempts", "1e300"), ("o", b"\xff["), ("o", "[" * 100_000), ("description", b"\xff"),
        ("retries_left", b"\xff"), ("failure_ttl", "9" * 30), ("", ""),
    ],
)  # fmt: skip
def test_a_damaged_hash_costs_its_neighbours_no_settlement(
    client: jobq.Client, redis_client: redis.Redis, fleet: Fleet, field: str, value: str | bytes
) -> None:
    late, neighbour = (keyed.options(client=client).enqueue(key=key) for key in "ln")
    tokens = {job.id: job.token for job in Hand(client).claim()}
    if field:
        redis_client.hset(f"rq:job:{late.id}", field, value)
    else:
        redis_client.set(f"rq:job:{late.id}", "x")
    ran = Outcome(job_id=neighbour.id, token=tokens[neighbour.id], kind="interrupted")
    keeper = Keeper(Store(redis_client), fleet)
    keeper.post(Settlement("medium", [ran], worker="w-medium", timed_out=[(late.id, tokens[late.id])]))
    keeper.start()
    keeper.stop(5)
    assert redis_client.zcard("jobq:leases") == 0
    assert neighbour.refresh().state == "queued"
    (minute,) = redis_client.keys("jobq:n:medium:*")
    assert redis_client.hget(minute, "o:duty.keyed") == b"1"
    if field:
        assert late.refresh().state in ("retrying", "dead")
        assert client.attempts(late.id)[0].worker == "w-medium"


def test_what_a_dead_executor_leaves_behind_is_said_by_its_own_name(
    client: jobq.Client, redis_client: redis.Redis, fleet: Fleet, said: list[events.Event]
) -> None:
    names = ("again", "stopped", "dead", "late", "last")
    made = {name: keyed.options(client=client).enqueue(key=name) for name in names}
    redis_client.hset(f"rq:job:{made['dead'].id}", "crashes", 1)
    tokens = {job.id: job.token for job in Hand(client).claim()}
    made["stopped"].cancel()
    fleet.policies["duty.keyed"] = RetryPolicy(2)
    redis_client.hset(f"rq:job:{made['last'].id}", "attempts", 1)

    def interrupted(name: str) -> Outcome:
        job_id = made[name].id
        return Outcome(
            job_id=job_id, token=tokens[job_id], kind="interrupted", crash=True, alone=name == "dead"
        )

    keeper = Keeper(Store(redis_client), fleet)
    keeper.post(
        Settlement(
            "medium",
            [interrupted(name) for name in ("again", "stopped", "dead")],
            timed_out=[(made[name].id, tokens[made[name].id]) for name in ("late", "last")],
        )
    )
    said.clear()
    keeper.start()
    keeper.stop(5)
    assert {name: _about(said, job.id) for name, job in made.items()} == {
        "again": [("job.rescued", None)],
        "stopped": [("job.cancelled", "requested")],
        "dead": [("job.dead", "poison")],
        "late": [("job.timed_out", None)],
        "last": [("job.dead", "exhausted")],
    }
