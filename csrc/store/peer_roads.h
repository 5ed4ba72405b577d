// How the remote tier reaches other nodes: a link to ask one about its pages, a reader that brings
// their bytes. Over sockets and the transfer engine (network_roads.h), or in the simulated network
// of the tests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "io/tcp_socket.h"
#include "store/peer_messages.h"
#include "tier/extent.h"
#include "transfer/engine.h"

namespace hicache {

/// For asking one node about its pages. Each call ends by a deadline, exactly once. The leases that
/// a peer grants end with the connection over which they were asked for.
class PeerLine {
 public:
  struct Answer {
    std::span<const uint8_t> payload;            // Valid during the call.
    std::shared_ptr<const PeerHelloReply> peer;  // Whose it is.
  };
  /// Called from any thread, or from inside ask(); must not block.
  using Done = std::function<void(Result<Answer>)>;

  virtual ~PeerLine() = default;

  /// `message` has begun with begin_frame(). kTimeout, kUnavailable, kBusy, kClosed.
  virtual void ask(NodeOp op, std::vector<uint8_t> message, Done done) = 0;
  /// Without a reply, and lost where there is no connection: leases ended with it.
  virtual void tell(NodeOp op, std::vector<uint8_t> message) = 0;

  /// The breaker is open: calls would fail.
  virtual bool is_failing() const = 0;
  /// How often the breaker has opened.
  virtual uint64_t breaks_count() const = 0;

  /// Has it end; does not wait for that.
  virtual void stop_soon() = 0;
  virtual bool has_ended() const = 0;
};

/// Brings pages out of one node's pool into our own, and verifies them. When a page's outcome is
/// told, nothing of it is in flight into our pool any more.
class PeerReader {
 public:
  struct Page {
    uint64_t tag;
    uint64_t size;
    uint64_t checksum;
    std::vector<Extent> local;   // In our pool.
    std::vector<Extent> remote;  // In the peer's. Both add up to `size`.
  };
  /// kOk; kCorrupt: arrived, but other bytes; kTimeout, kUnavailable …: did not arrive.
  struct Outcome {
    uint64_t tag;
    Code code;
  };
  /// Called from any thread; must not block.
  using Done = std::function<void(std::vector<Outcome>)>;

  virtual ~PeerReader() = default;

  virtual void read(std::vector<Page> pages, Priority priority, uint64_t deadline_ns) = 0;

  /// Has it end; what was not begun is kClosed. Does not wait for that.
  virtual void stop_soon() = 0;
  virtual bool has_ended() const = 0;
};

class PeerRoads {
 public:
  virtual ~PeerRoads() = default;
  /// To the node of this incarnation: another one there is refused.
  virtual Result<std::unique_ptr<PeerLine>> link_to(const HostPort& address,
                                                    uint64_t incarnation) = 0;
  virtual std::unique_ptr<PeerReader> reader_of(const PeerHelloReply& peer,
                                                PeerReader::Done done) = 0;
};

}  // namespace hicache
