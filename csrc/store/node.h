// A node: the page store, its pool and its unix socket, driven by one thread.
//
// The daemon hosts one, and so may any process: clients cannot tell. Other threads may call every
// public method.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/histogram.h"
#include "base/notice_list.h"
#include "base/status.h"
#include "io/memory.h"
#include "store/cluster.h"
#include "store/messages.h"
#include "store/node_pages.h"
#include "store/page_store.h"
#include "store/peer_network.h"
#include "store/pool_backer.h"
#include "store/replicator.h"
#include "store/ssd_tier.h"

namespace hicache {

class Node : private PeerPages {
 public:
  struct Options {
    std::string socket_path;  // '@' first: abstract.
    uint64_t pool_size_bytes;
    uint64_t pool_size_max_bytes;  // It grows to what clients contribute, up to this.
    HugePages huge_pages;
    int numa_node;
    EvictionKind eviction;
    uint64_t read_lease_ttl_ms;
    uint64_t lookup_lease_ttl_ms;
    double lookup_lease_share;
    double hard_pin_share;
    uint64_t reservation_ttl_ms;
    uint32_t clients_max;
    SsdTier::Options ssd{};  // Without directories: no SSD tier.
    Quotas quotas{};         // Of this node's pool.
    std::optional<ClusterOptions> cluster{};
  };

  /// Makes the pool, binds the socket and starts the thread.
  static Result<std::unique_ptr<Node>> start(Options options);

  ~Node() override;

  /// Stops listening, closes every connection and ends the thread. May be called again. Waits for
  /// no disk.
  void stop();

  /// True once a client asked the node to stop, or stop() was called.
  bool wait_stopped(uint64_t timeout_ms);

  /// Time since the last client or peer left; 0 while there is one.
  uint64_t idle_ms() const;

  /// Counters, histograms and namespaces as JSON. Waits for the node's thread, at most 2 s.
  Result<std::string> stats_json();

  /// Writes everything worth keeping to the SSDs. Blocks until it is there (true), the time is
  /// over, the node was stopped, or there is no SSD to write to (false). The node serves meanwhile.
  bool flush(uint64_t timeout_ms);

  /// Has the directory know that this node is about to leave, and other nodes take what it has in
  /// memory. Blocks until each page is safe or given up (true), the time is over, the node was
  /// stopped, or there is nobody to give it to (false). The node serves meanwhile.
  bool drain(uint64_t timeout_ms);

  const std::string& socket_path() const { return options_.socket_path; }
  uint64_t incarnation() const { return incarnation_; }
  /// Where other nodes reach this one: its peers' service, and its transfer engine. Empty without a
  /// cluster. As which incarnation; 0.
  std::vector<std::string> peer_addresses() const {
    return network_ ? network_->addresses() : std::vector<std::string>();
  }
  uint64_t peer_incarnation() const { return network_ ? network_->incarnation() : 0; }
  /// What could not be had, and what has failed since; the newest, oldest first. Without the first
  /// `known` that there ever were; `known` becomes how many that is now.
  std::vector<std::string> notices_since(uint64_t& known) const;

 private:
  struct Connection;
  using Payload = std::span<const uint8_t>;

  Node(Options options, std::unique_ptr<SharedMemory> memory, Fd listener,
       const std::vector<std::string>& notices);

  /// Opens the SSD directories, if there are any.
  Status open_ssd();
  Status join_cluster();
  void await_recovery();
  void run();
  /// Lets the SSD tier do what is due, and sends the replies that waited for it.
  uint64_t advance_ssd(uint64_t now_ms);
  int wait_ms(uint64_t next_ms) const;
  void wake();
  void answer_stats_waiters();
  void note(const std::string& notice);
  /// Puts more of the pool to use; false if there is no more, or no memory for it lately.
  bool grow_store();
  void grow_ahead();
  /// Makes the pool as large as the clients that are connected want it together, where it can be.
  void extend_pool();
  /// A client could not write to its place for lack of memory.
  void drop_unbacked(SessionIndex session, PageRef ref);
  /// The machine has no memory left: the pool does not grow for a while.
  void note_unbacked(const std::string& why);

