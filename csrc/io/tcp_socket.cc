#include "io/tcp_socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "io/fork_guard.h"

namespace hicache {
namespace {

constexpr int kKeepAliveIdleS = 5;
constexpr int kKeepAliveIntervalS = 2;
constexpr int kKeepAliveCount = 3;
constexpr unsigned kUnacknowledgedMaxMs = 10'000;

struct Address {
  sockaddr_storage bytes{};
  socklen_t size = 0;
};

/// A look-up in progress. Shared with its thread, which may outlive the caller's patience.
struct LookUp {
  std::mutex mutex;
  std::condition_variable done;
  bool is_done = false;
  int error = 0;
  std::vector<Address> addresses;
};

int look_up(const std::string& host, uint16_t port, int flags, std::vector<Address>& addresses) {
  addrinfo wanted{};
  wanted.ai_family = AF_UNSPEC;
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(),
                                &wanted, &found);
  if (error != 0) return error;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_addrlen > sizeof(sockaddr_storage)) continue;
    Address address;
    std::memcpy(&address.bytes, entry->ai_addr, entry->ai_addrlen);
    address.size = entry->ai_addrlen;
    addresses.push_back(address);
  }
  freeaddrinfo(found);
  return 0;
}

Status no_such_host(const std::string& host, int error) {
  return Status(Code::kInvalidArgument, "looking up the host \"" + host +
                                            "\": " + gai_strerror(error) + "; check its name");
}

/// Numbers are understood at once; names by a thread of their own, for the resolver knows no
/// deadline.
Result<std::vector<Address>> resolve(const HostPort& target, Deadline deadline) {
  std::vector<Address> numeric;
  if (look_up(target.host, target.port, AI_NUMERICHOST, numeric) == 0) return numeric;

  auto shared = std::make_shared<LookUp>();
  std::thread([shared, target] {
    std::vector<Address> found;
    const int error = look_up(target.host, target.port, 0, found);
    const std::lock_guard lock(shared->mutex);
    shared->error = error;
    shared->addresses = std::move(found);
    shared->is_done = true;
    shared->done.notify_one();
  }).detach();
  std::unique_lock lock(shared->mutex);
  if (!shared->done.wait_for(lock, std::chrono::nanoseconds(deadline.remaining_ns()),
                             [&] { return shared->is_done; })) {
    return Status(Code::kTimeout, "looking up the host \"" + target.host +
                                      "\": the name service did not answer in time");
  }
  if (shared->error != 0) return no_such_host(target.host, shared->error);
  return std::move(shared->addresses);
}

Result<Fd> make_socket(int family) {
  Fd socket = made_kept_from_children(
      [&] { return ::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); });
  if (!socket.valid()) return io_error("creating a TCP socket", errno);
  return socket;
}

/// 0, or the errno; ETIMEDOUT at the deadline.
int connect_one(const Fd& socket, const Address& address, Deadline deadline) {
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address.bytes), address.size) == 0) {
    return 0;
  }
  if (errno != EINPROGRESS && errno != EINTR) return errno;
  pollfd waited{socket.get(), POLLOUT, 0};
  int ready;
  while ((ready = poll(&waited, 1, deadline.remaining_ms())) < 0 && errno == EINTR) {
  }
  if (ready < 0) return errno;
  if (ready == 0) return ETIMEDOUT;
  int error = 0;
  socklen_t size = sizeof(error);
  if (getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
  return error;
}

/// The same address in one form: IPv4 as IPv6 writes it, without the port.
struct Place {
  in6_addr address{};
  bool is_known = false;
};

Place place_of(const sockaddr_storage& bytes) {
  Place place;
  if (bytes.ss_family == AF_INET6) {
    place.address = reinterpret_cast<const sockaddr_in6&>(bytes).sin6_addr;
    place.is_known = true;
  } else if (bytes.ss_family == AF_INET) {
    place.address.s6_addr[10] = place.address.s6_addr[11] = 0xFF;
    std::memcpy(&place.address.s6_addr[12], &reinterpret_cast<const sockaddr_in&>(bytes).sin_addr,
                sizeof(in_addr));
    place.is_known = true;
  }
  return place;
}

