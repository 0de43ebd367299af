"""``send_otp`` against a real SMTP server with TLS and login."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

import jobq
from jobq.context import JobContext, running_job
from jobq.errors import ConfigError, NoHandlerError, PayloadError
from jobq.helpers import MailDeferredError, MailRejectedError, Otp, OtpMailer, otp, send_otp, use_settings
from jobq.helpers.smtp import SmtpServer
from jobq.retry import Dead, RetryIn

pytestmark = pytest.mark.filterwarnings(
    "ignore:Requiring AUTH while not requiring TLS"
)  # it knows STARTTLS only

USER, PASSWORD = "jobq", "p@ss/word"
ADDRESS, CODE = "ada@example.com", "739182"
SENDER = "Shop <no-reply@shop.example>"


class Inbox:
    """Handler of the server: keeps mails, and refuses on request."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []
        self.sessions: set[int] = set()
        self.rcpt_answer: str | None = None
        self.data_answer: str | None = None
        self.encrypted: list[bool] = []

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's names
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.rcpt_answer:
            return self.rcpt_answer.format(address=address)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's names
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        if self.data_answer:
            return self.data_answer
        assert server.transport is not None
        self.encrypted.append(server.transport.get_extra_info("sslcontext") is not None)
        self.sessions.add(id(session))
        self.mails.append(envelope)
        return "250 OK"


class Server:
    def __init__(self, controller: Controller, inbox: Inbox, url: str) -> None:
        self.controller, self.inbox, self.url = controller, inbox, url

    def drop_connections(self) -> None:
        """Close every connection from the server's side."""
        done = threading.Event()

        def close() -> None:
            for transport in TRANSPORTS:
                with contextlib.suppress(Exception):  # of an earlier server, whose loop is closed
                    transport.abort()
            TRANSPORTS.clear()
            # A turn of the loop later the transports have closed their sockets.
            self.controller.loop.call_later(0.02, done.set)

        self.controller.loop.call_soon_threadsafe(close)
        assert done.wait(5)


TRANSPORTS: list[Any] = []


class _Smtp(SMTP):
    def connection_made(self, transport: Any) -> None:
        TRANSPORTS.append(transport)
        super().connection_made(transport)


