"""Events: what happened, said once the fact is stored; and the one subscriber that writes them as log lines.

Used as a library, jobq configures no logging: events go to the logger ``jobq`` and the application decides.
The command line calls :func:`configure_logging`, which writes JSON lines, or lines for people through structlog.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from jobq.parsing import redact_url

_DEBUG, _INFO, _WARNING, _ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

EVENTS: Mapping[str, int] = {
    "job.enqueued": _INFO,
    "job.deduplicated": _INFO,
    "job.started": _DEBUG,
    "job.progressed": _DEBUG,
    "job.succeeded": _INFO,
    "job.retry_scheduled": _WARNING,
    "job.snoozed": _INFO,
    "job.dead": _ERROR,
    "job.cancelled": _INFO,
    "job.timed_out": _WARNING,
    "job.rescued": _WARNING,
    "job.removed": _INFO,
    "job.parked": _WARNING,
    "queue.paused": _WARNING,
    "queue.resumed": _INFO,
    "queue.drained": _WARNING,
    "queue.cleaned": _INFO,
    "queue.limited": _INFO,
    "task.limited": _WARNING,
    "queue.shed": _WARNING,
    "queue.admitted": _INFO,
    "queue.sla_breached": _WARNING,  # reserved for what will watch the targets; nothing emits it yet
    "worker.started": _INFO,
    "worker.draining": _INFO,
    "worker.stopped": _INFO,
    "worker.quieted": _WARNING,
    "worker.resumed": _INFO,
    "worker.stop_asked": _WARNING,
    "worker.lost": _ERROR,
    "schedule.fired": _INFO,
    "schedule.missed": _WARNING,
    "schedule.skipped": _INFO,
    "schedule.added": _INFO,
    "schedule.changed": _INFO,
    "schedule.removed": _WARNING,
    "schedule.paused": _WARNING,
    "schedule.resumed": _INFO,
    "schedule.broken": _ERROR,
    "redis.connected": _INFO,
    "redis.unavailable": _ERROR,
    "redis.recovered": _WARNING,
    "fallback.used": _WARNING,
    "admin.action": _INFO,  # reserved for the admin API; nothing emits it yet
}
"""Every event, with the level of its log line. At info: one line an attempt, the rest at debug."""

_NEVER = frozenset({
    "params", "payload", "args", "kwargs", "data", "body", "result", "results", "traceback", "exc_info",
    "secret", "secrets", "secret_key", "password", "code", "otp",
})  # fmt: skip
_RESERVED = frozenset({"event", "level", "timestamp", "logger"})


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        name: ``<noun>.<past participle>``, a key of ``EVENTS``.
        fields: ``job_id task queue attempt max_attempts worker wait_ms run_ms error_type error_fingerprint
            trace_id``, as far as they apply, and what belongs to this event alone. Never params, results, or
            a URL with its password.
    """

    name: str
    fields: Mapping[str, Any]

    @property
    def level(self) -> int:
        """Level of its log line, as ``logging`` counts."""
        return EVENTS.get(self.name, _INFO)


Subscriber = Callable[[Event], object]

_logger = logging.getLogger("jobq")
_subscribers: tuple[Subscriber, ...] = ()
_levels = dict(EVENTS)  # a plain dict: the look-up is on every job's path


def enabled(name: str) -> bool:
    """Whether anybody would see this event: ask before making costly fields."""
    return bool(_subscribers) or _logger.isEnabledFor(_levels.get(name, _INFO))


def emit(name: str, **fields: Any) -> None:
    """Tell all subscribers, and the log, that something happened. Never raises for their errors.

    Fields that could carry params, results or secrets are dropped, passwords in URLs masked.

    Args:
        name: A key of ``EVENTS``.
        **fields: What is known; None counts as not known.
    """
    level = _levels.get(name, _INFO)
    log = _logger.isEnabledFor(level)
    if not log and not _subscribers:
        return
    event = Event(name, {key: _clean(value) for key, value in fields.items() if _wanted(name, key, value)})
    for subscriber in _subscribers:
        try:
            subscriber(event)
        except Exception:
            _logger.warning("a subscriber failed on %s", name, exc_info=True)
    if log:
        with contextlib.suppress(Exception):  # a full disk or a closed pipe does not break a job either
            _sink(event, level)


