"""One test for both kinds of client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import jobq
from jobq.tasks import Registry


class Both:
    """Calls a method of the plain client, or of the awaitable one: the same words for both."""

    def __init__(self, settings: jobq.Settings, awaited: bool, registry: Registry | None = None) -> None:
        self._settings = settings
        self._awaited = awaited
        self._registry = registry

    def __call__(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if self._awaited:
            return asyncio.run(self._later(path, args, kwargs))
        with jobq.Client(self._settings, registry=self._registry) as client:
            return _method(client, path)(*args, **kwargs)

    async def _later(self, path: str, args: Any, kwargs: Any) -> Any:
        async with jobq.AsyncClient(self._settings, registry=self._registry) as client:
            return await _method(client, path)(*args, **kwargs)


def _method(client: Any, path: str) -> Callable[..., Any]:
    for name in path.split("."):
        client = getattr(client, name)
    return client  # type: ignore[no-any-return]
