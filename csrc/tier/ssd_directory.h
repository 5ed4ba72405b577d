// A directory that holds one file of the SSD log: made if missing, locked, its superblock checked.
//
// What is not ours is refused and left as it is: a foreign file, another version, a damaged
// superblock, a file that somebody else holds the lock of.
//
// Threads: any, after open().
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
    std::string path;
    uint64_t size_limit_bytes;
    uint64_t region_size_bytes;  // Of a new file; an existing one keeps its own.
  };

  /// kBusy: another node uses it. kUnsupported: no direct I/O there, or another version of the
  /// format. kInvalidArgument, kCorrupt: what lies there is not ours, or damaged. kIo: the rest.
  static Result<std::unique_ptr<SsdDirectory>> open(const Options& options);

  const std::string& path() const { return options_.path; }
  /// For reading and writing, past the page cache.
  int fd() const { return fd_.get(); }
  /// Another descriptor of the same file, read-only.
  Result<Fd> open_for_readers() const;
  const LogId& log_id() const { return superblock_.log_id; }
  uint64_t region_size_bytes() const { return superblock_.region_size_bytes; }
  /// Whole regions inside the file when it was opened.
  uint64_t region_count() const { return region_count_; }
  /// By the size limit; at least 1.
  uint64_t region_count_max() const;
  /// What the file system has left for users without privileges. Blocks as the disk does.
  Result<uint64_t> file_system_free_bytes() const;
  /// The file was removed from its directory.
  bool is_gone() const;

 private:
  SsdDirectory(Options options, Fd fd) : options_(std::move(options)), fd_(std::move(fd)) {}
  Status lock();
  Status read_superblock();
  Status write_superblock();
  std::string file() const { return options_.path + "/" + kSsdFileName; }

  const Options options_;
  Fd fd_;
  Superblock superblock_;
  uint64_t region_count_ = 0;
};

}  // namespace hicache
