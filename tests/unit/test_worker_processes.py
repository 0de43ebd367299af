"""What a worker's processes must survive: late words about lost leases, silent readers, children that cannot start."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
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
from jobq.worker.attempt import Assignment, Report
from jobq.worker.channel import Channel
from jobq.worker.child import _Line
from jobq.worker.children import (
    HARD_KILL_S,
    UP_WITHIN_S,
    ChildExecutor,
    ChildrenSpec,
    encode_report,
    encode_work,
)
from jobq.worker.executor import LaneExecutor
from jobq.worker.inbox import Inbox
from jobq.worker.lane import Lane
from jobq.worker.maintenance import Fleet, Heartbeat, Keeper, Settlement
from jobq.worker.memory import OomWatch
from jobq.worker.recycling import Recycling, pause_after_stillbirth
from jobq.worker.runner import Runner
from jobq.worker.slots import SlotState, SlotTable
from jobq.worker.spec import LaneSpec, ServedSpec


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
    executor._works = {work.job.id: work for work in works}
    executor._executors = type("E", (), {"cancel": staticmethod(lambda work: inbox.cancel([work.job.id]))})()
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
    lane = Lane(
        LaneSpec("q", (ServedSpec("q", 1, "e"),), "w", 1_000), "lane-1", table, control, killed="timeout"
    )
    slot = table.take("a", "e.1")
    table.start(slot, 0.0, 1.0)
    lane.culprits = tuple(table.read())
    table.finish(slot)
    (will,) = lane.last_will(-9)
    assert (list(will.outcomes), will.timed_out) == ([], [("a", "e.1")])


class Hooks:
    def __init__(self) -> None:
        self.begun: list[str] = []
        self.back: list[Assignment] = []

    def started(self, work: Assignment) -> bool:
        work.started_at = time.monotonic()
        self.begun.append(work.job.id)
        return True

    def postponed(self, work: Assignment, deadline: float) -> None: ...

    def finished(self, report: Report) -> None: ...


class Spawner:
    """Keeps the child's end of each line that it is asked to make a child for."""

    def __init__(self) -> None:
        self.lines: list[Channel] = []
        self.killed: queue.SimpleQueue[int] = queue.SimpleQueue()

    def send(self, op: str, *, fds: tuple[int, ...] = (), **body: Any) -> None:
        if op == "spawn":
            self.lines.append(Channel(socket.socket(fileno=os.dup(fds[0]))))
        elif op == "kill":
            self.killed.put(body["pid"])


def children_of(spawner: Spawner, hooks: Hooks, limit: int = 1, **recycling: Any) -> ChildExecutor:
    line: Any = spawner
    spec = ChildrenSpec(
        limit=limit, name="q", queues=("q",), worker="w", eager=True, recycling=Recycling(**recycling)
    )
    return ChildExecutor(spec, [], hooks, line, hooks.back.extend)


def test_a_child_gets_no_job_before_it_is_up() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks)
    children.submit([Assignment(0, claimed("a"), 0.0, 0)])
    assert hooks.begun == []
    spawner.lines[0].send("hello", pid=0)
    children.read("c0")
    assert hooks.begun == ["a"]


def test_a_child_that_does_not_come_up_is_killed() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks)
    children.submit([Assignment(0, claimed("a"), 0.0, 0)])
    now = time.monotonic()
    children.tick(now + UP_WITHIN_S + 1)  # its number is not known yet
    children.spawned("c0", 4711)
    children.tick(now + UP_WITHIN_S - 1)
    assert spawner.killed.empty()
    for _ in range(2):
        children.tick(now + UP_WITHIN_S + 1)
    assert (spawner.killed.get_nowait(), spawner.killed.empty()) == (4711, True)
    children.exited("c0", -9)
    assert ([work.job.id for work in hooks.back], hooks.begun) == (["a"], [])


def test_children_that_die_at_birth_are_not_replaced_at_once() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks)
    children.submit([Assignment(0, claimed("a"), 0.0, 0)])
    children.exited("c0", 1)
    assert (len(spawner.lines), hooks.begun) == (1, [])  # and the job neither crashed nor ran
    assert [work.job.id for work in hooks.back] == ["a"]  # but goes to whoever can run it
    children.tick(1e12)
    assert len(spawner.lines) == 2


def test_a_child_that_does_not_listen_is_told_once() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks)
    spawner.lines[0].send("hello", pid=0)
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


def test_a_child_past_its_hard_timeout_is_killed_while_the_loop_waits_for_redis() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks)
    spawner.lines[0].send("hello", pid=4711)
    children.read("c0")
    work = Assignment(0, claimed("a", timeout=1), 0.0, 0)
    children.submit([work])
    with children._at_work:
        work.started_at = time.monotonic() - 1 - HARD_KILL_S - 0.1
    assert spawner.killed.get(timeout=5) == 4711  # nobody calls the children meanwhile
    children.close()


