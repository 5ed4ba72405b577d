// The TCP transport: one-sided reads and writes emulated over persistent connections.
//
// A path to a peer is a few lanes, each a TCP connection of its own to the peer's control port,
// begun with the greeting of net/greeting.h. Requests are pipelined; what is large is cut into
// parts that go over all lanes at once. At the other end a thread answers them out of, or into, the
// registered memory that they name, and nothing else. The format of frames: tcp_frame.h.
//
// Not here: who listens (ControlServer, which hands lanes that arrive to adopt_lane()), names.
//
// Threads: TcpTransport's methods may be called from any thread. `io_threads` threads, which the
// transport starts, move bytes; small requests are sent from the thread that submits them.
// Paths must be destroyed before their transport, and no path inside a CompletionSink.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "io/fd.h"
#include "net/greeting.h"
#include "transfer/transport.h"

namespace hicache {

struct TcpOptions {
  std::string public_host;  // What peers are told to connect to.
  Secret secret;
  uint64_t epoch;
  size_t lanes;         // Per peer that is opened.
  size_t io_threads;    // For all peers together.
  bool checksum;        // Of what this end asks to be moved; XXH3 of each part.
  size_t lanes_in_max;  // Lanes that peers may have open here; more are closed, and counted.
};

class TcpTransport : public Transport {
 public:
  /// The port that endpoint() tells: the control server's.
  virtual void set_port(uint16_t port) = 0;

  /// Serves an authenticated connection with Purpose::kTcpLane.
  virtual void adopt_lane(Fd lane) = 0;
};

/// kIo: no threads or descriptors are to be had.
Result<std::unique_ptr<TcpTransport>> make_tcp_transport(const TcpOptions& options);

}  // namespace hicache
