// What the directory costs: bytes of a page, and how fast it answers beside what the machine can
// do in the same run. The large runs are for people:
//   hicache_tests --gtest_also_run_disabled_tests --gtest_filter='DirectoryBench.*'
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <semaphore>

#include "directory/directory.h"
#include "directory_net_rig.h"

namespace hicache {
namespace {

using namespace testing;  // NOLINT: the rig's words.

constexpr size_t kBatch = 128;

/// Keys that cost nothing to make; uniformly distributed, as SHA-256 is.
Key fast_key(uint64_t n) {
  Key key;
  for (size_t i = 0; i < 4; ++i) {
    const uint64_t word = page_hash_detail::mix(n * 4 + i + 1);
    std::memcpy(key.bytes.data() + i * sizeof(word), &word, sizeof(word));
  }
  return key;
}

void announce(ScriptedNode& node, uint64_t count) {
  node.send(BatchKind::kBegin);
  std::vector<PageChange> changes;
  for (uint64_t n = 0; n < count; ++n) {
    changes.push_back(change_of(fast_key(n)));
    if (changes.size() == kChangesMax || n + 1 == count) {
      ASSERT_EQ(node.change(std::exchange(changes, {})).head.code, Code::kOk);
    }
  }
  node.send(BatchKind::kEnd);
}

double seconds_since(uint64_t start_ns) {
  return static_cast<double>(monotonic_ns() - start_ns) * 1e-9;
}

/// Requests for runs of keys, as chains are asked for: neighbours only in the request.
std::vector<LocateRequest> requests_of(uint64_t page_count, size_t request_count) {
  Random random(1);
  std::vector<LocateRequest> requests(request_count);
  for (LocateRequest& request : requests) {
    request.digest = kSpaceA;
    request.is_prefix = true;
    for (size_t i = 0; i < kBatch; ++i) {
      request.keys.push_back(fast_key(random.below(page_count)));
    }
  }
  return requests;
}

void measure(uint64_t page_count) {
  HICACHE_TRACE_SEED();
  Directory directory(directory_options());
  directory.lead(1);
  ScriptedNode node(directory, "a", 1, 1);
  node.join();
  uint64_t start = monotonic_ns();
  announce(node, page_count);
  const double announced_s = seconds_since(start);
  const double size = static_cast<double>(directory.memory_size_bytes());
  std::printf("%llu pages: %.1f bytes each, announced in %.2f s\n",
              static_cast<unsigned long long>(page_count), size / static_cast<double>(page_count),
              announced_s);
  EXPECT_LE(size / static_cast<double>(page_count), 128);

  const std::vector<LocateRequest> requests = requests_of(page_count, 4000);
  const auto keys_per_s = [&](auto&& answer) {
    double best = 0;
    for (int round = 0; round < 5; ++round) {
      start = monotonic_ns();
      for (const LocateRequest& request : requests) answer(request);
      best = std::max(best, static_cast<double>(requests.size() * kBatch) / seconds_since(start));
    }
    return best;
  };
  LocateReply reply;
  const double located = keys_per_s([&](const LocateRequest& request) {
    directory.apply(request, reply);
    ASSERT_EQ(reply.counts.size(), kBatch);
  });
  uint64_t sum = 0;
  std::vector<Key> copy(kBatch);
  const double copied = keys_per_s([&](const LocateRequest& request) {
    std::copy(request.keys.begin(), request.keys.end(), copy.begin());
    for (const Key& key : copy) sum += page_hash(0, key);
  });
  std::vector<uint8_t> memory(page_count * 64);
  const double touched = keys_per_s([&](const LocateRequest& request) {
    for (const Key& key : request.keys) sum += memory[page_hash(0, key) % memory.size()];
  });
  std::printf(
      "look-ups of %zu keys: %.1f M keys/s; copy and hash alone: %.1f M, one random byte "
      "of as much memory: %.1f M (%llu)\n",
      kBatch, located * 1e-6, copied * 1e-6, touched * 1e-6,
      static_cast<unsigned long long>(sum % 2));

  start = monotonic_ns();
  directory.apply(LeaveRequest{0, node.index(), 1}, 0);
  double longest = 0;
  for (uint64_t step = monotonic_ns(); directory.advance(0) == 0; step = monotonic_ns()) {
    longest = std::max(longest, seconds_since(step));
  }
  std::printf("forgotten in %.2f s, no step longer than %.2f ms\n", seconds_since(start),
              longest * 1e3);
}

TEST(DirectoryBench, APageCostsAtMost128Bytes) {
  measure(1'000'000);
}

TEST(DirectoryBench, DISABLED_TenMillionPages) {
  measure(10'000'000);
}

/// Look-ups over loopback, `window` at a time; server and client share the machine's cores.
double keys_per_s_over_loopback(DirectoryClient& client, const std::vector<LocateRequest>& requests,
                                size_t window) {
  std::counting_semaphore<> free(static_cast<ptrdiff_t>(window));
  const uint64_t start = monotonic_ns();
  for (const LocateRequest& request : requests) {
    free.acquire();
    client.ask<LocateReply>(request, soon(), [&](const Result<LocateReply>& reply) {
      EXPECT_TRUE(reply.ok() && reply.value().counts.size() == kBatch) << reply.status().message();
      free.release();
    });
  }
  for (size_t i = 0; i < window; ++i) free.acquire();
  return static_cast<double>(requests.size() * kBatch) / seconds_since(start);
}

TEST(DirectoryBench, DISABLED_OverLoopback) {
  HICACHE_TRACE_SEED();
  constexpr uint64_t kPages = 10'000'000;
  auto server = start_server(server_options());
  NetNode node(server->port(), member_of("a"), client_options({server->port()}));
  node.join();
  node.send(BatchKind::kBegin);
  std::vector<std::vector<PageChange>> batches;
  for (uint64_t n = 0; n < kPages; ++n) {
    if (n % kChangesMax == 0) batches.emplace_back();
    batches.back().push_back(change_of(fast_key(n)));
  }
  constexpr ptrdiff_t kWindow = 8;
  std::counting_semaphore<> free(kWindow);
  const uint64_t start = monotonic_ns();
  for (std::vector<PageChange>& changes : batches) {
    free.acquire();
    node.bulk().ask<BatchReply>(node.batch(BatchKind::kChanges, std::move(changes)), soon(),
                                [&](const Result<BatchReply>& reply) {
                                  EXPECT_TRUE(reply.ok()) << reply.status().message();
                                  free.release();
                                });
  }
  for (ptrdiff_t i = 0; i < kWindow; ++i) free.acquire();
  node.send(BatchKind::kEnd);
  std::printf("%llu pages announced over loopback in %.2f s\n",
              static_cast<unsigned long long>(kPages), seconds_since(start));
  const std::vector<LocateRequest> requests = requests_of(kPages, 20'000);
  for (const size_t window : {1U, 4U, 16U, 64U}) {
    double best = 0;
    for (int round = 0; round < 3; ++round) {
      best = std::max(best, keys_per_s_over_loopback(node.bulk(), requests, window));
    }
    std::printf("%zu look-ups of %zu keys at a time: %.2f M keys/s\n", window, kBatch, best * 1e-6);
  }
}

}  // namespace
}  // namespace hicache