  /// Ends listening and removes the socket file.
  void close_listener();
  void accept_clients();
  void refuse_one_client();
  /// Closes connections that never said hello; returns when the next one is due.
  uint64_t close_silent_connections(uint64_t now_ms);
  void read_from(Connection& connection);
  /// Handles frames that were received, up to a bound, and closes the connection if one is hostile.
  void serve(Connection& connection);
  void serve_unfinished();
  /// Handles whole frames, up to a bound; false: close the connection.
  bool handle_frames(Connection& connection);
  bool handle(Connection& connection, NodeOp op, uint64_t request_id, Payload payload);
  /// Each decodes its payload, answers into reply_, and returns false for a hostile payload.
  bool handle_hello(Connection& connection, uint64_t request_id, Payload payload);
  bool handle_open_namespace(Payload payload);
  bool handle_lookup(Connection& connection, Payload payload);
  /// `more_comes`: what is not here yet is on its way from other nodes, or may be.
  bool handle_lease(Connection& connection, Payload payload, bool more_comes);
  /// Of look-ups and leases (node_peers.cc).
  bool ask_peers(Connection& connection, NodeOp op, uint64_t request_id, Payload payload);
  uint64_t advance_network(uint64_t now_ms);
  /// Has copies made elsewhere, and gives everything away if that was ordered or asked for. Returns
  /// when it is due again.
  uint64_t advance_copies(uint64_t now_ms);
  /// Of removals and replacements, done here already: has peers drop their copies.
  bool ask_to_remove(Connection& connection, NodeOp op, uint64_t request_id, Payload payload);
  bool answer_removal(Connection& connection, const RemoteTier::Answer& answer, Payload payload);
  bool answer_remote(Connection& connection);
  bool answer_lookup(Connection& connection, Payload payload, std::span<const uint8_t> found);
  bool handle_refs(Connection& connection, NodeOp op, Payload payload);
  bool handle_reserve(Connection& connection, Payload payload);
  bool handle_commit(Connection& connection, Payload payload);
  bool handle_keys(Connection& connection, NodeOp op, Payload payload);
  bool handle_list(Payload payload);
  /// Begins to ask another node for what it has (node_list.cc).
  bool ask_to_list(Connection& connection, uint64_t request_id, Payload payload);
  /// Handles one key of a request.
  Code set_pin(NamespaceIndex index, const Key& key, Pin pin);
  /// Where there are as many as there may be, the least used one ends.
  Result<NamespaceIndex> open_namespace(const NamespaceDigest& digest, std::string description);
  /// Likewise, because the cluster does: also what the SSDs may hold of a namespace that nobody
  /// opened here. Returns the ticket.
  uint64_t clear_ordered(const NamespaceDigest& digest);
  /// Has the other nodes clear it, too: the reply waits for the directory's.
  void clear_elsewhere(Connection& connection, const NamespaceDigest& digest);
  void answer_clears();
  bool answer_clear(Connection& connection);
  Code commit(SessionIndex session, const CommitItem& item, const PageStore::CommitOptions& options,
              uint64_t now_ms);
  // PeerPages
  SessionIndex open_peer() override;
  void close_peer(SessionIndex session) override;
  void lookup_for_peer(SessionIndex session, const PeerKeysRequest& request,
                       std::vector<Code>& codes) override;
  void lease_for_peer(SessionIndex session, const PeerKeysRequest& request,
                      WireWriter& writer) override;
  void remove_for_peer(const PeerKeysRequest& request, std::vector<Code>& codes) override;
  void copy_for_peer(const PeerCopyRequest& request, std::vector<Code>& codes) override;
  void list_for_peer(const PeerListRequest& request, ListReply& reply) override;
  void release(SessionIndex session, std::span<const PageRef> refs, uint64_t now_ms) override {
    pages_.release(session, refs, now_ms);
  }
  void report_corrupt(std::span<const PageRef> refs) override { pages_.report_corrupt(refs); }
  /// Sends reply_, or keeps it until what it says will outlive a restart.
  bool answer(Connection& connection, NodeOp op, uint64_t request_id);
  bool answer_deferred(Connection& connection, uint64_t now_ms, uint64_t* next_ms);
  /// What is said in its place, and why: done, but a restart may undo it.
  std::vector<uint8_t> doubtful_reply(NodeOp op, uint64_t request_id, Code why) const;
  bool send(Connection& connection, std::span<const uint8_t> bytes);
  /// Tells a client of another version so, before it is closed.
  void refuse_version(Connection& connection, const Status& why);
  bool flush(Connection& connection);
  void close_connection(int fd);
  /// A client or a peer has left.
  void note_left();
  NodeStats stats() const;
  NodeTally tally() const;
  std::string make_stats_json() const;
  void add_network_stats(NodeStats& stats) const;

