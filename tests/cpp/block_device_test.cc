// One contract, both engines, real files: what block_device.h promises.
#include "io/block_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <map>
#include <thread>

#include "direct_file.h"
#include "io/mapped_memory.h"
#include "support.h"

namespace hicache {
namespace {

using testing::eventually;
using testing::make_direct_file;
using testing::Random;

constexpr uint64_t kLongMs = 20'000;

size_t entry_count(const char* folder) {
  size_t count = 0;
  for (auto it = std::filesystem::directory_iterator(folder);
       it != std::filesystem::directory_iterator(); ++it) {
    ++count;
  }
  return count;
}

size_t thread_count() {
  std::thread([] {}).join();  // A sanitizer's own thread begins with the first one.
  return entry_count("/proc/self/task");
}

bool is_readable(int fd) {
  pollfd waited{fd, POLLIN, 0};
  return ::poll(&waited, 1, 0) == 1;
}

/// A transfer that the kernel does not complete before end(): through the ring, a read of a pipe
/// that stays empty; of threads, one into (or out of) memory whose OS pages never come.
class Hang {
 public:
  explicit Hang(IoEngine engine) {
    if (engine == IoEngine::kUring) {
      int ends[2];
      EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
      file_ = Fd(ends[0]);
      cause_ = Fd(ends[1]);
      return;
    }
    file_ = make_direct_file();
    EXPECT_EQ(ftruncate(file_.get(), kMiB), 0);
    cause_ = Fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC)));
    uffdio_api api{UFFD_API, 0, 0};
    uffdio_register range{{reinterpret_cast<uint64_t>(memory_.address()), memory_.size()},
                          UFFDIO_REGISTER_MODE_MISSING,
                          0};
    if (cause_.valid() && (ioctl(cause_.get(), UFFDIO_API, &api) != 0 ||
                           ioctl(cause_.get(), UFFDIO_REGISTER, &range) != 0)) {
      cause_.reset();
    }
  }

  /// False: the system does not let us.
  bool valid() const { return cause_.valid(); }
  const Fd& file() const { return file_; }
  IoRequest request(uint64_t tag, IoKind kind = IoKind::kRead, uint64_t sector = 0) {
    const iovec part{memory_.address() + sector * kSectorSize, kSectorSize};
    return {kind, file_.get(), sector * kSectorSize, kSectorSize, {part}, tag};
  }
  void end() { cause_.reset(); }

 private:
  MappedMemory memory_ = MappedMemory::make(kMiB);
  Fd file_;
  Fd cause_;
};

class BlockDeviceTest : public ::testing::TestWithParam<IoEngine> {
 protected:
  void SetUp() override {
    if (GetParam() != IoEngine::kUring) return;
    // A large one: rings count towards the limit on locked memory, and go in the background.
    const auto made = BlockDevice::make({GetParam(), 1024, {}});
    if (!made.ok()) GTEST_SKIP() << made.status().message();
  }

  std::unique_ptr<BlockDevice> make(uint32_t depth, std::span<uint8_t> memory = {}) {
    auto made = BlockDevice::make({GetParam(), depth, memory});
    EXPECT_TRUE(made.ok()) << made.status().message();
    return std::move(made.value());
  }

  /// The next completion; its tag is UINT64_MAX if none came.
  static IoCompletion next(BlockDevice& device) {
    IoCompletion completion{UINT64_MAX, 0, 0};
    EXPECT_TRUE(device.wait(Deadline::after_ms(kLongMs)));
    EXPECT_EQ(device.poll(std::span(&completion, 1)), 1U);
    return completion;
  }
  static int error_of(BlockDevice& device, IoRequest request) {
    request.tag = 77;
    EXPECT_TRUE(device.submit(std::move(request)));
    const IoCompletion completion = next(device);
    EXPECT_EQ(completion.tag, 77U);
    EXPECT_EQ(device.in_flight(), 0U);
    return completion.error;
  }
  IoRequest request(IoKind kind, int fd, uint64_t offset, uint64_t size) {
    IoRequest made{kind, fd, offset, size};
    if (kind != IoKind::kAllocate && kind != IoKind::kDiscard) {
      made.parts = {{memory_.address(), size}};
    }
    return made;
  }
  void fill(uint64_t n, uint64_t size) {
    std::ranges::copy(testing::bytes_of(n, size), memory_.address());
  }
  bool holds(uint64_t n, uint64_t size) {
    return std::ranges::equal(testing::bytes_of(n, size), memory_.span().first(size));
  }

