// What a mover makes of pages that arrive whole, wrong, in pieces, with sums and without.
#include "store/page_mover.h"

#include <gtest/gtest.h>

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "base/clock.h"
#include "support.h"
#include "transfer/checksum_copy.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::Random;

/// An engine whose wire is a memcpy: with sums or without, and as wrong as it is told to be.
class WireEngine : public TransferEngine {
 public:
  bool has_sums = true;
  size_t wrong_count = 0;       // Requests to come that bring a wrong byte, where sums are taken.
  bool is_owner_wrong = false;  // All requests do.
  std::vector<size_t> batches;  // Requests of each.
  size_t guarded_count = 0;     // Requests whose caller takes no sum.
  std::atomic<bool> holds_background = false;  // They end once it is over.

  Status stop() override { return Status(); }
  const std::string& name() const override { return name_; }
  uint16_t port() const override { return 0; }
  uint64_t epoch() const override { return 1; }
  Status register_memory(uint64_t, uint64_t, const std::string&, bool) override { return none(); }
  Status unregister_memory(uint64_t) override { return none(); }
  Result<uint64_t> allocate_memory(uint64_t) override { return none(); }
  Status free_memory(uint64_t) override { return none(); }
  Result<SegmentId> open_segment(const std::string&, uint64_t) override { return SegmentId{1}; }
  void close_segment(SegmentId) override {}
  bool is_lost(SegmentId) const override { return false; }
  Result<SegmentDescriptor> describe(SegmentId, uint64_t) override { return none(); }
  Result<BatchId> submit(SegmentId, std::span<const TransferRequest> requests, Priority priority,
                         uint64_t) override {
    batches.push_back(requests.size());
    priorities_.push_back(priority);
    for (const TransferRequest& request : requests) move(request);
    return BatchId{batches.size()};
  }
  Result<BatchState> poll(BatchId batch) override {
    const bool is_held = holds_background && priorities_.at(batch - 1) == Priority::kBackground;
    return BatchState{!is_held, 0, Status()};
  }
  Result<BatchState> wait(BatchId batch, uint64_t deadline_ns) override {
    Result<BatchState> state = poll(batch);
    while (!state.value().is_done && monotonic_ns() < deadline_ns) {
      sched_yield();
      state = poll(batch);
    }
    return state;
  }
  Result<BatchState> transfer(SegmentId, std::span<const TransferRequest>, Priority,
                              uint64_t) override {
    return none();
  }
  Status release(BatchId) override { return Status(); }
  Status notify(SegmentId, const std::string&, const std::string&, uint64_t) override {
    return none();
  }
  std::vector<Notice> take_notices() override { return {}; }
  Status probe(SegmentId, uint64_t) override { return none(); }
  Status set_topology(const std::string&) override { return none(); }
  std::string stats() const override { return "{}"; }

 private:
  static Status none() { return Status(Code::kUnsupported, "not of this engine"); }

  void move(const TransferRequest& request) {
    auto* target = reinterpret_cast<uint8_t*>(request.local_address);
    std::memcpy(target, reinterpret_cast<const void*>(request.remote_address), request.size);
    if (request.arrival == nullptr) ++guarded_count;
    const bool is_wrong_here = request.arrival != nullptr && wrong_count != 0;
    if (is_wrong_here) --wrong_count;
    if (is_wrong_here || is_owner_wrong) target[request.size / 2] ^= 1;
    if (request.arrival == nullptr || !has_sums) return;
    *request.arrival = {page_checksum(target, request.size), true};
  }

  const std::string name_ = "wire";
  std::vector<Priority> priorities_;  // Of the batches.
};

class PageMovers : public ::testing::Test {
 protected:
  PageMovers() : theirs_(bytes_of(1, kPoolSize)), ours_(kPoolSize) {}

  void start(uint64_t window_bytes = 16 * kMiB) {
    mover_ = std::make_unique<PageMover>(
        engine_,
        PageMover::Options{.address = "wire",
                           .remote_pool_address = reinterpret_cast<uint64_t>(theirs_.data()),
                           .pool = ours_.data(),
                           .open_timeout_ms = 1000,
                           .window_bytes = window_bytes,
                           .batch_bytes = 4 * kMiB},
        [this](const std::vector<PeerReader::Outcome>& outcomes) {
          const std::lock_guard lock(mutex_);
          for (const auto& outcome : outcomes) codes_[outcome.tag].push_back(outcome.code);
          changed_.notify_all();
        });
  }

  /// A page in up to so many pieces at either end, at places that no other page has.
  PeerReader::Page page_of(uint64_t size, size_t pieces_max) {
    PeerReader::Page page{next_tag_++, size, 0, cut(size, pieces_max), cut(size, pieces_max)};
    std::vector<uint8_t> bytes = gathered(theirs_, page.remote);
    page.checksum = page_checksum(bytes.data(), bytes.size());
    at_ += size + 64;
    EXPECT_LE(at_, kPoolSize);
    return page;
  }
  std::vector<Extent> cut(uint64_t size, size_t pieces_max) {
    std::vector<Extent> extents;
    for (uint64_t done = 0; done < size;) {
      const bool is_last = extents.size() + 1 == pieces_max;
      const uint64_t piece = is_last ? size - done : random_.between(1, size - done);
      extents.push_back({at_ + done, piece});
      done += piece;
    }
    std::reverse(extents.begin(), extents.end());  // So that places are not in order.
    return extents;
  }
  static std::vector<uint8_t> gathered(const std::vector<uint8_t>& pool,
                                       const std::vector<Extent>& extents) {
    std::vector<uint8_t> bytes;
    for (const Extent& extent : extents) {
      const auto begin = pool.begin() + static_cast<ptrdiff_t>(extent.offset);
      bytes.insert(bytes.end(), begin, begin + static_cast<ptrdiff_t>(extent.size));
    }
    return bytes;
  }

