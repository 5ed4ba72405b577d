#include "transfer/control_connection.h"

#include <utility>

#include "transfer/control.h"

namespace hicache {

ControlConnection::ControlConnection(Stream stream, const Secret& secret, uint64_t epoch,
                                     bool needs_tls, uint64_t greeting_deadline_ns)
    : stream_(std::move(stream)),
      greeting_(secret, epoch, random_nonce()),
      needs_tls_(needs_tls),
      greeting_deadline_ns_(greeting_deadline_ns) {
  expect(State::kGreeting, greeting_.wanted());
}

void ControlConnection::expect(State state, size_t size) {
  state_ = state;
  in_.resize(size);
  in_size_ = 0;
}

bool ControlConnection::receive() {
  while (in_size_ < in_.size()) {
    Result<size_t> got = stream_.read_some(std::span(in_).subspan(in_size_));
    if (!got.ok()) is_gone_ = true;
    if (!got.ok() || got.value() == 0) return false;
    in_size_ += got.value();
  }
  return true;
}

bool ControlConnection::send() {
  while (out_size_ < out_.size()) {
    Result<size_t> sent = stream_.write_some(std::span(out_).subspan(out_size_));
    if (!sent.ok()) is_gone_ = true;
    if (!sent.ok() || sent.value() == 0) return false;
    out_size_ += sent.value();
  }
  out_.clear();
  out_size_ = 0;
  return true;
}

ControlConnection::Next ControlConnection::advance(const Answer& answer) {
  // Nothing is read while a reply waits to be sent: who asks faster than it reads waits.
  while (send()) {
    if (ends_after_reply_) return Next::kClose;
    if (!receive()) break;
    const Next next = step(answer);
    if (next != Next::kWait) return next;
  }
  return is_gone_ ? Next::kClose : Next::kWait;
}

/// With what was expected whole in `in_`.
ControlConnection::Next ControlConnection::step(const Answer& answer) {
  if (state_ == State::kGreeting) return step_greeting();
  if (state_ == State::kHeader) {
    Result<FrameHeader> header = decode_frame_header(std::span(in_).first<kFrameHeaderSize>());
    if (!header.ok() || header.value().payload_size > kControlRequestSizeMax) {
      was_malformed_ = true;
      return Next::kClose;
    }
    header_ = header.value();
    expect(State::kPayload, header_.payload_size);
    return Next::kWait;
  }
  begin_frame(out_);
  const std::vector<uint8_t> payload = answer(header_.op, in_);
  out_.insert(out_.end(), payload.begin(), payload.end());
  end_frame(out_, header_.op, header_.request_id);
  expect(State::kHeader, kFrameHeaderSize);
  return Next::kWait;
}

ControlConnection::Next ControlConnection::step_greeting() {
  const Status taken = greeting_.take(in_, out_);
  if (!taken.ok()) {
    was_refused_ = true;
    ends_after_reply_ = true;
    return Next::kWait;
  }
  if (greeting_.wanted() != 0) {
    expect(State::kGreeting, greeting_.wanted());
    return Next::kWait;
  }
  const Purpose purpose = greeting_.greeting().purpose;
  if (purpose == Purpose::kControl && stream_.is_tls() == needs_tls_) {
    expect(State::kHeader, kFrameHeaderSize);
    return Next::kWait;
  }
  // The verdict is small, and nothing was sent before it: it fits the socket's buffer.
  if (purpose == Purpose::kTcpLane && !stream_.is_tls() && send()) return Next::kLane;
  was_refused_ = true;
  return Next::kClose;
}

}  // namespace hicache
