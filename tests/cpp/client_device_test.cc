// A client whose memory is a GPU's: pages go there and come from there right, or not at all, and a
// load that comes in stages never passes off a page that was not there.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <thread>

#include "fake_gpu.h"
#include "node_bench.h"
#include "raw_client.h"
#include "shelf.h"
#include "store/client.h"
#include "store/pool_pinner.h"

namespace hicache::testing {
namespace {

using Way = FakeGpu::Way;

/// Pages in memory of a GPU, each in segments of its own, which nothing is aligned to.
class DevicePages {
 public:
  DevicePages(FakeGpu& gpu, const std::vector<std::vector<uint64_t>>& segment_sizes)
      : gpu_(gpu), segment_sizes_(segment_sizes) {
    for (const auto& sizes : segment_sizes_) {
      for (const uint64_t size : sizes) addresses_.push_back(gpu_.allocate(size + 2) + 1);
    }
  }
  ~DevicePages() {
    for (const uint64_t address : addresses_) gpu_.free(address - 1);
  }
  DevicePages(const DevicePages&) = delete;
  DevicePages& operator=(const DevicePages&) = delete;

  size_t count() const { return segment_sizes_.size(); }
  uint64_t size_of(size_t page) const {
    return std::accumulate(segment_sizes_[page].begin(), segment_sizes_[page].end(), uint64_t{0});
  }
  void append(size_t page, std::vector<MemorySegment>& segments) const {
    size_t first = 0;
    for (size_t i = 0; i < page; ++i) first += segment_sizes_[i].size();
    for (size_t i = 0; i < segment_sizes_[page].size(); ++i) {
      segments.push_back(
          {reinterpret_cast<uint8_t*>(addresses_[first + i]), segment_sizes_[page][i]});
    }
  }
  void write(size_t page, const std::vector<uint8_t>& bytes) {
    std::vector<MemorySegment> segments;
    append(page, segments);
    uint64_t done = 0;
    for (const MemorySegment& segment : segments) {
      gpu_.put(reinterpret_cast<uint64_t>(segment.address),
               std::span(bytes).subspan(done, segment.size));
      done += segment.size;
    }
  }
  std::vector<uint8_t> read(size_t page) const {
    std::vector<MemorySegment> segments;
    append(page, segments);
    std::vector<uint8_t> bytes;
    for (const MemorySegment& segment : segments) {
      const auto piece = gpu_.bytes_at(reinterpret_cast<uint64_t>(segment.address), segment.size);
      bytes.insert(bytes.end(), piece.begin(), piece.end());
    }
    return bytes;
  }

  std::vector<Code> put(SimpleClient& client, uint64_t first_key = 0) const {
    std::vector<Code> codes;
    client.client.put(
        client.space, keys_of(first_key, count()),
        [&](size_t page, std::vector<MemorySegment>& segments) { append(page, segments); },
        {.device = 0}, codes);
    return codes;
  }
  std::vector<Code> get(Client& client, size_t space, Client::GetOptions options = {},
                        uint64_t first_key = 0) const {
    options.device = 0;
    std::vector<Code> codes;
    client.get(
        space, keys_of(first_key, count()),
        [&](size_t page, uint64_t size, std::vector<MemorySegment>& segments) {
          append(page, segments);
          return size == size_of(page);
        },
        options, codes);
    return codes;
  }
  std::vector<Code> get(SimpleClient& client, Client::GetOptions options = {}) const {
    return get(client.client, client.space, options);
  }

