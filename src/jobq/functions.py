"""What a function says of itself: its name, which one it is, and whether its call is awaited."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobq.errors import ConfigError


def default_name(fn: Callable[..., Any]) -> str:
    """``module.qualname``, the module named as others import it.

    Raises:
        ConfigError: The function is local to another one, so that nobody else could name it.
    """
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


def origin(fn: Callable[..., Any]) -> tuple[str, str, int]:
    """What makes two functions the same one, imported twice. The line tells a second ``def`` apart."""
    code = inspect.unwrap(fn).__code__
    return os.path.realpath(code.co_filename), fn.__qualname__, code.co_firstlineno


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether a call of ``fn`` returns something to await."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
