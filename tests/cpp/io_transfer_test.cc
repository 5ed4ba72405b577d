// What the results of system calls mean, in orders that no real file gives on demand.
#include "io/io_transfer.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "io/mapped_memory.h"

namespace hicache {
namespace {

using Step = IoTransfer::Step;

class IoTransferTest : public ::testing::Test {
 protected:
  IoTransfer make(IoKind kind, std::vector<uint64_t> sizes) {
    IoRequest request{.kind = kind, .fd = 0, .offset = kSectorSize};
    for (const uint64_t size : sizes) {
      request.parts.push_back({memory_.address() + request.size, size});
      request.size += size;
    }
    return IoTransfer(std::move(request));
  }

  MappedMemory memory_ = MappedMemory::make(kMiB);
};

TEST_F(IoTransferTest, ContinuesBehindWhatWasTransferred) {
  IoTransfer transfer = make(IoKind::kRead, {kSectorSize, 2 * kSectorSize, kSectorSize});
  ASSERT_EQ(transfer.parts().size(), 3U);
  transfer.take(kSectorSize + 512);
  ASSERT_EQ(transfer.step(), Step::kRead);
  EXPECT_EQ(transfer.offset(), 2 * kSectorSize + 512);
  ASSERT_EQ(transfer.parts().size(), 2U);
  EXPECT_EQ(transfer.parts()[0].iov_base, memory_.address() + kSectorSize + 512);
  EXPECT_EQ(transfer.parts()[0].iov_len, 2 * kSectorSize - 512);
  transfer.take(3 * kSectorSize - 512);
  EXPECT_EQ(transfer.step(), Step::kDone);
  EXPECT_EQ(transfer.error(), 0);
}

TEST_F(IoTransferTest, FlushesOnceADurableWriteIsWhole) {
  IoTransfer transfer = make(IoKind::kWriteDurable, {2 * kSectorSize});
  transfer.take(kSectorSize);
  EXPECT_EQ(transfer.step(), Step::kWrite);
  transfer.take(kSectorSize);
  EXPECT_EQ(transfer.step(), Step::kFlush);
  transfer.take(-EINTR);
  EXPECT_EQ(transfer.step(), Step::kFlush);
  transfer.take(-EIO);
  EXPECT_EQ(transfer.step(), Step::kDone);
  EXPECT_EQ(transfer.error(), EIO);
}

TEST_F(IoTransferTest, RepeatsWhatTheKernelWantsRepeatedButNotForEver) {
  IoTransfer transfer = make(IoKind::kWrite, {2 * kSectorSize});
  for (const int error : {EINTR, EAGAIN, ECANCELED}) transfer.take(-error);
  EXPECT_EQ(transfer.parts()[0].iov_len, 2 * kSectorSize);
  transfer.take(kSectorSize);
  EXPECT_EQ(transfer.step(), Step::kWrite);
  int count = 0;
  for (; transfer.step() != Step::kDone && count < 1'000'000; ++count) transfer.take(-EAGAIN);
  EXPECT_GT(count, 100);
  EXPECT_EQ(transfer.step(), Step::kDone);
  EXPECT_EQ(transfer.error(), EAGAIN);
}

TEST_F(IoTransferTest, NoProgressAndAnEndInsideASectorAreErrors) {
  for (const int64_t result : {int64_t{0}, int64_t{100}, int64_t{1} << 20}) {
    IoTransfer transfer = make(IoKind::kRead, {2 * kSectorSize});
    transfer.take(result);
    EXPECT_EQ(transfer.step(), Step::kDone) << result;
    EXPECT_EQ(transfer.error(), EIO) << result;
  }
  IoTransfer transfer = make(IoKind::kWrite, {kSectorSize});
  transfer.take(0);
  EXPECT_EQ(transfer.error(), EIO);
}

TEST_F(IoTransferTest, RefusesRequestsThatContradictThemselves) {
  uint8_t* const at = memory_.address();
  const uint64_t sector = kSectorSize;
  const std::vector<std::pair<IoRequest, int>> cases = {
      {{IoKind::kRead, -1, 0, sector, {{at, sector}}}, EBADF},
      {{IoKind::kRead, 0, 512, sector, {{at, sector}}}, EINVAL},
      {{IoKind::kRead, 0, 0, 512, {{at, 512}}}, EINVAL},
      {{IoKind::kRead, 0, 0, sector, {{at + 512, sector}}}, EINVAL},
      {{IoKind::kWrite, 0, 0, sector, {{at, 2 * sector}}}, EINVAL},
      {{IoKind::kWrite, 0, 0, 2 * sector, {{at, sector}}}, EINVAL},
      {{IoKind::kWrite, 0, 0, sector, {{at, sector}, {at, 0}}}, EINVAL},
      {{IoKind::kWrite, 0, 0, sector, {}}, EINVAL},
      {{IoKind::kRead, 0, 0, 0, {}}, EINVAL},
      {{IoKind::kAllocate, 0, 0, 0, {}}, EINVAL},
      {{IoKind::kAllocate, 0, 0, sector, {{at, sector}}}, EINVAL},
      {{IoKind::kDiscard, 0, INT64_MAX - sector + 1, 2 * sector, {}}, EINVAL},
      {{IoKind::kDiscard, 0, 0, uint64_t{1} << 63, {}}, EINVAL},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    EXPECT_EQ(request_error(cases[i].first), cases[i].second) << i;
    const IoTransfer transfer(cases[i].first);
    EXPECT_EQ(transfer.step(), Step::kDone) << i;
    EXPECT_EQ(transfer.error(), cases[i].second) << i;
  }
  EXPECT_EQ(request_error({IoKind::kRead, 0, sector, sector, {{at, sector}}}), 0);
  EXPECT_EQ(request_error({IoKind::kAllocate, 0, sector, sector, {}}), 0);
}

}  // namespace
}  // namespace hicache
