"""Where the bytes of a page lie: addresses by arithmetic instead of a Python loop per page.

An engine's host pool can say which memory ranges make up a page, one Python call and many list
operations at a time. In every pool known, range `j` of page `p` begins at `base[j] + p * stride[j]`
and has the same size for all pages. `PageGeometry.probe` asks the pool about a few pages, works
out the bases and strides, and then checks the answer on other pages; a pool that is not like that
gives None, and its caller keeps asking the pool.

```
page p:   | range 0: size[0] bytes at base[0] + p*stride[0] |
          | range 1: size[1] bytes at base[1] + p*stride[1] |   ... gathered in this order
```
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Addresses = npt.NDArray[np.uint64]
Probe = Callable[[int], tuple[Sequence[int], Sequence[int]]]
"""Page number -> addresses and sizes (bytes) of the page's ranges, in order."""

_CHECKED_PAGES = 16


def part(
    addresses: Addresses, sizes: Addresses, index: int, count: int
) -> tuple[Addresses, Addresses]:
    """Return the `index`-th of `count` equal pieces of every memory range.

    Requires: every size can be divided by `count`.
    """
    if count == 1:
        return addresses, sizes
    pieces = sizes // np.uint64(count)
    return addresses + np.uint64(index) * pieces, pieces


@dataclass(frozen=True)
class PageGeometry:
    """The memory ranges of every page of a pool. Immutable and thread-safe."""

    page_count: int
    bases: Addresses
    """Address of each range of page 0; shape [ranges]."""
    strides: Addresses
    """Bytes from a range of one page to the same range of the next; shape [ranges]."""
    sizes: Addresses
    """Bytes of each range; shape [ranges]."""

    @classmethod
    def probe(
        cls, ask: Probe, page_count: int, spans: Sequence[tuple[int, int]], seed: int = 0
    ) -> PageGeometry | None:
        """Work the geometry out from a pool's own answers, or return None if it is not regular.

        Args:
            ask: gives the ranges of one page; called for about twenty pages.
            page_count: pages 0 to page_count - 1 exist.
            spans: (address, size in bytes) of the pool's buffers. Every range of every page must
                lie in one of them; otherwise None is returned.
            seed: chooses the pages that are checked.
        """
        if page_count < 1:
            return None
        bases, sizes = ask(0)
        if not bases or len(bases) != len(sizes) or min(sizes) < 1:
            return None
        following = (
            ask(1)[0] if page_count > 1 else [a + s for a, s in zip(bases, sizes, strict=True)]
        )
        if len(following) != len(bases):
            return None
        strides = [b - a for a, b in zip(bases, following, strict=True)]
        # Ranges that run backwards or overlap the next page would be another kind of pool.
        if any(stride < size for stride, size in zip(strides, sizes, strict=True)):
            return None
        geometry = cls(
            page_count,
            np.array(bases, dtype=np.uint64),
            np.array(strides, dtype=np.uint64),
            np.array(sizes, dtype=np.uint64),
        )
        chosen = random.Random(seed)
        pages = {page_count - 1} | {
            chosen.randrange(page_count) for _ in range(min(page_count, _CHECKED_PAGES))
        }
        regular = all(geometry._agrees(page, ask) for page in pages)
        return geometry if regular and geometry._inside(spans) else None

    @property
    def range_count(self) -> int:
        """How many memory ranges make up one page."""
        return len(self.sizes)

    @property
    def page_size_bytes(self) -> int:
        """Bytes of one page, all its ranges together."""
        return int(self.sizes.sum())

    def addresses(self, pages: npt.NDArray[np.int64]) -> Addresses:
        """Return the address of every range of the given pages; shape [pages, ranges].

        Raises:
            IndexError: a page number is negative or not smaller than `page_count`.
        """
        if len(pages) and not 0 <= pages.min() <= pages.max() < self.page_count:
            raise IndexError(
                f"pages {pages.min()} to {pages.max()} of a pool of {self.page_count} pages"
            )
        return self.bases + pages.astype(np.uint64)[:, None] * self.strides

    def _agrees(self, page: int, ask: Probe) -> bool:
        addresses, sizes = ask(page)
        expected = self.addresses(np.array([page], dtype=np.int64))[0]
        return bool(list(addresses) == expected.tolist() and list(sizes) == self.sizes.tolist())

    def _inside(self, spans: Sequence[tuple[int, int]]) -> bool:
        last = (self.bases + np.uint64(self.page_count - 1) * self.strides + self.sizes).tolist()
        return all(
            any(start <= first and end <= start + size for start, size in spans)
            for first, end in zip(self.bases.tolist(), last, strict=True)
        )
