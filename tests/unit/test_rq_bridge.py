"""Our reading and writing of rq's formats, checked against rq's own code where it has any."""

from __future__ import annotations

import json
import os
import sys
import types
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rq
from hypothesis import given
from hypothesis import strategies as st
from rq.job import JobStatus
from rq.results import Result
from rq.utils import utcparse

from jobq import rq_bridge
from jobq.codec import Codec
from jobq.errors import ConfigError, ConflictError, JobFailedError, JobqError, Retry, SignatureError
from jobq.job import JobState
from jobq.tasks import Registry, task


def _values(**fields: str) -> list[bytes | None]:
    return [fields[name].encode() if name in fields else None for name in rq_bridge.JOB_FIELDS]


@given(st.integers(min_value=0, max_value=4_102_444_800_000))
def test_a_date_reads_back_with_rqs_own_parser(ms: int) -> None:
    text = rq_bridge.iso(ms)
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    assert utcparse(text) == expected
    assert rq_bridge.parse_iso(text) == expected


@pytest.mark.parametrize("value", [None, b"", b"yesterday", b"\xff", "2026-13-01T00:00:00Z"])
def test_an_unreadable_date_is_none(value: bytes | str | None) -> None:
    assert rq_bridge.parse_iso(value) is None


def test_every_status_of_rq_has_a_state() -> None:
    for status in JobStatus:
        state = rq_bridge.state_of(status.value)
        if status.value == "rate_limited":
            assert state is JobState.PARKED
    assert {rq_bridge.STATUS_OF[state] for state in JobState} <= {status.value for status in JobStatus}


@pytest.mark.parametrize(
    ("status", "attempts", "parked", "state"),
    [
        ("scheduled", 0, False, JobState.SCHEDULED),
        ("scheduled", 2, False, JobState.RETRYING),
        ("deferred", 0, False, JobState.DEFERRED),
        ("deferred", 0, True, JobState.PARKED),
        ("stopped", 1, False, JobState.DEAD),
        ("created", 0, False, JobState.DEFERRED),
        (None, 0, False, JobState.DEFERRED),
        ("of the future", 0, False, JobState.PARKED),
    ],
)
def test_status_to_state(status: str | None, attempts: int, parked: bool, state: JobState) -> None:
    assert rq_bridge.state_of(status, attempts=attempts, parked=parked) is state


@pytest.mark.parametrize("state", JobState)
def test_a_state_reads_back_from_its_status(state: JobState) -> None:
    attempts = 1 if state is JobState.RETRYING else 0
    read = rq_bridge.state_of(rq_bridge.STATUS_OF[state], attempts=attempts, parked=state is JobState.PARKED)
    assert read is state


def test_a_running_job_counts_the_attempt_that_runs() -> None:
    job = rq_bridge.job_from_fields(
        "j", _values(status="started", attempts="1", origin="high", description="a.b")
    )
    assert job is not None
    assert (job.attempt, job.queue, job.task, job.state) == (2, "high", "a.b", JobState.RUNNING)


def test_all_that_a_hash_tells() -> None:
    job = rq_bridge.job_from_fields(
        "j",
        _values(
            status="failed", attempts="3", origin="high", description="a.b", why="poison", fp="f1", timeout="30",
            ended_at="2026-11-22T10:00:00.000000Z", worker_name="w", jk='{"tags":["x"]}', dk="f:a.b:1",
            o='{"max_attempts":5,"timeout_ms":1500}', pr='[0.5,"half"]',
        ),
    )  # fmt: skip
    assert job is not None
    assert (job.dead_reason, job.error_fingerprint, job.max_attempts, job.worker) == ("poison", "f1", 5, "w")
    assert (job.progress, job.progress_text, job.tags) == (0.5, "half", ("x",))
    assert job.timeout == timedelta(seconds=1.5)
    assert job.ended_at == datetime(2026, 11, 22, 10, tzinfo=UTC)


def test_no_hash_is_no_job() -> None:
    assert rq_bridge.job_from_fields("j", [None] * len(rq_bridge.JOB_FIELDS)) is None


@given(
    st.lists(
        st.none() | st.binary(max_size=12),
        min_size=len(rq_bridge.JOB_FIELDS),
        max_size=len(rq_bridge.JOB_FIELDS),
    )
)
def test_no_hash_whatever_it_holds_breaks_a_listing(values: list[bytes | None]) -> None:
    rq_bridge.job_from_fields("j", values)


def test_a_dead_job_of_plain_rq_is_readable() -> None:
    job = rq_bridge.job_from_fields("j", _values(status="failed", description="app.add(1, 2)", origin="q"))
    assert job is not None
    assert (job.task, job.dead_reason) == ("app.add", "exhausted")
    stopped = rq_bridge.job_from_fields("j", _values(status="stopped"))
    assert stopped is not None
    assert stopped.dead_reason == "stopped"


def test_a_result_reads_back_through_rqs_own_class() -> None:
    entry = {
        b"type": rq_bridge.RESULT_SUCCESSFUL.encode(),
        b"worker_name": b"w",
        b"return_value": rq_bridge.encode_result(b'{"a":1}'),
    }
    restored = Result.restore("j", "1700000000000-0", entry, connection=None, serializer="json")  # type: ignore[arg-type]
    assert restored.return_value == {"a": 1}
    assert restored.type is Result.Type.SUCCESSFUL
    ours = rq_bridge.read_result(entry)
    assert ours == rq_bridge.StreamResult(succeeded=True, value=b'{"a":1}', error=None, worker="w")


