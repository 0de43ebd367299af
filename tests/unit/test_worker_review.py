"""What a worker's processes must survive: late words about lost leases, silent readers, children that cannot start."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import jobq
from jobq.codec import Codec
from jobq.keys import Keys
from jobq.queues import LANES
from jobq.retry import RetryPolicy
from jobq.steps import Beat, Claimed, Outcome
from jobq.tasks import Registry
from jobq.worker.channel import Channel
from jobq.worker.child import _Line
from jobq.worker.children import ChildExecutor, encode_work
from jobq.worker.executor import LaneExecutor, LaneSpec
from jobq.worker.inbox import Inbox
from jobq.worker.lane import Lane
from jobq.worker.maintenance import Fleet, Heartbeat, Keeper, Settlement
from jobq.worker.runner import Assignment, Report, Runner
from jobq.worker.slots import SlotState, SlotTable


def claimed(job_id: str, token: str = "e.1", **fields: Any) -> Claimed:
    values: dict[str, Any] = {
        "attempts": 0, "crashes": 0, "lost": 0, "queued_ms": 1_000, "overrides": b"", "timeout": 5,
        "description": "t.x", "extra": b"", "rq": None, "data": b"{}",
    }  # fmt: skip
    return Claimed(id=job_id, token=token, **(values | fields))


@pytest.fixture(autouse=True)
def _close_channels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[Channel] = []
    init = Channel.__init__

    def remember(self: Channel, sock: socket.socket) -> None:
        init(self, sock)
        made.append(self)

    monkeypatch.setattr(Channel, "__init__", remember)
    yield
    for channel in made:
        channel.close()


@pytest.fixture
def table() -> Iterator[SlotTable]:
    made = SlotTable.create(4)
    yield made
    made.close()


@pytest.fixture
def inbox(table: SlotTable) -> Inbox:
    return Inbox(table)


def executor_with(inbox: Inbox, *works: Assignment) -> LaneExecutor:
    executor = object.__new__(LaneExecutor)
    executor._inbox = inbox
    executor._works = {work.job.id: work for work in works}
    executor._children = executor._suspects = None
    return executor


def test_a_lost_lease_does_not_cancel_the_next_run_of_the_job(inbox: Inbox) -> None:
    executor = executor_with(
        inbox, Assignment(0, claimed("a", "new.7"), 0.0, 0), Assignment(1, claimed("b"), 0.0, 0)
    )
    executor._cancel(["a:old.3", "b:e.1", "elsewhere:e.1"])
    assert not inbox.cancel_requested("a")
    assert inbox.cancel_requested("b")
    assert not inbox.cancel_requested(
        "elsewhere"
    )  # another lane's: it may come here later, and would be dropped


def test_the_heartbeat_passes_on_leases_not_ids() -> None:
    told: list[list[str]] = []
    fleet: Any = type(
        "F", (), {"members": lambda: ["a:x.1", "b:x.1", "c:x.2"], "tell": told.append, "lease_ms": 1}
    )
    fleet.keys = Keys("rq")
    store: Any = type("S", (), {"run": lambda _call: Beat(["a:x.1"], ["c"])})
    Heartbeat(3_000).tick(store, fleet)
    assert told == [["a:x.1", "c:x.2"]]


def test_a_job_that_is_handed_back_never_counts_as_interrupted(inbox: Inbox, table: SlotTable) -> None:
    slot = table.take("a", "e.1")
    inbox.finished(
        Report(Assignment(slot, claimed("a"), 0, 0), Outcome(job_id="a", token="e.1", kind="hand_back"), "")
    )
    assert [found.state for found in table.read()] == [SlotState.CLAIMED]


def test_a_culprit_that_ended_before_the_kill_is_settled_once(table: SlotTable) -> None:
    control, other = Channel.pair()
    other.close()
    lane = Lane(LaneSpec("q", 1, "w", 1_000, "e"), "lane-1", table, control, killed="timeout")
    slot = table.take("a", "e.1")
    table.start(slot, 0.0, 1.0)
    lane.culprits = tuple(table.read())
    table.finish(slot)
    will = lane.last_will(-9)
    assert (list(will.outcomes), will.timed_out) == ([], [("a", "e.1")])


class Hooks:
    def __init__(self) -> None:
        self.begun: list[str] = []

    def started(self, work: Assignment) -> None:
        self.begun.append(work.job.id)

    def finished(self, report: Report) -> None: ...


class Spawner:
    """Keeps the child's end of each line that it is asked to make a child for."""

    def __init__(self) -> None:
        self.lines: list[Channel] = []

    def send(self, op: str, *, fds: tuple[int, ...] = (), **_body: Any) -> None:
        if op == "spawn":
            self.lines.append(Channel(socket.socket(fileno=os.dup(fds[0]))))


