"""Experiments on the server: killed, full, evicting, forgetting, without a disk, or not a primary."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import redis

import jobq
from jobq.errors import QueueFullError
from jobq.private_server import PrivateServer
from tests.chaos import app
from tests.chaos.field import QUEUES, Field
from tests.chaos.frame import Report, Setup, experiment
from tests.chaos.ledger import compare
from tests.chaos.outage import (
    ALWAYS,
    CONSUMING_WITHIN_S,
    EVERYSEC,
    NOT_READY_WITHIN_S,
    Probe,
    consuming_again,
    fill,
    in_flight,
    judge_flips,
    judge_workers,
    offer,
    producing,
    tell_apart,
)
from tests.support.processes import until

EVERYSEC_LOSS_S = 2.0
LANES = ("critical", "high", "medium", "low", "batch")
EVICTING = (
    "allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl",
)  # fmt: skip


# -- killed ---------------------------------------------------------------------------------------------------------


@experiment(
    "FI-10",
    fault="SIGKILL of Redis, appendfsync always, 2 s down",
    criterion="consuming again within 5 s; reruns at most what was in flight; every ambiguous enqueue told apart",
    gate=True,
    minutes=3,
)
def killed_always(setup: Setup) -> Report:
    report = Report()
    with Field(setup, config=ALWAYS) as field:
        field.start(2)
        _, busy = _kill_cycles(
            setup, field, report, setup.times(20, short=2), down_s=0.5 if setup.short else 2.0
        )
        report.expect("drained", field.drain(stop=False))
        judge_workers(field, report)
        field.drain(leases=0)
        field.judge(report)
        verdict = compare(field.produced.offers(), field.runs())
        report.expect("reruns at most what was in flight", verdict.duplicates <= busy, verdict.duplicates)
    return report


@experiment(
    "FI-11",
    fault="the host of Redis dies, appendfsync everysec: SIGKILL, and up to 2 s of the AOF gone; 2 s down",
    criterion="what is lost was acknowledged in the last 2 s before a kill; audit 0",
    minutes=3,
)
def killed_everysec(setup: Setup) -> Report:
    report = Report()
    with contextlib.ExitStack() as stack:
        field = Field(setup, config={**EVERYSEC, "auto-aof-rewrite-percentage": "0"})
        # In memory, where an fsync takes no time: while a slow one runs, Redis puts its writes off, and a part of what
        # it has acknowledged is not even in the file.
        memory = Path("/dev/shm")
        if memory.is_dir():
            field.server.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        aof = _Aof(stack.enter_context(field))
        stack.enter_context(aof)
        field.start(2)
        kills, _ = _kill_cycles(
            setup, field, report, setup.times(20), down_s=0.5 if setup.short else 2.0, before_start=aof.forget
        )
        report.expect("drained", field.drain(stop=False))
        judge_workers(field, report, rolled_back=True)
        field.drain(leases=0)
        field.judge(report, may_lose=True)
        lost = set(compare(field.produced.offers(), field.runs()).lost)
        ages = [
            min((kill - offer.at for kill in kills if kill >= offer.at), default=float("inf"))
            for offer in field.produced.offers()
            if offer.token in lost
        ]
        report.at_most("oldest loss before a kill, s", max(ages, default=0.0), EVERYSEC_LOSS_S)
        report.figure("bytes of the AOF gone with the host", aof.forgotten)
    return report


class _Aof:
    """The server's append-only file: how long it was when, so that a part of its end can be lost as with a host.

    Attributes:
        forgotten: Bytes cut off in all.
    """

    def __init__(self, field: Field) -> None:
        self._field = field
        self._rand = field.setup.rand("aof")
        self._sizes: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="aof", daemon=True)
        self.forgotten = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def forget(self) -> None:
        """Cut off what was written in the last moments, up to 2 s, as a host does that dies before its fsync."""
        killed, path = time.time(), self._path()
        until_ = killed - self._rand.uniform(0.0, 0.9 * EVERYSEC_LOSS_S)
        size = path.stat().st_size
        # The first look after that moment: on a busy machine the one before may be long ago.
        kept = min((length for at, length in self._sizes if at >= until_), default=size)
        os.truncate(path, min(size, kept))
        self.forgotten += size - min(size, kept)
        self._sizes.clear()

    def _path(self) -> Path:
        assert self._field.server.directory is not None
        return max(self._field.server.directory.rglob("*.aof"), key=lambda path: path.stat().st_size)

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            with contextlib.suppress(OSError, ValueError):
                self._sizes.append((time.time(), self._path().stat().st_size))


def _kill_cycles(
    setup: Setup,
    field: Field,
    report: Report,
    cycles: int,
    down_s: float,
    before_start: Callable[[], None] | None = None,
) -> tuple[list[float], int]:
    """Kill and restart the server under load; when each kill was, and how many jobs ran at them."""
    rand, waits, kills, busy, landed = setup.rand("kills"), [], [], 0, 0
    with producing(field, 3, pause_s=0.01, seconds=(0.0, 0.1)):
        for _ in range(cycles):
            time.sleep(rand.uniform(0.5, 1.5))  # the fault's own moment
            field.server.kill()
            kills.append(time.time())  # what it acknowledged at its last moment comes before
            if before_start is not None:
                before_start()
            time.sleep(down_s)
            field.server.start()
            waits.append(consuming_again(field, time.time(), CONSUMING_WITHIN_S + setup.patience_s))
            busy += in_flight(field, kills[-1])
            landed += tell_apart(field, report, kills[-1])
    report.figure("kills", cycles)
    report.figure("in flight at kills", busy)
    report.figure("ambiguous that had landed", landed)
    report.at_most("consuming again max, s", max(waits), CONSUMING_WITHIN_S + setup.patience_s)
    return kills, busy


# -- what a server must be ------------------------------------------------------------------------------------------


@experiment(
    "FI-12",
    fault="Redis without persistence, and each other durability class, at start-up",
    criterion="the class is reported, and that nothing is kept is warned of, in 100 %",
    minutes=1,
)
def without_persistence(setup: Setup) -> Report:
    report = Report()
    classes = {
        "none": {},
        "snapshot": {"save": "3600 1"},
        "aof-everysec": EVERYSEC,
        "aof-always": ALWAYS,
    }
    starts = 0
    for word, config in classes.items():
        for number in range(setup.times(20) if word == "none" else 1):
            starts += 1
            with Field(setup, setup.part(f"{word}-{number}"), config=config, queues=QUEUES[:1]) as field:
                (worker,) = field.start(1)
                said = [event["durability"] for event in worker.events("redis.connected")]
                report.expect(f"{word} is reported", said == [word], said)
                warned = "keeps nothing on disk" in worker.output()
                report.expect(
                    f"{word}: the warning is given exactly when it is due", warned is (word == "none")
                )
                report.expect("stats tell it too", field.client.stats().redis.durability == word)
    report.figure("starts", starts)
    return report


@experiment(
    "FI-17",
    fault="an evicting maxmemory-policy",
    criterion="the start of a worker is refused in 100 %, with a line that names the remedy",
    minutes=0.5,
)
def evicting(setup: Setup) -> Report:
    report, refused, starts = Report(), 0, 0
    with Field(setup, queues=QUEUES[:1]) as field:
        for policy in EVICTING[:1] if setup.short else EVICTING:
            field.raw.config_set("maxmemory-policy", policy)
            worker = field.spawn()
            starts += 1
            code = worker.wait(30)
            words = worker.output()
            refused += code == 78 and "maxmemory-policy noeviction" in words and "Traceback" not in words
            field.workers.remove(worker)
    report.figure("starts", starts)
    report.expect("each start is refused", refused == starts, f"{refused} of {starts}")
    return report


@experiment(
    "FI-22",
    fault="pointed at a replica: at start, and a primary that is demoted under the worker",
    criterion="a typed error; not ready within 5 s; ready and consuming within 5 s of its promotion",
    minutes=5,
)
def replica(setup: Setup) -> Report:
    report = Report()
    with PrivateServer() as other, redis.Redis.from_url(other.url) as theirs, Field(setup) as field:
        theirs.replicaof("127.0.0.1", str(field.server.port))
        with Probe(field) as probe:
            with producing(field, 1):
                for _ in range(setup.times(20)):
                    until(field.running, 15)
                    _switch(field.raw, theirs, other.port)
                    demoted = time.time()
                    time.sleep(NOT_READY_WITHIN_S + 1)  # what is asked about here: how it is then
                    answers = Counter(offer(field, "e") for _ in range(20))
                    report.expect("a typed error", answers == {"StoreUnavailableError": 20}, dict(answers))
                    _switch(theirs, field.raw, field.server.port)
                    promoted = time.time()
                    judge_flips(field, probe, report, demoted, promoted)
            report.expect("drained", field.drain(stop=False))
            judge_workers(field, report)
        field.drain(leases=0)
        field.judge(report)
        _switch(field.raw, theirs, other.port)
        worker = field.spawn()
        code = worker.wait(30)
        refused = code == 78 and "is a replica" in worker.output() and "Traceback" not in worker.output()
        report.expect("a start on a replica is refused", refused, worker.output()[-300:])
    return report


def _switch(old: redis.Redis, new: redis.Redis, port: int) -> None:
    """Let two servers change their roles, without losing a write."""
    until(lambda: (old.info("replication").get("slave0") or {}).get("state") == "online", 15)
    until(lambda: new.info("replication")["master_link_status"] == "up", 15)
    old.execute_command("FAILOVER", "TO", "127.0.0.1", port)
    until(lambda: new.info("replication")["role"] == "master", 15)
    until(lambda: old.info("replication")["role"] == "slave", 15)


# -- full -----------------------------------------------------------------------------------------------------------


MAXMEMORY = 64 * 1024 * 1024
BRAKE_WITHIN_S = 3.0


@experiment(
    "FI-16",
    fault="Redis out of memory under noeviction, in steps",
    criterion="typed errors in 100 %; batch and low refused from 80 %, critical accepted to 95 %; accepted again after",
    minutes=1.2,
)
def out_of_memory(setup: Setup) -> Report:
    report = Report()
    config = {"maxmemory": str(MAXMEMORY), "maxmemory-policy": "noeviction", **EVERYSEC}
    with Field(setup, config=config, queues=LANES, slots=1) as field:
        field.start(1)
        held = field.offer("held0", 20.0 if not setup.short else 8.0)  # runs on through the full memory
        until(field.runs, 15)
        for share in (0.70, 0.83, 0.94):
            _fill_memory(field.raw, share)
            _judge_step(setup, field, report, share, "critical", ("low", "batch") if share > 0.8 else ())
        # Full beyond doubt: the limit is now below what is used.
        field.raw.config_set("maxmemory", int(0.97 * field.raw.info("memory")["used_memory"]))
        _judge_step(setup, field, report, 1.0, "", LANES)
        field.raw.config_set("maxmemory", MAXMEMORY)
        field.raw.delete(*field.raw.keys("filler:*"))
        freed = time.time()
        until(lambda: offer(field, "m", "batch") == "acked", 30, 0.1)
        report.at_most("batch accepted again, s", time.time() - freed, BRAKE_WITHIN_S + setup.patience_s)
        report.expect("drained", field.drain(stop=False))
        report.expect("what ran on through it ran once", field.client.get(held).attempt == 1)
        judge_workers(field, report)
        field.drain(leases=0)
        field.judge(report)
        _judge_without_workers(setup, field, report)
    report.problems = sorted(set(report.problems))
    return report


def _judge_step(
    setup: Setup, field: Field, report: Report, share: float, accepted: str, refused: Sequence[str]
) -> None:
    """Enqueue into every lane at one degree of fullness; below 80 % each of them is accepted."""
    time.sleep(BRAKE_WITHIN_S)  # the brake's own period
    for lane in LANES * setup.times(20, short=5):
        word = offer(field, "m", lane)
        if lane == accepted or share < 0.8:
            report.expect(f"{lane} is accepted at {share:.0%}", word == "acked", word)
        if lane in refused:
            report.expect(f"{lane} is refused at {share:.0%}", word == "QueueFullError", word)
        report.expect("a typed error", word in ("acked", "QueueFullError"), word)
    used = field.raw.info("memory")
    report.figure(f"memory at {share:.0%}", used["used_memory"] / used["maxmemory"])


def _judge_without_workers(setup: Setup, field: Field, report: Report) -> None:
    """A backlog fills memory when nobody serves it: then producers look themselves."""
    field.raw.flushall()
    with jobq.Client(jobq.Settings(redis_url=field.server.url)) as client:
        bulk = app.idle.options(client=client, queue="batch")
        try:
            for _ in range(1_000):
                bulk.enqueue_many([{"number": n} for n in range(1_000)])
        except QueueFullError as error:
            report.expect("it is refused by the brake", "takes no new jobs" in str(error), str(error))
        used = field.raw.info("memory")
        report.figure("batch accepted without a worker", field.raw.llen("rq:queue:batch"))
        share = used["used_memory"] / used["maxmemory"]
        report.at_most("memory when batch is refused without a worker, share", share, 0.85)
        app.idle.options(client=client, queue="critical").enqueue(number=0)


def _fill_memory(raw: redis.Redis, share: float) -> None:
    """Grow fillers until the server uses this share of its limit."""
    number = len(raw.keys("filler:*"))
    while raw.info("memory")["used_memory"] < share * MAXMEMORY:
        raw.set(f"filler:{number}", bytes(256 * 1024))
        number += 1


@experiment(
    "FI-18",
    fault="the disk of the AOF is full",
    criterion="a typed error; not ready within 5 s; recovers without a restart of anything",
    minutes=5,
)
def disk_full(setup: Setup) -> Report:
    report = Report()
    with _small_disk(setup.part("disk")) as disk, contextlib.ExitStack() as stack:
        field = Field(setup, config={**EVERYSEC, "auto-aof-rewrite-percentage": "0"})
        field.server.directory = disk
        stack.enter_context(field)
        with Probe(field) as probe:
            for _ in range(setup.times(20)):
                with producing(field, 1):
                    time.sleep(1.0)  # a second of ordinary work
                    full = time.time()
                    filler = fill(disk)
                    until(lambda: offer(field, "e") != "acked", 30)
                    refused = time.time()
                    time.sleep(NOT_READY_WITHIN_S + 1)
                    answers = Counter(offer(field, "e") for _ in range(20))
                    report.expect("a typed error", answers == {"StoreUnavailableError": 20}, dict(answers))
                    freed = time.time()
                    filler.unlink()
                    judge_flips(field, probe, report, refused, freed)
                    report.figure("refusing after, s", refused - full)
            report.expect("drained", field.drain(stop=False))
            judge_workers(field, report)
        field.drain(leases=0)
        field.judge(report)
    return report


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 8 MB; making one takes root."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        raise RuntimeError(f"no small file system can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# -- forgetting -----------------------------------------------------------------------------------------------------


@experiment(
    "FI-19",
    fault="SCRIPT FLUSH every 200 ms under load",
    criterion="no error surfaces, at producers or in logs",
    minutes=1.4,
)
def script_flush(setup: Setup) -> Report:
    report, flushes = Report(), 0
    with Field(setup, config=EVERYSEC) as field:
        field.start(2)
        stop = threading.Event()

        def flush() -> None:
            nonlocal flushes
            while not stop.wait(0.2):
                field.raw.script_flush()
                flushes += 1

        thread = threading.Thread(target=flush, daemon=True)
        thread.start()
        with producing(field):
            ends = time.monotonic() + setup.times(30, short=3)
            while time.monotonic() < ends:
                field.client.stats()
                time.sleep(0.1)
        report.expect("drained", field.drain(stop=False))
        stop.set()
        thread.join(5)
        report.figure("flushes", flushes)
        offers = field.produced.offers()
        report.zero("surfaced errors", sum(offer.outcome != "acked" for offer in offers))
        judge_workers(field, report, outages=0)
        field.drain(leases=0)
        field.judge(report)
        report.zero("reruns", compare(offers, field.runs()).duplicates)
    return report
