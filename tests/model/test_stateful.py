"""Any sequence of steps, rq's tools and clock jumps included: the server answers and holds what the reference does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.model.invariants import nothing_left
from tests.model.machine import KEYS, Pair, load_scripts
from tests.model.reference import ENDED, LOST_LIMIT, MIN_KEEP_S, SUSPECTS, End, Job, New, Suspects
from tests.support.server import Flavour, Servers

QUEUES = ("q", "r")
BUCKETS = ("t.new", "t.old")
EXECUTORS = ("a", "b")
MODES = ("f", "s", "w")
DAY_S = 86_400

queues = st.sampled_from(("q", "q", "q", "r"))
executors = st.sampled_from(EXECUTORS)
some = st.integers(0, 11)
"""Picks one of what is there, the newest first."""
delays = st.sampled_from((0, 0, 0, 1, 1000, 1500, 30_000))
plain = st.fixed_dictionaries(
    {"delay_ms": delays, "dedup": st.none(), "replace": st.just(False), "bound": st.just("*")}
)
keyed = st.fixed_dictionaries(
    {
        "delay_ms": delays,
        "dedup": st.tuples(st.sampled_from(MODES), st.sampled_from(("t.x:1", "t.x:2"))),
        "replace": st.booleans(),
        "bound": st.sampled_from(("*", "*", "own", "holder")),
    }
)
batches = st.lists(plain, min_size=1, max_size=3) | st.lists(plain | keyed, min_size=1, max_size=3)
kinds = st.sampled_from(
    (
        "succeeded",
        "retry",
        "dead",
        "snooze",
        "cancelled",
        "park",
        "hand_back",
        "limited",
        "interrupted",
        "interrupted",
    )
)
ends = st.fixed_dictionaries(
    {
        "kind": kinds,
        "spends": st.booleans(),
        "delay_ms": st.sampled_from((0, 700, 2000)),
        "bucket": st.sampled_from(BUCKETS),
        "record": st.booleans(),
        "keep_s": st.sampled_from((1, 60, 100, DAY_S)),
        "crash": st.booleans(),
        "alone": st.booleans(),
    }
)


RARE: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "sweep": st.fixed_dictionaries({}),
    "shed": st.fixed_dictionaries({"queue": queues, "for_ms": st.sampled_from((0, 5000))}),
    "delete": st.fixed_dictionaries({"pick": some}),
    "pause": st.fixed_dictionaries({"queue": queues, "for_ms": st.sampled_from((0, 2000))}),
    "resume": st.fixed_dictionaries({"queue": queues}),
    "limit": st.fixed_dictionaries({"queue": queues, "most": st.none() | st.integers(1, 3)}),
    "rq_empty": st.fixed_dictionaries({"queue": queues}),
    "rq_child": st.fixed_dictionaries({"queue": queues, "picks": st.lists(some, min_size=1, max_size=2)}),
    "rq_stock_pop": st.fixed_dictionaries({"queue": queues, "dies": st.booleans()}),
    "rq_stock_end": st.fixed_dictionaries({"pick": some}),
    "rq_requeue": st.fixed_dictionaries({"pick": some}),
    "withdraw": st.fixed_dictionaries({"pick": some, "unknown": st.booleans()}),
    "release": st.fixed_dictionaries({}),
    "why": st.fixed_dictionaries({"pick": some}),
    "rq_delete": st.fixed_dictionaries({"pick": some}),
}
"""Steps that together come up as often as two of the others: most of a job's life is the usual one."""
rare_steps = st.one_of(*(st.tuples(st.just(name), options) for name, options in RARE.items()))


