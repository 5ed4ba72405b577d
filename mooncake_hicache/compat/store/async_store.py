"""`mooncake.async_store.MooncakeDistributedStoreAsync`: `async_<method>` for each method of the
store, run in the event loop's threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mooncake_hicache.compat.store import MooncakeDistributedStore

__all__ = ["MooncakeDistributedStoreAsync"]

_PREFIX = "async_"


class MooncakeDistributedStoreAsync(MooncakeDistributedStore):
    """The store, with a coroutine for each method: `await store.async_get("key")`."""

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = None
        if name.startswith(_PREFIX):
            method = getattr(type(self), name.removeprefix(_PREFIX), None)
        if method is None or name.startswith(f"{_PREFIX}_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        call: Callable[..., Any] = method

        async def run(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(call, self, *args, **kwargs)

        return run
