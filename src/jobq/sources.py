"""Where settings come from: arguments, environment, ``.env``, a TOML file, code. Values are not checked here."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from jobq.errors import ConfigError
from jobq.parsing import build_redis_url, parse_switch
from jobq.queues import QUEUE_NAME


@dataclass(frozen=True, slots=True)
class Raw:
    """A value as found, where it was found, and the name a message calls it by."""

    value: Any
    origin: str
    label: str


Found = dict[tuple[str, ...], Raw]
"""By path: ``("lease",)`` or ``("queues", "email", "slots")``."""

# Kubernetes describes a service called jobq (or jobq-…) in variables of these forms.
_ORCHESTRATOR = re.compile(r".*_?SERVICE_(HOST|PORT)(_\w+)?|(.*_)?PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?")
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp)://(\[.+\]|[^:/]+):(\d+)")


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _why(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"


def _read_secret(file: str, label: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{label}={file!r} cannot be read: {_why(error)}; expected a file with it"
        ) from None


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {_why(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values  # late: few processes have a .env

    try:
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {_why(error)}") from None


def _set(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that say something: an empty one counts as not set, as compose files leave them."""
    return {name: value.strip() for name, value in variables.items() if value.strip()}


@dataclass(frozen=True, slots=True)
class Collected:
    """What the sources say, by source: which of two names of a queue is meant depends on what code declares, too.

    Attributes:
        file: The settings file.
        variables: ``.env`` and the environment, above it.
        given: Arguments, above both.
    """

    file: Found
    variables: Found
    given: Found

    def get(self, name: str) -> Any:
        """The winning value of a setting; None: it is nowhere."""
        for layer in (self.given, self.variables, self.file):
            if (name,) in layer:
                return layer[(name,)].value
        return None

    def found(self, declared: Found, known: Collection[str]) -> Found:
        """The winning value of everything that is set anywhere.

        Args:
            declared: What code says, below every source.
            known: Names of queues that exist whatever the sources say.

        Raises:
            ConfigError: A variable may mean two queues.
        """
        named = {path[1] for layer in (declared, self.file, self.given) for path in layer if len(path) == 3}
        return declared | self.file | _by_name(self.variables, named | set(known)) | self.given


