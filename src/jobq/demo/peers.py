"""What the demo's jobs work with: a mail server, a payment gateway and a database, all real, all on loopback."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections import Counter
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jobq.errors import ConfigError
from jobq.private_server import free_port

ROWS = 100_000
ACCOUNT = "acc_1"
_BUSY_EVERY = 5


class MailServer:
    """An SMTP server that counts what it receives, per address."""

    def __init__(self) -> None:
        try:
            from aiosmtpd.controller import Controller  # late: of the dev extra
        except ImportError as error:
            raise ConfigError("the demo needs a mail server: pip install 'jobq[dev]'") from error
        self.received: Counter[str] = Counter()
        self._controller = Controller(self, hostname="127.0.0.1", port=free_port())

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        """Take a mail in."""
        self.received.update(envelope.rcpt_tos)
        return "250 taken"

    @property
    def url(self) -> str:
        """For ``JOBQ_SMTP_URL``."""
        return f"smtp://127.0.0.1:{self._controller.port}"

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._controller.stop()


class Gateway:
    """An HTTP payment gateway that honours ``Idempotency-Key``, and is busy (503) for every fifth new payment.

    Attributes:
        charges: Money taken, in times, per payment.
        refused: Requests answered with 503.
    """

    def __init__(self) -> None:
        self.charges: Counter[str] = Counter()
        self.refused = 0
        self._keys: dict[str, str] = {}
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                payment = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = gateway.charge(self.headers["Idempotency-Key"], payment["payment_id"])
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Quiet: the demo's own table tells."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def charge(self, key: str, payment_id: str) -> tuple[int, dict[str, str]]:
        """Take the money once per key."""
        with self._lock:
            if payment_id not in self._seen:
                self._seen.add(payment_id)
                if len(self._seen) % _BUSY_EVERY == 0:
                    self.refused += 1
                    return 503, {"error": "busy"}
            if key not in self._keys:
                self._keys[key] = f"ch_{len(self._keys)}"
                self.charges[payment_id] += 1
            return 200, {"charge": self._keys[key]}

    @property
    def url(self) -> str:
        """For ``JOBQ_PAYMENT_URL``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/charges"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="gateway", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._server.server_close()


def make_ledger(path: Path) -> None:
    """An SQLite database with 100,000 transactions of one account in January 2026."""
    rand = random.Random(7)
    start = date(2026, 1, 1)
    rows = (
        (
            number,
            ACCOUNT,
            (start + timedelta(days=number % 31)).isoformat(),
            f"{rand.randrange(-90_000, 90_000) / 100:.2f}",
            "EUR",
            f"=cmd|' /C calc'!A0 {number}" if number % 1000 == 0 else f"order {number}",
        )
        for number in range(ROWS)
    )
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE transactions (id INTEGER PRIMARY KEY, account_id TEXT, booked_at DATE, "
            "amount NUMERIC, currency TEXT, description TEXT)"
        )
        database.executemany("INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?)", rows)
    database.close()
