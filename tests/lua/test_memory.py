"""Full memory: an enqueue is refused whole, and nothing else is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobq import calls
from jobq.errors import QueueFullError
from jobq.joblog import add_lines
from jobq.registration import register_worker
from tests.lua.conftest import Bench


@pytest.fixture
def full(real: Bench) -> Iterator[Callable[[], None]]:
    """Fills the memory, all at once."""

    def fill() -> None:
        real.redis.config_set("maxmemory-policy", "noeviction")
        real.redis.config_set("maxmemory", 1)

    yield fill
    real.redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("many", [1, 100])
@pytest.mark.parametrize("dedup", [{}, {"dedup_key": "t.x:k", "dedup_mode": "f"}])
def test_enqueue_is_refused_whole(
    real: Bench, full: Callable[[], None], many: int, dedup: dict[str, str]
) -> None:
    full()
    with pytest.raises(QueueFullError):
        real.enqueue(*[f"j{i}" for i in range(many)], **dedup)
    assert real.redis.keys("*") == []


def test_a_refused_replacement_leaves_the_holder(real: Bench, full: Callable[[], None]) -> None:
    dedup: dict[str, Any] = {"dedup_key": "t.x:k", "dedup_mode": "f"}
    real.enqueue("a", **dedup)
    before = real.snapshot()
    full()
    with pytest.raises(QueueFullError):
        real.enqueue("b", replace=True, bound_id="a", delay_ms=50, **dedup)
    assert real.snapshot() == before


def test_all_else_passes(real: Bench, full: Callable[[], None]) -> None:
    real.enqueue(*"abcdefgh")
    real.enqueue("later", "later2", delay_ms=10)
    real.enqueue("x", queue="q2")
    full()
    jobs = {job.id: job for job in real.claim(6).jobs}
    assert sorted(jobs) == list("abcdef")
    assert real.run(calls.heartbeat(real.keys, ["a:ex.1"], 12_000)).lost == []
    assert real.run(calls.progress(real.keys, "a", jobs["a"].token, "half")) is True
    assert real.run(add_lines(real.keys, "a", jobs["a"].token, ["a line"])) is True
    assert real.settle(jobs["a"], kind="succeeded", spends=True, result=b"x", counters=("o",)) == ["ok"]
    assert real.settle(jobs["b"], kind="dead", record=b"{}", exc=b"x") == ["ok"]
    assert real.settle(jobs["c"], kind="retry", record=b"{}", spends=True) == ["ok"]
    assert real.settle(jobs["d"], kind="park", bucket="t.new", reason="r") == ["ok"]
    assert real.run(calls.cancel(real.keys, "e")) == "requested"
    assert real.run(calls.cancel(real.keys, "g", now_ms=real.now)) == "cancelled"
    assert real.run(calls.withdraw(real.keys, "x", now_ms=real.now)) == "withdrawn"
    assert real.run(calls.withdraw(real.keys, "never", now_ms=real.now)) == "gone"
    assert real.run(calls.replay(real.keys, ["b"], now_ms=real.now)) == ["queued"]
    assert real.run(calls.unpark(real.keys, "q", "t.new", now_ms=real.now)) == 1
    assert real.run(calls.pause(real.keys, "q2")) is True
    assert real.claim(0).status == "ok"
    for step in range(40):
        real.now += 500
        real.run(calls.rescue(real.keys, 12_000, now_ms=real.now))
        if step == 2:
            assert real.run(calls.promote(real.keys, ["q"], now_ms=real.now)).count == 3
    assert real.status("f") == "queued"
    real.redis.config_set("maxmemory", 0)
    real.check("q", "q2")


def test_a_worker_registers(real: Bench, full: Callable[[], None]) -> None:
    full()
    worker: dict[str, Any] = {"slots": 1, "busy": 0, "tasks": (), "host": "h", "pid": 7, "state": "idle"}
    assert real.run(register_worker(real.keys, name="w", queues=("q",), birth_ms=1, now_ms=1, **worker))


@pytest.mark.parametrize("gate", ["w,2,60000,0,w:q,1", "r,2,60000,0,r:q"])
def test_a_claim_at_a_full_limit_passes_when_the_clock_was_set_back(
    real: Bench, full: Callable[[], None], gate: str
) -> None:
    real.run(calls.limit(real.keys, "q", gate))
    real.enqueue(*"abcd")
    assert len(real.claim().jobs) == 2
    real.now -= 3_600_000
    full()
    claim = real.claim()
    assert (claim.status, claim.jobs) == ("limited", [])
    assert claim.until_ms <= real.now + 60_500
