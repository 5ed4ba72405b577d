"""Restorable prefixes against a slow, obvious oracle."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mooncake_hicache.sglang.lookup import contiguous_prefixes, leading, trailing_windows

flags = st.lists(st.booleans(), max_size=40)


@given(flags)
def test_leading_stops_at_the_first_gap(found):
    expected = next((i for i, flag in enumerate(found) if not flag), len(found))
    assert leading(np.array(found, dtype=bool)) == expected


@given(flags)
def test_contiguous_prefix_needs_every_page(found):
    expected = [all(found[:length]) for length in range(1, len(found) + 1)]
    assert contiguous_prefixes(np.array(found, dtype=bool)).tolist() == expected


@given(flags, st.integers(0, 50))
def test_trailing_window_needs_its_last_pages(found, window):
    span = max(1, window)
    expected = [all(found[max(0, length - span) : length]) for length in range(1, len(found) + 1)]
    assert trailing_windows(np.array(found, dtype=bool), window).tolist() == expected
