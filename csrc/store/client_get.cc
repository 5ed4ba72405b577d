// How a client reads: lease, copy out of the pool or read from an SSD file, verify, release.
#include <algorithm>
#include <numeric>

#include "store/client.h"
#include "store/client_call.h"
#include "store/copy_plan.h"

namespace hicache {
namespace {

// That pages which are busy are asked for again when none of them had come: the way from the SSD to
// the pool is short, and after that it is somebody else's turn.
constexpr int kBusyRoundsMax = 2;

// Pages that one message asks for: its answer has room for 256 extents of each, so that even a pool
// in small pieces leaves none of them out.
constexpr size_t kLeasedAtOnce = 4096;
static_assert(kLeasedAtOnce <= kAskedCountMax);

/// How long the node may wait for pages that come from other nodes: the rest is for its answer.
uint32_t patience_of(Deadline deadline) {
  return static_cast<uint32_t>(std::max(1, deadline.remaining_ms() * 3 / 4));
}

}  // namespace

/// Pages of a get that are leased, copied and released together.
struct Client::GetRange {
  ClientConnection& connection;
  NamespaceIndex index;
  uint8_t flags;  // Of the lease.
  std::span<const Key> keys;
  std::span<const size_t> numbers;  // Of the keys in the call.
  std::span<Code> codes;            // Of the call.
  const DeviceSegments* device;     // Where targets are in memory of a GPU.
};

Status Client::lease(const GetRange& range, Deadline deadline, std::vector<Places>& leased) {
  for (size_t first = 0; first < range.keys.size(); first += kLeasedAtOnce) {
    const auto keys = range.keys.subspan(first, std::min(kLeasedAtOnce, range.keys.size() - first));
    Places places;
    HICACHE_RETURN_IF_ERROR(range.connection.ask(
        NodeOp::kLease, deadline,
        [&](WireWriter& writer) {
          encode_keys(writer, range.index, range.flags, keys, patience_of(deadline));
        },
        [&](WireReader reader) {
          return decode(reader, places, range.connection.place_bounds()) &&
                 places.places.size() == keys.size();
        }));
    leased.push_back(std::move(places));
  }
  return Status();
}

Code Client::settle(const CopyPlan& plan, size_t page, const Place& place) {
  const CopyOutcome outcome = plan.outcome(page);
  if (outcome == CopyOutcome::kFailed) {
    ++stats_.ssd_failed_pages;
    return Code::kUnavailable;
  }
  if (outcome != CopyOutcome::kCopied) {
    ++stats_.unavailable;
    return Code::kUnavailable;
  }
  if (options_.verify && plan.page_checksum(page) != place.checksum) {
    ++stats_.corrupt_pages;
    return Code::kCorrupt;
  }
  ++stats_.get_hit_pages;
  stats_.get_bytes += place.size;
  if (place.device != 0) {
    ++stats_.ssd_hit_pages;
    stats_.ssd_bytes += place.size;
  }
  return Code::kOk;
}

Status Client::get_range(const GetRange& range, const TargetOf& target_of, Deadline* until) {
  std::vector<Places> answers;
  const Status asked = lease(range, *until, answers);
  RefsRequest leased;
  for (const Places& answer : answers) {
    for (const Place& place : answer.places) {
      if (place.code == Code::kOk) leased.refs.push_back(place.ref);
    }
  }
  if (!asked.ok()) {
    notify_refs(range.connection, NodeOp::kRelease, leased, *until);
    return asked;
  }
  const auto answer_of = [&](size_t i) -> const Places& { return answers[i / kLeasedAtOnce]; };
  const auto place_of = [&](size_t i) -> const Place& {
    return answer_of(i).places[i % kLeasedAtOnce];
  };
  std::vector<size_t> wanted;
  std::vector<std::vector<MemorySegment>> targets(range.keys.size());
  CopyPlan plan(range.connection, CopyDirection::kPoolToMemory, options_.verify, range.device);
  for (size_t i = 0; i < range.keys.size(); ++i) {
    const Place& place = place_of(i);
    Code& code = range.codes[range.numbers[i]];
    code = place.code;
    if (place.code != Code::kOk) continue;
    if (!target_of(range.numbers[i], place.size, targets[i])) {
      ++stats_.foreign_size_pages;
      code = Code::kNotFound;
      continue;
    }
    plan.add(place.size, place.device, answer_of(i).extents_of(place), targets[i]);
    wanted.push_back(i);
  }
  const uint64_t begun_ns = monotonic_ns();
  const uint64_t waited_ns = plan.run(threads_, file_readers_, *until);
  const uint64_t ran_ns = monotonic_ns() - begun_ns;
  *until = until->later_by_ns(ran_ns - std::min(ran_ns, waited_ns));

  RefsRequest corrupt;
  for (size_t n = 0; n < wanted.size(); ++n) {
    const Place& place = place_of(wanted[n]);
    const Code code = settle(plan, n, place);
    range.codes[range.numbers[wanted[n]]] = code;
    if (code == Code::kCorrupt) corrupt.refs.push_back(place.ref);
  }
  notify_refs(range.connection, NodeOp::kReportCorrupt, corrupt, *until);
  notify_refs(range.connection, NodeOp::kRelease, leased, *until);
  return Status();
}

size_t Client::count_busy(const GetRange& range) {
  const auto is_busy = [&](size_t number) { return range.codes[number] == Code::kBusy; };
  return static_cast<size_t>(std::ranges::count_if(range.numbers, is_busy));
}

void Client::get_busy(const GetRange& range, const TargetOf& target_of, Deadline* until) {
  std::vector<Key> keys;
  std::vector<size_t> numbers;
  for (size_t i = 0; i < range.keys.size(); ++i) {
    if (range.codes[range.numbers[i]] != Code::kBusy) continue;
    keys.push_back(range.keys[i]);
    numbers.push_back(range.numbers[i]);
  }
  // A connection that is asked without time to wait for the answer would have to be broken.
  if (keys.empty() || until->expired()) return;
  constexpr uint8_t kFlags = kLeaseReadNow | kLeaseParts;
  const Status status =
      get_range({range.connection, range.index, kFlags, keys, numbers, range.codes, range.device},
                target_of, until);
  if (status.ok()) return;
  std::vector<Code> failed;
  fail(status, failed, numbers.size());
  for (const size_t number : numbers) range.codes[number] = status.code();
}

/// Pages from other nodes come in parts, each of which is copied while the next one comes.
void Client::get_all_busy(const GetRange& range, const TargetOf& target_of, Deadline* until) {
  size_t busy = count_busy(range);
  for (int in_vain = 0; in_vain < kBusyRoundsMax && busy != 0;) {
    get_busy(range, target_of, until);
    const size_t still_busy = count_busy(range);
    if (still_busy == busy) ++in_vain;
    busy = still_busy;
  }
}

void Client::get(size_t name_space, std::span<const Key> keys, const TargetOf& target_of,
                 std::vector<Code>& codes) {
  get(name_space, keys, target_of, GetOptions{}, codes);
}

void Client::get(size_t name_space, std::span<const Key> keys, const TargetOf& target_of,
                 const GetOptions& options, std::vector<Code>& codes) {
  get_all(name_space, keys, target_of, options, codes);
  if (options.stages != nullptr) options.stages->end(options.part);
}

void Client::get_all(size_t name_space, std::span<const Key> keys, const TargetOf& target_of,
                     const GetOptions& options, std::vector<Code>& codes) {
  const RunningCall running(*this);
  ++stats_.get_calls;
  stats_.get_pages += keys.size();
  Deadline until = deadline();
  auto begun = begin(name_space, until);
  if (!begun.ok()) return fail(begun.status(), codes, keys.size());
  auto& [connection, index] = begun.value();
  DeviceSegments device{nullptr, options.stages, options.part, options.stage_of_segment};
  if (options.device != kCpu) {
    auto lane = this->lane(options.device, CopyDirection::kPoolToMemory);
    if (!lane.ok()) return fail(lane.status(), codes, keys.size());
    device.lane = std::move(lane.value());
  }
  codes.assign(keys.size(), Code::kUnavailable);
  std::vector<size_t> numbers(keys.size());
  std::iota(numbers.begin(), numbers.end(), size_t{0});
  // A stage that has come has come for all pages: they are one range, and none comes later.
  const bool is_staged = options.stages != nullptr;
  const size_t count_max = is_staged ? std::max<size_t>(1, keys.size()) : kAskedCountMax;
  for (size_t first = 0; first < keys.size(); first += count_max) {
    if (first != 0 && until.expired()) {
      return fail_from(first, Status(Code::kTimeout, "an SSD file gave nothing until the deadline"),
                       codes);
    }
    const size_t count = std::min(count_max, keys.size() - first);
    const GetRange range{*connection,
                         index,
                         is_staged ? kLeaseReadNow : kLeaseParts,
                         keys.subspan(first, count),
                         std::span(numbers).subspan(first, count),
                         codes,
                         device.lane == nullptr ? nullptr : &device};
    const Status status = get_range(range, target_of, &until);
    if (!status.ok()) return fail_from(first, status, codes);
    if (!is_staged) get_all_busy(range, target_of, &until);
  }
}

Status Client::pin_pool(int device) {
  auto opened = lane(device, CopyDirection::kPoolToMemory);
  if (!opened.ok()) return opened.status();
  const std::lock_guard lock(mutex_);
  pinning_lane_ = std::move(opened.value());
  if (connection_) connection_->pin_for(pinning_lane_);
  return Status();
}

Result<std::shared_ptr<GpuLane>> Client::lane(int device, CopyDirection direction) {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<GpuLane>& lane = lanes_[{device, direction}];
  if (lane == nullptr) {
    auto opened = GpuLane::open(device);
    if (!opened.ok()) return opened.status();
    lane = std::move(opened.value());
  }
  return lane;
}

}  // namespace hicache
