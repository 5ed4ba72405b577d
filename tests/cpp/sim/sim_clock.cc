#include "sim/sim_clock.h"

#include <sys/random.h>

#include <optional>
#include <random>

#include "base/clock.h"

namespace hicache {
namespace {

uint64_t shown_ns = 1;
std::optional<std::mt19937_64> tokens;

}  // namespace

uint64_t monotonic_ns() {
  return shown_ns;
}

uint64_t monotonic_ms() {
  return shown_ns / 1'000'000;
}

uint64_t unix_time_s() {
  return shown_ns / 1'000'000'000;
}

uint64_t random_token() {
  if (tokens) return (*tokens)() | 1;
  uint64_t token = 0;
  while (getrandom(&token, sizeof(token), 0) != sizeof(token) || token == 0) {
  }
  return token;
}

uint64_t life_token() {
  return random_token();
}

namespace testing {

void set_clock_ns(uint64_t ns) {
  shown_ns = ns;
}

void seed_tokens(uint64_t seed) {
  tokens.emplace(seed);
}

}  // namespace testing
}  // namespace hicache
