"""The registry that finds tasks by name, and the loading of the application's modules that fill it."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobq.errors import ConfigError, UnknownTaskError

if TYPE_CHECKING:
    from jobq.tasks import Task


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
"""Where ``jobq.task`` registers."""


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
