"""What vLLM's MooncakeConnector does with the engine, call by call.

vLLM itself is not driven: its worker wants a GPU, and a model's configuration. Replayed is the use
that vllm/distributed/kv_transfer/kv_connector/v1/mooncake/mooncake_connector.py of 0.33 makes of
`mooncake.engine`: five methods, from the sender's pool of ten threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np

from mooncake_hicache.compat.engine import TransferEngine
from tests.compat.processes import Program

LAYERS, PAGES, PAGE_SIZE, SENDERS = 8, 64, 16 * 1024, 10

CONSUMER = f"""
import numpy as np
from mooncake.engine import TransferEngine

engine = TransferEngine()
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "rdma", "") == 0
caches = [np.zeros(({PAGES}, {PAGE_SIZE}), np.uint8) for _ in range({LAYERS})]
bases = [cache.ctypes.data for cache in caches]
sizes = [cache.nbytes for cache in caches]
assert engine.batch_register_memory(bases, sizes) == 0
say("127.0.0.1", engine.get_rpc_port(), bases)
while (asked := hear()) is not None:
    if asked[0] == "pages":
        say([[int(cache[page].min()), int(cache[page].max())]
             for cache in caches for page in asked[1]])
    elif asked[0] == "sleep":
        assert engine.batch_unregister_memory(bases) == 0
        say()
    elif asked[0] == "wake":
        assert engine.batch_register_memory(bases, sizes) == 0
        say()
"""


def runs(local: list[int], remote: list[int]) -> list[tuple[int, int, int]]:
    """Pages that follow each other at both ends are sent as one: (local, remote, count)."""
    pairs = list(zip(local, remote, strict=True))
    groups = groupby(enumerate(pairs), lambda item: (item[1][0] - item[0], item[1][1] - item[0]))
    found = []
    for _, group in groups:
        members = [pair for _, pair in group]
        found.append((*members[0], len(members)))
    return found


def test_a_producer_sends_pages_of_all_layers_from_ten_threads() -> None:
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "rdma", "") == 0
    caches = [
        np.repeat(np.arange(PAGES, dtype=np.uint8) + layer, PAGE_SIZE).reshape(PAGES, PAGE_SIZE)
        for layer in range(LAYERS)
    ]
    bases = [cache.ctypes.data for cache in caches]
    assert engine.batch_register_memory(bases, [cache.nbytes for cache in caches]) == 0
    with Program(CONSUMER) as consumer, ThreadPoolExecutor(SENDERS) as senders:
        host, port, remote_bases = consumer.hear()

        def send(local: list[int], remote: list[int]) -> int:
            pieces = [
                (
                    ours + begin * PAGE_SIZE,
                    theirs + remote_begin * PAGE_SIZE,
                    count * PAGE_SIZE,
                )
                for ours, theirs in zip(bases, remote_bases, strict=True)
                for begin, remote_begin, count in runs(local, remote)
            ]
            sources, targets, sizes = (list(column) for column in zip(*pieces, strict=True))
            return engine.batch_transfer_sync_write(f"{host}:{port}", sources, targets, sizes)

        # A request each: pages that follow each other, and pages that do not.
        random = np.random.default_rng(7)
        there = random.permutation(PAGES).tolist()
        here = sorted(range(PAGES), key=lambda page: page % 7)
        requests = [(here[i : i + 4], there[i : i + 4]) for i in range(0, PAGES, 4)]
        assert list(senders.map(lambda request: send(*request), requests)) == [0] * len(requests)
        consumer.say("pages", there)
        expected = [[page + layer] * 2 for layer in range(LAYERS) for page in here]
        assert consumer.hear()[0] == expected

        # While it sleeps its memory is gone; what is sent then fails, and works again afterwards.
        consumer.say("sleep")
        consumer.hear()
        assert send([0], [0]) < 0
        consumer.say("wake")
        consumer.hear()
        assert send([5, 6], [0, 1]) == 0
        consumer.say("pages", [0, 1])
        assert consumer.hear()[0][:2] == [[5, 5], [6, 6]]
    engine.close()
