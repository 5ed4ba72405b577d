#include "io/unix_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>

namespace hicache {
namespace {

// A node answers within microseconds, and being woken up takes longer than that: stay awake at
// first.
constexpr uint64_t kAwakeNs = 50'000;

Result<socklen_t> make_address(const std::string& path, sockaddr_un* address) {
  *address = sockaddr_un{};
  address->sun_family = AF_UNIX;
  constexpr size_t kPathSizeMax = sizeof(address->sun_path) - 1;
  if (path.empty() || path.size() > kPathSizeMax) {
    return Status(Code::kInvalidArgument,
                  "the socket path \"" + path + "\" has " + std::to_string(path.size()) +
                      " bytes and the system allows 1 to " + std::to_string(kPathSizeMax) +
                      "; choose a shorter runtime_dir");
  }
  std::memcpy(address->sun_path, path.data(), path.size());
  const bool abstract = path[0] == '@';
  if (abstract) address->sun_path[0] = '\0';
  // An abstract name ends with the address, a file name with its zero byte.
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + (abstract ? 0 : 1));
}

Result<Fd> make_socket(int extra_flags) {
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | extra_flags, 0));
  if (!socket.valid()) return io_error("creating a unix socket", errno);
  return socket;
}

/// Waits for one event; kTimeout at the deadline.
Status wait_for(const Fd& socket, short events, Deadline deadline, const Waiting* waiting) {
  if (waiting != nullptr) waiting->before_sleep();
  pollfd waited{socket.get(), events, 0};
  for (;;) {
    const int ready = poll(&waited, 1, deadline.remaining_ms());
    if (ready > 0) return Status();
    if (ready == 0) return Status(Code::kTimeout, "the peer did not answer in time");
    if (errno != EINTR) return io_error("waiting for a unix socket", errno);
  }
}

bool would_block(int error_number) {
  return error_number == EAGAIN || error_number == EWOULDBLOCK || error_number == EINTR;
}

union ControlBuffer {
  cmsghdr header;
  char bytes[CMSG_SPACE(kPassedFdsMax * sizeof(int))];
};

/// Moves descriptors out of a control message, fills `passed_fds` with them and closes the rest.
void take_descriptors(msghdr& message, std::span<Fd> passed_fds) {
  auto empty =
      std::find_if(passed_fds.begin(), passed_fds.end(), [](const Fd& fd) { return !fd.valid(); });
  for (cmsghdr* control = CMSG_FIRSTHDR(&message); control != nullptr;
       control = CMSG_NXTHDR(&message, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int number;
      std::memcpy(&number, CMSG_DATA(control) + i * sizeof(int), sizeof(number));
      Fd fd(number);
      if (empty != passed_fds.end()) *empty++ = std::move(fd);
    }
  }
}

}  // namespace

Result<Fd> unix_connect(const std::string& path) {
  sockaddr_un address;
  Result<socklen_t> size = make_address(path, &address);
  if (!size.ok()) return size.status();
  Result<Fd> socket = make_socket(SOCK_NONBLOCK);
  if (!socket.ok()) return socket;
  if (connect(socket.value().get(), reinterpret_cast<sockaddr*>(&address), size.value()) != 0) {
    // EAGAIN: the backlog is full, which a live node empties at once.
    return Status(Code::kUnavailable,
                  "connecting to the node at " + path + ": " + std::strerror(errno));
  }
  return socket;
}

Result<Fd> unix_listen(const std::string& path, int backlog) {
  sockaddr_un address;
  Result<socklen_t> size = make_address(path, &address);
  if (!size.ok()) return size.status();
  Result<Fd> socket = make_socket(SOCK_NONBLOCK);
  if (!socket.ok()) return socket;
  const int fd = socket.value().get();
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), size.value()) != 0) {
    return io_error("binding the node's socket " + path, errno);
  }
  // Only this user: the peer's identity is checked as well, on every connection.
  if (path[0] != '@' && chmod(path.c_str(), S_IRUSR | S_IWUSR) != 0) {
    return io_error("restricting the node's socket " + path, errno);
  }
  if (listen(fd, backlog) != 0) return io_error("listening on the node's socket " + path, errno);
  return socket;
}

Result<PeerIdentity> peer_identity(const Fd& socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return io_error("asking who is at the other end of a unix socket", errno);
  }
  return PeerIdentity{credentials.pid, credentials.uid};
}

Status send_all(const Fd& socket, std::span<const uint8_t> bytes, Deadline deadline,
                std::span<const int> passed_fds, const Waiting* waiting) {
  assert(passed_fds.size() <= kPassedFdsMax);
  while (!bytes.empty()) {
    iovec piece{const_cast<uint8_t*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    ControlBuffer control{};
    if (!passed_fds.empty()) {
      message.msg_control = control.bytes;
      message.msg_controllen = CMSG_SPACE(passed_fds.size_bytes());
      control.header.cmsg_level = SOL_SOCKET;
      control.header.cmsg_type = SCM_RIGHTS;
      control.header.cmsg_len = CMSG_LEN(passed_fds.size_bytes());
      std::memcpy(CMSG_DATA(&control.header), passed_fds.data(), passed_fds.size_bytes());
    }
    const ssize_t sent = sendmsg(socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      bytes = bytes.subspan(static_cast<size_t>(sent));
      passed_fds = {};
    } else if (would_block(errno)) {
      HICACHE_RETURN_IF_ERROR(wait_for(socket, POLLOUT, deadline, waiting));
    } else {
      return Status(Code::kUnavailable,
                    std::string("sending to the peer: ") + std::strerror(errno));
    }
  }
  return Status();
}

Status receive_all(const Fd& socket, std::span<uint8_t> bytes, Deadline deadline,
                   std::span<Fd> passed_fds, const Waiting* waiting) {
  const uint64_t sleep_at_ns =
      waiting != nullptr ? waiting->awake_until_ns : monotonic_ns() + kAwakeNs;
  while (!bytes.empty()) {
    iovec piece{bytes.data(), bytes.size()};
    ControlBuffer control{};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof(control.bytes);
    const ssize_t received = recvmsg(socket.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (received > 0) {
      take_descriptors(message, passed_fds);
      bytes = bytes.subspan(static_cast<size_t>(received));
    } else if (received == 0) {
      return Status(Code::kUnavailable, "the peer closed the connection");
    } else if (would_block(errno) && monotonic_ns() < sleep_at_ns && !deadline.expired()) {
      std::this_thread::yield();
    } else if (would_block(errno)) {
      HICACHE_RETURN_IF_ERROR(wait_for(socket, POLLIN, deadline, waiting));
    } else {
      return Status(Code::kUnavailable,
                    std::string("receiving from the peer: ") + std::strerror(errno));
    }
  }
  return Status();
}

bool wait_closed(const Fd& socket, int timeout_ms) {
  // POLLRDHUP alone: replies that arrive meanwhile belong to the thread that asked.
  pollfd waited{socket.get(), POLLRDHUP, 0};
  const Deadline deadline = Deadline::after_ms(static_cast<uint64_t>(std::max(timeout_ms, 0)));
  int ready;
  while ((ready = poll(&waited, 1, deadline.remaining_ms())) < 0 && errno == EINTR) {
  }
  return ready > 0 && (waited.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

}  // namespace hicache
