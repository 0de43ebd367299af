"""Rate and concurrency limits as declarations."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobq.errors import ConfigError, CostTooHighError, PayloadError
from jobq.limits import Concurrency, QueueLimits, Quota, Rate, task_gates


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
        ("50/m burst 10", Rate(50, burst=10)),
        (" 50 / 10s  burst  1 ", Rate(50, 10, burst=1)),
        ("20000/h burst 19999", Rate(20_000, 3600, burst=19_999)),
    ],
)
def test_a_rate_can_be_written_as_text(text, rate):
    assert Rate.parse(text) == rate
    assert Rate.parse(str(rate)) == rate
    assert QueueLimits.of_gates(QueueLimits(rate, 3).gates("q")) == QueueLimits(rate, 3), "as tables show it"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "50",
        "50/",
        "/s",
        "0/s",
        "-1/s",
        "50/week",
        "50/0s",
        "5.5/s",
        "50/s/s",
        "50/999999999d",
        "50/m burst",
        "50/m burst 0",
        "50/m burst 50",
        "50/m burst ten",
        "50/mburst 5",
        "burst 5",
    ],
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
        lambda: Rate(1, scope="all"),
        lambda: Rate(1, scope="queue"),
        lambda: Rate(1, key="{a}", scope="tenant"),  # type: ignore[arg-type]
        lambda: Concurrency(1, scope="queue"),
        lambda: Quota(1, scope="all"),
        lambda: Rate(5, cost=0),
        lambda: Rate(5, cost=6),
        lambda: Rate(5, burst=2, cost=3),
        lambda: Rate(5, cost=1.5),  # type: ignore[arg-type]
        lambda: Rate(5, cost=""),
        lambda: Rate(5, cost="rows"),
        lambda: Rate(5, cost="{rows"),
        lambda: QueueLimits(Rate(5, cost="{rows}")),
        lambda: QueueLimits(Rate(1, key="{a}", scope="all")),
    ],
)
def test_a_wrong_limit_is_a_config_error(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50/m cost {rows}", Rate(50, cost="{rows}")),
        ("50/m burst 10 cost 3", Rate(50, burst=10, cost=3)),
        ("20000/h cost {file.size}", Rate(20_000, 3600, cost="{file.size}")),
    ],
)
def test_a_rate_that_weighs_can_be_written_as_text(text, rate):
    assert Rate.parse(text) == rate
    assert str(rate) == text


@pytest.mark.parametrize(
    ("rate", "gate"),
    [
        (Rate(50, cost="{rows}"), "w,50,60000,0,w:t,7"),
        (Rate(50, cost=3), "w,50,60000,0,w:t,3"),
        (Rate(50, cost=1), "r,50,60000,0,r:t"),
        (Rate(50, burst=10, cost="{rows}"), "b,50,60000,10,w:t,7"),
        (Rate(1_000_000, cost="{rows}"), "w,1000000,60000,0,w:t,7"),
        (Rate(1_000_000), "b,1000000,60000,50000,r:t"),
    ],
)
def test_what_a_job_costs_stands_behind_its_gate(rate, gate):
    assert task_gates("t", "q", rate, None, {"rows": 7}) == gate


@pytest.mark.parametrize("rows", [0, -1, 1.5, "many", "", "٣", None, "1e3"])
def test_a_cost_that_is_no_whole_number_is_refused(rows):
    with pytest.raises(PayloadError):
        task_gates("t", "q", Rate(50, cost="{rows}"), None, {"rows": rows})


@pytest.mark.parametrize(
    ("rate", "most"), [(Rate(50, cost="{rows}"), 50), (Rate(50, burst=10, cost="{rows}"), 10)]
)
def test_a_cost_above_what_is_ever_let_in_is_refused(rate, most):
    task_gates("t", "q", rate, None, {"rows": most})
    with pytest.raises(CostTooHighError, match="could never start") as caught:
        task_gates("t", "q", rate, None, {"rows": most + 1})
    assert (caught.value.cost, caught.value.most, caught.value.task) == (most + 1, most, "t")


def names(rate: Rate, *asked: tuple[str, str, dict[str, object]]) -> list[str]:
    """Names of the gates of one rate for (task, queue, params)."""
    return [task_gates(task, queue, rate, None, params).split(",")[4] for task, queue, params in asked]


def test_a_scope_says_who_counts_together():
    asked = (
        ("t.a", "q", {"tenant": {"id": 7}}),
        ("t.a", "q2", {"tenant": {"id": 7}}),
        ("t.b", "q", {"tenant": {"id": 7}}),
        ("t.b", "q", {"tenant": {"id": 8}}),
    )
    key = "{tenant.id}"
    one, same, other, _ = names(Rate(5, key=key), *asked)
    assert one == same != other
    one, other, same, eight = names(Rate(5, key=key, scope="queue"), *asked)
    assert one == same, "another task of the queue"
    assert len({one, other, eight}) == 3
    one, two, three, eight = names(Rate(5, key=key, scope="all"), *asked)
    assert one == two == three != eight
    assert names(Rate(9, key="{id}", scope="all"), ("t.c", "x", {"id": "7"})) == [one], (
        "however it is called there"
    )
    for different in (Rate(5, 30, key=key, scope="all"), Rate(5, key=key, scope="all", burst=2)):
        assert names(different, asked[0]) != [one], "what is counted in another way is another count"
