// The memory that this engine has registered: its own segment.
//
// Knows each buffer, has every transport make it reachable, and describes all of them to peers.
//
// Threads: any. add(), remove(), allocate() and free() block while transports pin and unpin; find()
// and describe() do not wait for that.
#pragma once

#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/memory.h"
#include "transfer/segment.h"
#include "transfer/transport.h"

namespace hicache {

class OwnMemory {
 public:
  /// The transports outlive this.
  OwnMemory(uint64_t epoch, std::vector<Transport*> transports)
      : epoch_(epoch), transports_(std::move(transports)) {}
  ~OwnMemory();
  OwnMemory(const OwnMemory&) = delete;
  OwnMemory& operator=(const OwnMemory&) = delete;

  /// `location`: "*" is found out for memory of a GPU; one that the driver contradicts is refused.
  Status add(uint64_t address, uint64_t size, const std::string& location, bool remote_write);
  /// kTimeout: nobody begins to touch it any more, but somebody may still be in the middle of that;
  /// the memory has to stay, and remove() has to be called again. The same for free().
  Status remove(uint64_t address);
  Result<uint64_t> allocate(uint64_t size);
  Status free(uint64_t address);
  /// Unregisters everything; nothing can be added any more. What allocate() gave stays mapped until
  /// this is destroyed: programs look into it after the end. kTimeout: as remove().
  Status clear();

  /// The buffer that holds the whole range; kNoBuffer if none does.
  BufferId find(uint64_t address, uint64_t size) const;
  /// Where a buffer's memory is: "cpu:0", "cuda:1"; "*" if that is not known, or the buffer gone.
  std::string location_of(BufferId id) const;
  SegmentDescriptor describe(const std::string& name) const;

  size_t count() const;
  uint64_t size_bytes() const;
  /// Why a transport did not register a buffer that another one did; empty: that never happened.
  std::string last_refusal() const;

 private:
  struct Entry {
    Buffer buffer;
    bool is_ready;  // False: transports are at it, or is_stuck.
    bool is_stuck;  // Unregistered, and a process may still touch it.
    std::vector<TransportBytes> keys;
    std::unique_ptr<SharedMemory> memory;  // Of allocate().
  };

  Status add(Buffer buffer, std::unique_ptr<SharedMemory> memory);
  Status reserve(Buffer& buffer, std::unique_ptr<SharedMemory>& memory);
  Status publish(const Buffer& buffer, std::vector<TransportBytes>& keys);
  Result<std::vector<TransportBytes>> register_everywhere(const Buffer& buffer);
  void unregister_everywhere(const Buffer& buffer, const std::vector<TransportBytes>& keys);
  Status untouched(const Entry& entry);
  Status remove(uint64_t address, bool is_allocated);

  const uint64_t epoch_;
  const std::vector<Transport*> transports_;
  mutable std::shared_mutex mutex_;
  std::map<uint64_t, Entry> entries_;  // By address.
  BufferId next_id_ = 1;
  uint64_t version_ = 1;
  size_t encoded_size_ = 0;
  bool is_closed_ = false;
  std::vector<std::unique_ptr<SharedMemory>> kept_;  // Allocated, and cleared.
  std::string last_refusal_;
};

}  // namespace hicache
