"""The small JSON records that jobq keeps beside a job: overrides, progress, tags, attempts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from jobq.errors import ConfigError
from jobq.job import Attempt
from jobq.retry import Delays, delays_from_dict, delays_to_dict
from jobq.units import LONGEST

ATTEMPT_LIMIT = 4096
"""Bytes that one attempt's record may take; its traceback is cut in the middle to fit."""

_TEXT_LIMIT = 500
_LONGEST_MS = LONGEST // timedelta(milliseconds=1)


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _loads(data: bytes | str | None) -> Any:
    """The JSON value, or None: a record somebody else wrote must not break reading the job."""
    if not data:
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class RunOverrides:
    """What one job asks of its runs beyond its task's options; None: as the task says."""

    max_attempts: int | None = None
    backoff: Delays | None = None
    timeout: timedelta | None = None


def encode_overrides(
    *, max_attempts: int | None = None, backoff: Delays | None = None, timeout: timedelta | None = None
) -> bytes:
    """The hash field ``o``; empty when nothing is overridden."""
    kept: dict[str, Any] = {}
    if max_attempts is not None:
        kept["max_attempts"] = max_attempts
    if backoff is not None:
        kept["backoff"] = delays_to_dict(backoff)
    if timeout is not None:
        # rq's own field has whole seconds only.
        kept["timeout_ms"] = max(1, timeout // timedelta(milliseconds=1))
    return _dumps(kept) if kept else b""


def decode_overrides(data: bytes | str | None) -> RunOverrides:
    """What the hash field ``o`` asks for; whatever is absent or unreadable reads as None."""
    value = _loads(data)
    record: Mapping[str, Any] = value if isinstance(value, dict) else {}
    attempts, delays, timeout_ms = record.get("max_attempts"), record.get("backoff"), record.get("timeout_ms")
    backoff: Delays | None = None
    if isinstance(delays, dict):
        try:
            backoff = delays_from_dict(delays)
        except ConfigError:
            backoff = None
    return RunOverrides(
        attempts if isinstance(attempts, int) and attempts > 0 else None,
        backoff,
        timedelta(milliseconds=min(timeout_ms, _LONGEST_MS))
        if isinstance(timeout_ms, int) and timeout_ms > 0
        else None,
    )


def encode_progress(fraction: float, text: str | None) -> bytes:
    """The hash field ``pr``: a JSON pair of the fraction, 0 to 1, and a text of at most 500 characters."""
    return _dumps([round(min(max(float(fraction), 0.0), 1.0), 6), (text or "")[:_TEXT_LIMIT]])


def decode_progress(data: bytes | str | None) -> tuple[float | None, str | None]:
    """Fraction and text of the hash field ``pr``; None for whatever is absent or unreadable."""
    value = _loads(data)
    if isinstance(value, list) and value and isinstance(value[0], int | float):
        text = value[1] if len(value) > 1 and isinstance(value[1], str) else None
        return min(max(float(value[0]), 0.0), 1.0), text or None
    return None, None


def encode_extra(*, tags: Sequence[str] = (), **more: str) -> bytes:
    """The hash field ``jk``: tags, and correlation or trace ids by name; empty when there are none."""
    kept: dict[str, Any] = {name: value for name, value in more.items() if value}
    if tags:
        kept["tags"] = list(tags)
    return _dumps(kept) if kept else b""


def decode_extra(data: bytes | str | None) -> dict[str, Any]:
    """The hash field ``jk`` as a dict; empty when absent or unreadable."""
    value = _loads(data)
    return value if isinstance(value, dict) else {}


def encode_attempt(attempt: Attempt, *, limit: int = ATTEMPT_LIMIT) -> bytes:
    """One entry of ``jobq:attempts:<id>``: JSON of at most ``limit`` bytes; times are ISO in UTC."""
    record: dict[str, Any] = {
        "number": attempt.number,
        "outcome": attempt.outcome,
        "started_at": _iso(attempt.started_at),
        "ended_at": _iso(attempt.ended_at),
        "worker": attempt.worker,
        "error_type": attempt.error_type,
        "error": None if attempt.error is None else attempt.error[:_TEXT_LIMIT],
        "fingerprint": attempt.fingerprint,
        "traceback": attempt.traceback,
    }
    kept = {name: value for name, value in record.items() if value is not None}
    data = _dumps(kept)
    text: str = kept.get("traceback", "")
    room = len(text)
    while len(data) > limit and room > 80:
        # Both ends of a traceback matter, the entry point and the raising line; the frames between go first.
        room = min(room - 80, int(room * limit / len(data)))
        kept["traceback"] = f"{text[: room // 3]}\n  ...\n{text[len(text) - room * 2 // 3 :]}"
        data = _dumps(kept)
    if len(data) > limit:
        kept.pop("traceback", None)
        data = _dumps(kept)
    return data


def decode_attempt(data: bytes | str, number: int) -> Attempt:
    """The attempt that a record describes.

    Args:
        number: Its place in the list, counted from 1, for a record that does not say.
    """
    value = _loads(data)
    record: Mapping[str, Any] = value if isinstance(value, dict) else {}
    counted = record.get("number")
    return Attempt(
        number=counted if isinstance(counted, int) else number,
        outcome=_text(record.get("outcome")) or "unreadable",
        started_at=_moment(record.get("started_at")),
        ended_at=_moment(record.get("ended_at")),
        worker=_text(record.get("worker")),
        error_type=_text(record.get("error_type")),
        error=_text(record.get("error")),
        traceback=_text(record.get("traceback")),
        fingerprint=_text(record.get("fingerprint")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _moment(value: Any) -> datetime | None:
    """A time written as ISO text or as milliseconds since 1970."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value / 1000, tz=UTC)
        if isinstance(value, str) and value:
            parsed = datetime.fromisoformat(value)
            return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None
