// Unix stream sockets with deadlines, peer identity and descriptor passing.
//
// A path that starts with '@' is an abstract name: nothing in the file system, gone with its owner.
#pragma once

#include <sys/types.h>

#include <functional>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "io/fd.h"

namespace hicache {

/// Connects to a listening socket. kUnavailable: nobody listens. kInvalidArgument: impossible path.
Result<Fd> unix_connect(const std::string& path);

/// Listens, non-blocking. A socket file of that name must not exist.
Result<Fd> unix_listen(const std::string& path, int backlog);

struct PeerIdentity {
  pid_t pid;
  uid_t uid;
};

/// Who is at the other end, as the kernel knows it.
Result<PeerIdentity> peer_identity(const Fd& socket);

inline constexpr size_t kPassedFdsMax = 32;

/// How a thread waits that holds something which others want.
struct Waiting {
  /// Until then (monotonic_ns()) it asks again and again and does not sleep.
  uint64_t awake_until_ns;
  /// Called before it sleeps; may be called again.
  std::function<void()> before_sleep;
};

/// Sends all bytes. Descriptors, at most kPassedFdsMax, travel with the first byte.
Status send_all(const Fd& socket, std::span<const uint8_t> bytes, Deadline deadline,
                std::span<const int> passed_fds = {}, const Waiting* waiting = nullptr);

/// Receives exactly `bytes.size()` bytes. Fills `passed_fds` from its start with descriptors that
/// came along; more than it takes are closed. kTimeout at the deadline, kUnavailable when the peer
/// has closed.
Status receive_all(const Fd& socket, std::span<uint8_t> bytes, Deadline deadline,
                   std::span<Fd> passed_fds = {}, const Waiting* waiting = nullptr);

/// Waits until the peer has closed or `timeout_ms` have passed; true if closed.
bool wait_closed(const Fd& socket, int timeout_ms);

}  // namespace hicache