class Machine(RuleBasedStateMachine):
    """Rules over one server.

    Attributes:
        SCRIPTS: What they run, all of it.
    """

    SCRIPTS = frozenset(
        (
            "cancel", "claim", "delete", "enqueue", "free_dedup", "heartbeat", "pause", "progress", "promote", "prune",
            "release", "replay", "rescue", "resume", "settle", "unpark", "withdraw",
        )
    )  # fmt: skip
    called: ClassVar[set[str]] = set()

    def __init__(self, client: Any) -> None:
        super().__init__()
        self.pair = Pair(client)
        self.model = self.pair.model
        self.ids: list[str] = []
        self.came: set[str] = set()
        self.sent: list[tuple[str, list[New], list[int]]] = []
        self.numbers = dict.fromkeys(EXECUTORS, 0)
        self.claims: dict[str, tuple[str, int, list[str], Suspects]] = {}
        self.held: list[tuple[str, str, str]] = []
        self.settled: tuple[str, list[End]] | None = None

    # ------------------------------------------------------------------ choosing

    def _id(self, pick: int) -> str:
        return self.ids[-1 - pick % len(self.ids)]

    def _new_id(self) -> str:
        self.ids.append(f"j{len(self.ids)}")
        return self.ids[-1]

    def _which(self, pick: int, fits: Callable[[Job], bool]) -> str | None:
        """One of the jobs that fit; None when there is none."""
        found = [job.id for job in self.model.jobs.values() if job.state is not None and fits(job)]
        return found[pick % len(found)] if found else None

    def _some_jobs(self) -> bool:
        return bool(self.ids)

    def _some_held(self) -> bool:
        return bool(self.held)

    # ------------------------------------------------------------------ the path of a job

    def _send(self, queue: str, new: list[New], delays: list[int]) -> None:
        due = [0 if delay == 0 else self.model.now_ms + delay for delay in delays]
        timed = [
            New(n.id, n.payload, at, n.dedup, n.window_s, n.replace, n.bound)
            for n, at in zip(new, due, strict=True)
        ]
        self.pair.enqueue(queue, timed)
        self.came |= self.model.jobs.keys()

    @initialize(queue=queues, batch=batches)
    def begin(self, queue: str, batch: list[dict[str, Any]]) -> None:
        plain_one = {"delay_ms": 0, "dedup": None, "replace": False, "bound": "*"}
        self.enqueue("q", [plain_one] * 2)
        self.enqueue(queue, batch)

    @rule(queue=queues, batch=batches)
    def enqueue(self, queue: str, batch: list[dict[str, Any]]) -> None:
        new = []
        for spec in batch:
            job_id = self._new_id()
            held = self.model.keys.get(spec["dedup"][1]) if spec["dedup"] else None
            bound = {"*": "*", "own": job_id, "holder": held.id if held else job_id}[spec["bound"]]
            new.append(
                New(
                    job_id,
                    f'{{"v":1,"n":"{job_id}"}}',
                    dedup=spec["dedup"],
                    window_s=MIN_KEEP_S if spec["dedup"] and spec["dedup"][0] == "w" else 0,
                    replace=spec["replace"],
                    bound=bound,
                )
            )
        delays = [spec["delay_ms"] for spec in batch]
        self._send(queue, new, delays)
        self.sent.append((queue, new, delays))

    @rule(pick=some)
    def enqueue_again(self, pick: int) -> None:
        """A client that heard no answer; it gives up long before a job that came can be gone again."""
        queue, new, delays = self.sent[-1 - pick % len(self.sent)]
        if not self.came & {one.id for one in new} - self.model.jobs.keys():
            self._send(queue, new, delays)

    @rule(
        queue=queues,
        exec_id=executors,
        n=st.integers(1, 3),
        known=st.lists(st.sampled_from(BUCKETS), unique=True),
        suspects=st.sampled_from(("run", "park", "park", "only")),
    )
    def claim(self, queue: str, exec_id: str, n: int, known: list[str], suspects: Suspects = "run") -> None:
        self.numbers[exec_id] += 1
        number = self.numbers[exec_id]
        if suspects == "only":
            known = [SUSPECTS]
        elif suspects == "run":
            known = [SUSPECTS, *known]
        jobs = self.pair.claim(queue, exec_id, number, n, known, suspects)
        self.held += [(queue, job_id, token) for job_id, token in jobs]
        self.claims[exec_id] = (queue, n, known, suspects)

    @precondition(lambda self: self.claims)
    @rule(exec_id=executors, back=st.sampled_from((0, 0, 1)))
    def claim_again(self, exec_id: str, back: int) -> None:
        """The same number, or, as a command that was late on its way, a lower one."""
        last = self.model.claims.get(exec_id)
        if last is not None and last.number > back:
            queue, n, known, suspects = self.claims[exec_id]
            self.pair.claim(queue, exec_id, last.number - back, n, known, suspects)

    @precondition(_some_held)
    @rule(some_ends=st.lists(st.tuples(some, ends), min_size=1, max_size=3))
    def settle(self, some_ends: list[tuple[int, dict[str, Any]]]) -> None:
        """Of any token ever held: zombies too, and what has settled before."""
        chosen = [(*self.held[-1 - pick % len(self.held)], spec) for pick, spec in some_ends]
        queue = chosen[0][0]
        outcomes = [
            End(job_id, token, reason="why", **spec) for own, job_id, token, spec in chosen if own == queue
        ]
        self.settled = (queue, outcomes)
        self.pair.settle(queue, outcomes)

    @rule(
        queue=queues,
        exec_id=executors,
        n=st.integers(1, 3),
        spec=ends,
        known=st.booleans(),
        times=st.integers(1, LOST_LIMIT),
    )
    def attempts(
        self, queue: str, exec_id: str, n: int, spec: dict[str, Any], known: bool, times: int
    ) -> None:
        """Claim and settle at once, as most jobs go; some go so several times."""
        for _ in range(times):
            before = len(self.held)
            self.claim(queue, exec_id, n, list(BUCKETS) if known else [])
            got = [(job_id, token) for _, job_id, token in self.held[before:]]
            if got:
                self.settled = (queue, [End(job_id, token, reason="why", **spec) for job_id, token in got])
                self.pair.settle(*self.settled)

    @rule(queue=queues, exec_id=executors, times=st.integers(1, LOST_LIMIT))
    def workers_die(self, queue: str, exec_id: str, times: int) -> None:
        """Claim, and never be heard of again, until somebody rescues what was claimed."""
        for _ in range(times):
            self.claim(queue, exec_id, 2, [])
            self.pair.pass_time(13)
            self.rescue(100, record=True, passes=2)

    @precondition(lambda self: self.settled)
    @rule()
    def settle_again(self) -> None:
        assert self.settled is not None
        self.pair.settle(*self.settled)

    @precondition(_some_held)
    @rule(first=some)
    def heartbeat(self, first: int) -> None:
        self.pair.heartbeat(
            [(job_id, token) for _, job_id, token in self.held[-1 - first % len(self.held) :]]
        )

    @precondition(_some_held)
    @rule(pick=some)
    def progress(self, pick: int) -> None:
        _, job_id, token = self.held[-1 - pick % len(self.held)]
        self.pair.progress(job_id, token)

    @rule(step=rare_steps)
    def rarely(self, step: tuple[str, dict[str, Any]]) -> None:
        """One of the steps that are no rules of their own."""
        name, options = step
        getattr(self, name)(**options)

    @rule(step=rare_steps)
    def now_and_then(self, step: tuple[str, dict[str, Any]]) -> None:
        self.rarely(step)

    # ------------------------------------------------------------------ time and background duties

    @rule(seconds=st.sampled_from((1, 2, 13, 70, 700)))
    def time(self, seconds: int) -> None:
        self.pair.pass_time(seconds)

    @rule(seconds=st.sampled_from((-3600, -2, 2, 3600)))
    def clock_jumps(self, seconds: int) -> None:
        """The wall clock alone: a new primary, a machine set right."""
        self.model.now_ms += seconds * 1000

    @rule(limit=st.sampled_from((1, 100)), record=st.booleans(), passes=st.integers(1, 3))
    def rescue(self, limit: int, record: bool, passes: int) -> None:
        for _ in range(passes):
            # Of several dead stock workers' jobs, which go first is not promised.
            self.pair.rescue(100 if self.model.foreign else limit, record)
            self.pair.pass_time(4)

    @rule(limit=st.sampled_from((1, 100)), names=st.permutations(QUEUES))
    def promote(self, limit: int, names: list[str]) -> None:
        self.pair.promote(names, limit)

    def release(self) -> None:
        self.pair.release()

    @rule(
        queue=queues,
        succeeded=st.integers(0, 2),
        dead=st.sampled_from((-1, 0, 1)),
        cancelled_s=st.sampled_from((0, 300)),
        limit=st.sampled_from((1, 100)),
        cancelled=st.sampled_from((-1, 0, 1)),
    )
    def prune(
        self, queue: str, succeeded: int, dead: int, cancelled_s: int, limit: int, cancelled: int
    ) -> None:
        self.pair.prune(queue, succeeded, dead, cancelled_s, limit, cancelled)

    def sweep(self) -> None:
        self.pair.sweep()

    def shed(self, queue: str, for_ms: int) -> None:
        self.pair.shed(queue, self.model.now_ms + for_ms)

    # ------------------------------------------------------------------ what operators ask for

    @rule(pick=some)
    def cancel(self, pick: int) -> None:
        self.pair.cancel(self._id(pick))

    def withdraw(self, pick: int, unknown: bool) -> None:
        """Of a job that came, or of one that is still on its way."""
        self.pair.withdraw(self._new_id() if unknown else self._id(pick))

    def why(self, pick: int) -> None:
        self.pair.why(self._id(pick))

    def delete(self, pick: int) -> None:
        self.pair.delete(self._id(pick))

    @rule(picks=st.lists(some, min_size=1, max_size=3))
    def replay(self, picks: list[int]) -> None:
        self.pair.replay([self._id(pick) for pick in picks])

    @rule(queue=queues, bucket=st.sampled_from((*BUCKETS, SUSPECTS)), limit=st.sampled_from((1, 100)))
    def unpark(self, queue: str, bucket: str, limit: int) -> None:
        self.pair.unpark(queue, bucket, limit)

    def pause(self, queue: str, for_ms: int) -> None:
        self.pair.pause(queue, self.model.now_ms + for_ms if for_ms else 0)

    def resume(self, queue: str) -> None:
        self.pair.resume(queue)

    def limit(self, queue: str, most: int | None) -> None:
        self.pair.limit(queue, most)

    # ------------------------------------------------------------------ rq's tools

    def rq_child(self, queue: str, picks: list[int]) -> None:
        """Of parents that have no other child: rq's set has no order to compare."""
        client = self.pair.client
        parents = {self._id(pick) for pick in picks}
        live = {p for p in parents if p in self.model.jobs and self.model.jobs[p].state not in (*ENDED, None)}
        if not live or any(self.model.children.get(parent) for parent in live):
            return
        child = self._new_id()

        def write() -> None:
            fields = {
                "data": "{}",
                "origin": queue,
                "status": "deferred",
                "description": "t.x",
                "timeout": "180",
            }
            client.hset(KEYS.job(child), mapping=fields)
            client.zadd(KEYS.deferred(queue), {child: self.model.now_ms // 1000})
            client.sadd(KEYS.dependencies(child), *live)
            for parent in live:
                client.sadd(KEYS.dependents(parent), child)

        self.model.rq_child(child, queue, frozenset(live))
        self.model.jobs[child].payload = "{}"
        self.pair.tool("rq_child", write)

    @rule(pick=some)
    def rq_cancel(self, pick: int) -> None:
        job_id = self._which(pick, lambda job: job.state not in ENDED)
        if job_id is not None:
            self.pair.rq_cancel(job_id)

    def rq_delete(self, pick: int) -> None:
        job_id = self._which(pick, lambda job: True)
        if job_id is not None:
            self.pair.rq_delete(job_id)

    def rq_requeue(self, pick: int) -> None:
        job_id = self._which(pick, lambda job: job.state == "dead")
        if job_id is not None:
            self.pair.rq_requeue(job_id)

    def rq_empty(self, queue: str) -> None:
        self.pair.rq_empty(queue)

    def rq_stock_pop(self, queue: str, dies: bool) -> None:
        """A stock worker takes the next job, and either dies with it at once or starts it."""
        waiting = self.model.lists.get(queue, [])
        job = self.model.jobs.get(waiting[0]) if waiting else None
        if job is None or job.state != "queued" or self.model.children.get(job.id):
            return
        client, until = self.pair.client, self.model.now_ms // 1000 + 60

        def pop() -> None:
            client.lpop(KEYS.queue(queue))
            if not dies:
                client.hset(KEYS.job(job.id), mapping={"status": "started", "worker_name": "stock"})
                client.zadd(KEYS.wip(queue), {f"{job.id}:stock": until})

        self.model.stock_pop(queue, None if dies else 60)
        self.pair.tool("rq_stock_pop", pop, job_id=job.id, dies=dies)

    def rq_stock_end(self, pick: int) -> None:
        job_id = self._which(pick, lambda job: job.state == "running" and job.id in self.model.foreign)
        if job_id is None:
            return
        client, queue, until = (
            self.pair.client,
            self.model.jobs[job_id].queue,
            self.model.now_ms // 1000 + 500,
        )

        def end() -> None:
            client.zrem(KEYS.wip(queue), f"{job_id}:stock")
            client.hset(KEYS.job(job_id), "status", "finished")
            client.expire(KEYS.job(job_id), 500)
            client.zadd(KEYS.finished(queue), {job_id: until})

        self.model.stock_end(job_id, 500)
        self.pair.tool("rq_stock_end", end)

    # ------------------------------------------------------------------ the end

    def teardown(self) -> None:
        """All comes to an end, and leaves nothing behind."""
        self._end()
        self.called.update(self.pair.called)

    def _end(self) -> None:
        if not (self.ids and self.pair.sound):
            return
        for queue in QUEUES:
            self.pair.resume(queue)
            self.pair.limit(queue, None)
        self.pair.pass_time(3 * DAY_S)  # further than the clock was ever set back
        for _ in range(3):
            self.pair.rescue(100, False)
            self.pair.pass_time(4)
        self.pair.promote(QUEUES, 100)
        ran = True
        while ran:
            ran = False
            for queue in QUEUES:
                self.numbers["a"] += 1
                jobs = self.pair.claim(queue, "a", self.numbers["a"], 100, (*BUCKETS, SUSPECTS))
                self.pair.settle(queue, [End(job_id, token, "succeeded") for job_id, token in jobs])
                ran = ran or bool(jobs)
            self.pair.release()
        for job_id in self.ids[-3:]:
            self.pair.why(job_id)
        open_ids = [job.id for job in self.model.jobs.values() if job.state not in (*ENDED, None)]
        for job_id in open_ids:
            assert self.model.jobs[job_id].state == "deferred" or job_id in self.pair.history.popped, job_id
            self.pair.cancel(job_id)
        self.pair.release()
        self.pair.sweep()
        self.pair.pass_time(8 * DAY_S)
        for queue in QUEUES:
            self.pair.prune(queue, 0, 0, 0, 100)
        nothing_left(self.pair.now, self.pair.history)


def play(client: Any, *, sequences: int, derandomize: bool) -> None:
    """Run so many sequences on one server, and print how to run the shortest failing one again."""
    load_scripts(client)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Machine(client),
        settings=settings(
            max_examples=sequences,
            stateful_step_count=50,
            derandomize=derandomize,
            database=None,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Machine.called == Machine.SCRIPTS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_any_sequence(servers: Servers, flavour: Flavour) -> None:
    """Not on fakeredis: it expires keys by its own clock, which a slow sequence outlives."""
    play(servers.client(flavour), sequences=150, derandomize=True)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_ten_thousand_sequences(servers: Servers, flavour: Flavour) -> None:
    play(servers.client(flavour), sequences=10_000, derandomize=False)
