"""Addresses by arithmetic are the addresses that SGLang's own pools give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sglang")

from mooncake_hicache.sglang.pools import _probe, is_logical, page_tokens_of, pool_tensors
from tests.sglang import host_pools

small = st.integers(1, 5)
pages_of = st.sampled_from([1, 2, 16, 64])


@st.composite
def pools(draw):
    """A host pool of any kind, layout and shape."""
    kind = draw(st.sampled_from(["mha", "asymmetric", "mla", "dcp", "mamba", "paged", "indexer"]))
    page = draw(pages_of)
    layers = draw(small)
    # SGLang itself cannot build a `page_head` pool of fewer pages than layers.
    tokens = page * draw(st.integers(layers, 12))
    if kind == "mha":
        layout = draw(st.sampled_from(host_pools.MHA_LAYOUTS))
        return host_pools.mha(layout, heads=draw(small), layers=layers, page=page, tokens=tokens)
    if kind == "asymmetric":
        layout = draw(st.sampled_from(["page_first", "page_first_direct"]))
        return host_pools.mha(
            layout, heads=draw(small), v_head_dim=4, layers=layers, page=page, tokens=tokens
        )
    layout = draw(st.sampled_from(host_pools.MLA_LAYOUTS))
    if kind == "mla":
        return host_pools.mla(layout, layers=layers, page=page, tokens=tokens)
    if kind == "dcp":
        return host_pools.mla(layout, layers=layers, page=page, tokens=tokens, dcp=(1, 2))
    if kind == "paged":
        return host_pools.paged(layout, layers=layers, page=page, pages=draw(st.integers(1, 30)))
    layout = draw(st.sampled_from(["page_first", "page_first_direct"]))
    if kind == "mamba":
        return host_pools.mamba(layout, layers=layers, slots=draw(st.integers(2, 30)))
    anchor = host_pools.mla(layout, layers=layers, page=page, tokens=tokens)
    return host_pools.indexer(anchor, layers=layers)


@settings(max_examples=150)
@given(pools(), st.randoms(use_true_random=False))
def test_addresses_are_those_of_the_pool(host, random):
    page_tokens = page_tokens_of(host)
    geometry = _probe(host, page_tokens, pool_tensors(host))
    assert geometry is not None
    slots = getattr(host, "logical_size", host.size)
    assert geometry.page_count == slots // page_tokens
    pages = [random.randrange(geometry.page_count) for _ in range(7)]
    indices = torch.cat([torch.arange(p * page_tokens, (p + 1) * page_tokens) for p in pages])
    addresses, sizes = host.get_page_buffer_meta(indices)
    assert geometry.addresses(np.array(pages)).ravel().tolist() == list(addresses)
    assert geometry.sizes.tolist() * len(pages) == list(sizes)
    assert geometry.page_size_bytes * len(pages) == sum(sizes)


def test_logical_anchor_has_no_memory():
    assert is_logical(host_pools.logical())
    assert not is_logical(host_pools.mha())
    assert not is_logical(host_pools.indexer(host_pools.mla()))


def test_all_tensors_are_kept():
    host = host_pools.mamba()
    kept = {tensor.data_ptr() for tensor in pool_tensors(host)}
    assert kept == {host.temporal_buffer.data_ptr(), *(b.data_ptr() for b in host.conv_buffer)}
