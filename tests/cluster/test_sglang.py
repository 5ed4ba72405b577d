"""Two real engines on two machines: what one has computed the other reads, and answers the same."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sglang")

from tests.cluster.nodes import Cluster
from tests.serving.server import HICACHE_ARGS, Server

pytestmark = [pytest.mark.serving, pytest.mark.timeout(900)]

THRESHOLD = ["--hicache-storage-backend-extra-config", json.dumps({"prefetch_threshold": 16})]
PROMPT = [(7 * i) % 250 for i in range(400)]
CACHED = 384  # All full pages but for the last token.


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_engine_hits_what_another_machines_engine_has_computed(
    cluster: Cluster, ranks: int
) -> None:
    args = [*HICACHE_ARGS, *THRESHOLD, "--tp", str(ranks)]
    with Server("cluster-a", args, cluster.environment("a", autostart="0")) as server:
        first = server.generate(PROMPT)
        assert first.cached_tokens == 0
        server.flush()
    with Server("cluster-b", args, cluster.environment("b", autostart="0")) as server:
        again = server.generate(PROMPT)
        assert again.tokens == first.tokens
        assert again.details["storage"] == CACHED
        with cluster.store("b") as store:
            stats = store.stats()["node"]
            assert stats is not None
            assert stats["remote_fetched_pages"] >= ranks * CACHED // 16
            assert stats["remote_corrupt_pages"] == 0
        other = [(11 * i + 3) % 250 for i in range(400)]
        alone = server.generate(other)
        assert alone.cached_tokens == 0
