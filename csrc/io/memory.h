// Shared memory that several processes map: the pool.
//
// The owner creates it (memfd, sealed against resizing, so a mapping can never fault with SIGBUS
// because someone shrank the file). Whoever is about to touch a part of it for the first time
// populates that part: running out of memory is then an error there and not a signal.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/fd.h"

namespace hicache {

enum class HugePages : uint8_t { kNever, kAuto, kAlways };

/// What the machine can still hand out without swapping or killing, as the kernel estimates it;
/// UINT64_MAX where it does not say. Limits of control groups are looked at when a node starts.
uint64_t available_memory_bytes();

/// Whether private memory that asks for huge pages (MADV_HUGEPAGE) may get some.
bool huge_pages_can_be_had();

class SharedMemory {
 public:
  struct Options {
    uint64_t size_bytes;   // Rounded up to whole (huge) OS pages.
    HugePages huge_pages;  // kAuto falls back with a notice, kAlways fails.
    int numa_node;         // -1: leave it to the kernel.
    /// Addresses for so much, if more than size_bytes: they cost nothing, and it can be used where
    /// memory is found for it. Left out with huge pages, or with a notice where it cannot be had.
    uint64_t room_bytes = 0;
  };

  enum class Access : uint8_t { kRead, kWrite };

  /// Creates and maps; touches nothing. Adds what was asked for and could not be had to `notices`.
  static Result<std::unique_ptr<SharedMemory>> create(const Options& options,
                                                      std::vector<std::string>& notices);

  /// Maps what another process created. The descriptor is hostile until checked: it must be a
  /// sealed memfd of at least `size_bytes`.
  static Result<std::unique_ptr<SharedMemory>> map(Fd fd, uint64_t size_bytes);

  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  /// At its end a disk may still be asked to read into it or write out of it: nothing else will
  /// ever lie at its addresses.
  void abandon_at_end() { is_abandoned_ = true; }

  uint8_t* address() const { return address_; }
  /// Of memory that create() made: with the room.
  uint64_t size_bytes() const { return size_bytes_; }
  const Fd& fd() const { return fd_; }
  /// Of memory that create() made: whether huge pages were set aside for all of it.
  bool is_huge() const { return is_huge_; }
  /// Of memory that create() made: whether it lies on huge pages, those set aside or those that the
  /// kernel gives to shared memory of itself where its settings say so and it has some.
  bool may_be_huge() const;

  /// Bytes of the file that memory stands behind now, whoever wrote them.
  uint64_t backed_bytes() const;

  struct Range {
    uint64_t offset;
    uint64_t size_bytes;
  };
  /// The first part from `offset` on that memory stands behind, whoever wrote it, of at most
  /// `size_max` bytes: how much is looked at. Nothing if there is none, or if the kernel does not
  /// say (memory on huge pages that were set aside). Empty where the kernel swapped it out.
  std::optional<Range> backed_range(uint64_t offset, uint64_t size_max) const;

  /// Makes the kernel back a range with real memory and map it into this process, for a first
  /// access of that kind. Reading maps what others wrote several times faster. Blocks; new memory
  /// takes about 0.5 s per GiB and thread. Returns kNoSpace when there is none left.
  Status populate(uint64_t offset, uint64_t size, Access access);

 private:
  SharedMemory(Fd fd, uint8_t* address, uint64_t size_bytes, uint64_t mapped_size_bytes);
  static Result<std::unique_ptr<SharedMemory>> make(const Options& options, bool huge);

  Fd fd_;
  bool is_abandoned_ = false;
  uint8_t* address_;
  uint64_t size_bytes_;
  bool is_huge_ = false;
  bool is_advised_ = false;     // That huge pages are wanted.
  uint64_t mapped_size_bytes_;  // The whole file: huge pages are only unmapped as a whole.
};

}  // namespace hicache
