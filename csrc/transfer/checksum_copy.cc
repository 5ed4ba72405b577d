#include "transfer/checksum_copy.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <vector>

// A test builds this file a second time without SIMD, to check the road that other CPUs take.
#if defined(__x86_64__) && !defined(HICACHE_PORTABLE_COPY)
#define HICACHE_X86 1
#include <immintrin.h>
#else
#define HICACHE_X86 0
#endif

namespace hicache {
namespace {

constexpr size_t kRound = 1024;
constexpr size_t kLane = 64;
constexpr size_t kLanesPerRound = kRound / kLane;
constexpr size_t kSecretStep = 8;  // Each lane uses the secret 8 bytes further on.
constexpr size_t kSecretSize = 192;
constexpr size_t kScrambleSecret = kSecretSize - kLane;
constexpr size_t kLastLaneSecret = kSecretSize - kLane - 7;
constexpr size_t kMergeSecret = 11;
constexpr size_t kShortSizeMax = 240;  // Below it XXH3 is a different function, left to xxHash.

uint64_t read_u64(const uint8_t* source) {
  uint64_t value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

void accumulate_lane(uint64_t* accumulators, const uint8_t* lane, const uint8_t* secret) {
  for (size_t i = 0; i < 8; ++i) {
    const uint64_t value = read_u64(lane + 8 * i);
    const uint64_t keyed = value ^ read_u64(secret + 8 * i);
    accumulators[i ^ 1] += value;
    accumulators[i] += (keyed & 0xFFFFFFFF) * (keyed >> 32);
  }
}

void scramble(uint64_t* accumulators) {
  for (size_t i = 0; i < 8; ++i) {
    uint64_t value = accumulators[i];
    value ^= value >> 47;
    value ^= read_u64(XXH3_kSecret + kScrambleSecret + 8 * i);
    accumulators[i] = value * XXH_PRIME32_1;
  }
}

using CopyRounds = void (*)(uint64_t*, uint8_t*, const uint8_t*, size_t, Store);

void copy_rounds_portable(uint64_t* accumulators, uint8_t* target, const uint8_t* source,
                          size_t rounds, Store) {
  alignas(64) uint8_t round[kRound];  // Loaded once: hashed and stored from here.
  for (; rounds != 0; --rounds, source += kRound, target += kRound) {
    std::memcpy(round, source, kRound);
    for (size_t lane = 0; lane < kLanesPerRound; ++lane) {
      accumulate_lane(accumulators, round + lane * kLane, XXH3_kSecret + lane * kSecretStep);
    }
    scramble(accumulators);
    std::memcpy(target, round, kRound);
  }
}

#if HICACHE_X86

// AVX2 alone reaches the machine's copy bandwidth; AVX-512 was measured and gains nothing.
template <bool kStream>
__attribute__((target("avx2"))) void copy_rounds_avx2(uint64_t* accumulators, uint8_t* target,
                                                      const uint8_t* source, size_t rounds) {
  const __m256i prime = _mm256_set1_epi32(static_cast<int>(XXH_PRIME32_1));
  auto* state = reinterpret_cast<__m256i*>(accumulators);
  __m256i sums[2] = {_mm256_load_si256(state), _mm256_load_si256(state + 1)};
  for (; rounds != 0; --rounds) {
#pragma GCC unroll 16
    for (size_t lane = 0; lane < kLanesPerRound; ++lane) {
      const uint8_t* secret = XXH3_kSecret + lane * kSecretStep;
#pragma GCC unroll 2
      for (size_t half = 0; half < 2; ++half) {
        const auto* from = reinterpret_cast<const __m256i*>(source + lane * kLane + half * 32);
        auto* to = reinterpret_cast<__m256i*>(target + lane * kLane + half * 32);
        const __m256i value = _mm256_loadu_si256(from);
        if constexpr (kStream) {
          _mm256_stream_si256(to, value);
        } else {
          _mm256_storeu_si256(to, value);
        }
        const __m256i keyed = _mm256_xor_si256(
            value, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(secret + half * 32)));
        const __m256i product =
            _mm256_mul_epu32(keyed, _mm256_shuffle_epi32(keyed, _MM_SHUFFLE(0, 3, 0, 1)));
        const __m256i swapped = _mm256_shuffle_epi32(value, _MM_SHUFFLE(1, 0, 3, 2));
        sums[half] = _mm256_add_epi64(product, _mm256_add_epi64(sums[half], swapped));
      }
    }
    for (size_t half = 0; half < 2; ++half) {
      const __m256i mixed = _mm256_xor_si256(sums[half], _mm256_srli_epi64(sums[half], 47));
      const __m256i keyed = _mm256_xor_si256(
          mixed, _mm256_loadu_si256(
                     reinterpret_cast<const __m256i*>(XXH3_kSecret + kScrambleSecret + half * 32)));
      const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(keyed, 32), prime);
      sums[half] = _mm256_add_epi64(_mm256_mul_epu32(keyed, prime), _mm256_slli_epi64(high, 32));
    }
    source += kRound;
    target += kRound;
  }
  _mm256_store_si256(state, sums[0]);
  _mm256_store_si256(state + 1, sums[1]);
}

void copy_rounds_x86(uint64_t* accumulators, uint8_t* target, const uint8_t* source, size_t rounds,
                     Store store) {
  // Streaming stores need an aligned target; KV pages are, odd ones take the other road.
  if (store == Store::kStreaming && reinterpret_cast<uintptr_t>(target) % 32 == 0) {
    copy_rounds_avx2<true>(accumulators, target, source, rounds);
  } else {
    copy_rounds_avx2<false>(accumulators, target, source, rounds);
  }
}

__attribute__((target("avx2"))) size_t stream_avx2(uint8_t* target, const uint8_t* source,
                                                   size_t size) {
  size_t done = 0;
  for (; done + 128 <= size; done += 128) {
#pragma GCC unroll 4
    for (size_t i = 0; i < 128; i += 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target + done + i),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + done + i)));
    }
  }
  return done;
}

