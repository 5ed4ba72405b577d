// The log on disks that fail, fill up, hang, or hold what nobody sane wrote.
#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <set>

#include "ssd_log_rig.h"
#include "tier/ssd_log.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::FakeDisk;
using testing::key_of;
using testing::LogRig;
using testing::Random;
using Health = SsdVolume::Health;

constexpr uint64_t kRegion = 64 * kKiB;

bool is_write(const IoRequest& request) {
  return request.kind == IoKind::kWrite || request.kind == IoKind::kWriteDurable;
}

void write_pages(LogRig& rig, uint32_t count) {
  for (uint32_t n = 0; n < count; ++n) {
    rig.write({0, n});
    rig.step();
  }
}

/// A rig with a small log of one volume, quiet, sealed or not.
LogRig::Images small_log(LogRig& rig, bool is_sealed) {
  rig.open();
  EXPECT_TRUE(rig.recover());
  write_pages(rig, 10);
  rig.remove({0, 3});
  EXPECT_TRUE(rig.settle());
  if (is_sealed) {
    rig.log().seal_all();
    EXPECT_TRUE(rig.step_until([&] { return rig.log().is_quiet(); }));
  }
  const LogRig::Images images = rig.images();
  rig.close();
  return images;
}

const LogRig::Shape kSmall{
    .volume_count = 1, .region_count_max = 12, .key_count = 12, .page_size_max = 9000};

TEST(SsdLogFaults, PagesFoundDamagedWhileTheyAreCopiedAreLeftOutAndTheOthersStay) {
  HICACHE_TRACE_SEED();
  Random random(60);
  for (int round = 0; round < 20; ++round) {
    LogRig rig({.volume_count = 1, .region_count_max = 60}, 60 + round);
    std::set<uint64_t> damaged;  // Checksums.
    rig.disk(0).damage_of = [&](const IoRequest& request) {
      uint32_t found = 0;
      for (size_t i = 0; i < request.checks.size(); ++i) {
        if (!random.one_in(4)) continue;
        found |= uint32_t{1} << i;
        damaged.insert(request.checks[i].checksum);
      }
      return found;
    };
    rig.open();
    ASSERT_TRUE(rig.recover());
    std::map<LogRig::Name, uint64_t> written;
    for (uint32_t n = 0; n < 40; ++n) {
      ASSERT_TRUE(rig.write({0, n}));
      written[{0, n}] = rig.newest({0, n}).checksum;
      if (random.one_in(3)) rig.step();
    }
    ASSERT_TRUE(rig.settle());
    const auto there = rig.check_all();
    for (const auto& [name, checksum] : written) {
      EXPECT_NE(there.contains(name), damaged.contains(checksum)) << rig.text(name);
    }
    EXPECT_EQ(rig.log().volume(0).health(), Health::kGood);
    if (round % 2 == 0) {
      rig.log().seal_all();
      ASSERT_TRUE(rig.step_until([&] { return rig.log().is_quiet(); }));
    }
    LogRig second({.volume_count = 1, .region_count_max = 60}, 160 + round);
    second.put_images(rig.images());
    second.adopt_oracle(rig);
    second.open();
    ASSERT_TRUE(second.recover());
    EXPECT_EQ(second.check_all(), there);
  }
}

TEST(SsdLogFaults, AFullDiskGoesOnWithTheRegionsItHas) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1}, 1);
  rig.disk(0).set_outcome([](const IoRequest& request) {
    const bool is_beyond = request.offset >= kSuperblockSize + 5 * kRegion;
    return request.kind == IoKind::kAllocate && is_beyond ? ENOSPC : 0;
  });
  rig.open();
  ASSERT_TRUE(rig.recover());
  for (int i = 0; i < 400; ++i) {
    rig.write(rig.any_name());
    rig.step();
  }
  ASSERT_TRUE(rig.settle()) << rig.pending_count() << " pages wait";
  EXPECT_EQ(rig.log().volume(0).health(), Health::kGood);
  EXPECT_FALSE(rig.notices().empty());
  EXPECT_GT(rig.check_all().size(), 0u);
}

TEST(SsdLogFaults, AVolumeThatCannotBeWrittenIsReadAndTheOthersGoOn) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 20; ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.volume_count = 2}, stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    write_pages(rig, 20);
    rig.disk(0).set_outcome([](const IoRequest& request) { return is_write(request) ? EIO : 0; });
    for (int i = 0; i < 200; ++i) {
      if (rig.random().one_in(4)) {
        rig.remove(rig.any_name());
      } else {
        rig.write(rig.any_name());
      }
      rig.step();
    }
    ASSERT_TRUE(rig.settle());
    EXPECT_EQ(rig.log().volume(0).health(), Health::kReadOnly);
    EXPECT_EQ(rig.log().volume(1).health(), Health::kGood);
    EXPECT_GT(rig.log().counts().write_errors, 0u);
    EXPECT_GT(rig.check_all().size(), 0u);
  }
}

