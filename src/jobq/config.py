"""Settings: collected from every source in order, validated once, frozen.

Order, first wins: flag or argument, environment, ``.env``, ``jobq.toml`` or ``[tool.jobq]`` of pyproject.toml (both
in the working directory), default. The names that other tools use (``REDIS_URL``, ``JOB_MAX_RETRIES``, …) are
part of the environment, and come after any ``JOBQ_`` name of it. An empty variable counts as not set.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
    build_redis_url,
    format_duration,
    parse_duration,
    parse_redis_url,
    parse_size,
    parse_switch,
    redact_url,
)
from jobq.queues import LANES, QueueSpec
from jobq.retry import Backoff, Delays, Fixed, RetryPolicy, Steps

if TYPE_CHECKING:
    from jobq.codec import Codec

__all__ = ["Settings", "parse_duration", "redact_url", "warn_secret_unprotected"]

DEFAULT_REDIS_URL = "redis://localhost:6379/0"
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_PREFIX = re.compile(r"[A-Za-z0-9_.:{}-]{1,100}")
_QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


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


def _backoff(value: Any) -> Delays:
    """``2s`` (base of an exponential), ``base=…,factor=…,cap=…,jitter=…``, ``fixed=30s``, or steps ``1s,10s,1m``."""
    if isinstance(value, Backoff | Fixed | Steps):
        return value
    try:
        parts = [part.strip() for part in str(value).split(",")]
        if "=" not in parts[0]:
            steps = [parse_duration(part) for part in parts]
            return (
                Backoff(base=steps[0], cap=max(steps[0], Backoff().cap)) if len(steps) == 1 else Steps(steps)
            )
        given = dict(part.split("=", 1) for part in parts)
        options: dict[str, Any] = {
            name: (text if text == "full" else float(text))
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
        redis_url: Where the jobs are. Else ``REDIS_URL``, else ``REDIS_HOST``, ``REDIS_PORT``, ``REDIS_PASSWORD``,
            ``REDIS_DB``, else ``redis://localhost:6379/0``.
        app: Modules with tasks.
        enabled: False turns the queue off. Also ``REDIS_ENABLED`` and ``QUEUE_ENABLED``: off when any says so.
        env: Name of the environment. ``production`` insists on a key.
        secret_key: Keys separated by commas: the first signs and encrypts, all verify and decrypt.
        key_prefix: First part of rq's keys. Also ``RQ_KEY_PREFIX``.
        queues: Options by queue name: ``JOBQ_QUEUES__EMAIL__SLOTS=5``.
        max_attempts: Runs of a job in all, the first included. Also ``JOB_MAX_RETRIES``, which means the same here.
        retry_delay: First delay of the default backoff. Also ``JOB_RETRY_DELAY``; a bare number there is in ms.
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
        smtp_url: Mail server of ``send_otp``: ``smtp://user:password@host:587``, ``smtps://`` for TLS from the start.
        smtp_from: Sender of its mails.
        payment_url: Payment gateway of the ready HTTP adapter.
        payment_token: Its bearer token.
        sql_url: Database that ``export_transactions`` reads.
        export_dir: Where exports are written.

    Raises:
        ConfigError: A value is wrong or a name unknown. The message names the variable, the value (unless it may
            be a secret) and what would be right.
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
        self._fill(_collect(flags, _Places()))

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
            directory: Where ``.env``, ``jobq.toml`` and ``pyproject.toml`` are looked for; None: the working directory.
            **flags: Values that come before every source; None counts as not given.

        Raises:
            ConfigError: A value is wrong, a name unknown, or a file cannot be read.
        """
        made = cls.__new__(cls)
        made._fill(_collect(flags, _Places(config_file, environ, directory)))
        return made

    def _fill(self, found: dict[tuple[str, ...], _Raw]) -> None:
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
        """Where each setting's value came from, by name: ``redis_url``, ``queues.email.slots``, …

        ``argument``, ``environment JOBQ_LEASE``, ``.env JOBQ_LEASE``, ``jobq.toml``, ``pyproject.toml [tool.jobq]`` or ``default``.
        """
        names = [name for name in type(self).model_fields if name != "queues"]
        return {name: "default" for name in names} | self._origins

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
        plain = Backoff()
        return RetryPolicy(
            self.max_attempts, Backoff(base=self.retry_delay, cap=max(plain.cap, self.retry_delay))
        )

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
            "secret params of %s are stored unencrypted: set JOBQ_SECRET_KEY (JOBQ_ENV=production insists on it)",
            task,
        )


