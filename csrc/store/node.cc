#include "store/node.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/clock.h"
#include "io/unix_socket.h"
#include "net/frame.h"
#include "store/node_connection.h"

namespace hicache {
namespace {

constexpr int kListenBacklog = 256;
constexpr int kEventsPerWait = 64;
constexpr int kWaitMaxMs = 60'000;
constexpr uint64_t kStatsWaitMs = 2000;
constexpr uint64_t kWaitStoppedMaxMs = 24ULL * 24 * 3600 * 1000;  // More does not fit a clock.
constexpr uint64_t kHelloTimeoutMs = 5000;  // A connection that says nothing is closed.
constexpr uint64_t kPoolSizeMin = 1 * kMiB;
constexpr uint64_t kRecoveryPatienceMs = 200;  // That the first answer may be late.
constexpr int kFramesPerTurn = 32;             // Of one client; then others have theirs.
constexpr uint64_t kReplicaWalkMs = 30'000;    // A copy that was lost is made anew by then.
constexpr uint64_t kIncarnationMax = uint64_t{1} << 53;  // Exact in every JSON reader.

PageStore::Options store_options(const Node::Options& options, std::function<bool()> grow) {
  return PageStore::Options{
      .capacity_bytes = options.pool_size_bytes,
      .eviction = options.eviction,
      .seed = random_token(),
      .read_lease_ttl_ms = options.read_lease_ttl_ms,
      .lookup_lease_ttl_ms = options.lookup_lease_ttl_ms,
      .lookup_lease_share = options.lookup_lease_share,
      .hard_pin_share = options.hard_pin_share,
      .reservation_ttl_ms = options.reservation_ttl_ms,
      .grow = std::move(grow),
  };
}

Fd open_spare() {
  return Fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
}

Status watch(const Fd& epoll, int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return io_error("watching a descriptor", errno);
  }
  return Status();
}

}  // namespace

Result<std::unique_ptr<Node>> Node::start(Options options) {
  options.pool_size_bytes = options.pool_size_bytes / kSlotSize * kSlotSize;
  if (options.pool_size_bytes < kPoolSizeMin) {
    return Status(Code::kInvalidArgument,
                  "pool_size = " + std::to_string(options.pool_size_bytes) +
                      " bytes is too small to be useful; give at least 1 MiB");
  }
  std::vector<std::string> notices;
  const bool is_pinned = options.cluster && PeerNetwork::pins_the_pool(*options.cluster);
  Result<std::unique_ptr<SharedMemory>> memory =
      SharedMemory::create({.size_bytes = options.pool_size_bytes,
                            .huge_pages = options.huge_pages,
                            .numa_node = options.numa_node,
                            .room_bytes = is_pinned ? 0 : options.pool_size_max_bytes},
                           notices);
  if (!memory.ok()) return memory.status();
  Result<Fd> listener = unix_listen(options.socket_path, kListenBacklog);
  if (!listener.ok()) return listener.status();
  std::unique_ptr<Node> node(new Node(std::move(options), std::move(memory.value()),
                                      std::move(listener.value()), notices));
  node->epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  node->wake_event_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!node->epoll_.valid() || !node->wake_event_.valid()) {
    return io_error("creating the node's event queue", errno);
  }
  HICACHE_RETURN_IF_ERROR(watch(node->epoll_, node->listener_.get(), EPOLLIN));
  HICACHE_RETURN_IF_ERROR(watch(node->epoll_, node->wake_event_.get(), EPOLLIN));
  HICACHE_RETURN_IF_ERROR(node->open_ssd());
  HICACHE_RETURN_IF_ERROR(node->join_cluster());
  node->thread_ = std::thread([raw = node.get()] { raw->run(); });
  return node;
}

Node::Node(Options options, std::unique_ptr<SharedMemory> memory, Fd listener,
           const std::vector<std::string>& notices)
    : options_(std::move(options)),
      incarnation_(random_token() % kIncarnationMax + 1),
      started_ms_(monotonic_ms()),
      memory_(std::move(memory)),
      listener_(std::move(listener)),
      spare_fd_(open_spare()),
      store_(store_options(options_, [this] { return grow_store(); })),
      idle_since_ms_(started_ms_),
      backer_(*memory_, [this] {
        backing_failed_ = true;
        wake();
      }) {
  for (const std::string& notice : notices) note(notice);
  if (!options_.quotas.empty()) store_.set_quotas(options_.quotas);
}

