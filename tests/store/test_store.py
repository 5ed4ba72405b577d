"""The public API on a node in this process: what each call promises."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import hashlib
import mmap
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooncake_hicache import Code, Namespace, Store, StoreOptions
from mooncake_hicache.errors import ClosedError, InvalidArgumentError, NoSpaceError, TransientError

POOL_SIZE_BYTES = 64 << 20


def key_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def page_of(number: int, size: int = 100_000) -> bytes:
    return np.random.default_rng(number).bytes(size)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open(in_process=True, pool_size=POOL_SIZE_BYTES) as opened:
        yield opened


@pytest.fixture
def pages(store: Store) -> Namespace:
    return store.namespace({"model": "test", "dtype": "bfloat16"})


# ---- one page


@pytest.mark.parametrize("size", [1, 31, 4096, 65_537, 9 << 20])
def test_a_page_comes_back_as_it_was(pages: Namespace, size: int) -> None:
    page = page_of(size, size)
    assert pages.get("page") is None
    assert pages.put("page", page)
    assert pages.exists("page")
    assert pages.get("page") == page


def test_a_page_stays_as_it_was_unless_replaced(pages: Namespace) -> None:
    assert pages.put("page", b"first")
    assert pages.put("page", b"second")
    assert pages.get("page") == b"first"
    assert pages.put("page", b"third", replace=True)
    assert pages.get("page") == b"third"


def test_every_form_of_key_names_one_page(pages: Namespace) -> None:
    key = key_of(1)
    assert pages.put(key, b"x")
    assert pages.get(key.hex()) == b"x"
    assert pages.get(key.hex().upper()) == b"x"
    assert pages.exists_batch(key).tolist() == [True]
    assert pages.exists_batch([key.hex()]).tolist() == [True]
    assert pages.exists_batch(np.frombuffer(key, np.uint8)).tolist() == [True]
    assert pages.put("name", b"by name")
    assert pages.get("name") == b"by name"
    assert pages.get(b"name") is None, "text and bytes are different names"
    spaced = "ab " * 21 + "a"
    assert len(spaced) == 64
    assert pages.put(spaced, b"not hexadecimal")
    assert pages.get_batch([spaced, key]) == [b"not hexadecimal", b"x"]


def test_a_page_of_another_size_is_a_miss(store: Store, pages: Namespace) -> None:
    assert pages.put("page", b"12345678")
    for size in (1, 7, 9, 16):
        assert pages.get_into("page", bytearray(size)) is None
    target = bytearray(8)
    assert pages.get_into("page", target) == 8
    assert target == b"12345678"
    assert store.stats()["client"]["foreign_size_pages"] == 4


def test_gather_and_scatter(pages: Namespace) -> None:
    assert pages.put("page", [b"ab", bytearray(b"cde"), np.frombuffer(b"f", np.uint8)])
    assert pages.get("page") == b"abcdef"
    head, tail = bytearray(4), np.zeros(2, np.uint8)
    assert pages.get_into("page", [head, tail]) == 6
    assert (head, tail.tobytes()) == (b"abcd", b"ef")


def test_time_to_live(pages: Namespace) -> None:
    assert pages.put("page", b"x", ttl_ms=150)
    assert pages.exists("page")
    deadline = time.monotonic() + 10
    while pages.exists("page"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert pages.get("page") is None


def test_remove_and_clear_touch_nothing_else(store: Store, pages: Namespace) -> None:
    other = store.namespace("other")
    for space in (pages, other):
        assert (space.put_batch(["a", "b", "c"], [b"1", b"2", b"3"]) == Code.OK).all()
    assert pages.remove("a")
    assert not pages.remove("a")
    assert pages.remove_batch(["a", "b"]).tolist() == [Code.NOT_FOUND, Code.OK]
    assert pages.clear() == 1
    assert pages.clear() == 0
    assert other.exists_batch(["a", "b", "c"]).all()


def test_namespaces_that_differ_in_anything_share_nothing(store: Store) -> None:
    first = store.namespace({"model": "m", "layers": 3})
    assert first.put("page", b"x")
    for description in (
        {"model": "m", "layers": "3"},
        {"model": "m", "layers": 3, "tp": None},
        {"model": "m", "layers": True},
        "m",
    ):
        assert store.namespace(description).get("page") is None, description
    same = store.namespace({"layers": 3, "model": "m"})
    assert same.get("page") == b"x"
    assert same.digest == first.digest
    assert "layers=3" in first.description


# ---- many pages


def test_batches(pages: Namespace) -> None:
    keys = [key_of(n) for n in range(64)]
    values = [page_of(n, 1000 + n) for n in range(64)]
    assert (pages.put_batch(keys, values, chained=True) == Code.OK).all()
    assert (pages.put_batch(keys, values) == Code.ALREADY_EXISTS).all()
    assert pages.get_batch([*keys, key_of(99)]) == [*values, None]
    targets = [bytearray(1000 + n) for n in range(64)]
    assert (pages.get_batch_into(b"".join(keys), targets) == Code.OK).all()
    assert targets == values
    found = pages.exists_batch([*keys, key_of(99)])
    assert found.dtype == np.bool_
    assert found.tolist() == [True] * 64 + [False]


def test_prefix_length_ends_at_the_first_gap(pages: Namespace) -> None:
    keys = [key_of(n) for n in range(10)]
    assert pages.prefix_length(keys) == 0
    assert pages.prefix_length([]) == 0
    pages.put_batch(keys[:4], [b"x"] * 4, chained=True)
    pages.put_batch(keys[6:], [b"x"] * 4)
    assert pages.prefix_length(keys) == 4
    assert pages.prefix_length(keys[:4]) == 4
    assert pages.prefix_length(keys[6:], lease=False) == 4
    codes = pages.lookup(keys, lease=False, prefix=False)
    assert codes.tolist() == [Code.OK] * 4 + [Code.NOT_FOUND] * 2 + [Code.OK] * 4


def test_addresses(pages: Namespace) -> None:
    """Pages of two pieces in one pool of memory, as an engine has them."""
    memory = np.random.default_rng(5).integers(0, 256, (8, 2, 4096), np.uint8)
    base, step = memory.ctypes.data, 4096
    addresses = [[base + (2 * n) * step, base + (2 * n + 1) * step] for n in range(8)]
    keys = [key_of(n).hex() for n in range(8)]
    assert (pages.put_from(keys, addresses, [4096, 4096]) == Code.OK).all()
    wanted = memory.copy()
    memory[:] = 0
    assert (pages.get_into_addresses(keys, addresses, [4096, 4096]) == Code.OK).all()
    assert (memory == wanted).all()


def test_empty_batches_are_nothing(pages: Namespace) -> None:
    assert len(pages.put_batch([], [])) == 0
    assert pages.get_batch([]) == []
    assert len(pages.exists_batch([])) == 0
    assert len(pages.remove_batch(b"")) == 0


def test_misuse_is_named(store: Store, pages: Namespace) -> None:
    with pytest.raises(InvalidArgumentError, match="2 keys, 1 value: give one value per key"):
        pages.put_batch(["a", "b"], [b"x"])
    with pytest.raises(InvalidArgumentError, match="1 key, 2 buffers"):
        pages.get_batch_into(key_of(1), [bytearray(1), bytearray(1)])
    with pytest.raises(InvalidArgumentError, match="the pages are a bytes"):
        pages.put_batch(["a"], b"x")
    with pytest.raises(InvalidArgumentError, match="firm"):
        pages.put("a", b"x", pin="firm")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="firm"):
        pages.pin(["a"], "firm")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="read-only"):
        pages.get_into("a", b"fixed")
    with pytest.raises(InvalidArgumentError):
        pages.exists_batch(b"too short")
    with pytest.raises(InvalidArgumentError, match="float"):
        store.namespace({"rate": 0.5})
    with pytest.raises(InvalidArgumentError, match="wait_ms"):
        Store.open(in_process=True, wait_ms=-1)
    with pytest.raises(InvalidArgumentError, match="lone surrogate"):
        store.namespace("half \ud800")
    with pytest.raises(InvalidArgumentError, match="lone surrogate"):
        store.namespace({"half": "\ud800"})
    with pytest.raises(InvalidArgumentError, match="pool_size"):
        Store.open(in_process=True, poolsize="1GB")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("page", "keys is a str"),
        (key_of(1).hex(), "keys is a str"),
        (5, "keys is an int"),
        (None, "keys is None"),
        ({"page"}, "keys is a set"),
        ({"page": 1}, "keys is a dict"),
        ((name for name in ["page"]), "keys is a generator"),
        (np.zeros(32), "array of float64"),
        (np.zeros(31, np.uint8), r"uint8 of shape \(31,\)"),
        (np.array([key_of(1).hex()]), "array of <U64"),
        (b"too short", "9 bytes"),
        ([1], r"keys\[0\] is an int"),
        ([key_of(1), "page", None], r"keys\[2\] is None"),
    ],
)
def test_what_is_no_list_of_keys_is_named(pages: Namespace, keys: Any, told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        pages.exists_batch(keys)


def test_what_is_no_key_is_named(pages: Namespace) -> None:
    wrong: Any = 5
    for call in (
        lambda: pages.get(wrong),
        lambda: pages.put(wrong, b"x"),
        lambda: pages.get_into(wrong, bytearray(1)),
        lambda: pages.exists(wrong),
        lambda: pages.remove(wrong),
    ):
        with pytest.raises(InvalidArgumentError, match="key is an int"):
            call()
    with pytest.raises(InvalidArgumentError, match="parent is an int"):
        pages.put("a", b"x", parent=wrong)


def test_half_a_character_in_a_key_is_a_name_like_any(pages: Namespace) -> None:
    keys = ["\ud800" + 63 * "a", "\ud800"]
    assert (pages.put_batch(keys, [b"x", b"y"]) == Code.OK).all()
    assert pages.get_batch(keys) == [b"x", b"y"]


@pytest.mark.parametrize("ttl_ms", [-1, 1.5, "1", None, True, 2**64])
def test_a_wrong_time_to_live_is_named(pages: Namespace, ttl_ms: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"ttl_ms {ttl_ms!r}: .*milliseconds"):
        pages.put("page", b"x", ttl_ms=ttl_ms)
    assert not pages.exists("page")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([-5]), "holds -5"),
        ([-5], "holds -5"),
        ([2**64], "holds 18446744073709551616"),
        ([4096.0], "holds float64"),
        ([True], "holds bool"),
        (["4096"], "holds <U4"),
        ([None], "holds None"),
        ([[1], [1, 2]], "no array of integers"),
    ],
)
def test_addresses_and_sizes_must_be_integers(pages: Namespace, values: Any, told: str) -> None:
    memory = np.zeros(4096, np.uint8)
    address = [[memory.ctypes.data]]
    for call in (pages.put_from, pages.get_into_addresses):
        with pytest.raises(InvalidArgumentError, match=f"^sizes .*{told}"):
            call(["page"], address, values)
        with pytest.raises(InvalidArgumentError, match=f"^addresses .*{told}"):
            call(["page"], values, [4096])


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int32, object])
def test_integers_of_any_width_are_sizes(pages: Namespace, kind: Any) -> None:
    memory = np.arange(16, dtype=np.uint8)
    codes = pages.put_from(["page"], [[memory.ctypes.data]], np.array([16], kind))
    assert codes.tolist() == [Code.OK]
    assert pages.get("page") == memory.tobytes()


# ---- room


def test_a_full_pool_always_takes_another_page(pages: Namespace) -> None:
    for number in range(200):
        assert pages.put(key_of(number), page_of(number, 1 << 20)), number
    assert pages.get(key_of(199)) == page_of(199, 1 << 20)


def test_a_page_larger_than_the_pool_has_no_room(pages: Namespace) -> None:
    page = bytes(POOL_SIZE_BYTES + 1)
    assert pages.put_batch(["page"], [page]).tolist() == [Code.NO_SPACE]
    assert not pages.put("page", page)


def test_hard_pins_stay_and_are_bounded(store: Store, pages: Namespace) -> None:
    assert pages.put("kept", page_of(0, 1 << 20), pin="hard")
    for number in range(200):
        assert pages.put(key_of(number), page_of(number, 1 << 20))
    assert pages.get("kept") == page_of(0, 1 << 20)
    pinned = [
        int(pages.put_batch([f"pin-{n}"], [bytes(1 << 20)], pin="hard")[0]) for n in range(64)
    ]
    assert Code.NO_SPACE in pinned
    node = store.stats()["node"]
    assert node is not None
    assert node["pinned_bytes"] <= POOL_SIZE_BYTES * store.options.hard_pin_share
    assert pages.pin(["kept", "absent"], "none").tolist() == [Code.OK, Code.NOT_FOUND]


def test_a_pool_that_does_not_fit_is_refused() -> None:
    with pytest.raises(NoSpaceError, match="900TB"):
        Store.open(in_process=True, pool_size="900TB")


# ---- damage


def flip_a_bit_in_the_pool(near: bytes) -> None:
    """Find some bytes in the shared memory of the node in this process, and change one bit."""
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if "memfd:" not in str(path.readlink()):
                continue
            with path.open("r+b") as pool, mmap.mmap(pool.fileno(), 0) as memory:
                place = memory.find(near)
                if place >= 0:
                    memory[place] ^= 0x10
                    return
    raise AssertionError("the page is not in shared memory")


def test_a_flipped_bit_in_the_pool_is_a_miss_and_drops_the_page(
    store: Store, pages: Namespace
) -> None:
    page = page_of(42, 200_000)
    assert pages.put("page", page)
    assert pages.put("other", page_of(43))
    flip_a_bit_in_the_pool(page[150_000:150_064])
    target = bytearray(len(page))
    assert pages.get_into("page", target) is None
    node = store.stats()["node"]
    assert node is not None
    assert node["corrupt_pages"] == 1
    assert store.stats()["client"]["corrupt_pages"] == 1
    assert not pages.exists("page")
    assert pages.get("other") == page_of(43)
    assert pages.put("page", page)
    assert pages.get("page") == page


# ---- life cycle


def test_two_stores_in_one_process_are_apart(store: Store, pages: Namespace) -> None:
    assert pages.put("page", b"x")
    with Store.open(in_process=True, pool_size="32MiB") as other:
        assert other.namespace({"model": "test", "dtype": "bfloat16"}).get("page") is None


def test_after_close_every_call_says_so(store: Store, pages: Namespace) -> None:
    thread_count = threading.active_count()
    store.close()
    store.close()
    assert threading.active_count() < thread_count
    for call in (
        lambda: pages.get("page"),
        lambda: pages.put("page", b"x"),
        lambda: pages.exists_batch(["page"]),
        lambda: pages.clear(),
        lambda: store.namespace("x"),
        lambda: store.stats(),
    ):
        with pytest.raises(ClosedError, match="closed"):
            call()
    assert repr(store) == "<Store closed>"


def test_closing_while_others_call_is_safe() -> None:
    for _ in range(10):
        store = Store.open(in_process=True, pool_size="16MiB")
        pages = store.namespace("x")
        page = page_of(1, 1 << 20)
        wrong: list[object] = []

        def use(pages: Namespace = pages, page: bytes = page, wrong: list[object] = wrong) -> None:
            try:
                while True:
                    pages.put("page", page)
                    value = pages.get("page")
                    if value is not None and value != page:
                        wrong.append(value)
            except ClosedError:
                return

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        store.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert wrong == []


def test_when_the_node_in_this_process_stops_calls_are_misses(
    store: Store, pages: Namespace
) -> None:
    assert pages.put("page", b"x")
    assert store._started is not None
    store._started.engine.stop()
    assert pages.get("page") is None
    assert pages.get_batch_into(["page"], [bytearray(1)]).tolist() == [Code.UNAVAILABLE]
    assert not pages.put("page", b"x")
    assert pages.prefix_length(["page"]) == 0
    with pytest.raises(TransientError):
        pages.clear()
    assert store.stats()["node"] is None
    assert store.stats()["client"]["unavailable"] > 0


def run_in_child(check: object) -> int:
    """Run a function in a forked child; 0 if it returned, 1 if it raised, more if it hung."""
    assert callable(check)
    child = os.fork()
    if child == 0:
        status = 1
        faulthandler.dump_traceback_later(15, file=sys.__stderr__)  # Where it hangs, if it does.
        try:
            check()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            raise
        finally:
            # Not sys.exit(): that would run the tests' own clean-up once more.
            os._exit(status)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return 99


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_after_fork_is_named_and_leaves_the_parent_alone(
    store: Store, pages: Namespace
) -> None:
    assert pages.put("page", b"x")

    def use_in_child() -> None:
        for call in (lambda: pages.get("page"), lambda: pages.put("a", b"x"), store.stats):
            with pytest.raises(ClosedError, match="fork"):
                call()
        store.close()

    assert run_in_child(use_in_child) == 0
    assert pages.get("page") == b"x"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_may_open_its_own(store: Store, pages: Namespace) -> None:
    def use_in_child() -> None:
        with Store.open(in_process=True, pool_size="16MiB") as own:
            assert own.namespace("x").put("page", b"y")

    assert run_in_child(use_in_child) == 0
    assert pages.put("page", b"x")


def thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_closed_store_leaves_nothing_that_a_child_could_hang_on() -> None:
    gc.collect()
    threads = thread_count()
    gc.disable()  # So that garbage would be left for the child.
    try:
        for _ in range(3):
            with Store.open(in_process=True, pool_size="16MiB") as store:
                assert store.namespace("x").put("page", b"y")
        assert thread_count() == threads
        with pytest.raises(NoSpaceError) as caught:  # Its frames keep what was made until then.
            Store.open(in_process=True, pool_size="900TB")
        kept = [caught]
        kept.append(kept)  # Garbage that only a collection finds.
        del caught, kept
        assert thread_count() > threads
        assert run_in_child(gc.collect) == 0
    finally:
        gc.enable()


FORK_AND_END = """
import os, sys
from mooncake_hicache import Store
store = Store.open(in_process=True, pool_size="16MiB")
pages = store.namespace("x")
pages.put("page", b"x")
if "fork" in sys.argv:
    child = os.fork()
    if child == 0:
        sys.exit(7)  # An ordinary end, with all objects torn down.
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7, status
assert pages.get("page") == b"x"
print("fine")  # Ends with the store open.
"""


def end_with_a_store_open(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FORK_AND_END, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_process_ends_cleanly_with_a_store_open() -> None:
    done = end_with_a_store_open()
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_a_forked_child_ends_with_the_store_of_its_parent() -> None:
    done = end_with_a_store_open("fork")
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_store_sleeps_while_nothing_happens(store: Store) -> None:
    deadline = time.monotonic() + 10
    while store.stats()["node"]["pool_backed_bytes"] < POOL_SIZE_BYTES:
        assert time.monotonic() < deadline, "the pool is not made ready"
        time.sleep(0.05)
    before = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - before < 0.01


def test_options_are_kept_and_checked() -> None:
    options = StoreOptions(in_process=True, pool_size="16MiB", call_timeout_ms=300)
    with Store.open(options, verify=False) as store:
        assert store.options.verify is False
        assert store.options.call_timeout_ms == 300
        assert store.is_connected
        assert repr(store) == "<Store connected>"


def test_keys_of_an_engine_cost_little(pages: Namespace) -> None:
    """2048 hexadecimal names in one look-up, as an engine asks before a prefetch."""
    keys = [key_of(n).hex() for n in range(2048)]
    pages.prefix_length(keys)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        pages.prefix_length(keys)
        times.append(time.perf_counter() - began)
    assert sorted(times)[10] < 0.005
