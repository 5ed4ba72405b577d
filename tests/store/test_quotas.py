"""Quotas of tenants on a node: of this process, and one of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mooncake_hicache import Code, Namespace, Store
from tests.processes import end_all_with

MiB = 1 << 20


def page_of(number: int) -> bytes:
    return np.random.default_rng(number).bytes(MiB)


def put(pages: Namespace, first: int, count: int) -> list[Code]:
    keys = [f"page {i}" for i in range(first, first + count)]
    values = [page_of(i) for i in range(first, first + count)]
    return [Code(int(code)) for code in pages.put_batch(keys, values)]


def use_of(store: Store, tenant: str) -> dict[str, Any]:
    node = store.stats()["node"]
    assert node is not None
    return next(one for one in node["tenant_use"] if one["tenant"] == tenant)


def test_a_tenant_that_floods_evicts_only_its_own_pages() -> None:
    with Store.open(in_process=True, pool_size="64MiB", quotas={"flood": "8MiB"}) as store:
        quiet = store.namespace({"model": "m", "tenant": "quiet"})
        flood = store.namespace({"model": "m", "tenant": "flood"})
        assert set(put(quiet, 0, 32)) == {Code.OK}
        for first in range(0, 100, 4):
            assert set(put(flood, first, 4)) == {Code.OK}
            assert use_of(store, "flood")["used_bytes"] <= 8 * MiB
        assert quiet.get_batch([f"page {i}" for i in range(32)]) == [page_of(i) for i in range(32)]
        assert flood.get("page 99") == page_of(99)
        node = store.stats()["node"]
        assert node is not None
        assert node["quota_evicted_pages"] == node["evicted_pages"] == 92


def test_what_is_over_the_quota_is_told() -> None:
    with Store.open(in_process=True, pool_size="64MiB", quotas="small=2MiB,*=4MiB") as store:
        small = store.namespace({"tenant": "small"})
        assert put(small, 0, 3) == [Code.OK, Code.OK, Code.OVER_QUOTA], "reserved together"
        assert [int(c) for c in small.put_batch(["big"], [bytes(3 * MiB)])] == [Code.OVER_QUOTA]
        assert not small.put("big", bytes(3 * MiB))
        # One that is not named has the quota of "*", and without a tenant its own.
        for name in ("other", {"tenant": "two words"}):
            other = store.namespace(name)
            assert put(other, 0, 5) == [Code.OK] * 4 + [Code.OVER_QUOTA]
        assert use_of(store, "other")["limit_bytes"] == 4 * MiB
        assert use_of(store, "two words")["used_bytes"] == 4 * MiB
        node = store.stats()["node"]
        assert node is not None
        assert (node["put_over_quota_pages"], node["put_no_space_pages"]) == (5, 0)


def test_a_started_node_has_the_quotas_of_its_options_and_status_shows_them() -> None:
    with tempfile.TemporaryDirectory(prefix="hicache-quotas-") as name:
        folder = Path(name)
        (folder / "options.toml").write_text('[quotas]\n"acme" = "25%"\n')
        given = {"runtime_dir": name, "pool_size": "64MiB", "ssd": "off"}
        try:
            with Store.open(config=str(folder / "options.toml"), **given) as store:
                pages = store.namespace({"tenant": "acme"})
                for first in range(0, 40, 4):
                    assert set(put(pages, first, 4)) == {Code.OK}
                assert use_of(store, "acme")["used_bytes"] == 16 * MiB
                done = subprocess.run(
                    [sys.executable, "-m", "mooncake_hicache", "status", f"--runtime-dir={name}"],
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=60,
                )
                assert re.search(
                    r"quota +16\S* MiB of 16\S* MiB .* 16 pages: tenant acme", done.stdout
                )
        finally:
            end_all_with(name)
