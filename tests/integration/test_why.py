"""Why a job waits, runs or has ended: each reason, from a real queue; and no reason without words."""

from __future__ import annotations

import ast
import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Formatter
from typing import Any, get_args, get_type_hints

import pytest
import redis

import jobq
from jobq import calls, lua
from jobq.client import Client
from jobq.errors import JobNotFoundError
from jobq.job import DEAD_REASONS, JobState
from jobq.reasons import CLAIM_CODES, ORDER_CODES, OUTCOME_CODES, STATE_CODES, WORDS, park_code
from jobq.registration import register_worker
from jobq.steps import Batch, Claim, OutcomeKind
from jobq.tasks import Registry, task
from jobq.why import Why
from tests.support.hand import Hand

SOURCE = Path(jobq.__file__).parent
registry = Registry()


@task("w.add", registry=registry)
def add(a: int) -> int:
    return a


@task("w.pay", registry=registry, dedup="{a}", concurrency=jobq.Concurrency(1))
def pay(a: int) -> int:
    return a


@task("w.mail", registry=registry, rate=jobq.Rate(1, per=60, key="{a}"))
def mail(a: int) -> int:
    return a


@task("w.fair", registry=registry, fair="{a}")
def fair(a: int) -> int:
    return a


@task("w.burst", registry=registry, rate=jobq.Rate(61, per=60, burst=1))
def burst(a: int) -> int:
    return a


@pytest.fixture
def hand(client: Client) -> Hand:
    return Hand(client)


def enqueue(client: Client, what: Any = add, **options: Any) -> str:
    job: jobq.Job = what.options(client=client, **options).enqueue(a=1)
    return job.id


def serve(
    client: Client, *, state: str = "idle", busy: int = 0, tasks: tuple[str, ...] = ("w.add",),
    queues: tuple[str, ...] = ("medium",), parts: Sequence[tuple[int, int]] = (),
) -> None:  # fmt: skip
    """A worker of the medium lane, as far as Redis can tell."""
    now = time.time_ns() // 1_000_000
    client.run(
        register_worker(
            client.keys, name="w1-medium", queues=queues, slots=2, busy=busy, tasks=tasks, host="h", pid=1,
            state=state, birth_ms=now, now_ms=now, parts=parts,
        )
    )  # fmt: skip


def codes(why: Why) -> list[str]:
    return [reason.code for reason in why.reasons]


def only(why: Why, code: str) -> Any:
    (found,) = [reason for reason in why.reasons if reason.code == code]
    return found


# --------------------------------------------------------------------------- no reason without words


