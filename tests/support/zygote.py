"""A process that has loaded ``jobq`` and forks for each call of it: the command line in 0.1 s instead of 0.8 s.

Run as a program it serves; :func:`call` asks the one of this test process. A fork differs from the installed script in
what is loaded already, and in nothing else: it has its own arguments, environment, folder, streams, session, exit
code and exit. That each command works in the script itself, ``test_cli_matrix`` shows.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "src"
PRELOADED = (
    "jobq", "jobq.client", "jobq.async_client", "jobq.private_server", "jobq.cli.output", "asyncio", "csv", "redis",
    "rich.console", "rich.progress", "rich.table", "structlog", "cryptography.fernet", "pydantic", "rq", "cronsim",
)  # fmt: skip
_SIZE = 8
_lock = threading.Lock()


# --- in the process of the tests -------------------------------------------------------------------------------------


class Forked:
    """A call that runs: what ``subprocess.Popen`` offers, as far as these tests need it."""

    def __init__(self, args: Sequence[str], line: socket.socket, pid: int) -> None:
        self.args, self.pid, self._line = args, pid, line
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal."""
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                self.returncode = int(_received(self._line))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0) from None
            self._line.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    args: Sequence[str], env: Mapping[str, str], cwd: Path, streams: tuple[int, int, int], *, session: bool = False
) -> Forked:  # fmt: skip
    """``jobq`` with these arguments on these three file descriptors."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(_serving())
    order = json.dumps({"args": list(args), "env": dict(env), "cwd": str(cwd), "session": session}).encode()
    socket.send_fds(line, [f"{len(order):{_SIZE}}".encode()], list(streams))
    line.sendall(order)
    return Forked(args, line, int(_received(line)))


def call(
    args: Sequence[str], env: Mapping[str, str], cwd: Path, *, text: str = "", timeout: float = 50
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` of it, with no terminal."""
    with contextlib.ExitStack() as stack:
        given, said, complained = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(text.encode())
        given.seek(0)
        process = start(args, env, cwd, (given.fileno(), said.fileno(), complained.fileno()))
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        outputs = []
        for file in (said, complained):
            file.seek(0)
            outputs.append(file.read().decode())
        return subprocess.CompletedProcess(list(args), code, *outputs)


def _serving() -> str:
    """Where the zygote listens."""
    with _lock:
        return _started()


@cache
def _started() -> str:
    """Start it; it ends when its input does, at the latest with this process."""
    folder = tempfile.mkdtemp(prefix="jobq-zygote-")
    path = f"{folder}/s"
    process = subprocess.Popen(
        [sys.executable, __file__, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", "the zygote did not start"
    process.stdout.close()

    @atexit.register
    def stop() -> None:
        process.stdin.close()
        process.wait(5)
        shutil.rmtree(folder, ignore_errors=True)

    return path


def _received(line: socket.socket) -> str:
    """One answer: a line of text."""
    text = b""
    while not text.endswith(b"\n"):
        part = line.recv(1)
        if not part:
            raise ConnectionError("the zygote is gone")
        text += part
    return text.decode()


# --- in the zygote ---------------------------------------------------------------------------------------------------


def _preload() -> None:
    cli = import_module("jobq.cli")
    for module, _ in cli.COMMANDS.values():
        import_module(module.partition(":")[0])
    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()


def _serve(path: str) -> tuple[dict[str, Any], list[int]]:
    """Fork for each order, and tell how each fork ended; returns in the forks alone, with their orders."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    chosen = selectors.DefaultSelector()
    chosen.register(listener, selectors.EVENT_READ)
    chosen.register(0, selectors.EVENT_READ)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for key, _ in chosen.select():
            if key.fileobj == 0:  # whoever started it has ended
                os._exit(0)
            elif key.fileobj is listener:
                line, _ = listener.accept()
                head, streams, _, _ = socket.recv_fds(line, _SIZE, 3)
                left, order = int(head), b""
                while len(order) < left:
                    order += line.recv(left - len(order))
                pid = os.fork()
                if pid == 0:
                    # By hand: what is collected later would close what has its number by then.
                    for each in (
                        line,
                        listener,
                        *(key.data[1] for key in chosen.get_map().values() if key.data),
                    ):
                        each.close()
                    chosen.close()
                    return json.loads(order), streams
                for each in streams:
                    os.close(each)
                line.sendall(f"{pid}\n".encode())
                chosen.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, line))
            else:
                pid, line = key.data
                chosen.unregister(key.fileobj)
                os.close(key.fd)
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(OSError):
                    line.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                line.close()


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """Make this fork what the installed script would be."""
    if order["session"]:
        os.setsid()
    for number, each in enumerate(streams):
        os.dup2(each, number)
    os.closerange(3, 1024)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = [str(Path(sys.executable).parent / "jobq"), *order["args"]]
    folders = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[0:1] = [str(Path(sys.executable).parent), *folders]
    for number, (name, mode, errors) in enumerate(
        (("stdin", "r", "strict"), ("stdout", "w", "strict"), ("stderr", "w", "backslashreplace"))
    ):
        stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        if name == "stderr":
            stream.reconfigure(line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


if __name__ == "__main__":
    _preload()
    _become(*_serve(sys.argv[1]))
    from jobq.cli import main

    sys.exit(main())
