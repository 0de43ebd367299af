"""``process_payment``: charge once, in the high lane, deduplicated and idempotent by payment id."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import from_json

from jobq.errors import ConfigError, JobqError, Retry
from jobq.helpers.helper import helper
from jobq.helpers.settings import helper_settings
from jobq.retry import RetryPolicy
from jobq.units import in_seconds

_AMOUNT: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,4})?")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_PAYMENT_ID: Final = re.compile(r"[!-~]{1,128}")  # it becomes part of a header
_LONG_NUMBER: Final = re.compile(r"\d(?:[ -]?\d){12,18}")  # looks like a card number
_TRY_AGAIN: Final = frozenset({408, 409, 425, 429})
_MAX_BODY: Final = 65_536
_EXCERPT: Final = 200


@dataclass(frozen=True, slots=True)
class Payment:
    """What a handler of ``process_payment`` gets.

    Attributes:
        idempotency_key: The same for every attempt and every job of this payment id: hand it to the
            provider, and a payment is charged once however often the handler runs.
    """

    payment_id: str
    amount: Decimal
    currency: str
    idempotency_key: str


class PaymentDeclinedError(JobqError):
    """The gateway refused the payment for good; no retry.

    Attributes:
        status: The HTTP status, a 4xx.
        body: Start of the answer, one line, long numbers and the token masked.
    """

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"the payment gateway declined ({status})" + (f": {body}" if body else ""))
        self.status = status
        self.body = body

    def __reduce__(self) -> tuple[type[PaymentDeclinedError], tuple[int, str]]:
        return type(self), (self.status, self.body)


class PaymentGatewayError(JobqError):
    """The gateway failed or is out of reach. Whether it charged is unknown; the next attempt finds out."""


class HttpGateway:
    """A handler of ``process_payment`` that posts each payment as JSON.

    The request is ``{"payment_id", "amount" (text), "currency"}`` with the header ``Idempotency-Key``. 2xx:
    the JSON object in the answer is the job's result. 408, 409, 425, 429, 5xx and connection errors: tried
    again, after ``Retry-After`` if the gateway says so. Every other answer in 4xx is final. Redirects are
    not followed.

    Args:
        url: Where to post; http or https.
        token: Sent as ``Authorization: Bearer``.
        timeout: Seconds or timedelta for the answer, default 10 s.
        connect_timeout: Seconds or timedelta for the connection, default 3 s.
        retry_after_cap: Longest ``Retry-After`` obeyed, seconds or timedelta, default 5 min.
        now: The clock that dates in ``Retry-After`` are compared with.

    Raises:
        ConfigError: The URL is malformed.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float | timedelta = 10,
        connect_timeout: float | timedelta = 3,
        retry_after_cap: float | timedelta = 300,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("the payment gateway's URL (JOBQ_PAYMENT_URL): expected https://host/path")
        self._url = url
        self._token = token
        self._timeout = _seconds(timeout)
        self._connect = _seconds(connect_timeout)
        self._cap = _seconds(retry_after_cap)
        self._now = now
        self._lock = threading.Lock()
        self._client: tuple[int, Any] | None = None

    def __repr__(self) -> str:
        return f"HttpGateway({urlsplit(self._url).hostname!r})"

    def __call__(self, payment: Payment) -> dict[str, Any]:
        """Charge, and return the gateway's answer.

        Raises:
            PaymentDeclinedError: Refused for good.
            PaymentGatewayError: The gateway failed or is unreachable.
            Retry: The gateway named the time after which to try again.
        """
        status, headers, body = self._post(payment)
        if 200 <= status < 300:
            return _result(status, body)
        if status in _TRY_AGAIN or status >= 500:
            after = self._retry_after(headers.get("retry-after"))
            if after is not None:
                raise Retry(after=after, reason=f"the payment gateway answered {status}")
            raise PaymentGatewayError(f"the payment gateway answered {status}")
        if 400 <= status < 500:
            raise PaymentDeclinedError(status, self._excerpt(body))
        raise PaymentGatewayError(f"the payment gateway answered {status}: is its URL right? (no redirects)")

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            held, self._client = self._client, None
        if held is not None and held[0] == os.getpid():
            held[1].close()

    def _post(self, payment: Payment) -> tuple[int, Mapping[str, str], bytes]:
        http = _httpx()
        headers = {"Idempotency-Key": payment.idempotency_key, "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        content = {
            "payment_id": payment.payment_id,
            "amount": format(payment.amount, "f"),
            "currency": payment.currency,
        }
        try:
            with self._http(http).stream("POST", self._url, json=content, headers=headers) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) >= _MAX_BODY:
                        break
                return response.status_code, response.headers, bytes(body[:_MAX_BODY])
        except http.TimeoutException as error:
            failure = f"the payment gateway did not answer in time ({type(error).__name__})"
        except http.HTTPError as error:
            failure = f"the payment gateway could not be reached, or broke off ({type(error).__name__})"
        # Outside the except block: the original holds the request, and with it the token.
        raise PaymentGatewayError(failure)

    def _http(self, http: ModuleType) -> Any:
        held = self._client
        if held is None or held[0] != os.getpid():  # a forked child must not share its parent's sockets
            with self._lock:
                held = self._client
                if held is None or held[0] != os.getpid():
                    limits = http.Timeout(self._timeout, connect=self._connect)
                    held = self._client = (os.getpid(), http.Client(timeout=limits, follow_redirects=False))
        return held[1]

    def _retry_after(self, value: str | None) -> float | None:
        """Seconds from a Retry-After header, bounded; None when it is absent or makes no sense."""
        if value is None:
            return None
        try:
            seconds = float(value)
        except ValueError:
            try:
                at = parsedate_to_datetime(value)
            except ValueError:
                return None
            seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - self._now()).total_seconds()
        return min(max(seconds, 0.0), self._cap) if math.isfinite(seconds) else None

    def _excerpt(self, body: bytes) -> str:
        text = body.decode("utf-8", "replace")
        if self._token:
            text = text.replace(self._token, "***")
        text = " ".join(_LONG_NUMBER.sub("***", text).split())
        return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def _result(status: int, body: bytes) -> dict[str, Any]:
    """The answer to keep. The charge has happened, so an unreadable answer is no error any more."""
    try:
        answer = from_json(body, allow_inf_nan=False)
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"status": status}


