"""Typed jobs on RQ's queues: lanes with targets of their own, leases that outlive a crash, dead letters you can replay.

``import jobq`` loads nothing but this file; each name is imported when it is first used. So an application
that only names a task pays for no Redis client, and ``jobq --help`` answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobq import helpers as helpers
    from jobq.client import AsyncClient, Client, configure
    from jobq.config import Settings
    from jobq.errors import (
        Cancel,
        CodecError,
        ConfigError,
        ConflictError,
        CostTooHighError,
        Discard,
        EnqueueError,
        JobFailedError,
        JobNotFoundError,
        JobqError,
        LeaseLostError,
        NewerPayloadError,
        NoHandlerError,
        NoKeyError,
        PayloadError,
        PayloadTooLargeError,
        PayloadUnreadableError,
        QueueFullError,
        QuotaExceededError,
        RateLimited,
        ResultNotKeptError,
        Retry,
        Signal,
        SignatureError,
        Snooze,
        SoftTimeout,
        StoreError,
        StorePermissionError,
        StoreUnavailableError,
        TextError,
        UnknownTaskError,
    )
    from jobq.helpers import export_transactions, process_payment, send_otp
    from jobq.job import Job, JobState
    from jobq.limits import Concurrency, Quota, Rate
    from jobq.queues import Priority, QueueSpec, queue
    from jobq.recurrence import Misfire
    from jobq.retry import Backoff, Fixed, RetryPolicy, Steps
    from jobq.schedule_spec import schedule
    from jobq.tasks import Secret, Task, current_job, task

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Backoff",
    "Cancel",
    "Client",
    "CodecError",
    "Concurrency",
    "ConfigError",
    "ConflictError",
    "CostTooHighError",
    "Discard",
    "EnqueueError",
    "Fixed",
    "Job",
    "JobFailedError",
    "JobNotFoundError",
    "JobState",
    "JobqError",
    "LeaseLostError",
    "Misfire",
    "NewerPayloadError",
    "NoHandlerError",
    "NoKeyError",
    "PayloadError",
    "PayloadTooLargeError",
    "PayloadUnreadableError",
    "Priority",
    "QueueFullError",
    "QueueSpec",
    "Quota",
    "QuotaExceededError",
    "Rate",
    "RateLimited",
    "ResultNotKeptError",
    "Retry",
    "RetryPolicy",
    "Secret",
    "Settings",
    "Signal",
    "SignatureError",
    "Snooze",
    "SoftTimeout",
    "Steps",
    "StoreError",
    "StorePermissionError",
    "StoreUnavailableError",
    "Task",
    "TextError",
    "UnknownTaskError",
    "__version__",
    "configure",
    "current_job",
    "export_transactions",
    "process_payment",
    "queue",
    "schedule",
    "send_otp",
    "task",
]

_MODULES = {
    "client": ("AsyncClient", "Client", "configure"),
    "config": ("Settings",),
    "helpers": ("export_transactions", "process_payment", "send_otp"),
    "job": ("Job", "JobState"),
    "limits": ("Concurrency", "Quota", "Rate"),
    "queues": ("Priority", "QueueSpec", "queue"),
    "recurrence": ("Misfire",),
    "retry": ("Backoff", "Fixed", "RetryPolicy", "Steps"),
    "schedule_spec": ("schedule",),
    "tasks": ("Secret", "Task", "current_job", "task"),
}
_SOURCE = {name: module for module, names in _MODULES.items() for name in names}
_SUBMODULES = frozenset({"helpers"})  # reachable as jobq.helpers without an import of its own

if not TYPE_CHECKING:  # a type checker that saw __getattr__ would accept any name

    def __getattr__(name: str) -> object:
        """Import a public name on its first use, and keep it."""
        if name in _SUBMODULES:
            return import_module(f"jobq.{name}")
        if name not in __all__:
            raise AttributeError(f"module 'jobq' has no attribute {name!r}")
        value = getattr(import_module(f"jobq.{_SOURCE.get(name, 'errors')}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_SUBMODULES})
