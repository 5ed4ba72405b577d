"""Ranks of two machines share pages: whose pages are whose, with the pools of real models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("sglang")

from tests.cluster.nodes import Cluster
from tests.sglang import host_pools
from tests.sglang.backends import (
    Backend,
    config,
    fill,
    keys,
    open_backend,
    page_bytes,
    slots,
    until,
)

PAGES = [3, 4, 7, 9]


@contextmanager
def engine_on(cluster: Cluster, machine: str, host: Any, **rank: Any) -> Iterator[Backend]:
    """The storage backend of one rank of an engine on a machine."""
    with mock.patch.dict(os.environ, cluster.environment(machine, autostart="0")):
        backend = open_backend(host, config(**rank))
    try:
        yield backend
    finally:
        backend.close()


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param([{"tp_size": 2, "tp_rank": rank} for rank in range(2)], id="tp"),
        pytest.param([{"pp_size": 2, "pp_rank": rank} for rank in range(2)], id="pp"),
    ],
)
def test_each_rank_finds_its_own_pages_on_the_other_machine(
    cluster: Cluster, ranks: list[dict[str, Any]]
) -> None:
    names = keys(len(PAGES))
    written = []
    for number, rank in enumerate(ranks):
        host = host_pools.mha()
        fill(host, number)
        written.append(page_bytes(host, PAGES))
        with engine_on(cluster, "a", host, model_name="shared", **rank) as backend:
            assert backend.batch_set_v1(names, slots(host, PAGES)) == [True] * len(PAGES)
    for number, rank in enumerate(ranks):
        host = host_pools.mha()
        fill(host, 100 + number)
        with engine_on(cluster, "b", host, model_name="shared", **rank) as backend:
            until(lambda reader=backend: reader.batch_exists(names) == len(PAGES), 30)
            assert backend.batch_get_v1(names, slots(host, PAGES)) == [True] * len(PAGES)
            assert page_bytes(host, PAGES) == written[number]


def test_all_ranks_read_the_one_copy_of_a_compressed_page(cluster: Cluster) -> None:
    """With MLA every rank has the same bytes: the first writes them, and each rank finds them."""
    names = keys(len(PAGES))
    host = host_pools.mla()
    fill(host, 1)
    shape = {"is_mla_model": True, "tp_size": 4, "model_name": "compressed"}
    with engine_on(cluster, "a", host, tp_rank=0, **shape) as backend:
        assert backend.batch_set_v1(names, slots(host, PAGES)) == [True] * len(PAGES)
    for rank in range(4):
        other = host_pools.mla()
        fill(other, 50 + rank)
        with engine_on(cluster, "b", other, tp_rank=rank, **shape) as backend:
            until(lambda reader=backend: reader.batch_exists(names) == len(PAGES), 30)
            assert backend.batch_get_v1(names, slots(other, PAGES)) == [True] * len(PAGES)
            assert page_bytes(other, PAGES) == page_bytes(host, PAGES)
