// One client's connection as the node's thread sees it: bytes in, bytes out, both bounded.
#pragma once

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "io/fd.h"
#include "net/frame.h"
#include "store/node.h"

namespace hicache {

struct Node::Connection {
  enum class Received { kBytes, kNothing, kClosed };
  enum class Flushed { kAll, kSome, kFailed };

  Fd socket;
  uint64_t opened_ms = 0;
  SessionIndex session = 0;
  bool has_session = false;  // After a valid Hello.
  uint64_t pool_contribution_bytes = 0;
  bool has_more = false;  // Frames that one turn did not allow for.
  uint64_t ticket = 0;    // Not 0: `deferred` is sent once the SSD tier is done with it.
  std::vector<uint8_t> deferred;
  std::vector<uint8_t> late;  // In its place when that takes too long,
  std::vector<uint8_t> lost;  // or when no disk can keep it.
  uint64_t patient_until_ms = 0;
  RemoteWaitId remote_wait = 0;  // Not 0: the reply waits for pages of peers.
  NodeOp remote_op = NodeOp::kLookup;
  uint64_t remote_request_id = 0;
  std::vector<uint8_t> remote_payload;
  std::vector<uint32_t> remote_missing;  // Which of its keys are waited for.
  std::vector<Code> remote_codes;        // Of a removal or a replacement: what was done here.
  uint64_t remote_ticket = 0;            // Likewise: of the SSD tier.

  /// Of a cleared namespace, what the cluster said of it; null: nothing is waited for.
  std::shared_ptr<std::optional<Code>> clearing;
  std::vector<uint8_t> clear_reply;  // That all is well,
  uint64_t clear_ticket = 0;         // once the SSD tier is done, too.
  uint64_t clear_request_id = 0;

  /// Its last request was not answered yet.
  bool is_waiting() const { return ticket != 0 || remote_wait != 0 || clearing; }

  /// Reads what is there, at most kReceiveMax, so that one client cannot keep the thread.
  Received receive() {
    // Grows with what really arrives, never with what a header announces.
    if (input_.size() - filled_ < kReceiveMax) input_.resize(filled_ + kReceiveMax);
    const ssize_t size = recv(socket.get(), input_.data() + filled_, kReceiveMax, MSG_DONTWAIT);
    if (size > 0) {
      filled_ += static_cast<size_t>(size);
      return Received::kBytes;
    }
    const bool again = size < 0 && (errno == EAGAIN || errno == EINTR);
    return again ? Received::kNothing : Received::kClosed;
  }

  std::span<const uint8_t> unread() const {
    return std::span(input_).subspan(consumed_, filled_ - consumed_);
  }

  void consume(size_t size) {
    consumed_ += size;
    if (consumed_ == filled_) {
      consumed_ = filled_ = 0;
      if (input_.size() > kKeepMax) input_ = {};
    } else if (consumed_ >= kReceiveMax) {
      std::memmove(input_.data(), input_.data() + consumed_, filled_ - consumed_);
      filled_ -= consumed_;
      consumed_ = 0;
    }
  }

  /// False when the client reads too slowly: it is cut off rather than buffered for.
  bool queue(std::span<const uint8_t> bytes) {
    if (output_.size() - sent_ + bytes.size() > kOutputMax) return false;
    // A client that always leaves a little unread must not make this grow.
    if (sent_ > output_.size() / 2) {
      output_.erase(output_.begin(), output_.begin() + static_cast<ptrdiff_t>(sent_));
      sent_ = 0;
    }
    output_.insert(output_.end(), bytes.begin(), bytes.end());
    return true;
  }

  Flushed flush() {
    while (sent_ < output_.size()) {
      const ssize_t size = ::send(socket.get(), output_.data() + sent_, output_.size() - sent_,
                                  MSG_NOSIGNAL | MSG_DONTWAIT);
      if (size < 0) {
        if (errno == EINTR) continue;
        return errno == EAGAIN ? Flushed::kSome : Flushed::kFailed;
      }
      sent_ += static_cast<size_t>(size);
    }
    output_.clear();
    if (output_.capacity() > kKeepMax) output_ = {};
    sent_ = 0;
    return Flushed::kAll;
  }

  bool watch_output(const Fd& epoll, bool on) {
    if (on == watches_output_) return true;
    epoll_event event{};
    event.events = on ? EPOLLIN | EPOLLOUT : EPOLLIN;
    event.data.fd = socket.get();
    watches_output_ = on;
    return epoll_ctl(epoll.get(), EPOLL_CTL_MOD, socket.get(), &event) == 0;
  }

 private:
  static constexpr size_t kReceiveMax = 256 * kKiB;
  static constexpr size_t kOutputMax = 4 * static_cast<size_t>(kPayloadSizeMax);
  static constexpr size_t kKeepMax = 1 * kMiB;  // Larger buffers are given back when empty.

  std::vector<uint8_t> input_;
  size_t filled_ = 0;
  size_t consumed_ = 0;
  std::vector<uint8_t> output_;
  size_t sent_ = 0;
  bool watches_output_ = false;
};

}  // namespace hicache
