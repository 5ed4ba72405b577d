// The directory's core: announcements, changes, look-ups, membership, orders, epochs, limits.
#include "directory/directory.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "directory_rig.h"

namespace hicache {
namespace {

using namespace testing;  // NOLINT: the rig's words.
using EffectKind = Directory::EffectKind;
using Nodes = std::vector<NodeIndex>;

class DirectoryTest : public ::testing::Test {
 protected:
  DirectoryTest() { directory_.lead(kEpochOne); }
  void TearDown() override { EXPECT_EQ(directory_.check_invariants(), ""); }

  ScriptedNode live_node(const std::string& name, SessionId session,
                         std::vector<PageChange> changes = {}, uint64_t incarnation = 1) {
    ScriptedNode node(directory_, name, incarnation, session);
    EXPECT_TRUE(node.join().must_announce);
    node.announce(std::move(changes));
    return node;
  }
  /// The only effect of this kind since the last call.
  Directory::Effect effect(EffectKind kind) {
    const std::vector<Directory::Effect> effects = directory_.take_effects();
    const auto found =
        std::find_if(effects.begin(), effects.end(),
                     [kind](const Directory::Effect& effect) { return effect.kind == kind; });
    EXPECT_NE(found, effects.end());
    return found == effects.end() ? Directory::Effect{.kind = kind, .address = {}} : *found;
  }
  void sweep_all() {
    while (directory_.advance(0) == 0) {
    }
  }

  Directory directory_{directory_options()};
};

// ---- announcements and changes

TEST_F(DirectoryTest, WhatANodeAnnouncesIsFoundAndNothingElse) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 3));
  const LocateReply reply = locate(directory_, keys_of(0, 4));
  EXPECT_EQ(reply.head, (ReplyHead{kEpochOne, reply.head.members_version, Code::kOk}));
  EXPECT_EQ(reply.counts, (std::vector<uint8_t>{1, 1, 1, 0}));
  ASSERT_EQ(reply.replicas.size(), 3U);
  EXPECT_EQ(reply.replicas[0], (Replica{1, a.index(), kInDram, kRankGood}));
  EXPECT_EQ(holders(directory_, 0, kSpaceB), Nodes{});
}

TEST_F(DirectoryTest, ThePrefixEndsAtTheFirstPageThatNobodyHas) {
  live_node("a", 1, changes_of(0, 3));
  std::vector<Key> keys = keys_of(0, 6);
  std::swap(keys[2], keys[4]);  // Unknown, known.
  const LocateReply reply = locate(directory_, keys, kSpaceA, true);
  EXPECT_EQ(reply.counts, (std::vector<uint8_t>{1, 1}));
  EXPECT_EQ(reply.replicas.size(), 2U);
  EXPECT_EQ(locate(directory_, keys).counts, (std::vector<uint8_t>{1, 1, 0, 0, 1, 0}));
  EXPECT_TRUE(locate(directory_, keys, kSpaceB, true).counts.empty());
}

TEST_F(DirectoryTest, PagesAreKnownWhileTheyAreAnnounced) {
  ScriptedNode a(directory_, "a", 1, 1);
  a.join();
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kJoining);
  EXPECT_TRUE(a.change(changes_of(0, 1)).must_announce) << "not before the announcement";
  EXPECT_EQ(holders(directory_, 0), Nodes{});
  EXPECT_FALSE(a.send(BatchKind::kBegin).must_announce);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kAnnouncing);
  a.change(changes_of(0, 1));
  EXPECT_EQ(holders(directory_, 0), Nodes{a.index()});
  a.send(BatchKind::kEnd);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kLive);
}

TEST_F(DirectoryTest, ANewAnnouncementReplacesTheOldOneAtItsEnd) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 2));
  a.send(BatchKind::kBegin);
  a.change({change_of(key_of(1), kOnSsd, 9), change_of(key_of(2))});
  EXPECT_EQ(holders(directory_, 0), Nodes{a.index()}) << "still believed";
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kLive);
  a.send(BatchKind::kEnd);
  EXPECT_EQ(holders(directory_, 0), Nodes{});
  EXPECT_EQ(locate(directory_, {key_of(1)}).replicas,
            (std::vector<Replica>{{9, a.index(), kOnSsd, kRankGood}}));
  EXPECT_EQ(holders(directory_, 2), Nodes{a.index()});
  sweep_all();
  EXPECT_EQ(stat_of(directory_, "pages"), 2U);
}

