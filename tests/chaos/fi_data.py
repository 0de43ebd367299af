"""What a foreign hand, a broken producer or too many of them put into Redis."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time

import jobq
from jobq.codec import Codec
from jobq.errors import EnqueueError, PayloadTooLargeError, StoreError
from jobq.job import JobState, new_job_id
from tests.chaos import app
from tests.chaos.field import ISOLATED, THREADS, Field
from tests.chaos.frame import Report, Setup, experiment
from tests.chaos.hostile import fuzzed, mutate
from tests.support.processes import ROOT, environment, search_path, until
from tests.support.proxy import Proxy

_BATCH = 500


def _inject(field: Field, job_id: str, data: bytes, queue: str = THREADS) -> None:
    """Put a job into its queue as a producer would, whatever the payload."""
    now = "2026-01-01T00:00:00.000000Z"
    fields: dict[str, bytes | str] = {
        "data": data, "status": "queued", "origin": queue, "created_at": now, "enqueued_at": now,
        "description": "chaos.work", "timeout": "60", "q": str(time.time_ns() // 1_000_000),
    }  # fmt: skip
    pipe = field.raw.pipeline()
    pipe.hset(f"rq:job:{job_id}", mapping=fields)  # type: ignore[arg-type]
    pipe.rpush(f"rq:queue:{queue}", job_id)
    pipe.execute()


def _end_worker(field: Field, report: Report) -> None:
    """It must still be there, and leave in order when asked."""
    codes = []
    for worker in field.workers:
        worker.send(signal.SIGTERM)
        codes.append(worker.wait(40))
    report.expect("workers end with 0", all(code == 0 for code in codes), codes)
    report.figure("worker exits before the end", sum(code != 0 for code in codes))


def _settled(field: Field, timeout_s: float = 120.0) -> None:
    until(lambda: not field.waiting(), timeout_s, 0.05)


@experiment(
    "FI-29",
    fault="fuzzed envelopes: broken JSON, wrong types, deep nesting, huge numbers, bad UTF-8, equal keys",
    criterion="worker exits 0; 100 % set aside, none run; good jobs between them 100 % done",
    gate=True,
    minutes=2,
)
def fuzzed_envelopes(setup: Setup) -> Report:
    report, rand = Report(), setup.rand("fuzz")
    total = setup.times(10_000, short=400)
    aside, ran, good = 0, 0, 0
    with Field(setup, queues=(THREADS,)) as field:
        field.start()
        for start in range(0, total, _BATCH):
            ids = [new_job_id("fuzz") for _ in range(min(_BATCH, total - start))]
            for number, job_id in enumerate(ids):
                _inject(field, job_id, fuzzed(rand))
                if number % 10 == 0:
                    field.offer(f"good{start + number}", 0.0)
                    good += 1
            _settled(field)
            for job_id in ids:
                job = field.client.get(job_id)
                aside += (
                    job.state is JobState.DEAD and job.dead_reason in ("unreadable", "rejected")
                ) or job.state is JobState.PARKED
                field.client.delete(job_id)
        ran = sum(entry.token.startswith("z") for entry in field.runs())
        _end_worker(field, report)
        report.figure("payloads", total)
        report.expect("all are set aside", aside == total, f"{aside} of {total}")
        report.zero("hostile payloads run", ran)
        report.figure("good jobs", good)
        field.judge(report)
    return report


@experiment(
    "FI-30",
    fault="mutated job hashes: a missing field, a bad date, an unknown status, a wrong Redis type",
    criterion="worker exits 0; a maintenance pass takes at most 5 s; good jobs 100 % done",
    gate=True,
    minutes=1,
)
def mutated_hashes(setup: Setup) -> Report:
    report, rand = Report(), setup.rand("mutate")
    total = setup.times(1_000, short=200)
    with Field(setup, queues=(THREADS, ISOLATED)) as field:
        tasks = [
            each.options(client=field.client, queue=queue, delay=delay)
            for queue, each in ((THREADS, app.work), (THREADS, app.gated), (ISOLATED, app.work))
            for delay in (1.0, 0.0, 0.0)
        ]
        mutated = []
        # Some wait in the list, some at a gate, some to be promoted, some under a lease of nobody, some are dead.
        for number in range(total):
            chosen = rand.choice(tasks)
            job = chosen.enqueue(token=f"mutated{number}", seconds=0.0)
            mutated.append(job.id)
            queue = job.queue
            field.produced.note(f"mutated{number}", job.id, "ambiguous")
            key = f"rq:job:{job.id}"
            if number % 5 == 1:
                field.raw.lrem(f"rq:queue:{queue}", -1, job.id)
                field.raw.hset(key, "status", "started")
                field.raw.zadd(f"rq:wip:{queue}", {f"{job.id}:elsewhere.1": "inf"})
                field.raw.zadd("jobq:leases", {f"{job.id}:elsewhere.1": 1})
            elif number % 5 == 2:
                field.raw.lrem(f"rq:queue:{queue}", -1, job.id)
                field.raw.hset(key, "status", "failed")
                field.raw.zadd(f"rq:failed:{queue}", {job.id: 1})
            mutate(field.raw, key, rand)
            if number % 10 == 0:
                for place, each in enumerate(tasks[2::3]):
                    field.enqueue(each, f"good{number}.{place}", seconds=0.0)
        report.zero("untyped errors of readers", _readers(field, mutated))
        field.start()
        began = time.monotonic()
        probe = app.work.options(client=field.client, queue=THREADS, delay=0.2)
        job = probe.enqueue(token="probe", seconds=0.0)
        field.produced.note("probe", job.id, "acked")
        job.wait(timeout=60)
        report.at_most(
            "promotion of a good job among them, s", time.monotonic() - began, 5.2 + setup.patience_s
        )
        until(lambda: not field.raw.zcount("jobq:leases", "-inf", 1_000), 60)
        report.figure("until the last hopeless lease was gone, s", time.monotonic() - began)
        _settled(field, 60)
        report.zero("untyped errors of readers afterwards", _readers(field, mutated))
        _end_worker(field, report)
        report.figure("hashes", total)
        # What is left must be whole without them.
        for job_id in mutated:
            with contextlib.suppress(jobq.JobqError):  # gone, or running without an origin
                field.client.delete(job_id)
            field.raw.delete(f"rq:job:{job_id}")
        field.judge(report)
    return report


def _readers(field: Field, ids: list[str]) -> int:
    """Errors of other kinds than jobq's own of whoever looks at these jobs."""
    client, untyped = field.client, 0
    looks = [lambda state=state: client.jobs(state=state, limit=200) for state in (None, *JobState)]
    looks += [lambda job_id=job_id: client.why(job_id) for job_id in ids]
    for look in (*looks, client.stats, client.health):
        try:
            look()
        except jobq.JobqError:
            continue
        except Exception:
            untyped += 1
    return untyped


