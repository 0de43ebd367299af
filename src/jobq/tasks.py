"""Tasks: functions with checked params under a stable name, and the registry that finds them again."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload, runtime_checkable

from pydantic import BaseModel

from jobq.context import ContextSink, JobContext, current_job, running_job
from jobq.dedup import DedupSpec
from jobq.errors import (
    ConfigError,
    NewerPayloadError,
    NoHandlerError,
    PayloadError,
    PayloadUnreadableError,
    UnknownTaskError,
)
from jobq.job import Job
from jobq.limits import Concurrency, Rate
from jobq.options import (
    NO_OVERRIDES,
    Duration,
    Isolation,
    OnDuplicate,
    Overrides,
    PriorityName,
    TaskOptions,
    Until,
    Upcast,
    call_overrides,
    check_name,
    task_options,
)
from jobq.params import ParamSet, Secret
from jobq.retry import Delays, RetryPolicy

__all__ = [
    "AsyncDispatcher", "Bound", "ContextSink", "Dispatcher", "EnqueueRequest", "Helper", "JobContext",
    "Overrides", "Registry", "Secret", "Task", "TaskOptions", "current_job", "helper", "load_app", "registry",
    "running_job", "set_dispatcher", "task",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
H = TypeVar("H")
T = TypeVar("T")


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


def _dispatcher() -> Dispatcher:
    if _provider is None:
        # By name, at the first enqueue: declaring tasks neither loads a Redis client nor knows the layer
        # above.
        importlib.import_module("jobq.client")
    if _provider is None:
        raise ConfigError("nothing enqueues jobs here: call jobq.tasks.set_dispatcher(provider) first")
    return _provider()


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
        self.origin = _origin(fn)
        self._params = ParamSet(fn, name)
        self._async = _is_async(fn)
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
        return _dispatcher().enqueue([self._request(args, kwargs, NO_OVERRIDES)])[0]

    async def enqueue_async(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Awaitable :meth:`enqueue`."""
        request = self._request(args, kwargs, NO_OVERRIDES)
        return (await _dispatcher().enqueue_async([request]))[0]

    def enqueue_many(self, many: Iterable[Mapping[str, Any]]) -> list[Job]:
        """A job per mapping of params, in few round trips. All are validated before the first is sent.

        Raises:
            PayloadError: Params do not fit; the message gives their place in the list, counted from 0.
        """
        requests = self._requests(many, NO_OVERRIDES)
        return _dispatcher().enqueue(requests) if requests else []

    async def enqueue_many_async(self, many: Iterable[Mapping[str, Any]]) -> list[Job]:
        """Awaitable :meth:`enqueue_many`."""
        requests = self._requests(many, NO_OVERRIDES)
        return await _dispatcher().enqueue_async(requests) if requests else []

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
            client: Enqueue through this client instead of the default one.

        Raises:
            ConfigError: An option is wrong; the message says what to write instead.
        """
        overrides = call_overrides(
            self.name, self.spec, delay=delay, at=at, priority=priority, queue=queue, dedup_key=dedup_key,
            dedup_until=dedup_until, on_duplicate=on_duplicate, max_attempts=max_attempts, backoff=backoff,
            timeout=timeout, tags=tags,
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
        client = self._client if self._client is not None else _dispatcher()
        if not isinstance(client, Dispatcher):
            raise ConfigError(
                "options(client=…) got an async client: await enqueue_async(…), or pass a jobq.Client"
            )
        return client.enqueue(requests)

    async def _send_async(self, requests: list[EnqueueRequest]) -> list[Job]:
        client = self._client if self._client is not None else _dispatcher()
        if isinstance(client, Dispatcher):
            return await client.enqueue_async(requests)
        return await client.enqueue(requests)


class Helper(Task[P, R], Generic[P, R, H]):
    """A task that comes with jobq: its params are fixed, what it does may be the application's.

    The declared function turns the params into one record; the handler, or else the default, does the work.
    """

    def __init__(
        self,
        fn: Callable[P, H],
        *,
        name: str,
        default: Callable[[], Callable[[H], Any] | None] | None = None,
        remedy: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Declare a helper.

        Args:
            fn: Makes the record from the params.
            name: The task's name.
            default: Gives the handler that works from settings alone; None when they say nothing.
            remedy: What to configure so that the default works; for the error message.
            options: As for :class:`Task`.
        """
        super().__init__(cast("Callable[P, R]", fn), name=name, options=options)
        self._record = fn
        self._default = default
        self._remedy = remedy
        self._handler: Callable[[H], Any] | None = None
        self.fn = self._perform

    # A call of a helper enqueues, by contract; a call of one's own task runs it.
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Job:  # type: ignore[override]
        """Enqueue a job; the same as :meth:`Task.enqueue`."""
        return self.enqueue(*args, **kwargs)

    def handler(self, fn: Callable[[H], T]) -> Callable[[H], T]:
        """Decorator: let ``fn``, which may be a coroutine function, do the work. The last one counts."""
        if not callable(fn):
            raise ConfigError(f"helper {self.name!r}: a handler is a function of one record", task=self.name)
        self._handler = fn
        return fn

    def clear_handler(self) -> None:
        """Forget the application's handler: the default does the work again."""
        self._handler = None

    @property
    def has_handler(self) -> bool:
        """Whether the application registered a handler."""
        return self._handler is not None

    @property
    def is_async(self) -> bool:
        """Whether the handler is a coroutine function; the defaults are not."""
        return self._handler is not None and _is_async(self._handler)

    def _perform(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        handler = self._handler or (self._default() if self._default else None)
        if handler is None:
            raise NoHandlerError(
                f"helper {self.name!r}: register a handler with @{self.path.rpartition('.')[2]}.handler"
                + (f", or {self._remedy}" if self._remedy else ""),
                task=self.name,
            )
        return handler(self._record(*args, **kwargs))


class Registry:
    """Tasks by name. Reads and writes are single dict operations, so threads and forks need no lock."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._paths: dict[str, str] = {}

    def add(self, task: Task[Any, Any]) -> None:
        """Register a task.

        Raises:
            ConfigError: Another function has the name. The same function again (a reload) takes its place.
        """
        holder = self._tasks.setdefault(task.name, task)
        if holder is not task and holder.origin != task.origin:
            raise ConfigError(
                f"task name {task.name!r} is taken by {holder.path}: give {task.path} another name",
                task=task.name,
            )
        self._tasks[task.name] = task
        self._paths[task.path] = task.name

    def get(self, name: str) -> Task[Any, Any]:
        """The task of exactly this name.

        Raises:
            UnknownTaskError: There is none.
        """
        try:
            return self._tasks[name]
        except KeyError:
            raise self._unknown(name) from None

    def resolve(self, name: str) -> Task[Any, Any]:
        """The task of this name, this dotted path, or this last part of a name if only one task has it.

        Never imports anything: only what is registered can be found.

        Raises:
            UnknownTaskError: There is none, or several.
        """
        known = self._tasks.get(name) or self._tasks.get(self._paths.get(name.replace(":", "."), ""))
        if known is not None:
            return known
        short = [full for full in self.names() if full.rpartition(".")[2] == name]
        if len(short) == 1:
            return self._tasks[short[0]]
        raise self._unknown(name, short)

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        return sorted(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def _unknown(self, name: str, candidates: Sequence[str] = ()) -> UnknownTaskError:
        near = list(candidates) or difflib.get_close_matches(name, self._tasks, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        return UnknownTaskError(
            f"no task {name!r} is registered{hint} (name the module that declares it in JOBQ_APP)", task=name
        )


registry = Registry()
"""Where :func:`task` registers."""


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
        rate: Starts per window.
        concurrency: Runs at once.
        isolation: ``"thread"`` or ``"process"``. Default: the queue's.
        version: Version of the params; raise it when their meaning changes.
        upcast: Turns params of an older version into this one's: ``upcast(params, version) -> params``.
        keep_result: Whether what the function returns is stored.
        registry: Where to register.

    Raises:
        ConfigError: Name, signature or options are wrong; the message says what to change.
    """
    if callable(name):
        return _declare(name, None, registry, options)
    return lambda fn: _declare(fn, name, registry, options)


def _declare(fn: Callable[P, R], name: str | None, where: Registry, options: Mapping[str, Any]) -> Task[P, R]:
    _check_function(fn)
    made = Task(fn, name=name if name is not None else _default_name(fn), options=options)
    where.add(made)
    return made


def helper(
    name: str,
    *,
    default: Callable[[], Callable[[H], Any] | None] | None = None,
    remedy: str = "",
    **options: Any,
) -> Callable[[Callable[P, H]], Helper[P, Any, H]]:
    """Register a :class:`Helper`; arguments as there, options as for :func:`task`."""

    def declare(fn: Callable[P, H]) -> Helper[P, Any, H]:
        _check_function(fn)
        made: Helper[P, Any, H] = Helper(fn, name=name, default=default, remedy=remedy, options=options)
        registry.add(made)
        return made

    return declare


def load_app(modules: Iterable[str], registry: Registry = registry) -> list[str]:
    """Import the modules that declare tasks, looking in the working directory too.

    Returns:
        The names of all tasks that are registered then.

    Raises:
        ConfigError: A module cannot be imported; the message names it and why.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # a console script, unlike `python -m`, does not look there
    for module in modules:
        try:
            importlib.import_module(module)
        except ConfigError:
            raise
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name and module.startswith(error.name)
            reason = "not found on sys.path" if missing else f"{type(error).__name__}: {error}"
            raise ConfigError(f"JOBQ_APP: cannot import {module!r}: {reason}") from error
    return registry.names()


def _check_function(fn: object) -> None:
    if isinstance(fn, Task):
        raise ConfigError(f"{fn.path} is a task already, as {fn.name!r}")
    if not inspect.isfunction(fn):
        raise ConfigError(f"@jobq.task goes on a function (def or async def), not on {fn!r}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigError(f"{fn.__qualname__} is a generator, which a job would never run: remove the yield")


def _default_name(fn: Callable[..., Any]) -> str:
    if "<" in fn.__qualname__:
        raise ConfigError(
            f"{fn.__qualname__} is not at the top of its module: name it, @jobq.task('orders.confirm')"
        )
    return f"{_module_name(fn)}.{fn.__qualname__}"


def _module_name(fn: Callable[..., Any]) -> str:
    """The module's name as others import it: ``app``, also when ``python app.py`` or ``-m app`` runs it."""
    if fn.__module__ != "__main__":
        return fn.__module__
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return main.__spec__.name.removesuffix(".__main__")
    return Path(getattr(main, "__file__", None) or "__main__").stem


def _origin(fn: Callable[..., Any]) -> tuple[str, str, int]:
    """What makes two functions the same one, imported twice. The line tells a second ``def`` apart."""
    code = inspect.unwrap(fn).__code__
    return os.path.realpath(code.co_filename), fn.__qualname__, code.co_firstlineno


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
