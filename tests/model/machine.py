"""Runs the scripts and the reference side by side, and compares them after each step."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

from rq import Queue as RqQueue
from rq.job import Job as RqJob

from jobq import calls, lua
from jobq.codec import Serializer
from jobq.keys import Keys
from jobq.rq_bridge import iso
from jobq.steps import Call, Claim, EnqueueAnswer, NewJob, Outcome
from jobq.store import Store
from jobq.why import why_plan
from tests.model.invariants import COUNTER, History, Step, check
from tests.model.reference import ENDED, LEASE_MS, End, Job, New, Reference, Suspects
from tests.model.snapshot import Snapshot, run

T0 = 1_800_000_000_000
KEYS = Keys()
STATUS = {
    "scheduled": "scheduled",
    "queued": "queued",
    "running": "started",
    "deferred": "deferred",
    "parked": "deferred",
    "succeeded": "finished",
    "dead": "failed",
    "cancelled": "canceled",
}


def load_scripts(client: Any) -> None:
    """Make the server know all scripts by their digests."""
    for name in lua.names():
        client.script_load(lua.script(name).text)


class Pair:
    """A server and the reference, at the same time of the same clock.

    Args:
        client: A server, which is emptied.
    """

    def __init__(self, client: Any, model: Reference | None = None) -> None:
        client.flushall()
        self.client = client
        self.model = Reference(T0) if model is None else model
        self.history = History()
        self.now = Snapshot()
        self.called: set[str] = set()
        """Names of the scripts that were run."""
        self.sound = True
        """No step has failed yet."""

    # ------------------------------------------------------------------ one step

    def _done(self, name: str, after: Snapshot, answer: Any, expected: Any, facts: dict[str, Any]) -> None:
        step = Step(name, self.model.now_ms, self.now, after, answer, facts)
        self.now, self.sound = after, False
        assert answer == expected, f"{name} {facts} answered {answer}, the reference {expected}"
        self._note(step)
        check(step, self.history)
        gone = {job_id for job_id, (_, now) in step.moved().items() if now is None}
        self.history.forget(gone)
        if name not in ("rq_delete", "rq_empty"):
            # One that rq cancelled while it ran is ended by its status, and still has its lease.
            gone &= {member.partition(":")[0] for member in step.before.zset("jobq:leases")}
        self.history.swept_by_rq |= gone
        self._compare(after)
        self.sound = True

    def _compare(self, after: Snapshot) -> None:
        compare_parts(server_view(after), model_view(self.model))

    def call(
        self, call: Call[Any], expected: Any, read: Callable[[Any], Any] = lambda answer: answer, **facts: Any
    ) -> Any:
        """Run a script and compare ``read`` of its answer, and all that it left behind."""
        self.called.add(call.script)
        reply, after = run(self.client, self.now, *call.command())
        answer = call.decode(reply)
        self._done(call.script, after, read(answer), expected, facts)
        return answer

    def tool(self, name: str, action: Callable[[], object], **facts: Any) -> None:
        """Let one of rq's tools, or a test's own hand, do something."""
        run(self.client, self.now)
        when = datetime.fromtimestamp(self.model.now_ms / 1000, tz=UTC)
        with mock.patch("rq.utils.now", return_value=when):
            action()
        _, read = run(self.client, Snapshot())
        # No tool shortens an expiry by seconds: that was the time that the tool took.
        before = self.now.left_s
        same = {key for key, left in read.left_s.items() if 0 < before.get(key, 0) - left <= 20}
        after = Snapshot(
            read.values, {key: before[key] if key in same else s for key, s in read.left_s.items()}
        )
        self._done(name, after, None, None, facts)

    def pass_time(self, seconds: int) -> None:
        """Both clocks go on."""
        self.model.pass_time(seconds)
        _, after = run(self.client, self.now, passed_s=seconds)
        self._done("time", after, None, None, {"seconds": seconds})

    def _note(self, step: Step) -> None:
        """What history alone cannot see in the keys."""
        history, facts = self.history, step.facts
        if step.name == "enqueue":
            for new, (word, job_id) in zip(facts["new"], step.answer, strict=True):
                if word in ("queued", "scheduled"):
                    history.acked.add(job_id)
                    if new.replace and new.dedup:
                        held = step.before.values.get(f"jobq:dedup:{new.dedup[1]}", ":")
                        if step.before.status(held[2:]) == "started":
                            history.keyless.add(held[2:])
                elif word == "replaced":
                    history.keyless.discard(job_id)
        elif step.name == "cancel" and step.answer == "cancelled":
            history.cancelled.add(facts["job_id"])
        elif step.name == "replay":
            queued = {i for i, word in zip(facts["job_ids"], step.answer, strict=True) if word == "queued"}
            again = {i for i in queued if step.before.status(i) != "queued"}
            history.forget(again)
        elif step.name == "rq_requeue":
            history.keyless.add(facts["job_id"])
            history.expiring.add(facts["job_id"])
        elif step.name == "rq_stock_pop" and facts["dies"]:
            history.popped.add(facts["job_id"])
        elif step.name == "claim" and step.answer[0] == "ok":
            history.expiring -= {row[0] for row in step.answer[1]}

    # ------------------------------------------------------------------ the scripts

    def enqueue(self, queue: str, new: Sequence[New]) -> None:
        """Send jobs in one call."""
        jobs = []
        for one in new:
            fields = {
                "data": one.payload.encode(),
                "origin": queue,
                "created_at": iso(self.model.now_ms),
                "enqueued_at": iso(self.model.now_ms),
                "description": "t.x",
                "timeout": "180",
            }
            asked = (("lm", ";".join(map(str, one.gates))), ("or", one.order or ""), ("tn", one.tenant or ""))
            fields |= {name: str(value) for name, value in asked if value}
            mode, name = one.dedup or ("", "")
            jobs.append(
                NewJob(
                    id=one.id,
                    fields=fields,
                    at_ms=one.due_ms,
                    dedup_key=name,
                    dedup_mode=mode,
                    window_ms=one.window_s * 1000,
                    replace=one.replace,
                    bound_id=one.bound,
                    quota=str(one.quota or ""),
                )
            )
        call = calls.enqueue(KEYS, queue, jobs, True, now_ms=self.model.now_ms)
        before = {job_id for ids in self.model.lists.values() for job_id in ids}
        expected = self.model.enqueue(queue, new)
        replaced = Counter(job_id for word, job_id in expected if word == "replaced")
        still = before - {job_id for job_id, times in replaced.items() if times > 1}

        def read(answers: list[EnqueueAnswer]) -> list[tuple[str, str]]:
            if any(one.dedup for one in new):
                self._adopt_order(still)
            return [tuple(answer) for answer in answers]

        self.call(call, expected, read, new=new)

    def _adopt_order(self, still: set[str]) -> None:
        """Take the server's order of what a call with dedup keys brought, or replaced twice: none is promised.

        Args:
            still: Ids whose order is promised.
        """
        for queue, ids in self.model.lists.items():
            found = [_text(job_id) for job_id in self.client.lrange(KEYS.queue(queue), 0, -1)]
            same = [i for i in found if i in still] == [i for i in ids if i in still]
            if same and sorted(found) == sorted(ids):
                self.model.lists[queue] = found

    def claim(
        self, queue: str, exec_id: str, number: int, n: int, known: Sequence[str], suspects: Suspects = "run"
    ) -> list[tuple[str, str]]:
        """Claim jobs; their ids and tokens."""
        now = self.model.now_ms
        word, ids = self.model.claim(queue, exec_id, number, n, known, suspects)
        jobs = [self.model.jobs[job_id] for job_id in ids]
        expected = (word, [(j.id, j.payload, j.attempts, j.lost, j.crashes) for j in jobs])
        call = calls.claim(
            KEYS,
            queue,
            exec_id=exec_id,
            number=number,
            n=n,
            lease_ms=LEASE_MS,
            worker_name="w",
            started_at_iso=iso(now),
            suspects=suspects,
            known=known,
            now_ms=now,
        )

        def read(claim: Claim) -> Any:
            return claim.status, [(j.id, payload(j.data), j.attempts, j.lost, j.crashes) for j in claim.jobs]

        answer = self.call(call, expected, read, queue=queue, exec_id=exec_id, number=number)
        return [(job.id, job.token) for job in answer.jobs]

    def settle(self, queue: str, ends: Sequence[End]) -> list[str]:
        """Settle attempts of one queue in one call."""
        outcomes = [
            Outcome(
                job_id=end.id,
                token=end.token,
                kind=end.kind,  # type: ignore[arg-type]
                spends=end.spends,
                delay_ms=end.delay_ms,
                reason=end.reason,
                bucket=end.bucket,
                record=b"{}" if end.record else b"",
                result=b"MQ==" if end.kind == "succeeded" else b"",
                exc=b"eA==" if end.kind == "dead" else b"",
                keep_s=end.keep_s,
                crash=end.crash,
                alone=end.alone,
                counters=(COUNTER,),
            )
            for end in ends
        ]
        members = [(end.id, end.token) for end in ends]
        call = calls.settle(KEYS, queue, outcomes, iso(self.model.now_ms), now_ms=self.model.now_ms)
        answer: list[str] = self.call(call, self.model.settle(queue, ends), members=members, ends=ends)
        return answer

    def heartbeat(self, members: Sequence[tuple[str, str]]) -> None:
        """Extend leases."""
        call = calls.heartbeat(KEYS, [f"{i}:{t}" for i, t in members], LEASE_MS, now_ms=self.model.now_ms)
        self.call(call, self.model.heartbeat(members), lambda beat: (beat.lost, beat.cancelled))

    def progress(self, job_id: str, token: str) -> None:
        """Note how far a job is."""
        self.call(calls.progress(KEYS, job_id, token, "1"), self.model.progress(job_id, token))

    def rescue(self, limit: int, record: bool) -> None:
        """One rescue pass."""
        now, keep_s = self.model.now_ms, 3600
        held, moved = self.model.rescue(limit, keep_s, record)
        call = calls.rescue(KEYS, LEASE_MS, limit, keep_s=keep_s, record=b"{}" if record else b"", now_ms=now)
        self.call(call, (held, sorted(moved)), lambda answer: (answer.held, sorted(answer.moved)))

    def promote(self, queues: Sequence[str], limit: int) -> None:
        """One promote pass."""
        call = calls.promote(KEYS, queues, limit, now_ms=self.model.now_ms)
        self.call(call, self.model.promote(queues, limit), lambda answer: (answer.count, answer.next_due_ms))

    def release(self) -> None:
        """Let children go."""
        call = calls.release(KEYS, now_ms=self.model.now_ms)
        released, parents = self.model.release()
        self.call(call, len(released) + parents)

    def prune(
        self, queue: str, succeeded: int, dead: int, cancelled_s: int, limit: int, cancelled: int = -1
    ) -> None:
        """One prune pass."""
        call = calls.prune(
            KEYS,
            queue,
            keep_succeeded=succeeded,
            keep_dead=dead,
            keep_cancelled_s=cancelled_s,
            keep_cancelled=cancelled,
            limit=limit,
            now_ms=self.model.now_ms,
        )
        self.call(call, self.model.prune(queue, succeeded, dead, cancelled_s, limit, cancelled))

    def sweep(self) -> None:
        """Delete the dedup keys that refuse nobody."""
        names = [key for key in self.now.values if key.startswith(KEYS.dedup(""))]
        if names:
            call: Call[list[int]] = Call("free_dedup", tuple(names), ("", KEYS.p, KEYS.n, 1), list)
            idle = self.model.sweep()
            self.call(call, [int(name.removeprefix(KEYS.dedup("")) in idle) for name in names])

    def why(self, job_id: str) -> None:
        """Ask why a job has not run: something blocks it, if and only if a claim would not take it."""
        job = self.model.jobs.get(job_id)
        if job is None or job.state in (None, "running", *ENDED):
            return
        _, taken = deepcopy(self.model).claim(job.queue, "probe", 1, 10**6, ())
        plan = why_plan(KEYS, job_id, None, timedelta(milliseconds=LEASE_MS), now_ms=self.model.now_ms)
        reasons = Store(self.client).run(plan).reasons
        # That no worker lives is true here, and the claim above is by one.
        blocks = [each.code for each in reasons if each.blocks and each.code != "no_worker"]
        assert bool(blocks) != (job_id in taken), (
            f"{job_id} is {job.state}, and told {blocks or 'of nothing'}"
        )

    def shed(self, queue: str, until_ms: int) -> None:
        """Let a queue refuse new jobs, as the memory brake does."""
        self.model.shed_until[queue] = until_ms
        self.tool("shed", lambda: self.client.hset(KEYS.queue_state(queue), "shed", until_ms))

    def cancel(self, job_id: str) -> None:
        """Cancel a job, kept for ten minutes."""
        call = calls.cancel(KEYS, job_id, keep_s=600, now_ms=self.model.now_ms)
        self.call(call, self.model.cancel(job_id, 600), job_id=job_id)

    def withdraw(self, job_id: str) -> None:
        """Withdraw a job, kept for ten minutes."""
        call = calls.withdraw(KEYS, job_id, keep_s=600, now_ms=self.model.now_ms)
        self.call(call, self.model.withdraw(job_id, 600), job_id=job_id)

    def delete(self, job_id: str) -> None:
        """Delete a job."""
        self.call(calls.delete(KEYS, job_id), self.model.delete(job_id), job_id=job_id)

    def replay(self, job_ids: Sequence[str]) -> None:
        """Replay jobs."""
        call = calls.replay(KEYS, job_ids, now_ms=self.model.now_ms)
        self.call(call, self.model.replay(job_ids), job_ids=job_ids)

    def unpark(self, queue: str, bucket: str, limit: int) -> None:
        """Queue a bucket's jobs again."""
        call = calls.unpark(KEYS, queue, bucket, limit, now_ms=self.model.now_ms)
        self.call(call, self.model.unpark(queue, bucket, limit))

    def pause(self, queue: str, until_ms: int) -> None:
        """Pause a queue."""
        self.call(calls.pause(KEYS, queue, until_ms, "me", "why"), self.model.pause(queue, until_ms))

    def resume(self, queue: str) -> None:
        """Resume a queue."""
        self.call(calls.resume(KEYS, queue), self.model.resume(queue))

    def limit(self, queue: str, most: int | None) -> None:
        """Set or remove the most jobs that a queue takes."""
        key = KEYS.queue_state(queue)
        if most is None:
            self.model.most.pop(queue, None)
            self.tool("limit", lambda: self.client.hdel(key, "max"))
        else:
            self.model.most[queue] = most
            self.tool("limit", lambda: self.client.hset(key, "max", most))

    # ------------------------------------------------------------------ rq's tools

    def _rq(self, job_id: str) -> RqJob:
        return RqJob.fetch(job_id, connection=self.client, serializer=Serializer)

    def rq_cancel(self, job_id: str) -> None:
        """Cancel a job as rq does."""
        self.model.rq_cancel(job_id)
        self.tool("rq_cancel", lambda: self._rq(job_id).cancel(), job_id=job_id)

    def rq_delete(self, job_id: str) -> None:
        """Delete a job as rq does."""
        self.model.rq_delete(job_id)
        self.tool("rq_delete", lambda: self._rq(job_id).delete(), job_id=job_id)

    def rq_requeue(self, job_id: str) -> None:
        """Requeue a dead letter as rq does."""
        self.model.rq_requeue(job_id)
        self.tool("rq_requeue", lambda: self._rq(job_id).requeue(), job_id=job_id)

    def rq_empty(self, queue: str) -> None:
        """Delete all that a queue's list names, as rq does."""
        self.model.rq_empty(queue)
        self.tool("rq_empty", lambda: RqQueue(queue, connection=self.client).empty(), queue=queue)


