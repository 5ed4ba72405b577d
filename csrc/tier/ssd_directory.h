// The directory of an SSD log, opened: its file, locked against other nodes, and what its
// superblock says.
//
// Foreign, damaged and newer files are refused and left as they are. A file that a crash left
// without a superblock counts as new. The lock lasts as long as this object, or the last request in
// flight on fd().
//
// Not here: regions and what is in them (ssd_volume, ssd_recovery).
// Threads: one owner. Opening blocks on the disk; so may the accessors that ask the file system.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "io/fd.h"
#include "tier/ssd_format.h"

namespace hicache {

class SsdDirectory {
 public:
  struct Options {
    std::string path;            // Made if missing; its parent must be there.
    uint64_t size_limit_bytes;   // Of the file, as region_count_max() tells.
    uint64_t region_size_bytes;  // Of a new file; an existing one keeps its own.
  };

  /// kBusy: another node has it open. kUnsupported: the file system, or the file's version, cannot
  /// be used. kCorrupt: a damaged superblock. kInvalidArgument: something else lies there, or
  /// impossible options. kNoSpace, kIo: as the system says. Messages name the path and the remedy.
  static Result<std::unique_ptr<SsdDirectory>> open(const Options& options);

  SsdDirectory(const SsdDirectory&) = delete;
  SsdDirectory& operator=(const SsdDirectory&) = delete;

  /// Of the file.
  const std::string& path() const { return path_; }
  int fd() const { return fd_.get(); }
  /// The same file once more, for reading alone: for other processes. Whatever its name points to
  /// by now.
  Result<Fd> open_for_readers() const;

  const LogId& log_id() const { return superblock_.log_id; }
  uint64_t region_size_bytes() const { return superblock_.region_size_bytes; }
  uint64_t region_offset(uint32_t region) const {
    return kSuperblockSize + region * superblock_.region_size_bytes;
  }
  /// Whole regions inside the file now.
  uint32_t region_count() const;
  /// What the size limit allows; at least kRegionCountMin. There may be more of them already.
  uint32_t region_count_max() const;

  /// What users without privileges may still write; UINT64_MAX if the file system does not say.
  uint64_t file_system_free_bytes() const;
  /// The file was removed, alone or with its directory: what is written is lost with this object.
  bool is_gone() const;

 private:
  SsdDirectory(std::string path, Fd fd, const Superblock& superblock, uint64_t size_limit_bytes)
      : path_(std::move(path)),
        fd_(std::move(fd)),
        superblock_(superblock),
        size_limit_bytes_(size_limit_bytes) {}

  const std::string path_;
  const Fd fd_;
  const Superblock superblock_;
  const uint64_t size_limit_bytes_;
};

}  // namespace hicache
