"""Takes over the external linker named `mooncake`; see `linker`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["FACTORY", "take_over"]

_SCHEDULER = "sglang.srt.managers.scheduler"
_MODULE = "sglang.srt.mem_cache.unified_cache.linker_factory"
FACTORY = f"{_MODULE}.create_unified_cache_linker"
"""What makes linkers, from SGLang 0.5.23 on; linkers of earlier versions are another interface."""


def take_over(backend: str) -> bool:
    """Have linkers of a name made by us in a process that has a scheduler. May be called again.

    Returns whether they will be. Takes effect when SGLang applies the hooks of its plugins.
    """
    # Importing it where there is no scheduler would cost other processes seconds.
    if _SCHEDULER not in sys.modules or importlib.util.find_spec(_MODULE) is None:
        return False
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if any(hook is _create for _, hook, *_ in HookRegistry._hooks.get(FACTORY, ())):
        return True
    _names.add(backend)
    HookRegistry.register(FACTORY, _create, HookType.AROUND)
    return True


_names: set[str] = set()


def _create(
    original: Callable[..., Any], server_args: Any, params: Any, *, backend: str, **options: Any
) -> Any:
    if backend not in _names:
        return original(server_args, params, backend=backend, **options)
    from mooncake_hicache.sglang.linker import HiCacheLinker

    return HiCacheLinker(
        server_args,
        params,
        components=options["components"],
        extra_config=options.get("config"),
        forward_stream=options.get("forward_stream"),
    )