  void read(const std::vector<PeerReader::Page>& pages) {
    begin(pages, Priority::kUrgent);
    await(pages.size());
  }
  void begin(const std::vector<PeerReader::Page>& pages, Priority priority) {
    mover_->read(pages, priority, monotonic_ns() + 20'000'000'000);
  }
  /// Until so many pages were told of in all.
  void await(size_t count) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(
        changed_.wait_for(lock, std::chrono::seconds(20), [&] { return codes_.size() == count; }));
  }
  /// What was told of it, once.
  Code code_of(const PeerReader::Page& page) {
    const std::lock_guard lock(mutex_);
    EXPECT_EQ(codes_[page.tag].size(), 1U);
    return codes_[page.tag].at(0);
  }
  bool is_whole(const PeerReader::Page& page) const {
    return gathered(ours_, page.local) == gathered(theirs_, page.remote);
  }

  static constexpr uint64_t kPoolSize = 16 * kMiB;
  Random random_;
  std::vector<uint8_t> theirs_;
  std::vector<uint8_t> ours_;
  uint64_t at_ = 0;
  uint64_t next_tag_ = 0;
  WireEngine engine_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, std::vector<Code>> codes_;
  std::unique_ptr<PageMover> mover_;  // Last: its thread uses the others.
};

TEST_F(PageMovers, PagesInAnyPiecesArriveWholeWithSumsAndWithout) {
  engine_.has_sums = random_.one_in(2);
  start();
  std::vector<PeerReader::Page> pages;
  while (at_ < kPoolSize - 4 * kMiB) {
    pages.push_back(page_of(random_.size_up_to(3 * kMiB), random_.between(1, 5)));
  }
  read(pages);
  for (const PeerReader::Page& page : pages) {
    EXPECT_EQ(code_of(page), Code::kOk) << page.size;
    EXPECT_TRUE(is_whole(page)) << page.size;
  }
  EXPECT_EQ(engine_.guarded_count, 0U);
}

TEST_F(PageMovers, APageInOnePieceIsAskedForStripeByStripeAndHashedAsItComes) {
  start();
  const PeerReader::Page page = page_of(3 * kStripeSize + 1, 1);
  read({page});
  EXPECT_EQ(code_of(page), Code::kOk);
  EXPECT_EQ(engine_.batches, std::vector<size_t>{4});
}

TEST_F(PageMovers, WhatIsUrgentGoesPastABackgroundThatStalls) {
  start(2 * kMiB);
  engine_.holds_background = true;
  std::vector<PeerReader::Page> expected;
  for (int i = 0; i < 8; ++i) expected.push_back(page_of(kMiB, 2));
  const PeerReader::Page wanted = page_of(kMiB, 2);
  const PeerReader::Page wanted_too = page_of(kMiB, 2);
  begin(expected, Priority::kBackground);  // More than the window takes.
  begin({wanted}, Priority::kUrgent);
  await(1);
  begin({wanted_too}, Priority::kUrgent);
  await(2);
  EXPECT_EQ(code_of(wanted), Code::kOk);
  EXPECT_EQ(code_of(wanted_too), Code::kOk);
  engine_.holds_background = false;
  await(10);
  for (const PeerReader::Page& page : expected) EXPECT_TRUE(is_whole(page));
}

TEST_F(PageMovers, APageThatTheWireDamagedIsReadOnceMoreAndNobodyIsBlamed) {
  engine_.wrong_count = 1;
  engine_.has_sums = random_.one_in(2);
  start();
  const std::vector<PeerReader::Page> pages = {page_of(2 * kStripeSize, 1), page_of(100'000, 1)};
  read(pages);
  for (const PeerReader::Page& page : pages) {
    EXPECT_EQ(code_of(page), Code::kOk);
    EXPECT_TRUE(is_whole(page));
  }
  EXPECT_EQ(engine_.batches, (std::vector<size_t>{3, 2})) << "the one that was wrong, alone";
  EXPECT_EQ(engine_.guarded_count, 2U) << "the second time the wire's own checksums count";
}

TEST_F(PageMovers, APageThatIsWrongAtItsOwnerIsCorruptAfterTwoReads) {
  engine_.is_owner_wrong = true;
  engine_.has_sums = random_.one_in(2);
  start();
  const std::vector<PeerReader::Page> pages = {page_of(kMiB, 1), page_of(77, 3)};
  read(pages);
  for (const PeerReader::Page& page : pages) EXPECT_EQ(code_of(page), Code::kCorrupt);
  EXPECT_EQ(engine_.batches.size(), 2U);
}

}  // namespace
}  // namespace hicache
