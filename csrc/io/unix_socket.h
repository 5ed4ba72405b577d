// Unix stream sockets with deadlines, peer identity and descriptor passing.
//
// A path that starts with '@' is an abstract name: nothing in the file system, gone with its owner.
#pragma once

#include <sys/types.h>

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

/// Sends all bytes. A valid `passed_fd` travels with the first byte.
Status send_all(const Fd& socket, std::span<const uint8_t> bytes, Deadline deadline,
                int passed_fd = -1);

/// Receives exactly `bytes.size()` bytes. If `passed_fd` is given, takes a descriptor that came
/// along. kTimeout at the deadline, kUnavailable when the peer has closed.
Status receive_all(const Fd& socket, std::span<uint8_t> bytes, Deadline deadline,
                   Fd* passed_fd = nullptr);

/// Waits until the peer has closed or `timeout_ms` have passed; true if closed.
bool wait_closed(const Fd& socket, int timeout_ms);

}  // namespace hicache
