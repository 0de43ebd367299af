"""A worker by hand: claims and settles through the scripts, so that a test decides how each attempt ends."""

from __future__ import annotations

from typing import Any

from jobq import calls, histogram
from jobq.client import Client
from jobq.job import Attempt
from jobq.records import encode_attempt
from jobq.rq_bridge import encode_exc, encode_result, iso
from jobq.steps import Claimed, Outcome

_TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\nValueError: no funds'


class Hand:
    """One executor."""

    def __init__(self, client: Client, name: str = "hand") -> None:
        self._client = client
        self._name = name
        self._number = 0

    def claim(self, queue: str = "medium", n: int = 100) -> list[Claimed]:
        """Take up to ``n`` jobs."""
        self._number += 1
        step = calls.claim(
            self._client.keys, queue, exec_id=self._name, number=self._number, n=n, lease_ms=12_000,
            worker_name=self._name, started_at_iso=iso(),
        )  # fmt: skip
        return self._client.run(step).jobs

    def settle(self, job: Claimed, kind: str = "succeeded", *, queue: str = "medium", **more: Any) -> str:
        """End one attempt; returns the script's word."""
        outcome = Outcome(job_id=job.id, token=job.token, kind=kind, worker=self._name, **more)  # type: ignore[arg-type]
        return self._client.run(calls.settle(self._client.keys, queue, [outcome], iso()))[0]

    def succeed(self, queue: str = "medium", value: Any = None, *, wait_ms: float = 1.0) -> Claimed:
        """Claim one job and end it well."""
        (job,) = self.claim(queue, 1)
        result = b"" if value is None else encode_result(self._client.codec.encode_result(value))
        counters = (f"s:{job.description}", f"w:{histogram.bucket(wait_ms)}", "m")
        assert self.settle(job, queue=queue, spends=True, result=result, counters=counters) == "ok"
        return job

    def kill(self, queue: str = "medium", *, fingerprint: str = "fp1", error: str = "no funds") -> Claimed:
        """Claim one job and make it a dead letter."""
        (job,) = self.claim(queue, 1)
        record = encode_attempt(
            Attempt(
                number=job.attempts + 1,
                outcome="failed",
                error_type="ValueError",
                error=error,
                traceback=_TRACE,
            )
        )
        word = self.settle(
            job, "dead", queue=queue, spends=True, reason="exhausted", fingerprint=fingerprint, record=record,
            exc=encode_exc(_TRACE), counters=(f"d:{job.description}", "x"),
        )  # fmt: skip
        assert word == "ok"
        return job
