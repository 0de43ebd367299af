"""The spawner: a process that imports the application once and forks executors and job children from it.

It has neither threads nor a Redis connection, so a fork copies nothing that could be locked. It reports every exit
to whoever asked for the process, kills what an executor leaves behind, and when the supervisor goes, it takes all
of its children with it.

A worker's first spawner is itself a fork of the supervisor, made before that has threads or connections; should it
die, the next one is a fresh interpreter.

If importing the application starts threads, forking would copy their locks: children are then started as fresh
interpreters instead, which costs memory and start-up time, and the supervisor says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import encodings.idna  # noqa: F401 - the look-up of a host loads it: after the fork, in each process
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from jobq import lua
from jobq.config import Settings
from jobq.errors import JobqError
from jobq.events import configure_logging
from jobq.schedule_records import records_of
from jobq.schedule_spec import declared
from jobq.tasks import Registry, load_app, registry
from jobq.worker.channel import Channel, ChannelClosed, Message
from jobq.worker.child import child_entry
from jobq.worker.executor import executor_entry, ignore_signals
from jobq.worker.memory import offer_to_oom_killer

Entry: TypeAlias = Callable[[Settings, dict[str, Any], list[int]], int]

CHANNEL_ENV = "JOBQ_SPAWNER_FD"
FRESH_ENV = "JOBQ_FRESH_FD"
LOG_LEVEL_ENV = "JOBQ_WORKER_LOG_LEVEL"
"""How the processes of a worker hear what a command line cannot tell them; none is a setting."""

APP_MODULES = ("jobq.helpers",)  # by name: the catalogue stands above the worker

_ENTRIES: Mapping[str, Entry] = {"executor": executor_entry, "child": child_entry}
"""What a process of each kind runs after the fork: ``entry(settings, body, fds)``."""


@dataclass(slots=True)
class _Child:
    pid: int
    kind: str
    ref: str
    channel: Channel  # whoever asked for it, and hears of its exit
    requests: Channel | None = None  # an executor's own line for asking for job children


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that made it ends (Linux; elsewhere a no-op)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def fork(run: Callable[[], int]) -> int:
    """Run this in a copy of this process: in a group of its own, ended by the kernel when this one ends.

    Args:
        run: Its answer is the exit code. Nothing of what called us runs on in the copy.
    Returns:
        The process id.
    """
    _flush()  # or what is buffered would be written twice
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        die_with_parent()
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or nobody reads it any more
            stream.flush()


def describe(tasks: Registry, settings: Settings) -> dict[str, Any]:
    """What a supervisor must know of the tasks it has not imported: each one's retry policy, in its own queue."""
    specs = settings.queue_specs()
    policies = {}
    for name in tasks.names():
        task = tasks.resolve(name)
        spec = specs.get(task.spec.queue)
        policies[name] = task.spec.policy(spec, default=settings.retry_policy()).to_dict()
    return policies