  MappedMemory memory_ = MappedMemory::make(4 * kMiB);
};

INSTANTIATE_TEST_SUITE_P(Engines, BlockDeviceTest,
                         ::testing::Values(IoEngine::kUring, IoEngine::kThreads),
                         [](const auto& test) {
                           return test.param == IoEngine::kUring ? "Uring" : "Threads";
                         });

/// Random requests of all shapes, many at a time, none overlapping another in flight; what a read
/// brings is compared with a plain copy of the file.
class Traffic {
 public:
  static constexpr uint64_t kSectors = 512;
  static constexpr uint64_t kSectorsMax = 24;

  explicit Traffic(uint32_t depth) : depth_(depth) {
    EXPECT_EQ(ftruncate(file_.get(), kSectors * kSectorSize), 0);
  }

  std::span<uint8_t> memory() { return memory_.span().first(depth_ * kStride / 2); }

  void run(BlockDevice& device, size_t count) {
    for (size_t done = 0; done < count;) {
      while (pending_.size() < depth_ && submit_one(device)) {
      }
      EXPECT_EQ(device.in_flight(), pending_.size());
      ASSERT_TRUE(device.wait(Deadline::after_ms(kLongMs)));
      IoCompletion completions[5];
      const size_t polled = device.poll(completions);
      for (size_t i = 0; i < polled; ++i) ASSERT_NO_FATAL_FAILURE(complete(completions[i]));
      done += polled;
    }
  }

 private:
  static constexpr uint64_t kStride = (kSectorsMax + 1) * kSectorSize;

  struct Pending {
    IoRequest request;
    std::vector<uint8_t> expected;
  };

  bool submit_one(BlockDevice& device) {
    const uint64_t count = random_.size_up_to(kSectorsMax);
    const uint64_t first = random_.below(kSectors - count + 1);
    const auto busy = busy_.begin() + static_cast<ptrdiff_t>(first);
    if (std::find(busy, busy + static_cast<ptrdiff_t>(count), true) !=
        busy + static_cast<ptrdiff_t>(count)) {
      return random_.below(8) != 0;
    }
    const uint64_t offset = first * kSectorSize;
    const uint64_t size = count * kSectorSize;
    const std::vector<IoKind> kinds = {IoKind::kRead, IoKind::kRead, IoKind::kWrite, IoKind::kWrite,
                                       IoKind::kWriteDurable};
    Pending pending{{random_.pick(kinds), file_.get(), offset, size}, {}};
    pending.request.tag = free_slot();
    cut_into_parts(pending.request);
    if (pending.request.kind != IoKind::kRead) {
      for (const iovec& part : pending.request.parts) {
        random_.fill({static_cast<uint8_t*>(part.iov_base), part.iov_len});
      }
      copy_out(pending.request, std::span(oracle_).subspan(offset, size));
    }
    pending.expected.assign(oracle_.begin() + static_cast<ptrdiff_t>(offset),
                            oracle_.begin() + static_cast<ptrdiff_t>(offset + size));
    EXPECT_TRUE(device.submit(pending.request));
    std::fill_n(busy, count, true);
    pending_[pending.request.tag] = std::move(pending);
    return true;
  }

  uint64_t free_slot() const {
    uint64_t slot = 0;
    while (pending_.contains(slot)) ++slot;
    return slot;
  }

