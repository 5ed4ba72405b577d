#include "transfer/tcp/server_lane.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <utility>

#include "transfer/memory_place.h"

namespace hicache {
namespace {

constexpr uint64_t kBudget = kMiB;  // Per turn, so that lanes of a loop take turns.
constexpr uint32_t kEventsIn = EPOLLIN | EPOLLRDHUP;

}  // namespace

ServerLane::ServerLane(Fd socket, IoLoop& loop, const RangeTable& ranges, DeviceStaging& staging,
                       TcpCounters& counters, uint64_t epoch)
    : socket_(std::move(socket)),
      loop_(loop),
      ranges_(ranges),
      counters_(counters),
      epoch_(epoch),
      receiver_(*this, epoch),
      staging_(staging) {}

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
  watch(is_held_, is_wanted);
}

void ServerLane::watch(bool is_held, bool wants_write) {
  if (is_held_ == is_held && wants_write_ == wants_write) return;
  is_held_ = is_held;
  wants_write_ = wants_write;
  const uint32_t in = is_held ? uint32_t{EPOLLRDHUP} : kEventsIn;
  loop_.change(id_, socket_.get(), in | (wants_write ? uint32_t{EPOLLOUT} : 0));
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
      case FrameReceiver::Outcome::kHeld:
        watch(true, wants_write_);
        break;
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
  refusal_ = Code::kInvalidArgument;
  const bool is_write = frame.kind == FrameKind::kWrite && frame.size != 0;
  is_staged_ = is_write && ranges_.is_on_device(frame.buffer);
  return true;
}

uint8_t* ServerLane::begin_piece(uint64_t offset, uint64_t size) {
  if (is_refused_ || is_reset_) return nullptr;
  is_reset_ = was_reset();
  if (is_reset_) return nullptr;
  if (is_staged_) {
    counters_.served_written_bytes.fetch_add(size, std::memory_order_relaxed);
    return write_slot_->memory() + offset;
  }
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
    answer(FrameKind::kWriteReply, refusal_, is_urgent);
  } else if (!is_intact) {
    counters_.corrupt.fetch_add(1, std::memory_order_relaxed);
    answer(FrameKind::kWriteReply, Code::kCorrupt, is_urgent);
  } else if (is_staged_) {
    apply_staged_write(is_urgent);
  } else {
    answer(FrameKind::kWriteReply, Code::kOk, is_urgent);
  }
  write_slot_.reset();
  return true;
}

void ServerLane::answer_read() {
  const bool is_urgent = (request_.flags & kFlagUrgent) != 0;
  const RangeTable::Use use =
      ranges_.use(request_.buffer, request_.address, request_.size, RangeTable::Access::kRead);
  if (!use) {
    counters_.out_of_range.fetch_add(1, std::memory_order_relaxed);
    return answer(FrameKind::kReadReply, Code::kInvalidArgument, is_urgent);
  }
  if (use.is_on_device() && request_.size != 0) {
    staged_reads_.push_back({request_, is_urgent});
    return start_staged_reads();
  }
  counters_.served_read_bytes.fetch_add(request_.size, std::memory_order_relaxed);
  const TcpFrame reply{.kind = FrameKind::kReadReply,
                       .flags = static_cast<uint8_t>(request_.flags & kFlagChecksum),
                       .sequence = request_.sequence,
                       .size = request_.size};
  (is_urgent ? urgent_ : background_).push_back({reply, request_.buffer, request_.address});
}

void ServerLane::answer(FrameKind kind, Code code, bool is_urgent) {
  answer(request_, kind, code, is_urgent);
}

