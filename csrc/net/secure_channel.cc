#include "net/secure_channel.h"

#include <vector>

#include "io/unix_socket.h"

namespace hicache {
namespace {

/// Reads what an end of the greeting wants and sends what it answers, until it is over.
template <typename End>
Status exchange(const Fd& socket, End& end, Deadline deadline) {
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> reply;
  while (end.wanted() != 0) {
    bytes.resize(end.wanted());
    HICACHE_RETURN_IF_ERROR(receive_all(socket, bytes, deadline));
    reply.clear();
    const Status taken = end.take(bytes, reply);
    if (!reply.empty()) HICACHE_RETURN_IF_ERROR(send_all(socket, reply, deadline));
    HICACHE_RETURN_IF_ERROR(taken);
  }
  return Status();
}

}  // namespace

Result<uint64_t> greet_server(const Fd& socket, const Secret& secret, const Greeting& greeting,
                              Deadline deadline) {
  ClientGreeting end(secret, greeting, random_nonce());
  HICACHE_RETURN_IF_ERROR(send_all(socket, end.opening(), deadline));
  HICACHE_RETURN_IF_ERROR(exchange(socket, end, deadline));
  return end.server_epoch();
}

Result<Greeting> greet_client(const Fd& socket, const Secret& secret, uint64_t own_epoch,
                              Deadline deadline) {
  ServerGreeting end(secret, own_epoch, random_nonce());
  HICACHE_RETURN_IF_ERROR(exchange(socket, end, deadline));
  return end.greeting();
}

}  // namespace hicache
