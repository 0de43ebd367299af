"""What the synchronous and the asynchronous client share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jobq import events, tasks
from jobq.codec import Codec
from jobq.config import Settings
from jobq.editing import Editor
from jobq.enqueueing import Enqueuer
from jobq.errors import ConfigError, JobqError, ResultNotKeptError, StoreUnavailableError
from jobq.inline import run_inline
from jobq.job import AsyncJobActions, Job, JobActions
from jobq.keys import Keys
from jobq.plans import Plans
from jobq.rq_bridge import StreamResult, bind_prefix
from jobq.schedules import SchedulePlans
from jobq.steps import Batch
from jobq.tasks import EnqueueRequest, Registry


class ClientBase:
    """What both kinds of client hold.

    Attributes:
        plans: Its steps, whichever Redis they are run in.
        specs: The queues in this client's Redis, by name.
        elsewhere: URLs by queue, of queues with a Redis of their own.
    """

    def __init__(self, settings: Settings | None, registry: Registry | None, *, alone: bool = False) -> None:
        given: object = settings
        if not isinstance(given, Settings | None):
            kind = type(given).__name__
            raise ConfigError(f"a client takes jobq.Settings(redis_url=…), or nothing, and not a {kind}")
        self.settings = settings if settings is not None else Settings.load()
        self.registry = registry if registry is not None else tasks.registry
        bind_prefix(self.settings.key_prefix)
        self.settings.require_production_ready()
        if self.settings.fallback == "spool":
            raise ConfigError("JOBQ_FALLBACK=spool is not built yet: use raise or inline")
        self.keys = Keys(self.settings.key_prefix)
        self.codec: Codec = self.settings.codec()
        specs = self.settings.queue_specs()
        homes = {name: spec.redis_url or self.settings.redis_url for name, spec in specs.items()}
        self.specs = {name: spec for name, spec in specs.items() if homes[name] == self.settings.redis_url}
        self.alone = alone
        self.elsewhere = (
            {} if alone else {n: url for n, url in homes.items() if url != self.settings.redis_url}
        )
        self.plans = Plans(self.keys, self.specs, self)
        self.enqueuer = Enqueuer(keys=self.keys, codec=self.codec, settings=self.settings, owner=self)
        self.editor = Editor(self.keys, self.codec, self.registry, self)
        self._schedule_plans = SchedulePlans(self.keys, self.codec, self.enqueuer, self)

    def url_of(self, queue: str | Iterable[str] | None) -> str:
        """The Redis that a queue is in, or all of some.

        Raises:
            ConfigError: They are in several, or none is named while queues of the settings are.
        """
        if not self.elsewhere:
            return self.settings.redis_url
        if isinstance(queue, Iterator):  # read here, it would name nothing to whoever filters by it
            raise TypeError("queue= wants a list of names, not an iterator")
        names = (queue,) if isinstance(queue, str) else tuple(queue or ())
        urls = {self.elsewhere.get(name, self.settings.redis_url) for name in names}
        if len(urls) == 1:
            return urls.pop()
        what = f"queues {', '.join(names)} are" if names else "the queues are"
        raise ConfigError(
            f"{what} in several Redis servers: name queues of one, or the server (client.at, --redis-url); "
            f"apart from the others are {', '.join(sorted(self.elsewhere))}"
        )

    @property
    def _urls(self) -> list[str]:
        """Every Redis that queues are in, this client's own first."""
        return list(dict.fromkeys((self.settings.redis_url, *self.elsewhere.values())))

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
        return self.settings.fallback == "inline" and not error.ambiguous and not any(error.acknowledged)

    def _value(self, job: Job, entry: StreamResult | None) -> Any:
        """What a success returned.

        Raises:
            ResultNotKeptError: It was not kept.
        """
        if job.result_dropped:
            why = {
                "too_large": "over JOBQ_RESULT_LIMIT: store it elsewhere and return a reference, or raise the limit"
            }
            raise ResultNotKeptError(
                f"job {job.id} succeeded, but its result was not kept; it is "
                + why.get(job.result_dropped, "nothing that JSON can hold: return plain values"),
                job_id=job.id,
                queue=job.queue,
                task=job.task,
            )
        return None if entry is None or entry.value is None else self.codec.decode_result(entry.value)


class Apart:
    """Jobs on their way to several Redis servers, a part to each: what became of them, by their places."""

    def __init__(self, requests: Sequence[EnqueueRequest], url_of: Callable[[str], str]) -> None:
        self._requests = requests
        self._jobs: list[Job | None] = [None] * len(requests)
        self._places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            self._places.setdefault(url_of(request.queue), []).append(place)

    def parts(self) -> list[tuple[str, list[EnqueueRequest]]]:
        """What goes where."""
        return [(url, [self._requests[place] for place in places]) for url, places in self._places.items()]

    def done(self, url: str, jobs: Sequence[Job]) -> None:
        """The jobs of one part."""
        for place, job in zip(self._places[url], jobs, strict=True):
            self._jobs[place] = job

    def failed(self, url: str, error: JobqError) -> None:
        """Complete the error of one part by what is known of the whole: the parts after it were not sent."""
        ids = [None if job is None else job.id for job in self._jobs]
        if len(ids) > 1:
            for place, job_id in zip(self._places[url], error.acknowledged, strict=False):
                ids[place] = job_id
            error.acknowledged = tuple(ids)

    def result(self) -> list[Job]:
        """All jobs, in the order of the requests."""
        return [job for job in self._jobs if job is not None]


def exists_step(keys: Keys, ids: Sequence[str]) -> Batch[list[bool]]:
    """Which of these jobs are there."""
    return Batch(
        tuple(("EXISTS", keys.job(job_id)) for job_id in ids), lambda replies: [r == 1 for r in replies]
    )