def _folded(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _by_name(variables: Found, known: set[str]) -> Found:
    """The variables with the names that queues have elsewhere: a variable spells no case, and most shells no - or ."""
    alike: dict[str, list[str]] = {}
    for name in sorted(known):
        alike.setdefault(_folded(name), []).append(name)
    found: Found = {}
    for path, raw in variables.items():
        if len(path) == 3 and path[1] not in known:
            names = alike.setdefault(_folded(path[1]), [path[1]])
            if len(names) > 1:
                raise ConfigError(f"{raw.label} may mean any of the queues {', '.join(names)}: rename one")
            found[("queues", names[0], path[2])] = raw
        else:
            found[path] = raw
    return found


@dataclass(frozen=True, slots=True)
class Sources:
    """Collects the values of the settings and queue options that it is told exist.

    Attributes:
        settings: Names of the settings, without ``queues``.
        options: Names of a queue's options.
        secrets: Those of either that can be read from a file, and whose values never appear in a message.
        config_file: The settings file. None: ``JOBQ_CONFIG``, else ``jobq.toml``, else ``[tool.jobq]`` of
            pyproject.toml, in ``directory``.
        environ: Instead of the process's environment.
        directory: Where the files are. None: the working directory.
    """

    settings: tuple[str, ...]
    options: tuple[str, ...]
    secrets: frozenset[str]
    config_file: str | Path | None = None
    environ: Mapping[str, str] | None = None
    directory: Path | None = None

    def collect(self, flags: Mapping[str, Any], called: Mapping[str, str] | None = None) -> Collected:
        """Everything that is set anywhere.

        Args:
            flags: Values that come before all sources; None counts as not given.
            called: What messages call a flag, where that is not its name.

        Raises:
            ConfigError: A name is unknown, a file cannot be read, or a foreign variable is wrong.
        """
        environ = _set(os.environ if self.environ is None else self.environ)
        dotenv = _set(_dotenv((self.directory or Path()) / ".env"))
        table, file = self._table({**dotenv, **environ})
        variables = _from_aliases(dotenv, environ)
        variables |= self._from_variables(dotenv, ".env")
        variables |= self._from_variables(environ, "environment")
        given = {name: value for name, value in flags.items() if value is not None}
        arguments = {
            path: replace(raw, label=(called or {}).get(raw.label, raw.label))
            for path, raw in self._from_table(given, "argument", "").items()
        }
        collected = Collected(self._from_table(table, file, f"{file}: "), variables, arguments)
        for layer in (collected.file, variables, arguments):
            _check_queue_names(layer)
        return collected

    def declared(self, queues: Any) -> Found:
        """What code says of queues.

        Raises:
            ConfigError: An option is unknown, or a name is none.
        """
        found = self._from_queues(queues, "code", "queues")
        _check_queue_names(found)
        return found

    def _table(self, variables: Mapping[str, str]) -> tuple[Mapping[str, Any], str]:
        """The settings file's table, and what to call it."""
        directory = self.directory or Path()
        explicit = self.config_file or variables.get("JOBQ_CONFIG")
        path = next(
            (path for path in (directory / "jobq.toml", directory / "pyproject.toml") if path.is_file()), None
        )
        if explicit:
            path = Path(explicit)
        if path is None:
            return {}, ""
        document = _toml(path)
        called = str(path) if explicit else path.name
        tool = document.get("tool")
        if path.name != "pyproject.toml" and not isinstance(tool, dict):
            return document, called
        table = tool.get("jobq", {}) if isinstance(tool, dict) else {}
        if not isinstance(table, dict):
            raise ConfigError(f"{called}: tool.jobq is wrong: expected a table")
        return table, f"{called} [tool.jobq]"

    def _path_of(self, variable: str, label: str) -> tuple[str, ...]:
        """Path of the setting that ``JOBQ_<variable>`` names."""
        parts = variable.split("__")
        if parts[0] != "QUEUES":
            if len(parts) == 1 and variable.lower() in self.settings:
                return (variable.lower(),)
            hint = _suggest(label, [f"JOBQ_{name.upper()}" for name in self.settings])
            raise ConfigError(f"{label} is not a known setting{hint or '; jobq config show lists them all'}")
        if len(parts) == 3 and parts[1] and parts[2].lower() in self.options:
            return ("queues", parts[1].lower(), parts[2].lower())
        queue = parts[1] if len(parts) > 1 and parts[1] else "NAME"
        hint = _suggest(label, [f"JOBQ_QUEUES__{queue}__{name.upper()}" for name in self.options])
        expected = f"; expected JOBQ_QUEUES__{queue}__OPTION with one of {', '.join(self.options)}"
        raise ConfigError(f"{label} is not a known setting{hint or expected}")

    def _from_variables(self, variables: Mapping[str, str], source: str) -> Found:
        found: Found = {}
        for label, value in sorted(variables.items()):
            name, text = label.removeprefix("JOBQ_"), value
            if (
                name in (label, "CONFIG")
                or _ORCHESTRATOR.fullmatch(name)
                or _SERVICE_ADDRESS.fullmatch(value)
            ):
                continue
            held = name.removesuffix("_FILE")
            if held != name and held.split("__")[-1].lower() in self.secrets:
                if f"JOBQ_{held}" in variables:
                    raise ConfigError(f"JOBQ_{held} and {label} are both set; keep one of them")
                name, text = held, _read_secret(value, label)
            found[self._path_of(name, label)] = Raw(text, f"{source} {label}", label)
        return found

    def _from_table(self, table: Mapping[str, Any], source: str, called: str) -> Found:
        found: Found = {}
        for key, value in table.items():
            name = key.replace("-", "_")
            if name == "queues":
                found |= self._from_queues(value, source, f"{called}queues")
            elif name in self.settings:
                found[(name,)] = Raw(value, source, f"{called}{key}")
            else:
                hint = _suggest(name, [*self.settings, "queues"])
                raise ConfigError(f"{called}{key} is not a known setting{hint}")
        return found

    def _from_queues(self, queues: Any, source: str, called: str) -> Found:
        found: Found = {}
        if isinstance(queues, list | tuple):  # of QueueSpec
            queues = {getattr(spec, "name", None): spec for spec in queues}
        if not isinstance(queues, Mapping):
            raise ConfigError(
                f"{called} is wrong: expected a table of queues, each with options such as slots"
            )
        for queue, options in queues.items():
            given = _given(options)
            if given is None:
                raise ConfigError(f"{called}.{queue} is wrong: expected options such as slots = 5")
            for key, value in given.items():
                name = str(key).replace("-", "_")
                if name not in self.options:
                    hint = _suggest(name, list(self.options))
                    raise ConfigError(f"{called}.{queue}.{key} is not a known setting{hint}")
                found[("queues", str(queue), name)] = Raw(value, source, f"{called}.{queue}.{key}")
        return found


def _check_queue_names(found: Found) -> None:
    for path, raw in found.items():
        if path[0] == "queues" and not QUEUE_NAME.fullmatch(path[1]):
            raise ConfigError(
                f"{raw.label}: a queue's name has letters, digits, _ . and -, at most 64, not {path[1]!r}"
            )


def _given(options: Any) -> Mapping[str, Any] | None:
    """The options of one queue: from a mapping, a spec, or what is set on a pydantic model."""
    if isinstance(options, Mapping):
        return options
    if is_dataclass(options):  # its slots are said; all else at its default stays as the lane has it
        said = {field.name: getattr(options, field.name) for field in fields(options)}
        defaults = {
            field.name: field.default for field in fields(options) if field.name not in ("name", "slots")
        }
        return {
            name: value
            for name, value in said.items()
            if name != "name" and value != defaults.get(name, said)
        }
    names = getattr(options, "model_fields_set", None)
    return None if names is None else {name: getattr(options, name) for name in names}


# Names that other tools use. They exist for those tools too, so ours come before them.


def _ms(text: str) -> str:
    return f"{text}ms" if text.replace(".", "", 1).isdecimal() else text


_ALIASES: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("key_prefix", "RQ_KEY_PREFIX", str),
    ("max_attempts", "JOB_MAX_RETRIES", str),
    ("retry_delay", "JOB_RETRY_DELAY", _ms),
)