TEST_F(DirectoryTest, APageThatGoesWhileItsNodeAnnouncesIsGone) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 2));
  a.send(BatchKind::kBegin);
  a.change(changes_of(0, 1));
  a.change({change_of(key_of(0), 0), change_of(key_of(1), 0)});
  EXPECT_EQ(holders(directory_, 0), Nodes{});
  EXPECT_EQ(holders(directory_, 1), Nodes{});
  a.send(BatchKind::kEnd);
  EXPECT_EQ(stat_of(directory_, "pages"), 0U);
  EXPECT_EQ(stat_of(directory_, "namespaces"), 0U);
}

TEST_F(DirectoryTest, ARepeatedBatchChangesNothing) {
  ScriptedNode a = live_node("a", 1);
  const BatchRequest add = a.batch(BatchKind::kChanges, kSpaceA, changes_of(0, 1));
  const BatchRequest drop = a.batch(BatchKind::kChanges, kSpaceA, changes_of(0, 1, 0));
  directory_.apply(add);
  directory_.apply(drop);
  const BatchReply again = directory_.apply(add);
  EXPECT_EQ(again.head.code, Code::kOk);
  EXPECT_FALSE(again.must_announce);
  EXPECT_EQ(again.next_sequence, drop.sequence + 1);
  EXPECT_EQ(holders(directory_, 0), Nodes{});
}

TEST_F(DirectoryTest, ALostBatchIsNoticedAndMendedByANewAnnouncement) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 2));
  const BatchRequest late = a.batch(BatchKind::kChanges, kSpaceA, changes_of(0, 1, 0));
  EXPECT_TRUE(a.change(changes_of(5, 1)).must_announce);
  EXPECT_EQ(holders(directory_, 5), Nodes{}) << "taken out of order";
  EXPECT_TRUE(directory_.apply(late).must_announce) << "too late: it came after the next";
  EXPECT_TRUE(a.change(changes_of(6, 1)).must_announce);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kLive);
  EXPECT_EQ(holders(directory_, 0), Nodes{a.index()}) << "believed until the node says more";
  a.announce(changes_of(1, 1));
  EXPECT_EQ(holders(directory_, 0), Nodes{});
  EXPECT_EQ(holders(directory_, 1), Nodes{a.index()});
  EXPECT_EQ(stat_of(directory_, "lost_batches"), 1U);
}

TEST_F(DirectoryTest, AnAnnouncementWithAGapIsNotOverAtItsEnd) {
  ScriptedNode a(directory_, "a", 1, 1);
  a.join();
  a.send(BatchKind::kBegin);
  a.skip_batch();
  EXPECT_TRUE(a.send(BatchKind::kEnd).must_announce);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kJoining);
  a.announce(changes_of(0, 1));
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kLive);
}

TEST_F(DirectoryTest, AnEndWithoutABeginIsAnError) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 1));
  EXPECT_TRUE(a.send(BatchKind::kEnd).must_announce);
  EXPECT_EQ(holders(directory_, 0), Nodes{a.index()});
}

TEST_F(DirectoryTest, ANodeForgetsANamespaceOfItsOwnOnly) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 2));
  ScriptedNode b = live_node("b", 2, changes_of(0, 2));
  a.change(changes_of(0, 2), kSpaceB);
  a.send(BatchKind::kClearSpace, kSpaceA);
  EXPECT_EQ(holders(directory_, 0), Nodes{b.index()});
  EXPECT_EQ(holders(directory_, 0, kSpaceB), Nodes{a.index()});
  a.change(changes_of(0, 1));
  EXPECT_EQ(holders(directory_, 0).size(), 2U);
}

// ---- replicas