TEST(SsdLogFaults, WithoutAnyVolumeEverythingIsRefusedAndNothingHangs) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 2}, 1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  for (size_t i = 0; i < 2; ++i) {
    rig.disk(i).set_outcome([](const IoRequest& request) { return is_write(request) ? EIO : 0; });
  }
  write_pages(rig, 40);
  ASSERT_TRUE(rig.settle()) << rig.pending_count() << " pages wait";
  EXPECT_FALSE(rig.log().can_write());
  EXPECT_TRUE(rig.log().is_done(rig.remove({0, 1})));
  EXPECT_TRUE(rig.log().is_quiet());
}

TEST(SsdLogFaults, AWriteThatNeverCompletesEndsItsVolume) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1, .io_timeout_ms = 500}, 1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  write_pages(rig, 10);
  ASSERT_TRUE(rig.settle());
  rig.disk(0).set_outcome(
      [](const IoRequest& request) { return is_write(request) ? FakeDisk::kNever : 0; });
  rig.write({1, 1});
  const uint64_t ticket = rig.log().remove(rig.space({0, 1}), LogRig::digest_of(0), key_of(1));
  ASSERT_TRUE(rig.step_until([&] { return rig.pending_count() == 0; }));
  EXPECT_EQ(rig.log().volume(0).health(), Health::kFailed);
  EXPECT_TRUE(rig.step_until([&] { return rig.log().is_done(ticket); }));
  EXPECT_TRUE(rig.step_until([&] { return rig.log().index().page_count() == 0; }));
}

TEST(SsdLogFaults, AReadThatNeverCompletesIsAbandoned) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1, .io_timeout_ms = 500}, 1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  write_pages(rig, 4);
  ASSERT_TRUE(rig.settle());
  rig.disk(0).set_outcome([](const IoRequest& request) {
    return request.kind == IoKind::kRead ? FakeDisk::kNever : 0;
  });
  const SsdPageIndex found = rig.find({0, 2});
  ASSERT_NE(found, kNoSsdPage);
  const SsdPage page = rig.log().index()[found];
  MappedMemory memory = MappedMemory::make(sectors_of(page.size) * kSectorSize);
  rig.log().read(page, {{memory.address(), memory.size()}}, 77, rig.now_ms());
  ASSERT_TRUE(rig.step_until([&] { return !rig.reads_done().empty(); }));
  ASSERT_EQ(rig.reads_done().size(), 1u);
  EXPECT_EQ(rig.reads_done()[0], std::pair(uint64_t{77}, SsdVolume::kAbandoned));
  EXPECT_EQ(rig.find({0, 2}), kNoSsdPage);
  rig.step();
  EXPECT_EQ(rig.reads_done().size(), 1u);
}

TEST(SsdLogFaults, ReadsThatFailAreToldAndEndTheVolumeIfAllDo) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1}, 1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  write_pages(rig, 4);
  ASSERT_TRUE(rig.settle());
  rig.disk(0).set_outcome(
      [](const IoRequest& request) { return request.kind == IoKind::kRead ? EIO : 0; });
  const SsdPage page = rig.log().index()[rig.find({0, 2})];
  MappedMemory memory = MappedMemory::make(sectors_of(page.size) * kSectorSize);
  while (rig.log().volume(0).health() == Health::kGood) {
    const size_t before = rig.reads_done().size();
    rig.log().read(page, {{memory.address(), memory.size()}}, before, rig.now_ms());
    ASSERT_TRUE(rig.step_until([&] { return rig.reads_done().size() > before; }));
    ASSERT_EQ(rig.reads_done().back(), std::pair(before, EIO));
    ASSERT_LT(before, 1000u);
  }
  EXPECT_EQ(rig.log().volume(0).health(), Health::kFailed);
  EXPECT_EQ(rig.log().counts().read_errors, rig.reads_done().size());
}

