#include "transfer/own_memory.h"

#include <charconv>
#include <mutex>
#include <utility>

#include "io/gpu.h"
#include "transfer/control.h"
#include "transfer/memory_place.h"

namespace hicache {
namespace {

/// Of a descriptor beside its buffers: name, endpoints.
constexpr size_t kDescriptorRest = 64 * 1024;

std::string hex(uint64_t value) {
  char digits[17];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value, 16).ptr;
  return "0x" + std::string(digits, end);
}

std::string range_name(uint64_t address, uint64_t size) {
  return std::to_string(size) + " bytes at " + hex(address);
}

Status closed() {
  return Status(Code::kClosed, "the transfer engine was stopped");
}

BufferDescriptor describe(const Buffer& buffer, const std::vector<TransportBytes>& keys) {
  return {buffer.id,           buffer.address,  buffer.size, buffer.kind,
          buffer.remote_write, buffer.location, keys};
}

}  // namespace

Status OwnMemory::add(uint64_t address, uint64_t size, const std::string& location,
                      bool remote_write) {
  if (address == 0 || size == 0 || address + size < address) {
    return Status(Code::kInvalidArgument,
                  "registering " + range_name(address, size) + ": that is no range of memory");
  }
  if (location.size() > kSegmentTextMax) {
    return Status(Code::kInvalidArgument,
                  "a location is a short name: \"cpu:0\", \"cuda:1\", \"*\"");
  }
  const Result<MemoryPlace> place = place_of(address, size);
  if (!place.ok()) return place.status();
  const bool is_on_device = place.value().is_on_device();
  const std::string found =
      is_on_device ? "cuda:" + std::to_string(place.value().device) : "memory of the CPU";
  const bool says_device = location.starts_with("cuda");
  if (location != "*" &&
      (says_device != is_on_device || (is_on_device && location != "cuda" && location != found))) {
    return Status(Code::kInvalidArgument,
                  "registering " + range_name(address, size) + " as \"" + location + "\": it is " +
                      found + " (so says " +
                      (GpuDriver::of_process() == nullptr ? "that no CUDA driver is in use here"
                                                          : "the CUDA driver") +
                      "); give the right location, or \"*\"");
  }
  const MemoryKind kind = is_on_device ? MemoryKind::kCuda : MemoryKind::kHost;
  return add(
      Buffer{kNoBuffer, address, size, kind, is_on_device ? found : location, remote_write, -1, 0},
      nullptr);
}

Result<uint64_t> OwnMemory::allocate(uint64_t size) {
  if (size == 0) return Status(Code::kInvalidArgument, "allocating 0 bytes: give a size");
  // More than there is would not fail but take the memory of everybody, and in the end a process.
  if (const uint64_t available = available_memory_bytes(); size > available) {
    return Status(Code::kNoSpace, "allocating " + std::to_string(size) +
                                      " bytes: this machine has " + std::to_string(available) +
                                      " left");
  }
  std::vector<std::string> notices;  // Without huge pages it works as well.
  Result<std::unique_ptr<SharedMemory>> memory =
      SharedMemory::create({size, HugePages::kAuto, -1}, notices);
  if (!memory.ok()) return memory.status();
  // Now, so that memory which is not there is an error here and not a signal at the first write.
  HICACHE_RETURN_IF_ERROR(memory.value()->populate(0, size, SharedMemory::Access::kWrite));
  const auto address = reinterpret_cast<uint64_t>(memory.value()->address());
  const int fd = memory.value()->fd().get();
  HICACHE_RETURN_IF_ERROR(add(Buffer{kNoBuffer, address, size, MemoryKind::kHost, "*", true, fd, 0},
                              std::move(memory.value())));
  return address;
}