  void cut_into_parts(IoRequest& request) {
    uint8_t* at = memory_.address() + request.tag * kStride;
    for (uint64_t left = request.size; left != 0;) {
      const uint64_t size =
          random_.one_in(2) ? left : random_.between(1, left / kSectorSize) * kSectorSize;
      request.parts.insert(request.parts.begin(), {at, size});  // Descending addresses.
      at += size;
      left -= size;
    }
  }

  static void copy_out(const IoRequest& request, std::span<uint8_t> into) {
    size_t at = 0;
    for (const iovec& part : request.parts) {
      std::memcpy(into.data() + at, part.iov_base, part.iov_len);
      at += part.iov_len;
    }
  }

  void complete(const IoCompletion& completion) {
    ASSERT_EQ(pending_.count(completion.tag), 1U) << "completed twice, or never submitted";
    EXPECT_EQ(completion.error, 0) << std::strerror(completion.error);
    const Pending& pending = pending_[completion.tag];
    std::vector<uint8_t> bytes(pending.request.size);
    copy_out(pending.request, bytes);
    EXPECT_EQ(bytes, pending.expected);
    std::fill_n(busy_.begin() + static_cast<ptrdiff_t>(pending.request.offset / kSectorSize),
                pending.request.size / kSectorSize, false);
    pending_.erase(completion.tag);
  }

  const uint32_t depth_;
  Random random_;
  Fd file_ = make_direct_file();
  MappedMemory memory_ = MappedMemory::make(depth_ * kStride);
  std::vector<uint8_t> oracle_ = std::vector<uint8_t>(kSectors * kSectorSize);
  std::vector<bool> busy_ = std::vector<bool>(kSectors);
  std::map<uint64_t, Pending> pending_;
};

TEST_P(BlockDeviceTest, ManyAtOnceReadAndWriteWhatAPlainCopyHolds) {
  HICACHE_TRACE_SEED();
  for (const uint32_t depth : {1, 7, 64}) {
    Traffic traffic(depth);
    traffic.run(*make(depth, traffic.memory()), 600);
    ASSERT_FALSE(HasFailure()) << "depth " << depth;
  }
}

TEST_P(BlockDeviceTest, MovesMorePartsThanTheKernelTakesAtOnce) {
  const Fd file = make_direct_file();
  const auto device = make(2);
  constexpr uint64_t kParts = 1000 * 5 / 2;
  MappedMemory memory = MappedMemory::make(2 * kParts * kSectorSize);
  const auto bytes = testing::bytes_of(1, kParts * kSectorSize);
  IoRequest write{IoKind::kWrite, file.get(), 0, bytes.size()};
  for (uint64_t i = 0; i < kParts; ++i) {
    uint8_t* const at = memory.address() + (kParts - 1 - i) * 2 * kSectorSize;
    std::memcpy(at, bytes.data() + i * kSectorSize, kSectorSize);
    write.parts.push_back({at, kSectorSize});
  }
  EXPECT_EQ(error_of(*device, write), 0);
  std::memset(memory.address(), 0, memory.size());
  IoRequest read{IoKind::kRead, file.get(), 0, bytes.size(), {{memory.address(), bytes.size()}}};
  EXPECT_EQ(error_of(*device, read), 0);
  EXPECT_TRUE(std::ranges::equal(bytes, memory.span().first(bytes.size())));
}

TEST_P(BlockDeviceTest, MovesMoreBytesThanTheKernelTakesAtOnce) {
  const Fd file = make_direct_file();
  const auto device = make(1);
  constexpr uint64_t kCount = 600;  // 2.3 GiB, into the same 4 MiB again and again: a hole, then...
  const uint64_t size = kCount * memory_.size();
  ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>(size)), 0);
  fill(3, memory_.size());  // ... these, behind 2 GiB.
  const uint64_t last = size - memory_.size();
  EXPECT_EQ(error_of(*device, request(IoKind::kWrite, file.get(), last, memory_.size())), 0);
  std::memset(memory_.address(), 1, memory_.size());
  IoRequest read{IoKind::kRead, file.get(), 0, size};
  read.parts.assign(kCount, {memory_.address(), memory_.size()});
  EXPECT_EQ(error_of(*device, std::move(read)), 0);
  EXPECT_TRUE(holds(3, memory_.size()));
}