Node::~Node() {
  stop();
  close_listener();  // Of a node whose thread never started.
}

Status Node::open_ssd() {
  if (options_.ssd.directories.empty()) return Status();
  if (options_.ssd.directories.size() > kSsdFilesMax) {
    return Status(Code::kInvalidArgument, std::to_string(options_.ssd.directories.size()) +
                                              " SSD directories: give at most " +
                                              std::to_string(kSsdFilesMax));
  }
  Result<std::unique_ptr<SsdTier>> tier =
      SsdTier::open(options_.ssd,
                    {.pool = memory_->address(),
                     .copies_writes = !memory_->may_be_huge() && huge_pages_can_be_had(),
                     .wake = [this] { wake(); },
                     .on_notice = [this](const std::string& notice) { note(notice); }},
                    monotonic_ms());
  if (!tier.ok()) return tier.status();
  Result<std::vector<Fd>> readers = tier.value()->open_for_readers();
  if (!readers.ok()) return readers.status();
  reader_fds_ = std::move(readers.value());
  ssd_ = std::move(tier.value());
  ssd_->attach(store_);
  pages_.set_ssd(*ssd_);
  store_.set_lower(*ssd_);
  for (const int fd : ssd_->event_fds()) HICACHE_RETURN_IF_ERROR(watch(epoll_, fd, EPOLLIN));
  return Status();
}

Status Node::join_cluster() {
  if (!options_.cluster) return Status();
  std::vector<std::string> notices;
  Result<std::unique_ptr<PeerNetwork>> network =
      PeerNetwork::start(*options_.cluster,
                         {.store = store_,
                          .pages = *this,
                          .pool = memory_->address(),
                          .pool_size_bytes = memory_->size_bytes(),
                          .epoll = epoll_.get(),
                          .wake = [this] { wake(); },
                          .on_notice = [this](const std::string& notice) { note(notice); }},
                         notices);
  if (!network.ok()) return network.status();
  for (const std::string& notice : notices) note(notice);
  network_ = std::move(network.value());
  Result<std::unique_ptr<Cluster>> cluster = Cluster::start(
      *options_.cluster, {.store = store_,
                          .quotas = options_.quotas,
                          .ssd = ssd_.get(),
                          .incarnation = network_->incarnation(),
                          .addresses = network_->addresses(),
                          .wake = [this] { wake(); },
                          .busy_ns = [this] { return busy_ns_; },
                          .tally = [this] { return tally(); },
                          .clear = [this](const auto& digest) { return clear_ordered(digest); },
                          .on_notice = [this](const std::string& notice) { note(notice); }});
  if (!cluster.ok()) return cluster.status();
  cluster_ = std::move(cluster.value());
  network_->attach(cluster_->directory());
  pages_.set_remote(network_->remote());
  replicator_ = std::make_unique<Replicator>(
      Replicator::Options{.own_name = options_.cluster->name,
                          .own_incarnation = network_->incarnation(),
                          .failure_domain = options_.cluster->failure_domain,
                          .call_timeout_ms = options_.cluster->call_timeout_ms,
                          .walk_interval_ms = kReplicaWalkMs},
      Replicator::Surroundings{
          .store = store_,
          .directory = cluster_->directory(),
          .remote = network_->remote(),
          .post = [this](Replicator::Task task) { cluster_->post(std::move(task)); },
          .has_told_all = [this] { return cluster_->membership().has_told_all(); }});
  return Status();
}

void Node::close_listener() {
  if (!listener_.valid()) return;
  listener_.reset();
  if (options_.socket_path[0] != '@') unlink(options_.socket_path.c_str());
}

void Node::stop() {
  std::lock_guard stop_lock(stop_mutex_);
  {
    std::lock_guard lock(mutex_);
    stop_asked_ = true;
    stopping_ = true;
  }
  changed_.notify_all();
  wake();
  if (!thread_.joinable() || thread_.get_id() == std::this_thread::get_id()) return;
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return has_ended_; });
  lock.unlock();
  if (is_disk_busy_) {
    // The kernel ends a thread that gave a disk something to do only once that is done, and may
    // look for the pool until then.
    memory_->abandon_at_end();
    thread_.detach();
  } else {
    thread_.join();
  }
  if (cluster_) cluster_->stop();
  if (network_ && !network_->stop().ok()) memory_->abandon_at_end();
}

