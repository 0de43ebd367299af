"""Runs steps on Redis: :class:`Store`, :class:`AsyncStore`, and :class:`Link` for a worker's hot path.

Errors of redis-py are translated here and nowhere else.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

import redis
from hiredis import pack_command
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from jobq import refusals
from jobq.connection import Deadline, detached
from jobq.errors import (
    ConfigError,
    JobqError,
    QueueFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
    TextError,
)
from jobq.steps import (
    Batch,
    Call,
    Pause,
    Plan,
    Rider,
    Step,
    Stream,
)
from jobq.units import in_seconds

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

T = TypeVar("T")

_LOST = (redis.ConnectionError, redis.TimeoutError, OSError)
_DENIED = (AuthenticationError, AuthorizationError, NoPermissionError)
_NOT_SENT = re.compile(r"connecting to|Too many connections|No master found", re.IGNORECASE)
_AWAY = re.compile(r"\b(READONLY|MASTERDOWN|LOADING|NOREPLICAS|TRYAGAIN|CLUSTERDOWN)\b")
_REFUSED = re.compile(
    r"\b(NOPERM|NOAUTH|WRONGPASS)\b|can't run this command|no permissions|ACL permissions|protected mode",
    re.IGNORECASE,
)
_MAY_BE_CLOSED = frozenset({"INFO", "CONFIG", "MEMORY"})
"""Commands that managed servers keep to themselves: what they would tell is not known then, and nothing is wrong."""


def translate(
    error: BaseException, *, script: str = "", sent: bool | None = None
) -> StoreError | QueueFullError | ConfigError:
    """Our error for one of redis-py's.

    Args:
        script: The script that was run; only an enqueue finds a queue full.
        sent: Whether the command may have reached the server; None: judge by the message.
    """
    text = str(error) or type(error).__name__
    # redis-py cuts the code off the words of errors that it has a class for; Redis 6.2 puts the code in the
    # middle of an error of a script. So both are looked at.
    if isinstance(error, _DENIED) or _REFUSED.search(text):
        return StorePermissionError(refusals.denied(text))
    if refusals.WRONG_SETTING.search(text):
        return ConfigError(refusals.wrong_setting(text))
    if isinstance(error, ResponseError):
        if isinstance(error, OutOfMemoryError) or "OOM command" in text:
            message = "Redis is out of memory (maxmemory): raise it, or prune jobs"
            return QueueFullError(message) if script == "enqueue" else StoreError(message)
        if "MISCONF" in text:
            return StoreUnavailableError(
                "Redis takes no writes because it cannot save to disk (MISCONF): free its disk or mend its "
                "permissions; it then goes on by itself"
            )
        if is_demoted(error):
            return StoreUnavailableError(refusals.no_writes(text))
        return StoreError(f"Redis answered with an error{f' to {script}.lua' if script else ''}: {text}")
    if isinstance(error, redis.BusyLoadingError):
        return StoreUnavailableError("Redis is loading its data")
    if isinstance(error, _LOST):
        # An enqueue that was retried inside redis-py tells of its last try only; an earlier one may have landed.
        ambiguous = (script == "enqueue" or not _NOT_SENT.search(text)) if sent is None else sent
        return StoreUnavailableError(f"Redis cannot be reached: {text}", ambiguous=ambiguous)
    return StoreError(f"redis-py: {text}")


def is_demoted(error: Any) -> bool:
    """Whether the server answered that it takes no writes, as one that was a primary before a failover does."""
    away = isinstance(error, ReadOnlyError | ClusterDownError) or _AWAY.search(str(error)) is not None
    return isinstance(error, ResponseError) and away


def _is_away(reply: Any, script: str = "") -> bool:
    return isinstance(reply, Exception) and isinstance(translate(reply, script=script), StoreUnavailableError)


def _seconds(deadline: float | timedelta | None) -> float | None:
    return None if deadline is None else in_seconds(deadline)


def exact(step: Step) -> Step:
    """A step that UTF-8 cannot say, with such text as bytes: those from which :func:`jobq.replies.exact_text` made it.

    Raises:
        TextError: It was never bytes.
    """
    if isinstance(step, Batch):
        return replace(step, commands=tuple(map(_exact, step.commands)))
    return _exact_call(step)


def _exact_call(call: Call[Any]) -> Call[Any]:
    rider = call.rider and replace(call.rider, call=_exact_call(call.rider.call))
    return replace(call, keys=_exact(call.keys), args=_exact(call.args), rider=rider)


def _exact(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(_exact_part, parts))


def _exact_part(part: Any) -> Any:
    if not isinstance(part, str) or part.isascii():
        return part
    try:
        return part.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        near = part[max(0, error.start - 20) : error.end + 20]
        raise TextError(f"not text that can be stored: {near!a} holds half a character") from error


class Store:
    """Runs calls and plans over a redis-py client.

    Args:
        client: What :func:`jobq.connection.connect` made; its pool is shared between threads.
        deadline: Seconds or a timedelta for each step, connecting and repeats included: what takes many steps may take
            longer. None: the client's own timeouts and retries. Give a client of the role ``enqueue`` with it.
    """

    def __init__(self, client: redis.Redis, *, deadline: float | timedelta | None = None) -> None:
        self.client = client
        self._execute: Callable[..., Any] = client.execute_command
        self._deadline_s = _seconds(deadline)

    @overload
    def run(self, step: Call[T]) -> T: ...
    @overload
    def run(self, step: Batch[T]) -> T: ...
    @overload
    def run(self, step: Call[T] | Batch[T] | Plan[T] | Stream[Any] | Pause) -> T: ...
    def run(self, step: Any) -> Any:
        """The answer to a call or a batch, or what a plan returns.

        Raises:
            StoreUnavailableError: Redis could not be reached in time, or takes no writes.
            StorePermissionError: The Redis user may not do this.
            QueueFullError: Memory is short, so an enqueue was refused; nothing was written.
            StoreError: Redis answered with another error.
            TextError: There is text in it that cannot be stored.
        """
        if isinstance(step, Call | Batch | Stream | Pause):
            return self._one(step, self._deadline())
        try:
            wanted = next(step)
            while True:
                try:
                    reply = self._one(wanted, self._deadline())
                except Exception as error:
                    wanted = step.throw(error)
                else:
                    wanted = step.send(reply)
        except StopIteration as end:
            return end.value

    def _stream(self, stream: Stream[Any]) -> None:
        for call in stream.calls:
            stream.took(self._tried(call, self._deadline()))

    def _tried(self, call: Call[Any], deadline: Deadline | None) -> Any:
        """The answer to a call, or the error in its place."""
        try:
            return self._one(call, deadline)
        except JobqError as error:
            return error

    def _deadline(self) -> Deadline | None:
        return None if self._deadline_s is None else Deadline(self._deadline_s)

    def _one(self, step: Step | Stream[Any] | Pause, deadline: Deadline | None) -> Any:
        if isinstance(step, Stream):
            return self._stream(step)
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        name = step.script if isinstance(step, Call) else ""
        try:
            if deadline is None:
                reply = self._send(step)
            else:
                reply = deadline.run(
                    lambda: self._send(step), idempotent=not isinstance(step, Call) or step.idempotent
                )
        except (RedisError, OSError) as error:
            if is_demoted(error):
                self._leave()
            raise translate(error, script=name, sent=None if deadline is None else deadline.sent) from error
        except UnicodeEncodeError:  # before anything was sent
            return self._one(exact(step), deadline)
        return step.decode(reply)

    def _leave(self) -> None:
        """Close idle connections: of a demoted primary, whose name may lead to the new one by now."""
        self.client.connection_pool.disconnect(inuse_connections=False)

    def _send(self, step: Step) -> Any:
        if isinstance(step, Batch):
            pipe: Any
            with self.client.pipeline(transaction=False) as pipe:
                for command in step.commands:
                    pipe.execute_command(*command)
                return checked(pipe.execute(raise_on_error=False), step.commands)
        return self._script(step)

    def _script(self, call: Call[Any]) -> Any:
        if call.rider is not None:
            with self.client.pipeline(transaction=False) as pipe:
                reply, other = _both(pipe, call).execute(raise_on_error=False)
            return _taken(call.rider, reply, other)
        try:
            return self._execute(*call.command())
        except NoScriptError:
            return self._execute(*call.full_command())

    def close(self) -> None:
        """Close the client's connections."""
        self.client.close()


