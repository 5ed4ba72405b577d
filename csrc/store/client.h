// A client of a node: batch look-ups, reads and writes, copied and verified by the client itself.
//
// Threads: any number may call. Blocking: each call waits for the node at most call_timeout_ms and
// copies at memory speed; while not connected it returns kUnavailable at once, which is the circuit
// breaker: reconnecting is somebody else's job (connect(), from any thread). When a call returns,
// no thread of ours touches the caller's memory any more, whatever the outcome.
//
// Reads of SSD files: the deadline is for waiting, not for work. It stands still while bytes keep
// coming and runs while a file gives none, so that where nothing comes a call ends after
// call_timeout_ms in all, and pages of a file that hangs are kUnavailable (as are those of a file
// that hung lately: see transfer/file_health.h). However steadily bytes come, reading ends
// after what was left of call_timeout_ms and a second per 256 MiB, three at most.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "store/client_connection.h"
#include "store/messages.h"
#include "transfer/copy_threads.h"
#include "transfer/file_reader.h"
#include "transfer/gpu_lane.h"
#include "transfer/load_stages.h"

namespace hicache {

class CopyPlan;
enum class CopyDirection : uint8_t;
struct DeviceSegments;

/// A piece of the caller's memory. A page may lie in several: they are gathered and scattered.
struct MemorySegment {
  uint8_t* address;
  uint64_t size;
};

#define HICACHE_CLIENT_STATS(FIELD) \
  FIELD(connects)                   \
  FIELD(lookup_calls)               \
  FIELD(get_calls)                  \
  FIELD(get_pages)                  \
  FIELD(get_hit_pages)              \
  FIELD(get_bytes)                  \
  FIELD(put_calls)                  \
  FIELD(put_pages)                  \
  FIELD(put_bytes)                  \
  FIELD(corrupt_pages)              \
  FIELD(foreign_size_pages)         \
  FIELD(ssd_hit_pages)              \
  FIELD(ssd_bytes)                  \
  FIELD(ssd_failed_pages)           \
  FIELD(timeouts)                   \
  FIELD(unavailable)

struct ClientStats {
#define HICACHE_FIELD(name) std::atomic<uint64_t> name{0};
  HICACHE_CLIENT_STATS(HICACHE_FIELD)
#undef HICACHE_FIELD
};

class Client {
 public:
  struct Options {
    unsigned copy_threads;  // The caller included; at least 1.
    uint64_t call_timeout_ms;
    bool verify;  // Check the checksum of what is read. Off only to measure what it costs.
    std::string name;
    /// Of the threads, those that copy for a put, the caller included; at least 1.
    unsigned put_threads_max = std::numeric_limits<unsigned>::max();
    /// What the node's pool is to have on this client's behalf, while it is connected.
    uint64_t pool_contribution_bytes = 0;
  };

  struct PutOptions {
    const Key* parent = nullptr;  // Of keys[0], if known.
    bool chained = false;         // keys[i] is the parent of keys[i + 1].
    bool replace = false;
    Pin pin = Pin::kNone;
    uint64_t ttl_ms = 0;
    uint8_t replica_count = 1;     // That the cluster should have: 1 … kReplicaCountMax.
    SpaceIndex space = kAnySpace;  // Set by put(): a clear() ends the puts that it met.
    /// How long it may wait for an SSD to take pages that it would push out, anew after each piece
    /// of it that found room, and at most half of the call's time in all; 0: not at all.
    uint64_t ssd_wait_ms = 0;
    bool waited = false;  // Of put() alone: the first page was told to come again.
    int device = kCpu;    // Whose memory the sources are in, see GetOptions.
  };

  static constexpr int kCpu = -1;
  struct GetOptions {
    /// The GPU whose memory the targets are in: all targets of a call. Pages go there without the
    /// CPU, which checks them afterwards.
    int device = kCpu;
    /// Told as the stages of a load arrive on the GPU, and when this call, its `part`, has ended.
    LoadStages* stages = nullptr;
    size_t part = 0;
    /// Of each segment of a page, in the order in which TargetOf gives them, the same for all
    /// pages.
    std::span<const uint32_t> stage_of_segment = {};
  };

  /// Says where page `index` of a get goes, once its size is known; false: not wanted (wrong size).
  using TargetOf =
      std::function<bool(size_t index, uint64_t size, std::vector<MemorySegment>& segments)>;
  /// Appends the pieces of page `index` of a put.
  using SourceOf = std::function<void(size_t index, std::vector<MemorySegment>& segments)>;

  explicit Client(Options options);
  ~Client();

  /// Connects to a node, in place of any earlier connection.
  Status connect(const std::string& socket_path, uint64_t timeout_ms);
  bool is_connected() const;
  /// Blocks until not connected (true) or the timeout (false).
  bool wait_disconnected(uint64_t timeout_ms) const;
  /// Breaks the connection; later calls are kUnavailable until connect(). Blocks until calls that
  /// are running have returned: they stop within one stripe of their copies.
  void disconnect();

  /// Has the pool of this node, and of each one to come, pinned for GPUs ahead of the first copy,
  /// in the background: see PoolPinner. kUnsupported: this process does not use CUDA.
  Status pin_pool(int device);

  /// A number for the namespace, valid for the client's life whatever node it is connected to.
  size_t open_namespace(const NamespaceDigest& digest, std::string description);

  // Batches may have any size: what does not fit into one message is split.

