from __future__ import annotations

import re
from pathlib import Path

import pytest

import jobq
from jobq.units import agreeing, plural

COUNTED = re.compile(
    r"\{(?!plural|MOST|more|queue.sla)[^{}\"']+\} (?:[a-z]+ )?(?:jobs|workers|lines|keys|tasks|fields)\b"
)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 jobs wait"), (1, "1 job waits"), (2, "2 jobs wait"), (1_234_567, "1,234,567 jobs wait")],
)
def test_a_number_and_its_noun_and_verb_agree(count: int, expected: str) -> None:
    assert plural(count, verb="wait") == expected


def test_what_there_is_one_of() -> None:
    assert plural(1, "dead letter") == "1 dead letter"
    assert [agreeing(1, verb) for verb in ("are", "were", "have", "become")] == [
        "is",
        "was",
        "has",
        "becomes",
    ]


def test_every_text_counts_by_it() -> None:
    """One of them is what somebody sees on the first day."""
    (root,) = jobq.__path__
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path(root).rglob("*.py"))
        if "demo" not in path.parts
        for line in path.read_text().splitlines()
        if COUNTED.search(line)
    ]
    assert found == []
