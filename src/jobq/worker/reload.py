"""``--reload``: a worker that starts anew when a source file changes. For development only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

_LOOK_EVERY_S = 0.5
_SKIPPED = {"node_modules", "__pycache__", "site-packages"}


def stamps(roots: Iterable[Path]) -> dict[str, int]:
    """When each source and settings file below ``roots`` was last written; hidden folders and virtualenvs apart."""
    found: dict[str, int] = {}

    def note(path: Path) -> None:
        with contextlib.suppress(OSError):  # an editor has just replaced it
            found[str(path)] = path.stat().st_mtime_ns

    for root in roots:
        if root.suffix == ".py":
            note(root)
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
                    note(Path(folder, name))
    return found


def watched(app: Sequence[str]) -> list[Path]:
    """The working directory, and the folder of each application module that lies elsewhere.

    Nothing is imported: an application that cannot be is watched all the same.
    """
    here = Path.cwd()
    roots = [here]
    for module in app:
        spec = find_spec(module.partition(".")[0])
        if spec is None or spec.origin is None:
            continue
        source = Path(spec.origin)
        root = source.parent if spec.submodule_search_locations else source
        if not root.is_relative_to(here) and not _SKIPPED.intersection(root.parts):
            roots.append(root)
    return roots


class _Command:
    """This very command without ``--reload``, in a process that hears every signal that we get."""

    def __init__(self) -> None:
        self._words = [sys.executable, "-m", "jobq.cli", *(w for w in sys.argv[1:] if w != "--reload")]
        self._process: subprocess.Popen[bytes] | None = None
        self.stopping = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def start(self) -> None:
        self._process = subprocess.Popen(self._words, process_group=0)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def end(self) -> None:
        """Let it drain, unless a signal to us has told it to already."""
        if self._process is not None and self.running:
            self._process.terminate()

    def wait(self) -> int:
        return 0 if self._process is None else self._process.wait()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.stopping = True
        if self._process is not None and self.running:
            self._process.send_signal(number)


def run_with_reload(app: Sequence[str] = ()) -> int:
    """Run this command again after each change. Returns the last exit code.

    A command that ends by itself, as with a syntax error, is run again at the next change. The first signal ends it
    as it would without ``--reload``, the second forces.

    Args:
        app: The application's modules, to be watched wherever they lie.
    """
    roots = watched(app)
    command = _Command()
    while True:
        before = stamps(roots)
        command.start()
        if command.stopping:  # a signal came while it started
            command.end()
        while not command.stopping and stamps(roots) == before:
            time.sleep(_LOOK_EVERY_S)
        if not command.stopping:
            command.end()
        code = command.wait()
        if command.stopping:
            return code