bool is_loopback(const Place& place) {
  if (!place.is_known) return false;
  if (IN6_IS_ADDR_V4MAPPED(&place.address)) return place.address.s6_addr[12] == 127;
  return IN6_IS_ADDR_LOOPBACK(&place.address);
}

constexpr char kGonePeer[] = "a peer that is gone";

uint16_t port_of(const sockaddr_storage& bytes) {
  return ntohs(bytes.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(bytes).sin6_port
                                           : reinterpret_cast<const sockaddr_in&>(bytes).sin_port);
}

Result<uint16_t> own_port(const Fd& socket) {
  sockaddr_storage bytes{};
  socklen_t size = sizeof(bytes);
  if (getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bytes), &size) != 0) {
    return io_error("asking for the port of a socket", errno);
  }
  return port_of(bytes);
}

/// 0, or the errno.
int bind_and_listen(const Fd& socket, Address address, uint16_t port) {
  const int on = 1;
  const int off = 0;
  // A port that a dead process of ours used a minute ago is free.
  (void)setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (address.bytes.ss_family == AF_INET6) {
    (void)setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    reinterpret_cast<sockaddr_in6&>(address.bytes).sin6_port = htons(port);
  } else {
    reinterpret_cast<sockaddr_in&>(address.bytes).sin_port = htons(port);
  }
  if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&address.bytes), address.size) != 0) {
    return errno;
  }
  return listen(socket.get(), SOMAXCONN) == 0 ? 0 : errno;
}

}  // namespace

Result<HostPort> parse_host_port(const std::string& text) {
  const auto refuse = [&](const std::string& why) {
    return Status(Code::kInvalidArgument,
                  "\"" + text + "\" is no address: " + why + "; write host:port or [IPv6]:port");
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) return refuse("it has no port");
  std::string host = text.substr(0, colon);
  if (!host.empty() && host.front() == '[') {
    if (host.back() != ']') return refuse("its bracket is not closed");
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string::npos) {
    return refuse("an IPv6 address needs brackets");
  }
  if (host.empty()) return refuse("it has no host");
  if (host.find_first_of("[] \t\n/@") != std::string::npos || host.find('\0') != host.npos) {
    return refuse("its host has characters that no host has");
  }
  uint16_t port = 0;
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data() + colon + 1, end, port);
  if (error != std::errc() || stopped != end || port == 0) {
    return refuse("its port is not a number of 1 to 65535");
  }
  return HostPort{std::move(host), port};
}

std::string to_string(const HostPort& address) {
  const bool is_v6 = address.host.find(':') != std::string::npos;
  return (is_v6 ? "[" + address.host + "]" : address.host) + ":" + std::to_string(address.port);
}

Result<Fd> tcp_connect(const HostPort& address, Deadline deadline) {
  Result<std::vector<Address>> found = resolve(address, deadline);
  if (!found.ok()) return found.status();
  int error = EADDRNOTAVAIL;
  size_t left = found.value().size();
  for (const Address& one : found.value()) {
    Result<Fd> socket = make_socket(one.bytes.ss_family);
    if (!socket.ok()) {
      // A machine without IPv6 still reaches the host's other addresses.
      if (--left == 0) return socket.status();
      continue;
    }
    // Addresses that do not answer leave the others their share of the time.
    const uint64_t share_ns = deadline.remaining_ns() / left--;
    error = connect_one(socket.value(), one, Deadline::after_ms(0).later_by_ns(share_ns));
    if (error == 0) return std::move(socket.value());
  }
  const std::string tried = "connecting to " + to_string(address) + ": ";
  if (error == ETIMEDOUT) {
    return Status(Code::kTimeout, tried +
                                      "no answer in time; is the host up, and is a firewall "
                                      "between?");
  }
  return Status(Code::kUnavailable, tried + std::strerror(error));
}

