"""Eviction: rules that every policy keeps, LRU against an obvious oracle, adaptive against both."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bench.hits_workloads import WORKLOADS, make
from mooncake_hicache import _core
from mooncake_hicache.errors import InvalidArgumentError

POLICIES = ("lru", "s3fifo", "adaptive")
INDEXES = 24
HASHES = 16  # few, so that parents, orphans, rings and doubles come up


class Page:
    def __init__(self, key: int, parent: int, size: int, soft: bool) -> None:
        self.key, self.parent_key, self.size, self.soft = key, parent, size, soft
        self.named = True
        self.parent: Page | None = None
        self.used = 0


class Oracle:
    """The rules, in the slowest and most obvious way."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}
        self.clock = 0

    def named(self, key: int) -> Page | None:
        return next((p for p in self.pages.values() if p.named and p.key == key), None)

    def insert(self, index: int, page: Page) -> None:
        page.named = self.named(page.key) is None
        self.pages[index] = page
        if page.named:
            self._link_children(page)
            if page.parent_key not in (0, page.key):
                parent = self.named(page.parent_key)
                if parent is not None and page not in self._up(parent):
                    page.parent = parent
                elif parent is not None:
                    page.parent_key = 0  # A ring: taken as a root for good.
        else:
            page.parent_key = 0
        self.use(index)

    def _link_children(self, page: Page) -> None:
        for other in self.pages.values():
            if other is not page and other.parent_key == page.key and other.key != page.key:
                other.parent = page

    def _up(self, page: Page | None) -> list[Page]:
        found = []
        while page is not None:
            found.append(page)
            page = page.parent
        return found

    def erase(self, index: int) -> None:
        gone = self.pages.pop(index)
        for page in self.pages.values():
            if page.parent is gone:
                page.parent = None

    def use(self, index: int) -> None:
        self.clock += 1
        self.pages[index].used = self.clock

    def is_leaf(self, index: int) -> bool:
        return all(page.parent is not self.pages[index] for page in self.pages.values())

    def has_evictable_below(self, index: int, held: set[int]) -> bool:
        top = self.pages[index]
        return any(
            other != index and other not in held and top in self._up(page)
            for other, page in self.pages.items()
        )


class EvictionMachine(RuleBasedStateMachine):
    policy = "lru"

    @initialize(capacity=st.integers(1, 200))
    def start(self, capacity: int) -> None:
        self.eviction = _core.Eviction(self.policy, capacity)
        self.oracle = Oracle()
        self.held: set[int] = set()
        self.refused: set[int] = set()  # the policy was told so
        self.now_ms = 0

    @rule(
        index=st.integers(0, INDEXES - 1),
        key=st.integers(1, HASHES),
        parent=st.integers(0, HASHES),
        size=st.integers(0, 50),
        soft=st.booleans(),
    )
    def insert(self, index: int, key: int, parent: int, size: int, soft: bool) -> None:
        if index in self.oracle.pages:
            with pytest.raises(InvalidArgumentError):
                self.eviction.insert(index, key, parent, size, soft)
            return
        self.now_ms += 1
        self.eviction.insert(index, key, parent, size, soft, self.now_ms)
        self.oracle.insert(index, Page(key, parent, size, soft))

    @precondition(lambda self: self.oracle.pages)
    @rule(draws=st.data())
    def access(self, draws: st.DataObject) -> None:
        indexes = st.sampled_from(sorted(self.oracle.pages))
        chain = draws.draw(st.lists(indexes, max_size=6, unique=True))
        self.eviction.access(chain, self.now_ms)
        for index in reversed(chain):
            self.oracle.use(index)

    @precondition(lambda self: self.oracle.pages)
    @rule(draws=st.data(), evicted=st.booleans())
    def erase(self, draws: st.DataObject, evicted: bool) -> None:
        index = draws.draw(st.sampled_from(sorted(self.oracle.pages)))
        self.eviction.erase(index, evicted)
        self.forget(index)

    def forget(self, index: int) -> None:
        self.oracle.erase(index)
        self.held.discard(index)
        self.refused.discard(index)

    @precondition(lambda self: self.oracle.pages)
    @rule(draws=st.data())
    def hold(self, draws: st.DataObject) -> None:
        self.held = draws.draw(st.sets(st.sampled_from(sorted(self.oracle.pages))))
        for index in self.refused - self.held:
            self.eviction.note_evictable(index)
        self.refused &= self.held
        # Of others it means nothing, also of pages that are not there.
        self.eviction.note_evictable(draws.draw(st.sampled_from(sorted(self.free() | {INDEXES}))))

    @rule(capacity=st.integers(0, 300))
    def set_capacity(self, capacity: int) -> None:
        self.eviction.set_capacity(capacity)

    def free(self) -> set[int]:
        return set(self.oracle.pages) - self.held

    @rule(honour=st.booleans())
    def victim(self, honour: bool) -> None:
        oracle = self.oracle

        def is_evictable(index: int) -> bool:
            assert index in oracle.pages
            assert index not in self.refused, "asked again"
            if index in self.held:
                self.refused.add(index)
            return index not in self.held

        victim = self.eviction.victim(is_evictable, self.now_ms)
        evictable = self.free()
        if not evictable:
            assert victim is None
            return
        assert victim in evictable
        assert not oracle.has_evictable_below(victim, self.held)
        leaves = {index for index in evictable if oracle.is_leaf(index)}
        assert not leaves or victim in leaves
        unpinned = {index for index in leaves if not oracle.pages[index].soft}
        assert not unpinned or victim in unpinned
        if self.policy == "lru":
            ready = unpinned or leaves
            assert all(oracle.pages[victim].used <= oracle.pages[index].used for index in ready)
        if honour:
            self.eviction.erase(victim)
            self.forget(victim)

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "oracle"):
            return
        assert self.eviction.check_invariants() == ""
        assert self.eviction.page_count() == len(self.oracle.pages)
        size = sum(page.size for page in self.oracle.pages.values())
        assert self.eviction.resident_size_bytes() == size


