"""The keeper in outages: it tells of each once, and never takes silence for an answer."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

import jobq
from jobq import events
from jobq.connection import connect
from jobq.keys import Keys
from jobq.store import Store
from jobq.worker.maintenance import Fleet, Keeper
from tests.support.processes import until
from tests.support.proxy import Proxy


@pytest.fixture
def told() -> Iterator[list[events.Event]]:
    """What is emitted about Redis."""
    found: list[events.Event] = []
    end = events.subscribe(lambda event: found.append(event) if event.name.startswith("redis.") else None)
    yield found
    end()


@pytest.fixture
def keeper(proxy: Proxy) -> Iterator[Keeper]:
    """Of an idle worker: it has no lease to extend."""
    with connect(jobq.Settings(redis_url=proxy.url), "worker") as client:
        fleet = Fleet(
            name="w",
            keys=Keys("rq"),
            specs={},
            lease_ms=3_000,
            members=list,
            tell=lambda _: None,
            workers=list,
            found_suspects=lambda _: None,
        )
        made = Keeper(Store(client), fleet)
        made.start()
        until(lambda: made.last_success)
        yield made
        made.stop(5)


def test_an_outage_is_told_of_once_and_its_end_with_its_length(
    keeper: Keeper, redis_client: redis.Redis, told: list[events.Event]
) -> None:
    def refused() -> int:
        return int(redis_client.info("errorstats")["errorstat_READONLY"]["count"])

    redis_client.replicaof("127.0.0.1", "1")
    try:
        until(lambda: told)
        away, answered = time.monotonic(), keeper.last_success
        seen = refused()
        until(lambda: refused() > seen + 3)
        assert [event.name for event in told] == ["redis.unavailable"]
        assert keeper.last_success == answered
    finally:
        redis_client.replicaof("NO", "ONE")
    until(lambda: len(told) > 1)
    assert [event.name for event in told] == ["redis.unavailable", "redis.recovered"]
    assert 0 < told[1].fields["away_s"] < time.monotonic() - away + 1
    assert keeper.last_success > answered


def test_it_turns_on_while_redis_is_away(keeper: Keeper, proxy: Proxy) -> None:
    """Liveness goes by its turns: an outage must not restart a worker."""
    until(lambda: keeper.last_success)
    with proxy.silence():
        began = time.monotonic()
        until(lambda: keeper.last_turn > began + 1)
        assert keeper.last_success < keeper.last_turn


def test_a_lost_connection_is_no_outage(keeper: Keeper, proxy: Proxy, told: list[events.Event]) -> None:
    for times in (1, 2, 3):
        proxy.on("rescue", "reset")
        until(lambda times=times: proxy.met.get("reset") == times)
        answered = keeper.last_success
        until(lambda answered=answered: keeper.last_success > answered)
    assert told == []
