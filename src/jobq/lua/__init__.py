"""Loads the Lua scripts beside this file: one atomic step each.

A script's header names its keys and arguments line by line, ``-- KEYS[1]  …``; the loader reads the count of
keys from it, so that a caller with a wrong one is found at the first call. ``-- KEYS[5+]`` means four and any
number after them. Every script takes ``now_ms`` as ``ARGV[1]`` (empty: Redis' own ``TIME``), and the two key
prefixes after it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_KEY_LINE = re.compile(r"^-- KEYS\[(\d+)(\+?)\]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its text, its SHA-1, and how many keys it takes.

    Attributes:
        keys: Count of keys, or the smallest count when ``variadic``.
    """

    name: str
    text: bytes
    sha: str
    keys: int
    variadic: bool

    def check(self, count: int) -> None:
        """Raise ValueError when a caller passes another number of keys than the header names."""
        if count != self.keys and not (self.variadic and count >= self.keys):
            more = " or more" if self.variadic else ""
            raise ValueError(f"{self.name}.lua takes {self.keys}{more} keys, got {count}")


def parse(name: str, text: bytes) -> Script:
    """The script that ``text`` is; the keys named in its header must be numbered from 1."""
    found = _KEY_LINE.findall(text.decode())
    numbers = [int(number) for number, _ in found]
    if numbers != list(range(1, len(numbers) + 1)) or any(plus for _, plus in found[:-1]):
        raise ValueError(f"{name}.lua: the header's KEYS are numbered from 1, only the last may be variadic")
    variadic = bool(found) and found[-1][1] == "+"
    # A variadic last key may be absent: KEYS[5+] means four fixed keys and any number after them.
    count = len(numbers) - 1 if variadic else len(numbers)
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest(), count, variadic)


@cache
def script(name: str) -> Script:
    """The script of this name.

    Raises:
        ValueError: Its header is wrong.
    """
    return parse(name, files(__name__).joinpath(f"{name}.lua").read_bytes())


def names() -> list[str]:
    """Names of all scripts, sorted."""
    return sorted(entry.name[:-4] for entry in files(__name__).iterdir() if entry.name.endswith(".lua"))
