// The registered memory that peers may touch, and who is touching it right now.
//
// A use lasts for one system call or one checksum, never while a peer is waited for. So remove()
// waits for microseconds, and once it returns nothing is read or written any more.
//
// Threads: any.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "base/status.h"
#include "transfer/segment.h"

namespace hicache {

/// Where an address becomes memory, for the TCP transport: the seam for memory that the CPU cannot
/// reach.
inline uint8_t* tcp_memory_at(uint64_t address) {
  return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(address));
}

class RangeTable {
 private:
  struct Range {
    uint64_t address;
    uint64_t size;
    bool remote_write;
    bool is_on_device;
    std::atomic<uint32_t> users{0};
  };

 public:
  enum class Access : uint8_t { kRead, kWrite };

  /// Permission to touch a piece of a range, for as long as it lives.
  class Use {
   public:
    Use() = default;
    Use(Use&& other) noexcept : range_(std::move(other.range_)) {}
    Use& operator=(Use&& other) noexcept {
      if (this != &other) {
        end();
        range_ = std::move(other.range_);
      }
      return *this;
    }
    ~Use() { end(); }

    explicit operator bool() const { return range_ != nullptr; }
    /// Whether it is memory of a GPU. Requires: a permission.
    bool is_on_device() const { return range_->is_on_device; }
    void end();

   private:
    friend class RangeTable;
    explicit Use(std::shared_ptr<Range> range) : range_(std::move(range)) {}
    std::shared_ptr<Range> range_;
  };

  Status add(const Buffer& buffer);
  /// Blocks while the range is used.
  void remove(BufferId buffer);

  /// Nothing, if the buffer is not there, does not hold the whole piece, or may not be touched so.
  Use use(BufferId buffer, uint64_t address, uint64_t size, Access access) const;
  bool is_on_device(BufferId buffer) const;

 private:
  mutable std::mutex mutex_;
  std::unordered_map<BufferId, std::shared_ptr<Range>> ranges_;
};

}  // namespace hicache