bool Node::wait_stopped(uint64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::milliseconds(std::min(timeout_ms, kWaitStoppedMaxMs)),
                           [this] { return stop_asked_; });
}

bool Node::flush(uint64_t timeout_ms) {
  if (!ssd_) return false;
  flush_asked_ = true;
  wake();
  std::unique_lock lock(mutex_);
  const auto wait_ms = std::chrono::milliseconds(std::min(timeout_ms, kWaitStoppedMaxMs));
  changed_.wait_for(lock, wait_ms, [this] { return stopping_ || is_flush_over_; });
  return is_flush_over_ && flush_left_bytes_ == 0;
}

bool Node::drain(uint64_t timeout_ms) {
  if (!replicator_) return false;
  drain_ = DrainState::kAsked;
  wake();
  std::unique_lock lock(mutex_);
  const auto wait_ms = std::chrono::milliseconds(std::min(timeout_ms, kWaitStoppedMaxMs));
  changed_.wait_for(lock, wait_ms, [this] { return stopping_ || drain_ != DrainState::kAsked; });
  return drain_ == DrainState::kDone;
}

uint64_t Node::idle_ms() const {
  const uint64_t since = idle_since_ms_;
  return since == 0 ? 0 : monotonic_ms() - since;
}

std::vector<std::string> Node::notices_since(uint64_t& known) const {
  std::lock_guard lock(mutex_);
  const uint64_t before = std::exchange(known, notices_.count());
  return notices_.since(before);
}

Result<std::string> Node::stats_json() {
  std::unique_lock lock(mutex_);
  const uint64_t asked = ++stats_asked_;
  wake();
  const bool answered = changed_.wait_for(lock, std::chrono::milliseconds(kStatsWaitMs),
                                          [&] { return stats_answered_ >= asked || stopping_; });
  if (stopping_) return Status(Code::kClosed, "the node was stopped");
  if (!answered) return Status(Code::kTimeout, "the node's thread did not answer in time");
  return stats_json_;
}

void Node::wake() {
  const uint64_t one = 1;
  // A full counter wakes as well; a node without an event queue has no thread to wake.
  if (wake_event_.valid() && write(wake_event_.get(), &one, sizeof(one)) < 0) return;
}

// ---------------------------------------------------------------- the thread

/// What a small log holds is there for the first client; a large one is read on beside it.
void Node::await_recovery() {
  const Deadline until = Deadline::after_ms(kRecoveryPatienceMs);
  while (ssd_ && ssd_->log().is_recovering() && !until.expired() && !stopping_) {
    pollfd wake{wake_event_.get(), POLLIN, 0};
    if (poll(&wake, 1, until.remaining_ms()) == 1) {
      uint64_t ignored;
      if (read(wake_event_.get(), &ignored, sizeof(ignored)) < 0) break;
    }
    ssd_->advance(monotonic_ms());
  }
  wake();  // Somebody else may have, meanwhile.
}

