"""The worker's probes over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

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
