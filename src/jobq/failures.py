"""Errors as text: what a failed attempt leaves in Redis and in the log, with every secret value blotted out."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, TracebackType
from typing import Any

from pydantic_core import to_jsonable_python

from jobq.tasks import Task

_SHOWN_FRAMES = 20
_FINGERPRINT_FRAMES = 5
_KNOWN_PLACES = 200
_MOST_STEPS = 50


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What is kept of an exception: nothing in it shows a secret param."""

    type: str = ""
    message: str = ""
    traceback: str = ""
    fingerprint: str = ""


def describe_error(error: BaseException, secrets: Iterable[str]) -> ErrorDetails:
    """Type, message, traceback and fingerprint of an error, with every secret value blotted out.

    The fingerprint is equal for errors of one type raised from the same place: SHA-256 of the type and of the last
    five frames' file names and functions, without line numbers, which change with every edit.
    """
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}" if kind.__module__ != "builtins" else kind.__qualname__
    steps = _steps(error.__traceback__)
    places = [
        f"{code.co_filename.rpartition('/')[2]}:{code.co_name}" for code, _ in steps[-_FINGERPRINT_FRAMES:]
    ]
    fingerprint = hashlib.sha256("|".join([name, *places]).encode()).hexdigest()[:12]
    text = redact(_traceback(error, steps), secrets)
    return ErrorDetails(name, redact(_text_of(error), secrets), text, fingerprint)


def _steps(trace: TracebackType | None) -> tuple[tuple[CodeType, int], ...]:
    """Where each call of a traceback stood: its code, and the instruction."""
    steps = []
    while trace is not None:
        steps.append((trace.tb_frame.f_code, trace.tb_lasti))
        trace = trace.tb_next
    return tuple(steps)


_calls: dict[tuple[tuple[CodeType, int], ...], str] = {}


def _traceback(error: BaseException, steps: tuple[tuple[CodeType, int], ...]) -> str:
    """As Python prints it. Jobs that fail, fail in the same places: the calls are formatted once for each of them."""
    linked = error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__)
    if linked or isinstance(error, BaseExceptionGroup) or not 0 < len(steps) <= _MOST_STEPS:
        return "".join(traceback.format_exception(error, limit=-_SHOWN_FRAMES))
    calls = _calls.get(steps)
    if calls is None:
        if len(_calls) >= _KNOWN_PLACES:
            _calls.clear()
        calls = _calls[steps] = "".join(traceback.format_tb(error.__traceback__, limit=-_SHOWN_FRAMES))
    last = "".join(traceback.format_exception_only(error))
    return f"Traceback (most recent call last):\n{calls}{last}"


def process_ended(status: int, *, crash: bool) -> ErrorDetails:
    """What is kept of a run whose process ended under it.

    Args:
        status: Exit code, or minus the signal that ended it.
        crash: It ended by its own doing.
    """
    words = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
    return ErrorDetails("ProcessCrash" if crash else "ProcessLost", f"the process that ran it ended: {words}")


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its message cannot be shown)"


def secret_texts(task: Task[..., Any], params: Mapping[str, Any]) -> tuple[str, ...]:
    """Every text inside the secret ones of a call's params, to be blotted out of what errors say."""
    hidden = [
        to_jsonable_python(params[name], bytes_mode="base64", serialize_unknown=True)
        for name in task.secrets
        if name in params
    ]
    return tuple(text for text in _texts(hidden) if text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from _texts(member)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def redact(text: str, secrets: Iterable[str]) -> str:
    """``text`` without the secrets, however it quotes them."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        for form in {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}:
            text = text.replace(form, "•••")
    return text


def first_line(error: BaseException, secrets: Iterable[str]) -> str:
    """The first line of an error's message, cut at 200 characters, for a note beside an event."""
    return (redact(_text_of(error), secrets).splitlines() or [""])[0][:200]
