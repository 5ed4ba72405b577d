#include "transfer/control_connection.h"

#include <utility>

#include "transfer/control.h"

namespace hicache {

ControlConnection::ControlConnection(Stream stream) : stream_(std::move(stream)) {
  expect(State::kHeader, kFrameHeaderSize);
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
    if (!receive()) break;
    const Next next = step(answer);
    if (next != Next::kWait) return next;
  }
  return is_gone_ ? Next::kClose : Next::kWait;
}

/// With what was expected whole in `in_`.
ControlConnection::Next ControlConnection::step(const Answer& answer) {
  if (state_ == State::kHeader) {
    Result<FrameHeader> header = decode_frame_header(std::span(in_).first<kFrameHeaderSize>());
    if (!header.ok() || header.value().payload_size > kControlRequestSizeMax) {
      was_malformed_ = true;
      if (header.status().code() == Code::kUnsupported) {
        begin_frame(out_);
        end_frame(out_, kVersionOp, 0);
        (void)send();
      }
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

}  // namespace hicache
