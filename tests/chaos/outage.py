"""What experiments on outages share: durable servers, readiness as a probe sees it, and what workers say of it all."""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]

from jobq.errors import JobNotFoundError
from jobq.private_server import free_port
from tests.chaos import app
from tests.chaos.field import Field
from tests.chaos.frame import Report
from tests.support.processes import until
from tests.support.workers import Worker

ALWAYS = {"appendonly": "yes", "appendfsync": "always"}
EVERYSEC = {"appendonly": "yes", "appendfsync": "everysec"}

CONSUMING_WITHIN_S = 5.0
NOT_READY_WITHIN_S = 5.0
READY_AGAIN_WITHIN_S = 5.0
_NUMBER = re.compile(r"\d+$")
_SAMPLE_S = 0.05


class Probe:
    """Asks a worker's ``/readyz`` twenty times a second, as an orchestrator does less often."""

    def __init__(self, field: Field, worker_args: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.worker = field.start(1, "--health-port", str(self.port), *worker_args)[0]
        self._samples: list[tuple[float, bool]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="probe", daemon=True)

    def __enter__(self) -> Self:
        until(self.ready, 15)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def ready(self) -> bool:
        """Whether it says so now; False when it does not answer."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            line.request("GET", "/readyz")
            return line.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            line.close()

    def turned(self, ready: bool, since: float, before: float = float("inf")) -> float:
        """Seconds from ``since`` to the first such answer; infinite when there was none before ``before``."""
        times = (at for at, answer in list(self._samples) if since <= at < before and answer is ready)
        return next(times, float("inf")) - since

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._samples.append((time.time(), self.ready()))


def consuming_again(field: Field, since: float, within_s: float) -> float:
    """Seconds from ``since`` until every lane had begun a job; infinite when one had not after twice ``within_s``."""

    def begun() -> dict[str, float]:
        first: dict[str, float] = {}
        for entry in field.runs():
            if entry.word == "start" and entry.at > since and (number := _NUMBER.search(entry.token)):
                first.setdefault(field.queues[int(number.group()) % len(field.queues)], entry.at)
        return first if len(first) == len(field.queues) else {}

    try:
        return max(until(begun, 2 * within_s).values()) - since
    except AssertionError:
        return float("inf")


def offer(field: Field, prefix: str, queue: str | None = None) -> str:
    """Enqueue one job and note it; ``acked``, or the type of the error."""
    queue = queue or field.queues[0]
    token = f"{prefix}x{time.time_ns()}x{field.queues.index(queue)}"
    try:
        job = app.work.options(client=field.client, queue=queue).enqueue(token=token, seconds=0.0)
    except Exception as error:
        ambiguous = getattr(error, "ambiguous", False)
        field.produced.note(token, getattr(error, "job_id", ""), "ambiguous" if ambiguous else "failed")
        return type(error).__name__
    field.produced.note(token, job.id, "acked")
    return "acked"


def worst(report: Report, name: str, value: float, bound: float) -> None:
    """Hold one of several values against its bound; the figure is the worst of them."""
    so_far = report.figures.get(name, 0.0)
    report.expect(f"{name} at most {bound:g}", value <= bound, round(value, 3))
    report.figure(name, max(value, so_far if isinstance(so_far, float) else 0.0))


def judge_flips(field: Field, probe: Probe, report: Report, away: float, back: float) -> None:
    """Readiness and consumption against their bounds, for an outage from ``away`` to ``back``."""
    patience_s = field.setup.patience_s
    bound = CONSUMING_WITHIN_S + patience_s
    worst(report, "consuming again max, s", consuming_again(field, back, bound), bound)
    judge_readiness(field, probe, report, away, back)


def judge_readiness(field: Field, probe: Probe, report: Report, away: float, back: float) -> None:
    """Readiness alone."""
    patience_s = field.setup.patience_s
    worst(report, "not ready max, s", probe.turned(False, away, back), NOT_READY_WITHIN_S + patience_s)
    until(lambda: probe.turned(True, back) < float("inf"), 30)
    worst(report, "ready again max, s", probe.turned(True, back), READY_AGAIN_WITHIN_S + patience_s)


def tell_apart(field: Field, report: Report, since: float) -> int:
    """Ask after each enqueue that was ambiguous since then: it either landed or did not; how many did.

    Soon after an outage, before retention deletes what has ended.
    """
    landed = 0
    for offer in field.produced.offers():
        if offer.outcome == "ambiguous" and offer.at >= since:
            try:
                field.client.get(offer.job_id)
                landed += 1
            except JobNotFoundError:
                ran = any(entry.token == offer.token for entry in field.runs())
                report.expect("an ambiguous enqueue that is not there never ran", not ran, offer.token)
    return landed


def judge_workers(
    field: Field, report: Report, *, outages: int | None = None, rolled_back: bool = False
) -> None:
    """No worker ended, none reaped what lived, and each said once an outage that Redis was away, and once it was back.

    Args:
        outages: How many each worker saw at most; None: whether they are told of at all is not judged.
        rolled_back: The server went back to an earlier state, in which leases that workers held do not exist.
    """
    report.zero("worker exits", sum(worker.process.poll() is not None for worker in field.workers))
    reaped = sum(len(worker.events("job.rescued")) for worker in field.workers)
    if rolled_back:
        report.figure("leases that a new primary did not know", reaped)
    else:
        report.zero("live jobs reaped", reaped)
    report.zero("executors replaced", sum(len(worker.events("worker.lost")) for worker in field.workers))
    errors = [line for worker in field.workers for line in error_lines(worker)]
    report.zero("other errors logged", len(errors))
    report.problems += errors[:3]
    if outages is None:
        return
    for worker in field.workers:
        told, ended = worker.events("redis.unavailable"), worker.events("redis.recovered")
        report.expect("an outage is told of once", len(told) <= outages, len(told))
        report.expect("its end is told of once", len(ended) == len(told), f"{len(ended)} of {len(told)}")
        report.expect("its end tells its length", all("away_s" in event for event in ended))


def error_lines(worker: Worker) -> list[str]:
    """What a worker logged as an error, but for the one line that tells of an outage."""
    found = []
    for line in worker.output().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            found.append(line)
            continue
        if event.get("level") in ("error", "critical") and event.get("event") != "redis.unavailable":
            found.append(line)
    return found


def threads(worker: Worker) -> dict[int, int]:
    """Threads of each process of a worker, by process id."""
    return {process.pid: process.num_threads() for process in [psutil.Process(worker.pid), *worker.tree()]}


@contextmanager
def producing(
    field: Field, producers: int = 2, *, pause_s: float = 0.02, seconds: tuple[float, float] = (0.0, 0.2)
) -> Iterator[None]:
    """Producers that enqueue as long as the block lasts, whatever happens to Redis."""
    stop = threading.Event()
    started = [
        field.produce(10**9, prefix=letter, pause_s=pause_s, seconds=seconds, stop=stop)
        for letter in "pqrstuvw"[:producers]
    ]
    try:
        yield
    finally:
        stop.set()
        for thread in started:
            thread.join(30)


def in_flight(field: Field, at: float) -> int:
    """Jobs that ran at a moment, by the handlers' ledger."""
    begun, ended = set(), set()
    for entry in field.runs():
        if entry.at <= at:
            (begun if entry.word == "start" else ended).add((entry.job_id, entry.pid))
    return len(begun - ended)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill a file system but for some bytes; delete the file to free it again."""
    path = folder / "filler"
    room = os.statvfs(folder)
    with path.open("wb") as file:
        left = room.f_bavail * room.f_frsize - leave
        while left > 0:
            try:
                left -= os.write(file.fileno(), bytes(min(left, 65_536)))
            except OSError:
                break
    return path
