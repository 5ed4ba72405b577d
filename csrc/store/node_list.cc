// How a node lists the pages of a namespace: a bounded number of records at a time, first those of
// the pool, then those of the SSDs.
#include "base/clock.h"
#include "store/node.h"

namespace hicache {
namespace {

// Looking at a record costs a few nanoseconds, so that other requests wait a tenth of a
// millisecond.
constexpr size_t kRecordsMax = 32768;
static_assert(kRecordsMax <= kBatchCountMax);
static_assert(kRecordsMax * kKeySize < kPayloadSizeMax);

/// Cursors from here on are of the SSD index; below, of the pool's records.
constexpr uint64_t kSsdCursor = uint64_t{1} << 32;
static_assert(sizeof(PageIndex) == 4 && sizeof(SsdPageIndex) == 4);

}  // namespace

bool Node::handle_list(Payload payload) {
  ListRequest request;
  if (!decode(WireReader(payload), request) || !store_.has_namespace(request.index)) return false;
  ListReply reply;
  const uint64_t after_pool = ssd_ ? kSsdCursor : kListEnd;
  if (request.cursor < kSsdCursor) {
    const PageIndex next = store_.list(request.index, static_cast<PageIndex>(request.cursor),
                                       kRecordsMax, monotonic_ms(), reply.keys);
    reply.cursor = next == kNoPage ? after_pool : next;
  } else if (ssd_ && request.cursor - kSsdCursor < kSsdCursor) {
    const SpaceIndex space = store_.space_of(request.index);
    const SsdPageIndex next = ssd_->log().index().list(
        space, static_cast<SsdPageIndex>(request.cursor - kSsdCursor), kRecordsMax, reply.keys);
    reply.cursor = next == kNoSsdPage ? kListEnd : kSsdCursor + next;
  }
  WireWriter writer(reply_);
  encode(writer, reply);
  return true;
}

}  // namespace hicache