TEST_F(DirectoryTest, TheBestReplicaComesFirst) {
  ScriptedNode on_ssd = live_node("ssd", 1, changes_of(0, 1, kOnSsd));
  ScriptedNode lost = live_node("lost", 2, changes_of(0, 1));
  ScriptedNode drained = live_node("drained", 3, changes_of(0, 1));
  ScriptedNode in_both = live_node("both", 4, changes_of(0, 1, kInDram | kOnSsd));
  directory_.disconnected(lost.session(), 0);
  directory_.apply(DrainRequest{0, true, "drained"});
  EXPECT_EQ(holders(directory_, 0),
            (Nodes{in_both.index(), on_ssd.index(), drained.index(), lost.index()}));
  const LocateReply two = locate(directory_, {key_of(0)}, kSpaceA, false, 2);
  EXPECT_EQ(two.counts, std::vector<uint8_t>{2});
  EXPECT_EQ(two.replicas.size(), 2U);
}

TEST_F(DirectoryTest, AReplicaGoesWithoutTheOthers) {
  std::vector<ScriptedNode> nodes;
  for (uint64_t i = 0; i < 5; ++i) {
    nodes.push_back(live_node("n" + std::to_string(i), i + 1, changes_of(0, 1)));
  }
  for (const size_t i : {2U, 0U, 4U, 1U, 3U}) {
    ASSERT_EQ(holders(directory_, 0).size(), stat_of(directory_, "holdings"));
    nodes[i].change(changes_of(0, 1, 0));
    const Nodes left = holders(directory_, 0);
    ASSERT_EQ(std::count(left.begin(), left.end(), nodes[i].index()), 0);
    ASSERT_EQ(directory_.check_invariants(), "");
  }
  EXPECT_EQ(stat_of(directory_, "pages"), 0U);
}

// ---- membership

TEST_F(DirectoryTest, ALostNodeIsProbedAndKeptWhileItAnswers) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 1));
  directory_.disconnected(1, 1000);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kSuspect);
  Directory::Effect probe = effect(EffectKind::kProbe);
  EXPECT_EQ(probe.address, member_of("a").addresses[0]);
  EXPECT_EQ(probe.incarnation, 1U);
  EXPECT_EQ(directory_.advance(1200), 1300U) << "the probe's deadline";
  directory_.probe_result(a.index(), probe.probe, true, 1200);
  EXPECT_EQ(directory_.advance(1600), 1700U) << "the next probe";
  EXPECT_EQ(holders(directory_, 0), Nodes{a.index()});
  directory_.advance(1700);
  const uint64_t old_probe = probe.probe;
  probe = effect(EffectKind::kProbe);
  directory_.probe_result(a.index(), old_probe, false, 1700);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kSuspect) << "an old answer counts";
  directory_.probe_result(a.index(), probe.probe, false, 1750);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kGone);
  EXPECT_EQ(holders(directory_, 0), Nodes{});
}

TEST_F(DirectoryTest, AnUnansweredProbeEndsANodeAtItsDeadline) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 1));
  directory_.disconnected(1, 1000);
  directory_.advance(1299);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kSuspect);
  directory_.advance(1300);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kGone);
  EXPECT_EQ(a.change(changes_of(0, 1)).head.code, Code::kCancelled);
}

TEST_F(DirectoryTest, SilenceIsAsALostConnection) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 1));
  EXPECT_EQ(a.heartbeat(500).head.code, Code::kOk);
  EXPECT_EQ(directory_.advance(1399), 1400U);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kLive);
  directory_.advance(1400);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kSuspect);
  EXPECT_EQ(effect(EffectKind::kCloseSession).session, 1U);
  EXPECT_EQ(a.heartbeat(1450).head.code, Code::kCancelled);
}

TEST_F(DirectoryTest, WhoComesBackGoesOnWhereItWas) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 1));
  directory_.disconnected(1, 0);
  const BatchReply meanwhile = a.change(changes_of(1, 1));
  EXPECT_EQ(meanwhile.head.code, Code::kOk) << "another connection may have survived";
  a.set_session(2);
  const JoinReply reply = a.join();
  EXPECT_FALSE(reply.must_announce);
  EXPECT_EQ(reply.next_sequence, meanwhile.next_sequence);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kLive);
  EXPECT_EQ(holders(directory_, 1), Nodes{a.index()});
  directory_.disconnected(1, 0);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kLive) << "the old connection's end";
}

