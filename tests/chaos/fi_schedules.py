"""Recurring schedules: a clock that goes back, nights on which clocks change, and workers that were away.

Redis' clock cannot be set, so the first two hand every step the time: the scripts and the plans are those of a worker.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Literal

import redis

from jobq import schedule_calls
from jobq.client import Client
from jobq.cron import milliseconds, moment
from jobq.errors import ConfigError
from jobq.job import slot_job_id
from jobq.recurrence import Misfire
from jobq.schedule_firing import fire_plan
from jobq.schedule_records import record_of
from jobq.schedule_spec import StoredSchedule, make_schedule
from jobq.store import Store
from tests.chaos.app import work
from tests.chaos.field import Field
from tests.chaos.frame import Report, Setup, experiment
from tests.support.cron_reference import Expression, expressions, wall
from tests.support.processes import until
from tests.support.schedules import Firing

ZONES = ("America/New_York", "Europe/Berlin", "Australia/Lord_Howe")
NIGHTS = ((date(2026, 3, 7), date(2026, 3, 9)), (date(2026, 3, 28), date(2026, 3, 30)),
          (date(2026, 4, 4), date(2026, 4, 6)), (date(2026, 10, 3), date(2026, 10, 5)),
          (date(2026, 10, 24), date(2026, 10, 26)), (date(2026, 10, 31), date(2026, 11, 2)))  # fmt: skip
"""First and last day around every change of a clock in these zones."""

MINUTE = 60_000
HOUR = 60 * MINUTE
_EVERYTHING = Misfire("all", within=timedelta(days=2), max=1_000)


def add(client: Client, name: str, now_ms: int, **times: str | float) -> None:
    """Add a schedule at a moment of the experiment's own."""
    made = make_schedule(name, work, {"token": name, "seconds": 0.0}, misfire=_EVERYTHING, **times)  # type: ignore[arg-type]
    record = record_of(made, client.enqueuer, client.codec)
    client.run(
        schedule_calls.put(
            client.keys, record.stored, record.data, record.digest,
            next_slot=record.stored.timing.after(now_ms), now_ms=now_ms,
        )
    )  # fmt: skip


def pass_over(client: Client, store: Store, now_ms: int) -> int:
    """One worker deals with all that is due at a moment; how many jobs it made."""
    made = 0
    while due := store.run(schedule_calls.take(client.keys, 25, now_ms=now_ms)).due:
        for taken in due:
            stored = StoredSchedule.decode(taken.name, taken.spec)
            fired = store.run(fire_plan(client.keys, client.codec, taken, stored, now_ms))
            made += sum(word == "queued" for _, _, word in fired.slots) if fired else 0
    return made