void ServerLane::answer(const TcpFrame& request, FrameKind kind, Code code, bool is_urgent) {
  (is_urgent ? urgent_ : background_)
      .push_back({TcpFrame{.kind = kind, .code = code, .sequence = request.sequence}});
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
    if (reply.frame.payload_size() == 0 || reply.slot != nullptr) continue;
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

// ---- Memory of a GPU

bool ServerLane::is_ready() {
  if (!is_staged_ || is_refused_ || write_slot_ != nullptr) return true;
  if (request_.size > DeviceStaging::kSlotSize) {
    is_refused_ = true;  // No part of ours is larger.
    return true;
  }
  if (slots_ == nullptr) slots_ = LaneSlots::make(staging_, loop_, [this] { go_on(); });
  const Status status = slots_->take(shared_from_this(), request_.address, write_slot_);
  if (!status.ok()) {
    is_refused_ = true;
    refusal_ = status.code();
  }
  return write_slot_ != nullptr || is_refused_;
}

/// A slot has become free.
void ServerLane::go_on() {
  if (!socket_.valid()) return;
  start_staged_reads();
  if (is_held_) {
    watch(false, wants_write_);
    on_events(EPOLLIN);
  } else if (!pump()) {
    close(false);
  }
  if (staged_reads_.empty() && !is_held_) slots_->give_up();
}

void ServerLane::start_staged_reads() {
  if (slots_ == nullptr) slots_ = LaneSlots::make(staging_, loop_, [this] { go_on(); });
  while (!staged_reads_.empty()) {
    const StagedRead read = staged_reads_.front();
    LaneSlots::Lent slot;
    Status status(Code::kInvalidArgument, "larger than a slot");
    if (read.request.size <= DeviceStaging::kSlotSize) {
      status = slots_->take(shared_from_this(), read.request.address, slot);
    }
    if (status.ok() && slot == nullptr) return;
    staged_reads_.pop_front();
    if (status.ok()) {
      start_copy(read, std::move(slot));
    } else {
      answer(read.request, FrameKind::kReadReply, status.code(), read.is_urgent);
    }
  }
}

void ServerLane::start_copy(const StagedRead& read, LaneSlots::Lent slot) {
  const TcpFrame& request = read.request;
  auto use = std::make_shared<RangeTable::Use>(
      ranges_.use(request.buffer, request.address, request.size, RangeTable::Access::kRead));
  if (!*use) {
    counters_.out_of_range.fetch_add(1, std::memory_order_relaxed);
    return answer(request, FrameKind::kReadReply, Code::kInvalidArgument, read.is_urgent);
  }
  counters_.served_read_bytes.fetch_add(request.size, std::memory_order_relaxed);
  const uint64_t target = slot->address();
  const int device = slot->device();
  staging_.copy(target, request.address, request.size, device, DeviceStaging::Way::kFromDevice,
                [self = shared_from_this(), read, slot, use](const Status& status) {
                  use->end();  // Who de-registers does not wait for the loop.
                  self->loop_.post([self, read, slot, code = status.code()] {
                    self->finish_read(read, slot, code);
                  });
                });
}

void ServerLane::finish_read(const StagedRead& read, const LaneSlots::Lent& slot, Code code) {
  if (!socket_.valid()) return;
  if (code != Code::kOk) {
    answer(read.request, FrameKind::kReadReply, code, read.is_urgent);
  } else {
    const TcpFrame reply{.kind = FrameKind::kReadReply,
                         .flags = static_cast<uint8_t>(read.request.flags & kFlagChecksum),
                         .sequence = read.request.sequence,
                         .size = read.request.size};
    (read.is_urgent ? urgent_ : background_).push_back({reply, kNoBuffer, slot->address(), slot});
  }
  if (!pump()) close(false);
}

/// Acknowledged when the copy is done.
void ServerLane::apply_staged_write(bool is_urgent) {
  auto use = std::make_shared<RangeTable::Use>(
      ranges_.use(request_.buffer, request_.address, request_.size, RangeTable::Access::kWrite));
  if (!*use) {
    counters_.out_of_range.fetch_add(1, std::memory_order_relaxed);
    return answer(FrameKind::kWriteReply, Code::kInvalidArgument, is_urgent);
  }
  const LaneSlots::Lent slot = write_slot_;
  staging_.copy(
      request_.address, slot->address(), request_.size, slot->device(),
      DeviceStaging::Way::kToDevice,
      [self = shared_from_this(), request = request_, is_urgent, slot, use](const Status& status) {
        use->end();
        self->loop_.post([self, request, is_urgent, code = status.code()] {
          if (!self->socket_.valid()) return;
          self->answer(request, FrameKind::kWriteReply, code, is_urgent);
          if (!self->pump()) self->close(false);
        });
      });
}

}  // namespace hicache
