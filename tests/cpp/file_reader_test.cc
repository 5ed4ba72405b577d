// The file reader: right bytes in the right place, and nothing that keeps a call from returning.
#include "transfer/file_reader.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

#include "sample_file.h"
#include "scripted_device.h"
#include "support.h"
#include "transfer/checksum_copy.h"

namespace hicache {
namespace {

using testing::DeviceScript;
using testing::duration_ms;
using testing::eventually;
using testing::Random;
using testing::SampleFile;
using testing::ScriptedDevice;

constexpr ReadLimits kPatient{20'000'000'000, 20'000'000'000};

/// Where the stripes of a read go, each into memory of exactly its size.
struct Targets {
  explicit Targets(std::vector<FileStripe> wanted) : stripes(std::move(wanted)) {
    for (const FileStripe& stripe : stripes) bytes.emplace_back(stripe.size);
    taken = std::vector<std::atomic<int>>(stripes.size());
  }

  uint64_t read(FileReader& reader, std::span<ReadableFile* const> files, CopyThreads& threads,
                const ReadLimits& limits = kPatient) {
    return reader.read({.files = files,
                        .stripes = stripes,
                        .take =
                            [this](size_t i, const uint8_t* source) {
                              std::memcpy(bytes[i].data(), source, stripes[i].size);
                              ++taken[i];
                            },
                        .other = nullptr,
                        .is_stopped = nullptr},
                       limits, threads);
  }

  size_t taken_count() const {
    return static_cast<size_t>(std::count(taken.begin(), taken.end(), 1));
  }

