// The node's decisions: which pages it has, where they lie, who may read them, which one leaves.
//
// Pure: no I/O, no thread, no clock; it moves no page bytes. Clients move bytes between the offsets
// it names and their own memory. The node's server and the tests are the two callers.
//
//   put:  reserve -> (client writes) -> commit           invisible until commit
//   get:  lease   -> (client copies and verifies) -> release
//   life: free -> reserved -> present -> [condemned while leased] -> free
//
// Threads: one owner. Every call takes the time in milliseconds of a clock that does not run back.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "store/lease_table.h"
#include "store/lower_tier.h"
#include "store/page_record.h"
#include "store/spare_pages.h"
#include "store/stats.h"
#include "store/tenant_table.h"
#include "tier/eviction.h"
#include "tier/key_table.h"
#include "tier/page_listener.h"
#include "tier/slot_allocator.h"

namespace hicache {

using NamespaceIndex = uint32_t;

class PageStore {
 public:
  struct Options {
    uint64_t capacity_bytes;  // What add_memory() will add up to in the end.
    EvictionKind eviction;
    uint64_t seed;  // For the eviction policy's sampling.
    uint64_t read_lease_ttl_ms;
    uint64_t lookup_lease_ttl_ms;
    /// Of the pool that look-up leases may hold; twice as much for those of resident pages.
    double lookup_lease_share;
    double hard_pin_share;  // Of the pool that hard pins may hold.
    uint64_t reservation_ttl_ms;
    /// Called when a put finds no room: adds memory and returns true, or returns false.
    std::function<bool()> grow;
  };

  struct NamespaceUse {
    NamespaceDigest digest;
    std::string description;
    SpaceIndex space;
    uint64_t page_count;
    uint64_t size_bytes;
    std::string tenant;
  };

  struct LookupFlags {
    bool lease;   // Grant look-up leases for what is found.
    bool prefix;  // Stop at the first miss; the rest is answered kNotFound.
    /// Only what can be read at once counts: what is below is asked for, and with `lease` what
    /// cannot be leased is a miss.
    bool resident = false;
  };

  using Location = PageLocation;

  struct Placement {
    Code code;  // kOk: write to `extents`, then commit. kAlreadyExists: nothing to do. kNoSpace.
                // kOverQuota. kCancelled: the namespace was cleared. kBusy: see `may_wait`.
    PageRef ref{kNoPage, 0};
    std::span<const Extent> extents;  // Valid until the next call.
  };

  struct ReserveOptions {
    const Key* parent;  // Of keys[0]; null: none or unknown.
    bool chained;       // keys[i] is the parent of keys[i + 1].
    bool replace;       // Also when a page of that key is present.
    Pin pin;
    /// The namespace's life that the pages are meant for; in another one they are kCancelled.
    SpaceIndex space = kAnySpace;
    /// kBusy rather than push out pages that the tier below will have soon: ask again then. From
    /// the first such page on all are kBusy.
    bool may_wait = false;
  };

  struct CommitOptions {
    uint64_t ttl_ms;  // 0: until evicted.
    bool replace;
    uint8_t replica_count = 1;  // That the cluster should have of it.
  };

  explicit PageStore(Options options);

  /// The tier below; without one, what is evicted is gone. It outlives the store's use.
  void set_lower(LowerTier& lower) { lower_ = &lower; }
  /// Told of pages that become present and that leave. It outlives the store's use.
  void set_listener(PageListener& listener) { listener_ = &listener; }

  void add_memory(uint64_t offset, uint64_t size) { allocator_.add(offset, size); }

  /// What add_memory() will add up to in the end has become another. Requires: not less.
  void set_capacity(uint64_t bytes);
  uint64_t capacity_bytes() const { return options_.capacity_bytes; }

  /// Says how large the pool can become for now: leases and pins are bounded by shares of that.
  void set_reachable_bytes(uint64_t bytes) { reachable_bytes_ = bytes; }

  /// What tenants may use of the pool, from now on. Who is above it loses pages, in small steps by
  /// advance() and by its own puts.
  void set_quotas(Quotas quotas);

  SessionIndex open_session();
  /// Ends the session's leases and drops its reservations.
  void close_session(SessionIndex session, uint64_t now_ms);

