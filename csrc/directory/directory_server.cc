#include "directory/directory_server.h"

#include <pthread.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <future>

namespace hicache {
namespace {

constexpr size_t kEventsMin = 512;  // Strangers, and those who knock.
/// Replies that wait for a client: with more, nothing is read from it.
constexpr size_t kUnsentMax = 1 * kMiB;
/// What one connection may send before it is another's turn: a few milliseconds of work.
constexpr size_t kTurnMax = 256 * kKiB;
constexpr size_t kTurnFramesMax = 256;
constexpr size_t kTurnAnswersMax = 2 * kUnsentMax;
constexpr uint64_t kStallCheckMs = 250;

}  // namespace

Result<std::unique_ptr<DirectoryServer>> DirectoryServer::start(const Options& options) {
  Result<Listening> listening = tcp_listen(options.host, options.port_min, options.port_max);
  if (!listening.ok()) return listening.status();
  Fd epoll(epoll_create1(EPOLL_CLOEXEC));
  EventFd wake = EventFd::make();
  if (!epoll.valid() || !wake.valid()) return io_error("starting the directory", errno);
  std::unique_ptr<DirectoryServer> server(new DirectoryServer(options, std::move(listening.value()),
                                                              std::move(epoll), std::move(wake)));
  HICACHE_RETURN_IF_ERROR(server->run());
  return server;
}

DirectoryServer::DirectoryServer(const Options& options, Listening listening, Fd epoll,
                                 EventFd wake)
    : options_(options),
      port_(listening.port),
      epoll_(std::move(epoll)),
      wake_(std::move(wake)),
      directory_(options.directory),
      reception_({options.secret, 0, options.tls, options.connections_max,
                  [this](const std::string& notice) { note(notice); }},
                 std::move(listening), epoll_.get()) {}

DirectoryServer::~DirectoryServer() {
  stop();
}

Status DirectoryServer::run() {
  HICACHE_RETURN_IF_ERROR(reception_.start());
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = wake_.get();
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) {
    return io_error("starting the directory", errno);
  }
  prober_ = std::make_unique<Prober>(
      options_.secret, options_.tls, options_.directory.probe_timeout_ms,
      [this](NodeIndex node, uint64_t probe, bool is_alive) {
        post([=, this] { directory_.probe_result(node, probe, is_alive, round_ms_); });
      });
  thread_ = std::thread([this] { serve(); });
  pthread_setname_np(thread_.native_handle(), "mh-directory");
  return Status();
}

void DirectoryServer::stop() {
  stopping_ = true;
  wake_.signal();
  if (thread_.joinable()) thread_.join();
  prober_.reset();
  reception_.close();
  connections_.clear();
}

// ---------------------------------------------------------------- from other threads

void DirectoryServer::post(std::function<void()> task) {
  {
    const std::lock_guard lock(tasks_mutex_);
    if (is_deaf_) return;
    tasks_.push_back(std::move(task));
  }
  wake_.signal();
}

template <typename T>
T DirectoryServer::ask(std::function<T()> task) {
  auto promise = std::make_shared<std::promise<T>>();
  std::future<T> future = promise->get_future();
  {
    const std::lock_guard lock(tasks_mutex_);
    if (is_deaf_) return T{};
    tasks_.push_back([promise, task = std::move(task)] { promise->set_value(task()); });
  }
  wake_.signal();
  return future.get();
}

void DirectoryServer::lead(uint64_t epoch) {
  (void)ask<bool>([this, epoch] {
    directory_.lead(epoch);
    epoch_ = epoch;
    return true;
  });
}

std::vector<std::pair<std::string, uint64_t>> DirectoryServer::stats() {
  using Stats = std::vector<std::pair<std::string, uint64_t>>;
  return ask<Stats>([this] {
    Stats stats = directory_.stats();
    stats.emplace_back("connections", connections_.size());
    stats.emplace_back("refused", reception_.refused_count() + unwelcome_count_);
    stats.emplace_back("malformed", malformed_count_);
    stats.emplace_back("stalled", stalled_count_);
    stats.emplace_back("requests", request_count_);
    stats.emplace_back("cut_turns", cut_turn_count_);
    return stats;
  });
}

std::vector<MemberView> DirectoryServer::members() {
  return ask<std::vector<MemberView>>(
      [this] { return directory_.apply(MembersRequest{}).members; });
}

std::vector<std::string> DirectoryServer::notices_since(uint64_t& known) const {
  const std::lock_guard lock(notices_mutex_);
  const uint64_t before = std::exchange(known, notices_.count());
  return notices_.since(before);
}