TEST_P(BlockDeviceTest, TakesNoMoreThanDepthUntilCompletionsArePolled) {
  const Fd file = make_direct_file();
  const auto device = make(3);
  const auto write = [&](uint64_t tag) {
    IoRequest made = request(IoKind::kWrite, file.get(), tag * kSectorSize, kSectorSize);
    made.tag = tag;
    return device->submit(std::move(made));
  };
  for (uint64_t tag = 0; tag < 3; ++tag) EXPECT_TRUE(write(tag));
  EXPECT_FALSE(write(3));
  // Done or not, they count until they are polled.
  ASSERT_TRUE(eventually(kLongMs, [&] {
    struct stat stat{};
    return fstat(file.get(), &stat) == 0 && stat.st_size == 3 * kSectorSize;
  }));
  EXPECT_FALSE(write(3));
  EXPECT_EQ(device->in_flight(), 3U);
  next(*device);
  EXPECT_EQ(device->in_flight(), 2U);
  EXPECT_TRUE(write(3));
  EXPECT_FALSE(write(4));
  std::vector<uint64_t> tags;
  for (int i = 0; i < 3; ++i) tags.push_back(next(*device).tag);
  EXPECT_TRUE(std::ranges::count(tags, 3) == 1);
  EXPECT_EQ(device->in_flight(), 0U);
}

TEST_P(BlockDeviceTest, EventFdIsReadableWhileThereIsSomethingToPoll) {
  const Fd file = make_direct_file();
  const auto device = make(4);
  EXPECT_FALSE(is_readable(device->event_fd()));
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(device->submit(request(IoKind::kWrite, file.get(), 0, kSectorSize)));
  }
  EXPECT_TRUE(device->submit(request(IoKind::kWrite, file.get(), 1, kSectorSize)));  // Misaligned.
  for (size_t polled = 0; polled < 4; ++polled) {
    // Nothing but the descriptor is looked at, and one at a time is taken.
    pollfd waited{device->event_fd(), POLLIN, 0};
    ASSERT_EQ(::poll(&waited, 1, kLongMs), 1);
    IoCompletion completion{};
    while (device->poll(std::span(&completion, 1)) == 0) {
      ASSERT_EQ(::poll(&waited, 1, kLongMs), 1);
    }
  }
  IoCompletion completion{};
  EXPECT_EQ(device->poll(std::span(&completion, 1)), 0U);
  EXPECT_FALSE(is_readable(device->event_fd()));
  // wait() takes nothing away from those who look at the descriptor.
  EXPECT_TRUE(device->submit(request(IoKind::kWrite, file.get(), 0, kSectorSize)));
  EXPECT_TRUE(device->wait(Deadline::after_ms(kLongMs)));
  EXPECT_TRUE(device->wait(Deadline::after_ms(0)));
  EXPECT_TRUE(is_readable(device->event_fd()));
}

TEST_P(BlockDeviceTest, WaitEndsAtOnceWhenNothingIsInFlight) {
  const auto device = make(1);
  EXPECT_EQ(device->engine_name(), GetParam() == IoEngine::kUring ? "io_uring" : "threads");
  EXPECT_FALSE(device->wait(Deadline::after_ms(1'000'000)));
}