  /// The namespace with this digest, made if needed. kNoSpace if is_full_of_namespaces().
  Result<NamespaceIndex> open_namespace(const NamespaceDigest& digest, std::string description);
  /// The same, if there is one already.
  std::optional<NamespaceIndex> find_namespace(const NamespaceDigest& digest) const;
  /// The namespace's present life; clear() begins another.
  SpaceIndex space_of(NamespaceIndex index) const { return namespaces_[index].space; }
  bool has_namespace(NamespaceIndex index) const {
    return index < namespaces_.size() && !namespaces_[index].has_ended;
  }
  /// There are 65536 of them: before another one opens, one has to end.
  bool is_full_of_namespaces() const;
  /// The one that has not been named for the longest time. Requires: there is one.
  NamespaceIndex least_used_namespace();
  /// Clears it, and forgets it: it has no number any more.
  void end_namespace(NamespaceIndex index);

  void lookup(SessionIndex session, NamespaceIndex index, std::span<const Key> keys,
              LookupFlags flags, uint64_t now_ms, std::vector<Code>& codes);

  /// The indexes of keys that are neither here nor below.
  std::vector<uint32_t> missing(NamespaceIndex index, std::span<const Key> keys,
                                uint64_t now_ms) const;

  /// Grants a read lease on each page found. `read_now`: never kBusy.
  void lease(SessionIndex session, NamespaceIndex index, std::span<const Key> keys, bool read_now,
             uint64_t now_ms, std::vector<Location>& locations);

  /// Ends the session's read and look-up leases on these pages. Unknown references are ignored.
  void release(SessionIndex session, std::span<const PageRef> refs, uint64_t now_ms);

  /// Makes room by evicting, and hands out where to write. Sizes are at least 1. A tenant at its
  /// quota makes room with its own pages.
  void reserve(SessionIndex session, NamespaceIndex index, std::span<const Key> keys,
               std::span<const uint64_t> sizes, const ReserveOptions& options, uint64_t now_ms,
               std::vector<Placement>& placements);

  /// Makes one written page visible. kAlreadyExists: another client was first, ours is dropped.
  /// kCancelled: the reservation is gone (expired, or its namespace was cleared meanwhile).
  Code commit(SessionIndex session, PageRef ref, uint64_t checksum, const CommitOptions& options,
              uint64_t now_ms);

  /// Drops one reservation. `backed` false: the machine has no memory for its place in the pool,
  /// which is not given out again; whole slots may be added again with add_memory().
  void abort(SessionIndex session, PageRef ref, bool backed = true);

  /// Where a reservation of this session writes; empty for anything else.
  std::span<const Extent> extents_of(SessionIndex session, PageRef ref) const;

  Code remove(NamespaceIndex index, const Key& key);
  Code set_pin(NamespaceIndex index, const Key& key, Pin pin, uint64_t now_ms);

  /// Makes every page of the namespace invisible at once; returns how many. Their bytes are
  /// reclaimed in small steps by advance() and by puts.
  uint64_t clear(NamespaceIndex index);

  /// Appends the keys of the namespace's pages among at most `count_max` records from `first` on;
  /// returns where to go on, or kNoPage at the end.
  PageIndex list(NamespaceIndex index, PageIndex first, size_t count_max, uint64_t now_ms,
                 std::vector<Key>& keys) const;

  /// A reader found that the bytes do not match the checksum: the page is dropped.
  void report_corrupt(PageRef ref);

  /// Ends what has expired, reclaims a bounded number of cleared pages. Returns when it wants to be
  /// called again (UINT64_MAX: not before the next other call).
  uint64_t advance(uint64_t now_ms);

  // --- what the tier below needs

  const NamespaceDigest& digest_of(SpaceIndex space) const;
  const std::string& description_of(SpaceIndex space) const;
  bool is_current(SpaceIndex space) const;
  /// The page of this name, if it is present; kNoPage: it is not.
  PageIndex find_present(SpaceIndex space, const Key& key) const {
    return find(space, key, page_hash(space, key));
  }
  /// Records that were ever used: pages are below it.
  PageIndex record_count() const { return records_.size(); }
  /// A page of this hash is present.
  bool has_hash(uint64_t hash) const;
  bool is_present(PageRef ref) const;
  /// The key of its parent, if that is present, too; else all zero.
  Key parent_key_of(PageIndex page) const;
  uint64_t hash_of(PageIndex page) const;
  /// The page to evict next, or kNoPage.
  PageIndex next_victim(uint64_t now_ms);
  /// The same among a tenant's. Requires: there are quotas.
  PageIndex next_victim_of(TenantIndex tenant);
  /// It leaves first when room is needed, unless it is read or asked for before. Requires: it is
  /// present, not held, and not spare.
  void spare(PageIndex page);
  /// Keeps a page where it is while it is written to an SSD, even when it leaves the store.
  void begin_write_out(PageIndex page);
  void end_write_out(PageIndex page);
  /// Keeps a page from being evicted; still it may be removed.
  void set_kept(PageIndex page, bool is_kept);
  /// All pages that are present and have no expiry: those that were read first, then by age.
  std::vector<PageRef> pages_to_keep() const;
  /// Room for a page that comes up from below, or kNoPage. It does not expire: commit or drop it.
  PageIndex reserve_from_below(const PageName& name, uint64_t size, uint64_t parent_hash,
                               uint64_t now_ms);
  /// Makes it visible, if it is still wanted.
  void commit_from_below(PageIndex page, uint64_t checksum, uint64_t now_ms);
  void drop_from_below(PageIndex page);
  /// A read lease on a present page, of which release() ends one.
  void hold(SessionIndex session, PageIndex page, uint64_t now_ms);
  /// The same on all of these keys that are present.
  std::vector<PageRef> hold_present(SessionIndex session, NamespaceIndex index,
                                    std::span<const Key> keys, uint64_t now_ms);
  /// A look-up lease on a present page, if look-ups may hold more of the pool. Returns whether.
  bool promise(SessionIndex session, PageIndex page, uint64_t now_ms, bool is_resident = false);

