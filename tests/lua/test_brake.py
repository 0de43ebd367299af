"""The memory brake: the least urgent queues refuse first, none flaps, and no refusal outlives who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from jobq.brake import HOLD, RELEASE_POINTS, Braked, look, state_plan
from jobq.queues import LANES, ShedAt
from jobq.store import Store
from tests.lua.conftest import Bench

AT = ShedAt().by_queue(LANES)
HOLD_MS = int(HOLD.total_seconds() * 1000)

Use = Callable[[float], Braked]


@pytest.fixture
def use(real: Bench) -> Iterator[Use]:
    """Bring the memory in use to so many percent, by its limit, and look a second later."""
    real.redis.config_set("maxmemory-policy", "noeviction")
    real.redis.setrange("ballast", 30_000_000, "x")  # beside it, buffers of clients are nothing

    def to(percent: float) -> Braked:
        used = real.redis.info("memory")["used_memory"]
        real.redis.config_set("maxmemory", int(used * 100 / percent))
        real.now += 1_000
        braked: Braked = real.run(look(real.keys, AT, now_ms=real.now))
        return braked

    yield to
    real.redis.config_set("maxmemory", 0)


def taking(bench: Bench) -> list[str]:
    """Lanes that take a job."""
    bench.number += 1
    words = {queue: bench.enqueue(f"{queue}-{bench.number}", queue=queue)[0][0] for queue in LANES}
    assert set(words.values()) <= {"queued", "shed"}
    return [queue for queue, word in words.items() if word == "queued"]


@pytest.mark.parametrize(
    ("percent", "takes"),
    [
        (79.5, ["critical", "high", "medium", "low", "batch"]),
        (80.5, ["critical", "high", "medium"]),
        (89.5, ["critical", "high", "medium"]),
        (90.5, ["critical"]),
        (94.5, ["critical"]),
        (95.5, []),
    ],
)
def test_who_refuses(real: Bench, use: Use, percent: float, takes: list[str]) -> None:
    braked = use(percent)
    assert set(braked.shed) == set(LANES) - set(takes)
    assert taking(real) == takes
    state = real.store.run(state_plan(real.keys, list(LANES), now_ms=real.now))
    assert list(state.open) == takes
    assert (state.percent is None) == (len(takes) == len(LANES))


def test_it_ends_some_points_below_so_that_it_does_not_flap(use: Use) -> None:
    assert use(81).shed == ("low", "batch")
    for percent in (79, 81, 80 - RELEASE_POINTS + 0.5, 82):
        assert (braked := use(percent)).percent == round(percent)
        assert braked.shed == braked.admitted == ()
    assert use(80 - RELEASE_POINTS - 0.5).admitted == ("low", "batch")
    assert use(79).shed == ()


def test_one_worker_looks_for_all(real: Bench, use: Use) -> None:
    assert use(85).shed == ("low", "batch")
    real.now += 899
    last = real.run(look(real.keys, dict.fromkeys(AT, 1), now_ms=real.now))
    assert (last.percent, last.shed) == (85, ()), "what the last one saw, and nothing is judged"
    assert str(last.limit) == real.redis.config_get("maxmemory")["maxmemory"]
    real.now += 1
    assert real.run(look(real.keys, dict.fromkeys(AT, 1), now_ms=real.now)).shed == (
        "critical",
        "high",
        "medium",
    )


def test_a_refusal_dies_with_those_who_look(real: Bench, use: Use) -> None:
    use(85)
    assert "low" not in taking(real)
    real.now += HOLD_MS - 1
    assert "low" not in taking(real)
    real.now += 1
    assert "low" in taking(real)


def test_a_later_look_prolongs_it(real: Bench, use: Use) -> None:
    use(85)
    real.now += HOLD_MS - 2_000
    assert use(85).shed == ()
    real.now += HOLD_MS - 1
    assert "low" not in taking(real)


def test_without_a_limit_there_is_no_brake(real: Bench, use: Use) -> None:
    use(97)
    real.redis.config_set("maxmemory", 0)
    real.now += 1_000
    assert set(real.run(look(real.keys, AT, now_ms=real.now)).admitted) == set(LANES)
    assert taking(real) == list(LANES)
    assert not real.redis.exists("jobq:q:low")


def test_a_look_is_not_refused_when_memory_is_full(real: Bench, use: Use) -> None:
    assert set(use(104).shed) == set(LANES)


def test_a_user_who_may_not_ask_has_no_brake(real: Bench, use: Use) -> None:
    use(97)
    real.redis.acl_setuser("shy", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"])
    try:
        options = real.redis.connection_pool.connection_kwargs
        with redis.Redis(port=options["port"], username="shy", password="x") as shy:
            real.now += 1_000
            assert Store(shy).run(look(real.keys, AT, now_ms=real.now)).percent is None
    finally:
        real.redis.acl_deluser("shy")
    assert taking(real) == list(LANES)


def test_queues_that_only_redis_knows_are_medium(real: Bench, use: Use) -> None:
    real.enqueue("x", queue="mine")
    assert "mine" not in use(89).shed
    assert "mine" in use(91).shed


def test_a_hundred_means_never(real: Bench, use: Use) -> None:
    use(50)
    real.redis.config_set("maxmemory", real.redis.info("memory")["used_memory"] - 100_000)
    real.now += 1_000
    never = ShedAt(100, 100, 100).by_queue(LANES)
    assert real.run(look(real.keys, never, now_ms=real.now)).shed == ()


def test_what_is_here_already_is_not_refused(real: Bench, use: Use) -> None:
    real.enqueue("a", queue="low", dedup_key="t.x:k", dedup_mode="f")
    use(85)
    assert real.enqueue("a", queue="low") == [("mine", "a")]
    assert real.enqueue("b", queue="low", dedup_key="t.x:k", dedup_mode="f") == [("duplicate", "a")]
    assert real.enqueue("c", queue="low", delay_ms=50) == [("shed", "c")]


def test_the_refusal_says_how_full_it_is_and_who_still_takes_jobs(real: Bench, use: Use) -> None:
    use(85)
    words = real.store.run(state_plan(real.keys, list(LANES), now_ms=real.now)).refusal("low")
    assert "queue 'low' takes no new jobs: the memory of Redis is 85 % full" in words
    assert "queues critical, high, medium still take jobs" in words
    use(97)
    words = real.store.run(state_plan(real.keys, list(LANES), now_ms=real.now)).refusal("low")
    assert "no queue takes jobs" in words
