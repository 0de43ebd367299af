"""Schedules under a test's hand: what a worker does about them, and a past in which nobody did."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import redis

from jobq import events
from jobq.client import Client
from jobq.events import Event
from jobq.keys import Keys
from jobq.schedule_records import Record, records_of
from jobq.store import Store
from jobq.worker.schedules import DeclareSchedules, FireSchedules


@dataclass
class Firing:
    """One worker's part in schedules, pass by pass.

    Args:
        policies: Names of the tasks that it knows.
    """

    client: Client
    redis: redis.Redis
    policies: Collection[str] = ()

    def __post_init__(self) -> None:
        self.keys: Keys = self.client.keys
        self.policies = self.policies or self.client.registry.names()
        self._made = 0
        self._fire = FireSchedules(self.client.codec)

    def tick(self, passes: int = 1) -> list[Event]:
        """What a few passes said."""
        heard: list[Event] = []
        stop = events.subscribe(heard.append)
        try:
            for _ in range(passes):
                self._fire._not_before = 0.0
                self._fire.tick(Store(self.redis), self)
        finally:
            stop()
        return heard

    def declare(self, duty: DeclareSchedules) -> None:
        """One pass of a worker whose code declares schedules."""
        duty._seen = (None, 0.0)
        duty.tick(Store(self.redis), self)

    def records(self, declarations: object) -> list[Record]:
        """As the worker's spawner makes them."""
        return records_of(declarations.all(), self.client.settings)  # type: ignore[attr-defined]

    def let_pass(self, name: str, ms: int) -> None:
        """As if ``ms`` had passed in which nobody looked: the slots that were due then are due still."""
        key = self.keys.schedule(name)
        kept = self.redis.hget(key, "next")
        assert kept is not None
        slot = int(kept) - ms
        self.redis.hset(key, "next", slot)
        self.redis.zadd(self.keys.due, {name: slot})

    def make_due(self, *names: str) -> None:
        """As if each had a slot about now; unlike those of its times, it was never fired before."""
        for name in names:
            self._made += 1  # two calls in one millisecond are two slots
            slot = self.now_ms() - 1_000 + self._made
            self.redis.hset(self.keys.schedule(name), "next", slot)
            self.redis.zadd(self.keys.due, {name: slot})

    def now_ms(self) -> int:
        """Redis' clock."""
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000
