"""Tasks for the tests of the command line."""

import time
from pathlib import Path
from typing import Annotated

import jobq


@jobq.task("shop.confirm", priority="high", dedup="{order_id}")
def confirm(order_id: str) -> str:
    return order_id


@jobq.task("shop.fail", priority="high", max_attempts=1, dedup="{order_id}")
def fail(order_id: str, code: str = "") -> None:
    raise ValueError("the [red]shop\x1b[31m is closed")


@jobq.task("shop.talk", priority="high", timeout=60)
def talk(code: Annotated[str, jobq.Secret], hold: str = "") -> None:
    ctx = jobq.current_job()
    ctx.log(f"the code is {code}")
    ctx.log("one\x1b[31m two")
    if hold:
        while not Path(hold).exists():
            time.sleep(0.01)
    ctx.log("done")


@jobq.task("shop.talk_apart", priority="high", isolation="process", max_attempts=1)
def talk_apart(code: Annotated[str, jobq.Secret]) -> None:
    for number in range(250):
        jobq.current_job().log(f"line {number} {code}")
    raise ValueError("no more")


@jobq.task("shop.pay", priority="high", max_attempts=1)
def pay(amount: int, code: Annotated[str, jobq.Secret]) -> None:
    if amount < 0:
        raise ValueError("less than nothing")
    jobq.current_job().log(f"{amount} {code}")
