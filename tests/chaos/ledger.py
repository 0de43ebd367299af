"""The ledgers of an experiment: what was acknowledged, what ran; and the verdict that compares them.

Neither trusts a log or the queue itself: each line is on disk, fsynced, before what it tells of goes on.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Acknowledgement = Literal["acked", "failed", "ambiguous"]


def append(path: str | Path, line: str) -> None:
    """One whole line, on disk when this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Offer:
    """One line of the producers' ledger: an enqueue and how it was answered."""

    token: str
    job_id: str
    at: float
    outcome: Acknowledgement


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the handlers' ledger: a run began (``start``) or came to its end (``end``), or a task's own word."""

    word: str
    token: str
    job_id: str
    attempt: int
    pid: int
    at: float


class ProducerLedger:
    """Written by producers, from any number of threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._lock = threading.Lock()

    def note(self, token: str, job_id: str, outcome: Acknowledgement) -> None:
        """Append one answer."""
        with self._lock:
            append(self.path, f"{token} {job_id or '-'} {time.time():.6f} {outcome}")

    def offers(self) -> list[Offer]:
        """All of them, oldest first."""
        found = []
        for line in self.path.read_text().splitlines():
            token, job_id, at, outcome = line.split(" ")
            found.append(Offer(token, job_id, float(at), outcome))  # type: ignore[arg-type]
        return found


class HandlerLedger:
    """Written by tasks, in any number of processes; read here again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._seen: list[Entry] = []
        self._of: defaultdict[str, list[Entry]] = defaultdict(list)
        self._at = 0
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """All of them, oldest first."""
        with self._lock:
            self._read()
            return list(self._seen)

    def of(self, job_id: str) -> list[Entry]:
        """Those of one job, oldest first: a look that costs the same however long the ledger is."""
        with self._lock:
            self._read()
            return list(self._of[job_id])

    def _read(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.decode().splitlines():
            word, token, job_id, attempt, pid, at = line.split(" ")
            entry = Entry(word, token, job_id, int(attempt), int(pid), float(at))
            self._seen.append(entry)
            self._of[job_id].append(entry)


@dataclass
class Verdict:
    """What the two ledgers say.

    Attributes:
        lost: Acknowledged, and no run of it came to its end.
        phantom: Ran, and nobody had offered it.
        duplicates: Runs beyond the first of the same attempt.
        recovered: Ambiguous enqueues that ran.
        refused_ran: Refused for certain, and ran all the same.
    """

    acked: int = 0
    lost: list[str] = field(default_factory=list)
    phantom: list[str] = field(default_factory=list)
    duplicates: int = 0
    recovered: int = 0
    ambiguous: int = 0
    refused_ran: list[str] = field(default_factory=list)


def compare(offers: Iterable[Offer], runs: Iterable[Entry]) -> Verdict:
    """Hold the ledgers against each other."""
    # The last word counts: an ambiguous enqueue that is sent again becomes an acknowledged one.
    outcomes = {offer.token: offer.outcome for offer in offers}
    starts: Counter[tuple[str, int]] = Counter()
    ended: set[str] = set()
    for entry in runs:
        if entry.word == "start":
            starts[entry.token, entry.attempt] += 1
        elif entry.word == "end":
            ended.add(entry.token)
    ran = {token for token, _ in starts}
    acked = [token for token, outcome in outcomes.items() if outcome == "acked"]
    unsure = [token for token, outcome in outcomes.items() if outcome == "ambiguous"]
    return Verdict(
        acked=len(acked),
        lost=[token for token in acked if token not in ended],
        phantom=sorted(ran - outcomes.keys()),
        duplicates=sum(count - 1 for count in starts.values()),
        recovered=sum(token in ended for token in unsure),
        ambiguous=len(unsure),
        refused_ran=[token for token, outcome in outcomes.items() if outcome == "failed" and token in ran],
    )


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: when, and the jobs that ran under a lease in the processes it ended."""

    at: float
    jobs: frozenset[str]


def rerun_waits(kills: Iterable[Kill], runs: Iterable[Entry]) -> list[float]:
    """Seconds from each kill to the next start of each job it interrupted, sorted."""
    starts: Mapping[str, list[float]] = defaultdict(list)
    for entry in runs:
        if entry.word == "start":
            starts[entry.job_id].append(entry.at)
    return sorted(
        min(later) - kill.at
        for kill in kills
        for job_id in kill.jobs
        if (later := [at for at in starts[job_id] if at > kill.at])
    )


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` of the sorted values do not exceed; 0 of none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0
