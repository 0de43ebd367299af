"""From a task to the client that enqueues: the request, and where ``task.enqueue`` finds its client."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jobq.errors import ConfigError
from jobq.job import Job
from jobq.options import NO_OVERRIDES, Overrides

if TYPE_CHECKING:
    from jobq.tasks import Task


@dataclass(frozen=True, slots=True)
class EnqueueRequest:
    """One job to enqueue.

    Attributes:
        task: The task to run.
        params: Its validated params, secrets unwrapped: what the codec encodes.
        overrides: What this call asks for beyond the task's options.
    """

    task: Task[Any, Any]
    params: dict[str, Any]
    overrides: Overrides = NO_OVERRIDES

    @property
    def queue(self) -> str:
        """Where the job goes."""
        return self.overrides.queue or self.task.spec.queue


@runtime_checkable
class Dispatcher(Protocol):
    """What enqueues: the client behind ``task.enqueue``."""

    def enqueue(self, requests: list[EnqueueRequest], /) -> list[Job]:
        """A job per request, in order."""
        ...

    async def enqueue_async(self, requests: list[EnqueueRequest], /) -> list[Job]:
        """A job per request, in order."""
        ...


class AsyncDispatcher(Protocol):
    """An asynchronous client, good for ``enqueue_async`` only."""

    async def enqueue(self, requests: list[EnqueueRequest], /) -> list[Job]:
        """A job per request, in order."""
        ...


_provider: Callable[[], Dispatcher] | None = None


def set_dispatcher(provider: Callable[[], Dispatcher] | None) -> None:
    """Say where ``task.enqueue`` finds its client; ``jobq.client`` does so when it is imported."""
    global _provider
    _provider = provider


def dispatcher() -> Dispatcher:
    """What enqueues here; ``jobq.client`` is imported when nobody has said.

    Raises:
        ConfigError: Nobody has, and the client did not either.
    """
    if _provider is None:
        # By name, at the first enqueue: declaring tasks neither loads a Redis client nor knows the layer
        # above.
        importlib.import_module("jobq.client")
    if _provider is None:
        raise ConfigError("nothing enqueues jobs here: call jobq.tasks.set_dispatcher(provider) first")
    return _provider()
