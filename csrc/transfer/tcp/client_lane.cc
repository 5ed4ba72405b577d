#include "transfer/tcp/client_lane.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "io/tcp_socket.h"
#include "transfer/tcp/range_table.h"

namespace hicache {
namespace {

constexpr uint64_t kBudget = kMiB;  // Per turn, so that lanes of a loop take turns.
// Under way on a lane. Urgent parts may go beyond, so that they need not wait for room.
constexpr size_t kFramesMax = 96;
constexpr size_t kUrgentFramesMax = kTcpUnansweredMax - 4;

}  // namespace

void PathState::deliver(std::unique_lock<std::mutex>& lock, std::vector<OpDone>& done) {
  if (done.empty()) return;
  std::vector<OpDone> told;
  told.swap(done);
  ++deliveries;
  lock.unlock();
  for (OpDone& one : told) sink.complete(one.token, std::move(one.status));
  lock.lock();
  --deliveries;
  if (is_closed) changed.notify_all();
}

void PathState::forget(const ClientLane& lane) {
  for (auto& one : lanes) {
    if (one.get() == &lane) one.reset();
  }
  changed.notify_all();
}

bool PathState::has_lanes() const {
  return std::any_of(lanes.begin(), lanes.end(), [](const auto& lane) { return lane != nullptr; });
}

ClientLane::ClientLane(Fd socket, IoLoop& loop, std::shared_ptr<PathState> path, uint64_t epoch,
                       bool is_checked, uint64_t bytes_max)
    : socket_(std::move(socket)),
      loop_(loop),
      path_(std::move(path)),
      epoch_(epoch),
      is_checked_(is_checked),
      name_(peer_name(socket_)),
      bytes_max_(bytes_max),
      receiver_(*this, epoch) {}

Status ClientLane::start() {
  Result<uint64_t> id = loop_.add(socket_.get(), EPOLLIN, shared_from_this());
  if (!id.ok()) return id.status();
  id_ = id.value();
  path_->counters.lanes_out.fetch_add(1, std::memory_order_relaxed);
  return Status();
}

bool ClientLane::has_room(Priority priority) const {
  if (state_ != State::kOpen) return false;
  if (priority == Priority::kUrgent) {
    return bytes_under_way_ < 2 * bytes_max_ && frames_under_way_ < kUrgentFramesMax;
  }
  return bytes_under_way_ < bytes_max_ && frames_under_way_ < kFramesMax;
}

void ClientLane::give(const OpPart& part) {
  bytes_under_way_ += part.size;
  ++frames_under_way_;
  if (part.direction == Direction::kWrite) payload_waiting_ += part.size;
  (part.priority == Priority::kUrgent ? urgent_ : background_).push_back(part);
}

void ClientLane::refill() {
  for (const Priority priority : {Priority::kUrgent, Priority::kBackground}) {
    while (has_room(priority) && path_->ops.has_queued(priority)) give(path_->ops.take(priority));
  }
}

void ClientLane::ping() {
  must_ping_ = true;
  is_pinging_ = true;
}

void ClientLane::want_write(bool is_wanted) {
  if (wants_write_ == is_wanted) return;
  wants_write_ = is_wanted;
  loop_.change(id_, socket_.get(), EPOLLIN | (is_wanted ? uint32_t{EPOLLOUT} : 0));
}

void ClientLane::pump_later() {
  if (state_ == State::kOpen && !is_sending_) want_write(true);
}

bool ClientLane::commit_next(Request& request) {
  TcpFrame frame{.kind = FrameKind::kPing, .sequence = request.sequence};
  if (request.is_ping) {
    sender_.push(frame, 0, epoch_);
    return true;
  }
  std::deque<OpPart>& parts = urgent_.empty() ? background_ : urgent_;
  if (parts.empty()) return false;
  const OpPart& part = request.part = parts.front();
  parts.pop_front();
  frame.kind = part.direction == Direction::kRead ? FrameKind::kRead : FrameKind::kWrite;
  frame.flags = static_cast<uint8_t>((is_checked(part) ? kFlagChecksum : 0) |
                                     (part.priority == Priority::kUrgent ? kFlagUrgent : 0));
  frame.buffer = part.remote_buffer;
  frame.address = part.remote_address;
  frame.size = part.size;
  if (part.direction == Direction::kWrite) payload_waiting_ -= part.size;
  sender_.push(frame, part.local_address, epoch_);
  return true;
}

/// Gives numbers to what is sent next.
void ClientLane::commit() {
  while (sender_.has_room()) {
    Request& request = request_of(last_sequence_ + 1);
    if (request.is_used) return;  // Of the round before; answers come in any order.
    request = Request{.part = {}, .sequence = last_sequence_ + 1, .is_ping = must_ping_};
    if (!commit_next(request)) return;
    must_ping_ = false;
    request.is_used = true;
    ++last_sequence_;
  }
}

void ClientLane::note_sent(std::vector<OpDone>& done) {
  sent_sequence_ = sender_.empty() ? last_sequence_ : sender_.frames().front().frame.sequence - 1;
  if (early_.empty()) return;
  std::erase_if(early_, [&](const EarlyReply& reply) {
    if (reply.sequence > sent_sequence_) return false;
    end_request(request_of(reply.sequence), reply.code);
    return true;
  });
  done.swap(done_);
  refill();
}

void ClientLane::pump(uint64_t budget) {
  std::unique_lock lock(path_->mutex);
  if (state_ != State::kOpen || is_sending_) return;
  is_sending_ = true;
  const uint64_t end = sender_.sent_total() + budget;
  for (;;) {
    commit();
    if (sender_.empty() || sender_.sent_total() >= end) {
      is_sending_ = false;
      return want_write(!sender_.empty());
    }
    lock.unlock();
    const FrameSender::Outcome outcome = sender_.send(socket_.get());
    const int error = errno;
    lock.lock();
    std::vector<OpDone> done;
    note_sent(done);
    path_->deliver(lock, done);
    if (state_ != State::kOpen) {
      is_sending_ = false;
      loop_.post([self = shared_from_this()] { self->tear_down(); });
      return;
    }
    if (outcome == FrameSender::Outcome::kAll) continue;
    is_sending_ = false;
    if (outcome == FrameSender::Outcome::kBlocked) return want_write(true);
    return break_off(
        Status(Code::kUnavailable, "sending to " + name_ + " over TCP: " + std::strerror(error)));
  }
}

void ClientLane::break_off(const Status& reason) {
  if (state_ != State::kOpen) return;
  state_ = State::kBreaking;
  reason_ = reason;
  if (reason.code() != Code::kCancelled) {
    path_->counters.lanes_cut.fetch_add(1, std::memory_order_relaxed);
  }
  loop_.post([self = shared_from_this()] { self->tear_down(); });
}

void ClientLane::tear_down() {
  std::unique_lock lock(path_->mutex);
  // Whoever is sending posts this once more when done.
  if (state_ == State::kClosed || is_sending_) return;
  state_ = State::kClosed;
  if (frames_under_way_ != 0) {
    const linger at_once{1, 0};  // A reset: the peer drops what it has not applied.
    (void)setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  }
  loop_.remove(id_, socket_.get());
  socket_.reset();
  path_->counters.lanes_out.fetch_sub(1, std::memory_order_relaxed);
  std::vector<OpDone> done;
  end_all(done);
  path_->forget(*this);
  if (!path_->has_lanes()) path_->ops.fail_queued(reason_, done);
  path_->deliver(lock, done);
}

void ClientLane::end_all(std::vector<OpDone>& done) {
  const uint64_t now_ns = monotonic_ns();
  const auto end = [&](const OpPart& part) {
    const bool is_late = reason_.code() != Code::kCancelled && part.deadline_ns <= now_ns;
    path_->ops.finish(part.op, is_late ? status_of(part, Code::kTimeout) : reason_, done);
  };
  for (Request& request : requests_) {
    if (request.is_used && !request.is_ping && !request.is_given_up) end(request.part);
    request.is_used = false;
  }
  for (std::deque<OpPart>* parts : {&urgent_, &background_}) {
    for (const OpPart& part : *parts) end(part);
    parts->clear();
  }
  done.insert(done.end(), std::make_move_iterator(done_.begin()),
              std::make_move_iterator(done_.end()));
  done_.clear();
}

void ClientLane::on_events(uint32_t events) {
  if ((events & EPOLLOUT) != 0) pump(kBudget);
  if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) == 0) return;
  const FrameReceiver::Outcome outcome = receiver_.receive(socket_.get(), kBudget, loop_.scrap());
  const int error = errno;
  std::unique_lock lock(path_->mutex);
  received_total_ = receiver_.received_total();
  if (state_ != State::kOpen) return;  // tear_down() was posted, and tells what is done.
  switch (outcome) {
    case FrameReceiver::Outcome::kClosed:
      break_off(Status(Code::kUnavailable, "the peer " + name_ + " closed a TCP lane"));
      break;
    case FrameReceiver::Outcome::kBroken:
      break_off(Status(Code::kUnavailable,
                       "receiving from " + name_ + " over TCP: " + std::strerror(error)));
      break;
    case FrameReceiver::Outcome::kHostile:
      path_->counters.hostile.fetch_add(1, std::memory_order_relaxed);
      break_off(Status(Code::kUnavailable, "what came from " + name_ +
                                               " over a TCP lane breaks its rules; the lane was "
                                               "closed"));
      break;
    case FrameReceiver::Outcome::kDrained:
    case FrameReceiver::Outcome::kMore:
    case FrameReceiver::Outcome::kHeld:
      break;
  }
  refill();
  const bool has_more = must_ping_ || !urgent_.empty() || !background_.empty();
  std::vector<OpDone> done;
  done.swap(done_);
  path_->deliver(lock, done);
  lock.unlock();
  if (has_more) pump(kBudget);
}

