// Files that tests read past the page cache.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "io/fd.h"
#include "transfer/file_health.h"

namespace hicache::testing {

class SampleFile {
 public:
  explicit SampleFile(const std::vector<uint8_t>& bytes)
      : path_((std::filesystem::temp_directory_path() / "hicache-test-XXXXXX").string()) {
    const Fd writer(mkstemp(path_.data()));
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t size = write(writer.get(), bytes.data() + done, bytes.size() - done);
      if (size <= 0) break;
      done += static_cast<size_t>(size);
    }
    fsync(writer.get());
  }
  ~SampleFile() { unlink(path_.c_str()); }
  SampleFile(const SampleFile&) = delete;
  SampleFile& operator=(const SampleFile&) = delete;

  Fd open(int flags = O_RDONLY | O_DIRECT) const {
    return Fd(::open(path_.c_str(), flags | O_CLOEXEC));
  }
  std::unique_ptr<ReadableFile> readable() const { return std::make_unique<ReadableFile>(open()); }
  void truncate(uint64_t size) const {
    EXPECT_EQ(::truncate(path_.c_str(), static_cast<off_t>(size)), 0);
  }

 private:
  std::string path_;
};

/// For tests that mean the real thing: some file systems know no direct reads.
#define HICACHE_NEEDS_DIRECT_FILES()                                               \
  if (!::hicache::testing::SampleFile({}).open().valid()) {                        \
    GTEST_SKIP() << "files of the temporary folder cannot be read past the cache"; \
  }

}  // namespace hicache::testing
