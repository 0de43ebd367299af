"""What the kernel says about memory: how much a process has, and whether it killed one for the lack of it."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

_REMEMBERED_S = 5.0
"""A kill is noticed as a death within this time, or it hit a process that is none of ours."""


def rss_kb(pid: int | None = None) -> int:
    """Resident memory of a process in kB, None: this one; 0 when it has gone or the system does not tell."""
    try:
        pages = Path(f"/proc/{pid or 'self'}/statm").read_bytes().split()[1]
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if pid is None else 0
    return int(pages) * (os.sysconf("SC_PAGE_SIZE") // 1024)


OOM_FIRST = {"executor": 300, "child": 500}
"""By kind of process, how much sooner than by its size alone the kernel kills it for lack of memory, of 1,000.

Jobs use the memory. Were the kernel to take the supervisor, or another program of the host, all lanes would pay.
"""


def offer_to_oom_killer(kind: str) -> None:
    """Let the kernel take this process before its supervisor; without an effect where it does not listen."""
    with contextlib.suppress(OSError):
        adjusted = Path("/proc/self/oom_score_adj")
        adjusted.write_text(str(min(1_000, max(int(adjusted.read_text()), OOM_FIRST[kind]))))


def oom_kill_file(proc: Path = Path("/proc/self")) -> Path | None:
    """Where the kernel counts its kills for lack of memory in this process' cgroup; None where it has none.

    Version 2 has ``memory.events``, version 1 ``memory.oom_control``. Where a hierarchy is mounted, and which part of
    it, differs between hosts, services and containers.
    """
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    found: list[Path] = []
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        kind, name = ("cgroup", "memory.oom_control") if controllers else ("cgroup2", "memory.events")
        for root, place, filesystem, options in map(_mount, mounts):
            if filesystem == kind and (kind == "cgroup2" or "memory" in options):
                # A container may see its own part as the whole: there the path means nothing.
                own = path.removeprefix(root.rstrip("/")) if path.startswith(root) else ""
                found += (Path(place + own, name), Path(place, name))
    return next((file for file in found if "oom_kill " in _text(file)), None)


def _mount(line: str) -> tuple[str, str, str, list[str]]:
    """Of a line of ``mountinfo``: what part of the file system is mounted, where, its kind, and its own options."""
    place, _, about = line.partition(" - ")
    fields, (kind, _, options) = place.split(), about.split()[:3]
    root, where = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), name) for name in fields[3:5])
    return root, where, kind, options.split(",")


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def oom_kills(file: Path | None) -> int:
    """How often the kernel has killed for lack of memory, by its file; 0 where that cannot be read."""
    try:
        for line in [] if file is None else file.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except (OSError, ValueError):
        pass
    return 0


class OomWatch:
    """Tells whether a SIGKILL was the kernel's, for lack of memory. Each of its kills explains one death.

    Args:
        read: How often the kernel has killed so far; None: by this process' cgroup.
    """

    def __init__(self, read: Callable[[], int] | None = None) -> None:
        self._read = read or partial(oom_kills, oom_kill_file())
        self._seen = self._read()
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