bool ClientLane::on_header(const TcpFrame& frame) {
  const std::lock_guard lock(path_->mutex);
  if (frame.is_request()) return false;
  Request& request = request_of(frame.sequence);
  if (!request.is_used || request.sequence != frame.sequence) return false;
  answered_ = &request;
  reply_ = frame;
  if (frame.kind == FrameKind::kPingReply) return request.is_ping;
  if (request.is_ping) return false;
  if (frame.kind == FrameKind::kWriteReply) return request.part.direction == Direction::kWrite;
  return request.part.direction == Direction::kRead &&
         (frame.code != Code::kOk ||
          (frame.size == request.part.size && frame.has_checksum() == is_checked(request.part)));
}

/// Reads without the lock what only this thread changes while the request is used.
uint8_t* ClientLane::begin_piece(uint64_t offset, uint64_t) {
  if (answered_->is_given_up) return nullptr;
  return tcp_memory_at(answered_->part.local_address + offset);
}

bool ClientLane::on_frame(bool is_intact) {
  const std::lock_guard lock(path_->mutex);
  Code code = reply_.code;
  if (!is_intact) {
    path_->counters.corrupt.fetch_add(1, std::memory_order_relaxed);
    code = Code::kCorrupt;
  }
  ArrivalSum* arrival = answered_->part.arrival;
  if (arrival != nullptr && code == Code::kOk && !answered_->is_given_up) {
    *arrival = {receiver_.sum(), true};
  }
  if (reply_.sequence <= sent_sequence_ || reply_.kind != FrameKind::kWriteReply) {
    end_request(*answered_, code);
    return true;
  }
  // As far as is known here, the payload is still being sent: the op must not be over before.
  const bool is_known = std::any_of(early_.begin(), early_.end(), [&](const EarlyReply& reply) {
    return reply.sequence == reply_.sequence;
  });
  if (!is_sending_ || is_known) return false;
  early_.push_back({reply_.sequence, code});
  return true;
}

