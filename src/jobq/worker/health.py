"""``/livez`` and ``/readyz`` of a worker, on the loopback interface."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A prober that hangs up before it has its answer is no event, and no traceback in the log."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class HealthServer:
    """Answers probes: 200, or 503 with the reasons.

    Args:
        port: 0 lets the system choose; see :attr:`port`.
        problems: Why the worker is not ready; empty when it is.
        stalled: Why only a new process can help; empty while this one works.
    """

    def __init__(
        self, port: int, problems: Callable[[], list[str]], stalled: Callable[[], list[str]]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/livez":
                    self._answer(stalled())
                elif path in ("/readyz", "/startupz", "/healthz"):
                    self._answer(problems())
                else:
                    self._answer(["try /livez or /readyz"], bad=404)

            def _answer(self, found: list[str], *, bad: int = 503) -> None:
                body = json.dumps({"status": "bad" if found else "ok", "problems": found}).encode()
                self.send_response(bad if found else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Cache-Control", "no-store")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Probes come every few seconds: they are not logged."""

        self._server = _Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