Status OwnMemory::add(Buffer buffer, std::unique_ptr<SharedMemory> memory) {
  HICACHE_RETURN_IF_ERROR(reserve(buffer, memory));
  Result<std::vector<TransportBytes>> keys = register_everywhere(buffer);
  const Status status = keys.ok() ? publish(buffer, keys.value()) : keys.status();
  if (status.ok()) return status;
  if (keys.ok()) unregister_everywhere(buffer, keys.value());
  std::unique_ptr<SharedMemory> dropped;  // Unmapped without the lock.
  const std::lock_guard lock(mutex_);
  const auto entry = entries_.find(buffer.address);
  dropped = std::move(entry->second.memory);
  entries_.erase(entry);
  return status;
}

Status OwnMemory::publish(const Buffer& buffer, std::vector<TransportBytes>& keys) {
  const std::lock_guard lock(mutex_);
  if (is_closed_) return closed();
  Entry& entry = entries_.find(buffer.address)->second;
  const size_t size = encoded_size(hicache::describe(buffer, keys));
  if (encoded_size_ + size > kControlReplySizeMax - kDescriptorRest) {
    return Status(Code::kNoSpace, "registering " + range_name(buffer.address, buffer.size) +
                                      ": the list of buffers would be too long for a peer; "
                                      "register fewer, larger ranges");
  }
  encoded_size_ += size;
  entry.keys = std::move(keys);
  entry.is_ready = true;
  ++version_;
  return Status();
}

/// Takes the range, so that nobody else registers it meanwhile.
Status OwnMemory::reserve(Buffer& buffer, std::unique_ptr<SharedMemory>& memory) {
  const std::lock_guard lock(mutex_);
  if (is_closed_) return closed();
  if (entries_.size() >= kBuffersMax) {
    return Status(Code::kNoSpace, std::to_string(kBuffersMax) +
                                      " buffers are registered; register fewer, larger ranges");
  }
  const auto next = entries_.lower_bound(buffer.address);
  const Buffer* other = nullptr;
  if (next != entries_.end() && next->first - buffer.address < buffer.size) {
    other = &next->second.buffer;
  } else if (next != entries_.begin()) {
    const Buffer& previous = std::prev(next)->second.buffer;
    if (buffer.address - previous.address < previous.size) other = &previous;
  }
  if (other != nullptr) {
    return Status(Code::kAlreadyExists, "registering " + range_name(buffer.address, buffer.size) +
                                            ": it overlaps what is registered, " +
                                            range_name(other->address, other->size) +
                                            "; unregister that first");
  }
  buffer.id = next_id_++;
  entries_.emplace(buffer.address, Entry{buffer, false, false, {}, std::move(memory)});
  return Status();
}

Result<std::vector<TransportBytes>> OwnMemory::register_everywhere(const Buffer& buffer) {
  std::vector<TransportBytes> keys;
  Status refusal;
  for (Transport* transport : transports_) {
    Result<std::vector<uint8_t>> key = transport->register_buffer(buffer);
    if (key.ok() && key.value().size() > kTransportBytesMax) {
      transport->unregister_buffer(buffer.id);
      key = Status(Code::kInternal, "a memory key too long for the wire");
    }
    if (key.ok()) {
      keys.push_back({transport->kind(), std::move(key.value())});
      continue;
    }
    refusal =
        Status(key.status().code(), "registering " + range_name(buffer.address, buffer.size) +
                                        " for " + std::string(transport_name(transport->kind())) +
                                        ": " + key.status().message());
    const std::lock_guard lock(mutex_);
    last_refusal_ = refusal.message();
  }
  if (keys.empty() && !transports_.empty()) return refusal;
  return keys;
}

void OwnMemory::unregister_everywhere(const Buffer& buffer,
                                      const std::vector<TransportBytes>& keys) {
  for (Transport* transport : transports_) {
    for (const TransportBytes& key : keys) {
      if (key.kind == transport->kind()) transport->unregister_buffer(buffer.id);
    }
  }
}

Status OwnMemory::remove(uint64_t address) {
  return remove(address, false);
}

Status OwnMemory::free(uint64_t address) {
  return remove(address, true);
}

