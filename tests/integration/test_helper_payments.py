"""``process_payment`` against a real HTTP gateway on loopback."""

from __future__ import annotations

import json
import os
import pickle
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import jobq
from jobq.errors import ConfigError, NoHandlerError, PayloadError, Retry
from jobq.helpers import (
    HttpGateway,
    Payment,
    PaymentDeclinedError,
    PaymentGatewayError,
    payments,
    process_payment,
    use_settings,
)
from jobq.retry import Dead, RetryIn

TOKEN = "tok-91c4e2"
PAYMENT = Payment("pay_42", Decimal("12.50"), "EUR", "payment-pay_42")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Gateway(ThreadingHTTPServer):
    """Charges once per idempotency key; answers what ``script`` holds first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[tuple[int, dict[str, str], bytes]] = []
        self.charges: dict[str, dict[str, Any]] = {}
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.hang = threading.Event()
        self.hanging = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up early is part of the tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/charges"


class _Handler(BaseHTTPRequestHandler):
    server: Gateway
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        if self.server.hanging:
            self.server.hang.wait(10)
            self.close_connection = True
            return
        if self.server.script:
            self._answer(*self.server.script.pop(0))
            return
        charge = self.server.charges.setdefault(
            self.headers["Idempotency-Key"], {"id": f"ch_{len(self.server.charges)}", **body}
        )
        self._answer(201, {"Content-Type": "application/json"}, json.dumps(charge).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return None


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.hang.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def adapter(gateway: Gateway) -> Iterator[Callable[..., HttpGateway]]:
    made: list[HttpGateway] = []

    def make(url: str | None = None, **options: Any) -> HttpGateway:
        made.append(HttpGateway(url or gateway.url, token=TOKEN, now=lambda: NOW, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


Adapter = Callable[..., HttpGateway]


def _fate(error: Exception) -> Dead | RetryIn:
    return process_payment.spec.policy().decide(1, error, random.Random(1))


def test_a_charge(gateway: Gateway, adapter: Adapter) -> None:
    charge = adapter()
    assert charge(PAYMENT) == {"id": "ch_0", "payment_id": "pay_42", "amount": "12.50", "currency": "EUR"}
    [(path, headers, body)] = gateway.seen
    assert path == "/charges"
    assert headers["Idempotency-Key"] == "payment-pay_42"
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert body == {"payment_id": "pay_42", "amount": "12.50", "currency": "EUR"}
    charge(PAYMENT)
    assert len(gateway.charges) == 1


@pytest.mark.covers("D-06")
def test_the_default_works_from_settings(gateway: Gateway) -> None:
    jobq.configure(payment_url=gateway.url, payment_token=TOKEN)
    try:
        process_payment.run(payment_id="p1", amount="5", currency="USD")
    finally:
        jobq.configure()
        payments._gateways.popitem()[1].close()
    assert gateway.charges["payment-p1"]["amount"] == "5"
    assert gateway.seen[0][1]["Authorization"] == f"Bearer {TOKEN}"


def test_without_settings_there_is_no_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    use_settings(jobq.Settings())
    with pytest.raises(NoHandlerError, match=r"process_payment\.handler.*JOBQ_PAYMENT_URL"):
        process_payment.run(payment_id="p1", amount="5", currency="USD")
    use_settings(None)


def test_the_applications_handler() -> None:
    seen: list[Payment] = []
    process_payment.handler(seen.append)
    try:
        process_payment.run("pay_42", "12.50", "EUR")
    finally:
        process_payment.clear_handler()
    assert seen == [PAYMENT]


@pytest.mark.parametrize("status", [400, 401, 402, 404, 422])
def test_4xx_is_final(gateway: Gateway, adapter: Adapter, status: int) -> None:
    text = f"no funds\r\n token {TOKEN} card 4111 1111 1111 1111 " + "x" * 900
    gateway.script.append((status, {"Retry-After": "5"}, text.encode()))
    with pytest.raises(PaymentDeclinedError, match=str(status)) as caught:
        adapter()(PAYMENT)
    assert caught.value.status == status
    assert caught.value.body.startswith("no funds token *** card *** x")
    assert len(caught.value.body) <= 200
    assert isinstance(_fate(caught.value), Dead)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.status, again.body) == (status, caught.value.body)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_these_are_tried_again(gateway: Gateway, adapter: Adapter, status: int) -> None:
    gateway.script.append((status, {}, b"busy"))
    charge = adapter()
    with pytest.raises(PaymentGatewayError, match=str(status)) as caught:
        charge(PAYMENT)
    assert isinstance(_fate(caught.value), RetryIn)
    assert charge(PAYMENT)["id"] == "ch_0"


@pytest.mark.parametrize(
    ("value", "after"),
    [
        ("7", 7),
        ("0", 0),
        ("99999", 300),
        ("-4", 0),
        ("Sun, 01 Mar 2026 12:01:30 GMT", 90),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Mon, 01 Mar 2027 12:00:00 GMT", 300),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(gateway: Gateway, adapter: Adapter, status: int, value: str, after: float) -> None:
    gateway.script.append((status, {"Retry-After": value}, b""))
    with pytest.raises(Retry, match=str(status)) as caught:
        adapter()(PAYMENT)
    assert caught.value.after == timedelta(seconds=after)


@pytest.mark.parametrize("value", ["soon", "nan", "inf", ""])
def test_a_senseless_retry_after_is_ignored(gateway: Gateway, adapter: Adapter, value: str) -> None:
    gateway.script.append((503, {"Retry-After": value}, b""))
    with pytest.raises(PaymentGatewayError):
        adapter()(PAYMENT)


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b'{"x": NaN}', b"\xff" * 200_000])
def test_a_charge_with_a_strange_answer_is_a_charge(gateway: Gateway, adapter: Adapter, body: bytes) -> None:
    gateway.script.append((200, {}, body))
    assert adapter()(PAYMENT) == {"status": 200}


def test_a_redirect_is_not_followed(gateway: Gateway, adapter: Adapter) -> None:
    gateway.script.append((307, {"Location": gateway.url}, b""))
    with pytest.raises(PaymentGatewayError, match="307"):
        adapter()(PAYMENT)
    assert len(gateway.seen) == 1


def test_timeouts_and_refused_connections_are_tried_again(gateway: Gateway, adapter: Adapter) -> None:
    gateway.hanging = True
    for charge, text in (
        (adapter(timeout=0.2), "in time"),
        (adapter("http://127.0.0.1:9/"), "reached"),
    ):
        with pytest.raises(PaymentGatewayError, match=text) as caught:
            charge(PAYMENT)
        assert isinstance(_fate(caught.value), RetryIn)
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
        assert TOKEN not in shown


def test_a_forked_child_has_its_own_connections(gateway: Gateway, adapter: Adapter) -> None:
    charge = adapter()
    charge(PAYMENT)
    child = os.fork()
    if child == 0:
        try:
            charge(PAYMENT)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    charge(PAYMENT)
    assert len(gateway.seen) == 3
    assert len(gateway.charges) == 1


def test_without_the_extra_the_message_says_what_to_install(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigError, match=r"pip install 'jobq\[http\]'"):
        adapter()(PAYMENT)


@pytest.mark.parametrize("url", ["ftp://x", "x", "http://", "//h/x"])
def test_wrong_urls(url: str) -> None:
    with pytest.raises(ConfigError, match="JOBQ_PAYMENT_URL"):
        HttpGateway(url)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_timeouts_are_finite(timeout: float) -> None:
    with pytest.raises(ConfigError, match="finite"):
        HttpGateway("https://x", timeout=timeout)


@pytest.mark.parametrize(
    ("amount", "kept"),
    [("12.50", "12.50"), (Decimal("0.0001"), "0.0001"), (3, "3"), (Decimal("1E+3"), "1000")],
)
def test_good_amounts(amount: Any, kept: str) -> None:
    bound = process_payment.bind((), {"payment_id": "p", "amount": amount, "currency": "EUR"})
    assert str(bound["amount"]) == kept
    loaded = process_payment.load({"payment_id": "p", "amount": kept, "currency": "EUR"}, 1)
    assert loaded == bound


@pytest.mark.parametrize(
    "amount",
    ["0", "-1", "", "1.00001", "1e3", "NaN", "1,5", " 1", "١", 1.5, True, None, Decimal("NaN"),
     Decimal("Infinity"),
     Decimal("1E+999999"), Decimal("1E-999999"), Decimal(-1), "9" * 16],
)  # fmt: skip
def test_bad_amounts(amount: Any) -> None:
    with pytest.raises(PayloadError, match="amount"):
        process_payment.bind((), {"payment_id": "p", "amount": amount, "currency": "EUR"})


@pytest.mark.parametrize("params", [
    {"currency": "eur"}, {"currency": "EURO"}, {"currency": "EUR\n"}, {"payment_id": ""},
    {"payment_id": "a b"},
    {"payment_id": "a\r\nX: y"}, {"payment_id": "x" * 129}, {"payment_id": "é"},
])  # fmt: skip
def test_bad_ids_and_currencies(params: dict[str, str]) -> None:
    with pytest.raises(PayloadError, match=next(iter(params))):
        process_payment.bind((), {"payment_id": "p", "amount": "1", "currency": "EUR"} | params)
