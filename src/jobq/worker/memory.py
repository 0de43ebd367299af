"""What the kernel says about memory: how much a process has, and whether it killed one for the lack of it."""

from __future__ import annotations

import os
import resource
from collections import deque
from collections.abc import Callable
from pathlib import Path

OOM_KILL_FILE = Path("/sys/fs/cgroup/memory.events")

_REMEMBERED_S = 5.0
"""A kill is noticed as a death within this time, or it hit a process that is none of ours."""


def rss_kb(pid: int | None = None) -> int:
    """Resident memory of a process in kB, None: this one; 0 when it has gone or the system does not tell."""
    try:
        pages = Path(f"/proc/{pid or 'self'}/statm").read_bytes().split()[1]
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if pid is None else 0
    return int(pages) * (os.sysconf("SC_PAGE_SIZE") // 1024)


def oom_kills() -> int:
    """How often the kernel has killed in this cgroup for lack of memory; 0 where that cannot be read."""
    try:
        for line in OOM_KILL_FILE.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except (OSError, ValueError):
        pass
    return 0


class OomWatch:
    """Tells whether a SIGKILL was the kernel's, for lack of memory. Each of its kills explains one death.

    Args:
        read: How often the kernel has killed so far.
    """

    def __init__(self, read: Callable[[], int] = oom_kills) -> None:
        self._read = read
        self._seen = read()
        self._unexplained: deque[float] = deque()

    def look(self, now: float) -> None:
        """Note new kills and forget old ones; call it now and then, so that each is known by its time."""
        count = self._read()
        self._unexplained.extend([now] * (count - self._seen))
        self._seen = count
        while self._unexplained and now - self._unexplained[0] > _REMEMBERED_S:
            self._unexplained.popleft()

    def explains(self, status: int, now: float) -> bool:
        """Whether a death with this status was the kernel's doing.

        Args:
            status: Exit code, or minus the signal.
        """
        self.look(now)
        if status != -9 or not self._unexplained:
            return False
        self._unexplained.popleft()
        return True