@experiment(
    "FI-32",
    fault="payloads over the limit of 256 kB; with the limit raised, 1 MB each until memory is short",
    criterion="100 % refused before the network; with the limit raised, typed errors before memory is full",
    minutes=2,
)
def oversized(setup: Setup) -> Report:
    report = Report()
    with Field(setup, queues=("low",), config={"maxmemory": "64mb"}) as field:
        with Proxy(field.server.port) as proxy, jobq.Client(jobq.Settings(redis_url=proxy.url)) as client:
            task = app.large.options(client=client)
            refused = 0
            for number in range(100):
                try:
                    task.enqueue(token=f"big{number}", blob="x" * 262_144)
                except PayloadTooLargeError:
                    refused += 1
            report.expect("all are refused", refused == 100, refused)
            report.zero("requests that reached the network", len(proxy.requests))
        field.start()
        total = setup.times(1_000, short=100)
        typed, untyped, acked = 0, [], 0
        with jobq.Client(jobq.Settings(redis_url=field.server.url, payload_limit=2_000_000)) as client:
            client.queues.pause("low")  # nothing drains: memory must fill
            for number in range(total):
                token = f"large{number}"
                try:
                    job = app.large.options(client=client).enqueue(token=token, blob="x" * 1_000_000)
                except (EnqueueError, StoreError):
                    typed += 1
                    field.produced.note(token, "", "failed")
                    if number - acked > 50:
                        break
                except Exception as error:
                    untyped.append(type(error).__name__)
                else:
                    acked += 1
                    field.produced.note(token, job.id, "acked")
            used = field.raw.info("memory")["used_memory"]
            report.figure("acknowledged before the guard tripped", acked)
            report.expect("refused with typed errors once memory is short", typed > 0, typed)
            report.zero("untyped errors", len(untyped))
            report.at_most("memory used, share of maxmemory", used / (64 * 1024 * 1024), 0.95)
            client.queues.resume("low")
        report.expect("drained", field.drain(120), False)
        field.judge(report)
    return report


@experiment(
    "FI-33",
    fault="forged and altered messages",
    criterion="0 executed; each a dead letter, reason rejected, and one line in the log",
    minutes=1,
)
def forged(setup: Setup) -> Report:
    report, rand = Report(), setup.rand("forge")
    total = setup.times(1_000, short=100)
    ours, theirs = Codec(["the key of this field"]), Codec(["a key of somebody else"])
    unsigned = Codec()
    params = {"token": "forged", "seconds": 0}
    with Field(setup, queues=(THREADS,), env={"JOBQ_SECRET_KEY": "the key of this field"}) as field:
        (worker,) = field.start()
        ids = []
        for number in range(total):
            job_id = new_job_id("forged")
            ids.append(job_id)
            kind = number % 5
            if kind == 0:  # signed with a key we do not have, under the name of ours
                data = theirs.encode(task="chaos.work", version=1, params=params, job_id=job_id)
                data = data.replace(theirs.key_ids[0].encode(), ours.key_ids[0].encode(), 1)
            elif kind == 1:  # not signed at all
                data = unsigned.encode(task="chaos.work", version=1, params=params, job_id=job_id)
            elif kind == 2:  # a good one, of another job
                data = ours.encode(task="chaos.work", version=1, params=params, job_id=new_job_id("other"))
            elif kind == 3:  # a good one, altered
                data = ours.encode(task="chaos.work", version=1, params=params, job_id=job_id)
                data = data.replace(b'"forged"', b'"altered"')
            else:  # its signature altered
                data = ours.encode(task="chaos.work", version=1, params=params, job_id=job_id)
                place = data.index(b'"sig":"') + 7 + rand.randrange(20)
                data = data[:place] + (b"0" if data[place : place + 1] != b"0" else b"1") + data[place + 1 :]
            _inject(field, job_id, data)
        _settled(field)
        reasons = [field.client.get(job_id).dead_reason for job_id in ids]
        _end_worker(field, report)
        report.figure("messages", total)
        report.zero("executed", len(field.runs()))
        rejected = sum(reason == "rejected" for reason in reasons)
        report.expect("all rejected", rejected == total, f"{rejected} of {total}")
        told = {event["job_id"] for event in worker.events("job.dead", reason="rejected")}
        report.expect("one line in the log for each", told == set(ids), f"{len(told)} of {total}")
        field.audit(report)
    return report


