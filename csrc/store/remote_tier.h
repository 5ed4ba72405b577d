// Pages that other nodes have: found through the directory, promised by their owner, read one-sided
// into the local pool, verified, and served from there. Clients never speak to another machine, and
// every remote hit leaves a copy here.
//
// A look-up asks the directory which peers have what this node lacks. One with intent has the peers
// promise it (a look-up lease there), says yes to what was promised alone, and begins to bring it
// here in the order of the chain, for the session that asked. A get asks for what is not on its way
// yet and waits. What fails at one peer is tried at the next one that has it.
//
// Nothing here waits: questions go to the directory, and to a link and a reader of each peer
// (peer_roads.h), and their answers come back as tasks that advance() runs. Whoever
// waits for an outcome polls is_settled() after each advance(); it has a budget, and what is not
// here when that is over is missed. A get's budget is what its client will wait, but it ends
// earlier when nothing has come for stall_timeout_ms.
//
// Pages come into room that eviction makes as for any put. They are as easily evicted as any other
// page, once nobody waits for them.
//
// Threads: the node's alone, but for what is said to be called from others.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/histogram.h"
#include "directory/directory_line.h"
#include "store/page_store.h"
#include "store/peer_roads.h"
#include "store/route_cache.h"

namespace hicache {

/// Somebody who waits for pages; never 0.
using RemoteWaitId = uint64_t;

class RemoteTier {
 public:
  struct Options {
    std::string own_name;        // Pages that this member has are none of others: whatever life
    uint64_t own_incarnation;    // of it, and by whatever name.
    uint64_t lookup_timeout_ms;  // Budget of a look-up.
    uint64_t stall_timeout_ms;   // A get that nothing came for is answered.
    uint64_t fetch_timeout_ms;   // Of one page, from its lease to its last byte.
    uint64_t call_timeout_ms;    // Of one question to the directory.
    double staging_share;        // Of the pool that pages on their way may take.
    size_t routes_max;
    size_t peers_max;  // That are spoken to at the same time.
  };
  /// What it works on; all outlive it.
  struct Surroundings {
    PageStore& store;
    PeerRoads& roads;            // What comes of them may overtake this object's end.
    DirectoryLine& directory;    // Likewise.
    std::function<void()> wake;  // Of the node's thread, from any thread.
  };

  RemoteTier(Options options, Surroundings surroundings);
  ~RemoteTier();

  static constexpr SessionIndex kNobody = UINT32_MAX;

  /// Pages that one request asks for and that this node lacks.
  struct Question {
    SessionIndex session;  // kNobody: it is this node that wants them.
    SpaceIndex space;
    bool is_prefix;  // Behind one that nobody has, none counts.
    bool leases;     // Of a look-up: with intent.
    std::vector<Key> keys;
    std::vector<uint64_t> parents;  // Hashes; 0: not known. As many as keys.
    /// A get is settled when kPartSize has come, too; the rest goes on coming.
    bool in_parts = false;
  };
  static constexpr uint64_t kPartSize = 32 * kMiB;
  RemoteWaitId begin_lookup(Question question, uint64_t now_ms);
  /// `patience_ms`: how long its client waits.
  RemoteWaitId begin_get(Question question, uint64_t patience_ms, uint64_t now_ms);
  /// Has the peers that have these pages remove them, all that answer. A copy that is made
  /// meanwhile, or that the directory has not heard of, may stay; where the directory or a peer
  /// that it named did not answer in time, the answer has the page in doubt.
  RemoteWaitId begin_remove(Question question, uint64_t patience_ms, uint64_t now_ms);
  /// Has some member list pages that it has; see ListRequest for the cursor.
  RemoteWaitId begin_list(SessionIndex session, const NamespaceDigest& digest, uint64_t cursor,
                          uint64_t patience_ms, uint64_t now_ms);
  /// Has copies of these pages made here, in the background. Nobody waits for them; false: too much
  /// is under way.
  bool begin_copy(Question question, uint64_t now_ms);
  /// Asks a member to make copies of pages that are here. advance() calls `done`: a code for each
  /// of them, or why there is none.
  using CodesDone = std::function<void(const Result<std::vector<Code>>&)>;
  void ask_to_copy(const std::string& name, uint64_t incarnation, const PeerCopyRequest& request,
                   CodesDone done);
  /// What the directory has said of its members, whoever had asked.
  void take_members(const MembersReply& reply);
  /// If not, `next_ms` becomes the time at which it will be at the latest, if that is earlier.
  bool is_settled(RemoteWaitId wait, uint64_t now_ms, uint64_t* next_ms);
  struct Answer {
    std::vector<uint8_t> found;     // Of a look-up or removal: which of its keys.
    std::vector<PageRef> held;      // Of a get: read leases of its session, to be released.
    std::vector<uint8_t> in_doubt;  // Of a removal: which of its keys some peer may keep.
    ListReply listed{};             // Of a list.
    bool is_part = false;           // Of a get: more is to come.
  };
  /// Ends the wait, settled or not, and stages what a look-up with intent has found.
  Answer finish(RemoteWaitId wait);
  /// Adds pages to what finish() will return.
  void hold(RemoteWaitId wait, std::vector<PageRef> held);
  /// The session ended, with all that waited for it.
  void close_session(SessionIndex session);
  /// A page was removed here: what is on its way is dropped.
  void remove(SpaceIndex space, const Key& key);

