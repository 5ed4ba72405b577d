// The eviction policies, for the benchmark and the property tests.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/convert.h"
#include "tier/eviction.h"
#include "tier/eviction_replay.h"

namespace nb = nanobind;

namespace hicache {
namespace {

// Its records come in pieces up to the largest index; a typing error must not ask for terabytes.
constexpr PageIndex kPageIndexMax = (PageIndex{1} << 26) - 1;
constexpr uint64_t kPageSizeBytesMax = (uint64_t{1} << 44) - 1;

[[noreturn]] void raise_invalid(const std::string& message) {
  raise(Status(Code::kInvalidArgument, message));
}

EvictionKind kind_from(const std::string& policy) {
  const auto kind = parse_eviction_kind(policy);
  if (!kind) raise_invalid("policy = \"" + policy + "\"; use lru, s3fifo or adaptive");
  return *kind;
}

// An Eviction that checks what C++ callers promise.
class CheckedEviction {
 public:
  CheckedEviction(const std::string& policy, uint64_t capacity_bytes, uint64_t seed)
      : eviction_(make_eviction(kind_from(policy), capacity_bytes, seed)) {}

  void insert(PageIndex page, uint64_t key_hash, uint64_t parent_hash, uint64_t size_bytes,
              bool is_soft_pinned, uint64_t now_ms) {
    if (page > kPageIndexMax) raise_invalid("page " + std::to_string(page) + " is too large");
    if (size_bytes > kPageSizeBytesMax) raise_invalid("size_bytes is above 16 TiB");
    if (is_resident(page)) raise_invalid("page " + std::to_string(page) + " is resident");
    if (page >= resident_.size()) resident_.resize(page + 1);
    resident_[page] = true;
    eviction_->insert(page, PageTraits{key_hash, parent_hash, size_bytes, is_soft_pinned}, now_ms);
  }

  void access(const std::vector<PageIndex>& chain_root_first, uint64_t now_ms) {
    for (PageIndex page : chain_root_first) require_resident(page);
    eviction_->access(chain_root_first, now_ms);
  }

  void erase(PageIndex page, bool evicted) {
    require_resident(page);
    eviction_->erase(page, evicted ? EraseReason::kEvicted : EraseReason::kRemoved);
    resident_[page] = false;
  }

  nb::object victim(const nb::callable& is_evictable, uint64_t now_ms) {
    const PageIndex page = eviction_->victim(
        [&](PageIndex asked) { return nb::cast<bool>(is_evictable(asked)); }, now_ms);
    if (page == kNoPage) return nb::none();
    return nb::int_(page);
  }

  void note_evictable(PageIndex page) { eviction_->note_evictable(page); }

  void set_capacity(uint64_t bytes) { eviction_->set_capacity(bytes); }

  const Eviction& get() const { return *eviction_; }

 private:
  bool is_resident(PageIndex page) const { return page < resident_.size() && resident_[page]; }
  void require_resident(PageIndex page) const {
    if (!is_resident(page)) raise_invalid("page " + std::to_string(page) + " is not resident");
  }