class Spawner:
    """Forks on request until the supervisor goes.

    Args:
        channel: The line to the supervisor.
        log_level: Least level of jobq's own lines.
    """

    def __init__(self, channel: Channel, settings: Settings, log_level: str) -> None:
        self._supervisor = channel
        self._settings = settings
        self._log_level = log_level
        self._children: dict[int, _Child] = {}
        self._fresh = False
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)

    def run(self) -> int:
        """Serve until the supervisor closes its end, or has gone before. Returns the exit code."""
        try:
            return self._run()
        except ChannelClosed:
            return 0
        finally:
            self._kill_all()

    def _run(self) -> int:
        try:
            load_app(APP_MODULES + tuple(self._settings.app), registry)
            self._settings = self._settings.renewed()  # with the queues that the application declares
            schedules = [record.to_dict() for record in records_of(declared.all(), self._settings)]
        except Exception as error:
            text = str(error) if isinstance(error, JobqError) else traceback.format_exc(limit=-6)
            self._supervisor.send("failed", error=text.strip())
            return 78
        self._fresh = threading.active_count() > 1
        _set_up_logging(self._settings, self._log_level)
        warm_up(self._settings)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._supervisor.send(
            "ready",
            tasks=describe(registry, self._settings),
            schedules=schedules,
            queues=[spec.to_dict() for spec in self._settings.queue_specs().values()],
            threads=self._fresh,
        )
        while True:
            self._turn()

    def _turn(self) -> None:
        lines = {self._supervisor.fileno(): self._supervisor}
        for child in self._children.values():
            if child.requests is not None:
                lines[child.requests.fileno()] = child.requests
        ready, _, _ = select.select([*lines, self._wake_r], [], [], 5.0)
        if self._wake_r in ready:
            os.read(self._wake_r, 512)
        self._reap()
        for number in ready:
            if number not in lines:
                continue
            line = lines[number]
            try:
                for message in line.receive():
                    self._serve(line, message)
            except ChannelClosed:
                if line is self._supervisor:
                    raise
                self._forget_line(line)  # an executor went, perhaps while we answered it

    def _serve(self, line: Channel, message: Message) -> None:
        if message.op == "spawn":
            self._spawn(line, message)
        elif message.op == "kill":
            child = self._children.get(message.body["pid"])
            if child is not None:  # not reaped yet, so the number is still its own
                _kill_group(child.pid)

    def _spawn(self, line: Channel, message: Message) -> None:
        kind, ref = message.body["kind"], message.body["ref"]
        ours: Channel | None = None
        fds = list(message.fds)
        if kind == "executor":
            ours, theirs = Channel.pair()
            fds.append(theirs.detach())
        fork = self._fork_fresh if self._fresh else self._fork
        try:
            pid = fork(kind, message.body, fds)
        except (
            OSError
        ) as error:  # no memory or no process left: whoever asked tries again later; the others live
            sys.stderr.write(f"jobq: cannot start a process: {error}\n")
            if ours is not None:
                ours.close()
            line.send("exited", ref=ref, pid=0, status=71, cpu_s=0.0)
            return
        finally:
            for number in fds:
                os.close(number)
        self._children[pid] = _Child(pid, kind, ref, line, ours)
        line.send("spawned", ref=ref, pid=pid)

    def _fork(self, kind: str, body: dict[str, Any], fds: list[int]) -> int:
        def run() -> int:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for child in self._children.values():
                if child.requests is not None:
                    child.requests.close()
            self._supervisor.close()
            os.close(self._wake_r)
            os.close(self._wake_w)
            return _enter(kind, self._settings, body, fds)

        return fork(run)

    def _fork_fresh(self, kind: str, body: dict[str, Any], fds: list[int]) -> int:
        request = json.dumps({"kind": kind, "body": body, "fds": fds}).encode()
        read, write = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "jobq.worker.spawner"],
            env={**os.environ, FRESH_ENV: str(read), LOG_LEVEL_ENV: self._log_level},
            pass_fds=(*fds, read),
            process_group=0,
        )
        os.close(read)
        os.write(write, request)
        os.close(write)
        process.returncode = 0  # we wait for it ourselves; Popen must not
        return process.pid

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            child = self._children.pop(pid, None)
            if child is None:
                continue
            _kill_group(pid, leader=False)  # what it had started in its group
            if child.requests is not None:
                self._forget_line(child.requests)
            try:
                child.channel.send(
                    "exited",
                    ref=child.ref,
                    pid=pid,
                    status=os.waitstatus_to_exitcode(status),
                    cpu_s=usage.ru_utime + usage.ru_stime,
                )
            except ChannelClosed:
                if child.channel is self._supervisor:
                    raise

    def _forget_line(self, line: Channel) -> None:
        """An executor has gone: what ran on its behalf goes too."""
        for child in self._children.values():
            if child.channel is line:
                _kill_group(child.pid)
            if child.requests is line:
                child.requests = None
        line.close()

    def _kill_all(self) -> None:
        for pid in self._children:
            _kill_group(pid)


def warm_up(settings: Settings) -> None:
    """Build what each process needs, and have the collector leave the pages of all that there is alone.

    To be called before a fork: afterwards it would be a copy in each process (12 MB, tried).
    """
    settings.codec().warm_up()
    for name in lua.names():
        lua.script(name)
    gc.collect()
    gc.freeze()


def _enter(kind: str, settings: Settings, body: dict[str, Any], fds: list[int]) -> int:
    """Be an executor or a job child from here on; ``ps`` shows it where the kernel lets a process rename itself."""
    if kind == "child":
        name = f"jobq job {body['name']}"
    elif body["lane"]["suspects"] == "only":
        name = f"jobq apart {body['lane']['name']}"
    else:
        name = f"jobq: {body['lane']['name']}"
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name[:15])
    offer_to_oom_killer(kind)
    return _ENTRIES[kind](settings, body, fds)


def _set_up_logging(settings: Settings, level: str) -> None:
    configure_logging(settings.log_format, int(level) if level.isdigit() else level)


def _kill_group(pid: int, *, leader: bool = True) -> None:
    """SIGKILL to all in a process' group, and to the process itself, which may not have made its group yet.

    Args:
        leader: False once it has been waited for: its number may be somebody else's.
    """
    for kill in (os.killpg, os.kill) if leader else (os.killpg,):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def main() -> int:
    """Entry of ``python -m jobq.worker.spawner``."""
    ignore_signals()  # service managers signal every process of a service; the supervisor decides
    die_with_parent()
    fresh = os.environ.pop(FRESH_ENV, None)
    log_level = os.environ.pop(LOG_LEVEL_ENV, "INFO")
    if fresh is not None:
        with os.fdopen(int(fresh), "rb") as file:
            request = json.load(file)
        settings = Settings.load()
        load_app(APP_MODULES + tuple(settings.app), registry)
        settings = settings.renewed()
        _set_up_logging(settings, log_level)
        warm_up(settings)
        return _enter(request["kind"], settings, request["body"], request["fds"])
    channel = Channel.from_fd(int(os.environ.pop(CHANNEL_ENV)))
    try:
        settings = Settings.load()
    except JobqError as error:
        channel.send("failed", error=str(error))
        return 78
    return Spawner(channel, settings, log_level).run()


if __name__ == "__main__":
    sys.exit(main())