TEST(SsdLogFaults, ARemovalHoldsForAPageFoundDamaged) {
  HICACHE_TRACE_SEED();
  LogRig rig(kSmall, 1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  write_pages(rig, 4);
  ASSERT_TRUE(rig.settle());
  rig.log().drop_damaged(rig.log().index()[rig.find({0, 2})].place);
  EXPECT_EQ(rig.find({0, 2}), kNoSsdPage);
  EXPECT_NE(rig.remove({0, 2}), 0u);
  ASSERT_TRUE(rig.settle());
  const auto images = rig.images();
  rig.close();
  rig.put_images(images);
  rig.open();
  ASSERT_TRUE(rig.recover());
  EXPECT_EQ(rig.check_all().size(), 3u);
}

TEST(SsdLogFaults, ManyDamagedPagesEndNoDirectory) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1, .region_count_max = 60}, 1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  write_pages(rig, 50);
  ASSERT_TRUE(rig.settle());
  for (uint32_t n = 0; n < 40; ++n) {
    rig.log().drop_damaged(rig.log().index()[rig.find({0, n})].place);
    rig.step();
  }
  EXPECT_EQ(rig.log().counts().corrupt_pages, 40u);
  EXPECT_EQ(rig.log().volume(0).health(), Health::kGood);
  EXPECT_EQ(rig.check_all().size(), 10u);
  write_pages(rig, 20);
  ASSERT_TRUE(rig.settle());
  EXPECT_EQ(rig.check_all().size(), 30u);
}

TEST(SsdLogFaults, ALateReportOfDamageLeavesWhatWasWrittenThereSince) {
  HICACHE_TRACE_SEED();
  LogRig rig({.volume_count = 1, .key_count = 30}, 1);
  rig.open();
  ASSERT_TRUE(rig.recover());
  struct Sent {
    SsdPlace place;
    uint32_t token;
  };
  std::vector<Sent> sent;
  uint64_t reused = 0;
  for (int i = 0; i < 600; ++i) {
    const LogRig::Name name = rig.any_name();
    rig.write(name);
    ASSERT_TRUE(rig.settle());
    const SsdPageIndex found = rig.find(name);
    ASSERT_NE(found, kNoSsdPage);
    const SsdPage page = rig.log().index()[found];
    for (const Sent& earlier : sent) {
      if (earlier.place != page.place) continue;
      ++reused;
      rig.log().drop_damaged(earlier.place.region, earlier.token);
      ASSERT_NE(rig.find(name), kNoSsdPage) << "a report about an earlier life took it";
    }
    if (rig.random().one_in(10)) {
      rig.log().drop_damaged(page.place.region, rig.log().token_of(page));
      EXPECT_EQ(rig.find(name), kNoSsdPage);
    } else {
      sent.push_back({page.place, rig.log().token_of(page)});
    }
  }
  EXPECT_GT(reused, 0u);
}

TEST(SsdLogFaults, LittleSpaceShrinksTheLogAndLosesNoRegion) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 20; ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.volume_count = 1}, stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    for (int i = 0; i < 600; ++i) {
      if (rig.random().one_in(40)) {
        rig.log().note_free_space(0, rig.random().one_in(2) ? 0 : 100 * kMiB, kMiB, rig.now_ms());
      }
      rig.random().one_in(5) ? (void)rig.remove(rig.any_name()) : (void)rig.write(rig.any_name());
      rig.step();
      rig.check(rig.any_name());
    }
    const auto used = [&] { return rig.log().volume(0).used_region_count(); };
    ASSERT_TRUE(rig.step_until([&] {
      if (rig.now_ms() % 50 == 0) rig.log().note_free_space(0, 0, kMiB, rig.now_ms());
      return used() <= 1;
    })) << used()
        << " regions are still in use";
    rig.log().note_free_space(0, 100 * kMiB, kMiB, rig.now_ms());
    write_pages(rig, 40);
    ASSERT_TRUE(rig.settle()) << rig.pending_count() << " pages wait";
    EXPECT_GT(rig.check_all().size(), 4u);
    rig.check_space();
  }
}

TEST(SsdLogFaults, RecoveryLeavesAloneWhatItCannotRead) {
  HICACHE_TRACE_SEED();
  for (const bool is_sealed : {false, true}) {
    for (const int outcome : {EIO, FakeDisk::kNever}) {
      SCOPED_TRACE("sealed " + std::to_string(is_sealed) + ", " + std::to_string(outcome));
      LogRig::Shape shape = kSmall;
      shape.io_timeout_ms = outcome == EIO ? 10'000 : 30;
      LogRig rig(shape, 2);
      const auto images = small_log(rig, is_sealed);
      rig.put_images(images);
      rig.allow_damage();
      rig.disk(0).set_outcome([outcome](const IoRequest& request) {
        return request.kind == IoKind::kRead && request.offset < kSuperblockSize + kRegion ? outcome
                                                                                           : 0;
      });
      rig.open();
      ASSERT_TRUE(rig.recover());
      // With one that hangs the volume is given up; else only the first region.
      EXPECT_EQ(rig.log().volume(0).state(0) == SsdVolume::RegionState::kFree, false);
      rig.check_all();
      write_pages(rig, 12);
      rig.step_until([&] { return rig.pending_count() == 0; }, 2000);
      rig.close();
      EXPECT_TRUE(std::equal(images[0].begin() + kSuperblockSize,
                             images[0].begin() + kSuperblockSize + kRegion,
                             rig.images()[0].begin() + kSuperblockSize))
          << "what could not be read was written over";
    }
  }
}

