"""A primary, its replicas and their sentinels, all on the loopback interface and of the test's own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

import redis
from redis.sentinel import Sentinel

from jobq.private_server import PrivateServer, find_server, free_port
from tests.support.processes import until

SERVICE = "jobs"


class SentinelGroup:
    """Use as ``with SentinelGroup() as group``; everything it started has ended after it.

    Args:
        replicas: Servers beside the primary.
        sentinels: A majority of them must agree that the primary is down.
        down_after_ms: How long the primary may be silent.
        config: Options of every server.
    """

    def __init__(
        self, replicas: int = 2, sentinels: int = 3, *, down_after_ms: int = 1000, config: dict[str, str] | None = None
    ) -> None:  # fmt: skip
        options = {"repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1", **(config or {})}
        self.servers = [PrivateServer(options) for _ in range(replicas + 1)]
        self._count = sentinels
        self._down_after_ms = down_after_ms
        self._ports: list[int] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        first = self.servers[0]
        for server in self.servers:
            self._stack.enter_context(server)
        self._clients = [
            self._stack.enter_context(redis.Redis.from_url(server.url)) for server in self.servers
        ]
        for client in self._clients[1:]:
            client.replicaof("127.0.0.1", str(first.port))
        folder = Path(tempfile.mkdtemp(prefix="jobq-sentinels-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for number in range(self._count):
            self._start_sentinel(folder, number)
        self.sentinel = Sentinel([("127.0.0.1", port) for port in self._ports], socket_timeout=0.5)
        self._stack.callback(self._close)
        self.settle()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """How jobq names the group."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    def client(self) -> redis.Redis:
        """A client of whichever server is primary."""
        made: redis.Redis = self.sentinel.master_for(SERVICE, socket_timeout=5)
        return made

    def primary(self) -> PrivateServer:
        """The server that the sentinels name."""
        _, port = self.sentinel.discover_master(SERVICE)
        return next(server for server in self.servers if server.port == port)

    def fail_over(self, timeout_s: float = 30.0) -> PrivateServer:
        """SIGKILL the primary and return it, once another one has been promoted."""
        old = self.primary()
        others = [
            client for server, client in zip(self.servers, self._clients, strict=True) if server is not old
        ]
        old.kill()
        until(lambda: any(_role(client).get("role") == "master" for client in others), timeout_s)
        return old

    def rejoin(self, server: PrivateServer) -> None:
        """Start an ended server again, as a replica of the present primary, and wait until all are in step."""
        until(lambda: self.primary() is not server, 30)
        server.start()
        self._clients[self.servers.index(server)].replicaof("127.0.0.1", str(self.primary().port))
        self.settle()

    def settle(self, timeout_s: float = 30.0) -> None:
        """Return once all replicas are in step, and every sentinel knows them and the others."""
        until(self._settled, timeout_s, 0.1)

    def _settled(self) -> bool:
        roles = [_role(client) for client in self._clients]
        links = [role.get("master_link_status") for role in roles if role.get("role") == "slave"]
        if links != ["up"] * (len(self.servers) - 1):
            return False
        for port in self._ports:
            with redis.Redis(port=port) as each:
                state: dict[str, Any] = each.sentinel_master(SERVICE)
            if state["num-slaves"] < len(self.servers) - 1 or state["num-other-sentinels"] < self._count - 1:
                return False
            if state["flags"] != "master":
                return False
        return True

    def _start_sentinel(self, folder: Path, number: int) -> None:
        port = free_port()
        config = folder / f"sentinel-{number}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nloglevel warning\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} {self._count // 2 + 1}\n"
            f"sentinel down-after-milliseconds {SERVICE} {self._down_after_ms}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        command = [str(find_server()), str(config), "--sentinel"]
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "TERM", *command]
        with (folder / f"sentinel-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._stack.callback(_end, process)
        self._ports.append(port)
        with redis.Redis(port=port) as each:
            until(lambda: _answers(each), 10)

    def _close(self) -> None:
        for each in self.sentinel.sentinels:
            each.close()


def _role(client: redis.Redis) -> dict[str, Any]:
    try:
        found: dict[str, Any] = client.info("replication")
    except redis.RedisError:
        return {}
    return found


def _answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(client.ping())
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