  /// Bytes that no page and no reservation uses.
  uint64_t free_bytes() const { return allocator_.free_bytes(); }
  /// The same, with what the pool can still grow by.
  uint64_t reachable_free_bytes() const {
    const uint64_t size = allocator_.size_bytes();
    return free_bytes() + (reachable_bytes_ > size ? reachable_bytes_ - size : 0);
  }
  uint64_t reachable_bytes() const { return reachable_bytes_; }
  TenantIndex tenant_of_space(SpaceIndex space) const { return spaces_.at(space).tenant; }
  const Tenant& tenant(TenantIndex index) const { return tenants_[index]; }
  /// Bytes of a tenant's pages that leave first. Requires: there are quotas.
  uint64_t spare_bytes_of(TenantIndex index) const { return spares_.size_bytes_of(index); }
  /// Bytes of pages that leave first.
  uint64_t spare_bytes() const { return spares_.size_bytes(); }
  /// Present pages of which there should be more than this copy.
  uint64_t replicated_count() const { return replicated_count_; }
  const PageRecord& record(PageIndex page) const { return records_[page]; }
  NodeStats stats() const;
  /// The namespaces that use most, most first.
  std::vector<NamespaceUse> namespace_use(size_t count_max) const;
  /// The tenants that use most, most first. Only those that have a quota.
  std::vector<Tenant> tenant_use(size_t count_max) const;
  /// Bytes that fit into the quota of a namespace's tenant without evicting.
  uint64_t quota_left_bytes(NamespaceIndex index) const;

  /// What is inconsistent, or "" (slow; for tests).
  std::string check_invariants() const;

 private:
  struct PageList {
    PageIndex first = kNoPage;
    uint64_t count = 0;
    uint64_t size_bytes = 0;
  };
  /// Pages of one life of a namespace: those that are present are linked.
  struct Space : PageList {
    TenantIndex tenant = 0;
    uint64_t used_bytes = 0;  // Footprints, of those that are reserved or condemned as well.
    uint64_t reserved_bytes = 0;
    bool is_counted = true;  // For its tenant: until it is cleared.
  };
  static constexpr uint64_t kDropPerStep =
      256;  // Cleared pages reclaimed per step: well below 1 ms.

  struct Namespace {
    NamespaceDigest digest;
    std::string description;
    SpaceIndex space;
    uint64_t used;  // Of uses_, when it was last named.
    bool has_ended = false;
  };
  struct Session {
    PageList reserved;
    bool is_open = true;
  };

  PageIndex find(SpaceIndex space, const Key& key, uint64_t hash) const;
  /// The same, but for a page whose time is over and that expire_pages() has not come to yet.
  PageIndex find_live(SpaceIndex space, const Key& key, uint64_t hash, uint64_t now_ms) const;
  uint64_t share_of_pool(double share) const;
  void prefetch(SpaceIndex space, std::span<const Key> keys, std::vector<uint64_t>& hashes) const;
  /// Fetches what the look-up of hashes_[i + a few] will touch. Inlined always: as a function that
  /// returns nothing and changes nothing, GCC drops calls of it.
  [[gnu::always_inline]] void prefetch_records(size_t i, bool with_leases) const;
  /// Its present life, for a call that names it.
  SpaceIndex use(NamespaceIndex index);
  void link(PageList& list, PageIndex page);
  void unlink(PageList& list, PageIndex page);

