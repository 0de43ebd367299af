"""Settings: collected from every source in order, validated once, frozen.

Order, first wins: flag or argument, environment, ``.env``, ``jobq.toml`` or ``[tool.jobq]`` of pyproject.toml
(both in the working directory), what code declares (of queues), default. The names that other tools use, such as
``REDIS_URL``, are part of the environment, and come after any ``JOBQ_`` name of it. An empty variable counts as not
set.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PlainSerializer, PrivateAttr, SecretStr, ValidationError

from jobq import setting_kinds as kinds
from jobq.errors import ConfigError
from jobq.limits import MOST_WAITING, Concurrency, Rate
from jobq.parsing import format_duration, parse_duration, redact_url
from jobq.queues import (
    ISOLATIONS,
    LANES,
    PROFILES,
    Isolation,
    Priority,
    QueueSpec,
    Retention,
    ShedAt,
    check_groups,
    declared,
)
from jobq.retry import MOST_ATTEMPTS, Backoff, Fixed, RetryPolicy, Steps
from jobq.sources import Collected, Found, Sources

if TYPE_CHECKING:
    from jobq.codec import Codec

__all__ = ["Settings", "parse_duration", "redact_url", "warn_secret_unprotected"]

DEFAULT_REDIS_URL = "redis://localhost:6379/0"
_PREFIX = re.compile(r"[A-Za-z0-9_.:{}-]{1,100}")
_shown = PlainSerializer(format_duration, return_type=str, when_used="json")


class QueueOptions(BaseModel):
    """What the settings say of one queue; all that is not given stays as the lane, or a new queue, has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, strict=False)

    slots: Annotated[int, kinds.whole(1, 10_000)] = 1
    target: Annotated[timedelta | None, kinds.TARGET] = None
    rate: Annotated[Rate | None, kinds.RATE] = None
    concurrency: Annotated[Concurrency | None, kinds.CONCURRENCY] = None
    max_attempts: Annotated[int | None, kinds.whole(1, MOST_ATTEMPTS)] = None
    backoff: Annotated[Backoff | Fixed | Steps | None, kinds.BACKOFF] = None
    timeout: Annotated[timedelta | None, kinds.span("1s", "30d")] = None
    isolation: Annotated[Isolation | None, kinds.one_of(*ISOLATIONS)] = None
    retention: Annotated[Retention | None, kinds.RETENTION] = None
    keep_succeeded: Annotated[Retention | None, kinds.RETENTION] = None
    keep_dead: Annotated[Retention | None, kinds.RETENTION] = None
    keep_cancelled: Annotated[Retention | None, kinds.RETENTION] = None
    redis_url: Annotated[str | None, kinds.REDIS_URL] = None
    nice: Annotated[int, kinds.whole(0, 19)] = 0
    priority: Annotated[Priority | None, kinds.one_of(*Priority)] = None
    max_waiting: Annotated[int | None, kinds.whole(0, MOST_WAITING)] = None
    group: Annotated[str | None, kinds.GROUP] = None
    weight: Annotated[int, kinds.whole(1, 1_000)] = 1

    def apply(self, spec: QueueSpec) -> QueueSpec:
        """``spec`` with what is given here in place of its own."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        kept = given.get("retention")
        if kept is not None and kept == Retention(kept.age):
            given["retention"] = kept.age  # an age alone leaves the counts as they are
        return replace(spec, **given)

    def __repr_args__(self) -> Any:
        """For ``repr``: only what is given, without passwords."""
        return [(name, _mask(name, getattr(self, name))) for name in sorted(self.model_fields_set)]


class Settings(BaseModel):
    """Everything that can be configured, each as ``JOBQ_<NAME>``.

    Making one reads all sources; keyword arguments come before them. Passwords and keys do not appear in its
    ``repr``.

    Attributes:
        redis_url: Where the jobs are. Else ``REDIS_URL``, else ``REDIS_HOST``, ``REDIS_PORT``,
            ``REDIS_PASSWORD``, ``REDIS_DB``, else ``redis://localhost:6379/0``.
        app: Modules with tasks.
        enabled: False turns the queue off. Also ``REDIS_ENABLED``, ``QUEUE_ENABLED``: off when any says so.
        env: Name of the environment. ``production`` insists on a key.
        secret_key: Keys separated by commas: the first signs and encrypts, all verify and decrypt.
        key_prefix: First part of rq's keys. Also ``RQ_KEY_PREFIX``.
        queues: Options by queue name: ``JOBQ_QUEUES__EMAIL__SLOTS=5``; in code also a list of QueueSpec. A variable
            means the queue that is called alike with ``-`` or ``.`` for ``_`` and in any case, else a new one. The
            slots of some also by other tools' names, such as ``EMAIL_QUEUE_CONCURRENCY``. Below all sources is what
            code declares, see ``jobq.queue``.
        profile: Adds the queues export, email, ai and scheduled with slots for a machine of that size: ``low``
            (1 CPU, 512 MB), ``medium`` (2, 2 GB) or ``high`` (4, 4 GB). None: no such queues.
        max_attempts: Runs of a job in all, the first included. Also ``JOB_MAX_RETRIES``, with the same
            meaning.
        retry_delay: First delay of the default backoff. Also ``JOB_RETRY_DELAY``, where a bare number is ms.
        timeout: Longest run of a job whose task and queue do not say.
        lease: Time after which a silent worker's jobs go to another; its heartbeat is a third of it.
        accept_unsigned: With a key, accept unsigned payloads too, while keys are rolled out.
        accept_unbound: Accept what plain rq enqueued, whose signature does not cover the job id.
        fallback: What an enqueue does when Redis is away.
        log_format: None: ``console`` on a terminal, else ``json``.
        payload_limit: Most bytes of an encoded payload.
        result_limit: Most bytes of an encoded result.
        enqueue_timeout: One deadline for connecting, sending and retrying an enqueue.
        grace: How long a stopping worker lets jobs finish.
        cancel_grace: How long a running job may go on once it was asked to stop; then it is cut off.
        recycle_jobs: Jobs after which an executor or a job child is replaced. None: children after 1,000.
        recycle_age: Age at which it is. None: never.
        recycle_growth: Memory gained since its first job, at which it is.
        shed_low: Percent of Redis' ``maxmemory`` from which queues of the priorities low and batch refuse new jobs;
            100: never. ``shed_medium``: those of medium and high. ``shed_critical``: those of critical.
        smtp_url: Mail server of ``send_otp``: ``smtp://user:password@host:587``, or ``smtps://``.
        smtp_from: Sender of its mails.
        payment_url: Payment gateway of the ready HTTP adapter.
        payment_token: Its bearer token.
        sql_url: Database that ``export_transactions`` reads.
        export_dir: Where exports are written.

    Raises:
        ConfigError: A value is wrong or a name unknown. The message names the variable, the value (unless it
            may be a secret) and what would be right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    redis_url: Annotated[str, kinds.REDIS_URL] = DEFAULT_REDIS_URL
    app: Annotated[tuple[str, ...], kinds.APP] = ()
    enabled: Annotated[bool, kinds.SWITCH] = True
    env: Annotated[
        str, kinds.matching(re.compile(r"[\w.-]{1,64}"), "a name such as development or production")
    ] = "development"
    secret_key: Annotated[SecretStr | None, kinds.SECRET_KEYS] = None
    key_prefix: Annotated[str, kinds.matching(_PREFIX, "letters, digits and _ . : - { }, such as rq")] = "rq"
    queues: dict[str, QueueOptions] = {}
    profile: Annotated[Literal["low", "medium", "high"] | None, kinds.one_of("low", "medium", "high")] = None
    max_attempts: Annotated[int, kinds.whole(1, MOST_ATTEMPTS)] = 3
    retry_delay: Annotated[timedelta, kinds.span("1ms", "1d"), _shown] = timedelta(seconds=2)
    timeout: Annotated[timedelta, kinds.span("1s", "30d"), _shown] = timedelta(seconds=180)
    lease: Annotated[timedelta, kinds.span("300ms", "1h"), _shown] = timedelta(seconds=12)
    accept_unsigned: Annotated[bool, kinds.SWITCH] = False
    accept_unbound: Annotated[bool, kinds.SWITCH] = True
    fallback: Annotated[Literal["raise", "inline", "spool"], kinds.one_of("raise", "inline", "spool")] = (
        "raise"
    )
    log_format: Annotated[Literal["json", "console"] | None, kinds.one_of("json", "console")] = None
    payload_limit: Annotated[int, kinds.size(1024, 64 * 1024 * 1024)] = 262_144
    result_limit: Annotated[int, kinds.size(1024, 64 * 1024 * 1024)] = 262_144
    enqueue_timeout: Annotated[timedelta, kinds.span("10ms", "5m"), _shown] = timedelta(seconds=1)
    grace: Annotated[timedelta, kinds.span("0s", "1d"), _shown] = timedelta(seconds=30)
    cancel_grace: Annotated[timedelta, kinds.span("0s", "30d"), _shown] = timedelta(seconds=10)
    recycle_jobs: Annotated[int | None, kinds.whole(1, 10**9)] = None
    recycle_age: Annotated[timedelta | None, kinds.span("10s", "30d")] = None
    recycle_growth: Annotated[int, kinds.size(1024 * 1024, 1024**4)] = 256 * 1024 * 1024
    shed_low: Annotated[int, kinds.PERCENT] = 80
    shed_medium: Annotated[int, kinds.PERCENT] = 90
    shed_critical: Annotated[int, kinds.PERCENT] = 95
    smtp_url: Annotated[str | None, kinds.url("smtp", "smtps")] = None
    smtp_from: Annotated[
        str | None,
        kinds.matching(re.compile(r"[^\r\n]*@[^\r\n]*"), "a sender such as no-reply@example.com"),
    ] = None
    payment_url: Annotated[str | None, kinds.url("https", "http")] = None
    payment_token: SecretStr | None = None
    sql_url: Annotated[str | None, kinds.url()] = None
    export_dir: Path = Path("exports")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _collected: Collected = PrivateAttr()

    def __init__(self, **flags: Any) -> None:
        self._fill(_sources().collect(flags))

    @classmethod
    def load(
        cls,
        *,
        config_file: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
        directory: Path | None = None,
        called: Mapping[str, str] | None = None,
        **flags: Any,
    ) -> Self:
        """The settings from all sources.

        Args:
            config_file: Read this TOML file instead of looking for one. Also ``JOBQ_CONFIG``.
            environ: Instead of the process's environment.
            directory: Where ``.env`` and the settings file are looked for; None: the working directory.
            called: What messages call a flag, such as ``redis_url``: by default its name.
            **flags: Values that come before every source; None counts as not given.

        Raises:
            ConfigError: A value is wrong, a name unknown, or a file cannot be read.
        """
        made = cls.__new__(cls)
        made._fill(_sources(config_file, environ, directory).collect(flags, called))  # noqa: SLF001 - our own
        return made

    def renewed(self) -> Self:
        """The same settings with the queues that code has declared since, merged as if it had done so before."""
        fresh = type(self).__new__(type(self))
        fresh._fill(self._collected)  # noqa: SLF001 - our own
        made = self.model_copy(update={"queues": fresh.queues})
        made._origins = self._origins | fresh._origins  # noqa: SLF001
        return made

    def _fill(self, collected: Collected) -> None:
        profile = PROFILES.get(str(collected.get("profile") or "").strip().lower(), {})
        found = collected.found(_sources().declared(declared.all()), {*LANES, *profile})
        values: dict[str, Any] = {}
        queues: dict[str, dict[str, Any]] = {}
        for path, raw in found.items():
            if len(path) == 1:
                values[path[0]] = raw.value
            else:
                queues.setdefault(path[1], {})[path[2]] = raw.value
        try:
            super().__init__(**values, **({"queues": queues} if queues else {}))
        except ValidationError as error:
            raise _config_error(error, found) from None
        self._collected = collected
        self._origins = {".".join(path): raw.origin for path, raw in found.items()}

    def __repr_args__(self) -> Any:
        """For ``repr``: what differs from the default, without passwords."""
        for name in sorted(self.model_fields_set):
            yield name, _mask(name, getattr(self, name))

    __str__ = BaseModel.__repr__

    def origins(self) -> dict[str, str]:
        """Where each setting's value came from, by name, such as ``queues.email.slots``.

        ``argument``, ``environment JOBQ_LEASE``, ``.env JOBQ_LEASE``, ``jobq.toml``,
        ``pyproject.toml [tool.jobq]``, ``code`` (of queues) or ``default``.
        """
        names = [name for name in type(self).model_fields if name != "queues"]
        return dict.fromkeys(names, "default") | self._origins

    def shown(self) -> dict[str, str]:
        """Each setting as text for people, by the names of :meth:`origins`; passwords and keys hidden."""
        rows: dict[str, str] = {}
        for name in type(self).model_fields:
            if name != "queues":
                rows[name] = _as_text(_mask(name, getattr(self, name)))
        for queue, options in self.queues.items():
            for name in sorted(options.model_fields_set):
                rows[f"queues.{queue}.{name}"] = _as_text(_mask(name, getattr(options, name)))
        return rows

    def queue_specs(self) -> dict[str, QueueSpec]:
        """The five lanes and the configured queues, by name, with what is configured applied.

        Raises:
            ConfigError: The options of a queue, or of the queues of a group, do not fit together.
        """
        specs = dict(LANES)
        if self.profile:
            specs |= {name: QueueSpec(name, slots) for name, slots in PROFILES[self.profile].items()}
        for name, options in self.queues.items():
            specs[name] = options.apply(specs.get(name) or QueueSpec(name, 1))
        check_groups(specs)
        return specs

    def seen_from(self, url: str) -> Settings:
        """The same settings from another Redis of theirs: its queues are at home there, and the others elsewhere."""
        queues = dict(self.queues)
        for name, spec in self.queue_specs().items():
            home = spec.redis_url or self.redis_url
            away = {"redis_url": None if home == url else home}
            queues[name] = queues.get(name, QueueOptions()).model_copy(update=away)
        return self.model_copy(update={"redis_url": url, "queues": queues})

    def shed_at(self) -> ShedAt:
        """The thresholds of the memory brake."""
        return ShedAt(self.shed_low, self.shed_medium, self.shed_critical)

    def secret_keys(self) -> tuple[str, ...]:
        """The configured keys in order; the first one signs."""
        text = self.secret_key.get_secret_value() if self.secret_key else ""
        return tuple(part.strip() for part in text.split(",") if part.strip())

    def codec(self) -> Codec:
        """A codec with these keys and limits."""
        from jobq.codec import Codec  # late: commands that only read need no codec

        return Codec(
            self.secret_keys(),
            limit=self.payload_limit,
            accept_unsigned=self.accept_unsigned,
            accept_unbound=self.accept_unbound,
        )

    def retry_policy(self) -> RetryPolicy:
        """The policy of a task and queue that say nothing of their own."""
        return RetryPolicy(self.max_attempts, kinds.exponential(self.retry_delay))

    def require_production_ready(self) -> None:
        """Refuse to go on in production without a key; elsewhere nothing happens.

        Raises:
            ConfigError: ``JOBQ_ENV=production`` and no ``JOBQ_SECRET_KEY``.
        """
        if self.env.lower() == "production" and not self.secret_key:
            raise ConfigError(
                "JOBQ_ENV=production needs JOBQ_SECRET_KEY, which signs payloads and encrypts secret params;"
                ' make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )


def _mask(name: str, value: Any) -> Any:
    if name.endswith("_url") and isinstance(value, str):
        return redact_url(value)
    return value


def _as_text(value: Any) -> str:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, Retention):
        return kinds.format_retention(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


_warned = False


def warn_secret_unprotected(task: str) -> None:
    """Warn, once per process, that a secret param is stored readable because no key is configured.

    Args:
        task: The task that has the param.
    """
    global _warned  # one warning per process
    if not _warned:
        _warned = True
        logging.getLogger("jobq").warning(
            "secret params of %s are stored unencrypted: set JOBQ_SECRET_KEY; in production it is required",
            task,
        )


_SECRETS = frozenset({"redis_url", "secret_key", "smtp_url", "payment_url", "payment_token", "sql_url"})


def _sources(
    config_file: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Sources:
    settings = tuple(name for name in Settings.model_fields if name != "queues")
    return Sources(settings, tuple(QueueOptions.model_fields), _SECRETS, config_file, environ, directory)


def _config_error(error: ValidationError, found: Found) -> ConfigError:
    """One line on the first wrong value, and the names of the others."""
    lines: list[str] = []
    for detail in error.errors(include_url=False, include_input=False):
        loc = detail["loc"]
        length = 3 if loc and loc[0] == "queues" else 1
        path = tuple(str(part) for part in loc[:length])
        raw = found.get(path)
        label = raw.label if raw else ".".join(path)
        text = detail["msg"].removeprefix("Value error, ")
        shown = "" if raw is None or path[-1] in _SECRETS else f"={_clip(raw.value)}"
        line = f"{label}{shown} is wrong: {text[:1].lower()}{text[1:]}"
        if label not in (known.partition("=")[0].partition(" is wrong")[0] for known in lines):
            lines.append(line)
    others = [line.partition("=")[0].partition(" is wrong")[0] for line in lines[1:]]
    return ConfigError(lines[0] + (f" (also wrong: {', '.join(others)})" if others else ""))


def _clip(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
