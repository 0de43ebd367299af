"""JSON that reads back as it was written, or is refused.

pydantic-core is fast but lenient: it reads 1e400 as infinity and keeps the last of two equal keys; it writes
NaN inside models as null and secrets as stars. Writing again what was read and comparing costs less than a
microsecond and finds the first two; the others leave marks in the text, and only then the values are walked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any

from pydantic_core import from_json, to_json


def dump(value: Any, *, results: bool = False) -> bytes:
    """JSON of a value: of JSON types, Decimal, dates and times, UUID, Enum, bytes (base64), sets, models.

    Args:
        value: Anything; what has no JSON form is refused.
        results: Let secrets pass as stars.

    Raises:
        ValueError: There is none that reads back unchanged.
    """
    raw = to_json(value, inf_nan_mode="constants", bytes_mode="base64")
    try:
        load(raw)
    except ValueError:
        _refuse_lossy(value, results, 0)  # says it better
        raise
    if b"null" in raw or b'NaN"' in raw or b'Infinity"' in raw or (not results and b"**********" in raw):
        _refuse_lossy(value, results, 0)
    return raw


def load(raw: bytes) -> Any:
    """Value of JSON text: no NaN or infinity, no equal keys, no more than 200 levels.

    Raises:
        ValueError: It is not such text.
    """
    value = from_json(raw, allow_inf_nan=False)
    if to_json(value) != raw:  # equal keys, an overflowing number, or merely another writer's spacing
        try:
            json.loads(raw, object_pairs_hook=_distinct, parse_float=_finite, parse_constant=_finite)
        except RecursionError:
            raise ValueError("nested too deeply") from None
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("an object has two equal keys")


def _finite(text: str) -> None:
    if not math.isfinite(float(text)):
        raise ValueError("a number is not finite")


def _members(value: Any) -> Iterable[Any] | None:
    """What a container holds; None for a plain value."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in fields(value)]
    if hasattr(type(value), "__pydantic_fields__"):
        return [*vars(value).values(), *(getattr(value, "__pydantic_extra__", None) or {}).values()]
    return None


def _refuse_lossy(value: Any, results: bool, depth: int) -> None:
    if value is None or isinstance(value, (str, int)):
        return
    if isinstance(value, (float, Decimal)):
        if not math.isfinite(value):
            raise ValueError("NaN and infinity have no JSON form")
    elif hasattr(value, "get_secret_value"):
        if not results:
            raise ValueError("it holds a secret: annotate the whole parameter with jobq.Secret")
    elif depth < 256:  # deeper values were refused when they were written
        for member in _members(value) or ():
            _refuse_lossy(member, results, depth + 1)
