// Copies of GPU memory alone, over a fake driver; and how memory of a GPU is told apart.
#include "transfer/device_staging.h"

#include <atomic>

#include "fake_gpu.h"
#include "transfer/memory_place.h"
#include "transfer/own_memory.h"

namespace hicache::testing {
namespace {

using Way = FakeGpu::Way;

TEST(MemoryPlace, IsTheCpusWhereNobodyUsesCuda) {
  const std::vector<uint8_t> bytes(100);
  const auto place = place_of(reinterpret_cast<uint64_t>(bytes.data()), bytes.size());
  ASSERT_TRUE(place.ok());
  EXPECT_FALSE(place.value().is_on_device());
  EXPECT_FALSE(place.value().is_pinned);
}

TEST(MemoryPlace, IsWhatTheDriverSays) {
  FakeGpu gpu;
  const uint64_t device = gpu.allocate(8192, 3);
  EXPECT_EQ(place_of(device + 100, 1000).value().device, 3);
  const std::vector<uint8_t> pinned(1000);
  gpu.pin(pinned.data(), pinned.size());
  const auto begin = reinterpret_cast<uint64_t>(pinned.data());
  EXPECT_TRUE(place_of(begin, 1000).value().is_pinned);
  EXPECT_FALSE(place_of(begin, 1001).value().is_pinned) << "its last byte is not";
  EXPECT_EQ(place_of(device + 8000, 8192).status().code(), Code::kInvalidArgument);
}

TEST(MemoryPlace, OfRegisteredMemoryMustNotContradictTheDriver) {
  OwnMemory memory(1, {});
  std::vector<uint8_t> host(4096);
  const auto on_host = reinterpret_cast<uint64_t>(host.data());
  const Status none = memory.add(on_host, host.size(), "cuda:0", true);
  EXPECT_EQ(none.code(), Code::kInvalidArgument);
  EXPECT_NE(none.message().find("no CUDA driver"), std::string::npos) << none.message();

  FakeGpu gpu;
  const uint64_t device = gpu.allocate(4096, 1);
  for (const char* wrong : {"cuda:0", "cpu:0"}) {
    const Status status = memory.add(device, 4096, wrong, true);
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << wrong;
    EXPECT_NE(status.message().find("it is cuda:1"), std::string::npos) << status.message();
  }
  EXPECT_EQ(memory.add(on_host, host.size(), "cuda:1", true).code(), Code::kInvalidArgument);
  ASSERT_TRUE(memory.add(device, 4096, "*", true).ok());
  ASSERT_TRUE(memory.add(on_host, host.size(), "cpu:0", true).ok());
  for (const BufferDescriptor& buffer : memory.describe("").buffers) {
    const bool is_device = buffer.address == device;
    EXPECT_EQ(buffer.kind, is_device ? MemoryKind::kCuda : MemoryKind::kHost);
    EXPECT_EQ(buffer.location, is_device ? "cuda:1" : "cpu:0");
  }
}

TEST(DeviceStaging, MovesAnySizeBetweenAllKindsOfMemory) {
  HICACHE_TRACE_SEED();
  Random random;
  FakeGpu gpu;
  DeviceStaging staging("test-gpu");
  constexpr uint64_t kSize = 3 * kMiB;
  struct Place {
    uint64_t address;
    bool is_device;
  };
  std::vector<uint8_t> pageable[2] = {bytes_of(1, kSize), bytes_of(2, kSize)};
  std::vector<uint8_t> pinned = bytes_of(3, kSize);
  gpu.pin(pinned.data(), kSize);
  const std::vector<Place> places = {{gpu.allocate(kSize, 0), true},
                                     {gpu.allocate(kSize, 1), true},
                                     {reinterpret_cast<uint64_t>(pageable[0].data()), false},
                                     {reinterpret_cast<uint64_t>(pinned.data()), false}};
  for (const Place& place : places) {
    if (place.is_device) gpu.put(place.address, bytes_of(place.address, kSize));
  }
  for (int round = 0; round < 60; ++round) {
    const Place& to = random.pick(places);
    const Place& from = random.pick(places);
    if ((!to.is_device && !from.is_device) || to.address == from.address) continue;
    const uint64_t size = random.size_up_to(kSize);
    const uint64_t target = to.address + random.below(kSize - size + 1);
    const uint64_t source = from.address + random.below(kSize - size + 1);
    std::vector<uint8_t> expected = gpu.bytes_at(to.address, kSize);
    const std::vector<uint8_t> moved = gpu.bytes_at(source, size);
    std::copy(moved.begin(), moved.end(), expected.begin() + (target - to.address));
    ASSERT_TRUE(staging.move(target, source, size).ok());
    ASSERT_EQ(gpu.bytes_at(to.address, kSize), expected) << size;
  }
  EXPECT_EQ(gpu.pageable_copies(), 0U);
  EXPECT_FALSE(staging.move(places[2].address, places[3].address, 10).ok()) << "no GPU in it";
}

TEST(DeviceStaging, LendsNoMoreSlotsThanItHasAndThoseInTheOrderOfAsking) {
  FakeGpu gpu;
  struct Waiter : DeviceStaging::Customer {
    explicit Waiter(std::vector<int>& told, int mine) : order(told), number(mine) {}
    void on_slot(DeviceStaging::Slot) override {  // Which ends at once: the next one's turn.
      order.push_back(number);
      ++count;
    }
    uint64_t on_time(uint64_t) override { return DeviceStaging::kNever; }
    std::vector<int>& order;
    const int number;
    std::atomic<int> count{0};
  };
  std::vector<int> order;
  {
    DeviceStaging staging("test-gpu");
    std::vector<std::shared_ptr<Waiter>> waiters;
    for (int i = 0; i < 3; ++i) waiters.push_back(std::make_shared<Waiter>(order, i));
    std::vector<DeviceStaging::Slot> slots;
    for (size_t i = 0; i < DeviceStaging::kSlotsMax; ++i) {
      auto slot = staging.take(waiters[0], 0);
      ASSERT_TRUE(slot.ok() && slot.value());
      std::memset(slot.value().memory(), 1, DeviceStaging::kSlotSize);
      slots.push_back(std::move(slot.value()));
    }
    for (const auto& waiter : waiters) EXPECT_FALSE(staging.take(waiter, 0).value());
    waiters[1].reset();  // Who is gone holds up nobody.
    slots.pop_back();
    EXPECT_TRUE(eventually(20'000, [&] { return waiters[2]->count == 1; }));
    EXPECT_EQ(gpu.pinned_bytes(), DeviceStaging::kSlotsMax * DeviceStaging::kSlotSize);
  }
  EXPECT_EQ(order, (std::vector<int>{0, 2}));
  EXPECT_EQ(gpu.pinned_bytes(), 0U);
  EXPECT_EQ(gpu.left_over(), 0U);
}

TEST(DeviceStaging, TellsWhichCopyFailed) {
  FakeGpu gpu;
  DeviceStaging staging("test-gpu");
  const uint64_t device = gpu.allocate(4096);
  std::vector<uint8_t> host(4096);
  gpu.fail_copy(Way::kToDevice, 1);
  const auto write = [&] {
    return staging.move(device, reinterpret_cast<uint64_t>(host.data()), 4096);
  };
  EXPECT_TRUE(write().ok());
  const Status failed = write();
  EXPECT_EQ(failed.code(), Code::kIo);
  EXPECT_NE(failed.message().find("FAKE_719"), std::string::npos) << failed.message();
  EXPECT_TRUE(write().ok());
}

TEST(DeviceStaging, SaysWhenThereIsNoPinnedMemory) {
  FakeGpu gpu;
  gpu.set_no_pinned_memory(true);
  DeviceStaging staging("test-gpu");
  const uint64_t device = gpu.allocate(4096);
  std::vector<uint8_t> host(4096);
  const Status status = staging.move(device, reinterpret_cast<uint64_t>(host.data()), 4096);
  EXPECT_EQ(status.code(), Code::kIo);
  EXPECT_NE(status.message().find("pinning"), std::string::npos) << status.message();
  gpu.pin(host.data(), host.size());
  EXPECT_TRUE(staging.move(device, reinterpret_cast<uint64_t>(host.data()), 4096).ok());
}

}  // namespace
}  // namespace hicache::testing
