#include "store/copy_plan.h"

#include <algorithm>

#include "store/client.h"
#include "store/piece_cursor.h"
#include "transfer/checksum_copy.h"

namespace hicache {
namespace {

// Below it the copy fits the caches and waking threads costs more than they bring.
constexpr uint64_t kParallelSizeMin = 512 * kKiB;

}  // namespace

CopyPlan::CopyPlan(ClientConnection& connection, CopyDirection direction, bool checksum,
                   const DeviceSegments* device)
    : connection_(connection), direction_(direction), checksum_(checksum), device_(device) {}

void CopyPlan::add(uint64_t size, uint8_t device, std::span<const Extent> extents,
                   std::span<const MemorySegment> segments) {
  pages_.push_back({size, device, extents, segments, stripes_.size()});
  const CopyOutcome outcome = device == 0 ? CopyOutcome::kCopied : CopyOutcome::kFailed;
  for (uint64_t i = 0; i < stripe_count(size); ++i) {
    stripes_.push_back({pages_.size() - 1, i * kStripeSize, 0, outcome});
  }
  total_size_ += size;
  if (device != 0) file_size_ += size;
}

uint64_t CopyPlan::size_of(const Stripe& stripe) const {
  return std::min(kStripeSize, pages_[stripe.page].size - stripe.offset);
}

Store CopyPlan::store() const {
  return total_size_ < kParallelSizeMin ? Store::kCached : Store::kStreaming;
}

void CopyPlan::run(CopyThreads& threads, unsigned threads_max) {
  if (device_ != nullptr) return run_on_device(threads, threads_max);
  if (total_size_ < kParallelSizeMin) {
    for (Stripe& stripe : stripes_) copy(stripe);
  } else {
    threads.run(stripes_.size(), [this](size_t i) { copy(stripes_[i]); }, threads_max);
  }
}

uint64_t CopyPlan::run(CopyThreads& threads, FileReaders& readers, Deadline deadline) {
  if (file_size_ == 0) {
    run(threads);
    return 0;
  }
  std::vector<size_t> in_pool;
  std::vector<size_t> in_files;
  std::vector<FileStripe> to_read;
  for (size_t i = 0; i < stripes_.size(); ++i) {
    const Stripe& stripe = stripes_[i];
    const Page& page = pages_[stripe.page];
    if (page.device == 0) {
      if (device_ == nullptr) in_pool.push_back(i);
      continue;
    }
    in_files.push_back(i);
    to_read.push_back(
        {page.device - 1U, page.extents.front().offset + stripe.offset, size_of(stripe)});
  }
  const uint64_t begun_ns = monotonic_ns();
  std::unique_ptr<FileReader> reader = readers.take(deadline);
  const uint64_t waited_ns = monotonic_ns() - begun_ns;
  if (reader == nullptr) {
    threads.run(in_pool.size(), [&](size_t i) { copy(stripes_[in_pool[i]]); });
    if (device_ != nullptr) run(threads);
    return waited_ns;
  }
  std::atomic<size_t> next_in_pool{0};
  const auto copy_next = [&] {
    const size_t next = next_in_pool.fetch_add(1, std::memory_order_relaxed);
    if (next < in_pool.size()) copy(stripes_[in_pool[next]]);
    return next < in_pool.size();
  };
  const uint64_t left_ns = deadline.remaining_ns();
  const std::vector<ReadableFile*> files = connection_.files();
  const FileReader::Work work{
      .files = files,
      .stripes = to_read,
      .take = [&](size_t i, const uint8_t* bytes) { scatter(stripes_[in_files[i]], bytes); },
      .other = copy_next,
      .other_count = total_size_ < kParallelSizeMin ? 0 : in_pool.size(),
      .is_stopped = [this] { return connection_.is_broken(); },
  };
  const ReadLimits limits = read_limits(left_ns, file_size_);
  const uint64_t silence_ns = reader->read(work, limits, threads);
  readers.give_back(std::move(reader));
  // Stages come in order, and those of pages in files are complete now.
  if (device_ != nullptr) run(threads);
  return waited_ns + silence_ns;
}

void CopyPlan::scatter(Stripe& stripe, const uint8_t* bytes) {
  if (connection_.is_broken()) {
    stripe.outcome = CopyOutcome::kStopped;
    return;
  }
  if (device_ != nullptr) return scatter_to_device(stripe, bytes);
  const uint64_t size = size_of(stripe);
  PieceCursor<MemorySegment> segment(pages_[stripe.page].segments, stripe.offset);
  ChecksumCopy checksum_copy(size, store());
  for (uint64_t left = size; left != 0;) {
    const uint64_t piece = std::min(left, segment.left());
    copy_piece(checksum_copy, segment.piece().address + segment.inside(), bytes, piece);
    bytes += piece;
    left -= piece;
    segment.advance(piece);
  }
  finish(stripe, checksum_copy);
  stripe.outcome = CopyOutcome::kCopied;
}

void CopyPlan::copy_piece(ChecksumCopy& checksum_copy, uint8_t* target, const uint8_t* source,
                          uint64_t size) const {
  if (checksum_) {
    checksum_copy.copy(target, source, size);
  } else {
    plain_copy(target, source, size, store());
  }
}

void CopyPlan::finish(Stripe& stripe, ChecksumCopy& checksum_copy) const {
  if (checksum_) {
    stripe.checksum = checksum_copy.finish();
  } else {
    fence_stores();
  }
}

void CopyPlan::copy(Stripe& stripe) {
  if (connection_.is_broken() || no_memory_) {
    stripe.outcome = no_memory_ ? CopyOutcome::kUnbacked : CopyOutcome::kStopped;
    return;
  }
  const Page& page = pages_[stripe.page];
  const uint64_t size = size_of(stripe);
  const SharedMemory::Access access = direction_ == CopyDirection::kPoolToMemory
                                          ? SharedMemory::Access::kRead
                                          : SharedMemory::Access::kWrite;
  PieceCursor<Extent> extent(page.extents, stripe.offset);
  PieceCursor<MemorySegment> segment(page.segments, stripe.offset);
  ChecksumCopy checksum_copy(size, store());
  for (uint64_t left = size; left != 0;) {
    const uint64_t piece = std::min({left, extent.left(), segment.left()});
    const uint64_t pool_offset = extent.piece().offset + extent.inside();
    if (!connection_.back(pool_offset, piece, access)) {
      stripe.outcome = CopyOutcome::kUnbacked;
      no_memory_ = true;
      fence_stores();
      return;
    }
    uint8_t* pool = connection_.pool() + pool_offset;
    uint8_t* memory = segment.piece().address + segment.inside();
    uint8_t* target = direction_ == CopyDirection::kPoolToMemory ? memory : pool;
    const uint8_t* source = direction_ == CopyDirection::kPoolToMemory ? pool : memory;
    copy_piece(checksum_copy, target, source, piece);
    left -= piece;
    extent.advance(piece);
    segment.advance(piece);
  }
  finish(stripe, checksum_copy);
}

CopyOutcome CopyPlan::outcome(size_t page) const {
  const auto first = stripes_.begin() + static_cast<ptrdiff_t>(pages_[page].first_stripe);
  const auto last = first + static_cast<ptrdiff_t>(stripe_count(pages_[page].size));
  const auto failed = std::find_if(
      first, last, [](const Stripe& stripe) { return stripe.outcome != CopyOutcome::kCopied; });
  return failed == last ? CopyOutcome::kCopied : failed->outcome;
}

uint64_t CopyPlan::page_checksum(size_t page) const {
  const size_t first = pages_[page].first_stripe;
  const size_t count = stripe_count(pages_[page].size);
  std::vector<uint64_t> checksums(count);
  for (size_t i = 0; i < count; ++i) checksums[i] = stripes_[first + i].checksum;
  return fold_stripes(checksums, pages_[page].size);
}

}  // namespace hicache
