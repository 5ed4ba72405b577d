"""Tensors of torch as raw bytes and back. Torch is looked for when a tensor is met, not before:
programs without tensors need not have it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from mooncake_hicache.errors import InvalidArgumentError, UnsupportedError

__all__ = ["bytes_of", "is_tensor", "item_size", "tensor_of"]

ITEM_SIZES = {
    "bool": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
}
"""What may be asked of torch, by name, and the bytes of one number."""


def is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def item_size(name: str) -> int | None:
    """Return how many bytes a number of a type has; None: it is not known."""
    return ITEM_SIZES.get(name)


def bytes_of(tensor: Any, where: str) -> tuple[npt.NDArray[np.uint8], str]:
    """Return the numbers of a tensor as bytes, and the name of their type.

    Those of a GPU are copied to this machine's memory. That it had a gradient is not kept.

    Raises:
        InvalidArgumentError: It is sparse, quantised, or of a type that is not known.
    """
    torch = sys.modules["torch"]
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or name not in ITEM_SIZES:
        raise InvalidArgumentError(
            f"{where} is a tensor of {tensor.dtype} in the layout {tensor.layout}: give a dense one"
        )
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    raw: npt.NDArray[np.uint8] = dense.view(torch.uint8).numpy()
    return raw, name


def tensor_of(raw: npt.NDArray[np.uint8], name: str, shape: list[int]) -> Any:
    """Return bytes as a tensor of the CPU: a view of them.

    Raises:
        UnsupportedError: Torch is not installed, or too old for the type.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise UnsupportedError(
            f"the value has tensors, and torch cannot be imported here: {error}"
        ) from None
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise UnsupportedError(f"torch {torch.__version__} here has no type {name}")
    if raw.size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(raw).view(dtype).reshape(shape)
