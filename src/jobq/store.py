"""Runs the steps against Redis: a ``Call`` is one Lua script, a ``Batch`` is plain reads, a plan is several of them.

A step is planned once, as a value, and run by either :class:`Store` or :class:`AsyncStore`; the worker's hot path has
:class:`Link`, which sends several scripts in one write. Errors of redis-py are translated here, once.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import redis
from redis.exceptions import NoPermissionError, NoScriptError, OutOfMemoryError, RedisError

from jobq import lua
from jobq.connection import Deadline
from jobq.errors import JobqError, QueueFullError, StoreError, StorePermissionError, StoreUnavailableError

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

T = TypeVar("T")
Value = str | bytes | int | float

_TRIES = 3
_PAUSE_S = 0.05
_UNAVAILABLE = ("LOADING", "MASTERDOWN", "READONLY", "MISCONF", "BUSY", "NOREPLICAS", "UNBLOCKED")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One script with its keys and arguments, and how to read its answer.

    Every script may be sent again after a lost reply: the first keeps what it did.
    """

    script: str
    keys: tuple[str, ...]
    args: tuple[Value, ...]
    decode: Callable[[Any], T]

    def command(self) -> tuple[Value, ...]:
        """``EVALSHA …`` as words."""
        return ("EVALSHA", self._checked().sha, len(self.keys), *self.keys, *self.args)

    def full_command(self) -> tuple[Value, ...]:
        """``EVAL …`` as words: for a server that does not have the script yet."""
        return ("EVAL", self._checked().text, len(self.keys), *self.keys, *self.args)

    def _checked(self) -> lua.Script:
        script = lua.script(self.script)
        script.check(len(self.keys))
        return script


def _as_is(replies: list[Any]) -> Any:
    return replies


@dataclass(frozen=True, slots=True)
class Batch:
    """Plain commands in one pipeline, without a transaction. A command's own error stands in its reply's place."""

    commands: tuple[tuple[Any, ...], ...]
    decode: Callable[[list[Any]], Any] = _as_is


Step = Call[Any] | Batch
Plan = Generator[Step, Any, T]


def translate(error: BaseException, *, sent: bool = True) -> JobqError:
    """Our error for one of redis-py's.

    Args:
        sent: The command may have reached the server.
    """
    text = str(error)
    if isinstance(error, redis.AuthenticationError | NoPermissionError):
        return StorePermissionError(f"Redis refuses this user: {text}. Check the URL's login and its ACL")
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
        what = "Redis did not answer in time" if sent else "Redis cannot be reached"
        return StoreUnavailableError(f"{what}: {text or type(error).__name__}", ambiguous=sent)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        return QueueFullError(f"Redis is out of memory (maxmemory): {text}")
    if text.startswith(_UNAVAILABLE) or isinstance(error, redis.ReadOnlyError | redis.BusyLoadingError):
        return StoreUnavailableError(f"Redis cannot write now: {text}", ambiguous=False)
    return StoreError(f"Redis answered with an error: {text}")


