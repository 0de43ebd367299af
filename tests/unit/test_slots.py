"""The slot table: what a supervisor can still read after its executor is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from jobq.steps import Claimed
from jobq.worker.alive import is_stopped
from jobq.worker.attempt import Assignment
from jobq.worker.channel import Channel
from jobq.worker.inbox import Inbox
from jobq.worker.lane import HUNG, HUNG_S, Lane
from jobq.worker.lanes import Lanes
from jobq.worker.slots import SlotState, SlotTable
from jobq.worker.spec import LaneSpec, ServedSpec
from tests.support.processes import until


@pytest.fixture
def table() -> SlotTable:
    made = SlotTable.create(3)
    yield made
    made.close()


def test_a_record_tells_waiting_running_and_finished_apart(table: SlotTable) -> None:
    indexes = [table.take(f"job-{n}", "exec.1") for n in range(3)]
    table.start(indexes[1], now=10.0, deadline=20.0)
    table.start(indexes[2], now=10.0, deadline=20.0)
    table.finish(indexes[2])

    found = {slot.job_id: slot for slot in table.read()}

    assert [found[f"job-{n}"].state for n in range(3)] == [
        SlotState.CLAIMED,
        SlotState.STARTED,
        SlotState.FINISHED,
    ]
    assert (found["job-1"].started, found["job-1"].deadline) == (10.0, 20.0)
    assert found["job-0"].member == "job-0:exec.1"


def test_a_released_record_is_free_again(table: SlotTable) -> None:
    for n in range(10):
        table.release(table.take(f"job-{n}", "exec.1"))
    assert table.read() == []


def test_more_jobs_than_records_is_an_error_not_an_overwrite(table: SlotTable) -> None:
    for n in range(3):
        table.take(f"job-{n}", "exec.1")
    with pytest.raises(IndexError):
        table.take("one-more", "exec.1")
    assert {slot.job_id for slot in table.read()} == {"job-0", "job-1", "job-2"}


def test_long_ids_and_tokens_survive_the_round_trip(table: SlotTable) -> None:
    table.take("i" * 180, "t" * 44, isolated=True)
    (slot,) = table.read()
    assert (slot.job_id, slot.token, slot.isolated) == ("i" * 180, "t" * 44, True)


def test_it_survives_sigkill_of_the_writer(table: SlotTable) -> None:
    ready_r, ready_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        theirs = SlotTable(table.fd, table.capacity)
        theirs.start(theirs.take("job-1", "exec.7"), now=1.0, deadline=2.0)
        os.write(ready_w, b"x")
        signal.pause()
    os.read(ready_r, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ready_r)
    os.close(ready_w)

    (slot,) = table.read()

    assert (slot.state, slot.member) == (SlotState.STARTED, "job-1:exec.7")


def test_pulses_go_both_ways(table: SlotTable) -> None:
    table.set_pulse(5.0)
    table.beat(6.0)
    assert (table.pulse, table.last_beat) == (5.0, 6.0)


@pytest.fixture
def lane() -> Iterator[Lane]:
    channel, theirs = Channel.pair()
    spec = LaneSpec("high", (ServedSpec("high", 2, "e"),), "w", 12_000)
    made = Lane(spec, "lane-1", SlotTable.create(4), channel, started_at=0.0)
    yield made
    made.close()
    theirs.close()


def test_an_executor_whose_loop_stands_still_is_found_and_its_runs_count_as_lost(lane: Lane) -> None:
    lane.table.start(lane.table.take("ran", "e.1"), now=1.0, deadline=1e9)
    lane.table.take("waited", "e.1")
    lane.table.beat(100.0)
    lane.table.tick(100.0 + HUNG_S)  # other code runs in it: no job keeps the interpreter's lock

    assert not lane.hung(100.0 + HUNG_S)
    assert lane.hung(100.1 + HUNG_S)
    assert not lane.hung(190.0, since=175.0)  # the supervisor itself stood still until then
    lane.table.beat(0.0)
    assert not lane.hung(HUNG_S + 1), "it starts"
    assert lane.hung(61.0)

    lane.killed = HUNG
    outcomes = {outcome.job_id: outcome for will in lane.last_will(-9) for outcome in will.outcomes}
    assert (outcomes["ran"].kind, outcomes["ran"].crash) == ("interrupted", False)
    assert outcomes["waited"].kind == "hand_back"


def test_a_job_that_keeps_the_interpreters_lock_is_left_to_its_timeout(lane: Lane) -> None:
    lane.table.beat(100.0)
    lane.table.tick(100.0)
    held = lane.table.take("held", "e.1")
    assert lane.hung(190.0), "what has not started keeps nothing"
    lane.table.start(held, now=99.0, deadline=200.0)
    assert not lane.hung(190.0)
    assert "held:e.1" in lane.members(190.0), "its lease is its own: it runs"
    assert not lane.hung(204.0)
    assert lane.overdue(206.0)[1], "from here on its hard timeout counts"
    assert lane.hung(206.0)


def test_a_queue_is_served_while_it_answers_or_nothing_is_wanted_of_it(lane: Lane) -> None:
    lanes, now = Lanes((), signs=False), time.monotonic()
    lanes.add(lane)
    lane.table.beat(now)
    lane.table.set_ready(True)
    assert lanes.serving(4.0, 10.0) == set(), "it has not asked yet"
    lane.table.polled(now)
    assert lanes.serving(4.0, 10.0) == {"high"}
    lane.table.polled(now - 11)  # its blocked read died without a word
    assert lanes.serving(4.0, 10.0) == set()


def test_an_isolated_job_keeps_no_lock_of_its_executor(lane: Lane) -> None:
    lane.table.beat(100.0)
    lane.table.start(lane.table.take("apart", "e.1", isolated=True), now=99.0, deadline=1e9)
    assert lane.hung(190.0)


def test_what_a_silent_executor_has_not_started_is_left_to_others(lane: Lane) -> None:
    lane.table.take("waits", "e.1")
    lane.table.start(lane.table.take("runs", "e.1"), now=99.0, deadline=1e9)
    lane.table.beat(100.0)
    assert set(lane.members(112.0)) == {"waits:e.1", "runs:e.1"}
    assert lane.members(112.1) == ["runs:e.1"]
    lane.table.beat(113.0)
    assert set(lane.members(113.1)) == {"waits:e.1", "runs:e.1"}


def test_a_stopped_executor_is_ended_after_a_lease(lane: Lane) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        lane.pid = process.pid
        lane.table.beat(100.0)
        lane.table.start(lane.table.take("runs", "e.1"), now=99.0, deadline=1e9)
        assert not lane.hung(113.0)
        process.send_signal(signal.SIGSTOP)
        until(lambda: is_stopped(process.pid))
        assert not lane.hung(101.0), "a busy machine"
        assert not lane.hung(113.0), "one look may strike a process that is about to be woken"
        assert not lane.hung(113.1)
        process.send_signal(signal.SIGCONT)
        until(lambda: not is_stopped(process.pid))
        assert not lane.hung(113.6)
        process.send_signal(signal.SIGSTOP)
        until(lambda: is_stopped(process.pid))
        assert not lane.hung(114.0)
        assert lane.hung(114.6) == "is stopped"
    finally:
        process.kill()
        process.wait()
    assert not is_stopped(process.pid)


# -- the other side: what an executor that stood still starts no more -------------------------------------------------


def assignment(table: SlotTable, job_id: str, claimed_at: float) -> Assignment:
    job = Claimed(job_id, "e.1", b"", 0, 0, 0, 0, b"", 60, "t.x", b"", None)
    return Assignment(table.take(job_id, "e.1"), job, claimed_at, 0)


def test_nothing_starts_while_its_lease_may_be_left_to_others(table: SlotTable) -> None:
    """The executor goes by the same sign as its supervisor, and earlier."""
    spec = LaneSpec("high", (ServedSpec("high", 2, "e"),), "w", 12_000)
    assert spec.doubt_s < spec.void_s == 12.0
    inbox, now = Inbox(table, doubt_s=spec.doubt_s), time.monotonic()
    table.beat(now)
    assert inbox.started(assignment(table, "fresh", now))
    table.beat(now - 9.5)
    work = assignment(table, "stale", now - 9.5)
    assert not inbox.started(work)
    assert {slot.job_id: slot.state for slot in table.read()}["stale"] is SlotState.CLAIMED, (
        "no deadline counts"
    )


def test_what_was_claimed_before_the_loop_stood_still_does_not_start_after_it(table: SlotTable) -> None:
    inbox, now = Inbox(table, doubt_s=9.0), time.monotonic()
    assert not inbox.stood_still(now), "it has not turned yet"
    table.beat(now - 8.0)
    assert not inbox.stood_still(now)
    table.beat(now - 10.0)
    work = assignment(table, "old", now - 10.0)
    assert inbox.stood_still(now)
    table.beat(now)
    assert not inbox.started(work)
    assert work.started_at == 0.0
    assert inbox.started(assignment(table, "new", time.monotonic()))


# -- several queues in one executor -----------------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[Lane]:
    channel, theirs = Channel.pair()
    spec = LaneSpec(
        "mail", tuple(ServedSpec(q, 2, f"e-{q}") for q in ("email", "sms", "push")), "w-mail", 12_000
    )
    made = Lane(spec, "lane-1", SlotTable.create(6, 3), channel, started_at=0.0)
    yield made
    made.close()
    theirs.close()


def run(lane: Lane, job_id: str, queue: int) -> None:
    lane.table.start(lane.table.take(job_id, f"e.{job_id}", queue=queue), now=1.0, deadline=1e9)


def test_each_queue_has_a_will_of_its_own_whether_or_not_it_had_jobs(group: Lane) -> None:
    """A claim may have lost its reply, and is found by the name that the executor had in that queue."""
    run(group, "ran", 0)
    group.table.take("waited", "e.2", queue=1)
    wills = group.last_will(1)
    assert [(will.queue, will.exec_id) for will in wills] == [
        ("email", "e-email"), ("sms", "e-sms"), ("push", "e-push"),
    ]  # fmt: skip
    assert [[(o.job_id, o.kind) for o in will.outcomes] for will in wills] == [
        [("ran", "interrupted")], [("waited", "hand_back")], [],
    ]  # fmt: skip


def test_who_ran_beside_a_job_of_another_queue_did_not_crash_alone(group: Lane) -> None:
    run(group, "a", 0)
    (alone,) = (outcome for will in group.last_will(1) for outcome in will.outcomes)
    assert (alone.crash, alone.alone) == (True, True)
    run(group, "b", 2)
    both = [outcome for will in group.last_will(1) for outcome in will.outcomes]
    assert [(outcome.job_id, outcome.crash, outcome.alone) for outcome in both] == [
        ("a", True, False), ("b", True, False),
    ]  # fmt: skip


def test_a_culprit_is_timed_out_in_its_own_queue(group: Lane) -> None:
    run(group, "slow", 2)
    group.culprits, group.killed = tuple(group.table.read()), "timeout"
    assert [will.timed_out for will in group.last_will(-9)] == [[], [], [("slow", "e.slow")]]


def test_what_it_serves_is_told_of_each_queue(group: Lane) -> None:
    lanes, now = Lanes((), signs=False), time.monotonic()
    lanes.add(group)
    group.pid = 1
    group.table.beat(now)
    group.table.set_ready(True)
    for place in (0, 1):
        group.table.polled(now, place)
    assert lanes.serving(4.0, 10.0) == {"email", "sms"}
    run(group, "a", 2)
    assert lanes.members({"email"}) == ["a:e.a"], "they are all in one Redis"
    assert lanes.members({"other"}) == []
    (shown,) = lanes.registrations({"push"})
    assert (shown["name"], shown["worker"], shown["queues"]) == ("w-mail", "w", ("email", "sms", "push"))
    assert (shown["slots"], shown["busy"], shown["parts"]) == (2, 1, [(2, 0), (2, 0), (2, 1)])


def test_a_spec_survives_the_way_to_the_executor(group: Lane) -> None:
    assert LaneSpec.from_dict(json.loads(json.dumps(group.spec.to_dict()))) == group.spec
    assert (group.spec.slots, group.spec.names) == (2, ("email", "sms", "push"))


def test_a_table_keeps_the_queue_of_each_job_beside_everything_else() -> None:
    table = SlotTable.create(3, 300)
    try:
        table.polled(7.0, 299)
        table.beat(1.0)
        index = table.take("i" * 180, "t" * 44, queue=299, isolated=True, suspect=True)
        table.start(index, 2.0, 3.0)
        (slot,) = table.read()
        assert (slot.queue, slot.job_id, slot.token) == (299, "i" * 180, "t" * 44)
        assert (slot.isolated, slot.suspect, slot.started, slot.deadline) == (True, True, 2.0, 3.0)
        assert (table.last_poll(299), table.last_poll(298), table.last_beat) == (7.0, 0.0, 1.0)
    finally:
        table.close()
