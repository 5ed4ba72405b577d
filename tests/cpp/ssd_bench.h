// A node with an SSD directory on a real disk, for tests.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "direct_file.h"
#include "node_bench.h"
#include "tier/ssd_format.h"

namespace hicache::testing {

/// For what comes soon on any machine, however loaded.
inline constexpr uint64_t kPatienceMs = 60'000;

struct SsdSetup {
  uint64_t pool_size = 16 * kMiB;
  uint64_t size_limit = 64 * kMiB;
  uint64_t region_size = 2 * kMiB;
  uint64_t free_min = 0;
  bool write_through = false;
  uint64_t write_budget = 0;
  bool staging = true;
  uint64_t read_lease_ttl_ms = 10'000;
  Quotas quotas{};
};

inline Node::Options ssd_node_options(std::string socket_path,
                                      const std::vector<std::string>& folders,
                                      const SsdSetup& setup) {
  Node::Options options = node_options(std::move(socket_path), setup.pool_size);
  options.read_lease_ttl_ms = setup.read_lease_ttl_ms;
  options.quotas = setup.quotas;
  options.ssd = {.directories = {},
                 .region_size_bytes = setup.region_size,
                 .write_through = setup.write_through,
                 .write_budget_bytes = setup.write_budget,
                 .engine = IoEngine::kAuto,
                 .staging = setup.staging,
                 .read_lease_ttl_ms = setup.read_lease_ttl_ms,
                 .lookup_lease_ttl_ms = 1000,
                 .staging_share = 0.25};
  for (const std::string& folder : folders) {
    options.ssd.directories.push_back({folder, setup.size_limit, setup.free_min});
  }
  return options;
}

/// Flips one bit in the middle of these bytes, in a pool that this process has mapped; false: they
/// lie nowhere in one piece.
inline bool flip_bit_in_pool(const std::vector<uint8_t>& bytes) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("mooncake-hicache-pool") == std::string::npos) continue;
    char* rest = nullptr;
    const uint64_t first = std::strtoull(line.c_str(), &rest, 16);
    const uint64_t last = std::strtoull(rest + 1, nullptr, 16);
    auto* const begin = reinterpret_cast<uint8_t*>(first);
    auto* const end = reinterpret_cast<uint8_t*>(last);
    uint8_t* const found = std::search(begin, end, bytes.begin(), bytes.end());
    if (found == end) continue;
    found[bytes.size() / 2] ^= 1;
    return true;
  }
  return false;
}

class SsdNodeTest : public ::testing::Test {
 protected:
  std::string kv(const std::string& name = "kv") const { return folder_.path() + "/" + name; }
  std::string log_path() const { return kv() + "/" + kSsdFileName; }

  /// Starts a node, in place of an earlier one; what the directory held is in its index.
  void start(const SsdSetup& setup = {}) { start_on({kv()}, setup); }
  void start_on(const std::vector<std::string>& folders, const SsdSetup& setup = {}) {
    node_.reset();
    auto started = Node::start(ssd_node_options(socket_name(), folders, setup));
    ASSERT_TRUE(started.ok()) << started.status().message();
    node_ = std::move(started.value());
    ASSERT_TRUE(eventually(kPatienceMs, [&] { return stat("ssd_recovering") == 0; }));
  }
  uint64_t stat(const std::string& name) { return stat_of(*node_, name); }
  bool settles(const std::string& name, uint64_t value) {
    return eventually(kPatienceMs, [&] { return stat(name) == value; });
  }
  std::unique_ptr<SimpleClient> client(uint64_t call_timeout_ms = kPatienceMs) {
    return std::make_unique<SimpleClient>(node_->socket_path(), call_timeout_ms);
  }
  /// Flips a byte of each copy of what page `n` of this size begins with. Returns how many.
  int damage(uint64_t n, uint64_t size) const {
    const std::vector<uint8_t> bytes = bytes_of(n, size);
    std::fstream file(log_path(), std::ios::in | std::ios::out | std::ios::binary);
    std::vector<char> sector(kSectorSize);
    int count = 0;
    for (uint64_t at = 0; file.seekg(static_cast<std::streamoff>(at)) &&
                          file.read(sector.data(), static_cast<std::streamsize>(sector.size()));
         at += kSectorSize) {
      if (std::memcmp(sector.data(), bytes.data(), std::min(size, kSectorSize)) != 0) continue;
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(sector[0] ^ 1));
      ++count;
    }
    return count;
  }

  TestFolder folder_;
  std::unique_ptr<Node> node_;
};

}  // namespace hicache::testing
