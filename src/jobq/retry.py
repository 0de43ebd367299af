"""When a failed job runs again: delays, and the choice between another attempt and a dead letter.

Pure arithmetic: the attempt, the error and the source of randomness are arguments; nothing sleeps or looks
at a clock. Policies travel as plain JSON, because the supervisor settles timeouts without having imported the
application.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import NoneType
from typing import Any, Literal

from jobq.errors import ConfigError

Jitter = float | Literal["full"]

_LONGEST = timedelta(days=365)
MOST_ATTEMPTS = 1_000_000
"""Runs that a task, a call, a queue or the settings may allow a job."""


def is_whole(value: object, low: int, high: int) -> bool:
    """Whether ``value`` is a whole number from ``low`` to ``high``; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float, high: float) -> bool:
    """Whether ``value`` is a number from ``low`` to ``high``; NaN, True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def is_duration(value: object, low: timedelta, high: timedelta) -> bool:
    """Whether ``value`` is a timedelta from ``low`` to ``high``."""
    return isinstance(value, timedelta) and low <= value <= high


def duration(value: float | timedelta, what: str) -> timedelta:
    """Seconds or a timedelta as a timedelta.

    Raises:
        ConfigError: Neither, or not from 0 to 365 days. ``what`` starts the message.
    """
    delta = timedelta(seconds=value) if is_number(value, 0, _LONGEST.total_seconds()) else value  # type: ignore[arg-type]
    if not isinstance(delta, timedelta) or not timedelta(0) <= delta <= _LONGEST:
        raise ConfigError(f"{what} must be seconds or a timedelta, from 0 to 365 days, got {value!r}")
    return delta


def _jitter(value: Jitter) -> Jitter:
    if value == "full":
        return "full"
    if not is_number(value, 0, 1):
        raise ConfigError(f'jitter must be a fraction from 0 to 1, or "full", got {value!r}')
    return float(value)


def _attempt(attempt: int) -> int:
    if attempt < 1:
        raise ValueError(f"attempts are counted from 1, got {attempt}")
    return attempt


def _spread(delay_s: float, jitter: Jitter, rand: random.Random) -> timedelta:
    """Apply the random part: after the cap, so that capped delays still spread."""
    if jitter == "full":
        return timedelta(seconds=delay_s * rand.random())
    return timedelta(seconds=delay_s * (1 + jitter * rand.random()) if jitter else delay_s)


@dataclass(frozen=True, slots=True, init=False)
class Backoff:
    """Exponential delays: ``min(cap, base * factor ** (attempt - 1))``, then the jitter.

    The defaults give 2 s, 4 s, 8 s … up to 5 min, each lengthened at random by up to a quarter.

    Args:
        base: Delay after the first attempt; seconds or a timedelta.
        factor: Growth from one delay to the next, at least 1.
        cap: Longest delay before jitter; seconds or a timedelta, at least ``base``.
        jitter: Fraction, 0 to 1, by which a delay is lengthened at most. ``"full"``: U(0, delay) instead.

    Raises:
        ConfigError: A value is out of its range.
    """

    base: timedelta
    factor: float
    cap: timedelta
    jitter: Jitter

    def __init__(
        self,
        base: float | timedelta = 2,
        factor: float = 2,
        cap: float | timedelta = 300,
        jitter: Jitter = 0.25,
    ) -> None:
        if not is_number(factor, 1, 1000):
            raise ConfigError(f"factor must be a number from 1 to 1000, got {factor!r}")
        object.__setattr__(self, "base", duration(base, "base"))
        object.__setattr__(self, "factor", float(factor))
        object.__setattr__(self, "cap", duration(cap, "cap"))
        object.__setattr__(self, "jitter", _jitter(jitter))
        if self.cap < self.base:
            raise ConfigError(f"cap must not be below base, got cap={self.cap} and base={self.base}")

    def delay(self, attempt: int, rand: random.Random) -> timedelta:
        """Delay before the attempt that follows ``attempt``.

        Args:
            attempt: The attempt that just failed, counted from 1.
            rand: Source of the jitter.

        Raises:
            ValueError: ``attempt`` is below 1.
        """
        cap_s = self.cap.total_seconds()
        try:
            delay_s = min(cap_s, self.base.total_seconds() * self.factor ** (_attempt(attempt) - 1))
        except OverflowError:  # past about a thousand doublings: long past any cap
            delay_s = cap_s if self.base else 0.0
        return _spread(delay_s, self.jitter, rand)


@dataclass(frozen=True, slots=True, init=False)
class Fixed:
    """The same delay before every attempt.

    Args:
        delay: Seconds or a timedelta.
        jitter: As for :class:`Backoff`; none by default.

    Raises:
        ConfigError: A value is out of its range.
    """

    every: timedelta
    jitter: Jitter

    def __init__(self, delay: float | timedelta, jitter: Jitter = 0) -> None:
        object.__setattr__(self, "every", duration(delay, "delay"))
        object.__setattr__(self, "jitter", _jitter(jitter))

    def delay(self, attempt: int, rand: random.Random) -> timedelta:
        """Delay before the attempt that follows ``attempt``, counted from 1."""
        _attempt(attempt)
        return _spread(self.every.total_seconds(), self.jitter, rand)


@dataclass(frozen=True, slots=True, init=False)
class Steps:
    """Delays from a list; the last one repeats.

    Args:
        steps: Seconds or timedeltas, the first for the delay after attempt 1.
        jitter: As for :class:`Backoff`; none by default.

    Raises:
        ConfigError: The list is empty, or a value is out of its range.
    """

    steps: tuple[timedelta, ...]
    jitter: Jitter

    def __init__(self, steps: Iterable[float | timedelta], jitter: Jitter = 0) -> None:
        object.__setattr__(self, "steps", tuple(duration(step, "a step") for step in steps))
        object.__setattr__(self, "jitter", _jitter(jitter))
        if not self.steps:
            raise ConfigError("Steps needs at least one delay")

    def delay(self, attempt: int, rand: random.Random) -> timedelta:
        """Delay before the attempt that follows ``attempt``, counted from 1."""
        step = self.steps[min(_attempt(attempt), len(self.steps)) - 1]
        return _spread(step.total_seconds(), self.jitter, rand)


Delays = Backoff | Fixed | Steps


def delays_to_dict(delays: Delays) -> dict[str, Any]:
    """The delays as plain JSON values; durations in seconds."""
    if isinstance(delays, Backoff):
        return {
            "kind": "backoff",
            "base_s": delays.base.total_seconds(),
            "factor": delays.factor,
            "cap_s": delays.cap.total_seconds(),
            "jitter": delays.jitter,
        }
    if isinstance(delays, Fixed):
        return {"kind": "fixed", "delay_s": delays.every.total_seconds(), "jitter": delays.jitter}
    return {
        "kind": "steps",
        "steps_s": [step.total_seconds() for step in delays.steps],
        "jitter": delays.jitter,
    }


def delays_from_dict(data: Mapping[str, Any]) -> Delays:
    """The delays that :func:`delays_to_dict` wrote.

    Raises:
        ConfigError: ``data`` is not such a record.
    """
    try:
        kind = data["kind"]
        if kind == "backoff":
            return Backoff(data["base_s"], data["factor"], data["cap_s"], data["jitter"])
        if kind == "fixed":
            return Fixed(data["delay_s"], data["jitter"])
        if kind == "steps":
            return Steps(data["steps_s"], data["jitter"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"not a record of retry delays: {error}") from error
    raise ConfigError(f"unknown kind of retry delays {kind!r}: expected backoff, fixed or steps")


@dataclass(frozen=True, slots=True)
class RetryIn:
    """The job runs again after ``delay``."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class Dead:
    """No retry will touch the job: it becomes a dead letter.

    Attributes:
        reason: ``exhausted``: all attempts are spent. ``rejected``: the policy never retries this error.
    """

    reason: Literal["exhausted", "rejected"] = "exhausted"