/// A region's head, and a footer, that are well formed and tell lies.
void put_lies(Random& random, std::vector<uint8_t>& image, uint32_t region) {
  const LogId log_id = LogRig::log_id(1000);
  const auto entry_of = [&](uint32_t first_sector) {
    SsdEntry entry;
    entry.kind = random.one_in(4) ? SsdEntryKind::kRemoved : SsdEntryKind::kPage;
    entry.key = key_of(random.below(12));
    entry.name_space = LogRig::digest_of(static_cast<uint32_t>(random.below(3)));
    entry.sequence = random.one_in(3) ? random.bits() : random.below(100);
    if (entry.kind == SsdEntryKind::kRemoved) return entry;
    entry.size = random.one_in(3) ? random.bits() : random.size_up_to(kRegion);
    entry.checksum = random.bits();
    entry.parent_key_hash = random.below(3);
    entry.first_sector = random.one_in(4) ? static_cast<uint32_t>(random.bits()) : first_sector;
    return entry;
  };
  const std::vector<uint64_t> sequences{
      1, 1, 7, UINT64_MAX, UINT64_MAX - 1, (uint64_t{1} << 62) + 1};
  const uint64_t sequence = random.pick(sequences);
  uint8_t* const base = image.data() + kSuperblockSize + region * kRegion;
  for (uint32_t at = 0; at < 12; at += 1 + static_cast<uint32_t>(random.below(4))) {
    GroupHeader header{.region_sequence = random.one_in(5) ? random.bits() : sequence,
                       .number = static_cast<uint32_t>(random.below(4)),
                       .sector_count = static_cast<uint32_t>(random.below(18)),
                       .written_at_s = random.bits(),
                       .entries = {}};
    for (uint64_t i = random.below(4); i != 0; --i) {
      header.entries.push_back(entry_of(at + 1 + static_cast<uint32_t>(header.entries.size())));
    }
    encode(log_id, header, MutableSector(base + at * kSectorSize, kSectorSize));
  }
  if (random.one_in(3)) return;
  std::vector<SsdEntry> entries;
  for (uint64_t i = random.below(70); i != 0; --i) {
    entries.push_back(entry_of(1 + static_cast<uint32_t>(entries.size())));
  }
  const uint64_t size = footer_sectors(entries.size()) * kSectorSize;
  const auto sector_count = static_cast<uint32_t>(random.below(20));
  encode_footer(log_id, sequence, sector_count, entries, {base + kRegion - size, size});
}

TEST(SsdLogFaults, HostileFilesEndInNothingWorseThanMisses) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 150 && !HasFailure(); ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    Random random(7000 + stream);
    LogRig::Images images(1, std::vector<uint8_t>(kSuperblockSize + 6 * kRegion));
    for (uint32_t region = 0; region < 6; ++region) {
      if (random.one_in(4)) {
        random.fill({images[0].data() + kSuperblockSize + region * kRegion, kRegion});
      }
      if (!random.one_in(6)) put_lies(random, images[0], region);
      if (region != 0 && random.one_in(5)) {
        std::copy_n(images[0].begin() + kSuperblockSize, kRegion,
                    images[0].begin() + static_cast<ptrdiff_t>(kSuperblockSize + region * kRegion));
      }
    }
    LogRig rig(kSmall, stream);
    rig.put_images(images);
    rig.open();
    ASSERT_TRUE(rig.recover());
    EXPECT_EQ(rig.log().index().check_invariants(), "");
    // It is as good a place for new pages as any other.
    rig.clear(0);
    ASSERT_TRUE(rig.settle());
    for (uint32_t i = 0; i < 40; ++i) {
      rig.write({0, i % 12});
      rig.step();
    }
    ASSERT_TRUE(rig.settle()) << rig.pending_count() << " pages wait";
    EXPECT_GT(rig.check_all().size(), 0u);
    EXPECT_EQ(rig.log().index().check_invariants(), "");
    const auto before = rig.check_all();
    const auto left = rig.images();
    rig.close();
    rig.put_images(left);
    rig.lease_everything(true);
    rig.open();
    ASSERT_TRUE(rig.recover());
    EXPECT_LE(before.size(), rig.check_all().size());
  }
}

