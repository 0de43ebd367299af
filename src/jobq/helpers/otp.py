"""``send_otp``: a one-time code by mail, in the critical lane."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate, make_msgid, parseaddr
from typing import Annotated, Final

from pydantic import AfterValidator

from jobq.context import current_job
from jobq.errors import ConfigError
from jobq.helpers.helper import helper
from jobq.helpers.settings import helper_settings
from jobq.helpers.smtp import MailRejectedError, SmtpPool, SmtpServer
from jobq.params import Secret
from jobq.retry import Backoff, RetryPolicy

_PART: Final = r"[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f]"
_ADDRESS: Final = re.compile(f"{_PART}{{1,64}}@{_PART}{{1,253}}")
_CODE: Final = re.compile(r"[!-~](?:[ -~]{0,62}[!-~])?")


@dataclass(frozen=True, slots=True)
class Otp:
    """What a handler of ``send_otp`` gets. Its repr shows neither address nor code."""

    email: str = field(repr=False)
    code: str = field(repr=False)


class OtpMailer:
    """Sends codes over SMTP: the default of ``send_otp``, and a handler when made by hand.

    Args:
        url: The server, as :class:`jobq.helpers.smtp.SmtpServer` reads it.
        sender: Address of the From header, with or without a name: ``Example <no-reply@example.com>``.
        subject: Subject of the mail. It never holds the code: subjects are shown on locked screens.
        text: Body; ``{code}`` is replaced.

    Raises:
        ConfigError: The URL or the sender is malformed.
    """

    def __init__(
        self,
        url: str,
        sender: str,
        *,
        subject: str = "Your verification code",
        text: str = "Your verification code is {code}.\n\nIf you did not ask for it, ignore this mail.\n",
    ) -> None:
        address = parseaddr(sender)[1]
        if not _ADDRESS.fullmatch(address):
            raise ConfigError(f"JOBQ_SMTP_FROM={sender!r}: expected an address such as no-reply@example.com")
        if "{code}" not in text:
            raise ConfigError("the text of an OTP mail needs {code}, which is where the code goes")
        self._pool = SmtpPool(SmtpServer.parse(url))
        self._sender = sender
        self._domain = address.rpartition("@")[2]
        self._subject = subject
        self._text = text

    def __call__(self, otp: Otp) -> None:
        """Send one code.

        Raises:
            MailRejectedError: The server refused it for good.
            MailDeferredError: The server refused it for now, or could not be reached.
        """
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = otp.email
        message["Subject"] = self._subject
        message["Date"] = formatdate(usegmt=True)
        # A retry keeps the id, so a mailbox can tell that two copies are one mail.
        job_id = current_job().job_id
        message["Message-ID"] = f"<{job_id}@{self._domain}>" if job_id else make_msgid(domain=self._domain)
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(self._text.replace("{code}", otp.code))
        self._pool.send(message)

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()


_lock = threading.Lock()
_mailers: dict[tuple[str, str], OtpMailer] = {}


def _default() -> OtpMailer | None:
    """The mailer that the settings describe, made once per process."""
    settings = helper_settings()
    url, sender = settings.smtp_url, settings.smtp_from
    if not url:
        return None
    if not sender:
        raise ConfigError("JOBQ_SMTP_FROM is not set: it is the sender of the mails, no-reply@example.com")
    key = (url, sender)
    mailer = _mailers.get(key)
    if mailer is None:
        with _lock:
            mailer = _mailers.get(key) or _mailers.setdefault(key, OtpMailer(*key))
    return mailer


def _check_address(address: str) -> str:
    if len(address) > 254 or not _ADDRESS.fullmatch(address):
        raise ValueError("not a mail address")  # never the value: the text goes into error messages
    return address


def _check_code(code: str) -> str:
    if not _CODE.fullmatch(code):
        raise ValueError("a code has 1 to 64 printable ASCII characters")
    return code


@helper(
    "jobq.send_otp",
    default=_default,
    remedy="set JOBQ_SMTP_URL and JOBQ_SMTP_FROM",
    priority="critical",
    timeout=30,
    # A code is worth little after some minutes: five quick tries, the last one about half a minute in.
    retry=RetryPolicy(max_attempts=5, delays=Backoff(cap=60), per_error=((MailRejectedError, None),)),
)
def send_otp(
    email: Annotated[str, AfterValidator(_check_address)],
    code: Annotated[str, Secret, AfterValidator(_check_code)],
) -> Otp:
    """Mail a one-time code; queue ``critical``. Returns the job.

    The code is encrypted in Redis when ``JOBQ_SECRET_KEY`` is set, and appears in no log and no error.
    Without a handler of the application the mail goes out over ``JOBQ_SMTP_URL``.
    """
    return Otp(email, code)