# --- sources -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Raw:
    """A value as found, where it was found, and the name a message calls it by."""

    value: Any
    origin: str
    label: str


@dataclass(frozen=True, slots=True)
class _Places:
    """Where to look."""

    config_file: str | Path | None = None
    environ: Mapping[str, str] | None = None
    directory: Path | None = None


_Found = dict[tuple[str, ...], _Raw]
_SECRETS = frozenset({"redis_url", "secret_key", "smtp_url", "payment_url", "payment_token", "sql_url"})
# Kubernetes and docker links describe a service called jobq (or jobq-…) in variables of these forms.
_ORCHESTRATOR = re.compile(
    r".*_SERVICE_(HOST|PORT)(_\w+)?|(.*_)?PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?|.*_ENV_.*|(.*_)?NAME"
)
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp)://(\[.+\]|[^:/]+):(\d+)")


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _names() -> list[str]:
    return [name for name in Settings.model_fields if name != "queues"]


def _read_secret(file: str, label: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"{label}={file!r} cannot be read: {why}; expected a file that holds the value"
        ) from None


def _path_of(variable: str, label: str) -> tuple[str, ...]:
    """Path of the setting that ``JOBQ_<variable>`` names; for one ending in ``_FILE``, of the secret it holds."""
    parts = variable.split("__")
    if parts[0] == "QUEUES":
        options = list(QueueOptions.model_fields)
        if len(parts) == 3 and parts[1] and parts[2].lower() in options:
            return ("queues", parts[1].lower(), parts[2].lower())
        known = [
            f"JOBQ_QUEUES__{parts[1] if len(parts) > 1 and parts[1] else 'NAME'}__{name.upper()}"
            for name in options
        ]
        hint = (
            _suggest(label, known) or f"; expected JOBQ_QUEUES__NAME__OPTION with one of {', '.join(options)}"
        )
        raise ConfigError(f"{label} is not a known setting{hint}")
    if len(parts) == 1 and variable.lower() in _names():
        return (variable.lower(),)
    hint = _suggest(label, [f"JOBQ_{name.upper()}" for name in _names()])
    raise ConfigError(f"{label} is not a known setting{hint or '; jobq config show lists them all'}")


def _from_variables(variables: Mapping[str, str], source: str) -> _Found:
    found: _Found = {}
    for label, value in sorted(variables.items()):
        name = label.removeprefix("JOBQ_")
        if name == label or not value.strip() or name == "CONFIG":
            continue
        if _ORCHESTRATOR.fullmatch(name) or _SERVICE_ADDRESS.fullmatch(value):
            continue
        text = value
        held = name.removesuffix("_FILE")
        if held != name and held.split("__")[-1].lower() in _SECRETS:
            if variables.get(f"JOBQ_{held}", "").strip():
                raise ConfigError(f"JOBQ_{held} and {label} are both set; keep one of them")
            name, text = held, _read_secret(value, label)
        path = _path_of(name, label)
        found[path] = _Raw(text, f"{source} {label}", label)
    return found


def _alias_redis(variables: Mapping[str, str], source: str) -> _Found:
    label = "REDIS_URL"
    text = variables.get(label, "").strip()
    if not text:
        given = {
            name: variables.get(f"REDIS_{name}", "").strip()
            for name in ("HOST", "PORT", "PASSWORD", "USERNAME", "DB")
        }
        if not any(given[name] for name in ("HOST", "PORT", "PASSWORD", "DB")):
            return {}
        host, port = given["HOST"] or "localhost", given["PORT"] or "6379"
        if address := _SERVICE_ADDRESS.fullmatch(port):  # Kubernetes, for a service called redis
            host, port = given["HOST"] or address[1].strip("[]"), address[2]
        if not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise ConfigError(f"REDIS_PORT={port!r} is wrong: expected a whole number from 1 to 65,535")
        if given["DB"] and not given["DB"].isdecimal():
            raise ConfigError(f"REDIS_DB={given['DB']!r} is wrong: expected a whole number such as 0")
        label = "REDIS_HOST" if given["HOST"] else "REDIS_PORT" if given["PORT"] else "REDIS_PASSWORD/DB"
        text = build_redis_url(host, int(port), int(given["DB"] or 0), given["PASSWORD"], given["USERNAME"])
    return {("redis_url",): _Raw(text, f"{source} {label}", label)}


def _alias_ms(text: str) -> str:
    return f"{text}ms" if text.replace(".", "", 1).isdecimal() else text


