"""Objects of `mooncake.store` that memory has no room for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mooncake_hicache.compat.store import MooncakeDistributedStore
from tests.compat.store.stores import MiB, machine

COUNT = 96
SIZE = 4 * MiB


def test_what_was_put_faster_than_the_ssd_writes_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONCAKE_HICACHE_SSD", f"{tmp_path}=1GiB")
    values = [os.urandom(SIZE) for _ in range(COUNT)]
    with machine():
        store = MooncakeDistributedStore()
        setup = {"local_hostname": "localhost", "enable_standalone": True}
        assert store.setup({**setup, "global_segment_size": 64 * MiB}) == 0
        try:
            assert [store.put(str(i), value) for i, value in enumerate(values)] == [0] * COUNT
            found = sum(store.get(str(i)) == value for i, value in enumerate(values))
            assert found == COUNT
        finally:
            store.close()
