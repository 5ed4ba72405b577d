// Who is told that a page came to a place or left it. Where it is now, the listener asks itself
// when it wants to know: many changes of one page are then told once, as what came of them.
#pragma once

#include "base/bytes.h"
#include "tier/page_hash.h"

namespace hicache {

class PageListener {
 public:
  virtual ~PageListener() = default;

  /// The page came to memory or to an SSD, left it, or was replaced there. Called in the middle of
  /// such a change: nothing may be asked before it is over.
  virtual void page_changed(SpaceIndex space, const Key& key) = 0;
  /// A namespace's life is over: none of its pages can be seen any more.
  virtual void space_ended(SpaceIndex ended, const NamespaceDigest& digest) = 0;
};

}  // namespace hicache
