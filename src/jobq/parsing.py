"""Text to values, and back: durations, sizes, switches, Redis URLs; and URLs without their passwords.

Every message says what would be right and none repeats the text it refused, which may be a secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

_UNIT_MS = {
    "ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000,
}  # fmt: skip
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|min|[smhdw]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|min|[smhdw])")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|k|kb|kib|m|mb|mib)?", re.IGNORECASE)
_LONGEST = timedelta(days=36_500)
_DURATION_HINT = "expected a duration such as 500ms, 30s, 5m, 24h or 7d"


def parse_duration(value: Any) -> timedelta:
    """A duration from ``500ms 30s 5m 24h 7d 2w``, parts added (``1h30m``), or a bare number of seconds.

    Raises:
        ValueError: Anything else, a negative duration, or more than 100 years.
    """
    if isinstance(value, timedelta):
        found = value
    elif isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(_DURATION_HINT)
    else:
        text = str(value).strip().lower().replace(" ", "")
        if _DURATION.fullmatch(text):
            total_ms = sum(float(number) * _UNIT_MS[unit] for number, unit in _PART.findall(text))
        else:
            try:
                total_ms = float(text) * 1_000
            except ValueError:
                raise ValueError(_DURATION_HINT) from None
        if not math.isfinite(total_ms) or abs(total_ms) > _LONGEST.total_seconds() * 1_000:
            raise ValueError(f"{_DURATION_HINT}, at most 100 years")
        found = timedelta(milliseconds=total_ms)
    if found < timedelta(0):
        raise ValueError(f"{_DURATION_HINT}, not negative")
    return found


def format_duration(value: timedelta) -> str:
    """The shortest text that :func:`parse_duration` reads back: ``90s``, ``5m``, ``1500ms``."""
    total_ms = round(value.total_seconds() * 1_000)
    for unit in ("d", "h", "m", "s"):
        if total_ms and total_ms % _UNIT_MS[unit] == 0:
            return f"{total_ms // _UNIT_MS[unit]}{unit}"
    return f"{total_ms}ms" if total_ms else "0s"


def parse_size(value: Any) -> int:
    """Bytes from ``256kB``, ``1MB`` or a bare number of bytes; a kB is 1,024 bytes.

    Raises:
        ValueError: Anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected a size such as 65536, 256kB or 1MB")
    factor = {"k": 1024, "m": 1024 * 1024}.get((match[2] or "b")[0].lower(), 1)
    return int(float(match[1]) * factor)


def parse_switch(value: Any) -> bool:
    """True for ``true yes on 1``, False for ``false no off 0``, in any case.

    Raises:
        ValueError: Anything else.
    """
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise ValueError("expected true or false")


_USERINFO = re.compile(r"(?<=://)\S*@")
_SECRET_QUERY = re.compile(r"([?&][^=&\s]*(?:pass|secret|token|key|sig)[^=&\s]*=)[^&\s]*", re.IGNORECASE)


def _mask_user(match: re.Match[str]) -> str:
    user, colon, _ = match[0][:-1].partition(":")
    # A lone part before the @ may be a token; and a user part with odd characters is part of a password.
    return f"{user}:***@" if colon and re.fullmatch(r"[\w.~-]*", user) else "***@"


def redact_url(text: str) -> str:
    """``text`` with the password of every URL in it replaced by ``***``.

    Masks up to the last ``@`` of a word: a password holding an unescaped ``@`` or ``/`` is hidden too,
    at worst together with the host.
    """
    if "://" not in text:
        return re.sub(r"^\S*@", "***@", text) if "@" in text and ":" in text else text
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub(_mask_user, text))


