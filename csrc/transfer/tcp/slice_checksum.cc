#include "transfer/tcp/slice_checksum.h"

#include <xxhash.h>

#include "transfer/tcp/slice_checksum_table.h"

namespace hicache {
namespace {

const ChecksumTable kChecksumPlain = HICACHE_CHECKSUM_TABLE;

const ChecksumTable& table() {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  if (has_avx2) return kChecksumAvx2;
#endif
  return kChecksumPlain;
}

}  // namespace

SliceChecksum::SliceChecksum() {
  static_assert(sizeof(XXH3_state_t) <= kStateSize);
  start();
}

void SliceChecksum::start() {
  table().start(state_);
}

void SliceChecksum::add(const uint8_t* bytes, size_t size) {
  table().add(state_, bytes, size);
}

uint64_t SliceChecksum::finish() const {
  return table().finish(state_);
}

uint64_t SliceChecksum::of(const uint8_t* bytes, size_t size) {
  return table().of(bytes, size);
}

}  // namespace hicache
