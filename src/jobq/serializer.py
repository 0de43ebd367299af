"""rq's serializer over our payloads: what lets plain ``rq.Queue`` enqueue, and a stock ``rq worker`` run, our jobs.

Applications name it as ``jobq.codec.Serializer``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from jobq import strict_json
from jobq.errors import ConfigError, PayloadError, PayloadUnreadableError

if TYPE_CHECKING:
    from jobq.codec import Codec

__all__ = ["PERFORM", "Binder", "Provider", "Serializer", "bind_serializer", "plain_loads"]

PERFORM = "jobq.rq_bridge.perform"
"""The function that a stock rq worker is told to call."""

_ANY_ENVELOPE = re.compile(rb'\{"v":\d{1,9},"kid":"')

Binder = Callable[[str, tuple[Any, ...], dict[str, Any]], tuple[str, int, Mapping[str, Any], Collection[str]]]
"""(dotted path or task name, args, kwargs) to (task, version, validated params, names of the secret ones)."""

Provider: TypeAlias = "Callable[[], tuple[Codec, Binder]]"


def bind_serializer(provider: Provider | None) -> None:
    """Tell :class:`Serializer` where its codec and its binder come from; asked at each enqueue."""
    Serializer.provider = provider


class Serializer:
    """rq's serializer protocol: calls become envelopes, anything else plain JSON. Pickle is never read.

    For ``rq.Queue(…, serializer=jobq.codec.Serializer)`` and
    ``rq worker --serializer jobq.codec.Serializer``.
    """

    provider: ClassVar[Provider | None] = (
        None  # rq takes the class itself, so there is no instance to give it to
    )

    @staticmethod
    def dumps(obj: Any, /) -> bytes:
        """Bytes of a job's call, ``(function, instance, args, kwargs)``, or of a result or of meta.

        Raises:
            ConfigError: A call, but no client of jobq has been imported to bind it.
            UnknownTaskError: The function is not a registered task.
            PayloadError: The arguments do not fit the task, or the value has no JSON form.
        """
        if type(obj) is not tuple or not _is_call(obj) or not isinstance(obj[2], (tuple, list)):
            return _plain_dumps(obj)
        name, instance, args, kwargs = obj
        if name == PERFORM:  # rq writes a call again that it has read
            return _envelope_of(args)
        if instance is not None:
            # rq's name for a callable object is __call__; a task is one, and knows its name.
            name = getattr(instance, "name", None) if name == "__call__" else None
            if not isinstance(name, str):
                raise PayloadError("a method cannot be enqueued: pass a task, its name or its dotted path")
        if Serializer.provider is None:
            # By name: a program that only enqueues through rq names this class, and nothing above it.
            importlib.import_module("jobq.client")
        if Serializer.provider is None:
            raise ConfigError(
                "nothing binds jobq.codec.Serializer to a client: call codec.bind_serializer(provider)"
            )
        codec, binder = Serializer.provider()
        task, version, params, secrets = binder(name, tuple(args), kwargs)
        return codec.encode(task=task, version=version, params=params, secrets=secrets, job_id=None)

    @staticmethod
    def loads(data: bytes, /) -> Any:
        """The call that runs an envelope, unread; of other bytes the JSON value.

        Raises:
            PayloadUnreadableError: Not JSON, or a call of an arbitrary function, which is never run.
        """
        if _ANY_ENVELOPE.match(data):
            try:
                return PERFORM, None, [data.decode()], {}
            except UnicodeDecodeError as error:
                raise PayloadUnreadableError("the payload is not UTF-8") from error
        value = plain_loads(data)
        if _is_call(value):
            # rq would import and call whatever it names.
            raise PayloadUnreadableError("a plain JSON call is never run: enqueue with jobq.codec.Serializer")
        return value


def _is_call(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 4
        and isinstance(value[0], str)
        and isinstance(value[3], dict)
    )


def _envelope_of(args: Sequence[Any]) -> bytes:
    if len(args) == 1 and isinstance(args[0], str):
        data = args[0].encode("utf-8", "surrogatepass")
        if _ANY_ENVELOPE.match(data):
            return data
    raise PayloadError(f"{PERFORM} takes one envelope and is not called by hand: enqueue the task itself")


def _plain_dumps(value: Any) -> bytes:
    try:
        return strict_json.dump(value, results=True)
    except ValueError as error:
        raise PayloadError(f"a {type(value).__name__} cannot be stored as JSON: {error}") from error


def plain_loads(data: bytes) -> Any:
    """The value of plain JSON.

    Raises:
        PayloadUnreadableError: It is not JSON; the message says so of a pickle.
    """
    if data[:1] == b"\x80":
        raise PayloadUnreadableError("this is a pickle, which jobq never reads")
    try:
        return strict_json.load(data)
    except ValueError as error:
        raise PayloadUnreadableError(f"not usable JSON: {error}") from error
