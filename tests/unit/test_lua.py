"""What the scripts share: each stands alone in Redis, so what several need is in each, word for word."""

from __future__ import annotations

import re
from collections import defaultdict

from jobq import lua

UNEQUAL = {"unlist"}
"""Of the same name and not the same: a drain deletes from the head of a list, a cancel anywhere in it."""


def _functions() -> dict[str, dict[str, str]]:
    """By name and script: the text of each function."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for script in lua.names():
        text = lua.script(script).text.decode()
        for match in re.finditer(r"^local function (\w+)\((?:.* end$|(?s:.*?)^end$)", text, re.MULTILINE):
            found[match[1]][script] = match[0]
    return found


def test_functions_of_one_name_are_one_function() -> None:
    found = _functions()
    assert {"leave", "free", "tell", "displace", "place"} <= found.keys(), "the pattern finds them"
    for name, texts in found.items():
        first, *others = texts.items()
        for script, text in others:
            assert name in UNEQUAL or text == first[1], f"{name} of {script} differs from that of {first[0]}"


def test_a_key_of_the_wrong_type_costs_itself_alone_by_one_text() -> None:
    guards = {
        script: re.findall(
            r"^local raw, EMPTY = .*?^end }$", lua.script(script).text.decode(), re.MULTILINE | re.DOTALL
        )
        for script in lua.names()
    }
    texts = {text for found in guards.values() for text in found}
    assert len(texts) == 1
    assert {"claim", "settle", "rescue", "promote"} <= {script for script, found in guards.items() if found}
