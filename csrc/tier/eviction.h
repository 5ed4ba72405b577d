// Which page leaves the pool when room is needed.  Pure: no I/O, no thread, no clock, no randomness
// of its own; time and seeds are arguments, so a run is repeated exactly by repeating its calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace hicache {

// Dense number of a resident page, chosen by the caller and free for reuse after erase().
using PageIndex = uint32_t;
inline constexpr PageIndex kNoPage = UINT32_MAX;

// Pages that a victim can be asked for among: dense numbers of the caller's.
using PageGroup = uint32_t;
inline constexpr PageGroup kNoGroup = UINT32_MAX;

struct PageTraits {
  uint64_t key_hash = 0;     // well mixed over (namespace, key); two namespaces never share chains
  uint64_t parent_hash = 0;  // key_hash of the page before this one; 0: chain root, or unknown
  uint64_t size_bytes = 0;
  bool is_soft_pinned = false;  // leaves only when nothing unpinned can
  PageGroup group = kNoGroup;   // pages of one chain are of one group
};

enum class EvictionKind : uint8_t { kLru, kS3Fifo, kAdaptive };

// Why a page leaves.  Only an evicted page is worth remembering: a removed one (deleted, expired,
// damaged, cleared) will not teach the policy that it was evicted too early.
enum class EraseReason : uint8_t { kEvicted, kRemoved };

// Borrowed `bool(PageIndex)`: whether the page may leave now (no lease, no hard pin, no copy in
// flight).  Must not call back into the policy.  The answer may become no without notice; when a
// page that was answered with no may leave, note_evictable() tells.
class PagePredicate {
 public:
  template <typename F>
    requires(std::is_invocable_r_v<bool, F&, PageIndex> &&
             !std::is_same_v<std::remove_cvref_t<F>, PagePredicate>)
  PagePredicate(F&& f)  // NOLINT: implicit, so that a lambda can be passed
      : target_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* target, PageIndex page) -> bool {
          return (*static_cast<std::remove_reference_t<F>*>(target))(page);
        }) {}

  bool operator()(PageIndex page) const { return call_(target_, page); }

 private:
  void* target_;
  bool (*call_)(void*, PageIndex);
};

// Not thread-safe: one owner calls it.  Nothing blocks.  `now_ms` is any clock that does not run
// backwards (a smaller value than before counts as the one before).
//
// A child of a page is a resident page whose parent_hash is its key_hash, whichever came first.
// Rules that every policy keeps:
//  * victim() never names a page while one of its descendants is evictable (leaf first);
//  * it names a soft-pinned leaf only when no other leaf is evictable, and a page with children
//    only when no leaf is: then one without a soft pin before one that has it;
//  * it returns kNoPage only when no resident page is evictable.
// Links that would close a ring, and the second of two resident pages with one key_hash, are taken
// as chain roots: hostile hashes cost hit rate, never a hang.
class Eviction {
 public:
  virtual ~Eviction() = default;

  // `page` must not be resident.  Pages of one chain should come root first, as a put has them.
  virtual void insert(PageIndex page, const PageTraits& traits, uint64_t now_ms) = 0;

  // The pages that one request read, or put again, root first.  All must be resident.
  virtual void access(std::span<const PageIndex> chain_root_first, uint64_t now_ms) = 0;

  // `page` must be resident.  Its children stay, and are its children again when it comes back.
  virtual void erase(PageIndex page, EraseReason reason) = 0;

  // The page to evict next; it stays resident until erase().  Pages found not evictable are set
  // aside and not asked again before note_evictable(): amortised O(log n) over both, and a walk up
  // the chain through pages that are set aside as well.
  virtual PageIndex victim(PagePredicate is_evictable, uint64_t now_ms) = 0;

  // The same among the pages of one group, for which the rules hold as well; of its leaves that one
  // goes whose chain was not used for longest, and a chain goes whole.  Amortised O(1).
  virtual PageIndex victim_of(PageGroup group, PagePredicate is_evictable) = 0;

  // `page` must be resident.  It counts as just used in its new group.  Costs memory from the first
  // page on that has a group.
  virtual void set_group(PageIndex page, PageGroup group) = 0;

  // A page that victim() was refused may leave now.  For any other page, resident or not, nothing.
  virtual void note_evictable(PageIndex page) = 0;

  // What the pages' sizes may add up to from now on.
  virtual void set_capacity(uint64_t capacity_bytes) = 0;

  virtual size_t page_count() const = 0;
  virtual uint64_t resident_size_bytes() const = 0;

  // Heap memory of this object, ghosts included.
  virtual size_t memory_size_bytes() const = 0;

  // What is inconsistent, or "" (slow; for tests).
  virtual std::string check_invariants() const = 0;
};

// `capacity_bytes` is what the pages' sizes may add up to: it scales what is remembered of evicted
// pages.  `seed` decides sampling only.
std::unique_ptr<Eviction> make_eviction(EvictionKind kind, uint64_t capacity_bytes, uint64_t seed);

// "lru", "s3fifo" or "adaptive".
std::optional<EvictionKind> parse_eviction_kind(std::string_view name);
std::string_view eviction_kind_name(EvictionKind kind);

}  // namespace hicache