TEST_P(BlockDeviceTest, CompletionsTellTagAndDuration) {
  const Fd file = make_direct_file();
  const auto device = make(1);
  const uint64_t before = monotonic_ns();
  IoRequest write = request(IoKind::kWriteDurable, file.get(), 0, kMiB);
  write.tag = UINT64_MAX - 1;
  ASSERT_TRUE(device->submit(std::move(write)));
  const IoCompletion completion = next(*device);
  EXPECT_EQ(completion.tag, UINT64_MAX - 1);
  EXPECT_GT(completion.duration_ns, 0U);
  EXPECT_LE(completion.duration_ns, monotonic_ns() - before);
}

TEST_P(BlockDeviceTest, AllocatedSpaceIsSetAsideAndDiscardedSpaceGivenBack) {
  const Fd file = make_direct_file();
  const auto device = make(2);
  const auto stat_of = [&] {
    struct stat stat{};
    EXPECT_EQ(fstat(file.get(), &stat), 0);
    return stat;
  };
  ASSERT_EQ(error_of(*device, request(IoKind::kAllocate, file.get(), kMiB, 2 * kMiB)), 0);
  EXPECT_EQ(stat_of().st_size, 3 * kMiB);
  EXPECT_GE(stat_of().st_blocks * 512, 2 * kMiB);
  fill(5, kMiB);
  ASSERT_EQ(error_of(*device, request(IoKind::kWrite, file.get(), 2 * kMiB, kMiB)), 0);
  // What is there stays, and an end that lies further on too.
  ASSERT_EQ(error_of(*device, request(IoKind::kAllocate, file.get(), kMiB, 2 * kMiB)), 0);
  ASSERT_EQ(error_of(*device, request(IoKind::kRead, file.get(), 2 * kMiB, kMiB)), 0);
  EXPECT_TRUE(holds(5, kMiB));
  ASSERT_EQ(error_of(*device, request(IoKind::kDiscard, file.get(), kMiB, 2 * kMiB)), 0);
  EXPECT_EQ(stat_of().st_size, 3 * kMiB);
  EXPECT_LT(stat_of().st_blocks * 512, kMiB);
  ASSERT_EQ(error_of(*device, request(IoKind::kRead, file.get(), 2 * kMiB, kMiB)), 0);
  EXPECT_TRUE(std::ranges::all_of(memory_.span().first(kMiB), [](uint8_t b) { return b == 0; }));
}

// ---------------------------------------------------------------- errors

TEST_P(BlockDeviceTest, BadDescriptorsAreEbadf) {
  const auto device = make(2);
  const Fd file = make_direct_file();
  const Fd readable(open(("/proc/self/fd/" + std::to_string(file.get())).c_str(),
                         O_RDONLY | O_DIRECT | O_CLOEXEC));
  for (const int fd : {-1, 1'000'000}) {
    for (const IoKind kind : {IoKind::kRead, IoKind::kWriteDurable, IoKind::kAllocate}) {
      EXPECT_EQ(error_of(*device, request(kind, fd, 0, kSectorSize)), EBADF) << fd;
    }
  }
  EXPECT_EQ(error_of(*device, request(IoKind::kWrite, readable.get(), 0, kSectorSize)), EBADF);
  EXPECT_EQ(error_of(*device, request(IoKind::kAllocate, readable.get(), 0, kSectorSize)), EBADF);
}

TEST_P(BlockDeviceTest, MisalignedRequestsAreEinval) {
  const auto device = make(2);
  const Fd file = make_direct_file();
  for (const IoKind kind : {IoKind::kRead, IoKind::kWrite, IoKind::kAllocate, IoKind::kDiscard}) {
    EXPECT_EQ(error_of(*device, request(kind, file.get(), 512, kSectorSize)), EINVAL);
    EXPECT_EQ(error_of(*device, request(kind, file.get(), 0, kSectorSize + 512)), EINVAL);
  }
  IoRequest read = request(IoKind::kRead, file.get(), 0, kSectorSize);
  read.parts[0].iov_base = memory_.address() + 1;
  EXPECT_EQ(error_of(*device, read), EINVAL);
}

