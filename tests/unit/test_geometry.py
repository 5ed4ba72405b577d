"""Geometry of pages: regular pools are recognised, irregular ones are not taken for regular."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_hicache.pages.geometry import PageGeometry, part

BASE = 1 << 40


def regular(ranges: int, size: int, gap: int, pages: int):
    """A pool of `ranges` buffers, with `gap` bytes between pages."""
    stride = size + gap
    bases = [BASE + i * (stride * pages + 4096) for i in range(ranges)]

    def ask(page):
        return [base + page * stride for base in bases], [size] * ranges

    return ask, [(base, stride * pages) for base in bases]


@given(st.integers(1, 9), st.integers(1, 1 << 22), st.integers(0, 512), st.integers(1, 5000))
def test_regular_pool_is_recognised(ranges, size, gap, pages):
    ask, spans = regular(ranges, size, gap, pages)
    geometry = PageGeometry.probe(ask, pages, spans)
    assert geometry is not None
    assert (geometry.range_count, geometry.page_size_bytes) == (ranges, ranges * size)
    for page in {0, pages // 2, pages - 1}:
        assert geometry.addresses(np.array([page])).tolist() == [ask(page)[0]]


def test_pool_that_leaves_its_buffers_is_refused():
    ask, spans = regular(2, 100, 0, 50)
    assert PageGeometry.probe(ask, 51, spans) is None
    assert PageGeometry.probe(ask, 50, spans[:1]) is None
    assert PageGeometry.probe(ask, 50, []) is None


def test_pool_whose_pages_move_is_refused():
    order = list(range(64))
    order[2:] = reversed(order[2:])
    ask, spans = regular(1, 100, 0, 64)
    assert PageGeometry.probe(lambda page: ask(order[page]), 64, spans) is None


def test_pool_whose_pages_differ_in_size_is_refused():
    ask, spans = regular(1, 100, 0, 64)
    assert PageGeometry.probe(lambda p: (ask(p)[0], [100 - (p == 63)]), 64, spans) is None


def test_pool_that_overlaps_or_runs_backwards_is_refused():
    spans = [(BASE - 10**6, 2 * 10**6)]
    assert PageGeometry.probe(lambda p: ([BASE + p * 50], [100]), 64, spans) is None
    assert PageGeometry.probe(lambda p: ([BASE - p * 100], [100]), 64, spans) is None


def test_pool_without_pages_is_refused():
    assert PageGeometry.probe(lambda _: ([], []), 0, []) is None
    assert PageGeometry.probe(lambda _: ([], []), 4, []) is None


@pytest.mark.parametrize("pages", [[-1], [50], [0, 49, 50]])
def test_page_outside_the_pool_is_refused(pages):
    ask, spans = regular(1, 100, 0, 50)
    geometry = PageGeometry.probe(ask, 50, spans)
    assert geometry is not None
    with pytest.raises(IndexError):
        geometry.addresses(np.array(pages))


def test_no_pages_have_no_addresses():
    ask, spans = regular(3, 100, 0, 50)
    geometry = PageGeometry.probe(ask, 50, spans)
    assert geometry is not None
    assert geometry.addresses(np.array([], dtype=np.int64)).shape == (0, 3)


def test_parts_put_together_are_the_page():
    addresses = np.array([[1000, 5000], [2000, 6000]], dtype=np.uint64)
    sizes = np.array([90, 30], dtype=np.uint64)
    covered = set()
    for index in range(3):
        places, lengths = part(addresses, sizes, index, 3)
        for first, length in zip(places[1].tolist(), lengths.tolist(), strict=True):
            covered |= set(range(first, first + length))
    assert covered == {*range(2000, 2090), *range(6000, 6030)}
    assert part(addresses, sizes, 0, 1) == (addresses, sizes)
