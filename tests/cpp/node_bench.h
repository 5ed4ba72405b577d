// A node and clients for tests.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "store/client.h"
#include "store/node.h"
#include "support.h"

namespace hicache::testing {

inline const NamespaceDigest kTestNamespace = key_of(1'234'567);

inline Node::Options node_options(std::string path, uint64_t pool_size_bytes) {
  return {.socket_path = std::move(path),
          .pool_size_bytes = pool_size_bytes,
          .pool_size_max_bytes = pool_size_bytes,
          .huge_pages = HugePages::kNever,
          .numa_node = -1,
          .eviction = EvictionKind::kAdaptive,
          .read_lease_ttl_ms = 10'000,
          .lookup_lease_ttl_ms = 1000,
          .lookup_lease_share = 0.5,
          .hard_pin_share = 0.5,
          .reservation_ttl_ms = 30'000,
          .clients_max = 64};
}

inline std::unique_ptr<Node> start_node(uint64_t pool_size_bytes) {
  auto node = Node::start(node_options(socket_name(), pool_size_bytes));
  EXPECT_TRUE(node.ok()) << node.status().message();
  return node.ok() ? std::move(node.value()) : nullptr;
}

/// A counter of the node, out of its JSON.
inline uint64_t stat_of(Node& node, const std::string& name) {
  const Result<std::string> json = node.stats_json();
  EXPECT_TRUE(json.ok()) << json.status().message();
  if (!json.ok()) return 0;
  const size_t at = json.value().find("\"" + name + "\":");
  EXPECT_NE(at, std::string::npos) << name;
  return std::strtoull(json.value().c_str() + at + name.size() + 3, nullptr, 10);
}

/// A client whose pages are byte vectors.
struct SimpleClient {
  explicit SimpleClient(const std::string& path, uint64_t call_timeout_ms = 2000,
                        unsigned copy_threads = 2, bool verify = true,
                        uint64_t pool_contribution_bytes = 0)
      : client({.copy_threads = copy_threads,
                .call_timeout_ms = call_timeout_ms,
                .verify = verify,
                .name = "test",
                .pool_contribution_bytes = pool_contribution_bytes}) {
    status = client.connect(path, 20'000);
    EXPECT_TRUE(status.ok()) << status.message();
    space = client.open_namespace(kTestNamespace, "test");
  }

  Code put(const Key& key, std::vector<uint8_t> bytes, const Client::PutOptions& options = {}) {
    std::vector<Code> codes;
    client.put(
        space, {&key, 1},
        [&](size_t, std::vector<MemorySegment>& segments) {
          segments.push_back({bytes.data(), bytes.size()});
        },
        options, codes);
    return codes.at(0);
  }

  /// `before_copy` is called once the page is leased.
  Code get(const Key& key, std::vector<uint8_t>& bytes,
           const std::function<void()>& before_copy = nullptr) {
    std::vector<Code> codes;
    client.get(
        space, {&key, 1},
        [&](size_t, uint64_t size, std::vector<MemorySegment>& segments) {
          bytes.resize(size);
          segments.push_back({bytes.data(), size});
          if (before_copy) before_copy();
          return true;
        },
        codes);
    return codes.at(0);
  }

  Code lookup(const Key& key, bool lease = false) {
    std::vector<Code> codes;
    client.lookup(space, {&key, 1}, {lease, false}, codes);
    return codes.at(0);
  }

  Client client;
  Status status;
  size_t space = 0;
};

}  // namespace hicache::testing
