"""One attempt, classified: each ending of a task becomes exactly one settle outcome."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any

import pytest

import jobq
from jobq import events
from jobq.codec import Codec
from jobq.config import Settings
from jobq.events import Event
from jobq.failures import describe_error
from jobq.queues import LANES
from jobq.records import encode_extra
from jobq.retry import Backoff, RetryPolicy
from jobq.rq_bridge import encode_result
from jobq.steps import Claimed
from jobq.tasks import Registry, Task, task
from jobq.worker.attempt import Assignment
from jobq.worker.children import decode_report, decode_work, encode_report, encode_work
from jobq.worker.opening import PARK_UNSUPPORTED, no_key_bucket
from jobq.worker.runner import Runner
from jobq.worker.spawner import describe

KEY = "k" * 32


class Sink:
    def __init__(self) -> None:
        self.cancelled: set[str] = set()

    def progress(self, job_id: str, fraction: float, text: str) -> None: ...
    def log(self, job_id: str, text: str) -> None: ...
    def cancel_requested(self, job_id: str) -> bool:
        return job_id in self.cancelled


tasks = Registry()


def _declare(name: str, **options: Any) -> Any:
    return task(name, registry=tasks, **options)


@_declare("r.ok")
def ok(value: int) -> dict[str, int]:
    return {"value": value + 1}


@_declare("r.none")
def none() -> None: ...


@_declare("r.correlated")
def correlated() -> str:
    return jobq.current_job().correlation_id


@_declare("r.fails")
def fails() -> None:
    raise RuntimeError("no luck")


@_declare("r.raises", max_attempts=2, backoff=jobq.Fixed(7))
def raises(word: str) -> None:
    signals = {
        "error": RuntimeError("no luck"),
        "retry": jobq.Retry(after=30),
        "retry-default": jobq.Retry(),
        "snooze": jobq.Snooze(for_=60),
        "cancel": jobq.Cancel("not needed"),
        "discard": jobq.Discard("too old"),
        "exit": SystemExit(3),
        "soft": jobq.SoftTimeout("time is up"),
    }
    raise signals[word]


@_declare("r.secret")
def secret(code: Annotated[str, jobq.Secret]) -> None:
    raise ValueError(f"wrong code {code}")


@_declare("r.async")
async def async_task(value: int) -> int:
    await asyncio.sleep(0)
    return value * 2


@_declare("r.unkept", keep_result=False)
def unkept() -> str:
    return "a receipt"


@_declare("r.unencodable")
def unencodable() -> float:
    return float("nan")


def work(made: Task[..., Any], *, codec: Codec | None = None, attempts: int = 0, **params: Any) -> Assignment:
    data = (codec or Codec()).encode(
        task=made.name, version=made.version, params=params, secrets=made.secrets, job_id="j1"
    )
    return assignment(data, made.name, attempts=attempts)


def assignment(data: bytes, name: str, *, attempts: int = 0, rq: dict[str, str] | None = None) -> Assignment:
    claimed = Claimed("j1", "exec.1", data, attempts, 0, 0, 1_000, b"", 30, name, b"", rq)
    return Assignment(0, claimed, time.monotonic(), 1_010)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def runner(sink: Sink) -> Runner:
    return make_runner(sink)


def make_runner(sink: Sink, codec: Codec | None = None, default: RetryPolicy | None = None) -> Runner:
    return Runner(
        codec=codec or Codec(),
        registry=tasks,
        spec=LANES["high"],
        worker="w-1",
        sink=sink,
        default=default,
        rand=random.Random(1),
    )


def test_a_success_carries_its_result_and_its_counters(runner: Runner) -> None:
    report = runner.run(work(ok, value=1))
    assert (report.outcome.kind, report.outcome.spends, report.event) == ("succeeded", True, "job.succeeded")
    assert report.outcome.result
    assert report.outcome.counters[0] == "s:r.ok"
    assert report.outcome.counters[-1] == "m"  # 10 ms is within the target of 5 s


def test_the_settings_say_how_a_task_without_a_policy_is_retried(sink: Sink) -> None:
    policy = Settings(max_attempts=2, retry_delay="9s", redis_url="redis://h").retry_policy()
    runner = make_runner(sink, default=policy)
    first = runner.run(work(fails)).outcome
    assert (first.kind, 9_000 <= first.delay_ms <= 11_250) == ("retry", True)
    assert runner.run(work(fails, attempts=1)).outcome.kind == "dead"
    assert describe(tasks, Settings(retry_delay="9s", redis_url="redis://h"))["r.fails"] == (
        RetryPolicy(3, Backoff(base=9)).to_dict()
    )


def test_a_task_reads_its_correlation_id(runner: Runner) -> None:
    named = work(correlated)
    named.job = replace(named.job, extra=encode_extra(correlation_id="order-7", tags=("t",)))
    for job, expected in ((named, "order-7"), (work(correlated), "")):
        assert runner.run(job).outcome.result == encode_result(Codec().encode_result(expected))


def test_a_run_says_that_it_started(runner: Runner) -> None:
    heard: list[Event] = []
    end = events.subscribe(heard.append)
    try:
        runner.run(work(ok, value=1))
        runner.run(work(secret, code=3))  # does not fit: it never runs
    finally:
        end()
    (started,) = [event for event in heard if event.name == "job.started"]
    assert started.fields.pop("wait_ms") >= 10  # type: ignore[attr-defined]
    assert started.fields == {
        "job_id": "j1", "task": "r.ok", "queue": "high", "attempt": 1, "max_attempts": 3, "worker": "w-1"
    }  # fmt: skip


def test_a_none_needs_no_result(runner: Runner) -> None:
    assert runner.run(work(none)).outcome.result == b""


@pytest.mark.parametrize(
    ("word", "attempts", "kind", "spends", "delay_ms"),
    [
        ("error", 0, "retry", True, 7_000),
        ("error", 1, "dead", True, 0),
        ("retry", 0, "retry", True, 30_000),
        ("retry-default", 0, "retry", True, 7_000),
        ("retry", 1, "dead", True, 0),
        ("snooze", 1, "snooze", False, 60_000),
        ("cancel", 0, "cancelled", True, 0),
        ("discard", 0, "cancelled", True, 0),
        ("exit", 0, "retry", True, 7_000),
        ("soft", 0, "retry", True, 7_000),
        ("soft", 1, "dead", True, 0),
    ],
)
def test_what_a_task_raises_decides(
    runner: Runner, word: str, attempts: int, kind: str, spends: bool, delay_ms: int
) -> None:
    outcome = runner.run(work(raises, attempts=attempts, word=word)).outcome
    assert (outcome.kind, outcome.spends, outcome.delay_ms) == (kind, spends, delay_ms)


def test_a_failure_is_recorded_with_its_traceback(runner: Runner) -> None:
    outcome = runner.run(work(raises, word="error")).outcome
    record = json.loads(outcome.record)
    assert (record["number"], record["outcome"], record["error_type"], record["worker"]) == (
        1,
        "failed",
        "RuntimeError",
        "w-1",
    )
    assert "no luck" in record["traceback"]
    assert outcome.fingerprint == record["fingerprint"]


def test_an_async_task_runs_in_a_loop_and_also_without_one(runner: Runner) -> None:
    assert asyncio.run(runner.run_async(work(async_task, value=2))).outcome.kind == "succeeded"
    assert runner.run(work(async_task, value=2)).outcome.kind == "succeeded"


def test_a_sync_task_does_not_block_the_loop_it_was_sent_to_by_mistake(runner: Runner) -> None:
    assert asyncio.run(runner.run_async(work(ok, value=2))).outcome.kind == "succeeded"


def test_a_result_that_cannot_be_kept_is_no_failure(runner: Runner) -> None:
    report = runner.run(work(unencodable))
    assert (report.outcome.kind, report.outcome.result) == ("succeeded", b"")
    assert report.outcome.reason == "result_not_json"
    assert "result not kept" in report.fields["note"]


def test_a_result_over_the_limit_is_no_failure_either(sink: Sink) -> None:
    small = Runner(
        codec=Codec(),
        registry=tasks,
        spec=LANES["high"],
        worker="w-1",
        sink=sink,
        rand=random.Random(1),
        result_limit=4,
    )
    outcome = small.run(work(ok, value=2)).outcome
    assert (outcome.kind, outcome.result, outcome.reason) == ("succeeded", b"", "result_too_large")


def test_a_task_may_keep_no_result(runner: Runner) -> None:
    outcome = runner.run(work(unkept)).outcome
    assert (outcome.kind, outcome.result, outcome.reason) == ("succeeded", b"", "")


def test_broken_json_is_a_dead_letter_and_spends_nothing(runner: Runner) -> None:
    outcome = runner.run(assignment(b'{"v":1,', "r.ok")).outcome
    assert (outcome.kind, outcome.reason, outcome.spends) == ("dead", "unreadable", False)


def test_params_that_do_not_fit_are_a_dead_letter(runner: Runner) -> None:
    outcome = runner.run(work(ok, value="no number")).outcome
    assert (outcome.kind, outcome.reason) == ("dead", "unreadable")


def test_a_forged_payload_is_rejected_and_never_run(sink: Sink) -> None:
    signer, forger = Codec([KEY]), Codec(["f" * 32])
    outcome = make_runner(sink, signer).run(work(ok, codec=Codec(), value=1)).outcome
    assert (outcome.kind, outcome.reason) == ("dead", "rejected")
    data = signer.encode(task="r.ok", version=1, params={"value": 1}, job_id="j1").replace(
        b'"value":1', b'"value":9'
    )
    outcome = make_runner(sink, signer).run(assignment(data, "r.ok")).outcome
    assert (outcome.kind, outcome.reason) == ("dead", "rejected")
    outcome = make_runner(sink, signer).run(work(ok, codec=forger, value=1)).outcome
    assert (outcome.kind, outcome.bucket) == ("park", no_key_bucket(forger.key_ids[0]))
    assert forger.key_ids != signer.key_ids  # so this worker does not claim it again at once


def test_an_unknown_task_is_parked_under_its_name(runner: Runner) -> None:
    data = Codec().encode(task="r.unknown", version=1, params={}, job_id="j1")
    outcome = runner.run(assignment(data, "r.unknown")).outcome
    assert (outcome.kind, outcome.bucket, outcome.spends) == ("park", "r.unknown", False)


def test_a_job_of_plain_rq_with_a_callback_is_parked_with_the_reason(runner: Runner) -> None:
    data = Codec().encode(task="r.ok", version=1, params={"value": 1}, job_id=None)
    outcome = runner.run(assignment(data, "r.ok", rq={"success_callback_name": "mod.fn"})).outcome
    assert (outcome.kind, outcome.bucket) == ("park", PARK_UNSUPPORTED)
    assert "callback" in outcome.reason


def test_rqs_retries_left_counts_as_attempts(runner: Runner) -> None:
    data = Codec().encode(task="r.raises", version=1, params={"word": "error"}, job_id=None)
    outcome = runner.run(assignment(data, "r.raises", attempts=1, rq={"retries_left": "3"})).outcome
    assert outcome.kind == "retry"


def test_a_job_cancelled_before_it_starts_does_not_run(runner: Runner, sink: Sink) -> None:
    sink.cancelled.add("j1")
    outcome = runner.run(work(raises, word="error")).outcome
    assert (outcome.kind, outcome.spends) == ("cancelled", False)


def test_a_secret_is_blotted_out_of_everything_kept(sink: Sink) -> None:
    codec = Codec([KEY])
    report = make_runner(sink, codec).run(work(secret, codec=codec, code="493817"))
    assert "493817" not in repr(report)
    assert "493817" not in repr(report.outcome) + repr(report.fields)
    assert "•••" in json.loads(report.outcome.record)["error"]


def test_equal_errors_have_equal_fingerprints_and_others_do_not() -> None:
    def details(kind: type[Exception], text: str) -> str:
        try:
            raise kind(text)
        except Exception as error:
            return describe_error(error, ()).fingerprint

    assert details(ValueError, "a") == details(ValueError, "b")
    assert details(ValueError, "a") != details(KeyError, "a")


def test_work_and_report_survive_the_line_to_a_child(runner: Runner) -> None:
    original = work(ok, value=1)
    there = decode_work(encode_work(original))
    assert there.job == original.job
    report = runner.run(there)
    back = decode_report(json.loads(json.dumps(encode_report(report, 1))), original)
    assert (back.outcome, back.event, back.assignment) == (report.outcome, report.event, original)


def test_a_timeout_from_outside_counts_as_an_attempt(runner: Runner) -> None:
    outcome = runner.timed_out(work(raises, word="error")).outcome
    assert (outcome.kind, outcome.spends, outcome.delay_ms) == (
        "retry",
        True,
        timedelta(seconds=7) / timedelta(milliseconds=1),
    )


class Odd(Exception):
    """Breaks whoever asks what it is."""

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise KeyError("so odd")


@_declare("r.odd", max_attempts=2)
def odd() -> None:
    raise Odd("secret words")


@pytest.mark.parametrize(("attempts", "kind"), [(0, "retry"), (1, "dead")])
def test_an_ending_that_cannot_be_worked_out_is_a_failed_attempt(
    runner: Runner, attempts: int, kind: str
) -> None:
    for report in (
        runner.run(work(odd, attempts=attempts)),
        asyncio.run(runner.run_async(work(odd, attempts=attempts))),
    ):
        assert (report.outcome.kind, report.outcome.spends) == (kind, True)
        assert report.outcome.delay_ms > 0 or kind == "dead"
        assert json.loads(report.outcome.record)["outcome"] == "failed"
        assert "secret words" not in repr(report.outcome)


def test_a_broken_override_of_a_job_asks_nothing(runner: Runner) -> None:
    job = work(raises, word="error")
    job.job = replace(job.job, overrides=b'{"backoff": null}')
    assert runner.run(job).outcome.kind == "retry"
