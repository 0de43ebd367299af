"""The spawner as its supervisor sees it: a process, a line, and what it says once the application is imported."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from pydantic import SecretStr

from jobq.config import Settings
from jobq.errors import ConfigError
from jobq.registry import load_app
from jobq.worker.channel import Channel, ChannelClosed
from jobq.worker.executor import ignore_signals
from jobq.worker.spawner import APP_MODULES, CHANNEL_ENV, LOG_LEVEL_ENV, Spawner, fork, warm_up

_log = logging.getLogger("jobq")

START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 2.0
_END_POLL_S = 0.01


class SpawnerProcess:
    """A running spawner; making one starts it.

    Attributes:
        line: What is asked of it and what it tells. Its first message is ``ready`` or ``failed``.
        ready: It has said that it can fork.
        started_at: Seconds of the monotonic clock.

    Args:
        fork: Fork it from this process, with which it then shares what both have imported, unless this process has
            threads. Else it is a fresh interpreter.
    """

    def __init__(self, settings: Settings, *, fork: bool = False) -> None:
        self.line, theirs = Channel.pair()
        self.ready = False
        self.started_at = time.monotonic()
        # Ignored, as some process managers leave it, it would take from us the children that we wait for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        start = self._fork if fork and threading.active_count() == 1 else self._execute
        self._pid = start(settings, theirs, str(logging.getLogger("jobq").level or logging.INFO))
        theirs.close()

    def _fork(self, settings: Settings, theirs: socket.socket, log_level: str) -> int:
        def run() -> int:
            ignore_signals()
            self.line.close()
            _keep_only(theirs.fileno())
            os.environ.clear()
            os.environ.update(environment)
            return Spawner(Channel(theirs), settings, log_level).run()

        environment = _environment(settings)
        load_app(APP_MODULES)
        warm_up(settings)
        return fork(run)

    def _execute(self, settings: Settings, theirs: socket.socket, log_level: str) -> int:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobq.worker.spawner"],
            env={**_environment(settings), CHANNEL_ENV: str(theirs.fileno()), LOG_LEVEL_ENV: log_level},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C is for the supervisor alone
        )
        process.returncode = 0  # we wait for it ourselves; Popen must not
        return process.pid

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
            said = messages[0].body["error"] if messages else f"no answer within {START_TIMEOUT_S:.0f} s"
            raise ConfigError(f"the application cannot be loaded: {said}")
        return messages[0].body

    def kill(self) -> float:
        """End it, and with it all that it has forked. Returns the seconds of processor time that it has taken."""
        self.line.close()
        os.kill(self._pid, signal.SIGKILL)
        _, _, usage = os.wait4(self._pid, 0)
        return usage.ru_utime + usage.ru_stime

    def end(self) -> None:
        """Let it end by itself, since nobody asks it for anything any more."""
        self.line.close()
        deadline = time.monotonic() + _END_TIMEOUT_S
        while not os.waitpid(self._pid, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                self.kill()
                return
            time.sleep(_END_POLL_S)


def _keep_only(fd: int) -> None:
    """Close all descriptors but the standard ones and this one; nothing comes from stdin any more."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))


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
