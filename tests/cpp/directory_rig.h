// A directory for tests, and nodes that talk to it as the protocol says.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "directory/directory.h"
#include "support.h"

namespace hicache::testing {

inline const NamespaceDigest kSpaceA = key_of(777'001);
inline const NamespaceDigest kSpaceB = key_of(777'002);
inline constexpr uint64_t kEpochOne = 5;

inline Directory::Options directory_options() {
  return {.nodes_max = 16,
          .pages_max = 100'000'000,
          .holdings_max = 100'000,
          .heartbeat_interval_ms = 250,
          .silence_max_ms = 900,
          .probe_interval_ms = 500,
          .probe_timeout_ms = 300,
          .is_elected = true};
}

inline Member member_of(const std::string& name, uint64_t incarnation = 1) {
  return {.name = name,
          .incarnation = incarnation,
          .addresses = {"127.0.0.1:" + std::to_string(1000 + incarnation)},
          .failure_domain = "rack " + name,
          .capacity_bytes = 1000,
          .free_bytes = 500,
          .load_permille = 0};
}

inline PageChange change_of(const Key& key, uint8_t tiers = kInDram, uint32_t generation = 1) {
  return {key, generation, tiers};
}

inline std::vector<PageChange> changes_of(uint64_t first, uint64_t count, uint8_t tiers = kInDram) {
  std::vector<PageChange> changes;
  for (const Key& key : keys_of(first, count)) changes.push_back(change_of(key, tiers));
  return changes;
}

/// One node's side of the protocol.
class ScriptedNode {
 public:
  ScriptedNode(Directory& directory, std::string name, uint64_t incarnation, SessionId session)
      : directory_(directory), member_(member_of(name, incarnation)), session_(session) {}

  JoinReply join(uint64_t now_ms = 0, uint64_t epoch = 0) {
    const JoinReply reply = directory_.apply(JoinRequest{epoch, member_}, session_, now_ms);
    if (reply.head.code == Code::kOk) index_ = reply.node;
    return reply;
  }
  HeartbeatReply heartbeat(uint64_t now_ms) {
    return directory_.apply(
        HeartbeatRequest{0, index_, member_.incarnation, 1000, 400, 7, {.found_pages = 5}},
        session_, now_ms);
  }
  BatchRequest batch(BatchKind kind, const NamespaceDigest& digest = kSpaceA,
                     std::vector<PageChange> changes = {}) {
    return {
        directory_.epoch(), index_, member_.incarnation, ++sequence_, orders_done_, kind, digest,
        std::move(changes)};
  }
  BatchReply send(BatchKind kind, const NamespaceDigest& digest = kSpaceA,
                  std::vector<PageChange> changes = {}) {
    return directory_.apply(batch(kind, digest, std::move(changes)));
  }
  BatchReply change(std::vector<PageChange> changes, const NamespaceDigest& digest = kSpaceA) {
    return send(BatchKind::kChanges, digest, std::move(changes));
  }
  /// All that the node has.
  void announce(std::vector<PageChange> changes, const NamespaceDigest& digest = kSpaceA) {
    EXPECT_EQ(send(BatchKind::kBegin).head.code, Code::kOk);
    EXPECT_EQ(change(std::move(changes), digest).head.code, Code::kOk);
    EXPECT_FALSE(send(BatchKind::kEnd).must_announce);
  }

  NodeIndex index() const { return index_; }
  SessionId session() const { return session_; }
  void set_session(SessionId session) { session_ = session; }
  void set_orders_done(uint64_t number) { orders_done_ = number; }
  void skip_batch() { ++sequence_; }

 private:
  Directory& directory_;
  Member member_;
  SessionId session_;
  NodeIndex index_ = kNoNode;
  uint64_t sequence_ = 0;
  uint64_t orders_done_ = 0;
};

inline LocateReply locate(Directory& directory, std::vector<Key> keys,
                          const NamespaceDigest& digest = kSpaceA, bool is_prefix = false,
                          uint8_t replicas_max = kReplicasMax) {
  LocateReply reply;
  directory.apply(LocateRequest{0, digest, is_prefix, replicas_max, std::move(keys)}, reply);
  return reply;
}

/// Who has the page numbered `n`, the best first.
inline std::vector<NodeIndex> holders(Directory& directory, uint64_t n,
                                      const NamespaceDigest& digest = kSpaceA) {
  std::vector<NodeIndex> nodes;
  for (const Replica& replica : locate(directory, {key_of(n)}, digest).replicas) {
    nodes.push_back(replica.node);
  }
  return nodes;
}

inline NodeState state_of(Directory& directory, NodeIndex node) {
  return directory.apply(MembersRequest{}).members.at(node).state;
}

inline uint64_t stat_of(const Directory& directory, const std::string& name) {
  for (const auto& [key, value] : directory.stats()) {
    if (key == name) return value;
  }
  ADD_FAILURE() << "no such figure: " << name;
  return 0;
}

}  // namespace hicache::testing
