// What a node tells, and what the directory then knows: a real page store, a real index of SSDs and
// the real directory, over a link that loses, delays and repeats.
#include "store/announcer.h"

#include <gtest/gtest.h>

#include <deque>
#include <memory>

#include "directory_rig.h"
#include "support.h"

namespace hicache {
namespace {

using testing::directory_options;
using testing::key_of;
using testing::locate;
using testing::member_of;
using testing::Random;

constexpr uint64_t kCapacity = 2 * kMiB;
constexpr uint64_t kPageSize = 64 * kKiB;
constexpr uint64_t kKeys = 60;
constexpr size_t kSpaces = 3;
constexpr size_t kRegions = 6;
constexpr Announcer::Options kSmall{
    .changes_max = 4, .batches_max = 3, .pending_max = 40, .walk_count = 5};

/// One node's store and SSDs, without bytes.
class Shelves {
 public:
  Shelves()
      : store({.capacity_bytes = kCapacity,
               .eviction = EvictionKind::kLru,
               .seed = 1,
               .read_lease_ttl_ms = 1000,
               .lookup_lease_ttl_ms = 1000,
               .lookup_lease_share = 0.5,
               .hard_pin_share = 0.5,
               .reservation_ttl_ms = 1000,
               .grow = nullptr}),
        index(64),
        session_(store.open_session()) {
    store.add_memory(0, kCapacity);
    for (size_t i = 0; i < kSpaces; ++i) (void)store.open_namespace(digest(i), "");
    for (size_t i = 0; i < kRegions; ++i) index.begin_region(index.add_region(), ++sequence_);
  }

