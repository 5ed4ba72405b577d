"""Random calls of several stores at once come to what a dict says, also when one of them is killed.

Each store writes keys of its own and reads everybody's: what is read is what was put under that
key, or nothing where it may have been evicted; here nothing is, so that it must be there.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from mooncake_hicache.compat.store import MooncakeDistributedStore
from tests.compat.processes import Program
from tests.compat.store.stores import MiB, address_of, machine, noise, opened, running_master

SEED = int(os.environ.get("HICACHE_SEED", "1"))
THREADS, STEPS, KEYS = 3, 250, 40
SIZE_MAX = 70_000

WRITER = """
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("localhost", "P2PHANDSHAKE", 1 << 26, 1 << 24, "tcp", "", MASTER) == 0
say("ready")
number = 0
while True:
    size = 1 + number * 7919 % 300_000
    store.upsert(f"killed {number % 8}", number.to_bytes(8, "little") * (size // 8 + 1))
    number += 1
    if number == 50:
        say("writes")
"""


@pytest.fixture(scope="module")
def master() -> Iterator[str]:
    with machine() as folder, running_master(folder) as address:
        yield address


def value_of(draw: random.Random) -> bytes:
    """A value that can be told from any other by its first bytes."""
    size = draw.choice([1, 63, 64, 65, draw.randrange(1, SIZE_MAX)])
    return noise(size, draw.randrange(1 << 30)).tobytes()


class Walk:
    """One store's random calls, and the dict that knows what they come to."""

    def __init__(self, store: MooncakeDistributedStore, name: str, seed: int) -> None:
        self.store, self.name = store, name
        self.draw = random.Random(seed)
        self.known: dict[str, bytes] = {}
        self.target = np.zeros(SIZE_MAX, np.uint8)

    def step(self) -> None:
        getattr(self, self.draw.choice(self.STEPS))()

    STEPS = (
        "put",
        "upsert",
        "get",
        "get_batch",
        "get_into",
        "exists",
        "remove",
        "put_from",
        "ranges",
        "regex",
    )

    def key(self) -> str:
        return f"{self.name} {self.draw.randrange(KEYS)}"

    def keys(self) -> list[str]:
        return [self.key() for _ in range(self.draw.randrange(1, 9))]

    def put(self) -> None:
        key, value = self.key(), value_of(self.draw)
        assert self.store.put(key, value) == 0
        self.known.setdefault(key, value)

    def upsert(self) -> None:
        key, value = self.key(), value_of(self.draw)
        cut = self.draw.randrange(len(value) + 1)
        assert self.store.upsert_parts(key, value[:cut], value[cut:]) == 0
        self.known[key] = value

    def put_from(self) -> None:
        keys = list(dict.fromkeys(self.keys()))
        arrays = [np.frombuffer(value_of(self.draw), np.uint8) for _ in keys]
        codes = self.store.batch_put_from(
            keys, [address_of(array) for array in arrays], [len(array) for array in arrays]
        )
        assert codes == [0] * len(keys)
        for key, array in zip(keys, arrays, strict=True):
            self.known.setdefault(key, array.tobytes())

    def get(self) -> None:
        key = self.key()
        assert self.store.get(key) == self.known.get(key, b"")
        size = len(self.known[key]) if key in self.known else -704
        assert self.store.get_size(key) == size

    def get_batch(self) -> None:
        keys = self.keys()
        assert self.store.get_batch(keys) == [self.known.get(key, b"") for key in keys]

    def get_into(self) -> None:
        key = self.key()
        room = self.draw.randrange(1, SIZE_MAX)
        self.target[:] = 0
        found = self.store.get_into(key, address_of(self.target), room)
        value = self.known.get(key)
        if value is None:
            assert found == -704
        elif len(value) > room:
            assert found == -600
        else:
            assert found == len(value)
            assert self.target[:found].tobytes() == value
        assert not self.target[room:].any()

    def exists(self) -> None:
        keys = self.keys()
        assert self.store.batch_is_exist(keys) == [int(key in self.known) for key in keys]

    def remove(self) -> None:
        key = self.key()
        assert self.store.remove(key) == (0 if self.known.pop(key, None) is not None else -704)

    def regex(self) -> None:
        digit = self.draw.randrange(10)
        ours = [key for key in self.known if key.endswith(f" 1{digit}")]
        assert self.store.remove_by_regex(f"^{self.name} 1{digit}$") == len(ours)
        for key in ours:
            del self.known[key]

    def ranges(self) -> None:
        key = self.key()
        value = self.known.get(key)
        offset = self.draw.randrange(SIZE_MAX)
        size = self.draw.randrange(SIZE_MAX - offset)
        found = self.store.get_into_ranges(
            [address_of(self.target)], [[key]], [[[0]]], [[[offset]]], [[[size]]]
        )[0][0][0]
        if value is None:
            assert found == -704
        elif offset + size > len(value):
            assert found == -600
        else:
            assert found == size
            assert self.target[:size].tobytes() == value[offset : offset + size]


def test_stores_at_once_come_to_what_a_dict_says(master: str) -> None:
    failures: list[BaseException] = []

    def walk(number: int) -> None:
        try:
            with opened(master) as store:
                walker = Walk(store, f"walk {SEED} {number}", SEED * 1000 + number)
                for _ in range(STEPS):
                    walker.step()
                listed = {key for key in store.get_all_keys() if key.startswith(walker.name + " ")}
                assert listed == set(walker.known)
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=walk, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_a_store_that_is_killed_leaves_whole_objects_only(master: str) -> None:
    with opened(master) as store:
        for _ in range(3):
            with Program(f"MASTER = {master!r}\n" + WRITER) as writer:
                assert writer.hear() == ["ready"]
                assert writer.hear() == ["writes"]  # Now it is killed, somewhere in a write.
            for key in [f"killed {number}" for number in range(8)]:
                value = store.get(key)
                assert value, key
                number = int.from_bytes(value[:8], "little")
                size = 1 + number * 7919 % 300_000
                assert f"killed {number % 8}" == key
                assert value == number.to_bytes(8, "little") * (size // 8 + 1)
            # Its place is free again: as much as ever fits.
            assert [store.put(f"after {i}", bytes(1 * MiB)) for i in range(70)] == [0] * 70
            assert store.remove_by_regex("^after ") > 0
