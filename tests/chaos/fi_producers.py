"""Experiments on those who enqueue: replies that are lost, and what a producer may do then."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections import Counter

import jobq
from jobq.errors import JobNotFoundError, StoreUnavailableError
from jobq.private_server import free_port
from tests.chaos import app
from tests.chaos.field import Field
from tests.chaos.frame import Report, Setup, experiment
from tests.chaos.ledger import compare
from tests.support.proxy import Proxy

_ALL_TRIES = 1_000
_REFUSED = 0.05


@experiment(
    "FI-44",
    fault="replies are lost after the write, requests before it, once or for the whole deadline; inline fallback on",
    criterion="effects per business key = 1 in 100 %",
    gate=True,
    minutes=2,
)
def lost_replies(setup: Setup) -> Report:
    report, fates = Report(), Counter[str]()
    producers, each = setup.times(8, short=4), setup.times(125, short=12)
    with Field(setup) as field:
        os.environ[app.LEDGER] = str(field.handled)  # what runs inline runs here
        try:
            field.start(2)
            threads = [
                threading.Thread(target=_produce, args=(field, number, each, fates), daemon=True)
                for number in range(producers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            del os.environ[app.LEDGER]
        report.expect("drained", field.drain())
        field.judge(report)
        keys = {offer.token for offer in field.produced.offers()}
        effects = Counter(entry.token for entry in field.runs() if entry.word == "end")
        report.figure("business keys", len(keys))
        for name, count in sorted(fates.items()):
            report.figure(name, count)
        report.expect("each was tried", len(keys) == producers * each, len(keys))
        report.zero("keys with no effect, or several", sum(effects[key] != 1 for key in keys))
        report.zero("second runs", compare(field.produced.offers(), field.runs()).duplicates)
    return report


def _produce(field: Field, number: int, count: int, fates: Counter[str]) -> None:
    """One producer, behind a proxy of its own."""
    rand = field.setup.rand(f"producer {number}")
    with Proxy(field.server.port) as proxy, contextlib.ExitStack() as stack:
        near, nowhere = (
            stack.enter_context(jobq.Client(jobq.Settings(redis_url=url, fallback="inline")))
            for url in (proxy.url, f"redis://127.0.0.1:{free_port()}/0")
        )
        for place in range(count):
            token = f"n{number}-{place}"
            client = near
            if rand.random() < _REFUSED:
                client, fate = nowhere, "connection refused"
            else:
                fate = _befall(proxy, rand)
            outcome, job_id = _enqueue(field, client, token, place)
            proxy.clear()
            if outcome == "in doubt":
                outcome = f"in doubt, {_ask(field, token, place, job_id)}"
            fates[f"{fate}: {outcome}"] += 1


def _befall(proxy: Proxy, rand: random.Random) -> str:
    """Choose what happens to the next enqueue."""
    kind = rand.choices(("swallow", "reset", "truncate"), (5, 2, 1))[0]
    lasting = rand.random() < 0.25
    proxy.on("enqueue", kind, _ALL_TRIES if lasting else 1, after=3)  # type: ignore[arg-type]
    if lasting and rand.random() < 0.3:
        proxy.on("withdraw", kind, _ALL_TRIES, after=3)  # type: ignore[arg-type]
        return f"{kind}, nothing is answered"
    return f"{kind}, {'the whole deadline' if lasting else 'once'}"


def _enqueue(field: Field, client: jobq.Client, token: str, place: int) -> tuple[str, str]:
    """Enqueue, and note the answer; it in words, and the job's id."""
    queue = field.queues[place % len(field.queues)]
    try:
        job = app.work.options(client=client, queue=queue).enqueue(token=token, seconds=0.0)
    except StoreUnavailableError as error:
        field.produced.note(token, error.job_id or "", "ambiguous" if error.ambiguous else "failed")
        return "in doubt" if error.ambiguous else "refused", error.job_id or ""
    inline = job.ended_at is not None
    field.produced.note(token, "" if inline else job.id, "acked")
    return "ran inline" if inline else "queued", job.id


def _ask(field: Field, token: str, place: int, job_id: str) -> str:
    """What a careful producer does who does not know: ask for the job, and send it again if there is none."""
    try:
        field.client.get(job_id)
    except JobNotFoundError:
        return f"then {_enqueue(field, field.client, token, place)[0]}"
    field.produced.note(token, job_id, "acked")
    return "had landed"