def _park_words() -> Iterator[str]:
    """Every reason that a script or a worker parks a job with."""
    for name in lua.names():
        text = lua.script(name).text.decode()
        for match in re.finditer(
            r"(?:HSET'.*|put\()'park', (?:counts and )?('[a-z_]+'(?: or '[a-z_]+')?)", text
        ):
            yield from re.findall(r"'([a-z_]+)'", match[1])
    for node in ast.walk(ast.parse((SOURCE / "worker" / "opening.py").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "parked":
            reason = node.args[2]
            if isinstance(reason, ast.JoinedStr):
                reason = reason.values[0]
            yield (
                str(reason.value)
                if isinstance(reason, ast.Constant)
                else "rq job with webhooks: jobq does not"
            )


def test_every_park_reason_has_words_of_its_own() -> None:
    words = {*_park_words()}
    assert {"rate", "concurrency", "unknown_task", "no_key"} <= words
    of_gates = {"gate_open", "backed_off", "held"}
    assert {park_code(word) for word in words} == {*STATE_CODES["parked"]} - {
        "rate_limited",
        "parked",
        *of_gates,
    }


def test_every_state_end_and_refusal_has_words() -> None:
    assert {*STATE_CODES} == {state.value for state in JobState}
    assert {*DEAD_REASONS} < {*STATE_CODES["dead"]}
    refusals = {*get_args(get_type_hints(Claim)["status"])} - {"ok", "stale"}
    assert {*CLAIM_CODES} == refusals
    assert {*OUTCOME_CODES} == {*get_args(OutcomeKind)}
    kinds = {*re.findall(r"kind [=~]= '([a-z_]{2,})'", lua.script("settle").text.decode())}
    assert kinds - {"gate"} <= {*OUTCOME_CODES}
    modes = re.search(r"tenant and '(\w+)' or '(\w+)'", lua.script("enqueue").text.decode())
    assert modes
    assert {*ORDER_CODES} == {*modes.groups()}
    named = {
        code
        for table in (STATE_CODES, CLAIM_CODES, OUTCOME_CODES, ORDER_CODES)
        for found in table.values()
        for code in found
    }
    assert named <= {*WORDS}


def test_every_reason_of_the_table_can_be_given() -> None:
    text = (SOURCE / "why.py").read_text()
    given = {code for table in (STATE_CODES, OUTCOME_CODES) for found in table.values() for code in found}
    unused = {code for code in WORDS if code not in given and f'"{code}"' not in text}
    assert not unused


def test_what_blocks_says_what_to_do_or_ends_by_itself() -> None:
    for code, words in WORDS.items():
        assert not words.blocks or words.remedy or code == "rate", code
        assert [field for _, field, _, _ in Formatter().parse(words.remedy or "") if field == ""] == []


@pytest.mark.parametrize("kind", OUTCOME_CODES)
def test_every_end_of_an_attempt_is_told(client: Client, hand: Hand, kind: str) -> None:
    client.queues.limit("medium", rate="100/m")
    job_id = enqueue(client)
    spends = kind in ("succeeded", "retry", "dead")
    hand.settle(hand.claim()[0], kind, spends=spends, delay_ms=60_000, reason="no_key", bucket="b")
    assert {*codes(client.why(job_id))} & {*OUTCOME_CODES[kind]}


# --------------------------------------------------------------------------- it is in its queue


def test_nobody_serves_the_queue(client: Client) -> None:
    why = client.why(enqueue(client))
    assert codes(why)[0] == "no_worker"
    assert only(why, "no_worker").remedy == "start one: jobq worker --queue medium"
    assert (why.ahead, why.eta) == (0, None)


def test_jobs_ahead_and_the_time_they_take(client: Client, hand: Hand) -> None:
    serve(client)
    for _ in range(30):
        enqueue(client)
    for _ in range(20):
        hand.succeed()
    job_id = enqueue(client)
    why = client.why(job_id)
    assert why.ahead == 10
    assert why.eta is not None
    # 20 in this minute or in the last: the pace is what was counted over the time since its beginning.
    assert timedelta(seconds=0) < why.eta - datetime.now(UTC) <= timedelta(seconds=61)
    behind = only(why, "behind")
    assert "10 jobs of queue medium are ahead of it" in behind.text
    assert abs(behind.since - datetime.now(UTC)) < timedelta(seconds=30)


def test_nothing_is_expected_before_a_limit_lets_it_in(client: Client, hand: Hand) -> None:
    """The pace of the last minutes said 40 s where the next start was an hour away."""
    serve(client)
    client.queues.limit("medium", rate="1/h")
    jobs = [pay.options(client=client).enqueue(a=n) for n in range(3)]
    hand.succeed()
    why = client.why(jobs[-1].id)
    opens = next(each.until for each in why.reasons if each.code == "queue_rate")
    assert opens is not None
    assert opens - datetime.now(UTC) > timedelta(minutes=50)
    assert why.eta is not None
    assert why.eta >= opens
    behind = next(each for each in why.reasons if each.code == "behind")
    assert behind.until is not None
    assert behind.until >= opens


def test_an_order_says_where_the_job_stands(client: Client, hand: Hand) -> None:
    serve(client)
    ids = [job.id for job in add.options(client=client).enqueue_many([{"a": n} for n in range(500)])]
    first, last = enqueue(client, order=1), enqueue(client, order=10)
    why = client.why(first)
    assert (codes(why), why.ahead) == (["order", "next"], 0)
    assert only(why, "order").text == "it has order 1 of 1 to 10: it stands as if it had come 120 s earlier"
    assert only(client.why(last), "order").text.endswith("150 s later")
    assert client.why(last).ahead == 501
    assert client.why(ids[0]).ahead == 1
    assert only(client.why(ids[0]), "no_order").text.startswith("some jobs of queue medium have an order")
    assert hand.claim(n=1)[0].id == first


def test_turns_say_how_many_of_ones_own_are_before(client: Client, hand: Hand) -> None:
    serve(client, tasks=("w.add", "w.fair"))
    flood = [fair.options(client=client).enqueue(a=1).id for _ in range(50)]
    small, plain = fair.options(client=client).enqueue(a=2).id, enqueue(client)
    assert client.why(small).ahead <= 2
    assert "0 jobs of its own tenant" in only(client.why(small), "turn").text
    why = client.why(flood[-1])
    assert why.ahead == 51
    assert "49 jobs of its own tenant" in only(why, "turn").text
    assert only(client.why(plain), "no_turn").text.endswith("0 jobs of those are before it")
    assert client.why(plain).ahead <= 2


def test_the_queue_is_paused(client: Client) -> None:
    serve(client)
    job_id = enqueue(client)
    client.queues.pause("medium", for_=600, reason="bank is down")
    why = client.why(job_id)
    first = why.reasons[0]
    assert (first.code, first.blocks) == ("paused", True)
    assert "bank is down" in first.text
    assert first.remedy == "jobq queues resume medium"
    assert first.until is not None
    assert why.eta is None


@pytest.mark.parametrize(
    ("worker", "code"),
    [
        ({"state": "draining"}, "worker_draining"),
        ({"state": "quiet"}, "worker_quiet"),
        ({"busy": 2}, "busy"),
        ({"tasks": ("other",)}, "task_not_served"),
        ({}, "next"),
    ],
)
def test_what_the_workers_say(client: Client, worker: dict[str, Any], code: str) -> None:
    serve(client, **worker)
    assert codes(client.why(enqueue(client)))[0] == code


@pytest.mark.parametrize(
    ("busy", "parts", "code"),
    [
        (1, [(1, 1), (2, 0)], "busy"),  # it has as many as it may
        (2, [(1, 0), (2, 2)], "busy"),  # the other has them all
        (1, [(1, 0), (2, 1)], "next"),
    ],
)
def test_a_queue_that_shares_slots(
    client: Client, busy: int, parts: list[tuple[int, int]], code: str
) -> None:
    serve(client, busy=busy, parts=parts, queues=("medium", "low"))
    why = client.why(enqueue(client))
    assert codes(why)[0] == code
    if code == "busy":
        assert "all 1 slot (shared with low) of queue medium are busy" in why.reasons[0].text
    stats = client.stats().queues
    assert [(stats[name].slots, stats[name].busy) for name in ("medium", "low")] == parts


def test_rq_suspend_and_short_memory(client: Client, redis_client: redis.Redis) -> None:
    serve(client)
    job_id = enqueue(client)
    redis_client.set("rq:suspended", 1)
    redis_client.hset("jobq:q:medium", "shed", str(time.time_ns() // 1_000_000 + 60_000))
    found = codes(client.why(job_id))
    assert found[0] == "suspended"
    assert "shed" in found


def test_the_queue_is_limited(client: Client, hand: Hand) -> None:
    serve(client)
    client.queues.limit("medium", rate="1/m", concurrency=1)
    enqueue(client)
    job_id = enqueue(client)
    assert len(hand.claim()) == 1
    why = client.why(job_id)
    assert only(why, "queue_concurrency").blocks
    assert only(why, "queue_rate").text == "queue medium is limited to 1/m, which is used up"
    freed = only(why, "queue_rate").until
    assert timedelta(seconds=50) < freed - datetime.now(UTC) < timedelta(seconds=70)


def test_a_rate_that_is_not_used_up_blocks_nobody(client: Client, hand: Hand) -> None:
    serve(client)
    client.queues.limit("medium", rate="3/m")
    for _ in range(3):
        job_id = enqueue(client)
        assert codes(client.why(job_id)) == ["next"]
        hand.claim()
    assert codes(client.why(enqueue(client))) == ["queue_rate", "next"]


def test_a_rate_that_was_lowered_frees_when_enough_have_left_the_window(
    client: Client, redis_client: redis.Redis
) -> None:
    serve(client)
    now = time.time_ns() // 1_000_000
    starts = {f"a{seconds}": now - seconds * 1000 for seconds in (50, 40, 30, 20, 10)}
    redis_client.zadd("jobq:rate:q:medium", starts | {"gone": now - 90_000})
    client.queues.limit("medium", rate="2/m")
    frees = only(client.why(enqueue(client)), "queue_rate").until
    # Of five starts four must be over: the one 20 s ago is, 60.5 s after it.
    assert abs((frees - datetime.fromtimestamp(now / 1000, UTC)).total_seconds() - 40.5) < 0.1


@pytest.mark.parametrize("rate", [jobq.Rate(61, burst=1), jobq.Rate(20_000, per=3600)])
def test_a_rate_with_a_burst_that_is_used_up(
    client: Client, redis_client: redis.Redis, rate: jobq.Rate
) -> None:
    serve(client)
    client.queues.limit("medium", rate=rate)
    job_id = enqueue(client)
    assert codes(client.why(job_id)) == ["next"]
    burst = rate.burst or 1_000
    step = (rate.per_ms + 500) / (rate.limit - burst)
    now = time.time_ns() // 1_000_000
    # Full again in so long: the next may start when one step of it is left.
    redis_client.set("jobq:rate:q:medium", f"{now + 30_000 + burst * step:.6f}")
    found = only(client.why(job_id), "queue_rate")
    assert (
        abs((found.until - datetime.fromtimestamp(now / 1000, UTC)).total_seconds() - 30 - step / 1000) < 0.1
    )


def test_a_queue_that_was_told_to_slow_down(client: Client, hand: Hand) -> None:
    serve(client)
    first, second = enqueue(client), enqueue(client)
    hand.settle(hand.claim(n=1)[0], "limited", delay_ms=60_000)
    for job_id in (first, second):
        reason = client.why(job_id).reasons[0]
        assert (reason.code, reason.remedy) == ("backed_off", "jobq queues resume medium")
        assert reason.text == (
            f"job {first} was told to slow down (RateLimited): no job of queue medium starts before"
        )
        assert timedelta(seconds=50) < reason.until - datetime.now(UTC) <= timedelta(seconds=60)
    client.queues.resume("medium")
    assert "backed_off" not in codes(client.why(second))


def test_a_key_that_was_told_to_slow_down(client: Client, hand: Hand) -> None:
    first, second = enqueue(client, mail), enqueue(client, mail)
    hand.settle(hand.claim()[0], "limited", delay_ms=60_000)
    for job_id in (first, second):
        reason = client.why(job_id).reasons[0]
        assert (reason.code, reason.blocks) == ("backed_off", True)
        assert f"job {first} was told to slow down" in reason.text
        assert "under the limit of task w.mail, for its key" in reason.text
    client.queues.resume("medium")
    assert codes(client.why(second))[0] == "rate"


def test_an_entry_that_its_list_has_lost(client: Client, redis_client: redis.Redis) -> None:
    serve(client)
    job_id = enqueue(client)
    redis_client.delete("rq:queue:medium")
    assert only(client.why(job_id), "dropped").remedy == "jobq doctor --fix"


# --------------------------------------------------------------------------- it waits elsewhere


def test_a_delayed_job_names_its_time(client: Client) -> None:
    serve(client)
    why = client.why(enqueue(client, delay=3600))
    (reason,) = why.reasons
    assert (reason.code, reason.blocks) == ("scheduled", True)
    assert timedelta(minutes=59) < reason.until - datetime.now(UTC) <= timedelta(hours=1)


def test_nobody_promotes(client: Client, redis_client: redis.Redis) -> None:
    job_id = enqueue(client, delay=3600)
    redis_client.zadd("rq:scheduled:medium", {job_id: time.time() - 60})
    why = client.why(job_id)
    assert codes(why) == ["scheduled", "overdue", "no_worker"]
    # Others look after other queues.
    assert only(why, "overdue").remedy == "start one: jobq worker --queue medium"


def test_a_retry_tells_the_last_error(client: Client, hand: Hand) -> None:
    serve(client)
    job_id = enqueue(client)
    (job,) = hand.claim()
    record = b'{"number":1,"outcome":"failed","error_type":"ValueError","error":"no funds"}'
    hand.settle(job, "retry", spends=True, delay_ms=60_000, record=record)
    why = client.why(job_id)
    assert codes(why) == ["retrying", "attempt"]
    assert why.reasons[0].text == "attempt 1 failed: ValueError: no funds; the next waits for its backoff"
    assert why.reasons[1].text == "attempt 1 failed: ValueError: no funds"


def test_a_snooze_is_told_apart_from_a_backoff(client: Client, hand: Hand) -> None:
    serve(client)
    job_id = enqueue(client)
    hand.settle(hand.claim()[0], "snooze", delay_ms=60_000)
    (reason,) = client.why(job_id).reasons
    assert reason.text == "it asked to run later (Snooze), which spends no attempt, and is not due yet"
    assert (reason.code, reason.remedy) == ("snoozed", f"jobq jobs promote {job_id} queues it now")
    assert reason.until is not None
    # Then it fails, waits for its backoff, and asks again.
    for kind, code in (("retry", "retrying"), ("snooze", "snoozed"), ("retry", "retrying")):
        client.promote(job_id)
        assert "snoozed" not in codes(client.why(job_id))
        hand.settle(hand.claim()[0], kind, spends=kind == "retry", delay_ms=60_000)
        assert codes(client.why(job_id)) == [code]


def test_what_replaces_a_snoozed_job_has_not_snoozed(client: Client, hand: Hand) -> None:
    serve(client)
    options = pay.options(client=client, on_duplicate="replace", delay=0)
    job_id = options.enqueue(a=1).id
    hand.settle(hand.claim()[0], "snooze", delay_ms=60_000)
    pay.options(client=client, on_duplicate="replace", delay=60).enqueue(a=1)
    assert codes(client.why(job_id))[0] == "scheduled"


def _delayed_job(client: Client, hand: Hand) -> str:
    return enqueue(client, delay=3600)


def _retrying_job(client: Client, hand: Hand) -> str:
    job_id = enqueue(client)
    hand.settle(hand.claim()[0], "retry", spends=True, delay_ms=60_000)
    return job_id


def _parked_job(client: Client, hand: Hand) -> str:
    job_id = enqueue(client)
    hand.settle(hand.claim()[0], "park", reason="no_key", bucket="b")
    return job_id


def _deferred_job(client: Client, hand: Hand) -> str:
    job_id = enqueue(client)
    client.run(Batch((("HSET", client.keys.job(job_id), "status", "deferred"),)))
    return job_id


@pytest.mark.parametrize(
    ("make", "first"),
    [
        (_delayed_job, "scheduled"),
        (_retrying_job, "retrying"),
        (_parked_job, "no_key"),
        (_deferred_job, "parents_done"),
    ],
)
def test_whatever_waits_is_told_what_will_keep_it(
    client: Client, hand: Hand, redis_client: redis.Redis, make: Any, first: str
) -> None:
    job_id = make(client, hand)
    client.queues.pause("medium", reason="bank is down")
    redis_client.set("rq:suspended", 1)
    assert codes(client.why(job_id)) == [first, "suspended", "paused", "no_worker"]
    redis_client.delete("rq:suspended")
    client.queues.resume("medium")
    serve(client, tasks=("other",))
    assert codes(client.why(job_id)) == [first, "task_not_served"]


def test_a_pause_that_ends_before_the_job_is_due_keeps_it_from_nothing(client: Client) -> None:
    serve(client)
    job_id = enqueue(client, delay=3600)
    client.queues.pause("medium", for_=600)
    assert codes(client.why(job_id)) == ["scheduled"]
    client.queues.pause("medium", for_=7200)
    assert codes(client.why(job_id)) == ["scheduled", "paused"]


def test_a_job_without_a_payload(client: Client, redis_client: redis.Redis) -> None:
    serve(client)
    job_id = enqueue(client)
    redis_client.hdel(f"rq:job:{job_id}", "data")
    assert codes(client.why(job_id))[0] == "unreadable_job"


def test_parents(client: Client, redis_client: redis.Redis) -> None:
    parent, child = enqueue(client), enqueue(client)
    redis_client.hset(f"rq:job:{child}", "status", "deferred")
    redis_client.sadd(f"rq:job::{child}:dependencies", parent)
    reason = client.why(child).reasons[0]
    assert (reason.code, reason.remedy) == ("parents", f"jobq why {parent}")
    redis_client.hset(f"rq:job:{parent}", "status", "finished")
    assert codes(client.why(child))[0] == "parents_done"


@pytest.mark.parametrize(
    ("park", "code"),
    [
        ("unknown_task", "unknown_task"),
        ("no_key", "no_key"),
        ("newer_payload: version 3", "newer_payload"),
        ("rq job with webhooks: jobq does not run these", "unsupported"),
        ("something new", "parked"),
    ],
)
def test_a_parked_job_names_its_reason(client: Client, hand: Hand, park: str, code: str) -> None:
    job_id = enqueue(client)
    hand.settle(hand.claim()[0], "park", reason=park, bucket="b")
    reason = client.why(job_id).reasons[0]
    assert (reason.code, reason.blocks) == (code, True)
    assert reason.since is not None


def test_a_concurrency_limit_names_who_holds_it(client: Client, hand: Hand) -> None:
    first = pay.options(client=client).enqueue(a=1).id
    second = pay.options(client=client).enqueue(a=2).id
    assert [job.id for job in hand.claim()] == [first]
    reason = client.why(second).reasons[0]
    assert (reason.code, reason.remedy) == ("concurrency", f"jobq why {first}")
    assert reason.text == f"its concurrency limit of task w.pay is held by job {first}; it is the next"


def test_a_limit_is_named_before_the_job_is_parked_at_it(client: Client, hand: Hand) -> None:
    serve(client, tasks=("w.mail", "w.pay"))
    enqueue(client, mail)
    pay.options(client=client).enqueue(a=1)
    assert len(hand.claim()) == 2
    second, third = enqueue(client, mail), pay.options(client=client).enqueue(a=2).id
    assert codes(client.why(second)) == ["rate", "next"]
    assert codes(client.why(third))[0] == "concurrency"
    assert {client.get(job_id).state for job_id in (second, third)} == {JobState.QUEUED}


def test_a_limit_with_a_burst_tells_a_parked_job_when_it_frees(client: Client, hand: Hand) -> None:
    serve(client, tasks=("w.burst",))
    ids = [burst.options(client=client).enqueue(a=1).id for _ in range(3)]
    assert len(hand.claim()) == 1
    # One start each 60.5 / 60 s beyond the burst.
    for place, job_id in enumerate(ids[1:], 1):
        (reason,) = client.why(job_id).reasons
        assert reason.code == "rate"
        away = (reason.until - datetime.now(UTC)).total_seconds()
        assert 0 < place * 1.0084 - away < 5
        assert reason.text.endswith("it is the next" if place == 1 else "1 waits before it")


def test_a_limit_that_has_room_again(client: Client, hand: Hand) -> None:
    serve(client, tasks=("w.pay",))
    first = pay.options(client=client).enqueue(a=1).id
    second, third = (pay.options(client=client).enqueue(a=a).id for a in (2, 3))
    hand.settle(hand.claim()[0])
    assert client.get(first).state is JobState.SUCCEEDED
    assert codes(client.why(second)) == ["gate_open", "holds_key"]
    assert codes(client.why(third)) == ["concurrency", "holds_key"]


def test_a_rate_limit_names_when_it_frees(client: Client, hand: Hand) -> None:
    enqueue(client, mail)
    second = enqueue(client, mail)
    assert len(hand.claim()) == 1
    reason = client.why(second).reasons[0]
    assert (reason.code, reason.text) == (
        "rate", "its rate limit of task w.mail, for its key is used up; it is the next",
    )  # fmt: skip
    assert timedelta(seconds=50) < reason.until - datetime.now(UTC) < timedelta(seconds=70)


# --------------------------------------------------------------------------- it runs, or has ended


def test_a_running_job_tells_where_and_how_far(client: Client, hand: Hand) -> None:
    job_id = enqueue(client)
    (job,) = hand.claim()
    client.run(calls.progress(client.keys, job_id, job.token, '[0.25,"a quarter"]'))
    client.cancel(job_id)
    why = client.why(job_id)
    assert codes(why) == ["running", "cancel_requested", "lease"]
    assert why.reasons[0].text == "attempt 1 runs on hand, 25% done (a quarter)"
    lease = only(why, "lease").until - datetime.now(UTC)
    assert timedelta(0) < lease <= timedelta(seconds=13)


def test_a_lost_lease(client: Client, hand: Hand, redis_client: redis.Redis) -> None:
    job_id = enqueue(client)
    hand.claim()
    (member,) = redis_client.zrange("jobq:leases", 0, -1)
    redis_client.zadd("jobq:leases", {member: 1})  # type: ignore[type-var]
    assert "lease_expired" in codes(client.why(job_id))
    redis_client.delete("jobq:leases")
    assert "no_lease" in codes(client.why(job_id))


@pytest.mark.parametrize("word", [*DEAD_REASONS, "bespoke"])
def test_a_dead_job_says_why_and_what_to_do(client: Client, hand: Hand, word: str) -> None:
    job_id = enqueue(client)
    hand.settle(hand.claim()[0], "dead", spends=True, reason=word)
    reason = client.why(job_id).reasons[0]
    assert reason.code == (word if word in DEAD_REASONS else "died")
    assert reason.remedy
    assert not reason.blocks


@pytest.mark.parametrize("word", ["too_large", "not_json"])
def test_a_result_that_was_not_kept_is_told(
    client: Client, hand: Hand, settings: jobq.Settings, redis_client: redis.Redis, word: str
) -> None:
    job = add.options(client=client).enqueue(a=1)
    hand.settle(hand.claim()[0], spends=True, reason=f"result_{word}")
    assert codes(client.why(job.id)) == ["succeeded", f"result_{word}"]
    assert client.get(job.id).result_dropped == word
    with pytest.raises(jobq.ResultNotKeptError, match="was not kept") as caught:
        job.result()
    assert ("JOBQ_RESULT_LIMIT" in str(caught.value)) == (word == "too_large")
    assert (caught.value.job_id, caught.value.task) == (job.id, "w.add")

    async def asked() -> None:
        async with jobq.AsyncClient(settings) as twin:
            with pytest.raises(jobq.ResultNotKeptError):
                await twin.result(job.id)

    asyncio.run(asked())


def test_who_keeps_a_result_pays_no_field_for_it(
    client: Client, hand: Hand, redis_client: redis.Redis
) -> None:
    job = add.options(client=client).enqueue(a=1)
    hand.succeed(value=7)
    assert job.result() == 7
    assert not redis_client.hexists(f"rq:job:{job.id}", "why")
    assert client.get(job.id).result_dropped is None


def test_a_success_and_a_cancelled_job(client: Client, hand: Hand) -> None:
    done, dropped = enqueue(client), enqueue(client)
    hand.succeed()
    client.cancel(dropped)
    assert codes(client.why(done)) == ["succeeded"]
    assert codes(client.why(dropped)) == ["cancelled"]
    with pytest.raises(JobNotFoundError):
        client.why("nobody")


def test_a_duplicate_leads_to_its_holder(client: Client) -> None:
    holder = pay.options(client=client).enqueue(a=1)
    again = pay.options(client=client).enqueue(a=1)
    assert again.deduplicated
    assert "holds_key" in codes(client.why(again.id))
    assert client.why(again.id).job.id == holder.id


def test_interruptions_are_told(client: Client, redis_client: redis.Redis) -> None:
    serve(client)
    job_id = enqueue(client)
    redis_client.hset(f"rq:job:{job_id}", mapping={"lost": "2", "crashes": "1"})
    assert "2 lost, 1 crashed" in only(client.why(job_id), "interrupted").text


async def _why_async(settings: jobq.Settings, job_id: str) -> Why:
    async with jobq.AsyncClient(settings) as client:
        return await client.why(job_id)


def test_the_async_client_says_the_same(client: Client, hand: Hand, settings: jobq.Settings) -> None:
    enqueue(client)
    hand.claim()
    for job_id in (enqueue(client), client.jobs(state="running").items[0].id):
        assert codes(asyncio.run(_why_async(settings, job_id))) == codes(client.why(job_id))


def test_the_words_hold_no_params(client: Client) -> None:
    job = pay.options(client=client).enqueue(a=987654)
    assert "987654" not in repr(client.why(job.id).reasons)