Result<Listening> tcp_listen(const std::string& host, uint16_t port_min, uint16_t port_max) {
  if (port_min > port_max && port_min != 0) {
    return Status(Code::kInvalidArgument, "the ports " + std::to_string(port_min) + " to " +
                                              std::to_string(port_max) + " are no range");
  }
  std::vector<Address> addresses;
  if (const int error = look_up(host, 0, AI_PASSIVE, addresses); error != 0) {
    return no_such_host(host, error);
  }
  const std::string tried = "listening on \"" + host + "\", ";
  int error = EADDRNOTAVAIL;
  for (const Address& address : addresses) {
    for (uint32_t port = port_min; port <= std::max(port_min, port_max); ++port) {
      Result<Fd> socket = make_socket(address.bytes.ss_family);
      if (!socket.ok()) break;
      error = bind_and_listen(socket.value(), address, static_cast<uint16_t>(port));
      if (error == 0) {
        Result<uint16_t> bound = own_port(socket.value());
        if (!bound.ok()) return bound.status();
        return Listening{std::move(socket.value()), bound.value()};
      }
      if (port_min == 0 || (error != EADDRINUSE && error != EACCES)) break;
    }
  }
  if (error == EADDRNOTAVAIL) {
    return Status(Code::kInvalidArgument,
                  tried + "which is no address of this machine; give one that `ip addr` shows");
  }
  if (error == EADDRINUSE) {
    return Status(Code::kUnavailable, tried + "ports " + std::to_string(port_min) + " to " +
                                          std::to_string(port_max) +
                                          ": all are in use; widen the range");
  }
  return io_error(tried + "port " + std::to_string(port_min), error);
}

Result<Fd> tcp_accept(const Fd& listener) {
  for (;;) {
    Fd accepted = made_kept_from_children(
        [&] { return accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK); });
    if (accepted.valid()) return accepted;
    // Whoever gave up while waiting is nobody's error.
    if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return Fd();
    return io_error("accepting a TCP connection", errno);
  }
}

namespace {

std::optional<HostPort> peer_of(const Fd& socket) {
  sockaddr_storage bytes{};
  socklen_t size = sizeof(bytes);
  char host[NI_MAXHOST];
  if (getpeername(socket.get(), reinterpret_cast<sockaddr*>(&bytes), &size) != 0 ||
      getnameinfo(reinterpret_cast<sockaddr*>(&bytes), size, host, sizeof(host), nullptr, 0,
                  NI_NUMERICHOST) != 0) {
    return std::nullopt;
  }
  return HostPort{host, port_of(bytes)};
}

}  // namespace

std::string peer_name(const Fd& socket) {
  const std::optional<HostPort> peer = peer_of(socket);
  return peer ? to_string(*peer) : kGonePeer;
}

std::string peer_host(const Fd& socket) {
  const std::optional<HostPort> peer = peer_of(socket);
  return peer ? peer->host : kGonePeer;
}

bool is_same_machine(const Fd& socket) {
  sockaddr_storage own{};
  sockaddr_storage other{};
  socklen_t own_size = sizeof(own);
  socklen_t other_size = sizeof(other);
  if (getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own), &own_size) != 0 ||
      getpeername(socket.get(), reinterpret_cast<sockaddr*>(&other), &other_size) != 0) {
    return false;
  }
  const Place here = place_of(own);
  const Place there = place_of(other);
  if (is_loopback(there)) return true;
  return here.is_known && there.is_known &&
         std::memcmp(&here.address, &there.address, sizeof(in6_addr)) == 0;
}

Status tune(const Fd& socket) {
  const auto set = [&](int level, int option, int value) {
    return setsockopt(socket.get(), level, option, &value, sizeof(value)) == 0;
  };
  const bool done = set(IPPROTO_TCP, TCP_NODELAY, 1) && set(SOL_SOCKET, SO_KEEPALIVE, 1) &&
                    set(IPPROTO_TCP, TCP_KEEPIDLE, kKeepAliveIdleS) &&
                    set(IPPROTO_TCP, TCP_KEEPINTVL, kKeepAliveIntervalS) &&
                    set(IPPROTO_TCP, TCP_KEEPCNT, kKeepAliveCount) &&
                    set(IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(kUnacknowledgedMaxMs));
  if (!done) return io_error("setting options of a TCP connection", errno);
  return Status();
}

}  // namespace hicache