  bool is_reservation(SessionIndex session, PageRef ref) const;
  PageIndex make_reservation(SessionIndex session, const PageName& name, uint64_t size,
                             uint64_t parent_hash, Extents extents, uint64_t now_ms);
  void make_present(PageIndex page, Space& space, uint64_t now_ms);
  /// Evicts until there is room. kNoSpace: there cannot be any; kBusy, if `may_wait`: there will be
  /// soon.
  Code make_room(uint64_t size, bool may_wait, Extents& extents, uint64_t now_ms);
  void evict(PageIndex page, uint64_t now_ms);
  /// A spare page is in the order of eviction again; any other stays as it is.
  void recall(PageIndex page, uint64_t now_ms);
  /// Takes a present page out of sight; frees it now or when its last lease ends.
  void condemn(PageIndex page, EraseReason reason);
  void free_page(PageIndex page, bool backed = true);
  void update_held(PageIndex page);
  void set_expiry(PageIndex page, uint64_t expires_ms);
  bool has_expired(uint64_t now_ms) const;
  void expire_pages(uint64_t now_ms);
  void expire_leases(uint64_t now_ms);
  void after_lease_end(PageIndex page, LeaseKind kind);
  bool drop_cleared(uint64_t count_max);
  /// What a new page takes of its tenant's quota, and gives back when it is freed.
  void charge(SpaceIndex space, uint64_t size);
  void discharge(const PageRecord& record);
  bool is_evictable(PageIndex page);
  PageTraits traits_of(PageIndex page) const;
  void set_tenant(Space& space, TenantIndex tenant);
  /// Evicts a tenant's pages until it may have so much more; false if it may not.
  bool make_quota(SpaceIndex space, uint64_t size, uint64_t now_ms);
  /// Evicts one of them; false if none can leave.
  bool evict_of(TenantIndex tenant, uint64_t now_ms);
  /// Groups pages that came before they had to be; false if all are.
  bool group_pages();
  /// Evicts of tenants that are above their quotas; false if none is that could be helped.
  bool trim_tenants(uint64_t now_ms);
  Code reserve_one(SessionIndex session, SpaceIndex space, const Key& key, uint64_t size,
                   uint64_t parent_hash, const ReserveOptions& options, uint64_t now_ms,
                   PageIndex* page);
  std::string check_tenants() const;

  Options options_;
  LowerTier* lower_ = nullptr;
  PageListener* listener_ = nullptr;
  uint64_t reachable_bytes_;  // The capacity, or less while the machine has no more memory.
  SlotAllocator allocator_;
  KeyTable table_;
  PageRecords records_;
  LeaseTable leases_;
  std::unique_ptr<Eviction> eviction_;  // Of the present pages but the spare ones.
  SparePages spares_;
  std::vector<Namespace> namespaces_;  // Those that ended keep their place.
  size_t namespace_count_ = 0;         // Of those that did not.
  uint64_t uses_ = 0;
  std::vector<std::pair<uint64_t, NamespaceIndex>> least_used_;  // Some; by `used`, last first.
  std::unordered_map<uint64_t, std::vector<NamespaceIndex>> namespaces_by_digest_;
  std::unordered_map<SpaceIndex, Space> spaces_;
  std::unordered_map<SpaceIndex, NamespaceIndex> namespaces_by_space_;
  std::vector<SpaceIndex> cleared_spaces_;
  SpaceIndex next_space_ = 0;
  TenantTable tenants_;
  bool has_groups_ = false;        // By tenant, of the eviction: once there was a quota.
  PageIndex ungrouped_ = kNoPage;  // Pages from here on may be in another group. None: kNoPage.
  std::vector<TenantIndex> untrimmed_;  // May be above their quotas.
  std::vector<Session> sessions_;
  std::vector<SessionIndex> free_sessions_;
  SessionIndex own_session_;  // Of what this node itself reads and writes.
  std::set<std::pair<uint64_t, PageIndex>> expiry_order_;
  std::vector<uint64_t> hashes_;        // Scratch of a call, kept to save allocations.
  std::vector<PageIndex> found_pages_;  // Likewise.
  std::vector<PageIndex> found_spares_;
  uint64_t held_bytes_ = 0;
  uint64_t reserved_bytes_ = 0;
  uint64_t pinned_bytes_ = 0;
  uint64_t replicated_count_ = 0;
  uint64_t lookup_leased_bytes_ = 0;
  uint64_t extent_heap_bytes_ = 0;
  NodeStats counts_;  // Only its counters; stats() fills in the gauges.
};

}  // namespace hicache
