"""Signs of life of a process whose loop stands still, or their absence: what its supervisor may conclude from it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from jobq.worker.slots import SlotTable

TICK_S = 1.0


def start_ticking(table: SlotTable) -> None:
    """Tick in a thread of its own until the process ends, whatever its loop does.

    It stops only when no Python code of this process runs: when the process is stopped, and while a call into C keeps
    the interpreter's lock.
    """

    def run() -> None:
        while True:
            table.tick(time.monotonic())
            time.sleep(TICK_S)

    threading.Thread(target=run, name="ticker", daemon=True).start()


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger, so that nothing in it runs. False: that is not known."""
    try:
        # ``pid (name) state …``: the name may hold anything.
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in (b"T", b"t")
