"""Costs that grow: a million jobs waiting or due in one second, 200,000 dead, 5,000 recurring. jobq alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from benchmarks.bench import WARM_PACED, Bench, Row, Worker
from benchmarks.contenders import ALL, Contender
from benchmarks.targets import Target
from benchmarks.workloads import OTP_GAP_S, serving

WAITING, DELAYED, DEAD, RECURRING = 1_000_000, 1_000_000, 200_000, 5_000
DRAIN_S = 40.0
"""How long a worker of all lanes then works on the million."""

_PROMOTE_S = 240.0
_EVERY_S = 60
_ADDED_PER_S = 200  # how fast schedules are added at the least
_LANES = ("high", "medium", "low", "batch")  # critical is what the one-time codes go through
_SLOWEST = 500.0  # µs from which Redis notes a command
_LEAD_S = 6.0
_FILL_PER_S = 9_000  # how fast delayed jobs are enqueued at the least, on a slow machine


def run(bench: Bench, *, divisor: int) -> dict[str, Row]:
    """Each part, with 1/divisor of its jobs; a part that breaks does not end the others."""
    found: dict[str, Row] = {}
    for name, (part, count) in _PARTS.items():
        since = time.time()
        bench.fresh("")
        bench.redis.config_set("slowlog-log-slower-than", int(_SLOWEST))
        bench.redis.config_set("slowlog-max-len", 1_000)
        bench.redis.slowlog_reset()
        before = bench.snap()
        try:
            row = part(bench, ALL["jobq"], count // divisor, DRAIN_S if divisor == 1 else 5.0)
        except Exception as error:  # as for a contender that breaks
            row = {"error": f"{type(error).__name__}: {error}"}
        row["slowest_ms"], row["slowest"] = _slowest(bench)
        after = bench.snap()
        row["took_s"] = round(time.time() - since, 1)
        row["cores"] = (after["busy"] - before["busy"]) / (after["t"] - before["t"])
        found[name] = row
        print(f"{name:8} {row['took_s']:6.1f} s  {row.get('error', 'measured')}", flush=True)
        if "error" in row:
            print(bench.last_words(), flush=True)
    return found


def _waiting(bench: Bench, c: Contender, n: int, drain_s: float) -> Row:
    """Fill four lanes while one-time codes go through the fifth; then let a worker of all five work on it."""
    empty = bench.memory()
    with bench.worker(serving(c, "critical"), (1, 1)) as worker, _Codes(bench, c, worker, first=0) as codes:
        filled = bench.step(c, "fill", n=n, lanes=_LANES)
        waits = codes.waits()
    row: Row = {
        "jobs": n,
        "per_s": n / filled["seconds"],
        "bytes_per_job": (bench.memory() - empty) / n,
        "producer_grown_mb": filled["grown_mb"],
        "fill_p50_ms": waits["call_p50_ms"],
        "fill_p99_ms": waits["call_p99_ms"],
        "fill_missing": waits["missing"],
    }
    looks = bench.step(c, "stats", times=20)
    row |= {"stats_ms": sorted(looks)[len(looks) // 2], "stats_worst_ms": max(looks)}
    with bench.worker(serving(c, "all"), (1, 1)) as worker, _Codes(bench, c, worker, first=400_000) as codes:
        time.sleep(drain_s / 4)  # every lane has run jobs, and every executor has the size it keeps
        pss_mb, left, since = worker.pss_mb, _waiting_now(bench), time.time()
        time.sleep(drain_s * 3 / 4)
        still, wall = _waiting_now(bench), time.time() - since
        row |= {"drained_per_s": (left - still) / wall, "drained": n - still, "pss_mb": worker.pss_mb}
        row["grown_pct"] = 100 * (row["pss_mb"] / pss_mb - 1)
        waits = codes.waits()
    row |= {"drain_p50_ms": waits["call_p50_ms"], "drain_p99_ms": waits["call_p99_ms"]}
    ended = bench.memory() - empty - row["bytes_per_job"] * still
    row["bytes_per_ended_job"] = ended / max(1, row["drained"])
    return row


def _delayed(bench: Bench, c: Contender, n: int, _: float) -> Row:
    """Jobs of four lanes, all due within one second, promoted by a worker of all lanes that runs them, too."""
    empty = bench.memory()
    filled = bench.step(c, "fill", n=n, lanes=_LANES, due_in_s=n / _FILL_PER_S + 2 * _LEAD_S)
    spare_s = filled["due"] - time.time()
    if spare_s < _LEAD_S:
        raise RuntimeError("the machine was too slow to enqueue all before the first was due")
    row: Row = {
        "jobs": n,
        "bytes_per_job": (bench.memory() - empty) / n,
        "enqueue_per_s": n / filled["seconds"],
    }
    time.sleep(spare_s - _LEAD_S)
    with bench.worker(serving(c, "all"), (1, 1)) as worker, _Codes(bench, c, worker, first=0) as codes:
        time.sleep(max(0.0, filled["due"] - time.time()))
        while (left := _delayed_now(bench)) and time.time() - filled["due"] < _PROMOTE_S:
            time.sleep(0.05)
        took = time.time() - filled["due"]
        waits = codes.waits()
    row |= {"promoted": n - left, "promote_s": took, "promoted_per_s": (n - left) / took}
    return row | {"p50_ms": waits["call_p50_ms"], "p99_ms": waits["call_p99_ms"], "missing": waits["missing"]}


def _dead(bench: Bench, c: Contender, n: int, _: float) -> Row:
    """Dead letters: the page an operator opens, what they are grouped by, all of them replayed."""
    empty = bench.memory()
    bench.step(c, "bury", n=n)
    row: Row = {"jobs": n, "bytes_per_job": (bench.memory() - empty) / n}
    pages = bench.step(c, "first_page", times=20)
    groups = bench.step(c, "groups")
    replayed = bench.step(c, "replay")
    row |= {"page_ms": sorted(pages)[len(pages) // 2], "page_worst_ms": max(pages)}
    row |= {"groups": groups["groups"], "groups_ms": groups["ms"]}
    return row | {
        "replayed": replayed["replayed"],
        "replayed_per_s": replayed["replayed"] / replayed["seconds"],
    }


def _recurring(bench: Bench, c: Contender, n: int, _: float) -> Row:
    """Schedules of one slot a minute, all at the same second; a worker of all lanes fires them and runs their jobs."""
    empty, due = bench.memory(), (time.time() + n / _ADDED_PER_S + _LEAD_S) // _EVERY_S * _EVERY_S + _EVERY_S
    planned = bench.step(c, "plan", n=n, every_s=_EVERY_S, due=due)
    row: Row = {
        "schedules": n,
        "bytes_per_schedule": (bench.memory() - empty) / n,
        "added_per_s": n / planned["seconds"],
        "list_ms": planned["list_ms"],
    }
    with bench.worker(serving(c, "all"), (1, 1)) as worker, _Codes(bench, c, worker, first=0) as codes:
        if time.time() > due:
            raise RuntimeError("the machine was too slow to add all before the first was due")
        time.sleep(due - time.time())
        while (fired := _fired_now(bench)) < n and time.time() - due < _EVERY_S - 1:
            time.sleep(0.1)
        took = time.time() - due
        waits = codes.waits()
    row |= {"fired": fired, "fire_s": took, "fired_per_s": fired / took}
    return row | {"p50_ms": waits["call_p50_ms"], "p99_ms": waits["call_p99_ms"], "missing": waits["missing"]}


_PARTS: Mapping[str, tuple[Callable[[Bench, Contender, int, float], Row], int]] = {
    "waiting": (_waiting, WAITING),
    "delayed": (_delayed, DELAYED),
    "dead": (_dead, DEAD),
    "recurring": (_recurring, RECURRING),
}


def targets(found: Mapping[str, Row]) -> list[Target]:
    """What these costs must not exceed, and what was reached."""
    wanted: tuple[tuple[str, str, str, str, float], ...] = (
        ("waiting", "per_s", "1 M waiting: `enqueue_many`, jobs/s", ">=", 20_000),
        ("waiting", "fill_p99_ms", "1 M waiting: wait p99 in `critical` meanwhile, ms", "<=", 1_000),
        (
            "waiting",
            "drain_p99_ms",
            "1 M waiting: wait p99 in `critical` while all lanes work, ms",
            "<=",
            1_000,
        ),
        ("waiting", "bytes_per_job", "1 M waiting: bytes per job", "<=", 950),
        ("waiting", "stats_worst_ms", "1 M waiting: stats, slowest of 20, ms", "<=", 100),
        ("waiting", "grown_pct", "1 M waiting: memory of the worker, % grown", "<=", 5),
        ("delayed", "promoted_per_s", "1 M due in one second: promotions/s", ">=", 5_000),
        ("delayed", "p99_ms", "1 M due in one second: wait p99 in `critical`, ms", "<=", 1_000),
        ("dead", "page_worst_ms", "200,000 dead: first page, slowest of 20, ms", "<=", 100),
        ("dead", "groups_ms", "200,000 dead: groups of all, ms", "<=", 2_000),
        ("dead", "replayed_per_s", "200,000 dead: retry-failed, jobs/s", ">=", 10_000),
        ("waiting", "slowest_ms", "1 M waiting: longest command of Redis, ms", "<=", 50),
        ("delayed", "slowest_ms", "1 M due in one second: longest command of Redis, ms", "<=", 50),
        ("dead", "slowest_ms", "200,000 dead: longest command of Redis, ms", "<=", 50),
        ("recurring", "fire_s", "5,000 recurring: all slots of one second fired within, s", "<=", 10),
        ("recurring", "p99_ms", "5,000 recurring: wait p99 in `critical` meanwhile, ms", "<=", 1_000),
        ("recurring", "slowest_ms", "5,000 recurring: longest command of Redis, ms", "<=", 50),
    )
    return [
        Target(what, sign, limit, found[part][key])
        for part, key, what, sign, limit in wanted
        if key in found.get(part, {})
    ]


class _Codes:
    """One-time codes enqueued at a steady pace in `critical` until their waits are asked for."""

    def __init__(self, bench: Bench, c: Contender, worker: Worker, *, first: int) -> None:
        self._bench, self._first = bench, first
        self._stop = bench.mark_file.with_name(f"{bench.mark_file.name}.stop{first}")
        size, since = bench.size(), time.time()
        command = (
            "paced",
            "--kind",
            "otp",
            "--first",
            str(first),
            "--gap",
            str(OTP_GAP_S),
            "--until",
            str(self._stop),
        )
        self._popen = bench.begin(c, *command)
        while bench.size() < size + WARM_PACED:
            worker.must_live(since, "the worker did not warm up")
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:  # something else broke
            self._popen.kill()
        self._popen.wait()

    def waits(self) -> Row:
        """How long they waited."""
        self._stop.touch()
        return self._bench.waits(self._bench.answer(self._popen), self._first)


def _waiting_now(bench: Bench) -> int:
    return sum(int(bench.redis.llen(f"rq:queue:{lane}")) for lane in _LANES)


def _delayed_now(bench: Bench) -> int:
    return sum(int(bench.redis.zcard(f"rq:scheduled:{lane}")) for lane in _LANES)


def _fired_now(bench: Bench) -> int:
    """Slots fired so far, as the schedules themselves count them."""
    pipe = bench.redis.pipeline(transaction=False)
    for key in bench.redis.scan_iter("jobq:schedule:*", count=1_000):
        pipe.hget(key, "fired")
    return sum(int(value or 0) for value in pipe.execute())


def _slowest(bench: Bench) -> tuple[float, str]:
    """The longest command that Redis noted, in ms, and which it was."""
    noted: Any = bench.redis.slowlog_get(1_000)
    # Ours, that empty the server and read its log, are no part of it.
    noted = [each for each in noted if each["command"].split()[:1] not in ([b"FLUSHALL"], [b"SLOWLOG"])]
    if not noted:
        return _SLOWEST / 1000, "none noted"
    worst = max(noted, key=lambda each: int(each["duration"]))
    words = b" ".join(worst["command"].split()[:4]).decode("utf-8", "replace")
    return int(worst["duration"]) / 1000, words[:80]
