"""Which prefixes of a span can be restored from storage.

Plain pools hold every page of a prefix. State pools (sliding windows, Mamba) hold a few pages that
end at points where the engine saved its state, so a prefix of 5 pages may be restorable while 4 and
3 are not. The engine wants the whole set, because each rank may have another one. Pure functions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["contiguous_prefixes", "leading", "trailing_windows"]

Flags = npt.NDArray[np.bool_]


def leading(found: Flags) -> int:
    """Return how many pages from the start are there, up to the first that is not."""
    missing = np.flatnonzero(~found)
    return int(missing[0]) if len(missing) else len(found)


def contiguous_prefixes(found: Flags) -> Flags:
    """For each length 1 to n: are all pages of that prefix there? Item i is length i + 1."""
    return np.logical_and.accumulate(found) if len(found) else found


def trailing_windows(found: Flags, window: int) -> Flags:
    """For each length 1 to n: are the last `window` pages of that prefix there, or all if fewer?"""
    missing = np.concatenate([[0], np.cumsum(~found)])
    ends = np.arange(1, len(found) + 1)
    starts = np.maximum(0, ends - max(1, window))
    return np.asarray(missing[ends] == missing[starts])
