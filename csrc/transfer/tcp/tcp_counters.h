// What the TCP transport counts.
#pragma once

#include <atomic>
#include <cstdint>

namespace hicache {

struct TcpCounters {
  std::atomic<uint64_t> lanes_in{0};       // Open now.
  std::atomic<uint64_t> lanes_out{0};      // Open now.
  std::atomic<uint64_t> lanes_refused{0};  // Came when too many were open.
  std::atomic<uint64_t> lanes_cut{0};      // Lost, or closed because a write was given up.
  std::atomic<uint64_t> hostile{0};        // Closed for what came over them.
  std::atomic<uint64_t> timeouts{0};       // Parts that did not come by their deadline.
  std::atomic<uint64_t> corrupt{0};        // Payloads whose checksum was wrong, either way.
  std::atomic<uint64_t> out_of_range{0};   // Requests for what is not registered.
  std::atomic<uint64_t> read_bytes{0};     // Asked for from here, arrived.
  std::atomic<uint64_t> written_bytes{0};  // Asked for from here, acknowledged.
  std::atomic<uint64_t> served_read_bytes{0};
  std::atomic<uint64_t> served_written_bytes{0};
};

}  // namespace hicache
