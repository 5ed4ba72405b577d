#include "transfer/rdma/rdma_wire.h"

#include "net/wire.h"

namespace hicache {
namespace {

constexpr uint16_t kFormat = 1;
constexpr uint32_t k24Bits = 0xFFFFFF;  // Queue pairs' numbers, PSNs.

enum class RequestKind : uint8_t { kConnect = 1, kDisconnect = 2 };

Status corrupt(const std::string& what) {
  return Status(Code::kCorrupt, "the peer's RDMA " + what +
                                    " is malformed: it runs another version, or is hostile");
}

void put_address(WireWriter& writer, const RailAddress& address) {
  writer.put(address.gid);
  writer.put(address.lid);
  writer.put(address.link_layer);
  writer.put(address.mtu);
  writer.put(address.reads);
}

bool get_address(WireReader& reader, RailAddress& address) {
  address.gid = reader.get<Gid>();
  address.lid = reader.get<uint16_t>();
  address.link_layer = reader.get<LinkLayer>();
  address.mtu = reader.get<uint16_t>();
  address.reads = reader.get<uint8_t>();
  const uint16_t mtu = address.mtu;
  return reader.ok() && (mtu == 256 || mtu == 512 || mtu == 1024 || mtu == 2048 || mtu == 4096) &&
         (address.link_layer == LinkLayer::kInfiniband ||
          address.link_layer == LinkLayer::kEthernet);
}

void put_pairs(WireWriter& writer, const std::vector<PairAddress>& pairs) {
  writer.put(static_cast<uint8_t>(pairs.size()));
  for (const PairAddress& pair : pairs) {
    writer.put(pair.number);
    writer.put(pair.psn);
  }
}

bool get_pairs(WireReader& reader, std::vector<PairAddress>& pairs) {
  const auto count = reader.get<uint8_t>();
  if (count == 0 || count > kPairsMax) return false;
  for (unsigned i = 0; i < count && reader.ok(); ++i) {
    PairAddress pair{};
    pair.number = reader.get<uint32_t>();
    pair.psn = reader.get<uint32_t>();
    if (pair.number > k24Bits || pair.psn > k24Bits) return false;
    pairs.push_back(pair);
  }
  return reader.ok();
}

}  // namespace

std::vector<uint8_t> encode_rails(std::span<const RailDescriptor> rails) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  writer.put(kFormat);
  writer.put(static_cast<uint8_t>(rails.size()));
  for (const RailDescriptor& rail : rails) {
    writer.put_string(rail.name);
    put_address(writer, rail.address);
    writer.put(rail.speed_mbps);
    writer.put(static_cast<uint8_t>(rail.is_up));
  }
  return bytes;
}

Result<std::vector<RailDescriptor>> decode_rails(std::span<const uint8_t> bytes) {
  WireReader reader(bytes);
  const auto format = reader.get<uint16_t>();
  const auto count = reader.get<uint8_t>();
  if (format != kFormat || count > kRailsMax) return corrupt("endpoint");
  std::vector<RailDescriptor> rails;
  for (unsigned i = 0; i < count; ++i) {
    RailDescriptor rail{};
    rail.name = reader.get_string(kRailNameMax);
    const bool is_address = get_address(reader, rail.address);
    rail.speed_mbps = reader.get<uint32_t>();
    const auto is_up = reader.get<uint8_t>();
    rail.is_up = is_up != 0;
    if (!reader.ok() || !is_address || is_up > 1) return corrupt("endpoint");
    rails.push_back(std::move(rail));
  }
  if (!reader.finished()) return corrupt("endpoint");
  return rails;
}

std::vector<uint8_t> encode_keys(std::span<const RailKeys> rails) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  writer.put(static_cast<uint8_t>(rails.size()));
  for (const RailKeys& rail : rails) {
    writer.put(rail.rail);
    writer.put(rail.piece_size);
    writer.put_array(std::span<const uint32_t>(rail.keys));
  }
  return bytes;
}

Result<std::vector<RailKeys>> decode_keys(std::span<const uint8_t> bytes, uint64_t size) {
  WireReader reader(bytes);
  const auto count = reader.get<uint8_t>();
  if (count > kRailsMax) return corrupt("memory key");
  std::vector<RailKeys> rails;
  for (unsigned i = 0; i < count; ++i) {
    RailKeys rail{};
    rail.rail = reader.get<uint8_t>();
    rail.piece_size = reader.get<uint64_t>();
    reader.get_array(rail.keys, kMemoryKeysMax);
    const bool is_covered = rail.piece_size != 0 && !rail.keys.empty() && size != 0 &&
                            (size - 1) / rail.piece_size < rail.keys.size();
    if (!reader.ok() || rail.rail >= kRailsMax || !is_covered) return corrupt("memory key");
    rails.push_back(std::move(rail));
  }
  if (!reader.finished()) return corrupt("memory key");
  return rails;
}

std::vector<uint8_t> encode(const ConnectRequest& request) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  writer.put(kFormat);
  writer.put(RequestKind::kConnect);
  writer.put(request.epoch);
  writer.put(request.connection);
  writer.put(request.rail);
  put_address(writer, request.from);
  put_pairs(writer, request.pairs);
  return bytes;
}

std::vector<uint8_t> encode(const DisconnectRequest& request) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  writer.put(kFormat);
  writer.put(RequestKind::kDisconnect);
  writer.put(request.epoch);
  writer.put(request.connection);
  return bytes;
}

Result<std::variant<ConnectRequest, DisconnectRequest>> decode_request(
    std::span<const uint8_t> bytes) {
  using Request = std::variant<ConnectRequest, DisconnectRequest>;
  WireReader reader(bytes);
  const auto format = reader.get<uint16_t>();
  const auto kind = reader.get<RequestKind>();
  const auto epoch = reader.get<uint64_t>();
  const auto connection = reader.get<uint64_t>();
  if (!reader.ok() || format != kFormat) return corrupt("request");
  if (kind == RequestKind::kDisconnect && reader.finished()) {
    Request disconnect;
    disconnect = DisconnectRequest{epoch, connection};
    return disconnect;
  }
  ConnectRequest request{epoch, connection, reader.get<uint8_t>(), {}, {}};
  if (kind != RequestKind::kConnect || !get_address(reader, request.from) ||
      !get_pairs(reader, request.pairs) || !reader.finished()) {
    return corrupt("request");
  }
  return Request(std::move(request));
}

std::vector<uint8_t> encode(const ConnectReply& reply) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  put_address(writer, reply.to);
  put_pairs(writer, reply.pairs);
  return bytes;
}

Result<ConnectReply> decode_connect_reply(std::span<const uint8_t> bytes) {
  WireReader reader(bytes);
  ConnectReply reply{};
  if (!get_address(reader, reply.to) || !get_pairs(reader, reply.pairs) || !reader.finished()) {
    return corrupt("reply");
  }
  return reply;
}

}  // namespace hicache
