#include "store/client.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "net/frame.h"
#include "store/client_call.h"
#include "store/copy_plan.h"

namespace hicache {
namespace {

// A put goes out in ranges of this size: the node answers each quickly, even while it makes room or
// the kernel backs new memory, and pages become visible while later ones are still being written.
constexpr uint64_t kPutRangeSize = 64 * kMiB;
/// Where a put may wait for an SSD: what is reserved can neither be written nor leave.
constexpr uint64_t kWaitingRangeSize = 8 * kMiB;
constexpr int kRoomPauseMinMs = 1;
constexpr int kRoomPauseMaxMs = 8;

// 16 MiB in flight: what 28 GB/s need at half a millisecond. Larger reads bring no more, and
// buffers that outgrow the CPU's cache make the copy out of them slower.
constexpr FileReader::Options kFileReaderOptions{IoEngine::kAuto, 32, 1 * kMiB};

/// How long a node may wait for a disk before it answers: it must do so in time, or the connection
/// would have to be broken.
uint32_t patience_ms(Deadline deadline) {
  return static_cast<uint32_t>(std::max(1, deadline.remaining_ms() / 2));
}

bool has_timeout(std::span<const Code> codes) {
  return std::find(codes.begin(), codes.end(), Code::kTimeout) != codes.end();
}

WriteOutcome outcome_of(CopyOutcome outcome) {
  switch (outcome) {
    case CopyOutcome::kCopied:
      return WriteOutcome::kWritten;
    case CopyOutcome::kUnbacked:
      return WriteOutcome::kUnbacked;
    case CopyOutcome::kStopped:
    case CopyOutcome::kFailed:
    case CopyOutcome::kDevice:
      break;
  }
  return WriteOutcome::kDropped;
}

}  // namespace

Client::Client(Options options)
    : options_(std::move(options)),
      threads_(std::max(1U, options_.copy_threads)),
      file_readers_(kFileReaderOptions) {}

Client::~Client() {
  disconnect();
}

// ---------------------------------------------------------------- connection

Status Client::connect(const std::string& socket_path, uint64_t timeout_ms) {
  Result<Connection> opened =
      ClientConnection::open(socket_path, {options_.name, options_.pool_contribution_bytes},
                             Deadline::after_ms(timeout_ms));
  if (!opened.ok()) return opened.status();
  {
    std::lock_guard lock(mutex_);
    if (connection_) {
      connection_->break_off();
      replaced_.push_back(std::move(connection_));
    }
    connection_ = std::move(opened.value());
    if (pinning_lane_ != nullptr) connection_->pin_for(pinning_lane_);
  }
  ++stats_.connects;
  end_replaced();
  return Status();
}

void Client::end_replaced() const {
  // Destroyed after the lock is gone: the last owner unmaps a pool, and frees it if its node is
  // dead, which takes a fifth of a second per GiB. Calls must not wait for that, nor do it
  // themselves.
  std::vector<Connection> ended;
  std::lock_guard lock(mutex_);
  std::erase_if(replaced_, [&](Connection& connection) {
    if (connection.use_count() != 1) return false;
    ended.push_back(std::move(connection));
    return true;
  });
}

bool Client::is_connected() const {
  return connection().ok();
}

bool Client::wait_disconnected(uint64_t timeout_ms) const {
  constexpr uint64_t kWaitMax = 1'000'000'000;
  constexpr uint64_t kSliceMs = 500;
  const Deadline until = Deadline::after_ms(std::min(timeout_ms, kWaitMax));
  for (;;) {
    end_replaced();
    const Result<Connection> current = connection();
    if (!current.ok()) return true;
    int wait_ms = until.remaining_ms();
    {
      std::lock_guard lock(mutex_);
      if (!replaced_.empty()) wait_ms = std::min<int>(wait_ms, kSliceMs);
    }
    if (current.value()->wait_broken(wait_ms)) {
      current.value()->break_off();
      return true;
    }
    if (until.expired()) return false;
  }
}

void Client::disconnect() {
  Connection ended;
  std::unique_lock lock(mutex_);
  if (connection_) connection_->break_off();
  for (const Connection& connection : replaced_) connection->break_off();
  call_ended_.wait(lock, [this] { return running_calls_ == 0; });
  ended = std::move(connection_);
  connection_.reset();
  const std::vector<Connection> replaced = std::move(replaced_);
  replaced_.clear();
  lock.unlock();
}

Result<Client::Connection> Client::connection() const {
  std::lock_guard lock(mutex_);
  if (!connection_ || connection_->is_broken()) {
    return Status(Code::kUnavailable, "not connected to a node");
  }
  return connection_;
}

size_t Client::open_namespace(const NamespaceDigest& digest, std::string description) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < namespaces_.size(); ++i) {
    if (namespaces_[i].digest == digest) return i;
  }
  namespaces_.push_back({digest, std::move(description)});
  return namespaces_.size() - 1;
}

