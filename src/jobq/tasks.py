"""Tasks: functions with checked params under a stable name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from pydantic import BaseModel

from jobq.context import ContextSink, JobContext, current_job, running_job
from jobq.dedup import DedupSpec
from jobq.dispatch import AsyncDispatcher, Dispatcher, EnqueueRequest, dispatcher, set_dispatcher
from jobq.errors import ConfigError, NewerPayloadError, PayloadError, PayloadUnreadableError
from jobq.functions import default_name, is_async, origin
from jobq.job import Job
from jobq.limits import Concurrency, Quota, Rate
from jobq.options import (
    NO_OVERRIDES,
    Duration,
    OnDuplicate,
    Overrides,
    PriorityName,
    TaskOptions,
    Until,
    Upcast,
    call_overrides,
    check_name,
    check_options,
    task_options,
)
from jobq.params import ParamSet, Secret
from jobq.queues import Isolation
from jobq.registry import Registry, load_app, registry
from jobq.retry import Delays, RetryPolicy

__all__ = [
    "AsyncDispatcher", "Bound", "ContextSink", "Dispatcher", "EnqueueRequest", "JobContext", "Overrides",
    "Registry", "Secret", "Task", "TaskOptions", "check_function", "current_job", "load_app", "registry",
    "running_job", "set_dispatcher", "task",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Task(Generic[P, R]):
    """A function registered under a stable name, with its options.

    Made by :func:`task`. Calling it calls the function here and now; ``enqueue`` makes a job of the call.

    Attributes:
        name: The name that payloads carry.
        fn: The function.
        spec: The task's options, validated.
        path: ``module.qualname`` of the function.
    """

    def __init__(
        self,
        fn: Callable[P, R],
        *,
        name: str,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the signature and the options.

        Raises:
            ConfigError: One of them is wrong; the message says what to change.
        """
        functools.update_wrapper(self, fn)
        self.name = check_name(name)
        self.fn: Callable[..., Any] = fn
        self.path = f"{fn.__module__}.{fn.__qualname__}"
        self.origin = origin(fn)
        self._params = ParamSet(fn, name)
        self._async = is_async(fn)
        check_options(name, options or {})
        self.spec = task_options(
            name, names=self._params.names, secrets=self._params.secrets, **dict(options or {})
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __reduce__(self) -> tuple[Callable[[str], Task[Any, Any]], tuple[str]]:
        return _registered, (self.name,)

    @property
    def params_model(self) -> type[BaseModel]:
        """The pydantic model of the params."""
        return self._params.model

    @property
    def secrets(self) -> frozenset[str]:
        """Names of the params that are encrypted and never shown."""
        return self._params.secrets

    @property
    def version(self) -> int:
        """Version of the params, carried in each payload."""
        return self.spec.version

    @property
    def is_async(self) -> bool:
        """Whether ``fn`` returns something to await."""
        return self._async

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here and now, as if it were no task."""
        return cast("R", self.fn(*args, **kwargs))

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Validate the params as an enqueue would, then call the function here and now.

        Raises:
            PayloadError: The params do not fit.
        """
        return cast("R", self.invoke(self._params.bind(args, kwargs)))

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Make a job of this call, in one round trip.

        Raises:
            PayloadError: The params do not fit; nothing was sent.
            EnqueueError: The job was not enqueued.
            StoreUnavailableError: Redis did not answer in time (``JOBQ_ENQUEUE_TIMEOUT``, default 1 s).
        """
        return dispatcher().enqueue([self._request(args, kwargs, NO_OVERRIDES)])[0]

    async def enqueue_async(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Awaitable :meth:`enqueue`."""
        request = self._request(args, kwargs, NO_OVERRIDES)
        return (await dispatcher().enqueue_async([request]))[0]

    def enqueue_many(self, many: Iterable[Mapping[str, Any]]) -> list[Job]:
        """A job per mapping of params, in few round trips. All are validated before the first is sent.

        Raises:
            PayloadError: Params do not fit; the message gives their place in the list, counted from 0.
        """
        requests = self._requests(many, NO_OVERRIDES)
        return dispatcher().enqueue(requests) if requests else []

    async def enqueue_many_async(self, many: Iterable[Mapping[str, Any]]) -> list[Job]:
        """Awaitable :meth:`enqueue_many`."""
        requests = self._requests(many, NO_OVERRIDES)
        return await dispatcher().enqueue_async(requests) if requests else []

    def options(
        self,
        *,
        delay: Duration | None = None,
        at: datetime | None = None,
        priority: PriorityName | None = None,
        queue: str | None = None,
        dedup_key: str | None = None,
        dedup_until: Until | None = None,
        on_duplicate: OnDuplicate | None = None,
        max_attempts: int | None = None,
        backoff: Delays | None = None,
        timeout: Duration | None = None,
        tags: Iterable[str] = (),
        correlation_id: str | None = None,
        order: int | None = None,
        client: Dispatcher | AsyncDispatcher | None = None,
    ) -> Bound[P]:
        """This task with other options for the calls made through what is returned.

        Args:
            delay: Seconds or timedelta until the job becomes due.
            at: When it becomes due; aware. Not together with ``delay``.
            priority: One of the five lanes.
            queue: A queue of the application. Not together with ``priority``.
            dedup_key: A key in place of the task's template; empty switches deduplication off.
            dedup_until: As for :func:`task`.
            on_duplicate: As for :func:`task`.
            max_attempts: Total runs.
            backoff: Delays between the runs.
            timeout: Seconds or timedelta that one run may take.
            tags: Labels to find the job by.
            correlation_id: What the job belongs to, such as a request or a payment: its jobs are found by it, and a
                task reads it as ``jobq.current_job().correlation_id``.
            order: Place among the jobs of its queue: 1 first, 5 in line, 10 last. Each step is worth half a minute
                of waiting.
            client: Enqueue through this client instead of the default one.

        Raises:
            ConfigError: An option is wrong; the message says what to write instead.
        """
        overrides = call_overrides(
            self.name, self.spec, delay=delay, at=at, priority=priority, queue=queue, dedup_key=dedup_key,
            dedup_until=dedup_until, on_duplicate=on_duplicate, max_attempts=max_attempts, backoff=backoff,
            timeout=timeout, tags=tags, correlation_id=correlation_id, order=order,
        )  # fmt: skip
        return Bound(self, overrides, client)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A call's params by name, validated, defaults filled in.

        Raises:
            PayloadError: They do not fit. One line that names task and param, never a secret's value.
        """
        return self._params.bind(args, kwargs)

    def dump(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What :meth:`bind` returned, secrets unwrapped: the form that goes to the codec."""
        return self._params.dump(params) if self._params.secrets else dict(params)

    def load(self, params: Mapping[str, Any], version: int) -> dict[str, Any]:
        """A payload's params, upcast to this version and validated, ready for :meth:`invoke`.

        Raises:
            NewerPayloadError: A newer version of the task wrote them.
            PayloadUnreadableError: They do not fit the function.
        """
        if version != self.spec.version:
            params = self._upcast(params, version)
        return self._params.load(params)

    def invoke(self, params: Mapping[str, Any]) -> Any:
        """Call the function with validated params."""
        return self.fn(**params)

    def _upcast(self, params: Mapping[str, Any], version: int) -> Mapping[str, Any]:
        if version > self.spec.version:
            raise NewerPayloadError(
                f"task {self.name!r}: the payload has version {version}, this worker knows version "
                f"{self.spec.version}: deploy the newer code to the workers first",
                task=self.name,
            )
        if self.spec.upcast is None:
            return params
        try:
            return self.spec.upcast(dict(params), version)
        except Exception as error:
            reason = type(error).__name__
        raise PayloadUnreadableError(
            f"task {self.name!r}: its upcast from version {version} raised {reason}", task=self.name
        )

    def _request(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], overrides: Overrides
    ) -> EnqueueRequest:
        return EnqueueRequest(self, self.dump(self._params.bind(args, kwargs)), overrides)

    def _requests(self, many: Iterable[Mapping[str, Any]], overrides: Overrides) -> list[EnqueueRequest]:
        requests = []
        for place, params in enumerate(many):
            if not isinstance(params, Mapping):
                raise PayloadError(
                    f"task {self.name!r}: item {place} is a {type(params).__name__}, expected a mapping",
                    task=self.name,
                )
            try:
                requests.append(self._request((), params, overrides))
            except PayloadError as error:
                raise PayloadError(f"{error} (item {place})", task=self.name) from None
        return requests


