"""Tasks that come with jobq. Calling one enqueues it; a ``handler`` of the application may do the work."""

from __future__ import annotations

from jobq.helpers.exports import Export, ExportSource, SqlExporter, export_transactions
from jobq.helpers.otp import Otp, OtpMailer, send_otp
from jobq.helpers.payments import (
    HttpGateway,
    Payment,
    PaymentDeclinedError,
    PaymentGatewayError,
    process_payment,
)
from jobq.helpers.settings import use_settings
from jobq.helpers.smtp import MailDeferredError, MailError, MailRejectedError

__all__ = [
    "Export",
    "ExportSource",
    "HttpGateway",
    "MailDeferredError",
    "MailError",
    "MailRejectedError",
    "Otp",
    "OtpMailer",
    "Payment",
    "PaymentDeclinedError",
    "PaymentGatewayError",
    "SqlExporter",
    "export_transactions",
    "process_payment",
    "send_otp",
    "use_settings",
]