TEST_P(BlockDeviceTest, ReadsPastTheEndOfTheFileAreEio) {
  const auto device = make(2);
  const Fd file = make_direct_file();
  for (const uint64_t size : {uint64_t{0}, 2 * kSectorSize, 2 * kSectorSize + 512,
                              2 * kSectorSize + 100, 3 * kSectorSize - 1}) {
    ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>(size)), 0);
    EXPECT_EQ(error_of(*device, request(IoKind::kRead, file.get(), 0, 3 * kSectorSize)), EIO);
    EXPECT_EQ(error_of(*device, request(IoKind::kRead, file.get(), kMiB, kSectorSize)), EIO);
    if (size == 0) continue;
    EXPECT_EQ(error_of(*device, request(IoKind::kRead, file.get(), kSectorSize, kSectorSize)), 0);
  }
}

TEST_P(BlockDeviceTest, AWriteThatIsCutShortGoesOnAndTellsWhatStoppedIt) {
  const Fd file = make_direct_file();
  const auto device = make(2);
  fill(9, kMiB);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto old_action = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{kMiB / 2, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const int error = error_of(*device, request(IoKind::kWrite, file.get(), 0, kMiB));
  const int allocate_error = error_of(*device, request(IoKind::kAllocate, file.get(), 0, kMiB));
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_action);
  EXPECT_EQ(error, EFBIG);
  EXPECT_EQ(allocate_error, EFBIG);
  ASSERT_EQ(error_of(*device, request(IoKind::kRead, file.get(), 0, kMiB / 2)), 0);
  auto expected = testing::bytes_of(9, kMiB);
  expected.resize(kMiB / 2);
  EXPECT_TRUE(std::ranges::equal(memory_.span().first(kMiB / 2), expected));
}

