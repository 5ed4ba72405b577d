#include "store/copy_plan.h"

#include <algorithm>

#include "store/client.h"
#include "transfer/checksum_copy.h"

namespace hicache {
namespace {

// Below it the copy fits the caches and waking threads costs more than they bring.
constexpr uint64_t kParallelSizeMin = 512 * kKiB;

/// Walks pieces (extents or segments) from an offset of the page.
template <typename Piece>
class PieceCursor {
 public:
  PieceCursor(std::span<const Piece> pieces, uint64_t offset) : pieces_(pieces), inside_(offset) {
    while (inside_ >= pieces_.front().size) next();
  }
  const Piece& piece() const { return pieces_.front(); }
  uint64_t inside() const { return inside_; }
  uint64_t left() const { return pieces_.front().size - inside_; }
  void advance(uint64_t size) {
    inside_ += size;
    while (left() == 0 && pieces_.size() > 1) next();
  }

 private:
  void next() {
    inside_ -= pieces_.front().size;
    pieces_ = pieces_.subspan(1);
  }

  std::span<const Piece> pieces_;
  uint64_t inside_;
};

}  // namespace

CopyPlan::CopyPlan(ClientConnection& connection, Direction direction, bool checksum)
    : connection_(connection), direction_(direction), checksum_(checksum) {}

void CopyPlan::add(uint64_t size, std::span<const Extent> extents,
                   std::span<const MemorySegment> segments) {
  pages_.push_back({size, extents, segments, stripes_.size()});
  for (uint64_t i = 0; i < stripe_count(size); ++i) {
    stripes_.push_back({pages_.size() - 1, i * kStripeSize, 0, CopyOutcome::kCopied});
  }
  total_size_ += size;
}

void CopyPlan::run(CopyThreads& threads) {
  if (total_size_ < kParallelSizeMin) {
    for (Stripe& stripe : stripes_) copy(stripe);
  } else {
    threads.run(stripes_.size(), [this](size_t i) { copy(stripes_[i]); });
  }
}

void CopyPlan::copy(Stripe& stripe) {
  if (connection_.is_broken() || no_memory_) {
    stripe.outcome = no_memory_ ? CopyOutcome::kUnbacked : CopyOutcome::kStopped;
    return;
  }
  const Page& page = pages_[stripe.page];
  const uint64_t size = std::min(kStripeSize, page.size - stripe.offset);
  const Store store = total_size_ < kParallelSizeMin ? Store::kCached : Store::kStreaming;
  const SharedMemory::Access access = direction_ == Direction::kPoolToMemory
                                          ? SharedMemory::Access::kRead
                                          : SharedMemory::Access::kWrite;
  PieceCursor<Extent> extent(page.extents, stripe.offset);
  PieceCursor<MemorySegment> segment(page.segments, stripe.offset);
  ChecksumCopy checksum_copy(size, store);
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
    uint8_t* target = direction_ == Direction::kPoolToMemory ? memory : pool;
    const uint8_t* source = direction_ == Direction::kPoolToMemory ? pool : memory;
    if (checksum_) {
      checksum_copy.copy(target, source, piece);
    } else {
      plain_copy(target, source, piece, store);
    }
    left -= piece;
    extent.advance(piece);
    segment.advance(piece);
  }
  if (checksum_) {
    stripe.checksum = checksum_copy.finish();
  } else {
    fence_stores();
  }
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
