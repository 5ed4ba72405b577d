// The server's end of one connection that was greeted: requests, one at a time.
//
// A state machine over a non-blocking stream; the server calls advance() whenever the socket may
// have something. Memory: at most one request and one reply.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "net/frame.h"
#include "net/stream.h"

namespace hicache {

class ControlConnection {
 public:
  enum class Next : uint8_t {
    kWait,   // For events() on the socket.
    kClose,  // Gone or malformed.
  };
  /// Works out a reply's payload: code, message, bytes.
  using Answer = std::function<std::vector<uint8_t>(uint16_t op, std::span<const uint8_t>)>;

  explicit ControlConnection(Stream stream);

  Next advance(const Answer& answer);

  int fd() const { return stream_.socket().get(); }
  uint32_t events() const { return stream_.events(); }
  /// Why the connection ended, for counting.
  bool was_malformed() const { return was_malformed_; }

 private:
  enum class State : uint8_t { kHeader, kPayload };

  /// Fills `in_`, `in_` being as large as what is expected. False: not whole yet, or gone.
  bool receive();
  bool send();
  Next step(const Answer& answer);
  void expect(State state, size_t size);

  Stream stream_;
  State state_ = State::kHeader;
  FrameHeader header_{};
  std::vector<uint8_t> in_;
  size_t in_size_ = 0;
  std::vector<uint8_t> out_;
  size_t out_size_ = 0;
  bool is_gone_ = false;
  bool was_malformed_ = false;
};

}  // namespace hicache
