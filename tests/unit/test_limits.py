"""Rate and concurrency limits as declarations."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobq.errors import ConfigError
from jobq.limits import Concurrency, Rate


def test_a_rate_keeps_its_window_as_a_duration():
    assert Rate(50) == Rate(50, 60) == Rate(50, timedelta(minutes=1))
    assert Rate(50, per=0.5).per_ms == 500
    assert Rate(1, key="{account_id}").key == "{account_id}"


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50/s", Rate(50, 1)),
        ("50/m", Rate(50, 60)),
        ("50/10s", Rate(50, 10)),
        (" 3 / 1.5h ", Rate(3, 5400)),
        ("1000/d", Rate(1000, 86_400)),
        ("1/100ms", Rate(1, 0.1)),
    ],
)
def test_a_rate_can_be_written_as_text(text, rate):
    assert Rate.parse(text) == rate


@pytest.mark.parametrize(
    "text", ["", "50", "50/", "/s", "0/s", "-1/s", "50/week", "50/0s", "5.5/s", "50/s/s", "50/999999999d"]
)
def test_a_rate_in_other_words_is_refused(text):
    with pytest.raises(ConfigError):
        Rate.parse(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rate(0),
        lambda: Rate(True),
        lambda: Rate(1.5),  # type: ignore[arg-type]
        lambda: Rate(1, per=0),
        lambda: Rate(1, per=-1),
        lambda: Rate(1, per=float("nan")),
        lambda: Rate(1, per=timedelta(days=366)),
        lambda: Rate(1, per="60"),  # type: ignore[arg-type]
        lambda: Rate(1, key=""),
        lambda: Concurrency(0),
        lambda: Concurrency("1"),  # type: ignore[arg-type]
        lambda: Concurrency(1, key=""),
    ],
)
def test_a_wrong_limit_is_a_config_error(make):
    with pytest.raises(ConfigError):
        make()
