#include "io/memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "base/bytes.h"
#include "base/huge_allocator.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace hicache {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

/// Free huge pages of 2 MiB, from the kernel's counters; 0 when there are none or no sysfs.
uint64_t free_huge_pages() {
  uint64_t count = 0;
  if (std::FILE* file =
          std::fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re")) {
    if (std::fscanf(file, "%lu", &count) != 1) count = 0;
    std::fclose(file);
  }
  return count;
}

std::string huge_page_remedy(uint64_t size_bytes) {
  const uint64_t wanted = round_up(size_bytes, kHugePageSize) / kHugePageSize;
  return "the pool wants " + std::to_string(wanted) + " huge pages of 2 MiB and the system has " +
         std::to_string(free_huge_pages()) +
         " free; reserve them with `sysctl vm.nr_hugepages=" + std::to_string(wanted) + "`";
}

Result<Fd> create_memfd(const SharedMemory::Options& options, bool huge, uint64_t* size_bytes) {
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB : 0);
  Fd fd(memfd_create("mooncake-hicache-pool", flags));
  if (!fd.valid()) return io_error("creating the pool's memory (memfd_create)", errno);
  // Huge pages are set aside for all of it: it gets no room.
  *size_bytes = huge ? round_up(options.size_bytes, kHugePageSize)
                     : round_up(std::max(options.size_bytes, options.room_bytes), kMiB);
  if (ftruncate(fd.get(), static_cast<off_t>(*size_bytes)) != 0) {
    return io_error("sizing the pool to " + std::to_string(*size_bytes) + " bytes", errno);
  }
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) {
    return io_error("sealing the pool's memory", errno);
  }
  return fd;
}

void bind_to_numa_node(uint8_t* address, uint64_t size, int node,
                       std::vector<std::string>& notices) {
  if (node < 0) return;
  unsigned long mask[16] = {};
  constexpr int kNodesMax = static_cast<int>(sizeof(mask)) * 8;
  if (node < kNodesMax) mask[node / 64] = 1UL << (node % 64);
  // The system call itself: libnuma would be one more library for this one line.
  if (node >= kNodesMax || syscall(SYS_mbind, address, size, MPOL_BIND, mask, kNodesMax, 0) != 0) {
    notices.push_back("the pool is not bound to NUMA node " + std::to_string(node) + " (" +
                      std::strerror(node >= kNodesMax ? EINVAL : errno) +
                      "); see /sys/devices/system/node for the nodes of this machine");
  }
}

/// The word in brackets of a setting such as "always [madvise] never"; empty: there is none.
std::string chosen(const char* path) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    if (word.front() == '[') return word.substr(1, word.size() - 2);
  }
  return "";
}

}  // namespace

bool huge_pages_can_be_had() {
  const std::string choice = chosen("/sys/kernel/mm/transparent_hugepage/enabled");
  return choice == "always" || choice == "madvise";
}

uint64_t available_memory_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    uint64_t size_kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %lu kB", &size_kib) == 1) return size_kib * kKiB;
  }
  return UINT64_MAX;
}

SharedMemory::SharedMemory(Fd fd, uint8_t* address, uint64_t size_bytes, uint64_t mapped_size_bytes)
    : fd_(std::move(fd)),
      address_(address),
      size_bytes_(size_bytes),
      mapped_size_bytes_(mapped_size_bytes) {}

SharedMemory::~SharedMemory() {
  if (!is_abandoned_) {
    munmap(address_, mapped_size_bytes_);
    return;
  }
  // In place of the mapping, in one step. Without memory for that it stays as it is.
  (void)mmap(address_, mapped_size_bytes_, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
}

Result<std::unique_ptr<SharedMemory>> SharedMemory::make(const Options& options, bool huge) {
  uint64_t size_bytes = 0;
  Result<Fd> fd = create_memfd(options, huge, &size_bytes);
  if (!fd.ok()) return fd.status();
  void* address =
      mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.value().get(), 0);
  if (address == MAP_FAILED) {
    return Status(Code::kNoSpace, "mapping a pool of " + std::to_string(size_bytes) + " bytes: " +
                                      std::strerror(errno) + "; choose a smaller pool_size");
  }
  return std::unique_ptr<SharedMemory>(new SharedMemory(
      std::move(fd.value()), static_cast<uint8_t*>(address), size_bytes, size_bytes));
}

