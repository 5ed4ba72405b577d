#include "net/secure_channel.h"

#include <vector>

#include "io/unix_socket.h"

namespace hicache {
namespace {

Status send_to(const Fd& socket, std::span<const uint8_t> bytes, Deadline deadline) {
  return send_all(socket, bytes, deadline);
}
Status send_to(Stream& stream, std::span<const uint8_t> bytes, Deadline deadline) {
  return stream.write_all(bytes, deadline);
}
Status receive_from(const Fd& socket, std::span<uint8_t> bytes, Deadline deadline) {
  return receive_all(socket, bytes, deadline);
}
Status receive_from(Stream& stream, std::span<uint8_t> bytes, Deadline deadline) {
  return stream.read_all(bytes, deadline);
}

/// Reads what an end of the greeting wants and sends what it answers, until it is over.
template <typename Channel, typename End>
Status exchange(Channel& channel, End& end, Deadline deadline) {
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> reply;
  while (end.wanted() != 0) {
    bytes.resize(end.wanted());
    HICACHE_RETURN_IF_ERROR(receive_from(channel, bytes, deadline));
    reply.clear();
    const Status taken = end.take(bytes, reply);
    if (!reply.empty()) HICACHE_RETURN_IF_ERROR(send_to(channel, reply, deadline));
    HICACHE_RETURN_IF_ERROR(taken);
  }
  return Status();
}

template <typename Channel>
Result<uint64_t> greet(Channel& channel, const Secret& secret, const Greeting& greeting,
                       Deadline deadline) {
  ClientGreeting end(secret, greeting, random_nonce());
  HICACHE_RETURN_IF_ERROR(send_to(channel, end.opening(), deadline));
  HICACHE_RETURN_IF_ERROR(exchange(channel, end, deadline));
  return end.server_epoch();
}

}  // namespace

Result<uint64_t> greet_server(const Fd& socket, const Secret& secret, const Greeting& greeting,
                              Deadline deadline) {
  return greet(socket, secret, greeting, deadline);
}

Result<uint64_t> greet_server(Stream& stream, const Secret& secret, const Greeting& greeting,
                              Deadline deadline) {
  return greet(stream, secret, greeting, deadline);
}

Result<Greeting> greet_client(const Fd& socket, const Secret& secret, uint64_t own_epoch,
                              Deadline deadline) {
  ServerGreeting end(secret, own_epoch, random_nonce());
  HICACHE_RETURN_IF_ERROR(exchange(socket, end, deadline));
  return end.greeting();
}

}  // namespace hicache
