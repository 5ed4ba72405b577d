// What the page store asks of the tier below it, page by page.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"
#include "store/page_record.h"
#include "store/tenant_table.h"
#include "tier/extent.h"

namespace hicache {

/// Where a reader finds a page. Not to be copied: `extents` may point into it.
struct PageLocation {
  Code code = Code::kNotFound;
  PageRef ref{kNoPage, 0};
  uint64_t size = 0;
  uint64_t checksum = 0;
  uint8_t device = 0;               // 0: the pool; n: the n-th SSD file, in one extent.
  std::span<const Extent> extents;  // Valid until the next call.
  Extent in_file{0, 0};             // What `extents` is for a page in a file.
};

/// A page by its name; `hash` is page_hash() of the other two.
struct PageName {
  SpaceIndex space;
  const Key& key;
  uint64_t hash;
};

class LowerTier {
 public:
  virtual ~LowerTier() = default;

  virtual bool contains(const PageName& name) const = 0;
  /// Whether a page that is to be put is here already, which counts as a read of it.
  virtual bool put_again(const PageName& name) = 0;
  /// The same for a look-up, whose reader will come soon if `leases`.
  virtual bool lookup(SessionIndex session, const PageName& name, bool leases, uint64_t now_ms) = 0;
  /// Grants a read lease and fills in where the page is; false: not here. kBusy in `location`: it
  /// is on its way up, which `read_now` rules out.
  virtual bool lease(SessionIndex session, const PageName& name, bool read_now, uint64_t now_ms,
                     PageLocation& location) = 0;
  /// The page leaves the pool for want of room.
  virtual void leaving(const PageRecord& page) = 0;
  /// Whether a put of so many bytes should come again soon rather than push this page out, because
  /// it will be here by then. Null: nothing can leave; whether something can soon.
  virtual bool takes_soon(const PageRecord* page, uint64_t wanted_bytes, uint64_t now_ms) = 0;
  /// A tenant is close to its quota, so that pages of its own leave soon.
  virtual void crowded(TenantIndex tenant) = 0;
};

}  // namespace hicache
