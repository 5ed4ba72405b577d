#include "base/clock.h"

#include <sys/random.h>

#include <ctime>

namespace hicache {

uint64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

uint64_t monotonic_ms() {
  return monotonic_ns() / 1'000'000;
}

uint64_t unix_time_s() {
  return static_cast<uint64_t>(time(nullptr));
}

uint64_t random_token() {
  uint64_t token = 0;
  while (getrandom(&token, sizeof(token), 0) != sizeof(token) || token == 0) {
  }
  return token;
}

uint64_t life_token() {
  constexpr unsigned kRandomBits = 22;
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  const uint64_t unix_ms =
      static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1'000'000;
  return (unix_ms << kRandomBits) | (random_token() >> (64 - kRandomBits)) | 1;
}

}  // namespace hicache
