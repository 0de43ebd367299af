"""Declaring a task that comes with jobq: its params are fixed, its work may be the application's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, cast

from jobq.errors import ConfigError, NoHandlerError
from jobq.functions import is_async
from jobq.job import Job
from jobq.tasks import Task, check_function, registry

P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H")
T = TypeVar("T")


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
    def is_async(self) -> bool:
        """Whether the handler is a coroutine function; the defaults are not."""
        return self._handler is not None and is_async(self._handler)

    def _perform(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        handler = self._handler or (self._default() if self._default else None)
        if handler is None:
            raise NoHandlerError(
                f"helper {self.name!r}: register a handler with @{self.path.rpartition('.')[2]}.handler"
                + (f", or {self._remedy}" if self._remedy else ""),
                task=self.name,
            )
        return handler(self._record(*args, **kwargs))


def helper(
    name: str,
    *,
    default: Callable[[], Callable[[H], Any] | None] | None = None,
    remedy: str = "",
    **options: Any,
) -> Callable[[Callable[P, H]], Helper[P, Any, H]]:
    """Register a :class:`Helper`; arguments as there, options as for :func:`task`."""

    def declare(fn: Callable[P, H]) -> Helper[P, Any, H]:
        check_function(fn)
        made: Helper[P, Any, H] = Helper(fn, name=name, default=default, remedy=remedy, options=options)
        registry.add(made)
        return made

    return declare
