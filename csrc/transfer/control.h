// The control connection between two engines: descriptors, transports' handshakes, notices, life.
//
// One TCP connection per pair and direction, authenticated (net/greeting.h), kept open: when
// it breaks the peer is gone, which is noticed at once; nothing large ever travels on it, so a
// probe never waits behind payload. Requests are frames (net/frame.h), one reply each.
//
// With TLS configured, a control connection that comes in the clear is closed.
//
//   op          request                          reply
//   kDescribe   -                                segment descriptor
//   kTransport  transport kind u8 · bytes        bytes
//   kNotify     from · name · message            -
//   kProbe      -                                -
//
// A reply is: code u8 · message string · payload. Versions that differ do not talk.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/tcp_socket.h"
#include "net/frame.h"
#include "net/greeting.h"
#include "net/stream.h"
#include "transfer/segment.h"

namespace hicache {

enum class ControlOp : uint16_t { kDescribe = 1, kTransport = 2, kNotify = 3, kProbe = 4 };

inline constexpr size_t kControlRequestSizeMax = 64 * 1024;
inline constexpr size_t kControlReplySizeMax = kPayloadSizeMax;

/// Answers peers. Owns the listener and its threads; lanes of the TCP transport arrive at the same
/// port and are handed over.
class ControlServer {
 public:
  struct Answers {
    /// Called from the server's thread; must not block for long.
    std::function<Result<std::vector<uint8_t>>(ControlOp, std::span<const uint8_t> request)> call;
    /// An authenticated connection with Purpose::kTcpLane.
    std::function<void(Fd lane)> lane;
  };
  struct Options {
    std::string host;
    uint16_t port_min;
    uint16_t port_max;
    Secret secret;
    uint64_t epoch;
    std::shared_ptr<TlsContext> tls;  // Null: control connections are in the clear.
    size_t connections_max;           // More are closed at once, and counted.
  };

  static Result<std::unique_ptr<ControlServer>> start(const Options& options, Answers answers);
  virtual ~ControlServer() = default;
  virtual uint16_t port() const = 0;
  /// Closes all connections; no answer is being worked out after it returns.
  virtual void stop() = 0;
  /// (name, value): connections, refused, malformed, requests.
  virtual std::vector<std::pair<std::string, uint64_t>> stats() const = 0;
};

/// Asks a peer. Threads: any; calls of several threads share the connection in turn.
class ControlClient {
 public:
  /// Connects and authenticates. kUnavailable names host, port and cause. `epoch` 0: any.
  static Result<std::unique_ptr<ControlClient>> connect(const HostPort& address,
                                                        const Secret& secret,
                                                        std::shared_ptr<TlsContext> tls,
                                                        uint64_t epoch, Deadline deadline);
  virtual ~ControlClient() = default;

  virtual uint64_t peer_epoch() const = 0;
  virtual Result<std::vector<uint8_t>> call(ControlOp op, std::span<const uint8_t> request,
                                            Deadline deadline) = 0;
  /// Readable when the connection broke; for the engine's epoll.
  virtual int fd() const = 0;
  virtual bool is_broken() const = 0;
  /// Ends the connection for good: a call that waits ends with kUnavailable. Does not block.
  virtual void cut() = 0;
};

}  // namespace hicache
