"""Tensors in `mooncake.store`: they come back as they were, and the calls come to what the
original's come to (measured with its wheel 0.3.13.post1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooncake_hicache.compat.store import MooncakeDistributedStore, ReplicateConfig
from mooncake_hicache.compat.store.tensor_format import HEAD_SIZE, TYPES, pieces_of
from tests.compat.store.stores import machine, opened, running_master

torch = pytest.importorskip("torch")

Store = MooncakeDistributedStore
T = torch.arange(6, dtype=torch.float32).reshape(2, 3)

# The head that the original writes for T, but for zeros at its end.
ORIGINAL_HEAD = bytes.fromhex(
    "4e4f4f4d01003001000000000200000000000000000000003001000000000000180000000000000002000000000000"
    "000300000000000000" + "ff" * 48 + "02000000000000000300000000000000" + "ff" * 48
)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with machine() as folder, running_master(folder) as master, opened(master) as store:
        yield store


@pytest.fixture(autouse=True)
def _empty(store: Store) -> None:
    store.remove_all()


def same(found: Any, expected: Any) -> bool:
    return (
        found is not None
        and found.dtype == expected.dtype
        and found.shape == expected.shape
        and pieces_of(found, "found")[-1].tobytes() == pieces_of(expected, "it")[-1].tobytes()
    )


def shapes() -> list[Any]:
    made = [torch.zeros(0, 3), torch.tensor(5), T.t(), torch.ones([1] * 8), T[:, ::2]]
    made.append(torch.rand(3, requires_grad=True))
    generator = torch.Generator().manual_seed(1)
    for name in TYPES:
        raw = torch.randint(0, 2 if name == "bool" else 256, (3, 48), generator=generator)
        made.append(raw.to(torch.uint8).view(getattr(torch, name)))
    return made


def test_tensors_of_every_type_and_shape_come_back(store: Store) -> None:
    tensors = shapes()
    keys = [f"t{i}" for i in range(len(tensors))]
    assert store.batch_put_tensor(keys, tensors) == [0] * len(keys)
    for tensor, found in zip(tensors, store.batch_get_tensor(keys), strict=True):
        assert same(found, tensor)
        found.zero_()  # It is the caller's own.
    assert all(
        same(store.get_tensor(key), tensor) for key, tensor in zip(keys, tensors, strict=True)
    )


def test_the_head_is_the_originals(store: Store) -> None:
    assert store.put_tensor("a", T) == 0
    expected = ORIGINAL_HEAD.ljust(HEAD_SIZE, b"\0") + T.numpy().tobytes()
    assert store.get("a") == expected
    assert store.put("b", expected) == 0
    assert same(store.get_tensor("b"), T)


def test_what_is_there_stays_but_for_upserts(store: Store) -> None:
    assert store.put_tensor("a", T) == 0
    assert store.put_tensor("a", T + 1) == 0
    assert store.pub_tensor("a", T + 1, ReplicateConfig()) == 0
    assert same(store.get_tensor("a"), T)
    assert store.upsert_tensor("a", T + 1) == 0
    assert same(store.get_tensor("a"), T + 1)
    assert store.upsert_pub_tensor("a", T + 2) == 0
    assert store.batch_upsert_tensor(["b", "a"], [T, T + 3]) == [0, 0]
    assert same(store.get_tensor("a"), T + 3)
    assert store.batch_upsert_pub_tensor(["a"], [T + 4]) == [0]
    assert store.batch_pub_tensor(["c", "a"], [T, T]) == [0, 0]
    assert [same(each, T) for each in store.batch_get_tensor(["b", "c", "a"])] == [1, 1, 0]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2],
        np.zeros(3),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros([1] * 9),
        torch.eye(3).to_sparse(),
    ],
)
def test_what_is_no_such_tensor_is_refused(store: Store, value: Any) -> None:
    assert store.put_tensor("x", value) == -600
    assert "'x'" in store.last_error
    assert store.batch_put_tensor(["y", "x"], [T, value]) == [0, -600]
    assert store.get_tensor("x") is None
    assert same(store.get_tensor("y"), T)


def test_batches_that_do_not_match(store: Store) -> None:
    assert store.batch_put_tensor(["a"], [T, T]) == [-600]
    assert store.batch_put_tensor([], []) == []
    assert store.batch_get_tensor([]) == []
    assert store.batch_get_tensor_into(["a"], [1, 2], [3]) == [-600]
    assert store.batch_put_tensor_from(["a"], [1, 2], [3]) == [-600]


def test_objects_that_are_no_tensors_are_none(store: Store) -> None:
    good = b"".join(piece.tobytes() for piece in pieces_of(T, "T"))
    wrong = [b"hello", good[:-1], good + b"1", b"x" + good[1:], b"h" * 1000]
    # Each byte of the head that says something, changed.
    said = [*range(16), *range(24, 24 + 16), *range(40, 40 + 16)]
    wrong += [good[:i] + bytes([good[i] ^ 0x80]) + good[i + 1 :] for i in said]
    for index, value in enumerate(wrong):
        assert store.put(f"wrong{index}", value) == 0
        assert store.get_tensor(f"wrong{index}") is None, index
    assert store.get_tensor("missing") is None


def test_tensors_into_tensors_that_are_there(store: Store) -> None:
    places = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    assert store.put_tensor("a", T) == 0
    for place in places:
        target = torch.zeros(6, device=place)
        assert store.get_tensor_into_cuda("a", target) == 24
        assert same(target.cpu().reshape(2, 3), T)
        targets = [torch.zeros(2, 3, device=place) for _ in range(2)]
        assert store.batch_get_tensor_into_cuda(["no", "a"], targets) == [-704, 24]
        assert same(targets[1].cpu(), T)
        assert float(targets[0].sum()) == 0
    for wrong in (torch.zeros(7), torch.zeros(6, dtype=torch.int32), torch.zeros(3, 2).t()):
        assert store.get_tensor_into_cuda("a", wrong) == -600
        assert float(wrong.sum()) == 0
    assert "give a contiguous tensor" in store.last_error
    assert store.put("bytes", b"1" * 400) == 0
    assert store.get_tensor_into_cuda("bytes", torch.zeros(24)) == -600
    assert store.batch_get_tensor_into_cuda(["a"], []) == [-600]
    scalar = torch.tensor(2.5)
    assert store.put_tensor("scalar", scalar) == 0
    target = torch.tensor(0.0)
    assert store.get_tensor_into_cuda("scalar", target) == 4
    assert float(target) == 2.5
    assert store.put_tensor("empty", torch.zeros(0, 3)) == 0
    assert store.get_tensor_into_cuda("empty", torch.zeros(0)) == 0


def test_tensors_in_memory_of_the_caller(store: Store) -> None:
    memory = np.zeros(4096, np.uint8)
    address = memory.ctypes.data
    assert store.put_tensor("a", T) == 0
    size = store.get_size("a")
    found = store.get_tensor_into("a", address, 4096)
    assert same(found, T)
    memory[HEAD_SIZE:size] = 0
    assert float(found.sum()) == 0  # It is a view.
    assert store.get_tensor_into("missing", address, 4096) is None
    assert store.get_tensor_into("a", address, 10) is None
    found = store.batch_get_tensor_into(["a", "no"], [address, address + 2048], [2048, 2048])
    assert same(found[0], T)
    assert found[1] is None
    assert store.put_tensor_from("b", address, size) == 0
    assert same(store.get_tensor("b"), T)
    assert store.put_tensor_from("c", address, 10) == -600
    assert store.put_tensor_from("c", address, 4096) == -600
    assert store.put_tensor_from("c", 0, size) == -600
    assert store.is_exist("c") == 0
    assert store.batch_put_tensor_from(["c", "d"], [address] * 2, [size, 1]) == [0, -600]
    memory[HEAD_SIZE] ^= 1
    assert store.upsert_tensor_from("b", address, size) == 0
    assert not same(store.get_tensor("b"), T)
    assert store.batch_upsert_tensor_from(["c"], [address], [size]) == [0]
    assert not same(store.get_tensor("c"), T)


def test_files(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    assert store.put_tensor("a", T) == 0
    assert store.save_tensor_to_safetensor("a") == 0
    assert store.save_tensor_to_safetensor("a", "file") == 0
    assert Path("a").read_bytes() == Path("file").read_bytes()
    assert store.save_tensor_to_safetensor("missing", "none") == -1100
    assert store.save_tensor_to_safetensor("a", "no/folder/here") == -1100
    store.remove_all()
    assert same(store.load_tensor_from_safetensor("a", "file"), T)
    assert same(store.load_tensor_from_safetensor("z", "file"), T)  # The first one.
    assert same(store.load_tensor_from_safetensor(file_name="file"), T)
    assert all(same(each, T) for each in store.batch_get_tensor(["a", "z", "file"]))
    assert store.load_tensor_from_safetensor(file_name="missing") is None
    Path("broken").write_bytes(b"no file of tensors")
    assert store.load_tensor_from_safetensor(file_name="broken") is None
    with pytest.raises(TypeError, match="file_name"):
        store.load_tensor_from_safetensor("file")


def test_before_setup() -> None:
    store = Store()
    assert store.put_tensor("a", T) == -600
    assert store.batch_put_tensor(["a"], [T]) == [-600]
    assert store.get_tensor("a") is None
    assert store.batch_get_tensor(["a", "b"]) == [None, None]
    assert store.get_tensor_into("a", 1, 1) is None
    assert store.batch_get_tensor_into(["a"], [1], [1]) == [-600]
    assert store.put_tensor_from("a", 1, 1) == -600