def _httpx() -> ModuleType:
    try:
        import httpx2  # late: an extra, and slow to load
    except ImportError:
        raise ConfigError("the HTTP payment gateway needs httpx2: pip install 'jobq[http]'") from None
    return httpx2


def _seconds(value: float | timedelta) -> float:
    seconds = in_seconds(value)
    if not 0 < seconds < math.inf:
        raise ConfigError(f"a timeout of the payment gateway must be more than 0 and finite, got {value!r}")
    return seconds


_lock = threading.Lock()
_gateways: dict[tuple[str, str | None], HttpGateway] = {}


def _default() -> HttpGateway | None:
    """The gateway that the settings describe, made once per process."""
    settings = helper_settings()
    if not settings.payment_url:
        return None
    token = settings.payment_token
    key = (settings.payment_url, token.get_secret_value() if token is not None else None)
    gateway = _gateways.get(key)
    if gateway is None:
        with _lock:
            gateway = _gateways.get(key) or _gateways.setdefault(key, HttpGateway(key[0], token=key[1]))
    return gateway


def _no_float(value: object) -> object:
    if isinstance(value, (float, bool)):
        raise ValueError("give the amount as text or Decimal: a float is not exact")
    return value


def _check_amount(value: Decimal | str) -> Decimal:
    if isinstance(value, str):
        text = value
    else:  # looked at first, for 1E+999999999 written out would fill the memory
        text = format(value, "f") if value.is_finite() and abs(value.adjusted()) < 20 else ""
    if not _AMOUNT.fullmatch(text):
        raise ValueError("expected a positive amount with at most 4 decimals, such as '12.50'")
    amount = Decimal(text)
    if amount == 0:
        raise ValueError("the amount must be more than 0")
    return amount


def _check_currency(value: str) -> str:
    if not _CURRENCY.fullmatch(value):
        raise ValueError("expected an ISO 4217 code, such as 'EUR'")
    return value


def _check_payment_id(value: str) -> str:
    if not _PAYMENT_ID.fullmatch(value):
        raise ValueError("expected 1 to 128 printable ASCII characters without spaces")
    return value


@helper(
    "jobq.process_payment",
    default=_default,
    remedy="set JOBQ_PAYMENT_URL",
    priority="high",
    dedup="{payment_id}",
    timeout=60,
    retry=RetryPolicy(max_attempts=5, per_error=((PaymentDeclinedError, None),)),
)
def process_payment(
    payment_id: Annotated[str, AfterValidator(_check_payment_id)],
    amount: Annotated[Decimal | str, BeforeValidator(_no_float), AfterValidator(_check_amount)],
    currency: Annotated[str, AfterValidator(_check_currency)],
) -> Payment:
    """Charge a payment; queue ``high``. Returns the job.

    While a job of the same ``payment_id`` is live, that job is returned instead of a second one. The
    application says how to charge, with ``@jobq.process_payment.handler`` or by setting ``JOBQ_PAYMENT_URL``.
    """
    return Payment(payment_id, _check_amount(amount), currency, f"payment-{payment_id}")
