"""Every call of `mooncake.store` comes to what the original comes to.

The numbers were measured with the original's wheel 0.3.13.post1. Where it crashes, or where ours
differs on purpose, the row says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mooncake_hicache.compat.store import (
    MooncakeDistributedStore,
    MooncakeHostMemAllocator,
    ReplicateConfig,
    SoftPinAction,
)
from mooncake_hicache.errors import UnsupportedError
from tests.compat.store.stores import MiB, address_of, machine, noise, opened, running_master

Store = MooncakeDistributedStore
A = noise(1 * MiB)
B = np.zeros(1 * MiB, np.uint8)
P, Q = address_of(A), address_of(B)
BYTES = A[:1000].tobytes()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with machine() as folder, running_master(folder) as master, opened(master) as store:
        yield store


@pytest.fixture(autouse=True)
def _known(store: Store) -> None:
    store.remove_all(True)
    assert store.put("k", b"hello") == 0
    assert store.put_from("pf", P, 1000) == 0


def config(**values: Any) -> ReplicateConfig:
    made = ReplicateConfig()
    for name, value in values.items():
        setattr(made, name, value)
    return made


# What is called, and what it comes to.
Row = tuple[str, Callable[[Store], Any], Any]

BEFORE_SETUP: list[Row] = [
    ("get", lambda s: s.get("a"), b""),
    ("get_batch", lambda s: s.get_batch(["a"]), [b""]),
    ("upsert", lambda s: s.upsert("a", b"1"), -600),
    ("put_from", lambda s: s.put_from("a", P, 10), -600),
    ("session", lambda s: s.batch_get_session_start(["a"]), []),
    ("put session", lambda s: s.batch_put_session_start(["a"], [5]), []),
    ("health", lambda s: s.health_check(), 1),
    ("close", lambda s: s.close(), 0),
    # The original crashes from here on.
    ("put", lambda s: s.put("a", b"1"), -600),
    ("put_batch", lambda s: s.put_batch(["a"], [b"1"]), -600),
    ("is_exist", lambda s: s.is_exist("a"), -600),
    ("batch_is_exist", lambda s: s.batch_is_exist(["a", "b"]), [-600, -600]),
    ("get_size", lambda s: s.get_size("a"), -600),
    ("get_buffer", lambda s: s.get_buffer("a"), None),
    ("get_into", lambda s: s.get_into("a", Q, 10), -600),
    ("remove", lambda s: s.remove("a"), -600),
    ("remove_all", lambda s: s.remove_all(), -600),
    ("remove_by_regex", lambda s: s.remove_by_regex("a"), -600),
    ("register_buffer", lambda s: s.register_buffer(P, 10), -600),
    ("query_task", lambda s: s.query_task((0, 1)), (None, -1400)),
]

VALUES: list[Row] = [
    ("put", lambda s: (s.put("n", b"1"), s.get("n")), (0, b"1")),
    ("put of what is there", lambda s: (s.put("k", b"other"), s.get("k")), (0, b"hello")),
    ("get of what is not", lambda s: s.get("nope"), b""),
    ("get_batch", lambda s: s.get_batch(["k", "nope"]), [b"hello", b""]),
    ("get_size", lambda s: (s.get_size("k"), s.get_size("nope")), (5, -704)),
    ("is_exist", lambda s: (s.is_exist("k"), s.is_exist("nope")), (1, 0)),
    ("batch_is_exist", lambda s: s.batch_is_exist(["k", "no", ""]), [1, 0, 0]),
    ("batch_is_exist []", lambda s: s.batch_is_exist([]), []),
    ("put of nothing", lambda s: s.put("e", b""), -600),
    ("put without key", lambda s: s.put("", b"x"), -600),
    ("long key", lambda s: (s.put("x" * 5000, b"x"), s.get("x" * 5000)), (0, b"x")),
    ("bytearray", lambda s: (s.put("v", bytearray(b"abc")), s.get("v")), (0, b"abc")),
    ("view", lambda s: (s.put("v", memoryview(b"abcd")[1:3]), s.get("v")), (0, b"bc")),
    ("put_parts", lambda s: (s.put_parts("v", b"a", b"", b"bc"), s.get("v")), (0, b"abc")),
    ("no parts", lambda s: (s.put_parts("v"), s.is_exist("v")), (0, 0)),
    ("put_batch", lambda s: (s.put_batch(["a", "b"], [b"1", b"2"]), s.get("b")), (0, b"2")),
    (
        "put_batch, half there",
        lambda s: (s.put_batch(["k", "b"], [b"1", b"2"]), s.get("b")),
        (0, b"2"),
    ),
    ("put_batch, one key twice", lambda s: s.put_batch(["a", "a"], [b"1", b"2"]), 0),
    ("put_batch of other lengths", lambda s: s.put_batch(["a", "b"], [b"1"]), -600),
    ("put_batch []", lambda s: s.put_batch([], []), 0),
    (
        "put_batch, one empty",
        lambda s: (s.put_batch(["a", "b"], [b"1", b""]), s.is_exist("a")),
        (-600, 0),
    ),
    ("upsert", lambda s: (s.upsert("k", b"new and longer"), s.get("k")), (0, b"new and longer")),
    ("upsert of nothing", lambda s: (s.upsert("k", b""), s.get("k")), (-600, b"hello")),
    ("upsert_parts", lambda s: (s.upsert_parts("k", b"1", b"2"), s.get("k")), (0, b"12")),
    ("upsert_batch", lambda s: (s.upsert_batch(["k"], [b"1"]), s.get("k")), (0, b"1")),
    ("upsert_from", lambda s: (s.upsert_from("k", P, 9), s.get("k")), (0, BYTES[:9])),
    (
        "batch_upsert_from",
        lambda s: (s.batch_upsert_from(["k", "l"], [P, P], [4, 5]), s.get("l")),
        ([0, 0], BYTES[:5]),
    ),
    # The original takes the number of items for that of bytes, and so cuts this off.
    (
        "array of numbers",
        lambda s: (s.put("v", np.arange(4, dtype=np.int16)), len(s.get("v"))),
        (0, 8),
    ),
    # Larger than the local buffer: -600 and -200 there.
    ("large value", lambda s: s.put("v", bytes(20 * MiB)), 0),
    # [b""] there.
    ("get_batch []", lambda s: s.get_batch([]), []),
]

ADDRESSES: list[Row] = [
    ("register", lambda s: (s.register_buffer(P, 10), s.unregister_buffer(P)), (0, 0)),
    (
        "register twice",
        lambda s: (s.register_buffer(P, 10), s.register_buffer(P, 10), s.unregister_buffer(P)),
        (0, -600, 0),
    ),
    (
        "register over it",
        lambda s: (s.register_buffer(P, 10), s.register_buffer(P + 9, 1), s.unregister_buffer(P)),
        (0, -600, 0),
    ),
    ("unregister unknown", lambda s: s.unregister_buffer(P), -600),
    (
        "register nothing",
        lambda s: (s.register_buffer(0, 10), s.register_buffer(Q, 0)),
        (-600, -600),
    ),
    ("put_from of what is there", lambda s: s.put_from("pf", P, 1000), 0),
    ("put_from of nothing", lambda s: s.put_from("n", P, 0), 0),
    ("get_into", lambda s: (s.get_into("pf", Q, MiB), B[:1000].tobytes()), (1000, BYTES)),
    ("get_into, exactly", lambda s: s.get_into("pf", Q, 1000), 1000),
    ("get_into, too short", lambda s: s.get_into("pf", Q, 999), -600),
    ("get_into of what is not", lambda s: s.get_into("nope", Q, 999), -704),
    ("batch_put_from", lambda s: s.batch_put_from(["a", "pf"], [P, P], [10, 20]), [0, 0]),
    (
        "batch_put_from, a key twice",
        lambda s: s.batch_put_from(["a", "a"], [P, P], [10, 20]),
        [0, 0],
    ),
    (
        "batch_put_from, one empty",
        lambda s: (s.batch_put_from(["a", "b"], [P, P], [0, 20]), s.get_size("b")),
        ([-600, 0], 20),
    ),
    (
        "batch_put_from of other lengths",
        lambda s: s.batch_put_from(["a", "b"], [P], [0, 20]),
        [-600, -600],
    ),
    ("batch_put_from []", lambda s: s.batch_put_from([], [], []), []),
    (
        "batch_get_into",
        lambda s: s.batch_get_into(["k", "no", "pf"], [Q, Q, Q], [5, 5, 5]),
        [5, -704, -600],
    ),
    ("batch_get_into of other lengths", lambda s: s.batch_get_into(["k"], [Q, Q], [5]), [-600]),
    ("batch_get_into []", lambda s: s.batch_get_into([], [], []), []),
    (
        "multi put",
        lambda s: (
            s.batch_put_from_multi_buffers(["a", "b"], [[P, P + 10], [P]], [[3, 2], [1]]),
            s.get("a"),
        ),
        ([0, 0], BYTES[:3] + BYTES[10:12]),
    ),
    ("multi put of nothing", lambda s: s.batch_put_from_multi_buffers(["a"], [[]], [[]]), [-600]),
    (
        "multi put of other lengths",
        lambda s: s.batch_put_from_multi_buffers(["a"], [[P]], [[1, 2]]),
        [-600],
    ),
    (
        "multi get",
        lambda s: (
            s.batch_get_into_multi_buffers(["k", "no"], [[Q + 10, Q], [Q]], [[3, 2], [5]]),
            B[:2].tobytes(),
            B[10:13].tobytes(),
        ),
        ([5, -704], b"lo", b"hel"),
    ),
    (
        "multi get, too large",
        lambda s: s.batch_get_into_multi_buffers(["k"], [[Q, Q]], [[3, 3]]),
        [-800],
    ),
    (
        "multi get, too short",
        lambda s: s.batch_get_into_multi_buffers(["k"], [[Q, Q]], [[3, 1]]),
        [-600],
    ),
    (
        "with metadata",
        lambda s: (s.put_from_with_metadata("m", P + 10, P, 20, 5), s.get("m")),
        (0, BYTES[:5] + BYTES[10:30]),
    ),
    (
        "ranges",
        lambda s: (
            s.get_into_ranges(
                [Q], [["pf", "no"]], [[[0, 100], [0]]], [[[0, 500], [0]]], [[[10, 20], [5]]]
            ),
            B[100:120].tobytes(),
        ),
        ([[[10, 20], [-704]]], BYTES[500:520]),
    ),
    (
        "ranges beyond",
        lambda s: s.get_into_ranges([Q], [["pf"]], [[[0]]], [[[990]]], [[[20]]]),
        [[[-600]]],
    ),
    (
        "ranges behind the registered buffer",
        lambda s: (
            s.register_buffer(Q + MiB // 2, 64),
            s.get_into_ranges(
                [Q + MiB // 2], [["pf"]], [[[60, 61, -1, 0]]], [[[0, 0, 0, 0]]], [[[4, 4, 4, 64]]]
            ),
            s.unregister_buffer(Q + MiB // 2),
        ),
        (0, [[[4, -600, -600, 64]]], 0),
    ),
    (
        "ranges of which there are not as many of all",
        lambda s: (
            s.get_into_ranges([Q], [["pf", "pf"]], [[[0], []]], [[[0, 1], []]], [[[4, 4], []]]),
            s.get_into_ranges([Q], [["pf", "pf"]], [[[0]]], [[[0]]], [[[4]]]),
            s.get_into_ranges([Q], [["pf"], ["no"]], [[[0]]], [[[0]]], [[[4]]]),
        ),
        ([[[-600, -600], []]], [[[-600], [-600]]], [[[-600]], [[-600]]]),
    ),
]

SESSIONS: list[Row] = [
    (
        "start",
        lambda s: (s.batch_get_session_start(["pf", "no"]), s.batch_get_session_end(["pf"])),
        ([0, -704], 0),
    ),
    (
        "layers",
        lambda s: (
            s.batch_get_session_start(["pf", "k"]),
            s.batch_get_into_multi_buffer_ranges(
                ["pf", "k"], [[Q, Q + 100], [Q + 300]], [[10, 20], [2]], [[0, 100], [3]]
            ),
            B[100:120].tobytes(),
            B[300:302].tobytes(),
            s.batch_get_session_end(["pf", "k"]),
        ),
        ([0, 0], [30, 2], BYTES[100:120], b"lo", 0),
    ),
    (
        "beyond",
        lambda s: (
            s.batch_get_session_start(["k"]),
            s.batch_get_into_multi_buffer_ranges(["k"], [[Q]], [[10]], [[0]]),
            s.batch_get_session_end(["k"]),
        ),
        ([0], [-600], 0),
    ),
    (
        "without a session",
        lambda s: s.batch_get_into_multi_buffer_ranges(["k"], [[Q]], [[1]], [[0]]),
        [-600],
    ),
    ("end of none", lambda s: s.batch_get_session_end(["k"]), 0),
    (
        "put",
        lambda s: (
            s.batch_put_session_start(["a"], [30]),
            s.batch_put_from_multi_buffer_ranges(["a"], [[P + 10, P]], [[20, 10]], [[10, 0]]),
            s.is_exist("a"),
            s.batch_put_session_end(["a"]),
            s.get("a"),
        ),
        ([0], [30], 0, [0], BYTES[:30]),
    ),
    (
        "put begun twice",
        lambda s: (
            s.batch_put_session_start(["a"], [3]),
            s.batch_put_session_start(["a"], [3]),
            s.batch_put_session_revoke(["a"]),
        ),
        ([0], [-600], [0]),
    ),
    ("put of what is there", lambda s: s.batch_put_session_start(["k"], [3]), [-705]),
    (
        "put beyond",
        lambda s: (
            s.batch_put_session_start(["a"], [3]),
            s.batch_put_from_multi_buffer_ranges(["a"], [[P]], [[3]], [[1]]),
            s.batch_put_session_revoke(["a"]),
        ),
        ([0], [-600], [0]),
    ),
    (
        "revoked",
        lambda s: (
            s.batch_put_session_start(["a"], [3]),
            s.batch_put_session_revoke(["a"]),
            s.is_exist("a"),
        ),
        ([0], [0], 0),
    ),
    (
        "unknown",
        lambda s: (s.batch_put_session_end(["x"]), s.batch_put_session_revoke(["x"])),
        ([-600], [-600]),
    ),
]

REST: list[Row] = [
    (
        "buffer",
        lambda s: (lambda b: (b.size(), len(b), bytes(b), bytes(np.frombuffer(b, np.uint8))))(
            s.get_buffer("k")
        ),
        (5, 5, b"hello", b"hello"),
    ),
    ("no buffer", lambda s: s.get_buffer("nope"), None),
    ("buffers", lambda s: [b and b.size() for b in s.batch_get_buffer(["k", "no"])], [5, None]),
    ("three replicas", lambda s: s.put("a", b"x", config(replica_num=3)), 0),
    ("no replica", lambda s: s.put("a", b"x", config(replica_num=0)), -600),
    (
        "no replica, batch",
        lambda s: s.batch_put_from(["a"], [P], [5], config(replica_num=0)),
        [-600],
    ),
    ("hard pin", lambda s: (s.put("a", b"x", config(with_hard_pin=True)), s.remove("a")), (0, 0)),
    ("soft pin", lambda s: s.put("a", b"x", config(soft_pin_action=SoftPinAction.ENABLE)), 0),
    ("group", lambda s: s.put("a", b"x", config(group_ids=["g"])), 0),
    (
        "groups too few",
        lambda s: s.batch_put_from(["a", "b"], [P, P], [1, 1], config(group_ids=["g"])),
        [-600, -600],
    ),
    ("preferred segment", lambda s: s.put("a", b"x", config(preferred_segment="nowhere")), 0),
    ("remove", lambda s: (s.remove("k"), s.remove("k"), s.is_exist("k")), (0, -704, 0)),
    (
        "batch_remove",
        lambda s: (s.batch_remove(["k", "no"], True), s.batch_remove([])),
        ([0, -704], []),
    ),
    (
        "regex",
        lambda s: (
            s.put_batch(["b1", "b2"], [b"1", b"2"]),
            s.remove_by_regex("^b[12]$"),
            s.is_exist("k"),
        ),
        (0, 2, 1),
    ),
    ("regex of none", lambda s: s.remove_by_regex("^zzz$"), 0),
    ("no regex", lambda s: s.remove_by_regex("["), -600),
    ("remove_all", lambda s: (s.remove_all(), s.batch_is_exist(["k", "pf"])), (2, [0, 0])),
    ("keys", lambda s: s.get_all_keys(), ["k", "pf"]),
    (
        "replicas",
        lambda s: [
            (
                int(d.status),
                d.is_memory_replica(),
                d.is_disk_replica(),
                d.get_memory_descriptor().buffer_descriptor.size,
            )
            for d in s.get_replica_desc("pf")
        ],
        [(3, True, False, 1000)],
    ),
    (
        "no replicas",
        lambda s: (s.get_replica_desc("no"), list(s.batch_get_replica_desc(["pf", "no"]))),
        ([], ["pf"]),
    ),
    ("copy here", lambda s: s.query_task(s.create_copy_task("k", [s.get_hostname()])[0])[1], 0),
    ("copy of none", lambda s: s.create_copy_task("no", [s.get_hostname()]), ((0, 0), -704)),
    (
        "copy to nowhere",
        lambda s: (s.create_copy_task("k", ["bad"])[1], s.create_copy_task("k", [])[1]),
        (-600, -600),
    ),
    (
        "move",
        lambda s: (
            s.create_move_task("no", "a", "b"),
            s.create_move_task("k", s.get_hostname(), "b"),
        ),
        (((0, 0), -704), ((0, 0), -600)),
    ),
    ("unknown task", lambda s: s.query_task((1, 2)), (None, -1400)),
    (
        "clear replicas",
        lambda s: (s.batch_replica_clear(["k", "no"]), s.batch_replica_clear(["pf"], "bad")),
        (["k"], []),
    ),
    ("mount", lambda s: s.mount_segment("/nope", 1 * MiB), {"ret": -1, "segment_ids": []}),
    ("unmount", lambda s: s.unmount_segment(["a"]), -1),
    ("health", lambda s: s.health_check(), 0),
    ("host", lambda s: s.get_hostname().partition(":")[0], "localhost"),
    # Look-ups hold nothing; the original says -706 here.
    ("remove of what was looked up", lambda s: (s.is_exist("k"), s.remove("k")), (1, 0)),
]


def by_name(row: Row) -> str:
    return row[0]


@pytest.mark.parametrize("row", BEFORE_SETUP, ids=by_name)
def test_before_setup(row: Row) -> None:
    assert row[1](MooncakeDistributedStore()) == row[2]


@pytest.mark.parametrize("row", VALUES + ADDRESSES + SESSIONS + REST, ids=by_name)
def test_comes_to_what_the_original_comes_to(store: Store, row: Row) -> None:
    assert row[1](store) == row[2], store.last_error


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: s.put("a", "text"),
        lambda s: s.put(5, b"x"),
        lambda s: s.put("a", None),
        lambda s: s.put("\ud800", b"x"),
        lambda s: s.put("a", b"x", None),
        lambda s: s.batch_is_exist([7]),
    ],
)
def test_wrong_types_raise(store: Store, wrong: Callable[[Store], Any]) -> None:
    with pytest.raises(TypeError):
        wrong(store)


def test_older_programs_ask_for_a_soft_pin_by_its_old_name() -> None:
    made = ReplicateConfig()
    assert made.with_soft_pin is False
    made.with_soft_pin = True
    assert made.soft_pin_action == SoftPinAction.ENABLE
    made.with_soft_pin = False
    assert made.soft_pin_action == SoftPinAction.PRESERVE


def test_a_negative_time_of_a_soft_pin_is_refused() -> None:
    made = ReplicateConfig()
    for value in (-1, 2**64):
        with pytest.raises(TypeError):
            made.soft_pin_ttl_ms = value
    made.soft_pin_ttl_ms = 5
    assert made.soft_pin_ttl_ms == 5


def test_what_is_not_supported_says_so(store: Store) -> None:
    with pytest.raises(UnsupportedError, match="put_from"):
        store.get_tensor_with_tp("a")
    assert not hasattr(store, "save_tensor_to_file")  # Programs look, and do without.
    with pytest.raises(AttributeError, match="use save_tensor_to_safetensor"):
        store.save_tensor_to_file("a", "file")
    with pytest.raises(AttributeError, match="'no_such'$"):
        store.no_such()


def test_host_memory_is_zero_and_given_back_once() -> None:
    memory = MooncakeHostMemAllocator()
    address = memory.alloc(1 * MiB)
    assert address % 4096 == 0
    assert (memory.free(address), memory.free(address)) == (0, -1)
    with pytest.raises(RuntimeError):
        memory.alloc(0)