def race(client: Client, url: str, now_ms: int, workers: int = 5) -> int:
    """Several workers at the same moment; how many jobs they made."""
    made: list[int] = []
    begin = threading.Barrier(workers)

    def one() -> None:
        with redis.Redis.from_url(url) as plain:
            begin.wait()
            made.append(pass_over(client, Store(plain), now_ms))

    threads = [threading.Thread(target=one) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(made)


def jobs_of(field: Field) -> list[str]:
    """Ids of all jobs that were made, doubles included."""
    return [value.decode() for value in field.raw.lrange("rq:queue:high", 0, -1)]


@experiment(
    "FI-26",
    fault="Redis' clock jumps back by an hour, again and again, while 5 workers fire",
    criterion="slots fired twice 0; slots left out 0",
    minutes=2,
)
def clock_back(setup: Setup) -> Report:
    """The clock of the scripts and the workers is the experiment's own."""
    report, rand = Report(), setup.rand("jumps")
    begin = milliseconds(datetime(2026, 11, 24, 9, 59, 30, tzinfo=UTC))
    now = furthest = begin
    names = [f"s{number}" for number in range(setup.times(40, short=8))]
    with Field(setup, queues=("high",)) as field:
        for name in names:
            add(field.client, name, now, every=60 * rand.randint(1, 9))
        jumps = 0
        for _ in range(setup.times(1_000, short=40)):
            now += rand.randint(1_000, 10 * MINUTE)
            if rand.random() < 0.05:  # rare enough for time to pass all in all
                now, jumps = now - HOUR, jumps + 1
            furthest = max(furthest, now)
            race(field.client, field.server.url, now)
        furthest += schedule_calls.TAKEN_MS
        race(field.client, field.server.url, furthest)
        made = jobs_of(field)
        wanted = {
            slot_job_id(info.name, slot)
            for info in field.client.schedules.list()
            if info.timing is not None
            for slot in range(info.timing.after(begin) or 0, furthest + 1, info.timing.every_ms)
        }
    report.figure("jumps", jumps)
    report.at_least("slots", len(wanted), 1)
    report.zero("fired twice", len(made) - len(set(made)))
    report.zero("left out", len(wanted - set(made)))
    report.zero("of no slot", len(set(made) - wanted))
    return report


def parses(text: str) -> bool:
    """Whether any day matches it at all."""
    try:
        make_schedule("s", work, {"token": "t", "seconds": 0.0}, cron=text)
    except ConfigError:
        return False
    return True


def chosen(setup: Setup, count: int) -> Sequence[Expression]:
    """Expressions at random that fire now and then."""
    rand = setup.rand("expressions")
    found = (each for each in expressions(rand.randrange(10**9)) if len(each.minutes) * len(each.hours) < 100)
    return list(islice((each for each in found if parses(each.text)), count))


@experiment(
    "FI-27",
    fault="clocks that change in 3 zones, generated cron expressions, 5 workers that race for each slot",
    criterion="slots that a brute-force reading of the clock does not have, or has more of, 0; fired twice 0",
    minutes=25,
)
def clocks_change(setup: Setup) -> Report:
    """Every job that is made around every change of a clock, against the reference; see also the unit tests."""
    report = Report()
    wrong = twice = slots = 0
    picked = chosen(setup, setup.times(5_000, short=60))
    for number, (first, last) in enumerate(NIGHTS[:2] if setup.short else NIGHTS):
        with Field(setup, folder=setup.part(str(number)), queues=("high",)) as field:
            wanted: set[str] = set()
            begin = milliseconds(datetime(first.year, first.month, first.day, tzinfo=UTC))
            end = milliseconds(datetime(last.year, last.month, last.day, tzinfo=UTC))
            for place, zone in enumerate(ZONES):
                clock = wall(zone, first - timedelta(days=3), last + timedelta(days=3))
                around = (first - timedelta(days=1), last + timedelta(days=1))
                for index, expression in enumerate(picked[place :: len(ZONES)]):
                    name = f"{place}-{index}"
                    add(field.client, name, begin, cron=expression.text, tz=zone)
                    found = (slot * MINUTE for slot in expression.slots(clock, *around))
                    wanted |= {slot_job_id(name, slot) for slot in found if begin < slot <= end}
            for now in range(begin, end + 1, 30 * MINUTE):
                race(field.client, field.server.url, now)
            race(field.client, field.server.url, end + schedule_calls.TAKEN_MS)
            made = jobs_of(field)
            slots += len(wanted)
            wrong += len(set(made) ^ wanted)
            twice += len(made) - len(set(made))
    report.figure("expressions", len(picked))
    report.figure("slots", slots)
    report.zero("mismatches", wrong)
    report.zero("fired twice", twice)
    return report


@experiment(
    "FI-28",
    fault="no worker for 90 minutes, then three at once",
    criterion="runs: skip 0, one 1, all = 9, the exact count",
    minutes=2,
)
def workers_away(setup: Setup) -> Report:
    """Schedules of every policy, 10 minutes apart, are put 90 minutes into the past; real workers then start."""
    report = Report()
    policies: tuple[Literal["skip", "one", "all"], ...] = ("skip", "one", "all")
    copies = setup.times(20, short=3)
    with Field(setup, queues=("high",)) as field:
        past = Firing(field.client, field.raw)
        start = moment(past.now_ms() - 85 * MINUTE)
        for policy in policies:
            for copy in range(copies):
                name = f"{policy}-{copy}"
                field.client.schedules.add(
                    name, work, {"token": name, "seconds": 0.0}, every="10m", start=start, misfire=policy,
                    priority="high",
                )  # fmt: skip
                past.let_pass(name, 90 * MINUTE)
        field.start(3)
        until(lambda: all(info.fired + info.missed == 9 for info in field.client.schedules.list()), 30)
        field.drain()
        ran = [entry.token for entry in field.runs() if entry.word == "start"]
        for policy, runs in zip(policies, (0, 1, 9), strict=True):
            counts = [ran.count(f"{policy}-{copy}") for copy in range(copies)]
            report.figure(f"runs, {policy}", max(counts))
            report.expect(f"{policy} runs {runs} times", counts == [runs] * copies, counts)
        field.audit(report)
    return report


@experiment(
    "FI-27b",
    fault="SIGKILL of workers and executors, five workers, schedules with a slot each second",
    criterion="each slot enqueued exactly once, its job runs; duplicates ≤ in flight at kills",
    gate=True,
    minutes=3,
)
def each_second_under_kills(setup: Setup) -> Report:
    """One at an interval, one by cron. All slots are known before: they have a start and an end."""
    report, rand = Report(), setup.rand("kills")
    seconds, workers = setup.times(120, short=8), 3 if setup.short else 5
    with Field(setup, queues=("high",)) as field:
        field.start(workers)
        first = milliseconds(moment(Firing(field.client, field.raw).now_ms()).replace(microsecond=0)) + 2_000
        slots = range(first, first + seconds * 1_000, 1_000)
        for name, times in {"interval": {"every": "1s"}, "cron": {"cron": "* * * * * *"}}.items():
            field.client.schedules.add(
                name, work, {"token": name, "seconds": 0.2}, **times, priority="high",  # type: ignore[arg-type]
                start=moment(first), end=moment(slots.stop), misfire=Misfire("all", within=timedelta(hours=1)),
            )  # fmt: skip
        wanted = {slot_job_id(name, slot) for name in ("interval", "cron") for slot in slots}
        until(lambda: Firing(field.client, field.raw).now_ms() > first)
        while Firing(field.client, field.raw).now_ms() < slots.stop:
            time.sleep(rand.uniform(0.1, 1.0))  # faults at random moments of a second
            worker = rand.choice(field.workers)
            executors = worker.executors()
            if executors and rand.random() < 0.4:
                field.kill(worker, rand.choice(executors))
            else:  # its supervisor is who fires
                field.kill(worker)
                field.spawn()
        until(lambda: sum(info.fired for info in field.client.schedules.list()) >= len(wanted), 30)
        report.expect("all jobs ended", field.drain())
        infos = field.client.schedules.list()
        runs = field.runs()
        field.audit(report)
    starts = Counter(entry.job_id for entry in runs if entry.word == "start")
    in_flight = sum(len(kill.jobs) for kill in field.kills)
    report.at_least("kills", len(field.kills), seconds // 2)
    report.figure("slots", len(wanted))
    report.zero("fired more or less than once", abs(sum(info.fired for info in infos) - len(wanted)))
    report.zero("missed", sum(info.missed for info in infos))
    report.zero("left out", len(wanted - starts.keys()))
    report.zero("of no slot", len(starts.keys() - wanted))
    report.zero("lost", len(wanted - {entry.job_id for entry in runs if entry.word == "end"}))
    report.figure("in flight at kills", in_flight)
    report.at_most("duplicates", starts.total() - len(starts), in_flight)
    return report
