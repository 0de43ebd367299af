"""Dedup templates, their keys, and how long they are held."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from jobq.dedup import DedupSpec, digest, fields, render
from jobq.errors import ConfigError, PayloadError


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{order_id}", "ORD-1"),
        ("order:{order_id}", "order:ORD-1"),
        ("{order_id}:{n}", "ORD-1:3"),
        ("{user.id}", "u7"),
        ("{nested.a.b}", "deep"),
        ("{day:%Y-%m}", "2026-01"),
        ("{{{order_id}}}", "{ORD-1}"),
        ("{amount}", "12.50"),
        ("{colour}", "red"),
        ("{uuid}", "00000000-0000-0000-0000-000000000001"),
        ("{raw}", "ff00"),
        ("{nothing}", "None"),
        ("{flag}", "True"),
    ],
)
@pytest.mark.covers("D-05")
def test_a_key_is_rendered_from_the_params(template, key):
    params = {
        "order_id": "ORD-1",
        "n": 3,
        "user": SimpleNamespace(id="u7"),
        "nested": {"a": {"b": "deep"}},
        "day": date(2026, 1, 31),
        "amount": Decimal("12.50"),
        "colour": Colour.RED,
        "uuid": UUID(int=1),
        "raw": b"\xff\x00",
        "nothing": None,
        "flag": True,
    }
    assert render(template, params) == key


def test_one_value_is_written_as_it_is_several_are_kept_apart():
    assert render("{a}", {"a": "x:y%"}) == "x:y%"
    assert render("{a}:{b}", {"a": "x:y", "b": "z%"}) == "x%3Ay:z%25"


templates = st.sampled_from(["{a}:{b}", "{a}--{b}", "k:{a}0:0{b}:", "{a}%:{b}", "{{{a}|{b}}}", "{a} 3A{b}"])
texts = st.text(alphabet="ab:%-0123A |{}é€", max_size=6)


@given(templates, texts, texts, texts, texts)
def test_different_values_never_give_one_key(template, a, b, c, d):
    one, two = render(template, {"a": a, "b": b}), render(template, {"a": c, "b": d})
    assert (one == two) == ((a, b) == (c, d))


@pytest.mark.parametrize(
    "template",
    ["", "{a", "{}", "{0}", "{a[0]}", "{a!r}", "{a:{b}}", "{a}{b}", "{a}x{b}", "{a.__class__}", "{a }"],
)
def test_a_malformed_template_is_a_config_error(template):
    with pytest.raises(ConfigError):
        fields(template)
    with pytest.raises(ConfigError):
        DedupSpec(template)


def test_fields_are_the_params_that_a_template_uses():
    assert fields("{a}:{b.c}:{a.d:%Y}") == {"a", "b"}
    assert fields("constant") == set()


def test_a_template_without_params_would_make_all_jobs_equal():
    with pytest.raises(ConfigError, match="names no parameter"):
        DedupSpec("constant")


@pytest.mark.parametrize(
    "params", [{}, {"a": {}}, {"a": []}, {"a": SecretStr("x")}, {"a": ""}, {"a": object()}]
)
def test_params_that_give_no_key_are_refused(params):
    with pytest.raises(PayloadError):
        render("{a}", params)


def test_a_format_that_does_not_fit_the_value_is_refused():
    with pytest.raises(PayloadError):
        render("{a:%Y}", {"a": 5.0})


def test_modes_and_windows():
    assert (DedupSpec("{a}").mode, DedupSpec("{a}").window_ms) == ("f", 0)
    assert (DedupSpec("{a}", "started").mode, DedupSpec("{a}", "started").window_ms) == ("s", 0)
    window = DedupSpec("{a}", timedelta(seconds=1.5))
    assert (window.mode, window.window_ms) == ("w", 1500)


@pytest.mark.parametrize("until", ["ended", timedelta(0), timedelta(days=-1), timedelta(days=400), 5])
def test_a_wrong_until_is_a_config_error(until):
    with pytest.raises(ConfigError):
        DedupSpec("{a}", until)


def test_a_wrong_on_duplicate_is_a_config_error():
    with pytest.raises(ConfigError):
        DedupSpec("{a}", on_duplicate="raise")  # type: ignore[arg-type]


def test_a_digest_is_of_task_and_key():
    assert digest("t", "k") == digest("t", "k")
    assert len({digest("t", "k"), digest("t", "k2"), digest("t2", "k"), digest("tk", "")}) == 4
    assert len(digest("t", "\ud800")) == 32
    assert digest("t", "k") == "f31e38a4251c28e34c5d3af84b76d674"  # stored in Redis: must not change


def test_dates_with_times_render_with_their_zone():
    assert render("{at}", {"at": datetime(2026, 1, 1, tzinfo=UTC)}) == "2026-01-01 00:00:00+00:00"