def test_an_error_reads_back_through_rqs_own_class() -> None:
    entry = {b"type": b"2", b"worker_name": b"", b"exc_string": rq_bridge.encode_exc("ValueError: é")}
    restored = Result.restore("j", "1700000000000-0", entry, connection=None, serializer="json")  # type: ignore[arg-type]
    assert restored.exc_string == "ValueError: é"
    assert rq_bridge.read_result(entry).error == "ValueError: é"


@pytest.mark.parametrize("exc", [b"!", b64encode(b"not zlib"), b"\xff\xff"])
def test_an_unreadable_error_is_none(exc: bytes) -> None:
    assert rq_bridge.read_result({b"type": b"2", b"exc_string": exc}).error is None


def test_an_error_is_inflated_within_bounds() -> None:
    bomb = rq_bridge.encode_exc("x" * 50_000_000)
    error = rq_bridge.read_result({b"type": b"2", b"exc_string": bomb}).error
    assert error is not None
    assert len(error) <= 4 * 1024 * 1024


def test_a_worker_hash_has_what_rq_reads() -> None:
    fields = rq_bridge.worker_fields(
        queues=("high", "low"), pid=7, hostname="h", birth_ms=0, now_ms=1_000, state="busy", succeeded=3
    )
    assert utcparse(fields["birth"]) == datetime(1970, 1, 1, tzinfo=UTC)
    assert (fields["queues"], fields["pid"], fields["state"]) == ("high,low", "7", "busy")
    assert all(fields.values())


def test_options_of_plain_rq() -> None:
    options = rq_bridge.foreign_options(
        {"retries_left": "2", "result_ttl": "-1", "failure_ttl": "60", "ttl": "10",
         "enqueued_at": "1970-01-01T00:00:01.000000Z"}
    )  # fmt: skip
    assert options == rq_bridge.ForeignOptions(max_attempts=3, keep_dead_s=60, expires_at_ms=11_000)


def test_what_jobq_does_not_run_for_plain_rq() -> None:
    options = rq_bridge.foreign_options({"success_callback_name": "a.b", "repeats_left": "1", "webhooks": ""})
    assert options.unsupported is not None
    assert "on_success callback, repeats" in options.unsupported
    assert rq_bridge.foreign_options({}) == rq_bridge.ForeignOptions()


def test_a_second_prefix_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rq.defaults", types.SimpleNamespace(RQ_KEY_PREFIX="rq"))
    rq_bridge.bind_prefix("rq")
    with pytest.raises(ConfigError, match="imported before"):
        rq_bridge.bind_prefix("other")


def test_the_prefix_is_set_before_rq_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rq.defaults", raising=False)
    monkeypatch.setenv("RQ_KEY_PREFIX", "rq")
    rq_bridge.bind_prefix("other")
    assert os.environ["RQ_KEY_PREFIX"] == "other"


class _Connection:
    def __init__(self, *, cancelled: bool = False) -> None:
        self.cancelled = cancelled

    def hexists(self, key: str, name: str) -> bool:
        assert (key, name) == ("rq:job:j1", "cx")
        return self.cancelled


@pytest.fixture
def stock_worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run an envelope as a stock worker would: with a current job, and our codec and registry."""
    registry = Registry()

    @task("t.add", registry=registry)
    def add(a: int, b: int) -> dict[str, int]:
        return {"sum": a + b}

    @task("t.later", registry=registry)
    async def later(a: int) -> None:
        if a:
            raise Retry(after=3)

    codec = Codec(["k" * 32])
    monkeypatch.setattr(rq_bridge, "registry", registry)
    monkeypatch.setattr(rq_bridge, "_setup", lambda: (types.SimpleNamespace(key_prefix="rq"), codec))

    def run(name: str, params: dict[str, Any], *, signed_for: str = "j1", cancelled: bool = False) -> Any:
        current = types.SimpleNamespace(
            id="j1", key="rq:job:j1", origin="q", connection=_Connection(cancelled=cancelled)
        )
        monkeypatch.setattr(rq, "get_current_job", lambda: current)
        data = codec.encode(task=name, version=1, params=params, job_id=signed_for)
        return rq_bridge.perform(data.decode())

    return run


def test_perform_runs_the_task_and_returns_json(stock_worker: Any) -> None:
    assert json.dumps(stock_worker("t.add", {"a": 1, "b": 2})) == '{"sum": 3}'
    assert stock_worker("t.later", {"a": 0}) is None


def test_perform_refuses_a_payload_of_another_job(stock_worker: Any) -> None:
    with pytest.raises(SignatureError):
        stock_worker("t.add", {"a": 1, "b": 2}, signed_for="j2")


def test_perform_refuses_a_cancelled_job(stock_worker: Any) -> None:
    with pytest.raises(ConflictError, match="cancelled"):
        stock_worker("t.add", {"a": 1, "b": 2}, cancelled=True)


def test_a_retry_in_a_stock_worker_is_a_failure_that_says_why(stock_worker: Any) -> None:
    with pytest.raises(JobFailedError, match="a stock rq worker cannot give"):
        stock_worker("t.later", {"a": 1})


def test_perform_needs_an_rq_worker() -> None:
    with pytest.raises(JobqError, match="only inside an rq worker"):
        rq_bridge.perform("{}")