def children_of(spawner: Spawner, hooks: Hooks, limit: int = 1) -> ChildExecutor:
    runner: Any = None
    line: Any = spawner
    return ChildExecutor(limit, runner, hooks, line, prefix="c", queue="q", worker="w", nice=0, eager=True)


def test_a_child_gets_no_job_before_it_is_up() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks)
    children.submit([Assignment(0, claimed("a"), 0.0, 0)])
    assert hooks.begun == []
    spawner.lines[0].send("hello")
    children.read("c0")
    assert hooks.begun == ["a"]


def test_children_that_die_at_birth_are_not_replaced_at_once() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks)
    children.submit([Assignment(0, claimed("a"), 0.0, 0)])
    children.exited("c0", 1)
    assert (len(spawner.lines), hooks.begun) == (1, [])  # and the job neither crashed nor ran
    children.tick(1e12)
    assert len(spawner.lines) == 2


def test_a_child_that_does_not_listen_is_told_once() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks)
    spawner.lines[0].send("hello")
    children.read("c0")
    children.submit([Assignment(0, claimed("a"), 0.0, 0)])
    done = threading.Thread(target=lambda: [children.cancel("a") for _ in range(5_000)], daemon=True)
    done.start()
    done.join(5)
    assert not done.is_alive()  # the line would be full by now
    assert [message.op for message in spawner.lines[0].receive()] == ["run", "cancel"]


def test_a_child_hears_a_cancel_that_came_with_its_job_and_drops_an_older_one() -> None:
    ours, theirs = Channel.pair()
    line = _Line(Channel(theirs))
    ours.send("cancel")
    ours.send("run", **encode_work(Assignment(0, claimed("a"), 0.0, 0)))
    line.next_job()
    assert not line.cancel_requested("a")
    ours.send("run", **encode_work(Assignment(0, claimed("b"), 0.0, 0)))
    ours.send("cancel")
    line.next_job()
    assert line.cancel_requested("b")


def test_a_reason_can_always_be_sent(inbox: Inbox) -> None:
    tasks = Registry()

    @jobq.task("t.odd", registry=tasks)
    def odd() -> None:
        raise jobq.Cancel("no such file: \udc80")

    runner = Runner(codec=Codec(), registry=tasks, spec=LANES["high"], worker="w", sink=inbox)
    data = Codec().encode(task="t.odd", version=1, params={}, job_id="a")
    outcome = runner.run(Assignment(0, claimed("a", data=data), 0.0, 0)).outcome
    assert outcome.reason.encode() == b"no such file: ?"


def test_what_cannot_be_settled_does_not_cost_the_heartbeat() -> None:
    beats = []

    def run(step: Any) -> Any:
        if getattr(step, "script", "") == "heartbeat":
            beats.append(step)
            return Beat([], [])
        raise ValueError("nonsense in a hash")

    store: Any = type("S", (), {"run": staticmethod(run)})
    fleet = Fleet("w", Keys("rq"), {}, 3_000, lambda: ["a:e.1"], lambda _m: None, list, {"t": RetryPolicy()})
    keeper = Keeper(store, fleet)
    keeper.post(Settlement("q", timed_out=[("a", "e.1")]))
    keeper._settle_posted()
    keeper._tick()
    assert beats
    assert not keeper._posted
