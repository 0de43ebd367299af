"""A worker's keepers: one for each Redis that its queues are in, beside one look at each before it starts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping

from jobq import events
from jobq.config import Settings
from jobq.connection import connect, inspect_server, require_usable
from jobq.keys import Keys
from jobq.queues import QueueSpec
from jobq.retry import RetryPolicy
from jobq.schedule_records import Record
from jobq.store import Store
from jobq.worker.lanes import Lanes
from jobq.worker.maintenance import Duty, Fleet, Keeper, Settlement
from jobq.worker.orders import Orders
from jobq.worker.schedules import DeclareSchedules, FireSchedules
from jobq.worker.subscriber import BLOCK_S, Subscriber

_log = logging.getLogger("jobq")


def check_servers(
    settings: Settings, specs: Iterable[QueueSpec], checked: Collection[str | None] = ()
) -> set[str | None]:
    """Look at every Redis of these queues, and say what its durability is.

    Args:
        checked: Those that need not be looked at again.
    Returns:
        The URLs of all; None: that of the settings.
    Raises:
        ConfigError: One cannot be used.
        StoreUnavailableError: One cannot be reached.
    """
    urls = {spec.redis_url for spec in specs}
    for url in urls.difference(checked):
        client = connect(settings, "command", url=url)
        info = inspect_server(client)
        require_usable(info)
        events.emit("redis.connected", durability=info.durability, version=info.version)
        client.close()
        if info.durability == "none":
            _log.warning("Redis keeps nothing on disk: jobs are lost when it stops; set appendonly yes")
    return urls


class Keepers:
    """The threads that talk to Redis for a supervisor: a keeper and a subscriber for each.

    Args:
        specs: The queues that are served, by name.
        name: The worker's.
        lanes: Its executors.
        policies: Retry policies by task, kept up to date by whoever knows the application.
    Attributes:
        known: All queues that the settings and the application know, by name.
        obey: Takes an operator's orders, from another thread.
        found_suspects: Takes the name of a queue where jobs wait to run apart, from another thread.
    """

    def __init__(
        self,
        settings: Settings,
        specs: Mapping[str, QueueSpec],
        name: str,
        lanes: Lanes,
        policies: dict[str, RetryPolicy],
    ) -> None:
        self._settings = settings
        self._specs = specs
        self._name = name
        self._lanes = lanes
        self._policies = policies
        self._keepers: dict[str | None, Keeper] = {}
        self._subscribers: list[Subscriber] = []
        self.known: Mapping[str, QueueSpec] = specs
        self._declared: dict[str, list[Record]] | None = None  # by the Redis that they are for
        self.obey: Callable[[str], None] = lambda _word: None
        self.found_suspects: Callable[[str], None] = lambda _queue: None

    def start(self) -> None:
        """Begin, on connections of their own."""
        for url in {spec.redis_url for spec in self._specs.values()}:
            store = Store(connect(self._settings, "worker", url=url))
            fleet = self._fleet(url)
            keeper = Keeper(store, fleet, [*self._schedule_duties(url), Orders(self.obey)])
            self._keepers[url] = keeper
            keeper.start()
            line = connect(self._settings, "pubsub", url=url, block_s=BLOCK_S)
            subscriber = Subscriber(line, fleet, self._lanes, self.obey, keeper.beat_now)
            self._subscribers.append(subscriber)
            subscriber.start()

    def declare(self, schedules: Iterable[Record]) -> None:
        """Have written what the application declares, now that it is loaded: each where its queue is."""
        declared: dict[str, list[Record]] = {self._home(url): [] for url in self._keepers}
        for record in schedules:
            spec = self.known.get(record.stored.queue)
            declared.setdefault(self._home(spec.redis_url if spec else None), []).append(record)
        self._declared = declared

    def _home(self, url: str | None) -> str:
        return url or self._settings.redis_url

    def _declared_for(self, home: str) -> list[Record] | None:
        return None if self._declared is None else self._declared[home]

    def post(self, settlement: Settlement) -> None:
        """Settle this as soon as its Redis can be reached."""
        self._keepers[self._specs[settlement.queue].redis_url].post(settlement)

    @property
    def last_success(self) -> float:
        """Since when, by the monotonic clock, not every Redis has answered."""
        return min((keeper.last_success for keeper in self._keepers.values()), default=0.0)

    @property
    def last_turn(self) -> float:
        """When the slowest of the threads last turned, by the monotonic clock, whether Redis answered or not."""
        return min((keeper.last_turn for keeper in self._keepers.values()), default=math.inf)

    def stop(self, timeout_s: float) -> None:
        """Settle what was posted, sign the workers off, and end; give up on each after ``timeout_s``."""
        for subscriber in self._subscribers:
            subscriber.stop()
        for keeper in self._keepers.values():
            keeper.stop(timeout_s)

    def _fleet(self, url: str | None) -> Fleet:
        specs = {name: spec for name, spec in self._specs.items() if spec.redis_url == url}
        return Fleet(
            name=self._name,
            keys=Keys(self._settings.key_prefix),
            specs=specs,
            lease_ms=int(self._settings.lease.total_seconds() * 1000),
            members=lambda: self._lanes.members(specs.keys()),
            tell=self._lanes.tell,
            workers=lambda: self._lanes.registrations(specs.keys()),
            found_suspects=self.found_suspects,
            policies=self._policies,
            thresholds=self._thresholds(url),
        )

    def _thresholds(self, url: str | None) -> dict[str, int]:
        """Of all queues in this Redis: those that nobody serves fill its memory, too."""
        there = {name: spec for name, spec in self.known.items() if spec.redis_url == url}
        return self._settings.shed_at().by_queue(there)

    def _schedule_duties(self, url: str | None) -> list[Duty]:
        """Any Redis may hold schedules that fall due; what code declares belongs where its queue is."""
        codec = self._settings.codec()
        duties: list[Duty] = [FireSchedules(codec)]
        if self._settings.app:
            home, source = self._home(url), ",".join(self._settings.app)
            duties.append(DeclareSchedules(source, lambda: self._declared_for(home), signs=codec.signs))
        return duties
