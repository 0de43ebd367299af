"""The settings that the helpers' defaults work from, loaded when a job first needs them."""

from __future__ import annotations

from jobq.config import Settings

_given: Settings | None = None
_loaded: Settings | None = None


def use_settings(settings: Settings | None) -> None:
    """Let the helpers of this process work from these settings; None: load them from the environment."""
    global _given, _loaded  # one set of settings per process
    _given, _loaded = settings, None


def helper_settings() -> Settings:
    """The settings given to :func:`use_settings`, else those of the environment, loaded once per process.

    Raises:
        ConfigError: They are wrong.
    """
    global _loaded
    if _given is not None:
        return _given
    if _loaded is None:
        _loaded = Settings.load()
    return _loaded
