"""The spawner as its supervisor sees it: a process, a line, and what it says once the application is imported."""

from __future__ import annotations

import logging
import os
import resource
import select
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

from pydantic import SecretStr

from jobq.config import Settings
from jobq.errors import ConfigError
from jobq.worker.channel import Channel, ChannelClosed
from jobq.worker.spawner import CHANNEL_ENV, LOG_LEVEL_ENV

_log = logging.getLogger("jobq")

START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 2.0


class SpawnerProcess:
    """A running spawner; making one starts it.

    Attributes:
        line: What is asked of it and what it tells. Its first message is ``ready`` or ``failed``.
        ready: It has said that it can fork.
        started_at: Seconds of the monotonic clock.
    """

    def __init__(self, settings: Settings) -> None:
        self.line, theirs = Channel.pair()
        self.ready = False
        self.started_at = time.monotonic()
        level = logging.getLogger("jobq").level or logging.INFO
        inherited = {CHANNEL_ENV: str(theirs.fileno()), LOG_LEVEL_ENV: str(level)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jobq.worker.spawner"],
            env={**_environment(settings), **inherited},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C is for the supervisor alone
        )
        theirs.close()

    def wait_ready(self) -> dict[str, Any]:
        """What it says of the tasks, once it has imported the application.

        Raises:
            ConfigError: The application cannot be loaded.
        """
        readable, _, _ = select.select([self.line.fileno()], [], [], START_TIMEOUT_S)
        try:
            messages = self.line.receive(block=bool(readable))
        except ChannelClosed:
            messages = []
        if not messages or messages[0].op == "failed":
            self.kill()
            said = messages[0].body["error"] if messages else f"no answer within {START_TIMEOUT_S:.0f} s"
            raise ConfigError(f"the application cannot be loaded: {said}")
        return messages[0].body

    def kill(self) -> float:
        """End it, and with it all that it has forked. Returns the seconds of processor time that it has taken."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.line.close()
        self._process.kill()
        self._process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def end(self) -> None:
        """Let it end by itself, since nobody asks it for anything any more."""
        self.line.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()


def note_warnings(said: dict[str, Any]) -> None:
    """Log what is odd about the application.

    Args:
        said: The body of the spawner's ``ready``.
    """
    if said["threads"]:
        _log.warning(
            "importing the application starts threads, so nothing can be forked from it; "
            "start them on first use to save memory and start-up time"
        )


def _environment(settings: Settings) -> dict[str, str]:
    """Ours, with what came by argument as variables: the spawner reads all other sources itself."""
    environment = dict(os.environ)
    for name, origin in settings.origins().items():
        value = getattr(settings, name, None)
        if origin != "argument" or value is None:
            continue
        if isinstance(value, SecretStr):
            text = value.get_secret_value()
        elif isinstance(value, timedelta):
            text = f"{value / timedelta(milliseconds=1):.0f}ms"
        elif isinstance(value, tuple):
            text = ",".join(value)
        else:
            text = str(value)
        environment[f"JOBQ_{name.upper()}"] = text
        environment.pop(f"JOBQ_{name.upper()}_FILE", None)
    return environment