Status ClientLane::status_of(const OpPart& part, Code code) const {
  if (code == Code::kOk) return Status();
  const std::string tried =
      (part.direction == Direction::kRead ? "reading " : "writing ") + std::to_string(part.size) +
      " bytes " + (part.direction == Direction::kRead ? "from " : "to ") + name_ + " over TCP: ";
  switch (code) {
    case Code::kTimeout:
      return Status(code, tried + "no answer by the deadline");
    case Code::kCorrupt:
      return Status(code, tried + "what arrived has another checksum than what was sent");
    case Code::kInvalidArgument:
      return Status(code, tried + "the peer has not registered that range for this");
    default:
      return Status(Code::kUnavailable,
                    tried + "the peer answered " + std::string(code_name(code)));
  }
}

void ClientLane::end_request(Request& request, Code code) {
  request.is_used = false;
  if (request.is_ping) {
    is_pinging_ = false;
    path_->changed.notify_all();
    return;
  }
  const OpPart& part = request.part;
  bytes_under_way_ -= part.size;
  --frames_under_way_;
  if (request.is_given_up) return;
  if (code == Code::kOk) {
    TcpCounters& counters = path_->counters;
    (part.direction == Direction::kRead ? counters.read_bytes : counters.written_bytes)
        .fetch_add(part.size, std::memory_order_relaxed);
  }
  path_->ops.finish(part.op, status_of(part, code), done_);
}

