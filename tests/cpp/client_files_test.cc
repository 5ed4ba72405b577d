// A client whose node points it to files: what it reads, what it refuses, when it asks again.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "fake_node.h"
#include "shelf.h"
#include "store/client.h"
#include "store/copy_plan.h"
#include "support.h"
#include "transfer/checksum_copy.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::eventually;
using testing::FakeNode;
using testing::key_of;
using testing::location_of;
using testing::Random;
using testing::SampleFile;
using testing::Shelf;

/// Reads all pages of a shelf in one call, each scattered over pieces that nothing is aligned to.
struct Reader {
  explicit Reader(const Shelf& from, unsigned copy_threads = 2, bool verify = true)
      : shelf(from), client({copy_threads, 2000, verify, "test"}) {
    const Status status = client.connect(shelf.node->path, 2000);
    EXPECT_TRUE(status.ok()) << status.message();
    space = client.open_namespace(key_of(1'234'567), "test");
  }

  std::vector<Code> get() {
    const size_t count = shelf.pages.size();
    // One byte before and behind each page, which must stay.
    memory.clear();
    for (const Shelf::Page& page : shelf.pages) {
      memory.emplace_back(page.bytes.size() + 2, uint8_t{0xEE});
    }
    std::vector<Code> codes;
    client.get(
        space, testing::keys_of(0, count),
        [&](size_t i, uint64_t size, std::vector<MemorySegment>& segments) {
          EXPECT_EQ(size, memory[i].size() - 2);
          const uint64_t first = size / 3;
          if (first != 0) segments.push_back({memory[i].data() + 1, first});
          segments.push_back({memory[i].data() + 1 + first, size - first});
          return true;
        },
        codes);
    return codes;
  }

  bool is_right(size_t i) const {
    const std::vector<uint8_t>& bytes = memory[i];
    return std::equal(bytes.begin() + 1, bytes.end() - 1, shelf.pages[i].bytes.begin(),
                      shelf.pages[i].bytes.end()) &&
           bytes.front() == 0xEE && bytes.back() == 0xEE;
  }

  const Shelf& shelf;
  Client client;
  size_t space = 0;
  std::vector<std::vector<uint8_t>> memory;
};

class ClientFiles : public ::testing::Test {
 protected:
  void SetUp() override { HICACHE_NEEDS_DIRECT_FILES(); }
};

const std::vector<uint64_t> kSizes{1,        4096,    4097,    100'000,   3 * kMiB + 5,
                                   kMiB,     524'288, 524'289, 7,         65'536,
                                   2 * kMiB, 12'345,  131'072, kMiB + 17, 1'500'000};

TEST_F(ClientFiles, PagesOfThePoolAndOfFilesComeInOneCall) {
  for (const bool verify : {true, false}) {
    for (const unsigned threads : {1U, 4U}) {
      const Shelf shelf(kSizes);
      Reader reader(shelf, threads, verify);
      const std::vector<Code> codes = reader.get();
      uint64_t file_bytes = 0;
      for (size_t i = 0; i < kSizes.size(); ++i) {
        EXPECT_EQ(codes[i], Code::kOk) << i;
        EXPECT_TRUE(reader.is_right(i)) << i;
        if (shelf.pages[i].device != 0) file_bytes += kSizes[i];
      }
      EXPECT_EQ(reader.client.stats().get_hit_pages, kSizes.size());
      EXPECT_EQ(reader.client.stats().ssd_hit_pages, kSizes.size() / 3 * 2);
      EXPECT_EQ(reader.client.stats().ssd_bytes, file_bytes);
      EXPECT_EQ(reader.client.stats().ssd_failed_pages, 0U);
      EXPECT_TRUE(eventually(
          2000, [&] { return shelf.node->refs_of(NodeOp::kRelease).size() == kSizes.size(); }));
    }
  }
}

