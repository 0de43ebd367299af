"""The lanes, queue specs, and the verdict on a wait."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from jobq.errors import ConfigError
from jobq.limits import Concurrency, Rate
from jobq.queues import LANES, Priority, QueueSpec, Retention, check_groups, served_together, sla_met
from jobq.retry import Backoff, Fixed, Steps


@pytest.mark.covers("P-01", "P-02", "P-03", "P-04", "P-05", "P-10")
def test_the_five_lanes_in_their_order_with_slots_and_targets():
    assert list(LANES) == [priority.value for priority in Priority]
    assert [spec.slots for spec in LANES.values()] == [20, 10, 5, 2, 1]
    targets = [spec.target and spec.target.total_seconds() for spec in LANES.values()]
    assert targets == [1, 5, 30, 300, None]


def test_low_and_batch_run_in_processes_of_lower_priority():
    assert [name for name, spec in LANES.items() if spec.isolation == "process"] == ["low", "batch"]
    assert [spec.nice for spec in LANES.values()] == [0, 0, 0, 10, 10]


def test_a_step_of_order_is_a_ninth_of_the_target_and_half_a_minute_at_most() -> None:
    steps = {name: spec.noted.step for name, spec in LANES.items()}
    assert steps == {"critical": "111.111", "high": "555.556", "medium": "3333.333", "low": "", "batch": ""}
    assert QueueSpec("q", target=timedelta(seconds=269)).order_step < timedelta(seconds=30)
    assert QueueSpec("q", target=timedelta(milliseconds=1)).noted.step == "0.111"


@pytest.mark.covers("L-05")
def test_the_most_jobs_of_a_queue() -> None:
    assert QueueSpec("q", max_waiting=5).noted.most == "5"
    assert QueueSpec("q").noted.most == ""
    assert QueueSpec("q", max_waiting=0).limits.max_waiting == 0
    for wrong in (-1, 1.5, True, "5"):
        with pytest.raises(ConfigError, match="max_waiting of queue 'q'"):
            QueueSpec("q", max_waiting=wrong)  # type: ignore[arg-type]


def test_the_lanes_cannot_be_changed_in_place():
    with pytest.raises(TypeError):
        LANES["critical"] = LANES["batch"]  # type: ignore[index]


@pytest.mark.covers("T-02", "T-03", "O-05")
def test_default_retention():
    spec = QueueSpec("email", 5)
    assert spec.keep_succeeded == Retention(timedelta(hours=24), 1_000)
    assert spec.keep_dead == Retention(timedelta(days=7), 5_000)
    assert spec.keep_cancelled == Retention(timedelta(hours=24), 1_000)
    short = QueueSpec("email", retention=timedelta(hours=1))
    kept = (short.keep_succeeded, short.keep_dead, short.keep_cancelled)
    assert [(each.age, each.count) for each in kept] == [
        (timedelta(hours=1), n) for n in (1_000, 5_000, 1_000)
    ]


@pytest.mark.covers("P-07", "P-08", "P-09")
def test_a_wait_keeps_the_target_up_to_and_including_it():
    spec = LANES["critical"]
    assert sla_met(spec, timedelta(seconds=1))
    assert not sla_met(spec, timedelta(seconds=1, microseconds=1))
    assert sla_met(LANES["batch"], timedelta(days=30))


@pytest.mark.parametrize("name", ["", "a:b", "a b", "-a", "ä", "x" * 65, "a\n"])
def test_a_name_that_cannot_be_a_key_is_refused(name):
    with pytest.raises(ConfigError):
        QueueSpec(name, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"slots": 0},
        {"slots": True},
        {"slots": "5"},
        {"nice": 20},
        {"nice": -1},
        {"max_attempts": 0},
        {"target": timedelta(0)},
        {"target": "5"},
        {"timeout": timedelta(seconds=-1)},
        {"isolation": "fiber"},
    ],
)
def test_a_wrong_value_names_the_queue_and_the_field(change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))} of queue 'email'") as caught:
        QueueSpec(**{"name": "email", "slots": 1} | change)
    assert caught.value.queue == "email"


@pytest.mark.parametrize(
    ("age", "count"), [(5, 1), (timedelta(-1), 1), (timedelta(1), -1), (timedelta(1), 1.5)]
)
def test_a_wrong_retention_is_refused(age, count):
    with pytest.raises(ConfigError):
        Retention(age, count)


@pytest.mark.parametrize(
    "spec",
    [
        *LANES.values(),
        QueueSpec("bare"),
        QueueSpec(
            "all", 7, timedelta(milliseconds=1500), Rate(5, 0.25, burst=3), 4, Backoff(1, 3, 60, "full"),
            timeout=timedelta(seconds=9), concurrency=Concurrency(3), isolation="thread",
            keep_succeeded=Retention(timedelta(hours=1)),
            keep_dead=Retention(count=5, size=9_999), redis_url="redis://u:p@h:1/2", nice=3, priority=Priority.LOW,
        ),
        QueueSpec("fixed", backoff=Fixed(5)),
        QueueSpec("steps", backoff=Steps([1, 2.5])),
        QueueSpec("grouped", group="g", weight=3),
        QueueSpec("low", isolation=None, target=None),
    ],
    ids=lambda spec: spec.name,
)  # fmt: skip
def test_a_spec_survives_the_way_to_the_supervisor(spec: QueueSpec) -> None:
    assert QueueSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_slots_that_are_not_said_are_the_lanes_own() -> None:
    assert QueueSpec("high", rate=Rate(50)).slots == LANES["high"].slots
    assert (QueueSpec("email").slots, QueueSpec("high", 3).slots) == (1, 3)


# -- groups -----------------------------------------------------------------------------------------------------------


def test_queues_of_a_group_are_served_together_and_any_other_alone() -> None:
    specs = [
        QueueSpec("a", group="g"),
        QueueSpec("b"),
        QueueSpec("c", group="g", weight=3),
        QueueSpec("d", group="h"),
    ]
    together = {name: [spec.name for spec in found] for name, found in served_together(specs).items()}
    assert together == {"g": ["a", "c"], "b": ["b"], "h": ["d"]}


@pytest.mark.parametrize(
    "spec", [{"name": "critical"}, {"name": "otp", "priority": Priority.CRITICAL}], ids=["lane", "priority"]
)
def test_what_is_critical_shares_no_process(spec: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError, match=r"must have an executor of its own, not one of group 'mail': .* an export"
    ):
        QueueSpec(**spec, group="mail")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"group": ""}, {"group": "a:b"}, {"group": 3}, {"weight": 0}, {"weight": 1.5}]
)
def test_a_wrong_group_or_weight_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(change))} of queue 'q' must be"):
        QueueSpec("q", **change)


@pytest.mark.parametrize(
    ("field", "one", "two"),
    [
        ("isolation", "process", None),
        ("nice", 0, 5),
        ("redis_url", None, "redis://:secret@other:6379/0"),
    ],
)
def test_a_group_whose_queues_cannot_share_a_process_names_two(field: str, one: Any, two: Any) -> None:
    specs = [QueueSpec("a", group="g", **{field: one}), QueueSpec("b", group="g", **{field: two})]
    with pytest.raises(ConfigError, match=rf"queues 'a' and 'b' of group 'g' .* agree on {field}$"):
        check_groups({spec.name: spec for spec in specs})
    check_groups({spec.name: replace(spec, group=spec.name + "s") for spec in specs})


def test_threads_by_default_and_by_wish_are_the_same() -> None:
    check_groups(
        {name: QueueSpec(name, group="g", isolation=how) for name, how in (("a", None), ("b", "thread"))}
    )  # type: ignore[arg-type]


def test_a_group_must_not_have_the_name_of_a_queue() -> None:
    with pytest.raises(ConfigError, match="group 'medium' of queue 'a' must not have the name of a queue"):
        check_groups(LANES | {"a": QueueSpec("a", group="medium")})
