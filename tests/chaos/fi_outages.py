"""Experiments on the way to Redis: stopped, frozen, cut, failed over, slow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import redis

import jobq
from jobq.errors import StoreUnavailableError
from jobq.private_server import PrivateServer
from tests.chaos import app
from tests.chaos.field import Field
from tests.chaos.frame import Report, Setup, experiment
from tests.chaos.ledger import Entry, compare, percentile
from tests.chaos.outage import (
    CONSUMING_WITHIN_S,
    EVERYSEC,
    Probe,
    consuming_again,
    judge_readiness,
    judge_workers,
    producing,
    tell_apart,
    threads,
    worst,
)
from tests.support.processes import until
from tests.support.proxy import Proxy, Weather
from tests.support.sentinels import SentinelGroup

ENQUEUE_WITHIN_S = 1.1
"""The deadline of an enqueue, 1 s, and 100 ms."""

RECORDED_WITHIN_S = 10.0


# -- stopped --------------------------------------------------------------------------------------------------------


@experiment(
    "FI-13",
    fault="Redis is stopped for 60 s and for 300 s while jobs run",
    criterion="99 % of what finished meanwhile is recorded within 10 s of its return, the rest runs again",
    minutes=9,
)
def stopped(setup: Setup) -> Report:
    report = Report()
    outages = (7.0,) if setup.short else (60.0, 300.0)
    with Field(setup, config=EVERYSEC, slots=8) as field:
        with Probe(field) as probe:
            field.start(1)
            for number, outage_s in enumerate(outages):
                _one_stop(field, probe, report, f"{'ab'[number]}", outage_s)
            report.expect("drained", field.drain(150, stop=False))
            judge_workers(field, report, outages=len(outages))
        field.drain(leases=0)
        field.judge(report)
        report.zero("reruns", compare(field.produced.offers(), field.runs()).duplicates)
    return report


def _one_stop(field: Field, probe: Probe, report: Report, prefix: str, outage_s: float) -> None:
    rand, slots = field.setup.rand(prefix), len(field.workers) * len(field.queues) * field.slots
    longest = min(0.9 * outage_s, 50.0)  # the task's timeout is 60 s
    for number in range(slots + 20):  # some only wait when it stops
        field.offer(f"{prefix}{number}", rand.uniform(0.3 * longest, longest), number)
    until(lambda: field.running() == slots, 30)
    assert field.server.pid is not None
    away = time.time()
    os.kill(field.server.pid, signal.SIGTERM)
    until(lambda: not field.server.running, 15)
    time.sleep(outage_s)
    field.server.start()
    back = time.time()
    ended = {entry.job_id for entry in field.runs() if entry.word == "end" and away < entry.at < back}
    report.expect("jobs finished meanwhile", len(ended) >= slots / 2, len(ended))

    def recorded() -> int:
        pipe = field.raw.pipeline(transaction=False)
        for job_id in ended:
            pipe.hget(f"rq:job:{job_id}", "status")
        return sum(status == b"finished" for status in pipe.execute())

    while recorded() < len(ended) and time.time() < back + RECORDED_WITHIN_S:
        time.sleep(0.05)
    report.figure(f"finished during {outage_s:g} s", len(ended))
    report.figure(f"all recorded after {outage_s:g} s within, s", time.time() - back)
    report.at_least(f"recorded within 10 s after {outage_s:g} s", recorded() / max(1, len(ended)), 0.99)
    judge_readiness(field, probe, report, away, back)


# -- frozen ---------------------------------------------------------------------------------------------------------


@experiment(
    "FI-14",
    fault="SIGSTOP of Redis for 1, 5, 20 and 60 s",
    criterion="enqueue returns within 1.1 s in 99.9 %; no live job reaped, no thread left over",
    gate=True,
    minutes=37,
)
def frozen(setup: Setup) -> Report:
    report = Report()
    stops = (0.3, 1.0, 2.5) if setup.short else (1.0, 5.0, 20.0, 60.0)
    with Field(setup, config=EVERYSEC, slots=6) as field:
        field.start(2)
        with _timed_producers(field) as took:
            _warm_up(field)
            before, ours = [threads(worker) for worker in field.workers], threading.active_count()
            for repetition in range(setup.times(20)):
                for number, stop_s in enumerate(stops):
                    _one_freeze(field, report, f"{'hijk'[number]}{repetition}x", stop_s)
            after, ours_after = [threads(worker) for worker in field.workers], threading.active_count()
        grown = [
            f"{count[pid]} to {later[pid]}"
            for count, later in zip(before, after, strict=True)
            for pid in count.keys() & later.keys()  # job children are recycled
            if later[pid] != count[pid]
        ]
        report.expect("no thread is left over in workers", not grown, grown)
        report.zero("threads left over in the producer", ours_after - ours)
        report.expect("drained", field.drain(stop=False))
        judge_workers(field, report)
        report.zero(
            "lost counted", sum(bool(field.raw.hexists(key, "lost")) for key in field.raw.keys("rq:job:*"))
        )
        field.drain(leases=0)
        field.judge(report)
        report.zero("reruns", compare(field.produced.offers(), field.runs()).duplicates)
        report.figure("enqueues", len(took))
        report.figure("enqueue max, s", max(took))
        late = sum(seconds > ENQUEUE_WITHIN_S for seconds in took)
        report.at_most("enqueues later than 1.1 s, share", late / len(took), 0.001)
        if late:
            report.figure("enqueue p99.9, s", percentile(sorted(took), 0.999))
    return report


def _warm_up(field: Field) -> None:
    """Have every slot used once: threads of a pool come with its jobs, and stay."""
    slots = field.slots * len(field.queues) * len(field.workers)
    for number in range(3 * slots):
        field.offer(f"w{number}", 0.3, number)
    until(lambda: not field.raw.llen("rq:queue:high"), 30)
    time.sleep(1.0)  # what was claimed runs out


def _one_freeze(field: Field, report: Report, prefix: str, stop_s: float) -> None:
    """Freeze and wake the server while jobs end before, within and after it."""
    pid = field.server.pid
    assert pid is not None
    lengths = (0.5 * stop_s, min(stop_s + 2.0, 50.0))
    for number in range(2 * len(field.queues)):
        field.offer(f"{prefix}{number}", lengths[number // len(field.queues)], number)
    until(lambda: field.running() >= 2 * len(field.queues), 15)
    began = time.time()
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(stop_s)
    finally:
        os.kill(pid, signal.SIGCONT)
    tell_apart(field, report, began)
    within_s = CONSUMING_WITHIN_S + field.setup.patience_s
    worst(report, "consuming again max, s", consuming_again(field, time.time(), within_s), within_s)
    time.sleep(field.setup.lease_s / 3 + 1.0)  # rescue's hold-off: a false reap would show by then


@contextmanager
def _timed_producers(field: Field) -> Iterator[list[float]]:
    """Two threads and one event loop that enqueue all the time; how long each enqueue took."""
    took: list[float] = []
    stop = threading.Event()

    def note(token: str, began: float, job: jobq.Job | None, error: StoreUnavailableError | None) -> None:
        took.append(time.monotonic() - began)
        if error is not None:
            field.produced.note(token, error.job_id or "", "ambiguous" if error.ambiguous else "failed")
        elif job is not None:
            field.produced.note(token, job.id, "acked")

    def sync(prefix: str) -> None:
        number = 0
        while not stop.wait(0.05):
            token, began, job, failure = f"{prefix}{number}", time.monotonic(), None, None
            try:
                task = app.work.options(client=field.client, queue=field.queues[number % 2])
                job = task.enqueue(token=token, seconds=0.01)
            except StoreUnavailableError as error:
                failure = error
            note(token, began, job, failure)
            number += 1

    async def loop() -> None:
        async with jobq.AsyncClient(jobq.Settings(redis_url=field.server.url)) as client:
            number = 0
            while not stop.is_set():
                token, began, job, failure = f"z{number}", time.monotonic(), None, None
                task = app.work.options(client=client, queue=field.queues[number % 2])
                try:
                    job = await task.enqueue_async(token=token, seconds=0.01)
                except StoreUnavailableError as error:
                    failure = error
                note(token, began, job, failure)
                number += 1
                await asyncio.sleep(0.05)

    started = [
        *(threading.Thread(target=sync, args=(prefix,), daemon=True) for prefix in "xy"),
        threading.Thread(target=lambda: asyncio.run(loop()), daemon=True),
    ]
    for thread in started:
        thread.start()
    try:
        yield took
    finally:
        stop.set()
        for thread in started:
            thread.join(10)


# -- cut ------------------------------------------------------------------------------------------------------------


@experiment(
    "FI-15",
    fault="all connections are killed every second for 60 s",
    criterion="consuming again within 1 s of each; reruns at most the ambiguous enqueues",
    minutes=2,
)
def massacre(setup: Setup) -> Report:
    report, waits = Report(), []
    bound = 1.0 + setup.patience_s
    with Field(setup, config=EVERYSEC) as field:
        field.start(2)
        with producing(field, 3):
            for _ in range(setup.times(60, short=4)):
                cut = time.time()
                for kind in ("normal", "pubsub"):
                    field.raw.client_kill_filter(_type=kind, skipme=True)
                waits.append(consuming_again(field, cut, bound))
                time.sleep(max(0.0, cut + 1.0 - time.time()))
        report.expect("drained", field.drain(stop=False))
        judge_workers(field, report)
        field.drain(leases=0)
        field.judge(report)
        report.figure("massacres", len(waits))
        report.at_most("consuming again max, s", max(waits), bound)
        verdict = compare(field.produced.offers(), field.runs())
        report.at_most("reruns", verdict.duplicates, verdict.ambiguous)
    return report


@experiment(
    "FI-20",
    fault="Sentinel failover: SIGKILL of the primary of 3 servers and 3 sentinels",
    criterion="consuming within 10 s of the promotion; what both replicas confirmed is not lost; else it is measured",
    minutes=5.0,
)
def failover(setup: Setup) -> Report:
    report, waits, promotions = Report(), [], []
    bound = 10.0 + setup.patience_s
    with SentinelGroup() as group:
        field = Field(setup, url=lambda _: group.url)
        field.server = group.servers[0]
        with field, group.client() as raw, jobq.Client(jobq.Settings(redis_url=group.url)) as client:
            field.raw, field.client = raw, client
            field.start(2)
            with producing(field, 1), _confirmed(field, group) as confirmed:
                for _ in range(setup.times(20)):
                    until(field.running, 20)
                    killed = time.time()
                    old = group.fail_over()
                    promotions.append(time.time() - killed)
                    waits.append(consuming_again(field, time.time(), bound))
                    group.rejoin(old)
            report.expect("drained", field.drain(stop=False))
            judge_workers(field, report, rolled_back=True)
            field.drain(leases=0)
            field.judge(report, may_lose=True)
            lost = compare(field.produced.offers(), field.runs()).lost
            counts = Counter(confirmed.get(token, 0) for token in lost)
            report.zero("lost of those that both replicas confirmed", counts[2])
            report.figure("confirmed by both", sum(count == 2 for count in confirmed.values()))
            report.figure("lost of those that one confirmed", counts[1])
            report.figure("lost of those without WAIT", counts[0])
    report.notes.append(
        "Sentinel promotes the replica that it takes for the most advanced, by what it heard up to 10 s ago: "
        "WAIT 1 of two replicas is no promise."
    )
    report.figure("failovers", len(waits))
    report.figure("promoted after max, s", max(promotions))
    report.at_most("consuming after the promotion max, s", max(waits), bound)
    return report


@contextmanager
def _confirmed(field: Field, group: SentinelGroup) -> Iterator[dict[str, int]]:
    """A producer whose enqueue counts as acknowledged only once a replica has it too; by token how many had."""
    stop = threading.Event()
    confirmed: dict[str, int] = {}

    def work() -> None:
        number = 0
        while not stop.wait(0.03):
            token = f"c{number}"
            number += 1
            try:
                # Asked before: who is it afterwards may never have heard of the job.
                port = group.primary().port
            except redis.RedisError:
                continue
            try:
                job = app.work.options(client=field.client, queue=field.queues[number % 2]).enqueue(
                    token=token, seconds=0.02
                )
            except StoreUnavailableError as error:
                field.produced.note(token, error.job_id or "", "ambiguous" if error.ambiguous else "failed")
                continue
            confirmed[token] = _replicas_with_all(port)
            field.produced.note(token, job.id, "acked" if confirmed[token] else "ambiguous")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield confirmed
    finally:
        stop.set()
        thread.join(15)


def _replicas_with_all(port: int) -> int:
    """How many replicas have all that this primary acknowledged before this call; 2 at most.

    WAIT speaks of its own connection's last write, and replicas receive writes in order.
    """
    try:
        with redis.Redis(port=port, socket_timeout=1, single_connection_client=True) as line:
            line.incr("chaos:fence")
            return min(2, int(line.wait(2, 500)))
    except redis.RedisError:
        return 0


STRANDED_WITHIN_S = 2.0


@experiment(
    "FI-21",
    fault="a primary is cut off from its promoted replica, takes writes on, and returns as a replica",
    criterion="with min-replicas-to-write 1, what is stranded was written within 2 s; READONLY is handled within 5 s",
    minutes=3.0,
)
def old_primary(setup: Setup) -> Report:
    """The name leads to the old primary until it returns, as for clients on its side of a partition."""
    report, cuts = Report(), []
    config = {"min-replicas-to-write": "1", "min-replicas-max-lag": "1", "repl-diskless-sync-delay": "0"}
    bound = CONSUMING_WITHIN_S + setup.patience_s
    with (
        PrivateServer(config) as second,
        redis.Redis.from_url(second.url) as theirs,
        contextlib.ExitStack() as stack,
    ):
        field = Field(setup, config=config, url=lambda _: name.url)
        stack.enter_context(field)
        name = stack.enter_context(Proxy(field.server.port, Weather()))
        field.client = stack.enter_context(jobq.Client(jobq.Settings(redis_url=name.url)))
        sides = [(field.raw, field.server.port), (theirs, second.port)]
        field.start(2)
        with producing(field):
            for _ in range(setup.times(20)):
                (old, old_port), (new, new_port) = sides
                with Proxy(old_port, Weather()) as link:
                    new.replicaof("127.0.0.1", str(link.port))
                    until(lambda old=old: old.info("replication").get("min_slaves_good_slaves"), 15)
                    until(field.running, 15)
                    with link.silence():
                        cut = time.time()
                        new.replicaof("NO", "ONE")
                        time.sleep(STRANDED_WITHIN_S + 2.0)  # writes go on, and then no more
                field.raw, name.server_port = new, new_port
                old.replicaof("127.0.0.1", str(new_port))
                back = time.time()
                worst(report, "consuming again max, s", consuming_again(field, back, bound), bound)
                cuts.append((cut, back))
                sides.reverse()
        report.expect("drained", field.drain(stop=False))
        judge_workers(field, report, rolled_back=True)
        field.drain(leases=0)
        field.judge(report, may_lose=True)
    offers = field.produced.offers()
    lost = set(compare(offers, field.runs()).lost)
    for cut, back in cuts:
        acked = [each for each in offers if each.outcome == "acked" and cut <= each.at < back]
        late = max((each.at - cut for each in acked), default=0.0)
        worst(report, "last write stranded after, s", late, STRANDED_WITHIN_S)
        lost -= {each.token for each in acked}
    report.zero("lost of what was not stranded", len(lost))
    report.notes.append(
        "Redis counts a replica's lag in whole seconds, and looks once a second: 1 to 3 s pass."
    )
    report.figure("partitions", len(cuts))
    return report


# -- slow -----------------------------------------------------------------------------------------------------------


@experiment(
    "FI-23",
    fault="a slow, flaky network: every reply 50 to 200 ms late, 1 % of exchanges reset",
    criterion="throughput at least 80 % of the latency bound: each job costs its run and one round trip of its slot",
    minutes=2.5,
)
def slow(setup: Setup) -> Report:
    report = Report()
    weather = Weather(latency_s=(0.05, 0.2), resets=0.01, seed=setup.seed)
    seconds = 0.3
    with Field(setup, config=EVERYSEC, slots=8, url=lambda _: proxy.url) as field:
        proxy = Proxy(field.server.port, weather)
        with proxy:
            field.start(2)
            slots = len(field.workers) * len(field.queues) * field.slots
            jobs = slots * setup.times(80, short=8)
            for number in range(jobs):
                field.offer(f"s{number}", seconds, number)
            with jobq.Client(jobq.Settings(redis_url=proxy.url)) as far:
                for number in range(setup.times(400, short=40)):  # while the rest runs
                    field.offer(f"f{number}", 0.0, number, far)
            report.expect("drained", field.drain(300, stop=False))
            judge_workers(field, report)
            field.drain(leases=0)
            field.judge(report)
            report.figure("resets", proxy.met.get("weather", 0))
        far_offers = [each for each in field.produced.offers() if each.token.startswith("f")]
        report.figure("enqueued through it", len(far_offers))
        report.figure("of them refused", sum(each.outcome != "acked" for each in far_offers))
        runs = field.runs()
        rate = sum(
            _rate(runs, lane, len(field.queues), slots // len(field.queues))
            for lane in range(len(field.queues))
        )
        bound = slots / (seconds + sum(weather.latency_s) / 2)
        report.figure("jobs a second", rate)
        report.figure("latency bound, jobs a second", bound)
        report.at_least("share of the bound", rate / bound, 0.8)
        report.zero("reruns", compare(field.produced.offers(), runs).duplicates)
    return report


def _rate(runs: Sequence[Entry], lane: int, lanes: int, slots: int) -> float:
    """Jobs a second that one lane began while it had more of them than slots; its last round only empties them."""
    starts = sorted(
        each.at
        for each in runs
        if each.word == "start" and each.token.startswith("s") and int(each.token[1:]) % lanes == lane
    )
    return (len(starts) - slots) / (starts[-slots] - starts[0])