  /// `waiting`: of a caller that holds something which others want, see unix_socket.h.
  void lookup(size_t name_space, std::span<const Key> keys, PageStore::LookupFlags flags,
              std::vector<Code>& codes, const Waiting* waiting = nullptr);
  void get(size_t name_space, std::span<const Key> keys, const TargetOf& target_of,
           std::vector<Code>& codes);
  void get(size_t name_space, std::span<const Key> keys, const TargetOf& target_of,
           const GetOptions& options, std::vector<Code>& codes);
  void put(size_t name_space, std::span<const Key> keys, const SourceOf& source_of,
           const PutOptions& options, std::vector<Code>& codes);
  void remove(size_t name_space, std::span<const Key> keys, std::vector<Code>& codes);
  void set_pin(size_t name_space, std::span<const Key> keys, Pin pin, std::vector<Code>& codes);
  Result<uint64_t> clear(size_t name_space);

  /// A piece of the namespace's keys, of this node or of another one of its cluster; `cursor` is 0
  /// at first and kListEnd at the end. See ListRequest. kUnavailable: some node did not answer.
  Status list(size_t name_space, uint64_t* cursor, ListReply& listed);
  /// The sizes of pages; nothing is copied.
  void sizes(size_t name_space, std::span<const Key> keys, std::vector<uint64_t>& sizes,
             std::vector<Code>& codes);
  struct HeadsOptions {
    uint64_t size_max;
    bool are_elsewhere;  // At other nodes, as far as known: what is not here is asked for there.
  };
  /// The first `size_max` bytes of pages, or all of smaller ones. Not verified, but those of pages
  /// that are on SSD only, or elsewhere, which are read whole. kBusy: it did not come here in time.
  void heads(size_t name_space, std::span<const Key> keys, HeadsOptions options,
             std::vector<std::vector<uint8_t>>& heads, std::vector<Code>& codes);

  /// The node's stats as JSON.
  Result<std::string> node_stats_json();
  Status stop_node();

  const ClientStats& stats() const { return stats_; }

 private:
  struct LocalNamespace {
    NamespaceDigest digest;
    std::string description;
  };
  using Connection = std::shared_ptr<ClientConnection>;

  class RunningCall;

  /// Ends connections that were replaced, once no call uses them: unmapping a pool may take long.
  void end_replaced() const;
  Result<Connection> connection() const;
  /// The connection and the node's number of a namespace.
  Result<std::pair<Connection, NamespaceIndex>> begin(size_t name_space, Deadline deadline,
                                                      const Waiting* waiting = nullptr);
  Deadline deadline() const { return Deadline::after_ms(options_.call_timeout_ms); }
  void fail(const Status& status, std::vector<Code>& codes, size_t count);
  /// The same for the codes from `first` on.
  void fail_from(size_t first, const Status& status, std::vector<Code>& codes);
  void call_for_codes(NodeOp op, size_t name_space, std::span<const Key> keys, uint8_t flags,
                      std::vector<Code>& codes, const Waiting* waiting = nullptr);
  /// Leases pages, shows each that is there to `look` and releases them.
  using Look = std::function<Code(ClientConnection& connection, size_t index, const Place& place,
                                  std::span<const Extent> extents)>;
  void look_at(size_t name_space, std::span<const Key> keys, const Look& look,
               std::vector<Code>& codes);
  struct GetRange;
  /// Appends the node's answers, each for as many keys, also those before one that fails.
  Status lease(const GetRange& range, Deadline deadline, std::vector<Places>& leased);
  /// Leases, reads and releases. `until` moves on by the time that was not spent waiting.
  Status get_range(const GetRange& range, const TargetOf& target_of, Deadline* until);
  /// Asks once more for pages of the range that were on their way to the pool.
  void get_busy(const GetRange& range, const TargetOf& target_of, Deadline* until);
  void get_all_busy(const GetRange& range, const TargetOf& target_of, Deadline* until);
  static size_t count_busy(const GetRange& range);
  void get_all(size_t name_space, std::span<const Key> keys, const TargetOf& target_of,
               const GetOptions& options, std::vector<Code>& codes);
  /// The lane of a GPU for one direction, made when it is first wanted.
  Result<std::shared_ptr<GpuLane>> lane(int device, CopyDirection direction);
  /// Counts what was read and says so in the range's codes.
  Code settle(const CopyPlan& plan, size_t page, const Place& place);
  struct PutRange;
  class RoomWait;
  /// `until` moves on by the time that copying took.
  /// `options->space` becomes the namespace's life that the first range found.
  Status put_range(const PutRange& range, PutOptions* options, Deadline* until);
  Status commit(ClientConnection& connection, CommitRequest& request, Deadline deadline,
                std::vector<Code>& codes);
  Status reserve(ClientConnection& connection, NamespaceIndex index, std::span<const Key> keys,
                 std::span<const uint64_t> sizes, const PutOptions& options, Deadline deadline,
                 Places& places);
  void notify_refs(ClientConnection& connection, NodeOp op, const RefsRequest& refs,
                   Deadline deadline);

  const Options options_;
  CopyThreads threads_;
  FileReaders file_readers_;
  mutable std::mutex mutex_;
  Connection connection_;
  mutable std::vector<Connection> replaced_;
  size_t running_calls_ = 0;  // That touch callers' memory.
  std::condition_variable call_ended_;
  std::deque<LocalNamespace> namespaces_;  // A deque: references stay valid while it grows.
  /// By device and direction.
  std::map<std::pair<int, CopyDirection>, std::shared_ptr<GpuLane>> lanes_;
  std::shared_ptr<GpuLane> pinning_lane_;
  ClientStats stats_;
};

}  // namespace hicache
