"""The settings that the helpers' defaults work from, loaded when a job first needs them."""

from __future__ import annotations

from jobq.client import get_client
from jobq.config import Settings

_given: Settings | None = None


def use_settings(settings: Settings | None) -> None:
    """Let the helpers of this process work from these settings; None: from the default client's again."""
    global _given  # one set of settings per process
    _given = settings


def helper_settings() -> Settings:
    """What :func:`use_settings` was given, else the default client's: ``jobq.configure``, or the environment.

    Raises:
        ConfigError: The settings are wrong.
    """
    return _given if _given is not None else get_client().settings
