"""The command line as tests call it: piped, on a terminal, or started and left running."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import zygote
from tests.support.processes import ROOT, search_path

JOBQ = str(Path(sys.executable).parent / "jobq")
HERE = str(ROOT / "tests" / "process")
"""Where ``cli_tasks`` is."""


def shell(**more: str) -> dict[str, str]:
    """The environment of a shell that knows ``cli_tasks``, and no wish about colors."""
    unset = ("NO_COLOR", "FORCE_COLOR", "TERM")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return kept | {"JOBQ_APP": "cli_tasks", "PYTHONPATH": search_path(HERE)} | more


@dataclass
class Cli:
    """Runs ``jobq`` as a shell would: in a fork of a process that has it loaded, or the installed script itself."""

    env: Mapping[str, str]
    cwd: Path

    def __call__(
        self, *args: str, code: int = 0, text: str = "", installed: bool = False, **env: str
    ) -> subprocess.CompletedProcess[str]:
        known = {**self.env, **env}
        if installed:
            done = subprocess.run(
                [JOBQ, *args], env=known, cwd=self.cwd, input=text, capture_output=True, text=True, timeout=50
            )
        else:
            done = zygote.call(args, known, self.cwd, text=text)
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *args: str, code: int = 0) -> dict:
        found = json.loads(self(*args, "--json", code=code).stdout)
        assert isinstance(found, dict)
        return found

    def start(self, *args: str) -> subprocess.Popen[str]:
        """The installed script, left running."""
        return subprocess.Popen(
            [JOBQ, *args],
            env=self.env,
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def on_terminal(
        self, *args: str, answer: str | int = "", meanwhile: Callable[[], object] = lambda: None, **env: str
    ) -> tuple[int, str]:
        """Exit code and all that the terminal showed; ``answer`` is typed, or sent as a signal, at a question.

        Args:
            meanwhile: Done while the question stands.
        """
        ours, theirs = pty.openpty()
        known = {**self.env, "TERM": "xterm", "COLUMNS": "160", **env}
        process = zygote.start(args, known, self.cwd, (theirs, theirs, theirs), session=True)
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + 40
        try:
            while time.monotonic() < deadline:
                if not select.select([ours], [], [], 1)[0]:
                    continue
                try:
                    part = os.read(ours, 65_536)
                except OSError:  # EIO: the last holder of the other end has closed it
                    break
                if not part:
                    break
                shown += part
                if b"[y/N]" in shown and answer != "":
                    meanwhile()
                    if isinstance(answer, int):
                        process.send_signal(answer)
                    else:
                        os.write(ours, answer.encode() + b"\n")
                    answer = ""
            return process.wait(10), shown.decode()
        finally:
            os.close(ours)
            process.kill()
            process.wait(10)


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("jobq: "), text
    assert "Traceback" not in text
    return lines[0]
