"""What a worker does about what is published to it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from jobq.keys import Keys
from jobq.worker.subscriber import ASKED_S, Subscriber

KEYS = Keys("rq")


class Lanes:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.woken: list[str] = []

    def tell(self, members: list[str]) -> None:
        self.told.append(members)

    def wake(self, queue: str) -> None:
        self.woken.append(queue)


class Field:
    """A subscriber whose worker holds ``held``, and which hears what a test says."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.lanes = Lanes()
        self.obeyed: list[str] = []
        self.caught_up = 0
        fleet: Any = type("F", (), {"keys": KEYS, "name": "w", "executors": {"w-high": ["high"]}})()
        fleet.members = lambda: self.held
        nowhere: Any = None
        self.subscriber = Subscriber(nowhere, fleet, self.lanes, self.obeyed.append, self.catch_up)  # type: ignore[arg-type]

    def catch_up(self) -> None:
        self.caught_up += 1

    def hear(self, channel: str, data: str, kind: str = "message") -> None:
        self.subscriber._hear({"type": kind, "channel": channel.encode(), "data": data.encode()})

    def look(self, later_s: float = 0.0) -> None:
        self.subscriber._tell(time.monotonic() + later_s)


@pytest.fixture
def field() -> Field:
    return Field()


def test_only_leases_of_that_job_are_told_and_once(field: Field) -> None:
    field.held = ["a:x.1", "b:x.1", "a:with:colons:x.2"]
    for _ in range(3):
        field.hear(KEYS.cancel_channel, "a")
        field.look()
    assert field.lanes.told == [["a:x.1"]]
    field.hear(KEYS.cancel_channel, "a:with:colons")
    field.look()
    assert field.lanes.told[1:] == [["a:with:colons:x.2"]]


def test_a_job_that_was_just_claimed_is_told_once_it_is_held(field: Field) -> None:
    field.hear(KEYS.cancel_channel, "a")
    field.look()
    assert field.lanes.told == []
    field.held = ["a:x.1"]
    field.look()
    assert field.lanes.told == [["a:x.1"]]


def test_who_is_not_found_is_forgotten(field: Field) -> None:
    field.hear(KEYS.cancel_channel, "elsewhere")
    field.look(ASKED_S + 0.1)
    field.held = ["elsewhere:x.1"]
    field.look()
    assert field.lanes.told == []


def test_a_queue_that_goes_on_is_looked_into(field: Field) -> None:
    field.hear(KEYS.wake_channel, "high")
    assert field.lanes.woken == ["high"]


def test_whoever_asked_before_it_subscribed_is_caught_up_with(field: Field) -> None:
    field.hear(KEYS.cancel_channel, "", kind="subscribe")
    field.hear(KEYS.wake_channel, "", kind="subscribe")
    assert (field.caught_up, field.lanes.told) == (1, [])


def test_commands_go_by_the_executors_names(field: Field) -> None:
    field.hear(KEYS.rq_commands("w-high"), '{"command": "kill-horse"}')
    assert field.obeyed == []
    field.hear(KEYS.rq_commands("w-high"), '{"command": "shutdown"}')
    assert field.obeyed == ["stop"]
