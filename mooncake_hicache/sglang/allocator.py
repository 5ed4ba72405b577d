"""The engine's host memory with this backend: its own default.

With a backend named `mooncake` SGLang asks the package `mooncake` for the memory of its host pools,
so that the original's transfer engine can reach it, and warns if there is no such package. Our
pages are copied by the engine's own process, which can reach any of its memory; SGLang's default
allocator (prefaulted, huge pages with `SGLANG_HUGEPAGE_SIZE`) is as good as one of ours would be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["use_default_for"]

_TARGET = "sglang.srt.mem_cache.pool_host.common.get_allocator_from_storage"
_DEFAULT = "default"

_hooked: set[str] = set()


def use_default_for(backend: str) -> None:
    """Make the engine use its default allocator with a backend. May be called again.

    Takes effect when SGLang applies the hooks of its plugins.
    """
    if backend in _hooked:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def choose(original: Callable[..., Any], allocator_type: Any, *args: Any, **kwargs: Any) -> Any:
        kind = _DEFAULT if allocator_type == backend else allocator_type
        return original(kind, *args, **kwargs)

    HookRegistry.register(_TARGET, choose, HookType.AROUND)
    _hooked.add(backend)
