#include "transfer/rdma/peer_keys.h"

#include <string>
#include <utility>

namespace hicache {

PeerKeys::PeerKeys(const SegmentDescriptor& peer) {
  for (const BufferDescriptor& buffer : peer.buffers) {
    others_.insert(buffer.id);
    for (const TransportBytes& key : buffer.keys) {
      if (key.kind != TransportKind::kRdma) continue;
      Result<std::vector<RailKeys>> rails = decode_keys(key.bytes, buffer.size);
      if (!rails.ok()) continue;
      Entry entry{buffer.address, buffer.size, buffer.remote_write, {}};
      for (RailKeys& rail : rails.value()) {
        entry.rails[rail.rail] =
            KeyedRange{buffer.address, rail.piece_size,
                       std::make_shared<const std::vector<uint32_t>>(std::move(rail.keys))};
      }
      entries_.insert_or_assign(buffer.id, std::move(entry));
    }
  }
}

Result<KeyedRange> PeerKeys::find(BufferId id, size_t rail, uint64_t address, uint64_t size,
                                  bool writes) const {
  const auto refused = [&](const std::string& why) {
    return Status(Code::kInvalidArgument, "RDMA: the remote range at " + std::to_string(address) +
                                              " of " + std::to_string(size) + " bytes " + why);
  };
  const auto found = entries_.find(id);
  if (found == entries_.end() && others_.contains(id)) {
    return Status(Code::kUnsupported,
                  "RDMA: the peer could not register its buffer with any of its devices");
  }
  if (found == entries_.end()) return refused("lies in no buffer that the peer has registered");
  const Entry& entry = found->second;
  if (address < entry.address || address - entry.address > entry.size ||
      size > entry.size - (address - entry.address)) {
    return refused("leaves the buffer that the peer has registered");
  }
  if (writes && !entry.remote_write) return refused("is registered for reading only");
  const auto keys = entry.rails.find(rail);
  if (keys == entry.rails.end()) {
    return Status(Code::kNotFound, "RDMA: the peer could not register its buffer at " +
                                       std::to_string(entry.address) + " with this rail");
  }
  return keys->second;
}

}  // namespace hicache
