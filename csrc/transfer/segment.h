// Segments: the registered memory of one transfer engine, and how others get to know it.
//
// A Buffer is a range of this process's memory. A SegmentDescriptor is what a peer needs to reach
// all buffers of one engine: it travels over the control connection. Each transport adds what it
// needs as opaque bytes, to the segment (its endpoint) and to each buffer (its memory key).
//
// The epoch is drawn at random when an engine starts: a descriptor names one incarnation, and
// every connection is refused by any other, so nobody talks to a process that has taken a dead
// one's place and port.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace hicache {

/// In wire order; never renumbered.
enum class TransportKind : uint8_t { kLocal = 1, kTcp = 2, kRdma = 3 };

std::string_view transport_name(TransportKind kind);  // "local", "tcp", "rdma"

using BufferId = uint32_t;  // Never used twice by one engine.
inline constexpr BufferId kNoBuffer = 0;

enum class MemoryKind : uint8_t { kHost = 1, kCuda = 2 };

/// Registered memory of this process.
struct Buffer {
  BufferId id;
  uint64_t address;
  uint64_t size;
  MemoryKind kind;
  std::string location;  // "cpu:0", "cuda:1", or "*": not known.
  bool remote_write;     // False: peers may only read.
  /// A descriptor of the memfd that the whole range maps, and where in it the range begins; -1 for
  /// memory that others cannot map. Borrowed: valid until unregister_buffer() returns.
  int shared_fd;
  uint64_t shared_offset;
};

/// Bytes that only a transport of `kind` understands.
struct TransportBytes {
  TransportKind kind;
  std::vector<uint8_t> bytes;

  bool operator==(const TransportBytes&) const = default;
};

struct BufferDescriptor {
  BufferId id;
  uint64_t address;
  uint64_t size;
  MemoryKind kind;
  bool remote_write;
  std::string location;
  std::vector<TransportBytes> keys;

  bool operator==(const BufferDescriptor&) const = default;
};

struct SegmentDescriptor {
  std::string name;
  uint64_t epoch;
  /// Grows with each registration and de-registration.
  uint64_t version;
  std::vector<TransportBytes> endpoints;
  std::vector<BufferDescriptor> buffers;  // By address; they do not overlap.

  bool operator==(const SegmentDescriptor&) const = default;

  /// The buffer that holds the whole range; nullptr if none does.
  const BufferDescriptor* find(uint64_t address, uint64_t size) const;
  /// This transport's endpoint; empty if there is none.
  std::span<const uint8_t> endpoint(TransportKind kind) const;
};

inline constexpr size_t kBuffersMax = 1 << 16;
inline constexpr size_t kTransportBytesMax = 4096;
inline constexpr size_t kSegmentTextMax = 256;  // Of a name or a location.

/// What a buffer adds to an encoded segment, in bytes: so that registering can refuse what no
/// reply could carry.
size_t encoded_size(const BufferDescriptor& buffer);

std::vector<uint8_t> encode_segment(const SegmentDescriptor& segment);
/// kCorrupt for anything encode_segment() would not have written.
Result<SegmentDescriptor> decode_segment(std::span<const uint8_t> bytes);

}  // namespace hicache