class AsyncStore:
    """Runs calls and plans over a ``redis.asyncio`` client; see :class:`Store`.

    Args:
        turns: Each step takes one for as long as it lasts; stores that share them share so many connections.
    """

    def __init__(
        self,
        client: AsyncRedis,
        *,
        deadline: float | timedelta | None = None,
        turns: asyncio.Semaphore | None = None,
    ) -> None:
        self.client = client
        self._turns = turns
        self._execute: Callable[..., Any] = client.execute_command
        self._deadline_s = _seconds(deadline)

    @overload
    async def run(self, step: Call[T]) -> T: ...
    @overload
    async def run(self, step: Batch[T]) -> T: ...
    @overload
    async def run(self, step: Call[T] | Batch[T] | Plan[T] | Stream[Any] | Pause) -> T: ...
    async def run(self, step: Any) -> Any:
        """Awaitable :meth:`Store.run`."""
        if isinstance(step, Call | Batch | Stream | Pause):
            return await self._one(step, self._deadline())
        try:
            wanted = next(step)
            while True:
                try:
                    reply = await self._one(wanted, self._deadline())
                except Exception as error:
                    wanted = step.throw(error)
                else:
                    wanted = step.send(reply)
        except StopIteration as end:
            return end.value

    async def _stream(self, stream: Stream[Any]) -> None:
        for call in stream.calls:
            answer: Any
            try:
                answer = await self._one(call, self._deadline())
            except JobqError as error:
                answer = error
            stream.took(answer)

    def _deadline(self) -> Deadline | None:
        return None if self._deadline_s is None else Deadline(self._deadline_s)

    async def _one(self, step: Step | Stream[Any] | Pause, deadline: Deadline | None) -> Any:
        if isinstance(step, Stream):
            return await self._stream(step)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        name = step.script if isinstance(step, Call) else ""
        try:
            if deadline is None:
                reply = await self._send(step)
            else:
                reply = await deadline.run_async(
                    lambda: self._send(step), idempotent=not isinstance(step, Call) or step.idempotent
                )
        except (RedisError, OSError) as error:
            if is_demoted(error):
                await self._leave()
            raise translate(error, script=name, sent=None if deadline is None else deadline.sent) from error
        except UnicodeEncodeError:  # before anything was sent
            return await self._one(exact(step), deadline)
        return step.decode(reply)

    async def _leave(self) -> None:
        """See :meth:`Store._leave`."""
        await self.client.connection_pool.disconnect(inuse_connections=False)

    async def _send(self, step: Step) -> Any:
        if self._turns is None:
            return await self._sent(step)
        async with self._turns:
            return await self._sent(step)

    async def _sent(self, step: Step) -> Any:
        if isinstance(step, Batch):
            async with self.client.pipeline(transaction=False) as pipe:
                for command in step.commands:
                    pipe.execute_command(*command)
                return checked(await pipe.execute(raise_on_error=False), step.commands)
        if step.rider is not None:
            async with self.client.pipeline(transaction=False) as pipe:
                reply, other = await _both(pipe, step).execute(raise_on_error=False)
            return _taken(step.rider, reply, other)
        try:
            return await self._execute(*step.command())
        except NoScriptError:
            return await self._execute(*step.full_command())

    async def close(self) -> None:
        """Close the client's connections."""
        await self.client.aclose()