def _text(value: bytes) -> str:
    return value.decode()


def payload(data: bytes) -> str:
    """A payload that rq may have compressed."""
    return (data if data.startswith(b"{") else zlib.decompress(data)).decode()


# --------------------------------------------------------------------------- comparing


def compare_parts(there: dict[str, Any], here: dict[str, Any]) -> None:
    """The server holds what the reference holds.

    Raises:
        AssertionError: It does not; the message names the part and the difference.
    """
    for part, expected in here.items():
        found = there[part]
        assert found == expected, f"{part}: the server has {_differing(found, expected)}"


def _differing(found: Any, expected: Any) -> str:
    if isinstance(expected, dict):
        keys = {key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)}
        found, expected = {key: found.get(key) for key in keys}, {key: expected.get(key) for key in keys}
    return f"{found}, the reference {expected}"


def server_view(state: Snapshot) -> dict[str, Any]:
    """What every reference predicts, by part."""
    hashes, queues = state.hashes, state.queues
    stones = {
        key[7:]: "stone"
        for key, value in state.values.items()
        if key.startswith("rq:job:") and key.count(":") == 2 and "status" not in value
    }
    jobs = {
        job_id: {
            "status": found["status"],
            "queue": found["origin"],
            "since": int(found.get("q", "0")),
            "payload": payload(found["data"].encode("latin-1")),
            "attempts": int(found.get("attempts", "0")),
            "lost": int(found.get("lost", "0")),
            "crashes": int(found.get("crashes", "0")),
            "cancel asked": found["status"] == "started" and "cx" in found,
            "bucket": found.get("pb") if found["status"] == "deferred" else None,
            "reason": found.get("why") if found["status"] == "failed" else None,
            "key": found.get("dk"),
            "records": len(state.values.get(f"jobq:attempts:{job_id}", ())),
        }
        for job_id, found in hashes.items()
    }
    return {
        "jobs": {**jobs, **stones},
        "expiries": {
            key[7:]: left
            for key, left in state.left_s.items()
            if key[:7] == "rq:job:" and key.count(":") == 2
        },
        "lists": {queue: state.waiting(queue) for queue in queues if state.waiting(queue)},
        "leases": state.zset("jobq:leases"),
        "scheduled": {i: round(s * 1000) for q in queues for i, s in state.zset(f"rq:scheduled:{q}").items()},
        "deferred": {i for q in queues for i in state.zset(f"rq:deferred:{q}")},
        "kept": {
            (queue, word): found
            for queue in queues
            for word in ("finished", "failed", "canceled")
            if (found := state.zset(f"rq:{word}:{queue}"))
        },
        "keys": {
            key.removeprefix("jobq:dedup:"): (value, state.left_s.get(key))
            for key, value in state.values.items()
            if key.startswith("jobq:dedup:")
        },
        "cancels": state.values.get("jobq:cancels", set()),
        "after": set(state.zset("jobq:after")),
        "buckets": {
            key.removeprefix("jobq:parked:"): value
            for key, value in state.values.items()
            if key.startswith("jobq:parked:") and key.count(":") > 2
        },
        "known buckets": {
            key.removeprefix("jobq:parked:"): value
            for key, value in state.values.items()
            if key.startswith("jobq:parked:") and key.count(":") == 2
        },
    }


