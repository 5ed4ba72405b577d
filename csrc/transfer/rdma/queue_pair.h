// One reliable connected queue pair: made, connected, broken on purpose, destroyed.
//
// Threads: one at a time, but for post(), which the owner serialises itself.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "transfer/rdma/rdma_rail.h"

namespace hicache {

class QueuePair {
 public:
  /// How many requests of its own it may have under way; 0: it only answers.
  struct Size {
    unsigned requests;
    unsigned inline_bytes;
  };

  /// kNoSpace names the limit that was met. Inline sizes that the device does not do become 0.
  static Result<QueuePair> make(std::shared_ptr<RdmaRail> rail, const RailRoute& route,
                                ibv_cq* queue, Size size);
  QueuePair(QueuePair&& other) noexcept
      : rail_(std::move(other.rail_)),
        pair_(std::exchange(other.pair_, nullptr)),
        inline_bytes_(other.inline_bytes_),
        psn_(other.psn_) {}
  QueuePair& operator=(QueuePair&&) = delete;
  ~QueuePair() { destroy(); }

  /// Connects: ready to answer, and to ask too if it has requests of its own.
  Status connect(const RailRoute& route, const RailAddress& peer, const PairAddress& peer_pair,
                 bool asks);
  /// What it has under way comes back as flushed. False: the device refuses even that.
  bool flush();
  /// Once it returns true, the device does not touch memory for this pair any more.
  bool destroy();

  PairAddress address() const { return {pair_->qp_num, psn_}; }
  unsigned inline_bytes() const { return inline_bytes_; }
  /// The PSN that it expects next, which moves when the peer asks something; 0 if not known.
  uint32_t received_psn() const;
  int post(ibv_send_wr* requests, ibv_send_wr** bad) {
    return rail_->verbs().post_send(pair_, requests, bad);
  }

 private:
  QueuePair(std::shared_ptr<RdmaRail> rail, ibv_qp* pair, unsigned inline_bytes, uint32_t psn)
      : rail_(std::move(rail)), pair_(pair), inline_bytes_(inline_bytes), psn_(psn) {}

  std::shared_ptr<RdmaRail> rail_;
  ibv_qp* pair_;
  unsigned inline_bytes_;
  uint32_t psn_;
};

}  // namespace hicache
