"""Whose turn it is: slots that several queues share, dealt out one by one in proportion to the queues' weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SOME = 1e-9
"""Less than this is nothing: what rounding leaves of a share that was had to the full."""


class Turns:
    """Deals out slots by smooth weighted round robin.

    While the same queues want slots, each has had its share of them at any moment, give or take less than one: of those
    that are owed some, the next slot goes to the one that would be the first to be owed a whole one too many
    (R. Tijdeman, The chairman assignment problem, 1980). Who wants none is owed none, neither then nor later, and what
    it had too many of is forgotten.

    Args:
        weights: A whole number from 1 on for each queue.
        begin: Turns that count as dealt before, of those that :meth:`cycle` has. Executors that all began with the
            first would never come to the queue of the last if none of them lives for that long.
    """

    def __init__(self, weights: Sequence[int], begin: int = 0) -> None:
        self._weights = tuple(weights)
        self._owed = [0.0] * len(self._weights)  # slots; below 0 one that was had ahead
        for _ in range(begin):
            self._next(range(len(self._weights)))

    @staticmethod
    def cycle(weights: Sequence[int]) -> int:
        """After so many turns they repeat, while all want slots; each queue has had its share exactly."""
        return sum(weights) // math.gcd(*weights)

    def share(self, free: int, wants: Sequence[int]) -> list[int]:
        """How many of ``free`` slots each queue gets: none more than it wants, and together all that are wanted.

        Args:
            wants: The most that each can use.
        """
        given = [0] * len(self._weights)
        left = free
        while left > 0:
            among = [place for place, want in enumerate(wants) if want > given[place]]
            if len(among) < 2:
                for only in among:
                    given[only] = min(given[only] + left, wants[only])
                    self._owed = [0.0] * len(self._owed)
                break
            given[self._next(among)] += 1
            left -= 1
        return given

    def _next(self, among: Sequence[int]) -> int:
        weights, owed = self._weights, self._owed
        total = sum(weights[place] for place in among)
        there = set(among)
        forgone = 0.0  # what those that want nothing were owed is the others'
        for place, much in enumerate(owed):
            if place not in there:
                forgone += max(0.0, much)
                owed[place] = 0.0
        for place in among:
            part = weights[place] / total
            owed[place] = min(1.0, owed[place] + forgone * part) + part
        due = [place for place in among if owed[place] > _SOME] or among
        # Rounded: who is as early as another goes by its place, not by what rounding has left.
        chosen = min(due, key=lambda place: round((1.0 - owed[place]) / weights[place], 12))
        owed[chosen] -= 1.0
        return chosen
