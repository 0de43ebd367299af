"""A task that the producer knows and the worker of the tests does not."""

import jobq


@jobq.task("i.unknown", priority="high")
def unknown(key: str) -> None:
    raise AssertionError("nobody runs this")
