"""Changes to SGLang's modules right after their import."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from . import copies


def _never_pin(base: ModuleType) -> None:
    """Pinned memory needs a GPU driver: build each host pool with `pin_memory=False`."""
    original = base.HostKVCache.__init__
    signature = inspect.signature(original)

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments["pin_memory"] = False
        original(*bound.args, **bound.kwargs)

    base.HostKVCache.__init__ = build


def _add_copies(pool_module: ModuleType) -> None:
    """Define the copy operators, which SGLang imports from sgl_kernel only where a GPU is."""
    for name, operator in copies.OPERATORS.items():
        if not hasattr(pool_module, name):
            setattr(pool_module, name, operator)


class _Kernel:
    """Makes `kernel[grid](...)` a plain call."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._call


def _allocate_without_triton(paged: ModuleType) -> None:
    """Replace two triton kernels that SGLang before 0.5.23 launches on a CPU too."""

    def extend(
        prefix: Any, lengths: Any, last: Any, free: Any, out: Any, _: int, size: int
    ) -> None:
        paged.alloc_extend_naive(prefix, lengths, last, free, out, size, "cpu")

    def decode(lengths: Any, last: Any, free: Any, out: Any, _: int, size: int) -> None:
        needs_page = (lengths - 1) % size == 0
        out.copy_(last + 1)
        out[needs_page] = free[: int(needs_page.sum())] * size

    if hasattr(paged, "alloc_extend_kernel"):
        paged.alloc_extend_kernel, paged.alloc_decode_kernel = _Kernel(extend), _Kernel(decode)


def _send_indices_of_numpy(conn: ModuleType) -> None:
    """Take SGLang's own other way of telling which pages to send: the first one records CUDA
    events and pins memory."""
    conn.MooncakeKVSender.supports_host_tensor_indices = False


AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "base": _never_pin,
    "mha": _add_copies,
    "mla": _add_copies,
    "paged": _allocate_without_triton,
    "conn": _send_indices_of_numpy,
}
