// The directory beside plain maps: random nodes that announce, change, lose batches, get lost, come
// back, restart and leave, and clients that clear namespaces. After each step both agree on every
// page, and the directory's invariants hold.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "directory/directory.h"
#include "directory_rig.h"

namespace hicache {
namespace {

using namespace testing;  // NOLINT: the rig's words.

constexpr uint64_t kNames = 6;
constexpr uint64_t kRows = 4;  // Fewer, so that they are reused.
constexpr uint64_t kKeys = 30;
constexpr size_t kSpaces = 3;

const std::vector<Key> kAllKeys = keys_of(0, kKeys);
const std::vector<NamespaceDigest> kAllSpaces = keys_of(777'000, kSpaces);

uint64_t index_in(const std::vector<Key>& keys, const Key& key) {
  return static_cast<uint64_t>(std::find(keys.begin(), keys.end(), key) - keys.begin());
}

/// What a node has said, as a map; the directory must know the same of it.
struct KnownPage {
  uint32_t generation;
  uint32_t tiers;
  bool is_old;
};
using PageName = std::pair<uint64_t, uint64_t>;  // Namespace, key.

struct ModelNode {
  uint64_t incarnation = 0;
  SessionId session = 0;
  bool is_gone = true;
  bool is_draining = false;
  bool must_announce = true;
  bool is_announcing = false;
  uint64_t sequence = 0;  // The last one that was sent.
  uint64_t taken = 0;     // The last one that was taken.
  NodeIndex index = kNoNode;
  std::map<PageName, KnownPage> pages;
  std::set<uint64_t> to_clear;  // Namespaces.
  std::vector<BatchRequest> sent;
};

class World {
 public:
  explicit World(uint64_t stream) : random_(stream), directory_(options()) {
    directory_.lead(kEpochOne);
  }

  void step() {
    now_ms_ += random_.below(20);
    ModelNode& node = nodes_[random_.below(kNames)];
    switch (random_.below(16)) {
      case 0:
        join(node, true);
        break;
      case 1:
      case 2:
        join(node, false);
        break;
      case 3:
        disconnect(node);
        break;
      case 4:
        if (random_.one_in(4)) leave(node);
        break;
      case 5:
        if (random_.one_in(3)) clear_space(random_.below(kSpaces));
        break;
      case 6:
        drain(node);
        break;
      case 7:
        answer_probes();
        break;
      case 8:
        if (!node.sent.empty()) send_again(node);
        break;
      case 9:
        if (random_.one_in(4)) ++node.sequence;  // A batch that is lost.
        break;
      case 10:
        directory_.advance(now_ms_);
        collect_effects();
        break;
      default:
        if (node.incarnation != 0) send_next(node);
    }
    for (auto& [name, other] : nodes_) follow_expiry(other);
  }

  void check() {
    for (uint64_t space = 0; space < kSpaces; ++space) check_space(space);
    ASSERT_EQ(directory_.check_invariants(), "");
  }

 private:
  static Directory::Options options() {
    Directory::Options options = directory_options();
    options.nodes_max = kRows;
    options.silence_max_ms = 1'000'000'000;
    return options;
  }

  void join(ModelNode& node, bool restarts) {
    const uint64_t name = name_of(node);
    if (restarts || node.incarnation == 0) {
      const uint64_t incarnation = ++last_incarnation_;
      if (!try_join(node, member_of("n" + std::to_string(name), incarnation))) return;
      const auto to_clear = node.to_clear;
      const NodeIndex index = node.index;
      const SessionId session = node.session;
      node = ModelNode{};
      node.incarnation = incarnation;
      node.index = index;
      node.session = session;
      node.to_clear = to_clear;
    } else {
      const bool was_gone = node.is_gone;
      if (!try_join(node, member_of("n" + std::to_string(name), node.incarnation))) return;
      if (was_gone) {
        node.pages.clear();
        node.must_announce = true;
        node.is_announcing = node.is_draining = false;
        node.taken = 0;
      }
    }
    node.is_gone = false;
  }

  bool try_join(ModelNode& node, const Member& member) {
    const SessionId session = ++last_session_;
    const JoinReply reply = directory_.apply(JoinRequest{0, member}, session, now_ms_);
    if (reply.head.code != Code::kOk) {
      EXPECT_EQ(reply.head.code, Code::kNoSpace);
      return false;
    }
    // Another name's row: what that name was ordered is forgotten with it.
    for (auto& [name, other] : nodes_) {
      if (&other == &node || other.index != reply.node) continue;
      EXPECT_TRUE(other.is_gone);
      other.index = kNoNode;
      other.to_clear.clear();
    }
    node.index = reply.node;
    node.session = session;
    return true;
  }

  void disconnect(ModelNode& node) {
    if (node.session == 0 || node.is_gone) return;
    directory_.disconnected(node.session, now_ms_);
    node.session = 0;
    collect_effects();
  }

  void leave(ModelNode& node) {
    if (node.is_gone) return;
    EXPECT_EQ(directory_.apply(LeaveRequest{0, node.index, node.incarnation}, now_ms_).head.code,
              Code::kOk);
    set_gone(node);
  }

  static void set_gone(ModelNode& node) {
    node.is_gone = true;
    node.session = 0;
    node.pages.clear();
  }

  void drain(ModelNode& node) {
    const bool is_on = random_.one_in(2);
    const PlainReply reply =
        directory_.apply(DrainRequest{0, is_on, "n" + std::to_string(name_of(node))});
    EXPECT_EQ(reply.head.code, node.is_gone ? Code::kNotFound : Code::kOk);
    if (!node.is_gone) node.is_draining = is_on;
  }

  void clear_space(uint64_t space) {
    ClearSpaceRequest request{.epoch = 0, .digest = kAllSpaces[space]};
    const ModelNode& asker = nodes_.begin()->second;
    const bool is_from_node = random_.one_in(2) && !asker.is_gone && asker.index != kNoNode;
    if (is_from_node) {
      request.node = asker.index;
      request.incarnation = asker.incarnation;
    }
    const ClearSpaceReply reply = directory_.apply(request);
    ASSERT_EQ(reply.head.code, Code::kOk);
    uint64_t count = 0;
    for (auto& [name, node] : nodes_) {
      count += std::erase_if(node.pages, [&](const auto& it) { return it.first.first == space; });
      const bool has_asked = is_from_node && &node == &asker;
      if (node.index != kNoNode && !has_asked) node.to_clear.insert(space);
    }
    EXPECT_EQ(reply.replica_count, count);
  }

  void collect_effects() {
    for (const Directory::Effect& effect : directory_.take_effects()) {
      if (effect.kind == Directory::EffectKind::kProbe) probes_.push_back(effect);
    }
  }

  void answer_probes() {
    for (const Directory::Effect& probe : probes_) {
      directory_.probe_result(probe.node, probe.probe, random_.one_in(2), now_ms_);
    }
    probes_.clear();
  }

  /// Whether it expires is the directory's to say; that it may not while it is connected is checked
  /// here, and what follows from it everywhere.
  void follow_expiry(ModelNode& node) {
    if (node.is_gone) return;
    const MembersReply members = directory_.apply(MembersRequest{});
    if (members.members.at(node.index).state != NodeState::kGone) return;
    EXPECT_EQ(node.session, 0U) << "a connected node expired";
    set_gone(node);
  }

  BatchRequest next_batch(ModelNode& node) {
    BatchRequest batch;
    batch.node = node.index;
    batch.incarnation = node.incarnation;
    batch.sequence = ++node.sequence;
    batch.epoch = random_.one_in(4) ? 0 : directory_.epoch();
    const uint64_t kind = random_.below(12);
    batch.kind = kind == 0   ? BatchKind::kBegin
                 : kind == 1 ? BatchKind::kEnd
                 : kind == 2 ? BatchKind::kClearSpace
                             : BatchKind::kChanges;
    if (node.must_announce && random_.one_in(2)) batch.kind = BatchKind::kBegin;
    const uint64_t space = random_.below(kSpaces);
    batch.digest = kAllSpaces[space];
    if (batch.kind != BatchKind::kChanges) return batch;
    for (uint64_t i = random_.below(40); i > 0; --i) {
      const auto tiers = static_cast<uint32_t>(random_.below(kTiersMax + 1));
      batch.changes.push_back(
          {random_.pick(kAllKeys), static_cast<uint32_t>(random_.below(1000)), tiers});
    }
    return batch;
  }

  void send_next(ModelNode& node) {
    BatchRequest batch = next_batch(node);
    if (!node.to_clear.empty() && random_.one_in(6)) {
      // It carried all of them out: what the directory knows of them was hidden when they came.
      batch.orders_done = UINT64_MAX;
    }
    node.sent.push_back(batch);
    send(node, batch);
  }

  void send_again(ModelNode& node) { send(node, random_.pick(node.sent)); }

  void send(ModelNode& node, const BatchRequest& batch) {
    const BatchReply reply = directory_.apply(batch);
    if (node.is_gone || batch.incarnation != node.incarnation || batch.node != node.index) {
      ASSERT_EQ(reply.head.code, Code::kCancelled);
      return;
    }
    ASSERT_EQ(reply.head.code, Code::kOk);
    take(node, batch);
    ASSERT_EQ(reply.must_announce, node.must_announce);
    ASSERT_EQ(reply.next_sequence, node.taken + 1);
  }

  void take(ModelNode& node, const BatchRequest& batch) {
    // An earlier leader's orders are not those of this one.
    const bool is_of_epoch = batch.epoch == directory_.epoch();
    if (batch.orders_done != 0 && is_of_epoch) node.to_clear.clear();
    if (batch.sequence <= node.taken) return;
    const bool begins = batch.kind == BatchKind::kBegin;
    const bool ends_nothing = batch.kind == BatchKind::kEnd && !node.is_announcing;
    if (!begins && (node.must_announce || batch.sequence != node.taken + 1 || ends_nothing)) {
      node.must_announce = true;
      node.is_announcing = false;
      return;
    }
    node.taken = batch.sequence;
    const uint64_t space = index_in(kAllSpaces, batch.digest);
    if (begins) {
      node.must_announce = false;
      node.is_announcing = true;
      for (auto& [name, page] : node.pages) page.is_old = true;
    } else if (batch.kind == BatchKind::kEnd) {
      node.is_announcing = false;
      std::erase_if(node.pages, [](const auto& it) { return it.second.is_old; });
    } else if (batch.kind == BatchKind::kClearSpace) {
      std::erase_if(node.pages, [&](const auto& it) { return it.first.first == space; });
    } else if (!node.to_clear.contains(space)) {
      take_changes(node, space, batch);
    }
  }

  static void take_changes(ModelNode& node, uint64_t space, const BatchRequest& batch) {
    for (const PageChange& change : batch.changes) {
      const uint64_t key = index_in(kAllKeys, change.key);
      if (change.tiers == 0) {
        node.pages.erase({space, key});
      } else {
        node.pages[{space, key}] = {change.generation, change.tiers, false};
      }
    }
  }

  void check_space(uint64_t space) {
    const LocateReply reply = locate(directory_, kAllKeys, kAllSpaces[space]);
    ASSERT_EQ(reply.counts.size(), kKeys);
    auto replica = reply.replicas.begin();
    size_t prefix = kKeys;
    for (uint64_t key = 0; key < kKeys; ++key) {
      std::map<NodeIndex, Replica> expected;
      for (const auto& [name, node] : nodes_) {
        const auto page = node.pages.find({space, key});
        if (page == node.pages.end()) continue;
        const uint8_t rank = node.session == 0  ? kRankSuspect
                             : node.is_draining ? kRankDraining
                                                : kRankGood;
        expected[node.index] = {page->second.generation, node.index,
                                static_cast<uint8_t>(page->second.tiers), rank};
      }
      ASSERT_EQ(reply.counts[key], expected.size()) << "key " << key << " of " << space;
      if (expected.empty()) prefix = std::min<size_t>(prefix, key);
      for (uint8_t i = 0; i < reply.counts[key]; ++i, ++replica) {
        ASSERT_EQ(*replica, expected[replica->node]);
        ASSERT_TRUE(i == 0 || replica[-1].rank <= replica->rank);
      }
    }
    ASSERT_EQ(locate(directory_, kAllKeys, kAllSpaces[space], true).counts.size(), prefix);
  }

  uint64_t name_of(const ModelNode& node) const {
    for (const auto& [name, other] : nodes_) {
      if (&other == &node) return name;
    }
    return kNames;
  }

  Random random_;
  Directory directory_;
  std::map<uint64_t, ModelNode> nodes_;
  std::vector<Directory::Effect> probes_;
  SessionId last_session_ = 0;
  uint64_t last_incarnation_ = 0;
  uint64_t now_ms_ = 1000;
};

TEST(DirectoryRandom, AgreesWithMaps) {
  HICACHE_TRACE_SEED();
  for (uint64_t world_number = 0; world_number < 12; ++world_number) {
    SCOPED_TRACE("world " + std::to_string(world_number));
    World world(9000 + world_number);
    for (int step = 0; step < 1500; ++step) {
      SCOPED_TRACE("step " + std::to_string(step));
      world.step();
      world.check();
      if (::testing::Test::HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace hicache
