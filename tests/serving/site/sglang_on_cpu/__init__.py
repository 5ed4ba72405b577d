"""Let the real SGLang run on a machine without a GPU, torch's CPU tensors being "the device".

Nothing of HiCache is replaced. What a CPU lacks is supplied, each at the moment SGLang imports it:

    triton        SGLang's own import stub for machines without it        stand_ins.py
    torchvision   the schemas of two operators                            stand_ins.py
    sgl_kernel    a pure torch stand-in                                   ../sgl_kernel
    host pools    the copy operators, and no pinning                      copies.py, patches.py
    mooncake      page numbers without CUDA events (prefill server)       patches.py

`activate()` must run before the first import of sglang; it imports nothing heavy by itself.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Finder:
    """Watches imports: prepares the process before `sglang`, patches some of its modules after."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("sglang") or name in self._seen:
            return None
        if name == "sglang":
            self._seen.add(name)
            from . import stand_ins

            stand_ins.prepare_process()
            return None
        if name not in PATCHED_MODULES:
            return None
        self._seen.add(name)
        from . import patches

        spec = importlib.util.find_spec(name)
        if spec is not None:
            _call_after_import(spec, patches.AFTER_IMPORT[name.rpartition(".")[2]])
        return spec


PATCHED_MODULES = frozenset(
    {
        "sglang.srt.mem_cache.pool_host.base",
        "sglang.srt.mem_cache.pool_host.mha",
        "sglang.srt.mem_cache.pool_host.mla",
        "sglang.srt.mem_cache.allocator.paged",
        "sglang.srt.disaggregation.mooncake.conn",
    }
)


def _call_after_import(spec: ModuleSpec, patch: Callable[[ModuleType], None]) -> None:
    loader = spec.loader
    assert loader is not None
    execute = loader.exec_module

    def execute_and_patch(module: ModuleType) -> None:
        execute(module)
        patch(module)

    loader.exec_module = execute_and_patch  # type: ignore[method-assign]


def activate() -> None:
    """Watch the imports of this process from now on; a second call does nothing."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if "sglang" in sys.modules:
        raise RuntimeError("sglang_on_cpu.activate() came after the import of sglang")
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
