"""The clients by their names, and the default one behind ``task.enqueue`` and the helpers.

It is built from the environment when it is first needed, unless :func:`configure` has set it up.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

from jobq import codec as codec_module
from jobq import queues, tasks
from jobq.async_client import AsyncClient
from jobq.codec import Codec
from jobq.config import Settings
from jobq.connection import limit_connections
from jobq.errors import UnknownTaskError
from jobq.sync_client import Client

__all__ = ["AsyncClient", "Client", "configure", "get_async_client", "get_client"]

_default: Client | None = None
_default_lock = threading.Lock()
_flags: dict[str, Any] = {}
_knows: int | None = None
"""Of which declared queues the default client knows; None: it was given whole settings, and stays."""


def get_client() -> Client:
    """The default client, built at its first use from :func:`configure` and the environment.

    It is built again when a module that was imported since has declared a queue: where that is, and what it allows,
    must count for what is enqueued.

    Raises:
        ConfigError: The settings are wrong.
    """
    global _default, _knows
    client = _default
    if client is not None and _knows in (None, queues.declared.version):
        return client
    with _default_lock:
        old, version = _default, queues.declared.version
        if old is not None and _knows in (None, version):
            return old
        client = Client(Settings.load(**_flags))
        _default, _knows = client, version
    if old is not None:
        old.close()
    return client


def share_connections(most: int) -> None:
    """Have all that clients do in this process share so many connections, a client each; for a fresh fork.

    The default client may have been used before the fork, while the application was imported: it begins anew.
    """
    limit_connections(most)
    if _default is not None:
        _default.close()


def get_async_client() -> AsyncClient:
    """The default asynchronous client of the running event loop."""
    return get_client().twin()


def configure(settings: Settings | None = None, **flags: Any) -> Client:
    """Set the default client up, in place of the one there was.

    Args:
        settings: Whole settings; None: the environment's, under ``flags``.
        **flags: Single settings, such as ``redis_url``; they come before every other source. But a list of QueueSpecs,
            ``queues``, declares them as ``jobq.queue`` does, below every source, for this application's workers too.
    Raises:
        ConfigError: A value is wrong; the old default client stays.
        TypeError: Both ``settings`` and ``flags``.
    """
    global _default, _flags, _knows
    if settings is not None and flags:
        raise TypeError("give settings or single values, not both")
    before, given = queues.declared.configured, isinstance(flags.get("queues"), list | tuple)
    if given:
        queues.declared.configured = flags.pop("queues")
    try:
        made = Client(settings if settings is not None else Settings.load(**flags))
    except BaseException:
        if given:
            queues.declared.configured = before
        raise
    with _default_lock:
        old, _default, _flags = _default, made, dict(flags)
        _knows = queues.declared.version if settings is None else None
    if old is not None:
        old.close()
    return made


def _bind(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, int, Mapping[str, Any], Collection[str]]:
    """What rq was asked to call, as a task and its validated params."""
    client = get_client()
    try:
        task = client.registry.resolve(name)
    except UnknownTaskError:
        # rq is given names of functions whose modules the producer need not have imported.
        tasks.load_app(client.settings.app, client.registry)
        task = client.registry.resolve(name)
    return task.name, task.version, task.dump(task.bind(args, kwargs)), task.secrets


def _provide() -> tuple[Codec, codec_module.Binder]:
    return get_client().codec, _bind


tasks.set_dispatcher(get_client)
codec_module.bind_serializer(_provide)
