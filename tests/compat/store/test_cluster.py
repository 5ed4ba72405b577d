"""What the calls that list and remove make of objects on other machines' nodes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from unittest import mock

import pytest

from mooncake_hicache.compat.store import MooncakeDistributedStore
from mooncake_hicache.errors import UnavailableError
from tests.compat.store.stores import machine, opened
from tests.processes import freeze, wait_for

ANSWER_S_MAX = 8.0  # Calls return within 1 s; the rest is for a machine with other work.


@pytest.fixture
def stores(master: str) -> Iterator[list[MooncakeDistributedStore]]:
    """Three of one cluster, each with a node of its own."""
    with contextlib.ExitStack() as stack:
        started = []
        for name in ("one", "two", "three"):
            stack.enter_context(machine())
            named = {"MOONCAKE_HICACHE_NODE_NAME": name}
            stack.enter_context(mock.patch.dict(os.environ, named))
            started.append(stack.enter_context(opened(master)))
        yield started


def put_all(stores: list[MooncakeDistributedStore]) -> list[str]:
    """Give each store's node objects of its own; return the keys once all nodes find all."""
    keys = []
    for number, store in enumerate(stores):
        for i in range(20):
            keys.append(f"{number}/{i}")
            assert store.put(keys[-1], b"value of " + keys[-1].encode()) == 0
    for store in stores:
        wait_for("all", lambda asks=store: asks.batch_is_exist(keys) == [1] * len(keys))
    return sorted(keys)


def listed(store: MooncakeDistributedStore) -> list[str] | None:
    """Its keys; None while some node is left alone."""
    try:
        return store.get_all_keys()
    except UnavailableError:
        return None


def process_of(store: MooncakeDistributedStore) -> int:
    return int(store.stats()["node"]["pid"])


def test_keys_are_those_of_all_nodes(stores: list[MooncakeDistributedStore]) -> None:
    keys = put_all(stores)
    assert stores[0].get("2/3") == b"value of 2/3", "now there are two of it"
    long = "long " + "x" * 3000
    assert stores[1].put(long, b"1") == 0
    for store in stores:
        wait_for("the long one", lambda asks=store: asks.is_exist(long) == 1)
        assert store.get_all_keys() == sorted([*keys, long])
    assert stores[2].remove_by_regex("^[01]/1") == 22
    left = sorted([long, *(key for key in keys if not key.startswith(("0/1", "1/1")))])
    for store in stores:
        assert store.get_all_keys() == left
        wait_for("the master to hear of it", lambda asks=store: asks.is_exist("0/10") == 0)
    assert stores[0].remove_by_regex("") == len(left)
    assert [store.get_all_keys() for store in stores] == [[], [], []]


def test_a_node_that_does_not_answer_is_not_passed_over(
    stores: list[MooncakeDistributedStore],
) -> None:
    keys = put_all(stores)
    stopped = process_of(stores[1])
    freeze(stopped)
    began = time.monotonic()
    try:
        with pytest.raises(UnavailableError, match="did not answer"):
            stores[0].get_all_keys()
        assert stores[0].batch_remove(["1/1", "0/1", "2/1"]) == [-900, 0, 0]
        assert stores[2].remove_by_regex("^[12]/2$") == -900
        assert time.monotonic() - began < ANSWER_S_MAX
    finally:
        os.kill(stopped, signal.SIGCONT)
    kept = [key for key in keys if key not in ("0/1", "1/1", "2/1", "1/2", "2/2")]

    def are_gone() -> bool:
        codes = stores[0].batch_remove(["0/1", "1/1", "2/1", "1/2", "2/2"])
        return set(codes) == {-704}

    wait_for("the removals to be confirmed", are_gone)
    for store in stores:
        wait_for("all to ask it again", lambda asks=store: listed(asks) == kept)