  /// Does what is due. Returns when it wants to be called at the latest.
  uint64_t advance(uint64_t now_ms);
  /// A call since the last advance() left it something to do.
  bool is_due() const { return is_due_; }

  void add_stats(NodeStats& stats) const;
  /// Who waits, and pages that are wanted.
  size_t pending_count() const { return waits_.size() + wanted_.size(); }
  /// About so many bytes are to come.
  uint64_t expected_bytes() const { return wanted_.size() * mean_size_; }
  const DurationHistogram& lookup_seconds() const { return lookup_seconds_; }
  const DurationHistogram& fetch_seconds() const { return fetch_seconds_; }

 private:
  using Task = std::function<void(RemoteTier&)>;
  /// Where answers arrive, from any thread; outlives the tier for those that come late.
  struct Inbox {
    std::mutex mutex;
    std::vector<Task> tasks;
    std::function<void()> wake;
    bool is_closed = false;

    void post(Task task) {
      const std::lock_guard lock(mutex);
      if (is_closed) return;
      tasks.push_back(std::move(task));
      wake();
    }
  };
  struct Peer {
    std::string name;
    uint64_t incarnation = 0;
    HostPort address{};
    uint64_t seen_ms = 0;                // Among the members.
    std::unique_ptr<PeerLine> link;      // Once something was asked.
    std::unique_ptr<PeerReader> reader;  // Once something was leased.
    std::deque<uint64_t> urgent;         // Hashes of pages to be leased.
    std::deque<uint64_t> background;
    size_t leasing_count = 0;  // Calls.
    uint64_t moving_bytes = 0;
  };
  /// What waits for its threads to end.
  struct Retired {
    std::unique_ptr<PeerLine> link;
    std::unique_ptr<PeerReader> reader;
  };
  enum class WaitKind : uint8_t { kLookup, kGet, kRemove, kCopy, kList };
  struct Wait {
    Question question;
    std::vector<uint64_t> hashes;
    std::vector<PageSources> sources;
    std::vector<uint8_t> attempts;  // Of a look-up: sources that were asked.
    std::vector<uint8_t> found;
    std::vector<PageRef> held;
    WaitKind kind = WaitKind::kLookup;
    bool is_settled = false;
    bool has_asked = false;  // The directory; else only what it said earlier is known.
    bool is_part = false;
    uint64_t arrived_bytes = 0;
    size_t left_count = 0;  // Of a get: pages; of a look-up or removal: calls.
    uint64_t until_ms = 0;
    uint64_t progress_ms = 0;  // When something came for it last.
    uint64_t started_ns = 0;
    // Of a removal:
    std::vector<uint32_t> lacking;     // Answers about each page, of the directory and of peers.
    std::vector<uint8_t> may_be_more;  // Peers that have it than the directory has named.
    // Of a list:
    NamespaceDigest digest{};
    ListReply listed{.code = Code::kUnavailable, .keys = {}, .head_sizes = {}, .heads = {}};
  };
  enum class WantedState : uint8_t { kQueued, kLeasing, kMoving };
  /// A page on its way, or about to be.
  struct Wanted {
    SpaceIndex space = 0;
    Key key;
    uint64_t parent_hash = 0;
    PageSources sources;
    size_t source = 0;  // Of them, the present one.
    WantedState state = WantedState::kQueued;
    bool is_urgent = false;
    bool is_dropped = false;  // Nobody wants it any more.
    uint32_t busy_count = 0;
    uint64_t deadline_ms = 0;
    PageIndex page = kNoPage;  // While it moves.
    PageRef remote{kNoPage, 0};
    uint64_t size = 0;
    uint64_t checksum = 0;
    std::vector<RemoteWaitId> waiters;
    SessionIndex promised_to = kNobody;
  };
  struct Leased {
    Places places;
    std::shared_ptr<const PeerHelloReply> peer;
  };

