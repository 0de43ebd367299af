"""What the machines of one concern each have in common: jobs that come, are claimed, settled, lost, and taken away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.model.machine import Pair, load_scripts
from tests.model.reference import ENDED, SUSPECTS, End, Job, New

DAY_S = 86_400
EXECUTORS = ("a", "b")

some = st.integers(0, 7)
"""Picks one of what is there, the newest first."""
jumps = {"seconds": st.sampled_from((-3600, -2, 2, 3600))}
executors = st.sampled_from(EXECUTORS)
Step = tuple[str, dict[str, Any]]


def steps(*groups: Mapping[str, Mapping[str, st.SearchStrategy[Any]]]) -> st.SearchStrategy[Step]:
    """One of the named steps with what it takes; each group comes up as often as any other."""
    return st.one_of(
        *(
            st.one_of(
                *(
                    st.tuples(st.just(name), st.fixed_dictionaries(dict(takes)))
                    for name, takes in each.items()
                )
            )
            for each in groups
        )
    )


class Player(RuleBasedStateMachine):
    """Steps over one server; a machine has one rule, which takes one of them.

    Attributes:
        SCRIPTS: What its sequences run.
        called: What they have run so far.
    """

    SCRIPTS: ClassVar[frozenset[str]] = frozenset()
    called: ClassVar[set[str]]
    pair: Pair

    def __init__(self, pair: Pair, queues: tuple[str, ...]) -> None:
        super().__init__()
        self.pair = pair
        self.queues = queues
        self.ids: list[str] = []
        self.sent: list[tuple[str, list[New]]] = []
        self.came: set[str] = set()
        self.numbers = dict.fromkeys((*EXECUTORS, "end"), 0)
        self.claims: dict[str, tuple[str, int]] = {}
        self.held: list[tuple[str, str, str]] = []
        self.settled: tuple[str, list[End]] | None = None

    def play(self, step: Step) -> None:
        """Take a step."""
        name, takes = step
        getattr(self, name)(**takes)

    # ------------------------------------------------------------------ choosing

    def new_id(self) -> str:
        """An id that nobody has had."""
        self.ids.append(f"j{len(self.ids)}")
        return self.ids[-1]

    def which(self, pick: int, fits: Callable[[Job], bool] = lambda job: True) -> str | None:
        """One of the jobs that fit; None when there is none."""
        found = [job.id for job in self.pair.model.jobs.values() if job.state is not None and fits(job)]
        return found[-1 - pick % len(found)] if found else None

    # ------------------------------------------------------------------ the path of a job

    def send(self, queue: str, new: list[New]) -> None:
        """Enqueue jobs in one call."""
        self.sent.append((queue, new))
        self.pair.enqueue(queue, new)
        self.came |= self.pair.model.jobs.keys()

    def send_again(self, pick: int) -> None:
        """A client that heard no answer; it gives up long before a job that came can be gone again."""
        if self.sent:
            queue, new = self.sent[-1 - pick % len(self.sent)]
            if not self.came & {one.id for one in new} - self.pair.model.jobs.keys():
                self.pair.enqueue(queue, new)
                self.came |= self.pair.model.jobs.keys()

    def claim(self, queue: str, exec_id: str, n: int) -> list[tuple[str, str]]:
        """Claim with a new number."""
        self.numbers[exec_id] += 1
        jobs = self.pair.claim(queue, exec_id, self.numbers[exec_id], n, (SUSPECTS,))
        self.claims[exec_id] = (queue, n)
        self.held += [(queue, job_id, token) for job_id, token in jobs]
        return jobs

    def claim_again(self, exec_id: str) -> None:
        """The reply was lost: the same number, which yields the same jobs and counts none twice."""
        last = self.pair.model.claims.get(exec_id)
        if last is not None and exec_id in self.claims:
            queue, n = self.claims[exec_id]
            self.pair.claim(queue, exec_id, last.number, n, (SUSPECTS,))

    def settle(self, pick: int, count: int, end: dict[str, Any]) -> None:
        """Of any token ever held: zombies too, and what has settled before."""
        if self.held:
            first = len(self.held) - 1 - pick % len(self.held)
            queue = self.held[first][0]
            chosen = [(i, t) for where, i, t in self.held[first : first + count] if where == queue]
            self.settled = (queue, [End(job_id, token, reason="why", **end) for job_id, token in chosen])
            self.pair.settle(*self.settled)

    def settle_again(self) -> None:
        """The reply was lost."""
        if self.settled is not None:
            self.pair.settle(*self.settled)

    def run(self, queue: str, exec_id: str, n: int, end: dict[str, Any]) -> None:
        """Claim and settle at once, as most jobs go."""
        jobs = self.claim(queue, exec_id, n)
        if jobs:
            self.settled = (queue, [End(job_id, token, reason="why", **end) for job_id, token in jobs])
            self.pair.settle(*self.settled)

    def die(self, queue: str, exec_id: str, n: int) -> None:
        """Claim, be killed, and be rescued."""
        self.claim(queue, exec_id, n)
        self.pair.pass_time(13)
        self.rescue(passes=2)

    def rescue(self, passes: int) -> None:
        """Rescue passes, one soon after the other."""
        for _ in range(passes):
            self.pair.rescue(100, record=False)
            self.pair.pass_time(4)

    def promote(self) -> None:
        """Queue what is due."""
        self.pair.promote(self.queues, 100)

    def time(self, seconds: int) -> None:
        """Time passes."""
        self.pair.pass_time(seconds)

    def jump(self, seconds: int) -> None:
        """The wall clock alone: a new primary, a machine set right. Somebody looks before, and afterwards."""
        self.pair.rescue(100, record=False)
        self.pair.model.now_ms += seconds * 1000
        self.pair.rescue(100, record=False)

    # ------------------------------------------------------------------ what people do

    def cancel(self, pick: int) -> None:
        """Cancel any job."""
        if job_id := self.which(pick):
            self.pair.cancel(job_id)

    def withdraw(self, pick: int) -> None:
        """Withdraw any job."""
        if job_id := self.which(pick):
            self.pair.withdraw(job_id)

    def delete(self, pick: int) -> None:
        """Delete any job."""
        if job_id := self.which(pick):
            self.pair.delete(job_id)

    def replay(self, pick: int) -> None:
        """Replay a job that has ended."""
        if job_id := self.which(pick, lambda job: job.state in ("dead", "cancelled")):
            self.pair.replay([job_id])

    def pause(self, queue: str) -> None:
        """Pause a queue for a while."""
        self.pair.pause(queue, self.pair.model.now_ms + 3000)

    def resume(self, queue: str) -> None:
        """Resume a queue."""
        self.pair.resume(queue)

    def rq_cancel(self, pick: int) -> None:
        """Cancel with rq."""
        if job_id := self.which(pick, lambda job: job.state not in ENDED):
            self.pair.rq_cancel(job_id)

    def rq_delete(self, pick: int) -> None:
        """Delete with rq."""
        if job_id := self.which(pick):
            self.pair.rq_delete(job_id)

    def rq_requeue(self, pick: int) -> None:
        """Requeue with rq."""
        if job_id := self.which(pick, lambda job: job.state == "dead"):
            self.pair.rq_requeue(job_id)

    def rq_empty(self, queue: str) -> None:
        """Empty a queue with rq."""
        self.pair.rq_empty(queue)

    # ------------------------------------------------------------------ the end

    def drain(self, rounds: int) -> None:
        """Run all that is there, as workers would, until nothing waits.

        Args:
            rounds: Moments of work after which everything must be over.
        """
        model = self.pair.model
        self.pair.pass_time(DAY_S)
        self.rescue(passes=3)
        for _ in range(rounds):
            self.tick()
            self.promote()
            for queue in self.queues:
                while True:
                    jobs = self.claim(queue, "end", 100)
                    self.pair.settle(queue, [End(job_id, token, "succeeded") for job_id, token in jobs])
                    if not jobs:
                        break
            open_ids = [job.id for job in model.jobs.values() if job.state not in (*ENDED, None)]
            if not open_ids:
                break
            self.pair.pass_time(3)
        assert not open_ids, (
            f"nobody runs {[(i, model.jobs[i].state, model.jobs[i].bucket) for i in open_ids]}"
        )
        self.tick()
        self.pair.pass_time(8 * DAY_S)
        self.tick()  # gates of whom nobody waits but those whom rq's tools took
        for queue in self.queues:
            self.pair.prune(queue, 0, 0, 0, 100)

    def tick(self) -> None:
        """What else workers do now and then."""

    def teardown(self) -> None:
        """All comes to an end, and leaves nothing behind."""
        type(self).called |= self.pair.called
        if self.ids and self.pair.sound:
            self.end()
            type(self).called |= self.pair.called

    def end(self) -> None:
        """Bring everything to its end, and look at what is left."""
        raise NotImplementedError


def play(machine: type[Player], client: Any, *, sequences: int, derandomize: bool) -> None:
    """Run so many sequences of a machine on one server, and some more until all its scripts were run.

    Args:
        derandomize: Always the same sequences, and the first that fails is not made shorter: it says at once.
    """
    load_scripts(client)
    machine.called = set()

    def make() -> Player:
        return machine(client)  # type: ignore[arg-type, call-arg]

    for seed in range(20):
        if derandomize:
            make._hypothesis_internal_use_seed = seed  # type: ignore[attr-defined]
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            make,
            settings=settings(
                max_examples=sequences if seed == 0 else 5,
                stateful_step_count=40,
                database=None,
                deadline=None,
                print_blob=True,
                report_multiple_bugs=False,
                phases=(Phase.generate,) if derandomize else (Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
        if machine.called >= machine.SCRIPTS:
            return
    raise AssertionError(f"never run: {machine.SCRIPTS - machine.called}")
