"""Deduplication keys: what makes two enqueues of a task equal, and for how long.

A key is a template over the task's params (``"{order_id}"``, ``"{user.id}:{day}"``). Rendering is injective
over the values' texts: one customer's payment cannot swallow another's because a separator moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from string import Formatter
from typing import Any, Literal
from uuid import UUID

from jobq.errors import ConfigError, PayloadError

Until = Literal["finished", "started"] | timedelta
OnDuplicate = Literal["skip", "replace"]
Mode = Literal["f", "s", "w"]

_SIMPLE = (str, int, float, Decimal, date, time, timedelta, UUID)  # bool and datetime are subclasses


@dataclass(frozen=True, slots=True)
class DedupSpec:
    """How a task refuses equal jobs.

    Attributes:
        template: The key as a template over the params.
        until: The key is held until its job is ``"finished"`` (succeeded, dead or cancelled; the default) or
            ``"started"``, or for a timedelta of at least 1 ms, which may outlive the job.
        on_duplicate: ``"skip"`` (default) returns the live job; ``"replace"`` gives the waiting job the new
            payload and delay.

    Raises:
        ConfigError: The template or an option is malformed.
    """

    template: str
    until: Until = "finished"
    on_duplicate: OnDuplicate = "skip"

    def __post_init__(self) -> None:
        if not fields(self.template):
            raise ConfigError(
                f"the dedup template {self.template!r} names no parameter, so every job of the task would be"
                ' equal; name one, as in "{order_id}"'
            )
        if isinstance(self.until, timedelta):
            if not timedelta(milliseconds=1) <= self.until <= timedelta(days=365):
                raise ConfigError(f"a dedup window must be between 1 ms and 365 days, got {self.until}")
        elif self.until not in ("finished", "started"):
            raise ConfigError(f'dedup_until must be "finished", "started" or a timedelta, got {self.until!r}')
        if self.on_duplicate not in ("skip", "replace"):
            raise ConfigError(f'on_duplicate must be "skip" or "replace", got {self.on_duplicate!r}')

    @property
    def mode(self) -> Mode:
        """The mode as the scripts write it: ``f`` finished, ``s`` started, ``w`` window."""
        return mode(self.until)

    @property
    def window_ms(self) -> int:
        """Length of the window in ms; 0 unless the mode is ``w``."""
        return window_ms(self.until)


def mode(until: Until) -> Mode:
    """The scripts' letter for ``until``."""
    if isinstance(until, timedelta):
        return "w"
    return "s" if until == "started" else "f"


def window_ms(until: Until) -> int:
    """Length of the window in ms, at least 1; 0 when ``until`` is not a window."""
    return max(1, until // timedelta(milliseconds=1)) if isinstance(until, timedelta) else 0


@lru_cache(maxsize=1024)
def _parse(template: str) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """The template as parts: literal text, path to the value that follows it (empty: none), format spec."""
    if not template:
        raise ConfigError(f'a key template must be text such as "{{order_id}}", got {template!r}')
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"the key template {template!r} is malformed: {error}") from error
    parts: list[tuple[str, tuple[str, ...], str]] = []
    literal = ""
    for text, name, spec, conversion in parsed:
        literal += text
        if name is None:
            continue
        path = tuple(name.split("."))
        if not all(step.isidentifier() and not step.startswith("__") for step in path):
            raise ConfigError(
                f"the key template {template!r} names {name!r}; use parameter names, as in {{a}} or {{a.b}}"
            )
        if conversion or (spec and "{" in spec):
            raise ConfigError(f"the key template {template!r} may not use conversions or nested fields")
        if parts and not _separators(literal):
            raise ConfigError(
                f"the key template {template!r} has two parameters with no separator between them, so"
                ' different values could give one key; write it like "{a}:{b}"'
            )
        parts.append((literal, path, spec or ""))
        literal = ""
    return (*parts, (literal, (), ""))


def _separators(literal: str) -> set[str]:
    """Characters that keep values apart. Not letters, digits or ``%``: escapes are made of those."""
    return {char for char in literal if not char.isalnum() and char != "%"}


def fields(template: str) -> set[str]:
    """Names of the params a template uses; of ``{a.b}`` it is ``a``.

    Raises:
        ConfigError: The template is malformed.
    """
    return {path[0] for _, path, _ in _parse(template) if path}


def render(template: str, params: Mapping[str, Any]) -> str:
    """The key of one job.

    Where a template has several parameters, its separators inside a value are escaped as ``%XX``.

    Args:
        template: As declared.
        params: The validated params: Python values or JSON values.

    Raises:
        ConfigError: The template is malformed.
        PayloadError: A parameter is missing or not a simple value, or the key comes out empty.
    """
    parts = _parse(template)
    reserved: set[str] = set()
    if len(parts) > 2:  # two values or more, and the literal text at the end
        reserved = {"%"}.union(*(_separators(literal) for literal, _, _ in parts))
    out: list[str] = []
    for literal, path, spec in parts:
        out.append(literal)
        if path:
            text = _text(_lookup(template, path, params), spec, template, path)
            if not reserved.isdisjoint(text):
                text = "".join(_escape(char) if char in reserved else char for char in text)
            out.append(text)
    key = "".join(out)
    if not key:
        names = ", ".join(sorted(fields(template)))
        raise PayloadError(f"the key template {template!r} gives an empty key; fill {names}")
    return key


def _escape(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def _lookup(template: str, path: tuple[str, ...], params: Mapping[str, Any]) -> Any:
    value: Any = params
    for step in path:
        try:
            value = value[step] if isinstance(value, Mapping) else getattr(value, step)
        except (KeyError, AttributeError):
            name = ".".join(path)
            raise PayloadError(f"the key template {template!r} needs {name!r}, which is not there") from None
    return value


def _text(value: Any, spec: str, template: str, path: tuple[str, ...]) -> str:
    name = ".".join(path)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bytes):
        value = value.hex()
    if value is not None and not isinstance(value, _SIMPLE):
        # The text of a list, a dict or a model depends on order and version; a secret's text is stars.
        raise PayloadError(
            f"the key template {template!r} names {name!r}, which is a {type(value).__name__};"
            " name a text, a number, a date or an id"
        )
    try:
        return format(value, spec) if spec else str(value)
    except (ValueError, TypeError) as error:
        raise PayloadError(f"the key template {template!r} cannot format {name!r}: {error}") from error


def digest(task: str, key: str) -> str:
    """What the Redis key carries instead of the dedup key: 32 hex digits of SHA-256 over task and key."""
    return hashlib.sha256(f"{task}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
