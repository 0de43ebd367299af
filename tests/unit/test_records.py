"""The JSON records beside a job survive a round trip, a size limit, and whatever somebody else wrote there."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from jobq.job import Attempt
from jobq.records import (
    decode_attempt,
    decode_extra,
    decode_progress,
    encode_attempt,
    encode_extra,
    encode_progress,
)


def test_progress_comes_back_and_is_clamped() -> None:
    assert decode_progress(encode_progress(0.4, "4,000 of 10,000 rows")) == (0.4, "4,000 of 10,000 rows")
    assert decode_progress(encode_progress(7, None)) == (1.0, None)


@pytest.mark.parametrize("data", [None, b"", b"{", b"[]", b'"x"', b'["a", 1]', b"\xff"])
def test_unreadable_progress_reads_as_none(data: bytes | None) -> None:
    assert decode_progress(data) == (None, None)


def test_extra_keeps_tags_and_ids_and_nothing_empty() -> None:
    assert decode_extra(encode_extra(tags=("a", "b"), trace_id="t1", correlation_id="")) == {
        "tags": ["a", "b"],
        "trace_id": "t1",
    }
    assert encode_extra() == b""
    assert decode_extra(b"[1]") == {}


def test_an_attempt_comes_back_as_it_was() -> None:
    attempt = Attempt(
        number=2,
        outcome="retry",
        started_at=datetime(2026, 11, 22, 10, 0, 0, 123000, tzinfo=UTC),
        ended_at=datetime(2026, 11, 22, 10, 0, 1, tzinfo=UTC),
        worker="w1",
        error_type="ValueError",
        error="no",
        traceback="Traceback ...",
        fingerprint="abc",
    )
    assert decode_attempt(encode_attempt(attempt), 9) == attempt


def test_a_long_traceback_is_cut_in_the_middle() -> None:
    text = "FIRST\n" + "é frame\n" * 4_000 + "LAST"
    data = encode_attempt(Attempt(number=1, outcome="dead", error="x" * 9_000, traceback=text))
    assert len(data) <= 4096
    back = decode_attempt(data, 1).traceback
    assert back is not None
    assert back.startswith("FIRST")
    assert back.endswith("LAST")
    assert len(back) > 1_000


def test_a_foreign_record_still_gives_an_attempt() -> None:
    assert decode_attempt(b"garbage", 3) == Attempt(number=3, outcome="unreadable")
    assert decode_attempt(b'{"outcome": "dead", "started_at": 1000}', 1).started_at == datetime.fromtimestamp(
        1, tz=UTC
    )