Result<std::unique_ptr<SharedMemory>> SharedMemory::create(const Options& options,
                                                           std::vector<std::string>& notices) {
  const uint64_t huge_wanted = round_up(options.size_bytes, kHugePageSize) / kHugePageSize;
  bool huge = options.huge_pages != HugePages::kNever && free_huge_pages() >= huge_wanted;
  if (!huge && options.huge_pages == HugePages::kAlways) {
    return Status(Code::kNoSpace, "huge_pages = always: " + huge_page_remedy(options.size_bytes));
  }
  Result<std::unique_ptr<SharedMemory>> made = make(options, huge);
  if (!made.ok() && huge && options.huge_pages == HugePages::kAuto) {
    huge = false;  // Somebody else took them, or a limit (cgroup) is lower than the system's count.
    made = make(options, huge);
  }
  if (!made.ok() && options.room_bytes > options.size_bytes) {
    // A limit of the process (ulimit -v, ulimit -f), most likely.
    notices.push_back("the pool has no room to grow: " + made.status().message());
    Options tight = options;
    tight.room_bytes = 0;
    made = make(tight, huge);
  }
  if (!made.ok()) return made;
  SharedMemory& memory = *made.value();
  memory.is_huge_ = huge;
  if (!huge && options.huge_pages == HugePages::kAuto) {
    notices.push_back("the pool uses 4 KiB OS pages: " + huge_page_remedy(options.size_bytes));
    memory.is_advised_ = madvise(memory.address_, memory.size_bytes_, MADV_HUGEPAGE) == 0;
  }
  bind_to_numa_node(memory.address_, memory.size_bytes_, options.numa_node, notices);
  return made;
}

Result<std::unique_ptr<SharedMemory>> SharedMemory::map(Fd fd, uint64_t size_bytes) {
  struct stat stat{};
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd.get(), &stat) != 0 ||
      static_cast<uint64_t>(stat.st_size) < size_bytes || size_bytes == 0) {
    return Status(Code::kCorrupt, "the node sent a pool that is not a sealed memfd of " +
                                      std::to_string(size_bytes) + " bytes");
  }
  const auto file_size = static_cast<uint64_t>(stat.st_size);
  void* address = mmap(nullptr, file_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) return io_error("mapping the node's pool", errno);
  return std::unique_ptr<SharedMemory>(
      new SharedMemory(std::move(fd), static_cast<uint8_t*>(address), size_bytes, file_size));
}

bool SharedMemory::may_be_huge() const {
  const std::string choice = chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  const bool is_given = choice == "always" || choice == "within_size" || choice == "force";
  return is_huge_ || is_given || (choice == "advise" && is_advised_);
}

uint64_t SharedMemory::backed_bytes() const {
  struct stat stat{};
  return fstat(fd_.get(), &stat) == 0 ? static_cast<uint64_t>(stat.st_blocks) * 512 : 0;
}

std::optional<SharedMemory::Range> SharedMemory::backed_range(uint64_t offset,
                                                              uint64_t size_max) const {
  // Of huge pages the kernel says that all of them are there.
  struct statfs system{};
  if (fstatfs(fd_.get(), &system) != 0 || system.f_type == HUGETLBFS_MAGIC) return std::nullopt;
  // Moves the position of the file, which all processes share and none uses.
  const off_t found = lseek(fd_.get(), static_cast<off_t>(offset), SEEK_DATA);
  if (found < 0 || static_cast<uint64_t>(found) >= size_bytes_) return std::nullopt;
  const auto begin = static_cast<uint64_t>(found);
  // Not SEEK_HOLE, which would look at all there is up to the next hole.
  const uint64_t size = std::min(size_max, size_bytes_ - begin);
  const auto page_size = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  std::vector<uint8_t> is_there((size + page_size - 1) / page_size);
  if (mincore(address_ + begin, size, is_there.data()) != 0) return std::nullopt;
  const auto hole = std::ranges::find_if(is_there, [](uint8_t page) { return (page & 1) == 0; });
  const auto pages = static_cast<uint64_t>(hole - is_there.begin());
  return Range{begin, std::min(size, pages * page_size)};
}

Status SharedMemory::populate(uint64_t offset, uint64_t size, Access access) {
  const int advice = access == Access::kRead ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
  for (;;) {
    if (madvise(address_ + offset, size, advice) == 0) return Status();
    if (errno == EINTR || errno == EAGAIN) continue;
    break;
  }
  // Linux before 5.14 has no MADV_POPULATE_*; fallocate backs the file all the same.
  while (errno == EINVAL || errno == EINTR) {
    if (fallocate(fd_.get(), 0, static_cast<off_t>(offset), static_cast<off_t>(size)) == 0) {
      return Status();
    }
    if (errno != EINTR) break;
  }
  return Status(Code::kNoSpace, "backing " + std::to_string(size) +
                                    " bytes of the pool at offset " + std::to_string(offset) +
                                    ": " + std::strerror(errno) +
                                    "; free memory or choose a smaller pool_size");
}

}  // namespace hicache