def _login(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (
        USER.encode(),
        PASSWORD.encode(),
    )
    return AuthResult(success=good, handled=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return ca, path


@pytest.fixture
def start(authority: tuple[trustme.CA, Path]) -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def make(*, smtps: bool = False, tls: bool = True, login: bool = True, extra: str = "") -> Server:
        ca, path = authority
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ca.issue_cert("localhost").configure_cert(context)
        inbox = Inbox()

        class Own(Controller):
            def factory(self) -> SMTP:
                return _Smtp(
                    self.handler,
                    hostname="mail.test",
                    tls_context=context if tls and not smtps else None,
                    require_starttls=tls and not smtps,
                    authenticator=_login,
                    auth_required=login,
                    auth_require_tls=tls and not smtps,  # aiosmtpd takes STARTTLS alone for TLS
                )

        controller = Own(inbox, hostname="localhost", port=0, ssl_context=context if smtps else None)
        # aiosmtpd checks a port by connecting to it, which needs a number: take a free one.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            controller.port = probe.getsockname()[1]
        controller.start()
        scheme = "smtps" if smtps else "smtp"
        who = f"{USER}:{quote(PASSWORD, safe='')}@" if login else ""
        options = "&".join(part for part in (f"cafile={path}" if tls or smtps else "", extra) if part)
        url = f"{scheme}://{who}localhost:{controller.port}?{options}".rstrip("?")
        running.append(Server(controller, inbox, url))
        return running[-1]

    yield make
    for server in running:
        server.drop_connections()
        server.controller.stop()


@pytest.fixture
def mailer() -> Iterator[Callable[[str], OtpMailer]]:
    made: list[OtpMailer] = []

    def make(url: str) -> OtpMailer:
        made.append(OtpMailer(url, SENDER))
        return made[-1]

    yield make
    for each in made:
        each.close()


Start = Callable[..., Server]
Mailer = Callable[[str], OtpMailer]


def _shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error.__context__)


@pytest.mark.parametrize(
    "options", [{"extra": "starttls=required"}, {"smtps": True}, {}], ids=["starttls", "smtps", "auto"]
)
def test_a_code_arrives_over_tls_with_login(start: Start, mailer: Mailer, options: dict[str, Any]) -> None:
    server = start(**options)
    with running_job(JobContext(job_id="jobq_send_otp-1-2")):
        mailer(server.url)(Otp(ADDRESS, CODE))
    [mail] = server.inbox.mails
    assert server.inbox.encrypted == [True]
    assert (mail.mail_from, mail.rcpt_tos) == ("no-reply@shop.example", [ADDRESS])
    message = message_from_bytes(mail.content or b"", policy=policy.default)  # type: ignore[arg-type]
    assert message["To"] == ADDRESS
    assert message["Message-ID"] == "<jobq_send_otp-1-2@shop.example>"
    assert CODE not in message["Subject"]
    assert CODE in message.get_content()


def test_the_default_works_from_settings(start: Start) -> None:
    server = start()
    use_settings(jobq.Settings(smtp_url=server.url, smtp_from=SENDER))
    try:
        send_otp.run(email=ADDRESS, code=CODE)
    finally:
        use_settings(None)
        otp._mailers.popitem()[1].close()
    assert len(server.inbox.mails) == 1


def test_without_settings_there_is_no_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    use_settings(jobq.Settings())
    with pytest.raises(NoHandlerError, match="JOBQ_SMTP_URL"):
        send_otp.run(email=ADDRESS, code=CODE)
    use_settings(None)


def test_connections_are_reused_and_replaced(start: Start, mailer: Mailer) -> None:
    server = start()
    send = mailer(server.url)
    for _ in range(5):
        send(Otp(ADDRESS, CODE))
    assert len(server.inbox.sessions) == 1
    server.drop_connections()
    send(Otp(ADDRESS, CODE))
    assert len(server.inbox.mails) == 6
    assert len(server.inbox.sessions) == 2


def test_many_threads_share_the_pool(start: Start, mailer: Mailer) -> None:
    server = start()
    send = mailer(server.url)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                send(Otp(ADDRESS, CODE))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(server.inbox.mails) == 30
    assert len(server.inbox.sessions) <= 6


def test_a_forked_child_opens_its_own(start: Start, mailer: Mailer) -> None:
    server = start()
    send = mailer(server.url)
    send(Otp(ADDRESS, CODE))
    child = os.fork()
    if child == 0:
        try:
            send(Otp(ADDRESS, CODE))
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    send(Otp(ADDRESS, CODE))
    assert len(server.inbox.mails) == 3
    assert len(server.inbox.sessions) == 2


@pytest.mark.parametrize(
    ("answer", "where", "kind"),
    [
        ("550 5.1.1 <{address}> unknown", "rcpt_answer", MailRejectedError),
        ("450 4.2.1 <{address}> busy", "rcpt_answer", MailDeferredError),
        ("554 5.7.1 no spam", "data_answer", MailRejectedError),
        ("451 4.3.0 later", "data_answer", MailDeferredError),
    ],
)
def test_a_refusal_says_whether_to_retry_and_nothing_else(
    start: Start, mailer: Mailer, caplog: pytest.LogCaptureFixture, answer: str, where: str, kind: type
) -> None:
    caplog.set_level(logging.DEBUG, logger="jobq")
    server = start()
    setattr(server.inbox, where, answer)
    send = mailer(server.url)
    with pytest.raises(kind, match=answer[:9]) as caught:
        send(Otp(ADDRESS, CODE))
    shown = _shown(caught.value) + "".join(
        r.getMessage() for r in caplog.records if r.name.startswith("jobq")
    )
    for private in (ADDRESS, CODE, PASSWORD):
        assert private not in shown
    retry = send_otp.spec.policy().decide(1, caught.value, random.Random(1))
    assert isinstance(retry, Dead if kind is MailRejectedError else RetryIn)
    setattr(server.inbox, where, None)
    send(Otp(ADDRESS, CODE))  # the connection is still good
    assert len(server.inbox.mails) == 1


def test_what_the_network_does(start: Start, mailer: Mailer) -> None:
    server = start()
    with pytest.raises(MailDeferredError, match="login"):
        mailer(server.url.replace(quote(PASSWORD, safe=""), "wrong"))(Otp(ADDRESS, CODE))
    with pytest.raises(MailDeferredError, match="certificate"):
        mailer(server.url.partition("?")[0])(Otp(ADDRESS, CODE))
    plain = start(tls=False, login=False)
    with pytest.raises(MailDeferredError, match="STARTTLS"):
        mailer(plain.url + "?starttls=required")(Otp(ADDRESS, CODE))
    mailer(plain.url)(Otp(ADDRESS, CODE))
    assert plain.inbox.encrypted == [False]
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with pytest.raises(MailDeferredError, match="reached"):
            mailer(f"smtp://127.0.0.1:{nobody.getsockname()[1]}")(Otp(ADDRESS, CODE))


@pytest.mark.parametrize(
    "url",
    ["http://x", "smtp://", "smtp://h:x", "smtp://h?starttls=maybe", "smtp://h?tls=1", "smtps://h?starttls=required",
     "smtp://h?timeout=0", "smtp://u:hunter2@h?bad"],
)  # fmt: skip
def test_wrong_urls(url: str) -> None:
    with pytest.raises(ConfigError, match="JOBQ_SMTP_URL") as caught:
        SmtpServer.parse(url)
    assert "hunter2" not in str(caught.value)


def test_urls() -> None:
    assert SmtpServer.parse("smtps://h").port == 465
    assert SmtpServer.parse("smtp://h").port == 25
    server = SmtpServer.parse("smtp://a%40b:p%2Fw@h?timeout=3")
    assert (server.user, server.password, server.port, server.timeout_s) == ("a@b", "p/w", 587, 3)
    assert "p/w" not in repr(server)


@pytest.mark.parametrize(
    ("email", "code"),
    [
        ("ada", "1"),
        ("a@b@c", "1"),
        ("a@b\r\nBcc: x@y", "1"),
        (ADDRESS, ""),
        (ADDRESS, "1\r\n2"),
        (ADDRESS, "x" * 65),
    ],
)
def test_bad_params_never_reach_the_queue(email: str, code: str) -> None:
    with pytest.raises(PayloadError) as caught:
        send_otp.bind((), {"email": email, "code": code})
    assert "Bcc" not in str(caught.value)
    assert "xxx" not in str(caught.value)