SCHEMES = ("redis", "rediss", "unix", "valkey", "valkeys", "redis+sentinel")
_PLAIN = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss"}
_SENTINEL = {
    "redis+sentinel": False,
    "valkey+sentinel": False,
    "rediss+sentinel": True,
    "valkeys+sentinel": True,
}
_TLS_OPTIONS = frozenset({
    "ssl_keyfile", "ssl_certfile", "ssl_password", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path",
    "ssl_check_hostname", "ssl_min_version", "ssl_ciphers", "ssl_validate_ocsp", "ssl_validate_ocsp_stapled",
})  # fmt: skip
# What jobq decides itself, by role: a URL shared with another application may carry them, to no effect.
_OURS = frozenset({
    "socket_timeout", "socket_connect_timeout", "socket_keepalive", "retry_on_timeout", "timeout", "encoding",
    "health_check_interval", "client_name", "protocol", "legacy_responses",
})  # fmt: skip
_ACCEPTED = _TLS_OPTIONS | {"db", "username", "password", "max_connections"}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A Redis URL, understood.

    Attributes:
        url: For redis-py: scheme ``redis``, ``rediss`` or ``unix``, and no option that jobq decides itself.
            Empty behind Sentinel.
        service: Name of the master that the sentinels watch; empty without Sentinel.
        sentinels: Host and port of each sentinel.
        options: Keyword arguments for the connections to the server behind Sentinel.
        sentinel_options: Keyword arguments for the connections to the sentinels.
        tls: Whether TLS is used behind Sentinel.
    """

    url: str = field(default="", repr=False)
    service: str = ""
    sentinels: tuple[tuple[str, int], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tls: bool = False


_ESCAPE = "expected a URL whose user and password are escaped: write / as %2F, # as %23, ? as %3F, @ as %40, % as %25"


def _require_escaped(rest: str) -> None:
    """Refuse what would be cut off at a / # or ? of a password, and quietly lead to another server.

    Raises:
        ValueError: There is such a sign before the last @. Whatever else was said of it would repeat the password.
    """
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
    if "#" in authority or ("@" in path and "@" not in authority) or any("@" in name for name in names):
        raise ValueError(_ESCAPE)


def _database(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("expected the number of a database after the last /, such as /0")
    return int(text)


def _query(text: str, *, extra: frozenset[str] = frozenset()) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name == "decode_responses":
            # redis-py reads any text here as true, "False" too.
            if value.lower() not in ("false", "no", "off", "0", ""):
                raise ValueError("decode_responses must stay off: payloads are bytes; remove it from the URL")
        elif name in _ACCEPTED or name in extra:
            options[name] = value
        elif name not in _OURS:
            raise ValueError(
                f"the option {name[:40]!r} is not known; known are {', '.join(sorted(_ACCEPTED))}"
            )
    if "db" in options:
        _database(options["db"])
    if not options.get("max_connections", "1").isdecimal():
        raise ValueError("expected a whole number for max_connections")
    return options


def _host_port(text: str, default: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        return unquote(parts.hostname or "localhost"), parts.port or default
    except ValueError:
        raise ValueError("expected host:port with a port from 1 to 65535") from None


def _sentinel_url(scheme: str, rest: str) -> RedisUrl:
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    given = _query(query, extra=frozenset({"service_name", "sentinel_username", "sentinel_password"}))
    parts = [unquote(part) for part in path.split("/") if part]
    service = given.pop("service_name", "")
    if not service and parts:
        service = parts.pop(0)
    if not service or len(parts) > 1:
        raise ValueError("expected redis+sentinel://host:26379,host:26379/master-name/0")
    options: dict[str, Any] = {"db": _database(given.pop("db", parts[0] if parts else "0"))}
    user, _, password = userinfo.partition(":")
    credentials = {"username": unquote(user), "password": unquote(password)}
    sentinel_options = {
        name: given.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in given
    }
    options.update((name, value) for name, value in credentials.items() if value)
    if "max_connections" in given:
        options["max_connections"] = int(given.pop("max_connections"))
    options.update(given)
    nodes = tuple(_host_port(node, 26379) for node in hosts.split(",") if node)
    return RedisUrl(
        service=service,
        sentinels=nodes or (("localhost", 26379),),
        options=options,
        sentinel_options=sentinel_options,
        tls=_SENTINEL[scheme],
    )


def parse_redis_url(text: str) -> RedisUrl:
    """The parts of a Redis URL.

    ``redis://[user:password@]host[:port][/db]``, the same with ``rediss`` (TLS), ``valkey`` and ``valkeys``;
    ``unix://[user:password@]/path/to/socket[?db=0]``;
    ``redis+sentinel://[user:password@]host[:26379][,host…]/master-name[/db][?sentinel_password=…]``
    (also ``rediss+sentinel``).

    Raises:
        ValueError: It is none of these. The message never repeats the URL.
    """
    scheme, found, rest = text.strip().partition("://")
    scheme = scheme.lower()
    if not found or (scheme != "unix" and scheme not in _PLAIN and scheme not in _SENTINEL):
        raise ValueError(
            f"expected a URL that starts with {', '.join(SCHEMES)}, such as redis://localhost:6379/0"
        )
    if scheme == "unix":
        if "#" in rest.partition("?")[0].rpartition("@")[0]:
            raise ValueError(_ESCAPE)
    else:
        _require_escaped(rest)
    if scheme in _SENTINEL:
        return _sentinel_url(scheme, rest)
    place, _, query = rest.partition("?")
    given = _query(query)
    if scheme == "unix":
        if not place.rpartition("@")[2].startswith("/"):
            raise ValueError("expected unix:///path/to/redis.sock")
    else:
        authority, _, path = place.partition("/")
        _host_port(authority.rpartition("@")[2], 6379)
        if path.strip("/"):
            _database(path.strip("/"))  # redis-py would quietly take 0 instead
        scheme = _PLAIN[scheme]
    return RedisUrl(url=f"{scheme}://{place}" + (f"?{urlencode(given)}" if given else ""))


def build_redis_url(host: str, port: int, db: int, password: str = "", username: str = "") -> str:
    """A ``redis://`` URL from its parts, each escaped."""
    login = f"{quote(username, safe='')}:{quote(password, safe='')}@" if username or password else ""
    shown = f"[{host}]" if ":" in host else host
    return f"redis://{login}{shown}:{port}/{db}"
