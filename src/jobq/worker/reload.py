"""``--reload``: a worker that starts anew when a source file changes. For development only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

_LOOK_EVERY_S = 0.5
_SKIPPED = {"node_modules", "__pycache__", "site-packages"}


def stamps(root: Path) -> dict[str, int]:
    """When each Python and TOML file below ``root`` was last written; hidden folders and virtualenvs apart."""
    found: dict[str, int] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED
            and not Path(folder, name, "pyvenv.cfg").exists()
        ]
        for name in files:
            if name.endswith((".py", ".toml")) or name == ".env":
                path = Path(folder, name)
                try:
                    found[str(path)] = path.stat().st_mtime_ns
                except OSError:
                    continue  # an editor has just replaced it
    return found


def run_with_reload(root: Path | None = None) -> int:
    """Run this very command without ``--reload``, again after each change. Returns the last exit code."""
    where = root or Path.cwd()
    command = [sys.executable, "-m", "jobq.cli", *(word for word in sys.argv[1:] if word != "--reload")]
    stopped: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while True:
        before = stamps(where)
        child = subprocess.Popen(command, process_group=0)
        changed = False
        while child.poll() is None and not stopped and not changed:
            time.sleep(_LOOK_EVERY_S)
            changed = stamps(where) != before
        if child.poll() is None:
            child.terminate()
            child.wait()
        if stopped:
            return child.returncode
        while (
            not changed and not stopped
        ):  # it ended by itself, as with a syntax error: wait for the next change
            time.sleep(_LOOK_EVERY_S)
            changed = stamps(where) != before
        if stopped:
            return child.returncode
