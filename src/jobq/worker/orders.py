"""The duty that looks for an operator's order to this worker: one read a second."""

from __future__ import annotations

from collections.abc import Callable

from jobq import orders
from jobq.store import Store
from jobq.worker.maintenance import Fleet

ORDERS_S = 1.0


class Orders:
    """Passes orders on to the supervisor.

    Args:
        obey: Takes ``quiet``, ``resume`` or ``stop``, from this duty's thread.
    """

    period_s = ORDERS_S

    def __init__(self, obey: Callable[[str], None]) -> None:
        self._obey = obey

    def tick(self, store: Store, fleet: Fleet) -> None:
        order = store.run(orders.look(fleet.keys, fleet.name))
        if order is not None:
            # First done, then forgotten: to do it twice changes nothing.
            self._obey(order.word)
            store.run(orders.obeyed(fleet.keys, fleet.name, order))