class Store:
    """Runs steps with a synchronous client.

    Args:
        client: A client made by ``connection.connect``.
        deadline_s: Bounds connecting, sending and retrying together, for a client of the role ``enqueue``. None: the
            client's own timeouts, up to three tries.
    """

    def __init__(self, client: redis.Redis, *, deadline_s: float | None = None) -> None:
        self.client = client
        self._deadline_s = deadline_s

    def run(self, step: Call[T] | Batch | Plan[T]) -> T:
        """Run a step, or a plan of several, and return its decoded answer.

        Raises:
            StoreUnavailableError: Redis could not be reached in time.
            StoreError: Redis answered with an error.
            QueueFullError: Redis is out of memory.
        """
        if isinstance(step, Call):
            return step.decode(self._guard(lambda: self._script(step)))
        if isinstance(step, Batch):
            return cast("T", step.decode(self._guard(lambda: self._reads(step))))
        try:
            todo = next(step)
            while True:
                try:
                    answer = self.run(todo)
                except JobqError as error:
                    todo = step.throw(error)
                else:
                    todo = step.send(answer)
        except StopIteration as stop:
            return cast("T", stop.value)

    def close(self) -> None:
        """Close the client's connections."""
        self.client.close()

    def _guard(self, once: Callable[[], T]) -> T:
        if self._deadline_s is not None:
            deadline = Deadline(self._deadline_s)
            try:
                return deadline.run(once)
            except (RedisError, OSError) as error:
                raise translate(error, sent=deadline.sent) from error
        for left in range(_TRIES - 1, -1, -1):
            try:
                return once()
            except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
                if not left:
                    raise translate(error) from error
                time.sleep(_PAUSE_S)
            except RedisError as error:
                raise translate(error) from error
        raise AssertionError("unreachable")

    def _script(self, call: Call[Any]) -> Any:
        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_command(*call.command())
            try:
                return connection.read_response()
            except NoScriptError:
                connection.send_command(*call.full_command())
                return connection.read_response()
        except redis.ResponseError:
            raise
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _reads(self, batch: Batch) -> list[Any]:
        if not batch.commands:
            return []
        with self.client.pipeline(transaction=False) as pipe:
            for command in batch.commands:
                pipe.execute_command(*command)
            return pipe.execute(raise_on_error=False)


class AsyncStore:
    """Runs the same steps with an asyncio client; arguments as for :class:`Store`."""

    def __init__(self, client: AsyncRedis, *, deadline_s: float | None = None) -> None:
        self.client = client
        self._deadline_s = deadline_s

    async def run(self, step: Call[T] | Batch | Plan[T]) -> T:
        """Awaitable :meth:`Store.run`."""
        if isinstance(step, Call):
            return step.decode(await self._guard(lambda: self._script(step)))
        if isinstance(step, Batch):
            return cast("T", step.decode(await self._guard(lambda: self._reads(step))))
        try:
            todo = next(step)
            while True:
                try:
                    answer = await self.run(todo)
                except JobqError as error:
                    todo = step.throw(error)
                else:
                    todo = step.send(answer)
        except StopIteration as stop:
            return cast("T", stop.value)

    async def close(self) -> None:
        """Close the client's connections."""
        await self.client.aclose()

    async def _guard(self, once: Callable[[], Awaitable[T]]) -> T:
        deadline = Deadline(self._deadline_s if self._deadline_s is not None else 15.0)
        try:
            return await deadline.run_async(once)
        except (RedisError, OSError) as error:
            raise translate(error, sent=deadline.sent) from error

    async def _script(self, call: Call[Any]) -> Any:
        try:
            return await self.client.execute_command(*call.command())
        except NoScriptError:
            return await self.client.execute_command(*call.full_command())

    async def _reads(self, batch: Batch) -> list[Any]:
        if not batch.commands:
            return []
        async with self.client.pipeline(transaction=False) as pipe:
            for command in batch.commands:
                pipe.execute_command(*command)
            return list(await pipe.execute(raise_on_error=False))


class Link:
    """One raw connection for the worker's loop: several scripts in one write, their replies in one go.

    It never retries by itself: the loop does, which knows what is still worth sending.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None

    def exchange(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The decoded answers, in order.

        Raises:
            StoreUnavailableError: The connection broke, or nothing came in time. All calls may be sent again.
            StoreError: One of them was answered with an error.
        """
        try:
            replies = self._send([call.command() for call in calls])
            missing = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if missing:
                again = self._send([calls[place].full_command() for place in missing])
                for place, reply in zip(missing, again, strict=True):
                    replies[place] = reply
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            self.close()
            raise translate(error) from error
        for reply in replies:
            if isinstance(reply, Exception):
                raise translate(reply) from reply
        return [call.decode(reply) for call, reply in zip(calls, replies, strict=True)]

    def close(self) -> None:
        """Close the connection; the next exchange makes a new one."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def _send(self, commands: list[tuple[Value, ...]]) -> list[Any]:
        if self._connection is None:
            self._connection = self._pool.make_connection()
            self._connection.connect()
        connection = self._connection
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except redis.ResponseError as error:
                replies.append(error)
        return replies
