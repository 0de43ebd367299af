"""The kinds of settings: what text each takes, as pydantic validators to put on a field.

A kind in capitals is a validator, the others make one. Their messages say what would be right, and never quote
the value: it may be a secret.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from pydantic import BeforeValidator, SecretStr

from jobq.errors import ConfigError
from jobq.limits import Concurrency, Rate
from jobq.parsing import format_duration, parse_duration, parse_redis_url, parse_size, parse_switch
from jobq.queues import QUEUE_NAME, Retention
from jobq.retry import Backoff, Delays, Fixed, Steps

__all__ = [
    "APP", "BACKOFF", "GROUP", "PERCENT", "RATE", "REDIS_URL", "SECRET_KEYS", "SWITCH", "TARGET", "exponential",
    "matching", "one_of", "size", "span", "url", "whole",
]  # fmt: skip

_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def span(low: str, high: str) -> BeforeValidator:
    """A duration, as text or a bare number of seconds, within these limits."""
    least, most = parse_duration(low), parse_duration(high)

    def check(value: Any) -> timedelta:
        found = parse_duration(value)
        if not least <= found <= most:
            raise ValueError(f"expected a duration from {low} to {high}")
        return found

    return BeforeValidator(check)


def whole(low: int, high: int) -> BeforeValidator:
    """A whole number within these limits."""

    def check(value: Any) -> int:
        try:
            found = int(str(value).strip().replace("_", ""))
        except ValueError:
            found = low - 1
        if isinstance(value, bool) or not low <= found <= high:
            raise ValueError(f"expected a whole number from {low:,} to {high:,}")
        return found

    return BeforeValidator(check)


def size(low: int, high: int) -> BeforeValidator:
    """A number of bytes within these limits, such as ``256kB``."""

    def check(value: Any) -> int:
        found = parse_size(value)
        if not low <= found <= high:
            raise ValueError(f"expected a size from {low:,} to {high:,} bytes, such as 256kB")
        return found

    return BeforeValidator(check)


def one_of(*words: str) -> BeforeValidator:
    """One of these words, in any case."""

    def check(value: Any) -> str:
        found = str(value).strip().lower()
        if found not in words:
            raise ValueError(f"expected {', '.join(words[:-1])} or {words[-1]}")
        return found

    return BeforeValidator(check)


def matching(pattern: re.Pattern[str], hint: str) -> BeforeValidator:
    """Text of this form; the hint says which, for the message."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"expected {hint}")
        return value

    return BeforeValidator(check)


