// Removals that their own disk cannot keep, and pages that lie on the disks more than once.
#include <gtest/gtest.h>

#include "ssd_log_rig.h"
#include "tier/ssd_log.h"

namespace hicache {
namespace {

using testing::FakeDisk;
using testing::LogRig;
using testing::soak_rounds;
using Health = SsdVolume::Health;

bool is_write(const IoRequest& request) {
  return request.kind == IoKind::kWrite || request.kind == IoKind::kWriteDurable;
}

void write_pages(LogRig& rig, uint32_t count) {
  for (uint32_t n = 0; n < count; ++n) {
    rig.write({n % 2, n});
    rig.step();
  }
  ASSERT_TRUE(rig.settle());
}

void restart(LogRig& rig) {
  const LogRig::Images images = rig.images();
  rig.close();
  rig.put_images(images);
  rig.open();
  ASSERT_TRUE(rig.recover());
}

TEST(SsdLogRemovals, OfADirectoryThatCannotBeWrittenStandInAnother) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 20 * soak_rounds() && !HasFailure(); ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.volume_count = 3}, 3000 + stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    write_pages(rig, 40);
    const size_t broken = stream % 3;
    rig.disk(broken).set_outcome([](const IoRequest& asked) { return is_write(asked) ? EIO : 0; });
    for (int i = 0; i < 100; ++i) {
      const uint64_t chosen = rig.random().below(8);
      if (chosen == 0 && i > 50 && rig.random().one_in(4)) {
        rig.clear(static_cast<uint32_t>(rig.random().below(2)));
      } else {
        chosen < 3 ? (void)rig.remove(rig.any_name()) : (void)rig.write(rig.any_name());
      }
      rig.step();
    }
    EXPECT_EQ(rig.log().volume(broken).health(), Health::kReadOnly);
    rig.clear(0);
    const uint64_t ticket = rig.remove({1, 1});
    ASSERT_TRUE(rig.settle());
    EXPECT_FALSE(rig.log().is_lost(ticket));
    rig.check_all();
    restart(rig);  // All disks are well again.
    for (const auto& [name, id] : rig.check_all()) EXPECT_NE(name.first, 0u) << rig.text(name);
  }
}

TEST(SsdLogRemovals, ReachAPageWhoseWriteFailedAndIsThereAllTheSame) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 20; ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.volume_count = 2}, 4000 + stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    write_pages(rig, 8);
    // Most of what a write brings has come through when it fails.
    rig.disk(0).set_outcome([](const IoRequest& asked) { return is_write(asked) ? EIO : 0; });
    for (uint32_t n = 20; n < 24; ++n) rig.write({1, n});
    ASSERT_TRUE(rig.settle());
    for (uint32_t n = 20; n < 24; ++n) EXPECT_FALSE(rig.log().is_lost(rig.remove({1, n})));
    ASSERT_TRUE(rig.settle());
    restart(rig);
    rig.check_all();
    for (uint32_t n = 20; n < 24; ++n) EXPECT_EQ(rig.find({1, n}), kNoSsdPage) << n;
  }
}

TEST(SsdLogRemovals, NothingThatWasClearedIsSeenWhileRecoveryGoesOn) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 20 * soak_rounds() && !HasFailure(); ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.volume_count = 2, .space_count = 1, .page_size_max = 12 * kKiB}, 50 + stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    // What is open on the one is older, sooner or later, than what the other has filled since.
    for (uint64_t i = rig.random().between(1, 30); i != 0; --i) {
      rig.write(rig.any_name());
      rig.step();
    }
    ASSERT_TRUE(rig.settle());
    rig.disk(1).set_outcome([](const IoRequest& asked) { return is_write(asked) ? EIO : 0; });
    while (rig.log().volume(1).health() == Health::kGood) {
      rig.write(rig.any_name());
      rig.step();
    }
    rig.clear(0);
    ASSERT_TRUE(rig.settle());
    const LogRig::Images images = rig.images();
    rig.close();
    rig.put_images(images);
    rig.open();
    while (rig.log().is_recovering() && !HasFailure()) {
      rig.step(0);
      EXPECT_EQ(rig.log().index().page_count(), 0u);
      sched_yield();
    }
  }
}

