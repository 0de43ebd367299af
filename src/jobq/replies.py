"""Raw replies of Redis as plain values. Anybody may have written them, so nothing here raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def as_text(value: Any) -> str:
    """A reply as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def as_map(reply: Any) -> dict[str, str]:
    """An ``HGETALL`` reply, a dict or a flat list, as text; empty for an error."""
    if isinstance(reply, Mapping):
        return {as_text(name): as_text(value) for name, value in reply.items()}
    if isinstance(reply, list | tuple):
        return {as_text(name): as_text(value) for name, value in zip(reply[::2], reply[1::2], strict=False)}
    return {}


def as_int(value: Any) -> int:
    """A counter; 0 for what is absent, an error, or no number."""
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return 0


_MOST = 2**53


def bounded_int(value: bytes | str | int | None) -> int:
    """A number of a hash: 0 when it is none, and never beyond what a float holds."""
    if not value:
        return 0
    try:
        number = int(value)
    except ValueError:
        try:
            number = int(float(value))
        except (ValueError, OverflowError):
            return 0
    return max(-_MOST, min(_MOST, number))


def exact_text(value: bytes | str | None) -> str:
    """Text that goes back to Redis, such as an id: every byte of it survives."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else (value or "")


def exact_texts(reply: Sequence[bytes]) -> list[str]:
    """:func:`exact_text` of each."""
    return [exact_text(value) for value in reply]


def clean_text(value: bytes | str | None) -> str:
    """Text that is shown or sent on: what is not UTF-8 must not break that."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else (value or "")