const bool kHasAvx2 = __builtin_cpu_supports("avx2") != 0;
const CopyRounds kCopyRounds = kHasAvx2 ? copy_rounds_x86 : copy_rounds_portable;

#else

const CopyRounds kCopyRounds = copy_rounds_portable;

#endif

}  // namespace

uint64_t fold_stripes(std::span<const uint64_t> stripe_checksums, uint64_t page_size) {
  if (stripe_checksums.size() == 1) return stripe_checksums[0];
  return XXH3_64bits_withSeed(stripe_checksums.data(), stripe_checksums.size_bytes(), page_size);
}

uint64_t page_checksum(const void* source, uint64_t size) {
  const auto* bytes = static_cast<const uint8_t*>(source);
  std::vector<uint64_t> stripes(stripe_count(size));
  for (uint64_t i = 0; i < stripes.size(); ++i) {
    const uint64_t offset = i * kStripeSize;
    stripes[i] = XXH3_64bits(bytes + offset, std::min(kStripeSize, size - offset));
  }
  return fold_stripes(stripes, size);
}

struct StripeChecksum::State {
  XXH3_state_t xxh;
};

StripeChecksum::StripeChecksum() : state_(std::make_unique<State>()) {
  XXH3_64bits_reset(&state_->xxh);
}

StripeChecksum::~StripeChecksum() = default;

void StripeChecksum::add(const void* source, size_t size) {
  XXH3_64bits_update(&state_->xxh, source, size);
}

uint64_t StripeChecksum::finish() const {
  return XXH3_64bits_digest(&state_->xxh);
}

ChecksumCopy::ChecksumCopy(uint64_t size, Store store)
    : size_(size), rounds_left_(size == 0 ? 0 : (size - 1) / kRoundSize), store_(store) {
  static constexpr uint64_t kStart[8] = {XXH_PRIME32_3, XXH_PRIME64_1, XXH_PRIME64_2,
                                         XXH_PRIME64_3, XXH_PRIME64_4, XXH_PRIME32_2,
                                         XXH_PRIME64_5, XXH_PRIME32_1};
  std::memcpy(accumulators_, kStart, sizeof(kStart));
}

void ChecksumCopy::copy(void* target, const void* source, size_t size) {
  auto* to = static_cast<uint8_t*>(target);
  const auto* from = static_cast<const uint8_t*>(source);
  while (size != 0) {
    if (kept_size_ == 0 && rounds_left_ != 0 && size >= kRoundSize) {
      const size_t rounds = std::min<uint64_t>(size / kRoundSize, rounds_left_);
      kCopyRounds(accumulators_, to, from, rounds, store_);
      rounds_left_ -= rounds;
      const size_t done = rounds * kRoundSize;
      // From the target: the source may have changed since, and these bytes may be hashed again.
      std::memcpy(kept_, to + done - kLaneSize, kLaneSize);
      to += done;
      from += done;
      size -= done;
      continue;
    }
    const size_t piece = std::min(size, kRoundSize - kept_size_);
    uint8_t* kept = kept_ + kLaneSize + kept_size_;
    std::memcpy(kept, from, piece);
    std::memcpy(to, kept, piece);
    kept_size_ += piece;
    to += piece;
    from += piece;
    size -= piece;
    if (kept_size_ == kRoundSize && rounds_left_ != 0) close_round();
  }
}

void ChecksumCopy::close_round() {
  const uint8_t* round = kept_ + kLaneSize;
  for (size_t lane = 0; lane < kLanesPerRound; ++lane) {
    accumulate_lane(accumulators_, round + lane * kLane, XXH3_kSecret + lane * kSecretStep);
  }
  scramble(accumulators_);
  std::memcpy(kept_, round + kRoundSize - kLaneSize, kLaneSize);
  kept_size_ = 0;
  --rounds_left_;
}

uint64_t ChecksumCopy::finish() {
  fence_stores();
  const uint8_t* round = kept_ + kLaneSize;
  if (size_ <= kShortSizeMax) return XXH3_64bits(round, size_);
  const size_t lanes = (kept_size_ - 1) / kLaneSize;
  for (size_t lane = 0; lane < lanes; ++lane) {
    accumulate_lane(accumulators_, round + lane * kLane, XXH3_kSecret + lane * kSecretStep);
  }
  accumulate_lane(accumulators_, round + kept_size_ - kLaneSize, XXH3_kSecret + kLastLaneSecret);
  return XXH3_mergeAccs(accumulators_, XXH3_kSecret + kMergeSecret, size_ * XXH_PRIME64_1);
}

void plain_copy(void* target, const void* source, size_t size, Store store) {
  auto* to = static_cast<uint8_t*>(target);
  const auto* from = static_cast<const uint8_t*>(source);
#if HICACHE_X86
  if (kHasAvx2 && store == Store::kStreaming && reinterpret_cast<uintptr_t>(to) % 32 == 0) {
    const size_t done = stream_avx2(to, from, size);
    to += done;
    from += done;
    size -= done;
  }
#else
  (void)store;
#endif
  std::memcpy(to, from, size);
}

void fence_stores() {
#if HICACHE_X86
  _mm_sfence();
#else
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

}  // namespace hicache
