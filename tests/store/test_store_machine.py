"""Any order of calls against a plain dict: a store may forget pages, but it never makes one up.

The pool is small, so pages are evicted all the time. What must hold after every call: a get returns
exactly the bytes that were put last, or nothing; nothing means that a page which must stay (hard
pinned, not removed) was not lost; and the node's books agree with each other.
"""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from mooncake_hicache import Code, Namespace, Store

POOL_SIZE_BYTES = 2 << 20
KEYS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(24)]
SIZES = [1, 4096, 65_536, 65_537, 300_000, 500_000, 1 << 20]

keys = st.sampled_from(KEYS)
sizes = st.sampled_from(SIZES)
seeds = st.integers(0, 255)


def page_of(seed: int, size: int) -> bytes:
    return bytes([seed]) * (size - 1) + bytes([seed ^ 0xFF])


class StoreMachine(RuleBasedStateMachine):
    """The verbs of the API are the rules; `model` is what was put and not taken back."""

    spaces = Bundle("spaces")

    def __init__(self) -> None:
        super().__init__()
        self.store = Store.open(in_process=True, pool_size=POOL_SIZE_BYTES, copy_threads=2)
        self.model: dict[tuple[bytes, str], bytes] = {}
        self.pinned: set[tuple[bytes, str]] = set()
        self.opened: list[Namespace] = []

    def teardown(self) -> None:
        self.store.close()

    @initialize(target=spaces)
    def first_namespace(self) -> Namespace:
        return self.open_namespace("first")

    @rule(target=spaces, name=st.sampled_from(["first", "second"]))
    def open_namespace(self, name: str) -> Namespace:
        space = self.store.namespace({"name": name})
        if all(space.digest != other.digest for other in self.opened):
            self.opened.append(space)
        return space

    # ---- writing

    def note_put(self, space: Namespace, key: str, page: bytes, code: int, replace: bool) -> None:
        place = (space.digest, key)
        if code == Code.OK:
            self.model[place] = page
        elif code == Code.ALREADY_EXISTS:
            assert not replace
            assert place in self.model, "it says that a page is there which was never put"
        else:
            # Room can be short only because of pins and leases. A page that was to be replaced may
            # be there still or not.
            assert code == Code.NO_SPACE, Code(code)

    @rule(space=spaces, key=keys, seed=seeds, size=sizes, replace=st.booleans())
    def put(self, space: Namespace, key: str, seed: int, size: int, replace: bool) -> None:
        page = page_of(seed, size)
        [code] = space.put_batch([key], [page], replace=replace).tolist()
        if code == Code.OK:
            self.pinned.discard((space.digest, key))
        self.note_put(space, key, page, code, replace)

    @rule(
        space=spaces,
        chain=st.lists(keys, min_size=1, max_size=8, unique=True),
        parent=st.none() | keys,
        chained=st.booleans(),
        seed=seeds,
        size=sizes,
        cut=st.floats(0, 1),
    )
    def put_many(
        self,
        space: Namespace,
        chain: list[str],
        parent: str | None,
        chained: bool,
        seed: int,
        size: int,
        cut: float,
    ) -> None:
        values = [page_of((seed + n) % 256, size) for n in range(len(chain))]
        at = int(cut * (size - 1))
        pieces = [[value[:at], value[at:]] if at else [value] for value in values]
        codes = space.put_batch(chain, pieces, parent=parent, chained=chained)
        for key, value, code in zip(chain, values, codes.tolist(), strict=True):
            self.note_put(space, key, value, code, replace=False)

    @rule(space=spaces, key=keys, seed=seeds)
    def put_pinned(self, space: Namespace, key: str, seed: int) -> None:
        page = page_of(seed, 50_000)
        [code] = space.put_batch([key], [page], pin="hard", replace=True).tolist()
        self.note_put(space, key, page, code, replace=True)
        if code == Code.OK:
            self.pinned.add((space.digest, key))
        else:
            self.pinned.discard((space.digest, key))

    @rule(space=spaces, key=keys)
    def unpin(self, space: Namespace, key: str) -> None:
        [code] = space.pin([key], "none").tolist()
        assert code in (Code.OK, Code.NOT_FOUND)
        self.pinned.discard((space.digest, key))

    @rule(space=spaces, key=keys)
    def remove(self, space: Namespace, key: str) -> None:
        was_there = space.remove(key)
        assert not was_there or (space.digest, key) in self.model
        assert was_there or (space.digest, key) not in self.pinned
        self.forget(space, key)

    @rule(space=spaces)
    def clear(self, space: Namespace) -> None:
        known = {key for digest, key in self.model if digest == space.digest}
        assert space.clear() <= len(known)
        for key in known:
            self.forget(space, key)
        assert not space.exists_batch(KEYS).any()

    def forget(self, space: Namespace, key: str) -> None:
        self.model.pop((space.digest, key), None)
        self.pinned.discard((space.digest, key))

    # ---- reading

    def check(self, space: Namespace, key: str, value: bytes | None) -> None:
        place = (space.digest, key)
        if value is not None:
            assert value == self.model.get(place), "bytes that nobody put there"
        else:
            assert place not in self.pinned, "a pinned page is gone"

    @rule(space=spaces, key=keys)
    def get(self, space: Namespace, key: str) -> None:
        self.check(space, key, space.get(key))

    @rule(space=spaces, some=st.lists(keys, max_size=12))
    def get_many(self, space: Namespace, some: list[str]) -> None:
        for key, value in zip(some, space.get_batch(some), strict=True):
            self.check(space, key, value)

    @rule(space=spaces, some=st.lists(keys, min_size=1, max_size=12), size=sizes)
    def get_into(self, space: Namespace, some: list[str], size: int) -> None:
        """Into buffers of one size: a page of another size is a miss, whatever is there."""
        targets = [[np.zeros(1, np.uint8), np.zeros(size, np.uint8)] for _ in some]
        for key, target, code in zip(
            some, targets, space.get_batch_into(some, targets).tolist(), strict=True
        ):
            if code == Code.OK:
                value = b"".join(piece.tobytes() for piece in target)
                assert len(value) == size + 1
                self.check(space, key, value)
            else:
                assert code == Code.NOT_FOUND, Code(code)

    @rule(space=spaces, some=st.lists(keys, min_size=1, max_size=24), lease=st.booleans())
    def prefix(self, space: Namespace, some: list[str], lease: bool) -> None:
        length = space.prefix_length(some, lease=lease)
        for key in some[:length]:
            assert (space.digest, key) in self.model
        if length < len(some):
            assert (space.digest, some[length]) not in self.pinned

    @precondition(lambda self: self.model)
    @rule(space=spaces)
    def read_everything(self, space: Namespace) -> None:
        for key, value in zip(KEYS, space.get_batch(KEYS), strict=True):
            self.check(space, key, value)

    # ---- the books

    @invariant()
    def the_books_agree(self) -> None:
        node = self.store.stats()["node"]
        assert node is not None
        assert node["pages"] <= len(self.model)
        assert node["pool_reserved_bytes"] == 0
        taken = node["pool_used_bytes"] + node["pool_waste_bytes"]
        assert taken <= node["pool_size_bytes"]
        assert node["pinned_bytes"] <= node["pool_held_bytes"] <= taken
        event("pages were evicted" if node["evicted_pages"] else "nothing was evicted")
        assert node["corrupt_pages"] == 0
        assert node["bad_frames"] == 0
        assert sum(use["pages"] for use in node["namespace_use"]) == node["pages"]


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