// ---------------------------------------------------------------- the thread

void DirectoryServer::serve() {
  // All that are ready are heard before anybody is found silent: as of the time at which the round
  // began, however long it takes.
  std::vector<epoll_event> events(options_.connections_max + kEventsMin);
  while (!stopping_) {
    const int ready =
        epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), wait_ms());
    round_ms_ = monotonic_ms();
    // Those that a turn did not finish go after those who come new.
    std::vector<int> unfinished = std::exchange(with_more_, {});
    for (int i = 0; i < ready; ++i) {
      const int fd = events[static_cast<size_t>(i)].data.fd;
      if (fd == wake_.get()) {
        wake_.clear();
      } else if (connections_.contains(fd)) {
        turn_of(fd);
      } else if (reception_.owns(fd)) {
        std::optional<Reception::Guest> guest = reception_.advance(fd, connections_.size());
        if (guest) welcome(std::move(*guest));
      }
    }
    for (const int fd : unfinished) {
      const auto found = connections_.find(fd);
      if (found != connections_.end() && std::exchange(found->second.has_more, false)) turn_of(fd);
    }
    advance_core();
  }
  std::vector<std::function<void()>> last;
  {
    const std::lock_guard lock(tasks_mutex_);
    is_deaf_ = true;
    last.swap(tasks_);
  }
  for (const auto& task : last) task();
}

int DirectoryServer::wait_ms() {
  const int greetings_ms = reception_.expire();
  if (!with_more_.empty()) return 0;
  const uint64_t now_ms = monotonic_ms();
  const uint64_t due_ms = std::min(core_due_ms_, stalls_due_ms_);
  if (due_ms <= now_ms) return 0;
  const auto own_ms = static_cast<int>(std::min<uint64_t>(due_ms - now_ms, kStallCheckMs));
  return greetings_ms < 0 ? own_ms : std::min(own_ms, greetings_ms);
}

void DirectoryServer::advance_core() {
  std::vector<std::function<void()>> tasks;
  {
    const std::lock_guard lock(tasks_mutex_);
    tasks.swap(tasks_);
  }
  for (const auto& task : tasks) task();
  if (round_ms_ >= core_due_ms_ || !tasks.empty()) core_due_ms_ = directory_.advance(round_ms_);
  for (std::vector<Directory::Effect> effects = directory_.take_effects(); !effects.empty();
       effects = directory_.take_effects()) {
    for (const Directory::Effect& effect : effects) carry_out(effect);
    core_due_ms_ = 0;
  }
  epoch_ = directory_.epoch();
  if (round_ms_ >= stalls_due_ms_) close_stalled();
}

void DirectoryServer::carry_out(const Directory::Effect& effect) {
  if (effect.kind == Directory::EffectKind::kProbe) return prober_->probe(effect);
  if (effect.kind == Directory::EffectKind::kHeardOfNewer) {
    newest_epoch_heard_ = std::max<uint64_t>(newest_epoch_heard_, effect.epoch);
  }
  const auto found = by_session_.find(effect.session);
  if (found == by_session_.end()) return;
  const int fd = found->second;
  if (effect.kind == Directory::EffectKind::kCloseSession) return forget(fd);
  if (effect.kind != Directory::EffectKind::kSendOrders) return;
  Connection& connection = connections_.at(fd);
  // Who does not read gets them with the next heartbeat's reply.
  if (connection.pipe.unsent_size() >= kUnsentMax) return;
  begin_frame(frame_);
  WireWriter writer(frame_);
  encode(writer, directory_.orders_of(effect.node));
  seal_frame(frame_, static_cast<uint16_t>(DirectoryOp::kHeartbeat) | kDirectoryReplyBit, 0);
  connection.pipe.append(frame_);
  if (!send(connection)) forget(fd);
}

void DirectoryServer::close_stalled() {
  std::vector<int> stalled;
  for (const auto& [fd, connection] : connections_) {
    const uint64_t since_ms = connection.blocked_ms;
    if (since_ms != 0 && round_ms_ >= since_ms + options_.stall_timeout_ms) stalled.push_back(fd);
  }
  for (const int fd : stalled) forget(fd);
  stalled_count_ += stalled.size();
  stalls_due_ms_ = round_ms_ + kStallCheckMs;
}

// ---------------------------------------------------------------- connections

