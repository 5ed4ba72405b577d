// The copies of a batch call whose segments are in memory of a GPU.
//
// The GPU moves the bytes, stage after stage; the CPU checks each stripe once the stages that it is
// part of have been copied, while the GPU goes on with the next.
#include <algorithm>
#include <set>

#include "store/client.h"
#include "store/copy_plan.h"
#include "store/piece_cursor.h"
#include "store/pool_pinner.h"

namespace hicache {
namespace {

// Whoever wants to map or unmap memory of this process waits for one of these.
constexpr uint64_t kBackedAtOnce = 2 * kMiB;

}  // namespace

/// What one stage copies, and the stripes that are whole with it.
struct CopyPlan::DeviceCopies {
  std::vector<GpuCopy> pinned;
  std::vector<GpuCopy> pageable;
  std::vector<size_t> stripes;
};

void CopyPlan::run_on_device(CopyThreads& threads, unsigned threads_max) {
  connection_.pin_for(device_->lane);
  back_units(threads, threads_max);
  // Where nobody asks for stages there is one for each page, so that checking keeps pace.
  const bool is_staged = device_->stages != nullptr;
  const size_t stage_count = is_staged ? device_->stages->stage_count() : pages_.size();
  std::vector<DeviceCopies> stages(stage_count);
  for (size_t i = 0; i < pages_.size(); ++i) {
    if (pages_[i].device != 0) continue;
    if (!add_copies(pages_[i], is_staged ? std::span(stages) : std::span(&stages[i], 1))) {
      return end_in_pool(CopyOutcome::kUnbacked);
    }
  }
  const auto marks = queue(stages);
  if (marks.size() != stage_count) {
    device_->lane->drain();
    return end_in_pool(CopyOutcome::kDevice);
  }
  for (size_t stage = 0; stage < stage_count; ++stage) {
    if (!marks[stage]->wait().ok()) {
      device_->lane->drain();
      return end_in_pool(CopyOutcome::kDevice);
    }
    const std::vector<size_t>& whole = stages[stage].stripes;
    if (!checksum_ || whole.empty()) continue;
    threads.run(whole.size(), [&](size_t i) { checksum_in_pool(stripes_[whole[i]]); }, threads_max);
  }
  // What was checked after the GPU had read it is right, lease or not.
  const bool is_checked = direction_ == CopyDirection::kPoolToMemory && checksum_;
  if (!is_checked && connection_.is_broken()) end_in_pool(CopyOutcome::kStopped);
}

/// Has memory stand behind the units that are about to be pinned: much new memory at once, for
/// which one thread would take a second per two GiB.
void CopyPlan::back_units(CopyThreads& threads, unsigned threads_max) {
  std::vector<uint64_t> pieces;  // Offsets in the pool.
  std::set<uint64_t> units;
  for (const Page& page : pages_) {
    if (page.device != 0) continue;
    for (const Extent& extent : page.extents) {
      const uint64_t last = (extent.offset + extent.size - 1) / PoolPinner::kUnitSize;
      for (uint64_t unit = extent.offset / PoolPinner::kUnitSize; unit <= last; ++unit) {
        const uint64_t begin = unit * PoolPinner::kUnitSize;
        if (!connection_.is_unit_open(begin) || !units.insert(unit).second) continue;
        const uint64_t end = std::min(begin + PoolPinner::kUnitSize, connection_.pool_size_bytes());
        for (uint64_t piece = begin; piece < end; piece += kBackedAtOnce) pieces.push_back(piece);
      }
    }
  }
  threads.run(
      pieces.size(),
      [&](size_t i) {
        const uint64_t size = std::min(kBackedAtOnce, connection_.pool_size_bytes() - pieces[i]);
        // If there is none, whoever pins finds out.
        (void)connection_.back(pieces[i], size, SharedMemory::Access::kWrite);
      },
      threads_max);
}

bool CopyPlan::add_copies(const Page& page, std::span<DeviceCopies> stages) {
  const bool is_read = direction_ == CopyDirection::kPoolToMemory;
  PieceCursor<Extent> extent(page.extents, 0);
  PieceCursor<MemorySegment> segment(page.segments, 0);
  uint32_t last_stage = 0;  // Of the stripe.
  for (uint64_t done = 0; done != page.size;) {
    const uint64_t offset = extent.piece().offset + extent.inside();
    const uint64_t to_border = PoolPinner::kUnitSize - offset % PoolPinner::kUnitSize;
    const uint64_t to_stripe = kStripeSize - done % kStripeSize;
    const uint64_t to_end = std::min(extent.left(), segment.left());
    const uint64_t size = std::min(to_end, to_border);
    const size_t number = static_cast<size_t>(&segment.piece() - page.segments.data());
    const uint32_t stage =
        device_->stage_of_segment.empty() ? 0 : device_->stage_of_segment[number];
    const bool is_pinned = connection_.pin_unit(offset);
    if (!is_pinned &&
        !connection_.back(offset, size,
                          is_read ? SharedMemory::Access::kRead : SharedMemory::Access::kWrite)) {
      return false;
    }
    const auto pool = reinterpret_cast<uint64_t>(connection_.pool() + offset);
    const auto memory = reinterpret_cast<uint64_t>(segment.piece().address + segment.inside());
    (is_pinned ? stages[stage].pinned : stages[stage].pageable)
        .push_back({is_read ? memory : pool, is_read ? pool : memory, size});
    // A piece may end one stripe, and others, and begin the next.
    last_stage = std::max(last_stage, stage);
    for (uint64_t end = done + to_stripe; end <= done + size; end += kStripeSize) {
      stages[last_stage].stripes.push_back(page.first_stripe + end / kStripeSize - 1);
      last_stage = end == done + size ? 0 : stage;
    }
    done += size;
    extent.advance(size);
    segment.advance(size);
  }
  if (page.size % kStripeSize != 0) {
    stages[last_stage].stripes.push_back(page.first_stripe + page.size / kStripeSize);
  }
  return true;
}

std::vector<std::shared_ptr<const GpuLane::Mark>> CopyPlan::queue(
    std::span<const DeviceCopies> stages) {
  std::vector<std::shared_ptr<const GpuLane::Mark>> marks;
  for (const DeviceCopies& stage : stages) {
    if (!device_->lane->copy(stage.pinned).ok()) break;
    if (!device_->lane->copy_pageable(stage.pageable).ok()) break;
    auto mark = device_->lane->mark();
    if (!mark.ok()) break;
    if (device_->stages != nullptr) device_->stages->queued(device_->part, mark.value());
    marks.push_back(std::move(mark.value()));
  }
  return marks;
}

void CopyPlan::checksum_in_pool(Stripe& stripe) const {
  PieceCursor<Extent> extent(pages_[stripe.page].extents, stripe.offset);
  StripeChecksum checksum;
  for (uint64_t left = size_of(stripe); left != 0;) {
    const uint64_t piece = std::min(left, extent.left());
    checksum.add(connection_.pool() + extent.piece().offset + extent.inside(), piece);
    left -= piece;
    extent.advance(piece);
  }
  stripe.checksum = checksum.finish();
}

void CopyPlan::scatter_to_device(Stripe& stripe, const uint8_t* bytes) {
  const uint64_t size = size_of(stripe);
  if (checksum_) {
    StripeChecksum checksum;
    checksum.add(bytes, size);
    stripe.checksum = checksum.finish();
  }
  std::vector<GpuCopy> copies;
  PieceCursor<MemorySegment> segment(pages_[stripe.page].segments, stripe.offset);
  for (uint64_t done = 0; done != size;) {
    const uint64_t piece = std::min(size - done, segment.left());
    copies.push_back({reinterpret_cast<uint64_t>(segment.piece().address + segment.inside()),
                      reinterpret_cast<uint64_t>(bytes + done), piece});
    done += piece;
    segment.advance(piece);
  }
  // The reader's buffer is its own again when this returns.
  const std::lock_guard lock(device_mutex_);
  bool is_copied = device_->lane->copy_pageable(copies).ok();
  const auto mark = device_->lane->mark();
  if (mark.ok()) {
    is_copied &= mark.value()->wait().ok();
  } else {
    device_->lane->drain();
    is_copied = false;
  }
  stripe.outcome = is_copied ? CopyOutcome::kCopied : CopyOutcome::kDevice;
}

void CopyPlan::end_in_pool(CopyOutcome outcome) {
  for (Stripe& stripe : stripes_) {
    if (pages_[stripe.page].device == 0) stripe.outcome = outcome;
  }
}

}  // namespace hicache
