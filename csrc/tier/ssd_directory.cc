#include "tier/ssd_directory.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include "base/clock.h"
#include "io/mapped_memory.h"

namespace hicache {
namespace {

constexpr int kFileFlags = O_RDWR | O_DIRECT | O_CLOEXEC | O_NOFOLLOW;
// A process that was killed keeps the lock until the kernel has ended its requests.
constexpr uint64_t kLockPatienceMs = 2000;
constexpr int kLockRetryMs = 5;
constexpr const char* kChooseAnother = "; move it away or choose another folder";

Status failed(const std::string& tried, const std::string& path, int error) {
  if (error == ENOSPC || error == EDQUOT) {
    return Status(Code::kNoSpace, tried + " " + path + ": " + std::strerror(error) +
                                      "; free space there or choose another folder");
  }
  return io_error(tried + " " + path, error);
}

Status refused(Code code, const std::string& path, const std::string& why) {
  return Status(code, "opening the SSD log " + path + ": " + why + kChooseAnother);
}

Status check(const SsdDirectory::Options& options) {
  const uint64_t size = options.region_size_bytes;
  if (size >= kRegionSizeMin && size <= kRegionSizeMax && size % kSectorSize == 0) return Status();
  return Status(Code::kInvalidArgument,
                "SSD regions of " + std::to_string(size) + " bytes: choose a multiple of " +
                    std::to_string(kSectorSize) + " from " + std::to_string(kRegionSizeMin) +
                    " to " + std::to_string(kRegionSizeMax));
}

Result<Fd> open_folder(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return failed("making the SSD folder", path, errno);
  }
  Fd folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid()) return failed("opening the SSD folder", path, errno);
  return folder;
}

Status open_failed(const std::string& path, int error) {
  if (error == EINVAL || error == EOPNOTSUPP) {
    return Status(Code::kUnsupported, "opening the SSD log " + path +
                                          ": its file system has no direct I/O (O_DIRECT); choose "
                                          "a folder on another, like ext4 or XFS");
  }
  return failed("opening the SSD log", path, error);
}

/// What is no file is not even opened: that may have effects of its own.
Status check_kind(const struct stat& stat, const std::string& path) {
  if (S_ISREG(stat.st_mode)) return Status();
  return refused(Code::kInvalidArgument, path,
                 S_ISLNK(stat.st_mode) ? "it is a symbolic link" : "it is not a regular file");
}

/// False with errno set, after a moment of patience if somebody else has it.
bool lock(const Fd& fd) {
  const Deadline until = Deadline::after_ms(kLockPatienceMs);
  while (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EINTR && (errno != EWOULDBLOCK || until.expired())) return false;
    poll(nullptr, 0, kLockRetryMs);
  }
  return true;
}

/// Opens or makes the file, and locks it. `stat`: of the file, once it is ours.
Result<Fd> open_locked(const Fd& folder, const std::string& path, struct stat& stat) {
  // Again when somebody removes the file between opening and locking it.
  for (int attempt = 0; attempt < 10; ++attempt) {
    if (fstatat(folder.get(), kSsdFileName, &stat, AT_SYMLINK_NOFOLLOW) == 0) {
      HICACHE_RETURN_IF_ERROR(check_kind(stat, path));
    }
    Fd fd(openat(folder.get(), kSsdFileName, kFileFlags));
    if (!fd.valid() && errno == ENOENT) {
      fd = Fd(openat(folder.get(), kSsdFileName, kFileFlags | O_CREAT, 0600));
    }
    if (!fd.valid()) return open_failed(path, errno);
    if (fstat(fd.get(), &stat) != 0) return failed("looking at the SSD log", path, errno);
    HICACHE_RETURN_IF_ERROR(check_kind(stat, path));
    if (stat.st_uid != geteuid()) {
      return refused(Code::kInvalidArgument, path,
                     "it belongs to user " + std::to_string(stat.st_uid));
    }
    if (!lock(fd)) {
      if (errno != EWOULDBLOCK) return failed("locking the SSD log", path, errno);
      return Status(Code::kBusy, "opening the SSD log " + path +
                                     ": another node has it open, or this one by another "
                                     "name of the same folder; stop that one or name another "
                                     "folder");
    }
    if (fstat(fd.get(), &stat) == 0 && stat.st_nlink != 0) return fd;
  }
  return Status(Code::kBusy, "opening the SSD log " + path +
                                 ": it is removed again and again; choose another folder");
}

/// Reads the first sector; what lies behind the end of the file is zero.
Result<MappedMemory> read_first_sector(const Fd& fd, const std::string& path) {
  MappedMemory memory = MappedMemory::make(kSectorSize);
  if (!memory.valid()) return failed("reading the SSD log", path, ENOMEM);
  ssize_t count = 0;
  do {
    count = pread(fd.get(), memory.address(), kSectorSize, 0);
  } while (count < 0 && errno == EINTR);
  if (count < 0) return failed("reading the SSD log", path, errno);
  return memory;
}

