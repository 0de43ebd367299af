"""Mail over SMTP: a pool of connections per process, and errors that say whether another try can help."""

from __future__ import annotations

import functools
import os
import re
import smtplib
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from jobq.errors import ConfigError, JobqError

_MAX_IDLE: Final = 8
_MAX_MESSAGES: Final = 100  # then a fresh connection: servers end long sessions, some without a word
_STATUS: Final = re.compile(rb"\b[245]\.\d{1,3}\.\d{1,3}\b")


class MailError(JobqError):
    """The mail was not accepted. The text repeats neither address nor content, nor what the server said."""


class MailDeferredError(MailError):
    """Not accepted for now: the server said 4xx, is out of reach, or refused the login. Worth a retry."""


class MailRejectedError(MailError):
    """Refused for good: the server said 5xx to this sender, recipient or message. No retry will help."""


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where mail goes, as ``JOBQ_SMTP_URL`` says it.

    ``smtp://user:password@host:port?starttls=required`` or ``smtps://…`` (TLS from the first byte).

    Attributes:
        starttls: ``required``; ``auto`` (default): where the server offers it; ``never``.
        cafile: PEM file of the authority to trust instead of the system's.
        timeout_s: Limit of each network step; default 10.
    """

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    starttls: Literal["required", "auto", "never"] = "auto"
    cafile: str | None = None
    timeout_s: float = 10.0

    @classmethod
    def parse(cls, url: str) -> SmtpServer:
        """The server that ``url`` names.

        Raises:
            ConfigError: The URL is malformed. Its password is not repeated.
        """
        example = "expected smtp://user:password@host:587?starttls=required or smtps://user:password@host"
        try:
            parts = urlsplit(url)
            port = parts.port
            found = parse_qs(parts.query, strict_parsing=bool(parts.query))
            query = {key: values[-1] for key, values in found.items()}
            timeout_s = float(query.pop("timeout", "10"))
        except ValueError:
            raise ConfigError(f"JOBQ_SMTP_URL is malformed: {example}") from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigError(f"JOBQ_SMTP_URL: {example}")
        if not 0 < timeout_s <= 300:
            raise ConfigError("JOBQ_SMTP_URL: timeout is in seconds, more than 0 and at most 300")
        tls = parts.scheme == "smtps"
        starttls = query.pop("starttls", "auto")
        cafile = query.pop("cafile", None)
        if query:
            raise ConfigError(
                f"JOBQ_SMTP_URL: unknown option {min(query)!r}: it takes starttls, cafile and timeout"
            )
        if starttls not in ("required", "auto", "never"):
            raise ConfigError(f"JOBQ_SMTP_URL: starttls={starttls!r}: expected required, auto or never")
        if tls and starttls == "required":
            raise ConfigError("JOBQ_SMTP_URL: smtps:// is TLS already: use smtp:// with starttls=required")
        return cls(
            host=parts.hostname,
            port=port or (465 if tls else 587 if parts.username else 25),
            tls=tls,
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            starttls="never" if tls else starttls,  # type: ignore[arg-type]  # checked above
            cafile=cafile,
            timeout_s=timeout_s,
        )


class SmtpPool:
    """Connections to one server, shared by the threads of this process.

    A connection taken from the pool has answered NOOP; a broken one is replaced. After a fork the child
    leaves its parent's connections alone and opens its own.
    """

    def __init__(self, server: SmtpServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._idle: deque[_Connection] = deque()
        self._pid = os.getpid()

    def send(self, message: EmailMessage) -> None:
        """Hand one message to the server.

        Raises:
            MailRejectedError: Refused for good.
            MailDeferredError: Refused or unreachable for now. The server may have accepted the message when
                the connection broke just after it was sent; keep the Message-ID on the next try.
        """
        try:
            with self._connection() as connection:
                connection.smtp.send_message(message)
            return
        except (smtplib.SMTPException, OSError) as error:
            failure = _translate(error)
        # Outside the except block: the original quotes the address, so it must not even be this error's
        # context.
        raise failure

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.quit()

    @contextmanager
    def _connection(self) -> Iterator[_Connection]:
        connection = self._take() or self._open()
        try:
            yield connection
        except smtplib.SMTPServerDisconnected:
            connection.drop()
            raise
        except smtplib.SMTPException:
            # The server refused this message; smtplib has sent RSET, so the connection is good for others.
            self._put(connection)
            raise
        except BaseException:
            connection.drop()  # in the middle of a dialogue: nobody knows what the next answer would be to
            raise
        self._put(connection)

    def _take(self) -> _Connection | None:
        while True:
            with self._lock:
                if self._pid != os.getpid():
                    self._idle.clear()
                    self._pid = os.getpid()
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.alive():
                return connection
            connection.drop()

    def _put(self, connection: _Connection) -> None:
        connection.messages += 1
        if connection.messages < _MAX_MESSAGES:
            with self._lock:
                if len(self._idle) < _MAX_IDLE:
                    self._idle.append(connection)
                    return
        connection.quit()

    def _open(self) -> _Connection:
        server = self._server
        context = ssl.create_default_context(cafile=server.cafile)
        smtp: smtplib.SMTP
        if server.tls:
            smtp = smtplib.SMTP_SSL(
                server.host, server.port, _local_name(), timeout=server.timeout_s, context=context
            )
        else:
            smtp = smtplib.SMTP(server.host, server.port, _local_name(), timeout=server.timeout_s)
        try:
            smtp.ehlo_or_helo_if_needed()
            encrypted = server.tls
            if server.starttls == "required" or (server.starttls == "auto" and smtp.has_extn("starttls")):
                smtp.starttls(context=context)
                smtp.ehlo()
                encrypted = True
            if server.user is not None:
                if not encrypted and server.starttls != "never" and not _is_loopback(smtp):
                    raise ConfigError(
                        "JOBQ_SMTP_URL: the server offers no TLS, so the password would go in the clear: "
                        "use smtps://, or starttls=never if the network is trusted"
                    )
                smtp.login(server.user, server.password or "")
        except BaseException:
            smtp.close()
            raise
        return _Connection(smtp)


@dataclass(slots=True, eq=False)
class _Connection:
    smtp: smtplib.SMTP
    messages: int = 0

    def alive(self) -> bool:
        try:
            return self.smtp.noop()[0] == 250
        except (smtplib.SMTPException, OSError):
            return False

    def drop(self) -> None:
        with suppress(OSError):
            self.smtp.close()

    def quit(self) -> None:
        with suppress(smtplib.SMTPException, OSError):
            self.smtp.quit()


@functools.cache
def _local_name() -> str:
    return socket.getfqdn()  # may ask the DNS: once per process is enough


def _is_loopback(smtp: smtplib.SMTP) -> bool:
    if smtp.sock is None:
        return False
    address = str(smtp.sock.getpeername()[0])
    return address == "::1" or address.startswith("127.")


def _translate(error: smtplib.SMTPException | OSError) -> MailError:
    """Our error for smtplib's, without its text: servers like to repeat the address in it."""
    match error:
        case smtplib.SMTPRecipientsRefused(recipients=refused) if refused:
            code, text = max(refused.values())  # several recipients: a permanent refusal decides
            return _by_code(int(code), text, "the recipient")
        case smtplib.SMTPAuthenticationError(smtp_code=code):
            # 5xx, but the message is not to blame: the password is, and that gets repaired.
            return MailDeferredError(f"the mail server refused the login ({code}): check JOBQ_SMTP_URL")
        case smtplib.SMTPSenderRefused(smtp_code=code, smtp_error=text):
            return _by_code(code, text, "the sender: check JOBQ_SMTP_FROM")
        case smtplib.SMTPDataError(smtp_code=code, smtp_error=text):
            return _by_code(code, text, "the message")
        case smtplib.SMTPConnectError(smtp_code=code) | smtplib.SMTPHeloError(smtp_code=code):
            return MailDeferredError(f"the mail server refused the connection ({code})")
        case smtplib.SMTPResponseException(smtp_code=code, smtp_error=text):
            return _by_code(code, text, "a command")
        case smtplib.SMTPNotSupportedError():
            return MailDeferredError("the mail server lacks STARTTLS, AUTH or SMTPUTF8, which is needed here")
        case ssl.SSLCertVerificationError():
            return MailDeferredError(f"the mail server's certificate is not trusted: {error.verify_message}")
        case TimeoutError():
            return MailDeferredError("the mail server did not answer in time")
    return MailDeferredError(f"the mail server could not be reached, or broke off ({type(error).__name__})")


def _by_code(code: int, text: bytes | str, what: str) -> MailError:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    enhanced = _STATUS.search(raw)
    status = f"{code} {enhanced.group().decode()}" if enhanced else str(code)
    if code >= 500:
        return MailRejectedError(f"the mail server refused {what} for good ({status})")
    return MailDeferredError(f"the mail server refused {what} for now ({status})")