TEST_F(DirectoryTest, ARestartedNodeHasNoPagesUntilItAnnouncesThem) {
  ScriptedNode old = live_node("a", 1, changes_of(0, 2));
  ScriptedNode restarted(directory_, "a", 2, 2);
  EXPECT_TRUE(restarted.join().must_announce);
  EXPECT_EQ(restarted.index(), old.index());
  EXPECT_EQ(effect(EffectKind::kCloseSession).session, 1U);
  EXPECT_EQ(holders(directory_, 0), Nodes{});
  EXPECT_EQ(old.change(changes_of(0, 1)).head.code, Code::kCancelled);
  EXPECT_EQ(old.heartbeat(0).head.code, Code::kCancelled);
  const JoinReply reply = old.join();
  EXPECT_EQ(reply.head.code, Code::kAlreadyExists);
  EXPECT_NE(reply.message.find("'a'"), std::string::npos);
  restarted.announce(changes_of(1, 1));
  EXPECT_EQ(holders(directory_, 0), Nodes{});
  EXPECT_EQ(holders(directory_, 1), Nodes{restarted.index()});
}

TEST_F(DirectoryTest, AnEarlierProcessMayTakeANameThatIsNotConnected) {
  live_node("a", 1, changes_of(0, 1), 9);
  directory_.disconnected(1, 0);
  ScriptedNode earlier(directory_, "a", 3, 2);
  EXPECT_EQ(earlier.join().head.code, Code::kOk) << "a clock that was set back";
  EXPECT_EQ(holders(directory_, 0), Nodes{});
}

TEST_F(DirectoryTest, WhoLeavesIsGoneAtOnce) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 1));
  EXPECT_EQ(directory_.apply(LeaveRequest{0, a.index(), 2}, 0).head.code, Code::kCancelled);
  EXPECT_EQ(directory_.apply(LeaveRequest{0, a.index(), 1}, 0).head.code, Code::kOk);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kGone);
  EXPECT_EQ(holders(directory_, 0), Nodes{});
  directory_.disconnected(1, 0);
  EXPECT_EQ(stat_of(directory_, "suspicions"), 0U);
}

TEST_F(DirectoryTest, TheTableOfNodesIsBoundedAndReused) {
  for (uint64_t i = 0; i < 16; ++i) live_node("n" + std::to_string(i), i + 1, changes_of(i, 1));
  ScriptedNode late(directory_, "late", 1, 100);
  const JoinReply refused = late.join();
  EXPECT_EQ(refused.head.code, Code::kNoSpace);
  EXPECT_NE(refused.message.find("16"), std::string::npos);
  directory_.apply(LeaveRequest{0, 3, 1}, 10);
  directory_.apply(LeaveRequest{0, 8, 1}, 5);
  EXPECT_EQ(late.join().node, 8U) << "that of who is gone longest";
  EXPECT_EQ(holders(directory_, 8), Nodes{});
  late.announce(changes_of(8, 1));
  sweep_all();
  EXPECT_EQ(holders(directory_, 8), Nodes{8});
}

TEST_F(DirectoryTest, OneConnectionIsOneNode) {
  live_node("a", 1);
  ScriptedNode b(directory_, "b", 1, 1);
  EXPECT_EQ(b.join().head.code, Code::kInvalidArgument);
  ScriptedNode nameless(directory_, "", 1, 7);
  EXPECT_EQ(nameless.join().head.code, Code::kInvalidArgument);
}

TEST_F(DirectoryTest, MembersTellWhatPlacementNeeds) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 3));
  const uint32_t version = a.heartbeat(0).head.members_version;
  const MembersReply reply = directory_.apply(MembersRequest{});
  ASSERT_EQ(reply.members.size(), 1U);
  Member expected = member_of("a");
  expected.free_bytes = 400;
  expected.load_permille = 7;
  expected.tally.found_pages = 5;
  EXPECT_EQ(reply.members[0], (MemberView{a.index(), NodeState::kLive, 3, expected}));
  EXPECT_EQ(reply.head.members_version, version) << "a heartbeat is no change";
  directory_.disconnected(1, 0);
  EXPECT_NE(directory_.apply(MembersRequest{}).head.members_version, version);
}

// ---- orders