Result<std::pair<Client::Connection, NamespaceIndex>> Client::begin(size_t name_space,
                                                                    Deadline deadline,
                                                                    const Waiting* waiting) {
  Result<Connection> current = connection();
  if (!current.ok()) return current.status();
  const LocalNamespace* local;
  {
    std::lock_guard lock(mutex_);
    if (name_space >= namespaces_.size()) {
      return Status(Code::kInvalidArgument,
                    "namespace " + std::to_string(name_space) + " was not opened by this client");
    }
    local = &namespaces_[name_space];
  }
  const Result<NamespaceIndex> index = current.value()->namespace_index(
      name_space, local->digest, local->description, deadline, waiting);
  if (!index.ok()) return index.status();
  return std::pair(std::move(current.value()), index.value());
}

void Client::fail(const Status& status, std::vector<Code>& codes, size_t count) {
  if (status.code() == Code::kTimeout) ++stats_.timeouts;
  if (status.code() == Code::kUnavailable) ++stats_.unavailable;
  codes.assign(count, status.code());
}

void Client::fail_from(size_t first, const Status& status, std::vector<Code>& codes) {
  std::vector<Code> failed;
  fail(status, failed, codes.size() - first);
  std::copy(failed.begin(), failed.end(), codes.begin() + static_cast<ptrdiff_t>(first));
}

// ---------------------------------------------------------------- calls about keys

void Client::lookup(size_t name_space, std::span<const Key> keys, PageStore::LookupFlags flags,
                    std::vector<Code>& codes, const Waiting* waiting) {
  ++stats_.lookup_calls;
  const auto bits =
      static_cast<uint8_t>((flags.lease ? kLookupLease : 0) | (flags.prefix ? kLookupPrefix : 0) |
                           (flags.resident ? kLookupResident : 0));
  call_for_codes(NodeOp::kLookup, name_space, keys, bits, codes, waiting);
}

void Client::remove(size_t name_space, std::span<const Key> keys, std::vector<Code>& codes) {
  call_for_codes(NodeOp::kRemove, name_space, keys, 0, codes);
}

void Client::set_pin(size_t name_space, std::span<const Key> keys, Pin pin,
                     std::vector<Code>& codes) {
  call_for_codes(NodeOp::kSetPin, name_space, keys, static_cast<uint8_t>(pin), codes);
}

void Client::call_for_codes(NodeOp op, size_t name_space, std::span<const Key> keys, uint8_t flags,
                            std::vector<Code>& codes, const Waiting* waiting) {
  codes.clear();
  if (keys.size() > kAskedCountMax) {
    std::vector<Code> part;
    for (size_t first = 0; first < keys.size(); first += part.size()) {
      const bool ended = op == NodeOp::kLookup && (flags & kLookupPrefix) != 0 && first != 0 &&
                         codes.back() != Code::kOk;
      const size_t count = std::min(kAskedCountMax, keys.size() - first);
      if (ended) {
        part.assign(count, codes.back());
      } else {
        call_for_codes(op, name_space, keys.subspan(first, count), flags, part, waiting);
      }
      codes.insert(codes.end(), part.begin(), part.end());
    }
    return;
  }
  const Deadline until = deadline();
  auto begun = begin(name_space, until, waiting);
  if (!begun.ok()) return fail(begun.status(), codes, keys.size());
  auto& [connection, index] = begun.value();
  const Status status = connection->ask(
      op, until,
      [&](WireWriter& writer) { encode_keys(writer, index, flags, keys, patience_ms(until)); },
      [&](WireReader reader) { return decode_codes(reader, codes) && codes.size() == keys.size(); },
      waiting);
  if (!status.ok()) return fail(status, codes, keys.size());
  stats_.timeouts += has_timeout(codes);
}

Result<uint64_t> Client::clear(size_t name_space) {
  const Deadline until = deadline();
  auto begun = begin(name_space, until);
  if (!begun.ok()) return begun.status();
  auto& [connection, index] = begun.value();
  ClearReply reply{};
  HICACHE_RETURN_IF_ERROR(connection->ask(
      NodeOp::kClear, until,
      [&](WireWriter& writer) { encode_keys(writer, index, 0, {}, patience_ms(until)); },
      [&](WireReader reader) { return decode(reader, reply); }));
  if (reply.code == Code::kOk) return reply.page_count;
  if (reply.code == Code::kUnavailable || reply.code == Code::kBusy) {
    return Status(
        reply.code,
        reply.code == Code::kBusy
            ? "the pages are gone from this node, but some node of the cluster has too "
              "much to clear; clear again"
            : "the pages are gone from this node, but no master said that it knows: other "
              "nodes may keep theirs; clear again once `mooncake-hicache status` says "
              "that the node belongs to its cluster");
  }
  stats_.timeouts += reply.code == Code::kTimeout;
  return Status(reply.code,
                "the pages are gone, but an SSD did not say in time that it knows: a restart of "
                "the node may bring them back; clear again, and look at the disk");
}