  std::unique_ptr<Eviction> eviction_;
  std::vector<bool> resident_;
};

std::span<const uint64_t> to_span(const U64Array& array) {
  return {array.data(), array.size()};
}

nb::tuple replay_trace(const std::string& policy, uint64_t capacity_pages, const U64Array& starts,
                       const U64Array& ids, const U64Array& now_ms, uint64_t seed) {
  const EvictionKind kind = kind_from(policy);
  const ReplayRequests requests{to_span(starts), to_span(ids), to_span(now_ms)};
  if (capacity_pages == 0 || capacity_pages > kPageIndexMax) {
    raise_invalid("capacity_pages must be between 1 and " + std::to_string(kPageIndexMax));
  }
  if (requests.starts.size() != requests.now_ms.size() + 1 ||
      !std::is_sorted(requests.starts.begin(), requests.starts.end()) ||
      requests.starts.back() > requests.ids.size()) {
    raise_invalid("starts must ascend, end within ids, and be one more than now_ms");
  }
  ReplayResult result;
  {
    nb::gil_scoped_release no_gil;
    result = replay(kind, capacity_pages, seed, requests);
  }
  auto* hits = new std::vector<uint32_t>(std::move(result.hits));
  nb::capsule owner(hits,
                    [](void* held) noexcept { delete static_cast<std::vector<uint32_t>*>(held); });
  using HitArray = nb::ndarray<nb::numpy, uint32_t, nb::ndim<1>>;
  return nb::make_tuple(HitArray(hits->data(), {hits->size()}, owner), result.memory_size_bytes);
}

}  // namespace

void bind_eviction(nb::module_& m) {
  nb::class_<CheckedEviction>(m, "Eviction",
                              "An eviction policy alone: for tests and benchmarks. Pages are small "
                              "integers, reused after erase(). Not thread-safe; never blocks.\n\n"
                              "Raises InvalidArgumentError for an unknown policy, for a page that "
                              "is resident already or not yet.")
      .def(nb::init<const std::string&, uint64_t, uint64_t>(), nb::arg("policy"),
           nb::arg("capacity_bytes"), nb::arg("seed") = 0)
      .def("insert", &CheckedEviction::insert, nb::arg("page"), nb::arg("key_hash"),
           nb::arg("parent_hash") = 0, nb::arg("size_bytes") = 1, nb::arg("is_soft_pinned") = false,
           nb::arg("now_ms") = 0, "Add a page; parent_hash 0: chain root.")
      .def("access", &CheckedEviction::access, nb::arg("chain_root_first"), nb::arg("now_ms") = 0,
           "Note that one request read these pages.")
      .def("erase", &CheckedEviction::erase, nb::arg("page"), nb::arg("evicted") = true,
           "Take a page out; evicted=False: removed, not worth remembering.")
      .def("victim", &CheckedEviction::victim, nb::arg("is_evictable"), nb::arg("now_ms") = 0,
           nb::sig("def victim(self, is_evictable: collections.abc.Callable[[int], bool], "
                   "now_ms: int = 0) -> int | None"),
           "Return the page to evict next, or None if is_evictable() accepts no page. One that it "
           "refuses is not asked for again before note_evictable().")
      .def("note_evictable", &CheckedEviction::note_evictable, nb::arg("page"),
           "Tell that a page which is_evictable() refused may leave now.")
      .def("set_capacity", &CheckedEviction::set_capacity, nb::arg("capacity_bytes"),
           "Say what the pages' sizes may add up to from now on.")
      .def("page_count", [](const CheckedEviction& self) { return self.get().page_count(); })
      .def("resident_size_bytes",
           [](const CheckedEviction& self) { return self.get().resident_size_bytes(); })
      .def("memory_size_bytes",
           [](const CheckedEviction& self) { return self.get().memory_size_bytes(); })
      .def(
          "check_invariants",
          [](const CheckedEviction& self) { return self.get().check_invariants(); },
          "Return what is inconsistent, or an empty string.");
  m.def("replay_trace", &replay_trace, nb::arg("policy"), nb::arg("capacity_pages"),
        nb::arg("starts"), nb::arg("ids"), nb::arg("now_ms"), nb::arg("seed") = 0,
        nb::sig("def replay_trace(policy: str, capacity_pages: int, "
                "starts: numpy.typing.NDArray[numpy.uint64], "
                "ids: numpy.typing.NDArray[numpy.uint64], "
                "now_ms: numpy.typing.NDArray[numpy.uint64], "
                "seed: int = 0) -> tuple[numpy.typing.NDArray[numpy.uint32], int]"),
        "Replay requests against a cache of equal pages; request i names the pages "
        "ids[starts[i]:starts[i+1]], root first. Return the leading pages that each request hit, "
        "and the policy's memory in bytes at the end. The GIL is released.");
}

}  // namespace hicache
