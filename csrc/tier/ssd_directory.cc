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
#include <filesystem>

#include "base/clock.h"
#include "io/mapped_memory.h"

namespace hicache {
namespace {

constexpr uint64_t kLockWaitMs = 200;  // Who only looks holds the lock for a moment.
constexpr int kLockRetryMs = 5;
constexpr const char* kRemedy = "; move it away, or choose another directory";

Status refused(Code code, const std::string& file, const std::string& why) {
  return Status(code, "the SSD log " + file + ": " + why + kRemedy);
}

}  // namespace

Result<std::unique_ptr<SsdDirectory>> SsdDirectory::open(const Options& options) {
  std::error_code error;
  if (std::filesystem::create_directories(options.path, error)) {
    std::filesystem::permissions(options.path, std::filesystem::perms::owner_all, error);
  }
  if (error) {
    return Status(Code::kIo, "making the SSD directory " + options.path + ": " + error.message());
  }
  const std::string file = options.path + "/" + kSsdFileName;
  constexpr int kFlags = O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  Fd fd(::open(file.c_str(), kFlags, 0600));
  if (!fd.valid() && errno == EINVAL) {
    return Status(Code::kUnsupported,
                  "the file system of " + options.path +
                      " does not offer direct I/O (O_DIRECT); choose a directory on ext4 or XFS");
  }
  if (!fd.valid() && errno == ELOOP) {
    return refused(Code::kInvalidArgument, file, "it is a symbolic link");
  }
  if (!fd.valid()) return io_error("opening the SSD log " + file, errno);
  struct stat status{};
  if (fstat(fd.get(), &status) != 0) return io_error("looking at " + file, errno);
  if (!S_ISREG(status.st_mode)) {
    return refused(Code::kInvalidArgument, file, "it is not a regular file");
  }
  if (status.st_uid != geteuid()) {
    return refused(Code::kInvalidArgument, file,
                   "it belongs to user " + std::to_string(status.st_uid));
  }
  std::unique_ptr<SsdDirectory> directory(new SsdDirectory(options, std::move(fd)));
  HICACHE_RETURN_IF_ERROR(directory->lock());
  HICACHE_RETURN_IF_ERROR(directory->read_superblock());
  return directory;
}

Status SsdDirectory::lock() {
  const Deadline until = Deadline::after_ms(kLockWaitMs);
  while (flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return io_error("locking " + file(), errno);
    if (until.expired()) {
      return Status(Code::kBusy, "the SSD directory " + options_.path +
                                     " is used by another node; stop that one "
                                     "(mooncake-hicache stop), or choose another directory");
    }
    poll(nullptr, 0, kLockRetryMs);
  }
  return Status();
}

Status SsdDirectory::read_superblock() {
  struct stat status{};
  if (fstat(fd_.get(), &status) != 0) return io_error("looking at " + file(), errno);
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size == 0) return write_superblock();
  const MappedMemory sector = MappedMemory::make(kSectorSize);
  if (!sector.valid()) return Status(Code::kNoSpace, "no memory to read " + file());
  const ssize_t count = pread(fd_.get(), sector.address(), kSectorSize, 0);
  if (count < 0) return io_error("reading " + file(), errno);
  if (static_cast<uint64_t>(count) != kSectorSize) {
    return refused(Code::kInvalidArgument, file(), "it is too short to be one");
  }
  // Killed between making the file and its superblock: nothing was ever in it.
  const auto bytes = sector.span();
  const bool is_blank = size <= kSuperblockSize &&
                        std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return !byte; });
  if (is_blank) return write_superblock();
  const Result<Superblock> decoded = decode_superblock(Sector(bytes.first<kSectorSize>()));
  if (!decoded.ok()) return refused(decoded.status().code(), file(), decoded.status().message());
  superblock_ = decoded.value();
  if (size > kSuperblockSize) {
    region_count_ = (size - kSuperblockSize) / superblock_.region_size_bytes;
  }
  return Status();
}

Status SsdDirectory::write_superblock() {
  superblock_.region_size_bytes = options_.region_size_bytes;
  superblock_.made_at_s = unix_time_s();
  for (size_t i = 0; i < superblock_.log_id.size(); i += sizeof(uint64_t)) {
    const uint64_t token = random_token();
    std::memcpy(superblock_.log_id.data() + i, &token, sizeof(token));
  }
  const MappedMemory sector = MappedMemory::make(kSectorSize);
  if (!sector.valid()) return Status(Code::kNoSpace, "no memory to write " + file());
  encode(superblock_, MutableSector(sector.span().first<kSectorSize>()));
  const ssize_t count = pwrite(fd_.get(), sector.address(), kSectorSize, 0);
  if (count < 0 || static_cast<uint64_t>(count) != kSectorSize || fdatasync(fd_.get()) != 0 ||
      ftruncate(fd_.get(), static_cast<off_t>(kSuperblockSize)) != 0) {
    const int error = count >= 0 && static_cast<uint64_t>(count) != kSectorSize ? ENOSPC : errno;
    return io_error("writing the superblock of " + file(), error);
  }
  return Status();
}

Result<Fd> SsdDirectory::open_for_readers() const {
  // Through this descriptor: nobody can put another file in its place meanwhile.
  const std::string path = "/proc/self/fd/" + std::to_string(fd_.get());
  Fd reader(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (!reader.valid()) return io_error("opening " + file() + " for readers", errno);
  return reader;
}

uint64_t SsdDirectory::region_count_max() const {
  const uint64_t limit = options_.size_limit_bytes;
  if (limit <= kSuperblockSize) return 1;
  return std::max<uint64_t>(1, (limit - kSuperblockSize) / superblock_.region_size_bytes);
}

Result<uint64_t> SsdDirectory::file_system_free_bytes() const {
  struct statvfs status{};
  if (fstatvfs(fd_.get(), &status) != 0) return io_error("asking for free space", errno);
  return static_cast<uint64_t>(status.f_bavail) * status.f_frsize;
}

bool SsdDirectory::is_gone() const {
  struct stat status{};
  return fstat(fd_.get(), &status) == 0 && status.st_nlink == 0;
}

}  // namespace hicache