TEST_F(ClientFiles, NoCallIsKeptMuchLongerThanItsTime) {
  constexpr uint64_t kSecondNs = 1'000'000'000;
  const ReadLimits small = CopyPlan::read_limits(kSecondNs, 256 * kMiB);
  EXPECT_EQ(small.silence_ns, kSecondNs);
  EXPECT_GT(small.total_ns, 2 * kSecondNs);
  const ReadLimits large = CopyPlan::read_limits(kSecondNs, 128 * 9 * kMiB);
  EXPECT_LE(large.total_ns, 4 * kSecondNs);
}

TEST_F(ClientFiles, SmallCallsWork) {
  const Shelf shelf({10, 20, 30});
  Reader reader(shelf, 4);
  EXPECT_EQ(reader.get(), std::vector<Code>(3, Code::kOk));
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(reader.is_right(i));
}

TEST_F(ClientFiles, AnEngineThatReadsWithManyThreadsIsServed) {
  HICACHE_TRACE_SEED();
  const Shelf shelf(kSizes);
  Reader first(shelf, 3);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (uint64_t number = 0; number < 8; ++number) {
    threads.emplace_back([&, number] {
      Random random(700 + number);
      for (int round = 0; round < 20; ++round) {
        const size_t i = random.below(kSizes.size());
        const Key key = key_of(i);
        std::vector<uint8_t> bytes(kSizes[i]);
        std::vector<Code> codes;
        first.client.get(
            first.space, {&key, 1},
            [&](size_t, uint64_t size, std::vector<MemorySegment>& segments) {
              segments.push_back({bytes.data(), size});
              return true;
            },
            codes);
        wrong += codes.at(0) != Code::kOk || bytes != shelf.pages[i].bytes;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(ClientFiles, AFlippedBitIsAMissAndReported) {
  Shelf shelf(kSizes);
  const size_t damaged = 4;  // In the first file, of several stripes.
  ASSERT_EQ(shelf.pages[damaged].device, 1);
  const Fd writer = shelf.files[0]->open(O_RDWR);
  const auto at = static_cast<off_t>(shelf.pages[damaged].extents[0].offset + 2 * kMiB);
  uint8_t byte = 0;
  ASSERT_EQ(pread(writer.get(), &byte, 1, at), 1);
  byte ^= 4;
  ASSERT_EQ(pwrite(writer.get(), &byte, 1, at), 1);
  ASSERT_EQ(fsync(writer.get()), 0);
  Reader reader(shelf);
  const std::vector<Code> codes = reader.get();
  for (size_t i = 0; i < kSizes.size(); ++i) {
    EXPECT_EQ(codes[i], i == damaged ? Code::kCorrupt : Code::kOk) << i;
  }
  EXPECT_EQ(reader.client.stats().corrupt_pages, 1U);
  EXPECT_TRUE(eventually(20'000, [&] {
    const std::vector<PageRef> reported = shelf.node->refs_of(NodeOp::kReportCorrupt);
    return reported.size() == 1 && reported[0].page == damaged && reported[0].generation == 7;
  }));
}

TEST_F(ClientFiles, WhatAFileDoesNotHaveIsUnavailableAndNotCorrupt) {
  Shelf shelf(kSizes);
  shelf.files[0]->truncate(5000);
  Reader reader(shelf);
  const std::vector<Code> codes = reader.get();
  size_t failed = 0;
  for (size_t i = 0; i < kSizes.size(); ++i) {
    const Shelf::Page& page = shelf.pages[i];
    const bool is_there =
        page.device != 1 || round_up(page.extents[0].offset + kSizes[i], kSectorSize) <= 5000;
    // Neighbours are read together: what lies before the end may fail with what lies behind it.
    if (page.device != 1 || codes[i] == Code::kOk) EXPECT_TRUE(is_there && reader.is_right(i)) << i;
    if (!is_there) EXPECT_EQ(codes[i], Code::kUnavailable) << i;
    failed += codes[i] == Code::kUnavailable;
  }
  EXPECT_EQ(reader.client.stats().ssd_failed_pages, failed);
  EXPECT_EQ(reader.client.stats().corrupt_pages, 0U);
  EXPECT_TRUE(shelf.node->refs_of(NodeOp::kReportCorrupt).empty());
}

TEST_F(ClientFiles, BusyPagesAreAskedForAgainTwiceAtMost) {
  for (const size_t busy_rounds : {1U, 2U, 3U}) {
    Shelf shelf(kSizes);
    std::vector<std::pair<uint8_t, size_t>> asked;
    shelf.node->lease = [&](const KeysRequest& request) {
      asked.emplace_back(request.flags, request.keys.size());
      FakeNode::Locations locations = shelf.lease(request.keys);
      for (size_t i = 0; i < locations.size(); ++i) {
        const size_t number = shelf.number_of(request.keys[i]);
        if (number % 5 == 2 && asked.size() <= busy_rounds) {
          locations[i] = location_of(Code::kBusy, {kNoPage, 0}, 0, 0, 0, {});
        }
      }
      return locations;
    };
    Reader reader(shelf);
    const std::vector<Code> codes = reader.get();
    for (size_t i = 0; i < kSizes.size(); ++i) {
      const bool stays_busy = busy_rounds == 3 && i % 5 == 2;
      EXPECT_EQ(codes[i], stays_busy ? Code::kBusy : Code::kOk) << i;
      EXPECT_TRUE(stays_busy || reader.is_right(i)) << i;
    }
    std::vector<std::pair<uint8_t, size_t>> expected{{kLeaseParts, kSizes.size()}};
    for (size_t i = 0; i < std::min<size_t>(busy_rounds, 2); ++i) {
      expected.emplace_back(kLeaseReadNow | kLeaseParts, kSizes.size() / 5);
    }
    EXPECT_EQ(asked, expected);
  }
}

TEST_F(ClientFiles, ANodeThatPointsElsewhereIsNotBelieved) {
  Shelf shelf(kSizes);
  shelf.node->lease = [&](const KeysRequest& request) {
    FakeNode::Locations locations = shelf.lease(request.keys);
    locations[1].device = 3;
    return locations;
  };
  Reader reader(shelf);
  EXPECT_EQ(reader.get(), std::vector<Code>(kSizes.size(), Code::kCorrupt));
  EXPECT_FALSE(reader.client.is_connected());
}

/// What a client says to a hello that carries these descriptors.
Status status_of_hello(std::vector<int> files, uint8_t announced) {
  const FakeNode node(std::move(files), announced);
  Client client({1, 2000, true, "test"});
  return client.connect(node.path, 2000);
}

TEST_F(ClientFiles, DescriptorsThatAreNoSampleFilesEndTheConnection) {
  const SampleFile file{std::vector<uint8_t>(kSectorSize)};
  const Fd good = file.open();
  const Fd cached = file.open(O_RDONLY);
  const Fd write_only = file.open(O_WRONLY | O_DIRECT);
  const Fd path_only = file.open(O_PATH);
  const Fd folder(open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC | O_DIRECT), 0);
  const Fd pipe_reader(ends[0]);
  const Fd pipe_writer(ends[1]);
  EXPECT_TRUE(status_of_hello({}, 0).ok());
  EXPECT_TRUE(status_of_hello({good.get(), good.get()}, 2).ok());
  EXPECT_TRUE(status_of_hello({good.get(), cached.get()}, 1).ok()) << "more than announced: closed";
  for (const int bad : {cached.get(), write_only.get(), path_only.get(), folder.get(),
                        pipe_reader.get(), pipe_writer.get()}) {
    const Status status = status_of_hello({good.get(), bad}, 2);
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find("SSD file 2"), std::string::npos) << status.message();
  }
  const Status missing = status_of_hello({good.get()}, 2);
  EXPECT_EQ(missing.code(), Code::kUnavailable);
  EXPECT_NE(missing.message().find("ulimit"), std::string::npos) << missing.message();
  EXPECT_EQ(status_of_hello({}, kSsdFilesMax + 1).code(), Code::kCorrupt);
}

}  // namespace
}  // namespace hicache
