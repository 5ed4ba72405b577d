"""`BufferPool`: memory is lent to one at a time, within the limits, and used again."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from mooncake_hicache.compat.store import BufferLease, BufferPool, MooncakeDistributedStore
from tests.compat.store.stores import machine, opened, running_master

KiB = 1024


@pytest.fixture(scope="module")
def store() -> Iterator[MooncakeDistributedStore]:
    with machine() as folder, running_master(folder) as master, opened(master) as store:
        yield store


def test_objects_go_through_lent_memory(store: MooncakeDistributedStore) -> None:
    pool = BufferPool(store)
    with pool.acquire(100) as lease:
        assert (lease.size, len(lease.buffer)) == (100, 100)
        assert lease.ptr % 8388608 == 0
        lease.buffer[:] = b"x" * 100
        assert store.put_from("k", lease.ptr, lease.size) == 0
        # It is registered already.
        assert store.register_buffer(lease.ptr, 100) == -600
    with pool.buffer(200) as lease:
        assert store.get_into("k", lease.ptr, lease.size) == 100
        assert lease.buffer[:100] == b"x" * 100
    for ask in (lambda: lease.ptr, lambda: lease.buffer):
        with pytest.raises(RuntimeError, match="released"):
            ask()
    lease.release()
    pool.close()
    assert store._registered == {}


def test_memory_is_used_again_but_not_while_there_are_views(
    store: MooncakeDistributedStore,
) -> None:
    pool = BufferPool(store, max_bytes=64 * KiB)
    lease = pool.acquire(10)
    address = lease.ptr
    views = [np.frombuffer(lease.buffer, np.uint8), memoryview(lease.buffer), lease.buffer]
    while views:
        view = views.pop()
        with pytest.raises(RuntimeError, match="exported views"):
            lease.release()
        assert lease.ptr == address
        del view
    lease.release()
    with pool.acquire(60000) as again:
        assert again.ptr == address
    # Who forgets to release, but keeps a view, keeps the memory; then it comes back by itself.
    view = memoryview(pool.acquire(10).buffer)
    with pytest.raises(RuntimeError, match="exhausted"):
        pool.acquire(10, block=False)
    del view
    with pool.acquire(10, block=False) as again:
        assert again.ptr == address
    pool.close()


def test_limits(store: MooncakeDistributedStore) -> None:
    pool = BufferPool(store, max_bytes=256 * KiB, default_timeout=0.05)
    with pytest.raises(RuntimeError, match="capacity: max_bytes"):
        pool.acquire(256 * KiB + 1)
    leases = [pool.acquire(64 * KiB) for _ in range(4)]
    for given in ({"block": False}, {}, {"timeout": 0.01}):
        with pytest.raises(RuntimeError, match="exhausted"):
            pool.acquire(1, **given)
    with pytest.raises(RuntimeError, match="4 active leases"):
        pool.close()
    for lease in leases:
        lease.release()
    with pool.acquire(256 * KiB):  # Free pieces of another size make room.
        pass
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.acquire(1)
    one = BufferPool(store, max_regions=1, prewarm_size=1, prewarm_count=3)
    assert len(one._free) == 1
    with one.acquire(1), pytest.raises(RuntimeError, match="exhausted"):
        one.acquire(1, block=False)
    one.close()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"min_size_class": 0}, RuntimeError),
        ({"alignment": 24}, RuntimeError),
        ({"max_bytes": -1}, TypeError),
        ({"max_regions": 0}, TypeError),
    ],
)
def test_what_makes_no_sense_is_refused(
    store: MooncakeDistributedStore, given: dict[str, int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        BufferPool(store, **given)
    with pytest.raises(RuntimeError, match="set up"):
        BufferPool(MooncakeDistributedStore())
    with pytest.raises(TypeError):
        BufferPool(store).acquire(-1)


def test_threads_never_share_a_piece(store: MooncakeDistributedStore) -> None:
    pool = BufferPool(store, max_bytes=512 * KiB, alignment=4096)
    shared: list[int] = []

    def work(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(200):
            lease: BufferLease = pool.acquire(choice.randrange(1, 200 * KiB))
            lease.buffer[:] = bytes([seed]) * lease.size
            if set(lease.buffer[::997]) != {seed} or lease.buffer[-1] != seed:
                shared.append(seed)
            lease.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert shared == []
    pool.close()
