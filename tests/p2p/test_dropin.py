"""`mooncake.p2p_store`: the program as printed, every kind of value, hostile headers."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_hicache import (
    ClosedError,
    CorruptError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from mooncake_hicache.compat.p2p_store import P2PStore
from mooncake_hicache.compat.packed import MAGIC, pack, unpack
from mooncake_hicache.p2p import P2PStore as Store
from tests.compat.processes import Program
from tests.metadata.servers import Etcd, free_port

PUT = """
from mooncake.p2p_store import P2PStore
import numpy as np
p2p_store = P2PStore()
p2p_store.setup("cluster_node_1", WHERE)
data = {"step": 7, "weights": np.arange(1000, dtype=np.float32)}
p2p_store.put("training_checkpoint_v1", data)
say("put")
hear()
"""

GET = """
from mooncake.p2p_store import P2PStore
p2p_store = P2PStore()
p2p_store.setup("cluster_node_2", WHERE)
value = p2p_store.get("training_checkpoint_v1")
say(value["step"], float(value["weights"].sum()))
hear()
"""


def test_the_program_as_printed(etcd: Etcd) -> None:
    where = f"WHERE = {etcd.where!r}\n"
    with Program(where + PUT) as first:
        assert first.hear() == ["put"]
        with Program(where + GET) as second:
            assert second.hear() == [7, 499500.0]
            first.process.kill()
            first.process.wait()
            with Program(where + GET) as third:  # From the second, which has it too.
                assert third.hear() == [7, 499500.0]


def test_values_of_all_kinds_come_back(etcd: Etcd) -> None:
    torch = pytest.importorskip("torch")
    transposed = torch.arange(12.0).reshape(3, 4).t()
    value = {
        "model": {
            "w": torch.randn(3, 4, dtype=torch.bfloat16),
            "f8": torch.randn(5).to(torch.float8_e4m3fn),
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 3),
            "strided": transposed,
            "leaf": torch.nn.Parameter(torch.ones(2)),
            "flags": torch.tensor([True, False]),
            "z": torch.tensor([1 + 2j]).conj(),
        },
        "optimizer": [(0.1, float("inf"), -0.0, None, True, "ädam"), {0: np.arange(3), 1: b"\0x"}],
        "numpy": [np.float64(1.5), np.zeros((0, 2), "<i2"), np.ones((2, 2), ">f4"), np.array(3)],
    }
    with P2PStore() as one, P2PStore() as other:
        one.setup("cluster_node_1", etcd.where)
        other.setup("localhost", etcd.where, "tcp")
        one.put("checkpoint", value)
        got = other.get("checkpoint")
    model = got["model"]
    for name, tensor in value["model"].items():
        assert model[name].dtype == tensor.dtype
        assert model[name].shape == tensor.shape
        if name == "f8":
            assert torch.equal(model[name].view(torch.uint8), tensor.view(torch.uint8))
        else:
            assert torch.equal(model[name], tensor.detach())
    assert got["optimizer"][0] == value["optimizer"][0]
    assert str(got["optimizer"][0][2]) == "-0.0"
    assert got["optimizer"][1][1] == b"\0x"
    assert np.array_equal(got["optimizer"][1][0], np.arange(3))
    for found, wanted in zip(got["numpy"], value["numpy"], strict=True):
        assert found.dtype == np.asarray(wanted).dtype
        assert np.array_equal(found, wanted)
        assert not found.flags.writeable


@pytest.mark.parametrize(
    "value",
    [b"", b"bytes", bytearray(b"array"), memoryview(b"view"), np.arange(9, dtype=np.int16)[::2]],
)
def test_buffers_come_as_bytes_and_arrays_as_arrays(etcd: Etcd, value: Any) -> None:
    with P2PStore() as one, P2PStore() as other:
        for store in (one, other):
            store.setup("localhost", etcd.where)
        assert one.put("buffer", value) == 0
        got = other.get("buffer")
        if isinstance(value, np.ndarray):
            assert np.array_equal(got, value)
        else:
            assert got == bytes(value)


def test_a_value_is_copied_replaced_and_removed(etcd: Etcd) -> None:
    with P2PStore() as one, P2PStore() as other:
        for store in (one, other):
            store.setup("localhost", etcd.where)
        array = np.ones(10_000)
        one.put("mine", array)
        array[:] = 2  # Its owner goes on training.
        assert other.get("mine").max() == 1
        other.put("mine", "new")
        assert one.get("mine", share=False) == "new"
        assert [found.name for found in one.list("mine")] == ["mine"]
        other.remove("mine")
        with pytest.raises(NotFoundError):
            one.get("mine")


def test_errors_are_clear(etcd: Etcd) -> None:
    store = P2PStore()
    with pytest.raises(ClosedError, match="setup"):
        store.get("x")
    with pytest.raises(UnavailableError, match="Connection refused"):
        store.setup("localhost", f"etcd://127.0.0.1:{free_port()}")
    with pytest.raises(UnsupportedError, match="etcd"):
        store.setup("localhost", "http://localhost:8080/metadata")
    store.setup("localhost", etcd.where)
    with pytest.raises(InvalidArgumentError, match=r"value\['a'\]\[1\] is a object"):
        store.put("x", {"a": [1, object()]})
    with pytest.raises(InvalidArgumentError, match="array of object"):
        store.put("x", np.array([None]))
    with pytest.raises(InvalidArgumentError, match="key of type tuple"):
        store.put("x", {(1, 2): 3})
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(InvalidArgumentError, match="levels deep"):
        store.put("x", deep)
    with Store(etcd.where) as plain:
        plain.register("plain", b"without a header")
        with pytest.raises(CorruptError, match="get_replica"):
            store.get("plain")
    store.close()
    store.close()
    with pytest.raises(ClosedError):
        store.list()


# ---- headers, without a network


def packed_of(tree: Any, raw: bytes = b"") -> Any:
    header = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    start = struct.pack("<8sQ", MAGIC, len(header)) + header
    array = np.zeros(-(-len(start) // 64) * 64 + len(raw), np.uint8)
    array[: len(start)] = np.frombuffer(start, np.uint8)
    array[len(array) - len(raw) :] = np.frombuffer(raw, np.uint8)
    return array


@pytest.mark.parametrize(
    "tree",
    [
        b"{",
        b"[" * 100_000,
        {},
        [],
        ["what"],
        ["none", 1],
        ["int", True],
        ["int", "1"],
        ["float", "x"],
        ["float", "0x1p99999"],
        ["text", 5],
        ["list", 5],
        ["list", [5]],
        ["dict", [[["list", []], ["none"]]]],
        ["dict", [[["bytes", 0, 1], ["none"]], 5]],
        ["bytes", 0, 65],
        ["bytes", -1, 1],
        ["bytes", 0, 2**70],
        ["bytes", 0.0, 1],
        ["numpy", 0, 4, "O", [1]],
        ["numpy", 0, 8, "|O8", [1]],
        ["numpy", 0, 4, "<f3", [1]],
        ["numpy", 0, 4, "<f4", [2]],
        ["numpy", 1, 4, "<f4", [1]],
        ["numpy", 0, 4, "<f4", [-1]],
        ["numpy", 0, 4, "<f4", "1"],
        ["numpy", 0, 0, "<f4", [0, 2**61, 2**61]],
        ["numpy", 0, 4, "<f4", [1] * 33],
        ["numpy", 0, 4, "(2,)<f2", [1]],
        ["torch", 0, 4, "float32", [2]],
        ["torch", 0, 0, "float32", [0, 2**61, 2**61]],
    ],
)
def test_a_header_that_lies_is_refused(tree: Any) -> None:
    with pytest.raises(CorruptError):
        unpack(packed_of(tree, bytes(64)))


@pytest.mark.parametrize("name", ["load", "Tensor", "__dict__", "float", "qint8"])
def test_nothing_else_of_torch_can_be_named(name: str) -> None:
    with pytest.raises(UnsupportedError, match="not known"):
        unpack(packed_of(["torch", 0, 4, name, [1]], bytes(64)))


@given(st.data())
def test_damaged_bytes_never_do_harm(choice: st.DataObject) -> None:
    value = {"a": [1, 2.5, "x", None], "b": np.arange(10), "c": b"bytes"}
    packed = pack(value, lambda size: np.empty(size, np.uint8))
    for _ in range(choice.draw(st.integers(1, 3))):
        packed[choice.draw(st.integers(0, packed.size - 1))] = choice.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptError, UnsupportedError):
        unpack(packed[: choice.draw(st.integers(0, packed.size))])


LEAVES = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.text() | st.binary()
KEYS = st.text() | st.integers(-5, 5) | st.none()
TREES = st.recursive(
    LEAVES | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner, inner),
)


@given(TREES)
def test_any_tree_comes_back(tree: Any) -> None:
    assert unpack(pack(tree, lambda size: np.empty(size, np.uint8))) == tree