/// Space, then the superblock, then both for good. What it says fits the smallest unit that a disk
/// writes at once, so that a crash leaves all of it or zeros.
Status write_superblock(const Fd& folder, const Fd& fd, const std::string& path,
                        const Superblock& superblock, MappedMemory& memory) {
  encode(superblock, MutableSector(memory.span().first<kSectorSize>()));
  int error = 0;
  do {
    error = fallocate(fd.get(), 0, 0, kSuperblockSize) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == EOPNOTSUPP) {
    return Status(Code::kUnsupported, "making the SSD log " + path +
                                          ": its file system cannot set space aside (fallocate); "
                                          "choose a folder on another, like ext4 or XFS");
  }
  if (error != 0) return failed("making the SSD log", path, error);
  ssize_t count = 0;
  do {
    count = pwrite(fd.get(), memory.address(), kSectorSize, 0);
  } while (count < 0 && errno == EINTR);
  if (count != static_cast<ssize_t>(kSectorSize)) {
    return failed("making the SSD log", path, count < 0 ? errno : EIO);
  }
  if (fsync(fd.get()) != 0 || fsync(folder.get()) != 0) {
    return failed("making the SSD log", path, errno);
  }
  return Status();
}

Superblock new_superblock(uint64_t region_size_bytes) {
  Superblock superblock;
  superblock.region_size_bytes = region_size_bytes;
  superblock.made_at_s = static_cast<uint64_t>(time(nullptr));
  const uint64_t tokens[2] = {random_token(), random_token()};
  static_assert(sizeof(tokens) == sizeof(superblock.log_id));
  std::memcpy(superblock.log_id.data(), tokens, sizeof(tokens));
  return superblock;
}

}  // namespace

Result<std::unique_ptr<SsdDirectory>> SsdDirectory::open(const Options& options) {
  HICACHE_RETURN_IF_ERROR(check(options));
  Result<Fd> folder = open_folder(options.path);
  if (!folder.ok()) return folder.status();
  const std::string path = options.path + "/" + kSsdFileName;
  struct stat stat{};
  Result<Fd> fd = open_locked(folder.value(), path, stat);
  if (!fd.ok()) return fd.status();
  Result<MappedMemory> memory = read_first_sector(fd.value(), path);
  if (!memory.ok()) return memory.status();

  const std::span<uint8_t> bytes = memory.value().span().first(kSectorSize);
  Superblock superblock;
  // Regions come after the superblock: a file that has none yet holds nothing to be lost.
  if (static_cast<uint64_t>(stat.st_size) <= kSuperblockSize && is_zero(bytes)) {
    superblock = new_superblock(options.region_size_bytes);
    HICACHE_RETURN_IF_ERROR(
        write_superblock(folder.value(), fd.value(), path, superblock, memory.value()));
  } else {
    const Result<Superblock> decoded = decode_superblock(Sector(bytes.first<kSectorSize>()));
    if (!decoded.ok()) {
      return refused(decoded.status().code(), path, decoded.status().message());
    }
    superblock = decoded.value();
  }
  return std::unique_ptr<SsdDirectory>(
      new SsdDirectory(path, std::move(fd.value()), superblock, options.size_limit_bytes));
}

Result<Fd> SsdDirectory::open_for_readers() const {
  const std::string name = "/proc/self/fd/" + std::to_string(fd_.get());
  Fd fd(::open(name.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (!fd.valid()) return io_error("opening the SSD log " + path_ + " for reading", errno);
  return fd;
}

uint32_t SsdDirectory::region_count() const {
  struct stat stat{};
  if (fstat(fd_.get(), &stat) != 0) return 0;
  const auto size = static_cast<uint64_t>(stat.st_size);
  if (size < kSuperblockSize) return 0;
  return static_cast<uint32_t>(
      std::min<uint64_t>((size - kSuperblockSize) / region_size_bytes(), UINT32_MAX));
}

uint32_t SsdDirectory::region_count_max() const {
  const uint64_t room = size_limit_bytes_ - std::min(size_limit_bytes_, kSuperblockSize);
  return static_cast<uint32_t>(
      std::clamp<uint64_t>(room / region_size_bytes(), kRegionCountMin, UINT32_MAX));
}

uint64_t SsdDirectory::file_system_free_bytes() const {
  struct statvfs stat{};
  return fstatvfs(fd_.get(), &stat) == 0 ? stat.f_bavail * stat.f_frsize : UINT64_MAX;
}

bool SsdDirectory::is_gone() const {
  struct stat stat{};
  return fstat(fd_.get(), &stat) == 0 && stat.st_nlink == 0;
}

}  // namespace hicache
