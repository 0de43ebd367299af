"""A cgroup with little memory, for tests of what the kernel does when it is full: made by root, on version 1 or 2."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from jobq.worker.memory import oom_kill_file

_LIMIT = {"memory.oom_control": "memory.limit_in_bytes", "memory.events": "memory.max"}


@contextlib.contextmanager
def small_cgroup(limit: int) -> Iterator[Path | None]:
    """The folder of a cgroup of so many bytes, below this process' own; None where none can be made.

    All that joined it must have ended when it is left.
    """
    file = oom_kill_file()
    made = None if file is None else file.parent / f"jobq-{os.getpid()}-{time.monotonic_ns()}"
    if file is None or made is None:
        yield None
        return
    try:
        made.mkdir()
    except OSError:
        yield None
        return
    try:
        try:
            (made / _LIMIT[file.name]).write_text(str(limit))
            with contextlib.suppress(OSError):  # no swapping instead
                (made / "memory.swappiness").write_text("0")
        except OSError:  # version 2, and its parent has processes of its own
            yield None
        else:
            yield made
    finally:
        for _ in range(100):  # processes that have ended leave it a moment later
            try:
                made.rmdir()
            except OSError:
                time.sleep(0.1)
            else:
                break