  std::vector<FileStripe> stripes;
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<std::atomic<int>> taken;
};

/// `count` stripes of one sector in each of `files` files.
std::vector<FileStripe> far_apart(uint32_t files, uint64_t count) {
  std::vector<FileStripe> stripes;
  for (uint64_t i = 0; i < count; ++i) {
    for (uint32_t file = 0; file < files; ++file) stripes.push_back({file, i * kMiB, kSectorSize});
  }
  return stripes;
}

class FileReaderOn : public ::testing::TestWithParam<IoEngine> {
 protected:
  void SetUp() override {
    HICACHE_NEEDS_DIRECT_FILES();
    const auto device = BlockDevice::make({GetParam(), 1});
    if (!device.ok()) GTEST_SKIP() << device.status().message();
  }
};

TEST_P(FileReaderOn, BringsEachStripeOnceAndWhole) {
  HICACHE_TRACE_SEED();
  Random random(500);
  constexpr uint64_t kFileSize = 24 * kMiB;
  std::vector<std::vector<uint8_t>> contents;
  std::vector<std::unique_ptr<SampleFile>> folder;
  std::vector<std::unique_ptr<ReadableFile>> opened;
  std::vector<ReadableFile*> files;
  for (uint64_t i = 0; i < 3; ++i) {
    contents.push_back(testing::bytes_of(i, kFileSize));
    folder.push_back(std::make_unique<SampleFile>(contents.back()));
    opened.push_back(folder.back()->readable());
    files.push_back(opened.back().get());
  }
  for (int round = 0; round < 12; ++round) {
    const uint64_t read_size = random.between(1, 4) * kStripeSize;
    FileReader reader({GetParam(), static_cast<uint32_t>(random.size_up_to(32)), read_size});
    CopyThreads threads(static_cast<unsigned>(random.between(1, 6)));
    std::vector<FileStripe> stripes;
    uint64_t offset = 0;
    for (uint64_t i = random.size_up_to(120); i > 0; --i) {
      const uint64_t size = random.one_in(2) ? kStripeSize : random.size_up_to(kStripeSize);
      // Neighbours, small gaps, overlaps and jumps.
      if (random.one_in(3) || offset + size > kFileSize) {
        offset = random.below((kFileSize - size) / kSectorSize) * kSectorSize;
      }
      stripes.push_back({static_cast<uint32_t>(random.below(3)), offset, size});
      offset += round_up(size, kSectorSize) + (random.one_in(5) ? kSectorSize : 0);
    }
    Targets targets(stripes);
    EXPECT_EQ(targets.read(reader, files, threads), 0U);
    ASSERT_EQ(targets.taken_count(), stripes.size());
    for (size_t i = 0; i < stripes.size(); ++i) {
      ASSERT_EQ(std::memcmp(targets.bytes[i].data(),
                            contents[stripes[i].file].data() + stripes[i].offset, stripes[i].size),
                0);
    }
  }
}

TEST_P(FileReaderOn, WhatIsBehindTheEndOfTheFileFailsAlone) {
  const std::vector<uint8_t> content = testing::bytes_of(1, 4 * kMiB);
  const SampleFile on_disk(content);
  on_disk.truncate(2 * kMiB + 100);
  const auto file = on_disk.readable();
  ReadableFile* const files[] = {file.get()};
  FileReader reader({GetParam(), 4, kMiB});
  CopyThreads threads(2);
  Targets targets({{0, 0, kStripeSize},
                   {0, 3 * kMiB, kStripeSize},
                   {0, kMiB, 5},
                   {0, 2 * kMiB, kStripeSize},
                   {0, 100 * kMiB, 1}});
  EXPECT_EQ(targets.read(reader, files, threads), 0U) << "an answer is no silence";
  EXPECT_EQ(targets.taken[0], 1);
  EXPECT_EQ(targets.taken[1], 0);
  EXPECT_EQ(targets.taken[2], 1);
  EXPECT_EQ(targets.taken[3], 0);
  EXPECT_EQ(targets.taken[4], 0);
  EXPECT_EQ(std::memcmp(targets.bytes[0].data(), content.data(), kStripeSize), 0);
  EXPECT_EQ(targets.bytes[1], std::vector<uint8_t>(kStripeSize));
}

TEST_P(FileReaderOn, AReadThatHangsEndsInTimeAndReachesNobodyLater) {
  if (GetParam() == IoEngine::kThreads) GTEST_SKIP() << "pread() refuses pipes at once";
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  ReadableFile hanging{Fd(ends[0])};
  const Fd writer(ends[1]);
  ReadableFile* const files[] = {&hanging};
  FileReader reader({GetParam(), 4, kMiB});
  CopyThreads threads(2);
  Targets targets(far_apart(1, 10));
  uint64_t silence_ns = 0;
  const uint64_t took_ms = duration_ms(
      [&] { silence_ns = targets.read(reader, files, threads, {300'000'000, 9'000'000'000}); });
  EXPECT_GE(took_ms, 300U);
  EXPECT_LT(took_ms, 3000U);
  EXPECT_GE(silence_ns, 300'000'000U);
  EXPECT_EQ(targets.taken_count(), 0U);
  EXPECT_TRUE(hanging.health.is_paused(monotonic_ns()));
  // The bytes come after all. Whoever lives at the old buffers' addresses by now must not see them.
  std::vector<MappedMemory> neighbours;
  for (int i = 0; i < 16; ++i) neighbours.push_back(MappedMemory::make(kMiB));
  const std::vector<uint8_t> late(16 * kKiB, 0xAA);
  ASSERT_EQ(write(writer.get(), late.data(), late.size()), static_cast<ssize_t>(late.size()));
  const std::vector<uint8_t> content = testing::bytes_of(1, kStripeSize);
  const SampleFile on_disk(content);
  const auto file = on_disk.readable();
  ReadableFile* const healthy[] = {file.get()};
  Targets later({{0, 0, kStripeSize}});
  later.read(reader, healthy, threads);  // With new buffers; and time passes.
  EXPECT_EQ(later.bytes[0], content);
  for (const std::vector<uint8_t>& bytes : targets.bytes) {
    EXPECT_EQ(bytes, std::vector<uint8_t>(kSectorSize));
  }
  for (const MappedMemory& memory : neighbours) {
    const auto bytes = memory.span();
    EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; }));
  }
}

TEST_P(FileReaderOn, ManyCallersShareAFewReaders) {
  constexpr uint64_t kFileSize = 8 * kMiB;
  const std::vector<uint8_t> content = testing::bytes_of(9, kFileSize);
  const SampleFile on_disk(content);
  const auto file = on_disk.readable();
  FileReaders readers({GetParam(), 8, kMiB});
  CopyThreads threads(3);
  std::vector<std::thread> callers;
  for (uint64_t number = 0; number < 8; ++number) {
    callers.emplace_back([&, number] {
      Random random(600 + number);
      for (int round = 0; round < 10; ++round) {
        std::vector<FileStripe> stripes;
        for (uint64_t i = random.between(1, 20); i > 0; --i) {
          const uint64_t size = random.size_up_to(kStripeSize);
          stripes.push_back(
              {0, random.below((kFileSize - size) / kSectorSize) * kSectorSize, size});
        }
        Targets targets(stripes);
        auto reader = readers.take(Deadline::after_ms(20'000));
        ASSERT_TRUE(reader);
        ReadableFile* const files[] = {file.get()};
        targets.read(*reader, files, threads);
        readers.give_back(std::move(reader));
        for (size_t i = 0; i < stripes.size(); ++i) {
          ASSERT_EQ(targets.taken[i], 1);
          ASSERT_EQ(std::memcmp(targets.bytes[i].data(), content.data() + stripes[i].offset,
                                stripes[i].size),
                    0);
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

INSTANTIATE_TEST_SUITE_P(Engines, FileReaderOn,
                         ::testing::Values(IoEngine::kUring, IoEngine::kThreads),
                         [](const auto& engine) {
                           return engine.param == IoEngine::kUring ? "uring" : "threads";
                         });

/// A reader on a scripted device, and files that are not looked at unless the script serves them.
class ScriptedReader : public ::testing::Test {
 protected:
  explicit ScriptedReader(uint32_t depth = 8)
      : reader({IoEngine::kAuto, depth, kMiB}, ScriptedDevice::maker(script)) {}

  /// Requests that file `number` was sent.
  size_t requests_of(size_t number) const {
    return static_cast<size_t>(
        std::count_if(script.requests.begin(), script.requests.end(),
                      [&](const IoRequest& sent) { return sent.fd == files[number]->fd.get(); }));
  }

  const SampleFile on_disk{std::vector<uint8_t>(64 * kMiB)};
  ReadableFile a{on_disk.open(O_RDONLY)};
  ReadableFile b{on_disk.open(O_RDONLY)};
  ReadableFile* const files[2] = {&a, &b};
  DeviceScript script;
  FileReader reader;
  CopyThreads threads{2};
};

TEST_F(ScriptedReader, NeighboursAreReadTogether) {
  std::vector<FileStripe> stripes;
  for (uint64_t i = 0; i < 62; ++i) {  // Two groups of pages, as the log writes them.
    stripes.push_back({0, (1 + i * 16 + i / 31) * kSectorSize, 16 * kSectorSize - 7});
  }
  Targets targets(stripes);
  targets.read(reader, files, threads);
  EXPECT_EQ(targets.taken_count(), stripes.size());
  EXPECT_LE(script.requests.size(), 5U) << "62 pages of 64 KiB in reads of up to 1 MiB";
  script.requests.clear();
  Targets apart(far_apart(2, 20));
  apart.read(reader, files, threads);
  EXPECT_EQ(script.requests.size(), 40U) << "what lies far apart is not read over";
  EXPECT_EQ(script.in_flight_max, 8U) << "the depth is used, and not exceeded";
  EXPECT_EQ(script.devices, 1U) << "a device that did its work is kept";
}

TEST_F(ScriptedReader, AFileThatHangsCostsOneDeadlineAndNotTheOtherFiles) {
  script.outcome_of = [&](const IoRequest& request) {
    return request.fd == a.fd.get() ? DeviceScript::kNever : 0;
  };
  Targets targets(far_apart(2, 50));
  const uint64_t took_ms =
      duration_ms([&] { targets.read(reader, files, threads, {300'000'000, 9'000'000'000}); });
  EXPECT_GE(took_ms, 300U);
  EXPECT_LT(took_ms, 3000U);
  for (size_t i = 0; i < targets.stripes.size(); ++i) {
    ASSERT_EQ(targets.taken[i], targets.stripes[i].file == 1 ? 1 : 0) << i;
  }
  // Once more: the file is left alone, and what hung is gone with its device.
  script.requests.clear();
  Targets again(far_apart(2, 50));
  EXPECT_EQ(again.read(reader, files, threads, {9'000'000'000, 9'000'000'000}), 0U);
  EXPECT_EQ(requests_of(0), 0U);
  EXPECT_EQ(again.taken_count(), 50U);
  EXPECT_EQ(script.devices, 2U);
}

TEST_F(ScriptedReader, BytesThatKeepComingMayTakeLongerThanTheSilenceAllowed) {
  script.pause_ms = 40;
  Targets targets(far_apart(1, 60));
  const uint64_t took_ms = duration_ms([&] {
    EXPECT_EQ(targets.read(reader, files, threads, {1'500'000'000, 60'000'000'000}), 0U);
  });
  EXPECT_GE(took_ms, 2400U);
  EXPECT_EQ(targets.taken_count(), 60U);
}

TEST_F(ScriptedReader, HoweverSteadilyBytesComeThereIsAnEnd) {
  script.pause_ms = 100;
  Targets targets(far_apart(1, 60));
  const uint64_t took_ms =
      duration_ms([&] { targets.read(reader, files, threads, {9'000'000'000, 1'000'000'000}); });
  EXPECT_LT(took_ms, 5000U) << "all of them take 6 s";
  EXPECT_GT(targets.taken_count(), 0U) << "what came in time counts";
  EXPECT_LT(targets.taken_count(), 40U);
  EXPECT_FALSE(a.health.is_paused(monotonic_ns())) << "slow, not dead";
}

TEST_F(ScriptedReader, AFileOfErrorsIsLeftAlone) {
  script.outcome_of = [&](const IoRequest& request) { return request.fd == a.fd.get() ? EIO : 0; };
  Targets targets(far_apart(2, 50));
  targets.read(reader, files, threads);
  EXPECT_EQ(targets.taken_count(), 50U);
  EXPECT_LE(requests_of(0), FileHealth::kFailuresMax + 8U) << "and what was in flight";
  EXPECT_TRUE(a.health.is_paused(monotonic_ns()));
  EXPECT_FALSE(b.health.is_paused(monotonic_ns()));
}

TEST_F(ScriptedReader, OtherWorkIsDoneWhateverTheFilesDo) {
  for (const int outcome : {0, EIO, DeviceScript::kNever}) {
    script.outcome_of = [&](const IoRequest&) { return outcome; };
    std::atomic<int> left = 1000;
    std::atomic<int> done = 0;
    ReadableFile fresh{on_disk.open(O_RDONLY)};
    ReadableFile* const one[] = {&fresh};
    const std::vector<FileStripe> stripes = far_apart(1, 20);
    reader.read({.files = one,
                 .stripes = stripes,
                 .take = [](size_t, const uint8_t*) {},
                 .other =
                     [&] {
                       if (left.fetch_sub(1) <= 0) return false;
                       ++done;
                       return true;
                     },
                 .other_count = 1000,
                 .is_stopped = nullptr},
                {50'000'000, 9'000'000'000}, threads);
    EXPECT_EQ(done, 1000);
  }
}

TEST_F(ScriptedReader, StopsWhenTold) {
  script.outcome_of = [](const IoRequest&) { return DeviceScript::kNever; };
  const std::vector<FileStripe> stripes = far_apart(1, 20);
  std::atomic<bool> stopped = false;
  std::thread reading([&] {
    reader.read({.files = files,
                 .stripes = stripes,
                 .take = [](size_t, const uint8_t*) { ADD_FAILURE(); },
                 .other = nullptr,
                 .is_stopped = [&] { return stopped.load(); }},
                kPatient, threads);
  });
  stopped = true;
  EXPECT_LT(duration_ms([&] { reading.join(); }), 3000U);
  EXPECT_FALSE(a.health.is_paused(monotonic_ns())) << "no fault of the file";
}

TEST(FileReader, WithoutADeviceNothingIsRead) {
  const SampleFile on_disk{std::vector<uint8_t>(kMiB)};
  ReadableFile file{on_disk.open(O_RDONLY)};
  ReadableFile* const files[] = {&file};
  FileReader reader({IoEngine::kAuto, 4, kMiB}, [](const BlockDevice::Options&) {
    return Result<std::unique_ptr<BlockDevice>>(Status(Code::kUnsupported, "not here"));
  });
  CopyThreads threads(2);
  Targets targets({{0, 0, 100}});
  EXPECT_EQ(targets.read(reader, files, threads), 0U);
  EXPECT_EQ(targets.taken_count(), 0U);
}

TEST(FileReaders, LendsAFewAndSaysWhenNoneComesFree) {
  FileReaders readers({IoEngine::kAuto, 4, kMiB});
  std::vector<std::unique_ptr<FileReader>> lent;
  for (size_t i = 0; i < FileReaders::kCountMax; ++i) {
    lent.push_back(readers.take(Deadline::after_ms(0)));
    ASSERT_TRUE(lent.back());
  }
  EXPECT_FALSE(readers.take(Deadline::after_ms(30)));
  const FileReader* first = lent[0].get();
  std::thread waiter([&] {
    auto reader = readers.take(Deadline::after_ms(20'000));
    EXPECT_EQ(reader.get(), first);
    readers.give_back(std::move(reader));
  });
  readers.give_back(std::move(lent[0]));
  waiter.join();
}

TEST(FileHealth, PausesAfterFailuresInARowOnly) {
  FileHealth health;
  for (int round = 0; round < 3; ++round) {
    for (uint32_t i = 1; i < FileHealth::kFailuresMax; ++i) health.note_failure(1000);
    EXPECT_TRUE(health.may_read(1000));
    health.note_success();
  }
  for (uint32_t i = 0; i < FileHealth::kFailuresMax; ++i) health.note_failure(1000);
  EXPECT_FALSE(health.may_read(1000 + FileHealth::kPauseNs - 1));
}

TEST(FileHealth, AfterThePauseOneMayTryAndDecidesForAll) {
  constexpr uint64_t kPause = FileHealth::kPauseNs;
  FileHealth health;
  health.note_silence(1000, FileHealth::kSilenceMaxNs);
  EXPECT_TRUE(health.is_paused(1000));
  EXPECT_FALSE(health.may_read(1000 + kPause - 1));
  EXPECT_TRUE(health.may_read(1000 + kPause));
  EXPECT_FALSE(health.may_read(1000 + kPause)) << "one";
  EXPECT_FALSE(health.may_read(1000 + 2 * kPause - 1)) << "it did not come back";
  EXPECT_TRUE(health.may_read(1000 + 2 * kPause));
  health.note_success();
  EXPECT_TRUE(health.may_read(1000 + 2 * kPause));
  EXPECT_TRUE(health.may_read(1000 + 2 * kPause));
}

TEST(FileHealth, AShortSilenceCountsAsOneFailure) {
  FileHealth health;
  health.note_silence(1000, FileHealth::kSilenceMaxNs - 1);
  EXPECT_TRUE(health.may_read(1000)) << "the caller had little time, that says little";
  for (uint32_t i = 1; i < FileHealth::kFailuresMax; ++i) {
    health.note_silence(1000, FileHealth::kSilenceMinNs);
  }
  EXPECT_FALSE(health.may_read(1000));
}

TEST(FileHealth, ACallerWithoutTimeSaysNothingOfTheFile) {
  FileHealth health;
  for (int i = 0; i < 1000; ++i) health.note_silence(1000, FileHealth::kSilenceMinNs - 1);
  EXPECT_TRUE(health.may_read(1000));
}

}  // namespace
}  // namespace hicache