TEST(SsdLogRemovals, AreLostIfNoDirectoryCanBeWrittenAndSaySo) {
  HICACHE_TRACE_SEED();
  for (const bool is_clear : {false, true}) {
    SCOPED_TRACE(is_clear ? "clear" : "remove");
    LogRig rig({.volume_count = 2}, 6);
    rig.open();
    ASSERT_TRUE(rig.recover());
    write_pages(rig, 8);  // So few that none has to make room for another.
    const uint64_t kept = rig.remove({0, 2});
    ASSERT_NE(kept, 0u);
    EXPECT_FALSE(rig.log().is_lost(kept));
    ASSERT_TRUE(rig.settle());
    for (size_t i = 0; i < 2; ++i) {
      rig.disk(i).set_outcome([](const IoRequest& asked) { return is_write(asked) ? EIO : 0; });
    }
    // Of one whose write fails.
    const uint64_t first = is_clear ? rig.clear(0) : rig.remove({0, 4});
    ASSERT_NE(first, 0u);
    ASSERT_TRUE(rig.step_until([&] { return rig.log().is_done(first); }));
    ASSERT_TRUE(rig.step_until([&] { return rig.log().is_lost(first); }));
    EXPECT_FALSE(rig.log().can_write());
    // Of one that nobody can write, and of the same once more.
    for (int i = 0; i < 2; ++i) {
      const uint64_t later = rig.remove({0, 6});
      ASSERT_NE(later, 0u);
      EXPECT_TRUE(rig.log().is_done(later) && rig.log().is_lost(later));
      EXPECT_EQ(rig.find({0, 6}), kNoSsdPage);
    }
  }
}

TEST(SsdLogRemovals, HoldForPagesThatCouldNotBeReadAtTheStart) {
  HICACHE_TRACE_SEED();
  for (const bool is_all : {false, true}) {
    SCOPED_TRACE(is_all ? "nothing could be read" : "one region could not be read");
    LogRig rig({.volume_count = 2, .region_count_max = 24, .space_count = 1}, 7);
    rig.open();
    ASSERT_TRUE(rig.recover());
    for (uint32_t n = 0; n < 40; ++n) {
      rig.write({0, n});
      rig.step();
    }
    ASSERT_TRUE(rig.settle());
    const LogRig::Images images = rig.images();
    rig.close();
    rig.put_images(images);
    rig.disk(1).set_outcome([is_all](const IoRequest& asked) {
      const bool is_it = is_all || asked.offset < kSuperblockSize + 64 * kKiB;
      return is_it && asked.kind == IoKind::kRead ? EIO : 0;
    });
    if (is_all) {  // What is left there says nothing of the numbers that were given out.
      rig.disk(0).set_outcome(
          [](const IoRequest& asked) { return asked.kind == IoKind::kRead ? EIO : 0; });
    }
    rig.open();
    ASSERT_TRUE(rig.recover());
    EXPECT_GT(rig.log().counts().read_errors, 0u);
    for (uint32_t n = 0; n < 40; ++n) EXPECT_NE(rig.remove({0, n}), 0u);
    ASSERT_TRUE(rig.settle());
    restart(rig);
    EXPECT_EQ(rig.check_all().size(), 0u);
  }
}

/// Has a volume reclaimed until no region of it is left that nobody reads.
void empty_volume(LogRig& rig, size_t volume, uint32_t left) {
  ASSERT_TRUE(rig.step_until([&] {
    if (rig.now_ms() % 20 == 0) rig.log().note_free_space(volume, 0, kMiB, rig.now_ms());
    return rig.log().volume(volume).used_region_count() <= left;
  }));
}

void seal_all(LogRig& rig) {
  ASSERT_TRUE(rig.settle());
  rig.log().seal_all();
  ASSERT_TRUE(rig.step_until([&] { return rig.log().is_quiet(); }));
}

TEST(SsdLogRemovals, AnOlderCopyThatRecoveryFindsDuringAWriteStaysAway) {
  HICACHE_TRACE_SEED();
  constexpr uint32_t kCount = 24;
  for (uint64_t stream = 0; stream < 40 * soak_rounds() && !HasFailure(); ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.volume_count = 2, .region_count_max = 24, .space_count = 1}, 4000 + stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    for (uint32_t n = 0; n < kCount; ++n) {
      rig.write({0, n});
      rig.step();
    }
    seal_all(rig);
    const LogRig::Images images = rig.images();
    rig.close();
    rig.put_images(images);
    rig.hold_recovery(true);
    rig.open();
    while (!rig.log().can_write()) rig.step(0);
    std::set<uint32_t> again;
    for (uint32_t n = 0; n < kCount; n += 1 + static_cast<uint32_t>(rig.random().below(3))) {
      ASSERT_EQ(rig.find({0, n}), kNoSsdPage) << "recovery was not held";
      ASSERT_TRUE(rig.write({0, n}));
      again.insert(n);
    }
    for (uint64_t i = rig.random().below(3); i != 0; --i) rig.step(0);
    rig.hold_recovery(false);
    ASSERT_TRUE(rig.recover());
    seal_all(rig);
    // The newer copies go with their region, then the page is removed.
    empty_volume(rig, 1, 1);
    for (const uint32_t n : again) {
      if (rig.find({0, n}) == kNoSsdPage) rig.remove({0, n});
    }
    ASSERT_TRUE(rig.settle());
    restart(rig);
    rig.check_all();
  }
}

