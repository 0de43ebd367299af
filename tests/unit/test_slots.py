"""The slot table: what a supervisor can still read after its executor is gone."""

from __future__ import annotations

import os
import signal

import pytest

from jobq.worker.channel import Channel
from jobq.worker.lane import HUNG, HUNG_S, Lane
from jobq.worker.slots import SlotState, SlotTable
from jobq.worker.spec import LaneSpec


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


def test_an_executor_whose_loop_stands_still_is_found_and_its_runs_count_as_lost() -> None:
    channel, theirs = Channel.pair()
    spec = LaneSpec(queue="high", slots=2, worker="w", lease_ms=1000, exec_id="e")
    lane = Lane(spec, "lane-1", SlotTable.create(2), channel, started_at=0.0)
    lane.table.start(lane.table.take("ran", "e.1"), now=1.0, deadline=1e9)
    lane.table.take("waited", "e.1")
    lane.table.beat(100.0)

    assert not lane.hung(100.0 + HUNG_S)
    assert lane.hung(100.1 + HUNG_S)
    assert not lane.hung(190.0, since=170.0)  # the supervisor itself stood still until then

    lane.killed = HUNG
    outcomes = {outcome.job_id: outcome for outcome in lane.last_will(-9).outcomes}
    assert (outcomes["ran"].kind, outcomes["ran"].crash) == ("interrupted", False)
    assert outcomes["waited"].kind == "hand_back"
    lane.close()
    theirs.close()
