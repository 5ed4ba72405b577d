// A node's process in a simulated world: the real store, remote tier, announcer and membership,
// and the real desk for its peers, joined as node.h joins them; and clients that put, get, look up,
// remove and clear as they would over its socket.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sim/sim_line.h"
#include "sim/sim_pages.h"
#include "sim/sim_roads.h"
#include "sim/sim_world.h"
#include "store/announcer.h"
#include "store/membership.h"
#include "store/node_pages.h"
#include "store/peer_desk.h"
#include "store/replicator.h"

namespace hicache::testing {

/// What a client that reads has to be given.
enum class Must : uint8_t { kNothing, kDeliver, kDeliverNewest };

class SimNode : private PeerPages {
 public:
  static constexpr size_t kClients = 3;
  static constexpr uint64_t kReadTtlMs = 2000;
  static constexpr uint64_t kLookupTtlMs = 3000;
  static constexpr uint64_t kReservationTtlMs = 2000;

  struct Options {
    Host* host;
    std::string name;
    uint64_t incarnation;
    uint16_t port;
    uint64_t pool_size_bytes;
    std::vector<Host*> masters;
    SimRoads::Find find;
  };

  SimNode(World& world, PageOracle& oracle, const Options& options);
  ~SimNode() override;

  const std::string& name() const { return options_.name; }
  const Neighbour& as_neighbour() const { return neighbour_; }
  PageStore& store() { return store_; }
  NamespaceIndex space(uint64_t n) const { return spaces_[n]; }
  bool has(uint64_t space, uint64_t key) const;

  // What one of its clients does, if it does nothing else.
  void put(size_t client, uint64_t space, uint64_t key, bool replaces);
  void get(size_t client, uint64_t space, std::vector<uint64_t> keys, Must must);
  /// And reads what it was promised.
  void look_up(size_t client, uint64_t space, std::vector<uint64_t> keys, Must must);
  void remove(size_t client, uint64_t space, uint64_t key);
  void clear(uint64_t space);
  bool is_busy(size_t client) const { return clients_[client].is_busy; }
  /// It is gone, whatever it was about to do; another one comes.
  void lose_client(size_t client);
  /// Says farewell to the directory, as one that stops does.
  void leave();
  void flip_a_bit();

  /// What is under way but for heartbeats, or "".
  std::string why_not_quiet() const;
  /// What is kept although nobody has a use for it, or "".
  std::string leaks() const;
  std::string check_invariants() const { return store_.check_invariants(); }
  uint64_t lease_count() const { return store_.stats().leases; }
  uint64_t delivered_count() const { return delivered_; }
  /// Removals and replacements that some other node may not have heard of.
  uint64_t doubtful_count() const { return doubtful_count_; }
  const RemoteTier& remote() const { return remote_; }
  const Replicator& replicator() const { return replicator_; }

 private:
  struct Client {
    SessionIndex session = 0;
    uint64_t life = 0;
    bool is_busy = false;
  };
  struct Waiter {
    RemoteWaitId wait;
    std::function<void()> then;
  };
  struct Reading {
    uint64_t space;
    uint64_t key;
    PageRef ref{kNoPage, 0};
    uint64_t checksum = 0;
    std::vector<Extent> extents{};
    std::vector<uint8_t> bytes{};
    uint64_t leased_ms = 0;
  };
  struct Writing {
    PageRef ref{kNoPage, 0};
    std::vector<Extent> extents{};
    std::vector<uint8_t> bytes{};
    uint64_t until_ms = 0;
    bool replaces = false;
  };

  // PeerPages
  SessionIndex open_peer() override { return store_.open_session(); }
  void close_peer(SessionIndex session) override { store_.close_session(session, monotonic_ms()); }
  void lookup_for_peer(SessionIndex session, const PeerKeysRequest& request,
                       std::vector<Code>& codes) override {
    pages_.lookup_for_peer(session, request, monotonic_ms(), codes);
  }
  void lease_for_peer(SessionIndex session, const PeerKeysRequest& request,
                      WireWriter& writer) override {
    pages_.lease_for_peer(session, request, monotonic_ms(), writer);
  }
  void remove_for_peer(const PeerKeysRequest& request, std::vector<Code>& codes) override {
    pages_.remove_for_peer(request, codes);
  }
  void copy_for_peer(const PeerCopyRequest& request, std::vector<Code>& codes) override {
    const auto index = store_.find_namespace(request.digest);
    codes.assign(request.keys.size(), Code::kBusy);
    if (index && !membership_.is_draining()) {
      pages_.copy_for_peer(*index, request, monotonic_ms(), codes);
    }
  }
  void list_for_peer(const PeerListRequest& request, ListReply& reply) override {
    pages_.list_for_peer(request, pool_.data(), monotonic_ms(), reply);
  }
  void release(SessionIndex session, std::span<const PageRef> refs, uint64_t now_ms) override {
    pages_.release(session, refs, now_ms);
  }
  void report_corrupt(std::span<const PageRef> refs) override { pages_.report_corrupt(refs); }

  void accept(const StreamRef& stream);
  void take(const StreamRef& stream, PeerDesk::Guest& guest, const Message& message);
  void wake();
  void step();
  SimLine::Options line_options(bool takes_orders);
  Membership::Surroundings membership_surroundings();
  /// Goes on as this client, if it is still there, after a while.
  void later(size_t client, uint64_t delay_us, std::function<void()> task);
  void wait_for(size_t client, RemoteWaitId wait, std::function<void()> then);
  void lease(size_t client, uint64_t space, const std::vector<uint64_t>& keys, Must must,
             std::vector<PageRef> held);
  void read(size_t client, Reading reading, Must must, const std::function<void()>& done);
  void judge(size_t client, Reading& reading, Must must);
  void commit(size_t client, uint64_t space, uint64_t key, const Writing& writing);
  void finish(size_t client) { clients_[client].is_busy = false; }
  std::string why_missing() const;
  void ask_to_remove(size_t client, uint64_t space, uint64_t key, bool removes);
  std::string named(uint64_t space, uint64_t key) const {
    return std::to_string(space) + "/" + std::to_string(key);
  }

  World& world_;
  PageOracle& oracle_;
  const Options options_;
  Host& host_;
  std::vector<uint8_t> pool_;
  const Neighbour neighbour_;
  PageStore store_;
  NodePages pages_{store_};
  std::vector<NamespaceIndex> spaces_;
  Announcer announcer_;
  SimLine life_;
  SimLine bulk_;
  Membership membership_;
  SimRoads roads_;
  RemoteTier remote_;
  Replicator replicator_;
  PeerDesk desk_;
  std::vector<std::function<void()>> posted_;
  std::vector<Waiter> waiters_;
  std::vector<Client> clients_;
  size_t guest_count_ = 0;
  bool is_step_near_ = false;
  uint64_t step_at_ms_ = UINT64_MAX;
  uint64_t delivered_ = 0;
  uint64_t doubtful_count_ = 0;
  bool has_flips_ = false;
};

}  // namespace hicache::testing