def model_view(model: Reference) -> dict[str, Any]:
    """What the reference predicts, by part."""

    def view(job: Job) -> Any:
        if job.state is None:
            return "stone"
        return {
            "status": STATUS[job.state],
            "queue": job.queue,
            "since": job.since_ms,
            "payload": job.payload,
            "attempts": job.attempts,
            "lost": job.lost,
            "crashes": job.crashes,
            "cancel asked": job.state == "running" and job.cancel_asked,
            "bucket": job.bucket if job.state == "parked" else None,
            "reason": job.reason if job.state == "dead" else None,
            "key": None if job.dedup is None else ":".join(job.dedup),
            "records": job.records,
        }

    jobs = model.jobs.values()
    known: dict[str, set[str]] = {}
    for queue, bucket in model.buckets:
        known.setdefault(queue, set()).add(bucket)
    return {
        "jobs": {job.id: view(job) for job in jobs},
        "expiries": {job.id: job.expires_s - model.uptime_s for job in jobs if not math.isinf(job.expires_s)},
        "lists": {queue: ids for queue, ids in model.lists.items() if ids},
        "leases": {f"{job_id}:{token}": ends for (job_id, token), ends in model.leases.items()},
        "scheduled": {job.id: job.due_ms for job in jobs if job.state == "scheduled"},
        "deferred": {job.id for job in jobs if job.state in ("deferred", "parked")},
        "kept": {(queue, STATUS[state]): ids for (queue, state), ids in model.kept.items() if ids},
        "keys": {
            name: (
                f"{held.mode}:{held.id}",
                None if math.isinf(held.expires_s) else held.expires_s - model.uptime_s,
            )
            for name, held in model.keys.items()
        },
        "cancels": model.cancels,
        "after": set(model.after),
        "buckets": {f"{queue}:{bucket}": ids for (queue, bucket), ids in model.buckets.items()},
        "known buckets": known,
    }
