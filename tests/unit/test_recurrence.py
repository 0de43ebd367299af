"""Slots: cron against brute force, clocks that change, intervals, missed slots, jitter, hostile input."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq.cron import cron_slots, milliseconds, moment, parse_cron, zone
from jobq.errors import ConfigError
from jobq.recurrence import Due, Misfire, Timing
from tests.support.cron_reference import Expression, expressions, wall

ZONES = ("America/New_York", "Europe/Berlin", "Australia/Lord_Howe")  # the last one moves by half an hour
MIDNIGHT = ("Asia/Beirut", "America/Santiago")  # their clocks change at midnight
FIRST, LAST = date(2025, 1, 1), date(2027, 12, 31)
MINUTE = 60_000


def ms(text: str) -> int:
    return milliseconds(datetime.fromisoformat(text).replace(tzinfo=UTC))


def timing(**values: object) -> Timing:
    return Timing.checked(**{"name": "s", "misfire": Misfire(), **values})  # type: ignore[arg-type]


def shown(expression: str, where: str, after: str, count: int) -> list[str]:
    slots = cron_slots(parse_cron(expression, "s"), zone(where), ms(after))
    return [moment(slot).strftime("%m-%d %H:%M") for slot in islice(slots, count)]


# --- against brute force ---------------------------------------------------------------


def parses(text: str) -> bool:
    with suppress(ConfigError):
        parse_cron(text, "s")
        return True
    return False


def compare(expression: Expression, where: str, clock: dict, first: date, last: date) -> None:
    wanted = expression.slots(clock, first, last)
    if not wanted and not parses(expression.text):
        return
    local = ZoneInfo(where)
    begin = milliseconds(datetime(first.year, first.month, first.day, tzinfo=local)) - 1
    # Fold 1: where midnight comes twice, the day ends with the second one.
    end = milliseconds(datetime(last.year, last.month, last.day, 23, 59, tzinfo=local, fold=1))
    found = []
    for slot in cron_slots(parse_cron(expression.text, "s"), zone(where), begin):
        if slot > end:
            break
        found.append(slot // MINUTE)
    assert found == wanted, (expression.text, where)
    # Wherever one begins, the rest is the same: a worker that restarts goes on as it would have.
    for place in range(0, len(wanted), max(1, len(wanted) // 20)):
        (after,) = islice(
            cron_slots(parse_cron(expression.text, "s"), zone(where), wanted[place] * MINUTE - 1), 1
        )
        assert after == wanted[place] * MINUTE, (expression.text, where, place)


@pytest.mark.covers("C-02", "O-03")
@pytest.mark.parametrize("where", ZONES + MIDNIGHT)
def test_cron_is_what_the_wall_clock_says(where: str) -> None:
    """FI-27, reduced: random expressions over three years, each slot against every minute of the clock."""
    clock = wall(where, FIRST, LAST)
    for expression in islice(expressions(7), 12):
        compare(expression, where, clock, FIRST, LAST)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.covers("C-02")
@pytest.mark.parametrize("where", ZONES)
def test_cron_is_what_the_wall_clock_says_in_full(where: str) -> None:
    """FI-27: 5,000 expressions in 3 zones over 3 years, mismatches 0."""
    clock = wall(where, FIRST, LAST)
    for expression in islice(expressions(27), 5_000):
        compare(expression, where, clock, FIRST, LAST)


# --- clocks that change, by hand ---------------------------------------------------------------


@pytest.mark.covers("C-02")
def test_a_fixed_time_runs_once_on_the_nights_when_the_clock_changes() -> None:
    assert shown("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 2) == ["03-29 01:00", "03-30 00:30"]
    assert shown("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 2) == ["10-25 00:30", "10-26 01:30"]
    # From within the second pass of the hour that comes twice: that day's run is over.
    assert shown("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10", 1) == ["10-26 01:30"]
    assert shown("0 30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 2) == ["10-25 00:30", "10-26 01:30"]
    # Both times of the gap become its end, which is one moment.
    assert shown("0,30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 2) == ["03-29 01:00", "03-30 00:00"]


@pytest.mark.covers("C-02")
def test_what_repeats_by_the_clock_follows_the_clock() -> None:
    assert shown("*/30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 4) == [
        "10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30",
    ]  # fmt: skip
    assert shown("*/30 2 * * *", "Europe/Berlin", "2026-10-25T00:40", 2) == ["10-25 01:00", "10-25 01:30"]
    assert shown("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 1) == ["03-30 00:00"]
    assert shown("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:45", 2) == ["03-29 01:00", "03-29 01:30"]


def test_days_of_month_and_week_are_either_unless_one_is_a_star() -> None:
    assert shown("0 0 1,15 * 1", "UTC", "2026-11-20T00:00", 4) == [
        "11-23 00:00", "11-30 00:00", "12-01 00:00", "12-07 00:00",
    ]  # fmt: skip
    assert shown("0 0 */31 * MON", "UTC", "2026-11-20T00:00", 1) == ["02-01 00:00"]


# --- expressions ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("@daily", "0 0 * * *"),
        (" @Hourly ", "0 * * * *"),
        ("0 2 * * mon", "0 2 * * MON"),
        ("*/10 * * * * *", "*/10 * * * * *"),
        ("0 0 LW * *", "0 0 LW * *"),
        ("5-5/3,7-9/2 * * * MON-MON/2", "5,7-9/2 * * * MON"),
    ],
)
def test_an_expression_is_written_out(text: str, full: str) -> None:
    assert parse_cron(text, "s") == full


def test_h_spreads_by_name_and_never_changes() -> None:
    hashed = {parse_cron("H H * * *", f"job-{n}") for n in range(50)}
    assert len(hashed) > 40
    assert parse_cron("H 3 * * *", "reports.nightly") == "22 3 * * *"
    minutes = parse_cron("H/15 * * * *", "x").split()[0].split(",")
    assert [int(minute) - int(minutes[0]) for minute in minutes] == [0, 15, 30, 45]


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "60 * * * *", "0 0 30 2 *", "0 0 31 4,6 *", "@often", "1--100000000 * * * *", "H/90 * * * *",
     "0 0 * * " + "1," * 500 + "1", "x y z a b", None],
)  # fmt: skip
def test_nonsense_is_refused_at_once(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(ConfigError):
        parse_cron(text, "s")
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Europe/Berlin\0"])
def test_an_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no time zone"):
        timing(cron="0 0 * * *", tz=name)


@pytest.mark.parametrize(
    "values",
    [{}, {"cron": "@daily", "every_ms": 1000}, {"every_ms": 999}, {"every_ms": 1000, "jitter_ms": -1},
     {"every_ms": 1000, "start_ms": 5, "end_ms": 5}, {"every_ms": True}, {"every_ms": 10**15}],
)  # fmt: skip
def test_times_that_do_not_fit_together_are_refused(values: dict) -> None:
    with pytest.raises(ConfigError):
        timing(**values)


# --- intervals ---------------------------------------------------------------


@given(
    every=st.integers(1_000, 10**10),
    start=st.none() | st.integers(1, 2 * 10**12),
    after=st.integers(0, 3 * 10**12),
)
def test_an_interval_never_drifts(every: int, start: int | None, after: int) -> None:
    slots = list(islice(timing(every_ms=every, start_ms=start).slots(after), 3))
    assert all((slot - (start or 0)) % every == 0 for slot in slots)
    assert slots[0] > after
    assert slots[0] - every <= after or slots[0] == start
    assert [b - a for a, b in pairwise(slots)] == [every, every]


def test_start_is_a_slot_and_end_is_none() -> None:
    bounded = timing(every_ms=60_000, start_ms=ms("2026-01-01T00:00:30"), end_ms=ms("2026-01-01T00:02:30"))
    assert [moment(slot).strftime("%H:%M:%S") for slot in bounded.slots(0)] == ["00:00:30", "00:01:30"]
    assert bounded.after(ms("2026-01-01T00:01:30")) is None


# --- missed slots ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "runs"),
    [("skip", 0), ("one", 1), ("all", 9), (Misfire("all", max=4), 4), (Misfire("skip"), 0)],
)
@pytest.mark.parametrize(
    "times", [{"every_ms": 10 * MINUTE}, {"cron": "*/10 * * * *", "tz": "Europe/Berlin"}]
)
def test_after_90_minutes_without_a_worker(policy: object, runs: int, times: dict) -> None:
    """FI-28: skip 0, one 1, all the exact count."""
    misfire = policy if isinstance(policy, Misfire) else Misfire(policy)  # type: ignore[arg-type]
    first, now = ms("2026-11-24T10:00"), ms("2026-11-24T11:25")
    due = timing(**times, misfire=misfire).due(first, now)
    assert len(due.slots) == runs
    assert due.missed == 9 - runs
    assert due.slots == tuple(first + n * 10 * MINUTE for n in range(9))[9 - runs :]
    assert due.next == ms("2026-11-24T11:30")


def test_a_slot_fired_in_time_is_nobodys_misfire() -> None:
    for policy in ("skip", "one", "all"):
        found = timing(every_ms=MINUTE, misfire=Misfire(policy)).due(5 * MINUTE, 5 * MINUTE + 250)
        assert found == Due((5 * MINUTE,), 0, 6 * MINUTE)


def test_nothing_is_due_early_and_a_clock_that_went_back_changes_nothing() -> None:
    """FI-26: the next slot stays where it is."""
    hourly = timing(every_ms=60 * MINUTE)
    assert hourly.due(120 * MINUTE, 119 * MINUTE) == Due((), 0, 120 * MINUTE)
    assert hourly.due(120 * MINUTE, 60 * MINUTE) == Due((), 0, 120 * MINUTE)


def test_within_bounds_how_far_back_is_caught_up() -> None:
    misfire = Misfire("all", within=timedelta(minutes=30))
    due = timing(every_ms=10 * MINUTE, misfire=misfire).due(0, 95 * MINUTE)
    assert due == Due((70 * MINUTE, 80 * MINUTE, 90 * MINUTE), 7, 100 * MINUTE)


@pytest.mark.parametrize("times", [{"every_ms": 1_000}, {"cron": "* * * * * *"}, {"cron": "* * * * *"}])
def test_years_of_missed_slots_cost_little(times: dict) -> None:
    now = ms("2026-11-24T10:00")
    begun = time.process_time()
    due = timing(**times, misfire=Misfire("all", max=5)).due(ms("2020-01-01T00:00"), now)
    assert time.process_time() - begun < 2
    step = MINUTE if times.get("cron") == "* * * * *" else 1000
    assert due.slots == tuple(now - n * step for n in (4, 3, 2, 1, 0))
    assert due.next == now + step


def test_an_end_ends_it() -> None:
    ending = timing(every_ms=MINUTE, end_ms=3 * MINUTE)
    assert ending.due(2 * MINUTE, 10 * MINUTE) == Due((2 * MINUTE,), 0, None)


# --- jitter ---------------------------------------------------------------


@given(slot=st.integers(0, 10**13), jitter=st.integers(1, 86_400_000))
def test_jitter_is_bounded_and_the_same_everywhere(slot: int, jitter: int) -> None:
    spread = timing(every_ms=1_000, jitter_ms=jitter)
    assert slot <= spread.fires_at(slot) <= slot + jitter
    assert spread.fires_at(slot) == timing(every_ms=1_000, jitter_ms=jitter).fires_at(slot)


def test_jitter_longer_than_the_interval_loses_no_slot() -> None:
    spread = timing(every_ms=1_000, jitter_ms=20_000, misfire=Misfire("all", max=1000))
    slot, fired = 1_000, []
    for now in range(0, 120_000, 250):
        due = spread.due(slot, now)
        assert all(spread.fires_at(each) <= now for each in due.slots)
        fired += due.slots
        assert due.next is not None
        slot = due.next
    assert fired == list(range(1_000, fired[-1] + 1, 1_000))
    assert fired[-1] > 90_000


# --- words ---------------------------------------------------------------


def test_words() -> None:
    assert timing(cron="0 2 * * *", tz="Europe/Berlin").words() == "At 02:00 every day, Europe/Berlin"
    assert timing(every_ms=5 * MINUTE, jitter_ms=30_000).words() == "Every 5 minutes, up to 30 seconds later"
    assert timing(every_ms=3_600_000).words() == "Every hour"
    for expression in islice(expressions(3), 200):
        with suppress(ConfigError):  # no day matches it
            assert timing(cron=expression.text).words().endswith(", UTC")


@given(st.data())
def test_what_is_stored_comes_back(data: st.DataObject) -> None:
    made = timing(
        every_ms=data.draw(st.integers(1_000, 10**9)),
        jitter_ms=data.draw(st.integers(0, 10**6)),
        start_ms=data.draw(st.none() | st.integers(1, 10**12)),
        misfire=Misfire("all", within=timedelta(seconds=data.draw(st.integers(1, 86_400))), max=7),
    )
    assert Timing.from_dict("s", made.to_dict()) == made


@pytest.mark.parametrize(
    "kept",
    [{}, {"misfire": None}, {"misfire": {"policy": "one", "within_ms": "x", "max": 1}, "every_ms": 1000},
     {"misfire": {"policy": "one", "within_ms": 1000, "max": 1}, "every_ms": "1000"},
     {"misfire": {"policy": "one", "within_ms": 1000, "max": 1}, "cron": 7},
     {"misfire": {"policy": "one", "within_ms": 10**30, "max": 1}, "every_ms": 1000}],
)  # fmt: skip
def test_what_others_wrote_is_refused(kept: dict) -> None:
    with pytest.raises(ConfigError):
        Timing.from_dict("s", kept)