Result<std::string> Client::node_stats_json() {
  Result<Connection> current = connection();
  if (!current.ok()) return current.status();
  std::string json;
  HICACHE_RETURN_IF_ERROR(current.value()->ask(
      NodeOp::kStats, deadline(), [](WireWriter&) {},
      [&](WireReader reader) {
        json = reader.get_string(kPayloadSizeMax);
        return reader.finished();
      }));
  return json;
}

Status Client::stop_node() {
  Result<Connection> current = connection();
  if (!current.ok()) return current.status();
  return current.value()->ask(
      NodeOp::kStop, deadline(), [](WireWriter&) {},
      [](WireReader reader) { return reader.finished(); });
}

void Client::notify_refs(ClientConnection& connection, NodeOp op, const RefsRequest& refs,
                         Deadline deadline) {
  for (size_t first = 0; first < refs.refs.size(); first += kAskedCountMax) {
    const auto begin = refs.refs.begin() + static_cast<ptrdiff_t>(first);
    const auto count = std::min(kAskedCountMax, refs.refs.size() - first);
    const RefsRequest part{{begin, begin + static_cast<ptrdiff_t>(count)}};
    // If it fails the leases end with the connection, or by their time.
    (void)connection.tell(op, deadline, [&](WireWriter& writer) { encode(writer, part); });
  }
}

// ---------------------------------------------------------------- put

Status Client::reserve(ClientConnection& connection, NamespaceIndex index,
                       std::span<const Key> keys, std::span<const uint64_t> sizes,
                       const PutOptions& options, Deadline deadline, Places& places) {
  ReserveRequest request;
  request.index = index;
  request.flags = static_cast<uint8_t>(
      (options.parent != nullptr ? kReserveParent : 0) | (options.chained ? kReserveChained : 0) |
      (options.replace ? kReserveReplace : 0) | (options.ssd_wait_ms != 0 ? kReserveMayWait : 0) |
      (options.waited ? kReserveAgain : 0));
  request.pin = options.pin;
  request.space = options.space;
  if (options.parent != nullptr) request.parent = *options.parent;
  request.keys.assign(keys.begin(), keys.end());
  request.sizes.assign(sizes.begin(), sizes.end());
  return connection.ask(
      NodeOp::kReserve, deadline, [&](WireWriter& writer) { encode(writer, request); },
      [&](WireReader reader) {
        bool sound = decode(reader, places, {connection.pool_size_bytes(), 0}) &&
                     places.places.size() == keys.size();
        for (size_t i = 0; sound && i < keys.size(); ++i) {
          sound = places.places[i].code != Code::kOk || places.places[i].size == sizes[i];
        }
        return sound;
      });
}

Status Client::commit(ClientConnection& connection, CommitRequest& request, Deadline deadline,
                      std::vector<Code>& codes) {
  return connection.ask(
      NodeOp::kCommit, deadline,
      [&](WireWriter& writer) {
        request.patience_ms = patience_ms(deadline);
        encode(writer, request);
      },
      [&](WireReader reader) {
        return decode_codes(reader, codes) && codes.size() == request.items.size();
      });
}

/// Pages of a put that are reserved, written and committed together.
struct Client::PutRange {
  ClientConnection& connection;
  NamespaceIndex index;
  std::span<const Key> keys;
  std::span<const uint64_t> sizes;
  std::span<const std::vector<MemorySegment>> sources;
  std::span<Code> codes;
};