void Node::run() {
  grow_ahead();
  await_recovery();
  uint64_t next_ms = 0;
  while (!stopping_) {
    epoll_event events[kEventsPerWait];
    const int count = epoll_wait(epoll_.get(), events, kEventsPerWait, wait_ms(next_ms));
    const uint64_t turn_ns = cluster_ ? monotonic_ns() : 0;
    bool is_woken = false;  // By an SSD, or by what may concern one.
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      if (fd == listener_.get()) {
        accept_clients();
      } else if (fd == wake_event_.get()) {
        uint64_t ignored;
        is_woken = true;
        if (read(fd, &ignored, sizeof(ignored)) < 0) continue;
        if (backing_failed_.exchange(false)) note_unbacked(backer_.failure());
        answer_stats_waiters();
      } else if (auto found = connections_.find(fd); found != connections_.end()) {
        Connection& connection = *found->second;
        const bool readable = (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0;
        if ((events[i].events & EPOLLOUT) != 0 && !flush(connection)) {
          close_connection(fd);
        } else if (readable) {
          read_from(connection);
        }
      } else if (network_ && network_->owns(fd)) {
        network_->advance(fd, monotonic_ms());
      } else {
        is_woken = true;
      }
    }
    serve_unfinished();
    const uint64_t now_ms = monotonic_ms();
    next_ms = std::min(store_.advance(now_ms), close_silent_connections(now_ms));
    if (network_) next_ms = std::min(next_ms, advance_network(now_ms));
    if (ssd_) {
      // Most requests concern no disk, and looking at the disks costs as much as they.
      if (is_woken || ssd_->is_due() || now_ms >= ssd_due_ms_) ssd_due_ms_ = advance_ssd(now_ms);
      next_ms = std::min(next_ms, ssd_due_ms_);
    }
    if (cluster_) {
      if (is_woken || cluster_->is_due() || now_ms >= cluster_due_ms_) {
        cluster_due_ms_ = cluster_->advance(now_ms);
        answer_clears();
      }
      cluster_due_ms_ = std::min(cluster_due_ms_, advance_copies(now_ms));
      next_ms = cluster_->is_due() ? now_ms : std::min(next_ms, cluster_due_ms_);
      busy_ns_ += monotonic_ns() - turn_ns;
    }
    if (!unfinished_.empty()) next_ms = 0;
  }
  close_listener();
  while (!connections_.empty()) close_connection(connections_.begin()->first);
  if (network_) network_->close();
  const std::lock_guard lock(mutex_);  // The last that it touches.
  is_disk_busy_ = ssd_ && !ssd_->is_idle();
  has_ended_ = true;
  changed_.notify_all();
}

uint64_t Node::advance_ssd(uint64_t now_ms) {
  if (flush_asked_ && flush_left_bytes_ == UINT64_MAX) ssd_->begin_flush();
  uint64_t next_ms = ssd_->advance(now_ms);
  flush_left_bytes_ = ssd_->flush_left_bytes();
  const bool is_flush_over = ssd_->is_flush_over();
  if (is_flush_over_.exchange(is_flush_over) != is_flush_over) {
    const std::lock_guard lock(mutex_);  // Or the waiter could miss it.
    changed_.notify_all();
  }
  for (const int fd : std::exchange(deferred_, {})) {
    const auto found = connections_.find(fd);
    if (found != connections_.end() && !answer_deferred(*found->second, now_ms, &next_ms)) {
      close_connection(fd);
    }
  }
  return ssd_->is_due() ? now_ms : next_ms;
}

int Node::wait_ms(uint64_t next_ms) const {
  const uint64_t now_ms = monotonic_ms();
  if (next_ms <= now_ms) return 0;
  return static_cast<int>(std::min<uint64_t>(next_ms - now_ms, kWaitMaxMs));
}

void Node::answer_stats_waiters() {
  std::unique_lock lock(mutex_);
  if (stats_answered_ == stats_asked_) return;
  const uint64_t answered = stats_asked_;
  lock.unlock();
  std::string json = make_stats_json();
  lock.lock();
  stats_json_ = std::move(json);
  stats_answered_ = answered;
  lock.unlock();
  changed_.notify_all();
}

void Node::note(const std::string& notice) {
  std::lock_guard lock(mutex_);
  notices_.add(notice, monotonic_ms());
}

// ---------------------------------------------------------------- connections

void Node::accept_clients() {
  for (;;) {
    Fd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      if (errno == EMFILE || errno == ENFILE) refuse_one_client();
      return;
    }
    Result<PeerIdentity> peer = peer_identity(socket);
    if (!peer.ok() || peer.value().uid != geteuid() ||
        connections_.size() >= options_.clients_max) {
      ++rejected_clients_;
      continue;
    }
    const int fd = socket.get();
    if (!watch(epoll_, fd, EPOLLIN).ok()) continue;
    auto connection = std::make_unique<Connection>();
    connection->socket = std::move(socket);
    connection->opened_ms = monotonic_ms();
    connections_.emplace(fd, std::move(connection));
  }
}

