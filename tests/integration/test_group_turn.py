"""An executor of several queues, turn by turn on a real server: what it says in one round trip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

import jobq
from jobq.registry import Registry
from jobq.steps import Call, Outcome
from jobq.tasks import task
from jobq.worker.attempt import Assignment, Report
from jobq.worker.channel import Channel
from jobq.worker.executor import LaneExecutor
from jobq.worker.slots import SlotTable
from jobq.worker.spec import LaneSpec, ServedSpec

QUEUES = ("email", "sms", "push")
registry = Registry()


@task("gt.add", registry=registry)
def add(a: int) -> int:
    return a


class Turning:
    """An executor whose functions do not run: a test ends them when it likes."""

    def __init__(self, settings: jobq.Settings, weights: Sequence[int], slots: int) -> None:
        served = tuple(
            ServedSpec(queue, slots, f"exec{place}", weight)
            for place, (queue, weight) in enumerate(zip(QUEUES, weights, strict=True))
        )
        lane = LaneSpec("mail", served, "w-mail", 12_000)
        self.table = SlotTable.create(lane.capacity, len(served))
        self.table.set_pulse(1e18)
        pairs = [Channel.pair(), Channel.pair()]
        self._ends = [end for pair in pairs for end in pair]
        specs = [jobq.QueueSpec(queue, slots) for queue in QUEUES]
        self.executor = LaneExecutor(lane, specs, settings, registry, self.table, pairs[0][0], pairs[1][0])
        self.running: list[Assignment] = []
        self.plans: list[Counter[str]] = []
        made: Any = self.executor
        made._executors.submit = self.running.extend
        exchange = made._link.exchange

        def noted(plan: Sequence[Call[Any]], *rest: str) -> list[Any]:
            self.plans.append(Counter(call.script for call in plan))
            answers: list[Any] = exchange(plan, *rest)
            return answers

        made._link.exchange = noted

    def turn(self, *ended: Assignment) -> Counter[str]:
        """One turn of its loop, with these runs ended. Returns what it has sent."""
        for work in ended:
            self.running.remove(work)
            outcome = Outcome(job_id=work.job.id, token=work.job.token, kind="succeeded", keep_s=600)
            self.executor._inbox.finished(Report(work, outcome, "job.succeeded", {"run_ms": 20.0}))
        batches = self.executor._by_queue(self.executor._inbox.take(100))
        plan = self.executor._plan(batches)
        if not plan:
            return Counter()
        self.executor._exchange(plan, batches)
        return self.plans[-1]

    def queues(self) -> Counter[str]:
        """Of which queues jobs run."""
        return Counter(QUEUES[work.queue] for work in self.running)

    def close(self) -> None:
        self.executor._close()
        for end in self._ends:
            end.close()
        self.table.close()


@pytest.fixture
def turning(settings: jobq.Settings) -> Iterator[Callable[..., Turning]]:
    made: list[Turning] = []

    def start(weights: Sequence[int] = (1, 1, 1), slots: int = 3) -> Turning:
        made.append(Turning(settings, weights, slots))
        return made[-1]

    yield start
    for each in made:
        each.close()


def fill(client: jobq.Client, jobs: int, *queues: str) -> None:
    for queue in queues or QUEUES:
        for n in range(jobs):
            add.options(client=client, queue=queue).enqueue(a=n)


def test_all_queues_settle_and_claim_in_one_round_trip(
    turning: Callable[..., Turning], client: jobq.Client, redis_client: redis.Redis
) -> None:
    fill(client, 4)
    group = turning()
    assert group.turn() == {"claim": 3}
    assert group.queues() == {"email": 1, "sms": 1, "push": 1}
    assert group.turn() == {}, "nothing has ended, and no slot is free"
    assert group.turn(*group.running) == {"settle": 3, "claim": 3}
    for queue in QUEUES:
        assert redis_client.zcard(f"rq:finished:{queue}") == 1
        assert redis_client.zcard(f"rq:wip:{queue}") == 1
    (first, *_) = group.running
    sent = group.turn(first)
    assert (sent["settle"], sent["claim"]) == (1, 1), "only of whom there is something to say"
    assert {slot.queue for slot in group.table.read()} == {work.queue for work in group.running}


def test_what_a_queue_leaves_goes_to_the_others_in_the_next_turn(
    turning: Callable[..., Turning], client: jobq.Client
) -> None:
    fill(client, 10, "sms")
    group = turning()
    assert group.turn() == {"claim": 3}
    assert group.queues() == {"sms": 1}
    assert group.turn() == {"claim": 1}, "the others are empty"
    assert group.queues() == {"sms": 3}


def test_freed_slots_go_by_weight_exactly(turning: Callable[..., Turning], client: jobq.Client) -> None:
    fill(client, 40)
    group = turning((3, 2, 1), slots=1)
    group.turn()
    started: Counter[str] = Counter()
    for _ in range(60):
        started += group.queues()
        group.turn(*group.running)
    assert started == {"email": 30, "sms": 20, "push": 10}


def test_a_claim_whose_reply_was_lost_is_sent_again_and_its_slots_are_kept(
    turning: Callable[..., Turning], client: jobq.Client
) -> None:
    fill(client, 3)
    group = turning()
    made: Any = group.executor
    sends = made._link.exchange

    def lost(plan: Sequence[Call[Any]], *rest: str) -> list[Any]:
        sends(plan, *rest)
        raise jobq.StoreUnavailableError("the reply was lost", ambiguous=True)

    made._link.exchange = lost
    group.turn()
    assert not group.running
    made._link.exchange = sends
    assert group.turn() == {"claim": 3}
    assert group.queues() == {"email": 1, "sms": 1, "push": 1}
    assert len({work.job.id for work in group.running}) == 3
    assert group.turn() == {}