def _modules(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError("expected module names separated by commas, such as myapp.jobs")
    names = tuple(part.strip() for part in parts if part.strip())
    if not all(_MODULE.fullmatch(name) for name in names):
        raise ValueError("expected module names separated by commas, such as myapp.jobs")
    return names


def _redis_url(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a URL such as redis://localhost:6379/0")
    parse_redis_url(value)
    return value.strip()


def url(*schemes: str) -> BeforeValidator:
    """A URL with one of these schemes, or with any."""

    def check(value: Any) -> str:
        scheme, found, rest = str(value).strip().partition("://")
        if not found or not rest or (schemes and scheme.lower() not in schemes):
            begins = " or ".join(f"{scheme}://" for scheme in schemes) or "its scheme, such as sqlite:///"
            raise ValueError(f"expected a URL that starts with {begins}")
        return str(value).strip()

    return BeforeValidator(check)


def _keys(value: Any) -> SecretStr:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or not all(len(part.strip()) >= 16 for part in text.split(",")):
        raise ValueError(
            "expected one or more keys of at least 16 characters, separated by commas;"
            ' make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return SecretStr(text)


def _rate(value: Any) -> Rate:
    if isinstance(value, Rate):
        return value
    try:
        return Rate.parse(str(value).strip())
    except ConfigError:
        raise ValueError("expected a rate such as 50/s, 50/m or 50/10s") from None


def _concurrency(value: Any) -> Concurrency:
    if isinstance(value, Concurrency):
        return value
    try:
        return Concurrency(int(str(value).strip()))
    except (ValueError, ConfigError):
        raise ValueError("expected a whole number of at least 1") from None


def _retention(value: Any) -> Retention:
    """``24h``, ``1000``, ``100MB`` or ``24h/1000/100MB``: until so old, so many or so large, whichever comes first."""
    if isinstance(value, Retention):
        return value
    given: dict[str, Any] = {}
    try:
        parts = str(value).split("/")
        for word in (part.strip() for part in parts):
            if word.isdecimal():
                given["count"] = int(word)
            elif word[-1:] in ("B", "b"):
                given["size"] = parse_size(word)
            else:
                given["age"] = parse_duration(word)
        if len(given) < len(parts):
            raise ValueError(value)
        return Retention(**given)
    except (ValueError, ConfigError):
        raise ValueError(
            "expected an age, a count, a size or several, such as 24h, 1000, 100MB or 24h/1000"
        ) from None


def format_retention(kept: Retention) -> str:
    """As :data:`RETENTION` reads it."""
    most = [] if kept.count is None else [str(kept.count)]
    most += [] if kept.size is None else [f"{kept.size}B"]
    age = [] if most and kept.age == Retention().age else [format_duration(kept.age)]
    return "/".join([*age, *most])


_BACKOFF_HINT = "expected a backoff such as 2s, base=2s,factor=2,cap=5m,jitter=0.25, fixed=30s or 1s,10s,1m"


def exponential(base: timedelta) -> Backoff:
    """The default backoff with another first delay."""
    return Backoff(base=base, cap=max(base, Backoff().cap))


def _backoff(value: Any) -> Delays:
    """``2s`` (it grows), ``base=…,factor=…,cap=…,jitter=…``, ``fixed=30s``, or steps: ``1s,10s,1m``."""
    if isinstance(value, Backoff | Fixed | Steps):
        return value
    try:
        parts = [part.strip() for part in str(value).split(",")]
        if "=" not in parts[0]:
            steps = [parse_duration(part) for part in parts]
            return Steps(steps) if len(steps) > 1 else exponential(steps[0])
        given = dict(part.split("=", 1) for part in parts)
        options: dict[str, Any] = {
            name: text
            if text == "full"
            else float(text)
            if name in ("factor", "jitter")
            else parse_duration(text)
            for name, text in given.items()
        }
        if "fixed" in options:
            return Fixed(options.pop("fixed"), **options)
        return Backoff(**options)
    except (ValueError, TypeError, ConfigError):
        raise ValueError(_BACKOFF_HINT) from None


def _target(value: Any) -> timedelta | None:
    if value is None or str(value).strip().lower() == "none":
        return None
    found = parse_duration(value)
    if found <= timedelta(0):
        raise ValueError("expected a duration above 0 such as 500ms or 30s, or none")
    return found


def _group(value: Any) -> str | None:
    if value is None or str(value).strip().lower() == "none":
        return None
    if not QUEUE_NAME.fullmatch(found := str(value).strip()):
        raise ValueError("expected a name of letters, digits, _ . and -, at most 64, or none")
    return found


def _percent(value: Any) -> int:
    text = str(value).strip().removesuffix("%")
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise ValueError("expected a percentage from 1 to 100, such as 80")
    return int(text)


APP = BeforeValidator(_modules)
BACKOFF = BeforeValidator(_backoff)
CONCURRENCY = BeforeValidator(_concurrency)
GROUP = BeforeValidator(_group)
PERCENT = BeforeValidator(_percent)
RATE = BeforeValidator(_rate)
RETENTION = BeforeValidator(_retention)
REDIS_URL = BeforeValidator(_redis_url)
SECRET_KEYS = BeforeValidator(_keys)
SWITCH = BeforeValidator(parse_switch)
TARGET = BeforeValidator(_target)
