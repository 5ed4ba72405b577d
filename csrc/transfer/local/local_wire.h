// What two local transports say over their unix socket, after the greeting (net/greeting.h).
//
// Requests have one size and answers have one size, and each is sent by one system call, which a
// unix socket keeps together: what arrives in part is not ours. Framed as net/frame.h has it; the
// request's number comes back with its answer.
//
//   request    fields                 answer
//   kHello     -                      nonce address u64 · nonce 32 · live words u64 · slots u64;
//                                     descriptors: live words (read-only), slots
//   kWant      buffer u32             buffer u32 · place u32 · address u64 · size u64 ·
//                                     offset in the memfd u64 · flags u8; descriptor: the memfd
//
// The answer to kWant also comes unasked, for a buffer that is there no more: its mapping can go.
//
// Addresses of the words are the owner's: by them two ends that are in one process know each other.
//
// Pure: no I/O.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "net/frame.h"
#include "net/greeting.h"
#include "transfer/segment.h"

namespace hicache {

enum class LocalOp : uint16_t { kHello = 1, kWant = 2 };

inline constexpr size_t kLocalRequestSize = kFrameHeaderSize + 8;
inline constexpr size_t kLocalAnswerSize = kFrameHeaderSize + 64;
/// Requests that may be unanswered: their answers fit into a socket's buffer at any time.
inline constexpr size_t kLocalUnansweredMax = 64;

struct LocalRequest {
  LocalOp op;
  BufferId buffer = kNoBuffer;
};

struct LocalWelcome {
  uint64_t nonce_address;
  Nonce nonce;
  uint64_t live_address;
  uint64_t slots_address;
};

/// A buffer, as its owner describes it to requesters.
struct LocalRange {
  BufferId buffer;
  bool is_there;  // False: no such buffer; the rest is 0.
  bool is_mappable;
  bool remote_write;
  uint32_t place;  // Among the LiveWords.
  uint64_t address;
  uint64_t size;
  uint64_t offset;
  bool is_on_device = false;  // Memory of a GPU: reached within the owner's process alone.
};

std::vector<uint8_t> encode_local(const LocalRequest& request);
std::vector<uint8_t> encode_local(const LocalWelcome& welcome);
std::vector<uint8_t> encode_local(const LocalRange& range);

/// kCorrupt for anything that encode_local() would not have written.
Result<LocalRequest> decode_local_request(std::span<const uint8_t> bytes);
Result<LocalWelcome> decode_local_welcome(std::span<const uint8_t> bytes);
Result<LocalRange> decode_local_range(std::span<const uint8_t> bytes);

/// The endpoint: version u8 · name of the socket. The name is a function of the epoch.
std::string local_socket_name(uint64_t epoch);
std::vector<uint8_t> encode_local_endpoint(uint64_t epoch);
/// Whether it is that of a peer of this version and epoch.
bool is_local_endpoint(std::span<const uint8_t> bytes, uint64_t epoch);

/// The key of a buffer: whether others may map it.
std::vector<uint8_t> encode_local_key(bool is_mappable);
bool is_mappable_key(std::span<const uint8_t> key);

}  // namespace hicache
