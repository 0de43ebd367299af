"""When an executor asks for more jobs: what it knows of a queue from the last answer, and since."""

from __future__ import annotations

import random
from collections.abc import Sequence

from jobq import calls
from jobq.keys import SUSPECTS, Keys
from jobq.rq_bridge import iso
from jobq.steps import MOST_JOBS, Call, Claim
from jobq.worker.spec import LaneSpec, ServedSpec

_RECHECK_S = 1.0

_MISSES = 3
"""So often in a row somebody else was quicker before an executor listens less: two or three share a queue like that."""
_FIRST_REST_S, _LONGEST_REST_S = 0.01, 0.25
"""How long it does not listen then, doubled each time; a quarter of the tightest target at most."""


class Claims:
    """One executor's claims of one queue, numbered, one outstanding at a time.

    Args:
        lane: What the supervisor asked for.
        served: The queue.
        known: Names of the parked buckets whose jobs this executor can run.
        rand: Source of jitter; a test passes a seeded one.
    Attributes:
        hungry: The queue may hold jobs. Otherwise it was seen empty, and the waiter tells of the next one.
        pending: A claim whose reply has not come: the same number goes again. It is for ``asked`` jobs.
        limited: The queue or its tasks have limits, which count from the claim: claim nothing ahead.
        called: The waiter has heard of a job, and the claim that asks for it is not answered yet.
    """

    def __init__(
        self,
        lane: LaneSpec,
        served: ServedSpec,
        keys: Keys,
        known: Sequence[str],
        rand: random.Random | None = None,
    ) -> None:
        self._lane = lane
        self._served = served
        self._keys = keys
        self._known = {"run": (SUSPECTS, *known), "park": known, "only": (SUSPECTS,)}[lane.suspects]
        self._number = 0
        self._ask_parked = lane.apart
        self._closed_until = 0.0
        self.hungry = True
        self.pending: Call[Claim] | None = None
        self.asked = 0
        self.limited = False
        self.called = False
        self._gated = False  # the jobs of the last claim that brought any
        self._rand = rand or random.Random()
        self._missed = 0  # calls in a row after which the queue was empty
        self._rests_until = 0.0

    @property
    def any_made(self) -> bool:
        """Whether the queue has been looked into at all."""
        return self._number > 0

    def closed_for(self, now: float) -> float:
        """Seconds for which a paused, suspended or limited queue need not be asked again."""
        return max(0.0, self._closed_until - now)

    def rests_for(self, now: float) -> float:
        """Seconds for which it need not listen to the queue: of many idle executors, one is woken in vain mostly.

        A new job wakes all that listen, and Redis works for each of them.
        """
        return max(0.0, self._rests_until - now)

    def look(self) -> None:
        """Something may have come: ask."""
        self._closed_until, self.hungry = 0.0, True

    def wanting(self, now: float) -> bool:
        """Whether a new claim may be worth while."""
        if self._closed_until and now >= self._closed_until:
            self.look()
        return self.hungry and self.pending is None

    def next(self, room: int, now: float) -> Call[Claim] | None:
        """What to send now, if anything: the claim without an answer, or a new one.

        Args:
            room: Jobs that may be taken.
        """
        if self.pending is not None and self.closed_for(now):
            return None  # refused of late
        if self.wanting(now) and room > 0:
            self._number += 1
            self.asked = min(room, MOST_JOBS)
            self.pending = calls.claim(
                self._keys,
                self._served.queue,
                exec_id=self._served.exec_id,
                number=self._number,
                n=self.asked,
                lease_ms=self._lane.lease_ms,
                worker_name=self._lane.worker,
                started_at_iso=iso(),
                suspects=self._lane.suspects,
                known=self._known if self._ask_parked else (),
            )
        return self.pending

    def refused(self, now: float) -> None:
        """Redis has refused the claim, for what it found in this queue's keys: it goes again in a while."""
        self.hungry, self._closed_until = False, now + _RECHECK_S

    def answered(self, claim: Claim, now: float) -> None:
        """Learn from the reply."""
        self.pending, self.asked = None, 0
        # The first hint of parked jobs: ask again at once, naming what this worker can run.
        hinted = claim.parked and not self._ask_parked
        self._ask_parked = claim.parked or self._lane.apart
        self._closed_until = 0.0
        self.hungry = claim.more or hinted or bool(claim.jobs and claim.parked)
        if claim.jobs:
            self._gated, self._missed = any(job.gated for job in claim.jobs), 0
        elif self.called:
            self._missed = min(self._missed + 1, _MISSES + 6)
            if self._missed > _MISSES:
                rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * 2 ** (self._missed - _MISSES - 1))
                self._rests_until = now + rest_s * self._rand.uniform(0.5, 1.0)
        self.called = False
        self.limited = claim.limited or self._gated
        if claim.status in ("paused", "suspended"):
            self.hungry = False
            self._closed_until = now + _RECHECK_S
        elif claim.status == "limited":
            self.hungry = False
            self._closed_until = now + min(_RECHECK_S, max(0.0, claim.until_ms - claim.now_ms) / 1000)
        elif claim.status == "stale":  # a reply to a repeated send came after its successor: ask anew
            self.hungry = True
