// TCP sockets, IPv4 and IPv6, with deadlines; listening within a range of ports.
//
// An address is written "host:port", "[v6]:port"; a host may be a name. All sockets are
// non-blocking, close on exec, and are kept from children that are forked (fork_guard.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "io/fd.h"

namespace hicache {

struct HostPort {
  std::string host;  // Without brackets.
  uint16_t port;

  bool operator==(const HostPort&) const = default;
};

/// kInvalidArgument names what is wrong with the text.
Result<HostPort> parse_host_port(const std::string& text);
std::string to_string(const HostPort& address);

/// Connects, to each address of the host in turn. kUnavailable: refused, unreachable; kTimeout;
/// kInvalidArgument: no such host. Messages name host, port and cause.
Result<Fd> tcp_connect(const HostPort& address, Deadline deadline);

/// Listens on the first free port of [port_min, port_max]; port_min 0: any that the system picks.
struct Listening {
  Fd fd;
  uint16_t port;
};
Result<Listening> tcp_listen(const std::string& host, uint16_t port_min, uint16_t port_max);

/// Accepts a waiting connection; an invalid Fd if there is none.
Result<Fd> tcp_accept(const Fd& listener);

/// The other end's address, for messages; its host alone, which stays the same when it comes again.
std::string peer_name(const Fd& socket);
std::string peer_host(const Fd& socket);
/// Whether the other end is on this machine (both ends have the same address, or loopback).
bool is_same_machine(const Fd& socket);

/// Sets what a connection of ours needs: no delay, keep-alive that notices a dead peer within
/// about ten seconds, and a bound on how long bytes stay unacknowledged.
Status tune(const Fd& socket);

}  // namespace hicache
