"""The worker's probes over HTTP."""

from __future__ import annotations

import json
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from jobq.worker.health import HealthServer


def ask(port: int, path: str) -> tuple[int, list[str]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)["problems"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["problems"]


@pytest.mark.parametrize("path", ["/readyz", "/startupz", "/healthz", "/readyz?verbose"])
def test_readiness_and_liveness_are_told_apart(path: str) -> None:
    problems: list[str] = ["Redis has not answered for 4 s"]
    stalled: list[str] = []
    server = HealthServer(0, lambda: problems, lambda: stalled)
    try:
        assert ask(server.port, path) == (503, problems)
        assert ask(server.port, "/livez") == (200, [])
        stalled.append("the supervisor has stood still for 31 s")
        problems.clear()
        assert ask(server.port, path) == (200, [])
        assert ask(server.port, "/livez") == (503, stalled)
        assert ask(server.port, "/elsewhere") == (404, ["try /livez or /readyz"])
    finally:
        server.close()


def test_a_prober_that_hangs_up_leaves_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    hung_up, answered = threading.Event(), threading.Event()

    def problems() -> list[str]:
        hung_up.wait(5)
        return ["x" * 1_000_000]  # more than any buffer takes in one go

    server = HealthServer(0, problems, list)
    server._server.shutdown_request = _then(server._server.shutdown_request, answered)  # type: ignore[method-assign]
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as prober:
            prober.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
            prober.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        hung_up.set()
        assert answered.wait(5)
    finally:
        server.close()
    assert capsys.readouterr().err == ""


def _then(call: Callable[..., None], after: threading.Event) -> Callable[..., None]:
    def both(*args: object) -> None:
        call(*args)
        after.set()

    return both
