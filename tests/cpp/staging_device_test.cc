// Writes that are copied to huge pages on their way to a disk.
#include <gtest/gtest.h>

#include <poll.h>
#include <unistd.h>

#include <map>
#include <set>

#include "base/huge_allocator.h"
#include "direct_file.h"
#include "io/event_fd.h"
#include "sample_file.h"
#include "support.h"
#include "transfer/checksum_copy.h"
#include "transfer/staging_device.h"

namespace hicache {
namespace {

using testing::Random;

constexpr uint64_t kBuffer = kHugePageSize;
constexpr uint64_t kPatienceMs = 60'000;

/// Keeps what it is given until the test lets it go, and then does it as another device would.
class HoldingDevice : public BlockDevice {
 public:
  struct Held {
    std::vector<IoRequest> requests;
    bool lets_go = false;
    EventFd event = EventFd::make();
  };

  explicit HoldingDevice(Held& held) : held_(held) {}

  bool submit(IoRequest request) override {
    held_.requests.push_back(std::move(request));
    return true;
  }
  size_t poll(std::span<IoCompletion> completions) override {
    size_t count = 0;
    while (held_.lets_go && count < completions.size() && !held_.requests.empty()) {
      const IoRequest request = held_.requests.front();
      held_.requests.erase(held_.requests.begin());
      const auto parts = static_cast<int>(request.parts.size());
      const auto offset = static_cast<off_t>(request.offset);
      const ssize_t size = pwritev(request.fd, request.parts.data(), parts, offset);
      completions[count++] = {request.tag, size == static_cast<ssize_t>(request.size) ? 0 : EIO, 0};
    }
    return count;
  }
  bool wait(Deadline) override { return held_.lets_go && !held_.requests.empty(); }
  int event_fd() const override { return held_.event.get(); }
  size_t in_flight() const override { return held_.requests.size(); }
  std::string_view engine_name() const override { return "holding"; }

 private:
  Held& held_;
};

/// Pages behind a header, each in memory of its own.
struct Group {
  Group(Random& random, int fd, uint64_t offset, const std::vector<uint64_t>& sizes) {
    request = {.kind = IoKind::kWrite, .fd = fd, .offset = offset, .size = 0};
    add(random, kSectorSize);
    for (const uint64_t size : sizes) {
      const uint64_t at = request.size;
      add(random, round_up(size, kSectorSize));
      request.checks.push_back({at, size, page_checksum(bytes.data() + at, size)});
    }
  }

  /// In as many parts as the random numbers say.
  void add(Random& random, uint64_t size) {
    for (uint64_t left = size; left != 0;) {
      const uint64_t sectors = random.between(1, left / kSectorSize);
      MappedMemory memory = MappedMemory::make(sectors * kSectorSize);
      const std::vector<uint8_t> some = testing::bytes_of(random.below(UINT32_MAX), memory.size());
      std::copy(some.begin(), some.end(), memory.address());
      bytes.insert(bytes.end(), some.begin(), some.end());
      request.parts.push_back({memory.address(), memory.size()});
      left -= memory.size();
      request.size += memory.size();
      memories.push_back(std::move(memory));
    }
  }

  IoRequest request;
  std::vector<uint8_t> bytes;  // What the request should write.
  std::vector<MappedMemory> memories;
};

std::vector<uint8_t> read_back(int fd, const IoRequest& request) {
  MappedMemory memory = MappedMemory::make(request.size);
  EXPECT_EQ(pread(fd, memory.address(), request.size, static_cast<off_t>(request.offset)),
            static_cast<ssize_t>(request.size));
  return {memory.address(), memory.address() + request.size};
}

/// Completions by tag, until so many have come; waits for the descriptor as an owner does.
std::map<uint64_t, IoCompletion> completions_of(BlockDevice& device, size_t count) {
  std::map<uint64_t, IoCompletion> found;
  const Deadline deadline = Deadline::after_ms(kPatienceMs);
  while (found.size() < count && !deadline.expired()) {
    pollfd event{device.event_fd(), POLLIN, 0};
    ::poll(&event, 1, deadline.remaining_ms());
    std::array<IoCompletion, 3> some;
    const size_t polled = device.poll(some);
    for (size_t i = 0; i < polled; ++i) {
      EXPECT_TRUE(found.emplace(some[i].tag, some[i]).second) << "completed twice";
    }
  }
  return found;
}

class StagingDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HICACHE_NEEDS_DIRECT_FILES();
    file_ = testing::make_direct_file();
    ASSERT_EQ(ftruncate(file_.get(), 512 * kMiB), 0);
  }
  static std::unique_ptr<BlockDevice> on_disk(uint32_t buffer_count) {
    auto below = BlockDevice::make({.engine = IoEngine::kAuto, .depth = 64});
    return StagingDevice::make({64, kBuffer, buffer_count}, std::move(below.value()));
  }

  Fd file_;
};