_QUEUE_ALIASES = (
    "email", "sync", "payment", "enrollment", "notification", "cleanup", "export", "ai", "scheduled"
)  # fmt: skip
"""Queues whose slots are also read from ``EMAIL_QUEUE_CONCURRENCY`` and ``EMAIL_WORKER_CONCURRENCY``. No others: such
names are common, and a variable meant for another tool must not make a queue."""


def _from_aliases(dotenv: Mapping[str, str], environ: Mapping[str, str]) -> Found:
    variables = {**dotenv, **environ}

    def raw(text: str, label: str) -> Raw:
        return Raw(text, f"{'environment' if label in environ else '.env'} {label}", label)

    found: Found = {}
    if redis := _redis_url(variables):
        found[("redis_url",)] = raw(*redis)
    for name, label, convert in _ALIASES:
        if label in variables:
            found[(name,)] = raw(convert(variables[label]), label)
    for queue in _QUEUE_ALIASES:
        for label in (f"{queue.upper()}_QUEUE_CONCURRENCY", f"{queue.upper()}_WORKER_CONCURRENCY"):
            if label in variables:
                found[("queues", queue, "slots")] = raw(variables[label], label)
    for label in ("REDIS_ENABLED", "QUEUE_ENABLED"):  # off when either says so
        if label in variables:
            try:
                off = not parse_switch(variables[label])
            except ValueError as error:
                raise ConfigError(f"{label}={variables[label]!r} is wrong: {error}") from None
            if off or ("enabled",) not in found:
                found[("enabled",)] = raw(variables[label], label)
    return found


def _redis_url(variables: Mapping[str, str]) -> tuple[str, str] | None:
    """URL and variable, from ``REDIS_URL`` or from its parts."""
    if "REDIS_URL" in variables:
        return variables["REDIS_URL"], "REDIS_URL"
    label = next(
        (name for name in ("REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "REDIS_DB") if name in variables), ""
    )
    if not label:
        return None
    host, port = variables.get("REDIS_HOST", "localhost"), variables.get("REDIS_PORT", "6379")
    if address := _SERVICE_ADDRESS.fullmatch(port):  # Kubernetes, for a service called redis
        host, port = variables.get("REDIS_HOST") or address[1].strip("[]"), address[2]
    db = variables.get("REDIS_DB", "0")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(f"REDIS_PORT={port!r} is wrong: expected a whole number from 1 to 65,535")
    if not db.isdecimal():
        raise ConfigError(f"REDIS_DB={db!r} is wrong: expected a whole number such as 0")
    login = variables.get("REDIS_PASSWORD", ""), variables.get("REDIS_USERNAME", "")
    return build_redis_url(host, int(port), int(db), *login), label