void DirectoryServer::welcome(Reception::Guest guest) {
  const bool is_welcome = guest.purpose == Purpose::kDirectory &&
                          guest.stream.is_tls() == (options_.tls != nullptr) &&
                          connections_.size() < options_.connections_max;
  if (!is_welcome) {
    ++unwelcome_count_;
    return;
  }
  const int fd = guest.stream.socket().get();
  const SessionId session = ++last_session_;
  connections_.emplace(
      fd, Connection{FramePipe(std::move(guest.stream), kDirectoryRequestSizeMax), session});
  by_session_.emplace(session, fd);
  turn_of(fd);
}

void DirectoryServer::turn_of(int fd) {
  Connection& connection = connections_.at(fd);
  if (!advance(connection)) return forget(fd);
  if (!connection.has_more) return;
  ++cut_turn_count_;
  with_more_.push_back(fd);
}

bool DirectoryServer::advance(Connection& connection) {
  Turn turn;
  while (true) {
    if (!answer_some(connection, turn)) return false;
    if (turn.is_over()) {
      connection.has_more = true;
      return send(connection);
    }
    if (connection.pipe.unsent_size() >= kUnsentMax) {
      if (!send(connection)) return false;
      if (connection.pipe.unsent_size() >= kUnsentMax) return true;
      continue;  // There may be whole frames that were received before.
    }
    const Result<size_t> got = connection.pipe.receive();
    if (!got.ok()) return false;
    if (got.value() == 0) return send(connection);
    turn.received_bytes += got.value();
  }
}

bool DirectoryServer::Turn::is_over() const {
  return received_bytes >= kTurnMax || frames >= kTurnFramesMax ||
         answered_bytes >= kTurnAnswersMax;
}

bool DirectoryServer::answer_some(Connection& connection, Turn& turn) {
  while (connection.pipe.unsent_size() < kUnsentMax && !turn.is_over()) {
    const Result<FramePipe::Frame> frame = connection.pipe.next();
    if (frame.ok() && !frame.value().is_whole) return true;
    const bool is_sound =
        frame.ok() && answer(connection, frame.value().header, frame.value().payload);
    if (!is_sound) {
      ++malformed_count_;
      refuse(connection, frame.status());
      return false;
    }
    connection.pipe.append(frame_);
    ++turn.frames;
    turn.answered_bytes += frame_.size();
  }
  return true;
}

/// Sends what the socket takes, and has the epoll wait for what comes next.
bool DirectoryServer::send(Connection& connection) {
  const Result<size_t> sent = connection.pipe.flush();
  if (!sent.ok()) return false;
  const bool is_blocked = connection.pipe.unsent_size() != 0;
  if (!is_blocked) {
    connection.blocked_ms = 0;
  } else if (sent.value() != 0 || connection.blocked_ms == 0) {
    connection.blocked_ms = round_ms_;
  }
  const bool reads = connection.pipe.unsent_size() < kUnsentMax;
  epoll_event event{};
  event.events = (reads ? EPOLLIN : 0U) | (is_blocked ? EPOLLOUT : 0U);
  event.data.fd = connection.pipe.fd();
  if (event.events == connection.events) return true;
  connection.events = event.events;
  return epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, event.data.fd, &event) == 0;
}

void DirectoryServer::refuse(Connection& connection, const Status& why) {
  if (why.code() != Code::kUnsupported) return;
  connection.pipe.say_version();
  note("a node or client at " + peer_host(connection.pipe.socket()) +
       " was refused: " + why.message());
}

void DirectoryServer::note(const std::string& notice) {
  const std::lock_guard lock(notices_mutex_);
  notices_.add(notice, monotonic_ms());
}

void DirectoryServer::forget(int fd) {
  const auto found = connections_.find(fd);
  const SessionId session = found->second.session;
  connections_.erase(found);
  by_session_.erase(session);
  directory_.disconnected(session, round_ms_);
  reception_.guest_left();
}

bool DirectoryServer::answer(Connection& connection, const FrameHeader& header, Payload payload) {
  ++request_count_;
  begin_frame(frame_);
  const auto op = static_cast<DirectoryOp>(header.op);
  if (!desk_.answer(op, payload, connection.session, round_ms_, frame_)) return false;
  // Who joined is to be listened to from now on; the others leave something to be swept.
  const bool is_change =
      op == DirectoryOp::kJoin || op == DirectoryOp::kLeave || op == DirectoryOp::kClearSpace;
  if (is_change) core_due_ms_ = 0;
  seal_frame(frame_, header.op | kDirectoryReplyBit, header.request_id);
  return true;
}

}  // namespace hicache
