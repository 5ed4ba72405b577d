#include "store/peer_messages.h"

namespace hicache {

void encode(WireWriter& writer, const PeerHello& message) {
  writer.put_string(message.name);
}

bool decode(WireReader reader, PeerHello& message) {
  message.name = reader.get_string(kPeerTextSizeMax);
  return reader.finished();
}

void encode(WireWriter& writer, const PeerHelloReply& message) {
  writer.put(message.incarnation);
  writer.put(message.pool_address);
  writer.put(message.pool_size_bytes);
  writer.put_string(message.engine_address);
}

bool decode(WireReader reader, PeerHelloReply& message) {
  message.incarnation = reader.get<uint64_t>();
  message.pool_address = reader.get<uint64_t>();
  message.pool_size_bytes = reader.get<uint64_t>();
  message.engine_address = reader.get_string(kPeerTextSizeMax);
  return reader.finished() && message.pool_address <= kPoolAddressMax &&
         message.pool_size_bytes <= kPoolAddressMax - message.pool_address;
}

void encode(WireWriter& writer, const PeerKeysRequest& message) {
  writer.put(message.digest);
  writer.put(message.flags);
  writer.put_array(std::span(message.keys));
}

bool decode(WireReader reader, PeerKeysRequest& message) {
  message.digest = reader.get<NamespaceDigest>();
  message.flags = reader.get<uint8_t>();
  reader.get_array(message.keys, kPeerKeysMax);
  return reader.finished();
}

void encode(WireWriter& writer, const PeerCopyRequest& message) {
  writer.put(message.digest);
  writer.put_string(message.description);
  writer.put(static_cast<uint8_t>(message.may_evict));
  writer.put(message.size_bytes);
  writer.put_array(std::span(message.keys));
  writer.put_array(std::span(message.parents));
}

bool decode(WireReader reader, PeerCopyRequest& message) {
  message.digest = reader.get<NamespaceDigest>();
  message.description = reader.get_string(kDescriptionSizeMax);
  const auto may_evict = reader.get<uint8_t>();
  message.may_evict = may_evict != 0;
  message.size_bytes = reader.get<uint64_t>();
  reader.get_array(message.keys, kPeerKeysMax);
  reader.get_array(message.parents, kPeerKeysMax);
  return reader.finished() && may_evict <= 1 && message.parents.size() == message.keys.size();
}

void encode(WireWriter& writer, const PeerListRequest& message) {
  writer.put(message.digest);
  writer.put(message.cursor);
}

bool decode(WireReader reader, PeerListRequest& message) {
  message.digest = reader.get<NamespaceDigest>();
  message.cursor = reader.get<uint64_t>();
  return reader.finished() && message.cursor < kListMembers;
}

}  // namespace hicache