Status OwnMemory::untouched(const Entry& entry) {
  for (Transport* transport : transports_) {
    const Status status = transport->untouched(entry.buffer.id);
    if (status.ok()) continue;
    return Status(status.code(), "unregistering " +
                                     range_name(entry.buffer.address, entry.buffer.size) + ": " +
                                     status.message());
  }
  return Status();
}

Status OwnMemory::remove(uint64_t address, bool is_allocated) {
  std::unique_ptr<SharedMemory> memory;
  Entry* entry;
  bool was_ready;
  {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(address);
    if (found == entries_.end() || (!found->second.is_ready && !found->second.is_stuck) ||
        (found->second.memory != nullptr) != is_allocated) {
      return Status(Code::kNotFound, "nothing that was " +
                                         std::string(is_allocated ? "allocated" : "registered") +
                                         " begins at " + hex(address));
    }
    entry = &found->second;
    was_ready = entry->is_ready;
    entry->is_ready = false;  // Nobody else touches it now.
    entry->is_stuck = false;
    if (was_ready) {
      encoded_size_ -= encoded_size(hicache::describe(entry->buffer, entry->keys));
      ++version_;
    }
  }
  if (was_ready) unregister_everywhere(entry->buffer, entry->keys);
  Status status = untouched(*entry);
  const std::lock_guard lock(mutex_);
  if (!status.ok()) {
    entry->is_stuck = true;
    return status;
  }
  memory = std::move(entry->memory);
  if (is_closed_ && memory != nullptr) kept_.push_back(std::move(memory));
  entries_.erase(address);
  return Status();
}

Status OwnMemory::clear() {
  std::vector<std::pair<uint64_t, bool>> left;
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
    for (const auto& [address, entry] : entries_) {
      if (entry.is_ready || entry.is_stuck) left.emplace_back(address, entry.memory != nullptr);
    }
  }
  Status first;
  for (const auto& [address, is_allocated] : left) {
    Status status = remove(address, is_allocated);
    if (status.code() == Code::kTimeout && first.ok()) first = std::move(status);
  }
  return first;
}

OwnMemory::~OwnMemory() {
  if (clear().ok()) return;
  // A late byte must not land in what is mapped there next: this memory stays until the process
  // ends.
  for (auto& [address, entry] : entries_) (void)entry.memory.release();
}

BufferId OwnMemory::find(uint64_t address, uint64_t size) const {
  const std::shared_lock lock(mutex_);
  auto after = entries_.upper_bound(address);
  if (after == entries_.begin()) return kNoBuffer;
  const Entry& entry = std::prev(after)->second;
  const uint64_t offset = address - entry.buffer.address;
  const bool is_inside =
      entry.is_ready && offset <= entry.buffer.size && size <= entry.buffer.size - offset;
  return is_inside ? entry.buffer.id : kNoBuffer;
}

std::string OwnMemory::location_of(BufferId id) const {
  const std::shared_lock lock(mutex_);
  for (const auto& [address, entry] : entries_) {
    if (entry.buffer.id == id) return entry.buffer.location;
  }
  return "*";
}

SegmentDescriptor OwnMemory::describe(const std::string& name) const {
  SegmentDescriptor segment{name, epoch_, 0, {}, {}};
  for (const Transport* transport : transports_) {
    segment.endpoints.push_back({transport->kind(), transport->endpoint()});
  }
  const std::shared_lock lock(mutex_);
  segment.version = version_;
  segment.buffers.reserve(entries_.size());
  for (const auto& [address, entry] : entries_) {
    if (entry.is_ready) segment.buffers.push_back(hicache::describe(entry.buffer, entry.keys));
  }
  return segment;
}

size_t OwnMemory::count() const {
  const std::shared_lock lock(mutex_);
  return entries_.size();
}

uint64_t OwnMemory::size_bytes() const {
  const std::shared_lock lock(mutex_);
  uint64_t size = 0;
  for (const auto& [address, entry] : entries_) size += entry.buffer.size;
  return size;
}

std::string OwnMemory::last_refusal() const {
  const std::shared_lock lock(mutex_);
  return last_refusal_;
}

}  // namespace hicache