/// Ends what is past its deadline. True: the lane must be cut, for a write cannot be taken back.
bool ClientLane::give_up(uint64_t now_ns) {
  bool must_cut = false;
  uint64_t count = 0;
  for (Request& request : requests_) {
    if (!request.is_used || request.is_ping || request.is_given_up) continue;
    if (request.part.deadline_ns > now_ns) continue;
    ++count;
    if (request.part.direction == Direction::kWrite) {
      must_cut = true;  // Ended by tear_down(), once nobody is sending.
    } else {
      request.is_given_up = true;
      path_->ops.finish(request.part.op, status_of(request.part, Code::kTimeout), done_);
    }
  }
  for (std::deque<OpPart>* parts : {&urgent_, &background_}) {
    std::erase_if(*parts, [&](const OpPart& part) {
      if (part.deadline_ns > now_ns) return false;
      ++count;
      bytes_under_way_ -= part.size;
      --frames_under_way_;
      if (part.direction == Direction::kWrite) payload_waiting_ -= part.size;
      path_->ops.finish(part.op, status_of(part, Code::kTimeout), done_);
      return true;
    });
  }
  path_->counters.timeouts.fetch_add(count, std::memory_order_relaxed);
  return must_cut;
}

uint64_t ClientLane::earliest_deadline() const {
  uint64_t earliest = path_->ops.earliest_deadline();
  for (const Request& request : requests_) {
    if (!request.is_used || request.is_ping || request.is_given_up) continue;
    earliest = std::min(earliest, request.part.deadline_ns);
  }
  for (const std::deque<OpPart>* parts : {&urgent_, &background_}) {
    for (const OpPart& part : *parts) earliest = std::min(earliest, part.deadline_ns);
  }
  return earliest;
}

uint64_t ClientLane::on_time(uint64_t now_ns) {
  std::unique_lock lock(path_->mutex);
  if (state_ != State::kOpen) return IoLoop::kNever;
  path_->ops.expire(now_ns, done_);
  if (give_up(now_ns)) {
    break_off(Status(Code::kUnavailable,
                     "a TCP lane to " + name_ + " was cut because a write over it was given up"));
  }
  const uint64_t next_ns = state_ == State::kOpen ? earliest_deadline() : IoLoop::kNever;
  std::vector<OpDone> done;
  done.swap(done_);
  path_->deliver(lock, done);
  return next_ns;
}

}  // namespace hicache
