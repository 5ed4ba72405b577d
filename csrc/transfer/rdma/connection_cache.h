// How many connections are open, in both directions, and which of them go when there are too many.
//
// ActiveConnections are our paths: the one that has been idle longest gives way, and connects anew
// when it is used. PassiveConnections are the queue pairs with which we answer peers: a queue pair
// does not tell that it is used, but the packet number that it expects next does.
//
// Threads: any.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "transfer/rdma/queue_pair.h"
#include "transfer/rdma/rdma_wire.h"

namespace hicache {

class ActiveConnections {
 public:
  class Member {
   public:
    virtual ~Member() = default;
    virtual uint64_t last_used_ns() const = 0;
    /// Gives up its connection. False: it is in use.
    virtual bool evict() = 0;
  };

  explicit ActiveConnections(size_t count_max) : count_max_(count_max) {}

  /// Makes room. kNoSpace: all others are in use. Not from inside evict().
  Status admit(const std::shared_ptr<Member>& member);
  void leave(const Member& member);
  size_t count() const;
  uint64_t evictions() const;

 private:
  const size_t count_max_;
  mutable std::mutex mutex_;
  std::map<const Member*, std::weak_ptr<Member>> members_;
  uint64_t evictions_ = 0;
};

class PassiveConnections {
 public:
  explicit PassiveConnections(size_t count_max) : count_max_(count_max) {}

  /// Makes and connects queue pairs on `rail`, as a peer asks.
  Result<ConnectReply> accept(const std::shared_ptr<RdmaRail>& rail, const ConnectRequest& request,
                              uint64_t now_ns);
  void drop(uint64_t connection);
  size_t count() const;
  uint64_t evictions() const;

 private:
  struct Entry {
    std::vector<QueuePair> pairs;
    uint64_t psn_sum;
    uint64_t last_used_ns;
  };

  void make_room(uint64_t now_ns, std::vector<Entry>& dropped);

  const size_t count_max_;
  mutable std::mutex mutex_;
  std::map<uint64_t, Entry> entries_;  // By the peer's connection.
  uint64_t evictions_ = 0;
};

}  // namespace hicache
