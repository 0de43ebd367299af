"""What the synchronous and the asynchronous client share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobq import events, tasks
from jobq.codec import Codec
from jobq.config import Settings
from jobq.editing import Editor
from jobq.enqueueing import Enqueuer
from jobq.errors import ConfigError, StoreUnavailableError
from jobq.inline import run_inline
from jobq.job import AsyncJobActions, Job, JobActions
from jobq.keys import Keys
from jobq.plans import Plans
from jobq.rq_bridge import bind_prefix
from jobq.schedules import SchedulePlans
from jobq.tasks import EnqueueRequest, Registry


class ClientBase:
    """What both kinds of client hold."""

    def __init__(self, settings: Settings | None, registry: Registry | None) -> None:
        self.settings = settings if settings is not None else Settings.load()
        self.registry = registry if registry is not None else tasks.registry
        bind_prefix(self.settings.key_prefix)
        self.settings.require_production_ready()
        if self.settings.fallback == "spool":
            raise ConfigError("JOBQ_FALLBACK=spool is not built yet: use raise or inline")
        self.keys = Keys(self.settings.key_prefix)
        self.codec: Codec = self.settings.codec()
        self.specs = self.settings.queue_specs()
        self._plans = Plans(self.keys, self.specs, self)
        self.enqueuer = Enqueuer(keys=self.keys, codec=self.codec, settings=self.settings, owner=self)
        self._editor = Editor(self.keys, self.codec, self.registry, self)
        self._schedule_plans = SchedulePlans(self.keys, self.codec, self.enqueuer, self)

    def sync_actions(self) -> JobActions:
        """The client that a job's plain methods use."""
        raise NotImplementedError

    def async_actions(self) -> AsyncJobActions:
        """The client that a job's ``_async`` methods use."""
        raise NotImplementedError

    def _inline(self, requests: Sequence[EnqueueRequest], why: str) -> list[Job]:
        for request in requests:
            events.emit("fallback.used", task=request.task.name, queue=request.queue, reason=why)
        return [run_inline(request) for request in requests]

    def _may_run_inline(self, error: StoreUnavailableError) -> bool:
        # Only when nothing can have been written: an ambiguous enqueue may still run on a worker, too.
        return self.settings.fallback == "inline" and not error.ambiguous

    def _decode(self, value: bytes | None) -> Any:
        return None if value is None else self.codec.decode_result(value)