def error_name(error: type) -> str:
    """Dotted name of an exception class, as policies store it: ``module.QualName``, bare for builtins."""
    if error.__module__ == "builtins":
        return error.__qualname__
    return f"{error.__module__}.{error.__qualname__}"


def _matches(rule: type[BaseException] | str, error: BaseException) -> bool:
    if isinstance(rule, str):
        return any(error_name(base) == rule for base in type(error).__mro__)
    return isinstance(error, rule)


ErrorRule = tuple[type[BaseException] | str, "RetryPolicy | None"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a task is tried, and how long each wait is.

    Attributes:
        max_attempts: Total runs including the first; default 3.
        delays: The waits between them; default :class:`Backoff`.
        per_error: Exceptions with a policy of their own, as pairs of an exception class (or its dotted name)
            and a policy; None never retries. Subclasses match too; the first match wins.

    Raises:
        ConfigError: A value is out of its range.
    """

    max_attempts: int = 3
    delays: Delays = Backoff()
    per_error: Sequence[ErrorRule] = ()

    def __post_init__(self) -> None:
        attempts = self.max_attempts
        if not is_whole(attempts, 1, MOST_ATTEMPTS):
            raise ConfigError(
                f"max_attempts must be a whole number from 1 to {MOST_ATTEMPTS:,}, got {attempts!r}"
            )
        if not isinstance(self.delays, (Backoff, Fixed, Steps)):
            raise ConfigError(f"backoff must be a jobq.Backoff, Fixed or Steps, got {self.delays!r}")
        try:
            rules = tuple(_checked_rule(rule) for rule in self.per_error)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                "per_error holds pairs of an exception class and a RetryPolicy or None"
            ) from error
        object.__setattr__(self, "per_error", rules)

    def decide(self, attempt: int, error: BaseException, rand: random.Random) -> RetryIn | Dead:
        """What follows an attempt that failed.

        Args:
            attempt: The attempt that just failed, counted from 1.
            error: What it raised.
            rand: Source of the jitter.

        Raises:
            ValueError: ``attempt`` is below 1.
        """
        _attempt(attempt)
        for rule, policy in self.per_error:
            if _matches(rule, error):
                return Dead("rejected") if policy is None else policy.decide(attempt, error, rand)
        if attempt >= self.max_attempts:
            return Dead()
        return RetryIn(self.delays.delay(attempt, rand))

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain JSON values; exception classes become dotted names."""
        rules = [
            [
                rule if isinstance(rule, str) else error_name(rule),
                None if policy is None else policy.to_dict(),
            ]
            for rule, policy in self.per_error
        ]
        return {
            "max_attempts": self.max_attempts,
            "delays": delays_to_dict(self.delays),
            "per_error": rules,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RetryPolicy:
        """The policy that :meth:`to_dict` wrote. Its error rules match by name.

        Raises:
            ConfigError: ``data`` is not such a record.
        """
        try:
            rules = [
                (name, None if policy is None else cls.from_dict(policy))
                for name, policy in data["per_error"]
            ]
            return cls(data["max_attempts"], delays_from_dict(data["delays"]), tuple(rules))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a record of a retry policy: {error}") from error


def _checked_rule(rule: ErrorRule) -> ErrorRule:
    error, policy = rule
    if isinstance(error, str):
        error = error.removeprefix("builtins.")
    if not error or not (isinstance(error, str) or issubclass(error, BaseException)):
        raise ConfigError(f"a per_error rule needs an exception class or its dotted name, got {error!r}")
    if not isinstance(policy, (RetryPolicy, NoneType)):
        raise ConfigError(f"a per_error rule needs a RetryPolicy or None, got {policy!r}")
    return error, policy
