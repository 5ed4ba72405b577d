#include "transfer/tcp/server_lane.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <utility>

namespace hicache {
namespace {

constexpr uint64_t kBudget = kMiB;  // Per turn, so that lanes of a loop take turns.
constexpr uint32_t kEventsIn = EPOLLIN | EPOLLRDHUP;

}  // namespace

ServerLane::ServerLane(Fd socket, IoLoop& loop, const RangeTable& ranges, TcpCounters& counters,
                       uint64_t epoch)
    : socket_(std::move(socket)),
      loop_(loop),
      ranges_(ranges),
      counters_(counters),
      epoch_(epoch),
      receiver_(*this, epoch) {}

ServerLane::~ServerLane() {
  counters_.lanes_in.fetch_sub(1);  // Whoever sees it sees what the lane has written.
}

void ServerLane::start() {
  // Posted, so that no event comes before the id is known.
  loop_.post([self = shared_from_this()] {
    const Result<uint64_t> id = self->loop_.add(self->socket_.get(), kEventsIn, self);
    if (id.ok()) self->id_ = id.value();
  });
}

void ServerLane::close(bool is_hostile) {
  if (is_hostile) counters_.hostile.fetch_add(1, std::memory_order_relaxed);
  // A reset: answers that the peer does not read would keep the connection half open.
  const linger at_once{1, 0};
  (void)setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  loop_.remove(id_, socket_.get());
  socket_.reset();
}

void ServerLane::want_write(bool is_wanted) {
  if (wants_write_ == is_wanted) return;
  wants_write_ = is_wanted;
  loop_.change(id_, socket_.get(), kEventsIn | (is_wanted ? uint32_t{EPOLLOUT} : 0));
}

bool ServerLane::was_reset() const {
  pollfd asked{socket_.get(), POLLRDHUP, 0};
  return poll(&asked, 1, 0) > 0 && (asked.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

void ServerLane::on_events(uint32_t events) {
  if ((events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) != 0) return close(false);
  if ((events & EPOLLIN) != 0) {
    switch (receiver_.receive(socket_.get(), kBudget, loop_.scrap())) {
      case FrameReceiver::Outcome::kHostile:
        return close(!is_reset_);
      case FrameReceiver::Outcome::kClosed:
      case FrameReceiver::Outcome::kBroken:
        return close(false);
      case FrameReceiver::Outcome::kDrained:
      case FrameReceiver::Outcome::kMore:
        break;
    }
  }
  if (is_reset_ || !pump()) close(false);
}

bool ServerLane::on_header(const TcpFrame& frame) {
  if (!frame.is_request() || frame.sequence != last_sequence_ + 1 ||
      unanswered_ == kTcpUnansweredMax) {
    return false;
  }
  last_sequence_ = frame.sequence;
  ++unanswered_;
  request_ = frame;
  is_refused_ = false;
  return true;
}

uint8_t* ServerLane::begin_piece(uint64_t offset, uint64_t size) {
  if (is_refused_ || is_reset_) return nullptr;
  is_reset_ = was_reset();
  if (is_reset_) return nullptr;
  // The whole range is asked for: a write that does not fit must not be begun.
  use_ = ranges_.use(request_.buffer, request_.address, request_.size, RangeTable::Access::kWrite);
  is_refused_ = !use_;
  if (is_refused_) return nullptr;
  counters_.served_written_bytes.fetch_add(size, std::memory_order_relaxed);
  return tcp_memory_at(request_.address + offset);
}

bool ServerLane::on_frame(bool is_intact) {
  const bool is_urgent = (request_.flags & kFlagUrgent) != 0;
  if (is_reset_) return false;
  if (request_.kind == FrameKind::kPing) {
    answer(FrameKind::kPingReply, Code::kOk, true);
  } else if (request_.kind == FrameKind::kRead) {
    answer_read();
  } else if (is_refused_) {
    counters_.out_of_range.fetch_add(1, std::memory_order_relaxed);
    answer(FrameKind::kWriteReply, Code::kInvalidArgument, is_urgent);
  } else if (!is_intact) {
    counters_.corrupt.fetch_add(1, std::memory_order_relaxed);
    answer(FrameKind::kWriteReply, Code::kCorrupt, is_urgent);
  } else {
    answer(FrameKind::kWriteReply, Code::kOk, is_urgent);
  }
  return true;
}

void ServerLane::answer_read() {
  const bool is_urgent = (request_.flags & kFlagUrgent) != 0;
  if (!ranges_.use(request_.buffer, request_.address, request_.size, RangeTable::Access::kRead)) {
    counters_.out_of_range.fetch_add(1, std::memory_order_relaxed);
    return answer(FrameKind::kReadReply, Code::kInvalidArgument, is_urgent);
  }
  counters_.served_read_bytes.fetch_add(request_.size, std::memory_order_relaxed);
  const TcpFrame reply{.kind = FrameKind::kReadReply,
                       .flags = static_cast<uint8_t>(request_.flags & kFlagChecksum),
                       .sequence = request_.sequence,
                       .size = request_.size};
  (is_urgent ? urgent_ : background_).push_back({reply, request_.buffer, request_.address});
}

void ServerLane::answer(FrameKind kind, Code code, bool is_urgent) {
  (is_urgent ? urgent_ : background_)
      .push_back({TcpFrame{.kind = kind, .code = code, .sequence = request_.sequence}});
}

void ServerLane::commit() {
  while (sender_.has_room()) {
    std::deque<Reply>& replies = urgent_.empty() ? background_ : urgent_;
    if (replies.empty()) return;
    sender_.push(replies.front().frame, replies.front().address, epoch_);
    sending_.push_back(replies.front());
    replies.pop_front();
  }
}

/// Of each frame whose payload the next send may read.
bool ServerLane::pin(RangeTable::Use* uses) {
  for (size_t i = 0; i < sending_.size(); ++i) {
    Reply& reply = sending_[i];
    if (reply.frame.payload_size() == 0) continue;
    uses[i] = ranges_.use(reply.buffer, reply.address, reply.frame.size, RangeTable::Access::kRead);
    if (uses[i]) continue;
    // It was unregistered meanwhile. What has begun cannot be taken back.
    if (sender_.has_started(i)) return false;
    reply = {TcpFrame{.kind = FrameKind::kReadReply,
                      .code = Code::kInvalidArgument,
                      .sequence = reply.frame.sequence}};
    sender_.replace(i, reply.frame, epoch_);
  }
  return true;
}

bool ServerLane::pump() {
  const uint64_t end = sender_.sent_total() + kBudget;
  for (;;) {
    commit();
    if (sender_.empty()) {
      want_write(false);
      return true;
    }
    if (sender_.sent_total() >= end) {
      want_write(true);
      return true;
    }
    RangeTable::Use uses[FrameSender::kFramesMax];
    if (!pin(uses)) return false;
    const FrameSender::Outcome outcome = sender_.send(socket_.get());
    while (sending_.size() > sender_.frames().size()) {
      sending_.pop_front();
      --unanswered_;
    }
    if (outcome == FrameSender::Outcome::kBroken) return false;
    if (outcome == FrameSender::Outcome::kBlocked) {
      want_write(true);
      return true;
    }
  }
}

}  // namespace hicache
