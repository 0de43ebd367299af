"""Settings: collected from every source in order, validated once, frozen.

Order, first wins: flag or argument, environment, ``.env``, ``jobq.toml`` or ``[tool.jobq]`` of pyproject.toml
(both in the working directory), default. The names that other tools use, such as ``REDIS_URL``, are part of
the environment, and come after any ``JOBQ_`` name of it. An empty variable counts as not set.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PrivateAttr,
    SecretStr,
    ValidationError,
)

from jobq.errors import ConfigError
from jobq.limits import Rate
from jobq.parsing import (
    format_duration,
    parse_duration,
    parse_redis_url,
    parse_size,
    parse_switch,
    redact_url,
)
from jobq.queues import LANES, QueueSpec
from jobq.retry import Backoff, Delays, Fixed, RetryPolicy, Steps
from jobq.sources import Found, Sources

if TYPE_CHECKING:
    from jobq.codec import Codec

__all__ = ["Settings", "parse_duration", "redact_url", "warn_secret_unprotected"]

DEFAULT_REDIS_URL = "redis://localhost:6379/0"
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_PREFIX = re.compile(r"[A-Za-z0-9_.:{}-]{1,100}")


def _span(low: str, high: str) -> BeforeValidator:
    least, most = parse_duration(low), parse_duration(high)

    def check(value: Any) -> timedelta:
        found = parse_duration(value)
        if not least <= found <= most:
            raise ValueError(f"expected a duration from {low} to {high}")
        return found

    return BeforeValidator(check)


def _whole(low: int, high: int) -> BeforeValidator:
    def check(value: Any) -> int:
        try:
            found = int(str(value).strip().replace("_", ""))
        except ValueError:
            found = low - 1
        if isinstance(value, bool) or not low <= found <= high:
            raise ValueError(f"expected a whole number from {low:,} to {high:,}")
        return found

    return BeforeValidator(check)


def _size(low: int, high: int) -> BeforeValidator:
    def check(value: Any) -> int:
        found = parse_size(value)
        if not low <= found <= high:
            raise ValueError(f"expected a size from {low:,} to {high:,} bytes, such as 256kB")
        return found

    return BeforeValidator(check)


def _one_of(*words: str) -> BeforeValidator:
    def check(value: Any) -> str:
        found = str(value).strip().lower()
        if found not in words:
            raise ValueError(f"expected {', '.join(words[:-1])} or {words[-1]}")
        return found

    return BeforeValidator(check)


def _text(pattern: re.Pattern[str], hint: str) -> BeforeValidator:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"expected {hint}")
        return value

    return BeforeValidator(check)


def _modules(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError("expected module names separated by commas, such as myapp.jobs")
    names = tuple(part.strip() for part in parts if part.strip())
    if not all(_MODULE.fullmatch(name) for name in names):
        raise ValueError("expected module names separated by commas, such as myapp.jobs")
    return names


def _redis_url(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a URL such as redis://localhost:6379/0")
    parse_redis_url(value)
    return value.strip()


def _url(*schemes: str) -> BeforeValidator:
    def check(value: Any) -> str:
        scheme, found, rest = str(value).strip().partition("://")
        if not found or not rest or (schemes and scheme.lower() not in schemes):
            begins = " or ".join(f"{scheme}://" for scheme in schemes) or "its scheme, such as sqlite:///"
            raise ValueError(f"expected a URL that starts with {begins}")
        return str(value).strip()

    return BeforeValidator(check)


def _keys(value: Any) -> SecretStr:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or not all(len(part.strip()) >= 16 for part in text.split(",")):
        raise ValueError(
            "expected one or more keys of at least 16 characters, separated by commas;"
            ' make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return SecretStr(text)


def _rate(value: Any) -> Rate:
    if isinstance(value, Rate):
        return value
    try:
        return Rate.parse(str(value).strip())
    except ConfigError:
        raise ValueError("expected a rate such as 50/s, 50/m or 50/10s") from None


_BACKOFF_HINT = "expected a backoff such as 2s, base=2s,factor=2,cap=5m,jitter=0.25, fixed=30s or 1s,10s,1m"


def _exponential(base: timedelta) -> Backoff:
    return Backoff(base=base, cap=max(base, Backoff().cap))


def _backoff(value: Any) -> Delays:
    """``2s`` (it grows), ``base=…,factor=…,cap=…,jitter=…``, ``fixed=30s``, or steps: ``1s,10s,1m``."""
    if isinstance(value, Backoff | Fixed | Steps):
        return value
    try:
        parts = [part.strip() for part in str(value).split(",")]
        if "=" not in parts[0]:
            steps = [parse_duration(part) for part in parts]
            return Steps(steps) if len(steps) > 1 else _exponential(steps[0])
        given = dict(part.split("=", 1) for part in parts)
        options: dict[str, Any] = {
            name: text
            if text == "full"
            else float(text)
            if name in ("factor", "jitter")
            else parse_duration(text)
            for name, text in given.items()
        }
        if "fixed" in options:
            return Fixed(options.pop("fixed"), **options)
        return Backoff(**options)
    except (ValueError, TypeError, ConfigError):
        raise ValueError(_BACKOFF_HINT) from None


def _target(value: Any) -> timedelta | None:
    if value is None or str(value).strip().lower() == "none":
        return None
    found = parse_duration(value)
    if found <= timedelta(0):
        raise ValueError("expected a duration above 0 such as 500ms or 30s, or none")
    return found


Switch = Annotated[bool, BeforeValidator(parse_switch)]
RedisUrlText = Annotated[str, BeforeValidator(_redis_url)]
_shown = PlainSerializer(format_duration, return_type=str, when_used="json")


class QueueOptions(BaseModel):
    """What the settings say of one queue; all that is not given stays as the lane, or a new queue, has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, strict=False)

    slots: Annotated[int, _whole(1, 10_000)] = 1
    target: Annotated[timedelta | None, BeforeValidator(_target)] = None
    rate: Annotated[Rate | None, BeforeValidator(_rate)] = None
    max_attempts: Annotated[int | None, _whole(1, 1_000_000)] = None
    backoff: Annotated[Backoff | Fixed | Steps | None, BeforeValidator(_backoff)] = None
    timeout: Annotated[timedelta | None, _span("1s", "30d")] = None
    isolation: Annotated[Literal["thread", "process"] | None, _one_of("thread", "process")] = None
    redis_url: Annotated[str | None, BeforeValidator(_redis_url)] = None
    nice: Annotated[int, _whole(0, 19)] = 0

    def apply(self, spec: QueueSpec) -> QueueSpec:
        """``spec`` with what is given here in place of its own."""
        return replace(spec, **{name: getattr(self, name) for name in self.model_fields_set})

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
        queues: Options by queue name: ``JOBQ_QUEUES__EMAIL__SLOTS=5``.
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

    redis_url: RedisUrlText = DEFAULT_REDIS_URL
    app: Annotated[tuple[str, ...], BeforeValidator(_modules)] = ()
    enabled: Switch = True
    env: Annotated[str, _text(re.compile(r"[\w.-]{1,64}"), "a name such as development or production")] = (
        "development"
    )
    secret_key: Annotated[SecretStr | None, BeforeValidator(_keys)] = None
    key_prefix: Annotated[str, _text(_PREFIX, "letters, digits and _ . : - { }, such as rq")] = "rq"
    queues: dict[str, QueueOptions] = {}
    max_attempts: Annotated[int, _whole(1, 1_000_000)] = 3
    retry_delay: Annotated[timedelta, _span("1ms", "1d"), _shown] = timedelta(seconds=2)
    timeout: Annotated[timedelta, _span("1s", "30d"), _shown] = timedelta(seconds=180)
    lease: Annotated[timedelta, _span("300ms", "1h"), _shown] = timedelta(seconds=12)
    accept_unsigned: Switch = False
    accept_unbound: Switch = True
    fallback: Annotated[Literal["raise", "inline", "spool"], _one_of("raise", "inline", "spool")] = "raise"
    log_format: Annotated[Literal["json", "console"] | None, _one_of("json", "console")] = None
    payload_limit: Annotated[int, _size(1024, 64 * 1024 * 1024)] = 262_144
    result_limit: Annotated[int, _size(1024, 64 * 1024 * 1024)] = 262_144
    enqueue_timeout: Annotated[timedelta, _span("10ms", "5m"), _shown] = timedelta(seconds=1)
    grace: Annotated[timedelta, _span("0s", "1d"), _shown] = timedelta(seconds=30)
    smtp_url: Annotated[str | None, _url("smtp", "smtps")] = None
    smtp_from: Annotated[
        str | None, _text(re.compile(r"[^\r\n]*@[^\r\n]*"), "a sender such as no-reply@example.com")
    ] = None
    payment_url: Annotated[str | None, _url("https", "http")] = None
    payment_token: SecretStr | None = None
    sql_url: Annotated[str | None, _url()] = None
    export_dir: Path = Path("exports")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, **flags: Any) -> None:
        self._fill(_sources().collect(flags))

    @classmethod
    def load(
        cls,
        *,
        config_file: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
        directory: Path | None = None,
        **flags: Any,
    ) -> Self:
        """The settings from all sources.

        Args:
            config_file: Read this TOML file instead of looking for one. Also ``JOBQ_CONFIG``.
            environ: Instead of the process's environment.
            directory: Where ``.env`` and the settings file are looked for; None: the working directory.
            **flags: Values that come before every source; None counts as not given.

        Raises:
            ConfigError: A value is wrong, a name unknown, or a file cannot be read.
        """
        made = cls.__new__(cls)
        found = _sources(config_file, environ, directory).collect(flags)
        made._fill(found)  # noqa: SLF001 - our own
        return made

    def _fill(self, found: Found) -> None:
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
        self._origins = {".".join(path): raw.origin for path, raw in found.items()}

    def __repr_args__(self) -> Any:
        """For ``repr``: what differs from the default, without passwords."""
        for name in sorted(self.model_fields_set):
            yield name, _mask(name, getattr(self, name))

    __str__ = BaseModel.__repr__

    def origins(self) -> dict[str, str]:
        """Where each setting's value came from, by name, such as ``queues.email.slots``.

        ``argument``, ``environment JOBQ_LEASE``, ``.env JOBQ_LEASE``, ``jobq.toml``,
        ``pyproject.toml [tool.jobq]`` or ``default``.
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
            ConfigError: A queue's options do not fit together.
        """
        specs = dict(LANES)
        for name, options in self.queues.items():
            specs[name] = options.apply(specs.get(name) or QueueSpec(name, 1))
        return specs

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
        return RetryPolicy(self.max_attempts, _exponential(self.retry_delay))

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