  // Questions (remote_tier.cc)
  RemoteWaitId begin(Question question, WaitKind kind, uint64_t until_ms, uint64_t now_ms);
  void locate(RemoteWaitId id, Wait& wait);
  void ask_directory(RemoteWaitId id, Wait& wait);
  void on_located(RemoteWaitId id, const Result<LocateReply>& reply);
  void ask_members();
  void on_members(const Result<MembersReply>& reply);
  /// Replicas as the directory names them become sources of the wait's pages.
  void resolve(Wait& wait, const LocateReply& reply);
  PageSources sources_of(std::span<const Replica> replicas);
  void use_routes(Wait& wait);
  void go_on(RemoteWaitId id);
  void fetch_all(RemoteWaitId id, Wait& wait);
  void ask_peers(RemoteWaitId id, Wait& wait);
  void ask_codes(NodeOp op, RemoteWaitId id, const Wait& wait, PeerId peer,
                 const std::vector<uint32_t>& numbers);
  static Result<std::vector<Code>> codes_of(const Result<PeerLine::Answer>& answer, size_t count);
  void on_looked_up(RemoteWaitId id, const std::vector<uint32_t>& numbers,
                    const Result<std::vector<Code>>& codes);
  void stage(const Wait& wait);
  void settle(Wait& wait);
  // Removals (remote_removal.cc)
  void note_named(Wait& wait, size_t number, size_t named_count);
  void ask_to_remove(RemoteWaitId id, Wait& wait);
  void on_removed(RemoteWaitId id, const std::vector<uint32_t>& numbers,
                  const Result<std::vector<Code>>& codes);
  void go_on_removing(RemoteWaitId id, Wait& wait);
  void look_for_more(uint64_t now_ms);
  // Lists (remote_list.cc)
  void on_members_to_list(RemoteWaitId id, const Result<MembersReply>& reply);
  void on_listed(RemoteWaitId id, NodeIndex member, const Result<ListReply>& reply);
  bool is_own(const Member& member) const;
  /// Copies (remote_copy.cc)
  void copy_all(RemoteWaitId id);
  // Peers
  Peer* usable(PeerId id);
  PeerLine* link_of(Peer& peer);
  static bool is_busy(const Peer& peer);
  void retire(Peer& peer);
  void retire_strangers();
  void reap();
  // Pages (remote_fetch.cc)
  void want(const Wait& wait, size_t number, RemoteWaitId waiter, uint64_t deadline_ms);
  void enqueue(uint64_t hash, Wanted& wanted);
  void pump(PeerId id, Peer& peer);
  std::vector<uint64_t> take_queued(PeerId id, Peer& peer);
  void lease(PeerId id, Peer& peer, std::vector<uint64_t> hashes);
  void on_leased(PeerId id, const std::vector<uint64_t>& hashes, const Result<Leased>& leased);
  bool place(Wanted& wanted, uint64_t hash, const Place& place);
  void move(PeerId id, Peer& peer, const std::shared_ptr<const PeerHelloReply>& hello,
            std::vector<PeerReader::Page> pages, Priority priority);
  void on_moved(PeerId id, const std::vector<PeerReader::Outcome>& outcomes);
  void arrived(uint64_t hash, Wanted& wanted);
  void note_arrival(Wait& wait, uint64_t size);
  void busy(uint64_t hash, Wanted& wanted);
  void fail_over(uint64_t hash);
  /// The page is here, or cannot be had: whoever waits for it waits no longer.
  void end(uint64_t hash);
  /// All that a get waited for is here, or could not be had where it was looked for.
  void all_ended(RemoteWaitId id, Wait& wait);
  uint64_t staging_max_bytes() const;
  void post(Task task) { inbox_->post(std::move(task)); }

  const Options options_;
  Surroundings surroundings_;
  PageStore& store_;
  const std::shared_ptr<Inbox> inbox_;
  uint64_t now_ms_ = 0;
  bool is_due_ = false;

  std::map<PeerId, Peer> peers_;
  std::map<std::pair<std::string, uint64_t>, PeerId> peer_ids_;  // By name and incarnation.
  std::vector<Retired> retired_;
  uint64_t reap_due_ms_ = 0;
  PeerId last_peer_ = kNoPeer;
  size_t link_count_ = 0;
  std::unordered_map<NodeIndex, PeerId> members_;
  uint64_t members_epoch_ = 0;
  uint32_t members_version_ = 0;
  uint64_t leader_since_ms_ = 0;
  bool asks_members_ = false;
  std::vector<std::pair<RemoteWaitId, LocateReply>> unresolved_;  // Until the members are known.

  RouteCache routes_;
  std::unordered_map<RemoteWaitId, Wait> waits_;
  RemoteWaitId last_wait_ = 0;
  std::unordered_map<uint64_t, Wanted> wanted_;  // By hash.
  std::multimap<uint64_t, uint64_t> later_;      // Hashes of pages that are busy, by time.
  std::multimap<uint64_t, RemoteWaitId> again_;  // Removals that ask the directory anew, by time.
  uint64_t coming_bytes_ = 0;                    // Reserved in the pool.
  uint64_t mean_size_;                           // Of pages that were leased lately.

  uint64_t found_pages_ = 0;
  uint64_t fetched_pages_ = 0;
  uint64_t fetched_bytes_ = 0;
  uint64_t stale_pages_ = 0;
  uint64_t corrupt_pages_ = 0;
  uint64_t no_space_pages_ = 0;
  uint64_t failed_reads_ = 0;
  uint64_t failed_calls_ = 0;
  uint64_t failed_locates_ = 0;
  uint64_t timeouts_ = 0;
  uint64_t past_breaks_ = 0;  // Of links that are gone.
  DurationHistogram lookup_seconds_;
  DurationHistogram fetch_seconds_;
};

}  // namespace hicache