TEST_P(BlockDeviceTest, AFullDiskIsEnospc) {
  const testing::PrivateMount small("tmpfs", 0, "size=1m");
  if (!small.valid()) GTEST_SKIP() << "mounting a small file system: " << std::strerror(errno);
  const Fd file(open((small.path() + "/file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_TRUE(file.valid());
  const auto device = make(2);
  EXPECT_EQ(error_of(*device, request(IoKind::kAllocate, file.get(), 0, 2 * kMiB)), ENOSPC);
  EXPECT_EQ(error_of(*device, request(IoKind::kWrite, file.get(), 0, 2 * kMiB)), ENOSPC);
}

// ---------------------------------------------------------------- what never completes

TEST_P(BlockDeviceTest, ARequestThatHangsHoldsUpNeitherOthersNorTheEnd) {
  const size_t descriptors = entry_count("/proc/self/fd");
  const size_t threads = thread_count();
  {
    Hang hang(GetParam());
    if (!hang.valid()) GTEST_SKIP() << "userfaultfd: " << std::strerror(errno);
    const Fd file = make_direct_file();
    auto device = make(3);
    ASSERT_TRUE(device->submit(hang.request(1)));
    ASSERT_TRUE(device->submit(request(IoKind::kWrite, file.get(), 0, kMiB)));
    EXPECT_EQ(next(*device).error, 0);
    EXPECT_EQ(device->in_flight(), 1U);
    const uint64_t waited =
        testing::duration_ms([&] { EXPECT_FALSE(device->wait(Deadline::after_ms(50))); });
    EXPECT_GE(waited, 50U);
    EXPECT_EQ(device->in_flight(), 1U);
    EXPECT_LT(testing::duration_ms([&] { device.reset(); }), kLongMs / 4);
    hang.end();
  }
  // Threads of devices before this one may have ended since; the kernel's own for a ring linger.
  const auto is_clean = [&] {
    return entry_count("/proc/self/fd") <= descriptors &&
           (GetParam() == IoEngine::kUring || thread_count() <= threads);
  };
  EXPECT_TRUE(eventually(kLongMs, is_clean))
      << entry_count("/proc/self/fd") << " descriptors, before " << descriptors;
}

TEST_P(BlockDeviceTest, ARequestThatComesToLifeCompletesOnce) {
  Hang hang(GetParam());
  if (!hang.valid()) GTEST_SKIP() << "userfaultfd: " << std::strerror(errno);
  const auto device = make(1);
  ASSERT_TRUE(device->submit(hang.request(5)));
  EXPECT_FALSE(device->wait(Deadline::after_ms(1)));
  EXPECT_FALSE(device->submit(hang.request(6)));
  hang.end();
  const IoCompletion completion = next(*device);
  EXPECT_EQ(completion.tag, 5U);
  EXPECT_EQ(completion.error, GetParam() == IoEngine::kUring ? EIO : 0);
  EXPECT_FALSE(device->wait(Deadline::after_ms(1)));
}

TEST(BlockDeviceThreads, WhatWasNotBegunWhenTheDeviceWentIsNeverDone) {
  const size_t threads = thread_count();
  Hang hang(IoEngine::kThreads);
  if (!hang.valid()) GTEST_SKIP() << "userfaultfd: " << std::strerror(errno);
  constexpr uint32_t kStuck = 32;  // As many as there are threads.
  MappedMemory memory = MappedMemory::make(kSectorSize);
  std::memset(memory.address(), 1, kSectorSize);
  const Fd file = make_direct_file();
  auto made = BlockDevice::make({IoEngine::kThreads, kStuck + 8, {}});
  ASSERT_TRUE(made.ok());
  auto device = std::move(made.value());
  for (uint32_t i = 0; i < kStuck; ++i) {
    ASSERT_TRUE(device->submit(hang.request(i, IoKind::kWrite, i)));
  }
  for (uint32_t i = 0; i < 8; ++i) {
    ASSERT_TRUE(device->submit(
        {IoKind::kWrite, file.get(), 0, kSectorSize, {{memory.address(), kSectorSize}}}));
  }
  EXPECT_FALSE(device->wait(Deadline::after_ms(20)));
  device.reset();
  hang.end();
  EXPECT_TRUE(eventually(kLongMs, [&] { return thread_count() <= threads; }));
  struct stat stat{};
  EXPECT_EQ(fstat(file.get(), &stat), 0);
  EXPECT_EQ(stat.st_size, 0);
}

// ---------------------------------------------------------------- the choice

/// What a container's policy does: the calling thread may no longer make this system call.
void forbid(long number) {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(number), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter{std::size(program), program};
  ASSERT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), 0) << std::strerror(errno);
}

TEST(BlockDeviceChoice, AutoTakesThreadsWhereAPolicyForbidsIoUring) {
  for (const long number : {SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register}) {
    std::thread([number] {
      forbid(number);
      const auto ring = BlockDevice::make({IoEngine::kUring, 4, {}});
      ASSERT_FALSE(ring.ok());
      EXPECT_EQ(ring.status().code(), Code::kUnsupported);
      EXPECT_NE(ring.status().message().find("threads"), std::string::npos)
          << ring.status().message();
      const auto automatic = BlockDevice::make({IoEngine::kAuto, 4, {}});
      ASSERT_TRUE(automatic.ok());
      EXPECT_EQ(automatic.value()->engine_name(), "threads");
    }).join();
  }
}

TEST(BlockDeviceChoice, AutoTakesIoUringWhereItIsOffered) {
  const auto automatic = BlockDevice::make({IoEngine::kAuto, 64, {}});
  ASSERT_TRUE(automatic.ok());
  if (automatic.value()->engine_name() == "io_uring") return;
  const auto ring = BlockDevice::make({IoEngine::kUring, 64, {}});
  ASSERT_FALSE(ring.ok());
  GTEST_SKIP() << ring.status().message();
}

}  // namespace
}  // namespace hicache