TEST_F(StagingDeviceTest, WritesWhatItWasGivenHoweverItLiesInMemory) {
  HICACHE_TRACE_SEED();
  Random random(80);
  for (const uint32_t buffer_count : {1U, 3U}) {
    const auto device = on_disk(buffer_count);
    std::vector<Group> groups;
    uint64_t offset = 0;
    for (uint64_t tag = 0; tag < 40; ++tag) {
      std::vector<uint64_t> sizes;
      // Some fit no buffer, some hold nothing to check.
      for (uint64_t i = random.below(6); i != 0; --i) sizes.push_back(random.size_up_to(900'000));
      groups.emplace_back(random, file_.get(), offset, sizes);
      groups.back().request.tag = tag;
      if (random.one_in(4)) groups.back().request.kind = IoKind::kWriteDurable;
      offset += groups.back().request.size;
      ASSERT_TRUE(device->submit(groups.back().request));
    }
    EXPECT_EQ(device->in_flight(), 40U);
    const auto completions = completions_of(*device, 40);
    ASSERT_EQ(completions.size(), 40U);
    EXPECT_EQ(device->in_flight(), 0U);
    for (const Group& group : groups) {
      EXPECT_EQ(completions.at(group.request.tag).error, 0);
      EXPECT_TRUE(read_back(file_.get(), group.request) == group.bytes) << group.request.tag;
    }
  }
}

TEST_F(StagingDeviceTest, DamagedBytesAreNamedAndNotWritten) {
  HICACHE_TRACE_SEED();
  Random random(81);
  const auto device = on_disk(2);
  for (uint64_t round = 0; round < 60; ++round) {
    std::vector<uint64_t> sizes;
    for (uint64_t i = random.between(1, 8); i != 0; --i)
      sizes.push_back(random.size_up_to(200'000));
    Group group(random, file_.get(), round * kBuffer, sizes);
    uint32_t expected = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (!random.one_in(3)) continue;
      expected |= uint32_t{1} << i;
      uint64_t at = group.request.checks[i].offset + random.below(sizes[i]);
      auto part = group.request.parts.begin();
      for (; at >= part->iov_len; ++part) at -= part->iov_len;
      static_cast<uint8_t*>(part->iov_base)[at] ^= 1 << random.below(8);
    }
    ASSERT_TRUE(device->submit(group.request));
    const auto completions = completions_of(*device, 1);
    ASSERT_EQ(completions.size(), 1U);
    EXPECT_EQ(completions.at(0).damaged, expected);
    EXPECT_EQ(completions.at(0).error, expected == 0 ? 0 : EBADMSG);
    const auto now = read_back(file_.get(), group.request);
    EXPECT_TRUE(now == (expected == 0 ? group.bytes : std::vector<uint8_t>(now.size())));
  }
}

TEST_F(StagingDeviceTest, WithoutAFreeBufferWritesWaitAndOthersDoNot) {
  HICACHE_TRACE_SEED();
  Random random(82);
  std::vector<Group> groups;
  HoldingDevice::Held held;
  const auto device = StagingDevice::make({16, kBuffer, 2}, std::make_unique<HoldingDevice>(held));
  for (uint64_t tag = 0; tag < 5; ++tag) {
    groups.emplace_back(random, file_.get(), tag * kMiB, std::vector<uint64_t>{300'000, 5});
    groups.back().request.tag = tag;
    ASSERT_TRUE(device->submit(groups.back().request));
  }
  const auto passed = [&] {
    std::array<IoCompletion, 1> none;
    EXPECT_EQ(device->poll(none), 0U);
    return held.requests.size();
  };
  EXPECT_TRUE(testing::eventually(kPatienceMs, [&] { return passed() == 2; }));
  groups.emplace_back(random, file_.get(), 5 * kMiB, std::vector<uint64_t>{});
  groups.back().request.tag = 5;
  ASSERT_TRUE(device->submit(groups.back().request));
  EXPECT_EQ(passed(), 3U) << "what is not copied needs no buffer";
  EXPECT_EQ(device->in_flight(), 6U);
  held.lets_go = true;
  std::set<uint64_t> done;
  EXPECT_TRUE(testing::eventually(kPatienceMs, [&] {
    std::array<IoCompletion, 8> some;
    for (size_t count = device->poll(some); count != 0; --count) done.insert(some[count - 1].tag);
    return done.size() == 6;
  }));
  for (const Group& group : groups) {
    EXPECT_TRUE(read_back(file_.get(), group.request) == group.bytes) << group.request.tag;
  }
}

TEST_F(StagingDeviceTest, TakesNoMoreThanItsDepth) {
  HICACHE_TRACE_SEED();
  Random random(83);
  const Group group(random, file_.get(), 0, {1000});
  HoldingDevice::Held held;
  const auto device = StagingDevice::make({3, kBuffer, 1}, std::make_unique<HoldingDevice>(held));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(device->submit(group.request));
  EXPECT_FALSE(device->submit(group.request));
}

TEST_F(StagingDeviceTest, CanGoAtAnyTime) {
  HICACHE_TRACE_SEED();
  Random random(84);
  for (int round = 0; round < 30; ++round) {
    std::vector<Group> groups;
    const auto device = on_disk(2);
    for (uint64_t i = random.below(8); i != 0; --i) {
      groups.emplace_back(random, file_.get(), i * kBuffer, std::vector<uint64_t>{1'500'000});
      ASSERT_TRUE(device->submit(groups.back().request));
    }
    if (random.one_in(2)) device->wait(Deadline::after_ms(random.below(3)));
  }
}

TEST_F(StagingDeviceTest, WaitsUntilSomethingIsDone) {
  HICACHE_TRACE_SEED();
  Random random(85);
  const auto device = on_disk(1);
  EXPECT_FALSE(device->wait(Deadline::after_ms(kPatienceMs))) << "nothing is in flight";
  const Group group(random, file_.get(), 0, {1'000'000});
  ASSERT_TRUE(device->submit(group.request));
  EXPECT_TRUE(device->wait(Deadline::after_ms(kPatienceMs)));
  std::array<IoCompletion, 2> some;
  EXPECT_EQ(device->poll(some), 1U);
}

}  // namespace
}  // namespace hicache