void Node::refuse_one_client() {
  // No descriptor is left to accept with, and a waiting client would wake the thread for ever: the
  // spare one makes room to take it off the queue.
  spare_fd_.reset();
  Fd refused(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  refused.reset();
  spare_fd_ = open_spare();
  ++rejected_clients_;
}

uint64_t Node::close_silent_connections(uint64_t now_ms) {
  uint64_t next_ms = UINT64_MAX;
  if (connections_.size() == client_count_) return next_ms;
  for (auto it = connections_.begin(); it != connections_.end();) {
    const auto& [fd, connection] = *it++;  // close_connection() erases it.
    if (connection->has_session) continue;
    const uint64_t due_ms = connection->opened_ms + kHelloTimeoutMs;
    if (due_ms <= now_ms) {
      close_connection(fd);
    } else {
      next_ms = std::min(next_ms, due_ms);
    }
  }
  return next_ms;
}

void Node::close_connection(int fd) {
  auto found = connections_.find(fd);
  if (found->second->has_session) {
    store_.close_session(found->second->session, monotonic_ms());
    if (ssd_) ssd_->close_session(found->second->session);
    if (network_ && network_->has_directory()) {
      network_->remote().close_session(found->second->session);
    }
    --client_count_;
    contributed_bytes_ -= found->second->pool_contribution_bytes;
    note_left();
  }
  connections_.erase(found);  // Closing the descriptor also ends the watch.
}

void Node::read_from(Connection& connection) {
  const int fd = connection.socket.get();
  switch (connection.receive()) {
    case Connection::Received::kClosed:
      close_connection(fd);
      return;
    case Connection::Received::kNothing:
      return;
    case Connection::Received::kBytes:
      break;
  }
  // One request at a time: who sends on while its reply is held back is not one of ours.
  if (connection.is_waiting() && connection.unread().size() > kPayloadSizeMax) {
    ++bad_frames_;
    return close_connection(fd);
  }
  serve(connection);
}

void Node::serve(Connection& connection) {
  const int fd = connection.socket.get();
  if (!handle_frames(connection)) return close_connection(fd);
  if (connection.has_more) unfinished_.push_back(fd);
}

void Node::serve_unfinished() {
  for (const int fd : std::exchange(unfinished_, {})) {
    if (auto found = connections_.find(fd); found != connections_.end()) serve(*found->second);
  }
}

bool Node::handle_frames(Connection& connection) {
  connection.has_more = false;
  for (int turn = 0; turn < kFramesPerTurn; ++turn) {
    if (connection.is_waiting()) return true;
    const std::span<const uint8_t> bytes = connection.unread();
    if (bytes.size() < kFrameHeaderSize) return true;
    const Result<FrameHeader> header = decode_frame_header(bytes.first<kFrameHeaderSize>());
    if (!header.ok()) {
      ++bad_frames_;
      refuse_version(connection, header.status());
      return false;
    }
    const size_t frame_size = kFrameHeaderSize + header.value().payload_size;
    if (bytes.size() < frame_size) return true;
    const NodeOp op = static_cast<NodeOp>(header.value().op);
    const uint64_t started_ns = monotonic_ns();
    const Payload payload = bytes.subspan(kFrameHeaderSize, header.value().payload_size);
    if (!handle(connection, op, header.value().request_id, payload)) return false;
    durations_[static_cast<size_t>(op)].add(monotonic_ns() - started_ns);
    connection.consume(frame_size);
  }
  connection.has_more = true;
  return true;
}

void Node::refuse_version(Connection& connection, const Status& why) {
  if (why.code() != Code::kUnsupported) return;
  begin_frame(reply_);
  end_frame(reply_, kVersionOp, 0);
  (void)send(connection, reply_);
  note("a client on this machine was refused: " + why.message());
}

bool Node::send(Connection& connection, std::span<const uint8_t> bytes) {
  if (!connection.queue(bytes)) return false;
  return flush(connection);
}

bool Node::flush(Connection& connection) {
  switch (connection.flush()) {
    case Connection::Flushed::kFailed:
      return false;
    case Connection::Flushed::kAll:
      return connection.watch_output(epoll_, false);
    case Connection::Flushed::kSome:
      return connection.watch_output(epoll_, true);
  }
  return false;
}

}  // namespace hicache