 private:
  FakeGpu& gpu_;
  const std::vector<std::vector<uint64_t>> segment_sizes_;
  std::vector<uint64_t> addresses_;
};

std::vector<Code> all_ok(size_t count) {
  return std::vector<Code>(count, Code::kOk);
}

/// Pages that all have the same segments, as those of an engine do.
std::vector<std::vector<uint64_t>> alike(size_t count, const std::vector<uint64_t>& sizes) {
  return std::vector<std::vector<uint64_t>>(count, sizes);
}

TEST(ClientDevice, MovesPagesOfAnyShapeBothWays) {
  Random random(1);
  std::vector<std::vector<uint64_t>> shapes;
  for (size_t page = 0; page < 40; ++page) {
    std::vector<uint64_t> sizes(random.between(1, 6));
    for (uint64_t& size : sizes) size = random.size_up_to(3 * kMiB);
    shapes.push_back(sizes);
  }
  FakeGpu gpu;
  {
    auto node = start_node(256 * kMiB);
    SimpleClient client(node->socket_path());
    DevicePages pages(gpu, shapes);
    std::vector<std::vector<uint8_t>> bytes;
    for (size_t i = 0; i < pages.count(); ++i) {
      bytes.push_back(bytes_of(i, pages.size_of(i)));
      pages.write(i, bytes[i]);
    }
    ASSERT_EQ(pages.put(client), all_ok(pages.count()));
    for (size_t i = 0; i < pages.count(); ++i) {
      std::vector<uint8_t> read;  // The CPU checks what the GPU wrote.
      EXPECT_EQ(client.get(key_of(i), read), Code::kOk);
      EXPECT_EQ(read, bytes[i]) << i;
      pages.write(i, std::vector<uint8_t>(read.size(), 0xEE));
    }
    EXPECT_EQ(pages.get(client), all_ok(pages.count()));
    for (size_t i = 0; i < pages.count(); ++i) EXPECT_EQ(pages.read(i), bytes[i]) << i;
    EXPECT_EQ(gpu.pageable_copies(), 0U);
    EXPECT_GT(gpu.pinned_units(), 0U);
  }
  EXPECT_EQ(gpu.left_over(), 0U);
  EXPECT_EQ(gpu.pinned_units(), 0U) << "the pool is unmapped, and the driver still knows it";
}

TEST(ClientDevice, WorksWhereTheDriverPinsNothing) {
  FakeGpu gpu;
  gpu.set_no_pinned_memory(true);
  auto node = start_node(64 * kMiB);
  SimpleClient client(node->socket_path());
  DevicePages pages(gpu, alike(5, {kMiB, 100, 77'777}));
  for (size_t i = 0; i < 5; ++i) pages.write(i, bytes_of(i, pages.size_of(i)));
  ASSERT_EQ(pages.put(client), all_ok(5));
  DevicePages targets(gpu, alike(5, {77'777, kMiB + 100}));
  EXPECT_EQ(targets.get(client), all_ok(5));
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(targets.read(i), bytes_of(i, pages.size_of(i)));
  EXPECT_GT(gpu.pageable_copies(), 0U);
}

TEST(ClientDevice, AUnitThatIsPinnedStaysSoAndIsUnpinned) {
  FakeGpu gpu;
  std::vector<std::string> notices;
  auto memory = SharedMemory::create({PoolPinner::kUnitSize, HugePages::kNever, -1}, notices);
  ASSERT_TRUE(memory.ok());
  auto lane = GpuLane::open(0);
  ASSERT_TRUE(lane.ok());
  {
    PoolPinner pinner(*memory.value(), lane.value());
    ASSERT_TRUE(pinner.pin_unit(0));
    pinner.refuse_unit(0);  // Of a call that found no memory for it before another did.
    EXPECT_EQ(pinner.state(0), PoolPinner::State::kPinned);
  }
  EXPECT_EQ(gpu.pinned_units(), 0U);
}

TEST(ClientDevice, WithoutADriverItSaysSo) {
  auto node = start_node(16 * kMiB);
  SimpleClient client(node->socket_path());
  ASSERT_EQ(client.put(key_of(0), bytes_of(0, 1000)), Code::kOk);
  std::vector<Code> codes;
  client.client.get(
      client.space, keys_of(0, 1),
      [](size_t, uint64_t, std::vector<MemorySegment>&) {
        ADD_FAILURE() << "nothing can be read";
        return false;
      },
      {.device = 0}, codes);
  EXPECT_EQ(codes, std::vector<Code>{Code::kUnsupported});
}

TEST(ClientDevice, APageThatIsNotWhatWasStoredIsCorrupt) {
  FakeGpu gpu;
  auto node = start_node(64 * kMiB);
  SimpleClient client(node->socket_path());
  auto raw = RawClient::greeted(node->socket_path());
  const NamespaceIndex index = raw->open_namespace(kTestNamespace);
  DevicePages pages(gpu, alike(3, {kMiB, 5}));
  for (size_t i = 0; i < 3; ++i) pages.write(i, bytes_of(i, pages.size_of(i)));
  ASSERT_EQ(pages.put(client), all_ok(3));
  const std::vector<Key> second{key_of(1)};
  const Places places = raw->places(RawClient::keys_frame(NodeOp::kLease, index, 0, second));
  ASSERT_EQ(places.places.at(0).code, Code::kOk);
  raw->pool->address()[places.extents.at(0).offset + 700'000] ^= 1;
  EXPECT_EQ(pages.get(client), (std::vector<Code>{Code::kOk, Code::kCorrupt, Code::kOk}));
  EXPECT_EQ(client.client.stats().corrupt_pages, 1U);
  EXPECT_TRUE(eventually(20'000, [&] { return client.lookup(key_of(1)) == Code::kNotFound; }));
}

TEST(ClientDevice, ACopyThatFailsIsAMissAndLeavesNothingBehind) {
  FakeGpu gpu;
  {
    auto node = start_node(64 * kMiB);
    SimpleClient client(node->socket_path());
    DevicePages pages(gpu, alike(4, {300'000, 300'000}));
    for (size_t i = 0; i < 4; ++i) pages.write(i, bytes_of(i, pages.size_of(i)));
    gpu.fail_copy(Way::kFromDevice, 5);
    const std::vector<Code> refused = pages.put(client);
    EXPECT_EQ(std::count(refused.begin(), refused.end(), Code::kOk), 0);
    EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "pool_reserved_bytes") == 0; }));
    ASSERT_EQ(pages.put(client), all_ok(4));
    gpu.fail_copy(Way::kToDevice, 3);
    EXPECT_EQ(pages.get(client), std::vector<Code>(4, Code::kUnavailable));
    EXPECT_EQ(pages.get(client), all_ok(4));
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(pages.read(i), bytes_of(i, pages.size_of(i)));
  }
  EXPECT_EQ(gpu.left_over(), 0U);
}

TEST(ClientDevice, PagesInFilesComeToo) {
  HICACHE_NEEDS_DIRECT_FILES();
  const Shelf shelf({4096, 4097, 100'000, 3 * kMiB + 5, kMiB, 524'289, 65'536, 1'500'000, 12});
  FakeGpu gpu;
  Client client({2, 2000, true, "test"});
  ASSERT_TRUE(client.connect(shelf.node->path, 2000).ok());
  const size_t space = client.open_namespace(key_of(1'234'567), "test");
  std::vector<std::vector<uint64_t>> shapes;
  for (const Shelf::Page& page : shelf.pages) {
    shapes.push_back({page.bytes.size() / 3, page.bytes.size() - page.bytes.size() / 3});
  }
  DevicePages pages(gpu, shapes);
  EXPECT_EQ(pages.get(client, space), all_ok(pages.count()));
  for (size_t i = 0; i < pages.count(); ++i) EXPECT_EQ(pages.read(i), shelf.pages[i].bytes) << i;
}

/// What a kernel that uses a stage sees of a page.
std::vector<uint8_t> seen_by_a_kernel(FakeGpu& gpu, const LoadStages& stages, size_t stage,
                                      uint64_t address, uint64_t size) {
  GpuStream stream = nullptr;
  EXPECT_EQ(gpu.context_push(nullptr), 0);
  EXPECT_EQ(gpu.stream_create(&stream), 0);
  EXPECT_TRUE(stages.wait(stage, stream, Deadline::after_ms(20'000)));
  std::vector<uint8_t> bytes(size);
  gpu.pin(bytes.data(), bytes.size());
  EXPECT_EQ(gpu.copy_async(reinterpret_cast<uint64_t>(bytes.data()), address, size, stream), 0);
  EXPECT_EQ(gpu.stream_wait(stream), 0);
  EXPECT_EQ(gpu.host_unregister(bytes.data()), 0);
  EXPECT_EQ(gpu.stream_destroy(stream), 0);
  EXPECT_EQ(gpu.context_pop(), 0);
  return bytes;
}

TEST(ClientDevice, AKernelWaitsForItsStageAndNotForTheLoad) {
  constexpr size_t kLayers = 4;
  constexpr uint64_t kPiece = 200'000;
  FakeGpu gpu;
  auto node = start_node(64 * kMiB);
  SimpleClient client(node->socket_path());
  const auto shape = alike(6, std::vector<uint64_t>(2 * kLayers, kPiece));
  DevicePages sources(gpu, shape);
  for (size_t i = 0; i < 6; ++i) sources.write(i, bytes_of(i, sources.size_of(i)));
  ASSERT_EQ(sources.put(client), all_ok(6));
  DevicePages targets(gpu, shape);
  const std::vector<uint32_t> layer_of{0, 1, 2, 3, 0, 1, 2, 3};  // Keys of all, then values.
  LoadStages stages(kLayers, 2);
  EXPECT_FALSE(stages.wait(0, nullptr, Deadline::after_ms(1))) << "no part has begun";
  stages.end(1);  // The other part has nothing to load.
  gpu.hold(Way::kToDevice);
  std::vector<Code> codes;
  std::thread loader([&] {
    codes = targets.get(client, {.stages = &stages, .part = 0, .stage_of_segment = layer_of});
  });
  ASSERT_TRUE(gpu.wait_held(Way::kToDevice, 6 * 2 * kLayers)) << "all is queued at once";
  std::vector<MemorySegment> last;
  targets.append(5, last);
  std::thread releaser([&] { gpu.let_go(); });
  for (size_t layer = 0; layer < kLayers; ++layer) {
    for (const size_t segment : {layer, kLayers + layer}) {
      const auto seen = seen_by_a_kernel(gpu, stages, layer,
                                         reinterpret_cast<uint64_t>(last[segment].address), kPiece);
      const std::vector<uint8_t> page = bytes_of(5, sources.size_of(5));
      EXPECT_TRUE(std::equal(seen.begin(), seen.end(),
                             page.begin() + static_cast<ptrdiff_t>(segment * kPiece)))
          << layer;
    }
  }
  loader.join();
  releaser.join();
  EXPECT_EQ(codes, all_ok(6));
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(targets.read(i), bytes_of(i, targets.size_of(i)));
}

TEST(ClientDevice, StagesAreCheckedWhateverTheyCut) {
  // Stripes of half a MiB, segments of anything: each byte is flipped once, and found each time.
  Random random(2);
  FakeGpu gpu;
  auto node = start_node(64 * kMiB);
  SimpleClient client(node->socket_path());
  auto raw = RawClient::greeted(node->socket_path());
  const NamespaceIndex index = raw->open_namespace(kTestNamespace);
  for (uint64_t round = 0; round < 40; ++round) {
    std::vector<uint64_t> sizes(random.between(1, 9));
    for (uint64_t& size : sizes) size = random.size_up_to(2 * kMiB);
    std::vector<uint32_t> stage_of(sizes.size());
    const uint64_t stage_count = random.between(1, 5);
    for (uint32_t& stage : stage_of) stage = static_cast<uint32_t>(random.below(stage_count));
    DevicePages page(gpu, {sizes});
    page.write(0, bytes_of(round, page.size_of(0)));
    ASSERT_EQ(page.put(client, round), all_ok(1));
    const auto load = [&] {
      LoadStages stages(stage_count, 1);
      Client::GetOptions options{.stages = &stages, .stage_of_segment = stage_of};
      return page.get(client.client, client.space, options, round).at(0);
    };
    EXPECT_EQ(load(), Code::kOk) << "round " << round;
    EXPECT_EQ(page.read(0), bytes_of(round, page.size_of(0)));
    const std::vector<Key> key{key_of(round)};
    const Places places = raw->places(RawClient::keys_frame(NodeOp::kLease, index, 0, key));
    uint64_t at = random.below(page.size_of(0));
    size_t extent = 0;
    while (at >= places.extents[extent].size) at -= places.extents[extent++].size;
    raw->pool->address()[places.extents[extent].offset + at] ^= 0x40;
    EXPECT_EQ(load(), Code::kCorrupt) << "round " << round;
  }
}

TEST(ClientDevice, AStagedLoadMayHaveMorePagesThanAMessage) {
  constexpr size_t kPages = 20'000;
  constexpr uint64_t kPiece = 40;
  FakeGpu gpu;
  auto node = start_node(512 * kMiB);
  SimpleClient client(node->socket_path());
  auto raw = RawClient::greeted(node->socket_path());
  const NamespaceIndex index = raw->open_namespace(kTestNamespace);
  const uint64_t sources = gpu.allocate(kPages * kPiece);
  const uint64_t targets = gpu.allocate(kPages * kPiece);
  const std::vector<uint8_t> bytes = bytes_of(1, kPages * kPiece);
  gpu.put(sources, bytes);
  const auto piece_of = [](uint64_t memory, size_t page) {
    return MemorySegment{reinterpret_cast<uint8_t*>(memory + page * kPiece), kPiece};
  };
  std::vector<Code> codes;
  client.client.put(
      client.space, keys_of(0, kPages),
      [&](size_t page, auto& segments) { segments.push_back(piece_of(sources, page)); },
      {.device = 0}, codes);
  ASSERT_EQ(codes, all_ok(kPages));
  const std::vector<uint32_t> stage_of{0};
  const auto load = [&] {
    LoadStages stages(1, 1);
    client.client.get(
        client.space, keys_of(0, kPages),
        [&](size_t page, uint64_t, auto& segments) {
          segments.push_back(piece_of(targets, page));
          return true;
        },
        {.device = 0, .stages = &stages, .stage_of_segment = stage_of}, codes);
  };
  load();
  EXPECT_EQ(codes, all_ok(kPages));
  EXPECT_EQ(gpu.bytes_at(targets, kPages * kPiece), bytes);
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "leases") == 0; }));
  // The last page is damaged: it alone is named.
  const std::vector<Key> last{key_of(kPages - 1)};
  const Places places = raw->places(RawClient::keys_frame(NodeOp::kLease, index, 0, last));
  raw->pool->address()[places.extents.at(0).offset] ^= 1;
  load();
  std::vector<Code> expected = all_ok(kPages);
  expected.back() = Code::kCorrupt;
  EXPECT_EQ(codes, expected);
  gpu.free(sources);
  gpu.free(targets);
}

TEST(ClientDevice, AStagedLoadThatLacksAPageSaysSoAndEnds) {
  FakeGpu gpu;
  auto node = start_node(64 * kMiB);
  SimpleClient client(node->socket_path());
  DevicePages pages(gpu, alike(3, {1000, 1000}));
  ASSERT_EQ(pages.put(client), all_ok(3));
  std::vector<Code> removed;
  client.client.remove(client.space, keys_of(1, 1), removed);
  const std::vector<uint32_t> stage_of{0, 1};
  LoadStages stages(2, 1);
  EXPECT_EQ(pages.get(client, {.stages = &stages, .stage_of_segment = stage_of}),
            (std::vector<Code>{Code::kOk, Code::kNotFound, Code::kOk}));
  EXPECT_TRUE(stages.wait(1, nullptr, Deadline::after_ms(1))) << "it has ended";
  // Nor does anybody wait for a load that could not even begin.
  client.client.disconnect();
  LoadStages others(2, 1);
  EXPECT_EQ(pages.get(client, {.stages = &others, .stage_of_segment = stage_of}),
            std::vector<Code>(3, Code::kUnavailable));
  EXPECT_TRUE(others.wait(0, nullptr, Deadline::after_ms(1)));
}

TEST(ClientDevice, ClosingWaitsForTheGpu) {
  FakeGpu gpu;
  auto node = start_node(64 * kMiB);
  SimpleClient client(node->socket_path());
  DevicePages pages(gpu, alike(2, {400'000}));
  ASSERT_EQ(pages.put(client), all_ok(2));
  gpu.hold(Way::kToDevice);
  std::thread reader([&] { (void)pages.get(client); });
  ASSERT_TRUE(gpu.wait_held(Way::kToDevice, 2));
  std::atomic<bool> may_close{false};
  std::thread closer([&] {
    client.client.disconnect();
    EXPECT_TRUE(may_close) << "the GPU still wrote";
  });
  EXPECT_TRUE(eventually(20'000, [&] { return stat_of(*node, "clients") == 0; }));
  may_close = true;
  gpu.let_go();
  closer.join();
  reader.join();
}

}  // namespace
}  // namespace hicache::testing