Status Client::put_range(const PutRange& range, PutOptions* options, Deadline* until) {
  DeviceSegments device;
  if (options->device != kCpu) {
    auto lane = this->lane(options->device, CopyDirection::kMemoryToPool);
    if (!lane.ok()) return lane.status();
    device.lane = std::move(lane.value());
  }
  Places places;
  HICACHE_RETURN_IF_ERROR(
      reserve(range.connection, range.index, range.keys, range.sizes, *options, *until, places));
  options->space = places.space;
  std::vector<size_t> written;
  CopyPlan plan(range.connection, CopyDirection::kMemoryToPool, true,
                device.lane == nullptr ? nullptr : &device);
  for (size_t i = 0; i < range.keys.size(); ++i) {
    range.codes[i] = places.places[i].code;
    if (range.codes[i] != Code::kOk) continue;
    plan.add(range.sizes[i], 0, places.extents_of(places.places[i]), range.sources[i]);
    written.push_back(i);
  }
  if (written.empty()) return Status();
  const uint64_t begun_ns = monotonic_ns();
  plan.run(threads_, options_.put_threads_max);
  *until = until->later_by_ns(monotonic_ns() - begun_ns);  // The deadline is for waiting.

  CommitRequest request{options->ttl_ms, options->replace, {}};
  request.replica_count = options->replica_count;
  for (size_t n = 0; n < written.size(); ++n) {
    request.items.push_back(
        {places.places[written[n]].ref, plan.page_checksum(n), outcome_of(plan.outcome(n))});
  }
  std::vector<Code> committed;
  const Status status = commit(range.connection, request, *until, committed);
  if (!status.ok()) committed.assign(written.size(), status.code());
  for (size_t n = 0; n < written.size(); ++n) {
    range.codes[written[n]] = committed[n];
    if (committed[n] == Code::kOk) stats_.put_bytes += range.sizes[written[n]];
  }
  // An SSD hangs: what is left of the call's time would go the same way.
  if (status.ok() && has_timeout(committed)) {
    return Status(Code::kTimeout, "an SSD did not say in time that older pages are forgotten");
  }
  return status;
}

/// How a put waits for room. It asks again and again: an answer that the node held back would hold
/// up the look-ups and gets of this process, which share the connection.
class Client::RoomWait {
 public:
  RoomWait(uint64_t patience_ms, uint64_t call_timeout_ms)
      : patience_ms_(patience_ms), all_(Deadline::after_ms(call_timeout_ms / 2)) {}

  /// Some room was found since the last pause.
  void note_progress() {
    pause_ms_ = kRoomPauseMinMs;
    is_waiting_ = false;
  }
  /// False: waiting on is of no use. Else it has waited a little.
  bool pause(const ClientConnection& connection) {
    if (!std::exchange(is_waiting_, true)) until_ = Deadline::after_ms(patience_ms_);
    if (until_.expired() || all_.expired()) return false;
    (void)connection.wait_broken(pause_ms_);  // Then there is nothing to wait for.
    pause_ms_ = std::min(2 * pause_ms_, kRoomPauseMaxMs);
    return true;
  }

 private:
  const uint64_t patience_ms_;
  const Deadline all_;
  Deadline until_ = Deadline::after_ms(0);
  bool is_waiting_ = false;
  int pause_ms_ = kRoomPauseMinMs;
};

void Client::put(size_t name_space, std::span<const Key> keys, const SourceOf& source_of,
                 const PutOptions& options, std::vector<Code>& codes) {
  const RunningCall running(*this);
  ++stats_.put_calls;
  stats_.put_pages += keys.size();
  std::vector<std::vector<MemorySegment>> sources(keys.size());
  std::vector<uint64_t> sizes(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    source_of(i, sources[i]);
    for (const MemorySegment& segment : sources[i]) sizes[i] += segment.size;
    if (sizes[i] == 0) {
      return fail(Status(Code::kInvalidArgument, "an empty page cannot be stored"), codes,
                  keys.size());
    }
  }
  Deadline until = deadline();
  auto begun = begin(name_space, until);
  if (!begun.ok()) return fail(begun.status(), codes, keys.size());
  auto& [connection, index] = begun.value();

  codes.assign(keys.size(), Code::kUnavailable);
  PutOptions range_options = options;
  RoomWait wait(options.ssd_wait_ms, options_.call_timeout_ms);
  const uint64_t range_size_max = options.ssd_wait_ms == 0 ? kPutRangeSize : kWaitingRangeSize;
  for (size_t first = 0; first < keys.size();) {
    size_t count = 1;
    uint64_t size = sizes[first];
    while (first + count < keys.size() && count < kAskedCountMax &&
           size + sizes[first + count] <= range_size_max) {
      size += sizes[first + count++];
    }
    const Status status = put_range(
        {*connection, index, keys.subspan(first, count), std::span(sizes).subspan(first, count),
         std::span(sources).subspan(first, count), std::span(codes).subspan(first, count)},
        &range_options, &until);
    // Earlier ranges are stored; this one and the rest are not.
    if (!status.ok()) return fail_from(first, status, codes);
    const auto told = std::span(codes).subspan(first, count);
    const auto busy =
        range_options.ssd_wait_ms == 0 ? told.end() : std::ranges::find(told, Code::kBusy);
    const auto done = static_cast<size_t>(busy - told.begin());
    first += done;
    if (done != 0) {
      wait.note_progress();
      range_options.parent = options.chained ? &keys[first - 1] : nullptr;
    }
    range_options.waited = done != count;
    // In vain: from here on it takes what room there is.
    if (range_options.waited && !wait.pause(*connection)) range_options.ssd_wait_ms = 0;
  }
}

}  // namespace hicache
