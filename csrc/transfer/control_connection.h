// The server's end of one connection: greeting, then requests, one at a time.
//
// A state machine over a non-blocking stream; the server calls advance() whenever the socket may
// have something. Memory: nothing is allocated for a client that has not proven itself but the
// fixed size of the greeting; then at most one request and one reply.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "net/frame.h"
#include "net/greeting.h"
#include "net/stream.h"

namespace hicache {

class ControlConnection {
 public:
  enum class Next : uint8_t {
    kWait,   // For events() on the socket.
    kLane,   // The greeting is over, and it is a lane: take_lane().
    kClose,  // Gone, refused or malformed.
  };
  /// Works out a reply's payload: code, message, bytes.
  using Answer = std::function<std::vector<uint8_t>(uint16_t op, std::span<const uint8_t>)>;

  ControlConnection(Stream stream, const Secret& secret, uint64_t epoch, bool needs_tls,
                    uint64_t greeting_deadline_ns);

  Next advance(const Answer& answer);

  int fd() const { return stream_.socket().get(); }
  uint32_t events() const { return stream_.events(); }
  bool is_greeting() const { return state_ == State::kGreeting; }
  uint64_t greeting_deadline_ns() const { return greeting_deadline_ns_; }
  /// Why the connection ended, for counting: refused in the greeting, or malformed after it.
  bool was_refused() const { return was_refused_; }
  bool was_malformed() const { return was_malformed_; }
  Fd take_lane() { return stream_.release(); }

 private:
  enum class State : uint8_t { kGreeting, kHeader, kPayload };

  /// Fills `in_`, `in_` being as large as what is expected. False: not whole yet, or gone.
  bool receive();
  bool send();
  Next step(const Answer& answer);
  Next step_greeting();
  void expect(State state, size_t size);

  Stream stream_;
  ServerGreeting greeting_;
  bool needs_tls_;
  uint64_t greeting_deadline_ns_;
  State state_ = State::kGreeting;
  FrameHeader header_{};
  std::vector<uint8_t> in_;
  size_t in_size_ = 0;
  std::vector<uint8_t> out_;
  size_t out_size_ = 0;
  bool is_gone_ = false;
  bool ends_after_reply_ = false;
  bool was_refused_ = false;
  bool was_malformed_ = false;
};

}  // namespace hicache