TEST_F(DirectoryTest, AClearedNamespaceIsUnknownAtOnceAndStaysSo) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 2));
  ScriptedNode b = live_node("b", 2, changes_of(1, 2));
  EXPECT_EQ(directory_.apply(ClearSpaceRequest{.epoch = 0, .digest = kSpaceA}).replica_count, 4U);
  EXPECT_EQ(locate(directory_, keys_of(0, 3)).counts, (std::vector<uint8_t>{0, 0, 0}));
  EXPECT_EQ(effect(EffectKind::kSendOrders).session, 1U);
  const std::vector<Order> orders = a.heartbeat(0).orders;
  ASSERT_EQ(orders.size(), 1U);
  EXPECT_EQ(orders[0], (Order{1, OrderKind::kClearSpace, kSpaceA}));
  // On its way when the order was given; another namespace is not concerned.
  a.change(changes_of(0, 1));
  a.change(changes_of(0, 1), kSpaceB);
  EXPECT_EQ(holders(directory_, 0), Nodes{});
  EXPECT_EQ(holders(directory_, 0, kSpaceB), Nodes{a.index()});
  a.set_orders_done(orders[0].number);
  a.send(BatchKind::kClearSpace, kSpaceA);
  a.change(changes_of(1, 1));
  EXPECT_EQ(holders(directory_, 1), Nodes{a.index()});
  EXPECT_TRUE(a.heartbeat(0).orders.empty());
  EXPECT_EQ(b.heartbeat(0).orders.size(), 1U);
  sweep_all();
  EXPECT_EQ(stat_of(directory_, "pages"), 2U);
}

TEST_F(DirectoryTest, OrdersWaitForWhoIsAway) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 1));
  directory_.disconnected(1, 0);
  directory_.advance(10'000);
  directory_.apply(ClearSpaceRequest{.epoch = 0, .digest = kSpaceA});
  ScriptedNode restarted(directory_, "a", 2, 2);
  restarted.join();
  restarted.announce(changes_of(0, 1));
  EXPECT_EQ(holders(directory_, 0), Nodes{}) << "its SSD still had the page";
  EXPECT_EQ(restarted.heartbeat(0).orders.size(), 1U);
}

TEST_F(DirectoryTest, DrainingIsOrderedAndTakenBack) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 1));
  EXPECT_EQ(directory_.apply(DrainRequest{0, true, "nobody"}).head.code, Code::kNotFound);
  EXPECT_EQ(directory_.apply(DrainRequest{0, true, "a"}).head.code, Code::kOk);
  EXPECT_EQ(directory_.apply(DrainRequest{0, true, "a"}).head.code, Code::kOk);
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kDraining);
  EXPECT_EQ(a.heartbeat(0).orders, (std::vector<Order>{{1, OrderKind::kDrain, {}}}));
  directory_.apply(DrainRequest{0, false, "a"});
  EXPECT_EQ(state_of(directory_, a.index()), NodeState::kLive);
  EXPECT_EQ(a.heartbeat(0).orders, (std::vector<Order>{{2, OrderKind::kEndDrain, {}}}));
  a.set_orders_done(2);
  a.change({});
  EXPECT_TRUE(a.heartbeat(0).orders.empty());
}

TEST_F(DirectoryTest, OrdersAreBounded) {
  ScriptedNode a = live_node("a", 1);
  for (uint64_t i = 0; i < kOrdersMax; ++i) {
    ASSERT_EQ(directory_.apply(ClearSpaceRequest{.epoch = 0, .digest = key_of(i)}).head.code,
              Code::kOk);
    ASSERT_EQ(directory_.apply(ClearSpaceRequest{.epoch = 0, .digest = key_of(i)}).head.code,
              Code::kOk);
  }
  EXPECT_EQ(a.heartbeat(0).orders.size(), kOrdersMax);
  EXPECT_EQ(directory_.apply(ClearSpaceRequest{.epoch = 0, .digest = key_of(99)}).head.code,
            Code::kBusy);
  directory_.apply(LeaveRequest{0, a.index(), 1}, 0);
  EXPECT_EQ(directory_.apply(ClearSpaceRequest{.epoch = 0, .digest = key_of(99)}).head.code,
            Code::kOk);
}

