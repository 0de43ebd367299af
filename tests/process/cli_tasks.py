"""Tasks for the tests of the command line."""

import jobq


@jobq.task("shop.confirm", priority="high", dedup="{order_id}")
def confirm(order_id: str) -> str:
    return order_id


@jobq.task("shop.fail", priority="high", max_attempts=1, dedup="{order_id}")
def fail(order_id: str, code: str = "") -> None:
    raise ValueError("the [red]shop\x1b[31m is closed")
