// How a node lists the pages of a namespace: a bounded number of records at a time, first those of
// the pool, then those of the SSDs, then what other members list of theirs.
#include <algorithm>

#include "base/clock.h"
#include "store/node.h"
#include "store/node_connection.h"

namespace hicache {
namespace {

// Looking at a record costs a few nanoseconds, so that other requests wait a tenth of a
// millisecond.
constexpr size_t kRecordsMax = 32768;
static_assert(kRecordsMax <= kBatchCountMax);
static_assert(kRecordsMax * kKeySize < kPayloadSizeMax);

// Likewise, with the first bytes of each page.
static_assert(kListHeadsMax * (kKeySize + kListHeadSizeMax + 2) < kPeerReplySizeMax / 2);

/// Cursors from here on are of the SSD index; below, of the pool's records.
constexpr uint64_t kSsdCursor = uint64_t{1} << 32;
static_assert(sizeof(PageIndex) == 4 && sizeof(SsdPageIndex) == 4);
static_assert(2 * kSsdCursor < kListMembers);

}  // namespace

// ---------------------------------------------------------------- what is here

uint64_t NodePages::list(NamespaceIndex index, uint64_t cursor, size_t count_max, uint64_t now_ms,
                         std::vector<Key>& keys) const {
  if (cursor < kSsdCursor) {
    const PageIndex next =
        store_.list(index, static_cast<PageIndex>(cursor), count_max, now_ms, keys);
    if (next != kNoPage) return next;
    return ssd_ != nullptr ? kSsdCursor : kListEnd;
  }
  if (ssd_ == nullptr || cursor - kSsdCursor >= kSsdCursor) return kListEnd;
  const SsdPageIndex next = ssd_->log().index().list(
      store_.space_of(index), static_cast<SsdPageIndex>(cursor - kSsdCursor), count_max, keys);
  return next == kNoSsdPage ? kListEnd : kSsdCursor + next;
}

void NodePages::list_for_peer(const PeerListRequest& request, const uint8_t* pool, uint64_t now_ms,
                              ListReply& reply) const {
  const std::optional<NamespaceIndex> index = store_.find_namespace(request.digest);
  if (!index) return;
  reply.cursor = list(*index, request.cursor, kListHeadsMax, now_ms, reply.keys);
  for (const Key& key : reply.keys) add_head(store_.space_of(*index), key, pool, reply);
}

void NodePages::add_head(SpaceIndex space, const Key& key, const uint8_t* pool,
                         ListReply& reply) const {
  const PageIndex page = store_.find_present(space, key);
  size_t left = page == kNoPage ? 0 : kListHeadSizeMax;
  const size_t before = reply.heads.size();
  for (size_t i = 0; left != 0 && i < store_.record(page).extents.span().size(); ++i) {
    const Extent& extent = store_.record(page).extents.span()[i];
    const size_t size = std::min<uint64_t>(extent.size, left);
    reply.heads.insert(reply.heads.end(), pool + extent.offset, pool + extent.offset + size);
    left -= size;
  }
  reply.head_sizes.push_back(static_cast<uint16_t>(reply.heads.size() - before));
}

// ---------------------------------------------------------------- what a client asks

bool Node::handle_list(Payload payload) {
  ListRequest request;
  if (!decode(WireReader(payload), request) || !store_.has_namespace(request.index)) return false;
  ListReply reply;
  if (request.cursor < kListMembers) {
    reply.cursor =
        pages_.list(request.index, request.cursor, kRecordsMax, monotonic_ms(), reply.keys);
    const bool has_members = network_ && network_->has_directory();
    if (reply.cursor == kListEnd && has_members) reply.cursor = kListMembers;
  }
  WireWriter writer(reply_);
  encode(writer, reply);
  return true;
}

/// False: what is asked for is here.
bool Node::ask_to_list(Connection& connection, uint64_t request_id, Payload payload) {
  ListRequest request;
  const bool asks = network_ && network_->has_directory() && decode(WireReader(payload), request) &&
                    store_.has_namespace(request.index) && request.cursor >= kListMembers;
  if (!asks) return false;
  const uint64_t patience_ms = request.patience_ms == kPatient ? UINT32_MAX : request.patience_ms;
  connection.remote_wait = network_->remote().begin_list(
      connection.session, store_.digest_of(store_.space_of(request.index)), request.cursor,
      patience_ms, monotonic_ms());
  connection.remote_op = NodeOp::kList;
  connection.remote_request_id = request_id;
  remote_waiters_.push_back(connection.socket.get());
  return true;
}

void Node::list_for_peer(const PeerListRequest& request, ListReply& reply) {
  pages_.list_for_peer(request, memory_->address(), monotonic_ms(), reply);
}

}  // namespace hicache