// ---- epochs

TEST_F(DirectoryTest, WhoDoesNotLeadAnswersNobody) {
  live_node("a", 1, changes_of(0, 1));
  directory_.lead(0);
  EXPECT_EQ(locate(directory_, {key_of(0)}).head.code, Code::kNotLeader);
  EXPECT_EQ(directory_.apply(MembersRequest{}).head.epoch, 0U);
  directory_.lead(kEpochOne + 1);
  EXPECT_EQ(holders(directory_, 0), Nodes{}) << "a new leader begins with nothing";
}

TEST_F(DirectoryTest, AnElectedLeaderRefusesWhoHasHeardOfAnother) {
  ScriptedNode a = live_node("a", 1, changes_of(0, 1));
  LocateReply reply;
  directory_.apply(LocateRequest{kEpochOne + 1, kSpaceA, false, 1, {key_of(0)}}, reply);
  EXPECT_EQ(reply.head.code, Code::kNotLeader);
  EXPECT_TRUE(reply.counts.empty());
  EXPECT_EQ(effect(EffectKind::kHeardOfNewer).epoch, kEpochOne + 1);
  EXPECT_EQ(holders(directory_, 0), Nodes{a.index()}) << "one word does not depose it";
}

TEST_F(DirectoryTest, TheOnlyLeaderGoesAboveWhatItHears) {
  Directory::Options options = directory_options();
  options.is_elected = false;
  Directory only(options);
  only.lead(kEpochOne);
  EXPECT_EQ(only.apply(MembersRequest{kEpochOne + 9}).head.epoch, kEpochOne + 10);
  EXPECT_EQ(only.apply(MembersRequest{UINT64_MAX}).head.code, Code::kInvalidArgument);
  EXPECT_EQ(only.apply(MembersRequest{}).head.epoch, kEpochOne + 10);
}

// ---- limits

TEST_F(DirectoryTest, PagesThatFindNoRoomAreMisses) {
  Directory::Options options = directory_options();
  options.pages_max = 10;
  options.holdings_max = 1;
  Directory small(options);
  small.lead(1);
  ScriptedNode a(small, "a", 1, 1);
  a.join();
  a.send(BatchKind::kBegin);
  EXPECT_EQ(a.change(changes_of(0, 12)).head.code, Code::kNoSpace);
  EXPECT_FALSE(a.send(BatchKind::kEnd).must_announce);
  EXPECT_EQ(holders(small, 9), Nodes{a.index()});
  EXPECT_EQ(holders(small, 10), Nodes{});
  EXPECT_EQ(a.change(changes_of(0, 1), kSpaceB).head.code, Code::kNoSpace);
  EXPECT_EQ(stat_of(small, "refused_changes"), 3U);
  a.change(changes_of(0, 10, 0));
  EXPECT_EQ(a.change(changes_of(0, 1), kSpaceB).head.code, Code::kOk);
  EXPECT_EQ(small.check_invariants(), "");
}

TEST_F(DirectoryTest, NodesAreForgottenInBoundedSteps) {
  constexpr uint64_t kPages = 100'000;
  ScriptedNode a(directory_, "a", 1, 1);
  a.join();
  a.send(BatchKind::kBegin);
  for (uint64_t i = 0; i < kPages; i += 10'000) a.change(changes_of(i, 10'000));
  a.send(BatchKind::kEnd);
  const size_t size_bytes = directory_.memory_size_bytes();
  directory_.apply(LeaveRequest{0, a.index(), 1}, 0);
  int steps = 0;
  for (uint64_t before = kPages; directory_.advance(0) == 0; ++steps) {
    const uint64_t left = stat_of(directory_, "pages");
    ASSERT_LE(before - left, 1024U);
    before = left;
  }
  EXPECT_GE(steps, 97);
  EXPECT_EQ(stat_of(directory_, "pages"), 0U);
  EXPECT_EQ(stat_of(directory_, "holdings"), 0U);
  ScriptedNode b = live_node("b", 2, changes_of(0, 10'000));
  EXPECT_EQ(directory_.memory_size_bytes(), size_bytes) << "what was freed is used again";
}

}  // namespace
}  // namespace hicache