_ALIASES: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("key_prefix", "RQ_KEY_PREFIX", str),
    ("max_attempts", "JOB_MAX_RETRIES", str),
    ("retry_delay", "JOB_RETRY_DELAY", _alias_ms),
)


def _from_aliases(variables: Mapping[str, str], source: str) -> _Found:
    """Names that other tools use. REDIS_URL and REDIS_HOST exist for others too, so ours come before them."""
    found = _alias_redis(variables, source)
    for name, label, convert in _ALIASES:
        if text := variables.get(label, "").strip():
            found[(name,)] = _Raw(convert(text), f"{source} {label}", label)
    for label in ("REDIS_ENABLED", "QUEUE_ENABLED"):
        if text := variables.get(label, "").strip():
            raw = _Raw(text, f"{source} {label}", label)
            try:
                off = not parse_switch(text)
            except ValueError as error:
                raise ConfigError(f"{label}={text!r} is wrong: {error}") from None
            if off or ("enabled",) not in found:
                found[("enabled",)] = raw
    return found


def _toml(path: Path, label: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{label} cannot be read: {why}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{label} is not valid TOML: {error}") from None


def _file_table(places: _Places, variables: Mapping[str, str]) -> tuple[Mapping[str, Any], str]:
    """The settings file's table, and what to call it."""
    directory = places.directory or Path()
    explicit = places.config_file or variables.get("JOBQ_CONFIG", "").strip()
    if explicit:
        path = Path(explicit)
        document = _toml(path, str(explicit))
        if path.name != "pyproject.toml" and "tool" not in document:
            return document, str(explicit)
    elif (path := directory / "jobq.toml").is_file():
        return _toml(path, "jobq.toml"), "jobq.toml"
    elif (path := directory / "pyproject.toml").is_file():
        document = _toml(path, "pyproject.toml")
    else:
        return {}, ""
    table = document.get("tool", {})
    table = table.get("jobq", {}) if isinstance(table, dict) else {}
    return (table if isinstance(table, dict) else {}), f"{path.name} [tool.jobq]"


def _from_table(table: Mapping[str, Any], source: str, called: str) -> _Found:
    found: _Found = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name == "queues":
            found |= _from_queues(value, source, f"{called}queues")
        elif name not in Settings.model_fields:
            hint = _suggest(name, [*_names(), "queues"])
            raise ConfigError(f"{called}{key} is not a known setting{hint}")
        else:
            found[(name,)] = _Raw(value, source, f"{called}{key}")
    return found


def _from_queues(queues: Any, source: str, called: str) -> _Found:
    found: _Found = {}
    if not isinstance(queues, Mapping):
        raise ConfigError(f"{called} is wrong: expected a table of queues, each with options such as slots")
    for queue, options in queues.items():
        given = options.model_dump(exclude_unset=True) if isinstance(options, QueueOptions) else options
        if not isinstance(given, Mapping):
            raise ConfigError(f"{called}.{queue} is wrong: expected options such as slots = 5")
        for key, value in given.items():
            name = str(key).replace("-", "_")
            if name not in QueueOptions.model_fields:
                hint = _suggest(name, list(QueueOptions.model_fields))
                raise ConfigError(f"{called}.{queue}.{key} is not a known setting{hint}")
            found[("queues", str(queue), name)] = _Raw(value, source, f"{called}.{queue}.{key}")
    return found


def _dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values  # late: few processes have a .env

    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f".env cannot be read: {error}") from None


def _collect(flags: Mapping[str, Any], places: _Places) -> _Found:
    """Every value that is set anywhere, by path, the winner of each; unchecked."""
    environ = os.environ if places.environ is None else places.environ
    dotenv = _dotenv((places.directory or Path()) / ".env")
    table, source = _file_table(places, {**dotenv, **environ})
    found = _from_table(table, source, f"{source}: ")
    found |= _from_aliases(dotenv, ".env")
    found |= _from_aliases(environ, "environment")
    found |= _from_variables(dotenv, ".env")
    found |= _from_variables(environ, "environment")
    found |= _from_table({name: value for name, value in flags.items() if value is not None}, "argument", "")
    for path, raw in found.items():
        if path[0] == "queues" and not _QUEUE_NAME.fullmatch(path[1]):
            raise ConfigError(
                f"{raw.label}: a queue's name has letters, digits, _ . and -, at most 64, not {path[1]!r}"
            )
    return found


def _config_error(error: ValidationError, found: _Found) -> ConfigError:
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
