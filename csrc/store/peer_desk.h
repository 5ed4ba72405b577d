// Where requests of other nodes meet this one's pages: each is decoded, carried out, and its reply
// encoded. It knows no sockets; who calls seals frames and decides whom to listen to.
//
// A peer says hello once, before everything else. It can put nothing, but ask for copies to be made
// here; what it holds are leases, which end with its session or by their time.
//
// Threads: one owner.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "store/page_store.h"
#include "store/peer_messages.h"

namespace hicache {

/// What the desk asks of its node.
class PeerPages {
 public:
  virtual ~PeerPages() = default;
  virtual SessionIndex open_peer() = 0;
  virtual void close_peer(SessionIndex session) = 0;
  virtual void lookup_for_peer(SessionIndex session, const PeerKeysRequest& request,
                               std::vector<Code>& codes) = 0;
  /// Writes a reply that lists places in the pool, one for each key. kBusy: on its way there.
  virtual void lease_for_peer(SessionIndex session, const PeerKeysRequest& request,
                              WireWriter& writer) = 0;
  virtual void remove_for_peer(const PeerKeysRequest& request, std::vector<Code>& codes) = 0;
  /// Has copies made here, in a namespace that may have to be made first.
  virtual void copy_for_peer(const PeerCopyRequest& request, std::vector<Code>& codes) = 0;
  /// Lists pages of this node, and of no other.
  virtual void list_for_peer(const PeerListRequest& request, ListReply& reply) = 0;
  virtual void release(SessionIndex session, std::span<const PageRef> refs, uint64_t now_ms) = 0;
  virtual void report_corrupt(std::span<const PageRef> refs) = 0;
};

class PeerDesk {
 public:
  struct Guest {
    SessionIndex session = 0;
    bool has_session = false;  // After a valid Hello.
  };

  /// `pages` outlives it. The incarnation of `hello` is what the greeting asks for.
  PeerDesk(PeerHelloReply hello, PeerPages& pages) : hello_(std::move(hello)), pages_(pages) {}

  /// Begins `frame` and appends the reply's payload, or leaves it empty where there is none; false:
  /// the request is hostile.
  bool answer(Guest& guest, NodeOp op, std::span<const uint8_t> payload, uint64_t now_ms,
              std::vector<uint8_t>& frame);
  /// The connection ended, and its leases with it.
  void leave(Guest& guest);

 private:
  using Payload = std::span<const uint8_t>;

  bool answer_hello(Guest& guest, Payload payload, std::vector<uint8_t>& frame);
  bool answer_copy(Payload payload, std::vector<uint8_t>& frame);
  bool answer_list(Payload payload, std::vector<uint8_t>& frame);
  bool answer_keys(const Guest& guest, NodeOp op, Payload payload, std::vector<uint8_t>& frame);

  const PeerHelloReply hello_;
  PeerPages& pages_;
  PeerKeysRequest keys_;  // Kept to save allocations.
  PeerCopyRequest copy_;
  RefsRequest refs_;
  std::vector<Code> codes_;
};

}  // namespace hicache