class Bound(Generic[P]):
    """A task with options for some calls; made by :meth:`Task.options`. Its methods are the task's."""

    __slots__ = ("_client", "_task", "overrides")

    def __init__(
        self, task: Task[P, Any], overrides: Overrides, client: Dispatcher | AsyncDispatcher | None
    ) -> None:
        self._task = task
        self._client = client
        self.overrides = overrides

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """As :meth:`Task.enqueue`."""
        return self._send([self.request(*args, **kwargs)])[0]

    async def enqueue_async(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """As :meth:`Task.enqueue_async`."""
        return (await self._send_async([self.request(*args, **kwargs)]))[0]

    def enqueue_many(self, many: Iterable[Mapping[str, Any]]) -> list[Job]:
        """As :meth:`Task.enqueue_many`."""
        requests = self._task._requests(many, self.overrides)  # noqa: SLF001 - a view of the task
        return self._send(requests) if requests else []

    async def enqueue_many_async(self, many: Iterable[Mapping[str, Any]]) -> list[Job]:
        """As :meth:`Task.enqueue_many_async`."""
        requests = self._task._requests(many, self.overrides)  # noqa: SLF001 - a view of the task
        return await self._send_async(requests) if requests else []

    def request(self, *args: P.args, **kwargs: P.kwargs) -> EnqueueRequest:
        """The call as a value, validated and not sent: for a client's ``enqueue`` of several tasks' jobs."""
        return self._task._request(args, kwargs, self.overrides)  # noqa: SLF001 - a view of the task

    def _send(self, requests: list[EnqueueRequest]) -> list[Job]:
        client = self._client if self._client is not None else dispatcher()
        if not isinstance(client, Dispatcher):
            raise ConfigError(
                "options(client=…) got an async client: await enqueue_async(…), or pass a jobq.Client"
            )
        return client.enqueue(requests)

    async def _send_async(self, requests: list[EnqueueRequest]) -> list[Job]:
        client = self._client if self._client is not None else dispatcher()
        if isinstance(client, Dispatcher):
            return await client.enqueue_async(requests)
        return await client.enqueue(requests)


def _registered(name: str) -> Task[Any, Any]:
    return registry.get(name)


class _Decorator(Protocol):
    def __call__(self, fn: Callable[P, R_co], /) -> Task[P, R_co]: ...


@overload
def task(name: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    name: str | None = None,
    *,
    priority: PriorityName | None = None,
    queue: str | None = None,
    max_attempts: int | None = None,
    backoff: Delays | None = None,
    retry: RetryPolicy | None = None,
    timeout: Duration | None = None,
    dedup: str | DedupSpec | None = None,
    dedup_until: Until = "finished",
    on_duplicate: OnDuplicate = "skip",
    rate: Rate | None = None,
    concurrency: Concurrency | None = None,
    isolation: Isolation | None = None,
    version: int = 1,
    upcast: Upcast | None = None,
    keep_result: bool = True,
    order: int = 5,
    fair: str | None = None,
    quota: Quota | None = None,
    registry: Registry = registry,
) -> _Decorator: ...
def task(
    name: str | Callable[..., Any] | None = None, *, registry: Registry = registry, **options: Any
) -> Any:
    """Register a function, sync or async, as a task.

    Every param needs a type that pydantic can read back from JSON; one without arrives as JSON gave it.

    Args:
        name: Stable name, which payloads carry; letters, digits, ``_ . -``. Default: ``module.qualname``.
        priority: Lane: ``critical, high, medium`` (default), ``low`` or ``batch``.
        queue: A queue of the application's own, instead of a lane.
        max_attempts: Total runs including the first. Default: the queue's, else 3.
        backoff: ``Backoff``, ``Fixed`` or ``Steps``: the delays between runs.
        retry: A whole ``RetryPolicy``, with rules per error class, instead of those two.
        timeout: Seconds or timedelta that one run may take. Default: the queue's, else 180 s.
        dedup: Template such as ``"{order_id}"``: while a live job has the same key, an enqueue gives that
            job.
        dedup_until: ``"finished"``, ``"started"``, or a window in seconds or as a timedelta.
        on_duplicate: ``"skip"``, or ``"replace"``: the waiting job gets the new params and delay.
        rate: Starts per window, over all workers.
        concurrency: Runs at once, over all workers.
        isolation: ``"thread"`` or ``"process"``. Default: the queue's.
        version: Version of the params; raise it when their meaning changes.
        upcast: Turns params of an older version into this one's: ``upcast(params, version) -> params``.
        keep_result: Whether what the function returns is stored.
        order: Place among the jobs of its queue: 1 first, 5 (default) in line, 10 last. Each step is worth a ninth
            of the queue's target of waiting, at most half a minute, so that nothing waits for ever.
        fair: Template such as ``"{tenant_id}"``: the tenants of a queue take turns, however much one of them
            enqueues. Its order then counts among a tenant's jobs.
        quota: Enqueues per window; beyond, ``enqueue`` raises ``QuotaExceededError``.
        registry: Where to register.

    Raises:
        ConfigError: Name, signature or options are wrong; the message says what to change.
    """
    if callable(name):
        return _declare(name, None, registry, options)
    return lambda fn: _declare(fn, name, registry, options)


def _declare(fn: Callable[P, R], name: str | None, where: Registry, options: Mapping[str, Any]) -> Task[P, R]:
    check_function(fn)
    made = Task(fn, name=name if name is not None else default_name(fn), options=options)
    where.add(made)
    return made


def check_function(fn: object) -> None:
    """Refuse what cannot become a task.

    Raises:
        ConfigError: It is not a plain function or coroutine function, or a task already.
    """
    if isinstance(fn, Task):
        raise ConfigError(f"{fn.path} is a task already, as {fn.name!r}")
    if not inspect.isfunction(fn):
        raise ConfigError(f"@jobq.task goes on a function (def or async def), not on {fn!r}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigError(f"{fn.__qualname__} is a generator, which a job would never run: remove the yield")