def _wanted(name: str, key: str, value: Any) -> bool:
    # What an exception says may repeat a param; its type and fingerprint are safe.
    unsafe = key in _NEVER or (key in ("error", "message") and name.startswith("job."))
    return value is not None and not unsafe and key not in _RESERVED


def _clean(value: Any) -> Any:
    return redact_url(value) if isinstance(value, str) and "://" in value else value


def subscribe(subscriber: Subscriber) -> Callable[[], None]:
    """Call ``subscriber`` with each event, on the thread where it happens: be quick, or hand over.

    Returns:
        A function that ends the subscription; calling it twice does no harm.
    """
    global _subscribers
    _subscribers = (*_subscribers, subscriber)

    def unsubscribe() -> None:
        global _subscribers
        kept = list(_subscribers)
        if subscriber in kept:
            kept.remove(subscriber)
        _subscribers = tuple(kept)

    return unsubscribe


def _library_sink(event: Event, level: int) -> None:
    """To the application's logging: readable as it is, and whole in the record's ``jobq`` attribute."""
    text = " ".join([event.name, *(f"{key}={value}" for key, value in event.fields.items())])
    _logger.log(level, "%s", text, extra={"jobq": {"event": event.name, **event.fields}})


_sink: Callable[[Event, int], None] = _library_sink


_encode = json.JSONEncoder(default=str).encode


def _json_line(said: dict[str, Any]) -> str:
    return _encode({**said, "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")})


class _JsonFormatter(logging.Formatter):
    """Records of all loggers in the form of the events; one that structlog has prepared keeps its fields."""

    def format(self, record: logging.LogRecord) -> str:
        said = dict(record.msg) if isinstance(record.msg, dict) else {"event": record.getMessage()}
        said |= {"level": record.levelname.lower(), "logger": record.name}
        error: Any = said.pop("exc_info", None) or record.exc_info
        if error is True:
            error = sys.exc_info()
        elif isinstance(error, BaseException):
            error = (type(error), error, error.__traceback__)
        if error:
            said["exception"] = self.formatException(error)
        return _json_line(said)


def _json_lines(out: TextIO) -> tuple[Callable[[dict[str, Any]], object], logging.Formatter]:
    """What writes an event, and what formats everybody else's records. Not structlog: it brings rich along (5 MB)."""

    def write(said: dict[str, Any]) -> None:
        out.write(_json_line(said) + "\n")  # at once, so that lines of several threads do not mix
        out.flush()

    return write, _JsonFormatter()


def _console_lines(out: TextIO, colors: bool) -> tuple[Callable[[dict[str, Any]], object], logging.Formatter]:
    """The same, for people."""
    import structlog  # late: only people need it

    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    renderer = structlog.dev.ConsoleRenderer(colors=colors, event_key="event")
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, stamp],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    logger = structlog.WriteLogger(out)

    def write(said: dict[str, Any]) -> None:
        logger.msg(renderer(logger, "msg", stamp(logger, "msg", said)))

    return write, formatter


def configure_logging(
    format: Literal["json", "console"] | None = None,  # noqa: A002 - the word of JOBQ_LOG_FORMAT
    level: str | int = "INFO",
    stream: TextIO | None = None,
) -> None:
    """Write jobq's events, and all other loggers' warnings, as lines to ``stream``; for the command line.

    Args:
        format: None: ``console`` when the stream is a terminal, else ``json``.
        level: Least level of jobq's own lines, a name in any case or a number. Of all others: warning.
        stream: None: stderr.
    """
    global _sink
    out = sys.stderr if stream is None else stream
    terminal = out.isatty()
    console = format == "console" or (format is None and terminal)
    # Events skip the logging module: a line costs a third of what it does through a handler's formatter.
    write, formatter = _console_lines(out, terminal) if console else _json_lines(out)
    names = {number: logging.getLevelName(number).lower() for number in set(EVENTS.values())}

    def sink(event: Event, number: int) -> None:
        write({"event": event.name, "level": names[number], **event.fields})

    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in [known for known in root.handlers if getattr(known, "jobq_owned", False)]:
        root.removeHandler(old)
    handler.jobq_owned = True  # type: ignore[attr-defined]  # so that a second call replaces it
    root.addHandler(handler)
    _logger.setLevel(level.upper() if isinstance(level, str) else level)
    _sink = sink
