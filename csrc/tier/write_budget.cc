#include "tier/write_budget.h"

#include <algorithm>
#include <cassert>

namespace hicache {
namespace {

constexpr uint64_t kBytesPerDayMax = uint64_t{1} << 63;
constexpr uint64_t kElapsedMaxMs = uint64_t{1} << 62;  // What it brings fits 128 bits.

uint64_t add_saturating(uint64_t left, uint64_t right) {
  return left > UINT64_MAX - right ? UINT64_MAX : left + right;
}

}  // namespace

WriteBudget::WriteBudget(uint64_t bytes_per_day, uint64_t now_ms)
    : bytes_per_day_(bytes_per_day),
      // At least a byte's worth: a bucket that holds nothing would refuse for ever.
      capacity_(std::max(Signed128{bytes_per_day} * (kDayMs / 8), Signed128{kDayMs})),
      level_(capacity_),
      latest_ms_(now_ms) {
  assert(bytes_per_day <= kBytesPerDayMax);
}

void WriteBudget::advance(uint64_t now_ms) {
  if (now_ms <= latest_ms_) return;
  const uint64_t elapsed_ms = std::min(now_ms - latest_ms_, kElapsedMaxMs);
  level_ = std::min(capacity_, level_ + Signed128{elapsed_ms} * bytes_per_day_);
  forget_hours(now_ms);
  latest_ms_ = now_ms;
}

void WriteBudget::forget_hours(uint64_t now_ms) {
  const uint64_t hour = latest_ms_ / kHourMs;
  const uint64_t begun = std::min<uint64_t>(now_ms / kHourMs - hour, kHourCount);
  for (uint64_t i = 1; i <= begun; ++i) written_bytes_[(hour % kHourCount + i) % kHourCount] = 0;
}

WriteBudget::Demand WriteBudget::demand(uint64_t now_ms) {
  if (left_bytes(now_ms) == 0) return Demand::kRefuse;
  if (bytes_per_day_ == 0 || level_ >= capacity_ / 2) return Demand::kNothing;
  return Demand::kReuse;
}

void WriteBudget::spend(uint64_t bytes, uint64_t now_ms) {
  advance(now_ms);
  if (bytes_per_day_ != 0) level_ -= Signed128{bytes} * kDayMs;
  uint64_t& written = written_bytes_[latest_ms_ / kHourMs % kHourCount];
  written = add_saturating(written, bytes);
}

uint64_t WriteBudget::left_bytes(uint64_t now_ms) {
  advance(now_ms);
  if (bytes_per_day_ == 0) return UINT64_MAX;
  return level_ <= 0 ? 0 : static_cast<uint64_t>(level_ / Signed128{kDayMs});
}

uint64_t WriteBudget::written_last_day_bytes(uint64_t now_ms) {
  advance(now_ms);
  uint64_t sum = 0;
  for (const uint64_t written : written_bytes_) sum = add_saturating(sum, written);
  return sum;
}

}  // namespace hicache
