"""Limits with real workers: what starts when, by the handlers' own clocks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import jobq
from jobq.job import JobState
from jobq.steps import Batch
from tests.process import limits_app as app
from tests.process.conftest import WorkerFactory
from tests.support.processes import until
from tests.support.workers import Entry, Ledger

pytestmark = pytest.mark.process
APP = "tests.process.limits_app"


def most_in_a_window(entries: list[Entry], seconds: float) -> int:
    times = sorted(entry.at for entry in entries)
    return max(sum(at <= other < at + seconds for other in times) for at in times)


@pytest.mark.covers("L-01", "L-02", "L-03")
def test_a_tasks_rate_holds_over_all_workers(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    for _ in range(2):
        worker(app=APP)
    app.limited.options(client=client).enqueue_many([{"key": str(n)} for n in range(15)])
    for n in range(5):
        app.plain.options(client=client).enqueue(key=f"plain{n}")
    until(lambda: len(ledger.entries("ran")) == 20)
    ran = ledger.entries("ran")
    counted = [entry for entry in ran if not entry.key.startswith("plain")]
    assert most_in_a_window(counted, 1.0) <= 5
    assert max(e.at for e in ran if e.key.startswith("plain")) < sorted(e.at for e in counted)[5], (
        "nobody else waits"
    )
    assert max(e.at for e in counted) - counted[0].at < 4, "three windows, and not more"


def test_a_queues_rate_from_the_environment(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    for _ in range(2):
        worker(app=APP, JOBQ_QUEUES__HIGH__RATE="5/s")
    app.plain.options(client=client).enqueue_many([{"key": str(n)} for n in range(12)])
    until(lambda: len(ledger.entries("ran")) == 12)
    assert most_in_a_window(ledger.entries("ran"), 1.0) <= 5
    # Five are claimed at once, and start in threads of their own.
    assert {entry.key for entry in ledger.entries("ran")[:5]} == {"0", "1", "2", "3", "4"}


@pytest.mark.covers("L-04", "Q-17")
def test_a_queue_is_limited_and_freed_while_it_runs(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    worker(app=APP)
    info = client.queues.limit("high", rate="1/h", concurrency=3)
    assert (str(info.limits.rate), info.limits.concurrency, info.limits_set) == ("1/h", 3, True)
    app.plain.options(client=client).enqueue_many([{"key": str(n)} for n in range(3)])
    until(lambda: len(ledger.entries("ran")) == 1)
    info = client.queues.limit("high", rate=None)
    assert (info.limits.rate, info.limits.concurrency) == (None, 3)
    until(lambda: len(ledger.entries("ran")) == 3)
    info = client.queues.reset_limit("high")
    assert (info.limits.concurrency, info.limits_set) == (None, False)


def test_a_key_runs_once_at_a_time_in_order_and_without_a_pause(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    for _ in range(2):
        worker(app=APP)
    app.alone.options(client=client).enqueue_many(
        [{"account": account, "place": place} for place in range(10) for account in "ab"]
    )
    until(lambda: len(ledger.entries("end")) == 20)
    for account in "ab":
        own = [e for e in ledger.entries("start") + ledger.entries("end") if e.key.startswith(account)]
        own.sort(key=lambda entry: entry.at)
        assert [entry.word for entry in own] == ["start", "end"] * 10, "never two at once"
        places = [entry.key.partition(":")[2] for entry in own if entry.word == "start"]
        assert places == [str(n) for n in range(10)]
        # The next is let in with the settle of the one before, not by a pass of the maintenance.
        gaps = sorted(own[n + 1].at - own[n].at for n in range(1, 19, 2))
        assert gaps[len(gaps) // 2] < 0.15


def test_a_task_that_is_told_to_slow_down(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    worker(app=APP)
    first = app.refused.options(client=client).enqueue(key="first", gate=str(gate))
    assert first.wait(timeout=10).state is JobState.SUCCEEDED
    one, two = ledger.entries("ran")
    assert two.at - one.at >= 0.5
    assert first.refresh().attempt == 1, "it spent no attempt"


def test_a_task_without_a_limit_that_is_told_to_slow_down_backs_off_its_queue(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    worker(app=APP)
    first = app.told.options(client=client).enqueue(key="first", gate=str(gate))
    until(lambda: client.queues.get("high").backed_off_by == first.id)
    app.told.options(client=client).enqueue_many([{"key": f"{n}"} for n in range(5)])
    until(lambda: len(ledger.entries("ran")) == 7)
    one, *others = ledger.entries("ran")
    assert min(entry.at for entry in others) - one.at >= 1
    assert first.refresh().attempt == 1, "it spent no attempt"
    gate.touch()
    app.told.options(client=client).enqueue(key="again", gate=str(gate))
    until(lambda: client.queues.get("high").backed_off_until)
    started = time.monotonic()
    assert client.queues.resume("high").backed_off_until is None
    until(lambda: len(ledger.entries("ran")) == 9)
    assert time.monotonic() - started < 1, "the operator did not wait for its end"


def most_at_once(ledger: Ledger) -> int:
    steps = sorted([(e.at, 1) for e in ledger.entries("start")] + [(e.at, -1) for e in ledger.entries("end")])
    running, most = 0, 0
    for _, step in steps:
        running += step
        most = max(most, running)
    return most


@pytest.mark.covers("L-04")
def test_a_limit_that_is_set_while_jobs_wait_holds_on_all_workers_until_it_is_cleared(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    client.queues.pause("high")
    app.spell.options(client=client).enqueue_many([{"key": str(n)} for n in range(100)])
    assert client.limits.set("t.spell", concurrency=3, reason="bank is slow").concurrency == 3
    for _ in range(2):
        worker(app=APP)
    client.queues.resume("high")
    until(lambda: len(ledger.entries("end")) >= 30)
    assert most_at_once(ledger) == 3
    client.limits.clear("t.spell")
    cleared = time.time()
    until(lambda: len(ledger.entries("end")) == 100)
    after = sorted(e.at for e in ledger.entries("start") if e.at > cleared)
    assert after[10] - cleared < 1.5, "at once, and many at a time"


def test_a_limit_counts_what_runs_when_it_is_set(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    worker(app=APP)
    spell = app.spell.options(client=client)
    first = spell.enqueue_many([{"key": f"first{n}", "seconds": 1.5} for n in range(3)])
    until(lambda: len(ledger.entries("start")) == 3)
    client.limits.set("t.spell", concurrency=2)
    later = spell.enqueue(key="later")
    for job in first:
        assert job.wait(timeout=10).state is JobState.SUCCEEDED
    assert later.wait(timeout=10).state is JobState.SUCCEEDED
    ends = sorted(e.at for e in ledger.entries("end") if e.key.startswith("first"))
    (start,) = [e.at for e in ledger.entries("start") if e.key == "later"]
    assert start > ends[1], "when two of three had ended"


def test_what_a_crash_leaves_behind_under_a_limit_that_was_set_is_free_again(
    worker: WorkerFactory, client: jobq.Client, ledger: Ledger
) -> None:
    client.limits.set("t.spell", concurrency=1)
    worker(app=APP)
    spell = app.spell.options(client=client, max_attempts=3)
    first = spell.enqueue(key="first", seconds=30.0)
    (entry,) = until(lambda: ledger.entries("start"))
    second = spell.enqueue(key="second")
    time.sleep(0.3)
    assert len(ledger.entries("start")) == 1
    client.cancel(first.id)
    os.kill(entry.pid, signal.SIGKILL)
    assert second.wait(timeout=30).state is JobState.SUCCEEDED
    assert client.run(Batch((("ZCARD", f"{client.keys.n}held:c:t.spell"),))) == [0]
