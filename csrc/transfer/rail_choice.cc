#include "transfer/rail_choice.h"

#include <algorithm>

namespace hicache {
namespace {

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kBackoffMinNs = 100 * kMs;
constexpr uint64_t kBackoffMaxNs = 2000 * kMs;
/// A rail that fails again this soon is tried again later than one that had been well for long.
constexpr uint64_t kFlappingNs = 10'000 * kMs;
/// A window holds what a rail moves in this time, so that none runs dry between completions ...
constexpr double kWindowNs = 10.0 * kMs;
/// ... and this many slices at least.
constexpr uint64_t kWindowSlices = 8;
/// Less is all overhead, and says nothing about bandwidth.
constexpr uint64_t kMeasuredBytesMin = 1 << 20;
/// The weight of one measurement, and of one of the fixed cost, which scatters more.
constexpr double kGain = 0.25;
constexpr double kFixedGain = 0.125;
constexpr double kNsPerByteMin = 1e-3;  // A terabyte per second.
constexpr unsigned kCorruptMax = 3;

bool has(const RailSet& rails, size_t index) {
  return index < rails.size() && rails[index];
}

}  // namespace

RailIndex RailChoice::add(PathCost cost, uint8_t tier, uint64_t slice_size_bytes) {
  cost.ns_per_byte = std::max(cost.ns_per_byte, kNsPerByteMin);
  Rail rail{};
  rail.cost = cost;
  rail.slice_size_bytes = std::max<uint64_t>(slice_size_bytes, 1);
  rail.tier = tier;
  rails_.push_back(rail);
  return static_cast<RailIndex>(rails_.size() - 1);
}

bool RailChoice::has_tier(uint8_t tier_min, const RailSet& without) const {
  for (size_t i = 0; i < rails_.size(); ++i) {
    if (rails_[i].tier >= tier_min && !has(without, i)) return true;
  }
  return false;
}

bool RailChoice::has_alternative(RailIndex index) const {
  if (rails_.size() == 1) return false;
  return std::ranges::any_of(rails_, [&](const Rail& rail) {
    return &rail != &rails_[index] && rail.is_alive && rail.tier == rails_[index].tier;
  });
}

uint64_t RailChoice::window_bytes(const Rail& rail) const {
  return std::max(static_cast<uint64_t>(kWindowNs / rail.cost.ns_per_byte),
                  kWindowSlices * rail.slice_size_bytes);
}

double RailChoice::estimate_ns(RailIndex index, uint64_t size) const {
  const Rail& rail = rails_[index];
  return rail.cost.fixed_ns +
         static_cast<double>(rail.outstanding_bytes + size) * rail.cost.ns_per_byte;
}

RailChoice::Choice RailChoice::choose(uint64_t size, uint8_t tier_min, RailIndex avoid,
                                      uint64_t waiting_bytes,
                                      std::span<const double> extra_ns_per_byte,
                                      const RailSet& without) const {
  if (rails_.size() == 1 && rails_[0].is_alive && rails_[0].tier >= tier_min && !without[0]) {
    return {has_room(rails_[0]) ? RailIndex{0} : kNoRail, true};
  }
  unsigned tier = UINT8_MAX + 1U;
  size_t usable = 0;
  for (RailIndex i = 0; i < rails_.size(); ++i) {
    const Rail& rail = rails_[i];
    const bool is_worse = rail.tier > tier;
    if (!rail.is_alive || rail.tier < tier_min || is_worse || has(without, i)) continue;
    usable = rail.tier == tier ? usable + 1 : 1;
    tier = rail.tier;
  }
  RailIndex best = kNoRail;
  double best_ns = 0;
  for (RailIndex i = 0; i < rails_.size(); ++i) {
    const Rail& rail = rails_[i];
    if (!rail.is_alive || rail.tier != tier || has(without, i)) continue;
    if (i == avoid && usable > 1) continue;
    // A rail without room serves this slice once everything that waits has been shared out: only
    // then is a slower one worse.
    double ns = estimate_ns(i, has_room(rail) ? size : std::max(size, waiting_bytes));
    if (i < extra_ns_per_byte.size()) ns += static_cast<double>(size) * extra_ns_per_byte[i];
    if (best != kNoRail && ns >= best_ns) continue;
    best = i;
    best_ns = ns;
  }
  if (best != kNoRail && !has_room(rails_[best])) best = kNoRail;
  return {best, usable != 0};
}

void RailChoice::begin(RailIndex index, uint64_t size, uint64_t now_ns) {
  Rail& rail = rails_[index];
  if (rail.outstanding_count == 0) {
    rail.measured_from_ns = now_ns;
    rail.measured_bytes = 0;
    rail.begun_since_idle = 0;
  }
  ++rail.outstanding_count;
  ++rail.begun_since_idle;
  rail.outstanding_bytes += size;
}

void RailChoice::undo(RailIndex index, uint64_t size) {
  Rail& rail = rails_[index];
  --rail.outstanding_count;
  rail.outstanding_bytes -= size;
}

void RailChoice::end(RailIndex index, uint64_t size, bool is_ok, uint64_t started_ns,
                     uint64_t now_ns) {
  Rail& rail = rails_[index];
  --rail.outstanding_count;
  rail.outstanding_bytes -= size;
  rail.is_full = false;
  if (!is_ok) return;
  rail.done_bytes += size;
  rail.corrupt_count = 0;
  measure(rail, size, started_ns, now_ns);
}

void RailChoice::measure(Rail& rail, uint64_t size, uint64_t started_ns, uint64_t now_ns) {
  rail.measured_bytes += size;
  const bool was_alone = rail.begun_since_idle == 1;
  if (rail.measured_bytes >= std::max(kMeasuredBytesMin, 2 * rail.slice_size_bytes)) {
    const auto busy_ns = static_cast<double>(now_ns - rail.measured_from_ns);
    const double moving_ns = was_alone ? std::max(0.0, busy_ns - rail.cost.fixed_ns) : busy_ns;
    const double measured = moving_ns / static_cast<double>(rail.measured_bytes);
    rail.cost.ns_per_byte += kGain * (measured - rail.cost.ns_per_byte);
    rail.cost.ns_per_byte = std::max(rail.cost.ns_per_byte, kNsPerByteMin);
    rail.measured_from_ns = now_ns;
    rail.measured_bytes = 0;
  } else if (was_alone && rail.outstanding_count == 0) {
    const double measured = static_cast<double>(now_ns - started_ns) -
                            static_cast<double>(size) * rail.cost.ns_per_byte;
    rail.cost.fixed_ns += kFixedGain * (std::max(0.0, measured) - rail.cost.fixed_ns);
  }
}

bool RailChoice::fail(RailIndex index, uint64_t now_ns) {
  Rail& rail = rails_[index];
  if (!rail.is_alive) return false;
  const bool is_flapping = rail.failures != 0 && now_ns - rail.alive_since_ns < kFlappingNs;
  rail.backoff_ns = is_flapping ? std::min(2 * rail.backoff_ns, kBackoffMaxNs) : kBackoffMinNs;
  rail.is_alive = false;
  rail.corrupt_count = 0;
  ++rail.failures;
  rail.next_probe_ns = now_ns + rail.backoff_ns;
  return true;
}

bool RailChoice::fail_corrupt(RailIndex index, uint64_t now_ns) {
  return ++rails_[index].corrupt_count >= kCorruptMax && fail(index, now_ns);
}

std::optional<RailIndex> RailChoice::take_probe(uint64_t now_ns) {
  for (RailIndex i = 0; i < rails_.size(); ++i) {
    Rail& rail = rails_[i];
    if (rail.is_alive || rail.is_probing || rail.next_probe_ns > now_ns) continue;
    rail.is_probing = true;
    return i;
  }
  return std::nullopt;
}

void RailChoice::probe_ended(RailIndex index, bool is_ok, uint64_t now_ns) {
  Rail& rail = rails_[index];
  rail.is_probing = false;
  rail.is_alive = is_ok;
  if (is_ok) {
    rail.is_full = false;
    rail.alive_since_ns = now_ns;
    return;
  }
  rail.backoff_ns = std::min(2 * rail.backoff_ns, kBackoffMaxNs);
  rail.next_probe_ns = now_ns + rail.backoff_ns;
}

uint64_t RailChoice::next_probe_ns() const {
  uint64_t next_ns = UINT64_MAX;
  for (const Rail& rail : rails_) {
    if (!rail.is_alive && !rail.is_probing) next_ns = std::min(next_ns, rail.next_probe_ns);
  }
  return next_ns;
}

}  // namespace hicache