@experiment(
    "FI-38",
    fault="100 producers on one dedup key",
    criterion="exactly one accepted per release, never two at once; keys left over 0",
    gate=True,
    minutes=5,
)
def dedup_storm(setup: Setup) -> Report:
    report = Report()
    processes = 2 if setup.short else 4
    each = setup.times(10_000, short=40)
    with Field(setup, queues=(THREADS,)) as field:
        field.start()
        command = [
            sys.executable,
            "-m",
            "tests.chaos.storm",
            field.server.url,
            str(100 // processes),
            str(each),
            "k",
        ]
        env = environment(field.server.url, "tests.chaos.app")
        storms = [
            subprocess.Popen(command, stdout=subprocess.PIPE, env=env, cwd=ROOT, text=True)
            for _ in range(processes)
        ]
        accepted = [line for storm in storms for line in storm.communicate(timeout=3_000)[0].split()]
        report.zero("producers that failed", sum(storm.returncode != 0 for storm in storms))
        report.expect("drained", field.drain(60, leases=0), False)
        runs = field.runs()
        starts = [entry for entry in runs if entry.word == "start"]
        report.figure("enqueues", 100 // processes * processes * each)
        report.figure("accepted", len(accepted))
        ran = {entry.job_id for entry in starts}
        report.expect("each accepted one ran once", len(starts) == len(ran) == len(accepted), len(starts))
        report.expect("only accepted ones ran", ran == set(accepted), len(ran ^ set(accepted)))
        open_runs, overlaps = 0, 0
        for entry in sorted(runs, key=lambda e: (e.at, e.word == "start")):
            open_runs += 1 if entry.word == "start" else -1
            overlaps += open_runs > 1
        report.zero("two at once", overlaps)
        report.zero("keys left over", len(list(field.raw.scan_iter("jobq:dedup:*"))))
        field.audit(report)
    return report


@experiment(
    "FI-25",
    fault="clocks of the workers off by 5 minutes, each in another direction",
    criterion="early runs 0; lateness at most 250 ms (p99); leases rescued falsely 0",
    minutes=2,
)
def skewed_clocks(setup: Setup) -> Report:
    report, rand = Report(), setup.rand("skew")
    total = setup.times(2_000, short=100)
    skews = (0.0, 300.0, -300.0)
    folder = setup.part("clock")
    (folder / "sitecustomize.py").write_text(_SKEW)
    with Field(setup, queues=(THREADS,), slots=10) as field:
        for skew in skews:
            path = search_path(folder, ROOT)
            field.spawn(PYTHONPATH=path, CHAOS_SKEW=str(skew))
        for worker in field.workers:
            worker.ready()
        due: dict[str, float] = {}
        for number in range(total):
            token, delay = f"due{number}", rand.uniform(0.3, 3.0)
            before = time.time()
            job = app.work.options(client=field.client, queue=THREADS, delay=delay).enqueue(
                token=token, seconds=0.01
            )
            field.produced.note(token, job.id, "acked")
            due[token] = before + delay
            if (
                number % (total // 5) == 0
            ):  # longer than a heartbeat: its lease must hold; few, as they take slots
                field.offer(f"long{number}", setup.lease_s * 0.6, 0)
        report.expect("drained", field.drain(60 + 4 * setup.lease_s), False)
        late = sorted(
            entry.at - due[entry.token]
            for entry in field.runs()
            if entry.word == "start" and entry.token in due
        )
        report.zero("early runs", sum(value < -0.001 for value in late))
        p99 = late[int(len(late) * 0.99)] if late else 0.0
        report.at_most("lateness p99, ms", p99 * 1_000, 250 + 1_000 * setup.patience_s)
        rescued = sum(len(worker.events("job.rescued")) for worker in field.everybody)
        report.zero("leases rescued falsely", rescued)
        field.judge(report)
    return report


_SKEW = """
import os, time
_skew = float(os.environ.get("CHAOS_SKEW", "0"))
if _skew:
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _skew
    time.time_ns = lambda: _time_ns() + int(_skew * 1e9)
"""
