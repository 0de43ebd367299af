"""An application whose deploy is broken, as long as a file says so: it cannot be imported, or kills what is forked."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.chaos.app import work  # noqa: F401  (the task that waits meanwhile)
from tests.chaos.ledger import append

FOLDER = "CHAOS_BROKEN"
BROKEN, BIRTHS = "broken", "births"
"""Its word says how; and the moments at which a process came to grief."""

ON_IMPORT, ON_EXIT, AFTER_FORK = "import", "exit", "fork"


def _is_broken(how: str) -> bool:
    folder = Path(os.environ[FOLDER])
    try:
        broken = (folder / BROKEN).read_text() == how
    except FileNotFoundError:
        return False
    if broken:
        append(folder / BIRTHS, f"{time.time():.6f}")
    return broken


def _after_fork() -> None:
    if _is_broken(AFTER_FORK):
        os._exit(1)


if FOLDER in os.environ:  # in a worker
    if _is_broken(ON_IMPORT):
        raise ImportError("this deploy is broken")
    if _is_broken(ON_EXIT):
        os._exit(1)
    os.register_at_fork(after_in_child=_after_fork)