def test_a_child_that_has_just_got_its_next_job_is_not_killed_for_the_last_one() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks)
    spawner.lines[0].send("hello", pid=4711)
    children.read("c0")
    children.submit([Assignment(0, claimed("a", timeout=1), 0.0, 0)])
    children._kill_overdue(time.monotonic() + HARD_KILL_S)
    assert spawner.killed.empty()
    children._kill_overdue(time.monotonic() + 1 + HARD_KILL_S + 0.1)
    children._kill_overdue(time.monotonic() + 1 + HARD_KILL_S + 0.2)
    assert [spawner.killed.get(), spawner.killed.empty()] == [4711, True]
    children.close()


def run_one(children: ChildExecutor, spawner: Spawner, ref: str, line: int, job_id: str) -> None:
    children.submit([Assignment(0, claimed(job_id), 0.0, 0)])
    done(children, spawner, ref, line, job_id)


def done(children: ChildExecutor, spawner: Spawner, ref: str, line: int, job_id: str) -> None:
    outcome = Outcome(job_id=job_id, token="e.1", kind="succeeded")
    report = encode_report(Report(Assignment(0, claimed(job_id), 0.0, 0), outcome, ""), 1_000)
    spawner.lines[line].send("done", **report)
    children.read(ref)


def test_a_tired_child_serves_until_its_successor_is_up() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks, jobs=2)
    spawner.lines[0].send("hello", pid=1)
    children.read("c0")
    run_one(children, spawner, "c0", 0, "a")
    assert len(spawner.lines) == 1
    run_one(children, spawner, "c0", 0, "b")
    assert len(spawner.lines) == 2  # the successor starts
    run_one(children, spawner, "c0", 0, "c")
    assert len(spawner.lines) == 2
    children.submit([Assignment(0, claimed("d"), 0.0, 0)])
    assert hooks.begun == ["a", "b", "c", "d"]  # nobody has waited
    spawner.lines[1].send("hello", pid=2)
    children.read("c1")
    children.submit([Assignment(0, claimed("e"), 0.0, 0)])
    assert [message.op for message in spawner.lines[1].receive()] == ["run"]
    done(children, spawner, "c0", 0, "d")
    children.exited("c0", 0)
    assert len(spawner.lines) == 2  # one slot, one child
    children.close()


def test_a_successor_that_cannot_start_costs_nothing() -> None:
    spawner, hooks = Spawner(), Hooks()
    children = children_of(spawner, hooks, jobs=1)
    spawner.lines[0].send("hello", pid=1)
    children.read("c0")
    run_one(children, spawner, "c0", 0, "a")
    children.exited("c1", 1)
    assert (children.barren, hooks.back) == (False, [])
    run_one(children, spawner, "c0", 0, "b")
    assert hooks.begun == ["a", "b"]
    children.close()


def test_children_made_on_demand_are_tried_again_though_their_jobs_went_elsewhere() -> None:
    spawner, hooks = Spawner(), Hooks()
    spec = ChildrenSpec(limit=2, name="q", queues=("q",), worker="w", recycling=Recycling())
    children = ChildExecutor(spec, [], hooks, spawner, hooks.back.extend)
    children.submit([Assignment(0, claimed("a"), 0.0, 0)])
    children.exited("c0", 71)
    assert ([work.job.id for work in hooks.back], children.barren) == (["a"], True)
    children.tick(1e12)
    spawner.lines[1].send("hello", pid=1)
    children.read("c1")
    assert not children.barren


def test_each_kill_for_memory_explains_one_death() -> None:
    kills = [3]
    watch = OomWatch(lambda: kills[0])
    assert not watch.explains(-9, 0.0)  # those before it are none of ours
    kills[0] = 4
    assert not watch.explains(-15, 1.0)
    assert watch.explains(-9, 1.0)
    assert not watch.explains(-9, 1.1)  # the same kill again
    kills[0] = 5
    watch.look(2.0)
    assert not watch.explains(-9, 60.0)  # long ago, and nobody of ours died of it


def test_a_recycling_limit_is_a_limit_and_none_is_none() -> None:
    reached = {"jobs": 10, "age_s": 10.0, "growth_kb": 10}
    assert not Recycling().is_due(**reached)
    for name in reached:
        assert Recycling(**{name: 10}).is_due(**reached)
        assert not Recycling(**{name: 11}).is_due(**reached)


def test_what_cannot_start_is_tried_once_a_second_at_most_and_takes_a_sixth_of_a_core_at_most() -> None:
    assert pause_after_stillbirth(0.01, 1) == 1.0
    assert pause_after_stillbirth(0.01, 5) == 5.0  # five lanes, one try a second
    for cpu_s, peers in ((0.5, 1), (0.5, 5), (2.0, 5)):
        pause_s = pause_after_stillbirth(cpu_s, peers)
        assert cpu_s * peers / (cpu_s + pause_s) <= 1 / 5
    assert pause_after_stillbirth(100, 10) == 60.0
