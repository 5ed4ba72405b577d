// Leases: bounded-time promises that a page's bytes stay where they are.
//
// Two kinds. A *look-up lease* bridges the time between "is it there?" and the read that follows; a
// *read lease* covers the copy itself. A session (one client connection) holds at most one lease of
// each kind per page; a second one counts up or renews. A session's leases end with it.
//
// Pure: time is an argument. Threads: one owner.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/huge_allocator.h"
#include "tier/eviction.h"

namespace hicache {

using LeaseIndex = uint32_t;
inline constexpr LeaseIndex kNoLease = UINT32_MAX;
using SessionIndex = uint32_t;

/// kWriteOut: the node itself, while it writes the page to an SSD; until released.
enum class LeaseKind : uint8_t { kLookup = 0, kRead = 1, kWriteOut = 2 };

class LeaseTable {
 public:
  struct Options {
    std::array<uint64_t, 2> ttl_ms;  // Of kLookup and kRead.
  };

  explicit LeaseTable(const Options& options) : options_(options) {}

  /// Grants or renews. `head` is the page's list of leases, kept by the page's record.
  void grant(LeaseKind kind, SessionIndex session, PageIndex page, LeaseIndex* head,
             uint64_t now_ms);

  /// Asks the CPU to fetch a page's first lease.
  void prefetch(LeaseIndex head) const {
    if (head != kNoLease) __builtin_prefetch(&leases_[head]);
  }

  /// True if the session holds such a lease.
  bool holds(LeaseKind kind, SessionIndex session, LeaseIndex head) const;

  /// True if any session holds such a lease.
  bool has(LeaseKind kind, LeaseIndex head) const;

  /// Gives back one count of a lease; the lease ends when its count is 0. Unknown leases are
  /// ignored: they may have expired. Returns true if the page has fewer leases than before.
  bool release(LeaseKind kind, SessionIndex session, LeaseIndex* head);

  /// Ends leases that expired. `head_of(page)` gives a page's list, `on_end(page, kind)` is told.
  template <typename HeadOf, typename OnEnd>
  void expire(uint64_t now_ms, HeadOf head_of, OnEnd on_end) {
    for (List& list : by_kind_) {
      while (list.first != kNoLease && leases_[list.first].expires_ms <= now_ms) {
        const Lease ended = leases_[list.first];
        end(list.first, head_of(ended.page));
        on_end(ended.page, ended.kind);
      }
    }
  }

  /// Ends everything that a session holds.
  template <typename HeadOf, typename OnEnd>
  void end_session(SessionIndex session, HeadOf head_of, OnEnd on_end) {
    while (session < by_session_.size() && by_session_[session].first != kNoLease) {
      const LeaseIndex lease = by_session_[session].first;
      const Lease ended = leases_[lease];
      end(lease, head_of(ended.page));
      on_end(ended.page, ended.kind);
    }
  }

  /// Time of the next expiry, or UINT64_MAX.
  uint64_t next_expiry_ms() const;
  size_t count() const { return count_; }
  size_t memory_size_bytes() const { return leases_.capacity() * sizeof(Lease); }

 private:
  struct Links {
    LeaseIndex previous = kNoLease;
    LeaseIndex next = kNoLease;
  };
  struct List {
    LeaseIndex first = kNoLease;
    LeaseIndex last = kNoLease;
  };
  struct Lease {
    PageIndex page;
    SessionIndex session;
    uint64_t expires_ms;
    uint32_t count;  // Concurrent reads of one page by one session.
    LeaseKind kind;
    LeaseIndex page_next;  // Next lease of the same page; next free lease when unused.
    Links in_kind;         // Oldest first: all of a kind live equally long, so this is by expiry.
    Links in_session;
  };

  LeaseIndex find(LeaseKind kind, SessionIndex session, LeaseIndex head) const;
  void end(LeaseIndex lease, LeaseIndex* head);
  void append(List& list, Links Lease::* links, LeaseIndex lease);
  void remove(List& list, Links Lease::* links, LeaseIndex lease);

  Options options_;
  std::vector<Lease, HugeAllocator<Lease>> leases_;
  LeaseIndex free_ = kNoLease;
  std::array<List, 3> by_kind_;
  std::vector<List> by_session_;
  size_t count_ = 0;
};

}  // namespace hicache