  const Options options_;
  const uint64_t incarnation_;
  const uint64_t started_ms_;
  std::unique_ptr<SharedMemory> memory_;
  Fd listener_;
  Fd spare_fd_;                 // See refuse_one_client().
  std::vector<Fd> reader_fds_;  // Of the SSD files, for clients; Place::device - 1 is the index.
  Fd epoll_;
  Fd wake_event_;

  // Of the node's thread.
  PageStore store_;
  NodePages pages_{store_};
  std::unique_ptr<SsdTier> ssd_;            // Null: none.
  uint64_t ssd_due_ms_ = 0;                 // Its advance() at the latest.
  std::unique_ptr<Cluster> cluster_;        // Null: none.
  uint64_t cluster_due_ms_ = 0;             // Likewise.
  std::unique_ptr<PeerNetwork> network_;    // Null: no cluster.
  std::unique_ptr<Replicator> replicator_;  // Likewise.
  uint64_t drain_order_ms_ = 0;             // The directory is asked for it, if it must be.
  std::vector<int> clear_waiters_;          // Connections whose reply waits for the directory.
  std::vector<int> remote_waiters_;         // Connections whose reply waits for pages of peers.
  std::vector<std::pair<uint32_t, PageRef>> replaced_;  // Of the commit in hand, by number.
  uint32_t peer_count_ = 0;  // Who reads here keeps the node from being idle.
  uint64_t busy_ns_ = 0;     // That the thread did not wait, in a cluster.
  std::unordered_map<int, std::unique_ptr<Connection>> connections_;
  std::vector<uint8_t> reply_;
  uint64_t ticket_ = 0;        // Of the request in hand: its reply waits for it.
  uint32_t patience_ms_ = 0;   // Likewise: for so long.
  std::vector<int> deferred_;  // Connections whose reply waits.
  std::vector<Code> codes_;
  std::vector<PageStore::Location> locations_;
  std::vector<PageStore::Placement> placements_;
  KeysRequest keys_request_;
  ReserveRequest reserve_request_;
  std::array<DurationHistogram, kOpCount> durations_;
  uint64_t rejected_clients_ = 0;
  uint64_t bad_frames_ = 0;
  uint32_t client_count_ = 0;
  std::vector<int> unfinished_;     // Connections with more frames than one turn allows.
  std::vector<Extent> set_aside_;   // Slots without memory behind them, tried again later.
  uint64_t grown_bytes_ = 0;        // Of the pool, given to the store.
  uint64_t contributed_bytes_ = 0;  // By the clients that are connected.
  uint64_t grow_after_ms_ = 0;      // Not before: the machine had no memory left.

  // Shared with other threads.
  std::mutex stop_mutex_;  // One stop() at a time.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  NoticeList notices_;
  std::string stats_json_;
  uint64_t stats_asked_ = 0;
  uint64_t stats_answered_ = 0;
  bool stop_asked_ = false;
  bool has_ended_ = false;     // The thread.
  bool is_disk_busy_ = false;  // Then.
  std::atomic<bool> stopping_{false};
  enum class DrainState : uint8_t { kNone, kAsked, kDone, kNobody };
  std::atomic<DrainState> drain_{DrainState::kNone};
  std::atomic<bool> flush_asked_{false};
  std::atomic<uint64_t> flush_left_bytes_{UINT64_MAX};
  std::atomic<bool> is_flush_over_{false};
  std::atomic<uint64_t> idle_since_ms_;

  std::atomic<bool> backing_failed_{false};
  PoolBacker backer_;
  std::thread thread_;
};

}  // namespace hicache