def _both(pipe: Any, call: Call[Any]) -> Any:
    """A pipeline with a call and its rider: once by their texts, for a digest may not be known in a pipeline."""
    assert call.rider is not None
    pipe.execute_command(*call.full_command())
    pipe.execute_command(*call.rider.call.full_command())
    return pipe


def _taken(rider: Rider, reply: Any, other: Any) -> Any:
    rider.took(other)
    if isinstance(reply, Exception):
        raise reply
    return reply


def checked(replies: list[Any], commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The replies to a batch. Single refused commands are the reader's to judge; what concerns all of them is not.

    That is a server that is away, and a user who may not read: it would look as if nothing were there.
    """
    for reply, command in zip(replies, commands, strict=True):
        if not isinstance(reply, Exception):
            continue
        error = translate(reply)
        closed = isinstance(error, StorePermissionError) and command[0] not in _MAY_BE_CLOSED
        if closed or isinstance(error, StoreUnavailableError):
            raise reply
    return replies


class Link:
    """One connection for a worker's hot path: any number of calls in one write, all replies in one read.

    Nothing is retried but what a flushed script cache refused. After :class:`StoreUnavailableError` the
    caller sends the same calls again: each is idempotent. Not for several threads at once.

    Args:
        client: The client whose connection policy is used; the connection is the link's own.
    """

    def __init__(self, client: redis.Redis | Any) -> None:
        self._connection: Any = detached(client) if hasattr(client, "connection_pool") else client

    def exchange(self, calls: Sequence[Call[Any]], refusable: str = "") -> list[Any]:
        """Send the calls and return their answers in order.

        Args:
            refusable: Name of a script: when Redis refuses a call of it, the error is its answer.
        Raises:
            StoreUnavailableError: The connection failed; ``ambiguous`` tells whether the calls may have run.
            StoreError: Redis refused another call; those after it have run, too.
        """
        replies = self._round([call.command() for call in calls])
        missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            # In their order again: a claim that comes after a settle may count on its free slots.
            again = self._round([calls[i].full_command() for i in missing])
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
        answers = []
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, Exception):
                if _is_away(reply, call.script):
                    self._connection.disconnect()  # a demoted primary: the name may lead to the new one by now
                error = translate(reply, script=call.script)
                if call.script != refusable or isinstance(error, StoreUnavailableError):
                    raise error from reply
                answers.append(error)
            else:
                answers.append(call.decode(reply))
        return answers

    def close(self) -> None:
        """Close the connection; the next exchange opens it again."""
        self._connection.disconnect()

    def _round(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection, sent = self._connection, False
        try:
            connection.connect()
            # redis-py would pack twice as slowly, and write each command over 6 kB by itself.
            try:
                packed = [b"".join([pack_command(command) for command in commands])]
            except UnicodeEncodeError:
                packed = [b"".join([pack_command(_exact(command)) for command in commands])]
            sent = True
            connection.send_packed_command(packed, check_health=False)
            return [self._read() for _ in commands]
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise translate(error, sent=sent) from error
        except BaseException:
            # A reply may be on its way: on this connection it would be taken for the next call's.
            connection.disconnect()
            raise

    def _read(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error