TEST(SsdLogRemovals, OfAPageForgottenTwiceReachTheCopyThatIsLeft) {
  HICACHE_TRACE_SEED();
  uint64_t tried = 0;
  for (uint64_t stream = 0; stream < 20 && !HasFailure(); ++stream) {
    SCOPED_TRACE("stream " + std::to_string(stream));
    LogRig rig({.volume_count = 1, .space_count = 1, .page_size_max = 4 * kKiB}, 80 + stream);
    rig.open();
    ASSERT_TRUE(rig.recover());
    const auto region_of = [&](uint32_t n) {
      return rig.log().index()[rig.find({0, n})].place.region;
    };
    rig.write({0, 3});
    seal_all(rig);
    rig.write({0, 2});
    bool is_together = true;
    for (int copy = 0; copy < 2; ++copy) {
      rig.write({0, 1});
      ASSERT_TRUE(rig.settle());
      if (copy == 0) {
        is_together = region_of(1) == region_of(2);
        rig.lease({0, 2});  // So their region stays.
      }
      rig.log().drop_damaged(rig.log().index()[rig.find({0, 1})].place);
      seal_all(rig);
    }
    if (!is_together) continue;
    ++tried;
    empty_volume(rig, 0, 1);
    EXPECT_NE(rig.remove({0, 1}), 0u);
    rig.release_all();
    rig.log().note_free_space(0, 100 * kMiB, kMiB, rig.now_ms());
    ASSERT_TRUE(rig.settle());
    restart(rig);
    EXPECT_EQ(rig.check({0, 1}), nullptr);
  }
  EXPECT_GT(tried, 0u);
}

/// Cuts the power after each step of a write: what was removed must be so on what is left.
class Cutter {
 public:
  Cutter(LogRig& rig, const LogRig::Shape& shape) : rig_(rig), shape_(shape), random_(11) {
    for (uint32_t i = 0; i < shape.volume_count; ++i) rig.disk(i).on_write_step = [this] { cut(); };
  }
  ~Cutter() {
    for (uint32_t i = 0; i < shape_.volume_count; ++i) rig_.disk(i).on_write_step = [] {};
  }

 private:
  void cut() {
    if (::testing::Test::HasFailure()) return;
    LogRig survivor(shape_, 12);
    survivor.put_images(rig_.cut(random_));
    survivor.adopt_oracle(rig_);
    survivor.allow_damage();
    survivor.lease_everything(true);
    survivor.open();
    EXPECT_TRUE(survivor.recover());
    survivor.check_all();
  }

  LogRig& rig_;
  const LogRig::Shape shape_;
  testing::Random random_;
};

TEST(SsdLogRemovals, OfOtherDirectoriesOutliveRegionsThatMustGoAtOnce) {
  HICACHE_TRACE_SEED();
  constexpr uint64_t kStreamsMin = 10;
  constexpr uint64_t kStreamsMax = 200;  // One in seven meets a full disk.
  ptrdiff_t full_count = 0;
  for (uint32_t volume_count = 2; volume_count < 4; ++volume_count) {
    const bool is_last = volume_count == 3;
    for (uint64_t stream = 0; stream < kStreamsMax && !HasFailure(); ++stream) {
      if (stream >= kStreamsMin && (!is_last || full_count != 0)) break;
      SCOPED_TRACE("volumes " + std::to_string(volume_count) + ", stream " +
                   std::to_string(stream));
      const LogRig::Shape shape{.volume_count = volume_count,
                                .region_count_max = 10,
                                .space_count = 1,
                                .key_count = 240,
                                .page_size_max = 12 * kKiB};
      LogRig rig(shape, 9000 + stream);
      rig.open();
      ASSERT_TRUE(rig.recover());
      for (uint32_t n = 0; n < 40; ++n) {
        rig.write({0, n});
        rig.step();
      }
      seal_all(rig);
      // The last directory cannot be written any more, the first gets no more space.
      const size_t last = volume_count - 1;
      rig.disk(last).set_outcome([](const IoRequest& asked) { return is_write(asked) ? EIO : 0; });
      while (rig.log().volume(last).can_write()) {
        rig.write({0, static_cast<uint32_t>(100 + rig.random().below(100))});
        rig.step();
      }
      const uint64_t end = rig.disk(0).size();
      rig.disk(0).set_outcome([end](const IoRequest& asked) {
        return asked.kind == IoKind::kAllocate && asked.offset >= end ? ENOSPC : 0;
      });
      const Cutter cutter(rig, shape);
      for (uint32_t n = 0; n < 40; ++n) rig.remove({0, n});
      const uint64_t before = rig.log().counts().dropped_pages;
      for (uint32_t i = 0; i < 120 && !HasFailure(); ++i) {
        rig.write({0, 100 + i});
        // There seems to be space, time and again.
        if (i % 4 == 0) rig.log().note_free_space(0, 100 * kMiB, kMiB, rig.now_ms());
        for (int step = 0; step < 3; ++step) rig.step();
      }
      EXPECT_GT(rig.log().counts().dropped_pages, before);
      const auto is_full = [](const std::string& notice) {
        return notice.find("no space for another region") != std::string::npos;
      };
      full_count += std::count_if(rig.notices().begin(), rig.notices().end(), is_full);
    }
  }
  EXPECT_GT(full_count, 0);
}

}  // namespace
}  // namespace hicache
