"""One queue's part of an executor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobq.worker.claims import Claims
from jobq.worker.spec import ServedSpec
from jobq.worker.waiter import Waiter


@dataclass(slots=True, eq=False)
class Part:
    """One queue's part of an executor.

    Attributes:
        place: Among those that the executor serves, from 0.
        served: The queue.
        claims: What is known of it, and how jobs are asked for.
        waiter: Hears of the next job once it was seen empty.
        held: Jobs of it that are claimed and not settled.
        complained_at: When it was last logged that Redis refused its claim.
    """

    place: int
    served: ServedSpec
    claims: Claims
    waiter: Waiter
    held: int = 0
    complained_at: float = -math.inf
