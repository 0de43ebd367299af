"""A client's connections, by what they are for, each made when it is first needed: sync and async."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import redis

from jobq.config import Settings
from jobq.connection import COMMAND_TIMEOUT_S, connect, connect_async, connection_limit
from jobq.kept import KeptStore
from jobq.store import AsyncStore, Store
from jobq.waiting import BLOCK_S
from jobq.wires import Wires

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

Role: TypeAlias = Literal["command", "enqueue", "blocking"]
"""Enqueues have a deadline of their own, and a blocking read outlasts the timeouts of all else."""

Running: TypeAlias = Literal["command", "enqueue"]


class Links:
    """The connections of a synchronous client. Safe between threads and across forks.

    Args:
        given: Use this client's connections instead of making some; it stays open.
    """

    def __init__(self, settings: Settings, given: redis.Redis | None) -> None:
        self.given = given
        self._settings = settings
        self._made: dict[str, Any] = {}
        self._stores: dict[str, Store] = {}
        self._wires: Wires | None = None
        self._lock = threading.Lock()

    def store(self, role: Running) -> Store:
        """What runs steps."""
        store = self._stores.get(role)
        if store is None:
            store = self._stores.setdefault(role, self._make_store(role))
        return store

    def _make_store(self, role: Running) -> Store:
        shared = connection_limit() is not None
        if self.given is not None or (role == "command" and not shared):
            # Connections of a given client do not know the deadline, nor whether a command reached the server.
            return Store(self._client(role))
        limit = COMMAND_TIMEOUT_S if role == "command" else self._settings.enqueue_timeout
        return KeptStore(self.wires(), deadline=limit)

    def wires(self) -> Wires:
        """What enqueues go over, and where connections are limited commands, too."""
        client = self._client("enqueue")
        with self._lock:
            self._wires = self._wires or Wires(client, connection_limit())
            return self._wires

    @property
    def blocking(self) -> Any:
        """What may wait in Redis."""
        return self._client("blocking")

    def _client(self, role: Role) -> redis.Redis:
        if self.given is not None and role != "blocking":
            return self.given
        with self._lock:
            made = self._made.get(role)
            if made is None:
                made = self._made[role] = self._connect(role)
        return made

    def _connect(self, role: Role) -> redis.Redis:
        most = connection_limit() if role == "blocking" else None
        if self.given is None:
            return connect(self._settings, role, block_s=BLOCK_S, most=most)
        # A blocking read outlasts the timeouts of the given client: same server, connections of its own.
        pool = self.given.connection_pool
        options = {**pool.connection_kwargs, "socket_timeout": BLOCK_S + 5}
        return redis.Redis(
            connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **options)
        )

    def close(self) -> None:
        """Give them back; what is needed afterwards is made anew."""
        with self._lock:
            made, wires = self._made, self._wires
            self._made, self._stores, self._wires = {}, {}, None
        if wires is not None:
            wires.drop_idle()
        for client in made.values():
            client.close()


class AsyncLinks:
    """The connections of an asynchronous client, for one event loop; as :class:`Links`."""

    def __init__(self, settings: Settings, given: AsyncRedis | None) -> None:
        self.given = given
        self._settings = settings
        self._made: dict[str, AsyncRedis] = {}
        self._stores: dict[str, AsyncStore] = {}
        self._turns: asyncio.Semaphore | None = None

    def store(self, role: Running) -> AsyncStore:
        """As :meth:`Links.store`."""
        store = self._stores.get(role)
        if store is None:
            store = self._stores[role] = self._make_store(role)
        return store

    def _make_store(self, role: Running) -> AsyncStore:
        most = connection_limit()
        if self.given is not None or (role == "command" and most is None):
            # Only connections of our own know the deadline, and whether a command reached the server.
            return AsyncStore(self._client(role))
        if most is not None and self._turns is None:
            self._turns = asyncio.Semaphore(most)
        limit = COMMAND_TIMEOUT_S if role == "command" else self._settings.enqueue_timeout
        return AsyncStore(self._client("enqueue"), deadline=limit, turns=self._turns)

    @property
    def blocking(self) -> Any:
        """As :attr:`Links.blocking`."""
        return self._client("blocking")

    def _client(self, role: Role) -> AsyncRedis:
        if self.given is not None and role != "blocking":
            return self.given
        client = self._made.get(role)
        if client is None:
            client = self._made[role] = self._connect(role)
        return client

    def _connect(self, role: Role) -> AsyncRedis:
        most = connection_limit() if role == "blocking" else None
        if self.given is None:
            return connect_async(self._settings, role, block_s=BLOCK_S, most=most)
        # A blocking read outlasts the timeouts of the given client: same server, connections of its own.
        pool = self.given.connection_pool
        options = {**pool.connection_kwargs, "socket_timeout": BLOCK_S + 5}
        return type(self.given).from_pool(type(pool)(connection_class=pool.connection_class, **options))

    async def close(self) -> None:
        """As :meth:`Links.close`."""
        made, self._made, self._stores = self._made, {}, {}
        for client in made.values():
            await client.aclose()
