"""The application of the interop tests: each run leaves one line in the file that LEDGER names."""

from __future__ import annotations

import os
import time
from typing import Annotated

import jobq


def trace(word: str) -> None:
    """Append one line; O_APPEND keeps it whole whoever else writes."""
    ledger = os.environ.get("LEDGER")
    if not ledger:
        return
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{word}\n".encode())
    finally:
        os.close(fd)


@jobq.task("i.add", priority="high")
def add(a: int, b: int = 1) -> int:
    trace(f"add {a} {b}")
    return a + b


@jobq.task("i.echo", priority="high")
async def echo(text: str) -> dict[str, str]:
    trace(f"echo {text}")
    return {"text": text}


@jobq.task("i.quiet", priority="high")
def quiet(key: str) -> None:
    trace(f"quiet {key}")


@jobq.task("i.keyed", priority="high", dedup="{key}")
def keyed(key: str) -> None:
    trace(f"keyed {key}")


@jobq.task("i.sealed", priority="high", max_attempts=1)
def sealed(to: str, code: Annotated[str, jobq.Secret]) -> int:
    trace(f"sealed {to}")
    return len(code)


@jobq.task("i.fail", priority="high", max_attempts=3, backoff=jobq.Fixed(0.05))
def fail(key: str) -> None:
    trace(f"fail {key}")
    raise RuntimeError(f"cannot do {key}")


@jobq.task("i.nap", priority="high", timeout=60)
def nap(key: str, seconds: float) -> None:
    trace(f"start {key}")
    time.sleep(seconds)
    trace(f"done {key}")


class LeakyError(Exception):
    """Its text and its cause quote what they were given."""


def leak(code: str) -> None:
    local = [code]
    try:
        raise KeyError(code)
    except KeyError as error:
        raise LeakyError(f"first line\nrefused {local!r} and {{'code': {code!r}}}") from error


@jobq.task("i.leak", priority="high", max_attempts=2, backoff=jobq.Fixed(0.05))
def leak_in_thread(code: Annotated[str, jobq.Secret]) -> None:
    leak(code)


@jobq.task("i.leak_async", priority="high", max_attempts=2, backoff=jobq.Fixed(0.05))
async def leak_in_loop(code: Annotated[str, jobq.Secret]) -> None:
    leak(code)


@jobq.task("i.leak_child", priority="high", isolation="process", max_attempts=2, backoff=jobq.Fixed(0.05))
def leak_in_child(code: Annotated[str, jobq.Secret]) -> None:
    leak(code)


@jobq.task("i.leak_nested", priority="high", max_attempts=1)
def leak_nested(codes: Annotated[dict[str, list[str]], jobq.Secret]) -> None:
    leak(codes["all"][0])


@jobq.task("i.leak_reason", priority="high", max_attempts=2)
def leak_reason(code: Annotated[str, jobq.Secret], how: str) -> None:
    if how == "cancel":
        raise jobq.Cancel(f"cancelled {code}")
    if how == "discard":
        raise jobq.Discard(f"discarded {code}")
    raise jobq.Retry(0.05, f"again with {code}")


@jobq.task("i.leak_exit", priority="high", isolation="process", max_attempts=1)
def leak_exit(code: Annotated[str, jobq.Secret]) -> None:
    os._exit(len(code))