/// A real file, a real device, and recovery's real thread beside its owner.
TEST(SsdLogOnAFile, LivesThroughRestarts) {
  HICACHE_TRACE_SEED();
  const int fd = memfd_create("ssd_log_test", MFD_CLOEXEC);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(ftruncate(fd, kSuperblockSize), 0);
  Random random(9);
  std::map<uint64_t, std::vector<uint8_t>> pages;
  std::set<uint64_t> removed;
  uint64_t next = 0;
  for (int life = 0; life < 6; ++life) {
    const auto size = static_cast<uint64_t>(lseek(fd, 0, SEEK_END));
    std::map<uint64_t, bool> written;
    SsdLog::Options options;
    options.files = {
        {.path = "memfd",
         .fd = fd,
         .log_id = LogRig::log_id(1),
         .region_size_bytes = 256 * kKiB,
         .region_count = static_cast<uint32_t>((size - kSuperblockSize) / (256 * kKiB)),
         .region_count_max = 64}};
    options.make_device = [life]() -> std::unique_ptr<BlockDevice> {
      const IoEngine engine = life % 2 == 0 ? IoEngine::kThreads : IoEngine::kAuto;
      auto device = BlockDevice::make({.engine = engine, .depth = 16});
      return device.ok() ? std::move(device.value()) : nullptr;
    };
    std::atomic<uint64_t> wakes{0};
    options.page_checksum = testing::checksum_of;
    options.space_of = [](const NamespaceDigest&) { return SpaceIndex{1}; };
    options.is_leased = [](RegionIndex) { return false; };
    options.is_promised = [](RegionIndex) { return false; };
    options.is_in_dram = [](uint64_t) { return false; };
    options.on_written = [&](uint64_t tag, bool ok) { written[tag] = ok; };
    options.on_read = [](uint64_t, int) {};
    options.on_notice = [](const std::string&) {};
    options.wake = [&wakes] { ++wakes; };
    options.io_timeout_ms = 60'000;
    options.write_depth = 4;
    SsdLog log(std::move(options), monotonic_ms());
    const auto advance = [&] {
      log.advance(monotonic_ms(), 1);
      sched_yield();
    };
    const Deadline deadline = Deadline::after_ms(60'000);
    while (!log.can_write() && !deadline.expired()) advance();
    ASSERT_TRUE(log.can_write());
    // While recovery goes on: new pages, and old ones removed.
    size_t asked = 0;
    for (int i = 0; i < 60; ++i, ++asked) {
      const uint64_t n = next++;
      pages[n] = bytes_of(n, random.between(1, 30'000));
      MappedMemory memory = MappedMemory::make(sectors_of(pages[n].size()) * kSectorSize);
      std::copy(pages[n].begin(), pages[n].end(), memory.address());
      const std::vector<iovec> parts{{memory.address(), memory.size()}};
      log.write({1,
                 {},
                 key_of(n),
                 pages[n].size(),
                 testing::checksum_of(pages[n]),
                 0,
                 parts,
                 std::move(memory),
                 n});
      if (i % 5 == 0) {
        const uint64_t gone = random.below(next);
        log.remove(1, {}, key_of(gone));
        removed.insert(gone);
      }
      advance();
    }
    const auto is_settled = [&] {
      return written.size() == asked && !log.is_recovering() && log.writing_bytes() == 0;
    };
    while (!is_settled() && !deadline.expired()) advance();
    ASSERT_TRUE(is_settled());
    log.seal_all();
    while (!log.is_quiet() && !deadline.expired()) advance();
    ASSERT_TRUE(log.is_quiet());
    EXPECT_GT(wakes.load(), 0u);
    for (const auto& [n, bytes] : pages) {
      const SsdPageIndex found = log.find(1, key_of(n), page_hash(1, key_of(n)));
      ASSERT_EQ(found != kNoSsdPage, !removed.contains(n)) << "life " << life << ", page " << n;
      if (found == kNoSsdPage) continue;
      std::vector<uint8_t> read(bytes.size());
      ASSERT_EQ(pread(fd, read.data(), read.size(),
                      static_cast<off_t>(log.file_offset(log.index()[found]))),
                static_cast<ssize_t>(read.size()));
      ASSERT_EQ(read, bytes) << "life " << life << ", page " << n;
    }
  }
  close(fd);
}

}  // namespace
}  // namespace hicache