  static NamespaceDigest digest(size_t space) { return key_of(9'000 + space); }

  void put(size_t space, uint64_t key, uint64_t checksum, uint64_t ttl_ms = 0) {
    std::vector<PageStore::Placement> placements;
    const Key name = key_of(key);
    const PageStore::ReserveOptions options{
        .parent = nullptr, .chained = false, .replace = true, .pin = Pin::kNone};
    store.reserve(session_, static_cast<NamespaceIndex>(space), {&name, 1}, {&kPageSize, 1},
                  options, now_ms, placements);
    if (placements[0].code != Code::kOk) return;
    (void)store.commit(session_, placements[0].ref, checksum, {ttl_ms, true}, now_ms);
  }

  /// As the SSD tier does once a page is on its disk.
  void write_out(size_t space, uint64_t key) {
    const SpaceIndex life = store.space_of(static_cast<NamespaceIndex>(space));
    const PageIndex page = store.find_present(life, key_of(key));
    if (page == kNoPage) return;
    SsdPage written;
    written.key = key_of(key);
    written.sequence = ++sequence_;
    written.checksum = store.record(page).checksum;
    written.space = life;
    written.size = static_cast<uint32_t>(store.record(page).size);
    written.place = {static_cast<RegionIndex>(sequence_ % kRegions), 0};
    (void)index.insert(written);
  }

  void remove(size_t space, uint64_t key) {
    (void)store.remove(static_cast<NamespaceIndex>(space), key_of(key));
    const SpaceIndex life = store.space_of(static_cast<NamespaceIndex>(space));
    const SsdPageIndex below = index.find(life, key_of(key));
    if (below != kNoSsdPage) index.erase(below);
  }

  void clear(size_t space) {
    dropping_.push_back(store.space_of(static_cast<NamespaceIndex>(space)));
    (void)store.clear(static_cast<NamespaceIndex>(space));
  }

  /// Of what was cleared, a part.
  void sweep() {
    if (!dropping_.empty() && !index.drop_space(dropping_.front(), 7)) dropping_.pop_front();
    (void)store.advance(now_ms);
  }

  /// What the directory should say of a page: it is the slow, obvious way.
  Replica truth(size_t space, uint64_t key) const {
    const SpaceIndex life = store.space_of(static_cast<NamespaceIndex>(space));
    Replica found;
    uint64_t checksum = 0;
    for (PageIndex page = 0; page < store.record_count(); ++page) {
      const PageRecord& record = store.record(page);
      if (record.state != PageState::kPresent || record.space != life) continue;
      if (record.key != key_of(key)) continue;
      found.tiers = kInDram;
      checksum = record.checksum;
    }
    for (SsdPageIndex page = 0; page < index.record_count(); ++page) {
      if (index.is_free(page) || index[page].space != life) continue;
      if (index[page].key != key_of(key)) continue;
      if (found.tiers != 0 && index[page].checksum != checksum) continue;
      found.tiers |= kOnSsd;
      checksum = index[page].checksum;
    }
    found.generation = static_cast<uint32_t>(checksum ^ (checksum >> 32));
    return found;
  }

  uint64_t now_ms = 1;
  PageStore store;
  SsdIndex index;

 private:
  const SessionIndex session_;
  uint64_t sequence_ = 0;
  std::deque<SpaceIndex> dropping_;
};

/// The node, the directory, and the link between them.
class World {
 public:
  explicit World(uint64_t stream, const Announcer::Options& options = kSmall)
      : random(stream),
        announcer(options, shelves.store, &shelves.index),
        directory(directory_options()) {
    shelves.store.set_listener(announcer);
    shelves.index.set_listener(announcer);
    directory.lead(epoch_);
  }

  void change_something() {
    const size_t space = random.below(kSpaces);
    const uint64_t key = random.below(kKeys);
    shelves.now_ms += random.below(5);
    switch (random.below(24)) {
      case 0:
        return shelves.remove(space, key);
      case 1:
        return random.one_in(4) ? shelves.clear(space) : shelves.sweep();
      case 2:
        return (void)shelves.index.drop_region(static_cast<RegionIndex>(random.below(kRegions)));
      case 3:
        return shelves.put(space, key, random.bits(), 1 + random.below(20));
      case 4:
      case 5:
      case 6:
      case 7:
      case 8:
        return shelves.write_out(space, key);
      case 9:
        return shelves.sweep();
      default:
        return shelves.put(space, key, random.bits());
    }
  }

  void upset_something() {
    switch (random.below(60)) {
      case 0:
        return lose_connection();
      case 1:
        lose_connection();
        return directory.lead(++epoch_);
      case 2:  // The directory takes it for dead.
        lose_connection();
        shelves.now_ms += 10'000;
        (void)directory.advance(shelves.now_ms);
        (void)directory.advance(shelves.now_ms + 1000);
        return;
      case 3: {
        const NamespaceDigest digest = Shelves::digest(random.below(kSpaces));
        if (random.one_in(2)) return (void)directory.apply(ClearSpaceRequest{0, digest});
        return clear_everywhere(random.below(kSpaces));
      }
      case 4:
        return announcer.announce_again();
      case 5:
        return announcer.resend();
      default:
        return;
    }
  }

  /// The node's side, and some of what is on its way.
  void talk() {
    if (!is_joined_) {
      if (random.one_in(3)) join();
      return;
    }
    carry_out_orders();
    for (uint64_t turns = random.below(3); turns != 0; --turns) {
      const Announcer::Batch* batch = announcer.next(shelves.now_ms);
      if (batch == nullptr) break;
      announcer.sent(batch->sequence);
      on_their_way_.push_back({joined_epoch_, node_, incarnation_, batch->sequence, orders_done_,
                               batch->kind, batch->digest, batch->changes});
    }
    // What an earlier connection still carries comes in whenever it likes.
    if (!late_.empty() && random.one_in(4)) {
      (void)directory.apply(late_.front());
      late_.pop_front();
    }
    if (!on_their_way_.empty() && random.one_in(2)) deliver();
    if (!answers_.empty() && random.one_in(2)) answer();
  }

  void settle() {
    for (int turns = 0; turns < 1'000'000; ++turns) {
      if (is_joined_ && announcer.is_settled() && orders_done_ == orders_taken_ &&
          on_their_way_.empty() && answers_.empty() && late_.empty() && !has_orders()) {
        return;
      }
      shelves.sweep();
      talk();
    }
    FAIL() << "it does not settle";
  }

  void expect_truth() {
    for (size_t space = 0; space < kSpaces; ++space) {
      for (uint64_t key = 0; key < kKeys; ++key) {
        const Replica truth = shelves.truth(space, key);
        const LocateReply reply = locate(directory, {key_of(key)}, Shelves::digest(space));
        ASSERT_EQ(reply.replicas.size(), truth.tiers == 0 ? 0U : 1U) << space << ' ' << key;
        if (truth.tiers == 0) continue;
        ASSERT_EQ(reply.replicas[0].tiers, truth.tiers) << space << ' ' << key;
        ASSERT_EQ(reply.replicas[0].generation, truth.generation) << space << ' ' << key;
      }
    }
    ASSERT_EQ(directory.check_invariants(), "");
  }

  Random random;
  Shelves shelves;
  Announcer announcer;
  Directory directory;

 private:
  struct Answer {
    uint64_t sequence;
    BatchReply reply;
  };

  void join() {
    const JoinReply reply =
        directory.apply(JoinRequest{0, member_of("one", incarnation_)}, ++session_, shelves.now_ms);
    ASSERT_EQ(reply.head.code, Code::kOk) << reply.message;
    is_joined_ = true;
    node_ = reply.node;
    if (reply.head.epoch != joined_epoch_) {
      orders_taken_ = orders_done_ = 0;
      announcer.set_paused(false);
    }
    joined_epoch_ = reply.head.epoch;
    announcer.joined(reply.must_announce, reply.next_sequence);
  }

  /// Some of what was sent is never taken, some is taken and never answered, some comes later.
  void lose_connection() {
    directory.disconnected(session_, shelves.now_ms);
    is_joined_ = false;
    answers_.clear();
    while (!on_their_way_.empty() && random.one_in(2)) {
      (void)directory.apply(on_their_way_.front());
      on_their_way_.pop_front();
    }
    const bool is_lost = random.one_in(2);
    for (BatchRequest& batch : std::exchange(on_their_way_, {})) {
      if (!is_lost) late_.push_back(std::move(batch));
    }
  }

  void deliver() {
    const BatchReply reply = directory.apply(on_their_way_.front());
    answers_.push_back({on_their_way_.front().sequence, reply});
    on_their_way_.pop_front();
  }

  void answer() {
    const Answer answer = answers_.front();
    answers_.pop_front();
    if (answer.reply.head.code == Code::kCancelled) return lose_connection();
    announcer.taken(answer.sequence, answer.reply.must_announce, answer.reply.next_sequence);
  }

  bool has_orders() { return !directory.orders_of(node_).orders.empty(); }

  void carry_out_orders() {
    if (orders_done_ != orders_taken_ && random.one_in(3)) {
      orders_done_ = orders_taken_;
      announcer.set_paused(false);
      announcer.want_batch();
    }
    if (!random.one_in(3)) return;
    for (const Order& order : directory.orders_of(node_).orders) {
      if (order.number <= orders_taken_) continue;
      orders_taken_ = order.number;
      announcer.set_paused(true);
      for (size_t space = 0; space < kSpaces; ++space) {
        if (Shelves::digest(space) == order.digest) shelves.clear(space);
      }
    }
  }

  /// As a node does for its client: what it sent before comes in before.
  void clear_everywhere(size_t space) {
    if (!is_joined_) return;
    while (!on_their_way_.empty()) deliver();
    shelves.clear(space);
    const ClearSpaceReply reply =
        directory.apply(ClearSpaceRequest{0, Shelves::digest(space), node_, incarnation_});
    EXPECT_EQ(reply.head.code, Code::kOk);
  }

  const uint64_t incarnation_ = 77;
  uint64_t epoch_ = 1;
  uint64_t joined_epoch_ = 0;
  SessionId session_ = 0;
  NodeIndex node_ = 0;
  bool is_joined_ = false;
  uint64_t orders_taken_ = 0;
  uint64_t orders_done_ = 0;
  std::deque<BatchRequest> on_their_way_;
  std::deque<BatchRequest> late_;
  std::deque<Answer> answers_;
};

TEST(Announcer, TheDirectoryKnowsInTheEndWhatTheNodeHas) {
  HICACHE_TRACE_SEED();
  for (uint64_t stream = 0; stream < 30; ++stream) {
    World world(40'000 + stream);
    for (int round = 0; round < 4; ++round) {
      for (int i = 0; i < 400; ++i) {
        world.change_something();
        world.upset_something();
        world.talk();
      }
      world.settle();
      world.expect_truth();
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(Announcer, ManyChangesOfOnePageAreToldOnce) {
  World world(1);
  world.settle();
  const uint64_t batches = world.announcer.counts().batches;
  for (uint64_t i = 0; i < 1000; ++i) world.shelves.put(0, 5, i);
  world.shelves.write_out(0, 5);
  EXPECT_EQ(world.announcer.pending_count(), 1U);
  world.settle();
  world.expect_truth();
  EXPECT_EQ(world.announcer.counts().batches, batches + 1);
}

TEST(Announcer, TooManyChangesForADirectoryThatIsAwayAreToldAnew) {
  World world(2, {.changes_max = 4, .batches_max = 3, .pending_max = 10, .walk_count = 5});
  for (uint64_t key = 0; key < 8; ++key) world.shelves.put(1, key, key);
  world.settle();
  for (uint64_t key = 0; key < 30; ++key) world.shelves.put(1, key, key + 1);
  EXPECT_GE(world.announcer.counts().overflows, 1U);
  EXPECT_LE(world.announcer.pending_count(), 10U);
  world.settle();
  world.expect_truth();
}

TEST(Announcer, BeforeTheNodeHasJoinedNothingIsKept) {
  World world(3);
  for (uint64_t key = 0; key < 30; ++key) world.shelves.put(1, key, key);
  EXPECT_EQ(world.announcer.pending_count(), 0U);
  EXPECT_FALSE(world.announcer.is_due());
  EXPECT_EQ(world.announcer.next(1), nullptr);
}

TEST(Announcer, FewChangesWaitForTheAnswerToThoseBeforeThem) {
  World world(4, {.changes_max = 100, .batches_max = 8, .pending_max = 1000, .walk_count = 100});
  world.settle();
  world.shelves.put(0, 1, 1);
  const Announcer::Batch* first = world.announcer.next(50);
  ASSERT_NE(first, nullptr);
  const uint64_t sequence = first->sequence;
  world.announcer.sent(sequence);
  world.shelves.put(0, 2, 1);
  world.shelves.put(0, 3, 1);
  EXPECT_EQ(world.announcer.next(60), nullptr);
  EXPECT_EQ(world.announcer.lag_ms(80), 30U);
  world.announcer.taken(sequence, false, sequence + 1);
  const Announcer::Batch* second = world.announcer.next(70);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->changes.size(), 2U);
}

TEST(Announcer, ANamespaceThatEndsTakesItsChangesWithIt) {
  World world(5, {.changes_max = 100, .batches_max = 8, .pending_max = 1000, .walk_count = 100});
  world.settle();
  for (uint64_t key = 0; key < 10; ++key) world.shelves.put(2, key, key);
  world.shelves.clear(2);
  world.shelves.put(2, 1, 99);
  EXPECT_EQ(world.announcer.pending_count(), 1U);
  const Announcer::Batch* batch = world.announcer.next(1);
  ASSERT_NE(batch, nullptr);
  EXPECT_EQ(batch->kind, BatchKind::kClearSpace);
  EXPECT_EQ(batch->digest, Shelves::digest(2));
}

}  // namespace
}  // namespace hicache