@pytest.mark.parametrize("policy", POLICIES)
def test_rules(policy: str) -> None:
    machine = type("Machine", (EvictionMachine,), {"policy": policy})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=60))


@pytest.mark.parametrize("name", WORKLOADS)
def test_adaptive_is_close_to_the_better(name: str) -> None:
    """Within 2 % after a quarter of the requests; what learning costs before that is bounded."""
    requests = make(name, 1000, 60_000)
    quarter = len(requests.now_ms) // 4
    whole, later = {}, {}
    for policy in POLICIES:
        hits, _ = _core.replay_trace(policy, 1000, requests.starts, requests.ids, requests.now_ms)
        whole[policy] = int(hits.sum(dtype="uint64"))
        later[policy] = int(hits[quarter:].sum(dtype="uint64"))
    assert later["adaptive"] >= 0.98 * max(later["lru"], later["s3fifo"])
    assert whole["adaptive"] >= 0.97 * max(whole["lru"], whole["s3fifo"])


@pytest.mark.parametrize("policy", POLICIES)
def test_replay_repeats_exactly(policy: str) -> None:
    requests = make("chats", 200, 20_000)
    runs = [
        _core.replay_trace(policy, 200, requests.starts, requests.ids, requests.now_ms)[0]
        for _ in range(2)
    ]
    assert (runs[0] == runs[1]).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_memory_per_page(policy: str) -> None:
    """Also right after a table has doubled."""
    eviction = _core.Eviction(policy, 270_000)
    fixed = eviction.memory_size_bytes()
    assert fixed <= 512 * 1024
    random_ = random.Random(1)
    parent = 0
    for index in range(270_000):
        key = random_.getrandbits(64) | 1
        eviction.insert(index, key, parent if index % 16 else 0)
        parent = key
        if index > 100_000 and index % 1024 == 1023:
            assert (eviction.memory_size_bytes() - fixed) / (index + 1) <= 72


@pytest.mark.parametrize("policy", POLICIES)
def test_many_held_pages_do_not_slow_the_search(policy: str) -> None:
    count, held_end = 50_000, 45_000
    eviction = _core.Eviction(policy, count)
    for index in range(count):
        eviction.insert(index, index + 1)
    asked = 0

    def is_evictable(index: int) -> bool:
        nonlocal asked
        asked += 1
        return index >= held_end

    for _ in range(4000):
        victim = eviction.victim(is_evictable)
        assert victim is not None
        assert victim >= held_end
        eviction.erase(victim)
    assert asked <= held_end + 4000


@pytest.mark.parametrize("policy", POLICIES)
def test_held_leaves_do_not_slow_the_search_above_them(policy: str) -> None:
    """Chains whose leaves are held: their inner pages go one by one, from below."""
    chains, length = 10_000, 5
    eviction = _core.Eviction(policy, chains * length)
    for index in range(chains * length):
        eviction.insert(index, index + 1, index if index % length else 0)
    held = set(range(length - 1, chains * length, length))
    asked = 0

    def is_evictable(index: int) -> bool:
        nonlocal asked
        asked += 1
        return index not in held

    def evict() -> int:
        victim = eviction.victim(is_evictable)
        assert victim is not None
        eviction.erase(victim)
        return victim

    gone = {evict() for _ in range(2 * chains)}
    assert not gone & held
    assert all(index + 1 in gone or index + 1 in held for index in gone)
    assert asked <= len(held) + len(gone)
    # A leaf that is free again goes before all inner pages, and with it what was above it.
    for leaf in random.Random(1).sample(sorted(held), 100):
        held.discard(leaf)
        eviction.note_evictable(leaf)
        for index in range(leaf, leaf - length, -1):
            if index not in gone:
                assert evict() == index
                gone.add(index)
    assert eviction.check_invariants() == ""
    assert asked <= chains + len(gone)


@pytest.mark.parametrize("policy", POLICIES)
def test_ring_and_doubles_do_not_hang(policy: str) -> None:
    eviction = _core.Eviction(policy, 10)
    for index, (key, parent) in enumerate([(1, 2), (2, 3), (3, 1), (1, 3), (4, 4)]):
        eviction.insert(index, key, parent)
    assert eviction.check_invariants() == ""
    gone = []
    while (victim := eviction.victim(lambda _: True)) is not None:
        eviction.erase(victim)
        gone.append(victim)
    assert sorted(gone) == list(range(5))


def test_misuse_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        _core.Eviction("fifo", 1)
    eviction = _core.Eviction("lru", 1)
    with pytest.raises(InvalidArgumentError):
        eviction.erase(0)
    with pytest.raises(InvalidArgumentError):
        eviction.access([3])
