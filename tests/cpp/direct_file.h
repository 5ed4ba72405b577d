// Real files and file systems for tests of direct I/O.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "base/clock.h"
#include "io/fd.h"

namespace hicache::testing {

/// A new folder below the one that the test runs in, which the build has on a real file system.
class TestFolder {
 public:
  TestFolder() : path_("test-folder-" + std::to_string(random_token())) {
    path_ = std::filesystem::absolute(path_).string();
    EXPECT_EQ(mkdir(path_.c_str(), 0700), 0) << std::strerror(errno);
  }
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// A file without a name, open for direct I/O.
inline Fd make_direct_file(const std::string& folder = ".") {
  const std::string path = folder + "/test-file-" + std::to_string(random_token());
  Fd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600));
  EXPECT_TRUE(fd.valid()) << path << ": " << std::strerror(errno);
  unlink(path.c_str());
  return fd;
}

/// A file system of its own that nobody else sees by name; gone with this object.
class PrivateMount {
 public:
  PrivateMount(const char* type, unsigned long flags, const char* options) {
    const TestFolder folder;
    if (mount("none", folder.path().c_str(), type, flags, options) != 0) return;
    root_ = Fd(open(folder.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    umount2(folder.path().c_str(), MNT_DETACH);
  }

  /// False: not root, or the kernel does not have it.
  bool valid() const { return root_.valid(); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(root_.get()); }

 private:
  Fd root_;
};

}  // namespace hicache::testing
